"""The two published ways to find the Dstl contest's water without a network, as rules on index values.

One draws a fixed line through an index on the RGB grid, the other searches for the best index and threshold of each
scene; both then tell fast water (waterways) from slow (standing) by size. Source: github.com/ternaus/
kaggle_dstl_submission and arXiv:1706.06169. Knows nothing about files; arrays may lie on any grid, and numbers of
pixels, which are published for images of about 3350×3400 and 837×851, grow and shrink with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from maskloom.encodings.outlines import areas, cleaned, outlines
from maskloom.errors import UserError
from maskloom.masks import label_components
from maskloom.records import IGNORE, Size

if TYPE_CHECKING:
    from shapely import Polygon

RGB_SIZE: Size = (3350, 3400)
"""The size, give or take 2 %, for which numbers of pixels on the RGB grid are published."""
M_SIZE: Size = (837, 851)
"""The same for the grid of the M bands."""
FULL_SCALE = 2047.0
"""The largest value of RGB, M and P: they have 11 bits."""

_ALIKE = 0.1  # published images differ in size by 2 %; the numbers hold for all of them


@dataclass(frozen=True, kw_only=True, slots=True)
class CcciRules:
    """Water is where the index of raw values exceeds ``above``; numbers are pixels of an image of ``reference`` size.

    Fast water is only in images with more than ``fast_pixels`` of it, in polygons of at least ``fast_min_area``; slow
    water only in those with fewer than ``slow_pixels``, in polygons of at least ``slow_min_area`` and with an area in
    one of ``slow_areas`` (open intervals).
    """

    index: str = "dstl_ccci"
    above: float = 0.11
    fast_pixels: float = 500_000
    fast_min_area: float = 10_000
    slow_pixels: float = 680_000
    slow_min_area: float = 1_000
    slow_areas: tuple[tuple[float, float], ...] = ((0, 90_000), (270_000, 300_000))
    reference: Size = RGB_SIZE


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchRules:
    """Water is where an index of values in [0, 1] lies below a threshold, which is searched per scene.

    ``lowest``, ``highest`` and ``step`` are the thresholds tried for each of ``indices``. Where no truth is known,
    ``unknown_index`` is compared with ``unknown_thresholds[0]`` if it falls below that anywhere in the scene's mosaic,
    else with ``[1]``. Pieces of more than ``fast_pixels`` are fast water, those of at least ``slow_pixels`` slow, which
    grows by ``slow_buffer``; all are pixels of an image of ``reference`` size.
    """

    indices: tuple[str, ...] = ("ndvi", "ndvi2", "dstl_rei")
    lowest: float = -2.0
    highest: float = 2.0
    step: float = 0.01
    unknown_index: str = "dstl_rei"
    unknown_thresholds: tuple[float, float] = (-1.7, -0.6)
    fast_pixels: float = 7_000
    slow_pixels: float = 10
    slow_buffer: float = 3
    reference: Size = M_SIZE

    def thresholds(self) -> NDArray[np.float64]:
        """Returns the thresholds tried, ascending, both ends included."""
        count = round((self.highest - self.lowest) / self.step)
        return np.round(self.lowest + self.step * np.arange(count + 1), 6)


CCCI = CcciRules()
SEARCH = SearchRules()


@dataclass(frozen=True, slots=True)
class Water:
    """The polygons of both classes, in pixels of the grid that the index was given on."""

    fast: list[Polygon] = field(default_factory=list)
    slow: list[Polygon] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SceneThreshold:
    """Water is where ``index`` < ``below``; ``jaccard`` is that on the training masks, NaN where none were there."""

    index: str
    below: float
    jaccard: float = math.nan


def area_factor(size: Size, reference: Size) -> float:
    """Returns by what numbers of pixels published for ``reference`` are multiplied for an image of ``size``.

    That is the ratio of areas, and 1 for images within a tenth of the published size.
    """
    factor = (size[0] * size[1]) / (reference[0] * reference[1])
    return 1.0 if abs(factor - 1) <= _ALIKE else factor


def index_map(name: str, bands: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the named index of bands H×W, float32 H×W; NaN or infinite where it is not defined.

    Raises ``UserError`` for an unknown index or a missing band.
    """
    from maskloom.rasters.indices import index

    return index(name).evaluate(bands)


# A fixed line on the RGB grid ---------------------------------------------------------------------------------------


def ccci_water(values: np.ndarray, *, rules: CcciRules = CCCI, scaled: bool = True) -> Water:
    """Returns the water of one image from the values H×W of ``rules.index``.

    With ``scaled``, the published numbers are for images of the published size and follow this one's. Polygons are
    exact outlines of 4-connected pieces, their areas without holes.
    """
    factor = area_factor((values.shape[0], values.shape[1]), rules.reference) if scaled else 1.0
    with np.errstate(invalid="ignore"):
        is_water = values > rules.above
    count = np.count_nonzero(is_water)
    is_fast, is_slow = count > factor * rules.fast_pixels, count < factor * rules.slow_pixels
    if not count or not (is_fast or is_slow):
        return Water()
    pieces = outlines(is_water)
    fast = [piece for piece in pieces if piece.area >= factor * rules.fast_min_area]
    slow = [
        piece
        for piece in pieces
        if piece.area >= factor * rules.slow_min_area
        and any(factor * low < piece.area < factor * high for low, high in rules.slow_areas)
    ]
    return Water(fast if is_fast else [], slow if is_slow else [])


# A threshold searched per scene -------------------------------------------------------------------------------------


def search(
    images: Iterable[tuple[Mapping[str, np.ndarray], np.ndarray]], *, rules: SearchRules = SEARCH
) -> SceneThreshold | None:
    """Returns the index and threshold with the highest Jaccard index over all images of a scene, None without water.

    Each image gives the values H×W of every index by name, and the truth H×W of water of both kinds: bool, or uint8
    with ``IGNORE``. Of equal thresholds the one in the middle of the first row of them is taken, of equal indices the
    first. Raises ``UserError`` for an image without one of the indices.
    """
    thresholds = rules.thresholds()
    counts = {name: np.zeros((2, len(thresholds) + 1), np.int64) for name in rules.indices}
    num_water = 0
    for values, truth in images:
        counted = truth.astype(np.uint8, copy=False) != IGNORE
        is_water = (truth == 1)[counted]
        num_water += int(np.count_nonzero(is_water))
        for name in rules.indices:
            if name not in values:
                raise UserError(f"expected values of the index {name}, found {', '.join(values) or 'none'}; give them")
            # Below the threshold with number k are the values whose place is at most k; NaN is below none.
            places = np.searchsorted(thresholds, values[name][counted], side="right")
            pairs = np.bincount(places + (len(thresholds) + 1) * is_water, minlength=2 * (len(thresholds) + 1))
            counts[name] += pairs.reshape(2, -1)
    if not num_water:
        return None
    best: SceneThreshold | None = None
    for name, (land, water) in counts.items():
        jaccard = np.cumsum(water)[:-1] / (num_water + np.cumsum(land)[:-1])
        if best is None or jaccard.max() > best.jaccard:
            best = SceneThreshold(name, float(thresholds[_middle_of_first_best(jaccard)]), float(jaccard.max()))
    return best


def _middle_of_first_best(scores: np.ndarray) -> int:
    first = int(scores.argmax())
    behind = np.flatnonzero(scores[first:] != scores[first])
    last = first + (int(behind[0]) if len(behind) else len(scores) - first) - 1
    return (first + last) // 2


def unknown_threshold(mosaic: Iterable[np.ndarray], *, rules: SearchRules = SEARCH) -> SceneThreshold:
    """Returns the published rule for a scene without truth, from ``rules.unknown_index`` of all of its images."""
    low, otherwise = rules.unknown_thresholds
    is_low = False
    for values in mosaic:
        with np.errstate(invalid="ignore"):
            is_low = is_low or bool((values < low).any())
    return SceneThreshold(rules.unknown_index, low if is_low else otherwise)


def searched_water(values: np.ndarray, below: float, *, rules: SearchRules = SEARCH, scaled: bool = True) -> Water:
    """Returns the water of one image: where the index values H×W lie ``below`` the scene's threshold.

    8-connected pieces are told apart by their number of pixels. With ``scaled``, the published numbers are for images
    of the published size and follow this one's (lengths by the root of areas). Outlines are exact ones of pixels, those
    of slow water moved outwards by the buffer and cut off at the image's border.
    """
    import shapely

    height, width = values.shape
    factor = area_factor((height, width), rules.reference) if scaled else 1.0
    with np.errstate(invalid="ignore"):
        labels, count = label_components(values < np.float64(below))  # as the search compares
    if not count:
        return Water()
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    is_fast, is_slow = sizes > factor * rules.fast_pixels, sizes >= factor * rules.slow_pixels
    is_slow &= ~is_fast
    is_fast[0] = is_slow[0] = False
    grown = cleaned(outlines(is_slow[labels]), buffer=math.sqrt(factor) * rules.slow_buffer)
    whole = shapely.box(0, 0, width, height)
    return Water(outlines(is_fast[labels]), areas(shapely.intersection(np.array(grown, dtype=object), whole)))
