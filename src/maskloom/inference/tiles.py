"""Windows put together into one map: Gaussian weights for the tiles of a grid, linear ramps for windows set into a map.

The weight of a pixel in a tile is a product of one factor per axis, and so is the sum of the weights of all tiles of
a grid. Dividing each axis by its own sum once therefore makes the weights of every pixel add up to 1: no sum of
weights as large as the image, and no division at the end. Of tiles with a margin only the centres count, blended in
the same way or side by side, each pixel from one tile. Knows nothing about networks, images or padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskloom.records import Size
from maskloom.windows import Window

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


def kept_spans(starts: Sequence[int], length: int) -> dict[int, tuple[int, int]]:
    """Returns, per start of a window ``length`` long, the pixels [first, last) of the axis that are taken from it.

    Where neighbours overlap, each gives its half, the odd pixel being the earlier one's: every pixel that any of them
    covers is taken from exactly one. ``starts`` rise, and lie at most ``length`` apart.
    """
    # Halves of rising sums rise, and lie in both windows.
    ends = [(first + length + second + 1) // 2 for first, second in pairwise(starts)]
    return dict(zip(starts, zip([starts[0], *ends], [*ends, starts[-1] + length], strict=True), strict=True))


@dataclass(frozen=True, slots=True)
class _Share:
    """What the tiles that start at one place give along an axis."""

    of_tile: slice
    """Which pixels of the tile."""
    of_map: slice
    """Where they lie."""
    weights: Tensor
    """float32, one per pixel: h×1 along rows, w along columns."""


def _shares(
    starts: list[int], tile: int, length: int, margin: int, blends: bool, shape: tuple[int, ...]
) -> dict[int, _Share]:
    """Returns, per tile start, what counts of a tile along an axis ``length`` long."""
    centre = tile - 2 * margin
    if blends:
        spans = {start: (start, start + centre) for start in starts}
        weights = axis_weights(starts, centre, length - 2 * margin)
    else:
        spans = kept_spans(starts, centre)
        weights = {start: np.ones(last - first, np.float32) for start, (first, last) in spans.items()}
    return {
        start: _Share(
            slice(margin + first - start, margin + last - start),
            slice(margin + first, margin + last),
            torch.from_numpy(weights[start]).reshape(shape),
        )
        for start, (first, last) in spans.items()
    }


class Line(NamedTuple):
    """All tiles of a larger map along an axis: their starts, how long it is, and where the map at hand begins on it."""

    starts: Sequence[int]
    length: int
    first: int


def _shares_within(
    starts: list[int],
    tile: int,
    length: int,
    margin: int,
    blends: bool,
    shape: tuple[int, ...],
    line: Line | None,
) -> dict[int, _Share]:
    """Returns the same where these tiles are some of a longer ``line``, with the weights that they have on it."""
    if line is None:
        return _shares(starts, tile, length, margin, blends, shape)
    first = line.first
    found = _shares(list(line.starts), tile, line.length, margin, blends, shape)
    shares = {start: found[start + first] for start in starts}
    places = {start: slice(share.of_map.start - first, share.of_map.stop - first) for start, share in shares.items()}
    return {start: replace(share, of_map=places[start]) for start, share in shares.items()}


class TileAccumulator:
    """Sums the tiles of a grid into one map …×H×W of float32 on the device: ``feed`` each once, then ``done``.

    ``windows`` are every combination of some starts per axis, all of one size, and cover the image of ``size``. With a
    ``margin`` only what lies so many pixels inside a tile counts, and of the map only what lies so many pixels inside
    is given, the rest is 0. Where tiles (their centres) overlap they are blended, or, without ``blends``, each pixel
    is taken from one of them as it is.

    Where the windows are some of the tiles of a larger map, ``lines`` says of rows and columns how all of them lie
    there, and weights are those of the larger map; pixels that no window covers are 0.
    """

    def __init__(
        self,
        size: Size,
        windows: Sequence[Window],
        *,
        margin: int = 0,
        blends: bool = True,
        lines: tuple[Line, Line] | None = None,
    ) -> None:
        tops, lefts = sorted({window.top for window in windows}), sorted({window.left for window in windows})
        tile = (windows[0].height, windows[0].width)
        if tops[0] < 0 or lefts[0] < 0 or size[0] < tops[-1] + tile[0] or size[1] < lefts[-1] + tile[1]:
            raise ValueError(f"expected tiles inside an image of {size}, got {list(windows)}; pad the image first")
        if not 0 <= 2 * margin < min(tile):
            raise ValueError(f"expected a margin that leaves something of tiles of {tile}, got {margin}")
        self.size = size
        self._takes_all = margin == 0 and blends
        rows, columns = lines or (None, None)
        self._rows = _shares_within(tops, tile[0], size[0], margin, blends, (-1, 1), rows)
        self._columns = _shares_within(lefts, tile[1], size[1], margin, blends, (-1,), columns)
        self._total: Tensor | None = None

    def feed(self, window: Window, value: Tensor) -> None:
        """Adds the result …×h×w (float32) of one window, weighted."""
        if self._total is None:
            self._total = value.new_zeros((*value.shape[:-2], *self.size))
            self._rows, self._columns = (_moved(shares, value.device) for shares in (self._rows, self._columns))
        rows, columns = self._rows[window.top], self._columns[window.left]
        if not self._takes_all:
            value = value[..., rows.of_tile, columns.of_tile]
        self._total[..., rows.of_map, columns.of_map].addcmul_(value, rows.weights * columns.weights)

    def done(self) -> Tensor:
        """Returns the map …×H×W; every window must have been fed."""
        if self._total is None:
            raise ValueError("no tile was fed")
        return self._total


def _moved(shares: dict[int, _Share], device: torch.device) -> dict[int, _Share]:
    return {start: replace(share, weights=share.weights.to(device)) for start, share in shares.items()}


def paste(coarse: Tensor, windows: Iterable[Window], values: Iterable[Tensor]) -> Tensor:
    """Returns the map …×H×W (float32, a new one) with the values …×h×w of windows in place of its own.

    Windows may overlap in any way and reach beyond the map. Where several lie, their values are averaged with weights
    that fall linearly from a window's middle to its edges; sums follow the windows' order.
    """
    size = (coarse.shape[-2], coarse.shape[-1])
    total, weights = torch.zeros_like(coarse), coarse.new_zeros(size)
    for window, value in zip(windows, values, strict=True):
        seen = window.clipped(size)
        inside = Window(seen.top - window.top, seen.left - window.left, seen.height, seen.width).slices
        weight = (_ramp(window.height, coarse)[:, None] * _ramp(window.width, coarse))[inside]
        total[(..., *seen.slices)].addcmul_(value[(..., *inside)], weight)
        weights[seen.slices].add_(weight)
    return torch.where(weights > 0, total / weights, coarse)


def _ramp(length: int, like: Tensor) -> Tensor:
    """Returns weights in (0, 1] along one side of a window: 1 in the middle, falling linearly to both ends."""
    places = torch.arange(length, dtype=like.dtype, device=like.device)
    return torch.minimum(places + 1, length - places) / ((length + 1) // 2)
