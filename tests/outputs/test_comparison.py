"""Mask sets against each other, with scores worked out by hand; every kind of set against every other."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from maskloom.data.image_io import write_png
from maskloom.encodings.rle import encode_runs
from maskloom.errors import UserError
from maskloom.outputs.comparison import compare
from maskloom.outputs.tables import CocoWriter, SubmissionFormat, SubmissionWriter
from maskloom.records import Task

TRUE = {
    "a": np.array([[1, 1, 0, 0], [1, 1, 0, 0]], np.uint8),
    "b": np.array([[0, 0, 0, 0], [0, 0, 0, 0]], np.uint8),
}
FOUND = {
    "a": np.array([[1, 1, 0, 0], [0, 0, 0, 1]], np.uint8),
    "b": np.array([[0, 0, 0, 0], [0, 0, 0, 0]], np.uint8),
}
BINARY = Task(kind="binary", classes=("car",))


def folder(path: Path, masks: dict[str, np.ndarray], *, factor: int = 1, ending: str = ".png") -> Path:
    for name, mask in masks.items():
        write_png(path / f"{name}{ending}", mask * np.asarray(factor, mask.dtype))
    return path


def table(path: Path, masks: dict[str, np.ndarray]) -> Path:
    with SubmissionWriter(path, SubmissionFormat(name_suffix=".jpg")) as writer:
        for name, mask in masks.items():
            writer.write(f"{name}.jpg", mask > 0)
    return path


def coco(path: Path, masks: dict[str, np.ndarray], task: Task = BINARY) -> Path:
    with CocoWriter(path, task) as writer:
        for name, mask in masks.items():
            for index, label in enumerate(task.classes):
                writer.write(name, f"{name}.jpg", label, mask == (1 if task.kind == "binary" else index))
    return path


def test_binary_folders_by_hand(tmp_path: Path) -> None:
    truth = folder(tmp_path / "t", TRUE, ending="_mask.png")
    found = compare(truth, folder(tmp_path / "p", FOUND, factor=255))
    # a: 2 common, 1 too many, 2 too few: Dice 4/7, IoU 2/5, 13 of 16 pixels agree; b: empty on both sides.
    assert (found.kind, found.classes) == ("binary", ("foreground",))
    assert found.dice == pytest.approx((4 / 7 + 1) / 2)
    assert found.iou == pytest.approx(2 / 5)
    assert found.accuracy == pytest.approx(13 / 16)
    assert [(each.name, each.accuracy) for each in found.images] == [("a", 5 / 8), ("b", 1.0)]
    values = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert values["per_class"]["foreground"]["dice"] == found.dice
    assert values["images"][1] == {"name": "b", "dice": 1.0, "iou": 1.0, "accuracy": 1.0}
    assert values["num_images"] == 2


@pytest.mark.parametrize("left", ["folder", "table", "coco"])
@pytest.mark.parametrize("right", ["folder", "table", "coco"])
def test_every_kind_of_set_gives_the_same(tmp_path: Path, left: str, right: str) -> None:
    def make(kind: str, name: str, masks: dict[str, np.ndarray]) -> Path:
        if kind == "folder":
            return folder(tmp_path / name, masks, factor=255)
        return table(tmp_path / f"{name}.csv.gz", masks) if kind == "table" else coco(tmp_path / f"{name}.json", masks)

    size = (2, 4) if left == right == "table" else None
    found = compare(make(left, "t", TRUE), make(right, "p", FOUND), size=size)
    assert found.dice == pytest.approx((4 / 7 + 1) / 2)
    assert found.accuracy == pytest.approx(13 / 16)


def test_perfect_and_inverted(tmp_path: Path) -> None:
    mask = {"a": np.array([[1, 0], [0, 1]], np.uint8)}
    truth = folder(tmp_path / "t", mask)
    assert compare(truth, folder(tmp_path / "p", mask, factor=255)).dice == 1
    inverted = compare(truth, folder(tmp_path / "i", {"a": 1 - mask["a"]}))
    assert (inverted.dice, inverted.iou, inverted.accuracy) == (0, 0, 0)


LABELS = {"a": np.array([[0, 1, 2, 11]], np.uint8), "b": np.array([[0, 0, 2, 2]], np.uint8)}
GUESSED = {"a": np.array([[0, 1, 1, 3]], np.uint8), "b": np.array([[0, 0, 2, 2]], np.uint8)}


def test_multiclass_with_an_ignored_value(tmp_path: Path) -> None:
    truth, guessed = folder(tmp_path / "t", LABELS), folder(tmp_path / "p", GUESSED)
    found = compare(truth, guessed, ignore=11, classes=["sky", "road", "car"])
    assert found.classes == ("sky", "road", "car")
    assert found.class_iou == pytest.approx((1, 1 / 2, 2 / 3))
    assert found.iou == pytest.approx((1 + 1 / 2 + 2 / 3) / 3)
    assert found.accuracy == pytest.approx(6 / 7)
    everything = compare(truth, guessed)
    assert everything.classes == ("0", "1", "2", "3", "11")
    assert math.isnan(everything.class_iou[3])
    assert everything.to_json()["per_class"]["3"]["iou"] is None
    assert everything.accuracy == pytest.approx(6 / 8)
    lines = everything.table().splitlines()
    assert lines[0] == "2 images, multiclass, pixel accuracy 0.7500"
    assert lines[6].split() == ["3", f"{everything.class_dice[3]:.4f}", "–"]


def test_named_classes_are_all_that_count(tmp_path: Path) -> None:
    truth, guessed = folder(tmp_path / "t", LABELS), folder(tmp_path / "p", GUESSED)
    with pytest.raises(UserError, match=r"a: expected labels of 0 to 2, .* found 3; name its class") as caught:
        compare(truth, guessed, classes=["sky", "road", "car"])
    assert "\n" not in str(caught.value)
    two = compare(folder(tmp_path / "q", TRUE), folder(tmp_path / "r", FOUND), classes=["ground", "road"])
    assert (two.kind, two.classes) == ("multiclass", ("ground", "road"))
    assert two.class_iou[1] == pytest.approx(2 / 5)
    masks = compare(folder(tmp_path / "m", TRUE, factor=255), tmp_path / "r", classes=["ground", "road"])
    assert masks.kind == "binary"  # 255 is no label of these


def test_coco_category_ids_are_the_labels(tmp_path: Path) -> None:
    labels = {"a": np.array([[0, 0, 1, 2]], np.uint8)}
    for classes in (("background", "x", "y"), ("w", "x", "y")):
        path = coco(tmp_path / f"{classes[0]}.json", labels, Task(kind="multiclass", classes=classes))
        found = compare(folder(tmp_path / "t", labels), path)
        assert found.dice == 1
        assert found.classes[1:] == ("x", "y")


def test_named_classes_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "named.csv"
    rows = [f"a.jpg,{name},{encode_runs(LABELS['a'] == index)}" for index, name in enumerate(["sky", "road", "car"])]
    path.write_text("\n".join(["img,class,rle_mask", *rows]) + "\n")
    truth = folder(tmp_path / "t", {"a": LABELS["a"]})
    assert compare(truth, path, ignore=11, classes=["sky", "road", "car"]).dice == 1
    with pytest.raises(UserError, match="state the class names"):
        compare(truth, path, ignore=11)
    with pytest.raises(UserError, match="'car' is not among sky, road"):
        compare(truth, path, ignore=11, classes=["sky", "road"])


def test_instance_ids_against_foreground(tmp_path: Path) -> None:
    truth = folder(tmp_path / "t", {"a": np.array([[0, 7, 300, 0]], np.uint16)})
    found = compare(truth, folder(tmp_path / "p", {"a": np.array([[0, 255, 255, 0]], np.uint8)}))
    assert (found.kind, found.dice) == ("binary", 1)
    assert "foreground" in found.notes[0]


def test_colours(tmp_path: Path) -> None:
    colours = {"a": np.array([[[0, 0, 0], [255, 0, 0], [0, 255, 0]]], np.uint8)}
    truth = folder(tmp_path / "t", colours)
    assert compare(truth, folder(tmp_path / "p", colours)).classes == ("#000000", "#00ff00", "#ff0000")
    with pytest.raises(UserError, match="holds colours"):
        compare(truth, folder(tmp_path / "g", {"a": np.array([[0, 1, 2]], np.uint8)}))


def test_255_as_a_class_is_said_aloud(tmp_path: Path) -> None:
    labels = {"a": np.array([[0, 1, 2, 255]], np.uint8)}
    found = compare(folder(tmp_path / "t", labels), folder(tmp_path / "p", labels))
    assert "255" in found.notes[0]


def test_missing_names(tmp_path: Path) -> None:
    truth, found = folder(tmp_path / "t", {**TRUE, "c": TRUE["a"]}), folder(tmp_path / "p", {**FOUND, "z": TRUE["a"]})
    with pytest.raises(UserError, match="1 without prediction: c; 1 without truth: z"):
        compare(truth, found)
    skipped = compare(truth, found, skip_missing=True)
    assert (skipped.missing_predictions, skipped.missing_truths, len(skipped.images)) == (("c",), ("z",), 2)
    with pytest.raises(UserError, match="no mask of"):
        compare(truth, folder(tmp_path / "o", {"other": TRUE["a"]}), skip_missing=True)


def test_bad_input_in_one_line(tmp_path: Path) -> None:
    truth = folder(tmp_path / "t", TRUE)
    text, empty, broken = tmp_path / "x.txt", tmp_path / "empty", tmp_path / "broken.json"
    text.write_text("")
    empty.mkdir()
    broken.write_text('{"images": [{}], "annotations": []}')
    unknown, outside = tmp_path / "u.csv", tmp_path / "o.csv"
    unknown.write_text("a,b,c\n")
    outside.write_text("img,rle_mask\na,1 99\nb,\n")
    twice = folder(folder(tmp_path / "w", TRUE), TRUE, ending="_mask.png")
    cases = {
        tmp_path / "absent": "no such",
        text: "expected a folder of masks",
        empty: "found none",
        broken: "expected COCO",
        unknown: "expected columns",
        outside: "row 'a'",
        twice: "two masks are called 'a'",
        folder(tmp_path / "s", {"a": TRUE["a"].T, "b": TRUE["b"]}): "a: the prediction is 2×4",
    }
    for path, reason in cases.items():
        with pytest.raises(UserError, match=reason) as caught:
            compare(truth, path)
        assert "\n" not in str(caught.value)
    both = table(tmp_path / "both.csv", TRUE)
    with pytest.raises(UserError, match="state the size"):
        compare(both, both)


def test_overlapping_classes_are_refused(tmp_path: Path) -> None:
    with CocoWriter(tmp_path / "m.json", Task(kind="multilabel", classes=("p", "q"))) as writer:
        writer.write("a", "a.jpg", "p", np.ones((2, 4), bool))
        writer.write("a", "a.jpg", "q", np.ones((2, 4), bool))
    with pytest.raises(UserError, match="overlap"):
        compare(folder(tmp_path / "t", {"a": TRUE["a"]}), tmp_path / "m.json")


def test_foreground_is_read_on_request(tmp_path: Path) -> None:
    # Few instance ids cannot be told from labels: without the request, the two objects are two classes.
    truth = folder(tmp_path / "t", {"a": np.array([[0, 1, 2, 0]], np.uint8)})
    predicted = folder(tmp_path / "p", {"a": np.array([[0, 1, 1, 0]], np.uint8)})
    assert compare(truth, predicted).kind == "multiclass"
    found = compare(truth, predicted, foreground=True)
    assert (found.kind, found.classes, found.dice) == ("binary", ("foreground",), 1)
    with pytest.raises(UserError, match="either foreground or the names"):
        compare(truth, predicted, foreground=True, classes=["x"])
