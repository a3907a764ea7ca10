"""Settings that came later leave the trainings of earlier runs finished, as long as they say what held before."""

from __future__ import annotations

from typing import Any

from maskloom.config import parse
from maskloom.members import MemberSettings
from maskloom.pipeline import _training_part


def member(**policy: Any) -> MemberSettings:
    stated = {"name": "m", "network": {}, "loss": {"terms": [{"kind": "bce"}]}, "training": {"epochs": 1}}
    return parse(MemberSettings, {**stated, "input": {"mode": "full", **policy}})


def test_padding_on_both_sides_is_what_always_was() -> None:
    assert "padding_at" not in _training_part(member())["input"]
    assert _training_part(member(padding_at="both")) == _training_part(member())
    assert _training_part(member(padding_at="end"))["input"]["padding_at"] == "end"


def test_norms_of_each_device_alone_are_what_always_was() -> None:
    assert "sync_batch_norm" not in _training_part(member())["training"]


def test_networks_without_trees_are_what_always_was() -> None:
    assert "trees" not in _training_part(member())["network"]
