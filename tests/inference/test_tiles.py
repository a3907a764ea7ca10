from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskloom.inference.tiles import FLOOR, TileAccumulator, axis_weights, gaussian
from maskloom.windows import tile_starts


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


@given(st.integers(8, 40), st.integers(8, 40), st.integers(0, 7), st.integers(1, 5))
def test_pieces_of_a_map_blend_into_the_map(height: int, width: int, overlap: int, at_once: int) -> None:
    whole = torch.rand(2, height, width, generator=torch.Generator().manual_seed(height * width))
    blend = TileAccumulator((height, width), (8, 8), overlap)
    for start in range(0, len(blend.windows), at_once):
        windows = blend.windows[start : start + at_once]
        blend.feed(windows, torch.stack([whole[(..., *window.slices)] for window in windows]))
    assert torch.allclose(blend.done(), whole, atol=1e-6)


def test_the_middle_of_a_tile_counts_most() -> None:
    blend = TileAccumulator((8, 12), (8, 8), 4)
    blend.feed(blend.windows, torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)]))
    row = blend.done()[0, 0]
    assert torch.all(row.diff() >= 0) and row[4] < 0.1 and row[7] > 0.9
    assert torch.allclose(row + row.flip(0), torch.ones(12), atol=1e-6)


def test_too_small_an_image_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one tile"):
        TileAccumulator((7, 20), (8, 8), 0)
    with pytest.raises(ValueError, match="no tile"):
        TileAccumulator((8, 8), (8, 8), 0).done()
