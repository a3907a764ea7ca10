"""SIGTERM, with which schedulers end a job: it ends a command as Ctrl-C does, at the same consistent moment."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from maskloom import cli
from maskloom.training.checkpoint import interrupt_waits
from test_cli import run


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
    assert run("recipes", monkeypatch=monkeypatch) == cli.TERMINATED == 128 + signal.SIGTERM
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
    with cli._terminable() as terminated, pytest.raises(KeyboardInterrupt), interrupt_waits():
        os.kill(os.getpid(), signal.SIGTERM)
        is_done = True
    assert is_done and terminated == [signal.SIGTERM]


def test_said_twice_it_does_not_disturb_what_is_saved() -> None:
    saved = False
    with cli._terminable(), pytest.raises(KeyboardInterrupt):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGTERM)
            saved = True
            raise
    assert saved


def test_a_forked_child_ends_at_once() -> None:
    with cli._terminable() as terminated:
        child = os.fork()
        if child == 0:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == cli.TERMINATED and not terminated
