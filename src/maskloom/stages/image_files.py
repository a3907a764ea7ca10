"""What is written for single images, here or by workers: masks, maps, and the two tables of all images.

Workers open the run once and are given shards of the images; the process that was started writes the tables. Knows
nothing about how images are found.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from maskloom.encodings.rle import decode_runs
from maskloom.errors import BadFile
from maskloom.executors.tasks import Call, Executor, Here, ShardProgress, shards
from maskloom.files import fingerprint
from maskloom.inference.merging import RESULT
from maskloom.inference.streaming import predict_records
from maskloom.integrity import Ledger
from maskloom.outputs.maps import mask_paths, probability_paths, write_mask, write_probabilities
from maskloom.outputs.tables import CocoWriter, SubmissionFormat, SubmissionWriter
from maskloom.progress import Progress
from maskloom.records import ClassMap, ProbabilityMap, Record, Task
from maskloom.run_directory import RunDirectory
from maskloom.stages.rows import read_rows, write_rows
from maskloom.stages.scoring import image_reader
from maskloom.stages.shared_rows import SharedTable, Together
from maskloom.storage.placeholders import changed_ns

if TYPE_CHECKING:
    from maskloom.stages.images import Opened

FORMATS = ("png", "prob", "rle", "coco")
TABLES = {"rle": "predictions.csv.gz", "coco": "predictions.json"}
"""The formats of one file for all images, which several processes may write together."""
SHARED = ".images"
"""The folder, beside what is written, of what the processes tell each other."""
SHARD = 32
"""Images that a worker is given at a time, at most."""
_SEEN = ".seen"
"""The suffix of files, in the folder above, that tell of which version of each image the files are."""

OnBad = Callable[[Record, BadFile], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What is written for images, and where."""

    run: RunDirectory
    out: Path
    to: str
    skip_bad: bool

    def paths(self, record: Record, task: Task) -> list[Path]:
        """Returns the files of one image, where each has its own."""
        return (mask_paths if self.to == "png" else probability_paths)(self.out, record.id, task)


class _Seen:
    """Which version of each image was predicted: a line each, in a file of every process's own.

    Times are compared for being equal alone: clocks are set back, and those of servers differ.
    """

    def __init__(self, asked: Asked) -> None:
        self._folder = asked.out / SHARED
        self._file = self._folder / f"{platform.node() or 'localhost'}-{os.getpid()}{_SEEN}"
        texts = (path.read_text(encoding="utf-8", errors="replace") for path in self._folder.glob(f"*{_SEEN}"))
        self._lines = {line for text in texts for line in text.splitlines()}
        self._versions: dict[str, str] = {}
        self._lock = Lock()

    def is_current(self, record: Record) -> bool:
        """Returns whether the image, as it is now, was predicted; keeps which version of it will be read if not."""
        self._versions[record.id] = _fingerprint([record], skip_bad=False)
        return self._versions[record.id] in self._lines

    def add(self, record: Record) -> None:
        """Remembers that the files of an image, as it was when that was asked, are written."""
        with self._lock:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(f"\n{self._versions[record.id]}\n")  # after a line that was cut off, too


def opened_here(here: Here, run: RunDirectory) -> Opened:
    """Returns the run with its networks loaded where a task runs, once for all tasks of a prediction."""
    from maskloom.stages.images import open_for_prediction

    return here.keeper.get(str(run.root), lambda: open_for_prediction(run, here.device))


# A file per image ----------------------------------------------------------------------------------------------------


def write_maps(
    opened: Opened,
    records: Sequence[Record],
    asked: Asked,
    *,
    on_bad: OnBad | None,
    on_progress: Callable[[int, int], object],
) -> None:
    """Writes the mask, or the maps, of every image whose files are not there or are of another version of it."""
    seen = _Seen(asked)

    def consume(record: Record, maps: dict[str, np.ndarray]) -> None:
        if asked.to == "png":
            write_mask(asked.out, ClassMap(id=record.id, labels=opened.labels(maps)), opened.task)
        else:
            write_probabilities(asked.out, ProbabilityMap(id=record.id, values=maps[RESULT]), opened.task)
        seen.add(record)

    predict_records(
        opened.predictor,
        records,
        consume,
        read=image_reader(opened.channels),
        skip=lambda record: _is_written(record, asked, opened.task, seen),
        on_bad=on_bad,
        on_progress=on_progress,
    )


def share_maps(
    opened: Opened,
    records: Sequence[Record],
    asked: Asked,
    executor: Executor,
    *,
    on_bad: OnBad | None,
    progress: Progress,
) -> None:
    """Does what ``write_maps`` does, by workers."""
    seen = _Seen(asked)
    wanted = [record for record in records if not _is_written(record, asked, opened.task, seen)]
    whole = ShardProgress(progress, done=0, total=len(wanted))
    shared = executor.share(asked)
    tickets = [
        executor.submit(
            Call(name="predict", function=_maps_of_shard, shared=shared, arguments=(tuple(shard),), shard=place),
            progress=whole.listener(),
            on_told=None if on_bad is None else lambda told: on_bad(*told),
        )
        for place, shard in shards(wanted, executor, at_most=SHARD)
    ]
    for ticket in tickets:
        executor.collect(ticket)


def _maps_of_shard(here: Here, asked: Asked, records: Sequence[Record]) -> None:
    write_maps(
        opened_here(here, asked.run),
        records,
        asked,
        on_bad=(lambda record, problem: here.tell((record, problem))) if asked.skip_bad else None,
        on_progress=here.progress.advance,
    )


def _is_written(record: Record, asked: Asked, task: Task, seen: _Seen) -> bool:
    return seen.is_current(record) and all(path.is_file() for path in asked.paths(record, task))


# A table of all images -----------------------------------------------------------------------------------------------


def write_table(
    opened: Opened,
    records: Sequence[Record],
    asked: Asked,
    *,
    on_bad: OnBad | None,
    progress: Progress,
    executor: Executor | None = None,
) -> set[str]:
    """Returns the ids of the records in the table, which other processes may be at, too.

    Where the ``executor`` has workers, these predict the chunks.
    """

    def predict(chunk: Sequence[Record], folder: Path, tell: Callable[[int, int], None]) -> list[Path]:
        return _chunk_of_rows(opened, chunk, folder, on_bad=on_bad, on_progress=tell)

    def together(
        asked_for: Mapping[int, tuple[Sequence[Record], Path]], tell: Callable[[int, int], None]
    ) -> dict[int, list[Path]]:
        assert executor is not None, "asked only where there are workers"
        return _chunks_by_workers(asked_for, asked, executor, on_bad=on_bad, on_progress=tell, note=progress.note)

    def write(files: Sequence[Path]) -> set[str]:
        return _write_rows_as(asked.to, table, files, records, opened.task)

    table = asked.out / TABLES[asked.to]
    # Chunks of an attempt on other images, or on other versions of them, lie under another name and are not read.
    key = _fingerprint(records, skip_bad=asked.skip_bad)
    by_workers: Together | None = together if executor is not None and executor.is_parallel else None
    shared = SharedTable(table=table, rows=asked.out / ".rows" / key, state=asked.out / SHARED)
    return shared.write(records, predict, write, on_progress=progress.advance, together=by_workers)


def _chunk_of_rows(
    opened: Opened,
    chunk: Sequence[Record],
    folder: Path,
    *,
    on_bad: OnBad | None,
    on_progress: Callable[[int, int], object],
) -> list[Path]:
    return write_rows(
        opened.predictor,
        chunk,
        folder,
        opened.task,
        decide=opened.labels,
        read=image_reader(opened.channels),
        ledger=Ledger(folder, folder / "rows.sums"),
        on_bad=on_bad,
        on_progress=on_progress,
    )


def _chunks_by_workers(
    chunks: Mapping[int, tuple[Sequence[Record], Path]],
    asked: Asked,
    executor: Executor,
    *,
    on_bad: OnBad | None,
    on_progress: Callable[[int, int], None],
    note: Callable[[str], None],
) -> dict[int, list[Path]]:
    """Returns the files of rows of every chunk, which workers have predicted."""
    total = sum(len(chunk) for chunk, _ in chunks.values())
    whole = ShardProgress(_Counted(on_progress, note), done=0, total=total)
    shared = executor.share(asked)
    tickets = {
        number: executor.submit(
            Call(
                name="predict",
                function=_rows_of_chunk,
                shared=shared,
                arguments=(tuple(chunk), folder),
                shard=f"chunk {number + 1}",
            ),
            progress=whole.listener(),
            on_told=None if on_bad is None else lambda told: on_bad(*told),
        )
        for number, (chunk, folder) in chunks.items()
    }
    return {number: executor.collect(ticket) for number, ticket in tickets.items()}


def _rows_of_chunk(here: Here, asked: Asked, chunk: Sequence[Record], folder: Path) -> list[Path]:
    return _chunk_of_rows(
        opened_here(here, asked.run),
        chunk,
        folder,
        on_bad=(lambda record, problem: here.tell((record, problem))) if asked.skip_bad else None,
        on_progress=here.progress.advance,
    )


class _Counted:
    """A listener that passes counts and notes on."""

    def __init__(self, on_progress: Callable[[int, int], None], note: Callable[[str], None]) -> None:
        self._on_progress, self.note = on_progress, note

    def stage(self, name: str, *, cached: bool) -> None:
        """The stage is the whole table's."""

    def advance(self, done: int, total: int, detail: str = "", *, seconds_left: float | None = None) -> None:
        self._on_progress(done, total)


def _write_rows_as(to: str, table: Path, files: Sequence[Path], records: Sequence[Record], task: Task) -> set[str]:
    """Returns the ids of the records in the table that it writes from files of rows."""
    written: set[str] = set()
    if to == "rle":
        form = SubmissionFormat(columns=("id", "class", "rle") if task.num_maps > 1 else ("id", "rle"))
        with SubmissionWriter(table, form) as lines:
            for row in read_rows(files):
                lines.write(row.record_id, row.runs, row.class_name if form.has_classes else "")
                written.add(row.record_id)
    else:
        names = {record.id: record.id + record.image.suffix for record in records}
        with CocoWriter(table, task) as writer:
            for row in read_rows(files):
                mask = decode_runs(row.runs, row.size, order="row", base=1)
                writer.write(row.record_id, names[row.record_id], row.class_name, mask)
                written.add(row.record_id)
    return written


def _fingerprint(records: Sequence[Record], *, skip_bad: bool) -> str:
    """Returns a fingerprint of the images by name, size, length and times of change."""
    facts = [(record.id, record.size, record.image.stat(), changed_ns(record.image)) for record in records]
    return fingerprint(
        skip_bad, [(name, size, found.st_size, found.st_mtime_ns, changed) for name, size, found, changed in facts]
    )
