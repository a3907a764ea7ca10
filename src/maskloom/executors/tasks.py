"""What is computed somewhere, and what it is given there: tasks, the protocol of executors, the one without workers.

A task is a function of a module with plain arguments, so that it can be called in another process. Knows nothing about
stages, networks or what tasks compute.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from maskloom.progress import Progress, Silent

Kept = TypeVar("Kept")
Item = TypeVar("Item")
Told = Callable[[Any], object]

SHARDS_PER_WORKER = 8
"""Work is cut at least so fine that no worker waits long for the last one."""


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """A value that many tasks need; it reaches every worker once."""

    number: int
    value: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A task, as it is submitted: ``function(here, shared value, *arguments)``."""

    name: str
    """Of the stage that it belongs to, as users are told."""
    function: Callable[..., Any]
    """Of a module, so that another process finds it by name."""
    shared: Shared
    arguments: tuple[Any, ...] = ()
    """Plain values, paths and records."""
    shard: str = ""
    """Which part of the stage it is; "" where it is all of it."""
    order: int = 0
    """Tasks of lower order are begun first; those of the same, as they were submitted."""
    is_exclusive: bool = False
    """Whether it must not be begun again while a worker that was lost over it may still write."""

    @property
    def title(self) -> str:
        """What users are told."""
        return f"{self.name} ({self.shard})" if self.shard else self.name


class Keeper:
    """Keeps the one thing that the tasks of a worker were last in need of, such as networks that are loaded."""

    def __init__(self) -> None:
        self._key: object = None
        self._value: Any = None

    def get(self, key: object, build: Callable[[], Kept]) -> Kept:
        """Returns what was built for the key; what was kept for another one goes first."""
        if self._key != key:
            self.drop()
            self._value = build()
            self._key = key
        found: Kept = self._value
        return found

    def drop(self) -> None:
        """Keeps nothing."""
        self._key = self._value = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Here:
    """What a task is given where it runs."""

    progress: Progress = field(default_factory=Silent)
    tell: Told = lambda _: None
    """Hands a value to whoever waits for the task, before it ends."""
    keeper: Keeper = field(default_factory=Keeper)
    device: str | None = None
    """What it computes on, as torch names it; None: as the driver."""
    loaders: int | None = None
    """Processes that read samples; None: as the driver."""
    go_on: Callable[[], object] = lambda: None
    """Raises what interrupts a task that is to stop, as ``progress.advance`` does: for work that tells no steps."""


@dataclass(slots=True, eq=False)
class Ticket:
    """A task that was submitted, for whoever submitted it."""

    call: Call
    number: int
    progress: Progress | None = None
    """Hears how far the task is."""
    on_told: Told | None = None
    """Is given what the task tells, in the thread that collects."""
    attempts: int = 0
    """How often it was begun, but for those whose worker was lost with its host, or went out of reach."""
    times_away: int = 0
    """How often its worker went out of reach."""
    is_done: bool = False
    value: Any = None
    seconds: float = 0.0
    """What it took, once done."""


class Executor(Protocol):
    """Computes tasks; ``collect`` waits for one of them."""

    @property
    def is_parallel(self) -> bool:
        """Whether tasks begin when they are submitted, several at once; else each begins when it is collected."""

    @property
    def num_workers(self) -> int:
        """How many tasks run at once."""

    def share(self, value: Any) -> Shared:
        """Returns the value as tasks take it, the same one for the same object."""

    def submit(self, task: Call, *, progress: Progress | None = None, on_told: Told | None = None) -> Ticket:
        """Returns the ticket by which the task's result is collected."""

    def collect(self, ticket: Ticket, *, progress: Progress | None = None) -> Any:
        """Returns what the task returned once it is done; ``progress`` hears of it from now on.

        Raises what the task raised, and ``UserError`` for a task that workers were lost over again and again. Where
        tasks run in parallel, also what another one raised meanwhile.
        """

    def drop(self) -> None:
        """Interrupts what is under way, waits until it has saved its state, and forgets all tasks."""


class InProcess:
    """Computes every task in this process, when it is collected: as if it were called there."""

    is_parallel = False
    num_workers = 1

    def __init__(self) -> None:
        self._keeper = Keeper()

    def share(self, value: Any) -> Shared:
        """Returns the value itself."""
        return Shared(0, value)

    def submit(self, task: Call, *, progress: Progress | None = None, on_told: Told | None = None) -> Ticket:
        """Returns the ticket; nothing is computed yet."""
        return Ticket(task, 0, progress, on_told)

    def collect(self, ticket: Ticket, *, progress: Progress | None = None) -> Any:
        """Returns what the task returns."""
        task, began = ticket.call, time.monotonic()
        here = Here(
            progress=progress or ticket.progress or Silent(),
            tell=ticket.on_told or (lambda _: None),
            keeper=self._keeper,
        )
        try:
            ticket.value = task.function(here, task.shared.value, *task.arguments)
        finally:
            self._keeper.drop()  # networks of a stage take no memory in the next one
        ticket.seconds, ticket.is_done = time.monotonic() - began, True
        return ticket.value

    def drop(self) -> None:
        """There is nothing under way."""


def shards(items: Sequence[Item], executor: Executor, *, at_most: int) -> list[tuple[str, Sequence[Item]]]:
    """Returns the items in pieces of at most so many each, in their order; all in one where there are no workers.

    Beside each is which of them they are, such as "17–32 of 64"; "" where they are all.
    """
    if not executor.is_parallel:
        return [("", items)] if items else []
    size, total = min(at_most, max(math.ceil(len(items) / (executor.num_workers * SHARDS_PER_WORKER)), 1)), len(items)
    return [
        (f"{first + 1}–{min(first + size, total)} of {total}", items[first : first + size])
        for first in range(0, total, size)
    ]


class ShardProgress:
    """Adds up how far the shards of a stage are, and says it of the stage."""

    def __init__(self, progress: Progress, *, done: int, total: int, detail: str = "") -> None:
        """``done`` of ``total`` items were there before any shard."""
        self._progress, self._total, self._detail = progress, total, detail
        self._done: list[int] = []
        self._sum = done

    def listener(self, detail: str | None = None) -> Progress:
        """Returns a listener for one shard more."""
        self._done.append(0)
        return _OneShard(self, len(self._done) - 1, self._detail if detail is None else detail)

    def set(self, shard: int, done: int, detail: str) -> None:
        """Notes how many items of a shard are done; one that is repeated begins anew."""
        self._sum += done - self._done[shard]
        self._done[shard] = done
        self._progress.advance(self._sum, self._total, detail)

    def note(self, text: str) -> None:
        """Passes it on."""
        self._progress.note(text)


class _OneShard(Silent):
    """The listener of one shard."""

    def __init__(self, whole: ShardProgress, number: int, detail: str) -> None:
        self._whole, self._number, self._detail = whole, number, detail

    def advance(self, done: int, total: int, detail: str = "", *, seconds_left: float | None = None) -> None:
        """Adds it to the whole."""
        self._whole.set(self._number, done, self._detail)

    def note(self, text: str) -> None:
        """Passes it on."""
        self._whole.note(text)
