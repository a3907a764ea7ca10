"""Workers that nobody hears any more: they end themselves, and who comes after them waits for that."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from executor_tasks import eventually
from maskloom.errors import UserError
from maskloom.executors import fence
from maskloom.executors.fence import FENCE_SECONDS, SILENT_SECONDS, Fence, wait_for_former
from maskloom.executors.nodes import HEAD_SECONDS
from maskloom.files import write_json
from maskloom.heartbeat import Beat, Heartbeat, process_mark
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
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(Beat(**said | changes)))
    return path


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> float:
    """So long a sign must not change."""
    monkeypatch.setattr(fence, "FENCE_SECONDS", 0.4)
    monkeypatch.setattr(fence, "_LOOK_SECONDS", 0.04)
    return 0.4


@pytest.mark.parametrize("behind", [-3600.0, 0.0, 130.0, 10 * 365 * 86400.0])
def test_workers_of_a_killed_driver_are_waited_for_whatever_their_clock_says(
    tmp_path: Path, short: float, behind: float
) -> None:
    heard, began = Heard(), time.monotonic()
    path = leave(tmp_path, sign=time.time() - behind)
    wait_for_former(tmp_path, heard)
    assert short <= time.monotonic() - began < 5
    (note,) = heard.notes
    assert note.startswith("workers of an earlier command may still be at it on far: waiting until")
    assert not path.exists(), "the next command need not wait again"


def test_a_sign_that_changes_is_one_of_life(tmp_path: Path, short: float) -> None:
    began = time.monotonic()
    leave(tmp_path, sign=1000.0)
    waiting = threading.Thread(target=wait_for_former, args=(tmp_path, Silent()))
    waiting.start()
    for sign in (1001.0, 900.0):  # by a clock that is set back
        time.sleep(0.25)
        leave(tmp_path, sign=sign)
    last = time.monotonic()
    waiting.join(5)
    assert not waiting.is_alive() and time.monotonic() - began > last - began + short - 0.1


def test_workers_that_go_on_and_on_are_those_of_a_driver_that_lives(tmp_path: Path, short: float) -> None:
    over = threading.Event()

    def give_signs() -> None:
        while not over.wait(0.02):
            leave(tmp_path)

    leave(tmp_path)
    signs = threading.Thread(target=give_signs)
    signs.start()
    try:
        with pytest.raises(UserError, match="found one at work, process 7 on far; stop the command that it belongs to"):
            wait_for_former(tmp_path, Silent())
    finally:
        over.set()
        signs.join()


def test_they_are_waited_for_no_longer_than_they_are_there(tmp_path: Path) -> None:
    path, heard = leave(tmp_path), Heard()
    waiting = threading.Thread(target=wait_for_former, args=(tmp_path, heard))
    waiting.start()
    assert eventually(lambda: bool(heard.notes)) and waiting.is_alive()
    path.unlink()
    waiting.join(5)
    assert not waiting.is_alive()


@pytest.mark.parametrize("changes", [{"shard": ""}, {"command": "predict"}, {"ended": "stopped"}], ids=str)
def test_nobody_else_is(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = leave(tmp_path, **changes)
    heard = Heard()
    wait_for_former(tmp_path, heard)
    assert heard.notes == [] and path.exists()


def test_of_this_host_processes_are_looked_for(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        here = Heartbeat(tmp_path, command="fit", device="cpu", shard="worker 1").beat()
        leave(tmp_path, host=here.host, space=here.space, pid=process.pid, process=process_mark(process.pid), sign=1.0)
        heard = Heard()
        waiting = threading.Thread(target=wait_for_former, args=(tmp_path, heard))
        waiting.start()
        assert eventually(lambda: bool(heard.notes)) and waiting.is_alive()
        process.kill()
    waiting.join(5)
    assert not waiting.is_alive()
