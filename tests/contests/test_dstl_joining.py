"""The published order of the Dstl classes, and what becomes of polygons on the way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely
from shapely import Polygon, box

from maskloom.contests.dstl.joining import PUBLISHED, JoiningRules, buffered, joined, joined_maps
from maskloom.contests.dstl.truth import CLASSES
from maskloom.encodings.grid_coordinates import Grid
from maskloom.errors import UserError

SIZE = (40, 48)
GRID = Grid(48 * 48 / 49, -40 * 40 / 41)  # a unit is a pixel
PLAIN = JoiningRules(minimum_areas={}, minimum_area=0, buffers={})
LABEL = {name: label for label, name in enumerate(CLASSES)}


def maps(**boxes: tuple[int, int, int, int]) -> np.ndarray:
    """Returns maps with a box (left, top, right, bottom) of some classes."""
    made = np.zeros((len(CLASSES), *SIZE), bool)
    for name, (left, top, right, bottom) in boxes.items():
        made[LABEL[name], top:bottom, left:right] = True
    return made


def joined_areas(found: dict[int, list[Polygon]]) -> dict[str, float]:
    return {CLASSES[label]: sum(part.area for part in parts) for label, parts in found.items() if parts}


def test_the_published_rules() -> None:
    assert [winner for winner, _ in PUBLISHED.precedence] == ["fast_water", "slow_water", "buildings", "roads"]
    (_, all_others), (_, by_slow), (_, by_buildings), (_, by_roads) = PUBLISHED.labels()
    assert set(all_others) == set(range(10)) - {6} and set(by_buildings) == set(range(10)) - {0}
    assert (by_slow, by_roads) == ((LABEL["roads"],), (LABEL["slow_water"],))
    assert [PUBLISHED.smallest(label) for label in range(10)] == [10] * 6 + [5000, 100, 10, 10]
    assert PUBLISHED.buffers == {"buildings": 2.6e-5}


@pytest.mark.parametrize(
    ("winner", "loser"),
    [("fast_water", name) for name in CLASSES if name != "fast_water"]
    + [("buildings", name) for name in CLASSES if name not in ("buildings", "fast_water")]
    + [("slow_water", "roads")],
)
def test_the_winner_keeps_all_and_the_loser_what_is_left(winner: str, loser: str) -> None:
    found = joined_maps(maps(**{winner: (0, 0, 10, 10), loser: (5, 0, 15, 10)}), rules=PLAIN)
    assert joined_areas(found) == {winner: 100, loser: 50}


@pytest.mark.parametrize(("one", "other"), [("trees", "crops"), ("roads", "trees"), ("slow_water", "crops")])
def test_other_classes_may_overlap(one: str, other: str) -> None:
    found = joined_maps(maps(**{one: (0, 0, 10, 10), other: (5, 0, 15, 10)}), rules=PLAIN)
    assert joined_areas(found) == {one: 100, other: 100}


def test_rules_hold_in_their_order() -> None:
    """Fast water takes the building and the road in one place: the building does not come back for it."""
    found = joined_maps(maps(fast_water=(0, 0, 10, 10), buildings=(0, 0, 10, 10), roads=(0, 0, 20, 10)), rules=PLAIN)
    assert joined_areas(found) == {"fast_water": 100, "roads": 100}


def test_roads_clear_slow_water_where_the_order_is_turned() -> None:
    rules = replace(PLAIN, precedence=(("roads", ("slow_water",)),))
    found = joined_maps(maps(slow_water=(0, 0, 10, 10), roads=(5, 0, 15, 10)), rules=rules)
    assert joined_areas(found) == {"slow_water": 50, "roads": 100}


def test_small_polygons_go_and_small_holes_are_filled() -> None:
    rules = replace(PLAIN, minimum_areas={"fast_water": 50}, minimum_area=10, reference=SIZE)
    made = maps(fast_water=(0, 0, 7, 7), trees=(20, 0, 23, 3), crops=(0, 20, 20, 40))
    made[LABEL["crops"], 22:25, 2:5] = False  # 9
    made[LABEL["crops"], 30:35, 2:4] = False  # 10
    assert joined_areas(joined_maps(made, rules=rules)) == {"crops": 390}
    finer = replace(rules, reference=(80, 96))  # four times the pixels: limits of 12.5 and 2.5 here
    assert joined_areas(joined_maps(made, rules=finer)) == {"fast_water": 49, "trees": 9, "crops": 381}
    assert joined_areas(joined_maps(made, rules=finer, scaled=False)) == {"crops": 390}


def test_polygons_are_drawn_and_outlined_again() -> None:
    """What several polygons of a class cover counts once; pixels belong whose centres lie inside."""
    polygons = {LABEL["trees"]: [box(1, 1, 5, 5), box(3, 1, 9.4, 5)], LABEL["crops"]: [box(20.6, 20.6, 24.4, 24.4)]}
    found = joined(polygons, SIZE, GRID, rules=PLAIN)
    assert [part.bounds for part in found[LABEL["trees"]]] == [(1, 1, 9, 5)]
    assert [part.bounds for part in found[LABEL["crops"]]] == [(21, 21, 24, 24)]
    assert set(found) == set(range(10)) and not found[LABEL["roads"]]


def test_what_comes_out_is_valid_and_overlaps_nowhere_it_may_not() -> None:
    rng = np.random.default_rng(0)
    made = rng.random((10, *SIZE)) < 0.5
    found = joined_maps(made, rules=PLAIN)
    shapes = [shapely.multipolygons(found[label]) for label in range(10)]
    assert all(shape.is_valid for shape in shapes)
    for winner, losers in (("fast_water", CLASSES), ("buildings", CLASSES), ("roads", ("slow_water",))):
        for loser in losers:
            if loser != winner:
                assert shapes[LABEL[winner]].intersection(shapes[LABEL[loser]]).area == 0


def test_buildings_grow_by_grid_units_before_they_clear_others() -> None:
    rules = replace(PLAIN, buffers={"buildings": 2.0})
    polygons = {LABEL["buildings"]: [box(10, 10, 14, 14)], LABEL["roads"]: [box(0, 8, 48, 16)]}
    found = joined(polygons, SIZE, GRID, rules=rules)
    (building,) = found[LABEL["buildings"]]
    assert building.bounds == (8, 8, 16, 16) and building.area < 64  # the corners are round
    assert joined_areas(found)["roads"] == 48 * 8 - building.area
    (grown,) = buffered([box(10, 10, 14, 14)], SIZE, Grid(GRID.x_max / 2, GRID.y_min / 2), 1.0)
    assert grown.bounds == pytest.approx((8, 8, 16, 16))


def test_classes_and_labels_that_are_none() -> None:
    with pytest.raises(UserError, match="unknown class 'building'; did you mean 'buildings'"):
        JoiningRules(buffers={"building": 1})
    with pytest.raises(ValueError, match="labels of 0 to 9, got 10"):
        joined({10: []}, SIZE, GRID)
    with pytest.raises(ValueError, match="maps of 10 classes"):
        joined_maps(np.zeros((3, 4, 4), bool))
