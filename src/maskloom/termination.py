"""SIGTERM, by which a scheduler asks a job to end, as an interrupt that is not lost.

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
    process, last, usual_hook = os.getpid(), -math.inf, sys.unraisablehook

    def end(number: int, frame: FrameType | None) -> None:
        """Does what Ctrl-C does, unless that is under way."""
        nonlocal last
        if os.getpid() != process:  # a child that was forked, which has nothing to save
            os._exit(TERMINATED)
        if time.monotonic() - last < REPEAT_SECONDS or _is_of_interrupt(sys.exception()):
            return
        last = time.monotonic()
        received.append(number)
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
        sys.unraisablehook = usual_hook
        signal.signal(signal.SIGTERM, previous)


def _is_of_interrupt(error: BaseException | None) -> bool:
    """Returns whether an error that is being handled is an interrupt, or came while one was handled."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None
