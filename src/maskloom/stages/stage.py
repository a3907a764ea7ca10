"""One stage of a run: skipped where it is finished, else run, and marked when it is done.

Knows nothing about what stages compute, or their order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from maskloom.stages.context import Context

_AFTER_DECISIONS = ("predict", "submit", "report")
"""Stages that use what the others decided; while one of the others runs, nobody else may."""


def forget(context: Context, damaged: Iterable[Path]) -> None:
    """Removes damaged files of the run, and says so."""
    for path in damaged:
        context.progress.note(f"damaged, and made anew: {path.relative_to(context.run.root).as_posix()}")
        path.unlink(missing_ok=True)


class Left(NamedTuple):
    """The files that a stage left, and the seconds that it took, which are not those that the driver waited."""

    files: Sequence[Path]
    seconds: float


class Found(NamedTuple):
    """What there is of a stage."""

    marker: dict[str, Any] | None
    """None: it is to be run."""
    is_ours: bool
    """Whether an attempt from the same beginnings may have left something."""
    is_mended: bool
    """Whether its ledger was damaged, and could be written anew."""


def look_for(context: Context, name: str, mark: str) -> Found:
    """Returns what there is of a stage that comes from ``mark``."""
    run = context.run
    marker = run.finished(name)
    is_ours = marker is None or marker["fingerprint"] == mark
    damaged = run.damaged(name) if is_ours else []
    is_mended = bool(damaged) and run.mend_ledger(name)
    is_finished = is_ours and (not damaged or (is_mended and not run.damaged(name)))
    return Found(marker if is_finished else None, is_ours, is_mended)


def make_room(context: Context, name: str, found: Found) -> None:
    """Removes what a stage that is to be run must not find."""
    run = context.run
    if found.is_mended:
        context.progress.note(f"damaged, and made anew: {run.sums(name).relative_to(run.root).as_posix()}")
    if found.marker is not None:
        return
    if name not in _AFTER_DECISIONS:
        run.decided.unlink(missing_ok=True)
    if found.is_ours:  # what an earlier attempt left is kept, so all of it is read
        forget(context, run.damaged(name, thorough=True))
    else:
        run.sums(name).unlink(missing_ok=True)
    run.marker(name).unlink(missing_ok=True)


def run_stage(
    context: Context,
    name: str,
    mark: str,
    execute: Callable[[], Sequence[Path] | Left],
    *,
    is_begun: bool = False,
) -> str:
    """Returns the outcome of a stage, which is run unless it is finished and its files are what it left.

    One that is begun already is left to itself until ``execute`` returns.
    """
    if is_begun:
        context.progress.stage(name, cached=False)
    else:
        found = look_for(context, name, mark)
        context.progress.stage(name, cached=found.marker is not None)
        make_room(context, name, found)
        if found.marker is not None:
            return str(found.marker.get("outcome", mark))  # of an earlier version it has none
    began = time.monotonic()
    left = execute()
    files, seconds = left if isinstance(left, Left) else (left, time.monotonic() - began)
    return context.run.finish(name, mark, files, seconds)
