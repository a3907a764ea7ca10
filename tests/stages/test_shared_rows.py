"""Tables of photos that several processes predict together: the same bytes as from one, whoever is killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_photos import CHUNK, NUM_PHOTOS, Bright, predicted, write_photos

from maskloom.records import Record
from maskloom.stages import rows, shared_rows
from maskloom.stages.images import TABLES
from maskloom.stages.shared_rows import SharedTable


@pytest.mark.parametrize("to", sorted(TABLES))
def test_processes_share_the_photos_and_one_is_killed(tmp_path: Path, to: str) -> None:
    write_photos(tmp_path / "photos")
    assert predicted(tmp_path / "run", tmp_path / "photos", tmp_path / "out", to, Bright()) == NUM_PHOTOS
    program = [sys.executable, str(Path(__file__).with_name("tiny_photos.py"))]
    places = [str(tmp_path / name) for name in ("run", "photos", "shared")]
    processes = [
        subprocess.Popen([*program, *places, kill_at, to], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for kill_at in ("3", "-1", "-1")
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    assert processes[0].communicate("go\n", timeout=60)[0] == "" and processes[0].returncode == -9
    for process in processes[1:]:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    counts = [int(process.communicate(timeout=60)[0]) for process in processes[1:]]
    name = TABLES[to]
    assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert sum(counts) == NUM_PHOTOS - CHUNK, "the killed one had finished one chunk and lost another"
    assert min(counts) > 0, "both had a part in it"
    assert not (tmp_path / "shared" / ".rows").exists()
    assert not list((tmp_path / "shared").rglob(".partial-*"))


def test_a_table_that_is_there_is_not_made_again_and_a_changed_one_is(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 3)

    def asked() -> int:
        bright = Bright()
        assert predicted(tmp_path / "run", tmp_path / "photos", tmp_path / "out", "rle", bright) == 3
        return bright.asked

    assert [asked(), asked()] == [3, 0]
    table = tmp_path / "out" / TABLES["rle"]
    whole = table.read_bytes()
    table.write_bytes(whole[:-4])
    assert asked() == 3 and table.read_bytes() == whole
    table.unlink()
    assert asked() == 3 and table.read_bytes() == whole


@pytest.mark.parametrize("note", [b"{}", b"[]", b"{", b"stamp alone", b""])
def test_a_damaged_note_has_the_table_made_again(tmp_path: Path, note: bytes) -> None:
    write_photos(tmp_path / "photos", 3)
    out = tmp_path / "out"

    def asked() -> int:
        bright = Bright()
        assert predicted(tmp_path / "run", tmp_path / "photos", out, "rle", bright) == 3
        return bright.asked

    assert asked() == 3
    (path,) = (out / ".images").glob("*.json")
    whole, written = (out / TABLES["rle"]).read_bytes(), path.read_bytes()
    stamp = json.dumps({"table": json.loads(written)["table"]}).encode()
    path.write_bytes(stamp if note == b"stamp alone" else note)
    assert asked() == 3 and (out / TABLES["rle"]).read_bytes() == whole and path.stat().st_size == len(written)
    assert asked() == 0


def test_no_photo_gives_an_empty_table(tmp_path: Path) -> None:
    shared = SharedTable(table=tmp_path / "out" / "table", rows=tmp_path / ".rows" / "key", state=tmp_path / "state")

    def write(files: Sequence[Path]) -> set[str]:
        shared.table.write_text("header")
        return set()

    shared.table.parent.mkdir()
    assert shared.write([], lambda *_: list, write, on_progress=lambda done, of: None) == set()
    assert shared.table.read_text() == "header"


def test_what_another_process_is_at_is_come_back_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process has the first chunk; it ends when all others are done."""
    monkeypatch.setattr(rows, "CHUNK", 1)
    records = [Record(id=str(number), image=tmp_path / f"{number}.png", size=(1, 1)) for number in range(3)]
    shared = SharedTable(table=tmp_path / "out" / "table", rows=tmp_path / ".rows" / "key", state=tmp_path / "state")
    other = (
        "import sys; from pathlib import Path; from maskloom.stages.claims import Claims\n"
        f"claims = Claims(Path({str(tmp_path / 'state' / 'key.claims')!r})); print(claims.take(1), flush=True)\n"
        "sys.stdin.readline()"
    )
    process = subprocess.Popen([sys.executable, "-c", other], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "True\n"
    shared.table.parent.mkdir()
    order: list[str] = []
    told: list[int] = []

    def pause(_: float) -> None:
        if process.poll() is None:
            process.communicate("end\n", timeout=60)

    def begin(chunk: Sequence[Record], folder: Path, advance: Callable[[int, int], None]) -> Callable[[], list[Path]]:
        order.extend(record.id for record in chunk)
        advance(1, 1)
        return lambda: [folder / "rows.csv"]

    def write(files: Sequence[Path]) -> set[str]:
        shared.table.write_text(" ".join(file.parent.name for file in files))
        return {"0", "2"}

    monkeypatch.setattr(shared_rows, "time", SimpleNamespace(sleep=pause))
    found = shared.write(records, begin, write, on_progress=lambda done, _: told.append(done))
    assert order == ["1", "2", "0"] and found == {"0", "2"}
    assert shared.table.read_text() == "000000 000001 000002"
    assert told == [1, 2, 3, 3]


def test_what_others_are_at_is_not_tidied_away(tmp_path: Path) -> None:
    """An attempt on other images is removed once its process has ended, and not before."""
    write_photos(tmp_path / "photos", 1)
    out = tmp_path / "out"
    predicted(tmp_path / "run", tmp_path / "photos", out, "rle", Bright())
    theirs = out / ".rows" / "theirs" / "rows.csv"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("")
    other = (
        "import sys; from pathlib import Path; from maskloom.stages.claims import Claims\n"
        f"claims = Claims(Path({str(out / '.images' / 'processes.claims')!r})); claims.share(0)\n"
        "print('at work', flush=True); sys.stdin.readline()"
    )
    process = subprocess.Popen([sys.executable, "-c", other], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "at work\n"
    predicted(tmp_path / "run", tmp_path / "photos", out, "rle", Bright())
    assert theirs.is_file()
    process.communicate("end\n", timeout=60)
    predicted(tmp_path / "run", tmp_path / "photos", out, "rle", Bright())
    assert not (out / ".rows").exists()
