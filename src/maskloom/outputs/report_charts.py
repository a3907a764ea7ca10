"""The charts of a report: learning curves, scores image by image, score at every threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from maskloom.outputs.charts import Series, histogram, line_chart
from maskloom.outputs.report_input import ReportInput

_MAX_LABELS = 2
"""Chosen thresholds that are named in the chart; more would lie over each other and are named in the legend alone."""
_SHOWN = slice(13, 243)
"""Thresholds that decide the vertical range: towards 0 and 1 every curve falls off a cliff."""
_EARLY = 0.25
"""The first part of a training does not decide the range of its score chart: it would flatten all that matters."""


def learning_charts(page: ReportInput) -> list[list[Markup]]:
    """Returns one row of charts per member: loss, and the validation score where it was measured."""
    members: dict[str, dict[str, Sequence[Mapping[str, Any]]]] = {}
    for leaf, epochs in page.learning_curves.items():
        member, _, fold = leaf.rpartition("/")
        if epochs:
            members.setdefault(member, {})[f"fold {fold.removeprefix('fold')}"] = epochs
    rows = []
    for member, folds in members.items():
        name = f"{member}: " if len(members) > 1 else ""
        losses = [_series(fold, epochs, "loss") for fold, epochs in folds.items()]
        scores = [_series(fold, epochs, "score") for fold, epochs in folds.items()]
        row = [line_chart(losses, title=f"{name}training loss", x_label="epoch", y_label="loss", whole_x=True)]
        if any(line.ys for line in scores):
            title = f"{name}validation score ({page.metric_name})"
            limits = _score_range(scores)
            scores = [_within(line, limits) for line in scores]
            row.append(line_chart(scores, title=title, x_label="epoch", y_range=limits, whole_x=True))
        rows.append(row)
    return rows


def _series(name: str, epochs: Sequence[Mapping[str, Any]], key: str) -> Series:
    known = [(float(each["epoch"]), float(each[key])) for each in epochs if each.get(key) is not None]
    return Series(name, [x for x, _ in known], [y for _, y in known])


def _score_range(lines: Sequence[Series]) -> tuple[float, float]:
    """Returns the range of the scores after the first part of the epochs, padded."""
    last = max(x for line in lines for x in line.xs)
    every = [y for line in lines for y in line.ys]
    late = [y for line in lines for x, y in zip(line.xs, line.ys, strict=True) if x > _EARLY * last] or every
    extra = max(0.08 * (max(every) - min(late)), 1e-4)
    return max(min(late) - extra, 0.0), max(every) + extra


def _within(line: Series, limits: tuple[float, float]) -> Series:
    """Returns the line with gaps where it lies outside the chart."""
    return Series(line.name, line.xs, [y if limits[0] <= y <= limits[1] else math.nan for y in line.ys])


def score_histogram(page: ReportInput) -> Markup:
    """Returns how many images score how much, with the median marked."""
    scores = np.asarray(page.image_scores, np.float64)
    low, high = float(scores.min()), float(scores.max())
    extra = 0.02 * (high - low) or 0.005
    return histogram(
        scores.tolist(),
        bins=min(max(round(2 * math.sqrt(len(scores))), 8), 36),
        title=f"Images by score; median {np.median(scores):.4f}, worst {low:.4f}",
        x_label=page.metric_name.replace("mean ", "") + " of the image",
        x_range=(max(low - extra, 0.0), min(high + extra, 1.0)),
    )


def threshold_chart(page: ReportInput) -> Markup:
    """Returns the score of every class at every threshold, the chosen thresholds marked."""
    thresholds = [value / 255 for value in page.evaluation["thresholds"]]
    named = len(page.threshold_curve) > 1
    series = [
        Series(f"{name}, {threshold:.3f}" if named else name, (np.arange(len(curve)) / 255).tolist(), list(curve))
        for name, threshold, curve in zip(page.classes, thresholds, page.threshold_curve, strict=True)
    ]
    middle = [value for curve in page.threshold_curve for value in curve[_SHOWN] if math.isfinite(value)]
    low, high = (min(middle), max(middle)) if middle else (0.0, 1.0)
    extra = 0.06 * (high - low) or 0.005
    labelled = len(thresholds) <= _MAX_LABELS
    marks = [(value, f"chosen: {value:.3f}" if labelled else "") for value in thresholds]
    limits = (max(low - extra, 0.0), high + extra)
    return line_chart(
        [_within(line, limits) for line in series],
        title="Score at every threshold",
        x_label="threshold (probability)",
        x_range=(0.0, 1.0),
        y_range=limits,
        marks=marks,
    )
