"""Polygons → masks: WKT by the pixel-centre rule, COCO polygons by COCO's own rule.

Coordinates are pixels: x to the right, y down, (0, 0) the outer corner of the first pixel. The two rules differ along
edges: WKT sets the pixels whose centre lies inside; COCO's rasteriser rounds the outline on a five times finer grid.
Knows nothing about files or classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.encodings.rle import coco_decode
from maskloom.errors import UserError
from maskloom.records import Size

if TYPE_CHECKING:
    from shapely import Polygon
    from shapely.geometry.base import BaseGeometry

_FARTHEST = 2**24  # pixels from the corner; COCO's rasteriser takes memory in proportion to the outline's length


def rasterize_wkt(wkt: str, size: Size) -> np.ndarray:
    """Returns the bool mask H×W of the pixels whose centre lies inside the WKT polygons.

    POLYGON, MULTIPOLYGON and collections of them, ``EMPTY`` included. Polygons may overlap (their union is set),
    touch themselves or reach outside the image. Raises ``UserError`` for text that is not WKT, for other geometries,
    and for coordinates that are not finite.
    """
    from rasterio.features import rasterize

    polygons = polygons_of(wkt)
    if not polygons:
        return np.zeros(size, bool)
    # One shape per polygon: rings of one shape are filled by the even-odd rule, so overlaps would cancel out.
    mask: np.ndarray = rasterize(polygons, out_shape=size, fill=0, default_value=1, dtype="uint8")
    return mask.view(bool)


def polygons_of(shape: str | BaseGeometry) -> list[Polygon]:
    """Returns the polygons of WKT or of a geometry, as they are; an empty one of any kind has none.

    Raises ``UserError`` for text that is not WKT, for points and lines, and for coordinates that are not finite.
    """
    geometry = _parse_wkt(shape) if isinstance(shape, str) else shape
    return _polygons(geometry, shape if isinstance(shape, str) else f"{shape!s:.60}")


def _parse_wkt(wkt: str) -> BaseGeometry:
    import shapely

    try:
        with np.errstate(invalid="ignore"):  # NaN is refused below, by its own message
            return shapely.from_wkt(wkt)
    except (shapely.errors.ShapelyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"expected WKT such as 'POLYGON ((0 0, 4 0, 4 4, 0 0))', found {wkt!r:.60} ({reason})"
        ) from None


def _polygons(geometry: BaseGeometry, wkt: str) -> list[Polygon]:
    import shapely

    if not np.isfinite(shapely.get_coordinates(geometry)).all():
        raise UserError(f"expected finite WKT coordinates, found NaN or infinity in {wkt!r:.60}")
    if geometry.is_empty:
        return []
    if geometry.geom_type == "Polygon":
        return [geometry]
    if geometry.geom_type in ("MultiPolygon", "GeometryCollection"):
        return [polygon for part in geometry.geoms for polygon in _polygons(part, wkt)]
    raise UserError(
        f"expected WKT polygons, found a {geometry.geom_type} in {wkt!r:.60}; draw areas, not lines or points"
    )


def rasterize_coco(polygons: Sequence[Sequence[float]], size: Size) -> np.ndarray:
    """Returns the bool mask H×W of COCO polygons ``[[x0, y0, x1, y1, …], …]``, united, exactly as pycocotools draws.

    An empty list is an empty mask. Raises ``UserError`` unless every polygon has at least three points of finite
    coordinates not absurdly far from the image.
    """
    from pycocotools import mask as coco

    rings = [_coco_ring(polygon, size) for polygon in polygons]
    if not rings:
        return np.zeros(size, bool)
    united = coco.merge(coco.frPyObjects(rings, *size))
    return coco_decode(united)  # pycocotools' own decode warns under NumPy 2


def _coco_ring(polygon: Any, size: Size) -> list[float]:
    is_list = isinstance(polygon, list | tuple) and all(type(value) in (int, float) for value in polygon)
    if not is_list or len(polygon) < 6 or len(polygon) % 2:
        found = f"{len(polygon)} values" if isinstance(polygon, list | tuple) else f"{polygon!r:.40}"
        raise UserError(f"expected a COCO polygon [x0, y0, x1, y1, …] of at least 3 points, found {found}")
    ring = [float(value) for value in polygon]
    limit = min(_FARTHEST, 1000 + 10 * max(size))
    if not all(math.isfinite(value) and abs(value) <= limit for value in ring):
        raise UserError(
            f"expected COCO polygon coordinates near the image of {size[1]}×{size[0]} (width×height), "
            f"found values between {min(ring)} and {max(ring)}; are they in pixels?"
        )
    return ring
