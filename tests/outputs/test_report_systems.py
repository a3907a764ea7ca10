"""What a report says about the later stages of a system: members that differ, pseudo-labels, post-processing."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from report_inputs import CLASSES, EVIL, Page, report_input, summary

from maskloom.outputs.overlays import UNSURE, class_colours, pseudo_overlay
from maskloom.outputs.report import report_page
from maskloom.outputs.report_input import (
    ChangedMask,
    MemberFacts,
    PseudoFold,
    PseudoLabelled,
    PseudoRound,
    ReportInput,
)
from maskloom.outputs.report_systems import postprocessing, pseudo_labels
from maskloom.outputs.report_tables import class_rows, score_rows, stage_times
from maskloom.outputs.report_words import chosen_steps, findings, interval_text, signed
from maskloom.records import TaskKind


def gain(mean: float, low: float, high: float, confidence: float = 0.95) -> dict[str, Any]:
    return {
        "mean": mean, "low": low, "high": high, "standard_error": 0.0, "probability": 1.0, "confidence": confidence,
        "num_groups": 6,
    }  # fmt: skip


def postprocess(classes: tuple[str, ...], **changes: Any) -> dict[str, Any]:
    """What the stage leaves: holes are filled, small pieces stay, and with so few groups nothing else was tried."""
    holes = {"kind": "holes", "classes": [classes[0]], "scale_pixels": True, "maximum_area": None}
    small = {"kind": "small", "classes": [classes[0]], "scale_pixels": True, "minimum_area": 2000.0}
    hull = {"kind": "hull", "classes": [classes[0]], "scale_pixels": False, "element": [2, 1], "map": EVIL}
    found = {
        "metric": "dice",
        "choose": "searched",
        "steps": [holes],
        "trials": [
            {"step": holes, "text": "fill holes", "gain": gain(0.002, 0.001, 0.003), "chosen": True, "why": "it helps"},
            {"step": small, "text": "small", "gain": gain(-0.0001, -0.0002, 0.0), "chosen": False, "why": "harm"},
            {"step": hull, "text": EVIL, "gain": None, "chosen": False, "why": "not tried"},
        ],
        "steps_of_parts": {"0": ["fill holes"], "1": ["fill holes"]},
        "scores": {"without": summary(0.9, classes), "with": summary(0.902, classes)},
        "gain": gain(0.002, 0.0012, 0.0028),
    }
    return found | changes


def with_postprocessing(kind: TaskKind = "binary", *, pictures: int = 0, **changes: Any) -> ReportInput:
    page = report_input(kind)
    shape = page.examples[0].truth.shape
    before = np.zeros(shape, np.uint8)
    after = before.copy()
    after[..., 5:10, 5:20] = 1
    changed = ChangedMask(
        id=EVIL, fold=1, score_before=0.5, score_after=0.75, image=page.examples[0].image,
        truth=page.examples[0].truth, before=before, after=after,
    )  # fmt: skip
    found = postprocess(CLASSES[kind], **changes)
    return replace(page, evaluation={**page.evaluation, "postprocess": found}, changed_masks=[changed] * pictures)


def text_of(section: Any) -> str:
    """Returns the words of a section without tags."""
    return re.sub(r"<[^>]*>", " ", " ".join(section.parts))


def test_steps_are_listed_with_their_gains_and_constants() -> None:
    page = with_postprocessing()
    text = text_of(postprocessing(page))
    for words in ("fill holes", "+0.00200", "+0.00100 … +0.00300", "it helps", "minimum area 2,000 (at 1280 rows)"):
        assert words in text
    assert "−0.00010" in text and "−0.00020 … 0" in text and "element 2×1, map" in text
    assert "0.9000 ± 0.0100" in text and "0.9020 ± 0.0100" in text, "without and with, cross-fitted"
    assert "+0.00120 … +0.00280" in text and "its interval over 6 groups" in text
    assert "As 3 candidates had a chance" in text and "What was chosen for each part" not in text
    assert "All steps are taken" in text_of(postprocessing(with_postprocessing(choose="always")))


def test_parts_that_chose_otherwise_are_told() -> None:
    parts: dict[str, list[str]] = {"10": [], "2": ["fill holes"]}
    text = text_of(postprocessing(with_postprocessing(steps_of_parts=parts)))
    assert re.search(r"What was chosen for each part.*\b2\b.*fill holes.*\b10\b.*none", text, re.S)
    text = text_of(postprocessing(with_postprocessing(steps_of_parts={"0": [], "1": []})))
    assert "so no score changes" in text


@pytest.mark.parametrize("kind", CLASSES)
def test_masks_before_and_after(kind: TaskKind) -> None:
    page = with_postprocessing(kind, pictures=4)
    text = report_page(page)
    shown = Page(text)
    assert shown.tags.count("img") == 2 + 2 * 4 + 4 * 5
    assert "0.5000 → 0.7500" in text and "<script" not in text
    assert shown.headings.index("Post-processing") + 1 == shown.headings.index("Worst images")
    assert "those before post-processing" in text


def test_weights_per_class_stand_beside_the_classes() -> None:
    page = report_input("multilabel")
    first, second = page.classes[:2]
    member = page.evaluation["members"]["unet"]
    evaluation = {**page.evaluation, "members": {"unet": member, "index": member}}
    by_class = dict.fromkeys(page.classes, 0.25) | {second: 0.8125}
    weights = {"unet": by_class, "index": {name: 1 - weight for name, weight in by_class.items()}}
    found = replace(page, evaluation={**evaluation, "weights": weights})
    assert next(row.weight for row in score_rows(found) if row.name == "index") == weights["index"]
    assert {row.name: list(row.weights) for row in class_rows(found)}[second] == [0.8125, 0.1875]
    text = report_page(found)
    assert text.count(">by class<") == 2 and "weight of unet" in text and "weight of index" in text
    assert re.search(
        rf">{re.escape(first)}<.*>0\.250<.*>0\.750<.*>{re.escape(second)}<.*>0\.812<.*>0\.188<", text, re.S
    )
    plain = report_page(replace(page, evaluation={**evaluation, "weights": {"unet": 0.25, "index": 0.75}}))
    assert "by class" not in plain and "weight of" not in plain and ">0.250<" in plain


def test_post_processing_stands_in_the_result_and_the_scores() -> None:
    page = with_postprocessing()
    assert [(row.name, row.mean) for row in score_rows(page) if row.honest] == [
        ("Ensemble", 0.9),
        ("Ensemble, post-processed", 0.902),
    ]
    (found,) = [each for each in findings(page) if each.title.startswith("Post-processing")]
    assert (found.mood, found.title) == ("good", "Post-processing: +0.00200")
    assert "fill holes: from +0.00120 to +0.00280 in 95 % of draws" in found.text
    assert re.search(r"0\.9020</dd><dt>post-processed", report_page(page))


@pytest.mark.parametrize(
    ("values", "mood", "title"),
    [
        ((0.001, -0.001, 0.003), "plain", "Post-processing: +0.00100"),
        ((-0.002, -0.003, -0.001), "watch", "Post-processing: −0.00200"),
        ((0.0, 0.0, 0.0), "plain", "Post-processing: no difference"),
    ],
)
def test_a_gain_within_noise_is_not_praised(values: tuple[float, float, float], mood: str, title: str) -> None:
    (found,) = [
        each for each in findings(with_postprocessing(gain=gain(*values))) if each.title.startswith("Post-processing")
    ]
    assert (found.mood, found.title) == (mood, title)


def test_steps_that_were_all_left_off() -> None:
    trials = [trial | {"chosen": False} for trial in postprocess(("car",))["trials"]]
    page = with_postprocessing(trials=trials, steps=[], steps_of_parts={"0": []})
    assert chosen_steps(page.evaluation["postprocess"]) == []
    assert any(each.title == "Post-processing: left off" and "3 candidate" in each.text for each in findings(page))
    assert "Before and after" not in text_of(postprocessing(page))
    assert "<dt>post-processed" not in report_page(page)


def test_signs_and_intervals() -> None:
    assert [signed(value) for value in (0.1, -0.00001, 0.000004, 0.0)] == ["+0.10000", "−0.00001", "0", "0"]
    assert interval_text(gain(0, -0.1, 0.2, confidence=0.9929)) == "from −0.10000 to +0.20000 in 99.3 % of draws"


def pseudo_round(kind: TaskKind = "binary", *, number: int = 0, name: str = "pupil", **changes: Any) -> PseudoRound:
    page = report_input(kind)
    labels = page.examples[0].truth.copy()
    labels[..., 4, :] = 255
    found = PseudoRound(
        number=number,
        teachers=("unet",),
        pupils=(name,),
        train="Trained on both.",
        minimum_confidence=0.25,
        folds=[
            PseudoFold(name="fold 0", offered=9, reasons={"chosen": 4, "look-alike": 5}, least_confidence=0.61),
            PseudoFold(name="fold 1", offered=9, reasons={"chosen": 7, "unsure": 2}, least_confidence=0.5021),
        ],
        examples=[
            PseudoLabelled(
                id=EVIL, fold=0, why="number 4 by confidence", confidence=0.61, agreement=0.987,
                image=page.examples[0].image, labels=labels,
            )
        ],
    )  # fmt: skip
    return replace(found, **changes)


@pytest.mark.parametrize("kind", CLASSES)
def test_rounds_say_what_was_chosen_and_what_was_refused(kind: TaskKind) -> None:
    page = report_input(kind, pseudo_rounds=[pseudo_round(kind, number=1, notes=["b labels <nothing>"])])
    text = re.sub(r"\s+", " ", text_of(pseudo_labels(page)))
    assert "Round 1: unet labelled for pupil" in text and "below 0.25 are refused" in text
    assert "b labels &lt;nothing&gt;" in text
    assert "for offered chosen not sure enough like what it validates least confidence" in text
    assert re.search(r"fold 0 +9 +4 +0 +5 +0\.61\b", text) and re.search(r"fold 1 +9 +7 +2 +0 +0\.502\b", text)
    assert "fold 0, number 4 by confidence" in text and "confidence 0.610, agreement 0.987, 5.0% unsure" in text
    whole = report_page(page)
    assert Page(whole).tags.count("img") == 2 + 2 * 4 + 1 and "<script" not in whole


def test_a_round_without_a_bound_or_pictures() -> None:
    page = report_input("binary", pseudo_rounds=[pseudo_round(minimum_confidence=0, examples=())])
    text = text_of(pseudo_labels(page))
    assert "are refused." not in text and "least sure first" not in text


@pytest.mark.parametrize("kind", CLASSES)
def test_unsure_pixels_have_a_colour_of_their_own(kind: TaskKind) -> None:
    colours = class_colours(CLASSES[kind], kind)
    labels = np.zeros((len(CLASSES[kind]), 4, 6) if kind == "multilabel" else (4, 6), np.uint8)
    labels[..., 1] = 1
    labels[..., 4] = 255
    drawn = pseudo_overlay(np.full((4, 6, 3), 90, np.uint8), labels, colours, kind)
    assert (drawn == UNSURE).all(axis=2).nonzero()[1].tolist() == [4] * 4
    assert UNSURE not in colours


def test_a_thin_unsure_band_survives_shrinking() -> None:
    labels = np.zeros((1280, 1920), np.uint8)
    labels[:, 1000:1002] = 255  # two of the four pixels that become one
    drawn = pseudo_overlay(np.zeros((1280, 1920, 3), np.uint8), labels, [(0, 158, 115)], "binary")
    assert (drawn == UNSURE).all(axis=2).any(axis=0).nonzero()[0].tolist() == [250]


def several_members() -> ReportInput:
    """A run of five members: an own fold table, one asked once, one from outside, one outside of the ensemble."""
    page = report_input("binary")
    two, three = summary(0.88, ("car",)), summary(0.87, ("car",), folds=3)
    members = {
        "unet": two | {"without_views": summary(0.87, ("car",))},
        "second": three | {"without_views": three},
        "pupil": summary(0.95, ("car",)) | {"without_views": two},
        "late": two | {"without_views": two},
        "theirs": two | {"without_views": two},
    }
    facts = {
        "second": MemberFacts(asked="once", notes=("3 folds of its own", "sees the maps of unet")),
        "pupil": MemberFacts(notes=("learns from pseudo-labels, round 0",)),
        "theirs": MemberFacts(asked="elsewhere"),
    }
    weights = {"unet": 0.4, "second": 0.3, "late": 0.2, "theirs": 0.1}
    evaluation = {**page.evaluation, "members": members, "weights": weights}
    return replace(page, evaluation=evaluation, members=facts, pseudo_rounds=[pseudo_round()])


def test_members_have_a_line_with_views_and_one_without() -> None:
    rows = [(row.name, row.detail, row.weight, len(row.folds)) for row in score_rows(several_members())[3:]]
    assert rows == [
        ("unet", "with test-time views", 0.4, 2),
        ("unet", "without test-time views", None, 2),
        ("second", "has no test-time views", 0.3, 3),
        ("pupil", "with test-time views", None, 2),
        ("pupil", "without test-time views", None, 2),
        ("late", "with test-time views", 0.2, 2),
        ("late", "without test-time views", None, 2),
        ("theirs", "maps from outside, taken to be out-of-fold", 0.1, 2),
    ]
    notes = {row.name: list(row.notes) for row in score_rows(several_members()) if row.notes}
    assert notes == {
        "second": ["3 folds of its own", "sees the maps of unet"],
        "pupil": ["learns from pseudo-labels, round 0", "not in the ensemble"],
    }
    text = report_page(several_members())
    assert "not in the ensemble" in text and "fold 2</th>" in text and "its columns are of other images" in text


def test_only_members_of_the_ensemble_are_compared_with_it() -> None:
    (found,) = [each for each in findings(several_members()) if each.title.startswith("The ensemble")]
    assert found.title == "The ensemble: +0.0200", "over unet at 0.88, not over the pupil at 0.95"
    (found,) = [each for each in findings(several_members()) if each.title.startswith("Test-time views")]
    assert found.title == "Test-time views: +0.0267", "the mean of 0.01, 0.07 and 0: of those that are asked with views"


def test_times_stand_in_the_order_of_work() -> None:
    seconds = {
        "report": 1.0, "submit": 1.0, "predict": 1.0, "postprocess": 3.0, "ensemble": 1.0, "oof/pupil": 1.0,
        "train/pupil/fold0": 5.0, "train/pupil/fold1": 7.0, "pseudo/0": 2.0, "oof/theirs": 1.0, "oof/unet": 1.0,
        "train/unet/fold0": 4.0, "folds/second": 0.5, "folds": 0.5, "survey": 1.0, "train/gone/fold0": 1.0,
    }  # fmt: skip
    times = stage_times(replace(several_members(), seconds=seconds))
    assert [row.name for row in times] == [
        "survey", "folds", "folds · second", "oof · theirs", "train · unet", "oof · unet", "pseudo · 0",
        "train · pupil", "oof · pupil", "train · gone", "ensemble", "postprocess", "predict", "submit", "report",
    ]  # fmt: skip
    assert {row.name: row.detail for row in times if row.detail} == {
        "folds · second": "folds of its own",
        "oof · theirs": "maps from outside",
        "pseudo · 0": "labels for pupil",
        "train · pupil": "2 folds, 6.0 s each",
    }
    assert sum(row.seconds for row in times) == sum(seconds.values())


def test_scores_near_one_have_five_decimals() -> None:
    near = summary(0.99667, ("car",))
    page = report_input("binary")
    page = replace(page, evaluation={**page.evaluation, "oof": near | {"std": 0.00005}})
    assert "0.99667" in report_page(page) and "± 0.00005" in report_page(page)
    assert page.score_text(None) == "–" and report_input("binary").score_text(0.9) == "0.9000"


def test_a_page_with_everything_stays_small() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (320, 480, 3), dtype=np.uint8)
    truth = (noise[:, :, 0] > 128).astype(np.uint8)
    page = with_postprocessing(pictures=4)
    changed = [replace(each, image=noise, truth=truth, before=1 - truth, after=truth) for each in page.changed_masks]
    hard = replace(page.examples[0], image=noise, truth=truth, prediction=1 - truth)
    examples = [replace(hard, kind=kind) for kind in ("worst", "best") for _ in range(4)]
    one = pseudo_round()
    labelled = [replace(one.examples[0], image=noise, labels=truth)] * 6
    rounds = [replace(one, number=number, examples=labelled) for number in range(2)]
    text = report_page(replace(page, changed_masks=changed, examples=examples, pseudo_rounds=rounds))
    assert Page(text).tags.count("img") == 8 * 5 + 4 * 5 + 12 + 2
    assert len(text) < 2_100_000, "however hard to compress its pictures are"
