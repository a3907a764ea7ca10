"""The stage around a training: what a killed session left damaged is not continued, and a lost log comes back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_job import tiny_job

from maskloom.errors import BadFile
from maskloom.files import checksum
from maskloom.integrity import Damaged, Ledger
from maskloom.progress import Silent
from maskloom.records import Record
from maskloom.stages import train as stage
from maskloom.training.engine import TrainingResult

KEPT = ("best", "last")


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> dict[Path, str]:
    """Checksums that bundles must have; the tiny network is none that a bundle could be loaded of."""
    expected: dict[Path, str] = {}

    def load(path: Path) -> None:
        if expected.get(path, checksum(path)) != checksum(path):
            raise BadFile(path, "damaged")

    monkeypatch.setattr(stage, "load_bundle", load)
    return expected


class Stops(Silent):
    """Interrupts the training as soon as it is in its second epoch."""

    def advance(self, done: int, total: int, detail: str = "", *, seconds_left: float | None = None) -> None:
        if "epoch 2/" in detail:
            raise KeyboardInterrupt


def trained(folder: Path, records: list[Record], progress: Silent | None = None) -> TrainingResult:
    context: Any = SimpleNamespace(progress=progress or Silent())
    ledger = Ledger(folder.parent, folder.parent / "sums")
    return stage._trained(context, tiny_job(folder, records), ledger)


def interrupted(folder: Path, records: list[Record]) -> Path:
    """Returns the checkpoint of a training that was stopped in its second epoch."""
    with pytest.raises(KeyboardInterrupt):
        trained(folder, records, Stops())
    assert (folder / "best.safetensors").is_file() and not (folder / "last.safetensors").exists()
    return folder / "checkpoint.safetensors"


def test_a_damaged_checkpoint_is_named_and_the_training_begins_anew(tmp_path: Path, records: list[Record]) -> None:
    whole = trained(tmp_path / "whole", records)
    checkpoint = interrupted(tmp_path / "a", records)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(Damaged) as found:
        trained(tmp_path / "a", records)
    assert found.value.path == checkpoint and not checkpoint.exists()
    again = trained(tmp_path / "a", records)
    assert [checksum(getattr(again, name)) for name in KEPT] == [checksum(getattr(whole, name)) for name in KEPT]


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_bundle_of_the_stopped_session_must_be_whole(
    tmp_path: Path, records: list[Record], known: dict[Path, str], is_gone: bool
) -> None:
    checkpoint = interrupted(tmp_path / "a", records)
    best = tmp_path / "a" / "best.safetensors"
    known[best] = checksum(best)
    best.unlink() if is_gone else best.write_bytes(best.read_bytes()[:-1] + b"?")
    with pytest.raises(Damaged) as found:
        trained(tmp_path / "a", records)
    assert found.value.path == best and not checkpoint.exists()


def test_a_sound_attempt_is_continued(tmp_path: Path, records: list[Record]) -> None:
    interrupted(tmp_path / "a", records)
    result = trained(tmp_path / "a", records)
    assert '"event": "resume"' in (tmp_path / "a/log.jsonl").read_text() and result.last.is_file()


def test_a_lost_log_is_written_again(tmp_path: Path, records: list[Record]) -> None:
    trained(tmp_path / "a", records)
    log = tmp_path / "a" / "log.jsonl"
    text = log.read_bytes()
    log.unlink()
    trained(tmp_path / "a", records)
    assert log.read_bytes() == text


def test_a_training_that_is_done_again_is_not_held_against_the_earlier_one(
    tmp_path: Path, records: list[Record]
) -> None:
    """Else every interruption would find the new bundle other than the old one, and begin anew."""
    done, sums = trained(tmp_path / "a", records), tmp_path / "sums"
    for bundle in (done.last, tmp_path / "a" / "best.safetensors"):
        Ledger(tmp_path, sums).add(bundle)
    done.last.unlink()
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "a", records, Stops())
    assert Ledger(tmp_path, sums).names() == []
    again = trained(tmp_path / "a", records)
    assert again.last.is_file()
