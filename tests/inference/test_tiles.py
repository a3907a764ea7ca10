from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskloom.inference.tiles import FLOOR, TileAccumulator, axis_weights, gaussian, paste
from maskloom.windows import Window, tile_grid, tile_starts


def test_gaussian_is_symmetric_and_bounded() -> None:
    weight = gaussian(32)
    assert np.array_equal(weight, weight[::-1])
    assert weight.min() == FLOOR and 0.95 < weight.max() <= 1


@given(st.integers(1, 40), st.integers(0, 200), st.floats(0, 0.95))
def test_weights_of_an_axis_add_up_to_one(tile: int, more: int, overlap: float) -> None:
    length = tile + more
    total = np.zeros(length)
    starts = tile_starts(length, tile, int(overlap * tile))
    for start, weight in axis_weights(starts, tile, length).items():
        total[start : start + tile] += weight
    assert np.allclose(total, 1, atol=1e-6)


@given(st.integers(8, 40), st.integers(8, 40), st.integers(0, 7))
def test_pieces_of_a_map_blend_into_the_map(height: int, width: int, overlap: int) -> None:
    whole = torch.rand(2, height, width, generator=torch.Generator().manual_seed(height * width))
    windows = tile_grid((height, width), (8, 8), overlap)
    blend = TileAccumulator((height, width), windows)
    for window in windows:
        blend.feed(window, whole[(..., *window.slices)])
    assert torch.allclose(blend.done(), whole, atol=1e-6)


def test_the_middle_of_a_tile_counts_most() -> None:
    left, right = tile_grid((8, 12), (8, 8), 4)
    blend = TileAccumulator((8, 12), [left, right])
    blend.feed(left, torch.zeros(1, 8, 8))
    blend.feed(right, torch.ones(1, 8, 8))
    row = blend.done()[0, 0]
    assert torch.all(row.diff() >= 0) and row[4] < 0.1 and row[7] > 0.9
    assert torch.allclose(row + row.flip(0), torch.ones(12), atol=1e-6)


def test_tiles_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="expected tiles inside an image"):
        TileAccumulator((7, 20), tile_grid((7, 20), (8, 8), 0))
    with pytest.raises(ValueError, match="no tile"):
        TileAccumulator((8, 8), [Window(0, 0, 8, 8)]).done()


def test_pasted_windows_replace_the_map_and_fade_into_each_other() -> None:
    coarse = torch.full((1, 1, 8), 0.5)
    windows = [Window(0, 1, 1, 4), Window(0, 3, 1, 4)]
    found = paste(coarse, windows, [torch.zeros(1, 1, 4), torch.ones(1, 1, 4)])
    # ramps of 4 pixels weigh 1/2 1 1 1/2; in columns 3 and 4 both windows lie
    expected = torch.tensor([0.5, 0, 0, 0.5 / 1.5, 1 / 1.5, 1, 1, 0.5])
    assert torch.allclose(found[0, 0], expected, atol=1e-6)
    assert torch.all(coarse == 0.5)


def test_pasted_windows_may_reach_beyond_the_map() -> None:
    values = torch.arange(30.0).reshape(5, 6)
    found = paste(torch.full((3, 4), -1.0), [Window(-1, -2, 5, 6)], [values])
    assert torch.allclose(found, values[1:4, 2:6], atol=1e-5)
    same = paste(found, [], [])
    assert torch.equal(same, found) and same is not found


@given(st.lists(st.tuples(st.integers(-4, 15), st.integers(-4, 15)), min_size=1, max_size=5), st.integers(5, 9))
def test_pieces_of_one_map_are_pasted_as_that_map(places: list[tuple[int, int]], side: int) -> None:
    whole = torch.rand(30, 30, generator=torch.Generator().manual_seed(side))
    windows = [Window(top, left, side, side) for top, left in places]
    pieces = [whole[w.top + 5 : w.top + 5 + side, w.left + 5 : w.left + 5 + side] for w in windows]
    found = paste(torch.zeros(16, 16), windows, pieces)
    covered = torch.zeros(16, 16, dtype=torch.bool)
    for window in windows:
        covered[window.clipped((16, 16)).slices] = True
    assert torch.allclose(found, torch.where(covered, whole[5:21, 5:21], 0), atol=1e-6)
