"""Tables as files, plain or compressed: opened to be read row by row, written whole or not at all.

What comes of a compressed table has a budget by its length, since a few kB can hold gigabytes. Knows nothing about
columns.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from maskloom.errors import BadFile
from maskloom.files import atomic_path
from maskloom.storage.placeholders import at_hand

MAX_GROWTH, SMALL_BYTES = 100, 8 * 2**20
"""A compressed table may have so many bytes of text for each byte that is stored, and so many in any case."""
MAX_CELLS_PER_BYTE, SMALL_CELLS = 4, 1_000_000
"""The same of its cells, each of which takes memory however short it is."""

LONGEST_LINE = 2**28
"""Bytes of a line of a table, and characters of a cell: several times the run lengths of a large and ragged mask."""
_GZIP = b"\x1f\x8b"
_BUFFER = 2**20


@contextmanager
def text_writer(path: Path) -> Iterator[IO[str]]:
    """Yields a UTF-8 stream of a file that appears whole or not at all; compressed for ``.gz``, without a time."""
    with ExitStack() as stack:
        temporary = stack.enter_context(atomic_path(path))
        binary: Any = stack.enter_context(temporary.open("wb"))
        if path.suffix == ".gz":
            binary = stack.enter_context(gzip.GzipFile("", "wb", 6, binary, mtime=0))
        yield stack.enter_context(io.TextIOWrapper(binary, encoding="utf-8", newline=""))


class Growth:
    """What comes of a compressed table, counted while it is read."""

    def __init__(self, path: Path, *, cells_per_byte: int = MAX_CELLS_PER_BYTE) -> None:
        self._path, self._size = path, path.stat().st_size
        self._bytes, self._cells = 0, 0
        self._cells_per_byte = cells_per_byte

    def add(self, *, num_bytes: int = 0, cells: int = 0) -> None:
        """Counts what was found; raises ``BadFile`` where that is more than a table of this length may hold."""
        self._bytes += num_bytes
        self._cells += cells
        for found, allowed, what in (
            (self._bytes, max(SMALL_BYTES, MAX_GROWTH * self._size), "bytes of text"),
            (self._cells, max(SMALL_CELLS, self._cells_per_byte * self._size), "cells"),
        ):
            if found > allowed:
                raise BadFile(
                    self._path,
                    f"expected at most {allowed:,} {what} in a compressed table of {self._size:,} bytes, found more; "
                    "if it is meant to be so, give it as plain CSV",
                )


class _Counted(io.RawIOBase):
    """A stream of bytes that counts what is read of it, and refuses a line that is too long before it is all read."""

    def __init__(self, stream: Any, path: Path, growth: Growth | None) -> None:
        self._stream, self._path, self._growth = stream, path, growth
        self._line = 0  # bytes read of the line that has not ended yet

    def readable(self) -> bool:
        """Says that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Reads what there is, as far as the buffer goes."""
        count: int = self._stream.readinto(buffer)
        if self._growth is not None:
            self._growth.add(num_bytes=count)
        end = bytes(buffer[:count]).rfind(b"\n")
        self._line = count - end - 1 if end >= 0 else self._line + count
        if self._line > LONGEST_LINE:
            raise BadFile(
                self._path, f"expected lines of at most {LONGEST_LINE:,} bytes in a table, found a longer one"
            )
        return count


@contextmanager
def open_table(path: Path) -> Iterator[Iterator[list[str]]]:
    """Yields the rows of a CSV file, plain or gzip, the header first; raises ``BadFile`` for anything else.

    What a file is its first bytes tell, not its name.
    """
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))
    try:
        with _open_text(path) as (binary, growth), io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream, strict=True)
            yield rows if growth is None else _counted_rows(rows, growth)
    except FileNotFoundError:
        raise BadFile(path, "no such file") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        reason = " ".join(str(error).split())
        raise BadFile(path, f"expected a CSV table, plain or .gz, found something else or a part ({reason})") from None


@contextmanager
def _open_text(path: Path) -> Iterator[tuple[IO[bytes], Growth | None]]:
    """Yields the bytes of a text file, plain or gzip, and what counts them where it is gzip."""
    with at_hand(path).open("rb") as raw:
        is_compressed = raw.read(len(_GZIP)) == _GZIP
        raw.seek(0)
        growth = Growth(path) if is_compressed else None
        unpacked = gzip.GzipFile(fileobj=raw) if is_compressed else raw
        yield io.BufferedReader(_Counted(unpacked, path, growth), _BUFFER), growth


def _counted_rows(rows: Iterator[list[str]], growth: Growth) -> Iterator[list[str]]:
    for row in rows:
        growth.add(cells=len(row) or 1)
        yield row
