"""What a run's numbers mean, in plain words: the headline of a report and the findings beneath it.

Pure functions of a ``ReportInput``. Every sentence is plain text; whoever shows it escapes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from maskloom.metrics import Confusion
from maskloom.outputs.report_input import ReportInput

Mood = Literal["good", "watch", "plain"]

_SMALL = 5e-5
"""Score differences below this are called none: they vanish in four decimals."""
_LONG_TAIL = 0.05
"""A worst twentieth this far below the typical image is worth a look."""
_STILL_RISING = 0.002
"""Gain between the last two validations from which more training would probably help."""

_OFTEN = 0.25
"""A share of a class's pixels given to one other class that is worth a look."""
_OFF = 0.02
"""A difference of mean probability and share of true pixels that is worth a word."""
_MAX_NAMED = 3
"""Attribute values named in a finding."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One observation: ``title`` in a few words, ``text`` in one or two sentences."""

    mood: Mood
    title: str
    text: str


def headline(page: ReportInput) -> str:
    """Returns what the one number means, for a reader who has never heard of the metric."""
    score, percent = page.evaluation["oof"]["mean"], f"{100 * page.evaluation['oof']['mean']:.1f} %"
    if page.evaluation["metric"] == "dice":
        meaning = (
            f"On images that its networks had never seen, predicted and true masks agree to {percent}. That is the "
            "average Dice score: twice the shared area over the sum of both areas, 1 for a perfect mask and 0 for "
            "one that misses everything."
        )
    else:
        over = " on average over the classes" if len(page.classes) > 1 else ""
        meaning = (
            f"On images that its networks had never seen, the area that prediction and truth share is {percent} of "
            f"the area that either covers{over}. That is the IoU score: 1 is a perfect mask, 0 misses everything."
        )
    return meaning if score >= 0.0005 else meaning + " Something went wrong: look at the worst images below."


def trust(page: ReportInput) -> str:
    """Returns why the number can be trusted, and what it was measured on."""
    num_images, num_folds = len(page.image_scores), len(page.evaluation["oof"]["folds"])
    if num_folds == 1:
        where = f"Measured on {plural(num_images, 'validation image')} that were kept out of training"
    else:
        where = f"Every one of {plural(num_images, 'image')} was predicted by networks that never saw its group"
    fitted = "thresholds" if page.task_kind != "multiclass" else ""
    if len(page.evaluation["members"]) > 1:
        fitted = f"{fitted} and weights" if fitted else "weights"
    if not fitted:
        return f"{where}."
    return f"{where}; {fitted} were fitted on other images than they are scored on (cross-fitted)."


def findings(page: ReportInput) -> list[Finding]:
    """Returns what stands out, the worrying first."""
    found = [
        finding
        for part in (
            _leaks, _damage, _tail, _classes, _mistakes, _attributes, _calibration, _folds, _training, _ensemble,
            _views, _thresholds, _postprocessing,
        )
        for finding in part(page)
    ]  # fmt: skip
    return sorted(found, key=lambda finding: ("watch", "good", "plain").index(finding.mood))


def _leaks(page: ReportInput) -> Iterator[Finding]:
    count = page.num_straddling
    if count:
        yield Finding(
            "watch",
            f"{plural(count, 'pair')} of look-alikes over two folds",
            "Images of different groups look nearly the same. If they show the same thing, the score is too kind; "
            "--set folds.merge_near_duplicates=true keeps them together (where there are train and val folders, with "
            "--set folds.kind=kfold).",
        )
        return
    text = "No group and no exact copy is on two sides of a fold"
    close = f"; {plural(len(page.near_duplicates), 'pair')} of look-alikes share theirs" if page.near_duplicates else ""
    yield Finding("good", "No leak found", f"{text}{close or ', and no two groups look alike'}.")


def _damage(page: ReportInput) -> Iterator[Finding]:
    count = len(page.left_out) + len(page.survey.bad)
    if count:
        yield Finding(
            "watch", f"{plural(count, 'file')} left out", "They could not be used; the reasons stand under Data."
        )


def _tail(page: ReportInput) -> Iterator[Finding]:
    if len(page.image_scores) < 10:
        return
    low, middle = np.percentile(page.image_scores, [5, 50]).tolist()
    worst = min(page.image_scores)
    if middle - low > _LONG_TAIL:
        yield Finding(
            "watch",
            "A tail of hard images",
            f"The typical image scores {middle:.4f}, but one in twenty stays below {low:.4f} (the worst at "
            f"{worst:.4f}). The worst images below often show why.",
        )
    else:
        yield Finding(
            "good",
            "Even quality",
            f"The typical image scores {middle:.4f}, nineteen of twenty at least {low:.4f}, the worst {worst:.4f}.",
        )


def _classes(page: ReportInput) -> Iterator[Finding]:
    scores = {name: score for name, score in page.evaluation["oof"]["classes"].items() if score is not None}
    if len(scores) > 1:
        worst, best = min(scores, key=scores.__getitem__), max(scores, key=scores.__getitem__)
        yield Finding(
            "watch" if scores[worst] < 0.5 * scores[best] else "plain",
            f"Hardest class: {worst}",
            f"It scores {scores[worst]:.4f}; the easiest, {best}, {scores[best]:.4f}.",
        )
    absent = [name for name, score in page.evaluation["oof"]["classes"].items() if score is None]
    if absent:
        yield Finding("watch", "Classes never seen in validation", f"No score for {', '.join(absent)}.")


def _mistakes(page: ReportInput) -> Iterator[Finding]:
    if page.errors is None or page.task_kind != "multiclass":
        return
    (found,) = page.errors["confusion"]
    shares = np.nan_to_num(Confusion(pixels=np.array(found["pixels"], np.int64)).shares())
    np.fill_diagonal(shares, 0)
    row, column = np.unravel_index(int(shares.argmax()), shares.shape)
    if shares[row, column] >= _OFTEN:
        name, other = found["labels"][row], found["labels"][column]
        yield Finding("watch", f"{name} taken for {other}", f"So are {shares[row, column]:.0%} of its pixels.")


def _attributes(page: ReportInput) -> Iterator[Finding]:
    tables = [] if page.errors is None else page.errors["attributes"]["tables"]
    lower = [
        (part["difference"]["mean"], ", ".join(map(" ".join, zip(table["names"], part["values"], strict=True))))
        for table in tables
        for part in table["parts"]
        if len(table["names"]) == 1 and part["beyond_noise"] and part["difference"]["mean"] < 0
    ]
    if lower:
        named = "; ".join(f"{name} {signed(mean)}" for mean, name in sorted(lower)[:_MAX_NAMED])
        more = f"; {len(lower) - _MAX_NAMED} more" if len(lower) > _MAX_NAMED else ""
        title = f"{plural(len(lower), 'attribute value')} below the others"
        yield Finding("watch", title, f"Beyond noise: {named}{more}.")


def _calibration(page: ReportInput) -> Iterator[Finding]:
    if page.errors is None or page.task_kind == "multilabel":
        return
    for curve in page.errors["calibration"]["curves"][:1]:
        stated, true = curve["probability"], curve["share"]
        if stated is not None and abs(stated - true) >= _OFF:
            mood = "sure" if stated > true else "careful"
            text = f"Their mean is {stated:.3f}, but {true:.3f} of the pixels come true."
            yield Finding("plain", f"Probabilities are too {mood}", text)


def _folds(page: ReportInput) -> Iterator[Finding]:
    oof = page.evaluation["oof"]
    if len(oof["folds"]) == 1:
        yield Finding(
            "plain",
            "One fixed split",
            "The data's own training and validation parts were used, so no spread over folds shows the part of luck.",
        )
    elif oof["std"] < 0.25 * min(oof["mean"], 1 - oof["mean"]) + _SMALL:
        yield Finding(
            "good",
            "Folds agree",
            f"They lie between {min(oof['folds']):.4f} and {max(oof['folds']):.4f}: the score hardly depends on which "
            "images were held out.",
        )
    else:
        worst = int(np.argmin(oof["folds"]))
        yield Finding(
            "watch",
            "Folds differ",
            f"Fold {worst} reaches {oof['folds'][worst]:.4f}, the best {max(oof['folds']):.4f}. Its images may hold "
            "something the others lack.",
        )


def _training(page: ReportInput) -> Iterator[Finding]:
    scored = [_scored(epochs) for epochs in page.learning_curves.values()]
    scored = [scores for scores in scored if len(scores) > 1]
    rising = sum(scores[-1] - scores[-2] > _STILL_RISING for scores in scored)
    if scored and 2 * rising > len(scored):
        yield Finding(
            "plain",
            "Still improving",
            f"{rising} of {plural(len(scored), 'network')} gained more than {_STILL_RISING} between the last two "
            "validations; more epochs would probably help.",
        )


def _ensemble(page: ReportInput) -> Iterator[Finding]:
    whole, weights = page.evaluation["oof"], page.evaluation["weights"]
    inside = {name: scores for name, scores in page.evaluation["members"].items() if name in weights}
    # The score of some of the classes is no score of all of them.
    means = {name: scores["mean"] for name, scores in inside.items() if set(scores["classes"]) == set(whole["classes"])}
    if len(inside) > 1 and means:
        best = max(means, key=means.__getitem__)
        yield _difference("The ensemble", whole["mean"] - means[best], f"over its best member, {best}")


def _views(page: ReportInput) -> Iterator[Finding]:
    gains = [
        scores["mean"] - scores["without_views"]["mean"]
        for name, scores in page.evaluation["members"].items()
        if page.member(name).asked == "with views"
    ]
    if any(abs(gain) > 1e-9 for gain in gains):
        yield _difference("Test-time views", float(np.mean(gains)), "over predicting each image once")


def _thresholds(page: ReportInput) -> Iterator[Finding]:
    if page.task_kind != "multiclass":
        gain = page.evaluation["oof"]["mean"] - page.evaluation["half"]["mean"]
        several = len(page.evaluation["members"]) > 1
        what = "Fitted weights and thresholds" if several else "Fitted thresholds"
        nothing = "equal weights and " if several else ""
        yield _difference(what, gain, f"over {nothing}cutting at one half, cross-fitted")


def _postprocessing(page: ReportInput) -> Iterator[Finding]:
    found = page.evaluation.get("postprocess")
    if found is None:
        return
    steps = chosen_steps(found)
    if not steps:
        yield Finding(
            "plain",
            "Post-processing: left off",
            f"{plural(len(found['trials']), 'candidate step')} tried; none helps beyond noise.",
        )
        return
    gain, text = found["gain"], f"By {', '.join(steps)}: {interval_text(found['gain'])}"
    beyond = gain["low"] > 0 or gain["high"] < 0
    mood: Mood = "plain" if not beyond else "good" if gain["mean"] > 0 else "watch"
    within = "" if beyond else ", which is within noise"
    title = signed(gain["mean"])
    yield Finding(mood, f"Post-processing: {'no difference' if title == '0' else title}", f"{text}{within}.")


def chosen_steps(found: Mapping[str, Any]) -> list[str]:
    """Returns the steps that post-processing takes, in words, from what its stage found."""
    return [trial["text"] for trial in found["trials"] if trial["chosen"]]


def signed(value: float) -> str:
    """Returns a difference of scores with its sign: "+0.00012", "−0.00012", "0"."""
    text = f"{abs(value):.5f}"
    return "0" if float(text) == 0 else f"{'+' if value > 0 else '−'}{text}"


def interval_text(gain: Mapping[str, Any]) -> str:
    """Returns the interval of a gain in words: "from −0.00001 to +0.00020 in 95 % of draws"."""
    digits = 1 if gain["confidence"] < 0.9995 else 4  # never "100"
    share = f"{100 * gain['confidence']:.{digits}f}".rstrip("0").rstrip(".")
    return f"from {signed(gain['low'])} to {signed(gain['high'])} in {share} % of draws"


def _difference(what: str, gain: float, compared: str) -> Finding:
    points = f"{abs(gain):.4f}"
    if abs(gain) < _SMALL:
        return Finding("plain", f"{what}: no difference", f"The score stays the same {compared}.")
    if gain > 0:
        return Finding("good", f"{what}: +{points}", f"Gained {compared}.")
    return Finding("watch", f"{what}: −{points}", f"Lost {compared}.")


def _scored(epochs: Sequence[Mapping[str, Any]]) -> list[float]:
    return [epoch["score"] for epoch in epochs if epoch.get("score") is not None]


def plural(count: int, noun: str) -> str:
    """Returns the count with its noun: "1 image", "1,200 images", "2 classes"."""
    ending = "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{'' if count == 1 else ending}"


def duration(seconds: float) -> str:
    """Returns a duration as people say it: "0.4 s", "48 s", "12 min 5 s", "3 h 20 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
