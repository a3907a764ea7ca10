"""Tasks for several workers: who gets which, what is repeated when one is lost, and how all are stopped.

A crew starts workers and speaks with them; the pool decides. A thread hands tasks out, so that workers go on while the
driver does other things; what tasks tell is given on in the thread that collects. Knows nothing about processes, Ray or
what tasks compute.
"""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol

from maskloom.errors import UserError
from maskloom.executors.bench import Loss, Message, Order
from maskloom.executors.fence import FENCE_SECONDS
from maskloom.executors.tasks import Call, Shared, Ticket, Told
from maskloom.progress import Progress
from maskloom.termination import seconds_left

MOST_ATTEMPTS = 3
"""So often a task is given out; then whoever waits is told that workers are lost over it."""
MOST_AWAY = 10
"""The same for workers that went out of reach: mostly their hosts are gone, which is known only later."""
MOST_STARTS = 3
"""A worker that ends so often in a row without having been given a task cannot be had."""
STOP_SECONDS = 25.0
"""So long interrupted workers may take to save their state; then they are killed."""

_POLL_SECONDS = 0.5
_SHARED = 4  # so many shared values are remembered by their objects


class Crew(Protocol):
    """Starts workers, brings them tasks and hears them; used from one thread but for ``wake``.

    A worker that ends, however it does, is told as "lost", once, and replaced where that can be done; "broken" says
    that no worker can be had.
    """

    @property
    def size(self) -> int:
        """How many workers there are, or soon will be."""

    def send(self, worker: int, order: Order, shared: Shared) -> None:
        """Gives a worker, which waits, a task; one that ended meanwhile is told as lost later."""

    def poll(self, seconds: float) -> Iterable[tuple[int, Message]]:
        """Returns what workers said, after so many seconds at most, and at once after ``wake``."""

    def wake(self) -> None:
        """Ends a ``poll`` that waits."""

    def interrupt(self, worker: int) -> None:
        """Asks a worker to save the state of the task that it was sent last, and to say "interrupted"."""

    def kill(self, worker: int) -> None:
        """Ends a worker at once; it is then told as lost."""

    def close(self) -> None:
        """Ends all workers."""


class Pool:
    """An executor whose tasks run in the workers of a crew; use as a context manager.

    Tasks begin in their order, as soon as a worker is free. An error of one of them is raised by the next ``collect``,
    whatever that waits for.
    """

    is_parallel = True

    def __init__(self, crew: Crew, listener: Progress) -> None:
        """``listener`` hears notes of tasks that nobody collects yet, and of workers that are lost."""
        self._crew, self._listener = crew, listener
        self._changed = threading.Condition()
        self._waiting: list[tuple[int, int, Ticket]] = []  # a heap
        self._fences: dict[str, float] = {}  # when who was lost over an exclusive task of a title has surely ended
        self._killed: dict[int, str] = {}  # workers that are to end, and of which exclusive task
        self._idle: deque[int] = deque()
        self._at_work: dict[int, Ticket] = {}
        self._events: deque[tuple[Ticket | None, Message]] = deque()
        self._steps: dict[int, tuple[Ticket, Message]] = {}  # how far tasks are, the latest only
        self._error: BaseException | None = None
        self._is_broken = self._is_over = self._is_stopping = False
        self._to_kill: list[int] = []
        self._num_tickets = self._num_shared = 0
        self._known: deque[Shared] = deque(maxlen=_SHARED)
        self._thread = threading.Thread(target=self._keep_feeding, name="tasks", daemon=True)

    def __enter__(self) -> Pool:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.drop()
        finally:
            with self._changed:
                self._is_over = True
            self._crew.wake()
            self._thread.join()

    @property
    def num_workers(self) -> int:
        """How many tasks run at once."""
        return max(self._crew.size, 1)

    def share(self, value: Any) -> Shared:
        """Returns the value as tasks take it, the same one for the same object."""
        for known in self._known:
            if known.value is value:
                return known
        self._num_shared += 1
        self._known.append(Shared(self._num_shared, value))
        return self._known[-1]

    def submit(self, task: Call, *, progress: Progress | None = None, on_told: Told | None = None) -> Ticket:
        """Returns the ticket of a task, which begins when its turn comes and a worker is free."""
        with self._changed:
            self._num_tickets += 1
            ticket = Ticket(task, self._num_tickets, progress, on_told)
            heapq.heappush(self._waiting, (task.order, ticket.number, ticket))
        self._crew.wake()
        return ticket

    def collect(self, ticket: Ticket, *, progress: Progress | None = None) -> Any:
        """Returns what the task returned once it is done, and gives on what all tasks tell meanwhile."""
        ticket.progress = progress or ticket.progress
        while True:
            with self._changed:
                while not (self._events or self._steps or self._error or ticket.is_done):
                    self._changed.wait(1.0)
            self._give_all_on()
            with self._changed:
                if self._events or (ticket.is_done and ticket.number in self._steps):
                    continue
                if self._error is not None:
                    error = self._error
                    if not self._is_broken:
                        self._error = None
                    raise error
                if ticket.is_done:
                    return ticket.value

    def drop(self) -> None:
        """Interrupts what is under way, waits until it has saved its state, and forgets all tasks.

        What tasks told until then is given on, since what they finished is there. Who is out of reach may go on for a
        while: an exclusive task that is submitted again waits for that.
        """
        with self._changed:
            self._is_stopping = True
            self._waiting.clear()
        self._crew.wake()
        ends = time.monotonic() + seconds_left(STOP_SECONDS)
        try:
            while True:
                self._give_told_on(ends)
                with self._changed:
                    is_over = self._is_broken or not self._at_work or not self._thread.is_alive()
                    if (is_over and not self._events) or time.monotonic() > ends:
                        break
                    if not self._events:
                        self._changed.wait(0.2)
        finally:  # a second Ctrl-C is not kept waiting
            with self._changed:
                self._at_work, left = {}, self._at_work
                self._killed |= {number: each.call.title for number, each in left.items() if each.call.is_exclusive}
                self._events.clear()
                self._steps.clear()
                self._error = self._error if self._is_broken else None
                self._is_stopping = False
                self._to_kill = list(left)
            self._crew.wake()

    def _give_all_on(self) -> None:
        """Gives on what there is; what is interrupted in the middle remains to be given on."""
        while self._events:  # only this thread takes any away
            is_given = True
            try:
                self._give_on(*self._events[0])
            except KeyboardInterrupt:
                is_given = False
                raise
            finally:
                if is_given:
                    self._events.popleft()
        with self._changed:
            steps, self._steps = self._steps, {}
        for ticket, message in steps.values():
            self._give_on(ticket, message)

    def _give_told_on(self, ends: float) -> None:
        """Gives on what tasks told, and nothing else."""
        while self._events and time.monotonic() < ends:
            ticket, message = self._events.popleft()
            if message.kind == "told":
                with suppress(Exception):  # something else is being raised already
                    self._give_on(ticket, message)

    def _give_on(self, ticket: Ticket | None, message: Message) -> None:
        """Gives on what a task said to whoever asked for it."""
        if message.kind == "told" and ticket is not None:
            if ticket.on_told is not None:
                ticket.on_told(message.value)
        elif message.kind == "advance" and ticket is not None:
            if ticket.progress is not None:
                done, total, detail, seconds_left = message.value
                ticket.progress.advance(done, total, detail, seconds_left=seconds_left)
        elif message.kind == "note":
            if ticket is not None and ticket.progress is not None:
                ticket.progress.note(message.value)
            else:
                self._listener.note(message.value if ticket is None else f"{ticket.call.title}: {message.value}")

    # In the thread ---------------------------------------------------------------------------------------------------

    def _keep_feeding(self) -> None:
        try:
            interrupted: set[int] = set()
            while True:
                is_over = self._is_over
                self._feed(interrupted)
                if is_over:
                    return
                for worker, message in self._crew.poll(_POLL_SECONDS):
                    self._hear(worker, message)
        except BaseException as error:
            with self._changed:
                self._error, self._is_broken = error, True
                self._changed.notify_all()
        finally:
            self._crew.close()

    def _feed(self, interrupted: set[int]) -> None:
        """Hands out what waits; interrupts, or kills, who is to stop."""
        with self._changed:
            to_kill, self._to_kill = self._to_kill, []
            to_interrupt = [worker for worker in self._at_work if self._is_stopping and worker not in interrupted]
            interrupted.intersection_update(self._at_work if self._is_stopping else ())
            given: list[tuple[int, Ticket]] = []
            while self._idle and not self._is_stopping and (ticket := self._next()) is not None:
                worker = self._idle.popleft()
                ticket.attempts += 1
                self._at_work[worker] = ticket
                given.append((worker, ticket))
        for worker in to_kill:
            self._crew.kill(worker)
        for worker in to_interrupt:
            interrupted.add(worker)
            self._crew.interrupt(worker)
        for worker, ticket in given:
            task = ticket.call
            order = Order(
                number=ticket.number,
                name=task.name,
                shard=task.shard,
                function=task.function,
                arguments=task.arguments,
                shared=task.shared.number,
            )
            self._crew.send(worker, order, task.shared)

    def _next(self) -> Ticket | None:
        """Takes the first of the tasks that may begin now."""
        fenced = []
        found: Ticket | None = None
        while self._waiting and found is None:
            entry = heapq.heappop(self._waiting)
            if self._is_fenced(entry[2].call):
                fenced.append(entry)
            else:
                found = entry[2]
        for entry in fenced:
            heapq.heappush(self._waiting, entry)
        return found

    def _is_fenced(self, task: Call) -> bool:
        """Whether a worker that nobody hears any more may still be at the task, and must not have it beside another."""
        if not task.is_exclusive:
            return False
        return task.title in self._killed.values() or self._fences.get(task.title, -math.inf) > time.monotonic()

    def _hear(self, worker: int, message: Message) -> None:
        with self._changed:
            ticket = self._at_work.get(worker)
            if ticket is not None and message.number not in (-1, ticket.number):
                return  # of a task that was dropped
            if message.kind in ("done", "failed", "interrupted"):
                self._at_work.pop(worker, None)
                if worker not in self._idle:
                    self._idle.append(worker)
                if ticket is not None:
                    self._end(ticket, message)
            elif message.kind == "ready":
                self._idle.append(worker)
            elif message.kind == "lost":
                self._lose(worker, message.value)
            elif message.kind == "broken":
                self._error, self._is_broken = UserError(message.value), True
            elif message.kind == "advance":
                if ticket is not None and ticket.progress is not None:
                    self._steps[ticket.number] = (ticket, message)
            elif message.kind == "note" or ticket is not None:
                self._events.append((ticket, message))
            self._changed.notify_all()

    def _end(self, ticket: Ticket, message: Message) -> None:
        if message.kind == "done":
            ticket.value, ticket.seconds = message.value
            ticket.is_done = True
        elif message.kind == "failed":
            self._error = self._error or message.value
        elif not self._is_stopping:  # somebody else has interrupted it
            self._repeat(ticket, Loss("was interrupted"))

    def _lose(self, worker: int, loss: Loss) -> None:
        if worker in self._idle:
            self._idle.remove(worker)
        ticket, title = self._at_work.pop(worker, None), self._killed.pop(worker, "")
        if ticket is not None and ticket.call.is_exclusive:
            title = ticket.call.title
        if title and not loss.has_ended:
            self._fences[title] = time.monotonic() + FENCE_SECONDS
        if ticket is not None and not self._is_stopping:
            self._repeat(ticket, loss)
        elif title and not loss.has_ended:
            text = f"{title}: its worker {loss.how}; it is not begun again within {FENCE_SECONDS:.0f} s"
            self._events.append((None, Message("note", value=text)))

    def _repeat(self, ticket: Ticket, loss: Loss) -> None:
        title = ticket.call.title
        if loss.with_node or not loss.has_ended:  # hosts may come and go
            ticket.attempts -= 1
        ticket.times_away += not (loss.with_node or loss.has_ended)
        if ticket.attempts >= MOST_ATTEMPTS or ticket.times_away >= MOST_AWAY:
            self._error = self._error or UserError(
                f"{title}: expected a worker that finishes it, found {ticket.attempts + ticket.times_away} that did "
                "not; the last "
                f"{loss.how}; mend what ends them (memory, mostly) and start the same command again, it continues"
            )
            return
        heapq.heappush(self._waiting, (ticket.call.order, ticket.number, ticket))
        is_fenced = self._is_fenced(ticket.call)
        when = f" in {FENCE_SECONDS:.0f} s, when that has surely ended" if is_fenced else ""
        self._events.append((None, Message("note", value=f"{title}: its worker {loss.how}; it is done again{when}")))
