"""Where a run goes wrong: what is taken for what, how far probabilities hold, which attributes matter, by class.

Functions of a ``ReportInput`` whose ``errors`` are there; without them, as in runs of earlier versions, sections are
empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from maskloom.metrics import Confusion
from maskloom.outputs import page as html
from maskloom.outputs.charts import Series, line_chart
from maskloom.outputs.report_input import ReportInput
from maskloom.outputs.report_pictures import class_example, one_class_legend
from maskloom.outputs.report_words import interval_text, plural, signed

MAX_LABELS = 32
"""Rows of the table of confusions; where there are more classes, the rarest share the last one."""
MAX_CONFUSIONS = 8
"""Lines of the list of the largest confusions."""
LEAST_CONFUSION = 0.01
"""A share of a class's pixels below which a confusion is not listed."""
MAX_CURVES = 8
"""Lines of the chart of a binary or multilabel task; the others are in the table alone."""


def confusion(page: ReportInput) -> html.Section:
    """Returns what the pixels of each class were taken for."""
    title = "What is taken for what"
    if page.errors is None:
        return html.section(title)
    found = [
        (tuple(each["labels"]), Confusion(pixels=np.array(each["pixels"], np.int64)))
        for each in page.errors["confusion"]
    ]
    before = " Masks are those before post-processing." if "postprocess" in page.evaluation else ""
    if page.task_kind != "multiclass":
        explained = (
            "Of the pixels of a class, how many are found (recall); of those that are said to be of it, how many are "
            "(precision). Counts are in the tooltips." + before
        )
        return html.section(title, explained, _found_and_right([labels[1] for labels, _ in found], found))
    ((labels, whole),) = found
    explained = (
        "What the pixels of each class were taken for, in percent; on the diagonal they are right. The last row says "
        "how much of what was given to a class belongs there. Empty cells are below half a percent; counts are in the "
        "tooltips." + before
    )
    shown, merged = _merged(labels, whole)
    return html.section(title, explained, _heat_table(shown, merged), _largest(labels, whole))


def _found_and_right(names: Sequence[str], found: Sequence[tuple[tuple[str, ...], Confusion]]) -> Markup:
    rows: list[list[html.Cell]] = []
    for name, (_, each) in zip(names, found, strict=True):
        (tn, fp), (fn, tp) = each.pixels.tolist()
        shares = [
            _counted(tp, tp + fn, "of its pixels are found"),
            _counted(tp, tp + fp, "of the pixels said to be of it are"),
            _counted(fp, fp + tn, "of the pixels without it are said to have it"),
        ]
        rows.append([name, *shares, fn, fp])
    headers = ["class", "found", "right", "of the rest, taken for it", "pixels missed", "pixels too much"]
    return html.table(headers, rows)


def _counted(part: int, whole: int, words: str) -> Markup:
    text = f"{part / whole:.2%}" if whole else "–"
    return Markup('<span title="{}">{}</span>').format(f"{part:,} of {whole:,} {words}", text)


def _merged(labels: Sequence[str], whole: Confusion) -> tuple[list[str], Confusion]:
    """Returns at most ``MAX_LABELS`` labels, those of the most true pixels; the others are one, the last."""
    if len(labels) <= MAX_LABELS:
        return list(labels), whole
    commonest = np.argsort(-whole.pixels.sum(axis=1), kind="stable")[: MAX_LABELS - 1]
    kept = sorted(commonest.tolist())
    place = np.full(len(labels), len(kept))
    place[kept] = np.arange(len(kept))
    onto = np.zeros((len(labels), len(kept) + 1), np.int64)
    onto[np.arange(len(labels)), place] = 1
    names = [*(labels[index] for index in kept), f"{len(labels) - len(kept)} others"]
    return names, Confusion(pixels=onto.T @ whole.pixels @ onto)


def _heat_table(labels: Sequence[str], whole: Confusion) -> Markup:
    shares, totals = whole.shares(), whole.pixels.sum(axis=1)
    given = whole.pixels.sum(axis=0)
    head = Markup("").join(Markup("<th><span>{}</span></th>").format(name) for name in labels)
    body = Markup("").join(
        Markup("<tr><th>{}</th>{}</tr>").format(
            name,
            Markup("").join(
                _heat_cell(name, other, int(whole.pixels[row, column]), float(shares[row, column]), row == column)
                for column, other in enumerate(labels)
            ),
        )
        for row, name in enumerate(labels)
        if totals[row]
    )
    right = Markup("").join(
        Markup('<td title="{}">{}</td>').format(
            f"{int(whole.pixels[index, index]):,} of {int(count):,} pixels given to {labels[index]} belong there",
            f"{100 * whole.pixels[index, index] / count:.0f}" if count else "–",
        )
        for index, count in enumerate(given)
    )
    return Markup(
        '<div class="scroll"><table class="heat"><thead><tr><th>truth ↓ taken for →</th>{}</tr></thead>'
        "<tbody>{}</tbody><tfoot><tr><th>right, of what is given</th>{}</tr></tfoot></table></div>"
    ).format(head, body, right)


def _heat_cell(name: str, other: str, pixels: int, share: float, right: bool) -> Markup:
    """Returns a cell; what is wrong is coloured by the root of its share, so that small ones can be told apart."""
    strength = share if right else share**0.5
    text = f"{100 * share:.0f}"
    mark = Markup(' class="hit"') if right else Markup("")
    colour = Markup(' style="--s:{:.2f}"').format(strength) if strength >= 0.005 else Markup("")
    return Markup('<td{}{} title="{}">{}</td>').format(
        mark, colour, f"{name} taken for {other}: {pixels:,} pixels, {share:.2%}", "" if text == "0" else text
    )


def _largest(labels: Sequence[str], whole: Confusion) -> Markup:
    found = largest_confusions(whole)
    if not found:
        return Markup("")
    rows: list[list[html.Cell]] = [
        [labels[row], labels[column], f"{share:.1%}", int(whole.pixels[row, column])] for row, column, share in found
    ]
    table = html.table(["of the pixels of", "taken for", "share", "pixels"], rows)
    return html.group("The largest shares of a class that go to another", table)


def largest_confusions(whole: Confusion) -> list[tuple[int, int, float]]:
    """Returns (true label, predicted label, share of the true label's pixels), the largest shares first."""
    shares = np.nan_to_num(whole.shares())
    np.fill_diagonal(shares, 0)
    order = np.argsort(-shares, axis=None, kind="stable")[:MAX_CONFUSIONS]
    places = [divmod(int(each), len(shares)) for each in order]
    return [
        (row, column, float(shares[row, column])) for row, column in places if shares[row, column] >= LEAST_CONFUSION
    ]


def calibration(page: ReportInput) -> html.Section:
    """Returns how far probabilities hold: the reliability diagram, the calibration error, every bin."""
    if page.errors is None or not (curves := [each for each in page.errors["calibration"]["curves"] if _pixels(each)]):
        return html.section("Calibration")
    number = page.errors["calibration"]["num_bins"]
    if page.task_kind == "multiclass":
        what = "A pixel counts with the probability of the class that was chosen for it"
        chart = [curves[0]]
    else:
        what = "Every pixel counts with the probability of the class"
        chart = curves[:MAX_CURVES]
    explained = (
        f"Whether probabilities mean what they say: of the pixels given 0.8, four in five should come true. {what}, in "
        f"one of {number} bins of equal width. Points below the diagonal are too sure, points above too careful."
    )
    formula = (
        "Expected calibration error: the mean over all pixels of how far their bin is off, "
        "ECE = Σ over bins of (pixels of the bin / all pixels) · |share that came true − mean probability| "
        "(Guo et al., On Calibration of Modern Neural Networks, 2017)."
    )
    series = [Series("as it should be", [0.0, 1.0], [0.0, 1.0]), *(_reliability(each) for each in chart)]
    drawn = line_chart(
        series,
        title=f"Reliability; calibration error {curves[0]['error']:.4f}" if len(chart) == 1 else "Reliability",
        x_label="mean probability of the bin",
        y_label="share that came true",
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
    )
    rows: list[list[html.Cell]] = [
        [
            each["name"],
            f"{each['error']:.4f}",
            f"{each['probability']:.3f}",
            f"{each['share']:.3f}",
            _pixels(each),
        ]
        for each in curves
    ]
    headers = ["class", "calibration error", "mean probability", "came true", "pixels"]
    table = html.table(headers, rows)
    bins = html.folded(f"Every bin of {curves[0]['name']}", _bins(curves[0]))
    return html.section("Calibration", explained, formula, html.side_by_side([drawn, table]), bins)


def _pixels(curve: Mapping[str, Any]) -> int:
    return sum(each["pixels"] for each in curve["bins"])


def _reliability(curve: Mapping[str, Any]) -> Series:
    known = [each for each in curve["bins"] if each["pixels"]]
    return Series(curve["name"], [each["probability"] for each in known], [each["share"] for each in known])


def _bins(curve: Mapping[str, Any]) -> Markup:
    number = len(curve["bins"])
    rows: list[list[html.Cell]] = [
        [
            f"{index / number:.3f} to {(index + 1) / number:.3f}",
            each["pixels"],
            f"{each['probability']:.3f}",
            f"{each['share']:.3f}",
            f"{each['share'] - each['probability']:+.3f}".replace("-", "−"),
        ]
        for index, each in enumerate(curve["bins"])
        if each["pixels"]
    ]
    return html.table(["probability", "pixels", "mean", "came true", "difference"], rows)


def by_attribute(page: ReportInput) -> html.Section:
    """Returns the scores of the images of every attribute's value, and of every pair of two."""
    found = {} if page.errors is None else page.errors["attributes"]
    if not found or not (found["tables"] or found["left_out"]):
        return html.section("By attribute")
    if not found["tables"]:
        return html.section("By attribute", _without_table(found))
    explained = (
        f"The {page.metric_name} of the images that share a value. ▲ and ▼ mark those that score higher or lower than "
        "all others beyond noise: the whole interval of the difference lies on one side of 0 when groups of images are "
        f"drawn anew. {_compared(found)} A value is not judged where fewer than "
        f"{found['min_groups']} groups have it, or have another. Of more than 100 only the first are judged."
    )
    if page.evaluation["metric"] == "iou":
        explained += " A difference is taken over the classes that occur on both sides."
    if "postprocess" in page.evaluation:
        explained += " Masks are those before post-processing."
    shown = [_attribute_table(page, table) for table in found["tables"]]
    return html.section("By attribute", explained, *shown, _without_table(found))


def _attribute_table(page: ReportInput, table: Mapping[str, Any]) -> Markup:
    """Returns a table's group; one in which nothing could be compared opens at a click."""
    title = " × ".join(table["names"])
    drawn = _values(page, table) if len(table["names"]) == 1 else _crossed(page, table)
    if any(part["difference"] is not None for part in table["parts"]):
        return html.group(title, drawn)
    return html.folded(f"{title}: {plural(len(table['parts']), 'value')}, none judged", drawn)


def _compared(found: Mapping[str, Any]) -> str:
    count = found["num_compared"]
    if not count:
        return "None could be compared."
    wide = f", so the intervals are wide enough that all hold with {100 * found['confidence']:.0f} % probability"
    return f"{plural(count, 'comparison')} could be made{wide if count > 1 else ''}."


def _without_table(found: Mapping[str, Any]) -> str:
    listed = "; ".join(f"{name} ({why})" for name, why in found["left_out"].items())
    return f"Attributes without a table: {listed}." if listed else ""


def _values(page: ReportInput, table: Mapping[str, Any]) -> Markup:
    rows: list[list[html.Cell]] = []
    for part in table["parts"]:
        gain = part["difference"]
        measured = ["not judged", ""] if gain is None else [signed(gain["mean"]), _interval(gain)]
        score = Markup('<span class="{}">{} {}</span>').format(
            _style(part), page.score_text(part["score"]), _sign(part)
        )
        rows.append([_value(part["values"][0]), score, part["images"], part["groups"], *measured])
    headers = [table["names"][0], "score", "images", "groups", "less that of the others", "interval"]
    return html.table(headers, rows)


def _interval(gain: Mapping[str, Any]) -> str:
    return f"{signed(gain['low'])} … {signed(gain['high'])}"


def _crossed(page: ReportInput, table: Mapping[str, Any]) -> Markup:
    """Returns the scores with the values of the attribute of more values down, those of the other across."""
    values = [list(dict.fromkeys(each)) for each in zip(*(part["values"] for part in table["parts"]), strict=True)]
    turned = len(values[1]) > len(values[0])
    down, across = (sorted(values[1]), sorted(values[0])) if turned else (sorted(values[0]), sorted(values[1]))
    parts = {tuple(reversed(part["values"])) if turned else tuple(part["values"]): part for part in table["parts"]}
    rows: list[list[html.Cell]] = [
        [_value(first), *(_cell(page, parts.get((first, second))) for second in across)] for first in down
    ]
    corner = " ↓ ".join(reversed(table["names"]) if turned else table["names"]) + " →"
    return Markup('<div class="crossed">{}</div>').format(html.table([corner, *map(_value, across)], rows))


def _cell(page: ReportInput, part: Mapping[str, Any] | None) -> Markup:
    if part is None:
        return Markup("")
    gain = part["difference"]
    words = f"{plural(part['images'], 'image')} of {plural(part['groups'], 'group')}"
    words += "" if gain is None else f"; {signed(gain['mean'])} against the others, {interval_text(gain)}"
    return Markup('<span class="{}" title="{}">{} {}<small>{}</small></span>').format(
        _style(part), words, page.score_text(part["score"]), _sign(part), f"{part['images']:,}"
    )


def _mood(part: Mapping[str, Any]) -> str:
    return "" if not part["beyond_noise"] else "higher" if part["difference"]["mean"] > 0 else "lower"


def _style(part: Mapping[str, Any]) -> str:
    return f"part {_mood(part)}".strip()


def _sign(part: Mapping[str, Any]) -> str:
    return {"": "", "higher": "▲", "lower": "▼"}[_mood(part)]


def _value(text: str) -> str:
    return text or "(not stated)"


def worst_of_classes(page: ReportInput) -> html.Section:
    """Returns the worst images of each class, seen with the eyes of that class alone."""
    if not page.class_examples:
        return html.section("Worst images of each class")
    what = "the lowest Dice" if page.evaluation["metric"] == "dice" else "the most wrong pixels"
    explained = (
        f"The images with {what} of each class, which cost its score most, cut to where its errors are. Only the one "
        "class is shown."
    )
    before = "The masks are those before post-processing." if "postprocess" in page.evaluation else ""
    shown = [class_example(page, example) for example in page.class_examples]
    return html.section("Worst images of each class", explained, before, one_class_legend(page), *shown)


def mean_ious(page: ReportInput) -> str:
    """Returns the mean IoU with and without classes that no truth holds, in a sentence; "" where there is one class."""
    if page.errors is None or len(page.classes) < 2:
        return ""
    found = page.errors["mean_iou"]
    scores: Mapping[str, float | None] = page.evaluation["oof"]["classes"]
    with_all, without = page.score_text(found["absent_counted"]), page.score_text(found["absent_left_out"])
    before = " before post-processing" if "postprocess" in page.evaluation else ""
    first = f"Mean IoU of the pixels of all images together{before}: {without}"
    pixels = page.errors["confusion"]
    absent = _absent(pixels, page) if scores else []
    if not absent:
        return f"{first}; every class occurs in the truth, so none is left out."
    return (
        f"{first} over the classes that occur in the truth, {with_all} with those that do not "
        f"({', '.join(absent)}), which count 1 where they are never predicted and 0 where they are."
    )


def _absent(found: Sequence[Mapping[str, Any]], page: ReportInput) -> list[str]:
    """Returns the classes of which the truth has no pixel."""
    true: list[NDArray[np.int64]] = [np.array(each["pixels"], np.int64).sum(axis=1) for each in found]
    totals = true[0] if page.task_kind == "multiclass" else [each[1] for each in true]
    return [name for name, total in zip(page.classes, totals, strict=True) if not total]
