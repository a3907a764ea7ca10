"""Boundary F-score: how well the outlines of classes agree within a tolerance, from exact counts that add up.

An outline is the class's own pixels that touch, by a side, a pixel of anything else. The image's border is no outline,
and pixels whose truth is ``IGNORE`` are as if they were not there: they lie on no outline and make none.

Sources: G. Csurka, D. Larlus and F. Perronnin, "What is a good evaluation measure for semantic segmentation?" (BMVC
2013), whose tolerance is 0.75 % of the image's diagonal and whose score is the mean over images (``mean_f_score``);
F. Perazzi et al., "A benchmark dataset and evaluation methodology for video object segmentation" (CVPR 2016), the F of
DAVIS. Both draw outlines between pixels, half a pixel from ours. Knows nothing about probabilities and files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from maskloom.errors import UserError
from maskloom.metrics import CountArray, ScoreArray
from maskloom.records import IGNORE, Size, Task

_NAMES = ("matched_predicted", "predicted", "matched_true", "true")
_EXACT = 1e-9
"""Added to squared tolerances, as 0.3 / 0.1 is a little less than 3."""

_NOWHERE = np.int16(-1)
"""In place of a label: no outline."""
_MOST_LOOKS = 10**8
"""Pixels looked at around those of an outline; where it would be more, distances are measured."""
_FARTHEST_LOOK = 512
"""In pixels: of farther ones the list of steps alone would be long."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far apart outlines may lie and still agree; the distance is that of pixel centres, straight."""

    value: float = 0.0075
    unit: Literal["pixels", "diagonal"] = "diagonal"
    """Pixels, or parts of the image's diagonal."""

    def __post_init__(self) -> None:
        if not 0 <= self.value < math.inf or (self.unit == "diagonal" and self.value > 1):
            raise UserError(f"tolerance {self}: expected at least 0 pixels, or 0 to 100 % of the diagonal")

    def __str__(self) -> str:
        """Returns what ``parse`` reads: "3" or "0.75%"."""
        return f"{100 * self.value:.6g}%" if self.unit == "diagonal" else f"{self.value:.6g}"

    @classmethod
    def parse(cls, text: str) -> Tolerance:
        """Returns the tolerance of "3" (pixels) or "0.75%" (of the diagonal); raises ``UserError`` for other texts."""
        stated = text.strip()
        try:
            value = float(stated.removesuffix("%"))
        except ValueError:
            raise UserError(
                f"tolerance {text!r}: expected pixels (3) or a share of the image's diagonal (0.75%)"
            ) from None
        return cls(value / 100, "diagonal") if stated.endswith("%") else cls(value, "pixels")

    def pixels(self, size: Size) -> float:
        """Returns the tolerance in pixels for images of this size (height, width); not rounded."""
        return self.value if self.unit == "pixels" else self.value * math.hypot(*size)

    def text(self) -> str:
        """Returns the tolerance in words: "3 pixels", "0.75 % of the diagonal"."""
        if self.unit == "diagonal":
            return f"{100 * self.value:.6g} % of the diagonal"
        return f"{self.value:.6g} pixel{'' if self.value == 1 else 's'}"


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundaryCounts:
    """Outline pixels per class, each int64 of one entry per class: all, and those with one of the other side near."""

    matched_predicted: CountArray
    """Predicted ones with a true one within the tolerance."""
    predicted: CountArray
    matched_true: CountArray
    """True ones with a predicted one within the tolerance."""
    true: CountArray

    def __post_init__(self) -> None:
        shapes = {getattr(self, name).shape for name in _NAMES}
        if len(shapes) != 1 or self.true.ndim != 1:
            raise ValueError(f"expected four arrays of one entry per class, got shapes {sorted(shapes)}")
        if any(getattr(self, name).dtype != np.int64 for name in _NAMES):
            raise ValueError("expected int64 counts")

    def __add__(self, other: BoundaryCounts) -> BoundaryCounts:
        """Returns the counts of both images together; tolerances may differ with their sizes."""
        if self.true.shape != other.true.shape:
            raise ValueError(f"cannot add counts of {len(self.true)} and {len(other.true)} classes")
        return BoundaryCounts(**{name: getattr(self, name) + getattr(other, name) for name in _NAMES})

    def __eq__(self, other: object) -> bool:
        """Returns whether all counts agree."""
        if not isinstance(other, BoundaryCounts):
            return NotImplemented
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in _NAMES)

    __hash__ = None  # type: ignore[assignment]

    @staticmethod
    def zero(num_classes: int) -> BoundaryCounts:
        """Returns the counts of nothing: the neutral element of ``+``."""
        return BoundaryCounts(**{name: np.zeros(num_classes, np.int64) for name in _NAMES})

    def to_json(self) -> dict[str, list[int]]:
        """Returns the counts as plain lists."""
        return {name: getattr(self, name).tolist() for name in _NAMES}

    @staticmethod
    def from_json(values: dict[str, list[int]]) -> BoundaryCounts:
        """Returns the counts that ``to_json`` wrote."""
        return BoundaryCounts(**{name: np.array(values[name], np.int64) for name in _NAMES})


def boundary_counts(
    prediction: np.ndarray, truth: np.ndarray, task: Task, tolerance: Tolerance | None = None
) -> BoundaryCounts:
    """Returns the counts of one image, from labels as ``metrics.from_labels`` takes them; None: 0.75 % of the diagonal.

    Both are arrays of one shape: H×W for binary (0, 1) and multiclass (0…n-1), C×H×W of 0, 1 for multilabel; the truth
    may hold ``IGNORE``. Counts add up over images, not over the tiles of one: tiles have outlines of their own. Raises
    ``ValueError`` for other shapes, and for other labels on an outline.

    >>> square = np.zeros((8, 8), np.uint8)
    >>> square[2:6, 2:6] = 1
    >>> task = Task(kind="binary", classes=("square",))
    >>> found = boundary_counts(np.roll(square, 1, axis=1), square, task, Tolerance(0, "pixels"))
    >>> found.matched_predicted, found.predicted, f_score(found)
    (array([6]), array([12]), array([0.5]))
    """
    expected = 3 if task.kind == "multilabel" else 2
    if prediction.shape != truth.shape or truth.ndim != expected:
        dimensions = "C×H×W" if expected == 3 else "H×W"
        raise ValueError(
            f"expected {dimensions} labels of a {task.kind} task, got {prediction.shape} for a truth of {truth.shape}"
        )
    reach = (tolerance or Tolerance()).pixels((truth.shape[-2], truth.shape[-1]))
    if task.kind == "multiclass":
        counts = _of_labels(prediction, truth, 0, task.num_maps, reach)
    else:
        maps = (prediction, truth) if expected == 3 else (prediction[None], truth[None])
        if len(maps[1]) != task.num_maps:
            raise ValueError(f"expected {task.num_maps} maps of labels, got {len(maps[1])}")
        counts = [row for pair in zip(*maps, strict=True) for row in _of_labels(*pair, 1, 2, reach)]
    return BoundaryCounts(**dict(zip(_NAMES, np.array(counts, np.int64).reshape(-1, 4).T.copy(), strict=True)))


def _of_labels(
    prediction: np.ndarray, truth: np.ndarray, first: int, num_labels: int, reach: float
) -> list[tuple[int, int, int, int]]:
    """Returns the four counts of each class from ``first`` to ``num_labels`` - 1 among exclusive labels H×W."""
    is_counted = truth != IGNORE
    sides = []
    for name, labels in (("prediction", prediction), ("truth", truth)):
        is_outline = outlines(labels, is_counted)
        found = labels[is_outline]
        if found.size and (found.min() < 0 or found.max() >= num_labels):
            raise ValueError(f"expected {name} labels of 0 to {num_labels - 1}, got {found.min()} to {found.max()}")
        sides.append(np.where(is_outline & (labels >= first), labels.astype(np.int16), _NOWHERE))
    predicted, true = ([_per_class(labels[labels != _NOWHERE], num_labels)] for labels in sides)
    for own, other, counts in ((sides[0], sides[1], predicted), (sides[1], sides[0], true)):
        counts.insert(0, counts[0] - _per_class(_unmatched(own, other, reach), num_labels))
    return [tuple(row) for row in np.stack([*predicted, *true], axis=1)[first:].tolist()]


def _per_class(labels: NDArray[np.int16], num_labels: int) -> CountArray:
    return np.bincount(labels, minlength=num_labels).astype(np.int64)


def outlines(labels: np.ndarray, is_counted: Mask) -> Mask:
    """Returns which pixels of exclusive labels H×W lie on the outline of their class: bool H×W."""
    found: Mask = np.zeros(labels.shape, bool)
    for first, second in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differs = (labels[first] != labels[second]) & is_counted[first] & is_counted[second]
        found[first] |= differs
        found[second] |= differs
    return found


def _unmatched(own: NDArray[np.int16], other: NDArray[np.int16], reach: float) -> NDArray[np.int16]:
    """Returns the labels of outline pixels of one side that have none of their class within reach on the other."""
    rows, columns = np.nonzero(own != _NOWHERE)
    labels, squared = own[rows, columns], reach**2 + _EXACT
    if not len(labels):
        return labels
    radius = min(math.floor(math.sqrt(squared)), max(own.shape))
    if radius > _FARTHEST_LOOK or len(labels) * radius**2 > _MOST_LOOKS:
        return _unmatched_by_distance(own, other, squared)
    padded = np.pad(other, radius, constant_values=_NOWHERE)
    width, around = padded.shape[1], padded.ravel()
    places = (rows + radius) * width + columns + radius
    steps = [(y, x) for y in range(-radius, radius + 1) for x in range(-radius, radius + 1) if y * y + x * x <= squared]
    for y, x in sorted(steps, key=lambda step: step[0] ** 2 + step[1] ** 2):  # most have one near: few are left soon
        is_left = around[places + (y * width + x)] != labels
        places, labels = places[is_left], labels[is_left]
        if not len(labels):
            break
    return labels


def _unmatched_by_distance(own: NDArray[np.int16], other: NDArray[np.int16], squared: float) -> NDArray[np.int16]:
    """Returns the same for a reach so far that the distance of every pixel is known sooner."""
    import cv2

    left = [np.zeros(0, np.int16)]
    for label in np.unique(own[own != _NOWHERE]):
        points, is_free = own == label, (other != label).astype(np.uint8)
        far = np.ones(int(points.sum()), bool)
        if not is_free.all():
            away = cv2.distanceTransform(is_free, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[points].astype(np.float64)
            far = np.rint(away**2) > squared  # whole numbers: this undoes what 32 bits rounded
        left.append(np.full(np.count_nonzero(far), label, np.int16))
    return np.concatenate(left)


def precision(counts: BoundaryCounts) -> ScoreArray:
    """Returns the matched share of predicted outline pixels per class, NaN where nothing is predicted."""
    return _share(counts.matched_predicted, counts.predicted)


def recall(counts: BoundaryCounts) -> ScoreArray:
    """Returns the matched share of true outline pixels per class, NaN where the truth has none."""
    return _share(counts.matched_true, counts.true)


def f_score(counts: BoundaryCounts) -> ScoreArray:
    """Returns the harmonic mean of precision and recall per class, float64 in [0, 1].

    0 where one side alone has an outline, NaN where neither has: the class is absent, or covers the whole image.
    """
    first, second = np.nan_to_num(precision(counts)), np.nan_to_num(recall(counts))
    both = first + second
    scores = np.divide(2 * first * second, both, out=np.zeros(len(both)), where=both > 0)
    return np.where(counts.predicted + counts.true > 0, scores, np.nan)


def mean_f_score(images: Sequence[BoundaryCounts]) -> ScoreArray:
    """Returns the mean over images of ``f_score`` per class, each over the images where a side has its outline.

    Each image counts the same, however long its outlines are; NaN for a class without any. Raises ``ValueError``
    without images.
    """
    if not images:
        raise ValueError("no images to score")
    scores = np.stack([f_score(counts) for counts in images])
    known = ~np.isnan(scores)
    sums: ScoreArray = np.where(known, scores, 0.0).sum(axis=0)
    return _share(sums, known.sum(axis=0))


def _share(part: CountArray | ScoreArray, whole: CountArray) -> ScoreArray:
    shares: ScoreArray = np.full(len(whole), np.nan)
    np.divide(part, whole, out=shares, where=whole > 0)
    return shares
