"""Polygons beside their image: known shifts are found, nothing is moved without a reason, shares are those of ANOVA."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.linear_model import LinearRegression

from maskloom.data.mask_coding import MaskCoding
from maskloom.data.polygon_alignment import (
    AlignmentSettings,
    can_be_aligned,
    find_alignment,
    moved,
    share_between,
    standardised,
)
from maskloom.data.scene_windows import read_inside
from maskloom.data.truth import read_truth
from maskloom.records import IGNORE, MaskFile, Record, Shapes, Task
from maskloom.windows import Window

SIZE = (72, 80)
TASK = Task(kind="multilabel", classes=("fields", "ponds"))
FIELDS = shapely.MultiPolygon([shapely.box(12, 10, 40, 31), shapely.box(50, 38, 71, 60)])
PONDS = shapely.Point(30, 48).buffer(9)


def scene(folder: Path, *, contrast: float = 400) -> Record:
    """Two bands in which fields are bright and ponds dark, with noise, and polygons that lie where they are."""
    truth = Shapes(wkt=((0, FIELDS.wkt), (1, PONDS.wkt)))
    record = Record(id="a", image=folder / "a.tif", size=SIZE, truth=truth)
    fields, ponds = read_truth(record, TASK, MaskCoding()).astype(float)
    noise = np.random.default_rng(0).normal(0, 40, (*SIZE, 2))
    bands = np.stack([1000 + contrast * fields, 1000 - contrast * ponds], axis=-1) + noise
    tifffile.imwrite(record.image, bands.round().astype(np.uint16), planarconfig="contig")
    return record


@settings(max_examples=6)
@given(st.integers(-6, 6), st.integers(-6, 6))
def test_a_known_shift_is_found(tmp_path_factory: pytest.TempPathFactory, x: int, y: int) -> None:
    right, down = x / 2, y / 2
    record = moved(scene(tmp_path_factory.mktemp("scene")), -right, -down)
    found = find_alignment(record, TASK, MaskCoding(), AlignmentSettings())
    assert (found.x, found.y) == (right, down)
    assert found.is_moved == ((x, y) != (0, 0)) and found.best >= found.before


def test_a_moved_record_is_painted_so_many_pixels_on(tmp_path: Path) -> None:
    record = scene(tmp_path)
    labels, shifted = (read_truth(each, TASK, MaskCoding()) for each in (record, moved(record, 3, -2)))
    np.testing.assert_array_equal(shifted[:, :-2, 3:], labels[:, 2:, :-3])
    assert (shifted[:, -2:] == IGNORE).all() and (shifted[:, :, :3] == IGNORE).all()
    assert moved(record, 0, 0) is record


def test_nothing_is_moved_by_chance(tmp_path: Path) -> None:
    found = find_alignment(scene(tmp_path, contrast=0), TASK, MaskCoding(), AlignmentSettings(minimum_gain=0.01))
    assert not found.is_moved and found.best < 0.01


def test_what_lies_at_the_end_of_the_search_is_not_believed(tmp_path: Path) -> None:
    record = moved(scene(tmp_path), -3, 0)
    assert not find_alignment(record, TASK, MaskCoding(), AlignmentSettings(maximum_shift=2)).is_moved
    assert not find_alignment(record, TASK, MaskCoding(), AlignmentSettings(maximum_shift=3)).is_moved
    assert find_alignment(record, TASK, MaskCoding(), AlignmentSettings(maximum_shift=3.5)).x == 3


def test_one_class_against_the_rest_and_exclusive_classes(tmp_path: Path) -> None:
    record = moved(scene(tmp_path), -1.5, 2)
    assert isinstance(record.truth, Shapes)
    of_ponds = replace(record, truth=Shapes(wkt=((0, record.truth.wkt[1][1]),)))
    exclusive = replace(record, truth=Shapes(wkt=((1, record.truth.wkt[0][1]), (2, record.truth.wkt[1][1]))))
    for each, task in (
        (of_ponds, Task(kind="binary", classes=("ponds",))),
        (exclusive, Task(kind="multiclass", classes=("other", "fields", "ponds"))),
    ):
        found = find_alignment(each, task, MaskCoding(), AlignmentSettings())
        assert (found.x, found.y) == (1.5, -2)


def test_only_polygons_on_images_with_room_are_moved(tmp_path: Path) -> None:
    record, usual = scene(tmp_path), AlignmentSettings()
    assert can_be_aligned(record, usual)
    assert not can_be_aligned(replace(record, truth=MaskFile(path=tmp_path / "a.png")), usual)
    assert not can_be_aligned(replace(record, size=(2**12, 2**12 + 1)), usual)
    assert not can_be_aligned(replace(record, size=(16, 200)), usual)
    assert can_be_aligned(replace(record, size=(17, 200)), usual)


def test_what_the_image_does_not_know_says_nothing(tmp_path: Path) -> None:
    record = moved(scene(tmp_path), -2, 0)
    pixels = tifffile.imread(record.image).astype(np.float32)
    pixels[:, :20] = -9999
    nodata = (42113, "s", 0, "-9999", True)
    tifffile.imwrite(record.image, pixels, planarconfig="contig", extratags=[nodata])
    found = find_alignment(record, TASK, MaskCoding(), AlignmentSettings())
    assert (found.x, found.y) == (2, 0) and found.best > 0.5


@pytest.mark.parametrize(("x", "y"), [(3.0, -2.0), (-1.5, 2.5)])
def test_nobody_knows_what_polygons_leave_behind(tmp_path: Path, x: float, y: float) -> None:
    everywhere = replace(scene(tmp_path), truth=Shapes(wkt=((0, shapely.box(0, 0, SIZE[1], SIZE[0]).wkt),)))
    shifted = moved(everywhere, x, y)
    labels = read_truth(shifted, TASK, MaskCoding())
    down, across = np.arange(SIZE[0]) + 0.5 - y, np.arange(SIZE[1]) + 0.5 - x  # where each pixel was before
    known = ((down >= 0) & (down <= SIZE[0]))[:, None] & ((across >= 0) & (across <= SIZE[1]))
    np.testing.assert_array_equal(labels[0] == IGNORE, ~known)
    assert (labels[0][known] == 1).all() and (labels[1][known] == 0).all()
    window = Window(0, SIZE[1] - 20, 30, 20)
    _, part = read_inside(shifted, window, TASK, MaskCoding())
    np.testing.assert_array_equal(part, labels[(..., *window.slices)])


def test_the_share_is_that_of_an_analysis_of_variance() -> None:
    bands = np.array([[1.0], [3.0], [7.0], [9.0]])
    maps = np.array([[True], [True], [False], [False]])
    assert share_between(standardised(bands), maps) == pytest.approx(36 / 40)  # between 4 · 3², in all 2 · 4² + 2 · 2²
    assert share_between(standardised(np.ones_like(bands)), maps) == 0
    assert share_between(standardised(bands), np.zeros_like(maps)) == 0
    assert share_between(standardised(bands[:0]), maps[:0]) == 0


def test_the_share_is_what_a_linear_model_explains() -> None:
    rng = np.random.default_rng(1)
    maps = rng.random((600, 4)) < 0.3
    maps[:, 3] = maps[:, 0]  # a class that says nothing new
    bands = rng.normal(size=(600, 3)) + maps[:, :3] * (0.5, 0, 2)
    values = (bands - bands.mean(axis=0)) / bands.std(axis=0)
    explained = LinearRegression().fit(maps, values).score(maps, values)
    assert share_between(standardised(bands), maps) == pytest.approx(explained, rel=1e-5)


@pytest.mark.parametrize("value", [0.5, 17])
def test_how_far_is_bounded(value: float) -> None:
    with pytest.raises(ValidationError):
        AlignmentSettings(maximum_shift=value)
