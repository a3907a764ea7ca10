"""Outlines of strips: the whole mask's own, whatever the cuts, and no more memory than what goes on."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from maskloom.encodings import strip_outlines
from maskloom.encodings.outlines import outlines
from maskloom.encodings.strip_outlines import outlines_of_strips

MASKS = st.tuples(st.integers(1, 16), st.integers(1, 12)).flatmap(lambda size: arrays(bool, size))
CHECKERS = np.indices((7, 8)).sum(axis=0) % 2 == 0


def spiral(size: int) -> np.ndarray:
    """A path one pixel wide with one pixel between its turns."""
    mask = np.zeros((size, size), bool)
    row, column, step = 0, 0, (0, 1)
    mask[0, 0] = True
    for length in [size - 1, *np.repeat(np.arange(size - 1, 0, -2), 2).tolist()]:
        for _ in range(length):
            row, column = row + step[0], column + step[1]
            mask[row, column] = True
        step = (step[1], -step[0])
    return mask


def cut(mask: np.ndarray, cuts: list[int]) -> list[np.ndarray]:
    return np.split(mask, sorted(place % (len(mask) + 1) for place in cuts))


def texts_of(mask: np.ndarray, cuts: list[int]) -> list[str]:
    return [polygon.wkt for polygon in outlines_of_strips(cut(mask, cuts), mask.shape[1])]


@settings(max_examples=100, deadline=None)
@given(MASKS, st.lists(st.integers(0, 20), max_size=12))
@example(CHECKERS, [3])
@example(~CHECKERS, [1, 2, 3, 4, 5, 6])
@example(np.ones((5, 4), bool), [2, 3])
@example(np.zeros((5, 4), bool), [2, 3])
@example(np.ones((6, 1), bool), [1, 2, 3, 4, 5])
@example(np.array([[True], [False], [True]]), [1, 2])
def test_the_cuts_change_nothing(mask: np.ndarray, cuts: list[int]) -> None:
    found = texts_of(mask, cuts)
    assert sorted(found) == sorted(polygon.wkt for polygon in outlines(mask))
    assert len(set(found)) == len(found)


@settings(max_examples=50, deadline=None)
@given(MASKS)
@example(spiral(16))
@example(~spiral(15))
@example(spiral(15).T)
def test_strips_of_one_row(mask: np.ndarray) -> None:
    assert sorted(texts_of(mask, list(range(len(mask))))) == sorted(polygon.wkt for polygon in outlines(mask))


@settings(max_examples=15, deadline=None)
@given(arrays(bool, (24, 20), elements=st.booleans(), fill=st.just(True)), st.lists(st.integers(0, 24), max_size=5))
def test_large_pieces_with_many_holes(mask: np.ndarray, cuts: list[int]) -> None:
    assert sorted(texts_of(mask, cuts)) == sorted(polygon.wkt for polygon in outlines(mask))


def test_a_spiral_is_one_polygon_however_it_is_cut() -> None:
    mask = spiral(21)
    (whole,) = outlines(mask)
    for cuts in ([10], [1, 20], [3, 9, 12], list(range(21))):
        assert texts_of(mask, cuts) == [whole.wkt]


def test_nested_holes_and_islands_across_seams() -> None:
    rows, columns = np.indices((23, 23)) - 11
    mask = np.maximum(abs(rows), abs(columns)) % 4 < 2  # two frames around a square
    for cuts in ([11], [2, 7, 15], list(range(23))):
        found = list(outlines_of_strips(cut(mask, cuts), 23))
        assert sorted(polygon.wkt for polygon in found) == sorted(polygon.wkt for polygon in outlines(mask))
        assert sorted(len(polygon.interiors) for polygon in found) == [0, 1, 1]


@pytest.mark.parametrize("rows", [("##", "#."), (".#", "##"), ("#.", ".#"), (".#", "#.")])
def test_corners_that_meet_at_a_seam(rows: tuple[str, str]) -> None:
    """A frame that joins the two pixels below, above or not at all: one piece or two, never a ring that touches."""
    corner = np.array([[char == "#" for char in row] for row in rows])
    for before, after in ((0, 0), (2, 0), (0, 2), (2, 2)):
        mask = np.pad(corner, ((before, after), (1, 1)), constant_values=True)
        for seam in range(len(mask) + 1):
            found = list(outlines_of_strips(cut(mask, [seam]), 4))
            assert sorted(polygon.wkt for polygon in found) == sorted(polygon.wkt for polygon in outlines(mask))
            assert all(polygon.is_valid for polygon in found)


def test_a_polygon_comes_when_its_piece_has_ended() -> None:
    rows = ["#.#.", "#.#.", "..##", "#..."]
    strips = [np.array([[char == "#" for char in row]]) for row in rows]
    read = 0

    def reader() -> Iterator[np.ndarray]:
        nonlocal read
        for strip in strips:
            read += 1
            yield strip

    found = [(read, polygon.wkt) for polygon in outlines_of_strips(reader(), 4)]
    assert found == [
        (3, "POLYGON ((0 0, 1 0, 1 2, 0 2, 0 0))"),
        (4, "POLYGON ((2 0, 3 0, 3 2, 4 2, 4 3, 2 3, 2 0))"),
        (4, "POLYGON ((0 3, 1 3, 1 4, 0 4, 0 3))"),
    ]


def test_those_that_end_together_come_by_first_pixel() -> None:
    mask = np.random.default_rng(0).random((30, 40)) < 0.4
    mask[-1] = False
    polygons = list(outlines_of_strips([mask], 40))
    assert [polygon.wkt for polygon in polygons] == [polygon.wkt for polygon in outlines(mask)]


def test_wide_strips_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.random.default_rng(1).random((50, 30)) < 0.6
    expected = sorted(polygon.wkt for polygon in outlines(mask))
    for pixels in (1, 95, 700):
        monkeypatch.setattr(strip_outlines, "_PIXELS", pixels)
        assert sorted(texts_of(mask, [20])) == expected


def test_nothing_comes_of_nothing() -> None:
    assert list(outlines_of_strips([], 4)) == []
    assert list(outlines_of_strips([np.zeros((0, 4), bool), np.zeros((3, 4), bool)], 4)) == []
    assert list(outlines_of_strips([np.zeros((3, 0), bool)], 0)) == []


@pytest.mark.parametrize("strip", [np.zeros((2, 3), bool), np.zeros((2, 4), np.uint8), np.zeros(4, bool)])
def test_strips_of_another_kind_are_refused(strip: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected bool strips h×4"):
        list(outlines_of_strips([np.ones((2, 4), bool), strip], 4))


def test_memory_does_not_grow_with_the_rows() -> None:
    block = np.random.default_rng(2).random((16, 128)) < 0.2
    block[-1] = False  # all pieces end with their strip, but for a bar that runs through all of them
    block[:, :3] = (False, True, False)

    def peak(count: int) -> int:
        tracemalloc.start()
        for _ in outlines_of_strips((block for _ in range(count)), 128):
            pass
        try:
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2)
    assert peak(16) < 1.2 * peak(4)
