"""A finished run, one bit flipped in every kind of file: all are named, none is used, and ``fit`` makes them anew."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import maskloom
from maskloom import pipeline
from maskloom.api import load_bundle, verify
from maskloom.errors import UserError
from maskloom.files import read_json, write_json
from maskloom.integrity import Damaged
from small import SMALL
from test_cli import run as command
from test_end_to_end import Heard
from test_integrity import flip
from test_run_lock import HOLD

KINDS = {
    "data/survey.json": "survey",
    "members/unet/fold0/log.jsonl": "train/unet/fold0",
    "oof/unet/scores.json": "oof/unet",
    "oof/unet/maps/*.map": "oof/unet",
    "oof/unet/counts/*.json": "oof/unet",
    "ensemble/ensemble.json": "ensemble",
    "ensemble/counts.json": "ensemble",
    "predictions/masks/*.png": "predict",
    "submission.csv.gz": "submit",
    "report.html": "report",
}
"""Files of each kind that no training makes, and their stages."""
OF_THE_RUN = ("run.json", "data/source.json", "ensemble/decided.json", "recipe.yaml")
TRAINED = ("last", "best")


def first(run: Path, pattern: str) -> Path:
    return min(run.glob(pattern))


def names(paths: list[Path], run: Path) -> set[str]:
    return {path.relative_to(run).as_posix() for path in paths}


def digests(run: Path) -> dict[str, str]:
    """Returns the checksums of what a run gives, but for what tells times."""
    kinds = ("members/**/*.safetensors", "oof/**/*.*", "ensemble/*", "predictions/**/*.*", "submission*", "data/sur*")
    paths = {path for kind in kinds for path in run.glob(kind) if path.is_file() and path.name != "attempt.json"}
    return {
        path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.name != "checkpoint.safetensors"  # which tells seconds
    }


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[int]:
    """Yields the number of a process that holds the folder; it is killed at the end."""
    arguments = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process.pid
        finally:
            process.kill()


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def test_a_finished_run_is_sound(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = verify(finished_run)
    files = {name for stage in found.stages.values() for name in stage}
    kept = {path.relative_to(finished_run).as_posix() for path in finished_run.rglob("*") if path.is_file()}
    assert {name for name in kept - files if name.split("/")[0] != "stages"} <= {
        name for name in kept if name.startswith((".", "status"))
    }
    others = {"damaged": 0, "missing": 0, "unverified": 0, "unfinished": 0}
    assert found.is_sound and found.counts() == {"sound": len(files), **others}
    assert command("verify", finished_run, monkeypatch=monkeypatch) == 0
    assert f"{len(files)} sound" in capsys.readouterr().out.splitlines()[-1]


def test_every_flipped_bit_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundles = [f"members/unet/fold1/{which}.safetensors" for which in TRAINED]
    rows = ["predictions/rows/000000.csv", "data/near_duplicates.json", "folds.csv"]
    files = [first(run, pattern) for pattern in (*KINDS, *bundles, *rows, *OF_THE_RUN)]
    flip(files[0], quietly=True)
    assert names([run / name for name in verify(run).bad], run) == names(files[:1], run)
    for file in files[1:]:
        flip(file, quietly=True)
    gone = sorted((run / "oof/unet/maps").glob("*.map"))[-1]
    gone.unlink()
    found = verify(run)
    # Nothing can be said of a recipe whose checksum is itself damaged.
    expected = dict.fromkeys(names(files, run) - {"recipe.yaml"}, "damaged")
    assert found.bad == expected | {gone.relative_to(run).as_posix(): "missing"}
    assert found.stages["oof/unet"][gone.relative_to(run).as_posix()] == "missing"
    assert found.to_json()["damaged"] == [name for name, state in found.bad.items() if state == "damaged"]
    text = found.table()
    assert all(f": {name}" in text for name in found.bad) and "start `fit` with this run again" in text
    assert command("verify", run, monkeypatch=monkeypatch) == 1


def test_a_damaged_marker_or_ledger_is_named(run: Path) -> None:
    for file in (run / "stages/survey.json", run / "stages/oof/unet.sums"):
        flip(file, bit=0)
    assert set(verify(run).bad) == {"stages/survey.json", "stages/oof/unet.sums"}


def test_what_an_unfinished_stage_has_done_is_looked_at(run: Path) -> None:
    """A map that the stage's ledger knows, and what carries its checksum itself."""
    for name in ("oof/unet", "train/unet/fold1"):
        (run / f"stages/{name}.json").unlink()
    (run / "stages/train/unet/fold1.sums").unlink()  # as before its first bundle is finished
    (run / "stages/oof/.partial-ab12.sums").write_text("of a killed process")
    found = verify(run)
    assert found.is_sound and found.unfinished == ("oof/unet", "train/unet/fold1")
    log = "members/unet/fold1/log.jsonl"
    assert found.stages["train/unet/fold1"][log] == "unfinished", "it has no checksum yet"
    remarks = [line for line in found.table().splitlines() if "; not finished, looked at" in line]
    assert [line.split()[0] for line in remarks] == found.to_json()["unfinished_stages"] == list(found.unfinished)
    files = [first(run, "oof/unet/maps/*.map"), run / "oof/unet/attempt.json"]
    files += [run / "members/unet/fold1" / name for name in ("checkpoint.safetensors", "best.safetensors")]
    for file in files:
        flip(file, quietly=True)
    assert verify(run).bad == dict.fromkeys(names(files, run), "damaged")
    assert "start `fit`" in verify(run).table() and "delete them" not in verify(run).table()


def test_a_stage_that_left_only_files_is_unfinished(run: Path) -> None:
    """Killed before its ledger was written, or that is gone; a damaged line of one that is there says nothing."""
    for name in ("survey.json", "survey.sums", "folds.json"):
        (run / "stages" / name).unlink()
    flip(run / "stages/folds.sums", quietly=True)
    found = verify(run)
    assert found.is_sound and found.unfinished == ("folds", "survey")
    assert found.stages["survey"] == {"data/near_duplicates.json": "unfinished", "data/survey.json": "unfinished"}
    assert found.stages["folds"] == {"folds.csv": "unfinished"}


def test_what_stages_leave_beside_their_results_is_looked_at(run: Path) -> None:
    fold = run / "members/unet/fold0"
    (fold / "epochs").mkdir()
    shutil.copyfile(fold / "last.safetensors", fold / "epochs/0001.safetensors")
    (fold / "notes.safetensors").write_text("no file of the run's")
    assert verify(run).is_sound
    files = [fold / "epochs/0001.safetensors", fold / "checkpoint.safetensors", run / "oof/unet/attempt.json"]
    for file in files:
        flip(file, quietly=True)
    found = verify(run)
    assert found.bad == dict.fromkeys(names(files, run), "damaged") and not found.unfinished
    assert "delete them: oof/unet/attempt.json, members/unet/fold0/checkpoint.safetensors, " in found.table()
    assert "start `fit`" not in found.table(), "it would not make them anew"
    for file in files:
        file.unlink()
    assert verify(run).is_sound


def test_a_recipe_and_a_source_that_are_gone_are_missing(run: Path) -> None:
    gone = ["recipe.yaml", "data/source.json"]
    for name in gone:
        (run / name).unlink()
    assert verify(run).bad == dict.fromkeys(gone, "missing")
    shutil.rmtree(run / "stages")
    assert not verify(run).bad.keys() & set(gone), "nothing was made with them yet"


def test_what_is_no_run_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("verify", tmp_path, monkeypatch=monkeypatch) == 2
    assert "expected a run folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pattern", "asks"),
    [
        ("recipe.yaml", "predict"),
        ("run.json", "predict"),
        ("ensemble/decided.json", "predict"),
        ("ensemble/ensemble.json", "predict"),
        ("members/unet/fold1/last.safetensors", "predict"),
        ("ensemble/ensemble.json", "evaluate"),
        ("ensemble/images.csv", "report"),
        ("members/unet/fold0/log.jsonl", "report"),
        ("oof/unet/maps/*.map", "report"),
        ("folds.csv", "compare"),
        ("ensemble/counts.json", "compare"),
        ("members/unet/fold1/best.safetensors", "load_bundle"),
    ],
)
def test_nothing_damaged_is_used(finished_run: Path, studio: Path, run: Path, pattern: str, asks: str) -> None:
    files = list(run.glob(pattern))
    for file in files:  # of the maps the report reads some
        flip(file, quietly=True)

    def ask() -> object:
        match asks:
            case "predict":
                return maskloom.open_run(run, device="cpu").predict(studio / "test", out=run.parent / "out", to="png")
            case "evaluate":
                return maskloom.open_run(run).evaluate()
            case "report":
                return maskloom.open_run(run).report()
            case "compare":
                return maskloom.compare(finished_run, run)
        return load_bundle(files[0])

    with pytest.raises(Damaged) as refused:
        ask()
    assert refused.value.path in files and "start `fit` with this run again" in str(refused.value)
    assert not list((run.parent / "out").glob("*.png"))


def test_fit_makes_anew_what_is_damaged_and_the_results_are_the_same(
    finished_run: Path, studio: Path, run: Path
) -> None:
    """Some show by their time of change, some only when they are read."""
    loud = [first(run, pattern) for pattern in (*KINDS, *OF_THE_RUN) if pattern != "report.html"]
    quiet = [sorted((run / "oof/unet/maps").glob("*.map"))[-1], run / "predictions/rows/000000.csv"]
    for file in loud:
        flip(file)
    for file in quiet:
        flip(file, quietly=True)
    heard = Heard()
    maskloom.fit("default", studio, run=run, settings=SMALL, device="cpu", workers=0, progress=heard)
    expected = names([*loud, *quiet], run) - {"recipe.yaml"}  # of which nothing can be said
    assert {note.rpartition(": ")[2] for note in heard.notes if note.startswith("damaged")} == expected
    assert "train/unet/fold1" not in heard.ran and "folds" not in heard.ran
    assert digests(run) == digests(finished_run) and verify(run).is_sound


def test_a_damaged_network_is_trained_again(finished_run: Path, studio: Path, run: Path) -> None:
    flip(run / "members/unet/fold1/last.safetensors")
    heard = Heard()
    maskloom.fit("default", studio, run=run, settings=SMALL, device="cpu", workers=0, progress=heard)
    assert heard.ran == ["train/unet/fold1", "report"], "the same bytes, so nothing follows"
    assert digests(run) == digests(finished_run) and verify(run).is_sound


def test_an_edited_fold_table_is_taken_as_it_is_and_said(
    run: Path, studio: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = run / "folds.csv"
    head, *rows = table.read_text().splitlines()
    table.write_text("\n".join([head, *reversed(rows)]) + "\n")
    assert verify(run).bad == {"folds.csv": "damaged"}
    with pytest.raises(Damaged, match=r"folds\.csv"):
        maskloom.open_run(run).report()
    heard = Heard()
    monkeypatch.setattr(pipeline, "check_tree", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))  # after the folds
    with pytest.raises(KeyboardInterrupt):
        maskloom.fit("default", studio, run=run, settings=SMALL, device="cpu", workers=0, progress=heard)
    assert "edited since it was made, and taken as it is: folds.csv" in heard.notes and "folds" in heard.cached
    assert verify(run).is_sound


def test_the_second_fit_is_told_who_works_on_the_run(
    run: Path, studio: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digests(run)
    with held_elsewhere(run) as pid:
        fit = ("fit", "default", "--data", studio, "--run", run, "--device", "cpu")
        assert command(*fit, monkeypatch=monkeypatch) == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert told.startswith("error: ") and f"process {pid} on " in told and f"(kill {pid})" in told
        assert command("verify", run, monkeypatch=monkeypatch) == 0
        assert f"process {pid} on " in capsys.readouterr().err
    assert digests(run) == before


def test_the_second_prediction_into_a_folder_is_told_who_is_at_it(run: Path, studio: Path, tmp_path: Path) -> None:
    opened = maskloom.open_run(run, device="cpu")
    opened.predict(studio / "test", out=tmp_path / "out", to="png")
    with held_elsewhere(tmp_path / "out") as pid, pytest.raises(UserError, match=f"process {pid} on .* works in it"):
        opened.predict(studio / "test", out=tmp_path / "out", to="png")
    opened.predict(studio / "test", out=tmp_path / "out", to="png")


def test_a_run_of_an_earlier_version_is_unverified(run: Path) -> None:
    for marker in (run / "stages").rglob("*.json"):
        write_json(marker, {k: v for k, v in read_json(marker).items() if k not in ("checksum", "outcome")})
    for sums in (run / "stages").rglob("*.sums"):
        sums.unlink()
    found = verify(run)
    assert found.is_sound and found.counts()["unverified"] > 30 and "made by a version" in found.table()
    assert maskloom.open_run(run).evaluate()


def test_a_run_without_its_ensemble_is_unfinished_and_not_unverified(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (run / "ensemble/decided.json", *(run / "stages" / f"{name}.json" for name in ("ensemble", "report"))):
        path.unlink()
    assert command("verify", run, monkeypatch=monkeypatch) == 0
    *_, counts, explained = capsys.readouterr().out.splitlines()
    assert counts.endswith("sound, 1 unfinished") and explained.startswith(
        "unfinished: gets its checksum with its stage"
    )
    assert verify(run).to_json()["unfinished"] == ["recipe.yaml"] and verify(run).stages["run"]["run.json"] == "sound"
