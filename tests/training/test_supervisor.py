"""Processes of their own that train together: started, heard and ended, whatever happens to one of them."""

from __future__ import annotations

import os
import pickle
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from team_jobs import CPU, job, make_dying_job, make_job, make_refused_job, make_slow_job, trained_alone

from maskloom.errors import BadFile, UserError
from maskloom.records import Record
from maskloom.runtime import rank_devices
from maskloom.training.checkpoint import read_position
from maskloom.training.rank import _portable
from maskloom.training.supervisor import train_together
from maskloom.training.team import Lost
from maskloom.training.tracking import TrainingProgress, read_log


def together(make: Any, folder: Path, records: list[Record], *, on_progress: Any = None, **changes: Any) -> Any:
    make_job = partial(make, folder, records, changes)
    return train_together(job(folder, records, **changes), make_job, devices=(CPU, CPU), on_progress=on_progress)


def test_a_training_by_two_processes_is_that_of_one(tmp_path: Path, records: list[Record]) -> None:
    heard: list[TrainingProgress] = []
    changes: dict[str, Any] = {"epochs": 2, "terms": ("bce", "dice"), "num_workers": 1}
    result = together(make_job, tmp_path / "two", records, on_progress=heard.append, **changes)
    trained_alone(tmp_path / "alone", records, **changes)
    alone = load_file(tmp_path / "alone" / "last.safetensors")
    for name, tensor in load_file(result.last).items():
        torch.testing.assert_close(tensor, alone[name], rtol=1e-5, atol=1e-5)
    assert list(result.epochs) == read_log(tmp_path / "two" / "log.jsonl")
    assert (heard[-1].step, heard[-1].steps, heard[-1].epoch) == (6, 6, 2)
    began = time.monotonic()
    assert together(make_job, tmp_path / "two", records, **changes) == result
    assert time.monotonic() - began < 0.5, "what is finished starts no process"


def test_a_killed_process_ends_all_with_one_line_and_the_rest_is_continued(
    tmp_path: Path, records: list[Record]
) -> None:
    changes: dict[str, Any] = {"epochs": 2, "batch_size": 4, "accumulation": 1, "checkpoint_seconds": 0.0}
    with pytest.raises(UserError) as refusal:
        together(make_dying_job, tmp_path / "two", records, **changes)
    message = str(refusal.value)
    assert "\n" not in message
    assert "found that of cpu (rank 1) killed by SIGKILL" in message
    assert "up to epoch 2, step 4, all is saved" in message
    position = read_position(tmp_path / "two" / "checkpoint.safetensors")
    assert position is not None and position.step == 4
    trained_alone(tmp_path / "two", records, **changes)
    trained_alone(tmp_path / "alone", records, **changes)
    alone = load_file(tmp_path / "alone" / "last.safetensors")
    for name, tensor in load_file(tmp_path / "two" / "last.safetensors").items():
        torch.testing.assert_close(tensor, alone[name], rtol=1e-5, atol=1e-5)


def test_ctrl_c_saves_the_state_and_ends_all(tmp_path: Path, records: list[Record]) -> None:
    def interrupt(progress: TrainingProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        together(make_slow_job, tmp_path, records, on_progress=interrupt, epochs=500)
    position = read_position(tmp_path / "checkpoint.safetensors")
    assert position is not None and position.step > 0 and not position.finished
    assert not _children(), "a process of the training lives on"


def test_what_one_process_refuses_is_told_as_it_stands(tmp_path: Path, records: list[Record]) -> None:
    with pytest.raises(UserError, match=r"^images/3\.png: expected a mask, found none; draw one$"):
        together(make_refused_job, tmp_path, records, epochs=1)
    assert not _children()


def _children() -> list[str]:
    """Returns the ranks among this process's children."""
    found = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if not found.is_file():
        return []
    commands = [Path(f"/proc/{child}/cmdline") for child in found.read_text().split()]
    return [str(path) for path in commands if path.is_file() and b"maskloom.training.rank" in path.read_bytes()]


def test_errors_travel() -> None:
    assert str(_portable(BadFile("a.png", "is damaged"))) == "a.png: is damaged"
    assert isinstance(_portable(BadFile("a.png", "is damaged")), BadFile)
    assert isinstance(_portable(Lost("gone")), Lost)
    defect = _portable(ZeroDivisionError("ours"))
    assert isinstance(defect, RuntimeError) and "ZeroDivisionError: ours" in str(defect)

    class Odd(UserError):
        def __init__(self, one: str, two: str) -> None:
            super().__init__(one + two)

    copy = pickle.loads(pickle.dumps(_portable(Odd("a", "b"))))
    assert type(copy) is UserError and str(copy) == "ab"


def test_devices_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rank_devices(CPU, 3) == (CPU,) * 3
    assert rank_devices(torch.device("cuda"), 1) == (torch.device("cuda"),)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert rank_devices(torch.device("cuda"), 2) == (torch.device("cuda:0"), torch.device("cuda:1"))
    assert rank_devices(torch.device("cuda:2"), 2) == (torch.device("cuda:2"), torch.device("cuda:3"))
    with pytest.raises(UserError, match="expected 3 GPUs from cuda:2 on, found 2"):
        rank_devices(torch.device("cuda:2"), 3)
    with pytest.raises(UserError, match="expected at least 1, found 0"):
        rank_devices(CPU, 0)
