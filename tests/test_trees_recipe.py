"""What a member of trees states, and what is refused in one line: other inputs, starts, guides, pseudo-labels."""

from __future__ import annotations

from typing import Any

import pytest

from maskloom.config import override, parse, to_yaml
from maskloom.errors import UserError
from maskloom.models.tree_settings import TreeSettings
from maskloom.recipe import Recipe
from maskloom.recipes.smoke import smoked

TREES: dict[str, Any] = {
    "name": "trees",
    "network": {"architecture": "trees", "channels": 4},
    "input": {"mode": "full", "multiple": 1},
}
UNET: dict[str, Any] = {
    "name": "unet",
    "network": {"channels": 4},
    "input": {"mode": "window", "size": [64, 64]},
    "loss": {},
    "training": {},
}
WINDOWS = {"mode": "window", "multiple": 1, "size": [256, 256], "margin": 16}


def recipe(*members: dict[str, Any], **others: Any) -> Recipe:
    return parse(Recipe, {"name": "r", "metric": "iou", "members": members, **others})


def test_usual_trees_need_nothing_stated() -> None:
    found = recipe(TREES, UNET)
    assert found.members[0].network.trees == TreeSettings() and found.members[1].network.trees is None
    assert override(found, ["seed=1"]).members == found.members  # written and read again
    assert "num_trees: 200" in to_yaml(found)
    assert override(found, ["members.0.network.trees.sigmas=[0, 8]"]).members[0].network.trees.reach == 32  # type: ignore[union-attr]


def test_windows_whose_margin_covers_the_reach() -> None:
    assert recipe(TREES | {"input": WINDOWS}, folds={"kind": "blocks"}).members[0].input.margin == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": {"mode": "full"}}, r"input\.multiple: trees take sides of any length, found 32; state 1"),
        ({"input": WINDOWS | {"margin": 15}}, r"input\.margin: expected at least 16 pixels, .* reach, found 15"),
        ({"input": WINDOWS | {"padding": "edge"}}, r"input\.padding: trees see images mirrored .* found edge"),
        ({"input": {"mode": "parts", "parts": [1, 2], "multiple": 1}}, r"input\.mode: trees take .* found parts"),
        ({"keep": "snapshots"}, "keep: trees are grown once, found snapshots|keep: snapshots expects"),
        ({"start": "unet"}, "start: trees are grown from nothing"),
        ({"guidance": {"maps": ["unet"]}}, "guidance: trees are grown from nothing"),
    ],
)
def test_what_trees_cannot_take_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe(UNET, TREES | changes)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            {"architecture": "unet", "trees": {}},
            "trees: expected settings for the architecture trees alone, found unet",
        ),
        ({"bundle": "a.safetensors"}, "bundle: trees are grown from nothing"),
        ({"auxiliary_maps": 1}, "auxiliary_maps: trees are grown from nothing"),
        ({"weights": "hub"}, "weights: trees has no encoder to fill"),
        ({"trees": {"sigmas": [0, 0.1]}}, "expected 0, or 0.3 to 64 pixels, found 0.1"),
        ({"trees": {"sigmas": [1, 1]}}, "expected Gaussians that differ"),
        ({"trees": {"sigmas": []}}, "sigmas"),
        ({"trees": {"num_leaves": 1}}, "num_leaves"),
        ({"trees": {"share": 0}}, "share"),
        ({"trees": {"num_tree": 3}}, "did you mean 'num_trees'"),
    ],
)
def test_settings_have_bounds(network: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe(TREES | {"network": TREES["network"] | network})


def test_pseudo_labels_are_not_for_trees() -> None:
    with pytest.raises(UserError, match=r"pseudo\.0\.members: trees learn from true labels alone, remove trees"):
        recipe(UNET, TREES, pseudo=[{"members": ["trees"]}])


def test_smoke_scale_grows_fewer_and_keeps_margins() -> None:
    small = smoked(recipe(TREES, TREES | {"name": "tiles", "input": WINDOWS}), (1000, 1000))
    assert [member.network.trees and member.network.trees.num_trees for member in small.members] == [10, 10]
    assert parse(Recipe, small.model_dump(mode="json")) == small
    assert small.members[1].input.size == (256, 256) and small.members[1].input.scale < 0.1
