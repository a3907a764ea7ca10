"""A clock that is set back: nothing that was made is lost for it, nothing is used wrongly, and nobody waits for it."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

import maskloom
from maskloom import heartbeat
from maskloom.heartbeat import Beat, Heartbeat, read_beats, state_of
from maskloom.integrity import Ledger
from maskloom.outputs.status_rows import headline, remarks, stage_rows
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
    clock = Jumping()
    beating = Heartbeat(
        tmp_path / "run", command="fit", device="cpu", clock=lambda: clock.wall, ticks=lambda: clock.ticks
    )
    with beating:
        beating.stage("oof/unet", cached=False)
        for done in range(41):
            beating.advance(done, 100)
            clock.work(1.0)
            if done == 20:
                clock.set_back()
        beat = beating.beat()
        deadline = time.monotonic() + 10
        while not list((tmp_path / "run" / "status").glob("[!.]*.json")) and time.monotonic() < deadline:
            time.sleep(0.001)
        shutil.copytree(tmp_path / "run", tmp_path / "kept")
    return beat


def test_rate_and_rest_follow_what_ticks(said: Beat) -> None:
    assert said.rate == pytest.approx(1.0) and said.seconds_left == pytest.approx(60.0)
    assert said.began > said.sign, "it began in what is now the future"


def test_a_process_that_began_in_the_future_is_shown_at_work(said: Beat, tmp_path: Path) -> None:
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
