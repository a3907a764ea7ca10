"""The systems as a user runs them: one end to end on generated cars, and the command that runs them all."""

from __future__ import annotations

import csv
import gzip
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import maskloom
from maskloom.data.studio import write_studio

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "systems.py"


def test_a_system_runs_from_photos_to_submission(tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    write_studio(data, objects=5, views=1, size=(96, 144), seed=1, test_objects=1)
    finished = maskloom.fit("carvana_11th", data, run=run, settings=["scale=smoke"], device="cpu", workers=0)
    scores = finished.evaluate()
    assert set(scores["members"]) == {"outline", "edge"} and scores["thresholds"] == [128]
    assert len(list((run / "stages" / "train").rglob("fold*.json"))) == 10
    with gzip.open(run / "submission.csv.gz", "rt") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["img", "rle_mask"]
    assert [row[0] for row in rows[1:]] == [path.name for path in (data / "test").iterdir()]
    assert (run / "report.html").is_file()


@pytest.fixture
def systems(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    if not SCRIPT.is_file():
        pytest.skip("the benchmarks are no part of the installed package")
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    module = ModuleType("systems")
    exec(compile(SCRIPT.read_text(encoding="utf-8"), str(SCRIPT), "exec"), module.__dict__)
    return module


def test_a_line_for_each_system_and_one_that_fails_stops_no_other(
    systems: ModuleType,
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The processes are replaced: one leaves a finished run, the other says why it did not."""
    commands: list[list[str]] = []

    def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(list(command))
        if "carvana_1st" in command:
            return subprocess.CompletedProcess(command, 1, "> folds", "a note\nerror: expected 7 cars, found 4\n")
        shutil.copytree(finished_run, command[command.index("--run") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(systems.subprocess, "run", run)
    words = ["--data", "cars", "--out", str(tmp_path), "--cars", "9", "carvana_1st", "carvana_11th"]
    assert systems.main(words) == 1
    failed, ran, total = capsys.readouterr().out.splitlines()
    assert failed.startswith("carvana_1st") and failed.endswith("FAILED  error: expected 7 cars, found 4")
    assert ran.startswith("carvana_11th") and "2 networks" in ran and "dice 0." in ran
    assert ran.split()[-2:] == [str(tmp_path / "carvana_11th" / name) for name in ("submission.csv.gz", "report.html")]
    assert total.startswith("1 of 2 systems")
    for command in commands:
        assert command[command.index("--data") + 1] == "cars"
        assert {"scale=smoke", "data.limit=9"} <= set(command)
    shutil.rmtree(tmp_path / "carvana_11th")
    assert systems.main([*words[:-2], "carvana_11th"]) == 0


def test_every_system_runs_where_none_is_named(systems: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    monkeypatch.setattr(systems, "ran", lambda name, data, run, cars: not names.append(name))
    assert systems.main(["--data", "cars"]) == 0
    assert names == [f"carvana_{place}" for place in ("1st", "3rd", "4th", "6th", "7th", "10th", "11th", "15th")]
