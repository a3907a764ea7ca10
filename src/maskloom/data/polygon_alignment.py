"""How polygons that were drawn beside their image are brought onto it: the shift, and the record that is moved by it.

Of all shifts within reach, the best is that whose areas tell the image's bands apart most: the share of the bands'
variance that lies between the classes is the largest (the criterion of Otsu 1979, for several bands and classes that
may overlap). Knows nothing about folds and where results are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from pydantic import Field

from maskloom.config import Config
from maskloom.data.mask_coding import MaskCoding
from maskloom.data.record_images import read_record_image
from maskloom.data.truth import read_truth
from maskloom.records import Record, Shapes, Task

LARGEST = 2**24
"""Pixels of the largest image that is aligned: all of it is held in memory, with its labels."""
STEP = 0.5
"""Pixels between the shifts that are tried."""
PHASES = (0.0, STEP)
"""Parts of a pixel by which polygons are moved before they are painted; whole pixels are moved after it."""
SAMPLED = 2**17
"""Pixels by which shifts are compared, about; larger images are looked at on a grid."""


class AlignmentSettings(Config):
    """How far polygons may be moved onto the image that they belong to, before it is learnt from."""

    maximum_shift: float = Field(default=4.0, ge=1, le=32)
    """Pixels along each axis. What would have to be moved as far as that or further stays where it is."""
    minimum_gain: float = Field(default=0.005, ge=0, le=1)
    """So much more of the bands' variance must lie between the classes, else polygons stay where they are."""


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


def can_be_aligned(record: Record) -> bool:
    """Returns whether the record's truth is polygons and its image small enough."""
    return isinstance(record.truth, Shapes) and record.size[0] * record.size[1] <= LARGEST


def find_alignment(record: Record, task: Task, coding: MaskCoding, settings: AlignmentSettings) -> Alignment:
    """Returns how far the record's polygons are to be moved; nowhere where that says little more about the image.

    Raises ``BadFile`` for an image that cannot be read.
    """
    reach = int(np.ceil(settings.maximum_shift))
    bands = _bands(read_record_image(record))
    height, width = record.size
    if min(height, width) <= 4 * reach:
        return Alignment(x=0.0, y=0.0, before=0.0, best=0.0)
    stride = max(round((height * width / SAMPLED) ** 0.5), 1)
    shares: dict[tuple[float, float], float] = {}
    for x_phase, y_phase in product(PHASES, PHASES):
        labels = read_truth(moved(record, x_phase, y_phase), task, coding)
        maps = _maps(labels, task)
        for right, down in product(range(-reach, reach + 1), repeat=2):
            shift = (right + x_phase, down + y_phase)
            if max(map(abs, shift)) <= settings.maximum_shift:
                seen = [_inner(plane, reach, stride, right, down) for plane in maps]
                shares[shift] = share_between(_inner(bands, reach, stride), np.stack(seen, axis=-1))
    best = max(shares, key=lambda shift: (shares[shift], -abs(shift[0]) - abs(shift[1])))
    before = shares[0.0, 0.0]
    is_believed = shares[best] - before >= settings.minimum_gain and max(map(abs, best)) < settings.maximum_shift
    x, y = best if is_believed else (0.0, 0.0)
    return Alignment(x=x, y=y, before=round(before, 6), best=round(shares[best], 6))


def moved(record: Record, x: float, y: float) -> Record:
    """Returns the record with its polygons moved to the right and down by so many pixels."""
    if (x, y) == (0.0, 0.0) or not isinstance(record.truth, Shapes):
        return record
    import shapely
    from shapely.affinity import translate

    wkt = tuple((label, translate(shapely.from_wkt(text), x, y).wkt) for label, text in record.truth.wkt)
    return replace(record, truth=Shapes(wkt=wkt))


def share_between(bands: np.ndarray, maps: np.ndarray) -> float:
    """Returns the share (0…1) of the variance of bands H×W×B that lies between classes, given as bool maps H×W×C.

    It is what a linear model of the classes explains, all bands counting alike; bands without variance say nothing.
    """
    values = bands.reshape(-1, bands.shape[-1]).astype(np.float64)
    values = values - values.mean(axis=0)
    spread = values.std(axis=0)
    values = values[:, spread > 0] / spread[spread > 0]
    given = maps.reshape(-1, maps.shape[-1]).astype(np.float64)
    given = given - given.mean(axis=0)
    if not values.size or not given.any():
        return 0.0
    common = given.T @ values
    explained = np.sum(common * (np.linalg.pinv(given.T @ given, hermitian=True) @ common))
    return float(explained / np.sum(values**2))


def _bands(image: np.ndarray) -> np.ndarray:
    """Returns the bands H×W×B as float32; logarithms of what is never negative, as light is measured in ratios."""
    values = image.astype(np.float32)
    return np.log1p(values) if values.min() >= 0 else values


def _maps(labels: np.ndarray, task: Task) -> list[np.ndarray]:
    """Returns a bool map H×W for each class."""
    if task.kind == "multilabel":
        return [plane == 1 for plane in labels]
    return [labels == number for number in range(1 if task.kind == "binary" else 0, max(task.num_maps, 2))]


def _inner(plane: np.ndarray, reach: int, stride: int, right: int = 0, down: int = 0) -> np.ndarray:
    """Returns what lies so far inside an image that no shift within reach brings in what is not known.

    The plane is moved to the right and down first.
    """
    height, width = plane.shape[:2]
    edge = reach + 1
    return plane[edge - down : height - edge - down : stride, edge - right : width - edge - right : stride]
