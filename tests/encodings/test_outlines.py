"""Outlines that can be drawn by eye, and the way back, which loses nothing."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from shapely import Polygon, box

from maskloom.encodings.outlines import areas, cleaned, num_crossings, outlines, repaired
from maskloom.encodings.polygons import rasterize_wkt
from maskloom.errors import UserError
from maskloom.masks import label_components

MASKS = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(lambda size: arrays(bool, size))


def drawn(*rows: str) -> np.ndarray:
    return np.array([[char == "#" for char in row] for row in rows])


def texts(polygons: list[Polygon]) -> list[str]:
    return [polygon.wkt for polygon in polygons]


def test_a_box() -> None:
    assert texts(outlines(drawn("....", ".##.", ".##."))) == ["POLYGON ((1 1, 3 1, 3 3, 1 3, 1 1))"]


def test_nothing_and_everything() -> None:
    assert outlines(np.zeros((3, 4), bool)) == []
    assert outlines(np.zeros((0, 4), bool)) == []
    assert texts(outlines(np.ones((3, 4), bool))) == ["POLYGON ((0 0, 4 0, 4 3, 0 3, 0 0))"]


def test_a_hole_with_an_island() -> None:
    ring, island = outlines(drawn("#####", "#...#", "#.#.#", "#...#", "#####"))
    assert ring.wkt == "POLYGON ((0 0, 5 0, 5 5, 0 5, 0 0), (4 1, 1 1, 1 4, 4 4, 4 1))"
    assert island.wkt == "POLYGON ((2 2, 3 2, 3 3, 2 3, 2 2))"


@pytest.mark.parametrize("rows", [("#.", ".#"), (".#", "#.")])
def test_pixels_that_meet_at_a_corner_are_two_polygons(rows: tuple[str, ...]) -> None:
    first, second = outlines(drawn(*rows))
    assert first.area == second.area == 1
    assert first.touches(second)


def test_holes_that_meet_at_a_corner_are_two_holes() -> None:
    for rows in [("####", "#.##", "##.#", "####"), ("####", "##.#", "#.##", "####")]:
        (polygon,) = outlines(drawn(*rows))
        assert [Polygon(hole).area for hole in polygon.interiors] == [1, 1]
        assert polygon.is_valid


@pytest.mark.parametrize(
    "rows", [("##.", "#.#", "###"), (".##", "#.#", "###"), ("###", "#.#", "##."), ("###", "#.#", ".##")]
)
def test_a_rim_that_meets_itself_at_a_corner_encloses_a_hole(rows: tuple[str, ...]) -> None:
    (polygon,) = outlines(drawn(*rows))
    assert Polygon(polygon.exterior).area == 8
    assert [Polygon(hole).area for hole in polygon.interiors] == [1]
    assert polygon.is_valid


def test_only_bool_masks_are_taken() -> None:
    with pytest.raises(ValueError, match="bool mask"):
        outlines(np.ones((3, 4), np.uint8))


@settings(max_examples=300, deadline=None)
@given(MASKS)
@example(np.indices((7, 8)).sum(axis=0) % 2 == 0)
@example(np.indices((7, 8)).sum(axis=0) % 2 == 1)
def test_there_and_back_loses_nothing(mask: np.ndarray) -> None:
    polygons = outlines(mask)
    together = shapely.MultiPolygon(polygons)
    assert np.array_equal(rasterize_wkt(together.wkt, mask.shape), mask)
    assert together.is_valid and all(polygon.is_valid for polygon in polygons)
    assert len(polygons) == label_components(mask, connectivity=4)[1]
    assert together.area == mask.sum()
    assert all(polygon.exterior.is_ccw for polygon in polygons) or not polygons  # with y down: clockwise on the screen
    firsts = [tuple(reversed(polygon.exterior.coords[0])) for polygon in polygons]
    assert firsts == sorted(firsts)
    assert all(
        np.abs(np.diff(shapely.get_coordinates(ring), axis=0)).min(axis=1).max() == 0 for ring in rings(polygons)
    )


def rings(polygons: list[Polygon]) -> list[shapely.LinearRing]:
    return list(shapely.get_rings(np.array(polygons, dtype=object)))


@settings(max_examples=60, deadline=None)
@given(MASKS)
def test_only_corners_are_vertices(mask: np.ndarray) -> None:
    for ring in rings(outlines(mask)):
        steps = np.diff(shapely.get_coordinates(ring), axis=0)
        assert np.all((steps[:, 0] == 0) != (np.roll(steps, 1, axis=0)[:, 0] == 0))


# --- cleaning --------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(MASKS)
def test_nothing_asked_changes_nothing(mask: np.ndarray) -> None:
    polygons = outlines(mask)
    assert texts(cleaned(polygons)) == texts(polygons)


@settings(max_examples=100, deadline=None)
@given(
    MASKS,
    st.sampled_from([0.0, 0.7, 1.5, 3.0]),
    st.sampled_from([0.0, 2.0, 5.0]),
    st.sampled_from([0.0, 2.0, 5.0]),
    st.sampled_from([-0.6, 0.0, 0.3, 1.0]),
)
def test_the_result_is_always_valid(mask: np.ndarray, simplify: float, area: float, hole: float, buffer: float) -> None:
    result = cleaned(outlines(mask), simplify=simplify, min_area=area, min_hole=hole, buffer=buffer)
    assert shapely.MultiPolygon(result).is_valid
    assert all(polygon.geom_type == "Polygon" and not polygon.is_empty for polygon in result)


def test_small_parts_go_and_holes_do_not_count_as_area() -> None:
    ring, block = outlines(drawn("###.###", "#.#.###", "###.###"))
    assert cleaned([ring, block], min_area=9) == [block]
    assert cleaned([ring, block], min_area=8) == [ring, block]


def test_small_holes_are_filled() -> None:
    polygons = outlines(drawn("######", "#.#..#", "######"))
    assert texts(cleaned(polygons, min_hole=2)) == ["POLYGON ((0 0, 6 0, 6 3, 0 3, 0 0), (5 1, 3 1, 3 2, 5 2, 5 1))"]
    assert texts(cleaned(polygons, min_hole=3)) == ["POLYGON ((0 0, 6 0, 6 3, 0 3, 0 0))"]


def test_an_island_in_a_filled_hole_becomes_part_of_what_fills_it() -> None:
    (polygon,) = cleaned(outlines(drawn("#####", "#...#", "#.#.#", "#...#", "#####")), min_hole=10)
    assert polygon.equals(box(0, 0, 5, 5))


def test_simplifying_straightens_a_staircase() -> None:
    stairs = np.tril(np.ones((20, 20), bool))
    (polygon,) = cleaned(outlines(stairs), simplify=1.0)
    assert len(polygon.exterior.coords) < 8
    assert polygon.area == pytest.approx(stairs.sum(), rel=0.1)


def test_buffer_moves_the_outline_out_and_in() -> None:
    polygons = [box(0, 0, 10, 10)]
    (grown,) = cleaned(polygons, buffer=1)
    assert 10 * 10 + 4 * 10 + 3 < grown.area < 12 * 12
    (shrunk,) = cleaned(polygons, buffer=-1)
    assert shrunk.equals(box(1, 1, 9, 9))
    assert cleaned(polygons, buffer=-6) == []


def test_what_grows_together_is_united() -> None:
    (united,) = cleaned([box(0, 0, 4, 4), box(5, 0, 9, 4)], buffer=1)
    assert united.bounds == pytest.approx((-1, -1, 10, 5))


def test_a_dumb_bell_falls_apart_when_it_shrinks() -> None:
    polygons = outlines(drawn("####...####", "###########", "####...####"))
    assert len(cleaned(polygons, buffer=-0.6)) == 2


def test_negative_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        cleaned([box(0, 0, 1, 1)], min_area=-1)


def test_repair_of_a_bow_tie_and_of_an_overlap() -> None:
    bow_tie = Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    assert sorted(polygon.area for polygon in repaired([bow_tie])) == pytest.approx([1, 1])
    assert sum(polygon.area for polygon in repaired([box(0, 0, 2, 2), box(1, 0, 3, 2)])) == 6
    flat = Polygon([(0, 0), (2, 0), (1, 0)])
    assert repaired([flat, Polygon()]) == []


def ring(num_points: int, seed: int = 0) -> Polygon:
    return Polygon(np.random.default_rng(seed).integers(-50, 50, (num_points, 2)))


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(3, 40))
def test_crossings_are_those_of_every_two_segments(seed: int, num_points: int) -> None:
    points = np.random.default_rng(seed).uniform(0, 9, (num_points, 2))
    around = shapely.linestrings(np.stack([points, np.roll(points, -1, axis=0)], axis=1))
    pairs = sum(bool(shapely.crosses(one, other)) for place, one in enumerate(around) for other in around[:place])
    assert num_crossings(Polygon(points).exterior) == pairs


def test_outlines_that_cross_themselves_over_and_over_are_refused() -> None:
    """They would take minutes and gigabytes: each crossing is a corner of what is to be put together."""
    for num_points in (470, 17_000):
        with pytest.raises(UserError, match=rf"one of {num_points + 1} points that crosses itself some \d+ times"):
            repaired([box(90, 90, 95, 95), ring(num_points)])
    with pytest.raises(UserError, match="crosses itself"):
        repaired([ring(120, seed) for seed in range(4)])  # none alone
    assert repaired([ring(60)])[0].is_valid


def test_outlines_that_only_touch_themselves_are_repaired() -> None:
    """As of pixels that meet at corners, in polygons of tools that take these for connected."""
    stairs = [(x + dx, x + dy) for x in range(3000) for dx, dy in ((0, 0), (1, 0))]
    back = [(x + dx, x + dy) for x in reversed(range(3000)) for dx, dy in ((1, 1), (0, 1))]
    squares = Polygon(stairs + back)
    assert not squares.is_valid and num_crossings(squares.exterior) == 0
    assert sum(each.area for each in repaired([squares])) == 3000


def test_areas_of_nested_collections() -> None:
    square = box(0, 0, 1, 1)
    nested = shapely.GeometryCollection([shapely.MultiPolygon([square]), shapely.Point(0, 0), Polygon()])
    assert areas([nested, shapely.LineString([(0, 0), (1, 1)]), square]) == [square, square]
    assert areas([]) == []


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_repaired_areas_are_valid_and_cover_the_same(seed: int) -> None:
    """Boxes and a bow tie that overlap, touch or lie apart; what meets nothing stays as it is."""
    rng = np.random.default_rng(seed)
    boxes = [
        box(x, y, x + width, y + height)
        for (x, y), (width, height) in zip(rng.integers(0, 12, (6, 2)), rng.integers(1, 4, (6, 2)), strict=True)
    ]
    alone = box(40, 40, 42, 42)
    bow_tie = Polygon([(20, 20), (24, 24), (24, 20), (20, 24)])
    found = repaired([*boxes, alone, bow_tie])
    assert shapely.multipolygons(found).is_valid and alone in found
    expected = shapely.union_all([*boxes, alone, shapely.make_valid(bow_tie)])
    assert shapely.union_all(found).symmetric_difference(expected).area == pytest.approx(0, abs=1e-9)
    assert sum(part.area for part in found) == pytest.approx(expected.area)
    assert repaired(found) == found
