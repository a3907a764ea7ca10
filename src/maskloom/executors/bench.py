"""What a worker does with the tasks that it is given, however they and its answers travel.

Knows nothing about processes, Ray, or what tasks compute.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from maskloom.executors.children import portable
from maskloom.executors.tasks import Here, Keeper
from maskloom.heartbeat import Heartbeat
from maskloom.progress import Several

_OPENCV = ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python")
"""The packages that give the module cv2."""

Kind = Literal["ready", "told", "advance", "note", "done", "failed", "interrupted", "lost", "broken"]


@dataclass(frozen=True, slots=True)
class Message:
    """What a worker says, or what is noticed of it.

    ``value`` is, of "ready", a text on where it is; "told", what was told; "advance", the arguments of
    ``Progress.advance``; "note", a text; "done", the result and its seconds; "failed", the error; "lost", a ``Loss``;
    "broken", why no worker can be had.
    """

    kind: Kind
    number: int = -1
    """Of the task that it is about; -1: of the one that the worker is at, if any."""
    value: Any = None


@dataclass(frozen=True, slots=True)
class Loss:
    """How a worker was lost."""

    how: str
    """In words that follow "its worker"."""
    has_ended: bool = True
    """Whether its process is known to be gone; else it ends itself within ``fence.FENCE_SECONDS``."""
    with_node: bool = False
    """Whether its host went with it, which no task is to blame for."""


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


@dataclass(frozen=True, slots=True)
class Interruption:
    """What a worker is sent that is to interrupt a task."""

    number: int
    """That of the order."""


class Bench:
    """Computes one task after the other."""

    def __init__(self, opening: Opening, send: Callable[[Message], object], *, place: str) -> None:
        """``send`` brings messages to the driver, from several threads; ``place`` tells this worker from others."""
        self._opening, self._send, self._place = opening, send, place
        self._keeper = Keeper()
        self._keeps: tuple[str, int] | None = None
        self._interrupted: int | None = None
        """The number of the latest task that is to stop."""

    def prepare(self) -> None:
        """Makes the process one that computes as the driver would; to be called first, in the thread of the tasks."""
        warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
        if self._opening.folder:
            with suppress(OSError):  # then only absolute paths lead somewhere
                os.chdir(self._opening.folder)
        if self._opening.device == "cpu":
            from maskloom.runtime import keep_freed_memory

            keep_freed_memory()

    def interrupt(self, number: int) -> None:
        """Interrupts a task when it next says how far it is, a moment at which it can save its state.

        One that has not begun yet stops when it begins.
        """
        self._interrupted = number

    def compute(self, order: Order, shared: Callable[[], Any]) -> None:
        """Computes a task, and says how it ended; ``shared`` gives its shared value."""
        try:
            self._go_on(order.number)
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
            self._send(Message("failed", order.number, portable(error)))

    def _go_on(self, number: int) -> None:
        """Raises ``KeyboardInterrupt`` where the task is to stop."""
        if self._interrupted == number:
            raise KeyboardInterrupt

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
                progress=Several((heartbeat, _Sender(order.number, self._send, self._go_on))),
                tell=lambda value: self._send(Message("told", order.number, value)),
                keeper=self._keeper,
                device=opening.device,
                loaders=opening.loaders,
                go_on=lambda: self._go_on(order.number),
            )
            return order.function(here, shared(), *order.arguments)


class _Sender:
    """A listener that sends on what it hears; where its task is to stop, it interrupts who speaks."""

    def __init__(self, number: int, send: Callable[[Message], object], go_on: Callable[[int], object]) -> None:
        self._number, self._send, self._go_on = number, send, go_on

    def stage(self, name: str, *, cached: bool) -> None:
        """Keeps it to itself: stages begin and end with the driver."""

    def advance(self, done: int, total: int, detail: str = "", *, seconds_left: float | None = None) -> None:
        """Sends it on; raises what interrupts the task where it is to stop."""
        self._send(Message("advance", self._number, (done, total, detail, seconds_left)))
        self._go_on(self._number)

    def note(self, text: str) -> None:
        """Sends it on."""
        self._send(Message("note", self._number, text))


def whereabouts() -> dict[str, str]:
    """Returns what must be alike in all processes of a run: the versions of what computes, "" of what is not there."""
    names = ("maskloom", "torch", "timm", "segmentation-models-pytorch", "numpy")
    opencv = next(filter(None, map(_version, _OPENCV)), "")
    return {name: _version(name) for name in names} | {
        "opencv": opencv,
        "python": ".".join(map(str, sys.version_info[:2])),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
