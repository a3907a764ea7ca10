"""A table of scenes: every row names a scene's image, its further files, and how each of these is resampled.

Columns: ``image``; ``id``, else the image's path without suffix; ``band``, ``band_2`` … for further files; where
wanted ``resampling``, ``resampling_2`` … for the file of the same number, "bicubic" (unless stated) or "nearest".
Paths are relative to the table. Knows nothing about what is in the files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from maskloom.data.sources.band_columns import BandColumns, band_columns, is_band_column
from maskloom.encodings.table_files import open_table
from maskloom.errors import BadFile, UserError
from maskloom.records import BandFile, check_id

TABLE_SUFFIXES = (".csv", ".csv.gz")
COLUMNS = "id, image, band, band_2 …"
"""The columns, for messages."""
RASTER_SUFFIXES = (".tif", ".tiff")
"""File suffixes of rasters, in lower case."""


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
    further: BandColumns


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
    places: dict[str, int] = {}
    unused = []
    for place, name in enumerate(name.strip().lower() for name in header):
        if name in ("id", "image") and places.setdefault(name, place) != place:
            raise BadFile(table, f"expected each column once, found {name!r} again; remove one of them")
        if name not in ("id", "image") and not is_band_column(name):
            unused.append(header[place].strip() or "(no name)")
    if "image" not in places:
        raise BadFile(
            table,
            f"expected a table of scenes with the columns {COLUMNS}, separated by commas, found no column 'image' but "
            f"{', '.join(header)[:200] or 'nothing'}; name the column of the scenes' rasters 'image'",
        )
    further = band_columns(table, header)
    if unused:
        note(f"{table.name}: columns that are not used: {', '.join(unused)}")
    return _Columns(len(header), places["image"], places.get("id"), further)


def _scene(table: Path, cells: Sequence[str], columns: _Columns) -> SceneFiles:
    """Returns the scene of one row; raises ``UserError``."""
    image = cells[columns.image]
    if not image:
        raise UserError("expected an image, found none")
    scene_id = "" if columns.id is None else cells[columns.id]
    scene_id = scene_id or _without_suffix(image)
    check_id(scene_id)
    bands = columns.further.files(cells, lambda name: table.parent / name)
    return SceneFiles(scene_id, table.parent / image, bands)


def _without_suffix(name: str) -> str:
    path = Path(name)
    return (path.with_suffix("") if path.suffix.lower() in RASTER_SUFFIXES else path).as_posix()
