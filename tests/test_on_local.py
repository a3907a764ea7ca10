"""``--on local``: the same bytes as in one process, and nothing lost when a worker, or all, are stopped."""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest

import maskloom
from executor_tasks import eventually
from maskloom.errors import UserError
from maskloom.heartbeat import process_mark
from maskloom.progress import Silent
from maskloom.rasters.writing import write_geotiff
from maskloom.run_directory import RunDirectory
from small import SMALL

COMPUTED = ("members/*/fold*/*.safetensors", "oof/**/*.map", "oof/**/scores.json", "ensemble/*.json")


def computed(run: Path) -> dict[str, str]:
    """Returns the checksums of all that a run computes, but for what tells how it went."""
    files = {
        path for pattern in (*COMPUTED, "predictions/**/*", "submission*", "folds.csv") for path in run.glob(pattern)
    }
    return {
        path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.is_file() and path.name not in ("checkpoint.safetensors", "attempt.json")
    }


def outcomes(run: Path) -> dict[str, str]:
    """Returns what every finished stage came to."""
    folder = RunDirectory(run)
    return {stage: str(folder.read_marker(stage)["outcome"]) for stage in folder.stages() if stage != "report"}


def written(out: Path) -> dict[str, bytes]:
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(out).parts)
    }


def fit_on(studio: Path, run: Path, processes: int, progress: Any = None) -> None:
    maskloom.fit(
        "default", studio, run=run, settings=SMALL, device="cpu", workers=0, on="local", processes=processes,
        progress=progress,
    )  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for number in range(5):
        cv2.imwrite(str(folder / f"{number}.png"), noise.integers(0, 255, (40, 56, 3), np.uint8))
    return folder


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_has_the_same_bytes(studio: Path, finished_run: Path, tmp_path: Path, processes: int) -> None:
    fit_on(studio, tmp_path / "run", processes)
    assert computed(tmp_path / "run") == computed(finished_run)
    assert outcomes(tmp_path / "run") == outcomes(finished_run)
    assert len(computed(finished_run)) > 20
    assert not list((tmp_path / "run").rglob(".partial-*")) and not (tmp_path / "run" / "status").exists()


@pytest.mark.parametrize("to", ["png", "prob", "rle", "coco"])
def test_images_have_the_same_bytes(finished_run: Path, photos: Path, tmp_path: Path, to: str) -> None:
    run = maskloom.open_run(finished_run, device="cpu")
    alone = run.predict(photos, out=tmp_path / "alone", to=to)
    shared = run.predict(photos, out=tmp_path / "shared", to=to, on="local", processes=2)
    assert alone.num_written == shared.num_written == 5
    assert written(tmp_path / "alone") == written(tmp_path / "shared") != {}
    again = run.predict(photos, out=tmp_path / "shared", to=to, on="local", processes=2)
    assert again.num_written == 5 and written(tmp_path / "alone") == written(tmp_path / "shared")


@pytest.mark.parametrize("to", ["geotiff", "geojson"])
def test_rasters_have_the_same_bytes(finished_run: Path, tmp_path: Path, to: str) -> None:
    noise = np.random.default_rng(1)
    for number, size in enumerate(((700, 600), (96, 128))):
        write_geotiff(tmp_path / "scenes" / f"{number}.tif", noise.integers(0, 255, (3, *size), np.uint8), None)
    run = maskloom.open_run(finished_run, device="cpu")
    options: dict[str, Any] = {"to": to, "probabilities": True}
    assert run.predict(tmp_path / "scenes", out=tmp_path / "alone", **options).num_written == 2
    shared = run.predict(tmp_path / "scenes", out=tmp_path / "shared", on="local", processes=2, **options)
    assert shared.num_written == 2
    assert written(tmp_path / "alone") == written(tmp_path / "shared") != {}
    assert not (tmp_path / "shared" / ".blocks").exists()


def test_damaged_images_are_told_as_in_one_process(finished_run: Path, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    whole = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(whole[: len(whole) // 2])
    run = maskloom.open_run(finished_run, device="cpu")
    lines = []
    for name, options in (("alone", {}), ("shared", {"on": "local", "processes": 1})):
        with pytest.raises(UserError) as told:
            run.predict(folder, out=tmp_path / name, to="png", **options)
        lines.append(str(told.value))
    assert lines[0] == lines[1] and "3.png" in lines[0]
    for to in ("png", "rle"):
        done = run.predict(folder, out=tmp_path / to, to=to, skip_bad=True, on="local", processes=2)
        assert done.num_written == 4 and [bad.path.name for bad in done.bad] == ["3.png"]


def workers_of(driver: psutil.Process) -> list[psutil.Process]:
    """Returns the processes to which a driver hands tasks."""
    return [child for child in driver.children() if "maskloom.executors.worker" in child.cmdline()]


class Killer(Silent):
    """Kills a worker as soon as one tells how far it is in a training."""

    def __init__(self) -> None:
        self._stage = ""
        self.killed: int | None = None
        self.notes: list[str] = []

    def stage(self, name: str, *, cached: bool) -> None:
        self._stage = name

    def note(self, text: str) -> None:
        self.notes.append(text)

    def advance(self, done: int, total: int, detail: str = "", *, seconds_left: float | None = None) -> None:
        if self.killed is None and self._stage.startswith("train/"):
            worker = workers_of(psutil.Process())[0]
            worker.kill()
            self.killed = worker.pid


def test_a_killed_worker_changes_nothing(studio: Path, finished_run: Path, tmp_path: Path) -> None:
    killer = Killer()
    fit_on(studio, tmp_path / "run", 1, killer)
    assert killer.killed is not None and any("was killed (exit code -9" in note for note in killer.notes)
    assert computed(tmp_path / "run") == computed(finished_run)


INTERRUPTIBLE = """
import signal
from maskloom.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""
"""The command line, also where the tests run in the background of a shell, which lets that ignore Ctrl-C."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_goes_on_in_one_process(
    studio: Path, finished_run: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    command = ["fit", "default", "--data", studio, "--run", run, "--device", "cpu", "--workers", "0", "--on", "local"]
    command += ["--processes", "2", *(word for setting in SMALL for word in ("--set", setting))]
    driver = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *map(str, command)], stderr=subprocess.PIPE, text=True
    )
    assert eventually(lambda: list(run.glob("members/*/fold*/log.jsonl")) or driver.poll() is not None, 300)
    workers = workers_of(psutil.Process(driver.pid))
    assert workers, "no worker was seen"
    driver.send_signal(number)
    _, errors = driver.communicate(timeout=120)
    assert driver.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number], errors
    assert "Traceback" not in errors
    is_over = eventually(lambda: all(process_mark(worker.pid) is None for worker in workers))
    assert is_over, "a worker outlived its driver"
    maskloom.fit("default", studio, run=run, settings=SMALL, device="cpu", workers=0)
    assert computed(run) == computed(finished_run)
