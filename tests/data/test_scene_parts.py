"""Blocks of scenes as records, and tables of blocks told from those of records."""

from __future__ import annotations

from pathlib import Path

from maskloom.data.folds import is_of_blocks
from maskloom.data.scene_parts import ScenePart, part_id, parts_among, parts_of, scenes_of
from maskloom.records import MaskFile, Record, Shapes
from maskloom.windows import Window

TOWN = Record(id="north/town", image=Path("town.tif"), size=(30, 40), truth=Shapes(wkt=()), attributes={"year": "9"})
WINDOWS = [Window(0, 0, 30, 16), Window(0, 16, 30, 24)]


def test_a_block_is_a_record_of_its_scene() -> None:
    parts = parts_of(TOWN, WINDOWS, Path("run/blocks"))
    assert [part.id for part in parts] == ["north/town/r0c0", "north/town/r0c16"]
    assert parts[1].size == (30, 24) and parts[1].group == "north/town" and parts[1].attributes == {"year": "9"}
    assert parts[1].truth == MaskFile(path=Path("run/blocks/north/town/r0c16.png"), coded="labels")
    assert parts[1].scene is TOWN and parts[1].window == WINDOWS[1] and part_id(TOWN.id, WINDOWS[1]) == parts[1].id


def test_scenes_and_parts_among_records() -> None:
    parts = parts_of(TOWN, WINDOWS, Path())
    other = Record(id="other", image=Path("other.tif"), size=(3, 4))
    mixed: list[Record] = [*parts, other]
    assert scenes_of(mixed) == [TOWN, other]
    assert parts_among(mixed) == parts and all(isinstance(part, ScenePart) for part in parts)
    assert parts_among([TOWN, other]) == []


def test_tables_are_told_apart_by_their_columns(tmp_path: Path) -> None:
    path = tmp_path / "folds.csv"
    assert not is_of_blocks(path)
    for text, expected in (
        ("id,group,fold\na,a,0\n", False),
        ("\ufeffscene;top;left;height;width;fold\n", True),
        ("", False),
    ):
        path.write_text(text, encoding="utf-8")
        assert is_of_blocks(path) is expected
    path.write_bytes(b"\xff\xfe\x00scene")
    assert not is_of_blocks(path)
