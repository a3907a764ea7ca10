"""The scores of classes, and members' weights in each, as columns for a terminal and for a page.

Knows only what ``maskloom evaluate --json`` prints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ClassColumn:
    """One score of every class, or one weight."""

    head: str
    scores: Mapping[str, float | None]
    """By class; None where the truth holds none of it."""
    mean: float | None
    """Over the classes that the truth holds; None of weights."""
    with_absent: float | None = None
    """Over all classes, where that is known."""


def class_columns(evaluation: Mapping[str, Any]) -> list[ClassColumn]:
    """Returns the scores of classes: by the run's own metric, and of the pixels of all images together.

    Where the metric is IoU, both are one. A run of an earlier version has its own metric alone.
    """
    oof, pixels, boundary = evaluation["oof"], evaluation.get("pixels"), evaluation.get("boundary")
    of_images = evaluation["metric"] == "dice"
    columns = []
    if of_images or not pixels:
        columns.append(ClassColumn("mean Dice" if of_images else "IoU", oof["classes"], oof.get("all_images")))
    if pixels:
        for name, metric in (("IoU", "iou"), ("Dice", "dice")):
            means = pixels[f"mean_{metric}"]
            scores = {each: values[metric] for each, values in pixels["classes"].items()}
            head = f"pixel {name}" if of_images else name
            columns.append(ClassColumn(head, scores, means["absent_left_out"], means["absent_counted"]))
    if boundary:
        columns.append(ClassColumn("boundary F", boundary["classes"], boundary["mean"]))
    return columns


def weight_columns(evaluation: Mapping[str, Any]) -> list[ClassColumn]:
    """Returns the weight of each member of the ensemble in every class; [] where no weight differs by class."""
    weights, classes = evaluation["weights"], evaluation["oof"]["classes"]
    if not any(isinstance(weight, Mapping) for weight in weights.values()):
        return []
    return [
        ClassColumn(
            f"weight of {name}", weight if isinstance(weight, Mapping) else dict.fromkeys(classes, weight), None
        )
        for name, weight in weights.items()
    ]
