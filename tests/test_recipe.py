from __future__ import annotations

from typing import Any

import pytest

from maskloom.config import parse
from maskloom.errors import UserError
from maskloom.recipe import Recipe


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
