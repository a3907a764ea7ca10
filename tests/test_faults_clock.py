"""A clock that is set back: nothing that was made is lost for it, nothing is used wrongly, and nobody waits for it."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import maskloom
from maskloom import heartbeat
from maskloom.heartbeat import Beat, Heartbeat, read_beats, state_of
from maskloom.integrity import Ledger
from maskloom.outputs.status_rows import clock, headline, remarks, stage_rows
from maskloom.run_directory import RunDirectory
from maskloom.run_lock import LOCK, held
from maskloom.run_status import read_status
from small import SMALL
from test_end_to_end import Heard

HOUR = 3600.0


def shift(folder: Path, seconds: float) -> None:
    """Moves the times of all files, as they are where the clock was set back by so much afterwards."""
    for path in folder.rglob("*"):
        facts = path.stat()
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + int(seconds * 1e9)))


@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
def test_a_finished_run_stays_finished(finished_run: Path, studio: Path, tmp_path: Path, seconds: float) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    shift(run, seconds)
    heard = Heard()
    maskloom.fit("default", studio, run=run, settings=SMALL, device="cpu", workers=0, progress=heard)
    assert heard.ran == ["report"] and not [note for note in heard.notes if "damaged" in note]


def test_what_is_changed_after_the_clock_went_back_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "map"
    file.write_bytes(b"made")
    shift(tmp_path, HOUR)
    ledger = Ledger(tmp_path, tmp_path / "sums")
    ledger.add(file)
    file.write_bytes(b"else")  # of the same length, and an hour older than what it replaces
    assert not ledger.is_sound(file)


class Jumping:
    """A clock on the wall that is set back by an hour in the middle of the work; what ticks goes on."""

    def __init__(self) -> None:
        self.wall, self.ticks = 1_800_000_000.0, 50.0

    def work(self, seconds: float) -> None:
        self.wall += seconds
        self.ticks += seconds

    def set_back(self) -> None:
        self.wall -= HOUR


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Beat:
    """What a process says that counted 20 of 100 before the clock was set back, and 20 after."""
    monkeypatch.setattr(heartbeat, "FIRST_SECONDS", 0.001)
    jumping = Jumping()
    beating = Heartbeat(
        tmp_path / "run", command="fit", device="cpu", clock=lambda: jumping.wall, ticks=lambda: jumping.ticks
    )
    with beating:
        beating.stage("oof/unet", cached=False)
        for done in range(41):
            beating.advance(done, 100)
            jumping.work(1.0)
            if done == 20:
                jumping.set_back()
        beat = beating.beat()
        deadline = time.monotonic() + 10
        while not list((tmp_path / "run" / "status").glob("[!.]*.json")) and time.monotonic() < deadline:
            time.sleep(0.001)
        shutil.copytree(tmp_path / "run", tmp_path / "kept")
    return beat


def test_rate_and_rest_follow_what_ticks(said: Beat) -> None:
    assert said.rate == pytest.approx(1.0) and said.seconds_left == pytest.approx(60.0)
    assert (said.sign - said.began, said.sign - said.stage_began) == (41, 41), "told by the clock as it is now"
    assert said.sign - said.moved == 1


def test_what_was_said_before_the_clock_went_back_is_taken_as_said_now(tmp_path: Path) -> None:
    """A living process has counted 10 of 100 steps in a minute, which leaves 9; then its clock goes back an hour."""
    at = 1_800_000_000.0
    mine = Heartbeat(tmp_path / "run", command="fit", device="cpu").beat()
    ahead = {"began": at + HOUR - 60, "stage_began": at + HOUR - 60, "moved": at + HOUR, "sign": at + HOUR}
    stage = {"stage": "train/unet/fold0", "stages": ("train/unet/fold0", "train/unet/fold1"), "unit": "steps"}
    beat = replace(mine, **ahead, **stage, done=10, total=100, seconds_left=540.0)
    (tmp_path / "run" / "status").mkdir(parents=True)
    (tmp_path / "run" / "status" / "me.json").write_text(json.dumps(asdict(beat)))
    RunDirectory(tmp_path / "run").facts.write_text('{"format": 1}')
    status = read_status(RunDirectory(tmp_path / "run"), now=at)
    assert [stage.left for stage in status.stages] == [540, 600] and status.stages[1].ends == at + 1140
    (row, _) = stage_rows(status)
    assert row.cells[-1] == clock(at + 540, at)


def test_a_training_that_began_before_the_clock_went_back_is_not_expected_to_take_an_hour_longer(
    tmp_path: Path,
) -> None:
    """Its steps are not counted yet, another fold of it took a minute."""
    at, run = 1_800_000_000.0, RunDirectory(tmp_path / "run")
    beat = replace(
        Heartbeat(run.root, command="fit", device="cpu").beat(),
        began=at + HOUR,
        stage_began=at + HOUR,
        stage="train/unet/fold1",
        stages=("train/unet/fold0", "train/unet/fold1"),
    )
    (run.root / "status").mkdir(parents=True)
    (run.root / "status" / "me.json").write_text(json.dumps(asdict(beat)))
    run.marker("train/unet/fold0").parent.mkdir(parents=True)
    run.marker("train/unet/fold0").write_text('{"files": [], "seconds": 60}')
    assert read_status(run, now=at).left == 60


def test_a_process_whose_clock_was_set_back_is_shown_at_work(said: Beat, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    beats, problems = read_beats(kept)
    assert len(beats) == 1 and not problems and state_of(beats[0], said.sign) == "working"
    RunDirectory(kept).facts.write_text('{"format": 1}')
    status = read_status(RunDirectory(kept), now=said.sign)
    assert status.state == "running"
    texts = [headline(status), *remarks(status), *(cell for row in stage_rows(status) for cell in row.cells)]
    texts += [row.detail for row in stage_rows(status)]
    assert not [text for text in texts if "-1" in text or "no sign" in text], "no time that is negative"


def test_a_lock_from_the_future_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(
        '{"pid": 1, "host": "far", "since": "2999-01-01T00:00:00+00:00", "command": "maskloom fit"}'
    )
    with held(tmp_path):
        assert (tmp_path / LOCK).is_file()
    assert not (tmp_path / LOCK).exists()
