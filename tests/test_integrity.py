"""Ledgers of checksums, and JSON that carries its own: what is noticed, and what is not taken for damage."""

from __future__ import annotations

import os
import pickle
import zlib
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.errors import UserError
from maskloom.integrity import Damaged, Ledger, read_sealed, write_sealed


def flip(path: Path, *, bit: int = 5, quietly: bool = False) -> None:
    """Flips one bit in the middle of a file; ``quietly``: size and time of change stay as they were."""
    facts, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1 << bit
    path.write_bytes(content)
    if quietly:
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "a b").mkdir()
    path = tmp_path / "a b" / "ä\n.map"
    path.write_bytes(bytes(range(100)))
    return path


def test_a_flipped_bit_is_noticed(tmp_path: Path, file: Path) -> None:
    Ledger(tmp_path, tmp_path / "x" / "sums").add(file)
    ledger = Ledger(tmp_path, tmp_path / "x" / "sums")
    assert ledger.names() == ["a b/ä\n.map"] and file in ledger
    assert ledger.is_sound(file) and ledger.is_sound(file, thorough=True)
    flip(file, quietly=True)
    assert ledger.is_sound(file) and not ledger.is_sound(file, thorough=True)
    flip(file)
    flip(file, bit=3)
    assert not ledger.is_sound(file) and not ledger[file].holds(file)
    file.unlink()
    assert ledger.are_sound([file]) == ledger.are_sound([file], thorough=True) == [False]
    assert not ledger.is_sound(tmp_path / "never seen")


def test_another_time_of_change_is_no_damage_and_is_read_once(tmp_path: Path, file: Path) -> None:
    ledger = Ledger(tmp_path, tmp_path / "sums")
    ledger.add(file)
    os.utime(file, (1, 1))
    assert not ledger.is_known(file) and ledger.is_sound(file) and ledger.is_known(file)
    assert Ledger(tmp_path, tmp_path / "sums").is_known(file)


@pytest.mark.parametrize("name", ['"../thesis.tex"', '"/etc/passwd"', '"a/../../b"', '"\\ud800', "7", "x y"])
def test_lines_about_files_elsewhere_say_nothing(tmp_path: Path, name: str) -> None:
    lines = []
    for stated in (name, '"kept"'):
        rest = f"{'0' * 64} 1 2 {stated}"
        lines.append(f"{zlib.crc32(rest.encode()):08x} {rest}\n")
    lines.append(f"{zlib.crc32(b'no line'):08x} no line\n")
    (tmp_path / "sums").write_text("".join(lines))
    assert Ledger(tmp_path, tmp_path / "sums").names() == ["kept"]


def test_a_ledger_that_cannot_be_written_can_be_read(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Ledger(tmp_path, tmp_path / "sums").add(file)
    os.utime(file, (1, 1))

    ledger = Ledger(tmp_path, tmp_path / "sums")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Ledger, "_append", refuse)
    assert ledger.is_sound(file) and ledger.are_sound([file], thorough=True) == [True]


def test_what_is_forgotten_is_not_known(tmp_path: Path, file: Path) -> None:
    ledger = Ledger(tmp_path, tmp_path / "sums")
    (tmp_path / "b").write_bytes(b"1")
    ledger.add(file)
    ledger.add(tmp_path / "b")
    ledger.forget([file, tmp_path / "never seen"])
    assert Ledger(tmp_path, tmp_path / "sums").names() == ledger.names() == ["b"]


def test_sealing_reads_only_what_it_does_not_know(tmp_path: Path, file: Path) -> None:
    ledger = Ledger(tmp_path, tmp_path / "sums")
    ledger.add(file)
    flip(file, quietly=True)  # what was rotten before must not be taken for good
    new = tmp_path / "new"
    new.write_text("1")
    ledger.seal([new, file])
    ledger.write()
    found = Ledger(tmp_path, tmp_path / "sums")
    assert len(found.names()) == 2 and found.is_sound(new, thorough=True)
    assert not found.is_sound(file, thorough=True)


def test_a_line_that_was_cut_off_or_damaged_says_nothing(tmp_path: Path, file: Path) -> None:
    sums, other = tmp_path / "sums", tmp_path / "other"
    other.write_text("other")
    ledger = Ledger(tmp_path, sums)
    ledger.add(file)
    ledger.add(other)
    whole = sums.read_bytes()
    sums.write_bytes(whole[:-3])  # killed while it wrote
    cut = Ledger(tmp_path, sums)
    assert file in cut and other not in cut
    cut.add(other)
    again = Ledger(tmp_path, sums)
    assert file in again and again.is_sound(other)


def test_a_ledger_that_changed_nothing_is_not_parsed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, other, sums = tmp_path / "a", tmp_path / "b", tmp_path / "sums"
    for path in (file, other):
        path.write_text(path.name)
    Ledger(tmp_path, sums).add(file)
    first = Ledger(tmp_path, sums)
    monkeypatch.setattr("maskloom.integrity._parsed", lambda _: pytest.fail("parsed again"))
    second = Ledger(tmp_path, sums)
    monkeypatch.undo()
    assert second.names() == ["a"] and second[file] == first[file]
    second.add(other)
    assert first.names() == ["a"], "ledgers do not share what they know"
    assert Ledger(tmp_path, sums).names() == ["a", "b"], "nor is what was added overlooked"


@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_flipped_bit_of_a_ledger_makes_it_lie(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    folder = tmp_path_factory.mktemp("ledger")
    files = [folder / name for name in ("a", "b")]
    for path in files:
        path.write_text(path.name)
        Ledger(folder, folder / "sums").add(path)
    true = {path.name: Ledger(folder, folder / "sums")[path] for path in files}
    text = bytearray((folder / "sums").read_bytes())
    text[place % len(text)] ^= 1 << bit
    (folder / "sums").write_bytes(text)
    found = Ledger(folder, folder / "sums")
    assert {name: found[folder / name] for name in found.names()}.items() <= true.items()


def test_json_with_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    value = {"list": [1, 2.5, None], "text": "ä", "nested": {"a": True}}
    write_sealed(path, value | {"tuple": (1, 2)})
    assert read_sealed(path) == value | {"tuple": [1, 2]}
    for damage in (lambda text: text.replace("2.5", "2.4"), lambda text: text[:-9], lambda _: "[]"):
        text = path.read_text(encoding="utf-8")
        path.write_text(damage(text), encoding="utf-8")
        with pytest.raises(Damaged, match=r"a\.json: is damaged .*start `fit` with this run again"):
            read_sealed(path)
        path.write_text(text, encoding="utf-8")
    path.write_text('{"of": "an earlier version"}')
    assert read_sealed(path) == {"of": "an earlier version"}
    with pytest.raises(UserError, match="no such file"):
        read_sealed(tmp_path / "none.json")


def test_no_flipped_bit_of_sealed_json_passes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    value = {"fingerprint": "a" * 24, "list": [1, 2.5], "text": "ä"}
    write_sealed(path, value)
    whole, name = path.read_bytes(), path.read_bytes().index(b"checksum")
    for place in range(len(whole)):
        for bit in range(8) if name <= place < name + len("checksum") else (place % 8,):
            content = bytearray(whole)
            content[place] ^= 1 << bit
            path.write_bytes(content)
            with suppress(Damaged):
                assert read_sealed(path) == value and not name <= place < name + len("checksum"), "only white space"


def test_damage_goes_through_a_queue() -> None:
    found = pickle.loads(pickle.dumps(Damaged("a/b.map", "is damaged")))
    assert (found.path, found.reason) == (Path("a/b.map"), "is damaged") and str(found).startswith(
        "a/b.map: is damaged"
    )
