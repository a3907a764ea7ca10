"""How long work speaks to whoever waits: a small protocol, listeners that say nothing or pass on, and words for pace.

Lower floors call it; what is drawn (a terminal bar, lines in a log, a file for other processes) is decided above.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

RECENT_SECONDS = 120.0
"""A recent rate is that of so many last seconds, or of the last step where that took longer."""


class Progress(Protocol):
    """Hears what a run does."""

    def stage(self, name: str, *, cached: bool) -> None:
        """A stage begins, or was found finished."""

    def advance(self, done: int, total: int, detail: str = "", *, seconds_left: float | None = None) -> None:
        """``done`` of ``total`` steps of the current stage are finished; ``detail`` is a short text such as a score.

        ``seconds_left`` is stated where steps are not alike; else it follows from the steps so far.
        """

    def note(self, text: str) -> None:
        """Something the user should read: a guess, a file left out, a result."""


class Silent:
    """Hears everything and shows nothing."""

    def stage(self, name: str, *, cached: bool) -> None:
        """Shows nothing."""

    def advance(self, done: int, total: int, detail: str = "", *, seconds_left: float | None = None) -> None:
        """Shows nothing."""

    def note(self, text: str) -> None:
        """Shows nothing."""


class Several:
    """Passes everything on to several listeners, in their order."""

    def __init__(self, listeners: Sequence[Progress]) -> None:
        self._listeners = tuple(listeners)

    def stage(self, name: str, *, cached: bool) -> None:
        """Passes it on."""
        for listener in self._listeners:
            listener.stage(name, cached=cached)

    def advance(self, done: int, total: int, detail: str = "", *, seconds_left: float | None = None) -> None:
        """Passes it on."""
        for listener in self._listeners:
            listener.advance(done, total, detail, seconds_left=seconds_left)

    def note(self, text: str) -> None:
        """Passes it on."""
        for listener in self._listeners:
            listener.note(text)


class RecentRate:
    """How fast counted steps have gone lately; steps found done at the first count are no work of this process."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()
        self._total = 0

    def add(self, now: float, done: int, total: int) -> None:
        """Counts ``done`` of ``total`` steps at ``now`` (seconds of any clock that never goes back).

        Another total, or fewer steps than before, is other work: the rate begins anew.
        """
        if self._seen and (total != self._total or done < self._seen[-1][1]):
            self._seen.clear()
        self._total = total
        if len(self._seen) > 1 and now - self._seen[-2][0] < RECENT_SECONDS / 120:
            self._seen.pop()  # so that few are kept, however often there is a count
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] >= RECENT_SECONDS:
            self._seen.popleft()

    @property
    def per_second(self) -> float | None:
        """Steps per second; None before a second count, and where none was made."""
        if len(self._seen) < 2:
            return None
        (began, first), (now, done) = self._seen[0], self._seen[-1]
        return (done - first) / (now - began) if done > first and now > began else None


def duration(seconds: float) -> str:
    """Returns "45 s", "12 min" or "3 h 05 min"."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def pace(rate: float) -> str:
    """Returns "3.5/s", or "5.0 s each" for less than one per second."""
    return f"{rate:.1f}/s" if rate >= 1 else f"{1 / max(rate, 1e-6):.1f} s each"
