"""Windows and tiles: laws that hold for every size."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.windows import Padding, Window, padding_to, round_up, tile_grid, tile_starts

sides = st.integers(1, 200)


@given(sides, sides, st.integers(1, 64), st.integers(1, 64), st.data())
def test_tiles_cover_every_pixel_and_overlap_enough(
    height: int, width: int, tile_height: int, tile_width: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, min(tile_height, tile_width) - 1))
    covered = np.zeros((height, width), int)
    for window in tile_grid((height, width), (tile_height, tile_width), overlap):
        assert (window.height, window.width) == (tile_height, tile_width)
        rows, columns = window.clipped((height, width)).slices
        covered[rows, columns] += 1
    assert covered.min() >= 1
    starts = tile_starts(height, tile_height, overlap)
    assert all(after - before <= tile_height - overlap for before, after in pairwise(starts))


@given(sides, sides, sides, sides)
def test_padding_is_undone_by_its_interior(height: int, width: int, more_rows: int, more_columns: int) -> None:
    target = (height + more_rows, width + more_columns)
    interior = padding_to((height, width), target).interior(target)
    assert (interior.height, interior.width) == (height, width)


@given(sides, sides, st.integers(1, 64))
def test_rounding_up_is_the_next_multiple(height: int, width: int, multiple: int) -> None:
    rounded = round_up((height, width), multiple)
    for side, original in zip(rounded, (height, width), strict=True):
        assert side % multiple == 0 and original <= side < original + multiple


def test_carvana_photos_get_one_column_on_each_side() -> None:
    assert padding_to((1280, 1918), round_up((1280, 1918), 32)) == Padding(0, 0, 1, 1)


def test_empty_windows_and_impossible_overlaps_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Window(0, 0, 0, 5)
    with pytest.raises(ValueError, match="overlap"):
        tile_starts(10, 4, 4)
    with pytest.raises(ValueError, match="negative"):
        Padding(-1, 0, 0, 0)
