from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_inputs import CLASSES, EVIL, Page, report_input, summary

from maskloom.errors import BadFile, UserError
from maskloom.outputs.class_scores import class_columns
from maskloom.outputs.report import Example, LookAlikes, render_report, report_page
from maskloom.outputs.report_tables import class_rows, fold_lines, left_out, score_rows, stage_times
from maskloom.outputs.report_words import duration, findings, headline, plural
from maskloom.records import TaskKind


@pytest.mark.parametrize("kind", CLASSES)
def test_every_section_is_there(kind: TaskKind, tmp_path: Path) -> None:
    render_report(tmp_path / "report.html", report_input(kind))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    wanted = ["Result", "What stands out", "Scores", "Learning curves", "Image by image", "Thresholds", "Worst images"]
    wanted += ["Best images", "Classes", "Data", "Look-alikes", "Folds", "Time and machine", "Recipe"]
    assert page.headings == [title for title in wanted if kind != "multiclass" or title != "Thresholds"]
    assert page.tags.count("img") == 2 + 2 * 4
    shown = ["0.9000", "± 0.0100", "without test-time views", "r99.jpg", "another size", "masks hold 0 and 1"]
    for words in [*shown, "a processor", "name: default", *CLASSES[kind]]:
        assert words in text
    assert ("thresholds at one half" in text) == (kind != "multiclass")


@pytest.mark.parametrize("kind", CLASSES)
def test_the_page_stands_alone(kind: TaskKind) -> None:
    text = report_page(report_input(kind))
    page = Page(text)
    assert re.findall(r"https?:", text.replace('xmlns="http://www.w3.org/2000/svg"', "")) == []
    assert "url(" not in text and "@import" not in text and "script" not in page.tags
    assert all(link.startswith(("data:", "#")) for link in page.links)
    targets = {link[1:] for link in page.links if link.startswith("#")}
    assert targets == set(page.ids)
    assert len(page.ids) == len(set(page.ids))


@pytest.mark.parametrize("kind", CLASSES)
def test_hostile_names_are_text(kind: TaskKind) -> None:
    names = tuple(f"{EVIL}{index}" for index in range(len(CLASSES[kind])))
    page = report_input(kind, names)
    examples = [replace(example, id=EVIL) for example in page.examples]
    pairs = [{"first": EVIL, "second": "r2", "similarity": 0.97}]
    member = page.evaluation["members"]["unet"]
    page = replace(
        page, name=EVIL, data=EVIL, layout=EVIL, recipe_yaml=EVIL, notes=(EVIL,), examples=examples,
        near_duplicates=pairs, look_alikes=[replace(page.look_alikes[0], ids=(EVIL, EVIL))],
        left_out=(BadFile(EVIL, EVIL), UserError(EVIL)), hardware={EVIL: EVIL}, seconds={f"train/{EVIL}/fold0": 1.0},
        learning_curves={f"{EVIL}/fold{fold}": page.learning_curves["unet/fold0"] for fold in (0, 1)},
        evaluation={**page.evaluation, "members": {EVIL: member, "other": member}, "weights": {EVIL: 1.0}},
    )  # fmt: skip
    text = report_page(page)
    assert "script" not in Page(text).tags
    assert "<script" not in text and "alert(&#34;1&#34;)" in text


def test_a_run_with_nothing_to_show_still_has_a_page() -> None:
    page = report_input(
        "binary", learning_curves={}, examples=(), threshold_curve=[], near_duplicates=(), look_alikes=(), notes=(),
        image_scores=[], folds=None, left_out=(), seconds={}, hardware={}, num_unread=8,
    )  # fmt: skip
    shown = Page(report_page(page))
    assert "Learning curves" not in shown.headings and "Best and worst images" in shown.headings


def test_a_class_without_score_and_a_single_fold() -> None:
    page = report_input("multiclass")
    oof, member = summary(0.6, CLASSES["multiclass"], folds=1), summary(0.6, CLASSES["multiclass"], folds=1)
    oof["classes"]["tree"] = None
    members = {"unet": {**member, "without_views": member}}
    page = replace(page, evaluation={**page.evaluation, "oof": oof, "members": members})
    assert class_rows(page)[2].scores == [None]
    assert any("tree" in finding.text and finding.mood == "watch" for finding in findings(page))
    assert "± " not in re.search(r'class="unit">(.*?)</span>', report_page(page)).group(1)  # type: ignore[union-attr]


def of_pixels(kind: TaskKind, names: tuple[str, ...]) -> dict[str, object]:
    """Returns what versions that know them add to the scores; the last class is in no truth."""
    values: dict[str, float | None] = {name: 0.5 + 0.1 * index for index, name in enumerate(names)}
    values[names[-1]] = None
    means = {"absent_left_out": 0.5432, "absent_counted": 0.4321}
    pixels = {
        "classes": {name: {"iou": value, "dice": value and value + 0.01} for name, value in values.items()},
        "mean_iou": means, "mean_dice": {name: value + 0.01 for name, value in means.items()},
    }  # fmt: skip
    boundary = {"tolerance": "0.75%", "mean": 0.3333, "classes": dict.fromkeys(names, 0.3)}
    contest = {
        "contest": f"A contest {EVIL}", "rule": f"the mean of {EVIL}", "score": 0.2468, "num_images": 12,
        "classes": {EVIL: 0.2468}, "lacking": [EVIL], "ignored": [EVIL],
    }  # fmt: skip
    return {"pixels": pixels, "contest": contest} | ({"boundary": boundary} if kind == "multiclass" else {})


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_classes_have_iou_and_dice_and_the_contest_its_score(kind: TaskKind) -> None:
    page = report_input(kind)
    page = replace(page, evaluation={**page.evaluation, **of_pixels(kind, CLASSES[kind])})
    heads = [column.head for column in class_columns(page.evaluation)]
    assert heads == (
        ["IoU", "Dice", "boundary F"] if kind == "multiclass" else ["mean Dice", "pixel IoU", "pixel Dice"]
    )
    first, last = class_rows(page)[0], class_rows(page)[-1]
    assert first.scores == ([0.5, 0.51, 0.3] if kind == "multiclass" else [0.9, 0.5, 0.51])
    assert last.scores == ([None, None, 0.3] if kind == "multiclass" else [0.9, None, None])
    text = report_page(page)
    shown = Page(text)
    assert "script" not in shown.tags and "<script" not in text
    assert shown.headings[shown.headings.index("Scores") + 1] == "The contest's score"
    for words in ("0.2468", "0.5432", "0.5532", "no class of the data holds it alone", "Left out here", *heads):
        assert words in text
    assert ("within 0.75% of an image" in text) == (kind == "multiclass")


def test_networks_never_validated_during_training() -> None:
    epochs = [{"epoch": 1, "loss": None, "score": None, "seconds": 1.0}, {"epoch": 2, "loss": 0.5, "score": None}]
    assert "Learning curves" in Page(report_page(report_input("binary", learning_curves={"u/fold0": epochs}))).headings


def test_rows_of_the_tables() -> None:
    page = report_input("binary")
    assert [(row.name, row.mean, row.honest) for row in score_rows(page)] == [
        ("Ensemble", 0.9, True), ("Ensemble", 0.91, False), ("Ensemble", 0.89, False),
        ("unet", 0.88, False), ("unet", 0.87, False),
    ]  # fmt: skip
    two = {**page.evaluation, "members": page.evaluation["members"] | {"b": page.evaluation["members"]["unet"]}}
    assert score_rows(replace(page, evaluation=two))[2].detail == "equal weights, thresholds at one half"
    assert [row.detail for row in score_rows(report_input("multiclass"))][1:] == [
        "with test-time views", "without test-time views",
    ]  # fmt: skip
    (car,) = class_rows(page)
    assert (car.share, car.num_images, car.threshold) == (0.1, 12, 120)
    lines = fold_lines(page)
    assert [(line.num_images, line.num_groups, line.num_training) for line in lines] == [(6, 3, 6), (6, 3, 6)]
    assert lines[0].area == pytest.approx(0.1)
    assert [(row.name, row.seconds) for row in stage_times(page)] == [
        ("survey", 0.4), ("train · unet", 120.0), ("oof · unet", 5.0),
    ]  # fmt: skip
    assert left_out(page) == [("", "r77: the mask has another size"), ("images/r99.jpg", "the image data is cut off")]


def test_stages_stand_in_the_order_of_work() -> None:
    order = ["register", "survey", "folds", "ensemble", "postprocess", "predict", "submit", "report"]
    page = report_input("binary", seconds=dict.fromkeys(reversed(order), 1.0))
    assert [row.name for row in stage_times(page)] == order


def test_look_alikes_count_as_a_leak_only_over_two_folds() -> None:
    page = report_input("binary")  # r0 and r2 are in folds 0 and 1
    assert page.num_straddling == 1 and "over two folds" in findings(page)[0].title
    assert "with --set folds.kind=kfold" in findings(page)[0].text
    apart = replace(page, near_duplicates=[{"first": "r0", "second": "r4", "similarity": 0.97}])
    assert apart.num_straddling == 0
    assert any(finding.title == "No leak found" for finding in findings(apart))


def test_words() -> None:
    assert "90.0 %" in headline(report_input("binary")) and "Dice" in headline(report_input("binary"))
    assert "IoU" in headline(report_input("multiclass"))
    assert [plural(1, "image"), plural(1200, "image")] == ["1 image", "1,200 images"]
    assert [plural(1, "class"), plural(2, "class")] == ["1 class", "2 classes"]
    assert [duration(value) for value in (0.41, 48, 725, 720, 12000, 59.9)] == [
        "0.4 s", "48 s", "12 min 5 s", "12 min", "3 h 20 min", "1 min",
    ]  # fmt: skip


def test_a_large_page_stays_small() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (640, 960, 3), dtype=np.uint8)
    truth = (noise[:, :, 0] > 128).astype(np.uint8)
    hard = Example(id="x", kind="worst", score=0.1, image=noise, truth=truth, prediction=1 - truth)
    examples = [replace(hard, kind=kind) for kind in ("worst", "best") for _ in range(4)]
    pairs = [LookAlikes(ids=("a", "b"), images=(noise, noise))] * 24
    text = report_page(report_input("binary", examples=examples, look_alikes=pairs))
    assert len(text) < 3_000_000


@pytest.mark.parametrize(
    ("folds", "title"),
    [((0.96, 0.97), "Folds agree"), ((0.90, 0.99), "Folds differ"), ((0.10, 0.46), "Folds differ")],
)
def test_folds_agree_only_where_they_lie_close(folds: tuple[float, float], title: str) -> None:
    page = report_input("binary")
    mean, std = float(np.mean(folds)), float(np.std(folds))
    oof = {**page.evaluation["oof"], "mean": mean, "std": std, "folds": list(folds)}
    assert title in {finding.title for finding in findings(replace(page, evaluation={**page.evaluation, "oof": oof}))}


def test_the_ensemble_is_compared_with_members_of_all_classes_alone() -> None:
    page = report_input("multilabel")
    (whole,) = page.evaluation["members"].values()
    part = {**summary(0.95, ("crops",)), "without_views": summary(0.95, ("crops",))}

    def titles(members: dict[str, object]) -> list[str]:
        evaluation = {**page.evaluation, "members": members, "weights": dict.fromkeys(members, 1 / len(members))}
        return [found.title for found in findings(replace(page, evaluation=evaluation)) if "ensemble" in found.title]

    assert titles({"unet": whole, "crops": part}) == ["The ensemble: +0.0200"]  # over 0.88, not over 0.95
    assert titles({"crops": part, "more_crops": part}) == []
    assert titles({"unet": whole}) == []
