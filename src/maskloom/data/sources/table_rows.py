"""The rows of a table, CSV or Parquet, as texts, in memory that is bounded before they are read.

Knows nothing about what columns mean.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from maskloom.encodings.table_files import Growth, open_table
from maskloom.errors import BadFile, UserError
from maskloom.runtime import free_memory
from maskloom.storage.placeholders import at_hand

_ROWS = 50_000  # of Parquet that are read at a time
_CELLS = 5_000  # of CSV; more at a time are no faster, since the garbage collector goes through them
_PARQUET_CELLS_PER_BYTE = 16  # since equal cells of a column take next to nothing
_CELL_BYTES = 150  # that a cell takes while a table is read, measured on ids and paths

Row = dict[str, str]
"""Texts by column."""


def column_names(table: Path) -> list[str]:
    """Returns the column names, [] when the file cannot be read as a table (opening it will say why)."""
    try:
        if table.suffix.lower() == ".parquet":
            from pyarrow import parquet  # type: ignore[import-untyped]

            return list(parquet.read_schema(at_hand(table)).names)
        with open_table(table) as rows:
            return next(filter(_holds_something, rows), [])
    except Exception:  # any reader's way of saying that this is no table
        return []


def read_rows(table: Path, named: Callable[[Sequence[str]], Sequence[str]]) -> list[Row]:
    """Returns the rows as texts by the names that ``named`` gives to the columns, before any row is read.

    Blank lines are skipped, and cells that a row lacks at its end are empty. Raises ``UserError`` for damaged files,
    rows of more cells than there are columns, compressed tables of which more comes than their length allows
    (``encodings.table_files``), and tables for which there is no memory.
    """
    names: Sequence[str] = ()
    rows: list[Row] = []
    allowed = free_memory() // 2 // _CELL_BYTES
    try:
        with closing(_parquet(table) if table.suffix.lower() == ".parquet" else _csv(table)) as parts:
            for found, part in parts:
                names = names or named(found)
                if (len(rows) + len(part)) * len(names) > allowed:
                    raise UserError(
                        f"{table}: expected at most {allowed:,} cells (rows × columns), for which half of the free "
                        "memory is enough, found more; free some memory, or leave out rows or columns"
                    )
                rows += [dict(zip(names, row, strict=True)) for row in part]
    except FileNotFoundError:
        raise UserError(f"{table}: no such file") from None
    except UserError:
        raise
    except Exception as error:  # parsers raise anything on a damaged table
        reason = " ".join(str(error).split())
        raise UserError(f"{table}: expected a table (CSV or Parquet), found something else ({reason})") from None
    return rows


_Part = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Names of columns, and some rows of as many texts."""


def _csv(table: Path) -> Generator[_Part]:
    """Yields a CSV table, plain or compressed, some rows at a time; a text that stands in many of them is held once.

    Blank lines are skipped, and cells that a row lacks at its end are empty.
    """
    with open_table(table) as lines:
        rows = ((number, row) for number, row in enumerate(lines, 1) if _holds_something(row))
        _, names = next(rows, (0, []))
        if not names:
            return
        yield names, []
        part: list[list[str]] = []
        texts: dict[str, str] = {}
        for number, row in rows:
            if len(row) > len(names):
                expected = f"expected {len(names)} cells as in the header"
                raise BadFile(table, f"row {number}: {expected}, found {len(row)}")
            row[:] = map(texts.setdefault, row, row)
            row += [""] * (len(names) - len(row))
            part.append(row)
            if len(part) * len(names) >= _CELLS:
                yield names, part
                part, texts = [], {}
        yield names, part


def _holds_something(row: Sequence[str]) -> bool:
    """Returns whether this is no blank line."""
    return len(row) > 1 or bool("".join(row).strip())


def _parquet(table: Path) -> Generator[_Part]:
    """Yields a Parquet table some rows at a time; what it says of its lengths is asked before any of it is unpacked.

    A text that stands in many rows is stored, and held, once.
    """
    import pyarrow as pa
    from pyarrow import parquet

    growth = Growth(at_hand(table), cells_per_byte=_PARQUET_CELLS_PER_BYTE)
    schema = parquet.read_schema(table)
    index = (schema.pandas_metadata or {}).get("index_columns", ())  # names, and descriptions of indices not stored
    names = [name for name in schema.names if name not in index]
    texts = [
        name for name in names if pa.types.is_string(kind := schema.field(name).type) or pa.types.is_large_string(kind)
    ]
    with parquet.ParquetFile(table, read_dictionary=texts) as stored:
        facts = stored.metadata
        growth.add(cells=facts.num_rows * len(names))
        growth.add(num_bytes=sum(facts.row_group(number).total_byte_size for number in range(facts.num_row_groups)))
        yield names, []
        for batch in stored.iter_batches(batch_size=_ROWS, columns=names):
            columns = [[_text(value) for value in _values(batch.column(name))] for name in names]
            yield names, list(zip(*columns, strict=True))


def _values(column: Any) -> list[Any]:
    """Returns the values of a column of pyarrow's; equal texts of a dictionary are one object."""
    if getattr(column.type, "unit", "") == "ns":
        column = _in_microseconds(column)
    if not hasattr(column, "dictionary"):
        return list(column.to_pylist())
    words = column.dictionary.to_pylist()
    return [None if place is None else words[place] for place in column.indices.to_pylist()]


def _in_microseconds(column: Any) -> Any:
    """Returns times as Python's own types have them; what is finer is cut."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_timestamp(kind):
        coarser = pa.timestamp("us", kind.tz)
    else:
        coarser = pa.time64("us") if pa.types.is_time64(kind) else pa.duration("us")
    return column.cast(coarser, safe=False)


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
