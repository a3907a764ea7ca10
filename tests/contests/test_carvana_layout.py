"""The Carvana layout as published, plain and gzipped, with and without its parts."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskloom.contests.carvana import SUBMISSION, open_carvana, recognise
from maskloom.data.image_io import write_png
from maskloom.data.sources.base import DataSettings, DataSource
from maskloom.data.truth import read_truth
from maskloom.encodings.rle import encode_runs
from maskloom.errors import BadFile, UserError
from maskloom.records import BadSize

SIZE = (6, 8)
MASK = np.zeros(SIZE, np.uint8)
MASK[1:4, 2:7] = 1
CARS = ("aa11", "bb22")


def photo(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 120, np.uint8)).save(path)


def gif(path: Path, mask: np.ndarray = MASK) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask, "P")
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.save(path)


def write(path: Path, text: str, zipped: bool) -> None:
    if zipped:
        with gzip.open(path.with_name(path.name + ".gz"), "wt") as stream:
            stream.write(text)
    else:
        path.write_text(text)


@pytest.fixture(params=[False, True], ids=["plain", "gz"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    for car in CARS:
        for view in ("01", "02"):
            photo(tmp_path / "train" / f"{car}_{view}.jpg")
            gif(tmp_path / "train_masks" / f"{car}_{view}_mask.gif")
    photo(tmp_path / "test" / "cc33_16.jpg")
    write(tmp_path / "metadata.csv", '"id","year","make"\n"aa11","2014","Acura"\n"cc33","2001","BMW"\n', request.param)
    write(tmp_path / "sample_submission.csv", "img,rle_mask\ncc33_16.jpg,1 1\n", request.param)
    return tmp_path


def opened(path: Path, **settings: object) -> DataSource:
    return open_carvana(path, DataSettings.model_validate(settings))


def test_the_whole_layout(folder: Path) -> None:
    assert recognise(folder)
    source = opened(folder)
    assert source.layout == source.submission == "carvana" and source.task.classes == ("car",)
    assert [(record.id, record.group) for record in source.records] == [
        ("aa11_01", "aa11"),
        ("aa11_02", "aa11"),
        ("bb22_01", "bb22"),
        ("bb22_02", "bb22"),
    ]
    assert dict(source.records[1].attributes) == {"view": "02", "year": "2014", "make": "Acura"}
    (test,) = source.unlabelled
    assert (test.id, test.group, test.attributes["make"]) == ("cc33_16", "cc33", "BMW")
    assert np.array_equal(read_truth(source.records[0], source.task, source.coding), MASK)
    assert source.sample_submission is not None and SUBMISSION.name(test.id) == "cc33_16.jpg"
    assert DataSource.from_json(source.to_json(), folder) == source


def test_masks_from_the_table_of_run_lengths(folder: Path) -> None:
    for file in (folder / "train_masks").iterdir():
        file.unlink()
    (folder / "train_masks").rmdir()
    assert not recognise(folder)
    rows = [f"{car}_{view}.jpg,{encode_runs(MASK > 0)}\n" for car in CARS for view in ("01", "02")]
    (folder / "train_masks.csv").write_text("img,rle_mask\n" + "".join(rows))
    assert recognise(folder)
    source = opened(folder)
    assert np.array_equal(read_truth(source.records[0], source.task, source.coding), MASK)
    assert any("4 masks are taken from train_masks.csv" in note for note in source.notes)


def test_a_photo_that_stands_twice_in_the_table_is_refused(folder: Path) -> None:
    for twice in ("aa11_01.jpg", "zz99_01.jpg"):  # also one that has a mask file, or no photo
        (folder / "train_masks.csv").write_text(f"img,rle_mask\n{twice},1 1\nbb22_01.jpg,1 1\n{twice},2 1\n")
        with pytest.raises(BadFile, match=rf"train_masks\.csv: expected each photo once, found '{twice[:-4]}' again"):
            opened(folder)


def test_full_quality_photos_go_first(folder: Path) -> None:
    (folder / "train").rename(folder / "train_hq")
    photo(folder / "train" / "zz99_01.jpg")
    source = opened(folder)
    assert {record.image.parent.name for record in source.records} == {"train_hq"}
    assert any("train/ is not used" in note for note in source.notes)
    with pytest.raises(UserError, match="no such folder"):
        opened(folder, images="trane")


def test_a_photo_without_mask_and_a_mask_without_photo(folder: Path) -> None:
    photo(folder / "train" / "dd44_01.jpg")
    assert [record.id for record in opened(folder).unlabelled] == ["dd44_01", "cc33_16"]
    gif(folder / "train_masks" / "ee55_01_mask.gif")
    with pytest.raises(BadFile, match="a mask without a photo"):
        opened(folder)


def test_bad_files(folder: Path) -> None:
    (folder / "train" / "aa11_01.jpg").write_text("text")
    gif(folder / "train_masks" / "aa11_02_mask.gif", MASK[:5])
    photo(folder / "train" / "noview.jpg")
    with pytest.raises(BadFile, match=r"found text .*and 2 more"):
        opened(folder)
    source = opened(folder, skip_bad=True)
    assert [record.id for record in source.records] == ["bb22_01", "bb22_02"]
    assert [type(problem) for problem in source.problems] == [BadFile, BadSize, BadFile]


def test_unexpected_mask_values(folder: Path) -> None:
    strange = MASK * 2
    strange[0, 0] = 1
    gif(folder / "train_masks" / "aa11_01_mask.gif", strange)
    source = opened(folder)
    with pytest.raises(BadFile, match="expected the mask values 0, 1, 255, found 2 in 15 pixels"):
        read_truth(source.records[0], source.task, source.coding)


def test_wrong_settings_and_damaged_tables(folder: Path) -> None:
    with pytest.raises(UserError, match="binary task"):
        opened(folder, task="multiclass")
    with pytest.raises(UserError, match="expected 1 names"):
        opened(folder, classes=["a", "b"])
    (folder / "metadata.csv").write_text("number,year\n1,2\n")
    with pytest.raises(UserError, match="expected the columns id, found number, year"):
        opened(folder)


def test_settings(folder: Path) -> None:
    assert len({record.group for record in opened(folder, limit=1).records}) == 1
    assert opened(folder, group="view").records[0].group == "01"


def test_another_folder_is_not_recognised(tmp_path: Path) -> None:
    write_png(tmp_path / "images" / "aa_01.png", MASK)
    write_png(tmp_path / "masks" / "aa_01.png", MASK)
    assert not recognise(tmp_path) and not recognise(tmp_path / "none")


def test_blank_lines_are_nothing_and_short_rows_are_named(folder: Path) -> None:
    for file in folder.glob("metadata.csv*"):
        file.unlink()
    (folder / "metadata.csv").write_text("id,year\n\naa11,2014\n\n")
    (folder / "train_masks.csv").write_text("img,rle_mask\n\naa11_01.jpg,1 1\n\n")
    (folder / "classes.yaml").write_text("classes: [car]\n")
    source = opened(folder)
    assert source.records[0].attributes["year"] == "2014"
    assert any("classes.yaml is not used" in note for note in source.notes)
    (folder / "train_masks.csv").write_text("img,rle_mask\naa11_01.jpg\n")
    with pytest.raises(BadFile, match="expected 2 columns in row 2, found 1"):
        opened(folder)
