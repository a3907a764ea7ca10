"""Masks and probabilities as PNG files below an output folder, named by record id. Knows nothing about tables.

Binary and multiclass records give ``<id>.png``; where there is one map per class, ``<id>/<class>.png``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maskloom.data.image_io import write_png
from maskloom.records import ClassMap, ProbabilityMap, Task, check_id

_UNSAFE = re.compile(r'[\x00-\x1f\\/:*?"<>|]')


def write_mask(folder: Path, class_map: ClassMap, task: Task) -> list[Path]:
    """Writes a decided mask and returns its files.

    Binary: 0 and 255. Multiclass: the labels 0…n-1 as 8-bit grey. Multilabel: one file of 0 and 255 per class.
    """
    labels = class_map.labels
    if labels.ndim != (3 if task.kind == "multilabel" else 2):
        raise ValueError(f"{class_map.id!r}: labels of shape {labels.shape} do not fit a {task.kind} task")
    values = labels if task.kind == "multiclass" else (labels == 1).astype(np.uint8) * np.uint8(255)
    return _write(mask_paths(folder, class_map.id, task), values)


def write_colours(folder: Path, class_map: ClassMap, palette: Sequence[tuple[int, int, int]]) -> list[Path]:
    """Writes labels H×W of exclusive classes as a picture of the colours (red, green, blue) of each label."""
    (path,) = _picture(folder, class_map.id)
    write_png(path, np.array(palette, np.uint8)[class_map.labels])
    return [path]


def write_probabilities(folder: Path, probabilities: ProbabilityMap, task: Task) -> list[Path]:
    """Writes 8-bit probabilities, round(255·p), and returns the files: one for binary, else one per class."""
    values = probabilities.values
    if len(values) != task.num_maps:
        raise ValueError(f"{probabilities.id!r}: expected {task.num_maps} maps, got {len(values)}")
    return _write(probability_paths(folder, probabilities.id, task), values)


def _write(paths: list[Path], pixels: np.ndarray) -> list[Path]:
    for path, layer in zip(paths, pixels.reshape(-1, *pixels.shape[-2:]), strict=True):
        write_png(path, layer)
    return paths


def mask_paths(folder: Path, record_id: str, task: Task) -> list[Path]:
    """Returns the files that ``write_mask`` writes; raises ``UserError`` for an id that could lead outside."""
    return class_paths(folder, record_id, task.classes) if task.kind == "multilabel" else _picture(folder, record_id)


def probability_paths(folder: Path, record_id: str, task: Task) -> list[Path]:
    """Returns the files that ``write_probabilities`` writes; raises ``UserError`` for an id that could lead outside."""
    return _picture(folder, record_id) if task.kind == "binary" else class_paths(folder, record_id, task.classes)


def _picture(folder: Path, record_id: str) -> list[Path]:
    check_id(record_id)
    return [folder / f"{record_id}.png"]


def class_paths(folder: Path, record_id: str, classes: Sequence[str]) -> list[Path]:
    """Returns ``<folder>/<id>/<class>.png`` per class; raises ``UserError`` for an id that could lead outside.

    What no file name may hold becomes ``_`` in a class's name; names that are then equal get their class's number.
    """
    check_id(record_id)
    names = [_UNSAFE.sub("_", name)[:100].lstrip(".") or "_" for name in classes]
    folded = [name.casefold() for name in names]
    unique = [name if folded.count(name.casefold()) == 1 else f"{name}-{index}" for index, name in enumerate(names)]
    return [folder / record_id / f"{name}.png" for name in unique]
