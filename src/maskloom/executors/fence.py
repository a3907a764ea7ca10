"""No two workers at one training: one that nobody hears any more ends itself, and whoever would go on waits for that.

A worker on another host may be called lost, or its driver may be killed, while it still computes and writes. Knows
nothing about Ray or what tasks compute.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from maskloom.errors import UserError
from maskloom.heartbeat import Beat, is_alive, read_beats, remove_beat
from maskloom.progress import Progress

SILENT_SECONDS = 30.0
"""A worker that was not asked for so long what it has to say ends itself in the middle of its task."""
FENCE_SECONDS = 45.0
"""After so long a worker that is out of reach has surely ended."""

_LOOK_SECONDS = 1.0
_LONGEST = 3  # so many times as long is waited for workers that go on giving signs


class Fence:
    """Ends this process, as if it were killed, when nobody asks for it while it is at a task."""

    def __init__(self, seconds: float = SILENT_SECONDS, end: Callable[[], object] = lambda: os._exit(1)) -> None:
        self._seconds, self._end = seconds, end
        self._is_at_work, self._asked = False, _now()
        self._thread = threading.Thread(target=self._watch, name="fence", daemon=True)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Holds while a task is computed."""
        if self._thread.ident is None:
            self._thread.start()
        self._asked, self._is_at_work = _now(), True
        try:
            yield
        finally:
            self._is_at_work = False

    def asked(self) -> None:
        """Notes that the driver asks."""
        self._asked = _now()

    def _watch(self) -> None:
        while True:
            time.sleep(min(_LOOK_SECONDS, self._seconds / 4))
            if self._is_at_work and _now() - self._asked > self._seconds:
                self._end()


def _now() -> float:
    """Returns the seconds of a clock that goes on while a host sleeps, where there is one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def wait_for_former(run: Path, listener: Progress) -> None:
    """Returns once no worker of an earlier command trains in the run's folder any more.

    To be called by whoever holds the run, so that all other workers are of drivers that are gone, and before anything
    tidies up what they have said of themselves. One of another host has ended once its sign did not change for
    ``FENCE_SECONDS`` as they pass here: its clock may tell any time. Raises ``UserError`` where one goes on and on: its
    driver lives, whoever holds the run.
    """
    began, is_told = time.monotonic(), False
    changed: dict[Beat, float] = {}
    while True:
        now = time.monotonic()
        said = {beat: is_alive(beat) for beat in read_beats(run)[0] if _is_of_training(beat)}
        changed = {beat: changed.get(beat, now) for beat in said}
        at_it = [
            beat for beat, lives in said.items() if lives or (lives is None and now - changed[beat] < FENCE_SECONDS)
        ]
        if not at_it:
            for beat in said:  # so that the next command need not find it out again
                remove_beat(run, beat)
            return
        if now - began > _LONGEST * FENCE_SECONDS:
            raise UserError(
                f"{run}: expected workers of an earlier command to have ended after {now - began:.0f} s, found one at "
                f"work, process {at_it[0].pid} on {at_it[0].host}; stop the command that it belongs to and start again"
            )
        if not is_told:
            hosts = ", ".join(sorted({beat.host for beat in at_it}))
            listener.note(
                f"workers of an earlier command may still be at it on {hosts}: waiting until they gave no sign for "
                f"{FENCE_SECONDS:.0f} s"
            )
            is_told = True
        time.sleep(_LOOK_SECONDS / 4)


def _is_of_training(beat: Beat) -> bool:
    """Whether a worker said it that has not said that it has ended."""
    return beat.command == "fit" and beat.shard != "" and not beat.ended
