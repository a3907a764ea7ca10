"""SIGTERM, by which a scheduler asks a job to end, as an interrupt that is not lost, and the time that is left then.

Knows nothing about what is interrupted.
"""

from __future__ import annotations

import _thread
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

TERMINATED = 143
"""The exit code after SIGTERM, by which a scheduler asks a job to end."""
REPEAT_SECONDS = 5.0
"""So long after a SIGTERM, further ones are part of it: some send one to the process and one to all of its group."""
LOST_SECONDS = 0.2
"""So soon an interrupt comes again that could not be raised."""
ALL_SECONDS = 28.0
"""So long after SIGTERM everything may take that is still saved; schedulers mostly allow 30."""

_ends: float | None = None
"""When, by the monotonic clock, all is to be saved; None: no SIGTERM came."""
_kept: list[float] = []


def seconds_left(most: float) -> float:
    """Returns how long a step of ending may take: ``most``, or what is left of ``ALL_SECONDS`` where SIGTERM came.

    What was kept for later steps is theirs.
    """
    return most if _ends is None else min(most, max(_ends - sum(_kept) - time.monotonic(), 0.0))


@contextmanager
def kept(seconds: float) -> Iterator[None]:
    """Keeps so many of the seconds after SIGTERM for what follows the block."""
    _kept.append(seconds)
    try:
        yield
    finally:
        _kept.remove(seconds)


@contextmanager
def terminable() -> Iterator[list[int]]:
    """Lets SIGTERM end the block as Ctrl-C does, and yields a list that is no longer empty once it came.

    Where Ctrl-C is held back until a step is done, so is SIGTERM; further ones do not disturb what is then saved. An
    interrupt that came where Python cannot raise one (when an object is destroyed, or called back by a library) comes
    again. Outside the main thread, where Python delivers no signals, this does nothing.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    global _ends
    process, last, usual_hook = os.getpid(), -math.inf, sys.unraisablehook

    def end(number: int, frame: FrameType | None) -> None:
        """Does what Ctrl-C does, unless that is under way."""
        nonlocal last
        global _ends
        if os.getpid() != process:  # a child that was forked, which has nothing to save
            os._exit(TERMINATED)
        if time.monotonic() - last < REPEAT_SECONDS or _is_of_interrupt(sys.exception()):
            return
        last = time.monotonic()
        received.append(number)
        _ends = last + ALL_SECONDS
        interrupt = signal.getsignal(signal.SIGINT)
        if not callable(interrupt):  # ignored, as shells do for what they start in the background
            raise KeyboardInterrupt
        interrupt(signal.SIGINT, frame)

    def again() -> None:
        time.sleep(LOST_SECONDS)  # by then what cannot raise is left
        if signal.getsignal(signal.SIGTERM) is end:
            os.kill(process, signal.SIGTERM)

    def lost(unraisable: UnraisableHookArgs) -> None:
        """Has an interrupt come again that could not be raised."""
        nonlocal last
        if not received or os.getpid() != process or not isinstance(unraisable.exc_value, KeyboardInterrupt):
            usual_hook(unraisable)
            return
        last = -math.inf
        _thread.start_new_thread(again, ())  # takes no lock, which what was interrupted may hold

    previous = signal.signal(signal.SIGTERM, end)
    sys.unraisablehook = lost
    try:
        yield received
    finally:
        _ends = None
        sys.unraisablehook = usual_hook
        signal.signal(signal.SIGTERM, previous)


def _is_of_interrupt(error: BaseException | None) -> bool:
    """Returns whether an error that is being handled is an interrupt, or came while one was handled."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None
