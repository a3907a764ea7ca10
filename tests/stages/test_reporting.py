"""What a run says about itself: scores with post-processing and shares of a stated tree, lines, facts about members."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from maskloom.config import parse, to_yaml
from maskloom.data.folds import FoldRow, FoldTable
from maskloom.errors import UserError
from maskloom.files import write_json, write_text
from maskloom.outputs.report_input import MemberFacts
from maskloom.recipe import Recipe
from maskloom.run_directory import RunDirectory
from maskloom.stages.evaluation import evaluation, score_lines
from maskloom.stages.fold_tables import FoldTables
from maskloom.stages.reporting import _member_facts

STEPS = {"steps": [{"kind": "holes"}]}


def recipe(*members: dict[str, Any], **changes: Any) -> Recipe:
    parts = {
        "network": {"weights": "none"}, "input": {"mode": "full"}, "loss": {"terms": [{"kind": "bce"}]}, "training": {},
    }  # fmt: skip
    return parse(Recipe, {"name": "r", "metric": "dice", "members": [parts | each for each in members]} | changes)


def scores(mean: float) -> dict[str, Any]:
    values = {"mean": mean, "std": 0.01, "folds": [mean - 0.01, mean + 0.01], "classes": {"car": mean}}
    return values | {"without_views": {"mean": mean - 0.005}}


def found_steps(mean: float, *, chosen: bool = True) -> dict[str, Any]:
    gain = {"mean": 0.003, "low": 0.001, "high": 0.005, "confidence": 0.95, "num_groups": 9}
    trials = [{"text": "fill holes (car)", "chosen": chosen}]
    return {"trials": trials, "gain": gain, "scores": {"without": scores(0.9), "with": scores(mean)}}


def finished(folder: Path, complete: Recipe, tree: dict[str, Any], weights: dict[str, float]) -> RunDirectory:
    """Returns a run whose ensemble and post-processing are done."""
    run = RunDirectory(folder)
    write_text(run.recipe, to_yaml(complete))
    members = {name: scores(0.8) for name in complete.names}
    result = {
        "metric": "dice", "tree": tree, "guiding": {}, "thresholds": [128], "weights": weights, "curve": [],
        "scores": {"oof": scores(0.9), "fitted_on_all": scores(0.9), "half": scores(0.9), "members": members},
    }  # fmt: skip
    write_json(run.ensemble, result)
    path = run.ensemble.with_name("postprocess.json")
    write_json(path, found_steps(0.903))
    run.finish("postprocess", "mark", [path], 1.0)
    return run


def test_post_processing_belongs_to_the_scores_of_recipes_that_have_it(tmp_path: Path) -> None:
    tree = {"children": ["b/fold0", "a/fold0"]}
    run = finished(tmp_path, recipe({"name": "b"}, {"name": "a"}, postprocess=STEPS), tree, {"b": 0.5, "a": 0.5})
    found = evaluation(run)
    assert found["postprocess"]["gain"]["low"] == 0.001 and found["postprocess"]["scores"]["with"]["mean"] == 0.903
    assert list(found["members"]) == ["b", "a"], "as the recipe lists them"
    assert json.loads(json.dumps(found)) == found
    (run.ensemble.with_name("postprocess.json")).unlink()
    assert "postprocess" not in evaluation(run), "the stage is no longer finished"
    run = finished(tmp_path, recipe({"name": "b"}, {"name": "a"}), tree, {"b": 0.5, "a": 0.5})
    assert "postprocess" not in evaluation(run), "left by an earlier recipe"


def test_weights_of_a_stated_tree_are_the_shares_of_it(tmp_path: Path) -> None:
    pair = {"children": ["b/fold0", "c/fold0"], "weights": [1, 3]}
    tree = {"children": [{"children": ["a/fold0", "a/fold1"]}, pair]}
    stated = {"tree": {"children": ["a", {"children": ["b", "c"], "weights": [1, 3]}]}}
    members = [{"name": name} for name in "abcd"]
    equal = dict.fromkeys("abc", 1 / 3)
    found = evaluation(finished(tmp_path, recipe(*members, ensemble=stated), tree, equal))
    assert found["weights"] == {"a": 0.5, "b": 0.125, "c": 0.375}
    found = evaluation(finished(tmp_path, recipe(*members), tree, equal))
    assert found["weights"] == equal, "as they were fitted"


def test_lines_for_a_terminal() -> None:
    members = {"unet": scores(0.89), "pupil": scores(0.85)}
    values = {"metric": "dice", "oof": scores(0.9), "members": members, "weights": {"unet": 1.0}}
    lines = score_lines(values | {"postprocess": found_steps(0.903)})
    assert lines == [
        "out-of-fold mean Dice: 0.9000 ± 0.0100 over 2 fold(s), cross-fitted",
        "  post-processed: 0.9030 ± 0.0100 (fill holes (car): +0.00300, from +0.00100 to +0.00500 in 95 % of draws)",
        "  unet: 0.8900 ± 0.0100 (without test-time views 0.8850)",
        "  pupil: 0.8500 ± 0.0100 (without test-time views 0.8450; not in the ensemble)",
    ]
    lines = score_lines(values | {"postprocess": found_steps(0.9, chosen=False)})
    assert lines[1] == "  post-processed: 0.9000 ± 0.0100 (no step helps)"
    assert score_lines(values | {"oof": scores(0.99667)})[0].startswith("out-of-fold mean Dice: 0.99667 ± 0.01000")


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({}, MemberFacts(asked="once", notes=[])),
        ({"views": "flip"}, MemberFacts(asked="with views", notes=[])),
        ({"folds": {"count": 3}}, MemberFacts(asked="once", notes=["3 folds of its own"])),
        ({"guidance": {"maps": ["a", "theirs"]}}, MemberFacts(asked="once", notes=["sees the maps of a, theirs"])),
        (
            {"guidance": {"region": {"of": "a", "kind": "contour"}}},
            MemberFacts(asked="once", notes=["looks at the outline that a finds"]),
        ),
        (
            {"guidance": {"maps": ["a"], "region": {"of": "a"}}},
            MemberFacts(asked="once", notes=["sees the maps of a", "looks at the box that a finds"]),
        ),
        ({"start": "a"}, MemberFacts(asked="once", notes=["begins with the weights of a"])),
        (
            {"keep": "best", "training": {"epochs": 1, "early_stopping": 3}, "schedule": {"kind": "plateau"}},
            MemberFacts(
                asked="once",
                notes=[
                    "its validation folds had a say in its training (keep=best, early stopping, a plateau schedule)"
                ],
            ),
        ),
    ],
)
def test_what_sets_a_member_apart(settings: dict[str, Any], facts: MemberFacts) -> None:
    outside = [{"name": "theirs", "folder": "maps"}]
    complete = recipe({"name": "a"}, {"name": "b", **settings}, outside=outside, inference={"views": "none"})
    three = FoldTable(tuple(FoldRow(str(index), str(index), index) for index in range(3)))
    found = _member_facts(complete, FoldTables(FoldTable(three.rows[:2]), {"b": three} if "folds" in settings else {}))
    assert found == {"a": MemberFacts(asked="once", notes=[]), "b": facts, "theirs": MemberFacts(asked="elsewhere")}


def test_members_that_learn_from_pseudo_labels_say_in_which_round() -> None:
    rounds = [{"members": ["b"]}, {"members": ["c"]}]
    complete = recipe({"name": "a"}, {"name": "b"}, {"name": "c"}, pseudo=rounds, inference={"views": "flip"})
    facts = _member_facts(complete, FoldTables(FoldTable((FoldRow("r", "r", 0), FoldRow("s", "s", 1))), {}))
    assert {name: list(each.notes) for name, each in facts.items()} == {
        "a": [],
        "b": ["learns from pseudo-labels, round 0"],
        "c": ["learns from pseudo-labels, round 1"],
    }
    assert {each.asked for each in facts.values()} == {"with views"}


def test_scores_on_the_leaderboard_stand_beside_their_members() -> None:
    outside = [{"name": "theirs", "folder": "maps"}]
    stated = {"leaderboard": {"b": 0.99667, "theirs": 0.99721}}
    complete = recipe({"name": "a"}, {"name": "b"}, outside=outside, delivery=stated, inference={"views": "none"})
    facts = _member_facts(complete, FoldTables(FoldTable((FoldRow("r", "r", 0), FoldRow("s", "s", 1))), {}))
    assert {name: list(each.notes) for name, each in facts.items()} == {
        "a": [],
        "b": ["0.99667 on the leaderboard"],
        "theirs": ["0.99721 on the leaderboard"],
    }
    with pytest.raises(UserError, match=r"delivery\.leaderboard: no member is called 'thiers'; did you mean 'theirs'"):
        recipe({"name": "a"}, outside=outside, delivery={"leaderboard": {"thiers": 0.99}})


def test_pupils_of_selected_teachers_say_so() -> None:
    teacher = {"name": "a", "keep": "best"}
    complete = recipe(teacher, {"name": "b"}, {"name": "c"}, pseudo=[{"members": ["b"], "teachers": ["a"]}])
    facts = _member_facts(complete, FoldTables(FoldTable((FoldRow("r", "r", 0), FoldRow("s", "s", 1))), {}))
    assert list(facts["b"].notes) == [
        "learns from pseudo-labels, round 0",
        "its teachers were chosen by the folds that it is scored on",
    ]
    assert facts["c"].notes == []
