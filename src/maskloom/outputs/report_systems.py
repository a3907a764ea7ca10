"""What the later stages of a system decided: pseudo-labels that members learnt from, steps that change its masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from maskloom.outputs import page as html
from maskloom.outputs.report_input import PseudoRound, ReportInput
from maskloom.outputs.report_pictures import changed_mask, error_legend, labelled_image, pseudo_legend
from maskloom.outputs.report_words import chosen_steps, plural, signed

REASONS = {
    "beyond the number": "beyond the number",
    "unsure": "not sure enough",
    "disagreement": "folds disagree",
    "validated": "of a group it validates",
    "look-alike": "like what it validates",
    "damaged": "damaged",
}
"""Why an image was refused, as the heading of a column."""
_NOT_SHOWN = {"kind", "classes", "value", "scale_pixels"}
"""Of a step's settings: said elsewhere."""


def pseudo_labels(page: ReportInput) -> html.Section:
    """Returns what every round offered to each fold, what was chosen and why not the others, and some of the labels."""
    if not page.pseudo_rounds:
        return html.section("Pseudo-labels")
    explained = (
        "Images without truth, labelled by networks that never saw what the learning fold validates. Images of a group "
        "that it validates, and what looks like one of those, are refused however sure the labels are. Confidence is "
        "measured near the predicted boundary (0: undecided, 1: sure), agreement is the Dice between folds."
    )
    rounds = [
        html.group(
            f"Round {each.number}: {' and '.join(each.teachers)} labelled for {' and '.join(each.pupils)}",
            each.train
            + (
                f" Labels of a confidence below {each.minimum_confidence:g} are refused."
                if each.minimum_confidence
                else ""
            ),
            html.notes(each.notes),
            _folds(each),
            _labelled(page, each),
        )
        for each in page.pseudo_rounds
    ]
    return html.section("Pseudo-labels", explained, *rounds)


def _folds(each: PseudoRound) -> Markup:
    met = [reason for reason in REASONS if any(reason in fold.reasons for fold in each.folds)]
    rows: list[list[html.Cell]] = [
        [
            fold.name,
            fold.offered,
            fold.reasons.get("chosen", 0),
            *(fold.reasons.get(reason, 0) for reason in met),
            round(fold.least_confidence, 3),
        ]
        for fold in each.folds
    ]
    return html.table(["for", "offered", "chosen", *(REASONS[reason] for reason in met), "least confidence"], rows)


def _labelled(page: ReportInput, each: PseudoRound) -> Markup:
    if not each.examples:
        return Markup("")
    figures = [labelled_image(page, example) for example in each.examples]
    return (
        Markup("<p>{}</p>").format("Chosen images, the least sure first:")
        + pseudo_legend(page)
        + html.gallery(figures, min_width=270)
    )


def postprocessing(page: ReportInput) -> html.Section:
    """Returns which steps were tried and taken, what they gain, and images that they change."""
    found = page.evaluation.get("postprocess")
    if found is None:
        return html.section("Post-processing")
    if found["choose"] == "always":
        how = "All steps are taken, as the recipe says; each gain is over what the steps before it leave."
    else:
        how = (
            "A step is taken only when it helps beyond noise: when the whole interval of its gain lies above 0, over "
            f"images drawn anew by groups. As {plural(len(found['trials']), 'candidate')} had a chance, their "
            "intervals are wider than that of the whole. Steps are scored on other images than they are chosen on, as "
            "thresholds and weights are."
        )
    scores, gain = found["scores"], found["gain"]
    facts: list[tuple[str, html.Cell]] = [
        ("without, cross-fitted", _mean(page, scores["without"])),
        ("with, cross-fitted", _mean(page, scores["with"])),
        ("gain over all images", signed(gain["mean"])),
        (f"its interval over {plural(gain['num_groups'], 'group')}", _interval(gain)),
    ]
    return html.section(
        "Post-processing",
        how,
        html.facts(facts),
        _trials(found),
        _of_parts(found),
        _changed(page, found),
    )


def _mean(page: ReportInput, scores: Mapping[str, Any]) -> str:
    spread = f" ± {page.score_text(scores['std'])}" if len(scores["folds"]) > 1 else ""
    return page.score_text(scores["mean"]) + spread


def _interval(gain: Mapping[str, Any]) -> str:
    return f"{signed(gain['low'])} … {signed(gain['high'])}"


def _trials(found: Mapping[str, Any]) -> Markup:
    rows: list[list[html.Cell]] = []
    for trial in found["trials"]:
        gain = trial["gain"]
        name = Markup("<b>{}</b><small>{}</small>").format(trial["text"], _constants(trial["step"]))
        measured = ["–", "–"] if gain is None else [signed(gain["mean"]), _interval(gain)]
        rows.append([name, *measured, "yes" if trial["chosen"] else "no", trial["why"]])
    table = html.table(["step", "gain", "interval", "taken", "why"], rows)
    return Markup('<div class="steps">{}</div>').format(table)


def _constants(step: Mapping[str, Any]) -> str:
    """Returns what a step was given, in words: "minimum area 2,000 (at 1280 rows)"."""
    words = []
    for name, value in step.items():
        if name in _NOT_SHOWN or value is None:
            continue
        shown = html.number(value) if isinstance(value, int | float) else value
        words.append(f"{name.replace('_', ' ')} {'×'.join(map(str, value)) if isinstance(value, list) else shown}")
    return ", ".join(words) + (" (at 1280 rows)" if words and step.get("scale_pixels") else "")


def _of_parts(found: Mapping[str, Any]) -> Markup:
    """Returns what was chosen for the parts of the cross-fitting, where it is not the same everywhere."""
    parts = found["steps_of_parts"]
    if all(steps == chosen_steps(found) for steps in parts.values()):
        return Markup("")
    rows: list[list[html.Cell]] = [[part, ", ".join(parts[part]) or "none"] for part in sorted(parts, key=int)]
    return html.folded("What was chosen for each part", html.table(["part", "steps chosen on the others"], rows))


def _changed(page: ReportInput, found: Mapping[str, Any]) -> Markup:
    if not chosen_steps(found):
        return Markup("")
    if not page.changed_masks:
        nothing = "No image whose score the steps change could be read: has the data moved?"
        if not any(found["steps_of_parts"].values()):
            nothing = "No step was chosen on other images than those it is scored on, so no score changes."
        elif found["scores"]["with"] == found["scores"]["without"]:
            nothing = "The steps change no score."
        return html.group("Before and after", nothing)
    explained = "The images whose score the steps change most, for better or worse."
    shown = Markup("").join(changed_mask(page, changed) for changed in page.changed_masks)
    return html.group("Before and after", explained, error_legend(page), shown)
