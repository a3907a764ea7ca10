"""Texts that arrive in any order and leave in a given one, in flat memory: handed on, or as the rows of a table.

Knows nothing about what the texts are.
"""

from __future__ import annotations

import csv
import tempfile
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from maskloom.encodings.table_files import text_writer
from maskloom.errors import UserError, some_of
from maskloom.files import TEMPORARY_PREFIX

Key = TypeVar("Key", bound=Hashable)

_IN_MEMORY = 4 * 2**20  # bytes of waiting texts; what exceeds it waits in a file


@contextmanager
def ordered_table(
    path: Path,
    columns: Sequence[str],
    keys: Sequence[Key] | None,
    *,
    cells: Callable[[Key, str], Sequence[object]],
    named: Callable[[Key], str],
) -> Iterator[InOrder[Key]]:
    """Yields what takes the text of each row of a CSV table, which appears whole or not at all.

    Rows stand in the order of ``keys`` (None: as they come), all of which must have come when the block ends. A row is
    ``cells`` of its key and text, ``named`` is how messages call it. A path ending in ``.gz`` is compressed. Raises
    ``UserError`` for keys that come twice, and when rows are missing.
    """
    with text_writer(path) as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(columns)
        with closing(InOrder(keys, lambda key, text: rows.writerow(cells(key, text)), folder=path.parent)) as order:
            yield order
            if missing := order.missing():
                raise UserError(f"{path}: no rows for {some_of(map(named, missing))}")


class InOrder(Generic[Key]):
    """Hands each text to ``emit`` once all keys before its own have been handed over.

    ``keys`` is the order, or None for the order of arrival. Texts that come early wait in a temporary file in
    ``folder``, so memory does not grow with their number. May be fed from several threads; ``emit`` runs in one at
    a time.
    """

    def __init__(self, keys: Sequence[Key] | None, emit: Callable[[Key, str], None], *, folder: Path) -> None:
        self._positions = None if keys is None else {key: index for index, key in enumerate(keys)}
        if keys is not None and self._positions is not None and len(self._positions) != len(keys):
            twice = next(key for index, key in enumerate(keys) if self._positions[key] != index)
            raise UserError(f"expected different names, found {twice!r} twice; make them differ")
        self._keys = keys
        self._emit = emit
        self._seen: set[Key] = set()
        self._next = 0
        self._waiting: dict[int, tuple[int, int]] = {}  # index of the key → (offset, length) in the spool
        self._spool = tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=str(folder), prefix=TEMPORARY_PREFIX)  # noqa: SIM115
        self._lock = threading.Lock()

    def put(self, key: Key, text: str) -> None:
        """Takes one text; raises ``UserError`` for a key that is not expected or has been given before."""
        with self._lock:
            if self._positions is not None and key not in self._positions:
                raise UserError(
                    f"found a row for {key!r}, which is not among the {len(self._positions)} expected names"
                )
            if key in self._seen:
                raise UserError(f"found two rows for {key!r}, expected one; make the ids of the images differ")
            self._seen.add(key)
            if self._positions is None:
                self._emit(key, text)
            elif self._positions[key] == self._next:
                self._emit(key, text)
                self._next += 1
                self._drain()
            else:
                self._keep(self._positions[key], text)

    def _keep(self, index: int, text: str) -> None:
        data = text.encode()
        self._waiting[index] = (self._spool.seek(0, 2), len(data))
        self._spool.write(data)

    def _drain(self) -> None:
        assert self._keys is not None
        while self._next in self._waiting:
            offset, length = self._waiting.pop(self._next)
            self._spool.seek(offset)
            self._emit(self._keys[self._next], self._spool.read(length).decode())
            self._next += 1
        if not self._waiting:
            self._spool.seek(0)
            self._spool.truncate()

    def missing(self) -> list[Key]:
        """Returns the keys for which no text has come."""
        return [key for key in self._keys or () if key not in self._seen]

    def close(self) -> None:
        """Gives the temporary file back."""
        self._spool.close()
