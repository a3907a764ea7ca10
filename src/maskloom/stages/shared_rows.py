"""One table of predicted masks made by several processes at once, which know nothing of each other.

Each takes the chunks of images that no other one is at, waits until all are there, and one of them writes the table. A
claim is a lock of the kernel's, which ends with its process, so a killed process costs the chunk that it was at. What
is written depends neither on who predicted which chunk nor on the order. Knows nothing about networks and formats.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from maskloom.files import remove_partial
from maskloom.integrity import Damaged, read_sealed, write_sealed
from maskloom.records import Record
from maskloom.stages import rows
from maskloom.stages.claims import Claims

PAUSE_SECONDS = 0.5
"""Between two looks at what others are at."""
_WRITING, _FIRST_CHUNK = 0, 1
"""The numbers of claims of a table."""
_AT_WORK = 0
"""The claim that all processes at work share."""

Predict = Callable[[Sequence[Record], Path, Callable[[int, int], None]], list[Path]]
"""Predicts the records of a chunk, unless an earlier attempt did, and returns its files of rows below the folder; tells
how many of them are done."""
Together = Callable[[Mapping[int, tuple[Sequence[Record], Path]], Callable[[int, int], None]], dict[int, list[Path]]]
"""The same of several chunks at once, by their numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedTable:
    """Where a table, what it is made of, and what the processes tell each other lie."""

    table: Path
    rows: Path
    """The folder of chunks, one folder each; it goes when the table is written."""
    state: Path
    """The folder of claims, and of the note that the table is written."""

    def write(
        self,
        records: Sequence[Record],
        predict: Predict,
        write: Callable[[Sequence[Path]], set[str]],
        *,
        on_progress: Callable[[int, int], None],
        together: Together | None = None,
    ) -> set[str]:
        """Returns the ids of the records in the table once it is there, whoever wrote it.

        ``write`` makes it from the files of rows, in the records' order, and returns those ids. Where ``together`` is
        stated, this process takes all chunks that no other one is at, instead of one after the other.
        """
        chunks = [records[first : first + rows.CHUNK] for first in range(0, len(records), rows.CHUNK)]
        with Claims(self.state / "processes.claims") as processes, Claims(self._claims) as claims:
            self._tidy(processes)
            processes.share(_AT_WORK)
            if together is None:
                files = self._predicted(chunks, predict, claims, on_progress)
            else:
                files = self._predicted_together(chunks, together, claims, on_progress)
            while files is not None and not self._is_written():
                if not claims.take(_WRITING):
                    time.sleep(PAUSE_SECONDS)
                elif not self._is_written():
                    self._finish(records, write(files), claims, len(chunks))
            self._tidy(processes)
        on_progress(len(records), len(records))
        left_out = set(read_sealed(self._note)["left_out"])
        return {record.id for record in records if record.id not in left_out}

    def _tidy(self, processes: Claims) -> None:
        """Removes what killed processes and attempts on other images left, unless another process is at work."""
        if processes.take(_AT_WORK):
            remove_partial(self.table.parent)
            for folder in self.rows.parent.glob("*"):
                if folder != self.rows or self._is_written():
                    shutil.rmtree(folder, ignore_errors=True)
            self._remove_empty()

    def _remove_empty(self) -> None:
        with suppress(OSError):  # it is not there, or not empty
            self.rows.parent.rmdir()

    def _predicted(
        self,
        chunks: Sequence[Sequence[Record]],
        predict: Predict,
        claims: Claims,
        on_progress: Callable[[int, int], None],
    ) -> list[Path] | None:
        """Returns the files of rows of all chunks; None where the table is written already."""
        done: dict[int, list[Path]] = {}
        total = sum(map(len, chunks))

        def advance(within: int, _: int) -> None:
            on_progress(sum(len(chunks[number]) for number in done) + within, total)

        while len(done) < len(chunks):
            before = len(done)
            for number, chunk in enumerate(chunks):
                if number in done or not claims.take(_FIRST_CHUNK + number):
                    continue
                try:
                    if self._is_written():  # asked while the chunk is ours: rows go only once this is so
                        return None
                    done[number] = predict(chunk, self.rows / f"{number:06d}", advance)
                finally:
                    claims.give_back(_FIRST_CHUNK + number)
            if len(done) == before:
                time.sleep(PAUSE_SECONDS)
        return [file for number in range(len(chunks)) for file in done[number]]

    def _predicted_together(
        self,
        chunks: Sequence[Sequence[Record]],
        together: Together,
        claims: Claims,
        on_progress: Callable[[int, int], None],
    ) -> list[Path] | None:
        """Returns what ``_predicted`` does."""
        done: dict[int, list[Path]] = {}
        total = sum(map(len, chunks))
        while len(done) < len(chunks):
            mine = [n for n in range(len(chunks)) if n not in done and claims.take(_FIRST_CHUNK + n)]
            before = sum(len(chunks[number]) for number in done)
            try:
                if mine and self._is_written():
                    return None
                asked = {number: (chunks[number], self.rows / f"{number:06d}") for number in mine}
                done |= together(asked, lambda within, _, first=before: on_progress(first + within, total))  # type: ignore[misc]
            finally:
                for number in mine:
                    claims.give_back(_FIRST_CHUNK + number)
            if not mine:
                time.sleep(PAUSE_SECONDS)
        return [file for number in range(len(chunks)) for file in done[number]]

    def _finish(self, records: Sequence[Record], written: set[str], claims: Claims, num_chunks: int) -> None:
        """Notes that the table is there, and removes the rows once no other process looks at them."""
        left_out = [record.id for record in records if record.id not in written]
        write_sealed(self._note, {"table": self._stamp(), "left_out": left_out})
        for number in range(num_chunks):
            while not claims.take(_FIRST_CHUNK + number):
                time.sleep(PAUSE_SECONDS / 10)
        shutil.rmtree(self.rows, ignore_errors=True)
        self._remove_empty()

    @property
    def _claims(self) -> Path:
        return self.state / f"{self.rows.name}.claims"

    @property
    def _note(self) -> Path:
        return self.state / f"{self.rows.name}.json"

    def _is_written(self) -> bool:
        """Whether the table was written from these rows, by whichever process, and is still the same file."""
        try:
            return self._note.is_file() and read_sealed(self._note).get("table") == self._stamp()
        except Damaged:  # the table is made anew
            return False

    def _stamp(self) -> list[int] | None:
        if not self.table.is_file():
            return None
        facts = self.table.stat()
        return [facts.st_size, facts.st_mtime_ns]
