"""A worker process of this host: reads tasks from the pipe that it was started with, and answers on it.

Started by ``executors.processes`` as ``python -m maskloom.executors.worker FILE_DESCRIPTOR PLACE``. It ends at once
when its driver is gone, as if it were killed.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from maskloom.executors.bench import Bench, Interruption, Message, Opening, Order
from maskloom.executors.children import portable


def main(descriptor: int, place: str) -> None:
    """Computes tasks until the pipe is closed."""
    connection = Connection(descriptor)
    path: list[str]
    opening: Opening
    path, opening = connection.recv()
    sys.path[:] = path  # as the driver's, so that it finds the same modules
    said: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def send(message: Message) -> None:
        said.put(pickle.dumps(message))

    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it for what they start in the background
    signal.signal(signal.SIGTERM, _interrupt)
    bench = Bench(opening, send, place=place)
    bench.prepare()
    values: dict[int, Any] = {}
    orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
    unanswered: set[int] = set()  # tasks of which nothing was said yet
    listening = (connection, orders, values, unanswered, bench, send)
    threading.Thread(target=_listen, args=listening, name="orders", daemon=True).start()
    threading.Thread(target=_speak, args=(connection, said), name="answers", daemon=True).start()
    send(Message("ready", value=f"process {os.getpid()}"))
    while True:
        try:
            order = orders.get()
            bench.compute(order, lambda number=order.shared: _unpickled(values, number))  # type: ignore[misc]
            unanswered.discard(order.number)
        except KeyboardInterrupt:  # before a task began, wherever it was just then, or when it had just ended
            with suppress(queue.Empty):
                while True:
                    orders.get_nowait()
            for number in sorted(unanswered):
                send(Message("interrupted", number))
            unanswered.clear()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Does what Ctrl-C does, which may be held back until a moment at which the state can be saved."""
    os.kill(os.getpid(), signal.SIGINT)


def _unpickled(values: dict[int, Any], number: int) -> Any:
    if isinstance(values[number], bytes):
        values[number] = pickle.loads(values[number])
    return values[number]


def _speak(connection: Connection, said: queue.SimpleQueue[bytes]) -> None:
    """Sends what is said; in a thread, where no interruption can leave half a message in the pipe."""
    try:
        while True:
            connection.send_bytes(said.get())
    except OSError:  # the driver is gone
        os._exit(1)


def _listen(
    connection: Connection,
    orders: queue.SimpleQueue[Order],
    values: dict[int, Any],
    unanswered: set[int],
    bench: Bench,
    send: Callable[[Message], object],
) -> None:
    """Takes what the driver sends: shared values, pickled, before the first task that needs them, and tasks.

    An interruption follows its signal, which may have come before the task that it is for.
    """
    try:
        while True:
            content = connection.recv_bytes()
            try:
                found = pickle.loads(content)
            except Exception as error:  # of a task whose function or arguments cannot be had here
                send(Message("failed", value=portable(error)))
                continue
            if isinstance(found, Order):
                unanswered.add(found.number)
                orders.put(found)
            elif isinstance(found, Interruption):
                bench.interrupt(found.number)
            else:
                number, value = found
                values.clear()  # the latest only
                values[number] = value
    except BaseException:  # the driver is gone
        os._exit(1)


if __name__ == "__main__":
    with suppress(EOFError):  # the driver ended before it said anything
        main(int(sys.argv[1]), sys.argv[2])
