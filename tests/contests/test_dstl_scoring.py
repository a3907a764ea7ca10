"""The Dstl metric against values worked out by hand, and polygons against rasters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import Polygon, box

from maskloom.contests.dstl.scoring import Areas, polygon_areas, raster_areas, score
from maskloom.encodings.outlines import outlines
from maskloom.records import IGNORE


def flat(areas: Areas) -> list[list[float]]:
    return [areas.tp.tolist(), areas.fp.tolist(), areas.fn.tolist()]


def test_boxes_by_hand() -> None:
    """4×4 against 4×4 moved by 2: 8 agree, 8 and 8 differ; a class only predicted, one only true, one nowhere."""
    truth = {0: [box(0, 0, 4, 4)], 2: [box(0, 0, 1, 5)]}
    predicted = {0: [box(2, 0, 6, 4)], 1: [box(0, 0, 3, 1)]}
    areas = polygon_areas(truth, predicted, 4)
    assert flat(areas) == [[8, 0, 0, 0], [8, 3, 0, 0], [8, 0, 5, 0]]
    found = score(areas, ("a", "b", "c", "d"))
    assert found.jaccard == pytest.approx({"a": 1 / 3, "b": 0, "c": 0})
    assert found.mean == pytest.approx(1 / 9) and found.absent == ("d",)


def test_the_same_on_rasters() -> None:
    truth, predicted = np.zeros((4, 6, 6), np.uint8), np.zeros((4, 6, 6), bool)
    truth[0, :4, :4] = 1
    predicted[0, :4, 2:6] = True
    predicted[1, 0, :3] = True
    truth[2, :5, 0] = 1
    assert flat(raster_areas(truth, predicted)) == [[8, 0, 0, 0], [8, 3, 0, 0], [8, 0, 5, 0]]
    assert flat(raster_areas(truth, predicted, pixel_area=0.5)) == [[4, 0, 0, 0], [4, 1.5, 0, 0], [4, 0, 2.5, 0]]


def test_areas_are_summed_over_images_before_the_index_is_taken() -> None:
    """One image all right (100), a small one all wrong (10 and 10): 100 / 120, not the mean of 1 and 0."""
    right = polygon_areas({0: [box(0, 0, 10, 10)]}, {0: [box(0, 0, 10, 10)]}, 1)
    wrong = polygon_areas({0: [box(0, 0, 1, 10)]}, {0: [box(5, 0, 6, 10)]}, 1)
    assert score(right + wrong, ("a",)).mean == pytest.approx(100 / 120)
    assert flat(right + Areas.zero(1)) == flat(right)


def test_holes_and_overlaps_count_once() -> None:
    ring = Polygon([(0, 0), (6, 0), (6, 6), (0, 6)], [[(2, 2), (2, 4), (4, 4), (4, 2)]])
    twice = [box(0, 0, 3, 6), box(2, 0, 6, 6)]
    assert flat(polygon_areas({0: [ring]}, {0: twice}, 1)) == [[32], [4], [0]]


def test_nothing_on_both_sides_and_perfection_score_1_inversion_0() -> None:
    empty = score(Areas.zero())
    assert empty.mean == 1 and len(empty.absent) == 10 and not empty.jaccard
    mask = np.random.default_rng(0).random((10, 20, 20)) < 0.4
    assert score(raster_areas(mask, mask)).mean == 1
    assert score(raster_areas(mask, ~mask)).mean == 0


def test_ignored_pixels_count_nowhere() -> None:
    truth = np.array([[[1, IGNORE, 0, 1]]], np.uint8)
    predicted = np.array([[[1, 1, 1, 0]]], np.uint8)
    assert flat(raster_areas(truth, predicted)) == [[1], [1], [1]]


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_polygons_and_rasters_agree(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, predicted = rng.random((2, 3, 12, 14)) < rng.random((2, 3, 1, 1))
    sides = [{label: outlines(maps[label]) for label in range(3)} for maps in (truth, predicted)]
    assert np.allclose(flat(polygon_areas(*sides, 3)), flat(raster_areas(truth, predicted)), atol=1e-9)


def test_callers_mistakes() -> None:
    with pytest.raises(ValueError, match="one shape"):
        raster_areas(np.zeros((1, 2, 2)), np.zeros((1, 2, 3)))
    with pytest.raises(ValueError, match="cannot add"):
        Areas.zero(1) + Areas.zero(2)
    with pytest.raises(ValueError, match="areas of 10 classes, got 2"):
        score(Areas.zero(2))
