"""Truth of a record to labels: mask files, run lengths, shapes and COCO segments, at the image's size.

Labels are uint8: H×W of 0, 1, IGNORE (binary) or 0…n-1, IGNORE (multiclass); C×H×W of 0, 1, IGNORE (multilabel).
Knows nothing about where records come from.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np

from maskloom.data.image_io import read_mask_values
from maskloom.data.mask_coding import MaskCoding, apply_known
from maskloom.data.mask_files import read_stored
from maskloom.data.record_images import read_record_image
from maskloom.data.scene_validity import without_nodata
from maskloom.encodings import polygons, rle
from maskloom.errors import BadFile, UserError
from maskloom.records import IGNORE, BadSize, CocoSegments, MaskFile, Record, RunLengths, Sample, Shapes, Size, Task
from maskloom.windows import Window

_SMALL = 2**18
"""Pixels of images whose painted polygons are kept, in each process: 256 MiB at most."""


def read_truth(record: Record, task: Task, coding: MaskCoding) -> np.ndarray:
    """Returns the labels of a record: uint8 H×W (binary, multiclass) or C×H×W (multilabel).

    Run lengths, shapes and COCO segments are painted in their order: in a multiclass task a later class covers an
    earlier one, and what nothing covers is label 0. Where the image's files know no value (nodata), it is ``IGNORE``,
    and so it is where a mask file knows none and its value is no class (``apply_known``).
    Raises ``BadFile`` or ``BadSize``.
    """
    if record.truth is None:
        raise ValueError(f"record {record.id!r} has no truth")
    labels = _stored_truth(record, task, coding)
    if isinstance(record.truth, Shapes):
        hide_unknown(labels, record.truth, Window(0, 0, *record.size))
    return without_nodata(labels, record)


def hide_unknown(labels: np.ndarray, truth: Shapes, window: Window) -> None:
    """Makes labels …×H×W of a window ``IGNORE`` where the centres of its pixels lie outside of what is known."""
    if truth.known is None:
        return
    left, top, right, bottom = truth.known
    rows = np.arange(window.top, window.top + window.height) + 0.5
    columns = np.arange(window.left, window.left + window.width) + 0.5
    labels[..., (rows < top) | (rows > bottom), :] = IGNORE
    labels[..., (columns < left) | (columns > right)] = IGNORE


def _stored_truth(record: Record, task: Task, coding: MaskCoding) -> np.ndarray:
    if isinstance(record.truth, MaskFile):
        return _read_mask_file(record, record.truth, task, coding)
    labels = np.zeros((task.num_maps, *record.size) if task.kind == "multilabel" else record.size, np.uint8)
    for label, mask in pieces(record, record.size):
        if task.kind == "multilabel":
            labels[label][mask] = 1
        else:
            labels[mask] = 1 if task.kind == "binary" else label
    return labels


def _read_mask_file(record: Record, truth: MaskFile, task: Task, coding: MaskCoding) -> np.ndarray:
    if truth.coded == "labels":
        return _read_labels(record, truth, task)
    stored, is_valid = read_stored(truth.path, colours=coding.kind == "colours")
    if stored.shape[:2] != record.size:
        raise BadSize(record.id, record.size, (stored.shape[0], stored.shape[1]))
    labels = apply_known(coding, stored, is_valid, truth.path)
    if task.kind != "multilabel":
        return labels
    maps = np.stack([labels == label for label in range(task.num_maps)]).astype(np.uint8)
    maps[:, labels == IGNORE] = IGNORE
    return maps


def _read_labels(record: Record, truth: MaskFile, task: Task) -> np.ndarray:
    """Returns labels that are stored as they are."""
    labels = read_mask_values(truth.path)
    num_maps, num_labels = (task.num_maps, 2) if task.kind == "multilabel" else (1, max(task.num_maps, 2))
    if labels.ndim != 2 or labels.shape != (num_maps * record.size[0], record.size[1]):
        raise BadSize(record.id, record.size, (labels.shape[0] // num_maps, labels.shape[1]))
    if labels.dtype != np.uint8 or np.any((labels >= num_labels) & (labels != IGNORE)):
        raise BadFile(truth.path, f"expected the labels 0 to {num_labels - 1} and {IGNORE}, found others")
    return labels.reshape(num_maps, *record.size) if task.kind == "multilabel" else labels


def _painted(wkt: str, size: Size) -> np.ndarray:
    """Returns the bool mask H×W of polygons; those of small images are kept, since they may be long and drawn often."""
    return _kept(wkt, size) if size[0] * size[1] <= _SMALL else polygons.rasterize_wkt(wkt, size)


@lru_cache(maxsize=1024)
def _kept(wkt: str, size: Size) -> np.ndarray:
    mask = polygons.rasterize_wkt(wkt, size)
    mask.flags.writeable = False
    return mask


def pieces(record: Record, size: Size) -> Iterable[tuple[int, np.ndarray]]:
    """Yields (class index, bool mask H×W) of a record's runs, shapes or segments."""
    truth = record.truth
    try:
        if isinstance(truth, RunLengths):
            for label, text in truth.runs:
                yield label, rle.decode_runs(text, size, order=truth.order, base=truth.base)
        elif isinstance(truth, Shapes):
            for label, wkt in truth.wkt:
                yield label, _painted(wkt, size)
        elif isinstance(truth, CocoSegments):
            for label, segment in truth.segments:
                yield label, _coco_mask(record, segment, size)
    except BadSize:
        raise
    except UserError as error:
        raise BadFile(record.image, f"the truth of record {record.id!r} cannot be read: {error}") from None


def _coco_mask(record: Record, segment: Any, size: Size) -> np.ndarray:
    if not isinstance(segment, dict):
        return polygons.rasterize_coco(segment, size)
    mask = rle.coco_decode(segment)
    if mask.shape != size:
        raise BadSize(record.id, size, (mask.shape[0], mask.shape[1]))
    return mask


def read_sample(record: Record, task: Task, coding: MaskCoding) -> Sample:
    """Returns the record's image as stored and its labels (None without truth); raises ``BadFile`` or ``BadSize``."""
    image = read_record_image(record)
    if image.shape[:2] != record.size:
        found = f"{image.shape[1]}×{image.shape[0]}"
        raise BadFile(record.image, f"the image is {found} now, it was {record.size[1]}×{record.size[0]} when opened")
    labels = None if record.truth is None else read_truth(record, task, coding)
    return Sample(id=record.id, image=image, labels=labels)
