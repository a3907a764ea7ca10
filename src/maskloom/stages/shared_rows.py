"""One table of predicted masks made by several processes at once, which know nothing of each other.

Each takes the chunks of images that no other one is at, waits until all are there, and one of them writes the table. A
claim is a lock of the kernel's, which ends with its process, so a killed process costs the chunk that it was at. What
is written depends neither on who predicted which chunk nor on the order. Knows nothing about networks and formats.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
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

Begin = Callable[[Sequence[Record], Path, Callable[[int, int], None]], Callable[[], list[Path]]]
"""Begins to predict the records of a chunk, unless an earlier attempt did, and tells how many of them are done; returns
the function that waits for the end and gives the chunk's files of rows, which lie below the folder."""


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
        begin: Begin,
        write: Callable[[Sequence[Path]], set[str]],
        *,
        on_progress: Callable[[int, int], None],
        ahead: int = 1,
        drop: Callable[[], object] = lambda: None,
    ) -> set[str]:
        """Returns the ids of the records in the table once it is there, whoever wrote it.

        ``write`` makes it from the files of rows, in the records' order, and returns those ids. This process begins
        ``ahead`` chunks at most before it waits for the first of them; where that fails, ``drop`` ends the others
        before another process may take them.
        """
        chunks = [records[first : first + rows.CHUNK] for first in range(0, len(records), rows.CHUNK)]
        with Claims(self.state / "processes.claims") as processes, Claims(self._claims) as claims:
            self._tidy(processes)
            processes.share(_AT_WORK)
            try:
                files = self._predicted(chunks, begin, claims, on_progress, ahead)
            except BaseException:
                drop()
                raise
            while files is not None and not self._is_written():
                if not claims.take(_WRITING):
                    time.sleep(PAUSE_SECONDS)
                elif not self._is_written():
                    self._finish(records, write(files), claims, len(chunks))
            self._tidy(processes)
        on_progress(len(records), len(records))
        left_out = set(self._noted()[1])
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
        begin: Begin,
        claims: Claims,
        on_progress: Callable[[int, int], None],
        ahead: int,
    ) -> list[Path] | None:
        """Returns the files of rows of all chunks; None where the table is written already."""
        done: dict[int, list[Path]] = {}
        under_way: dict[int, Callable[[], list[Path]]] = {}
        counts, total = [0] * len(chunks), sum(map(len, chunks))
        num_seen = 0

        def count(number: int, within: int) -> None:
            nonlocal num_seen
            num_seen += within - counts[number]
            counts[number] = within

        def advance(number: int, within: int, _: int) -> None:
            count(number, within)
            on_progress(num_seen, total)

        def finish_first() -> None:
            number = next(iter(under_way))
            done[number] = under_way[number]()
            del under_way[number]
            count(number, len(chunks[number]))
            claims.give_back(_FIRST_CHUNK + number)

        while len(done) < len(chunks):
            before = len(done)
            for number, chunk in enumerate(chunks):
                if number in done or not claims.take(_FIRST_CHUNK + number):
                    continue
                is_written = self._is_written()  # asked while the chunk is ours: rows go only once this is so
                if not is_written:
                    under_way[number] = begin(chunk, self.rows / f"{number:06d}", partial(advance, number))
                while under_way and (is_written or len(under_way) >= ahead):
                    finish_first()
                if is_written:
                    return None
            while under_way:
                finish_first()
            if len(done) == before:
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
        return self._note.is_file() and self._noted()[0] == self._stamp()

    def _noted(self) -> tuple[object, list[str]]:
        """Returns the stamp of the table and who is left out of it; (False, []) where the note is damaged.

        The table is then made anew.
        """
        try:
            note = read_sealed(self._note)
            return note["table"], [str(name) for name in note["left_out"]]
        except (Damaged, KeyError, TypeError):  # also of a note without a checksum
            return False, []

    def _stamp(self) -> list[int] | None:
        if not self.table.is_file():
            return None
        facts = self.table.stat()
        return [facts.st_size, facts.st_mtime_ns]
