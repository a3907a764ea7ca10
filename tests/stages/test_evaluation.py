"""The scores that a run tells: classes in their own order, pixels, outlines, the contest's score; less of old runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskloom.config import parse, to_yaml
from maskloom.data.mask_coding import MaskCoding
from maskloom.files import write_json, write_text
from maskloom.integrity import write_sealed
from maskloom.metrics import Counts, dice, from_labels, iou, total
from maskloom.recipe import Recipe
from maskloom.records import Task
from maskloom.run_directory import RunDirectory
from maskloom.stages.contest_score import ContestScore
from maskloom.stages.ensemble import counts_path, write_counts
from maskloom.stages.error_analysis import errors_path
from maskloom.stages.evaluation import evaluation, score_lines
from maskloom.stages.postprocess import result_path, with_steps_path

CLASSES = ("street", "car", "zebra", "air")
"""Neither in the order of the alphabet nor in that of any score."""
TASK = Task(kind="multiclass", classes=CLASSES)
CODING = MaskCoding(kind="values", values=tuple((label, label) for label in range(4)), ignore=(9,))
PIXELS = [[6, 2, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]]
"""No truth holds a zebra."""


def summary(mean: float) -> dict[str, Any]:
    by_class = {name: round(mean + 0.01 * place, 6) for place, name in enumerate(CLASSES)}
    return {"mean": mean, "std": 0.01, "folds": [mean] * 2, "all_images": mean, "classes": by_class | {"zebra": None}}


def counts() -> dict[str, Counts]:
    rng = np.random.default_rng(0)
    pairs = {name: rng.integers(0, 4, (2, 5, 6)).astype(np.uint8) for name in ("b", "a")}
    return {name: from_labels(pair[0], pair[1], TASK) for name, pair in pairs.items()}


def finished(folder: Path, *, metric: str = "iou", steps: bool = False, **without: bool) -> RunDirectory:
    """Returns a run as its stages leave it, but for what is said to be missing."""
    run = RunDirectory(folder)
    member = {"name": "u", "network": {"weights": "none"}, "input": {"mode": "full"}, "training": {}}
    member["loss"] = {"terms": [{"kind": "cross_entropy"}]}
    changes = {"postprocess": {"steps": [{"kind": "holes"}]}} if steps else {}
    write_text(run.recipe, to_yaml(parse(Recipe, {"name": "r", "metric": metric, "members": [member], **changes})))
    result = {
        "metric": metric, "tree": {"children": ["u/fold0"]}, "guiding": {}, "thresholds": [128] * 4, "curve": [],
        "weights": {"u": 1.0}, "task": {"kind": "multiclass", "classes": list(CLASSES)},
        "scores": {
            "oof": summary(0.6), "fitted_on_all": summary(0.6), "half": summary(0.6),
            "members": {"u": summary(0.5) | {"without_views": summary(0.4)}},
        },
    }  # fmt: skip
    if without.get("task"):
        del result["task"]
    write_json(run.ensemble, result)
    if not without.get("source"):
        task = {"kind": "multiclass", "classes": list(CLASSES)}
        write_sealed(run.source, {"task": task, "coding": CODING.to_json(), "submission": "streets"})
    if not without.get("errors"):
        boundary = {"tolerance": "0.75%", "mean": 0.25, "classes": dict.fromkeys(sorted(CLASSES), 0.25)}
        found = {"confusion": [{"labels": list(CLASSES), "pixels": PIXELS}]}
        write_json(errors_path(run), found | ({} if without.get("boundary") else {"boundary": boundary}))
    if not without.get("counts"):
        write_counts(counts_path(run), counts())
    if steps:
        found = {"trials": [], "gain": {}, "scores": {"without": summary(0.6), "with": summary(0.61)}}
        write_json(result_path(run), found)
        write_counts(with_steps_path(run), {name: count + count for name, count in counts().items()})
        run.finish("postprocess", "mark", [result_path(run), with_steps_path(run)], 1.0)
    return run


def scored(found: Mapping[str, Counts], task: Task, coding: MaskCoding) -> ContestScore | None:
    """A contest whose score is the number of pixels found: it tells which counts and which coding it was given."""
    total = sum(int(each.tp.sum()) for each in found.values())
    return ContestScore(
        contest="Streets",
        rule="pixels",
        score=total / 1000,
        num_images=len(found),
        classes={task.classes[0]: 0.5},
        lacking=[task.classes[1]],
        ignored=[str(value) for value in coding.ignore],
    )


def test_classes_stand_in_their_own_order(tmp_path: Path) -> None:
    found = evaluation(finished(tmp_path, steps=True))
    every = [found[name] for name in ("oof", "fitted_on_all", "half")]
    every += [found["members"]["u"], found["members"]["u"]["without_views"], *found["postprocess"]["scores"].values()]
    assert all(tuple(each["classes"]) == CLASSES for each in [*every, found["pixels"], found["boundary"]])
    assert found["oof"]["classes"] == summary(0.6)["classes"]
    assert json.loads(json.dumps(found)) == found


def test_iou_and_dice_are_those_of_all_pixels(tmp_path: Path) -> None:
    """By hand from the confusion: street 6 of 9, car 3 of 6, air 1 of 2."""
    pixels = evaluation(finished(tmp_path))["pixels"]
    assert pixels["classes"] == {
        "street": {"iou": pytest.approx(6 / 9, abs=1e-6), "dice": pytest.approx(12 / 15, abs=1e-6)},
        "car": {"iou": 0.5, "dice": pytest.approx(6 / 9, abs=1e-6)},
        "zebra": {"iou": None, "dice": None},
        "air": {"iou": 0.5, "dice": pytest.approx(2 / 3, abs=1e-6)},
    }
    assert pixels["mean_iou"] == {
        "absent_left_out": pytest.approx((6 / 9 + 0.5 + 0.5) / 3, abs=1e-6),
        "absent_counted": pytest.approx((6 / 9 + 0.5 + 0.5) / 4, abs=1e-6),  # a zebra was predicted
    }


def test_members_have_iou_and_dice_of_their_own(tmp_path: Path) -> None:
    run = finished(tmp_path)
    assert "pixels" not in evaluation(run)["members"]["u"], "its counts were removed"
    plain = {name: {"views": each.to_json(), "plain": Counts.zero(4).to_json()} for name, each in counts().items()}
    write_json(run.oof("u") / "scores.json", plain)
    whole = total(list(counts().values()))
    shown = evaluation(run)["members"]["u"]["pixels"]["classes"]
    assert list(shown) == list(CLASSES)
    assert [each["iou"] for each in shown.values()] == pytest.approx(iou(whole).tolist(), abs=1e-6)
    assert [each["dice"] for each in shown.values()] == pytest.approx(dice(whole).tolist(), abs=1e-6)


def test_the_contest_scores_what_would_be_delivered(tmp_path: Path) -> None:
    run = finished(tmp_path / "plain")
    total = sum(int(each.tp.sum()) for each in counts().values())
    assert "contest" not in evaluation(run), "nobody scores"
    assert "contest" not in evaluation(run, {"others": scored}), "another contest's"
    assert "contest" not in evaluation(run, {"streets": lambda found, task, coding: None}), "nothing to score"
    found = evaluation(run, {"streets": scored})["contest"]
    assert found == {
        "contest": "Streets", "rule": "pixels", "score": round(total / 1000, 6), "num_images": 2,
        "classes": {"street": 0.5}, "lacking": ["car"], "ignored": ["9"],
    }  # fmt: skip
    changed = evaluation(finished(tmp_path / "steps", steps=True), {"streets": scored})["contest"]
    assert changed["score"] == round(2 * total / 1000, 6), "with the steps"


@pytest.mark.parametrize(
    ("without", "lacking"),
    [
        ("errors", {"pixels", "boundary"}),
        ("boundary", {"boundary"}),
        ("counts", {"contest"}),
        ("source", {"contest"}),
        ("task", set()),
    ],
)
def test_what_an_earlier_version_did_not_store_is_left_out(tmp_path: Path, without: str, lacking: set[str]) -> None:
    found = evaluation(finished(tmp_path, **{without: True}), {"streets": scored})
    assert {"pixels", "boundary", "contest"} - set(found) == lacking
    assert tuple(found["oof"]["classes"]) == CLASSES
    assert len(score_lines(found)) >= 2 + len(CLASSES)


def test_a_run_that_nothing_is_known_of_keeps_its_scores(tmp_path: Path) -> None:
    found = evaluation(finished(tmp_path, task=True, source=True), {"streets": scored})
    assert list(found["oof"]["classes"]) == sorted(CLASSES) and "pixels" not in found


def test_lines_of_classes(tmp_path: Path) -> None:
    lines = score_lines(evaluation(finished(tmp_path / "iou"), {"streets": scored}))
    score = sum(int(each.tp.sum()) for each in counts().values()) / 1000
    each = "street 0.5000, car not scored, pixels of 9 left out"
    assert lines[1] == f"  scored as Streets does: {score:.4f} over 2 image(s) ({each})"
    assert lines[3:] == [
        "                        IoU     Dice    boundary F",
        "  street                0.6667  0.8000  0.2500",
        "  car                   0.5000  0.6667  0.2500",
        "  zebra                 absent  absent  0.2500",
        "  air                   0.5000  0.6667  0.2500",
        "  all images together   0.5556  0.7111  0.2500",
        "  with absent classes   0.4167  0.5333",
    ]
    lines = score_lines(evaluation(finished(tmp_path / "dice", metric="dice", boundary=True)))
    assert lines[2:4] == [
        "                        mean Dice  pixel IoU  pixel Dice",
        "  street                0.6000     0.6667     0.8000",
    ]
    lines = score_lines(evaluation(finished(tmp_path / "old", errors=True)))
    assert lines[2:] == [
        "  street                0.6000",
        "  car                   0.6100",
        "  zebra                 absent",
        "  air                   0.6300",
    ]
