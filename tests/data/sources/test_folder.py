"""Folders of images and masks as people really have them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from maskloom.api import open_source
from maskloom.data.image_io import write_png
from maskloom.data.sources.base import DataSettings, DataSource
from maskloom.data.sources.folder import open_folder, recognise
from maskloom.data.truth import read_sample
from maskloom.errors import BadFile, UserError
from maskloom.records import BadSize, MaskFile

MASK = np.zeros((5, 7), np.uint8)
MASK[1:3, 2:5] = 255


def image(path: Path, size: tuple[int, int] = (5, 7)) -> None:
    write_png(path, np.random.default_rng(len(path.name)).integers(0, 255, (*size, 3), dtype=np.uint8))


def pair(root: Path, name: str, mask_name: str | None = None, mask: np.ndarray = MASK) -> None:
    image(root / "images" / f"{name}.png")
    write_png(root / "masks" / f"{mask_name or name}.png", mask)


def opened(root: Path, **settings: object) -> DataSource:
    return open_folder(root, DataSettings.model_validate(settings))


def test_images_and_masks_by_name(tmp_path: Path) -> None:
    for name in ("b", "a"):
        pair(tmp_path, name)
    assert recognise(tmp_path, DataSettings())
    source = opened(tmp_path)
    assert [record.id for record in source.records] == ["a", "b"]
    assert source.layout == "folder" and source.task.kind == "binary" and source.records[0].size == (5, 7)
    sample = read_sample(source.records[0], source.task, source.coding)
    assert sample.labels is not None and np.array_equal(sample.labels, MASK // 255)


@pytest.mark.parametrize(
    ("image_name", "mask_name"),
    [("a", "a_mask"), ("a", "a-seg"), ("a", "a_GT"), ("a.jpg", "a"), ("a", "a.jpg"), ("7_sat", "7_mask")],
)
def test_usual_endings(tmp_path: Path, image_name: str, mask_name: str) -> None:
    pair(tmp_path, image_name, mask_name)
    truth = opened(tmp_path).records[0].truth
    assert isinstance(truth, MaskFile) and truth.path.name == f"{mask_name}.png"


def test_exact_names_go_before_endings(tmp_path: Path) -> None:
    for name in ("a", "a_mask"):
        pair(tmp_path, name)
    source = opened(tmp_path)
    assert {record.id: record.truth.path.stem for record in source.records if isinstance(record.truth, MaskFile)} == {
        "a": "a",
        "a_mask": "a_mask",
    }


def test_sub_folders_must_agree(tmp_path: Path) -> None:
    pair(tmp_path, "x/a")
    pair(tmp_path, "y/a")
    source = opened(tmp_path, group="folder")
    assert [(record.id, record.group) for record in source.records] == [("x/a", "x"), ("y/a", "y")]


@pytest.mark.parametrize("inside", [True, False])
def test_train_val_and_test_folders(tmp_path: Path, inside: bool) -> None:
    for split in ("train", "val", "test"):
        if inside:
            pair(tmp_path, f"{split}/{split[0]}")
        else:
            pair(tmp_path / split, split[0])
    source = opened(tmp_path)
    assert [(record.id, record.split) for record in source.records] == [("train/t", "train"), ("val/v", "val")]
    assert [record.id for record in source.unlabelled] == ["test/t"] and source.unlabelled[0].truth is None
    assert any("one fixed fold" in note for note in source.notes)
    assert any("kept out" in note for note in source.notes)


def test_images_without_masks_and_other_files_are_said(tmp_path: Path) -> None:
    pair(tmp_path, "a")
    image(tmp_path / "images" / "b.png")
    (tmp_path / "images" / "notes.txt").touch()
    (tmp_path / "images" / ".hidden.png").touch()
    source = opened(tmp_path)
    assert [record.id for record in source.unlabelled] == ["b"]
    assert any("1 images have no mask" in note for note in source.notes)
    assert any("images/: 1 files" in note for note in source.notes)


def test_classes_yaml_is_honoured(tmp_path: Path) -> None:
    pair(tmp_path, "a", mask=np.array([[0, 1, 2, 3, 3, 3, 3]] * 5, np.uint8))
    (tmp_path / "classes.yaml").write_text("classes: [x, y, z]\nignore: 3\n")
    source = opened(tmp_path)
    assert source.task.classes == ("x", "y", "z") and source.coding.ignore == (3,)
    with pytest.raises(UserError, match="multiclass task, the settings state binary"):
        opened(tmp_path, task="binary")


def test_stated_classes(tmp_path: Path) -> None:
    pair(tmp_path, "a")
    assert opened(tmp_path, classes=["car"]).task.classes == ("car",)
    pair(tmp_path, "b", mask=np.array([[0, 1, 2, 3, 3, 3, 255]] * 5, np.uint8))
    assert opened(tmp_path, classes=list("wxyz")).task.classes == ("w", "x", "y", "z")
    one = opened(tmp_path, classes=["thing"])
    assert one.task.kind == "binary" and one.coding.kind == "foreground"


def test_named_folders(tmp_path: Path) -> None:
    image(tmp_path / "photos" / "a.png")
    write_png(tmp_path / "truth" / "a.png", MASK)
    assert not recognise(tmp_path, DataSettings())
    assert len(opened(tmp_path, images="photos", masks="truth").records) == 1
    with pytest.raises(UserError, match=r"expected the folders images/ and masks/, found photos/, truth/"):
        opened(tmp_path)


def test_no_such_folder_no_match_no_files(tmp_path: Path) -> None:
    assert not recognise(tmp_path / "none", DataSettings())
    with pytest.raises(UserError, match="no such folder"):
        opened(tmp_path / "none")
    image(tmp_path / "images" / "a.png")
    write_png(tmp_path / "masks" / "z.png", MASK)
    with pytest.raises(UserError, match=r"no match among 1 images \(such as a.png\) and 1 masks \(such as z.png\)"):
        opened(tmp_path)
    (tmp_path / "masks" / "z.png").unlink()
    with pytest.raises(UserError, match="expected image files"):
        opened(tmp_path)


def damage(root: Path) -> None:
    """Makes one good pair and five bad ones."""
    pair(root, "good")
    pair(root, "text")
    (root / "images" / "text.png").write_text("this is no image")
    pair(root, "other_size", mask=MASK[:4])
    pair(root, "bad_mask")
    (root / "masks" / "bad_mask.png").write_bytes(b"")
    pair(root, "colon:name")
    write_png(root / "masks" / "alone.png", MASK)


def test_bad_files_stop_the_opening(tmp_path: Path) -> None:
    damage(tmp_path)
    with pytest.raises(UserError, match=r"and 4 more files with problems .*--skip-bad") as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)


def test_bad_files_are_listed_when_left_out(tmp_path: Path) -> None:
    damage(tmp_path)
    source = opened(tmp_path, skip_bad=True)
    assert [record.id for record in source.records] == ["good"] and len(source.problems) == 5
    assert sum(isinstance(problem, BadSize) for problem in source.problems) == 1
    assert DataSource.from_json(source.to_json(), tmp_path).problems[0].args == source.problems[0].args


def test_a_mask_of_another_size_alone(tmp_path: Path) -> None:
    pair(tmp_path, "a", mask=MASK[:4])
    with pytest.raises(BadSize, match="a: the mask is 7×4"):
        opened(tmp_path)


def test_a_second_mask(tmp_path: Path) -> None:
    pair(tmp_path, "a")
    write_png(tmp_path / "masks" / "a_mask.png", MASK)
    with pytest.raises(BadFile, match="a second mask for one image"):
        opened(tmp_path)


def test_duplicate_ids(tmp_path: Path) -> None:
    pair(tmp_path, "a")
    image(tmp_path / "images" / "a.PNG.tmp")
    (tmp_path / "images" / "a.PNG.tmp").rename(tmp_path / "images" / "a.bmp")
    with pytest.raises(UserError, match=r"expected each id once, found 1 used twice or more \('a'\)"):
        opened(tmp_path, skip_bad=True)


def test_a_monstrous_header_is_refused_at_opening(tmp_path: Path) -> None:
    pair(tmp_path, "a")
    content = bytearray((tmp_path / "images" / "a.png").read_bytes())
    content[16:24] = struct.pack(">II", 100_000, 100_000)
    (tmp_path / "images" / "a.png").write_bytes(bytes(content))
    with pytest.raises(BadFile, match=r"100000×100000 .*over the budget of 200,000,000"):
        opened(tmp_path)


def test_stated_folders_are_recognised(tmp_path: Path) -> None:
    image(tmp_path / "photos" / "a.png")
    write_png(tmp_path / "annots" / "a.png", MASK)
    stated = DataSettings(images="photos", masks="annots")
    assert recognise(tmp_path, stated) and not recognise(tmp_path, DataSettings())
    assert [record.id for record in open_source(tmp_path, stated).records] == ["a"]
    with pytest.raises(UserError, match="expected the folders photo/ and annots/, found annots/, photos/"):
        open_source(tmp_path, DataSettings(images="photo", masks="annots"))


def test_ignore_values_do_not_fit_stated_colours(tmp_path: Path) -> None:
    pair(tmp_path, "a", mask=np.dstack([MASK, MASK * 0, MASK * 0]))
    (tmp_path / "classes.yaml").write_text("classes: {none: [0, 0, 0], roof: [255, 0, 0]}\n")
    with pytest.raises(UserError, match="states colours"):
        opened(tmp_path, ignore=[255])
