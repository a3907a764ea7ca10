"""Snapshots: cosine restarts over whole epochs, and the network kept at the end of each cycle."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_job import tiny_job

from maskloom.config import parse
from maskloom.errors import UserError
from maskloom.files import checksum
from maskloom.members import MemberSettings
from maskloom.models.bundle import read_extra
from maskloom.records import Record
from maskloom.training.engine import train
from maskloom.training.job import snapshot_epochs
from maskloom.training.phases import Phase
from maskloom.training.schedules import ScheduleSettings, cycle_ends, learning_rate_factor


def factors(settings: ScheduleSettings, num_steps: int, steps_per_epoch: int) -> list[float]:
    return [
        learning_rate_factor(settings, step, num_steps, steps_per_epoch=steps_per_epoch) for step in range(num_steps)
    ]


def test_factors_are_those_of_the_paper() -> None:
    """α / 2 · (cos(π · mod(t - 1, ⌈T / M⌉) / ⌈T / M⌉) + 1) with t from 1, T = 24 steps, M = 3 cycles."""
    expected = [(math.cos(math.pi * ((t - 1) % 8) / 8) + 1) / 2 for t in range(1, 25)]
    assert factors(ScheduleSettings(kind="snapshots", num_cycles=3), 24, 2) == pytest.approx(expected)


def test_cycles_that_do_not_divide_the_epochs_are_whole_all_the_same() -> None:
    assert cycle_ends(12, 3) == (4, 8, 12)
    assert cycle_ends(7, 5) == (1, 2, 4, 5, 7)
    assert cycle_ends(2, 5) == (1, 2)
    found = factors(ScheduleSettings(kind="snapshots", num_cycles=5), 7 * 4, 4)
    assert [step // 4 for step, factor in enumerate(found) if factor == 1.0] == [0, 1, 2, 4, 5]


@given(st.integers(1, 60), st.integers(1, 12))
def test_every_epoch_lies_in_one_cycle(epochs: int, num_cycles: int) -> None:
    ends = cycle_ends(epochs, num_cycles)
    assert len(ends) == min(epochs, num_cycles) and ends[-1] == epochs
    lengths = [end - first for first, end in zip((0, *ends), ends, strict=False)]
    assert min(lengths) >= 1 and max(lengths) - min(lengths) <= 1


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 9))
def test_every_factor_is_between_zero_and_one(epochs: int, steps_per_epoch: int, num_cycles: int) -> None:
    found = factors(
        ScheduleSettings(kind="snapshots", num_cycles=num_cycles), epochs * steps_per_epoch, steps_per_epoch
    )
    assert all(0 < factor <= 1 for factor in found) and found[0] == 1


def test_a_bundle_is_kept_for_each_cycle(tmp_path: Path, records: list[Record]) -> None:
    schedule = ScheduleSettings(kind="snapshots", num_cycles=2)
    result = train(tiny_job(tmp_path / "a", records, epochs=4, schedule=schedule))
    assert [path.relative_to(tmp_path / "a").as_posix() for path in result.snapshots] == [
        "snapshots/1.safetensors",
        "snapshots/2.safetensors",
    ]
    assert [read_extra(path)["epoch"] for path in result.snapshots] == [2, 4]
    assert checksum(result.snapshots[1]) == checksum(result.last) != checksum(result.snapshots[0])
    assert train(tiny_job(tmp_path / "a", records, epochs=4, schedule=schedule)) == result
    every = train(tiny_job(tmp_path / "b", records, epochs=4, schedule=schedule, keep_epochs=True))
    assert checksum(tmp_path / "b" / "epochs" / "0002.safetensors") == checksum(result.snapshots[0])
    assert every.snapshots != result.snapshots


def test_phases_have_cycles_of_their_own(tmp_path: Path, records: list[Record]) -> None:
    phases = (
        Phase(epochs=1, schedule=ScheduleSettings(kind="constant")),
        Phase(epochs=2, schedule=ScheduleSettings(kind="snapshots", num_cycles=2)),
        Phase(epochs=2),
        Phase(epochs=3, schedule=ScheduleSettings(kind="snapshots", num_cycles=1)),
    )
    job = tiny_job(tmp_path, records, phases=phases, epochs=8)
    assert snapshot_epochs(job.plan()) == (3, 5, 8)
    assert [path.name for path in job.snapshots()] == ["1.safetensors", "2.safetensors", "3.safetensors"]


def test_other_schedules_keep_none(tmp_path: Path, records: list[Record]) -> None:
    result = train(tiny_job(tmp_path, records, epochs=1))
    assert result.snapshots == () and not (tmp_path / "snapshots").exists()


def test_another_job_leaves_no_snapshots_behind(tmp_path: Path, records: list[Record]) -> None:
    schedule = ScheduleSettings(kind="snapshots", num_cycles=2)
    job = tiny_job(tmp_path, records, epochs=2, schedule=schedule)
    train(job)
    train(tiny_job(tmp_path, records, epochs=1, fingerprint="b"))
    assert not job.snapshots_there()


def test_cycles_are_not_stopped_early(tmp_path: Path, records: list[Record]) -> None:
    job = tiny_job(tmp_path, records, schedule=ScheduleSettings(kind="snapshots"), early_stopping=2)
    with pytest.raises(UserError, match=r"early_stopping: expected none with schedule.kind=snapshots") as caught:
        train(job)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("in_a_phase", [False, True])
def test_early_stopping_of_cycles_is_refused_before_anything_begins(in_a_phase: bool) -> None:
    cycles = {"kind": "snapshots"}
    phases = {"phases": [{"epochs": 2, "schedule": cycles}]} if in_a_phase else {}
    stated = {"name": "m", "network": {}, "input": {}, "loss": {}, "schedule": {} if in_a_phase else cycles}
    with pytest.raises(
        UserError, match=r"early_stopping: expected none with schedule\.kind=snapshots.* found 2; set it"
    ):
        parse(MemberSettings, stated | {"training": {"early_stopping": 2, **phases}})
    assert parse(MemberSettings, stated | {"training": {**phases}}).num_snapshots == (2 if in_a_phase else 5)


def test_a_warm_up_is_refused() -> None:
    with pytest.raises(UserError, match="leave `warmup` out"):
        parse(ScheduleSettings, {"kind": "snapshots", "warmup": 0.1})
