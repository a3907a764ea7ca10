"""Windows of scenes are what the whole scene holds there, though it is never read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from maskloom.contests.dstl import open_dstl
from maskloom.contests.dstl.stand_in import write_stand_in
from maskloom.data import dataset as room
from maskloom.data import scene_windows
from maskloom.data.augment import AugmentSettings
from maskloom.data.band_math import BandSettings
from maskloom.data.dataset import Key, SegmentationDataset
from maskloom.data.input_policy import InputPolicy, cut_image, cut_labels
from maskloom.data.mask_coding import MaskCoding
from maskloom.data.record_images import read_record_image
from maskloom.data.scene_windows import count_classes, drawn_window, files_problem, has_place, is_scene, read_window
from maskloom.data.sources.base import DataSettings, DataSource
from maskloom.data.truth import read_truth
from maskloom.errors import BadFile, UserError
from maskloom.rasters.writing import write_geotiff
from maskloom.records import IGNORE, BadSize, MaskFile, Record, RunLengths, Shapes, Task
from maskloom.windows import Window

BANDS = BandSettings(names="dstl", full_scale=2047, indices=("dstl_ndwi", "dstl_ccci"))
POLICY = InputPolicy(mode="window", size=(48, 48), margin=8, multiple=16, bands=BANDS)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> DataSource:
    folder = tmp_path_factory.mktemp("scenes")
    write_stand_in(folder, images=2, scale=0.03, seed=4)
    return open_dstl(folder, DataSettings())


def first(source: DataSource) -> Record:
    """The first scene, its M file moved as a registration would."""
    record = source.records[0]
    moved = replace(record.bands[0], moved=(1.0, 0.0, 0.4, 0.0, 1.0, -0.7))
    return replace(record, bands=(moved, *record.bands[1:]))


@pytest.mark.parametrize("top_left", [(0, 0), (-8, -8), (30, -3), (70, 74)])
def test_a_window_is_that_of_the_whole(source: DataSource, top_left: tuple[int, int]) -> None:
    record, window = first(source), Window(*top_left, 40, 36)
    image, labels = read_window(record, window, POLICY, source.task, source.coding)
    assert np.array_equal(image, cut_image(read_record_image(record), window))
    assert np.array_equal(labels, cut_labels(read_truth(record, source.task, source.coding), window))


def samples(source: DataSource, **changes: object) -> SegmentationDataset:
    values = {
        "records": [first(source)], "task": source.task, "coding": source.coding, "policy": POLICY,
        "augment": AugmentSettings(), "seed": 3, "channels": 12,
    }  # fmt: skip
    return SegmentationDataset(**values | changes)  # type: ignore[arg-type]


def test_samples_have_indices_behind_the_bands_and_a_margin_that_counts_nowhere(source: DataSource) -> None:
    item = samples(source)[Key(0, 0, 0)]
    assert (item.image.shape, item.image.dtype, item.channels) == ((48, 48, 14), np.float32, 14)
    assert item.image[..., :12].min() >= 0 and item.image[..., :12].max() <= 1
    assert item.labels.shape == (10, 48, 48)
    counted = (item.labels != IGNORE).all(axis=0)
    assert counted[8:-8, 8:-8].all() and counted.sum() == 32 * 32


def test_the_same_windows_come_from_an_image_that_is_read_whole(
    source: DataSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one place to draw from there is nothing random, and both ways give the same."""
    height, width = source.records[0].size
    policy = InputPolicy(mode="window", size=(112, 112), margin=4, multiple=16, bands=BANDS)
    assert max(height, width) + 8 <= 112
    by_window = samples(source, policy=policy)[Key(0, 0, 0)]
    monkeypatch.setattr(room, "is_scene", lambda *_: False)
    whole = samples(source, policy=policy)[Key(0, 0, 0)]
    assert np.array_equal(by_window.image, whole.image) and np.array_equal(by_window.labels, whole.labels)


def test_a_member_learns_its_classes_alone(source: DataSource) -> None:
    part = Task(kind="multilabel", classes=("roads", "trees"))
    whole, some = samples(source)[Key(0, 0, 0)], samples(source, part=part)[Key(0, 0, 0)]
    assert np.array_equal(some.labels, whole.labels[[2, 4]])


def test_preferred_windows_hold_the_class(source: DataSource) -> None:
    policy = POLICY.model_copy(update={"prefer_class": 1.0})
    part = Task(kind="multilabel", classes=("roads",))
    for seed in range(20):
        window = drawn_window(
            first(source), policy, source.task, np.random.default_rng(seed), coding=source.coding, part=part
        )
        _, labels = read_window(first(source), window, policy, source.task, source.coding)
        assert (labels[2] == 1).any()


def test_what_needs_the_whole_image_is_read_whole(source: DataSource) -> None:
    record = first(source)
    assert is_scene(record, POLICY, source.coding)
    assert not is_scene(replace(record, bands=()), POLICY, source.coding)
    assert not is_scene(record, POLICY.model_copy(update={"scale": 0.5}), source.coding)
    assert not is_scene(record, InputPolicy(mode="full"), source.coding)


def test_a_file_of_bands_that_is_gone_is_named(source: DataSource, tmp_path: Path) -> None:
    record = source.records[0]
    lost = replace(record, bands=(replace(record.bands[0], path=tmp_path / "gone_M.tif"),))
    with pytest.raises(BadFile, match="gone_M"):
        read_window(lost, Window(0, 0, 8, 8), POLICY, source.task, source.coding)
    with pytest.raises(BadFile, match="gone_M"):
        read_record_image(lost)


# --- mask rasters ----------------------------------------------------------------------------------------------------

THREE = Task(kind="multiclass", classes=("ground", "road", "roof"))
LISTED = MaskCoding(kind="values", values=((0, 0), (1, 1), (2, 2)))
WINDOWS = InputPolicy(mode="window", size=(32, 32), margin=4)
SIZE = (90, 110)


def raster(folder: Path, *, nodata: float | None = None) -> tuple[Record, np.ndarray, np.ndarray]:
    """A record of one file with a mask raster, its pixels and its labels: roofs lie in one corner alone."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 255, (*SIZE, 3)).astype(np.uint8)
    labels = rng.integers(0, 2, SIZE).astype(np.uint8)
    labels[70:, 80:] = 2
    if nodata is not None:
        pixels[:20, :30] = int(nodata)
    write_geotiff(folder / "image.tif", np.moveaxis(pixels, -1, 0), None, nodata=nodata)
    write_geotiff(folder / "mask.tif", labels, None)
    truth = MaskFile(path=folder / "mask.tif")
    return Record(id="town", image=folder / "image.tif", size=SIZE, truth=truth), pixels, labels


@pytest.mark.parametrize("top_left", [(0, 0), (-4, -4), (33, 50), (62, 82)])
def test_windows_of_a_single_file_with_a_mask_raster(tmp_path: Path, top_left: tuple[int, int]) -> None:
    record, pixels, labels = raster(tmp_path)
    window = Window(*top_left, 32, 32)
    image, found = read_window(record, window, WINDOWS, THREE, LISTED)
    assert np.array_equal(image, cut_image(read_record_image(record), window))
    assert np.array_equal(image, cut_image(pixels, window))
    assert np.array_equal(found, cut_labels(read_truth(record, THREE, LISTED), window))
    assert np.array_equal(found, cut_labels(labels, window))


def test_what_the_image_does_not_know_counts_nowhere(tmp_path: Path) -> None:
    record, _, labels = raster(tmp_path, nodata=0)
    image, found = read_window(record, Window(10, 20, 30, 30), WINDOWS, THREE, LISTED)
    assert (found[:10, :10] == IGNORE).all() and (image[:10, :10] == 0).all()
    assert np.array_equal(found[10:], labels[20:40, 20:50])


def test_large_files_are_read_by_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, *_ = raster(tmp_path)
    assert not is_scene(record, WINDOWS, LISTED), "small images are read whole"
    monkeypatch.setattr(scene_windows, "SCENE_PIXELS", SIZE[0] * SIZE[1])
    assert is_scene(record, WINDOWS, LISTED)
    assert not is_scene(record, InputPolicy(mode="full"), LISTED)
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(tmp_path / "mask.png")
    picture = replace(record, truth=MaskFile(path=tmp_path / "mask.png"))
    assert not is_scene(picture, WINDOWS, LISTED)
    assert "mask.png: expected a plain TIFF" in files_problem(picture, LISTED)
    runs = replace(record, truth=RunLengths(runs=(), order="row", base=1))
    assert not is_scene(runs, WINDOWS, LISTED) and "mask raster or polygons" in files_problem(runs, LISTED)
    assert files_problem(replace(record, truth=Shapes(wkt=())), LISTED) == ""


def test_palettes_and_pages_are_no_plain_rasters(tmp_path: Path) -> None:
    record, *_ = raster(tmp_path)
    palette = Image.fromarray(np.zeros(SIZE, np.uint8), "P")
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(tmp_path / "palette.tif")
    coloured = MaskCoding(kind="colours", colours=(((0, 0, 0), 0), ((255, 0, 0), 1)))
    mask = replace(record, truth=MaskFile(path=tmp_path / "palette.tif"))
    assert files_problem(mask, LISTED) == "" and "palette.tif" in files_problem(mask, coloured)
    assert "palette.tif" in files_problem(replace(record, image=tmp_path / "palette.tif"), LISTED)
    tifffile.imwrite(tmp_path / "pages.tif", np.zeros((3, *SIZE), np.uint8), photometric="minisblack", metadata=None)
    assert "pages.tif" in files_problem(replace(record, image=tmp_path / "pages.tif"), LISTED)


def test_samples_of_both_ways_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one place to draw from there is nothing random."""
    record, *_ = raster(tmp_path)
    dataset = SegmentationDataset(
        records=[record], task=THREE, coding=LISTED, policy=InputPolicy(mode="window", size=(128, 128), multiple=32),
        augment=AugmentSettings(), seed=1,
    )  # fmt: skip
    whole = dataset[Key(0, 0, 0)]
    monkeypatch.setattr(scene_windows, "SCENE_PIXELS", 1)
    monkeypatch.setattr(SegmentationDataset, "_of_whole", None)
    by_window = dataset[Key(0, 0, 0)]
    assert np.array_equal(by_window.image, whole.image) and np.array_equal(by_window.labels, whole.labels)


def touches(one: Window, other: Window) -> bool:
    rows = one.top < other.top + other.height and other.top < one.top + one.height
    return rows and one.left < other.left + other.width and other.left < one.left + one.width


@pytest.mark.parametrize("prefer_class", [0.0, 1.0])
def test_no_window_touches_forbidden_ground(tmp_path: Path, prefer_class: float) -> None:
    record, *_ = raster(tmp_path)
    policy = WINDOWS.model_copy(update={"prefer_class": prefer_class})
    forbidden = [Window(20, 20, 30, 30), Window(60, 85, 60, 60)]
    drawn = [
        drawn_window(record, policy, THREE, np.random.default_rng(seed), coding=LISTED, forbidden=forbidden)
        for seed in range(60)
    ]
    assert not any(touches(window, area) for window in drawn for area in forbidden)
    assert min(window.top for window in drawn) < 0, "the margin reaches beyond the border"
    assert len(set(drawn)) > 20


def test_ground_without_room(tmp_path: Path) -> None:
    record, *_ = raster(tmp_path)
    assert has_place(record, WINDOWS, [Window(30, 0, 90, 110)])
    everywhere = [Window(20, 0, 40, 110)]
    assert not has_place(record, WINDOWS.model_copy(update={"size": (64, 64)}), everywhere)
    with pytest.raises(UserError, match="expected room for windows"):
        drawn_window(record, WINDOWS, THREE, np.random.default_rng(0), coding=LISTED, forbidden=[Window(0, 0, *SIZE)])


def test_classes_of_a_raster_are_counted_once(tmp_path: Path) -> None:
    record, *_ = raster(tmp_path)
    count_classes(record, THREE, LISTED)
    hits = scene_windows._counts.cache_info().hits
    policy = WINDOWS.model_copy(update={"prefer_class": 1.0})
    window = drawn_window(record, policy, THREE, np.random.default_rng(1), coding=LISTED)
    assert window.height == 32 and scene_windows._counts.cache_info().hits == hits + 1


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    record, *_ = raster(tmp_path)
    write_geotiff(tmp_path / "mask.tif", np.zeros((90, 100), np.uint8), None)
    with pytest.raises(BadSize, match="100×90"):
        read_window(record, Window(0, 0, 8, 8), WINDOWS, THREE, LISTED)
