from __future__ import annotations

import re
from typing import Any

import pytest

from maskloom.config import parse
from maskloom.errors import UserError
from maskloom.recipe import Recipe
from maskloom.records import Task


def recipe(*channels: int, **ensemble: Any) -> Recipe:
    members = [
        {
            "name": f"m{index}",
            "network": {"weights": "none", "channels": count},
            "input": {"mode": "full"},
            "loss": {"terms": [{"kind": "bce"}]},
            "training": {},
        }
        for index, count in enumerate(channels)
    ]
    return parse(Recipe, {"name": "r", "metric": "dice", "members": members, "ensemble": ensemble})


def test_a_threshold_is_a_probability() -> None:
    assert recipe(3, thresholds=0.25).ensemble.thresholds == 0.25
    assert recipe(3, thresholds="fitted").ensemble.thresholds == "fitted"
    for wrong in (7, 128, -0.1):
        with pytest.raises(UserError, match=r"ensemble.thresholds: .*a probability from 0 to 1"):
            recipe(3, thresholds=wrong)


def test_members_are_given_the_same_images() -> None:
    assert len(recipe(4, 4).members) == 2
    with pytest.raises(UserError, match=r"same network\.channels in every member.*m0: 1, m1: 3"):
        recipe(1, 3)


@pytest.mark.parametrize("absurd", [10**12, 10**300], ids=["large", "huge"])
@pytest.mark.parametrize(
    "place",
    [
        "members.0.training.epochs",
        "members.0.training.phases.0.epochs",
        "members.0.training.images_per_epoch",
        "members.0.training.batch_size",
        "members.0.training.auto_batch_size",
        "members.0.training.accumulation",
        "members.0.schedule.cycle.0.0",
        "members.0.input.size.1",
        "members.0.input.parts.0",
        "members.0.input.multiple",
        "members.0.input.margin",
        "members.0.loss.terms.0.hardest",
        "members.0.loss.terms.0.least",
        "members.0.guidance.region.margin",
        "members.0.guidance.region.round_to",
        "members.0.guidance.region.window",
        "members.0.guidance.region.context",
        "members.0.guidance.region.minimum_area",
        "members.0.folds.count",
        "folds.count",
        "folds.buffer",
        "inference.batch_pixels",
        "postprocess.draws",
        "postprocess.steps.0.element.1",
        "postprocess.steps.0.iterations",
        "postprocess.steps.0.margin",
        "postprocess.steps.1.width",
    ],
)
def test_an_absurd_number_is_one_line_before_anything_is_made(place: str, absurd: int) -> None:
    values = recipe(3).model_dump(mode="json")
    values["members"][0] |= {"guidance": {"region": {"of": "m0"}}, "folds": {}}
    values["members"][0]["training"]["phases"] = [{"epochs": 10}]
    values["members"][0]["input"] |= {"size": [64, 64], "parts": [1, 2]}
    values["postprocess"]["steps"] = [{"kind": "hull", "element": [2, 1]}, {"kind": "thin"}]
    *parents, name = (int(part) if part.isdigit() else part for part in place.split("."))
    inner: Any = values
    for part in parents:
        inner = inner[part]
    inner[name] = absurd
    with pytest.raises(UserError) as raised:
        parse(Recipe, values)
    (line,) = str(raised.value).splitlines()
    assert re.search(rf"{parents[-1]}\S*\.{name}\S*: Input should be less than or equal to \d", line), line


def test_the_epochs_of_all_phases_together_have_a_bound() -> None:
    values = recipe(3).model_dump(mode="json", exclude_unset=True)
    values["members"][0]["training"] = {"phases": [{"epochs": 60_000}, {"epochs": 60_000}]}
    with pytest.raises(UserError, match=r"phases: expected at most 100,?000 epochs together, found 120,?000"):
        parse(Recipe, values)


LAYERS = Task(kind="multilabel", classes=("roof", "road", "tree"))


def with_classes(*classes: list[str] | None, **ensemble: Any) -> Recipe:
    complete = recipe(*(3 for _ in classes), **ensemble).model_dump(mode="json")
    for member, names in zip(complete["members"], classes, strict=True):
        member["classes"] = names
    return parse(Recipe, complete)


def test_a_member_learns_its_own_classes_in_the_order_of_the_data() -> None:
    complete = with_classes(["tree", "roof"], None)
    assert complete.members[0].task_of(LAYERS) == Task(kind="multilabel", classes=("roof", "tree"))
    assert complete.members[1].task_of(LAYERS) == LAYERS
    assert complete.partial_members(LAYERS) == {"m0": (0, 2)}


def test_classes_must_be_there_and_learnt_one_by_one() -> None:
    with pytest.raises(UserError, match=r"m0\.classes: no class is called 'rof'.*roof"):
        with_classes(["rof"]).partial_members(LAYERS)
    with pytest.raises(UserError, match=r"m0\.classes: expected a multilabel task.*found a binary one"):
        with_classes(["roof"]).partial_members(Task(kind="binary", classes=("roof",)))


def test_members_of_some_classes_cannot_be_weighed_against_others() -> None:
    with pytest.raises(UserError, match=r"ensemble\.weights: fitted compares members that predict the same classes"):
        with_classes(["roof"], None, weights="fitted")
