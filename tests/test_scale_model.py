"""The closed-form cost model: cases computed by hand, laws, and that the page says what the model says."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import scale_model

    module: ModuleType = scale_model
    return module


def costs(model: ModuleType, **changes: float) -> Any:
    """Returns costs of nothing but what is stated."""
    names = model.Costs.__dataclass_fields__
    return model.Costs(**(dict.fromkeys(names, 0.0) | changes))


def cluster(model: ModuleType, workers: int, **changes: float) -> Any:
    """Returns a cluster that is never waited for but where that is stated."""
    free = {"worker_bandwidth": 1e18, "storage_bandwidth": 1e18, "latency": 0.0, "round_trip": 0.0}
    return model.Cluster(workers=workers, **(free | changes))


# By hand -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tasks", "workers", "last", "expected"),
    [(10, 1, None, 20), (10, 4, None, 6), (10, 10, None, 2), (10, 99, None, 2), (9, 4, 1, 5), (10, 4, 1, 6)],
)
def test_equal_tasks_take_as_many_rounds_as_needed(
    model: ModuleType, tasks: int, workers: int, last: float | None, expected: float
) -> None:
    """Of 9 tasks of 2 s on 4 workers the last one is alone in its round; of 10 it is not, and its end is not seen."""
    assert model.waves(tasks, workers, 2.0, last) == expected


def test_a_chunk_is_its_first_image_from_end_to_end_and_then_one_after_the_other(model: ModuleType) -> None:
    each = costs(model, decode=2.0, prepare=1.0, forward=4.0, finish=3.0, task=0.5)
    assert model.shard_seconds(4, each, cluster(model, 1), 1) == 2 + 5 + 3 + 3 * 5 + 0.5


def test_every_part_of_a_run(model: ModuleType) -> None:
    """10 photos in chunks of 4 on 2 workers that read 50 B/s each: 2 rounds, and the last chunk of 2 is alone."""
    each = costs(
        model, decode=1.0, prepare=1.0, forward=9.0, finish=2.0, image_bytes=50, row_bytes=3, task=0.5,
        start=7.0, load=5.0, ensemble_bytes=200, drive_before=0.1, drive_after=0.2,
    )  # fmt: skip
    there = cluster(model, 2, storage_bandwidth=100, latency=0.8, round_trip=0.3)
    found = model.estimate(model.Job(images=10, shard=4), each, there)
    assert found.before == pytest.approx(10 * (0.1 + 0.8 / 8 + 0.3))
    assert (found.starting, found.loading) == (7.0, pytest.approx(5 + 0.8 + 200 / 50))
    whole, rest = (0.8 + 1 + 1 + 10 + 2 + (n - 1) * 10 + 0.5 for n in (4, 2))
    assert found.shards == pytest.approx(whole + rest)
    assert found.after == pytest.approx(10 * 0.2 + 3 * 0.8)
    assert found.wall == pytest.approx(5 + 7 + 9.8 + whole + rest + 4.4)
    assert found.held_hours == pytest.approx(2 * (found.wall - 5) / 3600)
    assert found.busy_share == pytest.approx(100 / (2 * (found.wall - 5)))
    assert found.traffic == {"images": 500, "ensemble": 400, "rows": 60}
    assert (found.bound, found.dominant) == ("computing", "shards")


@pytest.mark.parametrize(
    ("changes", "there", "bound"),
    [
        ({"decode": 3.0}, {}, "reading"),
        ({"finish": 3.0}, {}, "finishing"),
        ({"image_bytes": 300}, {"worker_bandwidth": 100}, "storage"),
        ({"image_bytes": 300}, {"storage_bandwidth": 400}, "storage"),
        ({}, {"latency": 3.0}, "reading"),
        ({"drive_task": 999.0}, {}, "driver"),
        ({}, {}, "computing"),
    ],
)
def test_what_an_image_waits_for_is_named(
    model: ModuleType, changes: dict[str, float], there: dict[str, float], bound: str
) -> None:
    job, each = model.Job(images=1000, shard=10), costs(model, forward=1.0, **changes)
    assert model.estimate(job, each, cluster(model, 4, **there)).bound == bound


def test_a_lost_worker_costs_half_a_chunk_and_a_new_start(model: ModuleType) -> None:
    job, each = model.Job(images=640), costs(model, forward=1.0, start=5.0, load=7.0)
    without = model.estimate(job, each, cluster(model, 1))
    found = model.estimate(job, each, cluster(model, 1, failures_per_hour=36, notice=6.0))
    assert without.shards == 640 and found.shards == pytest.approx(640 * (1 + (6 + 5 + 7 + 32) / 100))


# Laws ----------------------------------------------------------------------------------------------------------------

EACH = {
    "decode": 0.02, "prepare": 0.1, "forward": 0.4, "finish": 0.01, "image_bytes": 1e5, "row_bytes": 1e4, "task": 0.01,
    "start": 5.0, "load": 30.0, "ensemble_bytes": 6e9, "drive_task": 1e-3, "drive_before": 1e-4, "drive_after": 1e-3,
}  # fmt: skip
REAL = {"worker_bandwidth": 1e9, "storage_bandwidth": 2e9, "latency": 1e-3, "round_trip": 1e-3}


@pytest.mark.parametrize("workers", [1, 3, 20, 100, 5000])
@pytest.mark.parametrize("images", [1, 63, 64, 65, 100_064])
def test_no_run_is_shorter_than_its_share_of_the_work(model: ModuleType, workers: int, images: int) -> None:
    each = costs(model, **EACH)
    found = model.estimate(model.Job(images=images), each, cluster(model, workers, **REAL))
    assert found.wall >= found.busy / workers and found.wall >= sum(found.traffic.values()) / 2e9 / 2
    assert 0 < found.busy_share <= 1 and found.held_hours * 3600 >= found.busy
    assert found.wall == pytest.approx(sum(found.parts.values()))


@pytest.mark.parametrize("name", ["worker_bandwidth", "storage_bandwidth"])
def test_more_bandwidth_never_costs_time(model: ModuleType, name: str) -> None:
    job, each = model.Job(images=100_064), costs(model, **EACH)
    walls = [
        model.estimate(job, each, replace(cluster(model, 100, **REAL), **{name: 10.0**power})).wall
        for power in range(5, 14)
    ]
    assert walls == sorted(walls, reverse=True) and walls[0] > walls[-1]


@pytest.mark.parametrize("name", EACH)
def test_what_costs_more_takes_no_less(model: ModuleType, name: str) -> None:
    job, there = model.Job(images=5000), cluster(model, 20, **REAL)
    walls = [
        model.estimate(job, costs(model, **(EACH | {name: factor * EACH[name]})), there).wall
        for factor in (0, 0.5, 1, 2, 1000)
    ]
    assert walls == sorted(walls)


def test_more_workers_are_faster_where_nothing_is_shared(model: ModuleType) -> None:
    job, each = model.Job(images=100_064), costs(model, forward=1.0, start=9.0)
    walls = [model.estimate(job, each, cluster(model, workers)).wall for workers in range(1, 200)]
    assert walls == sorted(walls, reverse=True)


@pytest.mark.parametrize("wrong", [-1.0, math.inf, math.nan])
def test_costs_are_numbers_that_can_be(model: ModuleType, wrong: float) -> None:
    with pytest.raises(ValueError, match="forward: expected 0 or more, got"):
        costs(model, forward=wrong)
    with pytest.raises(ValueError, match="latency: expected 0 or more, got"):
        cluster(model, 1, latency=wrong)


def test_a_cluster_has_workers_and_a_job_images(model: ModuleType) -> None:
    with pytest.raises(ValueError, match="at least one worker"):
        cluster(model, 0)
    with pytest.raises(ValueError, match="bandwidths above 0"):
        cluster(model, 1, storage_bandwidth=0)
    with pytest.raises(ValueError, match="at least one image"):
        model.Job(images=0)


# The program, and the page -------------------------------------------------------------------------------------------


def test_chunks_and_threads_are_the_programs(model: ModuleType) -> None:
    import inspect

    from maskloom.data.sources import base
    from maskloom.inference.streaming import predict_records
    from maskloom.stages.rows import CHUNK

    options = inspect.signature(predict_records).parameters
    assert (options["read_ahead"].default, options["writers"].default) == (model.READERS, model.WRITERS)
    assert (CHUNK, base._THREADS) == (model.CHUNK, model.HEADER_READERS)


def test_the_ensemble_is_the_published_one(model: ModuleType) -> None:
    networks = model.read_measured()["networks"].values()
    assert [sum(one[name] for one in networks) for name in ("count", "passes")] == [49, 79]


def test_the_page_says_what_the_model_says(model: ModuleType) -> None:
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    measured, costs, cluster = model.asked(model.parser("").parse_args([]))
    for text in model.tables(measured, costs, cluster, (model.CONTEST, model.MANY), model.WORKERS):
        assert text in page, "run python benchmarks/scale_model.py, and bring docs/scale.md up to date"
