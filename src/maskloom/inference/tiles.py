"""Overlapping tiles blended into one map: a grid, Gaussian weights, and the sum of what was fed.

The weight of a pixel in a tile is a product of one factor per axis, and so is the sum of the weights of all tiles of
a grid. Dividing each axis by its own sum once therefore makes the weights of every pixel add up to 1: no sum of
weights as large as the image, and no division at the end. Knows nothing about networks, images or padding.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from maskloom.records import Size
from maskloom.windows import Window, tile_grid

SIGMA = 1 / 8
"""Standard deviation of the blending weight as a fraction of the tile's side (as nnU-Net's sliding window)."""
FLOOR = 1e-3
"""Smallest weight on an axis relative to the largest, so that a pixel covered by one tile's corner keeps its value."""


def gaussian(length: int) -> np.ndarray:
    """Returns the blending weights along one side of a tile: float64, symmetric, in [``FLOOR``, 1]."""
    distance = (np.arange(length) - (length - 1) / 2) / (SIGMA * length)
    weights: np.ndarray = np.maximum(np.exp(-0.5 * distance**2), FLOOR)
    return weights


def axis_weights(starts: list[int], tile: int, length: int) -> dict[int, np.ndarray]:
    """Returns, per tile start, float32 weights of the tile's pixels; over all tiles they add up to 1 at every pixel."""
    weight = gaussian(tile)
    total = np.zeros(length)
    for start in starts:
        total[start : start + tile] += weight
    return {start: (weight / total[start : start + tile]).astype(np.float32) for start in starts}


class TileAccumulator:
    """Sums tiles into one map …×H×W of float32 on the device: iterate ``windows``, ``feed`` each once, then ``done``.

    The image must be at least one tile large (pad first); ``overlap`` is in pixels of the tile's shorter side.
    """

    def __init__(self, size: Size, tile: Size, overlap: int) -> None:
        if size[0] < tile[0] or size[1] < tile[1]:
            raise ValueError(f"the image must be at least one tile large: expected {tile} or more, got {size}")
        self.size = size
        self.windows = tile_grid(size, tile, overlap)
        rows = axis_weights(sorted({window.top for window in self.windows}), tile[0], size[0])
        columns = axis_weights(sorted({window.left for window in self.windows}), tile[1], size[1])
        self._rows = {start: torch.from_numpy(weight)[:, None] for start, weight in rows.items()}
        self._columns = {start: torch.from_numpy(weight)[None, :] for start, weight in columns.items()}
        self._total: Tensor | None = None

    def feed(self, windows: list[Window], values: Tensor) -> None:
        """Adds the results N×…×h×w (float32) of N windows, weighted."""
        if self._total is None:
            self._total = values.new_zeros((*values.shape[1:-2], *self.size))
            self._rows = {start: weight.to(values.device) for start, weight in self._rows.items()}
            self._columns = {start: weight.to(values.device) for start, weight in self._columns.items()}
        for window, value in zip(windows, values, strict=True):
            weight = self._rows[window.top] * self._columns[window.left]
            rows, columns = window.slices
            self._total[..., rows, columns].addcmul_(value, weight)

    def done(self) -> Tensor:
        """Returns the blended map …×H×W; every window must have been fed."""
        if self._total is None:
            raise ValueError("no tile was fed")
        return self._total
