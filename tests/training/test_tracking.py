from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from maskloom.errors import UserError
from maskloom.training.tracking import Log, Pace, TrainingProgress, read_log


def test_lines_are_kept_and_a_continued_log_begins_with_them(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = Log(path, [])
    log.add("start", step=0)
    log.add("epoch", epoch=1, loss=0.5, score=None)
    saved = list(log.events)
    log.add("epoch", epoch=2, loss=0.4, score=0.9)
    continued = Log(path, saved)
    continued.add("epoch", epoch=2, loss=0.4, score=0.9)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", "epoch", "epoch"]
    assert [line["epoch"] for line in read_log(path)] == [1, 2]
    assert continued.events == lines


def test_a_line_cut_by_a_crash_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "epoch", "epoch": 1}\n{"event": "ep')
    assert read_log(path) == [{"event": "epoch", "epoch": 1}]


def test_a_missing_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_log(tmp_path / "log.jsonl")


def test_progress_reads_well() -> None:
    progress = TrainingProgress(
        epoch=2, epochs=5, step=30, steps=100, loss=0.25, rate=12.34, eta=60, score=0.8, best=0.9
    )
    assert progress.detail == "epoch 2/5 · loss 0.2500 · score 0.8000 · best 0.9000 · 12.3 images/s"


def test_the_pace_is_images_per_second() -> None:
    pace = Pace(images=32, started=time.monotonic() - 8)
    assert pace.rate == pytest.approx(4, rel=0.05)
