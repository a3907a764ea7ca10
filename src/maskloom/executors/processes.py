"""Workers that are processes of this host: one per device, over pipes.

They are in sessions of their own, so that Ctrl-C reaches the driver alone. Knows nothing about what tasks compute.
"""

from __future__ import annotations

import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

from maskloom.executors.bench import Interruption, Loss, Message, Opening, Order
from maskloom.executors.children import ended, portable, start
from maskloom.executors.pool import MOST_STARTS
from maskloom.executors.tasks import Shared
from maskloom.termination import seconds_left

_CLOSE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where one of the workers computes."""

    name: str
    """As ``status`` shows it."""
    environment: dict[str, str]
    """Laid over the driver's."""


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    place: Place
    starts: int
    """How often in a row one was started here without being given a task."""
    shared: int = -1
    """The number of the shared value that it has."""
    order: int = -1
    """The number of the task that it was sent last."""


class Processes:
    """A crew of worker processes, one per place."""

    def __init__(self, places: Sequence[Place], opening: Opening) -> None:
        self._opening, self._num_started = opening, 0
        self._workers: dict[int, _Worker] = {}
        self._ear, self._mouth = socket.socketpair()
        self._ear.setblocking(False)
        self._mouth.setblocking(False)
        self._pickled: tuple[Shared, bytes] | None = None
        self.size = len(places)
        try:
            for place in places:
                self._start(place, 1)
        except BaseException:
            self.close()
            raise

    def send(self, worker: int, order: Order, shared: Shared) -> None:
        """Gives a worker a task, and before it the shared value, unless it has it."""
        known = self._workers.get(worker)
        if known is None:
            return
        known.starts = 0
        with suppress(OSError):  # it ended, which is noticed where it is heard
            if known.shared != shared.number:
                if self._pickled is None or self._pickled[0] is not shared:
                    self._pickled = (shared, pickle.dumps(shared.value))
                known.connection.send((shared.number, self._pickled[1]))
                known.shared = shared.number
            known.connection.send(order)
            known.order = order.number

    def poll(self, seconds: float) -> Iterator[tuple[int, Message]]:
        """Yields what workers said and which of them ended; those are replaced."""
        by_connection = {known.connection: number for number, known in self._workers.items()}
        for ready in wait([*by_connection, self._ear], seconds):
            if isinstance(ready, socket.socket):
                with suppress(BlockingIOError):
                    self._ear.recv(4096)
                continue
            assert isinstance(ready, Connection), "nothing else is waited for"
            number = by_connection[ready]
            try:
                while True:
                    yield number, _read(ready.recv_bytes())
                    if not ready.poll():
                        break
            except (EOFError, OSError):
                yield from self._lost(number)
        for number, known in list(self._workers.items()):
            # Loader processes of one that was killed may keep its pipe open for seconds.
            if known.process.poll() is not None and not known.connection.poll():
                yield from self._lost(number)

    def wake(self) -> None:
        """Ends a ``poll`` that waits."""
        with suppress(OSError):  # it is full: that wakes, too
            self._mouth.send(b"!")

    def interrupt(self, worker: int) -> None:
        """Interrupts a worker as Ctrl-C would, and also where its task is still on the way to it."""
        known = self._workers.get(worker)
        if known is None:
            return
        known.process.send_signal(signal.SIGINT)
        with suppress(OSError):  # it ended
            known.connection.send(Interruption(known.order))

    def kill(self, worker: int) -> None:
        """Ends a worker at once."""
        if worker in self._workers:
            self._workers[worker].process.kill()

    def close(self) -> None:
        """Ends all workers: those that wait, by closing their pipes; the others as if they were killed."""
        for known in self._workers.values():
            known.connection.close()
        ends = time.monotonic() + seconds_left(_CLOSE_SECONDS)
        for known in self._workers.values():
            with suppress(subprocess.TimeoutExpired):
                known.process.wait(max(ends - time.monotonic(), 0.0))
        for known in self._workers.values():
            known.process.kill()
        for known in self._workers.values():
            known.process.wait()
        self._workers.clear()
        self._ear.close()
        self._mouth.close()

    def _start(self, place: Place, starts: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            process = start(
                "maskloom.executors.worker",
                str(theirs.fileno()),
                place.name,
                environment=place.environment,
                stdin=subprocess.DEVNULL,
                stdout=sys.__stderr__ if _is_a_file(sys.__stderr__) else None,
                pass_fds=(theirs.fileno(),),
            )
        connection = Connection(ours.detach())
        self._num_started += 1
        self._workers[self._num_started] = _Worker(process, connection, place, starts)
        with suppress(OSError):  # it ended already, which is noticed where it is heard
            connection.send((sys.path, self._opening))

    def _lost(self, number: int) -> Iterator[tuple[int, Message]]:
        """Yields that a worker ended, and starts another one in its place."""
        known = self._workers.pop(number)
        known.connection.close()
        known.process.kill()  # of which only the pipe may have been closed
        how = ended(known.process.wait())
        yield number, Message("lost", value=Loss(how))
        if known.starts >= MOST_STARTS:
            text = f"expected a worker process for {known.place.name}, found {known.starts} that could not be started"
            yield number, Message("broken", value=f"{text}; the last one {how}; what it said is above")
        else:
            self._start(known.place, known.starts + 1)


def _read(content: bytes) -> Message:
    """Returns what a worker said; that its task failed, where that cannot be had here."""
    try:
        message: Message = pickle.loads(content)
    except Exception as error:  # of whatever a class raises when it is copied
        return Message("failed", value=portable(error))
    return message


def _is_a_file(stream: object) -> bool:
    """Whether a process can be given the stream."""
    try:
        return stream is not None and stream.fileno() >= 0  # type: ignore[attr-defined]
    except (OSError, ValueError, AttributeError):
        return False
