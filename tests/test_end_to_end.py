"""The main job on tiny generated data: every stage, every output, resuming, and what a changed recipe repeats."""

from __future__ import annotations

import csv
import gzip
import json
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import maskloom
from maskloom import pipeline
from maskloom.data.image_io import write_png
from maskloom.encodings.rle import decode_runs
from maskloom.errors import BadFile, UserError
from small import OWN_NETWORK, SMALL


class Heard:
    """Remembers which stages ran and which were found finished."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.cached: list[str] = []
        self.notes: list[str] = []

    def stage(self, name: str, *, cached: bool) -> None:
        (self.cached if cached else self.ran).append(name)

    def advance(self, done: int, total: int, detail: str = "", *, seconds_left: float | None = None) -> None:
        assert 0 <= done <= total

    def note(self, text: str) -> None:
        self.notes.append(text)


def photos(studio: Path) -> Path:
    return studio / "test"


def test_a_run_holds_what_it_promises(finished_run: Path, studio: Path) -> None:
    scores = maskloom.open_run(finished_run).evaluate()
    assert scores["metric"] == "dice"
    assert len(scores["oof"]["folds"]) == 2
    assert scores["oof"]["mean"] == pytest.approx(np.mean(scores["oof"]["folds"]), abs=1e-6)
    assert set(scores["members"]) == {"unet"}
    assert {"mean", "std", "folds", "without_views"} <= set(scores["members"]["unet"])
    with gzip.open(finished_run / "submission.csv.gz", "rt") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["img", "rle_mask"]
    assert sorted(row[0] for row in rows[1:]) == sorted(path.name for path in photos(studio).glob("*.jpg"))
    page = (finished_run / "report.html").read_text(encoding="utf-8")
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page


def test_submission_and_masks_agree(finished_run: Path) -> None:
    with gzip.open(finished_run / "submission.csv.gz", "rt") as stream:
        for row in csv.DictReader(stream):
            mask = finished_run / "predictions" / "masks" / row["img"].replace(".jpg", ".png")
            expected = cv2.imread(str(mask), cv2.IMREAD_UNCHANGED) > 0
            decoded = decode_runs(row["rle_mask"], (96, 144), order="row", base=1)
            np.testing.assert_array_equal(decoded, expected)


def test_started_again_nothing_is_repeated_but_the_report(finished_run: Path, studio: Path, tmp_path: Path) -> None:
    run = tmp_path / "moved"
    shutil.copytree(finished_run, run)
    heard = Heard()
    maskloom.fit("default", studio, run=run, settings=SMALL, device="cpu", workers=0, progress=heard)
    assert heard.ran == ["report"]


def test_a_changed_view_repeats_predictions_but_no_training(finished_run: Path, studio: Path, tmp_path: Path) -> None:
    run = tmp_path / "changed"
    shutil.copytree(finished_run, run)
    heard = Heard()
    settings = [*SMALL, "inference.views=none"]
    maskloom.fit("default", studio, run=run, settings=settings, device="cpu", workers=0, progress=heard)
    assert "oof/unet" in heard.ran and "predict" in heard.ran
    assert {"survey", "folds", "train/unet/fold0", "train/unet/fold1"} <= set(heard.cached)


def test_another_photo_to_predict_repeats_no_training(finished_run: Path, studio: Path, tmp_path: Path) -> None:
    run, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(finished_run, run)
    shutil.copytree(studio, data)
    photo = next((data / "test").glob("*.jpg"))
    shutil.copy(photo, photo.with_name("0123456789ab_01.jpg"))
    heard = Heard()
    maskloom.fit("default", data, run=run, settings=SMALL, device="cpu", workers=0, progress=heard)
    assert heard.ran == ["predict", "submit", "report"]
    assert any("partial" in note for note in heard.notes)
    assert "0123456789ab_01" in (run / "data" / "source.json").read_text()
    assert (run / "submission.partial.csv.gz").is_file() and not (run / "submission.csv.gz").exists()


def test_folds_edited_in_the_run_are_checked(finished_run: Path, studio: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    head, first, *rest = (run / "folds.csv").read_text().splitlines()
    flipped = first[:-1] + ("1" if first.endswith("0") else "0")
    mistakes = {"both sides": [flipped, *rest], "found none for": rest, "is not in the data": [first, "x,x,0", *rest]}
    for message, lines in mistakes.items():
        (run / "folds.csv").write_text("\n".join([head, *lines]) + "\n")
        with pytest.raises(UserError, match=message):
            maskloom.fit("default", studio, run=run, settings=SMALL, device="cpu", workers=0)


def test_files_deleted_from_finished_stages_are_made_again(finished_run: Path, studio: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    lost = [next((run / "oof").rglob("*.map")), next((run / "predictions" / "masks").glob("*.png"))]
    kept = [path.read_bytes() for path in lost]
    for path in lost:
        path.unlink()
    heard = Heard()
    maskloom.fit("default", studio, run=run, settings=SMALL, device="cpu", workers=0, progress=heard)
    assert heard.ran == ["oof/unet", "predict", "report"]
    assert [path.read_bytes() for path in lost] == kept


def test_a_damaged_photo_to_predict_is_left_out_and_said(finished_run: Path, studio: Path, tmp_path: Path) -> None:
    run, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(finished_run, run)
    shutil.copytree(studio, data)
    photo = next(photos(data).glob("*.jpg"))
    photo.write_bytes(photo.read_bytes()[:-1500])
    options = {"run": run, "settings": SMALL, "device": "cpu", "workers": 0, "skip_bad": True}
    heard = [Heard(), Heard(), Heard()]
    for each in heard:
        if each is heard[-1]:
            (run / "predictions" / "left_out.json").unlink()
        maskloom.fit("default", data, progress=each, **options)  # type: ignore[arg-type]
    assert [each.ran for each in heard] == [["predict", "submit", "report"], ["report"], ["predict", "report"]]
    assert any("partial" in note and photo.name in note for note in heard[0].notes)
    with gzip.open(run / "submission.partial.csv.gz", "rt") as stream:
        assert photo.name not in stream.read()
    assert list(json.loads((run / "predictions" / "left_out.json").read_text())) == [photo.stem]
    assert photo.name in (run / "report.html").read_text(encoding="utf-8")


def test_photos_to_predict_of_another_kind_are_told_before_any_training(
    finished_run: Path, studio: Path, tmp_path: Path
) -> None:
    run, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(studio, data)
    for name, channels, dtype in (("deep_01", 3, np.uint16), ("grey_01", 1, np.uint8), ("dark_01", 1, np.uint16)):
        write_png(photos(data) / f"{name}.png", np.zeros((32, 32, channels), dtype))
    options = {"run": run, "settings": SMALL, "device": "cpu", "workers": 0}
    message = r"dark_01\.png: expected uint8 values.*, found uint16.*; and 1 more .*\(deep_01\.png; --skip-bad"
    with pytest.raises(BadFile, match=message):
        maskloom.fit("default", data, **options)  # type: ignore[arg-type]
    assert not (run / "members").exists()

    shutil.rmtree(run)
    shutil.copytree(finished_run, run)
    heard = Heard()
    maskloom.fit("default", data, progress=heard, skip_bad=True, **options)  # type: ignore[arg-type]
    said = re.compile(r"2 of \d+ images without masks will be left out: .*dark_01\.png")
    assert any(map(said.match, heard.notes))
    assert set(json.loads((run / "predictions" / "left_out.json").read_text())) == {"dark_01", "deep_01"}


def test_moved_data_and_run_still_predict(finished_run: Path, studio: Path, tmp_path: Path) -> None:
    run, images = tmp_path / "elsewhere", tmp_path / "photos"
    shutil.copytree(finished_run, run)
    shutil.copytree(photos(studio), images)
    done = maskloom.open_run(run, device="cpu").predict(images, out=tmp_path / "out", to="png")
    assert done.num_written == 3
    for path in (finished_run / "predictions" / "masks").glob("*.png"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_every_output_form_tells_the_same_masks(finished_run: Path, studio: Path, tmp_path: Path) -> None:
    run = maskloom.open_run(finished_run, device="cpu")
    threshold = run.evaluate()["thresholds"][0]
    for form in ("png", "prob", "rle", "coco"):
        run.predict(photos(studio), out=tmp_path / form, to=form)
    masks = {path.stem: cv2.imread(str(path), cv2.IMREAD_UNCHANGED) > 0 for path in (tmp_path / "png").glob("*.png")}
    for name, mask in masks.items():
        values = cv2.imread(str(tmp_path / "prob" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(values >= threshold, mask)
    with gzip.open(tmp_path / "rle" / "predictions.csv.gz", "rt") as stream:
        for row in csv.DictReader(stream):
            decoded = decode_runs(row["rle"], mask.shape, order="row", base=1)
            np.testing.assert_array_equal(decoded, masks[row["id"]])
    coco = json.loads((tmp_path / "coco" / "predictions.json").read_text())
    areas = dict.fromkeys((image["id"] for image in coco["images"]), 0)
    for annotation in coco["annotations"]:
        areas[annotation["image_id"]] += annotation["area"]
    for image in coco["images"]:
        assert areas[image["id"]] == masks[Path(image["file_name"]).stem].sum()


HEAPS = """
import ctypes, sys
import maskloom

run, photos, out, told = sys.argv[1:]
maskloom.open_run(run, device="cpu").predict(photos, out=out)
libc = ctypes.CDLL("libc.so.6")
libc.fopen.restype = ctypes.c_void_p
stream = ctypes.c_void_p(libc.fopen(told.encode(), b"w"))
libc.malloc_info(0, stream)
libc.fclose(stream)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc how it divided the memory")
def test_threads_of_a_prediction_share_one_heap(finished_run: Path, studio: Path, tmp_path: Path) -> None:
    """Or the largest memory grows with the number of photos, by what chance scatters over several heaps."""
    told = tmp_path / "heaps.xml"
    command = [sys.executable, "-c", HEAPS, str(finished_run), str(photos(studio)), str(tmp_path / "out"), str(told)]
    subprocess.run(command, check=True, timeout=300)
    assert told.read_text(encoding="utf-8").count("<heap nr=") == 1


def test_another_runs_predictions_are_not_mixed_in(finished_run: Path, studio: Path, tmp_path: Path) -> None:
    run = maskloom.open_run(finished_run, device="cpu")
    run.predict(photos(studio), out=tmp_path / "out", to="png")
    with pytest.raises(UserError, match="another run or format"):
        run.predict(photos(studio), out=tmp_path / "out", to="prob")


def test_a_run_whose_decisions_are_being_made_anew_does_not_predict(
    finished_run: Path, studio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    with monkeypatch.context() as killed:
        killed.setattr(pipeline, "fit_ensemble", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            maskloom.fit("default", studio, run=run, settings=[*SMALL, "metric=iou"], device="cpu", workers=0)
    with pytest.raises(UserError, match="found one without an ensemble; start `fit` again"):
        maskloom.open_run(run)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ('members.0.classes=["chair"]', "expected a multilabel task"),
        ("ensemble.weights=fitted_per_class", "expects a multilabel task, .* found a binary one; use fitted"),
    ],
)
def test_a_refused_recipe_leaves_the_run_as_it_was(
    finished_run: Path, studio: Path, tmp_path: Path, setting: str, says: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    recipe = (run / "recipe.yaml").read_bytes()
    with pytest.raises(UserError, match=says):
        settings = [*SMALL, setting]
        maskloom.fit("default", studio, run=run, settings=settings, device="cpu", workers=0)
    assert (run / "recipe.yaml").read_bytes() == recipe
    assert maskloom.open_run(run).evaluate() == maskloom.open_run(finished_run).evaluate()


def test_a_score_of_itself_is_one(studio: Path) -> None:
    result = maskloom.score(studio / "train_masks", studio / "train_masks").to_json()
    assert result["dice"] == 1


def test_two_members_get_fitted_weights(studio: Path, tmp_path: Path) -> None:
    """One has learnt from one image only: it weighs less, and together they score as well as the better one or more."""
    recipe = tmp_path / "two.yaml"
    recipe.write_text("base: default\nscale: smoke\nensemble: {weights: fitted}\n")
    from maskloom.api import plan

    longer = ["members.0.training.images_per_epoch=64", "members.0.training.epochs=2"]
    complete, _ = plan(recipe, studio, settings=[*OWN_NETWORK[1:], *longer], device="cpu")
    first = complete.members[0]
    hardly = first.training.model_copy(update={"images_per_epoch": 1, "epochs": 1})
    second = first.model_copy(update={"name": "hardly", "training": hardly})
    both = complete.model_copy(update={"members": (first, second)})
    run = maskloom.fit(both, studio, run=tmp_path / "run", device="cpu", workers=0)
    scores = run.evaluate()
    assert set(scores["members"]) == {"unet", "hardly"}
    assert sum(scores["weights"].values()) == pytest.approx(1)
    assert scores["weights"]["hardly"] < 0.2 < 0.8 < scores["weights"]["unet"]
    assert scores["oof"]["mean"] >= max(member["mean"] for member in scores["members"].values())
    assert scores["oof"]["mean"] > scores["half"]["mean"]  # which is what equal weights give
