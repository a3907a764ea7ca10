"""Where an image's pixels lie on the ground: a coordinate reference system and an affine transform.

Pixel coordinates are x to the right, y down, (0, 0) the outer corner of the first pixel; ground coordinates are in the
units of the CRS, x (east, longitude) before y. Knows nothing about classes, and writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.errors import BadFile, UserError
from maskloom.rasters.opening import opened
from maskloom.storage.ranges import open_part

if TYPE_CHECKING:
    from shapely import Polygon

Transform = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f): ground x = a·x + b·y + c, ground y = d·x + e·y + f of the pixel coordinates x, y."""

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_IDENTITY: Transform = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True, slots=True)
class Georeference:
    """CRS ("EPSG:n" where it has a number, else WKT; None where unknown) and transform from pixels to the ground."""

    crs: str | None
    transform: Transform

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, self.transform)) or self.determinant == 0:
            raise UserError(
                f"expected a transform that can be undone, found {self.transform}; give the raster its place "
                "(gdal_edit.py -a_ullr) or take it away (-unsetgt)"
            )

    @property
    def determinant(self) -> float:
        """Ground area per pixel, negative where ground y points up."""
        a, b, _, d, e, _ = self.transform
        return a * e - b * d


def read_georeference(path: Path) -> Georeference | None:
    """Returns the georeference of a TIFF; None where it has none, and for images of other formats.

    Raises ``BadFile`` for a file that is missing or is a damaged TIFF, ``UserError`` where its store does not give it.
    """
    try:
        with open_part(path) as stream:
            is_tiff = stream.read(4) in _TIFF_STARTS
    except OSError as error:
        raise BadFile(path, f"cannot be read ({error.strerror})") from None
    if not is_tiff:
        return None
    with opened(path) as dataset:
        return georeference_of(path, dataset)


def georeference_of(path: Path, dataset: Any) -> Georeference | None:
    """Returns the georeference of an opened rasterio dataset, or None where it has none."""
    a, b, c, d, e, f = map(float, dataset.transform[:6])
    transform: Transform = (a, b, c, d, e, f)
    if dataset.crs is None and transform == _IDENTITY:
        return None
    try:
        return Georeference(dataset.crs.to_string() if dataset.crs else None, transform)
    except UserError as error:
        raise BadFile(path, str(error)) from None


def to_crs(polygons: Sequence[Polygon], georeference: Georeference) -> list[Polygon]:
    """Returns polygons in the units of the CRS, given in pixels."""
    a, b, c, d, e, f = georeference.transform
    return _moved(polygons, lambda xy: xy @ np.array([[a, d], [b, e]]) + np.array([c, f]))


def to_pixels(polygons: Sequence[Polygon], georeference: Georeference) -> list[Polygon]:
    """Returns polygons in pixels, given in the units of the CRS."""
    a, b, c, d, e, f = georeference.transform
    inverse = np.array([[e, -d], [-b, a]]) / georeference.determinant
    return _moved(polygons, lambda xy: (xy - np.array([c, f])) @ inverse)


def reprojected(polygons: Sequence[Polygon], source: str, target: str) -> list[Polygon]:
    """Returns polygons in another CRS, vertex by vertex; raises ``UserError`` where a vertex has no place in it."""
    from rasterio import Env
    from rasterio._err import CPLE_BaseError  # no public name for what GDAL says itself
    from rasterio.errors import CRSError
    from rasterio.warp import transform

    def moved(xy: np.ndarray) -> np.ndarray:
        return np.array(transform(source, target, xy[:, 0], xy[:, 1])).T.reshape(-1, 2)

    try:
        with Env():  # without it GDAL prints what it complains of
            found = _moved(polygons, moved)
    except (CRSError, CPLE_BaseError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"what lies in {source:.80} cannot be brought to {target:.80} ({reason:.120}); correct the wrong CRS"
        ) from None
    if not all(map(_is_finite, found)):
        raise UserError(
            f"what lies in {source:.80} reaches where {target:.80} has no coordinates; state it in that CRS"
        )
    return found


def same_crs(one: str, other: str) -> bool:
    """Returns whether two texts ("EPSG:n" or WKT) name one CRS; raises ``UserError`` for what is no CRS."""
    return one == other or bool(_parsed(one) == _parsed(other))


def _parsed(text: str) -> Any:
    from rasterio import Env
    from rasterio.crs import CRS

    try:
        with Env():  # without it GDAL prints what it complains of
            return CRS.from_user_input(text)
    except ValueError:  # rasterio's own CRSError is one, and a number that is none is another
        raise UserError(f"expected a CRS as EPSG:n or WKT, found {text!r:.80}; mend the file") from None


def _moved(polygons: Sequence[Polygon], move: Callable[[np.ndarray], np.ndarray]) -> list[Polygon]:
    import shapely

    if not polygons:
        return []
    moved: list[Polygon] = shapely.transform(np.array(polygons, dtype=object), move).tolist()
    return moved


def _is_finite(polygon: Polygon) -> bool:
    import shapely

    return bool(np.isfinite(shapely.get_coordinates(polygon)).all())
