"""How polygons that were drawn beside their image are brought onto it: the shift, and the record that is moved by it.

Of all shifts within reach, the best is that whose areas tell the image's bands apart most: the share of the bands'
variance that lies between the classes is the largest (the criterion of Otsu 1979, for several bands and classes that
may overlap). Knows nothing about folds and where results are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from pydantic import Field

from maskloom.config import Config
from maskloom.data.mask_coding import MaskCoding
from maskloom.data.record_images import read_record_image
from maskloom.data.truth import read_truth
from maskloom.records import IGNORE, Record, Shapes, Task

LARGEST = 2**24
"""Pixels of the largest image that is aligned: all of it is held in memory, with its labels."""
STEP = 0.5
"""Pixels beside the best whole shift that are tried, too."""
SAMPLED = 2**17
"""Pixels by which shifts are compared, about; larger images are looked at on a grid."""


class AlignmentSettings(Config):
    """How far polygons may be moved onto the image that they belong to, before it is learnt from."""

    maximum_shift: float = Field(default=4.0, ge=1, le=16)
    """Pixels along each axis. What would have to be moved as far as that or further stays where it is."""
    minimum_gain: float = Field(default=0.005, ge=0, le=1)
    """So much more of the bands' variance must lie between the classes, else polygons stay where they are."""

    @property
    def reach(self) -> int:
        """Whole pixels of the search, along each axis."""
        return math.ceil(self.maximum_shift)


@dataclass(frozen=True, kw_only=True, slots=True)
class Alignment:
    """How polygons lie against their image, in pixels of it, and the share of variance between classes, 0…1."""

    x: float
    """To the right, by which they are moved; 0 where they stay."""
    y: float
    """Down."""
    before: float
    """The share as the polygons lie."""
    best: float
    """The largest share of all shifts."""

    @property
    def is_moved(self) -> bool:
        """Whether the polygons are moved at all."""
        return (self.x, self.y) != (0.0, 0.0)

    def to_json(self) -> dict[str, float]:
        """Returns plain JSON values."""
        return {"x": self.x, "y": self.y, "before": self.before, "best": self.best}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Alignment:
        """Returns what ``to_json`` gave."""
        return cls(**{name: float(values[name]) for name in ("x", "y", "before", "best")})


def can_be_aligned(record: Record, settings: AlignmentSettings) -> bool:
    """Returns whether the record's truth is polygons, and its image neither too large nor too small for the search."""
    height, width = record.size
    return isinstance(record.truth, Shapes) and height * width <= LARGEST and min(height, width) > 4 * settings.reach


def find_alignment(record: Record, task: Task, coding: MaskCoding, settings: AlignmentSettings) -> Alignment:
    """Returns how far the record's polygons are to be moved; nowhere where that says little more about the image.

    Pixels that the image's files do not know count for nothing. Raises ``BadFile`` for an image that cannot be read.
    """
    search = _Search(record, task, coding, settings)
    whole = range(-settings.reach, settings.reach + 1)
    shares = search.shares(product(whole, whole))
    x, y = _best(shares)
    shares |= search.shares((x + right * STEP, y + down * STEP) for right, down in product((-1, 0, 1), repeat=2))
    best, before = _best(shares), shares[0.0, 0.0]
    is_believed = shares[best] - before >= settings.minimum_gain and max(map(abs, best)) < settings.maximum_shift
    x, y = best if is_believed else (0.0, 0.0)
    return Alignment(x=float(x), y=float(y), before=round(before, 6), best=round(shares[best], 6))


class _Search:
    """One record's bands, and its classes moved by any shift, at the pixels that all shifts see."""

    def __init__(self, record: Record, task: Task, coding: MaskCoding, settings: AlignmentSettings) -> None:
        self._record, self._task, self._coding, self._settings = record, task, coding, settings
        height, width = record.size
        self._stride = max(round((height * width / SAMPLED) ** 0.5), 1)
        labels = read_truth(record, task, coding)
        known = (labels != IGNORE).reshape(-1, height, width).all(axis=0)
        self._known = self._inner(known)
        self._bands = standardised(_logarithms(self._inner(read_record_image(record))[self._known]))

    def shares(self, shifts: Iterable[tuple[float, float]]) -> dict[tuple[float, float], float]:
        """Returns the share of variance between classes by shift (to the right, down), within what is allowed.

        Polygons are painted anew for each part of a pixel; whole pixels are moved afterwards.
        """
        found: dict[tuple[float, float], float] = {}
        by_phase: dict[tuple[float, float], list[tuple[int, int]]] = {}
        for x, y in shifts:
            if max(abs(x), abs(y)) <= self._settings.maximum_shift:
                right, down = math.floor(x), math.floor(y)
                by_phase.setdefault((x - right, y - down), []).append((right, down))
        for phase, places in by_phase.items():
            maps = _maps(read_truth(moved(self._record, *phase), self._task, self._coding), self._task)
            for right, down in places:
                seen = np.stack([self._inner(plane, right, down)[self._known] for plane in maps], axis=-1)
                found[right + phase[0], down + phase[1]] = share_between(self._bands, seen)
        return found

    def _inner(self, plane: np.ndarray, right: int = 0, down: int = 0) -> np.ndarray:
        """Returns what lies so far inside the image that no shift brings in what is not known.

        The plane is moved to the right and down first.
        """
        height, width = plane.shape[:2]
        edge, stride = self._settings.reach + 1, self._stride
        return plane[edge - down : height - edge - down : stride, edge - right : width - edge - right : stride]


def _best(shares: Mapping[tuple[float, float], float]) -> tuple[float, float]:
    """Returns the shift with the largest share; of equal ones the shortest."""
    return max(shares, key=lambda shift: (shares[shift], -abs(shift[0]) - abs(shift[1])))


def moved(record: Record, x: float, y: float) -> Record:
    """Returns the record with its polygons moved to the right and down by so many pixels.

    What they leave behind at a border is known to nobody: there labels are ``IGNORE``.
    """
    if (x, y) == (0.0, 0.0) or not isinstance(record.truth, Shapes):
        return record
    import shapely
    from shapely.affinity import translate

    height, width = record.size
    known = (max(x, 0.0), max(y, 0.0), width + min(x, 0.0), height + min(y, 0.0))
    wkt = tuple((label, translate(shapely.from_wkt(text), x, y).wkt) for label, text in record.truth.wkt)
    return replace(record, truth=Shapes(wkt=wkt, known=known))


def standardised(values: np.ndarray) -> np.ndarray:
    """Returns bands P×B with mean 0 and variance 1, float32, without those that have no variance."""
    centred = values - values.mean(axis=0, keepdims=True) if len(values) else values
    spread = centred.std(axis=0) if len(values) else np.zeros(values.shape[1])
    return (centred[:, spread > 0] / spread[spread > 0]).astype(np.float32)


def share_between(bands: np.ndarray, maps: np.ndarray) -> float:
    """Returns the share (0…1) of the variance of standardised bands P×B that lies between classes, bool P×C.

    It is what a linear model of the classes explains, all bands counting alike.
    """
    if not bands.size or not maps.any():
        return 0.0
    given = maps.astype(np.float32)
    sums = given.sum(axis=0, dtype=np.float64)
    common = (given.T @ bands).astype(np.float64)
    spread = (given.T @ given).astype(np.float64) - np.outer(sums, sums) / len(given)
    return float(np.sum(common * (np.linalg.pinv(spread, rcond=1e-9, hermitian=True) @ common)) / bands.size)


def _logarithms(values: np.ndarray) -> np.ndarray:
    """Returns values P×B as float64; logarithms of what is never negative, as light is measured in ratios."""
    found = values.astype(np.float64)
    return np.log1p(found) if found.min(initial=0) >= 0 else found


def _maps(labels: np.ndarray, task: Task) -> list[np.ndarray]:
    """Returns a bool map H×W for each class."""
    if task.kind == "multilabel":
        return [plane == 1 for plane in labels]
    return [labels == number for number in range(1 if task.kind == "binary" else 0, max(task.num_maps, 2))]
