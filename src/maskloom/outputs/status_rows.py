"""The status of a run in words and plain rows, as the terminal and the page show it.

Texts that come from files are made printable here; whoever shows them escapes them. Knows nothing about HTML, and
nothing about how a status is read from a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import groupby
from typing import Any, Literal

from maskloom.errors import some_of
from maskloom.heartbeat import MOST, Beat, State
from maskloom.progress import duration, pace

QUIET_SECONDS = 120.0
"""That a process has counted no step is told after so long."""
MOST_ROWS = 40
"""With more stages than these, neighbours that are all finished, or all wait, may share a row."""
LONGEST = 500
"""Characters of a text from a file that are shown."""

StageState = Literal["finished", "running", "stopped", "waiting"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """A process that said something of itself, and what became of it."""

    beat: Beat
    state: State


@dataclass(frozen=True, kw_only=True, slots=True)
class StageStatus:
    """One stage of the recipe; one whose name ends in ``*`` stands for several, not counted yet."""

    name: str
    state: StageState
    seconds: float | None = None
    """What it took, once finished."""
    left: float | None = None
    """Expected seconds of work on it, where something tells."""
    ends: float | None = None
    """When it is expected to end; None unless that is known of all stages before it, too."""
    workers: tuple[Worker, ...] = ()
    """The processes that are at it, or were at it last."""
    is_earlier: bool = False
    """Whether it was finished by an earlier start, and the process at work has not come to it yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """Where a run stands; times are seconds since 1970."""

    name: str
    at: float
    state: Literal["finished", "running", "stopped"]
    stages: tuple[StageStatus, ...]
    workers: tuple[Worker, ...] = ()
    """All processes, those that predict with the run among them."""
    finished: float | None = None
    """When it was finished, where it is."""
    left: float | None = None
    """Expected seconds to the end of all stages of which something is known; None where nothing is."""
    unknown: tuple[str, ...] = ()
    """Unfinished stages of which nothing is known."""
    problems: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values, and what is expected in words."""
        return asdict(self) | {"summary": headline(self)}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table."""

    state: str
    cells: tuple[str, ...]
    detail: str = ""
    share: float | None = None
    """Of the steps, done."""


STAGE_HEADERS = ("stage", "state", "where", "since", "done", "rate", "expected end")
PROCESS_HEADERS = ("command", "state", "where", "since", "done", "rate", "expected end")


def headline(status: RunStatus) -> str:
    """Returns in a sentence where the run stands and when it is expected to end."""
    finished = sum(stage.state == "finished" for stage in status.stages)
    count = f"{finished} of {len(status.stages)} stages finished" if status.stages else "no stages are known yet"
    if status.state == "finished":
        when = f" at {clock(status.finished, status.at)}" if status.finished is not None else ""
        took = sum(stage.seconds or 0.0 for stage in status.stages)
        return f"finished{when}; its stages took {duration(took)} together"
    if status.state == "stopped":
        about = "at least" if status.unknown else "about"
        left = f"; {about} {duration(status.left)} to go" if status.left else ""
        return f"not finished, and no process is known to work on it: {count}{left}; start the same fit again"
    if status.left is None:
        return f"running: {count}, nothing tells yet when the rest ends"
    end = clock(status.at + status.left, status.at)
    if not status.unknown:
        return f"running: {count}, expected to end at {end} (in {duration(status.left)})"
    return f"running: {count}, not expected to end before {end} (in {duration(status.left)})"


def remarks(status: RunStatus) -> list[str]:
    """Returns what else there is to know: processes that are gone, errors, what the expected end leaves out."""
    found = [_obituary(worker, status) for worker in status.workers if worker.state != "working"]
    if status.state == "running" and status.left is not None and status.unknown:
        names = some_of(map(plain, status.unknown), 8)
        found.append(f"Not in the expected end, as nothing tells how long they take: {names}.")
    if any(stage.is_earlier for stage in status.stages):
        found.append("Stages that were finished before are done again if what they come from has changed.")
    return [*found, *(plain(problem) for problem in status.problems)]


def footnote(status: RunStatus) -> str:
    """Returns what the states of the stages are about, where no fit is at work; "" where nothing is finished."""
    if status.state == "running" or all(stage.state != "finished" for stage in status.stages):
        return ""
    return "As of the last fit: the data are not looked at here, and `fit` repeats what depends on any that changed."


def stage_rows(status: RunStatus, *, most: int | None = None) -> list[Row]:
    """Returns the lines of the stages in their order; with more than ``most``, those that are alike share lines."""
    rows: list[Row] = []
    many = most is not None and len(status.stages) > most
    for (state, _), group in groupby(status.stages, key=lambda stage: (stage.state, stage.is_earlier)):
        stages = list(group)
        if many and len(stages) > 2 and state in ("finished", "waiting"):
            rows.append(_together(stages))
        else:
            rows += [row for stage in stages for row in _rows_of(stage, status)]
    return rows


def prediction_rows(status: RunStatus) -> list[Row]:
    """Returns the lines of the processes that predict with the run."""
    return [
        _at_work(f"{worker.beat.command} to {worker.beat.target}", worker, status)
        for worker in status.workers
        if worker.beat.command != "fit" and worker.state == "working"
    ]


def clock(time: float, at: float) -> str:
    """Returns a time of the day, with its date unless that is the day of ``at``, by this machine's zone."""
    if not 0 <= time < MOST:
        return "never"
    moment, now = datetime.fromtimestamp(time).astimezone(), datetime.fromtimestamp(at).astimezone()
    return moment.strftime("%H:%M" if moment.date() == now.date() else "%Y-%m-%d %H:%M")


def stamp(time: float) -> str:
    """Returns date, time of the day and zone."""
    return datetime.fromtimestamp(time).astimezone().strftime("%Y-%m-%d %H:%M:%S UTC%z")


def plain(text: str) -> str:
    """Returns the text with all that does not show (line ends, control characters, …) replaced, and not too long."""
    shown = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text[: LONGEST + 1])
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"


def _rows_of(stage: StageStatus, status: RunStatus) -> list[Row]:
    if stage.state in ("running", "stopped") and stage.workers:
        return [_at_work(stage.name, worker, status) for worker in stage.workers]
    took = f"took {duration(stage.seconds)}" if stage.seconds is not None else ""
    expected = "" if stage.left is None else f"about {duration(stage.left)}"
    if stage.ends is not None and stage.state != "finished":
        expected = f"{clock(stage.ends, status.at)} ({expected})"
    state = f"{stage.state} before" if stage.is_earlier else stage.state
    return [Row(stage.state, (plain(stage.name), state, "", "", took, "", expected))]


def _together(stages: Sequence[StageStatus]) -> Row:
    first, last, state = stages[0], stages[-1], stages[0].state
    name = f"{plain(first.name)} … {plain(last.name)} ({len(stages)})"
    took = sum(stage.seconds or 0.0 for stage in stages)
    known = [stage.left for stage in stages if stage.left is not None]
    done = f"took {duration(took)}" if state == "finished" else ""
    expected = f"about {duration(sum(known))}" + (" at least" if len(known) < len(stages) else "") if known else ""
    return Row(state, (name, f"{state} before" if first.is_earlier else state, "", "", done, "", expected))


def _at_work(name: str, worker: Worker, status: RunStatus) -> Row:
    beat, at = worker.beat, status.at
    where = f"{beat.host}, {beat.device}, process {beat.pid}" + (f", {beat.shard}" if beat.shard else "")
    works = worker.state == "working"
    state = ("running" if beat.stage else "starting") if works else worker.state
    done = f"{beat.done:,} of {beat.total:,} {beat.unit}" if beat.total else ""
    share = min(beat.done / beat.total, 1.0) if beat.total else None
    if share is not None:
        done += f" ({int(100 * share)} %)"
    rate = pace(beat.rate) if beat.rate and works else ""
    ends = beat.stage_ends(at) if works else None
    end = "" if ends is None else clock(ends, at) if ends > at else "any moment"
    details = [beat.detail]
    if works and beat.stage not in ("", name) and beat.command != "fit":
        details.insert(0, beat.stage)
    if works and beat.total and at - beat.moved > QUIET_SECONDS:
        details.append(f"no step for {duration(at - beat.moved)}")
    if works and at - beat.sign > QUIET_SECONDS:
        details.append(f"no sign of life for {duration(at - beat.sign)}")
    began = clock(beat.stage_began if beat.command == "fit" else beat.began, at)
    cells = (name, state, where, began, done, rate, end)
    detail = " · ".join(plain(each) for each in details if each)
    return Row("running" if works else "stopped", tuple(plain(cell) for cell in cells), detail, share)


def _obituary(worker: Worker, status: RunStatus) -> str:
    beat, at = worker.beat, status.at
    who = f"{beat.command}{f' to {beat.target}' if beat.target else ''} (process {beat.pid} on {beat.host})"
    place = f" in {beat.stage}" if beat.stage else ""
    again = "start the same command again, it continues"
    if worker.state == "gone":
        return plain(f"{who} is gone without ending: last seen{place} at {clock(beat.sign, at)}; {again}.")
    if worker.state == "stopped":
        return plain(f"{who} was stopped{place} at {clock(beat.sign, at)}; {again}.")
    return plain(f"{who} failed{place} at {clock(beat.sign, at)}: {beat.error}")
