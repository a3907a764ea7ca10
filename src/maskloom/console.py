"""What a terminal shows while work goes on: a live bar for people, plain lines for logs."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

LOG_SECONDS = 15.0
"""Without a terminal, a running stage writes one line per so many seconds."""


class Terminal:
    """Shows the progress of a run on standard error; use as a context manager."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._live = self._console.is_terminal
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[detail]}"),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, rate="", left="", detail="", visible=False)
        self._name = ""
        self._began = self._spoke = time.monotonic()
        self._first = 0

    def __enter__(self) -> Terminal:
        if self._live:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._bar.stop()

    def stage(self, name: str, *, cached: bool) -> None:
        """Shows that a stage begins, or was found finished."""
        self._name = name
        self._began = self._spoke = time.monotonic()
        self._first = -1
        self._bar.reset(self._task, total=None, visible=False, description=name, rate="", left="", detail="")
        mark, text = ("=", "done before") if cached else (">", "")
        self._console.print(Text(f"{mark} {name:<28} {text}".rstrip()))

    def advance(self, done: int, total: int, detail: str = "", *, seconds_left: float | None = None) -> None:
        """Moves the bar; without a terminal, writes a line now and then."""
        now = time.monotonic()
        if self._first < 0:
            self._first = max(done - 1, 0)
        rate = (done - self._first) / max(now - self._began, 1e-3)
        shown = f"{rate:.1f}/s" if rate >= 1 else f"{1 / max(rate, 1e-6):.1f} s each"
        left = f"{_duration((total - done) / max(rate, 1e-6) if seconds_left is None else seconds_left)} left"
        if self._live:
            self._bar.update(
                self._task, completed=done, total=total, rate=shown, left=left, detail=detail, visible=True
            )
        elif now - self._spoke >= LOG_SECONDS:
            self._spoke = now
            self._console.print(Text(f"  {self._name}: {done}/{total}, {shown}, {left}  {detail}".rstrip()))

    def note(self, text: str) -> None:
        """Prints a line that stays."""
        self._console.print(Text(f"  {text}"))


def _duration(seconds: float) -> str:
    """Returns "45 s", "12 min" or "3 h 05 min"."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def print_error(message: str) -> None:
    """Prints one line on standard error."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
