"""One of the processes that train a network together, as a program: ``python -m maskloom.training.rank``.

It is told what to do on its standard input, says how it goes on its standard output, and ends at once when the process
that started it is gone. Knows nothing about how the others are watched.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import warnings
from typing import BinaryIO

import torch

from maskloom.executors.children import portable
from maskloom.runtime import make_deterministic
from maskloom.training.checkpoint import interrupt_waits
from maskloom.training.engine import train
from maskloom.training.supervisor import Kind, Order
from maskloom.training.team import joined


def main() -> None:
    """Does what it is told; the exit code is 0 when that was done."""
    said = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no message
    order = pickle.load(sys.stdin.buffer)
    assert isinstance(order, Order)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let what runs in the background ignore it
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to all processes of a job: the one that started this stops it
    code = 1
    try:
        _train(order, said)
        code = 0
    except KeyboardInterrupt:
        _say(said, "stopped", None)
    except BaseException as error:
        _say(said, "failed", portable(error))
    sys.stderr.flush()
    os._exit(code)  # nothing is left to do that might wait for ranks that are gone


def _train(order: Order, said: BinaryIO) -> None:
    if order.rank > 0:
        warnings.simplefilter("ignore")  # rank 0 says the same
    torch.set_num_threads(order.num_threads)
    if order.deterministic:
        make_deterministic()
    device = torch.device(order.devices[order.rank])
    with joined(rank=order.rank, size=len(order.devices), device=device, meeting=order.meeting) as team:
        job = order.make_job(team)
        _say(said, "ready", None)
        on_progress = (lambda progress: _say(said, "progress", progress)) if team.leads else None
        result = train(job, on_progress=on_progress, team=team)
    _say(said, "done", result if team.leads else None)


def _say(said: BinaryIO, kind: Kind, value: object) -> None:
    """Tells the parent; Ctrl-C waits, so that it never leaves half a message in the pipe."""
    with interrupt_waits():
        said.write(pickle.dumps((kind, value)))
        said.flush()


def _end_with_the_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
