"""Predicted masks as rows of run lengths, in files of a chunk of images each: the resumable unit of long predictions.

A killed prediction repeats at most one chunk; the rows are the same whatever happened on the way.
"""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskloom.encodings.rle import encode_runs
from maskloom.errors import BadFile
from maskloom.files import write_text
from maskloom.inference.streaming import Source, predict_records
from maskloom.integrity import Ledger
from maskloom.records import ClassMap, Record, Size, Task

CHUNK = 64
"""Images per file of rows."""

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the run lengths of one large mask exceed the standard 128 kB


@dataclass(frozen=True, slots=True)
class Row:
    """One class of one predicted mask: row-major, one-based run lengths."""

    record_id: str
    class_name: str
    size: Size
    runs: str


def chunks_in(folder: Path) -> list[Path]:
    """Returns the files of rows in a folder, in their order; what else lies there is not ours."""
    return sorted(folder.glob("[0-9]" * 6 + ".csv"))


def write_rows(
    predict: Callable[[Source], dict[str, np.ndarray]],
    records: Sequence[Record],
    folder: Path,
    task: Task,
    *,
    decide: Callable[[dict[str, np.ndarray]], np.ndarray],
    read: Callable[[Record], Source],
    ledger: Ledger,
    also: Callable[[ClassMap], None] | None = None,
    on_bad: Callable[[Record, BadFile], object] | None = None,
    on_progress: Callable[[int, int], object] | None = None,
) -> list[Path]:
    """Returns the files of rows below ``folder``, in the records' order.

    Those of an earlier attempt are kept where they are what the ``ledger`` knows; it remembers the others. ``decide``
    turns 8-bit maps C×H×W by name (the result and taps) into labels; ``also`` is given every decided mask, from several
    threads.
    """
    paths = chunk_files(records, folder)
    for number, path in enumerate(paths):
        if ledger.is_sound(path, thorough=True):  # since it is read when all are there
            continue

        def advance(done: int, _: int, first: int = number * CHUNK) -> None:
            if on_progress is not None:
                on_progress(first + done, len(records))

        chunk = chunk_of(records, number)
        write_chunk(predict, chunk, path, task, decide=decide, read=read, also=also, on_bad=on_bad, on_progress=advance)
        ledger.add(path)
    return paths


def chunk_files(records: Sequence[Record], folder: Path) -> list[Path]:
    """Returns the files of rows below ``folder``, in the records' order."""
    return [chunk_file(folder, number) for number in range(math.ceil(len(records) / CHUNK))]


def chunk_file(folder: Path, number: int) -> Path:
    """Returns one of the files of rows, which are counted from 0."""
    return folder / f"{number:06d}.csv"


def chunk_of(records: Sequence[Record], number: int) -> Sequence[Record]:
    """Returns the records whose rows are in one of the files."""
    return records[number * CHUNK : (number + 1) * CHUNK]


def write_chunk(
    predict: Callable[[Source], dict[str, np.ndarray]],
    records: Sequence[Record],
    path: Path,
    task: Task,
    *,
    decide: Callable[[dict[str, np.ndarray]], np.ndarray],
    read: Callable[[Record], Source],
    also: Callable[[ClassMap], None] | None = None,
    on_bad: Callable[[Record, BadFile], object] | None = None,
    on_progress: Callable[[int, int], object] | None = None,
) -> None:
    """Writes the rows of these records into one file; see ``write_rows``."""
    rows: dict[str, list[Row]] = {}

    def consume(record: Record, maps: dict[str, np.ndarray]) -> None:
        labels = decide(maps)
        if also is not None:
            also(ClassMap(id=record.id, labels=labels))
        rows[record.id] = rows_of(record.id, labels, task)

    predict_records(predict, records, consume, read=read, on_bad=on_bad, on_progress=on_progress)
    write_text(path, _to_text(row for record in records for row in rows.get(record.id, [])))


def rows_of(record_id: str, labels: np.ndarray, task: Task) -> list[Row]:
    """Returns one row per class from labels H×W (binary, multiclass) or C×H×W (multilabel)."""
    if task.kind == "multilabel":
        masks = [layer == 1 for layer in labels]
    else:
        masks = [labels == (1 if task.kind == "binary" else index) for index in range(task.num_maps)]
    return [
        Row(record_id, name, mask.shape, encode_runs(mask, order="row", base=1))
        for name, mask in zip(task.classes, masks, strict=True)
    ]


def read_rows(files: Sequence[Path]) -> Iterator[Row]:
    """Returns the rows one by one, so that memory stays flat."""
    for path in files:
        with path.open(encoding="utf-8", newline="") as stream:
            for record_id, class_name, height, width, runs in csv.reader(stream):
                yield Row(record_id, class_name, (int(height), int(width)), runs)


def _to_text(rows: Iterator[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        writer.writerow([row.record_id, row.class_name, *row.size, row.runs])
    return text.getvalue()
