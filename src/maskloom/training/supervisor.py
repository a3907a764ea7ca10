"""Starts the processes that train one network together, hears them, and ends them all, whatever happens to one.

This process takes no part itself, so that it is never caught in a wait for one that is gone. Knows nothing about what a
step is; what a rank does is in ``rank``.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from maskloom.errors import BadFile, UserError
from maskloom.executors.children import ended, start
from maskloom.termination import seconds_left
from maskloom.training.checkpoint import read_position
from maskloom.training.engine import finished_result, train
from maskloom.training.job import TrainingJob, TrainingResult
from maskloom.training.memory import release
from maskloom.training.team import PATIENCE, Lost, Team
from maskloom.training.tracking import OnProgress

STOP_SECONDS = 25.0
"""So long rank 0 may take to save the state after Ctrl-C."""
GRACE_SECONDS = 3.0
"""A rank that lost another one is often heard before the other's end is seen; so long the cause is waited for."""
LOOK_SECONDS = 0.25
"""Between two looks at whether all live."""

MakeJob = Callable[[Team], TrainingJob]
"""Returns the job on the rank's own device; it is pickled, so it must be found by name in a module."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a rank is told, once, on its standard input."""

    make_job: MakeJob
    rank: int
    devices: tuple[str, ...]
    """Of all ranks."""
    meeting: Path
    num_threads: int
    deterministic: bool


Kind = Literal["ready", "progress", "done", "failed", "stopped", "silent"]
"""What a rank says: "silent", which it does not say itself, that nothing more will come."""


def train_together(
    job: TrainingJob, make_job: MakeJob, *, devices: Sequence[torch.device], on_progress: OnProgress | None = None
) -> TrainingResult:
    """Returns what ``train`` would, after one process per device has done its part of every step.

    ``job`` says where things lie; each process makes its own with ``make_job``. What has been saved is continued,
    however many processes saved it. Raises ``UserError`` for what ``train`` does, and when a process ends or does not
    answer: what was saved then lies in the checkpoint. Ctrl-C saves the state and is raised again.
    """
    if len(devices) < 2:
        return train(job, on_progress=on_progress)
    result = finished_result(job)
    if result is not None:
        return result
    release()  # of the devices, for those who need it now
    with tempfile.TemporaryDirectory(prefix="maskloom-") as folder, _started(make_job, devices, Path(folder)) as ranks:
        heard: queue.Queue[tuple[int, Kind, Any]] = queue.Queue()
        for rank in ranks:
            threading.Thread(target=rank.listen, args=(heard,), daemon=True).start()
        try:
            return _supervise(job, ranks, heard, on_progress)
        except KeyboardInterrupt:
            _stop(ranks[0], heard)
            raise


@dataclass(kw_only=True)
class _Rank:
    """One process, as it is seen from here."""

    number: int
    device: str
    process: subprocess.Popen[bytes]
    order: bytes
    is_ready: bool = False
    failures: list[BaseException] = field(default_factory=list)
    has_ended: bool = False
    """Without having said that all is done, or what failed."""
    gone_since: float | None = None
    """When it was first seen to have ended; something that it said may still be on its way."""

    def listen(self, heard: queue.Queue[tuple[int, Kind, Any]]) -> None:
        """Hands the order over, and passes on what the process says until it says no more."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(Exception):  # its end, or half a message
            self.process.stdin.write(self.order)
            self.process.stdin.flush()
            while True:
                kind, value = pickle.load(self.process.stdout)
                heard.put((self.number, kind, value))
        heard.put((self.number, "silent", None))
        self.process.stdout.close()

    def end(self, *, seconds: float) -> None:
        """Ends the process and its loader processes, at the latest after so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        if self.process.poll() is None:
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
            self.process.wait()
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    @property
    def end_in_words(self) -> str:
        """How the process ended, after "found that the one on …"."""
        try:
            return ended(self.process.wait(GRACE_SECONDS))
        except subprocess.TimeoutExpired:
            return "says nothing any more"


@contextmanager
def _started(make_job: MakeJob, devices: Sequence[torch.device], folder: Path) -> Iterator[list[_Rank]]:
    """Yields one process per device, which are ended whatever happens."""
    size, names = len(devices), tuple(map(str, devices))
    orders = [
        pickle.dumps(
            Order(
                make_job=make_job,
                rank=number,
                devices=names,
                meeting=folder / "meeting",
                num_threads=max(torch.get_num_threads() // size, 1),
                deterministic=torch.are_deterministic_algorithms_enabled(),
            )
        )
        for number in range(size)
    ]
    ranks: list[_Rank] = []
    seconds = 0.0
    try:
        for number, order in enumerate(orders):
            # Ctrl-C is for this process, which passes it on to rank 0 alone.
            process = start("maskloom.training.rank", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            ranks.append(_Rank(number=number, device=names[number], process=process, order=order))
        yield ranks
        seconds = 5.0
    finally:
        for rank in ranks:
            rank.end(seconds=seconds)


def _supervise(
    job: TrainingJob,
    ranks: Sequence[_Rank],
    heard: queue.Queue[tuple[int, Kind, Any]],
    on_progress: OnProgress | None,
) -> TrainingResult:
    """Returns the result that rank 0 tells; raises what went wrong."""
    finished: set[int] = set()
    result: TrainingResult | None = None
    deadline: float | None = None
    while result is None or len(finished) < len(ranks):
        try:
            number, kind, value = heard.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            number, kind, value = -1, "ready", None
        rank = ranks[number]
        if kind == "progress" and on_progress is not None:
            on_progress(value)
        elif kind == "ready" and number >= 0:
            rank.is_ready = True
        elif kind == "done":
            finished.add(number)
            result = value if number == 0 else result
        elif kind == "failed":
            rank.failures.append(value)
        elif kind in ("silent", "stopped") and number not in finished:
            rank.has_ended = not rank.failures
        for each in ranks:
            if each.number not in finished and not each.failures and each.process.poll() is not None:
                each.gone_since = each.gone_since or time.monotonic()
                each.has_ended = each.has_ended or time.monotonic() - each.gone_since > GRACE_SECONDS
        if any(each.has_ended or each.failures for each in ranks):
            deadline = deadline or time.monotonic() + GRACE_SECONDS
            late = time.monotonic() > deadline
            _raise_cause(job, ranks, any_cause=late)
    return result


def _raise_cause(job: TrainingJob, ranks: Sequence[_Rank], *, any_cause: bool) -> None:
    """Raises what went wrong first of all; what may only follow from that is raised with ``any_cause``."""
    failures = [(rank, failure) for rank in ranks for failure in rank.failures]
    for _, failure in failures:
        if isinstance(failure, UserError):
            raise failure
    for rank in ranks:
        if rank.has_ended:
            found = f"found that the one on {rank.device} (rank {rank.number}) {rank.end_in_words}"
            raise _broken(job, ranks, found)
    if not any_cause:
        return
    for _, failure in failures:
        if not isinstance(failure, Lost):
            raise failure
    rank, lost = failures[0]
    minutes = round(PATIENCE.total_seconds() / 60)
    found = f"found that {rank.device} (rank {rank.number}) waited for another one in vain, at most {minutes} min"
    raise _broken(job, ranks, f"{found} ({lost})")


def _broken(job: TrainingJob, ranks: Sequence[_Rank], found: str) -> UserError:
    try:
        position = read_position(job.checkpoint)
    except BadFile:
        position = None
    saved = f"up to epoch {position.epoch + 1}, step {position.step}, all is" if position else "nothing is"
    return UserError(
        f"{job.folder}: expected {len(ranks)} processes to train together, {found}; {saved} saved: start the same "
        "command again, it continues"
    )


def _stop(leader: _Rank, heard: queue.Queue[tuple[int, Kind, Any]]) -> None:
    """Lets rank 0 save the state, at the end of which it says that it has stopped, and ends."""
    if not leader.is_ready or leader.process.poll() is not None:
        return
    leader.process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + seconds_left(STOP_SECONDS)
    while time.monotonic() < deadline and leader.process.poll() is None:
        with contextlib.suppress(queue.Empty):
            number, kind, _ = heard.get(timeout=LOOK_SECONDS)
            if number == leader.number and kind in ("stopped", "failed", "done", "silent"):
                return
