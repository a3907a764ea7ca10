"""How well the outlines of two mask sets agree: the boundary F-score of ``boundary_score`` over all images.

Knows nothing about where masks come from and what their values mean: both are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from maskloom.boundary_score import BoundaryCounts, Tolerance, boundary_counts, f_score, mean_f_score, precision, recall
from maskloom.errors import UserError
from maskloom.metrics import ScoreArray
from maskloom.records import IGNORE, Task
from maskloom.runtime import num_cores

_MOST_CLASSES = 255  # labels of 8 bits, less the ignored one


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundaryScores:
    """F-scores of outlines per class, NaN for a class that has an outline on no side of any image."""

    tolerance: Tolerance
    mean: tuple[float, ...]
    """The mean over images, as published scores are; each over the images where the class has an outline."""
    total: tuple[float, ...]
    """Of the counts summed over images, in which long outlines weigh more; so are ``precision`` and ``recall``."""
    precision: tuple[float, ...]
    recall: tuple[float, ...]

    @property
    def score(self) -> float:
        """The mean of ``mean`` over the classes that have an outline, NaN where none has."""
        return _known_mean(self.mean)

    def to_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """Returns plain JSON values, null for NaN; ``classes`` are the names of the classes in their order."""
        columns = {"mean": self.mean, "total": self.total, "precision": self.precision, "recall": self.recall}
        return {
            "tolerance": str(self.tolerance),
            "mean": _plain(self.score),
            "total": _plain(_known_mean(self.total)),
            "per_class": {
                name: {key: _plain(values[place]) for key, values in columns.items()}
                for place, name in enumerate(classes)
            },
        }

    def line(self) -> str:
        """Returns what the score is, as a line for a terminal."""
        return (
            f"Boundary: F-score of outlines, {self.tolerance.text()} apart at most, mean over images; "
            f"of all outlines together {_known_mean(self.total):.4f}"
        )


def compare_boundaries(
    names: Sequence[str],
    read: Callable[[str], tuple[np.ndarray, np.ndarray]],
    values: Sequence[int],
    *,
    ignore: int | None,
    tolerance: Tolerance,
) -> BoundaryScores:
    """Returns the scores over the images called ``names``, of which ``read`` gives stored values, truth first.

    ``values`` are the stored values that are classes, in ascending order; none: everything above 0 is the one class.
    Pixels whose truth is ``ignore`` are as if they were not there. Raises ``UserError`` for more than 255 classes.
    """
    if len(values) > _MOST_CLASSES:
        raise UserError(
            f"boundary: expected at most {_MOST_CLASSES} classes, found {len(values)} values; if they are instance "
            "ids, --foreground takes them as one class"
        )
    task = Task(kind="multiclass" if values else "binary", classes=tuple(map(str, values or [1])))
    ascending = np.asarray(values, np.int64)

    def labels(stored: np.ndarray) -> np.ndarray:
        found = np.searchsorted(ascending, stored) if values else stored > 0
        return np.asarray(found, np.uint8)

    def count(name: str) -> BoundaryCounts:
        truth, prediction = read(name)
        true_labels = labels(truth)
        if ignore is not None:
            true_labels[truth == ignore] = IGNORE
        return boundary_counts(labels(prediction), true_labels, task, tolerance)

    with ThreadPoolExecutor(num_cores()) as pool:
        images = list(pool.map(count, names))
    whole = reduce(add, images)
    scores = (mean_f_score(images), f_score(whole), precision(whole), recall(whole))
    mean, total, shares, found = (tuple(each.tolist()) for each in scores)
    return BoundaryScores(tolerance=tolerance, mean=mean, total=total, precision=shares, recall=found)


def _known_mean(scores: Sequence[float] | ScoreArray) -> float:
    known = [float(score) for score in scores if not math.isnan(score)]
    return float(np.mean(known)) if known else math.nan


def _plain(score: float) -> float | None:
    return None if math.isnan(score) else score
