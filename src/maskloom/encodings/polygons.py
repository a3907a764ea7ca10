"""Polygons → masks: WKT by the pixel-centre rule, COCO polygons by COCO's own rule.

Coordinates are pixels: x to the right, y down, (0, 0) the outer corner of the first pixel. The two rules differ along
edges: WKT sets the pixels whose centre lies inside; COCO's rasteriser rounds the outline on a five times finer grid.
Knows nothing about files or classes.
"""

from __future__ import annotations

import math
import threading
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
_DEEPEST = 64
"""Levels of WKT collections in one another."""
_RASTERIO = threading.Lock()  # it silences a warning of its own in a way that other threads undo


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
    with _RASTERIO:
        mask: np.ndarray = rasterize(polygons, out_shape=size, fill=0, default_value=1, dtype="uint8")
    return mask.view(bool)


def polygons_of(shape: str | BaseGeometry) -> list[Polygon]:
    """Returns the polygons of WKT or of a geometry, as they are but without heights; an empty one of any kind has none.

    Collections may lie in one another. Raises ``UserError`` for text that is not WKT, for points and lines, and for
    coordinates that are not finite.
    """
    import shapely

    geometry = _parse_wkt(shape) if isinstance(shape, str) else shape
    if not np.isfinite(shapely.get_coordinates(geometry)).all():
        raise UserError(f"expected finite coordinates, found NaN or infinity in {_start(shape)}; mend them")
    parts = np.array([geometry], dtype=object)
    while _are_collections(parts).any():
        parts = shapely.get_parts(parts)
    parts = parts[~shapely.is_empty(parts)]
    others = parts[shapely.get_type_id(parts) != shapely.GeometryType.POLYGON]
    if len(others):
        found = f"a {others[0].geom_type} in {_start(shape)}"
        raise UserError(f"expected polygons, found {found}; draw areas, not lines or points")
    polygons: list[Polygon] = shapely.force_2d(parts).tolist()
    return polygons


def _parse_wkt(wkt: str) -> BaseGeometry:
    import shapely

    if _depth(wkt) > _DEEPEST:
        raise UserError(f"expected WKT polygons, found collections nested more than {_DEEPEST} deep; take them apart")
    try:
        with np.errstate(invalid="ignore"):  # NaN is refused later, by its own message
            return shapely.from_wkt(wkt)
    except (shapely.errors.ShapelyError, NotImplementedError) as error:  # the second for curves
        reason = " ".join(str(error).split())
        raise UserError(
            f"expected WKT polygons or MULTIPOLYGON EMPTY, found {_start(wkt)} ({reason:.80}); write such as "
            "POLYGON ((0 0, 4 0, 4 4, 0 0))"
        ) from None


def _depth(wkt: str) -> int:
    """Returns how deep brackets are nested; 0, without counting, where no collections can lie in one another so deep.

    GEOS goes down one call per level, and a call too many ends the process.
    """
    if wkt.upper().count("COLLECTION") <= _DEEPEST:
        return 0
    text = np.frombuffer(wkt.encode("utf-8", "replace"), np.uint8)
    return int(np.cumsum((text == ord("(")).astype(np.int64) - (text == ord(")"))).max(initial=0))


def _are_collections(parts: np.ndarray) -> np.ndarray:
    """Returns which of the geometries hold others."""
    import shapely

    kinds = shapely.get_type_id(parts)
    return np.asarray((kinds > shapely.GeometryType.POLYGON) & (kinds <= shapely.GeometryType.GEOMETRYCOLLECTION))


def _start(shape: str | BaseGeometry) -> str:
    """Returns the first characters of the text, for messages; writing a geometry as text takes its time."""
    text = str(shape)
    return f"{text!r:.60}"


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
