"""The simulated cluster: cases computed by hand, laws, and its agreement with the model where nothing is random."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Simulate = Callable[..., Any]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import scale_simulation

    module: ModuleType = scale_simulation
    return module


@pytest.fixture
def simulate(benchmark: ModuleType) -> Simulate:
    """Returns what runs a job in which nothing costs anything but what is stated."""
    from scale_model import Cluster, Costs, Job

    def run(
        images: int, workers: int, *, shard: int = 1, costs: dict[str, float] | None = None,
        there: dict[str, float] | None = None, seconds: Sequence[float] | None = None, **options: Any,
    ) -> Any:  # fmt: skip
        each = Costs(**(dict.fromkeys(Costs.__dataclass_fields__, 0.0) | (costs or {})))
        free = {"worker_bandwidth": 1e18, "storage_bandwidth": 1e18, "latency": 0.0, "round_trip": 0.0}
        cluster = Cluster(workers=workers, **(free | (there or {})))

        def times(task: int, count: int) -> Any:
            compute = each.computing if seconds is None else seconds[task]
            return benchmark.Times(
                decode=[each.decode] * count, compute=[compute] * count, finish=[each.finish] * count
            )

        job = Job(images=images, shard=shard)
        return benchmark.Simulation(job=job, costs=each, cluster=cluster, times=times, **options).run()

    return run


# The storage ---------------------------------------------------------------------------------------------------------


def test_those_who_read_share_the_storage(benchmark: ModuleType) -> None:
    """100 bytes each at 100 B/s, the second half a second later: 50 alone, 50 at half the rate, and the other way."""
    clock, done = benchmark.Clock(), []
    storage = benchmark.Storage(clock, each=100.0, total=100.0)
    storage.read(100, lambda: done.append(clock.now))
    clock.after(0.5, storage.read, 100, lambda: done.append(clock.now))
    clock.run(lambda: len(done) == 2)
    assert done == [pytest.approx(1.5), pytest.approx(2.0)]


def test_one_reader_is_given_no_more_than_it_can_take(benchmark: ModuleType) -> None:
    clock, done = benchmark.Clock(), []
    storage = benchmark.Storage(clock, each=10.0, total=1000.0)
    for _ in range(3):
        storage.read(100, lambda: done.append(clock.now))
    clock.run(lambda: len(done) == 3)
    assert done == [pytest.approx(10.0)] * 3


# A chunk -------------------------------------------------------------------------------------------------------------


def test_two_threads_read_ahead(simulate: Simulate) -> None:
    """Reads of 3 s end at 3, 3, 6, and 7 (asked for at 4); images are computed from 3, 4, 6, 7, the last ends at 9."""
    each = {"decode": 3.0, "forward": 1.0, "finish": 1.0}
    assert simulate(4, 1, shard=4, costs=each).wall == pytest.approx(9)


def test_two_threads_finish_and_the_networks_wait_for_them(simulate: Simulate) -> None:
    """8 masks of 1 s by two threads."""
    assert simulate(8, 1, shard=8, costs={"finish": 1.0}).wall == pytest.approx(4)
    assert simulate(8, 1, shard=8, costs={"finish": 1.0, "forward": 2.0}).wall == pytest.approx(8 * 2 + 1)


def test_files_come_one_after_the_other_to_a_worker(simulate: Simulate) -> None:
    """4 photos of 100 bytes at 100 B/s, the last one computed in 0.5 s."""
    each = {"image_bytes": 100.0, "forward": 0.5}
    assert simulate(4, 1, shard=4, costs=each, there={"worker_bandwidth": 100.0}).wall == pytest.approx(4.5)


def test_a_files_first_byte_comes_late(simulate: Simulate) -> None:
    assert simulate(1, 1, costs={"forward": 1.0}, there={"latency": 0.25}).wall == pytest.approx(
        1 + 3 * 0.25 + 0.25 / 8
    )


# Workers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 3, 7, 10, 40])
def test_equal_tasks_take_as_many_rounds_as_needed(simulate: Simulate, workers: int) -> None:
    found = simulate(10, workers, costs={"forward": 2.0})
    assert found.wall == pytest.approx(2 * math.ceil(10 / workers)) and found.busy == pytest.approx(20)


def test_workers_start_load_and_are_fed(simulate: Simulate) -> None:
    """Both load 100 bytes at 50 B/s; between two tasks lies 0.5 s, and before the first, too."""
    each = {"start": 3.0, "load": 4.0, "ensemble_bytes": 100.0, "forward": 1.0, "task": 0.5}
    found = simulate(4, 2, costs=each, there={"storage_bandwidth": 100.0})
    assert found.wall == pytest.approx(3 + 0.5 + 100 / 50 + 4 + 1 + 0.5 + 1)


def test_the_driver_hands_out_one_task_after_the_other(simulate: Simulate) -> None:
    found = simulate(10, 5, costs={"drive_task": 1.0, "drive_before": 2.0, "drive_after": 3.0})
    assert found.wall == pytest.approx(10 + 10 * 2 + 10 * 3)


def test_chunks_far_beyond_the_first_that_is_not_done_wait(simulate: Simulate) -> None:
    """As ``predict --to rle`` does: a first chunk of 10 s holds back the third, unless four may be begun."""
    seconds = [10.0, 1.0, 1.0, 1.0]
    assert simulate(4, 2, seconds=seconds, ahead=2).wall == pytest.approx(11)
    assert simulate(4, 2, seconds=seconds).wall == pytest.approx(10)


def test_slow_workers_are_given_fewer_tasks(simulate: Simulate) -> None:
    """One of two takes 3 s for a task: it does two of eight, the other one six."""
    assert simulate(8, 2, costs={"forward": 1.0}, slow=(0.5, 3.0), ahead=8).wall == pytest.approx(6)


@pytest.mark.parametrize(("exclusive", "expected"), [(False, 17.0), (True, 61.0)])
def test_a_lost_workers_chunk_is_done_again(
    simulate: Simulate, benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, exclusive: bool, expected: float
) -> None:
    """Lost at 4 s, missed at 6, a new one there at 7; where two would do harm, it waits until 51."""
    lives = iter([4.0, 1e9])

    class Random:
        def exponential(self, mean: float) -> float:
            assert mean == 3600
            return next(lives)

    monkeypatch.setattr(benchmark.np.random, "default_rng", lambda seed: Random())
    each, there = {"start": 1.0, "forward": 10.0}, {"failures_per_hour": 1.0, "notice": 2.0}
    found = simulate(1, 1, costs=each, there=there, exclusive=exclusive)
    assert (found.wall, found.repeated) == (pytest.approx(expected), 1)


@pytest.mark.parametrize("seed", range(3))
def test_losses_cost_time_and_no_chunk_is_forgotten(simulate: Simulate, seed: int) -> None:
    each = {"forward": 1.0, "start": 3.0, "load": 5.0, "decode": 0.1, "finish": 0.1}
    without = simulate(2000, 4, shard=10, costs=each)
    found = simulate(2000, 4, shard=10, costs=each, there={"failures_per_hour": 60.0}, seed=seed)
    assert found.repeated > 0 and found.wall > without.wall and found.busy > without.busy


# The model, and measured times ---------------------------------------------------------------------------------------

REGIMES = {
    "computing": ({"decode": 0.2, "forward": 1.0, "finish": 0.2}, {}),
    "reading": ({"decode": 3.0, "forward": 0.5, "finish": 0.2}, {}),
    "finishing": ({"decode": 0.2, "forward": 0.5, "finish": 3.0}, {}),
    "storage": ({"image_bytes": 100.0, "forward": 0.5}, {"storage_bandwidth": 1000.0}),
    "driver": ({"forward": 1e-6, "drive_task": 1.0}, {}),
}


@pytest.mark.parametrize("workers", [1, 8, 20])
@pytest.mark.parametrize("bound", REGIMES)
def test_equal_times_give_what_the_model_says(simulate: Simulate, bound: str, workers: int) -> None:
    from scale_model import Cluster, Costs, Job, estimate

    each, there = REGIMES[bound]
    found = simulate(10_240, workers, shard=64, costs=each, there=there)
    costs = Costs(**(dict.fromkeys(Costs.__dataclass_fields__, 0.0) | each))
    free = {"worker_bandwidth": 1e18, "storage_bandwidth": 1e18, "latency": 0.0, "round_trip": 0.0}
    expected = estimate(Job(images=10_240), costs, Cluster(workers=workers, **(free | there)))
    assert expected.bound == bound or (bound, workers) == ("storage", 1)
    assert found.wall == pytest.approx(expected.wall, rel=0.02)
    assert found.wall >= found.busy / workers


def test_measured_times_are_drawn_by_a_seed_for_every_chunk(benchmark: ModuleType) -> None:
    measured = {
        "image": {"decode": [1.0, 2.0], "prepare": [10.0, 20.0], "finish": [5.0]},
        "shard": {"passes": [1.0, 2.0, 3.0]},
    }
    first, same, other = (benchmark.Replayed(measured, 200.0, seed) for seed in (0, 0, 1))
    assert first(3, 50) == same(3, 50) and first(3, 50) != first(4, 50) and first(3, 50) != other(3, 50)
    times = first(0, 50)
    forwards = [round(c - 10 * d) for c, d in zip(times.compute, times.decode, strict=True)]
    assert set(times.decode) == {1.0, 2.0} and set(times.finish) == {5.0}
    assert {100, 200, 300} == set(forwards) and len({b - a for a, b in pairwise(forwards)}) == 2
