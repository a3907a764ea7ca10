"""Pictures of the report: an image whose files are gone, or are others now, is left out and the page is written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from maskloom.data.image_io import write_png
from maskloom.data.mask_coding import MaskCoding
from maskloom.data.sources.base import DataSource
from maskloom.records import MaskFile, Record, Task
from maskloom.run_directory import RunDirectory
from maskloom.stages import reporting

SIZE = (8, 12)
NAMES = ("good", "other_mask", "other_image", "no_mask", "no_picture")


@pytest.fixture
def source(tmp_path: Path) -> DataSource:
    """Five images of two classes, four of which have changed since their sizes were read."""
    records = []
    for name in NAMES:
        image, mask = tmp_path / f"{name}.png", tmp_path / "masks" / f"{name}.png"
        write_png(image, np.full((*SIZE, 3), 90, np.uint8))
        write_png(mask, np.eye(*SIZE, dtype=np.uint8))
        records.append(Record(id=name, image=image, size=SIZE, truth=MaskFile(path=mask)))
    write_png(tmp_path / "masks" / "other_mask.png", np.zeros((5, 5), np.uint8))
    write_png(tmp_path / "other_image.png", np.zeros((5, 5, 3), np.uint8))
    (tmp_path / "masks" / "no_mask.png").unlink()
    (tmp_path / "no_picture.png").write_text("text")
    task = Task(kind="multiclass", classes=("road", "car"))
    coding = MaskCoding(kind="values", values=((0, 0), (1, 1)))
    return DataSource(layout="folder", root=tmp_path, task=task, coding=coding, records=tuple(records))


def test_examples_whose_files_changed_are_left_out(
    source: DataSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "_decided", lambda *_: np.ones(SIZE, np.uint8))
    rows = [{"id": name, "fold": 0, "dice": 0.5, "iou": 0.4} for name in NAMES]
    errors = {"worst": [{"class": "car", "images": [{"id": name, "score": 0.5, "wrong": 9} for name in NAMES]}]}
    ensemble: Any = SimpleNamespace(metric="dice", scores={"oof": {"classes": {"road": 1.0, "car": 0.5}}})
    common: Any = (RunDirectory(tmp_path), source, ensemble, SimpleNamespace(), rows)
    (example,) = reporting._examples(*common)
    assert example.id == "good" and np.array_equal(example.truth, np.eye(*SIZE))
    for name in NAMES:
        errors["worst"][0]["images"] = [{"id": name, "score": 0.5, "wrong": 9}]
        assert [each.id for each in reporting._class_examples(*common, errors)] == ["good"] * (name == "good")
