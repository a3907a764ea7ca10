from __future__ import annotations

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
