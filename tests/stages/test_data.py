from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from maskloom.config import parse
from maskloom.data.image_io import write_png
from maskloom.data.mask_coding import MaskCoding
from maskloom.data.sources.base import DataSettings, DataSource
from maskloom.errors import BadFile, UserError
from maskloom.progress import Silent
from maskloom.recipe import Recipe
from maskloom.records import MaskFile, Record, Task
from maskloom.run_directory import RunDirectory
from maskloom.stages.context import Context
from maskloom.stages.data import load_survey, summary, survey_data, without_bad_records


def record(record_id: str, group: str, size: tuple[int, int] = (512, 640)) -> Record:
    return Record(id=record_id, image=Path(f"{record_id}.png"), size=size, group=group)


def source(*records: Record) -> DataSource:
    task = Task(kind="binary", classes=("car",))
    return DataSource(layout="folder", root=Path(), task=task, coding=MaskCoding(kind="foreground"), records=records)


def test_the_data_in_one_line() -> None:
    cars = [record(f"{car}_{view}", car) for car in "ab" for view in range(2)]
    assert summary(source(*cars)) == "4 images 640×512, in 2 groups; binary: car"
    mixed = replace(source(*cars[::2], record("x", "", (4, 4))), unlabelled=(record("y", ""),))
    expected = "3 images (2 sizes, 4×4 to 640×512), each its own group; 1 more without masks; binary: car"
    assert summary(mixed) == expected


def surroundings(
    folder: Path, images: list[np.ndarray], *, skip_bad: bool = False, channels: int = 3, bands: list[str] | None = None
) -> Context:
    """A run on a folder of these images, called 0, 1, …, with a mask each, for networks of so many channels."""
    records = []
    for number, image in enumerate(images):
        paths = [folder / kind / f"{number}.png" for kind in ("images", "masks")]
        for path, pixels in zip(paths, (image, np.eye(8, dtype=np.uint8)), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_png(path, pixels)
        records.append(Record(id=str(number), image=paths[0], size=(8, 8), truth=MaskFile(path=paths[1])))
    member = {
        "name": "net",
        "network": {"encoder": "resnet18", "weights": "none", "channels": channels},
        "input": {"mode": "window", "size": [32, 32], "bands": bands and {"names": bands, "full_scale": 255}},
        "loss": {"terms": [{"kind": "bce"}]},
        "training": {"epochs": 1},
    }
    values = {"name": "r", "metric": "dice", "members": [member], "data": {"skip_bad": skip_bad}}
    return Context(
        run=RunDirectory(folder / "run"), recipe=parse(Recipe, values),
        source=DataSource(
            layout="folder", root=folder, task=Task(kind="binary", classes=("car",)),
            coding=MaskCoding(kind="foreground"), records=tuple(records),
        ),
        device=torch.device("cpu"), progress=Silent(), workers=0,
    )  # fmt: skip


COLOUR = np.zeros((8, 8, 3), np.uint8)
GREY, DEEP = COLOUR[..., :1], COLOUR.astype(np.uint16)


@pytest.mark.parametrize(
    ("images", "number", "reason"),
    [
        ([DEEP, COLOUR, COLOUR], 0, "expected 3 channel(s) of uint8 as in most images, found 3 channel(s) of uint16"),
        ([GREY, COLOUR, GREY.astype(np.uint16)], 2, "found 1 channel(s) of uint16; convert the image"),
        ([GREY.astype(np.uint16), DEEP, COLOUR], 2, "expected 3 channel(s) of uint16 as in most images"),
    ],
)
def test_an_image_of_another_kind_is_bad(tmp_path: Path, images: list[np.ndarray], number: int, reason: str) -> None:
    with pytest.raises(BadFile) as caught:
        survey_data(surroundings(tmp_path, images))
    assert caught.value.path.name == f"{number}.png" and reason in caught.value.reason
    context = surroundings(tmp_path, images, skip_bad=True)
    survey_data(context)
    assert load_survey(context).bad_ids == {str(number)}
    kept = without_bad_records(context).source.records
    assert [each.id for each in kept] == [str(place) for place in range(3) if place != number]


def test_a_colour_image_is_bad_where_networks_take_one_channel(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"1\.png: expected 1 channel\(s\) of uint8 as in most images, found 3"):
        survey_data(surroundings(tmp_path, [GREY, COLOUR, GREY], channels=1))


def test_grey_images_among_others_are_good(tmp_path: Path) -> None:
    for images in ([GREY, COLOUR, COLOUR], [GREY, GREY, COLOUR], [GREY, GREY]):
        survey_data(surroundings(tmp_path, images))


def test_grey_stands_for_no_bands_that_have_names(tmp_path: Path) -> None:
    names = ["red", "green", "nir"]
    with pytest.raises(BadFile, match=r"0\.png: expected 3 channel\(s\) of uint8 as in most images, found 1"):
        survey_data(surroundings(tmp_path, [GREY, COLOUR, COLOUR], bands=names))
    with pytest.raises(UserError, match=r"expected images of 3 channel\(s\).* found 1; name each of the images' bands"):
        survey_data(surroundings(tmp_path, [GREY, GREY], bands=names))


@pytest.mark.parametrize(
    ("files", "takes_grey"), [(None, True), (["<id>/B1.tif"], True), (["<id>/1.tif", "<id>/2.tif"], False)]
)
def test_grey_stands_for_no_stack_of_files(tmp_path: Path, files: list[str] | None, takes_grey: bool) -> None:
    recipe = surroundings(tmp_path, [COLOUR]).recipe
    data = DataSettings.model_validate({"bands": files})
    assert recipe.model_copy(update={"data": data}).takes_grey == takes_grey


def test_networks_for_other_channels_are_refused_before_training(tmp_path: Path) -> None:
    remedy = r"found 3; use --set 'members\.\*\.network\.channels=3'"
    with pytest.raises(UserError, match=remedy):
        survey_data(surroundings(tmp_path, [COLOUR, COLOUR], channels=4))
    with pytest.raises(UserError, match=r"name each of the images' bands in input\.bands\.names"):
        survey_data(surroundings(tmp_path, [COLOUR, COLOUR], channels=2, bands=["red", "green"]))


def test_what_was_left_out_once_is_not_left_out_unasked(tmp_path: Path) -> None:
    images = [COLOUR, DEEP, COLOUR]
    survey_data(surroundings(tmp_path, images, skip_bad=True))
    with pytest.raises(BadFile, match=r"1\.png: expected 3 channel"):
        without_bad_records(surroundings(tmp_path, images))
