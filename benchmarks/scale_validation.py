"""The simulation of ``scale_simulation.py`` against real workers, whose images wait instead of being computed.

    python benchmarks/scale_validation.py [--repeats 3] [--error 0.05]

Processes of the local executor go through chunks whose images wait instead of being read, computed and finished: the
real pool, processes, pipes and threads, and no work, so that few cores can show it. How long each image waited is
measured where it waited, and replayed. Fails where the time of all differs from the simulated one by more than
``--error``, for any of what may bound an image, with one worker or two.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scale_model import Cluster, Costs, Job, asked, parser, table
from scale_simulation import Simulation, Times

from maskloom.executors.sites import Work, open_site
from maskloom.executors.tasks import Call, Here
from maskloom.inference.streaming import predict_records
from maskloom.progress import Silent
from maskloom.records import Record

CHUNKS, IMAGES, PAUSE = 8, 12, 0.1
REGIMES = {"computing": (0.5, 1.0, 0.5), "reading": (3.0, 0.5, 0.5), "finishing": (0.5, 0.5, 3.0)}
"""What bounds an image: how long it is read, computed and finished, in pauses of so many seconds."""


def wait_for_images(here: Here, shared: None, times: Times) -> Times:
    """A chunk whose images wait instead of being read, computed and finished; returns how long they really did."""
    count = len(times.compute)
    records = [Record(id=str(number), image=Path("photo.jpg"), size=(1, 1)) for number in range(count)]
    taken = Times(decode=[0.0] * count, compute=[0.0] * count, finish=[0.0] * count)

    def waits(asked_for: list[float], found: list[float]) -> Callable[..., Any]:
        def wait(record: Record, *_: object) -> Record:
            began, number = time.perf_counter(), int(record.id)
            time.sleep(asked_for[number])
            found[number] = time.perf_counter() - began
            return record

        return wait

    predict_records(
        waits(times.compute, taken.compute),
        records,
        waits(times.finish, taken.finish),
        read=waits(times.decode, taken.decode),
    )
    return taken


def waiting_times(regime: str, seed: int) -> list[Times]:
    """Returns the times of chunks, image by image between half and one and a half of the regime's."""
    random = np.random.default_rng(seed)
    drawn = (PAUSE * factor * random.uniform(0.5, 1.5, (CHUNKS, IMAGES)) for factor in REGIMES[regime])
    return [
        Times(decode=decode.tolist(), compute=compute.tolist(), finish=finish.tolist())
        for decode, compute, finish in zip(*drawn, strict=True)
    ]


def real_seconds(chunks: Sequence[Times], workers: int) -> tuple[float, list[Times]]:
    """Returns the seconds that workers of the local executor need for these chunks, once they are there.

    Beside them, how long each image really waited: a busy core ends no wait in time.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        open_site("local", device="cpu", processes=workers) as site,
        site.workers(Work(run=Path(folder), command="predict", loaders=0), Silent()) as executor,
    ):
        shared = executor.share(None)

        def run(some: Sequence[Times]) -> list[Times]:
            calls = [Call(name="wait", function=wait_for_images, shared=shared, arguments=(times,)) for times in some]
            return [executor.collect(ticket) for ticket in [executor.submit(call) for call in calls]]

        short = Times(decode=[0.2], compute=[0.2], finish=[0.2])
        run([short] * 2 * workers)  # all workers are there, and have imported what they need
        began = time.monotonic()
        taken = run(chunks)
        return time.monotonic() - began, taken


def simulated_seconds(chunks: Sequence[Times], workers: int, costs: Costs) -> float:
    """Returns the seconds of the same chunks by the simulation, with nothing to be found, read, loaded and tabled."""
    free = {"image_bytes": 0.0, "start": 0.0, "load": 0.0, "ensemble_bytes": 0.0}
    free |= {"drive_before": 0.0, "drive_after": 0.0}
    return (
        Simulation(
            job=Job(images=len(chunks) * IMAGES, shard=IMAGES),
            costs=replace(costs, **free),
            cluster=Cluster(workers=workers, latency=0.0, round_trip=0.0),
            times=lambda task, images: chunks[task],
            ahead=len(chunks),
        )
        .run()
        .wall
    )


def validated(options: argparse.Namespace) -> int:
    """Prints real and simulated seconds of waiting images; returns 1 where they differ by more than is allowed."""
    _, costs, _ = asked(options)
    rows: list[tuple[object, ...]] = [("bound by", "workers", "real", "simulation", "difference, median", "largest")]
    differences = []
    for regime in REGIMES:
        for workers in (1, 2):
            trials = [real_seconds(waiting_times(regime, options.seed), workers) for _ in range(options.repeats)]
            pairs = [(real, simulated_seconds(taken, workers, costs)) for real, taken in trials]
            found = sorted((expected / real - 1 for real, expected in pairs), key=abs)
            differences.append(statistics.median(found))
            real, expected = (statistics.median(side) for side in zip(*pairs, strict=True))
            shares = (f"{100 * differences[-1]:+.1f} %", f"{100 * found[-1]:+.1f} %")
            rows.append((regime, workers, f"{real:.2f} s", f"{expected:.2f} s", *shares))
    print(table(*rows))
    return int(max(map(abs, differences)) > options.error)


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--repeats", type=int, default=3, help="of each real run; the median counts")
    options.add_argument("--error", type=float, default=0.05, help="that is allowed")
    return validated(options.parse_args())


if __name__ == "__main__":
    sys.modules["scale_validation"] = sys.modules["__main__"]  # by which workers find the tasks
    wait_for_images.__module__ = "scale_validation"
    sys.exit(main())
