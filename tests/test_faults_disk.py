"""A disk that is full, or can no longer be written, at any stage: one line, nothing half, and the run goes on later."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import maskloom
from maskloom import files
from maskloom.api import convert, verify
from maskloom.data.image_io import write_png
from maskloom.errors import UserError
from maskloom.files import TEMPORARY_PREFIX
from maskloom.progress import Silent
from small import SMALL
from test_damaged_run import digests

FULL, READ_ONLY = errno.ENOSPC, errno.EROFS
WORDS = {FULL: "the disk is full; free some space", READ_ONLY: "cannot be written"}


@contextmanager
def failing(error: int, monkeypatch: pytest.MonkeyPatch, *, after: int = 0, when: Callable[[], bool]) -> Iterator[None]:
    """Refuses every new file after so many, from the moment on that ``when`` says."""
    make, calls = files.new_temporary, 0

    def refused(path: Path) -> Path:
        nonlocal calls
        calls += when()
        if calls > after:
            raise OSError(error, os.strerror(error), str(path.parent))
        return make(path)

    with monkeypatch.context() as limited:
        limited.setattr(files, "new_temporary", refused)
        yield


class Stages(Silent):
    """Tells which stage is under way."""

    now = ""

    def stage(self, name: str, *, cached: bool) -> None:
        self.now = name


@pytest.mark.parametrize(
    ("stage", "error", "after"),
    [
        *((stage, FULL, 0) for stage in ("survey", "folds", "oof/unet", "ensemble", "submit", "report")),
        *((stage, FULL, 1) for stage in ("survey", "predict", "report")),
        *((stage, READ_ONLY, 1) for stage in ("survey", "ensemble", "report")),
    ],
)
def test_a_stage_without_a_disk_is_one_line_and_is_done_later(
    finished_run: Path,
    studio: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    error: int,
    after: int,
) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run", copy_function=linked))
    (run / "stages" / f"{stage}.json").unlink()
    stages = Stages()

    def fit() -> None:
        maskloom.fit("default", studio, run=run, settings=SMALL, device="cpu", workers=0, progress=stages)

    with (
        failing(error, monkeypatch, after=after, when=lambda: stages.now == stage),
        pytest.raises(UserError, match=WORDS[error]) as told,
    ):
        fit()
    assert str(run) in str(told.value) and "\n" not in str(told.value)
    assert not list(run.rglob(f"{TEMPORARY_PREFIX}*"))
    if stage == "report" and (error, after) == (FULL, 0):
        fit()
        assert digests(run) == digests(finished_run) and verify(run).is_sound


def linked(source: str, target: str) -> str:
    """Copies, but for networks: a run never writes into a file."""
    if source.endswith(".safetensors"):
        os.link(source, target)
        return target
    return str(shutil.copy2(source, target))


@pytest.mark.parametrize("name", ["masks", "table.csv.gz", "coco.json", "shapes.geojson", "shapes.gpkg", "layers"])
@pytest.mark.parametrize("error", [FULL, READ_ONLY])
def test_a_conversion_without_a_disk_leaves_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: int
) -> None:
    if name.endswith(".gpkg"):
        pytest.importorskip("pyogrio")
    mask = np.zeros((8, 9), np.uint8)
    mask[2:5, 3:7] = 1
    for each in "ab":
        write_png(tmp_path / "source" / f"{each}.png", mask)
    out, to = tmp_path / name, "layers" if name == "layers" else None
    is_folder = "." not in name
    after = 2 if is_folder else 0
    with failing(error, monkeypatch, after=after, when=lambda: True), pytest.raises(UserError, match=WORDS[error]):
        convert(tmp_path / "source", out, to=to)
    assert not list(tmp_path.rglob(f"{TEMPORARY_PREFIX}*")) and (is_folder or not out.exists())
    convert(tmp_path / "source", out, to=to)
    convert(tmp_path / "source", tmp_path / f"whole-{name}", to=to)
    found, whole = (
        {path.relative_to(top).as_posix(): path.read_bytes() for path in top.rglob("*.png")} if is_folder else {}
        for top in (out, tmp_path / f"whole-{name}")
    )
    assert found == whole and bool(found) == is_folder


@pytest.mark.parametrize("to", ["png", "prob", "rle", "coco"])
@pytest.mark.parametrize("error", [FULL, READ_ONLY])
def test_a_prediction_without_a_disk_leaves_nothing_half(
    finished_run: Path, studio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, error: int
) -> None:
    opened, out = maskloom.open_run(finished_run, device="cpu"), tmp_path / "out"
    monkeypatch.setattr(type(opened), "_opened", Answers(), raising=False)
    with failing(error, monkeypatch, after=2, when=lambda: True), pytest.raises(UserError, match=WORDS[error]):
        opened.predict(studio / "test", out=out, to=to)
    assert not list(out.rglob(f"{TEMPORARY_PREFIX}*"))
    assert opened.predict(studio / "test", out=out, to=to).num_written == 3


class Answers:
    """In the place of the networks: what is brighter than one half."""

    def __get__(self, run: Any, kind: type) -> Any:
        from types import SimpleNamespace

        from maskloom.inference.merging import RESULT
        from maskloom.records import Task

        return SimpleNamespace(
            channels=3,
            takes_grey=True,
            decision=run.folder.decision(),
            task=Task(kind="binary", classes=("car",)),
            predictor=lambda image: {RESULT: image[None, :, :, 0]},
            labels=lambda maps: (maps[RESULT][0] > 127).astype(np.uint8),
        )


def test_a_run_on_a_disk_that_is_only_read_can_be_used(
    finished_run: Path, studio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scored, compared and checked; what is written lies elsewhere."""
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")}
    make = files.new_temporary

    def refused(path: Path) -> Path:
        if path.is_relative_to(finished_run):
            raise OSError(READ_ONLY, os.strerror(READ_ONLY), str(path.parent))
        return make(path)

    monkeypatch.setattr(files, "new_temporary", refused)
    opened = maskloom.open_run(finished_run, device="cpu")
    assert opened.evaluate() and verify(finished_run).is_sound
    assert maskloom.compare(finished_run, finished_run).to_json()
    assert {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")} == before
