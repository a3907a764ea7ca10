"""The tables of Dstl polygons: rows of image, class number and WKT in grid coordinates become shapes in pixels.

Source: kaggle.com/c/dstl-satellite-imagery-feature-detection, "Data": ``train_wkt_v4.csv`` has one row per image and
class, ``grid_sizes.csv`` the extent of each image. Knows nothing about image files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from maskloom.encodings.grid_coordinates import Grid, to_pixels
from maskloom.encodings.outlines import clipped, repaired
from maskloom.encodings.polygons import polygons_of
from maskloom.encodings.table_files import open_table
from maskloom.encodings.vector_files import DSTL_COLUMNS
from maskloom.errors import BadFile, UserError
from maskloom.records import Shapes, Size

if TYPE_CHECKING:
    from shapely import Polygon

CLASSES = (
    "buildings", "structures", "roads", "tracks", "trees", "crops", "fast_water", "slow_water", "large_vehicles",
    "small_vehicles",
)  # fmt: skip
"""The contest's classes 1…10: fast water are waterways, slow water is standing, structures are miscellaneous ones."""

_DECIMALS = 6  # of pixels


class TableRow(NamedTuple):
    """One row of a table as stored; ``number`` is its place in the file, the header being row 1."""

    number: int
    image: str
    class_type: str
    wkt: str

    @property
    def place(self) -> str:
        """Where the row stands, for messages."""
        return f"row {self.number} ({self.image}, class {self.class_type})"


@dataclass(frozen=True, slots=True)
class PixelTruth:
    """The shapes of one image; by label, what reached outside the image and was cut off, what was repaired."""

    shapes: Shapes
    clipped: tuple[int, ...] = ()
    repaired: tuple[int, ...] = ()


def read_rows(path: Path) -> Iterator[TableRow]:
    """Returns the rows of a table ImageId,ClassType,MultipolygonWKT, plain or gzip, one at a time.

    Raises ``BadFile`` for other columns and for a row that is cut.
    """
    with open_table(path) as rows:
        header = tuple(next(rows, ()))
        if header != DSTL_COLUMNS:
            raise BadFile(path, f"expected the columns {','.join(DSTL_COLUMNS)}, found {','.join(header)[:200]}")
        for number, row in enumerate(rows, start=2):
            if len(row) == len(header):
                yield TableRow(number, *row)
            elif row:  # a blank line holds nothing
                raise BadFile(path, f"expected {len(header)} columns in row {number}, found {len(row)}; mend the row")


def label_of(path: Path, row: TableRow) -> int:
    """Returns the index into ``CLASSES`` of a row's class; raises ``BadFile`` for a number that is none."""
    if row.class_type not in _LABELS:
        raise BadFile(path, f"{row.place}: expected a class number of 1 to {len(CLASSES)}; mend the row")
    return _LABELS[row.class_type]


_LABELS = {str(number): number - 1 for number in range(1, len(CLASSES) + 1)}


def parsed(path: Path, row: TableRow) -> list[Polygon]:
    """Returns the polygons of a row, as they are; an empty geometry of any kind has none.

    Raises ``BadFile`` for what ``encodings.polygons.polygons_of`` refuses.
    """
    try:
        return polygons_of(row.wkt)
    except UserError as error:
        raise BadFile(path, f"{row.place}: {error}") from None


def pixel_truth(path: Path, rows: Sequence[TableRow], size: Size, grid: Grid) -> PixelTruth:
    """Returns the shapes of one image of ``size`` (height, width) from its rows, each polygon valid and inside it.

    Areas that cross or touch themselves are repaired as ``encodings.outlines.repaired`` says. Raises ``BadFile`` for
    a class that is none or comes twice, and for what ``parsed`` refuses.
    """
    import shapely

    wkt: dict[int, str] = {}
    cut: list[int] = []
    changed: list[int] = []
    for row in rows:
        label = label_of(path, row)
        if label in wkt:
            raise BadFile(path, f"{row.place}: found a second row for this image and class, expected one")
        stored = parsed(path, row)
        polygons = repaired(stored)
        if polygons != stored:
            changed.append(label)
        inside, num_outside = clipped(_placed(polygons, size, grid), size)
        if num_outside:
            cut.append(label)
        wkt[label] = shapely.to_wkt(shapely.multipolygons(inside), rounding_precision=_DECIMALS) if inside else ""
    shapes = Shapes(wkt=tuple((label, text) for label, text in sorted(wkt.items()) if text))
    return PixelTruth(shapes, tuple(cut), tuple(changed))


def _placed(polygons: list[Polygon], size: Size, grid: Grid) -> list[Polygon]:
    import shapely

    if not polygons:
        return []
    placed: list[Polygon] = shapely.get_parts(to_pixels(shapely.multipolygons(polygons), size, grid)).tolist()
    return placed
