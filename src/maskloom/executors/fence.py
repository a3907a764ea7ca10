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

from maskloom.heartbeat import read_beats, state_of
from maskloom.progress import Progress

SILENT_SECONDS = 30.0
"""A worker that was not asked for so long what it has to say ends itself in the middle of its task."""
FENCE_SECONDS = 45.0
"""After so long a worker that is out of reach has surely ended."""

_LOOK_SECONDS = 1.0


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

    To be called by whoever holds the run, so that all other workers are of drivers that are gone.
    """
    ends, is_told = time.monotonic() + FENCE_SECONDS, False
    while any(
        beat.command == "fit" and beat.shard and state_of(beat, time.time()) == "working" for beat in read_beats(run)[0]
    ):
        if time.monotonic() > ends:
            return
        if not is_told:
            listener.note(f"workers of an earlier command are still at it: they end within {FENCE_SECONDS:.0f} s")
            is_told = True
        time.sleep(_LOOK_SECONDS / 4)
