"""The report of a run: one page that leads with the number that matters and shows what it rests on.

The page is one file, needs no network and no script; every text in it is escaped. Where words, rows and pictures come
from is said in ``report_words``, ``report_tables`` and ``report_pictures``; ``report_errors`` takes errors apart,
``report_systems`` shows what later stages decided. Knows nothing about run directories.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path

from markupsafe import Markup

from maskloom.files import write_text
from maskloom.outputs import page as html
from maskloom.outputs.class_scores import class_columns, weight_columns
from maskloom.outputs.report_charts import learning_charts, score_histogram, threshold_chart
from maskloom.outputs.report_errors import by_attribute, calibration, confusion, mean_ious, worst_of_classes
from maskloom.outputs.report_input import Example, LookAlikes, ReportInput
from maskloom.outputs.report_pictures import best_and_worst, look_alike_pair
from maskloom.outputs.report_systems import postprocessing, pseudo_labels
from maskloom.outputs.report_tables import (
    MAX_LISTED,
    class_rows,
    data_facts,
    fold_lines,
    left_out,
    look_alike_line,
    quantiles,
    score_rows,
    stage_times,
)
from maskloom.outputs.report_words import Finding, chosen_steps, duration, findings, headline, plural, trust

__all__ = ["Example", "LookAlikes", "ReportInput", "render_report", "report_page"]

HALF = 128
"""The 8-bit value of probability 0.5."""


def render_report(path: Path, page: ReportInput) -> None:
    """Writes the report to ``path``, atomically."""
    write_text(path, report_page(page))


def report_page(page: ReportInput) -> str:
    """Returns the report as HTML text."""
    sections = [
        _result(page),
        _stands_out(findings(page)),
        _scores(page),
        _contest(page),
        _learning(page),
        pseudo_labels(page),
        _image_by_image(page),
        _thresholds(page),
        postprocessing(page),
        confusion(page),
        by_attribute(page),
        calibration(page),
        *best_and_worst(page),
        worst_of_classes(page),
        _classes(page),
        _data(page),
        _look_alikes(page),
        _folds(page),
        _time(page),
        _recipe(page),
    ]
    return html.render_page(
        f"Report of {page.name}" if page.name else "Report",
        [each for each in sections if each.parts],
        subtitle=" · ".join(part for part in (page.data, page.task_kind, ", ".join(page.classes[:12])) if part),
    )


def _result(page: ReportInput) -> html.Section:
    oof = page.evaluation["oof"]
    spread = f" ± {page.score_text(oof['std'])} over {len(oof['folds'])} folds" if len(oof["folds"]) > 1 else ""
    hero = Markup(
        '<div class="hero"><div><span class="score">{}</span><span class="unit">{}{}</span></div>'
        '<div><p class="lead">{}</p><p class="quiet">{}</p></div></div>'
    ).format(page.score_text(oof["mean"]), page.metric_name, spread, headline(page), trust(page))
    cards: list[tuple[str, html.Cell]] = [
        *_post_processed(page),
        *_contest_card(page),
        ("images scored", len(page.image_scores)),
        ("networks trained", len(page.learning_curves)),
        ("folds" if len(oof["folds"]) > 1 else "fixed split", len(oof["folds"])),
        ("classes" if len(page.classes) > 1 else "class", len(page.classes)),
        ("time", duration(sum(page.seconds.values()))),
    ]
    return html.section("Result", _style() + hero, html.facts(cards))


def _post_processed(page: ReportInput) -> list[tuple[str, html.Cell]]:
    found = page.evaluation.get("postprocess")
    if found is None or not chosen_steps(found):
        return []
    return [("post-processed", page.score_text(found["scores"]["with"]["mean"]))]


def _contest_card(page: ReportInput) -> list[tuple[str, html.Cell]]:
    found = page.evaluation.get("contest")
    return [] if found is None else [("the contest's score", page.score_text(found["score"]))]


def _stands_out(found: list[Finding]) -> html.Section:
    items = Markup("").join(
        Markup('<li class="{}"><b>{}</b>{}</li>').format(finding.mood, finding.title, finding.text) for finding in found
    )
    return html.section("What stands out", Markup('<ul class="stands">{}</ul>').format(items))


def _scores(page: ReportInput) -> html.Section:
    several = len(page.evaluation["members"]) > 1
    scored = score_rows(page)
    num_folds = max(len(row.folds) for row in scored)  # members may have folds of their own
    rows: list[list[html.Cell]] = []
    for row in scored:
        bold = Markup('<b class="honest">{}</b>') if row.honest else Markup("{}")
        details = Markup("").join(Markup("<small>{}</small>").format(text) for text in (row.detail, *row.notes))
        cells: list[html.Cell] = [bold.format(row.name) + details]
        spread = f" ± {page.score_text(row.std)}" if len(row.folds) > 1 else ""
        cells.append(Markup("<b>{}</b>{}").format(page.score_text(row.mean), spread))
        cells += [page.score_text(value) for value in row.folds] + [""] * (num_folds - len(row.folds))
        cells += [_weight(row.weight)] if several else []
        rows.append(cells)
    numbers = [f"fold {fold}" for fold in range(num_folds)]
    headers = ["system", "mean ± std", *numbers, *(["weight"] if several else [])]
    marked = "marked line is the honest one" if sum(row.honest for row in scored) == 1 else "marked lines are honest"
    explained = (
        f"The {page.metric_name} of predictions for images that the predicting networks never saw, per fold. The "
        f"{marked}: whatever was fitted after training was fitted on other images than it is scored on."
    )
    if page.task_kind == "multiclass":
        explained += " Masks take the most probable class, so no threshold is fitted."
    if any(len(row.folds) != len(scored[0].folds) for row in scored):
        explained += " A member with folds of its own is scored over those: its columns are of other images."
    table = Markup('<div class="scores">{}</div>').format(html.table(headers, rows))
    return html.section("Scores", explained, table)


def _weight(weight: float | Mapping[str, float] | None) -> str:
    if isinstance(weight, Mapping):
        return "by class"
    return "" if weight is None else f"{weight:.3f}"


def _learning(page: ReportInput) -> html.Section:
    charts = learning_charts(page)
    if not charts:
        return html.section("Learning curves")
    explained = (
        "A falling loss means that a network fits the images it trains on; a rising score means that this carries "
        "over to images kept out. Early scores far below the later ones are left out."
    )
    return html.section("Learning curves", explained, *(html.side_by_side(pair) for pair in charts))


def _image_by_image(page: ReportInput) -> html.Section:
    if not page.image_scores:
        return html.section("Image by image")
    explained = "One good average can hide bad images. This is how the scores of single images lie."
    rows: list[list[html.Cell]] = [[name, page.score_text(value)] for name, value in quantiles(page)]
    both = [score_histogram(page), html.table(["of all images", "score"], rows)]
    return html.section("Image by image", explained, html.side_by_side(both))


def _thresholds(page: ReportInput) -> html.Section:
    if not page.threshold_curve:
        return html.section("Thresholds")
    explained = (
        "A pixel belongs to a class when its probability reaches the threshold. Dashed: the threshold chosen on "
        "all out-of-fold predictions. Where the curve is flat, the choice hardly matters."
    )
    rows: list[list[html.Cell]] = []
    for name, value, curve in zip(page.classes, page.evaluation["thresholds"], page.threshold_curve, strict=True):
        rows.append([name, f"{value / 255:.3f}", page.score_text(curve[value]), page.score_text(curve[HALF])])
    headers = ["class", "chosen", "score there", "score at one half"]
    return html.section("Thresholds", explained, html.side_by_side([threshold_chart(page), html.table(headers, rows)]))


def _classes(page: ReportInput) -> html.Section:
    columns = class_columns(page.evaluation)
    threshold = [] if page.task_kind == "multiclass" else ["threshold"]
    weights = [column.head for column in weight_columns(page.evaluation)]
    rows: list[list[html.Cell]] = []
    for row in class_rows(page):
        name = Markup(
            '<span class="swatched"><i class="swatch" style="background: rgb({}, {}, {})"></i>{}</span>'
        ).format(*row.colour, row.name)
        scores = [page.score_text(score) for score in row.scores]
        cells: list[html.Cell] = [name, *scores, f"{row.share:.2%}", _bar(row.share), row.num_images]
        cells += [] if row.threshold is None else [f"{row.threshold / 255:.3f}"]
        cells += [_weight(weight) for weight in row.weights]
        rows.append(cells)
    if len(columns) > 1 and len(rows) > 1:
        means = [page.score_text(column.mean) for column in columns]
        empty = [""] * (len(threshold) + len(weights))
        rows.append([Markup("<b>all images together</b>"), *means, "", "", None, *empty])
    heads = [column.head for column in columns]
    headers = ["class", *heads, "share of pixels", "", "images with it", *threshold, *weights]
    explained = "Shares are of the pixels whose truth is known; scores are out of fold and cross-fitted."
    return html.section("Classes", explained, _meaning_of_columns(page), html.table(headers, rows), mean_ious(page))


def _meaning_of_columns(page: ReportInput) -> str:
    """Returns what the scores of classes are, where there are several of each."""
    found = ""
    if "pixels" in page.evaluation:
        names = "Pixel IoU and pixel Dice" if page.evaluation["metric"] == "dice" else "IoU and Dice"
        before = ", before post-processing" if "postprocess" in page.evaluation else ""
        found = f"{names} are of the pixels of all images together{before}."
    if "boundary" in page.evaluation:
        tolerance = page.evaluation["boundary"]["tolerance"]
        found += (
            f" Boundary F says how well outlines agree within {tolerance} of an image's diagonal: the mean over images "
            "in which the class has an outline."
        )
    return found


def _contest(page: ReportInput) -> html.Section:
    """Returns the contest's own score of the masks, where the data is of one that has its own."""
    found = page.evaluation.get("contest")
    if found is None:
        return html.section("The contest's score")
    explained = (
        f"What {found['contest']} would give for these out-of-fold masks of {plural(found['num_images'], 'image')}: "
        f"{found['rule']}."
    )
    lacking, ignored = (", ".join(found[part]) for part in ("lacking", "ignored"))
    rows: list[list[html.Cell]] = [[name, page.score_text(score)] for name, score in found["classes"].items()]
    rows.append([Markup("<b>score</b>"), Markup("<b>{}</b>").format(page.score_text(found["score"]))])
    return html.section(
        "The contest's score",
        explained,
        f"Not scored here, as no class of the data holds it alone: {lacking}." if lacking else "",
        f"Left out here, though the contest counts what is predicted in its pixels: {ignored}." if ignored else "",
        html.table(["scored class", "mean over images"], rows),
    )


def _data(page: ReportInput) -> html.Section:
    parts: list[html.Part] = [_listed(data_facts(page))]
    if page.notes:
        parts.append(html.group("What was assumed", html.notes(page.notes)))
    problems = left_out(page)
    if problems:
        rows: list[list[html.Cell]] = [[file, reason] for file, reason in problems[:MAX_LISTED]]
        table = html.table(["file", "why"], rows)
        parts.append(html.group(f"Left out: {plural(len(problems), 'file')}", table, _more(len(problems))))
    return html.section("Data", *parts)


def _look_alikes(page: ReportInput) -> html.Section:
    if not page.near_duplicates:
        return html.section("Look-alikes")
    pairs = [Markup('<div class="pair">{}</div>').format(look_alike_pair(pair)) for pair in page.look_alikes]
    rows: list[list[html.Cell]] = [
        [pair["first"], pair["second"], f"{pair['similarity']:.3f}"] for pair in page.near_duplicates[:MAX_LISTED]
    ]
    explained = (
        f"{look_alike_line(page)}. The images of a pair are of different groups and look nearly the same; the number "
        "says how well their fine detail agrees (1: a copy)."
    )
    listed = html.folded("All pairs", html.table(["one", "other", "agreement"], rows), _more(len(page.near_duplicates)))
    return html.section("Look-alikes", explained, html.gallery(pairs, min_width=300), listed)


def _folds(page: ReportInput) -> html.Section:
    lines = fold_lines(page)
    if not lines:
        return html.section("Folds")
    areas = any(line.area is not None for line in lines)
    rows: list[list[html.Cell]] = []
    for line in lines:
        area = [None if line.area is None else f"{line.area:.2%}"] if areas else []
        rows.append(
            [line.name, page.score_text(line.score), line.num_images, line.num_groups, line.num_training, *area]
        )
    headers = ["fold", "score", "images", "groups", "trained on", *(["mean mask area"] if areas else [])]
    explained = (
        "The images of a fold are predicted by networks that were trained on the others. To change it, edit folds.csv "
        "in the run's folder and give it back: --set folds.kind=table --set folds.table=FILE"
    )
    return html.section("Folds", explained, html.table(headers, rows))


def _time(page: ReportInput) -> html.Section:
    times = stage_times(page)
    longest = max([row.seconds for row in times] + [1e-9])
    rows: list[list[html.Cell]] = [
        [row.name, duration(row.seconds), _bar(row.seconds / longest), row.detail] for row in times
    ]
    rows.append([Markup("<b>together</b>"), duration(sum(row.seconds for row in times)), "", ""])
    names = {"gpu": "GPU", "memory_gib": "memory (GiB)"}
    machine = [(names.get(name, name.replace("_", " ")), str(value)) for name, value in page.hardware.items()]
    return html.section(
        "Time and machine", html.table(["stage", "time", "", ""], rows), html.group("Machine", _listed(machine))
    )


def _recipe(page: ReportInput) -> html.Section:
    lines = len(page.recipe_yaml.splitlines())
    explained = "Everything that was asked for. Saved as a file and given to maskloom fit, it repeats the run."
    return html.section(
        "Recipe", explained, html.folded(f"Show it ({plural(lines, 'line')})", html.code(page.recipe_yaml))
    )


def _listed(pairs: list[tuple[str, str]]) -> Markup:
    rows = Markup("").join(Markup("<dt>{}</dt><dd>{}</dd>").format(name, value) for name, value in pairs)
    return Markup('<dl class="listed">{}</dl>').format(rows)


def _bar(share: float) -> Markup:
    return Markup('<span class="bar"><i style="width: {:.1f}%"></i></span>').format(100 * min(max(share, 0.0), 1.0))


def _more(total: int) -> str:
    return f"… and {total - MAX_LISTED:,} more." if total > MAX_LISTED else ""


@cache
def _style() -> Markup:
    text = files("maskloom.outputs").joinpath("report.css").read_text(encoding="utf-8")
    return Markup("<style>{}</style>").format(Markup(text))
