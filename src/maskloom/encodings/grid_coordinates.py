"""The coordinates of the Dstl contest: x from 0 to ``x_max``, y from 0 down to ``y_min``, whatever the image's size.

Scaling is the contest's own: a pixel coordinate is x·W′/x_max and y·H′/y_min with W′ = W·W/(W+1), H′ = H·H/(H+1).
Pixels are x to the right, y down, (0, 0) the outer corner of the first pixel. Knows nothing about classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from maskloom.encodings.table_files import open_table
from maskloom.errors import BadFile, UserError
from maskloom.records import Size, check_id

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

_HEADERS = (["", "xmax", "ymin"], ["imageid", "xmax", "ymin"])


@dataclass(frozen=True, slots=True)
class Grid:
    """The extent of one image: x runs from 0 to ``x_max`` > 0, y from 0 down to ``y_min`` < 0."""

    x_max: float
    y_min: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.x_max) and math.isfinite(self.y_min) and self.x_max > 0 > self.y_min):
            raise UserError(f"expected a grid with Xmax > 0 and Ymin < 0, found Xmax {self.x_max}, Ymin {self.y_min}")


def to_pixels(geometry: BaseGeometry, size: Size, grid: Grid) -> BaseGeometry:
    """Returns the geometry in pixels of an image of ``size`` (height, width), given in its grid's coordinates."""
    return _scaled(geometry, 1 / _grid_per_pixel(size, grid))


def to_grid(geometry: BaseGeometry, size: Size, grid: Grid) -> BaseGeometry:
    """Returns the geometry in the grid's coordinates, given in pixels of an image of ``size`` (height, width)."""
    return _scaled(geometry, _grid_per_pixel(size, grid))


def _grid_per_pixel(size: Size, grid: Grid) -> np.ndarray:
    height, width = size
    return np.array([grid.x_max / (width * width / (width + 1)), grid.y_min / (height * height / (height + 1))])


def _scaled(geometry: BaseGeometry, factors: np.ndarray) -> BaseGeometry:
    import shapely

    return shapely.transform(geometry, lambda coordinates: coordinates * factors)


def read_grids(path: Path) -> dict[str, Grid]:
    """Returns the grid of each image from ``grid_sizes.csv``, plain or gzip; its first heading is empty or ``ImageId``.

    Raises ``BadFile`` for other columns, numbers that are no extent, and an image that comes twice.
    """
    with open_table(path) as lines:
        header, *rows = [row for row in lines if row] or [[]]
    if [column.lower() for column in header] not in _HEADERS:
        raise BadFile(path, f"expected the columns ImageId,Xmax,Ymin, found {','.join(header)[:200]}")
    grids: dict[str, Grid] = {}
    for number, row in enumerate(rows, start=2):
        name, grid = _parsed(path, number, row)
        if name in grids:
            raise BadFile(path, f"found two rows for {name!r}, expected one; leave one out")
        grids[name] = grid
    return grids


def _parsed(path: Path, number: int, row: list[str]) -> tuple[str, Grid]:
    try:
        name, x_max, y_min = row
        check_id(name)
        return name, Grid(float(x_max), float(y_min))
    except UserError as error:
        raise BadFile(path, f"row {number}: {error}") from None
    except ValueError:
        raise BadFile(path, f"row {number}: expected an image, Xmax and Ymin, found {','.join(row)[:200]}") from None
