"""Pictures whose pixels say where they are: red is the column, green the row; the label follows from both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from maskloom.data.augment import PRESETS
from maskloom.data.dataset import SegmentationDataset
from maskloom.data.input_policy import InputPolicy
from maskloom.data.mask_coding import MaskCoding
from maskloom.records import MaskFile, Record, Size, Task

CLASSES = 5
TASK = Task(kind="multiclass", classes=tuple(f"class {number}" for number in range(CLASSES)))
CODING = MaskCoding(kind="values", values=tuple((label, label) for label in range(CLASSES)))


def picture(size: Size) -> np.ndarray:
    """Returns H×W×3 uint8; sides up to 256."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    return np.stack([columns, rows, (rows * 3 + columns) % 256], axis=2).astype(np.uint8)


def label_of(columns: Any, rows: Any) -> Any:
    """Returns the label of the pixel there; works on arrays and tensors alike."""
    return (columns * 2 + rows) % CLASSES


def write_records(folder: Path, sizes: list[Size]) -> list[Record]:
    records = []
    for number, size in enumerate(sizes):
        image, mask = folder / f"{number}.png", folder / f"{number}_mask.png"
        pixels = picture(size)
        labels = label_of(pixels[..., 0].astype(int), pixels[..., 1].astype(int))
        cv2.imwrite(str(image), pixels[..., ::-1])
        cv2.imwrite(str(mask), labels.astype(np.uint8))
        records.append(Record(id=str(number), image=image, size=size, truth=MaskFile(path=mask)))
    return records


def make_dataset(records: list[Record], policy: InputPolicy, **changes: Any) -> SegmentationDataset:
    settings: dict[str, Any] = {"task": TASK, "coding": CODING, "augment": PRESETS["none"], "seed": 3}
    return SegmentationDataset(records=records, policy=policy, **(settings | changes))
