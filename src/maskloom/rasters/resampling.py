"""Sampling an array on the grid of another, by window: nearest, bicubic, averages. Knows nothing about files.

Each output pixel depends on its own position alone, computed in float64 from its place in the whole grid, and is summed
in float32 in a fixed order; so a window holds, bit for bit, what the whole holds there. Pixel coordinates are x to the
right, y down, (0, 0) the outer corner of the first pixel: pixel centres lie at +0.5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from maskloom.errors import UserError
from maskloom.rasters.georeference import Transform
from maskloom.records import Size
from maskloom.windows import Window

Method = Literal["nearest", "bicubic", "area"]

AVERAGED_FROM = 2.0
"""From this many source pixels per grid pixel along an axis on, bicubic sampling averages instead."""

_STEPS_PER_PIXEL = (
    2**16
)  # positions are rounded to these steps: georeferences and ratios carry noise in the last digits
_STRIP_VALUES = 2**18  # values computed at a time, so that they stay in the processor's cache
_KEYS = -0.5


def composed(outer: Transform, inner: Transform) -> Transform:
    """Returns the transform that applies ``inner`` first, then ``outer``."""
    a, b, c, d, e, f = outer
    k, m, n, p, q, r = inner
    return (a * k + b * p, a * m + b * q, a * n + b * r + c, d * k + e * p, d * m + e * q, d * n + e * r + f)


def inverse(transform: Transform) -> Transform:
    """Returns the transform that undoes this one; it must have one."""
    a, b, c, d, e, f = transform
    determinant = a * e - b * d
    a, b, d, e = e / determinant, -b / determinant, -d / determinant, a / determinant
    return (a, b, -(a * c + b * f), d, e, -(d * c + e * f))


def shifted(x: float, y: float) -> Transform:
    """Returns the transform that moves by (x, y)."""
    return (1.0, 0.0, x, 0.0, 1.0, y)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an array of size ``source`` (height, width) is sampled on a grid: ``to_source`` maps grid to source pixels.

    - ``nearest`` takes the source pixel that holds the centre of the grid pixel, whatever the ratio.
    - ``bicubic`` is Keys' kernel with a = -0.5 over 4×4 source pixels, GDAL's "cubic": it keeps linear ramps where they
      lie. (OpenCV and torch take a = -0.75, which moves content by up to 0.05 pixels.) Along an axis where a grid pixel
      is ``AVERAGED_FROM`` or more source pixels wide, it is ``area``.
    - ``area`` is the mean over the grid pixel, source pixels cut by its edges counted in part; over one source pixel
      where the grid pixel is narrower.

    What a kernel needs beyond the source is its reflection at the outer edge (dcba|abcd|dcba). Grid pixels whose
    centres lie more than ``reflected`` source pixels outside are not covered.
    """

    source: Size
    to_source: Transform
    method: Method
    reflected: float

    def __post_init__(self) -> None:
        a, b, _, d, e, _ = self.to_source
        if not all(map(math.isfinite, self.to_source)) or a * e - b * d == 0:
            raise UserError(f"expected a transform of pixels that can be undone, found {self.to_source}")

    @property
    def scales(self) -> tuple[float, float]:
        """How many source pixels high and wide a grid pixel is."""
        a, b, _, d, e, _ = self.to_source
        return float(_snapped(math.hypot(d, e))), float(_snapped(math.hypot(a, b)))

    @property
    def _is_upright(self) -> bool:
        """Whether a row of the grid has one y in the source, and a column one x."""
        return self.to_source[1] == 0 and self.to_source[3] == 0

    def part(self, window: Window) -> Window | None:
        """Returns the part of the source that a window of the grid needs; None where it covers nothing of it."""
        a, b, c, d, e, f = self.to_source
        # Positions of pixel centres are extreme in the corners.
        x = np.array([window.left + 0.5, window.left + window.width - 0.5])[None, :]
        y = np.array([window.top + 0.5, window.top + window.height - 0.5])[:, None]
        vertical, horizontal = self._axes()
        rows = vertical.needed(_snapped(d * x + (e * y + f)))
        columns = horizontal.needed(_snapped(a * x + (b * y + c)))
        if rows is None or columns is None:
            return None
        return Window(rows[0], columns[0], rows[1] - rows[0], columns[1] - columns[0])

    def sample(
        self, pixels: np.ndarray, is_valid: np.ndarray, part: Window, window: Window
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the values H×W×C of a window of the grid, and the bool array H×W of where they are valid.

        ``pixels`` (finite, H×W×C) and ``is_valid`` are the ``part`` of the source that the window needs. Values are
        float32, with ``nearest`` of the type of ``pixels``. Valid is what is covered and, with a weight other than 0,
        touches only valid pixels; the values of all else are 0.
        """
        count = pixels.shape[2]
        pixels = np.ascontiguousarray(pixels, pixels.dtype if self.method == "nearest" else np.float32)
        is_bad = None if is_valid.all() else ~is_valid
        values = np.empty((window.height, window.width, count), pixels.dtype)
        is_known = np.empty((window.height, window.width), np.bool_)
        step = max(1, _STRIP_VALUES // (max(window.width, part.width) * count))
        for start in range(0, window.height, step):
            strip = Window(window.top + start, window.left, min(step, window.height - start), window.width)
            rows = slice(start, start + strip.height)
            values[rows], is_known[rows] = self._strip(pixels, is_bad, part, strip)
        values[~is_known] = 0
        return values, is_known

    def _strip(
        self, pixels: np.ndarray, is_bad: np.ndarray | None, part: Window, window: Window
    ) -> tuple[np.ndarray, np.ndarray]:
        y, x = self._positions(window)
        vertical, horizontal = self._axes()
        is_known = vertical.covers(y) & horizontal.covers(x)
        rows, columns = vertical.taps(y, part.top, part.height), horizontal.taps(x, part.left, part.width)
        if is_bad is not None:
            is_known &= ~(_touched_in_turn if self._is_upright else _touched)(is_bad, rows, columns)
        if self.method == "nearest":
            return pixels[rows.indices[0], columns.indices[0]], is_known
        return (_weighted_in_turn if self._is_upright else _weighted)(pixels, rows, columns), is_known

    def _positions(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Returns source y and x of the pixel centres: H×1 and 1×W where rows stay rows, else both H×W."""
        a, b, c, d, e, f = self.to_source
        x = (window.left + np.arange(window.width) + 0.5)[None, :]
        y = (window.top + np.arange(window.height) + 0.5)[:, None]
        if self._is_upright:
            return _snapped(e * y + f), _snapped(a * x + c)
        return _snapped(d * x + (e * y + f)), _snapped(a * x + (b * y + c))

    def _axes(self) -> tuple[_Axis, _Axis]:
        methods: list[Method] = [
            "area" if self.method == "bicubic" and scale >= AVERAGED_FROM else self.method for scale in self.scales
        ]
        height, width = (max(scale, 1.0) for scale in self.scales)
        return (
            _Axis(self.source[0], methods[0], height, self.reflected),
            _Axis(self.source[1], methods[1], width, self.reflected),
        )


@dataclass(frozen=True, slots=True)
class _Taps:
    """Which source rows or columns are summed: ``indices`` into the part that was read, and ``weights``, float32.

    Both are K × the shape of the positions.
    """

    indices: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True, slots=True)
class _Axis:
    """Sampling along one axis of ``length`` source pixels; averages go over ``wide`` of them."""

    length: int
    method: Method
    wide: float
    reflected: float

    def covers(self, positions: np.ndarray) -> np.ndarray:
        """Returns for which positions there are source pixels."""
        return (positions >= -self.reflected) & (positions <= self.length + self.reflected)

    def needed(self, positions: np.ndarray) -> tuple[int, int] | None:
        """Returns the half-open range of source pixels for positions between these; None where none are covered."""
        lowest, highest = float(positions.min()), float(positions.max())
        if highest < -self.reflected or lowest > self.length + self.reflected:
            return None
        first, _ = self._first(np.array([lowest, highest]))
        indices = _reflected(np.arange(first[0], first[1] + self._num_taps()), self.length)
        return int(indices.min()), int(indices.max()) + 1

    def taps(self, positions: np.ndarray, start: int, length: int) -> _Taps:
        """Returns the taps in the part of ``length`` pixels from ``start`` on; without meaning where not covered."""
        first, place = self._first(positions)
        steps = np.arange(self._num_taps()).reshape(-1, *[1] * positions.ndim)
        if self.method == "nearest":
            weights = np.ones((1, *positions.shape))
        elif self.method == "bicubic":
            weights = np.stack(_keys_weights(place))
        else:
            weights = np.minimum(steps + 1, place + self.wide) - np.maximum(steps, place)
            weights = np.maximum(weights, 0) / self.wide
        indices = _reflected(first + steps, self.length) - start
        return _Taps(np.clip(indices, 0, length - 1), weights.astype(np.float32))

    def _num_taps(self) -> int:
        return {"nearest": 1, "bicubic": 4, "area": math.ceil(self.wide) + 1}[self.method]

    def _first(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the index of the first tap, not reflected yet, and where between it and the next the kernel lies."""
        # Positions that are not covered still need some index; those beside the source cost no reading.
        near = np.clip(positions, -self.reflected, self.length + self.reflected)
        low = near - {"nearest": 0.0, "bicubic": 0.5, "area": self.wide / 2}[self.method]
        floor = np.floor(low)
        return floor.astype(np.intp) - (self.method == "bicubic"), low - floor


def _snapped(positions: np.ndarray | float) -> np.ndarray:
    """Returns positions without the noise of their last digits, which would give weight to pixels just touched."""
    return np.asarray(np.rint(np.multiply(positions, _STEPS_PER_PIXEL)) / _STEPS_PER_PIXEL)


def _reflected(indices: np.ndarray, length: int) -> np.ndarray:
    folded: np.ndarray = indices % (2 * length)
    mirrored: np.ndarray = np.minimum(folded, 2 * length - 1 - folded)
    return mirrored


def _keys_weights(t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the weights of the four pixels around a point ``t`` in [0, 1) behind the second one's centre.

    Source: R. Keys, Cubic Convolution Interpolation for Digital Image Processing, 1981, with its a = -1/2.
    """
    a, s = _KEYS, 1 - t
    return (
        a * t * s * s,
        ((a + 2) * t - (a + 3)) * t * t + 1,
        ((a + 2) * s - (a + 3)) * s * s + 1,
        a * s * t * t,
    )


# Sums begin at +0.0, so a tap of weight 0 changes no bit of them and may be left out.


def _weighted_in_turn(pixels: np.ndarray, rows: _Taps, columns: _Taps) -> np.ndarray:
    """Returns the weighted sums H×W×C where all of a row has one y, all of a column one x: first along y, then x."""
    for axis, taps in enumerate((rows, columns)):
        shape = list(pixels.shape)
        shape[axis] = taps.indices[0].size
        total, taken = np.zeros(shape, np.float32), np.empty(shape, np.float32)
        for indices, weights in zip(taps.indices, taps.weights, strict=True):
            if weights.any():
                np.take(pixels, indices.ravel(), axis=axis, out=taken, mode="clip")
                taken *= weights[:, :, None]
                total += taken
        pixels = total
    return pixels


def _weighted(pixels: np.ndarray, rows: _Taps, columns: _Taps) -> np.ndarray:
    """Returns the weighted sums H×W×C where every pixel has a y and an x of its own."""
    flat = pixels.reshape(-1, pixels.shape[2])
    shape = (*rows.indices.shape[1:], pixels.shape[2])
    total, taken = np.zeros(shape, np.float32), np.empty(shape, np.float32)
    for row, row_weights in zip(rows.indices * pixels.shape[1], rows.weights, strict=True):
        for column, column_weights in zip(columns.indices, columns.weights, strict=True):
            weights = row_weights * column_weights
            if weights.any():
                np.take(flat, row + column, axis=0, out=taken, mode="clip")
                taken *= weights[:, :, None]
                total += taken
    return total


def _touched_in_turn(is_bad: np.ndarray, rows: _Taps, columns: _Taps) -> np.ndarray:
    """Returns where a tap with weight meets a bad pixel, H×W, for ``_weighted_in_turn``."""
    for axis, taps in enumerate((rows, columns)):
        shape = list(is_bad.shape)
        shape[axis] = taps.indices[0].size
        touched = np.zeros(shape, np.bool_)
        for indices, weights in zip(taps.indices, taps.weights, strict=True):
            touched |= np.take(is_bad, indices.ravel(), axis=axis) & (weights != 0)
        is_bad = touched
    return is_bad


def _touched(is_bad: np.ndarray, rows: _Taps, columns: _Taps) -> np.ndarray:
    """Returns where a tap with weight meets a bad pixel, H×W, for ``_weighted``."""
    touched = np.zeros(rows.indices.shape[1:], np.bool_)
    for row, row_weights in zip(rows.indices, rows.weights, strict=True):
        for column, column_weights in zip(columns.indices, columns.weights, strict=True):
            touched |= is_bad[row, column] & (row_weights != 0) & (column_weights != 0)
    return touched
