"""Finding how one band lies against another: a shift, or an affine map, by the enhanced correlation coefficient (ECC).

Knows nothing about records or runs: what is found is put into ``BandFile.moved``, and ``open_stack`` samples by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from maskloom.errors import BadFile, UserError
from maskloom.rasters.georeference import Transform
from maskloom.rasters.reading import Raster, open_raster
from maskloom.rasters.resampling import Sampling, composed, inverse, shifted
from maskloom.rasters.stack import Layer, to_pixels_of
from maskloom.records import Size
from maskloom.windows import Window

Motion = Literal["translation", "affine"]

SMALLEST = 16
"""Fewest pixels per side in which anything can be found."""

LARGEST = 4096
"""Most pixels per side that files are compared in: the middle of a larger scene stands for all of it."""

_GAUSSIAN = 5  # pixels of the smoothing that ECC begins with, as published
_COARSE = 4  # the first guess is made at full and at a quarter of the resolution, where noise is averaged away
_SETTLED = 0.05  # pixels by which further iterations may move what was found
_FURTHER = 10
_LEAST_VALID = 0.1  # share of the pixels that both images must know


@dataclass(frozen=True, slots=True)
class Registration:
    """``moved`` in the convention of ``BandFile``, the correlation that it reaches in [-1, 1], and the kind of motion.

    (a, b, c, d, e, f): what should lie at (x, y) in pixels of the moving image lies at (a·x + b·y + c, d·x + e·y + f),
    counted from the outer corner of the first pixel.
    """

    moved: Transform
    correlation: float
    motion: Motion = "translation"

    def to_json(self) -> dict[str, Any]:
        """Returns a dictionary that ``from_json`` reads back exactly."""
        return {"moved": list(self.moved), "correlation": self.correlation, "motion": self.motion}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Registration:
        """Returns what ``to_json`` wrote; raises ``UserError`` for anything else."""
        try:
            moved, correlation, motion = values["moved"], float(values["correlation"]), values["motion"]
            a, b, c, d, e, f = map(float, moved)
        except (KeyError, TypeError, ValueError):
            raise UserError(f"expected moved (6 numbers), correlation and motion, found {values!r:.200}") from None
        if motion not in get_args(Motion) or not all(map(math.isfinite, (a, b, c, d, e, f, correlation))):
            raise UserError(f"expected finite numbers and one of {get_args(Motion)}, found {values!r:.200}")
        return cls((a, b, c, d, e, f), correlation, motion)


def register(
    fixed: np.ndarray,
    moving: np.ndarray,
    *,
    motion: Motion = "translation",
    iterations: int = 200,
    epsilon: float = 1e-7,
    minimum_correlation: float = 0.3,
    maximum_shift: float = 16.0,
    fixed_valid: np.ndarray | None = None,
    moving_valid: np.ndarray | None = None,
) -> Registration:
    """Returns how ``moving`` lies against ``fixed``, two H×W images of one size and of any number type.

    ECC looks for the greatest correlation, so gain and offset between the images do not matter, and noise and blur
    little; the first guess comes from phase correlation, so shifts of several pixels are found. Pixels that are NaN,
    infinite, or not valid (bool H×W) count in neither image. ``epsilon`` is the gain in correlation that ends the
    search. Source: Evangelidis & Psarakis 2008, with the settings of arXiv:1706.06169.

    Raises ``UserError`` when nothing trustworthy is found: an image is constant or hardly known, the search does not
    settle, the correlation stays below ``minimum_correlation``, or a corner moves by more than ``maximum_shift``
    pixels.
    """
    import cv2

    if fixed.ndim != 2 or fixed.shape != moving.shape:
        raise ValueError(f"expected two images H×W of one size, got shapes {fixed.shape} and {moving.shape}")
    if min(fixed.shape) < SMALLEST:
        found = f"{fixed.shape[1]}×{fixed.shape[0]}"
        raise UserError(
            f"expected at least {SMALLEST}×{SMALLEST} pixels to register, found {found} (width×height); {_LEAVE}"
        )
    one, known_one = _normalised(fixed, fixed_valid, "fixed")
    other, known_other = _normalised(moving, moving_valid, "moving")
    x, y = _first_guess(one, other, known_one, known_other, maximum_shift)
    mask = _common(known_one, known_other, x, y)
    if mask.mean() < _LEAST_VALID:
        raise UserError(
            f"expected pixels that both images know, at least {_LEAST_VALID:.0%}, found {mask.mean():.1%} away from "
            f"unknown ones; {_LEAVE}"
        )
    search = _Search(one, other, mask, iterations, epsilon)
    warp = np.array([[1, 0, x], [0, 1, y]], np.float32)
    try:
        correlation, warp = search.run(warp, cv2.MOTION_TRANSLATION)
        if motion == "affine":
            correlation, warp = search.run(warp, cv2.MOTION_AFFINE)
    except _Unsettled as error:
        raise UserError(
            f"no registration found by {motion} from the first guess ({x:+.1f}, {y:+.1f}): {error}; {_LEAVE}"
        ) from None
    a, b, c, d, e, f = map(float, warp.ravel())
    # OpenCV counts from pixel centres, we from the outer corner.
    moved = composed(shifted(0.5, 0.5), composed((a, b, c, d, e, f), shifted(-0.5, -0.5)))
    reach = _reach(moved, fixed.shape)
    found = f"the best {motion} moves corners by up to {reach:.2f} pixels, correlation {correlation:.3f}"
    if correlation < minimum_correlation:
        raise UserError(f"expected a correlation of at least {minimum_correlation:g}, found less: {found}; {_LEAVE}")
    if reach > maximum_shift:
        raise UserError(
            f"expected a shift of at most {maximum_shift:g} pixels, found more: {found}; if that is true, raise the "
            f"maximum shift, else {_LEAVE}"
        )
    return Registration(moved, float(correlation), motion)


def register_files(
    image: Path,
    file: Path,
    *,
    image_band: int,
    band: int,
    motion: Motion = "translation",
    iterations: int = 200,
    epsilon: float = 1e-7,
    minimum_correlation: float = 0.3,
    maximum_shift: float = 16.0,
) -> Registration:
    """Returns how ``file`` lies against ``image`` by one band of each (counted from 0), in pixels of ``file``.

    The files are placed as ``open_stack`` places them; the finer one is averaged to the grid of the coarser, whose
    pixels ``maximum_shift`` counts. Of a scene larger than ``LARGEST`` pixels there, the middle is compared. Raises
    ``UserError`` as ``register`` does, naming both files, and ``BadFile`` as ``open_stack`` does.
    """
    with open_raster(image) as fixed, open_raster(file) as moving:
        _check_band(fixed, image_band)
        _check_band(moving, band)
        to_file = to_pixels_of(moving, fixed)
        is_coarser = abs(to_file[0] * to_file[4]) <= 1
        # The grid to compare on is that of the coarser file; ``to_own`` leads from it to the pixels of ``file``.
        grid, to_own = (moving, shifted(0, 0)) if is_coarser else (fixed, to_file)
        to_image = inverse(to_file) if is_coarser else shifted(0, 0)
        window = _middle(grid.size)
        try:
            one, known_one = _on_grid(fixed, to_image, window, image_band)
            other, known_other = _on_grid(moving, to_own, window, band)
            found = register(
                one,
                other,
                motion=motion,
                iterations=iterations,
                epsilon=epsilon,
                minimum_correlation=minimum_correlation,
                maximum_shift=maximum_shift,
                fixed_valid=known_one,
                moving_valid=known_other,
            )
        except BadFile:
            raise
        except UserError as error:
            raise UserError(
                f"{file} cannot be registered on {image} by bands {band} and {image_band} (counted from 0): {error}"
            ) from None
    to_own = composed(to_own, shifted(window.left, window.top))
    moved = composed(composed(to_own, found.moved), inverse(to_own))
    if motion == "translation":
        moved = shifted(moved[2], moved[5])  # without what rounding adds to the rest
    return Registration(moved, found.correlation, motion)


_LEAVE = "leave the file unregistered, choose bands that look more alike, or try the other motion"


class _Unsettled(Exception):
    """The search ended without a result; the message says how."""


@dataclass(frozen=True, slots=True)
class _Search:
    """ECC between two normalised images where ``mask`` (uint8, in pixels of ``other``) is not 0."""

    one: np.ndarray
    other: np.ndarray
    mask: np.ndarray
    iterations: int
    epsilon: float

    def run(self, start: np.ndarray, motion: int) -> tuple[float, np.ndarray]:
        """Returns the correlation and the 2×3 warp, between pixel centres, that the search from ``start`` ends in."""
        correlation, warp = self._once(start, motion, self.iterations, 0)
        _, further = self._once(warp, motion, _FURTHER, self.iterations)
        step = _reach(composed(_transform(further), inverse(_transform(warp))), self.one.shape)
        if not step <= _SETTLED:
            raise _Unsettled(
                f"the search still moves by {step:.2f} pixels after {self.iterations} iterations, correlation "
                f"{correlation:.3f}"
            )
        return correlation, warp

    def _once(self, start: np.ndarray, motion: int, iterations: int, done: int) -> tuple[float, np.ndarray]:
        import cv2

        criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, iterations, self.epsilon)
        try:
            correlation, warp = cv2.findTransformECC(
                self.one, self.other, start.copy(), motion, criteria, self.mask, _GAUSSIAN
            )
        except cv2.error:  # says only that images may be uncorrelated
            before = float(cv2.computeECC(self.one, self.other, self.mask))
            raise _Unsettled(
                f"the correlation stopped growing within {done + iterations} iterations, unmoved it is {before:.3f}"
            ) from None
        determinant = warp[0, 0] * warp[1, 1] - warp[0, 1] * warp[1, 0]
        if not (math.isfinite(correlation) and np.isfinite(warp).all() and determinant > 0):
            raise _Unsettled(f"the search left all bounds within {done + iterations} iterations")
        return float(correlation), warp


def _normalised(image: np.ndarray, is_valid: np.ndarray | None, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns float32 H×W of mean 0 and deviation 1 where known, 0 elsewhere, and the bool array of where it is."""
    values = image.astype(np.float64)
    is_known = np.isfinite(values) if is_valid is None else np.isfinite(values) & is_valid
    share = float(is_known.mean())
    if share < _LEAST_VALID:
        raise UserError(
            f"expected an image known in at least {_LEAST_VALID:.0%} of its pixels, found {share:.1%} of the {name} "
            f"one; {_LEAVE}"
        )
    known = values[is_known]
    mean, deviation = known.mean(), known.std()
    # A band that is constant but for rounding has nothing to go by.
    if not deviation > 1e-9 * abs(mean):
        raise UserError(f"expected images that show something, found the {name} one constant ({mean:g}); {_LEAVE}")
    return np.where(is_known, (values - mean) / deviation, 0).astype(np.float32), is_known


def _first_guess(
    one: np.ndarray, other: np.ndarray, known_one: np.ndarray, known_other: np.ndarray, bound: float
) -> tuple[float, float]:
    """Returns the shift (x, y) of ``other`` against ``one`` that fits best: none, or what phase correlation says."""
    import cv2

    guesses = [(0.0, 0.0)]
    for factor in (1, _COARSE):
        size = (one.shape[1] // factor, one.shape[0] // factor)
        if min(size) < SMALLEST:
            continue
        small = [cv2.resize(values, size, interpolation=cv2.INTER_AREA) for values in (one, other)]
        window = cv2.createHanningWindow(size, cv2.CV_32F)
        (x, y), _ = cv2.phaseCorrelate(small[0], small[1], window)
        x, y = x * one.shape[1] / size[0], y * one.shape[0] / size[1]
        if math.hypot(x, y) <= bound:
            guesses.append((x, y))
    smooth_one, smooth_other = (cv2.GaussianBlur(values, (0, 0), 2.0) for values in (one, other))

    def fit(guess: tuple[float, float]) -> float:
        return _correlation(smooth_one, smooth_other, known_one, known_other, round(guess[0]), round(guess[1]))

    return max(guesses, key=fit)


def _correlation(
    one: np.ndarray, other: np.ndarray, known_one: np.ndarray, known_other: np.ndarray, x: int, y: int
) -> float:
    """Returns the correlation of two images where ``other`` lies (x, y) whole pixels off; -1 where none is known."""
    here, there = _overlaps(one.shape, x, y)
    is_known = known_one[here] & known_other[there]
    if is_known.sum() < SMALLEST**2:
        return -1.0
    values = np.stack([one[here][is_known], other[there][is_known]]).astype(np.float64)
    values -= values.mean(axis=1, keepdims=True)
    norm = math.sqrt(float((values[0] ** 2).sum() * (values[1] ** 2).sum()))
    return float((values[0] * values[1]).sum()) / norm if norm > 0 else -1.0


def _overlaps(size: tuple[int, ...], x: int, y: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Returns what two images have in common, as slices of each, where the second lies (x, y) off."""
    height, width = size
    here = slice(max(0, -y), min(height, height - y)), slice(max(0, -x), min(width, width - x))
    there = slice(max(0, y), min(height, height + y)), slice(max(0, x), min(width, width + x))
    return here, there


def _common(known_one: np.ndarray, known_other: np.ndarray, x: float, y: float) -> np.ndarray:
    """Returns the mask, in pixels of the moving image, of what both know; what lies near unknown pixels is left out.

    ECC takes a mask of the moving image only, so that of the fixed one is laid under it by the first guess.
    """
    import cv2

    mask = known_other.astype(np.uint8)
    if known_one.all() and known_other.all():
        return mask
    here, there = _overlaps(known_one.shape, round(x), round(y))
    moved = np.ones_like(mask)
    moved[there] = known_one[here]
    eroded: np.ndarray = cv2.erode(
        mask & moved, np.ones((_GAUSSIAN, _GAUSSIAN), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=1
    )
    return eroded


def _transform(warp: np.ndarray) -> Transform:
    a, b, c, d, e, f = map(float, warp.ravel())
    return (a, b, c, d, e, f)


def _reach(moved: Transform, size: tuple[int, ...]) -> float:
    """Returns by how many pixels the corner of an image moves that moves farthest."""
    a, b, c, d, e, f = moved
    corners = [(x, y) for x in (0, size[1]) for y in (0, size[0])]
    return max(math.hypot(a * x + b * y + c - x, d * x + e * y + f - y) for x, y in corners)


def _check_band(raster: Raster, band: int) -> None:
    if not 0 <= band < raster.count:
        raise BadFile(
            raster.path, f"expected a band of 0 to {raster.count - 1}, was asked for band {band}; choose another"
        )


def _middle(size: Size) -> Window:
    height, width = (min(side, LARGEST) for side in size)
    return Window((size[0] - height) // 2, (size[1] - width) // 2, height, width)


def _on_grid(raster: Raster, to_own: Transform, window: Window, band: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns one band H×W of a file in a window of the grid, averaged where the grid is coarser, and its validity."""
    is_own = to_own == shifted(0, 0)
    sampling = None if is_own else Sampling(raster.size, to_own, "area", 0.0)
    layer = Layer(raster, sampling, np.dtype(np.float32))
    pixels, is_valid = layer.read(window, slice(band, band + 1))
    return pixels[:, :, 0], is_valid
