"""An index classifier is trained on nothing: it states neither loss nor training; every other member states both."""

from __future__ import annotations

from typing import Any

import pytest

from maskloom.config import override, parse, to_yaml
from maskloom.errors import UserError
from maskloom.recipe import Recipe

INDEX: dict[str, Any] = {
    "name": "plants",
    "network": {
        "architecture": "index",
        "channels": 2,
        "index": {"bands": ["red", "nir"], "rules": [{"expression": "nir - red"}]},
    },
    "input": {"mode": "full", "multiple": 1, "bands": {"names": ["red", "nir"], "full_scale": 2047}},
}
NETWORK: dict[str, Any] = {
    "name": "unet",
    "network": {"channels": 2},
    "input": {"mode": "window", "size": [64, 64]},
    "loss": {},
    "training": {},
}


def recipe(*members: dict[str, Any]) -> Recipe:
    return parse(Recipe, {"name": "plants", "metric": "iou", "members": members})


def test_an_index_member_states_neither_loss_nor_training() -> None:
    found = recipe(INDEX, NETWORK)
    assert [member.name for member in found.members] == ["plants", "unet"]
    assert override(found, ["seed=1"]).members == found.members  # written and read again
    assert "plants" in to_yaml(found)


@pytest.mark.parametrize("missing", ["loss", "training"])
def test_every_other_member_states_both(missing: str) -> None:
    without = {name: value for name, value in NETWORK.items() if name != missing}
    with pytest.raises(UserError, match=f"{missing}: expected it for a network that is trained, found none"):
        recipe(without)
