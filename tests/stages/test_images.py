"""Which images are predicted, and that what an earlier attempt left is taken up only where it still fits."""

from __future__ import annotations

import csv
import gzip
import os
import shutil
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskloom.data.image_io import read_image, write_png
from maskloom.data.mask_coding import MaskCoding
from maskloom.errors import BadFile, UserError
from maskloom.files import OWNER, write_json
from maskloom.inference.merging import RESULT
from maskloom.integrity import write_sealed
from maskloom.progress import Progress, Silent
from maskloom.records import Task
from maskloom.run_directory import RunDirectory
from maskloom.stages import image_files as stage
from maskloom.stages import image_versions
from maskloom.stages.images import Prediction, find_images, predict_images


def photo(path: Path, value: int) -> None:
    write_png(path, np.full((2, 3, 3), value, np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, value in (("b", 200), ("sub/a", 10)):
        photo(tmp_path / "images" / f"{name}.png", value)
    return tmp_path / "images"


class Bright:
    """Predicts what is brighter than one half, and counts the images it was asked for."""

    channels, takes_grey = 3, True
    task = Task(kind="binary", classes=("bright",))

    def __init__(self) -> None:
        self.asked = 0

    def predictor(self, image: np.ndarray) -> dict[str, np.ndarray]:
        self.asked += 1
        return {RESULT: image[None, :, :, 0]}

    def labels(self, maps: dict[str, np.ndarray]) -> np.ndarray:
        return (maps["result"][0] > 127).astype(np.uint8)


class Heard(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def predicted(
    images: Path, out: Path, to: str, *, skip_bad: bool = False, progress: Progress | None = None
) -> tuple[Prediction, int]:
    """Returns what was written, and for how many images a network was asked."""
    run = RunDirectory(out.parent / "run")
    if not run.decided.is_file():
        write_json(run.decided, {"fingerprint": "decided"})
    bright: Any = Bright()
    done = predict_images(
        run, images, out=out, to=to, opened=lambda: bright, skip_bad=skip_bad, progress=progress or Silent()
    )
    return done, bright.asked


def rows(out: Path) -> dict[str, str]:
    with gzip.open(out / "predictions.csv.gz", "rt") as stream:
        return {row["id"]: row["rle"] for row in csv.DictReader(stream)}


def test_only_photos_are_found(folder: Path, tmp_path: Path) -> None:
    for name in (".hidden.png", "._b.png", ".partial-x.png", ".thumbs/b.png", "out/b.png", "older/c.png"):
        photo(folder / name, 0)
    (folder / "older" / OWNER).write_text("{}")
    (folder / "folder.png").mkdir()
    notes: list[str] = []
    found = find_images(folder, out=folder / "out", bad=None, note=notes.append)
    assert [record.id for record in found] == ["b", "sub/a"]
    assert len(notes) == 1 and "2 images" in notes[0]
    with pytest.raises(UserError, match="the images' own folder"):
        find_images(folder, out=folder, bad=None)


def test_an_image_whose_name_no_output_can_have_is_a_bad_file(folder: Path, tmp_path: Path) -> None:
    photo(folder / "a<b>.png", 3)
    with pytest.raises(BadFile, match=r"a<b>\.png: id 'a<b>' cannot name an output file") as refused:
        find_images(folder, out=tmp_path / "out", bad=None)
    assert refused.value.path == folder / "a<b>.png"
    bad: list[BadFile] = []
    assert [record.id for record in find_images(folder, out=tmp_path / "out", bad=bad)] == ["b", "sub/a"]
    assert [problem.path.name for problem in bad] == ["a<b>.png"]


def test_a_monstrous_header_is_told_before_the_networks_load(folder: Path, tmp_path: Path) -> None:
    body = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    (folder / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    with pytest.raises(BadFile, match="over the budget"):
        find_images(folder, out=tmp_path / "out", bad=None)
    done, _ = predicted(folder, tmp_path / "out", "png", skip_bad=True)
    assert (done.num_written, len(done.bad)) == (2, 1)


def test_rows_of_other_images_are_not_used(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as killed:
        killed.setattr(stage, "read_rows", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            predicted(folder, out, "rle")
    kept = tmp_path / "kept"
    shutil.copytree(out, kept)
    assert predicted(folder, out, "rle") == (Prediction(out=out, num_written=2), 0)  # the same images: taken up
    shutil.rmtree(out)
    kept.rename(out)
    photo(folder / "aa.png", 255)
    assert predicted(folder, out, "rle")[1] == 3
    assert rows(out) == {"aa": "1 6", "b": "1 6", "sub/a": ""}
    assert not (out / ".rows").exists()


def test_what_was_left_out_before_a_kill_is_counted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (folder / "b.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[:-20])
    with monkeypatch.context() as killed:
        killed.setattr(stage, "read_rows", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            predicted(folder, tmp_path / "out", "rle", skip_bad=True)
    done, asked = predicted(folder, tmp_path / "out", "rle", skip_bad=True)
    assert (done.num_written, [problem.path.name for problem in done.bad], asked) == (2, ["cut.png"], 0)


def test_masks_of_changed_or_other_images_are_not_kept(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert predicted(folder, out, "png")[1] == 2
    assert predicted(folder, out, "png")[1] == 0
    photo(folder / "b.png", 20)
    later = (out / "b.png").stat().st_mtime_ns + 10**9
    os.utime(folder / "b.png", ns=(later, later))
    assert predicted(folder, out, "png")[1] == 1
    shutil.copytree(folder, tmp_path / "others")
    with pytest.raises(UserError, match=r"out: holds predictions of the images in .*images; choose another"):
        predicted(tmp_path / "others", out, "png")
    with pytest.raises(UserError, match="another run or format"):
        predicted(folder, out, "prob")


def test_a_photo_replaced_by_an_older_one_is_predicted_again(folder: Path, tmp_path: Path) -> None:
    photo(tmp_path / "older.png", 20)
    os.utime(tmp_path / "older.png", ns=(10**18, 10**18))
    out = tmp_path / "out"
    assert predicted(folder, out, "png")[1] == 2
    before = (out / "b.png").read_bytes()
    time.sleep(0.02)  # more than the file system's tick
    (tmp_path / "older.png").rename(folder / "b.png")
    assert predicted(folder, out, "png")[1] == 1
    assert (out / "b.png").read_bytes() != before


def test_a_photo_that_is_put_back_is_predicted_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no other time tells it (exFAT, SMB): its version was predicted once, but the mask there is of another."""
    monkeypatch.setattr(image_versions, "changed_ns", lambda path: path.stat().st_mtime_ns)
    out = tmp_path / "out"
    assert predicted(folder, out, "png")[1] == 2
    mask, facts = (out / "b.png").read_bytes(), (folder / "b.png").stat()
    (folder / "b.png").rename(tmp_path / "first.png")
    photo(folder / "b.png", 20)
    os.utime(folder / "b.png", ns=(facts.st_atime_ns, facts.st_mtime_ns + 10**9))
    assert predicted(folder, out, "png")[1] == 1 and (out / "b.png").read_bytes() != mask
    (tmp_path / "first.png").rename(folder / "b.png")
    assert predicted(folder, out, "png")[1] == 1 and (out / "b.png").read_bytes() == mask
    assert predicted(folder, out, "png")[1] == 0


@pytest.mark.parametrize("to", ["png", "prob"])
def test_a_mask_that_was_changed_or_not_noted_is_made_again_aloud(folder: Path, tmp_path: Path, to: str) -> None:
    out, heard = tmp_path / "out", Heard()
    predicted(folder, out, to)
    before = {name: (out / name).read_bytes() for name in ("b.png", "sub/a.png")}
    photo(out / "b.png", 1)
    noted = out / ".images" / "written.txt"
    assert predicted(folder, out, to, progress=heard)[1] == 1 and (out / "b.png").read_bytes() == before["b.png"]
    assert len(heard.notes) == 1 and heard.notes[0].startswith("1 image(s) are predicted again: ")
    first, *_, last = noted.read_text().split()
    noted.write_text(f"{last}\n{first[:5]}")  # a process was killed while it noted another mask
    assert predicted(folder, out, to)[1] == 1
    noted.unlink()  # an earlier version wrote the masks
    assert predicted(folder, out, to, progress=heard)[1] == 2 and heard.notes[1].startswith("2 image(s) are")
    assert {name: (out / name).read_bytes() for name in before} == before and predicted(folder, out, to)[1] == 0


@pytest.mark.parametrize("to", ["png", "prob"])
@pytest.mark.parametrize("kept", [0, -20])
def test_a_photo_that_is_damaged_now_leaves_no_former_mask(folder: Path, tmp_path: Path, to: str, kept: int) -> None:
    """Neither where its header tells, nor where only decoding does."""
    out = tmp_path / "out"
    predicted(folder, out, to)
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:kept])
    done, _ = predicted(folder, out, to, skip_bad=True)
    assert done.num_written == 1 and [problem.path.name for problem in done.bad] == ["b.png"]
    assert not (out / "b.png").exists() and (out / "sub" / "a.png").is_file()


@pytest.mark.parametrize("to", ["png", "rle"])
def test_what_a_killed_process_left_is_removed(folder: Path, tmp_path: Path, to: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".partial-x.json").write_text("{")  # killed before the folder was marked
    assert predicted(folder, out, to)[1] == 2
    leftover = out / "sub" / ".partial-y.png"
    leftover.parent.mkdir(exist_ok=True)
    leftover.write_bytes(b"half")
    predicted(folder, out, to)
    assert not list(out.rglob(".partial-*"))


def test_decisions_made_anew_are_not_mixed_with_older_masks(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predicted(folder, out, "png")
    write_json(RunDirectory(tmp_path / "run").decided, {"fingerprint": "other steps"})
    with pytest.raises(UserError, match="another run or format"):
        predicted(folder, out, "png")


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_owner_is_told_with_what_to_do(folder: Path, tmp_path: Path, content: str) -> None:
    out = tmp_path / "out"
    predicted(folder, out, "png")
    (out / OWNER).write_text(content)
    with pytest.raises(UserError, match=r"out: holds predictions .*(damaged|another).*; choose another folder or rem"):
        predicted(folder, out, "png")


def test_a_folder_of_other_files_is_left_alone(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks"
    photo(out / "b.png", 255)
    before = (out / "b.png").read_bytes()
    with pytest.raises(UserError, match="masks: expected an empty or new folder, found other files; choose another"):
        predicted(folder, out, "png")
    assert [path.name for path in out.iterdir()] == ["b.png"]
    assert (out / "b.png").read_bytes() == before


def test_masks_beside_images_are_not_predicted(tmp_path: Path) -> None:
    for name in ("images/a.png", "images/masks/b.png", "masks/a.png"):
        photo(tmp_path / "data" / name, 7)
    heard: list[str] = []
    found = find_images(tmp_path / "data", out=tmp_path / "out", bad=None, note=heard.append)
    assert [record.id for record in found] == ["images/a", "images/masks/b"]
    assert heard == ["1 files lie in a folder of masks beside the images and are passed over"]
    alone = find_images(tmp_path / "data" / "masks", out=tmp_path / "out", bad=None)
    assert [record.id for record in alone] == ["a"]


# Colours of the data -------------------------------------------------------------------------------------------------

RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 200, 0)
STREET = Task(kind="multiclass", classes=("dark", "bright"))


def of_data(tmp_path: Path, coding: MaskCoding, task: Task) -> None:
    write_sealed(
        RunDirectory(tmp_path / "run").source,
        {"task": {"kind": task.kind, "classes": list(task.classes)}, "coding": coding.to_json()},
    )


@pytest.mark.parametrize("task", [STREET, Bright.task])
def test_masks_in_the_colours_of_the_data(folder: Path, tmp_path: Path, task: Task) -> None:
    colours = ((BLUE, 0), (RED, 1), (GREEN, 1))  # of two colours of a class the first
    of_data(tmp_path, MaskCoding(kind="colours", colours=colours), task)
    assert predicted(folder, tmp_path / "out", "colours")[0].num_written == 2
    for name, colour in (("b", RED), ("sub/a", BLUE)):
        assert (read_image(tmp_path / "out" / f"{name}.png") == colour).all()
    assert predicted(folder, tmp_path / "out", "colours")[1] == 0, "all is there"


@pytest.mark.parametrize(
    ("coding", "task", "reason"),
    [
        (MaskCoding(kind="values", values=((0, 0), (1, 1))), STREET, "colours: expected .* found masks of values"),
        (
            MaskCoding(kind="colours", colours=((RED, 0), (BLUE, 1))),
            Task(kind="multilabel", classes=("a", "b")),
            "found a multilabel task; choose png",
        ),
        (None, STREET, "source.json: expected the description of the data with its colours, found none"),
    ],
)
def test_data_without_colours_is_told_before_anything_is_written(
    folder: Path, tmp_path: Path, coding: MaskCoding | None, task: Task, reason: str
) -> None:
    if coding is not None:
        of_data(tmp_path, coding, task)
    with pytest.raises(UserError, match=reason) as caught:
        predicted(folder, tmp_path / "out", "colours")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
