"""Thresholds on 8-bit probabilities: exact histograms, the score at all 256 thresholds at once, the best one.

A histogram per image, class and truth holds everything that any threshold can count, so the curve of a metric over
all thresholds costs 256 additions per image instead of 256 passes over its pixels. Knows nothing about files and
where the maps come from; fit and score on different records (see ``crossfit``).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from maskloom.records import IGNORE, Task

Histogram = NDArray[np.int64]
"""C×2×256: pixels per class, truth (0 no, 1 yes) and 8-bit value."""

HALF = 128
"""The 8-bit value of probability 0.5; preferred wherever it is as good as any."""
NUM_VALUES = 256
_EQUAL = 1e-12
"""Scores closer than this are equal: sums of the same counts in another order."""


def histograms(values: np.ndarray, labels: np.ndarray, task: Task) -> Histogram:
    """Returns the pixels of one image per class, truth and 8-bit value: int64 C×2×256; ignored pixels count nowhere.

    ``values`` is uint8 C×H×W; ``labels`` uint8 H×W (binary, multiclass: each class against the rest) or C×H×W
    (multilabel), with ``IGNORE``.
    """
    _check(values, task)
    if labels.shape[-2:] != values.shape[1:]:
        raise ValueError(f"maps and labels differ in size: {values.shape[1:]} and {labels.shape[-2:]}")
    return np.stack(
        [
            _histogram(
                layer, labels[index] if task.kind == "multilabel" else labels, index if task.kind == "multiclass" else 1
            )
            for index, layer in enumerate(values)
        ]
    )


def _histogram(values: np.ndarray, labels: np.ndarray, positive: int) -> Histogram:
    """Returns 2×256 counts: one pass over pixels coded as value + 256 · (0 no, 1 yes, 2 ignored)."""
    kind = np.zeros(NUM_VALUES, np.uint16)
    kind[positive], kind[IGNORE] = NUM_VALUES, 2 * NUM_VALUES
    codes = np.take(kind, labels)
    codes += values
    counts = np.bincount(codes.ravel(), minlength=3 * NUM_VALUES)
    return counts.reshape(3, NUM_VALUES)[:2].astype(np.int64)


def counts_at_all(histogram: Histogram) -> tuple[Histogram, Histogram, Histogram]:
    """Returns (tp, fp, fn) at every threshold t (value ≥ t is positive): each …×C×256 from …×C×2×256."""
    above = histogram[..., ::-1].cumsum(axis=-1)[..., ::-1]
    false_positives, true_positives = above[..., 0, :], above[..., 1, :]
    return true_positives, false_positives, true_positives[..., :1] - true_positives


def curve(records: Sequence[Histogram], metric: Literal["dice", "iou"], task: Task) -> NDArray[np.float64]:
    """Returns the score of every class at every threshold: float64 C×256.

    "dice": mean over images of each image's Dice; "iou": IoU of the counts summed over images. Two empty masks
    score 1.
    """
    total = np.zeros((task.num_maps, NUM_VALUES))
    if metric == "iou":
        tp, fp, fn = counts_at_all(_summed(records))
        return _ratio(tp, tp + fp + fn)
    for record in records:
        tp, fp, fn = counts_at_all(record)
        total += _ratio(2 * tp, 2 * tp + fp + fn)
    return total / max(len(records), 1)


def _summed(records: Sequence[Histogram]) -> Histogram:
    total: Histogram = reduce(np.add, records)  # never all of them in one array
    return total


def _ratio(part: Histogram, whole: Histogram) -> NDArray[np.float64]:
    return np.where(whole > 0, part / np.maximum(whole, 1), 1.0)


def fit_thresholds(records: Sequence[Histogram], metric: Literal["dice", "iou"], task: Task) -> list[int]:
    """Returns the best threshold of each class, 0…255, on the 8-bit value (value ≥ threshold is positive).

    Where several score alike: 128 if it is among them, else the middle of the longest run of such thresholds (of
    runs equally long, the one nearest to 128). Without records, or for a class that occurs in none of them, 128.
    """
    if not records:
        return [HALF] * task.num_maps
    occurs = _summed(records)[:, 1].sum(axis=-1) > 0
    scores = curve(records, metric, task)
    return [best_threshold(score) if there else HALF for score, there in zip(scores, occurs, strict=True)]


def best_threshold(scores: NDArray[np.float64]) -> int:
    """Returns the best threshold of one class from its 256 scores, ties broken as ``fit_thresholds`` says."""
    best = np.flatnonzero(scores >= scores.max() - _EQUAL)
    if HALF in best:
        return HALF
    runs = np.split(best, np.flatnonzero(np.diff(best) > 1) + 1)

    def middle(run: NDArray[np.intp]) -> int:
        twice = int(run[0] + run[-1])  # of an even number, the one nearer to 128
        return twice // 2 if twice // 2 >= HALF else -(-twice // 2)

    return middle(min(runs, key=lambda run: (-len(run), abs(middle(run) - HALF))))


def decide(values: np.ndarray, thresholds: Sequence[int], task: Task) -> np.ndarray:
    """Returns uint8 labels from 8-bit maps C×H×W.

    Binary: H×W of 0, 1; multilabel: C×H×W of 0, 1, each map positive where value ≥ its threshold. Multiclass: H×W,
    the class with the largest value (the first of equal ones); thresholds are not used.
    """
    _check(values, task)
    if task.kind == "multiclass":
        return _largest(values)
    if len(thresholds) != task.num_maps:
        raise ValueError(f"expected {task.num_maps} threshold(s), got {len(thresholds)}")
    if task.kind == "binary":
        foreground: np.ndarray = values[0] >= thresholds[0]
        return foreground.view(np.uint8)
    positive: np.ndarray = values >= np.asarray(thresholds, np.int64)[:, None, None]
    return positive.view(np.uint8)


def _largest(values: np.ndarray) -> np.ndarray:
    """Returns the argmax over the first axis; layer by layer, several times as fast as ``numpy.argmax``."""
    best, labels = values[0].copy(), np.zeros(values.shape[1:], np.uint8)
    for index, layer in enumerate(values[1:], start=1):
        np.copyto(labels, np.uint8(index), where=layer > best)
        np.maximum(best, layer, out=best)
    return labels


def _check(values: np.ndarray, task: Task) -> None:
    if values.ndim != 3 or values.dtype != np.uint8 or values.shape[0] != task.num_maps:
        raise ValueError(f"expected uint8 maps {task.num_maps}×H×W, got {values.dtype} {values.shape}")
