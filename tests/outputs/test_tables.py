"""Submissions and COCO files: order, equal bytes, whole or absent, and complaints that name what is wrong."""

from __future__ import annotations

import gzip
import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as judge

from maskloom.encodings.rle import coco_decode
from maskloom.errors import BadFile, UserError
from maskloom.outputs import ordered
from maskloom.outputs.tables import (
    CocoWriter,
    SubmissionFormat,
    SubmissionRow,
    SubmissionWriter,
    check_against_sample,
    read_names,
    read_submission,
    validate_submission,
)
from maskloom.records import Task

FORM = SubmissionFormat(name_suffix=".jpg")
NAMES = [f"{index:03d}.jpg" for index in range(40)]
SIZE = (9, 14)


def mask_of(name: str) -> np.ndarray:
    return np.random.default_rng(int.from_bytes(name.encode(), "big")).random(SIZE) < 0.4


def write(path: Path, arrival: list[str], names: list[str] | None = NAMES) -> bytes:
    with SubmissionWriter(path, FORM, names=names) as writer, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: writer.write(name, mask_of(name)), arrival))
    return path.read_bytes()


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_bytes_do_not_depend_on_the_order_of_arrival(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = write(tmp_path / f"a{suffix}", NAMES)
    for seed, in_memory in ((1, 10**6), (2, 10)):
        monkeypatch.setattr(ordered, "_IN_MEMORY", in_memory)
        arrival = random.Random(seed).sample(NAMES, len(NAMES))
        assert write(tmp_path / f"b{seed}{suffix}", arrival) == expected
    rows = list(read_submission(tmp_path / f"a{suffix}", FORM))
    assert [row.name for row in rows] == NAMES
    assert all(np.array_equal(FORM.decode(row.runs, SIZE), mask_of(row.name)) for row in rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{n}{suffix}" for n in ("a", "b1", "b2"))


def test_content_of_a_small_table(tmp_path: Path) -> None:
    path = tmp_path / "s.csv.gz"
    with SubmissionWriter(path, FORM) as writer:
        writer.write(FORM.name("b"), "1 2")
        writer.write(FORM.name("a"), np.zeros((2, 2), bool))
    assert gzip.decompress(path.read_bytes()) == b"img,rle_mask\nb.jpg,1 2\na.jpg,\n"
    assert path.read_bytes()[3:8] == bytes(5)  # no file name, no time stamp


def test_classes_have_a_column_of_their_own(tmp_path: Path) -> None:
    form = SubmissionFormat(columns=("img", "class", "rle_mask"))
    path = tmp_path / "s.csv"
    with SubmissionWriter(path, form, names=["x", "y"], classes=["car", "tree"]) as writer:
        for name, label in [("y", "tree"), ("x", "tree"), ("y", "car"), ("x", "car")]:
            writer.write(name, "1 1", label)
    assert path.read_text().splitlines() == ["img,class,rle_mask", "x,car,1 1", "x,tree,1 1", "y,car,1 1", "y,tree,1 1"]
    assert next(read_submission(path, form)) == SubmissionRow("x", "car", "1 1")
    with pytest.raises(ValueError, match="does not fit"), SubmissionWriter(tmp_path / "t.csv", form) as writer:
        writer.write("x", "1 1")


def test_nothing_is_left_behind_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "s.csv.gz"
    with pytest.raises(UserError, match=r"no rows for 001.jpg, 002.jpg, 003.jpg, 004.jpg, 005.jpg and 34 more"):
        write(path, NAMES[:1])
    with pytest.raises(UserError, match="not among the 40"):
        write(path, ["absent.jpg"])
    with pytest.raises(UserError, match="two rows"):
        write(path, [NAMES[3], NAMES[3]])
    with pytest.raises(UserError, match="two rows"):
        write(path, [NAMES[3], NAMES[3]], names=None)
    with pytest.raises(UserError, match="twice"):
        write(path, [], names=["a", "a"])
    with pytest.raises(KeyError), SubmissionWriter(path, FORM) as writer:
        writer.write("a", "1 1")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_validation_against_a_sample(tmp_path: Path) -> None:
    sample = tmp_path / "sample.csv"
    sample.write_text("img,rle_mask\n" + "".join(f"{name},1 1\n" for name in reversed(NAMES)))
    write(tmp_path / "good.csv.gz", NAMES)
    validate_submission(tmp_path / "good.csv.gz", sample, FORM, size_of=lambda _: SIZE)
    assert read_names(sample, FORM) == NAMES[::-1]
    check_against_sample(NAMES, sample, FORM)
    with pytest.raises(
        UserError, match=r"40 images .* found 34 \(7 missing: 000.jpg, .* and 2 more; 1 not .*: z.jpg\)"
    ):
        check_against_sample({*NAMES[7:], "z.jpg"}, sample, FORM)
    with pytest.raises(BadFile, match=r"000.jpg.*within the 4 pixels"):
        validate_submission(tmp_path / "good.csv.gz", sample, FORM, size_of=lambda _: (2, 2))
    twice = tmp_path / "twice.csv"
    twice.write_text("img,rle_mask\na,1 1\na,1 1\n")
    with pytest.raises(BadFile, match="two rows"):
        validate_submission(twice, sample, FORM)


def test_a_table_of_the_contests_length(tmp_path: Path) -> None:
    """100,064 rows, 16 views of 6,254 cars, arriving in another order than the sample's; memory and rows stay whole."""
    cars = random.Random(0).sample(range(16**12), 6254)
    names = [f"{car:012x}_{view:02d}.jpg" for car in cars for view in range(1, 17)]
    sample, table = tmp_path / "sample_submission.csv.gz", tmp_path / "submission.csv.gz"
    with gzip.open(sample, "wt", encoding="utf-8") as stream:
        stream.write("img,rle_mask\n" + "".join(f"{name},1 1\n" for name in names))
    arrival = random.Random(1).sample(names, len(names))
    with SubmissionWriter(table, FORM, names=read_names(sample, FORM)) as writer:
        for name in arrival:
            writer.write(name, f"{int(name[-6:-4])} 7 400 2")
    validate_submission(table, sample, FORM)
    rows = list(read_submission(table, FORM))
    assert len(rows) == 100_064 and [row.name for row in rows] == names
    assert all(row.runs == f"{int(row.name[-6:-4])} 7 400 2" for row in rows)
    with pytest.raises(UserError, match=f"100063 .*1 missing: {names[77]}"):
        check_against_sample([*names[:77], *names[78:]], sample, FORM)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "expected the columns"),
        (b"name,rle\n", "expected the columns img,rle_mask, found name,rle"),
        (b"img,rle_mask\na\n", "row 2"),
        (b"img,rle_mask\n\xff\xfe,1\n", "expected a CSV"),
        (gzip.compress(b"img,rle_mask\na,1 1\n", mtime=0)[:-9], "expected a CSV"),
    ],
)
def test_bad_tables(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(BadFile, match=reason):
        list(read_submission(path, FORM))
    with pytest.raises(BadFile, match="no such file"):
        list(read_submission(tmp_path / "absent.csv", FORM))


def test_long_cells_are_read(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    runs = "1 1 " * 200_000
    path.write_text(f"img,rle_mask\na.jpg,{runs}\n")
    assert next(read_submission(path, FORM)).runs == runs


def coco_file(path: Path, rows: list[tuple[str, str, np.ndarray]], task: Task) -> dict[str, list[dict[str, Any]]]:
    with CocoWriter(path, task) as writer:
        for name, label, mask in rows:
            writer.write(name, f"{name}.png", label, mask)
    return json.loads(path.read_text())


def test_coco_of_known_masks(tmp_path: Path) -> None:
    first, second = np.zeros((4, 6), bool), np.zeros((4, 6), bool)
    first[0, 0] = first[2:4, 3:6] = True
    second[1, 1:3] = True
    rows = [("b", "car", first), ("a/x", "car", second), ("empty", "car", np.zeros((4, 6), bool))]
    found = coco_file(tmp_path / "c.json", rows, Task(kind="binary", classes=("car",)))
    assert [image["file_name"] for image in found["images"]] == ["b.png", "a/x.png", "empty.png"]
    assert found["categories"] == [{"id": 1, "name": "car"}]
    boxes = [(each["id"], each["image_id"], each["bbox"], each["area"]) for each in found["annotations"]]
    assert boxes == [(1, 1, [0, 0, 1, 1], 1), (2, 1, [3, 2, 3, 2], 6), (3, 2, [1, 1, 2, 1], 2)]
    pieces = [coco_decode(each["segmentation"]) for each in found["annotations"][:2]]
    assert np.array_equal(pieces[0] | pieces[1], first)


def test_coco_is_read_by_pycocotools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pycocotools.coco import COCO

    mask = np.random.default_rng(0).random((30, 40)) < 0.3
    coco_file(tmp_path / "c.json", [("a", "car", mask)], Task(kind="binary", classes=("car",)))
    read = COCO(str(tmp_path / "c.json"))
    for each in read.loadAnns(read.getAnnIds()):
        assert judge.area(each["segmentation"]) == each["area"]
        assert judge.toBbox(each["segmentation"]).tolist() == each["bbox"]
    assert judge.area(judge.merge([each["segmentation"] for each in read.loadAnns(read.getAnnIds())])) == mask.sum()
    capsys.readouterr()


def test_coco_categories(tmp_path: Path) -> None:
    labels = np.array([[0, 0, 1, 1, 2, 2]] * 4)
    rows = [("a", label, labels == index) for index, label in enumerate("xyz")]
    found = coco_file(tmp_path / "a.json", rows, Task(kind="multiclass", classes=("x", "y", "z")))
    assert [each["category_id"] for each in found["annotations"]] == [0, 1, 2]
    rows[0] = ("a", "background", labels == 0)
    found = coco_file(tmp_path / "b.json", rows, Task(kind="multiclass", classes=("background", "y", "z")))
    assert (
        [each["id"] for each in found["categories"]] == [each["category_id"] for each in found["annotations"]] == [1, 2]
    )
    rows = [("a", "p", labels == 0), ("a", "q", labels <= 1)]
    found = coco_file(tmp_path / "c.json", rows, Task(kind="multilabel", classes=("p", "q")))
    assert [(each["category_id"], each["area"]) for each in found["annotations"]] == [(1, 8), (2, 16)]
    assert len(found["images"]) == 1


def test_an_empty_coco_file(tmp_path: Path) -> None:
    found = coco_file(tmp_path / "c.json", [], Task(kind="binary", classes=("car",)))
    assert found == {"annotations": [], "images": [], "categories": [{"id": 1, "name": "car"}]}


def test_coco_refuses_what_does_not_fit(tmp_path: Path) -> None:
    task = Task(kind="multilabel", classes=("p", "q"))
    with pytest.raises(UserError, match="expected the image's 6×4"):
        coco_file(tmp_path / "c.json", [("a", "p", np.ones((4, 6), bool)), ("a", "q", np.ones((6, 4), bool))], task)
    with pytest.raises(ValueError, match="not among"):
        coco_file(tmp_path / "c.json", [("a", "z", np.ones((4, 6), bool))], task)
    assert list(tmp_path.iterdir()) == []
