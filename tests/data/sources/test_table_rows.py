"""Rows of tables as texts: short, blank and long ones, spoilt files, and what would take too much memory."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from maskloom.data.sources import table_rows
from maskloom.data.sources.table_rows import Row, column_names
from maskloom.encodings import table_files
from maskloom.errors import BadFile, UserError


def read(path: Path) -> list[Row]:
    return table_rows.read_rows(path, list)


def test_rows_that_are_short_blank_or_long(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(' \n\nimage,mask,note\n\na.png,"m\n1.png"\n  \n\t\nb.png,m,"x, ""y"""\n')
    assert read(path) == [
        {"image": "a.png", "mask": "m\n1.png", "note": ""},
        {"image": "b.png", "mask": "m", "note": 'x, "y"'},
    ]
    assert column_names(path) == ["image", "mask", "note"]
    path.write_text("image,mask\na.png,m\nb.png,m,x\n")
    with pytest.raises(BadFile, match=r"t\.csv: row 3: expected 2 cells as in the header, found 3"):
        read(path)


def bomb(path: Path, *, rows: int, text: str = "x") -> Path:
    """Returns a table of a few kB, of many equal rows or of long texts."""
    frame = pd.DataFrame({"image": ["a.png"], "wkt": [text]})
    frame = frame.loc[frame.index.repeat(rows)].reset_index(drop=True)
    if path.suffix == ".parquet":
        frame.to_parquet(path, compression="zstd")
    else:
        frame.to_csv(path, index=False)
    return path


@pytest.mark.parametrize(
    ("name", "rows", "length", "found"),
    [
        ("t.csv.gz", 15_000, 1, "20,000 cells"),
        ("t.parquet", 60_000, 1, r"\d\d,\d{3} cells"),
        ("t.csv.gz", 10, 2**19, "1,048,576 bytes of text"),
        ("t.parquet", 1, 2**21, "1,048,576 bytes of text"),
    ],
)
def test_a_few_kb_do_not_become_gigabytes(
    tmp_path: Path, name: str, rows: int, length: int, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_files, "SMALL_CELLS", 20_000)
    monkeypatch.setattr(table_files, "SMALL_BYTES", 2**20)
    path = bomb(tmp_path / name, rows=rows, text="x" * length)
    with pytest.raises(
        UserError, match=rf"{name}: expected at most {found} in a compressed table of .* found more; if"
    ):
        read(path)


def test_a_text_that_stands_in_many_rows_is_held_once(tmp_path: Path) -> None:
    rows = read(bomb(tmp_path / "t.parquet", rows=100, text="x" * 100_000))
    assert len(rows) == 100 and len({id(row["wkt"]) for row in rows}) == 1


def test_times_of_parquet_need_no_pandas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {
        "image": pa.array(["a.png", "b.png"]),
        "mask": pa.array(["m.png", None]),
        "whole": pa.array([86_400_000_000_000, None], pa.timestamp("ns")),
        "fine": pa.array([1_001, 2_001], pa.timestamp("ns")),
        "zone": pa.array([0, 1_000], pa.timestamp("ns", "UTC")),
        "time": pa.array([1_500_000_000, None], pa.time64("ns")),
        "lasts": pa.array([60_000_000_000, None], pa.duration("ns")),
        "day": pa.array([0, None], pa.date32()),
    }
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    seen: set[str] = set()
    text = table_rows._text
    monkeypatch.setattr(table_rows, "_text", lambda value: seen.add(type(value).__module__) or text(value))
    assert [list(row.values()) for row in read(tmp_path / "t.parquet")] == [
        [
            *("a.png", "m.png", "1970-01-02 00:00:00", "1970-01-01 00:00:00.000001", "1970-01-01 00:00:00+00:00"),
            *("00:00:01.500000", "0:01:00", "1970-01-01"),
        ],
        [
            *("b.png", "", "", "1970-01-01 00:00:00.000002", "1970-01-01 00:00:00.000001+00:00"),
            *("", "", ""),
        ],
    ]
    assert seen == {"builtins", "datetime"}


def test_a_quote_that_is_not_closed_swallows_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('image,mask,note\na.png,m,x\nb.png,m,"y\nc.png,m,z\n')
    with pytest.raises(BadFile, match=r"t\.csv: expected a CSV table, .* or a part \(unexpected end of data\)"):
        read(path)


def test_equal_texts_of_csv_are_held_once(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("image,mask,camera\n" + "".join(f"{number}.png,m,left\n" for number in range(50)))
    assert len({id(row["camera"]) for row in read(path)}) == 1


def test_a_cell_of_many_lines_is_refused_like_a_long_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_files, "LONGEST_LINE", 1000)
    usual = csv.field_size_limit(1000)
    try:
        path = tmp_path / "t.csv"
        path.write_text('image,mask\na.png,"' + "1\n" * 400 + '"\n')
        assert len(read(path)[0]["mask"]) == 800
        path.write_text('image,mask\na.png,"' + "1\n" * 600 + '"\n')
        with pytest.raises(BadFile, match=r"t\.csv: expected a CSV table, .*larger than field limit \(1000\)"):
            read(path)
    finally:
        csv.field_size_limit(usual)


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_table_for_which_there_is_no_memory_is_told(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bomb(tmp_path / name, rows=9)
    monkeypatch.setattr(table_rows, "free_memory", lambda: 2 * 150 * 17)
    with pytest.raises(UserError, match=rf"{name}: expected at most 17 cells .* half of the free memory"):
        read(path)


def test_a_compressed_table_may_be_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than any may be, and read in several parts, but not more than its own length allows."""
    monkeypatch.setattr(table_files, "SMALL_CELLS", 1)
    monkeypatch.setattr(table_files, "SMALL_BYTES", 1)
    monkeypatch.setattr(table_rows, "_ROWS", 300)
    monkeypatch.setattr(table_rows, "_CELLS", 600)
    numbers = np.random.default_rng(0).integers(10**9, size=1000)
    text = "image,wkt,note\n" + "".join(f"a/{place}.png,,{number}\n" for place, number in enumerate(numbers))
    for name, content in (("t.csv.gz", gzip.compress(text.encode())), ("t.csv", text.encode())):
        (tmp_path / name).write_bytes(content)
    rows = [read(tmp_path / name) for name in ("t.csv.gz", "t.csv")]
    assert rows[0] == rows[1] and len(rows[0]) == len(numbers) and rows[0][-1]["note"] == str(numbers[-1])
