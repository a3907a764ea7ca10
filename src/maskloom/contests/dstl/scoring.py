"""The metric of the Dstl challenge: the mean over classes of the Jaccard index of all areas of a class.

Areas that agree and differ are summed over images before the index is taken. They can be counted on polygons, exactly
and in any unit, or on rasters, which is fast; where every outline runs along the edges of pixels both are equal. Knows
nothing about files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from maskloom.contests.dstl.truth import CLASSES
from maskloom.encodings.outlines import repaired
from maskloom.records import IGNORE

if TYPE_CHECKING:
    from shapely import Polygon

AreaArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Areas:
    """True positive, false positive and false negative areas per class; float64 of one entry per class."""

    tp: AreaArray
    fp: AreaArray
    fn: AreaArray

    def __post_init__(self) -> None:
        shapes = {array.shape for array in (self.tp, self.fp, self.fn)}
        if len(shapes) != 1 or self.tp.ndim != 1:
            raise ValueError(f"expected three arrays of one entry per class, got shapes {sorted(shapes)}")

    def __add__(self, other: Areas) -> Areas:
        """Returns the areas of both parts together."""
        if self.tp.shape != other.tp.shape:
            raise ValueError(f"cannot add areas of {len(self.tp)} and {len(other.tp)} classes")
        return Areas(tp=self.tp + other.tp, fp=self.fp + other.fp, fn=self.fn + other.fn)

    @staticmethod
    def zero(num_classes: int = len(CLASSES)) -> Areas:
        """Returns the areas of nothing: the neutral element of ``+``."""
        return Areas(tp=np.zeros(num_classes), fp=np.zeros(num_classes), fn=np.zeros(num_classes))


@dataclass(frozen=True, kw_only=True, slots=True)
class DstlScore:
    """``mean``: over the classes that occur. ``jaccard``: by class, of those. ``absent``: the classes in neither truth
    nor prediction, which count nowhere (on the contest's own test set there was none)."""

    mean: float
    jaccard: Mapping[str, float]
    absent: tuple[str, ...]


def score(areas: Areas, classes: Sequence[str] = CLASSES) -> DstlScore:
    """Returns the contest's score of areas that were summed over images; nothing at all on either side scores 1.

    >>> score(Areas(tp=np.array([1.0, 0]), fp=np.array([1.0, 0]), fn=np.array([2.0, 0])), ("a", "b"))
    DstlScore(mean=0.25, jaccard={'a': 0.25}, absent=('b',))
    """
    if len(classes) != len(areas.tp):
        raise ValueError(f"expected areas of {len(classes)} classes, got {len(areas.tp)}")
    united = areas.tp + areas.fp + areas.fn
    jaccard = {name: float(tp / whole) for name, tp, whole in zip(classes, areas.tp, united, strict=True) if whole > 0}
    absent = tuple(name for name in classes if name not in jaccard)
    return DstlScore(mean=float(np.mean(list(jaccard.values()))) if jaccard else 1.0, jaccard=jaccard, absent=absent)


def polygon_areas(
    truth: Mapping[int, Sequence[Polygon]],
    predicted: Mapping[int, Sequence[Polygon]],
    num_classes: int = len(CLASSES),
) -> Areas:
    """Returns the areas of one image from polygons by label, both in one unit (the contest's: grid coordinates).

    Polygons of one side that overlap or cross themselves are repaired first.
    """
    pairs = [_of_class(truth.get(label, ()), predicted.get(label, ())) for label in range(num_classes)]
    tp, fp, fn = np.array(pairs, np.float64).reshape(-1, 3).T
    return Areas(tp=tp, fp=fp, fn=fn)


def _of_class(truth: Sequence[Polygon], predicted: Sequence[Polygon]) -> tuple[float, float, float]:
    import shapely

    true, found = (np.array(repaired(side), dtype=object) for side in (truth, predicted))
    # Polygons of one side do not overlap each other, so the parts that pairs share add up to the whole intersection.
    one, other = shapely.STRtree(true).query(found, predicate="intersects")
    tp = float(shapely.area(shapely.intersection(found[one], true[other])).sum())
    return tp, max(float(shapely.area(found).sum()) - tp, 0.0), max(float(shapely.area(true).sum()) - tp, 0.0)


def raster_areas(truth: np.ndarray, predicted: np.ndarray, *, pixel_area: float = 1.0) -> Areas:
    """Returns the areas of one image from maps C×H×W of 0 and 1 (bool or uint8), in units of ``pixel_area``.

    Pixels whose truth is ``IGNORE`` count nowhere.
    """
    if truth.shape != predicted.shape or truth.ndim != 3:
        raise ValueError(f"expected two arrays C×H×W of one shape, got {truth.shape} and {predicted.shape}")
    counts = [_of_maps(*maps) for maps in zip(truth, predicted, strict=True)]
    tp, fp, fn = np.array(counts, np.float64).reshape(-1, 3).T * pixel_area
    return Areas(tp=tp, fp=fp, fn=fn)


def _of_maps(truth: np.ndarray, predicted: np.ndarray) -> tuple[int, int, int]:
    is_true, is_found = truth == 1, predicted != 0
    if truth.dtype != bool:
        is_found &= truth != IGNORE
    tp = int(np.count_nonzero(is_true & is_found))
    return tp, int(np.count_nonzero(is_found)) - tp, int(np.count_nonzero(is_true)) - tp
