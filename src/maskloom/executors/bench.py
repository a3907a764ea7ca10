"""What a worker does with the tasks that it is given, however they and its answers travel.

Knows nothing about processes, Ray, or what tasks compute.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from maskloom.executors.tasks import Here, Keeper
from maskloom.heartbeat import Heartbeat
from maskloom.progress import Several

Kind = Literal["ready", "told", "advance", "note", "done", "failed", "interrupted", "lost", "broken"]


@dataclass(frozen=True, slots=True)
class Message:
    """What a worker says, or what is noticed of it.

    ``value`` is, of "ready", a text on where it is; "told", what was told; "advance", the arguments of
    ``Progress.advance``; "note", a text; "done", the result and its seconds; "failed", the error; "lost", how it
    ended; "broken", why no worker can be had.
    """

    kind: Kind
    number: int = -1
    """Of the task that it is about."""
    value: Any = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Opening:
    """What every worker of a command is told before it is given tasks."""

    run: Path
    """In whose folder it says where it is."""
    command: str
    target: str = ""
    unit: str = "images"
    device: str = "cpu"
    """What it computes on, as torch names it."""
    threads: int | None = None
    """Of torch, in each worker; None: as the environment says."""
    loaders: int = 0
    """Processes that read samples."""
    is_deterministic: bool = False
    folder: str = ""
    """Where relative paths begin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """A task on its way to a worker, without its shared value."""

    number: int
    name: str
    shard: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    shared: int
    """The number of the shared value."""


class Bench:
    """Computes one task after the other."""

    def __init__(self, opening: Opening, send: Callable[[Message], object], *, place: str) -> None:
        """``send`` brings messages to the driver, from several threads; ``place`` tells this worker from others."""
        self._opening, self._send, self._place = opening, send, place
        self._keeper = Keeper()
        self._keeps: tuple[str, int] | None = None
        self._is_stopping = threading.Event()

    def prepare(self) -> None:
        """Makes the process one that computes as the driver would; to be called first, in the thread of the tasks."""
        warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
        if self._opening.folder:
            with suppress(OSError):  # then only absolute paths lead somewhere
                os.chdir(self._opening.folder)
        if self._opening.device == "cpu":
            from maskloom.runtime import keep_freed_memory

            keep_freed_memory()

    def interrupt(self) -> None:
        """Interrupts the task under way when it next says how far it is: a moment at which it can save its state."""
        self._is_stopping.set()

    def compute(self, order: Order, shared: Callable[[], Any]) -> None:
        """Computes a task, and says how it ended; ``shared`` gives its shared value."""
        self._is_stopping.clear()
        try:
            self._settle()
            began = time.monotonic()
            self._forget_others(order)
            value = self._computed(order, shared)
            self._send(Message("done", order.number, (value, time.monotonic() - began)))
        except KeyboardInterrupt:
            self._keeper.drop()
            self._send(Message("interrupted", order.number))
        except Exception as error:
            self._keeper.drop()
            self._send(Message("failed", order.number, told_error(error)))

    def _settle(self) -> None:
        if self._opening.threads is not None:
            import torch

            torch.set_num_threads(self._opening.threads)  # of the thread that calls
        if self._opening.is_deterministic:
            from maskloom.runtime import make_deterministic

            make_deterministic()

    def _forget_others(self, order: Order) -> None:
        """Keeps nothing that was for another stage or other surroundings."""
        if self._keeps != (order.name, order.shared):
            self._keeper.drop()
            self._keeps = (order.name, order.shared)

    def _computed(self, order: Order, shared: Callable[[], Any]) -> Any:
        opening = self._opening
        heartbeat = Heartbeat(
            opening.run,
            command=opening.command,
            target=opening.target,
            device=opening.device,
            unit=opening.unit,
            shard=order.shard or self._place,
        )
        with heartbeat:
            heartbeat.stage(order.name, cached=False)
            here = Here(
                progress=Several((heartbeat, _Sender(order.number, self._send, self._is_stopping))),
                tell=lambda value: self._send(Message("told", order.number, value)),
                keeper=self._keeper,
                device=opening.device,
                loaders=opening.loaders,
            )
            return order.function(here, shared(), *order.arguments)


class _Sender:
    """A listener that sends on what it hears; where its worker is to stop, it interrupts who speaks."""

    def __init__(self, number: int, send: Callable[[Message], object], is_stopping: threading.Event) -> None:
        self._number, self._send, self._is_stopping = number, send, is_stopping

    def stage(self, name: str, *, cached: bool) -> None:
        """Keeps it to itself: stages begin and end with the driver."""

    def advance(self, done: int, total: int, detail: str = "", *, seconds_left: float | None = None) -> None:
        self._send(Message("advance", self._number, (done, total, detail, seconds_left)))
        if self._is_stopping.is_set():
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        self._send(Message("note", self._number, text))


def told_error(error: Exception) -> Exception:
    """Returns the error as it can travel, with a note of where it happened, unless it is a user's: that is one line."""
    import pickle

    from maskloom.errors import UserError

    trace = "".join(traceback.format_exception(error))
    try:
        copy: Exception = pickle.loads(pickle.dumps(error))
        if type(copy) is not type(error):
            raise TypeError(type(copy))
    except Exception:  # of whatever a class of a library raises when it is copied
        copy = RuntimeError(f"{type(error).__name__}: {error}")
    if not isinstance(copy, UserError):
        copy.add_note(f"In a worker:\n{trace}")
    return copy


def whereabouts() -> dict[str, str]:
    """Returns what must be alike in all processes of a run."""
    return {
        "maskloom": version("maskloom"),
        "torch": version("torch"),
        "python": ".".join(map(str, sys.version_info[:2])),
    }
