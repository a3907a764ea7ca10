"""Tables as files, plain or compressed: opened to be read row by row, written whole or not at all.

Knows nothing about columns.
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

_LONGEST_CELL = 2**30  # the csv module's own limit of 131,072 characters is below a detailed mask's run lengths
_GZIP = b"\x1f\x8b"


@contextmanager
def text_writer(path: Path) -> Iterator[IO[str]]:
    """Yields a UTF-8 stream of a file that appears whole or not at all; compressed for ``.gz``, without a time."""
    with ExitStack() as stack:
        temporary = stack.enter_context(atomic_path(path))
        binary: Any = stack.enter_context(temporary.open("wb"))
        if path.suffix == ".gz":
            binary = stack.enter_context(gzip.GzipFile("", "wb", 6, binary, mtime=0))
        yield stack.enter_context(io.TextIOWrapper(binary, encoding="utf-8", newline=""))


@contextmanager
def open_table(path: Path) -> Iterator[Iterator[list[str]]]:
    """Yields the rows of a CSV file, plain or gzip, the header first; raises ``BadFile`` for anything else.

    What a file is its first bytes tell, not its name.
    """
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
    try:
        with at_hand(path).open("rb") as raw:
            compressed = raw.read(len(_GZIP)) == _GZIP
            raw.seek(0)
            binary: Any = gzip.GzipFile(fileobj=raw) if compressed else raw
            with io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as stream:
                yield csv.reader(stream)
    except FileNotFoundError:
        raise BadFile(path, "no such file") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        reason = " ".join(str(error).split())
        raise BadFile(path, f"expected a CSV table, plain or .gz, found something else or a part ({reason})") from None
