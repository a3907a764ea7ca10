"""Who is given which task, what is given on and what is repeated, by a crew that says what the test has it say."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

import executor_tasks
from executor_tasks import call, eventually
from maskloom.errors import UserError
from maskloom.executors import pool
from maskloom.executors.bench import Kind, Loss, Message, Order
from maskloom.executors.pool import Pool
from maskloom.executors.tasks import Shared, Ticket
from maskloom.progress import Silent


class Scripted:
    """A crew of workers that are ready, and otherwise say nothing by themselves."""

    def __init__(self, size: int = 1) -> None:
        self.size = size
        self.said: queue.SimpleQueue[tuple[int, Message] | None] = queue.SimpleQueue()
        self.done: list[tuple[str, int]] = []
        """What was done with which worker, in order."""
        self.orders: dict[int, Order] = {}
        """The latest of each worker."""
        for worker in range(1, size + 1):
            self.say(worker, "ready")

    def say(self, worker: int, kind: Kind, value: Any = None) -> None:
        self.said.put((worker, Message(kind, value=value)))

    def send(self, worker: int, order: Order, shared: Shared) -> None:
        self.orders[worker] = order
        self.done.append(("send", worker))

    def poll(self, seconds: float) -> Iterator[tuple[int, Message]]:
        try:
            found = self.said.get(timeout=min(seconds, 0.05))
        except queue.Empty:
            return
        if found is not None:
            yield found

    def wake(self) -> None:
        self.said.put(None)

    def interrupt(self, worker: int) -> None:
        self.done.append(("interrupt", worker))

    def kill(self, worker: int) -> None:
        self.done.append(("kill", worker))

    def close(self) -> None:
        self.done.append(("close", 0))

    def sent(self) -> int:
        return sum(what == "send" for what, _ in self.done)


class Heard(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[int] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def advance(self, done: int, total: int, detail: str = "", *, seconds_left: float | None = None) -> None:
        self.steps.append(done)


def submitted(executor: Pool, crew: Scripted, *, is_exclusive: bool = False, **options: Any) -> Ticket:
    """Returns the ticket of a task that a worker was given."""
    before = crew.sent()
    ticket = executor.submit(replace(call(executor, executor_tasks.speak), is_exclusive=is_exclusive), **options)
    assert eventually(lambda: crew.sent() == before + 1)
    return ticket


def all_heard(crew: Scripted) -> bool:
    """Returns True once the pool has heard what was said."""
    is_heard = eventually(crew.said.empty)
    time.sleep(0.1)
    return is_heard


# Lost workers --------------------------------------------------------------------------------------------------------


def test_a_training_is_not_begun_again_beside_a_worker_that_is_only_out_of_reach(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool, "FENCE_SECONDS", 0.6)
    crew, heard = Scripted(2), Heard()
    with Pool(crew, heard) as executor:
        ticket = submitted(executor, crew, is_exclusive=True)
        began = time.monotonic()
        crew.say(1, "lost", Loss("was lost", has_ended=False))
        assert eventually(lambda: crew.sent() == 2)
        assert 0.5 < time.monotonic() - began < 5
        crew.say(2, "done", ("value", 1.0))
        assert executor.collect(ticket) == "value" and ticket.attempts == 1
    assert heard.notes == ["stage: its worker was lost; it is done again in 1 s, when that has surely ended"]


@pytest.mark.parametrize(("is_exclusive", "has_ended"), [(True, True), (False, False), (False, True)])
def test_other_tasks_are_repeated_at_once(is_exclusive: bool, has_ended: bool) -> None:
    """A shard gives the same bytes twice, and who has ended writes nothing any more."""
    crew = Scripted(2)
    with Pool(crew, Silent()) as executor:
        submitted(executor, crew, is_exclusive=is_exclusive)
        crew.say(1, "lost", Loss("was lost", has_ended=has_ended))
        assert eventually(lambda: crew.sent() == 2, seconds=5)
        crew.say(2, "done", ("value", 1.0))


def test_a_training_that_waits_is_dropped_with_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "FENCE_SECONDS", 0.3)
    crew = Scripted(2)
    with Pool(crew, Silent()) as executor:
        submitted(executor, crew, is_exclusive=True)
        crew.say(1, "lost", Loss("was lost", has_ended=False))
        assert all_heard(crew)
        executor.drop()
        time.sleep(0.6)
        assert crew.sent() == 1


@pytest.mark.parametrize("title", ["stage", "another"])
@pytest.mark.parametrize("case", ["waits", "is lost while all stop", "does not stop"])
def test_a_training_that_is_handed_out_anew_waits_for_who_was_at_it(
    monkeypatch: pytest.MonkeyPatch, case: str, title: str
) -> None:
    """As after damage that was met while reading: all is dropped, and what is missing handed out again."""
    monkeypatch.setattr(pool, "FENCE_SECONDS", 0.6)
    monkeypatch.setattr(pool, "STOP_SECONDS", 0.2)
    loss = Loss("was lost", has_ended=False)

    class Silenced(Scripted):
        def interrupt(self, worker: int) -> None:
            if case == "is lost while all stop":
                self.say(worker, "lost", loss)

    crew, heard = Silenced(2), Heard()
    with Pool(crew, heard) as executor:
        submitted(executor, crew, is_exclusive=True)
        if case == "waits":
            crew.say(1, "lost", loss)
            assert all_heard(crew)
        executor.drop()
        if case == "does not stop":
            assert eventually(lambda: ("kill", 1) in crew.done)
        again = replace(call(executor, executor_tasks.speak), is_exclusive=True, name=title)
        ticket = executor.submit(again)
        if case == "does not stop":
            time.sleep(0.3)
            assert crew.sent() == 1 + (title == "another"), "nobody has said that it has ended"
            crew.say(1, "lost", loss)
        began = time.monotonic()
        assert eventually(lambda: crew.sent() == 2)
        assert (time.monotonic() - began > 0.3) == (title == "stage")
        crew.say(2, "done", ("value", 1.0))
        assert executor.collect(ticket) == "value"
    assert not heard.notes or heard.notes == ["stage: its worker was lost; it is not begun again within 1 s"]


def test_it_does_not_wait_for_one_that_is_killed_here() -> None:
    class Mortal(Scripted):
        def kill(self, worker: int) -> None:
            super().kill(worker)
            self.say(worker, "lost", Loss("was killed"))

    crew = Mortal(2)
    with pytest.MonkeyPatch.context() as patched, Pool(crew, Silent()) as executor:
        patched.setattr(pool, "STOP_SECONDS", 0.1)
        submitted(executor, crew, is_exclusive=True)
        executor.drop()
        submitted(executor, crew, is_exclusive=True)
        assert ("kill", 1) in crew.done
        crew.say(2, "done", ("value", 1.0))


@pytest.mark.parametrize("with_node", [True, False], ids=["gone", "out of reach"])
def test_nodes_that_go_are_no_attempts(with_node: bool) -> None:
    """That a host is gone is often known only after its workers went out of reach."""
    crew = Scripted(pool.MOST_ATTEMPTS + 3)
    with Pool(crew, Silent()) as executor:
        ticket = submitted(executor, crew)
        for worker in range(1, crew.size):
            crew.say(worker, "lost", Loss("was lost with its node", has_ended=False, with_node=with_node))
            assert eventually(lambda least=worker + 1: crew.sent() == least)
        crew.say(crew.size, "done", ("value", 1.0))
        assert executor.collect(ticket) == "value" and ticket.attempts == 1


@pytest.mark.parametrize(("most", "has_ended"), [(pool.MOST_ATTEMPTS, True), (pool.MOST_AWAY, False)])
def test_workers_that_end_by_themselves_are(most: int, has_ended: bool) -> None:
    crew = Scripted(most)
    with Pool(crew, Silent()) as executor:
        ticket = submitted(executor, crew)
        for worker in range(1, crew.size + 1):
            crew.say(worker, "lost", Loss("ended", has_ended=has_ended))
            assert eventually(lambda least=worker: crew.sent() >= min(least + 1, crew.size))
        with pytest.raises(UserError, match=f"found {most} that did not; the last ended; mend"):
            executor.collect(ticket)


# What is given on ----------------------------------------------------------------------------------------------------


def test_steps_of_tasks_that_nobody_waits_for_are_not_kept() -> None:
    crew = Scripted()
    with Pool(crew, Silent()) as executor:
        ticket = submitted(executor, crew)
        for done in range(2000):
            crew.say(1, "advance", (done, 2000, "", None))
        crew.say(1, "note", "remember")
        assert all_heard(crew)
        assert len(executor._events) == 1 and not executor._steps
        crew.say(1, "done", ("value", 1.0))
        heard = Heard()
        assert executor.collect(ticket, progress=heard) == "value" and heard.notes == ["remember"]


def test_of_many_steps_the_latest_is_told() -> None:
    crew, heard = Scripted(), Heard()
    with Pool(crew, Silent()) as executor:
        ticket = submitted(executor, crew, progress=heard)
        for done in range(2000):
            crew.say(1, "advance", (done, 2000, "", None))
        crew.say(1, "done", ("value", 1.0))
        assert all_heard(crew)
        assert executor.collect(ticket) == "value" and heard.steps == [1999]


def test_what_was_told_before_ctrl_c_and_while_workers_stop_is_given_on() -> None:
    class Saying(Scripted):
        def interrupt(self, worker: int) -> None:
            self.say(worker, "told", "the last")
            self.say(worker, "interrupted")

    crew, told = Saying(), []

    def enter(value: Any) -> None:
        if value == "second" and "second" not in seen:
            seen.append("second")
            raise KeyboardInterrupt  # while the file is read for its checksum
        told.append(value)

    seen: list[str] = []
    with pytest.raises(KeyboardInterrupt), Pool(crew, Silent()) as executor:
        ticket = submitted(executor, crew, on_told=enter)
        for value in ("first", "second", "third"):
            crew.say(1, "told", value)
        executor.collect(ticket)
    assert told == ["first", "second", "third", "the last"]


def test_what_was_told_before_an_error_is_given_on() -> None:
    crew, told = Scripted(2), []

    def enter(value: Any) -> None:
        if value == "bad":
            raise UserError("it cannot be entered")
        told.append(value)

    with pytest.raises(UserError, match="cannot be entered"), Pool(crew, Silent()) as executor:
        ticket = submitted(executor, crew, on_told=enter)
        for value in ("first", "bad", "third"):
            crew.say(1, "told", value)
        assert all_heard(crew)
        crew.say(1, "done", ("value", 1.0))
        executor.collect(ticket)
    assert told == ["first", "third"]


def test_a_second_ctrl_c_is_not_kept_waiting() -> None:
    crew = Scripted()
    began = time.monotonic()

    def enter(value: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Pool(crew, Silent()) as executor:
        ticket = submitted(executor, crew, on_told=enter)
        crew.say(1, "told", 1)
        executor.collect(ticket)
    assert time.monotonic() - began < 5


# Stopping ------------------------------------------------------------------------------------------------------------


def test_workers_that_do_not_stop_are_killed_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "STOP_SECONDS", 0.2)
    crew = Scripted(3)
    with Pool(crew, Silent()) as executor:
        for _ in range(3):
            submitted(executor, crew)
    assert crew.done[3:] == [
        ("interrupt", 1), ("interrupt", 2), ("interrupt", 3), ("kill", 1), ("kill", 2), ("kill", 3), ("close", 0),
    ]  # fmt: skip
    assert not any(thread.name == "tasks" for thread in threading.enumerate())
