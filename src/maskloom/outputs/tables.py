"""Masks as tables: contest CSV with run lengths, written, read and checked against a sample; COCO results as JSON.

Both writers stream, take masks from several threads, and their file appears whole or not at all. Rows of a submission
may arrive in any order and are written in the stated one. Equal masks give equal bytes, compressed or not. Knows
nothing about single contests: a contest states its columns, suffix, order and base as a ``SubmissionFormat``.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from maskloom.encodings.rle import Base, Order, check_runs, coco_encode, decode_runs, encode_runs
from maskloom.encodings.table_files import open_table, text_writer
from maskloom.errors import BadFile, UserError, some_of
from maskloom.masks import components
from maskloom.outputs.ordered import ordered_table
from maskloom.records import BadSize, Size, Task


@dataclass(frozen=True, kw_only=True, slots=True)
class SubmissionFormat:
    """The columns of a table of run lengths, and how names and pixels are counted.

    ``columns`` is the header: name and run lengths, or name, class and run lengths where an image has one row per
    class. The default is Carvana's: row-major, one-based. ``name_suffix`` is what the contest's names have and record
    ids have not (".jpg").
    """

    columns: tuple[str, ...] = ("img", "rle_mask")
    name_suffix: str = ""
    order: Order = "row"
    base: Base = 1

    def __post_init__(self) -> None:
        if len(self.columns) not in (2, 3) or len(set(self.columns)) != len(self.columns):
            raise ValueError(f"expected the columns (name, runs) or (name, class, runs), got {self.columns}")

    @property
    def has_classes(self) -> bool:
        """Whether each row is of one class."""
        return len(self.columns) == 3

    def name(self, record_id: str) -> str:
        """Returns the name that stands in the table for a record's id."""
        return record_id + self.name_suffix

    def encode(self, mask: np.ndarray) -> str:
        """Returns the run lengths of a bool mask H×W as this format counts them."""
        return encode_runs(mask, order=self.order, base=self.base)

    def decode(self, runs: str, size: Size) -> np.ndarray:
        """Returns the bool mask H×W of run lengths written in this format."""
        return decode_runs(runs, size, order=self.order, base=self.base)

    def check(self, runs: str, size: Size) -> None:
        """Raises ``UserError`` unless these are run lengths in this format of an image of the size."""
        check_runs(runs, size, base=self.base)


class SubmissionRow(NamedTuple):
    """One row of a table: the image's name, the class's (empty where there is no such column), the run lengths."""

    name: str
    class_name: str
    runs: str


class SubmissionWriter:
    """Writes a submission; a context manager, and nothing is left behind when its block fails.

    ``names`` is the order of the rows (a sample's, or the records'); every one of them, once per entry of
    ``classes``, must have come when the block ends. Without ``names``, rows are written as they come. A path ending
    in ``.gz`` is compressed, without a time stamp.
    """

    def __init__(
        self,
        path: Path,
        form: SubmissionFormat,
        *,
        names: Sequence[str] | None = None,
        classes: Sequence[str] = ("",),
    ) -> None:
        keys = None if names is None else [(name, label) for name in names for label in classes]
        self._form = form
        self._table = ordered_table(path, form.columns, keys, cells=self._cells, named=_named)

    def __enter__(self) -> Self:
        """Opens the file under a temporary name and writes the header."""
        self._order = self._table.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """Puts the file in place, or removes it after an error; raises ``UserError`` when rows are missing."""
        return self._table.__exit__(kind, error, trace)

    def write(self, name: str, runs: str | np.ndarray, class_name: str = "") -> None:
        """Takes one row: run lengths as text in this format, or the bool mask H×W. May be called from any thread."""
        if bool(class_name) != self._form.has_classes:
            raise ValueError(f"{name!r}: class {class_name!r} does not fit the columns {self._form.columns}")
        self._order.put((name, class_name), runs if isinstance(runs, str) else self._form.encode(runs))

    def _cells(self, key: tuple[str, str], runs: str) -> tuple[str, ...]:
        return (*key, runs) if self._form.has_classes else (key[0], runs)


# Reading and checking -----------------------------------------------------------------------------------------------


def read_submission(path: Path, form: SubmissionFormat) -> Iterator[SubmissionRow]:
    """Returns the rows of a submission, one at a time; raises ``BadFile`` when its columns are not the format's."""
    with open_table(path) as rows:
        header = tuple(next(rows, ()))
        if header != form.columns:
            raise BadFile(path, f"expected the columns {','.join(form.columns)}, found {','.join(header)[:200]}")
        for number, row in enumerate(rows, start=2):
            if len(row) != len(header):
                raise BadFile(path, f"expected {len(header)} columns in row {number}, found {len(row)}")
            yield SubmissionRow(row[0], row[1] if form.has_classes else "", row[-1])


def read_names(path: Path, form: SubmissionFormat) -> list[str]:
    """Returns the images' names of a submission in their order, each once."""
    return list(dict.fromkeys(row.name for row in read_submission(path, form)))


def check_against_sample(names: Collection[str], sample: Path, form: SubmissionFormat) -> None:
    """Raises ``UserError``, naming up to five each way, unless ``names`` are exactly the sample's, in any order."""
    _check_same(set(names), set(read_names(sample, form)), sample, "images")


def validate_submission(
    path: Path, sample: Path, form: SubmissionFormat, *, size_of: Callable[[str], Size] | None = None
) -> None:
    """Raises ``UserError`` unless the submission has the sample's columns and rows, each once, in any order.

    With ``size_of`` (name → (height, width)) every row's run lengths are checked as well.
    """
    found: set[tuple[str, str]] = set()
    for row in read_submission(path, form):
        key = (row.name, row.class_name)
        if key in found:
            raise BadFile(path, f"found two rows for {_named(key)!r}, expected one")
        found.add(key)
        if size_of is not None:
            try:
                form.check(row.runs, size_of(row.name))
            except UserError as error:
                raise BadFile(path, f"row {row.name!r}: {error}") from None
    expected = {(row.name, row.class_name) for row in read_submission(sample, form)}
    _check_same({_named(key) for key in found}, {_named(key) for key in expected}, sample)


def _check_same(found: set[str], expected: set[str], sample: Path, what: str = "rows") -> None:
    missing, extra = sorted(expected - found), sorted(found - expected)
    if missing or extra:
        parts = [f"{len(missing)} missing: {some_of(missing)}"] * bool(missing)
        parts += [f"{len(extra)} not in the sample: {some_of(extra)}"] * bool(extra)
        raise UserError(
            f"expected exactly the {len(expected)} {what} of {sample.name}, found {len(found)} "
            f"({'; '.join(parts)}); predict the images the sample names"
        )


def _named(key: tuple[str, str]) -> str:
    return " ".join(filter(None, key))


# COCO ---------------------------------------------------------------------------------------------------------------


def coco_categories(task: Task) -> dict[int, int]:
    """Returns the COCO category id of each class index that is exported.

    Multiclass: the label value itself, so that painting ids gives the label map; a class named "background" at 0 is
    not exported. Binary and multilabel: 1, 2, ….
    """
    if task.kind != "multiclass":
        return {index: index + 1 for index in range(task.num_maps)}
    first = 1 if task.classes[0].lower() == "background" else 0
    return {index: index for index in range(first, task.num_maps)}


class CocoWriter:
    """Writes decided masks as COCO JSON: one annotation per 8-connected component; a context manager.

    Images and annotations are numbered from 1 in the order in which they come; boxes are [x, y, width, height] in
    pixels, segmentations compressed run lengths. Annotations are streamed; of an image only its name and size stay in
    memory, to be written last.
    """

    def __init__(self, path: Path, task: Task) -> None:
        self._path = path
        self._categories = {task.classes[index]: value for index, value in coco_categories(task).items()}
        self._classes = task.classes
        self._images: dict[str, dict[str, Any]] = {}
        self._num_annotations = 0
        self._lock = threading.Lock()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Opens the file under a temporary name."""
        with ExitStack() as stack:
            self._stream = stack.enter_context(text_writer(self._path))
            self._stream.write('{\n"annotations": [')
            stack.push(self._finish)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """Puts the file in place, or removes it after an error."""
        return self._stack.__exit__(kind, error, trace)

    def write(self, record_id: str, file_name: str, class_name: str, mask: np.ndarray) -> None:
        """Takes the bool mask H×W of one class of one record; an empty mask still lists the image.

        ``file_name`` is the image's, relative to the images' folder. Raises ``BadSize`` when the masks of a record
        differ in size, ``ValueError`` for a class that the task does not have.
        """
        if class_name not in self._classes:
            raise ValueError(f"{record_id!r}: class {class_name!r} is not among {self._classes}")
        size = (mask.shape[0], mask.shape[1])
        pieces = list(_annotations(mask, size)) if class_name in self._categories else []
        with self._lock:
            entry = {"id": len(self._images) + 1, "file_name": file_name, "height": size[0], "width": size[1]}
            image = self._images.setdefault(record_id, entry)
            if size != (image["height"], image["width"]):
                raise BadSize(record_id, (image["height"], image["width"]), size)
            for piece in pieces:
                separator = ",\n" if self._num_annotations else "\n"
                self._num_annotations += 1
                owner = {"image_id": image["id"], "category_id": self._categories[class_name]}
                self._stream.write(separator + _line({"id": self._num_annotations, **owner, **piece}))

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return
        categories = ({"id": value, "name": name} for name, value in self._categories.items())
        for name, entries in (("images", self._images.values()), ("categories", categories)):
            self._stream.write(f'\n],\n"{name}": [\n' + ",\n".join(map(_line, entries)))
        self._stream.write("\n]\n}\n")


def _annotations(mask: np.ndarray, size: Size) -> Iterator[dict[str, Any]]:
    for piece in components(mask):
        box = piece.window
        yield {
            "bbox": [box.left, box.top, box.width, box.height],
            "area": piece.area,
            "segmentation": coco_encode(piece.mask, (box.top, box.left), size),
            "iscrowd": 0,
        }


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
