"""Which of several weights each class takes: those that score best in the metric, on records they never saw.

Weights are fitted by the log loss, which pixels can be sampled for, but masks are judged by the metric at fitted
thresholds. So every candidate is scored as the ensemble will be: each part of the records with weights and thresholds
that were fitted on the other parts. What a record says about any threshold is added up, so memory does not grow with
records. Knows nothing about how weights are fitted and where maps come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from maskloom.ensembling.thresholds import HALF, NUM_VALUES, Histogram, best_threshold, counts_at_all


class WeightChoice:
    """What candidates score in each class at each threshold, by part; both metrics are a sum divided by a sum."""

    def __init__(
        self, num_candidates: int, num_classes: int, metric: Literal["dice", "iou"], *, threshold: int | None = None
    ) -> None:
        """``threshold``: that of the 8-bit value, where it is stated; None: fitted, as the ensemble's are."""
        self._shape = num_candidates, num_classes, 2, NUM_VALUES
        self._metric, self._threshold = metric, threshold
        self._sums: dict[int, NDArray[np.float64]] = {}
        self._occurs: dict[int, NDArray[np.bool_]] = {}

    def add(self, part: int, found: Sequence[Histogram]) -> None:
        """Adds one record of a part: of each candidate the histograms of its map, int64 C×2×256."""
        sums = self._sums.setdefault(part, np.zeros(self._shape))
        occurs = self._occurs.setdefault(part, np.zeros(self._shape[1], bool))
        for number, histogram in enumerate(found):
            tp, fp, fn = counts_at_all(histogram)
            if self._metric == "iou":
                sums[number, :, 0] += tp
                sums[number, :, 1] += tp + fp + fn
            else:
                whole = 2 * tp + fp + fn
                sums[number, :, 0] += np.where(whole > 0, 2 * tp / np.maximum(whole, 1), 1)
                sums[number, :, 1] += 1
            occurs |= histogram[:, 1].any(axis=-1)

    def best(self) -> list[int]:
        """Returns the number of each class's candidate: the best one, of equally good ones the first."""
        candidates, classes = self._shape[:2]
        return [int(np.argmax([self._honest(one, each) for one in range(candidates)])) for each in range(classes)]

    def _honest(self, candidate: int, number: int) -> float:
        """Returns a candidate's score in a class, every part cut where the other parts score best."""
        if len(self._sums) < 2:  # nothing can be judged on what it was not fitted on
            return 0.0
        total = np.zeros(2)
        for part, sums in self._sums.items():
            others = [self._sums[other][candidate, number] for other in self._sums if other != part]
            occurs = any(self._occurs[other][number] for other in self._sums if other != part)
            total += sums[candidate, number, :, self._cut(np.sum(others, axis=0), occurs)]
        return float(_ratio(total))

    def _cut(self, sums: NDArray[np.float64], occurs: bool) -> int:
        """Returns the threshold at which these sums score best."""
        if self._threshold is not None:
            return self._threshold
        return best_threshold(_ratio(sums)) if occurs else HALF


def _ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the score 256, or one, of sums 2×256 or 2; nothing found of nothing is 1."""
    return np.asarray(np.where(sums[1] > 0, sums[0] / np.maximum(sums[1], 1), 1.0))
