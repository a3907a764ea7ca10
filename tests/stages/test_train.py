from __future__ import annotations

import platform
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from maskloom.data.input_policy import InputPolicy
from maskloom.data.statistics import RecordFacts, Survey
from maskloom.errors import UserError
from maskloom.files import checksum
from maskloom.losses.terms import LossSettings
from maskloom.members import MemberSettings
from maskloom.models.encoders import NetworkSettings
from maskloom.records import Task
from maskloom.stages import train
from maskloom.stages.train import balanced_loss, check_weights, normalisation, weights_mark
from maskloom.training.engine import TrainingSettings


def facts(record_id: str, value: float, dtype: str) -> RecordFacts:
    return RecordFacts(
        id=record_id, group=record_id, size=(4, 4), dtype=dtype, mean=(value,), std=(2.0,), class_pixels=(1,),
        ignored=0, valid=16, digest=record_id, thumbnail=np.zeros((32, 32), np.uint8),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_deep_images_are_normalised_by_those_trained_on(dtype: str) -> None:
    member = MemberSettings(
        name="m", network=NetworkSettings(weights="none"), input=InputPolicy(mode="full"),
        loss=LossSettings.model_validate({"terms": [{"kind": "bce"}]}), training=TrainingSettings(),
    )  # fmt: skip
    task = Task(kind="binary", classes=("thing",))
    found = Survey(task=task, records=(facts("a", 100, dtype), facts("b", 100, dtype), facts("held out", 900, dtype)))
    result = normalisation(found, member, {"a", "b"})
    assert result.mean == (100,) * 3 and result.std == (2,) * 3
    assert result.dtype == dtype and result.scale == 1


def test_a_training_depends_on_the_weights_it_starts_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert weights_mark(NetworkSettings(weights="none")) == "none"
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"one")
    stated = NetworkSettings(weights=str(path))
    assert weights_mark(stated) == checksum(path)
    before = weights_mark(stated)
    path.write_bytes(b"two")
    assert weights_mark(stated) != before
    path.unlink()
    with pytest.raises(UserError, match=r"network\.weights"):
        weights_mark(stated)
    monkeypatch.setattr(train, "installed_file", lambda name: None)
    assert weights_mark(NetworkSettings(weights="auto")) == "none"


def test_other_first_weights_than_those_planned_with_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a node where another version of a package, another file, or none is installed."""
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"one")
    stated, of_itself = NetworkSettings(weights=str(path)), NetworkSettings(weights="auto")
    mark = weights_mark(stated)
    check_weights(stated, mark)
    check_weights(NetworkSettings(weights="hub"), "hub")
    for spoil in (lambda: path.write_bytes(b"two"), path.unlink):
        spoil()
        with pytest.raises(UserError, match=rf"on {re.escape(platform.node())}: expected the first weights that"):
            check_weights(stated, mark)
    monkeypatch.setattr(train, "installed_file", lambda name: None)
    with pytest.raises(UserError, match=r"found others \(none\); install the same package"):
        check_weights(of_itself, mark)


def test_class_weights_follow_from_the_images_that_are_learnt_from() -> None:
    member = MemberSettings(
        name="m", network=NetworkSettings(weights="none"), input=InputPolicy(mode="full"),
        loss=LossSettings.model_validate({"terms": [{"kind": "cross_entropy", "class_weights": "median_frequency"}]}),
        training=TrainingSettings(),
    )  # fmt: skip
    task = Task(kind="multiclass", classes=("a", "b"))
    seen = replace(facts("a", 100, "uint8"), class_pixels=(12, 4))
    held_out = replace(facts("held out", 100, "uint8"), class_pixels=(1, 15))
    found = Survey(task=task, records=(seen, held_out))
    assert balanced_loss(found, member, {"a"}).terms[0].class_weights == (0.5, 1.5)
    assert balanced_loss(found, member, {"a", "held out"}).terms[0].class_weights != (0.5, 1.5)
