"""The words every floor shares: record, truth, task, sample, probability map, class map.

All are frozen and checked when made. Sizes are (height, width) in pixels; label arrays are uint8 and use ``IGNORE``
for pixels that count in no loss and no metric. Knows nothing about files' contents, networks or contests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from maskloom.errors import UserError

Size = tuple[int, int]
"""(height, width) in pixels."""

IGNORE = 255
"""The one label value of pixels that count in no loss and no metric."""

TaskKind = Literal["binary", "multiclass", "multilabel"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What is to be predicted.

    ``binary``: one map, ``classes`` holds the one foreground name. ``multiclass``: exclusive labels 0…n-1, in the
    order of ``classes`` (a background class is a class like any other). ``multilabel``: one map per class, overlaps
    allowed.
    """

    kind: TaskKind
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(set(self.classes)) != len(self.classes):
            raise UserError(f"class names must differ from each other, found {list(self.classes)}")
        if self.kind == "binary" and len(self.classes) != 1:
            raise UserError(f"a binary task has one foreground class, found {list(self.classes)}")
        if self.kind == "multiclass" and not 2 <= len(self.classes) <= 255:
            raise UserError(f"a multiclass task has 2 to 255 classes, found {len(self.classes)}")
        if self.kind == "multilabel" and not self.classes:
            raise UserError("a multilabel task needs at least one class, found none")

    @property
    def num_maps(self) -> int:
        """The number of probability maps, which is the number of the network's output channels."""
        return len(self.classes)


def usual_size(sizes: Iterable[Size]) -> Size:
    """Returns the size (height, width) that is the most frequent one; of equally frequent ones the first."""
    ((size, _),) = Counter(sizes).most_common(1)
    return size


def is_part(part: Task, whole: Task) -> bool:
    """Returns whether a network for one task serves another: the same, or some classes of a multilabel task."""
    both_multilabel = part.kind == whole.kind == "multilabel"
    return part == whole or (both_multilabel and set(part.classes) <= set(whole.classes))


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskFile:
    """Truth as an image file of values, palette indices or colours.

    ``coded`` says what the stored values mean: "source" what the data's mask coding says; "labels" the labels
    themselves, 0…n-1 and IGNORE, in a multilabel task the maps of 0, 1 and IGNORE below each other (C·H×W).
    """

    path: Path
    coded: Literal["source", "labels"] = "source"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunLengths:
    """Truth as ``start length`` text per class.

    ``runs`` pairs a class index with its text; ``order`` is how pixels are counted ("row": along rows first, as
    Carvana; "column": down columns first, as COCO and most Kaggle contests); ``base`` is the number of the first
    pixel.
    """

    runs: tuple[tuple[int, str], ...]
    order: Literal["row", "column"]
    base: Literal[0, 1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shapes:
    """Truth as WKT polygons per class index, in pixel coordinates: x to the right, y down, (0, 0) the outer corner.

    ``known`` is the box (left, top, right, bottom) outside of which nobody knows the truth, or None: all is known.
    """

    wkt: tuple[tuple[int, str], ...]
    known: tuple[float, float, float, float] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoSegments:
    """Truth as COCO segmentations per class index: lists of polygons, or run-length dictionaries."""

    segments: tuple[tuple[int, Any], ...]


Truth = MaskFile | RunLengths | Shapes | CocoSegments


@dataclass(frozen=True, kw_only=True, slots=True)
class BandFile:
    """A further raster of a record's ground, whose bands follow those of the record's image, brought to its grid.

    Files that say where they lie are brought together by that; where none does, both cover the same ground and differ
    in resolution only. One that says it and one that does not are refused.
    """

    path: Path
    resampling: Literal["nearest", "bicubic"] = "bicubic"
    moved: tuple[float, float, float, float, float, float] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    """(a, b, c, d, e, f): what should lie at (x, y) in pixels of this file lies at (a·x + b·y + c, d·x + e·y + f), as
    registration finds; pixel coordinates begin at the outer corner of the first pixel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One image to be segmented.

    ``image`` is its file; ``bands`` are further files of the same ground, stacked behind it. ``id`` names it in tables
    and output files (posix form, sub-folders allowed, no file suffix unless the contest has one); ``group`` is what
    must not be split over folds (car, scene, patient); ``split`` is "train" or "val" where the data came with fixed
    folders, else "".
    """

    id: str
    image: Path
    size: Size
    truth: Truth | None = None
    group: str = ""
    split: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    bands: tuple[BandFile, ...] = ()

    def __post_init__(self) -> None:
        check_id(self.id)
        if len(self.size) != 2 or min(self.size) < 1:
            raise UserError(f"record {self.id!r}: size must be (height, width) of at least 1, found {self.size}")
        if not self.group:
            object.__setattr__(self, "group", self.id)


_UNSAFE = '\\:*?"<>|'
_MOST_BYTES = 240  # of a part of a name; what is written beside has a few letters more


def check_id(record_id: str) -> None:
    """Raises ``UserError`` unless the id can safely become a file name below an output folder.

    An id is used as a relative path: empty parts, ``..``, absolute paths, backslashes, drive letters and control
    characters are refused, since a table from elsewhere could otherwise write outside the run, and what no file of
    Windows may be called.
    """
    parts = PurePosixPath(record_id).parts
    unsafe = (
        not record_id
        or record_id.startswith("/")
        or record_id != "/".join(parts)
        or any(part in {"..", "."} or len(part.encode()) > _MOST_BYTES for part in parts)
        or any(ord(char) < 32 or char in _UNSAFE for char in record_id)
    )
    if unsafe:
        raise UserError(
            f"id {record_id!r} cannot name an output file: expected a relative name without '..', control characters "
            f"and {' '.join(_UNSAFE)}, of parts of at most {_MOST_BYTES} bytes; rename it in the data"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One record's arrays: image H×W×C (uint8, uint16 or float32, as stored) and labels.

    ``labels`` is uint8, H×W for binary (0, 1, IGNORE) and multiclass, C×H×W of 0, 1, IGNORE for multilabel, or
    None without truth.
    """

    id: str
    image: np.ndarray
    labels: np.ndarray | None

    def __post_init__(self) -> None:
        if self.image.ndim != 3:
            raise ValueError(f"sample {self.id!r}: image must be H×W×C, got shape {self.image.shape}")
        if self.labels is not None and self.labels.shape[-2:] != self.image.shape[:2]:
            raise BadSize(self.id, self.image.shape[:2], self.labels.shape[-2:])


class BadSize(UserError):
    """Image and mask of one record differ in size."""

    def __init__(self, record_id: str, image: Size, mask: Size) -> None:
        super().__init__(
            f"{record_id}: the mask is {mask[1]}×{mask[0]} (width×height), expected the image's {image[1]}×{image[0]}; "
            "export the mask again at the image's size"
        )
        self._arguments = (record_id, image, mask)

    def __reduce__(self) -> tuple[type[BadSize], tuple[str, Size, Size]]:
        return (BadSize, self._arguments)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbabilityMap:
    """Probabilities of one record as stored: ``values`` uint8 C×H×W, round(255·p)."""

    id: str
    values: np.ndarray

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or self.values.dtype != np.uint8:
            raise ValueError(f"{self.id!r}: expected uint8 C×H×W, got {self.values.dtype} {self.values.shape}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassMap:
    """The decided mask of one record: uint8 labels H×W (binary 0/1, multiclass), or C×H×W of 0/1 (multilabel)."""

    id: str
    labels: np.ndarray

    def __post_init__(self) -> None:
        if self.labels.ndim not in (2, 3) or self.labels.dtype != np.uint8:
            raise ValueError(f"{self.id!r}: expected uint8 H×W or C×H×W, got {self.labels.dtype} {self.labels.shape}")
