"""Where tasks run: what is repeated, what is told, what an error and a stop do, without any network."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import executor_tasks
from executor_tasks import call, pool
from maskloom.errors import BadFile, UserError
from maskloom.executors.bench import whereabouts
from maskloom.executors.cluster import _running_here
from maskloom.executors.nodes import Look, takes_connections
from maskloom.executors.processes import ended
from maskloom.executors.sites import open_site, usual_loaders, usual_processes
from maskloom.executors.tasks import InProcess, ShardProgress, shards
from maskloom.heartbeat import process_mark
from maskloom.progress import Silent


class Heard(Silent):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[tuple[int, int, str]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def advance(self, done: int, total: int, detail: str = "", *, seconds_left: float | None = None) -> None:
        self.steps.append((done, total, detail))


class Two(InProcess):
    """Says that it has two workers."""

    is_parallel, num_workers = True, 2


def eventually(is_so: object, seconds: float = 60.0) -> bool:
    ends = time.monotonic() + seconds
    while not is_so():  # type: ignore[operator]
        if time.monotonic() > ends:
            return False
        time.sleep(0.05)
    return True


# --- without workers -------------------------------------------------------------------------------------------------


def test_without_workers_a_task_is_a_call_when_it_is_collected(tmp_path: Path) -> None:
    executor, heard, told = InProcess(), Heard(), []
    ticket = executor.submit(call(executor, executor_tasks.speak), progress=heard, on_told=told.append)
    assert heard.notes == [] and not ticket.is_done
    assert executor.collect(ticket) == "said" and ticket.is_done
    assert (heard.notes, told) == (["hello"], [0, 1, 2]) and heard.steps[-1] == (3, 3, "")
    assert executor.collect(executor.submit(call(executor, executor_tasks.add, 2, shared=40))) == (42, os.getpid())
    with pytest.raises(ZeroDivisionError):
        executor.collect(executor.submit(call(executor, executor_tasks.fail, "ours")))
    first, second = (executor.submit(call(executor, executor_tasks.build_once, "key")) for _ in range(2))
    assert executor.collect(first) < executor.collect(second), "nothing is kept from stage to stage"


def test_shards_are_everything_once_and_only_where_there_are_workers() -> None:
    items = list(range(100))
    assert shards(items, InProcess(), at_most=3) == [("", items)]
    assert shards([], InProcess(), at_most=3) == shards([], Two(), at_most=3) == []
    cut = shards(items, Two(), at_most=64)
    assert [item for _, piece in cut for item in piece] == items
    assert len(cut) >= 2 * 4 and cut[0][0] == "1–7 of 100" and cut[-1][0] == "99–100 of 100"
    assert [len(piece) for _, piece in shards(items, Two(), at_most=3)] == [3] * 33 + [1]


def test_progress_of_shards_adds_up_and_a_repeated_one_begins_anew() -> None:
    heard = Heard()
    whole = ShardProgress(heard, done=10, total=20)
    first, second = whole.listener("fold 0"), whole.listener("fold 1")
    first.advance(3, 5)
    second.advance(2, 5)
    first.advance(1, 5)
    assert heard.steps == [(13, 20, "fold 0"), (15, 20, "fold 1"), (13, 20, "fold 0")]


# --- processes -------------------------------------------------------------------------------------------------------


def test_processes_share_tasks_and_what_they_tell_arrives(tmp_path: Path) -> None:
    heard, told = Heard(), []
    with pool(tmp_path, 2, heard) as executor:
        slow = [executor.submit(call(executor, executor_tasks.append, tmp_path / "x", "a", 0.3)) for _ in range(2)]
        base = 40
        sums = [executor.submit(call(executor, executor_tasks.add, value, shared=base)) for value in range(6)]
        found = [executor.collect(ticket) for ticket in sums]
        assert [value for value, _ in found] == [40 + value for value in range(6)]
        assert os.getpid() not in {pid for _, pid in found}
        for ticket in slow:
            executor.collect(ticket)
        spoken = executor.submit(call(executor, executor_tasks.speak), on_told=told.append)
        assert executor.collect(spoken, progress=heard) == "said"
        alone = executor.submit(call(executor, executor_tasks.speak))
        executor.collect(executor.submit(call(executor, executor_tasks.add, 1, shared=base)))
        executor.collect(alone)
    assert told == [0, 1, 2] and "hello" in heard.notes and "stage: hello" in heard.notes
    assert not list(tmp_path.rglob("status/*.json")), "who has ended well leaves no sign"


def test_tasks_begin_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "order"
    with pool(tmp_path, 1) as executor:
        first = executor.submit(call(executor, executor_tasks.append, path, "0", 1.0))
        time.sleep(0.3)
        later = [
            executor.submit(call(executor, executor_tasks.append, path, str(order), 0.0, order=order))
            for order in (3, 1, 2)
        ]
        for ticket in (first, *later):
            executor.collect(ticket)
    assert path.read_text() == "0123"


def test_a_killed_worker_costs_its_task_a_repetition(tmp_path: Path) -> None:
    heard = Heard()
    with pool(tmp_path, 1, heard) as executor:
        ticket = executor.submit(call(executor, executor_tasks.die_once, tmp_path / "mark"))
        assert executor.collect(ticket) == "done" and ticket.attempts == 2
    assert any("stage: its worker was killed (exit code -9: SIGKILL" in note for note in heard.notes)


def test_a_task_that_kills_every_worker_is_named(tmp_path: Path) -> None:
    with pool(tmp_path, 2) as executor:
        with pytest.raises(UserError, match=r"^stage: .* found 3 that did not; the last ended \(exit code 3\)"):
            executor.collect(executor.submit(call(executor, executor_tasks.die)))
        assert executor.collect(executor.submit(call(executor, executor_tasks.add, 1, shared=1)))[0] == 2


def test_errors_arrive_as_they_were(tmp_path: Path) -> None:
    with pool(tmp_path, 1) as executor:
        with pytest.raises(BadFile) as user:
            executor.collect(executor.submit(call(executor, executor_tasks.fail, "user")))
        assert str(user.value) == "photo.png: is cut off" and user.value.path == Path("photo.png")
        with pytest.raises(ZeroDivisionError) as ours:
            executor.collect(executor.submit(call(executor, executor_tasks.fail, "ours")))
        assert "In a worker:" in ours.value.__notes__[0] and "executor_tasks.py" in ours.value.__notes__[0]


def test_stopping_lets_workers_save_and_ends_them(tmp_path: Path) -> None:
    begun, saved = tmp_path / "begun", tmp_path / "saved"
    with pytest.raises(KeyboardInterrupt), pool(tmp_path, 1) as executor:
        executor.submit(call(executor, executor_tasks.wait, begun, saved))
        assert eventually(begun.is_file)
        raise KeyboardInterrupt
    assert saved.is_file() and process_mark(int(begun.read_text())) is None


def test_after_a_drop_the_workers_are_free(tmp_path: Path) -> None:
    begun, saved = tmp_path / "begun", tmp_path / "saved"
    with pool(tmp_path, 1) as executor:
        executor.submit(call(executor, executor_tasks.wait, begun, saved))
        assert eventually(begun.is_file)
        executor.drop()
        assert saved.is_file()
        assert executor.collect(executor.submit(call(executor, executor_tasks.add, 1, shared=1)))[0] == 2


def test_workers_end_with_a_killed_driver(tmp_path: Path) -> None:
    driver = subprocess.Popen([sys.executable, executor_tasks.__file__, str(tmp_path)])
    begun = tmp_path / "begun"
    assert eventually(lambda: begun.is_file() and begun.read_text() != "")
    driver.kill()
    driver.wait()
    worker = int(begun.read_text())
    assert eventually(lambda: process_mark(worker) is None), "as if it were killed, too"
    assert not (tmp_path / "saved").exists()


def test_a_worker_that_cannot_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pool(tmp_path, 1) as executor, pytest.raises(UserError, match="3 that could not be started; the last one"):
        executor.collect(executor.submit(call(executor, executor_tasks.add, 1, shared=1)))


# --- what is asked for -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on", "processes", "named"),
    [
        ("moon", None, "--on 'moon': expected local, ray or ray://HOST:PORT"),
        ("ray://host", None, "expected local, ray or ray://HOST:PORT"),
        (None, 2, "--processes 2: expected --on"),
        ("local", 0, "--processes 0: expected at least 1"),
    ],
)
def test_mistakes_are_one_line(on: str | None, processes: int | None, named: str) -> None:
    with pytest.raises(UserError, match=named.replace("(", r"\(")), open_site(on, device="cpu", processes=processes):
        pass


def test_without_ray_the_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'maskloom\[cluster\]'"), open_site("ray"):
        pass


def test_workers_share_the_cores() -> None:
    assert [usual_processes(cores) for cores in (1, 2, 4, 8, 16, 64)] == [1, 2, 2, 2, 4, 16]
    assert [usual_loaders(cores) for cores in (0, 1, 2, 4, 64)] == [1, 1, 1, 3, 8]


def test_how_a_process_ended() -> None:
    assert ended(2) == "ended (exit code 2)" and "SIGSEGV" in ended(-11) and "memory" in ended(-9)


def test_a_node_that_does_not_see_the_run_is_told(tmp_path: Path) -> None:
    look = Look(path=tmp_path / "probe", text="x", sees=(), folder="")
    fine = whereabouts() | {"probe": "x", "missing": ""}
    assert look.missing("a", fine) is None
    assert "node a: expected to see the run's folder" in str(look.missing("a", fine | {"probe": ""}))
    assert "node a: expected to see /data, found no such path" in str(look.missing("a", fine | {"missing": "/data"}))
    assert "torch 1 (here" in str(look.missing("a", fine | {"torch": "1"}))


def test_a_head_that_is_gone_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert _running_here() is None
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(address)
        assert _running_here() == address and takes_connections(f"ray://{address}")
    assert _running_here() is None and not takes_connections(address)
