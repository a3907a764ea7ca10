"""Rates, and words for them, by a clock moved by hand."""

from __future__ import annotations

import pytest

from maskloom.progress import RECENT_SECONDS, RecentRate, Several, Silent, duration, pace


def rate_of(*counts: tuple[float, int], total: int = 1000) -> float | None:
    rate = RecentRate()
    for now, done in counts:
        rate.add(now, done, total)
    return rate.per_second


def test_a_rate_needs_two_counts_and_a_step() -> None:
    assert rate_of() is None
    assert rate_of((5, 3)) is None
    assert rate_of((5, 3), (9, 3)) is None
    assert rate_of((5, 3), (5, 4)) is None


def test_what_was_done_before_is_no_work() -> None:
    assert rate_of((100, 700), (110, 720)) == 2


def test_only_the_last_seconds_count() -> None:
    """100 s at 10/s, then 240 s at 1/s: the last two minutes know only of 1/s."""
    counts = [(float(now), 10 * now) for now in range(101)]
    counts += [(100.0 + now, 1000 + now) for now in range(1, 241)]
    assert rate_of(*counts, total=5000) == pytest.approx(1, rel=0.02)


def test_a_slow_step_counts_from_the_one_before_it() -> None:
    """Steps of ten minutes each are longer than what is recent."""
    assert RECENT_SECONDS < 600
    assert rate_of((0, 0), (600, 1), (1200, 2)) == pytest.approx(1 / 600)


def test_other_work_begins_anew() -> None:
    assert rate_of((0, 0), (1, 900), (2, 10)) is None
    rate = RecentRate()
    for now, done, total in ((0, 0, 10), (1, 5, 10), (2, 6, 100), (4, 12, 100)):
        rate.add(now, done, total)
    assert rate.per_second == 3


def test_few_counts_are_kept_however_many_there_are() -> None:
    rate = RecentRate()
    for step in range(100_000):
        rate.add(step / 1000, step, 1_000_000)
    assert rate.per_second == pytest.approx(1000, rel=0.01)
    assert len(rate._seen) <= 2 * RECENT_SECONDS + 2


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (99.4, "99 s"), (100, "2 min"), (5940, "99 min"), (7500, "2 h 05 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("rate", "text"), [(12.34, "12.3/s"), (1, "1.0/s"), (0.2, "5.0 s each")])
def test_paces(rate: float, text: str) -> None:
    assert pace(rate) == text


def test_several_hear_the_same() -> None:
    class Listener(Silent):
        def __init__(self) -> None:
            self.heard: list[object] = []

        def stage(self, name: str, *, cached: bool) -> None:
            self.heard.append((name, cached))

        def advance(self, done: int, total: int, detail: str = "", *, seconds_left: float | None = None) -> None:
            self.heard.append((done, total, detail, seconds_left))

        def note(self, text: str) -> None:
            self.heard.append(text)

    both = [Listener(), Listener()]
    several = Several(both)
    several.stage("survey", cached=True)
    several.advance(1, 2, "x", seconds_left=3)
    several.note("y")
    assert [each.heard for each in both] == [[("survey", True), (1, 2, "x", 3), "y"]] * 2
