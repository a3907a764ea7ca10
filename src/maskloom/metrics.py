"""Exact pixel counts that add up over tiles, images and folds, and the scores made from them.

Counts are whole numbers, so a sum over parts equals the count of the whole, in any order. Knows nothing about
probabilities and thresholds: both sides are decided labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from maskloom.records import IGNORE, Task

Metric = Literal["dice", "iou"]

CountArray = NDArray[np.int64]
ScoreArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Pixels per class: true positives, false positives, false negatives; each int64 of one entry per class.

    Binary tasks have one entry (the foreground), multiclass one per label, multilabel one per map.
    """

    tp: CountArray
    fp: CountArray
    fn: CountArray

    def __post_init__(self) -> None:
        shapes = {array.shape for array in (self.tp, self.fp, self.fn)}
        if len(shapes) != 1 or self.tp.ndim != 1:
            raise ValueError(f"expected three arrays of one entry per class, got shapes {sorted(shapes)}")
        if any(array.dtype != np.int64 for array in (self.tp, self.fp, self.fn)):
            raise ValueError(f"expected int64 counts, got {self.tp.dtype}, {self.fp.dtype}, {self.fn.dtype}")

    def __add__(self, other: Counts) -> Counts:
        """Returns the counts of both parts together."""
        if self.tp.shape != other.tp.shape:
            raise ValueError(f"cannot add counts of {len(self.tp)} and {len(other.tp)} classes")
        return Counts(tp=self.tp + other.tp, fp=self.fp + other.fp, fn=self.fn + other.fn)

    def __eq__(self, other: object) -> bool:
        """Returns whether all counts agree."""
        if not isinstance(other, Counts):
            return NotImplemented
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in self.__slots__)

    __hash__ = None  # type: ignore[assignment]

    @staticmethod
    def zero(num_classes: int) -> Counts:
        """Returns the counts of nothing: the neutral element of ``+``."""
        return Counts(**{name: np.zeros(num_classes, np.int64) for name in ("tp", "fp", "fn")})

    def to_json(self) -> dict[str, list[int]]:
        """Returns the counts as plain lists."""
        return {"tp": self.tp.tolist(), "fp": self.fp.tolist(), "fn": self.fn.tolist()}

    @staticmethod
    def from_json(values: dict[str, list[int]]) -> Counts:
        """Returns the counts that ``to_json`` wrote."""
        return Counts(**{name: np.array(values[name], np.int64) for name in ("tp", "fp", "fn")})


@dataclass(frozen=True, kw_only=True, slots=True)
class Confusion:
    """Pixels by true and predicted label: int64 n×n, rows the truth, columns the prediction."""

    pixels: CountArray

    def __post_init__(self) -> None:
        if self.pixels.ndim != 2 or self.pixels.shape[0] != self.pixels.shape[1]:
            raise ValueError(f"expected as many rows as columns, got {self.pixels.shape}")
        if self.pixels.dtype != np.int64:
            raise ValueError(f"expected int64 counts, got {self.pixels.dtype}")

    def __add__(self, other: Confusion) -> Confusion:
        """Returns the confusion of both parts together."""
        if self.pixels.shape != other.pixels.shape:
            raise ValueError(f"cannot add confusions of {len(self.pixels)} and {len(other.pixels)} labels")
        return Confusion(pixels=self.pixels + other.pixels)

    def __eq__(self, other: object) -> bool:
        """Returns whether all counts agree."""
        return np.array_equal(self.pixels, other.pixels) if isinstance(other, Confusion) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    @staticmethod
    def zero(num_labels: int) -> Confusion:
        """Returns the confusion of nothing: the neutral element of ``+``."""
        return Confusion(pixels=np.zeros((num_labels, num_labels), np.int64))

    def counts(self) -> Counts:
        """Returns the counts of every label against the rest."""
        tp = np.diagonal(self.pixels).copy()
        return Counts(tp=tp, fp=self.pixels.sum(axis=0) - tp, fn=self.pixels.sum(axis=1) - tp)

    def shares(self) -> ScoreArray:
        """Returns the share of each true label's pixels that each prediction got, float64 n×n; NaN without pixels."""
        total = self.pixels.sum(axis=1, keepdims=True)
        shares: ScoreArray = np.full(self.pixels.shape, np.nan)
        np.divide(self.pixels, total, out=shares, where=total > 0)
        return shares


def confusions(prediction: np.ndarray, truth: np.ndarray, task: Task) -> list[Confusion]:
    """Returns what was taken for what in one image; pixels whose truth is ``IGNORE`` count nowhere.

    Multiclass: one confusion of all classes. Else one per map, of two labels: 0 (not there) and 1 (there). Labels as
    for ``from_labels``, and the same errors.
    """
    _check_labels(prediction, truth, task)
    if task.kind == "multiclass":
        return [_multiclass_confusion(prediction, truth, task.num_maps)]
    layers = ((prediction, truth),) if task.kind == "binary" else zip(prediction, truth, strict=True)
    found = []
    for predicted, true in layers:
        tp, fp, fn = _map_counts(predicted, true)
        tn = int(np.count_nonzero(true == 0)) - fp
        found.append(Confusion(pixels=np.array([[tn, fp], [fn, tp]], np.int64)))
    return found


def from_labels(prediction: np.ndarray, truth: np.ndarray, task: Task) -> Counts:
    """Returns the counts of one image; pixels whose truth is ``IGNORE`` count nowhere.

    Both are label arrays of one shape: H×W for binary (0, 1) and multiclass (0…n-1), C×H×W of 0, 1 for multilabel.
    Raises ``ValueError`` for other shapes and values; a prediction has no ``IGNORE`` where the truth has a label.
    """
    return counts_of(confusions(prediction, truth, task), task)


def counts_of(found: Sequence[Confusion], task: Task) -> Counts:
    """Returns the counts of every class from what ``confusions`` found."""
    if task.kind == "multiclass":
        (whole,) = found
        return whole.counts()
    pixels = np.stack([each.pixels for each in found])
    return Counts(tp=pixels[:, 1, 1], fp=pixels[:, 0, 1], fn=pixels[:, 1, 0])


def _check_labels(prediction: np.ndarray, truth: np.ndarray, task: Task) -> None:
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction and truth differ in shape: {prediction.shape} and {truth.shape}")
    expected = 3 if task.kind == "multilabel" else 2
    if truth.ndim != expected or (expected == 3 and truth.shape[0] != task.num_maps):
        raise ValueError(
            f"expected {'C×H×W' if expected == 3 else 'H×W'} labels of a {task.kind} task, got {truth.shape}"
        )


def _map_counts(prediction: np.ndarray, truth: np.ndarray) -> tuple[int, int, int]:
    """Returns (tp, fp, fn) of one map of 0, 1 against 0, 1, IGNORE."""
    positive = truth == 1
    negative = truth == 0
    predicted = prediction == 1
    if np.count_nonzero(positive) + np.count_nonzero(negative) + np.count_nonzero(truth == IGNORE) != truth.size:
        raise ValueError(f"expected truth of 0, 1 and {IGNORE}, got other values")
    if np.any(((prediction != 0) & ~predicted) & (truth != IGNORE)):
        raise ValueError("expected a prediction of 0 and 1, got other values")
    tp = int(np.count_nonzero(predicted & positive))
    return tp, int(np.count_nonzero(predicted & negative)), int(np.count_nonzero(positive)) - tp


def _multiclass_confusion(prediction: np.ndarray, truth: np.ndarray, num_classes: int) -> Confusion:
    valid = truth != IGNORE
    true_labels, predicted = truth[valid].astype(np.intp), prediction[valid]
    for name, labels in (("truth", true_labels), ("prediction", predicted)):
        if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
            raise ValueError(f"expected {name} labels of 0 to {num_classes - 1}, got {labels.min()} to {labels.max()}")
    pairs = np.bincount(true_labels * num_classes + predicted, minlength=num_classes**2)
    return Confusion(pixels=pairs.reshape(num_classes, num_classes).astype(np.int64))


def dice(counts: Counts) -> ScoreArray:
    """Returns 2·tp / (2·tp + fp + fn) per class, float64 in [0, 1]; a class empty on both sides scores 1."""
    return _ratio(2 * counts.tp, 2 * counts.tp + counts.fp + counts.fn)


def iou(counts: Counts) -> ScoreArray:
    """Returns tp / (tp + fp + fn) per class (Jaccard), float64 in [0, 1]; a class empty on both sides scores 1."""
    return _ratio(counts.tp, counts.tp + counts.fp + counts.fn)


def _ratio(numerator: CountArray, denominator: CountArray) -> ScoreArray:
    ones = np.ones(len(numerator), np.float64)
    return np.divide(numerator, denominator, out=ones, where=denominator > 0)


def total(records: Sequence[Counts]) -> Counts:
    """Returns the sum over records; raises ``ValueError`` when there are none."""
    if not records:
        raise ValueError("no records to score")
    return sum(records[1:], start=records[0])


def per_class(records: Sequence[Counts], metric: Metric) -> ScoreArray:
    """Returns one score per class, float64.

    ``dice``: the mean over images of the class's Dice (as Carvana scores). ``iou``: the IoU of the counts summed
    over all images (as CamVid and Cityscapes score); NaN for a class that no image's truth holds.
    """
    whole = total(records)
    if metric == "dice":
        means: ScoreArray = np.stack([dice(counts) for counts in records]).mean(axis=0)
        return means
    if metric == "iou":
        return of_pixels(whole, "iou")
    raise ValueError(f"expected the metric dice or iou, got {metric!r}")


def of_pixels(whole: Counts, metric: Metric) -> ScoreArray:
    """Returns the Dice or IoU per class of counts summed over all images; NaN for a class without a pixel in the truth.

    Of one image's counts it is that image's; of all images together every pixel counts the same.
    """
    return np.where(whole.tp + whole.fn > 0, {"dice": dice, "iou": iou}[metric](whole), np.nan)


def mean_over_classes(whole: Counts, metric: Metric, *, absent: Literal["left out", "counted"]) -> float:
    """Returns the mean Dice or IoU over the classes of counts summed over all images.

    Classes without a pixel in the truth are left out (as the metric "iou" does), or counted: 1 for a class that was
    never predicted either, 0 for one that was. Without any class in the truth all are counted.
    """
    scores, known = {"dice": dice, "iou": iou}[metric](whole), whole.tp + whole.fn > 0
    return float(np.mean(scores if absent == "counted" or not known.any() else scores[known]))


def score_records(records: Sequence[Counts], metric: Metric) -> float:
    """Returns the one number a run is judged by, in [0, 1]: the mean of ``per_class``, higher is better.

    ``dice``: mean over images and classes. ``iou``: mean over the classes that occur in the truth (mIoU); when none
    occurs anywhere, 1 for predictions that are empty too and less otherwise.
    """
    scores = per_class(records, metric)
    known = ~np.isnan(scores)
    return float(np.mean(scores[known] if known.any() else iou(total(records))))
