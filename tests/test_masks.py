"""Components of masks that can be counted by eye; holes, hulls and thin parts of drawn objects."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from maskloom.masks import (
    Erosion,
    clear_overlaps,
    components,
    fill_holes,
    hull_of_unsure,
    label_components,
    remove_far,
    remove_small,
    remove_thin,
)
from maskloom.windows import Window


def test_components_of_a_known_mask() -> None:
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 1]], bool)
    first, second, third = components(mask)
    assert (first.window, first.area) == (Window(0, 0, 2, 2), 2)  # corners touch: 8-connected
    assert first.mask.tolist() == [[True, False], [False, True]]
    assert (second.window, second.area) == (Window(0, 3, 1, 1), 1)
    assert (third.window, third.area) == (Window(2, 3, 1, 1), 1)


def test_a_piece_inside_the_box_of_another_is_not_in_its_mask() -> None:
    mask = np.ones((5, 5), bool)
    mask[1:4, 1:4] = False
    mask[2, 2] = True
    ring, dot = components(mask)
    assert ring.area == ring.mask.sum() == 16
    assert dot.window == Window(2, 2, 1, 1)


def test_empty_and_full() -> None:
    assert components(np.zeros((3, 4), bool)) == []
    assert [piece.area for piece in components(np.ones((3, 4), bool))] == [12]
    with pytest.raises(ValueError, match="bool mask"):
        label_components(np.ones((3, 4), np.uint8))


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(lambda size: arrays(bool, size)))
def test_pieces_put_together_are_the_mask(mask: np.ndarray) -> None:
    again = np.zeros(mask.shape, int)
    firsts = []
    for piece in components(mask):
        again[piece.window.slices] += piece.mask
        assert piece.area == piece.mask.sum()
        assert (piece.mask.any(axis=0).all() and piece.mask.any(axis=1).all()) or piece.area < piece.mask.size
        firsts.append((piece.window.top, piece.window.left + int(np.argmax(piece.mask[0]))))
    assert np.array_equal(again, mask)
    assert firsts == sorted(firsts)


def test_background_is_joined_by_sides_where_asked() -> None:
    diagonal = np.array([[1, 0], [0, 1]], bool)
    assert label_components(diagonal)[1] == 1
    assert label_components(diagonal, connectivity=4)[1] == 2


# --- holes -----------------------------------------------------------------------------------------------------------


def test_holes_of_a_known_mask() -> None:
    mask = np.array(
        [
            [1, 1, 1, 1, 1, 1],
            [1, 0, 1, 0, 0, 1],
            [1, 1, 1, 1, 1, 1],
            [0, 1, 0, 1, 1, 0],  # open to the border, and a notch that only its corner joins to the outside
            [1, 0, 1, 1, 1, 1],
        ],
        bool,
    )
    filled = mask.copy()
    filled[1] = True
    filled[3, 2] = True  # its neighbours by side are set; (4, 1) touches it by a corner alone
    assert np.array_equal(fill_holes(mask), filled)
    only_small = mask.copy()
    only_small[1, 1] = only_small[3, 2] = True
    assert np.array_equal(fill_holes(mask, maximum_area=1), only_small)
    assert fill_holes(np.zeros((3, 3), bool)).sum() == 0
    assert fill_holes(np.ones((1, 3), bool)).all()


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(lambda size: arrays(bool, size)))
def test_laws_of_the_steps(mask: np.ndarray) -> None:
    before = mask.copy()
    filled = fill_holes(mask)
    assert (filled >= mask).all() and np.array_equal(fill_holes(filled), filled)
    assert np.array_equal(filled[[0, -1]], mask[[0, -1]]) and np.array_equal(filled[:, [0, -1]], mask[:, [0, -1]])
    for smaller in (remove_small(mask, 3), remove_far(mask, 2), remove_thin(mask, 3, length=2)):
        assert (smaller <= mask).all()
    pieces = {(piece.window, piece.area) for piece in components(mask)}
    for whole in (remove_small(mask, 3), remove_far(mask, 2)):
        assert {(piece.window, piece.area) for piece in components(whole)} <= pieces
    assert np.array_equal(remove_small(mask, 1), mask)
    assert np.array_equal(remove_far(mask, 100), mask)
    assert np.array_equal(remove_thin(mask, 1, length=0), mask)
    assert np.array_equal(mask, before)


# --- small and far pieces --------------------------------------------------------------------------------------------


def test_pieces_below_the_smallest_area_go() -> None:
    mask = np.zeros((10, 10), bool)
    mask[0, 0:3] = mask[5:8, 5:8] = True
    assert remove_small(mask, 3).sum() == 12
    assert np.array_equal(np.argwhere(~remove_small(mask, 3.5) & mask), [[0, 0], [0, 1], [0, 2]])
    assert remove_small(mask, 10).sum() == 0


def test_pieces_far_outside_the_largest_go() -> None:
    mask = np.zeros((20, 40), bool)
    mask[2:18, 2:18] = True
    mask[6:14, 6:14] = False
    mask[10, 10] = True  # inside the ring: within its contour, however far from its pixels
    mask[9:11, 21:23] = True  # column 21 is 4 from column 17
    assert np.array_equal(remove_far(mask, 4), mask)
    near = remove_far(mask, 3.9)
    assert near[10, 10] and not near[9:11, 21:23].any() and near.sum() == mask.sum() - 4
    diagonal = np.zeros((9, 9), bool)
    diagonal[:4, :4] = diagonal[6, 7] = True  # 3 below, 4 to the right: 5 apart
    assert remove_far(diagonal, 5)[6, 7] and not remove_far(diagonal, 4.99)[6, 7]
    assert not remove_far(np.zeros((4, 4), bool), 1).any()


# --- thin parts ------------------------------------------------------------------------------------------------------


def car() -> np.ndarray:
    """Returns a body of 40×100 with an antenna 2 wide and 25 high, in an image of 100×160."""
    mask = np.zeros((100, 160), bool)
    mask[50:90, 30:130] = True
    mask[25:50, 70:72] = True
    return mask


def test_an_antenna_goes_and_corners_stay() -> None:
    body = car()
    body[:50] = False
    assert np.array_equal(remove_thin(car(), 3, length=10), body)  # narrower than 3
    assert np.array_equal(remove_thin(car(), 2, length=10), car())  # a square of 2 goes up the antenna
    assert np.array_equal(remove_thin(car(), 3, length=25), car())  # its tip is 25 from the body's first row
    assert np.array_equal(remove_thin(car(), 3, length=24.9), body)
    assert np.array_equal(remove_thin(car(), 30, length=10), body)  # a disc of 30 leaves corners, which come back


@pytest.mark.parametrize("width", [2, 3, 4, 5, 6, 7])
def test_a_part_of_the_stated_width_stays(width: int) -> None:
    for thickness in (width - 1, width):
        mask = np.zeros((60, 40), bool)
        mask[30:55, 5:35] = True
        mask[5:30, 20 : 20 + thickness] = True
        kept = remove_thin(mask, width, length=8)
        if thickness == width:
            assert np.array_equal(kept, mask)
        else:  # a round disc reaches a little way into the root of a nearly wide enough part
            assert np.array_equal(kept[30:], mask[30:]) and not kept[: 30 - width // 3].any()


def test_thin_pieces_beside_the_object_go_and_thin_objects_stay() -> None:
    mask = car()
    mask[10:12, 10:60] = True
    assert not remove_thin(mask, 3, length=10)[:50].any()
    alone = np.zeros((30, 30), bool)
    alone[3:25, 10:12] = True
    assert np.array_equal(remove_thin(alone, 5, length=3), alone)
    at_border = np.zeros((20, 20), bool)
    at_border[:, :2] = True  # goes on outside, for all one knows
    assert np.array_equal(remove_thin(at_border, 5, length=3), at_border)


# --- the hull of unsure regions --------------------------------------------------------------------------------------

CARVANA = Erosion(above=10, below=0, left=0, right=0)


def dented(top: int = 200) -> np.ndarray:
    """Returns values of a 600×800 car whose roof is doubtful: 255 below, a band of 100 with a dent, 0 around."""
    values = np.zeros((600, 800), np.uint8)
    values[300:500, 100:700] = 255
    values[top:300, 200:600] = 100
    values[top:280, 380:420] = 20  # the dent: sure to be background, by mistake
    return values


def hull(values: np.ndarray, mask: np.ndarray | None = None, **changes: Any) -> np.ndarray:
    options: dict[str, Any] = {
        "unsure": (30, 210), "erosion": CARVANA, "top": 0.5, "minimum_area": 10_000, "margin": 50, "above": 55,
    }  # fmt: skip
    return hull_of_unsure(values >= 128 if mask is None else mask, values, **options | changes)


def test_a_dented_roof_becomes_its_hull() -> None:
    values = dented()
    found = hull(values, margin=150)
    assert found[200:300, 200:600].all()  # the dent is filled, the doubtful roof is there
    slope = found[260]  # between (200, 200) and (300, 100): the hull, where the mask has nothing
    assert slope.sum() == (659 - 140 + 1) and slope[140] and not slope[139]
    assert np.array_equal(found[300:], values[300:] >= 128)
    assert not found[:200].any()


def test_the_hull_is_only_within_the_grown_box() -> None:
    found = hull(dented(), margin=5)
    assert found[290, 195:605].all() and not found[290, 194] and not found[290, 605]
    assert found[304, 150] and not found[290, 150]


def test_nothing_happens_without_a_large_unsure_region() -> None:
    values = dented()
    plain = values >= 128
    # Ten rows are shaved off the roof and below the dent. The polygon through the centres of what is left is 399×89
    # less the dent: 41×79, and 40 where its corners are cut.
    area = 399 * 89 - 41 * 79 - 40
    assert np.array_equal(hull(values, minimum_area=area), plain)
    assert not np.array_equal(hull(values, minimum_area=area - 1), plain)
    assert np.array_equal(hull(values, unsure=(100, 210)), plain)  # both ends are excluded
    assert np.array_equal(hull(values, unsure=(30, 100)), plain)
    assert np.array_equal(hull(values, top=0.3), plain)  # the roof lies below the first 30 % of rows
    assert np.array_equal(hull(values, erosion=Erosion(60, 60, 0, 0)), plain)
    assert np.array_equal(hull(np.full((40, 40), 50, np.uint8), minimum_area=1), np.zeros((40, 40), bool))
    assert np.array_equal(hull(np.zeros((40, 40), np.uint8)), np.zeros((40, 40), bool))


def test_a_box_beyond_the_border_is_cut_off() -> None:
    values = np.zeros((200, 200), np.uint8)
    values[0:60, 20:180] = 100
    found = hull(values, minimum_area=1000, erosion=Erosion(0, 0, 0, 0))
    assert np.array_equal(found, values > 55)


def test_the_erosion_is_the_published_call() -> None:
    """The original hands OpenCV (55, 55) as the kernel, ten times."""
    rng = np.random.default_rng(0)
    region = (rng.random((80, 90)) < 0.97).astype(np.uint8)
    published = cv2.erode(region, (55, 55), iterations=10)  # type: ignore[call-overload]
    ours = cv2.erode(region, np.ones((11, 1), np.uint8), anchor=(0, 10))
    assert np.array_equal(published, ours) and 0 < published.sum() < region.sum()


# --- overlaps --------------------------------------------------------------------------------------------------------

BUILDINGS, ROADS, TREES, FAST, SLOW = 0, 2, 4, 6, 7
DSTL_ORDER = [
    (FAST, tuple(index for index in range(10) if index != FAST)),
    (SLOW, (ROADS,)),
    (BUILDINGS, tuple(index for index in range(10) if index != BUILDINGS)),
    (ROADS, (SLOW,)),
]


@pytest.mark.parametrize("kind", [bool, np.uint8])
@pytest.mark.parametrize(
    ("classes", "left"),
    [
        ({BUILDINGS, ROADS, SLOW, FAST}, {FAST}),
        ({ROADS, SLOW}, {SLOW}),
        ({BUILDINGS, ROADS, TREES}, {BUILDINGS}),
        ({BUILDINGS, SLOW}, {BUILDINGS}),
        ({TREES, SLOW}, {TREES, SLOW}),
        ({ROADS}, {ROADS}),
        (set(), set()),
    ],
)
def test_the_published_order_of_dstl(classes: set[int], left: set[int], kind: type) -> None:
    maps = np.zeros((10, 1, 2), kind)
    maps[sorted(classes), 0, 1] = 1
    before = maps.copy()
    cleared = clear_overlaps(maps, DSTL_ORDER)
    assert cleared.dtype == kind
    assert set(np.flatnonzero(cleared[:, 0, 1])) == left
    assert not cleared[:, 0, 0].any()
    assert np.array_equal(maps, before)


def test_what_was_cleared_wins_nothing() -> None:
    maps = np.ones((3, 1, 1), bool)
    assert clear_overlaps(maps, [(0, (1,)), (1, (2,))]).ravel().tolist() == [True, False, True]


def test_rules_for_maps_that_are_not_there_are_refused() -> None:
    maps = np.ones((3, 1, 1), bool)
    for rule in [(3, (0,)), (0, (-1,)), (0, (0, 1))]:
        with pytest.raises(ValueError, match="among 3 maps"):
            clear_overlaps(maps, [rule])
    with pytest.raises(ValueError, match="C×H×W"):
        clear_overlaps(maps[0], [])
