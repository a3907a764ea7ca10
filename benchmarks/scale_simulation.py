"""Replays measured times on a simulated cluster by the program's own rules, and compares that with ``scale_model.py``.

    python benchmarks/scale_simulation.py                                    model and simulation, 1 to 100 GPUs
    python benchmarks/scale_simulation.py --failures 0.1 --slow 0.05 2       workers that are lost, and slow ones

A simulation of events: the driver is one server, the storage gives every worker that reads an equal share, a worker
reads ahead, computes and finishes as ``maskloom.inference.streaming`` does, image by image. Times of images are drawn
from the measured ones with a seed; those of passes over networks vary as the measured passes of real chunks did, of
which as many in a row are replayed as a chunk has. Rules are those of ``executors.pool`` and ``stages.shared_rows``:
chunks in their order to whoever is free, at most ``2 · workers`` of them begun beyond the first that is not done; the
chunk of a lost worker is done again by the next free one, where it must not be done twice at once only when the lost
one has surely ended (``--exclusive``); a new worker takes the lost one's place.

``scale_validation.py`` compares the simulation with real workers.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from scale_model import (
    CONTEST,
    READERS,
    WRITERS,
    Cluster,
    Costs,
    Job,
    asked,
    driving,
    estimate,
    finding,
    hours,
    parser,
    table,
    tabling,
)

from maskloom.executors.fence import FENCE_SECONDS

Action = Callable[..., None]


class Clock:
    """Actions at their times, one after the other."""

    def __init__(self) -> None:
        self.now = 0.0
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Action, tuple[Any, ...]]] = []

    def after(self, seconds: float, action: Action, *arguments: Any) -> None:
        """Has something done after so many seconds; what is due at the same time, in the order of asking."""
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), action, arguments))

    def run(self, is_over: Callable[[], bool]) -> None:
        """Does what is due until it is over."""
        while not is_over():
            self.now, _, action, arguments = heapq.heappop(self._events)
            action(*arguments)


class Storage:
    """Gives each of those who read an equal share of its bandwidth, at most what one of them can take."""

    def __init__(self, clock: Clock, *, each: float, total: float) -> None:
        self._clock, self._each, self._total = clock, each, total
        self._given, self._since, self._plan = 0.0, 0.0, 0
        self._numbers = itertools.count()
        self._reading: list[tuple[float, int, Action, tuple[Any, ...]]] = []
        """Until how many bytes each is given, counted from the beginning as if one had always read."""

    def read(self, count: float, then: Action, *arguments: Any) -> None:
        """Does something once so many bytes are read."""
        self._catch_up()
        heapq.heappush(self._reading, (self._given + count, next(self._numbers), then, arguments))
        self._look_ahead()

    @property
    def _rate(self) -> float:
        return min(self._each, self._total / max(len(self._reading), 1))

    def _catch_up(self) -> None:
        self._given += self._rate * (self._clock.now - self._since)
        self._since = self._clock.now

    def _look_ahead(self) -> None:
        self._plan += 1
        if self._reading:
            seconds = max(self._reading[0][0] - self._given, 0.0) / self._rate
            self._clock.after(seconds, self._done, self._plan)

    def _done(self, plan: int) -> None:
        if plan != self._plan:
            return  # others have begun or ended meanwhile
        self._catch_up()
        _, _, then, arguments = heapq.heappop(self._reading)
        self._look_ahead()
        then(*arguments)


@dataclass(frozen=True, kw_only=True, slots=True)
class Times:
    """Seconds of the images of one chunk, in their order."""

    decode: list[float]
    compute: list[float]
    finish: list[float]


class Measured(Protocol):
    """Where the times of a chunk come from."""

    def __call__(self, task: int, images: int) -> Times:
        """Returns the times of so many images, those of one task."""


class Replayed:
    """Times drawn from measured ones: of photos each by itself, of passes a row."""

    def __init__(self, measured: dict[str, Any], forward: float, seed: int) -> None:
        image, passes = measured["image"], np.array(measured["shard"]["passes"])
        self._decode, self._prepare, self._finish = (np.array(image[k]) for k in ("decode", "prepare", "finish"))
        self._forward, self._seed = forward * passes / passes.mean(), seed

    def __call__(self, task: int, images: int) -> Times:
        """Returns the same times for the same task, whoever does it and how often."""
        random = np.random.default_rng((self._seed, task))
        photos = random.integers(len(self._decode), size=images)
        passes = (random.integers(len(self._forward)) + np.arange(images)) % len(self._forward)
        finish = random.choice(self._finish, images)
        compute = self._prepare[photos] + self._forward[passes]
        return Times(decode=self._decode[photos].tolist(), compute=compute.tolist(), finish=finish.tolist())


class Chunk:
    """A worker at a chunk: two threads read ahead, one computes, two finish; as ``predict_records`` does it."""

    def __init__(self, worker: Worker, times: Times, then: Action) -> None:
        self._worker, self._clock, self._times, self._then = worker, worker.simulation.clock, times, then
        self._count = len(times.compute)
        self._waiting: deque[int] = deque()
        self._free = READERS
        self._read: set[int] = set()
        self._is_wanted = False
        self._next = 0
        self._finished = [0.0] * WRITERS
        """When each finishing thread is free."""
        self._written: list[float] = []
        """When all images up to each are finished."""
        self.is_given_up = False
        self._request(0)
        self._request(1)
        self._take()

    def _request(self, image: int) -> None:
        if image < self._count:
            self._waiting.append(image)
            self._begin_reading()

    def _begin_reading(self) -> None:
        while self._waiting and self._free:
            self._free -= 1
            self._clock.after(self._worker.simulation.cluster.latency, self._transfer, self._waiting.popleft())

    def _transfer(self, image: int) -> None:
        if not self.is_given_up:
            self._worker.fetch(self._worker.simulation.costs.image_bytes, lambda: self._decode(image))

    def _decode(self, image: int) -> None:
        if not self.is_given_up:
            self._clock.after(self._times.decode[image], self._arrive, image)

    def _arrive(self, image: int) -> None:
        if not self.is_given_up:
            self._read.add(image)
            self._free += 1
            self._begin_reading()
            self._compute()

    def _take(self) -> None:
        """Turns to the next image, has the one after the next read, and waits where too many wait to be finished."""
        self._request(self._next + 2)
        oldest = self._next - 2 * WRITERS
        wait = self._written[oldest] - self._clock.now if oldest >= 0 else 0.0
        if wait > 0:
            self._clock.after(wait, self._want)
        else:
            self._want()

    def _want(self) -> None:
        self._is_wanted = True
        self._compute()

    def _compute(self) -> None:
        if self._is_wanted and self._next in self._read and not self.is_given_up:
            self._is_wanted = False
            self._read.remove(self._next)
            seconds = self._times.compute[self._next] * self._worker.slowness
            self._worker.busy += seconds
            self._clock.after(seconds, self._computed)

    def _computed(self) -> None:
        if self.is_given_up:
            return
        now, image = self._clock.now, self._next
        done = max(now, heapq.heappop(self._finished)) + self._times.finish[image]
        heapq.heappush(self._finished, done)
        self._written.append(max(done, self._written[-1] if self._written else 0.0))
        self._next += 1
        if self._next == self._count:
            self._clock.after(self._written[-1] - now, self._end)
        else:
            self._take()

    def _end(self) -> None:
        if not self.is_given_up:
            self._then()


class Worker:
    """One that starts, loads the ensemble with its first chunk, does one chunk after the other, and may be lost."""

    def __init__(self, simulation: Simulation, number: int) -> None:
        self.simulation, self.slowness = simulation, simulation.slowness(number)
        self.busy = 0.0
        self._begin()

    def fetch(self, count: float, then: Action) -> None:
        """Reads bytes, a file after the other."""
        self._link.append((count, then))
        if len(self._link) == 1:
            self.simulation.storage.read(count, self._fetched, self._link)

    def _fetched(self, link: deque[tuple[float, Action]]) -> None:
        _, then = link.popleft()
        if link:
            self.simulation.storage.read(link[0][0], self._fetched, link)
        then()

    def _begin(self) -> None:
        self._link: deque[tuple[float, Action]] = deque()
        self._is_loaded = False
        self._task: int | None = None
        self._chunk: Chunk | None = None
        self._life = life = object()
        simulation = self.simulation
        simulation.clock.after(simulation.costs.start, self._started, life)
        if simulation.cluster.failures_per_hour:
            lives = simulation.random.exponential(3600 / simulation.cluster.failures_per_hour)
            simulation.clock.after(lives, self._lose, life)

    def _started(self, life: object) -> None:
        if life is self._life:
            self.simulation.free(self)

    def give(self, task: int, seconds: float) -> None:
        """Begins a task when the driver has handed it out, after so many seconds, and what lies between two tasks."""
        self._task = task
        self.simulation.clock.after(seconds + self.simulation.costs.task, self._load, self._life)

    def _load(self, life: object) -> None:
        if life is not self._life:
            return
        if self._is_loaded:
            self._run(life)
        else:
            costs, clock = self.simulation.costs, self.simulation.clock
            read = costs.ensemble_bytes
            clock.after(
                self.simulation.cluster.latency, self.fetch, read, lambda: clock.after(costs.load, self._run, life)
            )

    def _run(self, life: object) -> None:
        if life is self._life and self._task is not None:
            self._is_loaded = True
            times = self.simulation.times(self._task, self.simulation.job.size(self._task))
            self._chunk = Chunk(self, times, self._done)

    def _done(self) -> None:
        assert self._task is not None
        task, self._task, self._chunk = self._task, None, None
        self.simulation.finished(task)
        self.simulation.free(self)

    def _lose(self, life: object) -> None:
        if life is not self._life:
            return
        if self._chunk is not None:
            self._chunk.is_given_up = True
        self.simulation.lost(self, self._task)
        self._life = object()
        self.simulation.clock.after(self.simulation.cluster.notice, self._begin)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a simulated run took."""

    wall: float
    busy: float
    """Seconds of all workers, computing."""
    repeated: int
    """Chunks that were begun again."""


@dataclass(kw_only=True)
class Simulation:
    """A run of a job on a cluster."""

    job: Job
    costs: Costs
    cluster: Cluster
    times: Measured
    seed: int = 0
    ahead: int | None = None
    """Chunks that may be begun beyond the first that is not done; None: twice as many as workers."""
    exclusive: bool = False
    """Whether a lost worker's chunk waits until that has surely ended."""
    slow: tuple[float, float] = (0.0, 1.0)
    """The share of workers that are slow, and how many times as long they compute."""
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.storage = Storage(self.clock, each=self.cluster.worker_bandwidth, total=self.cluster.storage_bandwidth)
        self._waiting: list[int] = []  # tasks to be done again, the first first
        self._next = self._first = self._repeated = 0
        self._done: set[int] = set()
        self._idle: deque[Worker] = deque()
        self._driver_is_free = 0.0

    def run(self) -> Outcome:
        """Returns what the run took, the driver's share before and after included."""
        self.clock.now = finding(self.job, self.costs, self.cluster)
        workers = [Worker(self, number) for number in range(self.cluster.workers)]
        self.clock.run(lambda: self._first == self.job.tasks)
        wall = self.clock.now + tabling(self.job, self.costs, self.cluster)
        return Outcome(wall=wall, busy=sum(worker.busy for worker in workers), repeated=self._repeated)

    def slowness(self, number: int) -> float:
        """Returns how many times as long one of the workers computes."""
        share, factor = self.slow
        return factor if number < math.ceil(share * self.cluster.workers) else 1.0

    def free(self, worker: Worker) -> None:
        """Notes that a worker waits."""
        self._idle.append(worker)
        self._feed()

    def finished(self, task: int) -> None:
        """Notes that a task is done."""
        self._done.add(task)
        while self._first in self._done:
            self._done.remove(self._first)
            self._first += 1

    def lost(self, worker: Worker, task: int | None) -> None:
        """Notes that a worker is gone, and what it was at."""
        if worker in self._idle:
            self._idle.remove(worker)
        if task is not None:
            self.clock.after(self.cluster.notice + FENCE_SECONDS * self.exclusive, self._again, task)

    def _again(self, task: int) -> None:
        self._repeated += 1
        heapq.heappush(self._waiting, task)
        self._feed()

    def _feed(self) -> None:
        while self._idle and (task := self._task()) is not None:
            self._driver_is_free = max(self._driver_is_free, self.clock.now) + driving(self.costs, self.cluster)
            self._idle.popleft().give(task, self._driver_is_free - self.clock.now)

    def _task(self) -> int | None:
        """Returns the task that is next, if any may be begun."""
        if self._waiting:
            return heapq.heappop(self._waiting)
        ahead = 2 * self.cluster.workers if self.ahead is None else self.ahead
        if self._next < min(self.job.tasks, self._first + ahead):
            self._next += 1
            return self._next - 1
        return None


# Against the model ---------------------------------------------------------------------------------------------------


def compared(options: argparse.Namespace) -> None:
    """Prints the model's and the simulation's times beside each other."""
    measured, costs, cluster = asked(options)
    cluster = replace(cluster, failures_per_hour=options.failures, notice=options.notice)
    rows: list[tuple[object, ...]] = [
        ("photos", "GPUs", "model", "simulation", "difference", "GPU-hours", "of them computing", "chunks done again")
    ]
    for images in options.images:
        for workers in options.workers:
            job, there = Job(images=images), replace(cluster, workers=workers)
            found = Simulation(
                job=job,
                costs=costs,
                cluster=there,
                times=Replayed(measured, costs.forward, options.seed),
                seed=options.seed,
                exclusive=options.exclusive,
                slow=tuple(options.slow),
            ).run()
            expected = estimate(job, costs, there)
            held = workers * (found.wall - expected.before)
            difference = f"{100 * (expected.wall / found.wall - 1):+.1f} %"
            shares = (f"{held / 3600:,.1f}", f"{100 * found.busy / held:.0f} %", found.repeated)
            rows.append((f"{images:,}", workers, hours(expected.wall), hours(found.wall), difference, *shares))
    print(table(*rows))


def main() -> None:
    options = parser(__doc__)
    options.set_defaults(images=[CONTEST])
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--failures", type=float, default=0.0, help="of a worker, per hour")
    options.add_argument("--notice", type=float, default=10.0, help="seconds until a lost worker is missed")
    options.add_argument("--exclusive", action="store_true", help="a lost worker's chunk waits until it surely ended")
    options.add_argument("--slow", type=float, nargs=2, default=(0.0, 1.0), metavar=("SHARE", "FACTOR"))
    compared(options.parse_args())


if __name__ == "__main__":
    main()
