"""What a terminal shows while work goes on: a live bar for people, plain lines for logs; and where a run stands."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from maskloom.errors import shortened
from maskloom.outputs.status_rows import (
    MOST_ROWS,
    PROCESS_HEADERS,
    STAGE_HEADERS,
    Row,
    RunStatus,
    footnote,
    headline,
    plain,
    prediction_rows,
    remarks,
    stage_rows,
    stamp,
)
from maskloom.progress import RecentRate, duration, pace

LOG_SECONDS = 15.0
"""Without a terminal, a running stage writes one line per so many seconds."""
WATCH_SECONDS = 2.0
"""A watched run is looked at again after so long, or after ten times what looking takes."""
PLAIN_WIDTH = 180
"""Columns of a table that is written to a file or a pipe."""


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
        self._spoke = time.monotonic()
        self._rate = RecentRate()

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
        self._spoke = time.monotonic()
        self._rate = RecentRate()
        self._bar.reset(self._task, total=None, visible=False, description=name, rate="", left="", detail="")
        mark, text = ("=", "done before") if cached else (">", "")
        self._console.print(Text(f"{mark} {name:<28} {text}".rstrip()))

    def advance(self, done: int, total: int, detail: str = "", *, seconds_left: float | None = None) -> None:
        """Moves the bar; without a terminal, writes a line now and then.

        What comes before the first count (networks that are loaded, say) is not part of the rate.
        """
        now = time.monotonic()
        self._rate.add(now, done, total)
        rate = self._rate.per_second
        if seconds_left is None and rate is not None:
            seconds_left = (total - done) / rate
        shown = "" if rate is None else pace(rate)
        left = "" if seconds_left is None else f"{duration(seconds_left)} left"
        if self._live:
            self._bar.update(
                self._task, completed=done, total=total, rate=shown, left=left, detail=detail, visible=True
            )
        elif now - self._spoke >= LOG_SECONDS:
            self._spoke = now
            counted = ", ".join(filter(None, (f"{done}/{total}", shown, left)))
            self._console.print(Text(f"  {self._name}: {counted}  {detail}".rstrip()))

    def note(self, text: str) -> None:
        """Prints a line that stays."""
        self._console.print(Text(f"  {text}"))


def show_status(read: Callable[[], RunStatus], *, watch: bool = False) -> None:
    """Prints where a run stands; with ``watch`` again and again, until the run is finished or Ctrl-C."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    if not watch:
        console.print(_board(read()))
    elif console.is_terminal:
        with suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            for status in _looks(read, WATCH_SECONDS):
                live.update(_board(status), refresh=True)
    else:
        with suppress(KeyboardInterrupt):
            for status in _looks(read, LOG_SECONDS):
                console.print(_board(status))


def _looks(read: Callable[[], RunStatus], pause: float) -> Iterator[RunStatus]:
    """Yields where the run stands, again and again until it is finished and nobody works with it."""
    while True:
        began = time.monotonic()
        status = read()
        yield status
        if status.state == "finished" and all(worker.state != "working" for worker in status.workers):
            return
        time.sleep(max(pause, 10 * (time.monotonic() - began)))


def _board(status: RunStatus) -> Group:
    """Returns the run in a sentence, its stages, what these are about, the predictions under way, and the rest."""
    title = Text(f"{plain(status.name)}, {stamp(status.at)}", style="bold")
    predictions = prediction_rows(status)
    parts: list[RenderableType] = [title, Text(headline(status)), Text()]
    parts.append(_table(STAGE_HEADERS, stage_rows(status, most=MOST_ROWS)))
    parts += [Text(footnote(status), style="dim")] if footnote(status) else []
    parts += [Text(), _table(PROCESS_HEADERS, predictions)] if predictions else []
    return Group(*parts, *(Text(f"  {text}", style="yellow") for text in remarks(status)))


def _table(headers: tuple[str, ...], rows: list[Row]) -> Group:
    """Returns the rows as a table, and their details below it."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for number, name in enumerate(headers):
        table.add_column(name, no_wrap=number == 0, overflow="fold")
    style = {"running": "bold", "finished": "green", "stopped": "yellow"}
    for row in rows:
        table.add_row(*map(Text, row.cells), style=style.get(row.state, ""))
    details = [Text(f"  {row.cells[0]}: {row.detail}", style="dim") for row in rows if row.detail]
    return Group(table, *details)


def print_error(message: str) -> None:
    """Prints one line on standard error, of what shows: names in files may hold terminal commands, and be endless."""
    line = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in " ".join(message.split()))
    print(f"error: {shortened(line)}", file=sys.stderr)
