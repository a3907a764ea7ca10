"""What fold tables of records and of blocks share: the fold of what always trains, and how their text is read.

Knows nothing about records and blocks.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Sequence
from pathlib import Path

from maskloom.errors import UserError
from maskloom.storage.placeholders import at_hand

ALWAYS_TRAINING = -1
"""The fold of what every model may train on and none validates."""


def read_rows(
    path: Path, kind: str, columns: Sequence[str], *, optional: Collection[str] = ()
) -> list[tuple[int, dict[str, str]]]:
    """Returns the line and the values by column of each row of a CSV file; a value that is missing is "".

    ``kind`` says in messages what the file should be. Commas, semicolons and tabs separate values. Raises ``UserError``
    for a file that is missing, no text or no valid CSV (a quote that stays open, text behind one, a value too long), or
    that lacks one of the ``columns`` which are not ``optional``.
    """
    expected = f"expected a CSV file with columns {', '.join(columns)}"
    try:
        text = at_hand(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such {kind}; {expected}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected a {kind} as UTF-8 text, found something else ({error})") from None
    rows = _reader(text)
    try:
        found = rows.fieldnames or ()
        stated = [(rows.line_num, row) for row in rows]
    except csv.Error as error:
        raise UserError(
            f"{path}: expected a {kind}, found something else after line {rows.line_num} ({error})"
        ) from None
    if not set(columns) - set(optional) <= set(found):
        raise UserError(f"{path}: {expected}, found {', '.join(found) or 'none'}")
    return [(number, {name: row[name] or "" for name in found}) for number, row in stated]


def columns_of(path: Path) -> tuple[str, ...]:
    """Returns the names of a table's columns; none where there is no such file, or one that is no text or CSV."""
    try:
        with at_hand(path).open(encoding="utf-8-sig") as stream:
            return tuple(_reader(stream.readline()).fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error):
        return ()


def _reader(text: str) -> csv.DictReader[str]:
    first_line = text.partition("\n")[0]
    delimiter = max(",;\t", key=first_line.count)  # spreadsheets of some languages write semicolons
    return csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True)
