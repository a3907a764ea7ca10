"""What the stage ``ensemble`` finds out about errors in its cross-fitted pass, and ``ensemble/errors.json``.

The pass over the out-of-fold maps that scores them also adds up, image by image, what was taken for what and which
probabilities came true; nothing is kept of an image but its counts. Masks are those before post-processing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskloom.boundary_score import BoundaryCounts, Tolerance, boundary_counts, mean_f_score
from maskloom.data.scene_parts import ScenePart
from maskloom.ensembling.attribute_scores import attribute_scores
from maskloom.ensembling.calibration import NUM_BINS, calibration_error, outcomes, reliability
from maskloom.ensembling.thresholds import NUM_VALUES
from maskloom.files import read_json
from maskloom.metrics import (
    Confusion,
    Counts,
    Metric,
    confusions,
    counts_of,
    dice,
    iou,
    mean_over_classes,
    of_pixels,
    total,
)
from maskloom.records import Record, Task
from maskloom.run_directory import RunDirectory

_METRICS: tuple[Metric, ...] = ("iou", "dice")
NUM_WORST = 3
"""Images remembered per class."""
TOLERANCE = Tolerance()
"""Within which outlines agree: 0.75 % of the image's diagonal."""
LARGEST_OUTLINED = 2**24
"""Pixels of an image above which outlines are not scored: they would cost more than all other counts together."""
CHOSEN = "chosen class"
"""Name of the calibration of all classes of a multiclass task together."""


@dataclass(frozen=True, slots=True)
class ImageErrors:
    """What one image adds."""

    confusions: list[Confusion]
    outcomes: np.ndarray
    boundary: BoundaryCounts | None


class ErrorSums:
    """Confusions, outcomes of probabilities and, where asked for, outlines, added up over images."""

    def __init__(self, task: Task, *, outlines: bool = False) -> None:
        self._task, self._outlines = task, outlines
        labels, number = (task.num_maps, 1) if task.kind == "multiclass" else (2, task.num_maps)
        self.confusions = [Confusion.zero(labels)] * number
        """Of all classes, or one per map; see ``metrics.confusions``."""
        self.outcomes = np.zeros((task.num_maps, 2, NUM_VALUES), np.int64)
        """See ``calibration.outcomes``."""
        self.boundaries: list[BoundaryCounts] = []
        """Of every image, where outlines are looked at; see ``boundary_score``."""

    def of_image(self, values: np.ndarray, labels: np.ndarray, truth: np.ndarray) -> ImageErrors:
        """Returns what one image adds, from 8-bit maps, decided labels and truth."""
        boundary = boundary_counts(labels, truth, self._task, TOLERANCE) if self._outlines else None
        return ImageErrors(confusions(labels, truth, self._task), outcomes(values, labels, truth, self._task), boundary)

    def add(self, image: ImageErrors) -> Counts:
        """Returns the image's counts, once it is added."""
        self.confusions = [whole + part for whole, part in zip(self.confusions, image.confusions, strict=True)]
        self.outcomes += image.outcomes
        self.boundaries += [] if image.boundary is None else [image.boundary]
        return counts_of(image.confusions, self._task)


def has_outlines(records: Sequence[Record], task: Task) -> bool:
    """Returns whether outlines are scored: of exclusive classes in whole images that are not too large for it.

    For all others there is ``maskloom score --boundary``. Parts of scenes cut outlines off.
    """
    return task.kind == "multiclass" and all(
        not isinstance(record, ScenePart) and record.size[0] * record.size[1] <= LARGEST_OUTLINED for record in records
    )


def errors_path(run: RunDirectory) -> Path:
    """Returns where the stage leaves what it found out."""
    return run.ensemble.with_name("errors.json")


def load_errors(run: RunDirectory) -> dict[str, Any] | None:
    """Returns what the stage left; None in a run whose ensemble was fitted by a version that did not look."""
    path = errors_path(run)
    return read_json(run.checked(path)) if path.is_file() else None


def error_analysis(
    records: Sequence[Record], counts: Mapping[str, Counts], sums: ErrorSums, metric: Metric, task: Task, *, seed: int
) -> dict[str, Any]:
    """Returns the content of ``errors.json`` (its form is in ``docs/reference/run-folder.md``).

    ``counts`` are the cross-fitted ones of every record, ``sums`` those of the same masks.
    """
    every = [counts[record.id] for record in records]
    whole = total(every)
    return {
        "confusion": [
            {"labels": list(labels), "pixels": each.pixels.tolist()}
            for labels, each in zip(_labels(task), sums.confusions, strict=True)
        ],
        "calibration": {"num_bins": NUM_BINS, "curves": _curves(sums.outcomes, task)},
        "mean_iou": {
            "absent_left_out": round(mean_over_classes(whole, "iou", absent="left out"), 6),
            "absent_counted": round(mean_over_classes(whole, "iou", absent="counted"), 6),
        },
        "boundary": _boundary(sums, task),
        "attributes": attribute_scores(
            every, [record.attributes for record in records], [record.group for record in records], metric, seed=seed
        ).to_json(),
        "worst": _worst(records, counts, metric, task),
    }


def pixel_scores(whole: Counts, classes: Sequence[str]) -> dict[str, Any]:
    """Returns IoU and Dice per class of counts summed over all images, and their means.

    ``classes`` by name, None for a class without a pixel in the truth; ``mean_iou`` and ``mean_dice`` without the
    classes that no truth holds (``absent_left_out``) and with them (``absent_counted``).
    """
    scores = {metric: [_rounded(float(score)) for score in of_pixels(whole, metric)] for metric in _METRICS}
    means = {
        f"mean_{metric}": {
            "absent_left_out": round(mean_over_classes(whole, metric, absent="left out"), 6),
            "absent_counted": round(mean_over_classes(whole, metric, absent="counted"), 6),
        }
        for metric in _METRICS
    }
    by_class = {name: {m: scores[m][index] for m in _METRICS} for index, name in enumerate(classes)}
    return {"classes": by_class, **means}


def counted_errors(errors: Mapping[str, Any], task: Task) -> Counts:
    """Returns the counts of all images together, from the confusions in ``errors.json``."""
    return counts_of([Confusion(pixels=np.array(each["pixels"], np.int64)) for each in errors["confusion"]], task)


def _boundary(sums: ErrorSums, task: Task) -> dict[str, Any] | None:
    """Returns the boundary F-score per class, the mean over images, and its mean over the classes with an outline."""
    if not sums.boundaries:
        return None
    scores = mean_f_score(sums.boundaries)
    known = scores[~np.isnan(scores)]
    return {
        "tolerance": str(TOLERANCE),
        "mean": _rounded(float(np.mean(known)) if len(known) else math.nan),
        "classes": {name: _rounded(float(score)) for name, score in zip(task.classes, scores, strict=True)},
    }


def _labels(task: Task) -> list[tuple[str, ...]]:
    return [task.classes] if task.kind == "multiclass" else [(f"not {name}", name) for name in task.classes]


def _curves(found: np.ndarray, task: Task) -> list[dict[str, Any]]:
    named = [(CHOSEN, found.sum(axis=0))] if task.kind == "multiclass" else []
    return [_curve(name, outcome) for name, outcome in (*named, *zip(task.classes, found, strict=True))]


def _curve(name: str, outcome: np.ndarray) -> dict[str, Any]:
    bins = reliability(outcome)
    pixels = int(outcome.sum())
    values = outcome.sum(axis=0) @ np.arange(NUM_VALUES)
    return {
        "name": name,
        "error": _rounded(calibration_error(outcome)),
        "probability": _rounded(float(values) / (NUM_VALUES - 1) / pixels if pixels else math.nan),
        "share": _rounded(int(outcome[1].sum()) / pixels if pixels else math.nan),
        "bins": [
            {"pixels": each.pixels, "probability": _rounded(each.probability), "share": _rounded(each.share)}
            for each in bins
        ],
        "values": outcome.tolist(),
    }


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


def _worst(records: Sequence[Record], counts: Mapping[str, Counts], metric: Metric, task: Task) -> list[dict[str, Any]]:
    """Returns each class's worst images: what costs the metric most.

    "iou" sums pixels over all images, so these are the images with the most wrong pixels of the class; "dice" is a mean
    over images, so they are those of the lowest Dice. None for a binary task, whose worst images are the worst ones.
    """
    if task.kind == "binary":
        return []
    score = {"dice": dice, "iou": iou}[metric]
    found: list[dict[str, Any]] = []
    wrong = np.array([counts[record.id].fp + counts[record.id].fn for record in records])
    scores = np.array([score(counts[record.id]) for record in records])
    for index, name in enumerate(task.classes):
        column = scores[:, index] if metric == "dice" else -wrong[:, index]
        order = [row for row in np.argsort(column, kind="stable") if wrong[row, index]][:NUM_WORST]
        images = [
            {"id": records[row].id, "score": round(float(scores[row, index]), 6), "wrong": int(wrong[row, index])}
            for row in order
        ]
        found.append({"class": name, "images": images})
    return found
