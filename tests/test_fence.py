"""Workers that nobody hears any more: they end themselves, and who comes after them waits for that."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from executor_tasks import eventually
from maskloom.executors import fence
from maskloom.executors.fence import FENCE_SECONDS, SILENT_SECONDS, Fence, wait_for_former
from maskloom.executors.nodes import HEAD_SECONDS
from maskloom.executors.sites import Work, open_site
from maskloom.heartbeat import Beat
from maskloom.progress import Silent


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in its only entry."""
    times = [1000.0]
    monkeypatch.setattr(fence, "_now", lambda: times[0])
    return times


def test_a_worker_at_a_task_that_nobody_asks_for_ends(clock: list[float]) -> None:
    ended = threading.Event()
    guard = Fence(0.2, ended.set)  # which is looked at every 0.05 s
    with guard.at_work():
        for _ in range(3):
            clock[0] += 0.15
            assert not ended.wait(0.1)
            guard.asked()
        clock[0] += 0.25
        assert ended.wait(10)


def test_a_worker_that_waits_is_left_alone(clock: list[float]) -> None:
    ended = threading.Event()
    guard = Fence(0.2, ended.set)
    for _ in range(2):
        with guard.at_work():
            assert not ended.wait(0.1), "the time before the task does not count"
        clock[0] += 100
        assert not ended.wait(0.1)


def test_a_process_ends_by_it_at_once() -> None:
    program = "from maskloom.executors.fence import Fence\nimport time\nwith Fence(0.1).at_work(): time.sleep(60)"
    assert subprocess.run([sys.executable, "-c", program], timeout=50).returncode == 1


def test_who_waits_waits_longer() -> None:
    """A worker may be asked for up to one answer's time after its driver has lost it."""
    assert FENCE_SECONDS > SILENT_SECONDS + HEAD_SECONDS


class Heard(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def leave(run: Path, **changes: Any) -> Path:
    """Leaves what a worker of another host said just now."""
    said = {
        "command": "fit", "host": "far", "pid": 7, "process": "p", "space": "", "device": "cuda", "began": time.time(),
        "sign": time.time(), "shard": "worker 1 of far",
    }  # fmt: skip
    path = run / "status" / "far-7.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(asdict(Beat(**said | changes))))
    return path


def test_workers_of_a_killed_driver_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fence, "FENCE_SECONDS", 0.6)
    heard, began = Heard(), time.monotonic()
    leave(tmp_path)
    with open_site(None, device="cpu") as site, site.workers(Work(run=tmp_path, command="fit"), heard):
        assert 0.5 < time.monotonic() - began < 5
    assert heard.notes == ["workers of an earlier command are still at it: they end within 1 s"]


def test_they_are_waited_for_no_longer_than_they_are_there(tmp_path: Path) -> None:
    path, heard = leave(tmp_path), Heard()
    waiting = threading.Thread(target=wait_for_former, args=(tmp_path, heard))
    waiting.start()
    assert eventually(lambda: bool(heard.notes)) and waiting.is_alive()
    path.unlink()
    waiting.join(5)
    assert not waiting.is_alive()


@pytest.mark.parametrize(
    "changes", [{"shard": ""}, {"command": "predict"}, {"ended": "stopped"}, {"sign": 1.0}], ids=str
)
def test_nobody_else_is(tmp_path: Path, changes: dict[str, Any]) -> None:
    leave(tmp_path, **changes)
    heard = Heard()
    wait_for_former(tmp_path, heard)
    assert heard.notes == []
