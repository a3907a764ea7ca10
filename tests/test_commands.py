"""Commands from end to end: what they print, what they leave, and that a hostile file or a full disk leaves nothing."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch

from maskloom import api
from maskloom.data.studio import write_studio
from maskloom.run_directory import RunDirectory
from maskloom.run_lock import held
from small import OWN_NETWORK, SMALL
from test_cli import run


def settings_of(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def only_error(capsys: pytest.CaptureFixture[str]) -> str:
    """Returns the one line of the error; before it may stand what a stage noted."""
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert errors.splitlines()[-1] == line
    return line


def test_inspect_prints_a_table_and_writes_a_page(
    studio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    command = ["inspect", studio, "--out", page, *settings_of("data.group=view")]
    assert run(*command, monkeypatch=monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "12 with masks, 3 without" in printed and f"page with pictures: {page}" in printed
    assert re.search(r"groups +3\b", printed), printed  # by the view, not by the car
    assert "<html" in page.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert run("inspect", studio, *settings_of("data.limit=1"), monkeypatch=monkeypatch) == 0
    assert (tmp_path / "inspection.html").is_file()


def test_where_no_page_can_be_written_nothing_is_inspected(
    studio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("maskloom.data.statistics.survey", lambda *_, **__: pytest.fail("the data were looked at"))
    for page, said in ((tmp_path, "found a folder; give "), (tmp_path / "file" / "page.html", "cannot be written")):
        assert run("inspect", studio, "--out", page, monkeypatch=monkeypatch) == 2
        line = only_error(capsys)
        assert line.startswith(f"error: {page}: ") and said in line


def test_inspect_ends_with_the_number_of_damaged_files(
    studio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, page = tmp_path / "data", tmp_path / "page.html"
    shutil.copytree(studio, data)
    for photo in sorted((data / "train").glob("*.jpg"))[:2]:
        photo.write_bytes(photo.read_bytes()[:-1500])
    assert run("inspect", data, "--out", page, monkeypatch=monkeypatch) == 0
    *_, damage, place = capsys.readouterr().out.splitlines()
    assert damage == "2 damaged or mismatched files: mend or remove them, or `fit` with --skip-bad"
    assert place == f"page with pictures: {page}"


def test_report_writes_the_page_again(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished_run, copy)
    page = copy / "report.html"
    page.write_text("spoilt")
    with held(copy):  # as a `fit` does, whose ledger and marker would be written, too
        assert run("report", copy, monkeypatch=monkeypatch) == 2
    told = capsys.readouterr().err
    assert f"process {os.getpid()} on " in told and "works in it" in told and page.read_text() == "spoilt"
    assert run("report", copy, monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out.strip() == str(page)
    assert "<html" in page.read_text(encoding="utf-8")


def test_a_run_of_other_images_is_not_undone(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, other = tmp_path / "run", tmp_path / "data"
    shutil.copytree(finished_run, copy)
    write_studio(other, objects=3, views=3, size=(96, 144), seed=2)
    before = (copy / "run.json").read_bytes()
    assert run("fit", "default", "--data", other, "--run", copy, monkeypatch=monkeypatch) == 2
    error = capsys.readouterr().err
    assert "made from the images in" in error and "choose another folder for this run" in " ".join(error.split())
    assert (copy / "run.json").read_bytes() == before and RunDirectory(copy).decision()


def test_recipes_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("recipes", monkeypatch=monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(api.builders())
    assert all(len(line.split()) > 3 for line in lines), "with a line on each"


def test_a_run_without_a_name_gets_a_dated_one(
    studio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("maskloom.fitting.run_pipeline", lambda *_: None)
    command = ["fit", "default", "--data", studio, "--device", "cpu", *settings_of("scale=smoke")]
    assert run(*command, monkeypatch=monkeypatch) == 2  # since nothing was done
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"default-\d{8}-\d{6}", folder.name) and (folder / "run.json").is_file()
    assert f"runs/{folder.name}" in capsys.readouterr().err


def test_the_demo_draws_its_data_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {"objects": 2, "test_objects": 1, "views": 2, "size": (96, 144), "seed": 0}
    assert few.keys() == api.DEMO_STUDIO.keys()
    monkeypatch.setattr(api, "DEMO_STUDIO", few)
    monkeypatch.setattr(api, "DEMO_SETTINGS", tuple(OWN_NETWORK))
    out = tmp_path / "demo"
    assert run("demo", "--out", out, "--device", "cpu", monkeypatch=monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "mean Dice" in printed and f"report: {out / 'run' / 'report.html'}" in printed
    assert len(list((out / "data" / "train").glob("*.jpg"))) == 4
    assert (out / "run" / "submission.csv.gz").is_file() and (out / "run" / "report.html").is_file()


def test_the_demos_settings_are_settings(studio: Path) -> None:
    complete, _ = api.plan("default", studio, settings=api.DEMO_SETTINGS, device="cpu")
    assert complete.members[0].training.epochs == 8


class Hostile:
    """What makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def hostile_file(path: Path) -> Path:
    """Returns the folder that unpickling the file would make."""
    torch.save({"weight": torch.ones(1), "extra": Hostile(path.parent / "executed")}, path)
    return path.parent / "executed"


def test_a_pickle_among_a_runs_networks_is_refused(
    finished_run: Path, studio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    copy, out = tmp_path / "copy", tmp_path / "out"
    shutil.copytree(finished_run, copy)
    bundle = copy / "members" / "unet" / "fold0" / "last.safetensors"
    assert bundle.is_file()
    executed = hostile_file(bundle)
    assert run("predict", copy, studio / "test", "--out", out, "--to", "png", monkeypatch=monkeypatch) == 2
    assert "last.safetensors" in only_error(capsys)
    assert not executed.exists() and not list(out.rglob("*.png"))


def test_a_pickle_to_begin_with_is_refused(
    studio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = tmp_path / "model.pth", tmp_path / "run"
    executed = hostile_file(path)
    settings = [*SMALL, f"members.0.network.bundle={path}"]
    command = ["fit", "default", "--data", studio, "--run", folder, "--device", "cpu", "--workers", "0"]
    assert run(*command, *settings_of(*settings), monkeypatch=monkeypatch) == 2
    line = only_error(capsys)
    assert "model.pth" in line and "pickle" in line
    assert not executed.exists() and not list(folder.rglob("*.safetensors"))


@pytest.mark.parametrize("to", ["png", "coco"])
def test_a_disk_that_fills_up_leaves_no_half_prediction(
    finished_run: Path, studio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], to: str,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    command = ["predict", finished_run, studio / "test", "--out", out, "--to", to]

    def full_after(room: int) -> Callable[[int], None]:
        calls = count()

        def flush(_: int) -> None:
            if next(calls) >= room:
                raise OSError(errno.ENOSPC, "No space left on device")

        return flush

    for room in (2, 4):  # after the folder was marked, and while masks are written
        with monkeypatch.context() as limited:
            limited.setattr(os, "fsync", full_after(room))
            assert run(*command, monkeypatch=monkeypatch) == 2
        assert "the disk is full" in only_error(capsys)
        assert not list(out.rglob(".partial-*"))
        for path in out.glob("*.json"):
            json.loads(path.read_text())  # there and whole, if only the folder was not flushed
    assert run(*command, monkeypatch=monkeypatch) == 0
    whole = tmp_path / "whole"
    assert run(*command[:4], whole, *command[5:], monkeypatch=monkeypatch) == 0
    kept = sorted(path.name for path in whole.glob("[!.]*"))
    assert [Path(name).suffix for name in kept] == ([".png"] * 3 if to == "png" else [".json"])
    assert all((out / name).read_bytes() == (whole / name).read_bytes() for name in kept)
