"""Processes of their own that train together: started, heard and ended, whatever happens to one of them."""

from __future__ import annotations

import io
import os
import pickle
import queue
import signal
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from team_jobs import CPU, job, make_dying_job, make_job, make_refused_job, make_slow_job, trained_alone

from maskloom.errors import UserError
from maskloom.executors.children import portable
from maskloom.records import Record
from maskloom.runtime import rank_devices
from maskloom.training import rank as rank_program
from maskloom.training.checkpoint import read_position
from maskloom.training.supervisor import STOP_SECONDS, _Rank, _stop, train_together
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
    assert "found that the one on cpu (rank 1) was killed (exit code -9: SIGKILL, mostly for want of memory)" in message
    assert "up to epoch 2, step 4, all is saved" in message
    position = read_position(tmp_path / "two" / "checkpoint.safetensors")
    assert position is not None and position.step == 4
    trained_alone(tmp_path / "two", records, **changes)
    trained_alone(tmp_path / "alone", records, **changes)
    alone = load_file(tmp_path / "alone" / "last.safetensors")
    for name, tensor in load_file(tmp_path / "two" / "last.safetensors").items():
        torch.testing.assert_close(tensor, alone[name], rtol=1e-5, atol=1e-5)


def test_ctrl_c_saves_the_state_and_ends_all(tmp_path: Path, records: list[Record]) -> None:
    """Also where a scheduler has sent SIGTERM to all processes of the job, as systemd and SLURM do."""

    def interrupt(progress: TrainingProgress) -> None:
        for child in _children():
            os.kill(child, signal.SIGTERM)
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


def _children() -> list[int]:
    """Returns the ranks among this process's children."""
    found = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if not found.is_file():
        return []
    children = {int(child): Path(f"/proc/{child}/cmdline") for child in found.read_text().split()}
    return [
        child for child, path in children.items() if path.is_file() and b"maskloom.training.rank" in path.read_bytes()
    ]


def test_what_a_rank_lost_travels_as_such() -> None:
    copy = pickle.loads(pickle.dumps(portable(Lost("gone"))))
    assert isinstance(copy, Lost) and str(copy) == "gone"


def a_rank(process: Any) -> _Rank:
    return _Rank(number=0, device="cpu", process=process, order=b"", is_ready=True)


@pytest.mark.parametrize("said", [b"", b"nonsense", b"cnothing\nat_all\n.", pickle.dumps(("ready", None))[:-1]])
def test_a_rank_that_says_half_a_message_is_silent(said: bytes) -> None:
    heard: queue.Queue[Any] = queue.Queue()
    whole = pickle.dumps(("progress", 1))
    a_rank(SimpleNamespace(stdin=io.BytesIO(), stdout=io.BytesIO(whole + said))).listen(heard)
    assert [heard.get_nowait() for _ in range(2)] == [(0, "progress", 1), (0, "silent", None)]


def test_what_is_said_is_whole_when_ctrl_c_lands_in_it() -> None:
    class Pipe(io.BytesIO):
        def write(self, content: Any) -> int:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            return super().write(content)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    pipe = Pipe()
    try:
        with pytest.raises(KeyboardInterrupt):
            rank_program._say(pipe, "progress", 1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert pickle.loads(pipe.getvalue()) == ("progress", 1)


def test_a_rank_that_has_ended_is_not_waited_for() -> None:
    codes = iter([None, None, -6])
    process = SimpleNamespace(poll=lambda: next(codes, -6), send_signal=lambda _: None)
    began = time.monotonic()
    _stop(a_rank(process), queue.Queue())
    assert time.monotonic() - began < STOP_SECONDS / 5


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-11, "was killed (exit code -11: SIGSEGV)"),
        (-35, "was killed (exit code -35: signal 35)"),
        (1, "ended (exit code 1)"),
    ],
)
def test_how_a_rank_ended(code: int, words: str) -> None:
    assert a_rank(SimpleNamespace(wait=lambda _: code)).end_in_words == words


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
