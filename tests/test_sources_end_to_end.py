"""A run of the default recipe on each kind of source, of which nothing but its place is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

import maskloom
from maskloom.encodings.rle import encode_runs
from maskloom.files import read_json
from small import SMALL

SIZE = (48, 64)
NAMES = ("a", "b", "c", "d")


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns an image and its labels: 0, a bright disk of 1, a dark bar of 2."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(SIZE, np.uint8)
    cv2.rectangle(labels, (4, int(rng.integers(30, 40))), (60, 46), 2, -1)
    cv2.circle(labels, (int(rng.integers(14, 50)), 16), 10, 1, -1)
    image = np.array([[90, 90, 90], [220, 60, 60], [20, 40, 20]], np.uint8)[labels]
    return image + rng.integers(0, 20, image.shape, np.uint8), labels


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def images(folder: Path) -> dict[str, np.ndarray]:
    """Writes an image for each name and returns the labels."""
    scenes = {name: scene(seed) for seed, name in enumerate(NAMES)}
    for name, (image, _) in scenes.items():
        write(folder / f"{name}.png", image)
    return {name: labels for name, (_, labels) in scenes.items()}


def folder_of_labels(root: Path) -> Path:
    for seed, name in enumerate(NAMES):
        image, labels = scene(seed)
        labels[:5, :5] = 255
        part = root / ("val" if name == "d" else "train")
        write(part / "images" / f"{name}.png", image)
        write(part / "masks" / f"{name}.png", labels)
    (root / "classes.yaml").write_text("classes: {ground: 0, disk: 1, bar: 2}\nignore: 255\n")
    return root


def csv_of_runs(root: Path) -> Path:
    rows = [
        {"image": f"{name}.png", "rle": encode_runs(labels == 1, order="column"), "rle_order": "column", "rle_base": 1}
        for name, labels in images(root / "images").items()
    ]
    pd.DataFrame(rows).to_csv(root / "train.csv", index=False)
    return root / "train.csv"


def parquet_of_masks(root: Path) -> Path:
    for name, labels in images(root).items():
        write(root / "truth" / f"{name}.png", 255 * (labels == 1).astype(np.uint8))
    rows = [{"image": f"{name}.png", "mask": f"truth/{name}.png", "group": name in "ab"} for name in NAMES]
    pd.DataFrame(rows).astype({"group": str}).to_parquet(root / "train.parquet")
    return root


def coco_of_two_categories(root: Path) -> Path:
    content: dict[str, list[object]] = {
        "images": [], "annotations": [], "categories": [{"id": 3, "name": "disk"}, {"id": 7, "name": "bar"}],
    }  # fmt: skip
    for number, (name, labels) in enumerate(images(root / "images").items(), start=1):
        content["images"].append({"id": number, "file_name": f"{name}.png", "height": SIZE[0], "width": SIZE[1]})
        for category, label in ((3, 1), (7, 2)):
            outline = max(cv2.findContours((labels == label).astype(np.uint8), 0, 2)[0], key=len).ravel().tolist()
            content["annotations"].append(
                {"id": 10 * number + label, "image_id": number, "category_id": category, "segmentation": [outline]}
            )
    (root / "instances.json").write_text(json.dumps(content))
    return root / "instances.json"


@pytest.mark.parametrize(
    ("build", "kind", "classes", "metric", "num_folds"),
    [
        (folder_of_labels, "multiclass", ["ground", "disk", "bar"], "iou", 1),
        (csv_of_runs, "binary", ["foreground"], "dice", 2),
        (parquet_of_masks, "binary", ["foreground"], "dice", 2),
        (coco_of_two_categories, "multiclass", ["background", "disk", "bar"], "iou", 2),
    ],
)
def test_every_source_needs_nothing_but_its_place(
    tmp_path: Path, build: Callable[[Path], Path], kind: str, classes: list[str], metric: str, num_folds: int
) -> None:
    (tmp_path / "data").mkdir()
    data, folder = build(tmp_path / "data"), tmp_path / "run"
    run = maskloom.fit("default", data, run=folder, settings=SMALL, device="cpu", workers=0)
    found = run.evaluate()
    assert read_json(folder / "data" / "source.json")["task"] == {"kind": kind, "classes": classes}
    assert found["metric"] == metric and len(found["oof"]["folds"]) == num_folds
    assert set(found["oof"]["classes"]) == set(classes) and 0 <= found["oof"]["mean"] <= 1
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8")
    write(tmp_path / "new.png", scene(9)[0])
    assert run.predict(tmp_path / "new.png", out=tmp_path / "out").num_written == 1
    mask = cv2.imread(str(tmp_path / "out" / "new.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == SIZE and set(np.unique(mask)) <= ({0, 255} if kind == "binary" else {0, 1, 2})
