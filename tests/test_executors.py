"""Where tasks run: what is repeated, what is told, what an error and a stop do, without any network."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest

import executor_tasks
from executor_tasks import call, eventually, pool
from maskloom.errors import BadFile, UserError
from maskloom.executors.bench import Bench, Message, Opening, Order
from maskloom.executors.children import ended, portable
from maskloom.executors.processes import Place, Processes
from maskloom.executors.sites import open_site, usual_loaders, usual_processes
from maskloom.executors.tasks import Here, InProcess, ShardProgress, shards
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
        assert "In another process:" in ours.value.__notes__[0] and "executor_tasks.py" in ours.value.__notes__[0]


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


def test_workers_take_no_module_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a data set that was unpacked there may have."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("queue", "pickle", "maskloom"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    with pool(tmp_path, 1) as executor:
        assert executor.collect(executor.submit(call(executor, executor_tasks.add, 1, shared=1)))[0] == 2
    assert not (tmp_path / "executed").exists()


def test_what_cannot_be_had_on_the_other_side_is_told_once(tmp_path: Path) -> None:
    with pool(tmp_path, 1) as executor:
        for task in (
            call(executor, executor_tasks.take, executor_tasks.Bound()),
            call(executor, executor_tasks.add, 1, shared=executor_tasks.Bound()),
            call(executor, executor_tasks.give),
        ):
            ticket = executor.submit(task)
            with pytest.raises(LookupError, match="it belongs to process"):
                executor.collect(ticket)
            assert ticket.attempts == 1
        assert executor.collect(executor.submit(call(executor, executor_tasks.add, 1, shared=1)))[0] == 2


def test_workers_that_end_while_they_wait_are_not_replaced_for_ever(tmp_path: Path) -> None:
    crew = Processes([Place("worker 1", {})], Opening(run=tmp_path, command="fit"))
    heard: list[Message] = []

    def is_over() -> bool:
        for worker, message in crew.poll(0.1):
            heard.append(message)
            if message.kind == "ready":
                crew.kill(worker)
        return heard[-1:] != [] and heard[-1].kind == "broken"

    try:
        assert eventually(is_over)
        assert [message.kind for message in heard] == ["ready", "lost"] * 3 + ["broken"]
    finally:
        crew.close()


def test_a_task_that_is_stopped_as_it_begins_says_so(tmp_path: Path) -> None:
    begun, saved = tmp_path / "begun", tmp_path / "saved"
    with pool(tmp_path, 1) as executor:
        assert executor.collect(executor.submit(call(executor, executor_tasks.add, 1, shared=1)))[0] == 2
        for wait in (0.0, 0.001, 0.005, 0.02, 0.1):
            executor.submit(call(executor, executor_tasks.wait, begun, saved))
            time.sleep(wait)
            began = time.monotonic()
            executor.drop()
            assert time.monotonic() - began < 10, "it was waited for, and killed"


def test_a_task_is_interrupted_for_which_the_signal_came_too_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker had not read the task from its pipe yet, and had nothing to stop."""
    begun, saved = tmp_path / "begun", tmp_path / "saved"
    with pool(tmp_path, 1) as executor:
        executor.submit(call(executor, executor_tasks.wait, begun, saved))
        assert eventually(begun.exists, 60)
        with monkeypatch.context() as lost:
            lost.setattr(subprocess.Popen, "send_signal", lambda process, number: None)
            began = time.monotonic()
            executor.drop()
        assert saved.is_file() and time.monotonic() - began < 10


def test_an_interruption_belongs_to_its_task(tmp_path: Path) -> None:
    said: list[Message] = []
    bench = Bench(Opening(run=tmp_path, command="fit"), said.append, place="worker 1")

    def ends(number: int) -> str:
        order = Order(
            number=number, name="stage", shard="", function=executor_tasks.speak, arguments=(), shared=1
        )  # fmt: skip
        bench.compute(order, lambda: None)
        return said[-1].kind

    bench.interrupt(1)  # which has not arrived yet
    assert ends(1) == "interrupted" and [message.kind for message in said] == ["interrupted"]
    assert ends(2) == "done"
    bench.interrupt(2)  # which has just ended
    assert ends(3) == "done"


def test_work_that_tells_no_steps_can_be_interrupted_too(tmp_path: Path) -> None:
    said: list[Message] = []
    bench = Bench(Opening(run=tmp_path, command="fit"), said.append, place="worker 1")

    def validate(here: Here, shared: None) -> None:
        for image in range(100):
            if image == 3:
                bench.interrupt(1)
            seen.append(image)
            here.go_on()

    seen: list[int] = []
    bench.compute(Order(number=1, name="stage", shard="", function=validate, arguments=(), shared=1), lambda: None)
    assert [message.kind for message in said] == ["interrupted"] and seen == [0, 1, 2, 3]


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
    assert ended(2) == "ended (exit code 2)"
    assert ended(-9) == "was killed (exit code -9: SIGKILL, mostly for want of memory)"
    assert ended(-11) == "was killed (exit code -11: SIGSEGV)"
    assert ended(-35) == "was killed (exit code -35: signal 35)", "a real-time signal has no name"


def test_errors_travel() -> None:
    assert str(portable(BadFile("a.png", "is damaged"))) == "a.png: is damaged"
    assert isinstance(portable(BadFile("a.png", "is damaged")), BadFile)
    defect = portable(ZeroDivisionError("ours"))
    assert isinstance(defect, ZeroDivisionError) and "ZeroDivisionError: ours" in defect.__notes__[0]
    assert type(portable(SystemExit(3))) is RuntimeError, "nobody else is to end by it"

    class Odd(UserError):
        def __init__(self, one: str, two: str) -> None:
            super().__init__(one + two)

    copy = pickle.loads(pickle.dumps(portable(Odd("a", "b"))))
    assert type(copy) is UserError and str(copy) == "ab"
