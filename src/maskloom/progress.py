"""How long work speaks to whoever waits: a small protocol, and a listener that says nothing.

Lower floors call it; what is drawn (a terminal bar, lines in a log) is decided at the doors.
"""

from __future__ import annotations

from typing import Protocol


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
