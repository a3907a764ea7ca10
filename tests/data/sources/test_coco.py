"""COCO files with polygons and run lengths, one or one per split."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskloom.data.image_io import write_png
from maskloom.data.sources.base import DataSettings, DataSource
from maskloom.data.sources.coco import open_coco, recognise
from maskloom.data.truth import read_truth
from maskloom.encodings.rle import coco_encode
from maskloom.errors import BadFile, UserError
from maskloom.records import BadSize

SIZE = (6, 8)
LEFT, RIGHT = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
LEFT[1:5, 0:3], RIGHT[1:5, 4:8] = True, True
SQUARE = [[0.0, 1.0, 3.0, 1.0, 3.0, 5.0, 0.0, 5.0]]

CONTENT: dict[str, Any] = {
    "images": [
        {"id": 1, "file_name": "a.png", "height": 6, "width": 8, "camera": "C1"},
        {"id": 2, "file_name": "b.png", "height": 6, "width": 8},
    ],
    "categories": [{"id": 7, "name": "tree"}, {"id": 3, "name": "roof"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "segmentation": SQUARE, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 7, "segmentation": coco_encode(RIGHT), "iscrowd": 1},
    ],
}


def coco(folder: Path, content: dict[str, Any] = CONTENT, name: str = "instances.json", images: str = "images") -> Path:
    for entry in content["images"]:
        if isinstance(entry, dict) and ".." not in str(entry.get("file_name", "..")):
            write_png(folder / images / entry["file_name"], np.zeros((*SIZE, 3), np.uint8))
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder / name


def opened(path: Path, **settings: object) -> DataSource:
    return open_coco(path, DataSettings.model_validate(settings))


def changed(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy(CONTENT) | changes


def test_categories_without_overlap_are_multiclass(tmp_path: Path) -> None:
    coco(tmp_path)
    assert recognise(tmp_path) and recognise(tmp_path / "instances.json")
    source = opened(tmp_path)
    assert source.task.kind == "multiclass" and source.task.classes == ("background", "roof", "tree")
    labels = read_truth(source.records[0], source.task, source.coding)
    assert np.array_equal(labels, LEFT + 2 * RIGHT)
    assert not read_truth(source.records[1], source.task, source.coding).any()
    assert dict(source.records[0].attributes) == {"camera": "C1"}
    assert any("1 images have no annotation" in note for note in source.notes)
    assert DataSource.from_json(json.loads(json.dumps(source.to_json())), tmp_path) == source


def test_overlap_is_multilabel_and_one_category_binary(tmp_path: Path) -> None:
    overlapping = {"id": 3, "image_id": 1, "category_id": 7, "segmentation": SQUARE}
    path = coco(tmp_path, changed(annotations=[*CONTENT["annotations"], overlapping]))
    source = opened(path)
    assert source.task.kind == "multilabel" and source.task.classes == ("roof", "tree")
    assert np.array_equal(read_truth(source.records[0], source.task, source.coding), [LEFT, LEFT | RIGHT])
    chosen = opened(path, classes=["tree"])
    assert chosen.task.kind == "binary"
    assert np.array_equal(read_truth(chosen.records[0], chosen.task, chosen.coding), LEFT | RIGHT)


@pytest.mark.parametrize("folder", ["", "annotations"])
def test_one_file_per_split(tmp_path: Path, folder: str) -> None:
    for split in ("train", "val"):
        coco(tmp_path, name=f"{folder}/instances_{split}2017.json".lstrip("/"), images=f"{split}2017")
    source = opened(tmp_path)
    assert [(record.id, record.split) for record in source.records] == [
        ("train/a", "train"),
        ("train/b", "train"),
        ("val/a", "val"),
        ("val/b", "val"),
    ]
    assert source.records[2].image == tmp_path / "val2017" / "a.png"
    (tmp_path / "other.json").write_text(json.dumps(CONTENT))
    with pytest.raises(UserError, match="expected one COCO file, or one each for train and val"):
        opened(tmp_path)


def test_uncompressed_counts(tmp_path: Path) -> None:
    runs = {"size": list(SIZE), "counts": [0, 48]}
    annotation = {"id": 1, "image_id": 1, "category_id": 3, "segmentation": runs}
    source = opened(coco(tmp_path, changed(annotations=[annotation])), classes=["roof"])
    assert read_truth(source.records[0], source.task, source.coding).all()


IMAGE, ANNOTATION = CONTENT["images"][0], CONTENT["annotations"][0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"images": {}}, "list 'images'"),
        ({"annotations": {}}, "expected a list under 'annotations'"),
        ({"categories": [], "annotations": []}, "expected categories"),
        ({"images": [IMAGE, IMAGE]}, "every image id once"),
        ({"images": [IMAGE, IMAGE | {"id": 9}]}, r"each id once, found 1 used twice or more \('a'\)"),
        ({"images": [IMAGE | {"file_name": "../a.png"}]}, r"'../a.png' cannot name an output file"),
        ({"images": [IMAGE | {"file_name": "/etc/a.png"}]}, "cannot name an output file"),
        ({"images": [{"id": 1}]}, "expected 'file_name' in an image"),
        ({"annotations": [ANNOTATION | {"image_id": 5}]}, "found 5 in an annotation"),
        ({"annotations": [ANNOTATION | {"category_id": 5}]}, "found 5 in an annotation"),
        ({"annotations": [{"id": 4, "image_id": 1, "category_id": 3, "bbox": [1, 1, 2, 2]}]}, "found only a box"),
        ({"annotations": [ANNOTATION | {"segmentation": "x"}]}, "expected polygons or run lengths"),
        ({"categories": [{"id": 3, "name": "roof"}, {"id": 7, "name": "roof"}]}, "a name of its own"),
        ({"categories": [{"id": 3, "name": "roof"}, {"id": "7", "name": "tree"}]}, "all numbers or all texts"),
        ({"categories": [{"id": [3], "name": "roof"}]}, "expected a number or a text as 'id' of a category"),
        ({"images": [IMAGE | {"id": {}}]}, "expected a number or a text as 'id' of an image"),
        ({"annotations": [ANNOTATION | {"image_id": [1]}]}, "expected a number or a text as 'image_id'"),
        ({"annotations": [ANNOTATION | {"segmentation": {"size": 5, "counts": [0, 48]}}]}, "expected polygons or run"),
    ],
)
def test_mistakes(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        opened(coco(tmp_path, changed(**changes)), skip_bad=True)
    assert "\n" not in str(caught.value)


def test_bad_images_stop_or_are_listed(tmp_path: Path) -> None:
    small = {"size": [2, 2], "counts": [0, 4]}
    images = [IMAGE, IMAGE | {"id": 2, "file_name": "b.png"}, IMAGE | {"id": 3, "file_name": "c.png", "width": 9}]
    annotations = [ANNOTATION, ANNOTATION | {"image_id": 2, "segmentation": small}]
    path = coco(tmp_path, changed(images=[*images, {"id": 4, "file_name": "d.png"}], annotations=annotations))
    (tmp_path / "images" / "d.png").unlink()
    with pytest.raises(UserError, match=r"b: the mask is 2×2 .*and 2 more"):
        opened(path)
    source = opened(path, skip_bad=True)
    assert [record.id for record in source.records] == ["a"]
    assert [type(problem) for problem in source.problems] == [BadSize, BadFile, BadFile]
    assert "the COCO file says 9×6 (width×height), the image is 8×6" in str(source.problems[1])


def test_other_json_is_not_recognised(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"x": 1}')
    assert not recognise(tmp_path) and not recognise(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("not json")
    with pytest.raises(UserError, match="expected JSON"):
        opened(tmp_path / "a.json")


def test_what_cannot_describe_coco_is_not_silent(tmp_path: Path) -> None:
    path = coco(tmp_path)
    (tmp_path / "classes.yaml").write_text("classes: [roof, tree]\n")
    assert any("classes.yaml is not used" in note for note in opened(path).notes)
    with pytest.raises(UserError, match="expected mask files"):
        opened(path, ignore=[255])
