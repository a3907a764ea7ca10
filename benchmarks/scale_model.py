"""What predicting many photos with a whole ensemble costs on a cluster: time, GPU-hours, bytes, and what bounds it.

    python benchmarks/scale_model.py                                      the tables of docs/scale.md
    python benchmarks/scale_model.py --forward 0.41 --workers 4 16        with a measured pass of all networks

A closed form: no events, no randomness. It follows ``maskloom predict --to rle --on …``. The driver finds the images
and looks at their headers; workers start and load the ensemble; chunks of images are handed out one by one; each
worker decodes ahead in two threads and finishes masks in two others while the networks compute; the driver writes the
table. Costs are those of ``scale_costs.json``, which ``scale_measurements.py`` measures; the seconds of the networks on
a GPU are assumed unless ``--forward`` states them. ``scale_simulation.py`` checks this model by replaying such a run.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

COSTS = Path(__file__).with_name("scale_costs.json")
CONTEST, MANY = 100_064, 10_000_000
WORKERS = (1, 8, 20, 100)
CHUNK = 64
"""Images of a task, as in ``maskloom.stages.rows``, which would import much more."""
READERS = WRITERS = 2
"""Threads of a worker, as in ``maskloom.inference.streaming``."""
HEADER_READERS = 8
"""Threads of the driver that look at headers, as in ``maskloom.data.sources.base``."""
PEAK = 312e12
"""Floating-point operations per second: what NVIDIA states of an A100 in bf16, without sparsity."""
EFFICIENCIES = (0.10, 0.25, 0.50)
"""Assumed, not measured: the share of the peak that 49 convolutional networks reach; the middle one is the default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """What an image, a task and a worker take: seconds, and bytes."""

    decode: float
    """Of an image, in a reading thread."""
    prepare: float
    """Of an image, resized, padded and equalised for all networks, in the thread that computes."""
    forward: float
    """Of all networks and views on an image."""
    finish: float
    """Of a mask: hull, threshold, run lengths; in a writing thread."""
    image_bytes: float
    row_bytes: float
    """Of a mask's run lengths."""
    task: float
    """Of a worker from the end of a task to the beginning of the next one."""
    start: float
    """Of a worker until it takes tasks."""
    load: float
    """Of a worker with the ensemble's files, once it has read them."""
    ensemble_bytes: float
    drive_task: float
    """Of the driver with a task."""
    drive_before: float
    """Of the driver with an image before the first task: found, header read, version noted."""
    drive_after: float
    """Of the driver with an image after the last task: the table."""

    def __post_init__(self) -> None:
        _check_not_negative(self)

    @property
    def computing(self) -> float:
        """Seconds of the thread that computes, per image."""
        return self.prepare + self.forward


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Workers, one per GPU, and the storage that all read."""

    workers: int
    worker_bandwidth: float = 1.25e9
    """Bytes per second that reach one worker (10 Gbit/s)."""
    storage_bandwidth: float = 2.5e9
    """Bytes per second that leave the storage for all workers together."""
    latency: float = 0.002
    """Seconds until the first byte of a file."""
    round_trip: float = 0.0005
    """Seconds of a question about a file, such as when it was changed."""
    failures_per_hour: float = 0.0
    """Of one worker."""
    notice: float = 10.0
    """Seconds until a lost worker's task may be given to another one."""

    def __post_init__(self) -> None:
        _check_not_negative(self)
        if self.workers < 1 or self.worker_bandwidth <= 0 or self.storage_bandwidth <= 0:
            raise ValueError(f"expected at least one worker and bandwidths above 0, got {self}")

    def share(self, workers: int) -> float:
        """Returns the bytes per second that reach each of so many workers that read at once."""
        return min(self.worker_bandwidth, self.storage_bandwidth / workers)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Images to be predicted, so many per task."""

    images: int
    shard: int = CHUNK

    def __post_init__(self) -> None:
        if self.images < 1 or self.shard < 1:
            raise ValueError(f"expected at least one image, and one per shard, got {self}")

    @property
    def tasks(self) -> int:
        return math.ceil(self.images / self.shard)

    def size(self, task: int) -> int:
        """Returns the images of one of the tasks, which are counted from 0; the last one may have fewer."""
        return min(self.shard, self.images - task * self.shard)


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Seconds of a run, part after part, and what it moves."""

    workers: int
    before: float
    """The driver, until workers are asked for."""
    starting: float
    """Workers, until they take tasks."""
    loading: float
    """Workers, until the ensemble is ready."""
    shards: float
    """Workers, until all tasks are done."""
    after: float
    """The driver, until the table is written."""
    busy: float
    """Of all workers, computing."""
    bound: str
    """What an image of a chunk waits for: "computing", "reading", "storage" or "finishing"; or "driver"."""
    traffic: dict[str, float]
    """Bytes that cross the network, by what they are."""

    @property
    def parts(self) -> dict[str, float]:
        """The seconds of each part."""
        names = ("before", "starting", "loading", "shards", "after")
        return {name: getattr(self, name) for name in names}

    @property
    def wall(self) -> float:
        """Seconds from the command to its end."""
        return sum(self.parts.values())

    @property
    def held_hours(self) -> float:
        """GPU-hours: workers are there from ``starting`` to the end."""
        return self.workers * (self.wall - self.before) / 3600

    @property
    def busy_share(self) -> float:
        """The share of these in which something is computed."""
        return self.busy / 3600 / self.held_hours

    @property
    def dominant(self) -> str:
        """The longest part."""
        return max(self.parts, key=self.parts.__getitem__)


def finding(job: Job, costs: Costs, cluster: Cluster) -> float:
    """Returns the seconds of the driver before the first task: headers are read side by side, versions are not."""
    return job.images * (costs.drive_before + cluster.latency / HEADER_READERS + cluster.round_trip)


def driving(costs: Costs, cluster: Cluster) -> float:
    """Returns the seconds of the driver with one task: its folder made, its rows looked for."""
    return costs.drive_task + 2 * cluster.round_trip


def tabling(job: Job, costs: Costs, cluster: Cluster) -> float:
    """Returns the seconds of the driver after the last task: all rows read, and the table written."""
    return job.images * costs.drive_after + job.tasks * cluster.latency


def waves(tasks: int, workers: int, seconds: float, last: float | None = None) -> float:
    """Returns when equal tasks are done that each free worker takes the next of; the last one may be shorter."""
    rounds = math.ceil(tasks / workers)
    alone = (tasks - 1) % workers == 0  # in the last round
    return (rounds - 1) * seconds + (seconds if last is None or not alone else last)


def per_image(costs: Costs, cluster: Cluster, reading: int) -> dict[str, float]:
    """Returns the seconds between two images of a worker, as far as each thing bounds them.

    ``reading`` workers share the storage.
    """
    transfer = costs.image_bytes / cluster.share(reading)
    return {
        "computing": costs.computing,
        "reading": (cluster.latency + transfer + costs.decode) / READERS,
        "storage": transfer,
        "finishing": costs.finish / WRITERS,
    }


def shard_seconds(images: int, costs: Costs, cluster: Cluster, reading: int) -> float:
    """Returns the seconds of a task: its first image from end to end, then one image after the other."""
    steps = per_image(costs, cluster, reading)
    first = READERS * steps["reading"] + costs.computing + costs.finish
    return first + (images - 1) * max(steps.values()) + costs.task


def estimate(job: Job, costs: Costs, cluster: Cluster) -> Estimate:
    """Returns what the job costs on the cluster."""
    active = min(cluster.workers, job.tasks)
    steps = per_image(costs, cluster, active)
    full, last = (shard_seconds(job.size(task), costs, cluster, active) for task in (0, job.tasks - 1))
    starting = costs.start
    loading = costs.load + (cluster.latency + costs.ensemble_bytes / cluster.share(active))
    shards = waves(job.tasks, cluster.workers, full, last)
    # A worker that is lost has done half a task for nothing, and another one takes its place.
    lost = cluster.notice + starting + loading + full / 2
    shards *= 1 + cluster.failures_per_hour / 3600 * lost
    handed = job.tasks * driving(costs, cluster)
    return Estimate(
        workers=cluster.workers,
        before=finding(job, costs, cluster),
        starting=starting,
        loading=loading,
        shards=max(shards, handed),
        after=tabling(job, costs, cluster),
        busy=job.images * costs.computing,
        bound="driver" if handed > shards else max(steps, key=steps.__getitem__),
        traffic={
            "images": job.images * costs.image_bytes,
            "ensemble": active * costs.ensemble_bytes,
            "rows": 2 * job.images * costs.row_bytes,  # a worker writes them, the driver reads them
        },
    )


def _check_not_negative(values: Costs | Cluster) -> None:
    for name in type(values).__dataclass_fields__:
        if not 0 <= getattr(values, name) < math.inf:
            raise ValueError(f"{name}: expected 0 or more, got {getattr(values, name)}")


# Measured and assumed costs ------------------------------------------------------------------------------------------


def read_measured(path: Path = COSTS) -> dict[str, Any]:
    """Returns what ``scale_measurements.py`` has written."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def tflop_per_image(measured: dict[str, Any]) -> float:
    """Returns the operations of all networks and views on an image, in 10¹²; a multiplication and an addition are 2."""
    return float(sum(one["passes"] * one["tflop_per_pass"] for one in measured["networks"].values()))


def assumed_forward(measured: dict[str, Any], efficiency: float, peak: float = PEAK) -> float:
    """Returns the seconds of all networks on an image, on a device that reaches this share of its peak."""
    return 1e12 * tflop_per_image(measured) / (efficiency * peak)


def costs_of(measured: dict[str, Any], forward: float) -> Costs:
    """Returns measured costs: of images the mean over photos, of which each was measured several times."""
    image, single = measured["image"], measured["single"]
    return Costs(
        decode=fmean(image["decode"]),
        prepare=fmean(image["prepare"]),
        forward=forward,
        finish=fmean(image["finish"]),
        image_bytes=single["image_bytes"],
        row_bytes=single["row_bytes"],
        task=single["task"],
        start=single["start"],
        load=sum(one["count"] * one["load"] for one in measured["networks"].values()),
        ensemble_bytes=sum(one["count"] * one["bytes"] for one in measured["networks"].values()),
        drive_task=single["drive_task"],
        drive_before=single["drive_before"],
        drive_after=single["drive_after"],
    )


# Tables --------------------------------------------------------------------------------------------------------------


def hours(seconds: float) -> str:
    """Returns a time as people read it."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def size(count: float) -> str:
    """Returns a number of bytes as people read it."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def table(*rows: tuple[object, ...]) -> str:
    """Returns a table in Markdown; the first row is its head."""
    head, *others = (f"| {' | '.join(map(str, row))} |" for row in rows)
    return "\n".join([head, "|---" * len(rows[0]) + "|", *others])


def costs_table(costs: Costs) -> str:
    """Returns what was measured, a line each."""
    rows: list[tuple[object, ...]] = [("what", "measured")]
    rows += [
        ("decode a photo", f"{1000 * costs.decode:.1f} ms"),
        ("prepare it for all networks", f"{1000 * costs.prepare:.1f} ms"),
        ("hull, threshold, run lengths", f"{1000 * costs.finish:.1f} ms"),
        ("bytes of a photo, of its run lengths", f"{size(costs.image_bytes)}, {size(costs.row_bytes)}"),
        ("a worker until it takes tasks", f"{costs.start:.1f} s"),
        ("49 networks of files in memory, loaded", f"{costs.load:.1f} s"),
        ("bytes of the 49 networks", size(costs.ensemble_bytes)),
        ("a worker between two tasks", f"{1000 * costs.task:.1f} ms"),
        ("the driver, per task", f"{1000 * costs.drive_task:.2f} ms"),
        ("the driver, per photo: before, after", f"{_us(costs.drive_before)}, {_us(costs.drive_after)}"),
    ]
    return table(*rows)


def _us(seconds: float) -> str:
    return f"{1e6 * seconds:.0f} µs"


def networks_table(measured: dict[str, Any]) -> str:
    """Returns the architectures of the ensemble: how many, what they see, operations, seconds of one pass."""
    rows: list[tuple[object, ...]] = [
        ("network", "networks", "passes", "input", "TFLOP per pass", "seconds per pass", "GFLOP/s", "seconds to load")
    ]
    for name, one in measured["networks"].items():
        speed = 1000 * one["tflop_per_pass"] / one["cpu_seconds_per_pass"]
        rows.append(
            (
                name,
                one["count"],
                one["passes"],
                "×".join(map(str, one["input"])),
                f"{one['tflop_per_pass']:.3f}",
                f"{one['cpu_seconds_per_pass']:.1f}",
                f"{speed:.0f}",
                f"{one['load']:.2f}",
            )
        )
    return table(*rows)


def scale_table(images: int, costs: Costs, clusters: Iterable[Cluster]) -> str:
    """Returns what so many images cost, a line per cluster."""
    rows: list[tuple[object, ...]] = [
        (
            "GPUs",
            "time",
            "GPU-hours",
            "of them computing",
            "find",
            "start",
            "load",
            "chunks",
            "table",
            "longest part",
            "bound by",
        )
    ]
    for cluster in clusters:
        found = estimate(Job(images=images), costs, cluster)
        parts = [hours(seconds) for seconds in found.parts.values()]
        shares = (f"{found.held_hours:,.1f}", f"{100 * found.busy_share:.0f} %")
        rows.append((cluster.workers, hours(found.wall), *shares, *parts, found.dominant, found.bound))
    return table(*rows)


def efficiency_table(measured: dict[str, Any], cluster: Cluster, workers: Sequence[int]) -> str:
    """Returns how the result follows the assumed efficiency."""
    rows: list[tuple[object, ...]] = [
        (
            "share of 312 TFLOP/s",
            "seconds per photo",
            *(f"{images:,} on {n}" for images in (CONTEST, MANY) for n in workers),
        )
    ]
    for efficiency in EFFICIENCIES:
        forward = assumed_forward(measured, efficiency)
        found = [
            hours(estimate(Job(images=images), costs_of(measured, forward), replace(cluster, workers=n)).wall)
            for images in (CONTEST, MANY)
            for n in workers
        ]
        rows.append((f"{100 * efficiency:.0f} %", f"{forward:.2f}", *found))
    return table(*rows)


def storage_table(costs: Costs, cluster: Cluster, workers: Sequence[int]) -> str:
    """Returns how the contest's time follows what the storage gives."""
    rows: list[tuple[object, ...]] = [("storage gives", *(f"{n} GPU{'s' * (n > 1)}" for n in workers))]
    for bandwidth in (0.125e9, 0.5e9, 2.5e9, 10e9):
        asked = replace(cluster, storage_bandwidth=bandwidth)
        found = [estimate(Job(images=CONTEST), costs, replace(asked, workers=n)) for n in workers]
        rows.append((f"{size(bandwidth)}/s", *(f"{hours(one.wall)} (load {hours(one.loading)})" for one in found)))
    return table(*rows)


def shard_table(costs: Costs, cluster: Cluster, workers: Sequence[int]) -> str:
    """Returns how the contest's time follows the size of a chunk."""
    rows: list[tuple[object, ...]] = [
        ("photos per task", "tasks", "lost with a worker", *(f"{n} GPU{'s' * (n > 1)}" for n in workers))
    ]
    for shard in (1, 8, 32, 64, 128, 256, 1024):
        job = Job(images=CONTEST, shard=shard)
        lost = hours(shard_seconds(shard, costs, cluster, 1))
        found = [estimate(job, costs, replace(cluster, workers=n)).wall for n in workers]
        rows.append((shard, f"{job.tasks:,}", f"{lost} at most", *map(hours, found)))
    return table(*rows)


def traffic_table(costs: Costs, cluster: Cluster, workers: Sequence[int]) -> str:
    """Returns the bytes that cross the network."""
    rows: list[tuple[object, ...]] = [("photos", "GPUs", "photos read", "networks read", "rows", "mean rate")]
    for images in (CONTEST, MANY):
        for n in workers:
            found = estimate(Job(images=images), costs, replace(cluster, workers=n))
            moved = [size(found.traffic[name]) for name in ("images", "ensemble", "rows")]
            rows.append((f"{images:,}", n, *moved, f"{size(sum(found.traffic.values()) / found.wall)}/s"))
    return table(*rows)


def parser(about: str | None) -> argparse.ArgumentParser:
    """Returns the options that the model and its simulation share."""
    options = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--costs", type=Path, default=COSTS, help="what scale_measurements.py wrote")
    options.add_argument("--forward", type=float, help="seconds of all networks on a photo, measured")
    options.add_argument("--efficiency", type=float, default=EFFICIENCIES[1], help="else: share of the peak")
    options.add_argument("--peak", type=float, default=PEAK / 1e12, help="of a GPU, in TFLOP/s")
    options.add_argument("--images", type=int, nargs="+", default=[CONTEST, MANY])
    options.add_argument("--workers", type=int, nargs="+", default=list(WORKERS))
    options.add_argument("--worker-gbit", type=float, default=10.0, help="that reach a worker")
    options.add_argument("--storage-gbit", type=float, default=20.0, help="that leave the storage")
    options.add_argument("--latency", type=float, default=0.002, help="seconds to a file's first byte")
    options.add_argument("--round-trip", type=float, default=0.0005, help="seconds of a question about a file")
    return options


def asked(options: argparse.Namespace) -> tuple[dict[str, Any], Costs, Cluster]:
    """Returns what was measured, the costs, and a cluster of one worker."""
    measured = read_measured(options.costs)
    forward = options.forward
    if forward is None:
        forward = assumed_forward(measured, options.efficiency, 1e12 * options.peak)
    cluster = Cluster(
        workers=1,
        worker_bandwidth=options.worker_gbit / 8 * 1e9,
        storage_bandwidth=options.storage_gbit / 8 * 1e9,
        latency=options.latency,
        round_trip=options.round_trip,
    )
    return measured, costs_of(measured, forward), cluster


def tables(
    measured: dict[str, Any], costs: Costs, cluster: Cluster, images: Sequence[int], workers: Sequence[int]
) -> list[str]:
    """Returns all tables, in the order of docs/scale.md."""
    clusters = [replace(cluster, workers=count) for count in workers]
    return [
        costs_table(costs),
        networks_table(measured),
        *(scale_table(count, costs, clusters) for count in images),
        efficiency_table(measured, cluster, workers),
        storage_table(costs, cluster, workers),
        shard_table(costs, cluster, workers),
        traffic_table(costs, cluster, workers),
    ]


def main() -> None:
    options = parser(__doc__).parse_args()
    measured, costs, cluster = asked(options)
    stated = "assumed" if options.forward is None else "as stated"
    print(f"{tflop_per_image(measured):.2f} TFLOP and {costs.forward:.3f} s per photo in all networks, {stated}\n")
    print("\n\n".join(tables(measured, costs, cluster, options.images, options.workers)))


if __name__ == "__main__":
    main()
