"""The tables of a report as plain rows: scores, classes, data, folds, time.

Pure functions of a ``ReportInput``. Knows nothing about HTML; whoever shows the text escapes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskloom.data.duplicates import exact_duplicates
from maskloom.data.folds import ALWAYS_TRAINING
from maskloom.errors import BadFile
from maskloom.outputs.overlays import Colour, class_colours
from maskloom.outputs.report_input import ReportInput
from maskloom.outputs.report_words import duration, plural

MAX_LISTED = 50
"""Lines of a list (files left out, look-alikes) before the rest is only counted."""
_MAX_SIZES = 4


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One line of the score table."""

    name: str
    detail: str
    folds: list[float]
    mean: float
    std: float
    weight: float | None = None
    honest: bool = False
    """The line that the report's one number comes from."""


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class: its share of the judged pixels, how many images hold it, how it scores."""

    name: str
    colour: Colour
    share: float
    num_images: int
    score: float | None
    threshold: int | None
    """8-bit value."""


@dataclass(frozen=True, slots=True)
class FoldLine:
    """One fold of the table: what validates and what trains."""

    name: str
    num_images: int
    num_groups: int
    num_training: int | None
    area: float | None
    """Mean share of the foreground, where there is one."""
    score: float | None


@dataclass(frozen=True, slots=True)
class StageTime:
    """The time of one stage, folds of a member together."""

    name: str
    seconds: float
    detail: str


def score_rows(page: ReportInput) -> list[ScoreRow]:
    """Returns the ensemble's lines and each member's two, best evidence first."""
    evaluation = page.evaluation
    rows = [_score_row("Ensemble", "cross-fitted", evaluation["oof"], honest=True)]
    if page.task_kind != "multiclass" or len(evaluation["members"]) > 1:
        rows.append(_score_row("Ensemble", "fitted on all images it is scored on", evaluation["fitted_on_all"]))
    if page.task_kind != "multiclass":
        weights = "equal weights, " if len(evaluation["members"]) > 1 else ""
        rows.append(_score_row("Ensemble", f"{weights}thresholds at one half", evaluation["half"]))
    for name, scores in evaluation["members"].items():
        weight = evaluation["weights"].get(name) if len(evaluation["members"]) > 1 else None
        rows.append(_score_row(name, "with test-time views", scores, weight=weight))
        rows.append(_score_row(name, "without test-time views", scores["without_views"]))
    return rows


def _score_row(
    name: str, detail: str, scores: Mapping[str, Any], *, weight: float | None = None, honest: bool = False
) -> ScoreRow:
    return ScoreRow(name, detail, list(scores["folds"]), scores["mean"], scores["std"], weight, honest)


def class_rows(page: ReportInput) -> list[ClassRow]:
    """Returns one line per class, in the task's order."""
    scores, thresholds = page.evaluation["oof"]["classes"], page.evaluation["thresholds"]
    pixels, valid = page.survey.class_pixels, max(page.survey.valid_pixels, 1)
    colours = class_colours(page.classes, page.task_kind)
    counted = [facts.class_pixels for facts in page.survey.records if facts.class_pixels]
    return [
        ClassRow(
            name=name,
            colour=colours[index],
            share=pixels[index] / valid,
            num_images=sum(counts[index] > 0 for counts in counted),
            score=scores.get(name),
            threshold=None if page.task_kind == "multiclass" else int(thresholds[index]),
        )
        for index, name in enumerate(page.classes)
    ]


def quantiles(page: ReportInput) -> list[tuple[str, float]]:
    """Returns what score parts of the images reach, as (part, score), from the worst to the best."""
    names = {0: "the worst", 5: "95 % reach", 25: "75 % reach", 50: "half reach", 75: "25 % reach", 100: "the best"}
    values = np.percentile(page.image_scores, list(names)).tolist()
    return list(zip(names.values(), values, strict=True))


def data_facts(page: ReportInput) -> list[tuple[str, str]]:
    """Returns what the data is, as (name, value)."""
    found = page.survey
    groups = {facts.group for facts in found.records}
    total = sum(facts.size[0] * facts.size[1] for facts in found.records)
    sizes = [f"{width} × {height} ({count:,})" for (height, width), count in found.sizes.most_common(_MAX_SIZES)]
    if len(found.sizes) > _MAX_SIZES:
        sizes.append(f"{len(found.sizes) - _MAX_SIZES:,} more")
    ignored = sum(facts.ignored for facts in found.records)
    copies = exact_duplicates(found)
    grouped = "each image is its own" if len(groups) == len(found.records) else "never split between folds"
    facts = [
        ("Folder", page.data),
        ("Layout", page.layout),
        ("Task", f"{page.task_kind}, {plural(len(page.classes), 'class').replace('classs', 'classes')}"),
        ("Labelled images", f"{len(found.records):,}"),
        ("Groups", f"{len(groups):,} ({grouped})"),
        ("Without truth", f"{page.num_unlabelled:,}"),
        ("Sizes (width × height)", ", ".join(sizes)),
        ("Pixels", f"{found.dtype}, {plural(found.num_channels, 'channel')}"),
        ("Channel means", _numbers(found.channel_mean)),
        ("Channel deviations", _numbers(found.channel_std)),
        ("Ignored pixels", f"{100 * ignored / max(total, 1):.2f} %"),
        ("Exact copies", f"{plural(len(copies), 'set')}, kept in one fold each" if copies else "none"),
        ("Look-alikes", look_alike_line(page)),
        ("Left out", plural(len(page.left_out) + len(found.bad), "file") if left_out(page) else "none"),
    ]
    return [(name, value) for name, value in facts if value]


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def look_alike_line(page: ReportInput) -> str:
    """Returns how many pairs look alike, and how many of them are on two sides of a fold."""
    if not page.near_duplicates:
        return "none"
    straddling = f"{page.num_straddling:,}" if page.num_straddling else "none"
    return f"{plural(len(page.near_duplicates), 'pair')}, {straddling} of them over two folds"


def left_out(page: ReportInput) -> list[tuple[str, str]]:
    """Returns (file, reason) of everything that could not be used."""
    problems = [*page.left_out, *page.survey.problems]
    root = page.survey.root
    lines = []
    for problem in problems:
        if isinstance(problem, BadFile):
            path = problem.path
            lines.append((str(path.relative_to(root) if path.is_relative_to(root) else path), problem.reason))
        else:
            lines.append(("", str(problem)))
    return lines


def fold_lines(page: ReportInput) -> list[FoldLine]:
    """Returns one line per fold, and one for records that always train where there are any."""
    if page.folds is None:
        return []
    facts = {row.id: row for row in page.survey.records}
    areas = page.survey.areas() if page.task_kind != "multiclass" else {}
    shares = {key: area / max(facts[key].valid * len(page.classes), 1) for key, area in areas.items()}
    scores = page.evaluation["oof"]["folds"]
    lines = []
    for fold in sorted({row.fold for row in page.folds.rows}, key=lambda fold: (fold == ALWAYS_TRAINING, fold)):
        rows = [row for row in page.folds.rows if row.fold == fold]
        inside = [shares[row.id] for row in rows if row.id in shares]
        always = fold == ALWAYS_TRAINING
        lines.append(
            FoldLine(
                name="always training" if always else f"fold {fold}",
                num_images=len(rows),
                num_groups=len({row.group for row in rows}),
                num_training=None if always else len(page.folds.rows) - len(rows),
                area=sum(inside) / len(inside) if inside else None,
                score=scores[fold] if not always and fold < len(scores) else None,
            )
        )
    return lines


def stage_times(page: ReportInput) -> list[StageTime]:
    """Returns the time of each stage in the order of work; the folds of a member's training are summed."""
    order = ("survey", "folds", "train", "oof", "ensemble", "predict", "submit", "report")
    sums: Counter[str] = Counter()
    parts: Counter[str] = Counter()
    for stage, seconds in page.seconds.items():
        name = stage.rpartition("/fold")[0] or stage
        sums[name] += seconds  # type: ignore[assignment]
        parts[name] += 1

    def rank(name: str) -> tuple[int, str]:
        first = name.partition("/")[0]
        return (order.index(first) if first in order else len(order), name)

    return [
        StageTime(
            name.replace("/", " · "),
            sums[name],
            f"{parts[name]} folds, {duration(sums[name] / parts[name])} each" if parts[name] > 1 else "",
        )
        for name in sorted(sums, key=rank)
    ]
