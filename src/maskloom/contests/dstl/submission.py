"""The submission of the Dstl challenge: a row of WKT in grid coordinates for each image and class, in a sample's order.

Source: kaggle.com/c/dstl-satellite-imagery-feature-detection, "Evaluation": ``ImageId,ClassType,MultipolygonWKT`` for
429 images × 10 classes. Polygons come in pixels and classes as labels 0…9; one-based numbers exist in the file alone.
Knows nothing about how polygons are found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from maskloom.contests.dstl.truth import CLASSES, TableRow, label_of, parsed, read_rows
from maskloom.encodings.grid_coordinates import Grid, to_grid
from maskloom.encodings.outlines import repaired
from maskloom.encodings.vector_files import DSTL_COLUMNS
from maskloom.errors import BadFile, UserError, some_of
from maskloom.outputs.ordered import ordered_table
from maskloom.records import Size

if TYPE_CHECKING:
    from shapely import Polygon

EMPTY = "MULTIPOLYGON EMPTY"
"""What stands for a class that is not in an image."""

AREA_TOLERANCE = 1e-6
"""The largest relative change of a row's area by the digits that are written."""

_DECIMALS = 14  # of grid units, of which a pixel has 2.7e-6: 4e-9 pixels
_FULL = -1  # as many digits as a float64 needs

Key = tuple[str, int]
"""An image and the label of a class, 0…9."""


class DstlRow(NamedTuple):
    """One row of a submission: image, label 0…9, and valid polygons in grid coordinates."""

    image: str
    label: int
    polygons: list[Polygon]


class DstlWriter:
    """Writes a submission; a context manager, and nothing is left behind when its block fails.

    Rows stand in the order of ``sample``, else of the sorted ``images`` × 10 classes; images may come in any order and
    from several threads, and all must have come when the block ends. ``grids`` holds the extent of each image. A path
    ending in ``.gz`` is compressed. Raises ``UserError`` for a damaged sample.
    """

    def __init__(
        self,
        path: Path,
        grids: Mapping[str, Grid],
        *,
        sample: Path | None = None,
        images: Iterable[str] = (),
    ) -> None:
        labels = range(len(CLASSES))
        keys = read_sample(sample) if sample else [(image, label) for image in sorted(images) for label in labels]
        self._path, self._grids = path, grids
        self._labels: dict[str, list[int]] = {}
        for image, label in keys:
            self._labels.setdefault(image, []).append(label)
        self._table = ordered_table(path, DSTL_COLUMNS, keys, cells=_cells, named=_named)

    @property
    def images(self) -> list[str]:
        """The images whose rows are expected, in their order."""
        return list(self._labels)

    def __enter__(self) -> Self:
        """Opens the file under a temporary name and writes the header."""
        self._order = self._table.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """Puts the file in place, or removes it after an error; raises ``UserError`` when rows are missing."""
        return self._table.__exit__(kind, error, trace)

    def write(self, image: str, size: Size, polygons: Mapping[int, Sequence[Polygon]]) -> None:
        """Takes an image of ``size`` (height, width): polygons in its pixels by label; labels left out are empty.

        Raises ``UserError`` for an image that is not expected, comes twice or has no grid.
        """
        unknown = [label for label in polygons if not 0 <= label < len(CLASSES)]
        if unknown:
            raise ValueError(f"{image!r}: expected labels of 0 to {len(CLASSES) - 1}, got {unknown}")
        if image not in self._grids:
            raise UserError(f"{self._path}: image {image!r} has no row in grid_sizes.csv; give the table that has it")
        grid = self._grids[image]
        for label in self._labels.get(image, range(len(CLASSES))):
            self.write_row(image, label, [to_grid(polygon, size, grid) for polygon in polygons.get(label, ())])

    def write_row(self, image: str, label: int, polygons: Sequence[Polygon]) -> None:
        """Takes one row: polygons in grid coordinates; raises ``UserError`` for one that is not expected or twice."""
        try:
            text = grid_wkt(polygons)
        except UserError as error:
            raise UserError(f"{self._path}: {image} {CLASSES[label]}: {error}") from None
        self._order.put((image, label), text)


def grid_wkt(polygons: Sequence[Polygon]) -> str:
    """Returns the WKT of a MultiPolygon that is valid when it is read again and has the polygons' area to 1e-6.

    Polygons that overlap, cross or touch themselves are repaired first. Raises ``UserError`` for coordinates that are
    not finite.
    """
    import shapely

    if not np.isfinite(shapely.get_coordinates(np.array(list(polygons), dtype=object))).all():
        raise UserError("expected finite coordinates, found NaN or infinity")
    whole = repaired(polygons)
    if not whole:
        return EMPTY
    geometry = shapely.multipolygons(whole)
    for decimals in (_DECIMALS, _FULL):
        text: str = shapely.to_wkt(geometry, rounding_precision=decimals)
        again = shapely.from_wkt(text)
        if again.is_valid and abs(again.area - geometry.area) <= AREA_TOLERANCE * geometry.area:
            return text
    raise UserError("the polygons stay invalid when written; simplify them, or drop the smallest")


# Reading and checking -----------------------------------------------------------------------------------------------


def read_sample(path: Path) -> list[Key]:
    """Returns the images and labels of a sample's rows, in their order; its polygons are not looked at.

    Raises ``BadFile`` for other columns, a class that is none, a row that comes twice, and a table without rows.
    """
    keys = [(row.image, label_of(path, row)) for row in _each_once(path)]
    if not keys:
        raise BadFile(path, "expected a row for each image and class, found none; restore the file")
    return keys


def read_submission(path: Path, *, note: Callable[[str], None] = lambda _: None) -> Iterator[DstlRow]:
    """Returns the rows of a submission, one at a time; ``EMPTY`` geometries of any kind have no polygons.

    Areas that cross or touch themselves are repaired and counted in a ``note`` at the end. Raises ``BadFile`` for
    other columns, unknown classes, and anything but WKT of finite polygons.
    """
    num_repaired = 0
    for row in read_rows(path):
        stored = parsed(path, row)
        polygons = repaired(stored)
        num_repaired += polygons != stored
        yield DstlRow(row.image, label_of(path, row), polygons)
    if num_repaired:
        note(f"{path.name}: areas in {num_repaired} rows cross or touch themselves; repaired")


def validate(path: Path, sample: Path) -> None:
    """Raises ``UserError`` unless the submission has exactly the rows of the sample, each once, with valid areas.

    The order of rows does not matter. Up to five rows that are missing or too many are named.
    """
    import shapely

    found: set[Key] = set()
    for row in _each_once(path):
        polygons = parsed(path, row)
        geometry = shapely.multipolygons(polygons) if polygons else shapely.MultiPolygon()
        if not geometry.is_valid:
            raise BadFile(path, f"{row.place}: expected valid areas, found {shapely.is_valid_reason(geometry)}")
        found.add((row.image, label_of(path, row)))
    expected = set(read_sample(sample))
    missing, extra = sorted(expected - found), sorted(found - expected)
    if missing or extra:
        parts = [f"{len(missing)} missing: {some_of(map(_named, missing))}"] * bool(missing)
        parts += [f"{len(extra)} not in the sample: {some_of(map(_named, extra))}"] * bool(extra)
        raise UserError(
            f"{path}: expected exactly the {len(expected)} rows of {sample.name}, found {len(found)} "
            f"({'; '.join(parts)}); predict the images that the sample names"
        )


def _each_once(path: Path) -> Iterator[TableRow]:
    """Returns the rows of a table; raises ``BadFile`` when an image and class come twice."""
    seen: set[Key] = set()
    for row in read_rows(path):
        key = (row.image, label_of(path, row))
        if key in seen:
            raise BadFile(path, f"{row.place}: found a second row for this image and class, expected one")
        seen.add(key)
        yield row


def _named(key: Key) -> str:
    return f"{key[0]} class {key[1] + 1}"


def _cells(key: Key, text: str) -> tuple[str, int, str]:
    return key[0], key[1] + 1, text
