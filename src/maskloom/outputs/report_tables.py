"""The tables of a report as plain rows: scores, classes, data, folds, time.

Pure functions of a ``ReportInput``. Knows nothing about HTML; whoever shows the text escapes it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskloom.data.duplicates import exact_duplicates
from maskloom.data.folds import ALWAYS_TRAINING
from maskloom.errors import BadFile
from maskloom.outputs.class_scores import class_columns, weight_columns
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
    weight: float | Mapping[str, float] | None = None
    """Of a member in the ensemble; by class where it differs by class."""
    honest: bool = False
    """Fitted on other images than it is scored on."""
    notes: Sequence[str] = ()
    """What sets a member apart."""


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class: its share of the judged pixels, how many images hold it, how it scores."""

    name: str
    colour: Colour
    share: float
    num_images: int
    scores: Sequence[float | None]
    """In the columns of ``class_columns``."""
    threshold: int | None
    """8-bit value."""
    weights: Sequence[float | None] = ()
    """In the columns of ``weight_columns``."""


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
    """Returns the ensemble's lines and each member's, with test-time views and without; the honest ones first."""
    evaluation = page.evaluation
    several = len(evaluation["members"]) > 1
    rows = [_score_row("Ensemble", "cross-fitted", evaluation["oof"], honest=True)]
    if "postprocess" in evaluation:
        scores = evaluation["postprocess"]["scores"]["with"]
        rows.append(_score_row("Ensemble, post-processed", "cross-fitted, steps and all", scores, honest=True))
    if page.task_kind != "multiclass" or several:
        rows.append(_score_row("Ensemble", "fitted on all images it is scored on", evaluation["fitted_on_all"]))
    if page.task_kind != "multiclass":
        weights = "equal weights, " if several else ""
        rows.append(_score_row("Ensemble", f"{weights}thresholds at one half", evaluation["half"]))
    for name, scores in evaluation["members"].items():
        facts, weight = page.member(name), evaluation["weights"].get(name)
        notes = facts.notes if weight is not None else (*facts.notes, "not in the ensemble")
        detail = _ASKED[facts.asked]
        rows.append(_score_row(name, detail, scores, weight=weight if several else None, notes=notes))
        if facts.asked == "with views":
            rows.append(_score_row(name, "without test-time views", scores["without_views"]))
    return rows


_ASKED = {
    "with views": "with test-time views",
    "once": "has no test-time views",
    "elsewhere": "maps from outside, taken to be out-of-fold",
}


def _score_row(
    name: str,
    detail: str,
    scores: Mapping[str, Any],
    *,
    weight: float | Mapping[str, float] | None = None,
    honest: bool = False,
    notes: Sequence[str] = (),
) -> ScoreRow:
    return ScoreRow(name, detail, list(scores["folds"]), scores["mean"], scores["std"], weight, honest, notes)


def class_rows(page: ReportInput) -> list[ClassRow]:
    """Returns one line per class, in the task's order."""
    columns, thresholds = class_columns(page.evaluation), page.evaluation["thresholds"]
    pixels, valid = page.survey.class_pixels, max(page.survey.valid_pixels, 1)
    colours = class_colours(page.classes, page.task_kind)
    counted = [facts.class_pixels for facts in page.survey.records if facts.class_pixels]
    return [
        ClassRow(
            name=name,
            colour=colours[index],
            share=pixels[index] / valid,
            num_images=sum(counts[index] > 0 for counts in counted),
            scores=[column.scores.get(name) for column in columns],
            threshold=None if page.task_kind == "multiclass" else int(thresholds[index]),
            weights=[column.scores.get(name) for column in weight_columns(page.evaluation)],
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
        ("Task", f"{page.task_kind}, {plural(len(page.classes), 'class')}"),
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
    sums: dict[str, float] = {}
    parts: Counter[str] = Counter()
    for stage, seconds in page.seconds.items():
        name = re.sub(r"^(train/.+)/fold\d+$", r"\1", stage)
        sums[name] = sums.get(name, 0.0) + seconds
        parts[name] += 1
    return [
        StageTime(name.replace("/", " · "), sums[name], _time_detail(page, name, sums[name], parts[name]))
        for name in sorted(sums, key=lambda name: _order_of_work(page, name))
    ]


_STAGES = ("register", "survey", "folds", "member", "ensemble", "postprocess", "predict", "submit", "report")
_OF_MEMBERS = ("pseudo", "train", "oof")


def _order_of_work(page: ReportInput, stage: str) -> tuple[int, int, int, str]:
    """Returns what sorts stages as a run takes them: maps from outside, then each member with what it needs."""
    kind, _, name = stage.partition("/")
    if kind not in _OF_MEMBERS:
        return (_STAGES.index(kind) if kind in _STAGES else len(_STAGES), 0, 0, stage)
    members = list(page.evaluation["members"])
    pupils = _pupils(page, name) if kind == "pseudo" else [name]
    places = [
        -1 if page.member(each).asked == "elsewhere" else members.index(each) for each in pupils if each in members
    ]
    return (_STAGES.index("member"), min(places, default=len(members)), _OF_MEMBERS.index(kind), stage)


def _pupils(page: ReportInput, number: str) -> Sequence[str]:
    return next((each.pupils for each in page.pseudo_rounds if str(each.number) == number), ())


def _time_detail(page: ReportInput, stage: str, seconds: float, parts: int) -> str:
    kind, _, name = stage.partition("/")
    if parts > 1:
        return f"{parts} folds, {duration(seconds / parts)} each"
    if kind == "pseudo" and (pupils := _pupils(page, name)):
        return f"labels for {', '.join(pupils)}"
    if kind == "folds" and name:
        return "folds of its own"
    return "maps from outside" if kind == "oof" and page.member(name).asked == "elsewhere" else ""
