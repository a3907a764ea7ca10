"""SIGTERM, with which schedulers end a job: it ends a command as Ctrl-C does, at the same consistent moment."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from maskloom import cli, termination
from maskloom.executors.pool import Pool
from maskloom.heartbeat import Heartbeat
from maskloom.progress import Silent
from maskloom.storage import publishing
from maskloom.storage.places import working_run
from maskloom.training.checkpoint import interrupt_waits
from runs_at_urls import in_memory
from test_cli import run
from test_pool import Scripted, submitted


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The handlers of a terminal, whatever the shell that runs the tests set; afterwards they are as before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_command_ends_with_143_and_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def ask() -> dict[str, str]:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it goes on")

    monkeypatch.setattr("maskloom.api.recipes", ask)
    assert run("recipes", monkeypatch=monkeypatch) == termination.TERMINATED == 128 + signal.SIGTERM
    assert capsys.readouterr().err.splitlines()[-1] == "stopped; start the same command again to continue"
    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_keeps_its_own_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def ask() -> dict[str, str]:
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("it goes on")

    monkeypatch.setattr("maskloom.api.recipes", ask)
    assert run("recipes", monkeypatch=monkeypatch) == cli.INTERRUPTED
    assert "start the same command again" in capsys.readouterr().err


@pytest.mark.parametrize("interrupt", [signal.default_int_handler, signal.SIG_IGN, signal.SIG_DFL])
def test_it_waits_as_ctrl_c_does_wherever_the_command_was_started(interrupt: signal.Handlers) -> None:
    """Shells have Ctrl-C ignored by what they start in the background."""
    signal.signal(signal.SIGINT, interrupt)
    is_done = False
    with termination.terminable() as terminated, pytest.raises(KeyboardInterrupt), interrupt_waits():
        os.kill(os.getpid(), signal.SIGTERM)
        is_done = True
    assert is_done and terminated == [signal.SIGTERM]


def asked() -> None:
    """Has SIGTERM sent to this process, and waits for what follows."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)


@pytest.mark.parametrize("seconds", [termination.REPEAT_SECONDS, 0.0], ids=["at once", "later"])
def test_said_twice_it_does_not_disturb_what_is_saved(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(termination, "REPEAT_SECONDS", seconds)
    saved = []

    @contextmanager
    def at_the_end() -> Iterator[None]:
        try:
            yield
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            saved.append("the end")

    with termination.terminable(), pytest.raises(KeyboardInterrupt), at_the_end():
        try:
            asked()
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGTERM)
            saved.append("the state")
            try:
                raise OSError
            except OSError:
                os.kill(os.getpid(), signal.SIGTERM)
                saved.append("what an error left")
            raise
    assert saved == ["the state", "what an error left", "the end"]


def test_an_interrupt_that_a_library_swallows_is_repeated_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    with termination.terminable() as terminated, pytest.raises(KeyboardInterrupt):
        with suppress(KeyboardInterrupt):
            asked()
        os.kill(os.getpid(), signal.SIGTERM)  # part of the first one, as where a scheduler tells all of a group, too
        assert len(terminated) == 1
        monkeypatch.setattr(termination, "REPEAT_SECONDS", 0.0)
        asked()
    assert len(terminated) == 2


def test_an_interrupt_that_python_cannot_raise_comes_again() -> None:
    class Dying:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    before, began = sys.unraisablehook, time.monotonic()
    with termination.terminable() as terminated, pytest.raises(KeyboardInterrupt):
        Dying()
        time.sleep(5)
    assert len(terminated) == 2 and time.monotonic() - began < 4
    assert sys.unraisablehook is before


def test_what_else_python_cannot_raise_is_reported_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reported.append(unraisable.exc_type))

    class Dying:
        def __del__(self) -> None:
            raise ZeroDivisionError

    with termination.terminable() as terminated:
        Dying()
    assert reported == [ZeroDivisionError] and not terminated


def test_a_forked_child_ends_at_once() -> None:
    with termination.terminable() as terminated:
        child = os.fork()
        if child == 0:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == termination.TERMINATED and not terminated


# The time that is left ------------------------------------------------------------------------------------------------


def test_all_that_ends_a_command_shares_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(termination, "ALL_SECONDS", 1.0)
    with termination.terminable(), pytest.raises(KeyboardInterrupt):
        assert termination.seconds_left(25.0) == 25.0
        try:
            asked()
        finally:
            with termination.kept(0.4):
                assert 0.3 < termination.seconds_left(25.0) <= 0.6
                assert termination.seconds_left(0.1) == 0.1
                time.sleep(0.3)
                assert termination.seconds_left(25.0) <= 0.3
            assert 0.4 < termination.seconds_left(25.0) <= 0.7
            time.sleep(0.75)
            assert termination.seconds_left(25.0) == 0.0
    assert termination.seconds_left(25.0) == 25.0


def test_ctrl_c_leaves_every_step_its_own_time() -> None:
    with termination.terminable(), pytest.raises(KeyboardInterrupt):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            assert termination.seconds_left(25.0) == 25.0


def test_after_sigterm_later_steps_have_what_earlier_ones_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that do not stop, a disk that does not answer, a store that is slow."""
    pytest.importorskip("fsspec")
    monkeypatch.setattr(termination, "ALL_SECONDS", 1.2)
    monkeypatch.setattr(publishing, "KEPT_SECONDS", 0.6)
    over = threading.Event()
    monkeypatch.setattr(Heartbeat, "_keep_writing", lambda _: over.wait(10))
    crew, began, published = Scripted(), time.monotonic(), []

    def finish(publisher: object, seconds: float) -> bool:
        published.append((time.monotonic() - began, seconds))
        return True

    monkeypatch.setattr(publishing.Publisher, "finish_within", finish)
    with (
        in_memory(tmp_path, monkeypatch) as url,
        termination.terminable(),
        pytest.raises(KeyboardInterrupt),
        working_run(url) as root,
        Heartbeat(root, command="fit", device="cpu"),
        Pool(crew, Silent()) as executor,
    ):
        submitted(executor, crew)
        began = time.monotonic()
        asked()
    over.set()
    ((when, seconds),) = published
    assert ("kill", 1) in crew.done and 0.5 < when < 1.0
    assert 0.3 < seconds <= 0.6
    for thread in threading.enumerate():
        if thread.name == "heartbeat":
            thread.join(5)
