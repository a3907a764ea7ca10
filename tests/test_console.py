from __future__ import annotations

import pytest

from maskloom import console
from maskloom.console import Terminal


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the terminal sees, to be moved by hand."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_a_log_says_rate_and_time_left(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """Four steps of ten in 20 s leave 30 s, unless it is stated what is left."""
    with Terminal() as terminal:
        terminal.stage("train", cached=False)
        terminal.advance(0, 10)
        clock[0] += 20
        terminal.advance(4, 10, "loss 0.5")
        clock[0] += 20
        terminal.advance(8, 10, "loss 0.4", seconds_left=600)
        clock[0] += 1
        terminal.advance(9, 10)
    said = [line.strip() for line in capsys.readouterr().err.splitlines()]
    assert said == [
        "> train",
        "train: 4/10, 5.0 s each, 30 s left  loss 0.5",
        "train: 8/10, 5.0 s each, 10 min left  loss 0.4",
    ]


def test_what_comes_before_the_first_step_is_no_pace(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """Networks are loaded for 60 s, then every image takes 2 s: the ten that are left take 20 s."""
    with Terminal() as terminal:
        terminal.stage("predict", cached=False)
        clock[0] += 60
        terminal.advance(1, 20)
        clock[0] += 18
        terminal.advance(10, 20)
        terminal.stage("submit", cached=False)
        clock[0] += 30
        terminal.advance(0, 3)
    said = [line.strip() for line in capsys.readouterr().err.splitlines()]
    assert said == ["> predict", "predict: 1/20", "predict: 10/20, 2.0 s each, 20 s left", "> submit", "submit: 0/3"]
