"""Tables plain and compressed: equal bytes, whole or absent, and complaints about what is no table."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from maskloom.encodings import table_files
from maskloom.encodings.table_files import open_table, text_writer
from maskloom.errors import BadFile


def rows(path: Path) -> list[list[str]]:
    with open_table(path) as found:
        return list(found)


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_there_and_back(tmp_path: Path, name: str) -> None:
    for _ in range(2):
        with text_writer(tmp_path / name) as stream:
            stream.write('id,text\na,"1\n2"\nŽ,\n')
    assert rows(tmp_path / name) == [["id", "text"], ["a", "1\n2"], ["Ž", ""]]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_compressed_file_has_neither_name_nor_time(tmp_path: Path) -> None:
    with text_writer(tmp_path / "t.csv.gz") as stream:
        stream.write("a\n")
    assert (tmp_path / "t.csv.gz").read_bytes()[3:8] == bytes(5)


@pytest.mark.parametrize(
    ("text", "found"), [("id,x\n" + "a,\n" * 6_000, "10,000 cells"), ("x" * 100_000, "65,536 bytes of text")]
)
def test_a_few_compressed_kb_do_not_become_gigabytes(
    tmp_path: Path, text: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_files, "SMALL_CELLS", 10_000)
    monkeypatch.setattr(table_files, "SMALL_BYTES", 2**16)
    for name, content in (("t.csv.gz", gzip.compress(text.encode())), ("t.csv", text.encode())):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadFile, match=f"at most {found} in a compressed table of .* give it as plain CSV"):
        rows(tmp_path / "t.csv.gz")
    assert rows(tmp_path / "t.csv"), "of which no more comes than there is"


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("old")
    with pytest.raises(RuntimeError, match="power cut"), text_writer(tmp_path / "t.csv") as stream:
        stream.write("new")
        raise RuntimeError("power cut")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("t.csv", "old")]


def test_the_content_tells_whether_a_file_is_compressed(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(gzip.compress(b"a,b\n1,2\n"))
    (tmp_path / "t.csv.gz").write_text("\ufeffa,b\n1,2\n", encoding="utf-8")
    assert rows(tmp_path / "t.csv") == rows(tmp_path / "t.csv.gz") == [["a", "b"], ["1", "2"]]


@pytest.mark.parametrize(
    "content", [b"a\n\xff\xfe\n", gzip.compress(b"a,b\n" * 9, mtime=0)[:-9], b"\x1f\x8b and no more"]
)
def test_what_is_no_table_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(BadFile, match=r"t\.csv: expected a CSV table, plain or \.gz") as caught:
        rows(tmp_path / "t.csv")
    assert "\n" not in str(caught.value)
    with pytest.raises(BadFile, match="no such file"):
        rows(tmp_path / "none.csv")
    with pytest.raises(BadFile, match="expected a CSV table"):
        rows(tmp_path)


def test_long_cells_are_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a\n" + "1 1 " * 200_000 + "\n")
    assert len(rows(tmp_path / "t.csv")[1][0]) == 800_000


@pytest.mark.parametrize("name", ["runs.csv", "runs.csv.gz"])
def test_a_line_without_end_is_refused_before_it_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(table_files, "LONGEST_LINE", 3_000_000)
    path, short = tmp_path / name, b"id,rle\n" + b"a,1 2\n" * 300_000
    for length, is_read in ((2_900_000, True), (3_100_000, False)):
        content = short + b"b," + b"1" * length
        path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
        if is_read:
            assert len(rows(path)) == 300_002
        else:
            with pytest.raises(
                BadFile, match=f"{name}: expected lines of at most 3,000,000 bytes.*, found a longer one"
            ):
                rows(path)
