"""A table of scenes: every row names a scene's image, its further files, and how each of these is resampled.

Columns: ``image``; ``id``, else the image's path without suffix; ``band``, ``band_2`` … for further files; where
wanted ``resampling``, ``resampling_2`` … for the file of the same number, "bicubic" (unless stated) or "nearest".
Paths are relative to the table. Knows nothing about what is in the files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from maskloom.encodings.table_files import open_table
from maskloom.errors import BadFile, UserError, closest
from maskloom.records import BandFile, check_id

TABLE_SUFFIXES = (".csv", ".csv.gz")
COLUMNS = "id, image, band, band_2 …"
"""The columns, for messages."""
RASTER_SUFFIXES = (".tif", ".tiff")
"""File suffixes of rasters, in lower case."""

_NUMBERED = re.compile(r"(band|resampling)(?:_([1-9][0-9]{0,3}))?")
_RESAMPLINGS: Mapping[str, Literal["nearest", "bicubic"]] = {"": "bicubic", "bicubic": "bicubic", "nearest": "nearest"}


class SceneFiles(NamedTuple):
    """What one scene is made of: its name in what is written, and its files."""

    id: str
    image: Path
    bands: tuple[BandFile, ...] = ()


class _Columns(NamedTuple):
    """Where the columns of a table stand, counted from 0."""

    num_columns: int
    image: int
    id: int | None
    bands: tuple[int, ...]
    resamplings: Mapping[int, int]
    """By the number of the file, counted from 1."""


def is_table(path: Path) -> bool:
    """Returns whether a path is a file with the suffix of a table."""
    return path.name.lower().endswith(TABLE_SUFFIXES) and path.is_file()


def read_scene_table(table: Path, *, note: Callable[[str], None] = lambda _: None) -> list[SceneFiles]:
    """Returns the scenes of a table in its order; ``note`` hears which columns are not used.

    Raises ``BadFile``, naming the row, for anything else than such a table: no column of images, gaps between columns
    or files, an id that is used twice or could leave the output folder.
    """
    found: dict[str, SceneFiles] = {}
    with open_table(table) as rows:
        columns = _columns(table, next(rows, []), note)
        for number, row in enumerate(rows, start=2):
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if len(cells) != columns.num_columns:
                expected = columns.num_columns
                raise BadFile(table, f"row {number}: expected {expected} columns, found {len(cells)}; mend the row")
            try:
                scene = _scene(table, cells, columns)
            except UserError as error:
                raise BadFile(table, f"row {number}: {error}") from None
            if scene.id in found:
                raise BadFile(table, f"row {number}: the id {scene.id!r} is used before; give every scene its own")
            found[scene.id] = scene
    if not found:
        raise BadFile(table, "expected a row for each scene, found none")
    return list(found.values())


def _columns(table: Path, header: Sequence[str], note: Callable[[str], None]) -> _Columns:
    names = [name.strip().lower() for name in header]
    places: dict[str, int] = {}
    numbered: dict[str, dict[int, int]] = {"band": {}, "resampling": {}}
    unused = []
    for place, name in enumerate(names):
        match = _NUMBERED.fullmatch(name)
        if match is not None:
            of_kind: dict[int, int] = numbered[match[1]]
            double = of_kind.setdefault(int(match[2] or 1), place) != place
        else:
            double = name in ("id", "image") and places.setdefault(name, place) != place
            if name not in ("id", "image"):
                unused.append(header[place].strip() or "(no name)")
        if double:
            raise BadFile(table, f"expected each column once, found {name!r} again; remove one of them")
    if "image" not in places:
        raise BadFile(
            table,
            f"expected a table of scenes with the columns {COLUMNS}, separated by commas, found no column 'image' but "
            f"{', '.join(header)[:200] or 'nothing'}; name the column of the scenes' rasters 'image'",
        )
    bands, resamplings = numbered["band"], numbered["resampling"]
    if sorted(bands) != list(range(1, len(bands) + 1)):
        missing = next(number for number in range(1, len(bands) + 1) if number not in bands)
        raise BadFile(table, f"expected the column {_named('band', missing)!r} before {_named('band', max(bands))!r}")
    for number in resamplings:
        if number not in bands:
            raise BadFile(
                table,
                f"expected a column {_named('band', number)!r} for {_named('resampling', number)!r}, found none; "
                "add or remove one of them",
            )
    if unused:
        note(f"{table.name}: columns that are not used: {', '.join(unused)}")
    places_of_bands = tuple(bands[number] for number in sorted(bands))
    return _Columns(len(names), places["image"], places.get("id"), places_of_bands, resamplings)


def _named(kind: str, number: int) -> str:
    return kind if number == 1 else f"{kind}_{number}"


def _scene(table: Path, cells: Sequence[str], columns: _Columns) -> SceneFiles:
    """Returns the scene of one row; raises ``UserError``."""
    image = cells[columns.image]
    if not image:
        raise UserError("expected an image, found none")
    scene_id = "" if columns.id is None else cells[columns.id]
    scene_id = scene_id or _without_suffix(image)
    check_id(scene_id)
    names = [cells[place] for place in columns.bands]
    ways = [cells[columns.resamplings[number]] if number in columns.resamplings else "" for number in _from_1(names)]
    count = max((number for number in _from_1(names) if names[number - 1]), default=0)
    bands = []
    for number, name, way in zip(_from_1(names), names, ways, strict=True):
        if not name and (number < count or way):
            raise UserError(
                f"expected a file in the column {_named('band', number)!r}, found none but what comes after it; "
                "files of one scene leave no gap"
            )
        if way.lower() not in _RESAMPLINGS:
            hint = closest(way.lower(), filter(None, _RESAMPLINGS))
            raise UserError(f"{_named('resampling', number)}: found {way!r}; {hint}")
        if name:
            bands.append(BandFile(path=table.parent / name, resampling=_RESAMPLINGS[way.lower()]))
    return SceneFiles(scene_id, table.parent / image, tuple(bands))


def _from_1(names: Sequence[str]) -> range:
    return range(1, len(names) + 1)


def _without_suffix(name: str) -> str:
    path = Path(name)
    return (path.with_suffix("") if path.suffix.lower() in RASTER_SUFFIXES else path).as_posix()
