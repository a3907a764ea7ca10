"""What is written for single images, here or by workers: masks, maps, and the two tables of all images.

Workers open the run once and are given shards of the images; the process that was started writes the tables. Knows
nothing about how images are found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from maskloom.data.mask_coding import Colour
from maskloom.encodings.rle import decode_runs
from maskloom.errors import BadFile
from maskloom.executors.tasks import Call, Executor, Here, ShardProgress, shards
from maskloom.inference.merging import RESULT
from maskloom.inference.streaming import predict_records
from maskloom.integrity import Ledger
from maskloom.outputs.maps import mask_paths, probability_paths, write_colours, write_mask, write_probabilities
from maskloom.outputs.tables import CocoWriter, SubmissionFormat, SubmissionWriter
from maskloom.progress import Progress
from maskloom.records import ClassMap, ProbabilityMap, Record, Task
from maskloom.run_directory import RunDirectory
from maskloom.stages.by_workers import Counted, expect_seen
from maskloom.stages.image_versions import Stamps, Written, stamps_of, version_of
from maskloom.stages.rows import read_rows, write_rows
from maskloom.stages.scoring import image_reader
from maskloom.stages.shared_rows import SharedTable

if TYPE_CHECKING:
    from maskloom.stages.images import Opened

FORMATS = ("png", "colours", "prob", "rle", "coco")
TABLES = {"rle": "predictions.csv.gz", "coco": "predictions.json"}
"""The formats of one file for all images, which several processes may write together."""
SHARED = ".images"
"""The folder, beside what is written, of what one process tells another, or a later one."""
SHARD = 32
"""Images that a worker is given at a time, at most."""

OnBad = Callable[[Record, BadFile], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What is written for images, and where."""

    run: RunDirectory
    decision: str
    """Of the run, as it is to be opened wherever it is."""
    out: Path
    to: str
    skip_bad: bool
    palette: tuple[Colour, ...] = ()
    """The colour of each label, where masks are written in the colours of the data."""

    def paths(self, record_id: str, task: Task) -> list[Path]:
        """Returns the files of one image, where each has its own."""
        return (probability_paths if self.to == "prob" else mask_paths)(self.out, record_id, task)

    def remove(self, record_id: str, task: Task) -> None:
        """Removes the files of one image, if an earlier prediction left any."""
        for path in self.paths(record_id, task):
            path.unlink(missing_ok=True)


def opened_here(here: Here, run: RunDirectory, decision: str) -> Opened:
    """Returns the run with its networks loaded where a task runs, once for all tasks of a prediction.

    A worker may come to it hours after the others: raises ``UserError`` where the run has another decision by then.
    """
    from maskloom.stages.images import open_for_prediction, opened_as

    def build() -> Opened:
        return opened_as(run, decision, lambda: open_for_prediction(run, here.device))

    return here.keeper.get((str(run.root), decision), build)


# A file per image ----------------------------------------------------------------------------------------------------


def write_files(
    opened: Opened,
    records: Sequence[Record],
    asked: Asked,
    executor: Executor,
    *,
    on_bad: OnBad | None,
    progress: Progress,
) -> None:
    """Writes the mask, or the maps, of every image whose files are not there or are not of the image as it is now.

    Where the ``executor`` has workers, these do; raises ``UserError`` where their files are not seen from here.
    """
    written = Written(asked.out / SHARED / "written.txt", lambda record_id: asked.paths(record_id, opened.task))
    wanted = [record for record in records if not written.is_current(record)]
    if written.num_changed:
        progress.note(
            f"{written.num_changed} image(s) are predicted again: their files were changed, were not finished, or are "
            "not of the images as they are now"
        )
    if executor.is_parallel:
        _share_maps(opened.task, wanted, asked, executor, written, on_bad=on_bad, progress=progress)
    else:
        _write_maps(opened, wanted, asked, written.add, on_bad=on_bad, on_progress=progress.advance)


def _write_maps(
    opened: Opened,
    records: Sequence[Record],
    asked: Asked,
    on_written: Callable[[str, Stamps], object],
    *,
    on_bad: OnBad | None,
    on_progress: Callable[[int, int], object],
) -> None:
    """Writes the files of these images; ``on_written`` hears of each in a thread."""

    def consume(record: Record, maps: dict[str, np.ndarray]) -> None:
        if asked.to == "png":
            files = write_mask(asked.out, ClassMap(id=record.id, labels=opened.labels(maps)), opened.task)
        elif asked.to == "colours":
            files = write_colours(asked.out, ClassMap(id=record.id, labels=opened.labels(maps)), asked.palette)
        else:
            files = write_probabilities(asked.out, ProbabilityMap(id=record.id, values=maps[RESULT]), opened.task)
        if (stamps := stamps_of(files)) is not None:  # else somebody has removed one of them
            on_written(record.id, stamps)

    predict_records(
        opened.predictor,
        records,
        consume,
        read=image_reader(opened.channels, takes_grey=opened.takes_grey),
        on_bad=on_bad,
        on_progress=on_progress,
    )


def _share_maps(
    task: Task,
    records: Sequence[Record],
    asked: Asked,
    executor: Executor,
    written: Written,
    *,
    on_bad: OnBad | None,
    progress: Progress,
) -> None:
    """Does what ``_write_maps`` does, by workers, who tell what they have written."""
    by_id = {record.id: record for record in records}
    expected = set(by_id)

    def hear(told: tuple[str, Stamps | BadFile]) -> None:
        record_id, found = told
        if not isinstance(found, BadFile):
            written.add(record_id, found)
        elif on_bad is not None and record_id in expected:  # a task that is repeated tells it again
            expected.remove(record_id)
            on_bad(by_id[record_id], found)

    whole = ShardProgress(progress, done=0, total=len(records))
    shared = executor.share(asked)
    tickets = [
        executor.submit(
            Call(name="predict", function=_maps_of_shard, shared=shared, arguments=(tuple(shard),), shard=place),
            progress=whole.listener(),
            on_told=hear,
        )
        for place, shard in shards(records, executor, at_most=SHARD)
    ]
    for ticket in tickets:
        executor.collect(ticket)
    expect_seen(path for record_id in by_id if record_id in expected for path in asked.paths(record_id, task))


def _maps_of_shard(here: Here, asked: Asked, records: Sequence[Record]) -> None:
    _write_maps(
        opened_here(here, asked.run, asked.decision),
        records,
        asked,
        lambda record_id, stamps: here.tell((record_id, stamps)),
        on_bad=(lambda record, problem: here.tell((record.id, problem))) if asked.skip_bad else None,
        on_progress=here.progress.advance,
    )


# A table of all images -----------------------------------------------------------------------------------------------


def write_table(
    opened: Opened,
    records: Sequence[Record],
    asked: Asked,
    executor: Executor,
    *,
    on_bad: OnBad | None,
    progress: Progress,
) -> set[str]:
    """Returns the ids of the records in the table, which other processes may be at, too.

    Where the ``executor`` has workers, these predict the chunks.
    """

    def begin(
        chunk: Sequence[Record], folder: Path, on_progress: Callable[[int, int], None]
    ) -> Callable[[], list[Path]]:
        if executor.is_parallel:
            return _begun_chunk(chunk, folder, asked, executor, on_bad=on_bad, on_progress=on_progress)
        return lambda: _chunk_of_rows(opened, chunk, folder, on_bad=on_bad, on_progress=on_progress)

    def write(files: Sequence[Path]) -> set[str]:
        return _write_rows_as(asked.to, table, files, records, opened.task)

    table = asked.out / TABLES[asked.to]
    # Chunks of an attempt on other images, or on other versions of them, lie under another name and are not read.
    key = version_of(records, skip_bad=asked.skip_bad)
    shared = SharedTable(table=table, rows=asked.out / ".rows" / key, state=asked.out / SHARED)
    ahead = 2 * executor.num_workers if executor.is_parallel else 1
    return shared.write(records, begin, write, on_progress=progress.advance, ahead=ahead, drop=executor.drop)


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
        read=image_reader(opened.channels, takes_grey=opened.takes_grey),
        ledger=Ledger(folder, folder / "rows.sums"),
        on_bad=on_bad,
        on_progress=on_progress,
    )


def _begun_chunk(
    chunk: Sequence[Record],
    folder: Path,
    asked: Asked,
    executor: Executor,
    *,
    on_bad: OnBad | None,
    on_progress: Callable[[int, int], None],
) -> Callable[[], list[Path]]:
    """Returns the function that waits for a worker, which is given the chunk now, and returns the files of rows."""
    folder.mkdir(parents=True, exist_ok=True)  # so that what comes into it is seen at once
    ticket = executor.submit(
        Call(
            name="predict",
            function=_rows_of_chunk,
            shared=executor.share(asked),
            arguments=(tuple(chunk), folder),
            shard=f"chunk {int(folder.name) + 1}",
        ),
        progress=Counted(on_progress),
        on_told=None if on_bad is None else lambda told: on_bad(*told),
    )

    def collected() -> list[Path]:
        files: list[Path] = executor.collect(ticket)
        expect_seen(files)
        return files

    return collected


def _rows_of_chunk(here: Here, asked: Asked, chunk: Sequence[Record], folder: Path) -> list[Path]:
    return _chunk_of_rows(
        opened_here(here, asked.run, asked.decision),
        chunk,
        folder,
        on_bad=(lambda record, problem: here.tell((record, problem))) if asked.skip_bad else None,
        on_progress=here.progress.advance,
    )


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
