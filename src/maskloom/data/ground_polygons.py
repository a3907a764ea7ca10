"""Polygons of one file on the ground → the pixels of every raster that they lie on, and the order to paint them in.

Reads nothing; knows nothing about classes but that they are numbers, nor about records.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from maskloom.encodings.outlines import areas, clipped, repaired
from maskloom.encodings.vector_files import parsed_crs
from maskloom.errors import BadFile, UserError
from maskloom.rasters.georeference import Georeference, reprojected, same_crs, to_crs, to_pixels
from maskloom.records import Size

if TYPE_CHECKING:
    from shapely import Polygon
    from shapely.geometry.base import BaseGeometry

_STEPS = 64  # pieces that the side of a raster is cut into: in another CRS it may be bent
_MARGIN = 0.02  # of a raster's extent, for what lies between these pieces
_SLIVER = 0.01  # pixels; a neighbour that ends at a raster's border reaches into it by what digits leave
_DECIMALS = 6  # of pixels
_DEGREES = 400.0  # more than any longitude


class Placed(NamedTuple):
    """What lies on a raster: polygons in its pixels, cut off at its border, and the number of each one's feature."""

    numbers: list[int]
    polygons: list[Polygon]


class GroundPolygons:
    """The areas of features in the units of one CRS."""

    def __init__(self, file: Path, crs: str, geometries: Sequence[BaseGeometry]) -> None:
        """Takes valid areas; raises ``BadFile`` where there is none, or coordinates are no degrees but should be."""
        import shapely

        parts = [areas([geometry]) for geometry in geometries]
        self.file, self.crs = file, crs
        self._numbers = np.repeat(np.arange(len(parts)), [len(of_feature) for of_feature in parts])
        self._polygons = np.array([polygon for of_feature in parts for polygon in of_feature], dtype=object)
        if not len(self._polygons):
            raise BadFile(file, "expected polygons, found none")
        farthest = float(np.abs(shapely.total_bounds(self._polygons)).max())
        if farthest > _DEGREES and parsed_crs(crs).is_geographic:
            raise BadFile(
                file,
                f"expected longitudes and latitudes, as its CRS is {crs:.40} (that of GeoJSON unless it states "
                f"another), found coordinates of up to {farthest:.0f}; save it with the CRS that it is in",
            )
        self._tree = shapely.STRtree(self._polygons)

    def extent(self) -> str:
        """Returns from where to where the polygons reach, in words."""
        import shapely

        left, bottom, right, top = shapely.total_bounds(self._polygons)
        return f"they span {left:.6g} to {right:.6g} east and {bottom:.6g} to {top:.6g} north in {self.crs:.40}"

    def on_raster(
        self,
        raster: Path,
        size: Size,
        georeference: Georeference,
        *,
        is_wanted: Callable[[int], bool] = lambda _: True,
    ) -> Placed:
        """Returns what of the wanted features (by number) lies on a raster of ``size`` (height, width) with a CRS.

        Vertices are brought to the raster's CRS, edges between them stay straight. Raises ``BadFile`` of the raster
        where it lies nowhere in the polygons' CRS, and of the polygons where these cannot be brought to it.
        """
        try:
            return self._on_raster(raster, size, georeference, is_wanted)
        except BadFile:
            raise
        except UserError as error:
            raise BadFile(self.file, str(error)) from None

    def _on_raster(
        self, raster: Path, size: Size, georeference: Georeference, is_wanted: Callable[[int], bool]
    ) -> Placed:
        import shapely

        assert georeference.crs is not None, "rasters without one are refused before"
        is_same = same_crs(self.crs, georeference.crs)
        try:
            near, around = self._surroundings(size, georeference, None if is_same else georeference.crs)
        except UserError as error:
            raise BadFile(
                raster, f"expected a raster that lies somewhere in {self.crs:.40}, that of the polygons: {error}"
            ) from None
        found = [
            place
            for place in np.sort(self._tree.query(near, predicate="intersects")).tolist()
            if is_wanted(int(self._numbers[place]))
        ]
        placed = Placed([], [])
        if not found:
            return placed
        polygons, numbers = self._polygons[found], self._numbers[found]
        shapely.prepare(around)
        reaches = ~shapely.contains(around, polygons)  # far away the other CRS may have no coordinates
        polygons[reaches] = shapely.intersection(polygons[reaches], around)
        parts = [areas([polygon]) for polygon in polygons]
        flat = [part for of_one in parts for part in of_one]
        owners = np.repeat(numbers, [len(of_one) for of_one in parts]).tolist()
        moved = flat if is_same else reprojected(flat, self.crs, georeference.crs)
        for number, polygon in zip(owners, to_pixels(moved, georeference), strict=True):
            for part in clipped(repaired([polygon]), size)[0]:
                left, top, right, bottom = part.bounds
                if min(right - left, bottom - top) > _SLIVER:
                    placed.numbers.append(number)
                    placed.polygons.append(part)
        return placed

    def _surroundings(self, size: Size, georeference: Georeference, crs: str | None) -> tuple[Polygon, Polygon]:
        """Returns a box that holds a raster in the polygons' CRS, and one of three times its extent."""
        import shapely

        height, width = size
        rim = shapely.segmentize(shapely.box(0, 0, width, height), max(height, width) / _STEPS)
        (rim,) = to_crs([rim], georeference)
        if crs is not None:
            (rim,) = reprojected([rim], crs, self.crs)
        left, bottom, right, top = rim.bounds
        near, far = (np.array([right - left, top - bottom]) * factor for factor in (_MARGIN, 1.0))
        boxes = [shapely.box(left - x, bottom - y, right + x, top + y) for x, y in (near, far)]
        return boxes[0], boxes[1]


def in_turn(shapes: Sequence[tuple[int, Polygon]]) -> list[tuple[int, str]]:
    """Returns (label, WKT) of areas that, painted in turn, give what the polygons painted in their order give.

    Polygons of one label share a MultiPolygon unless one of another label lies between them: painting thousands one by
    one would take thousands of times as long. Coordinates are rounded to a millionth of a pixel.
    """
    import shapely

    labels = np.array([label for label, _ in shapes], np.int64)
    polygons = np.array([polygon for _, polygon in shapes], dtype=object)
    layers = np.zeros(len(shapes), np.int64)
    if len(np.unique(labels)) > 1:
        later, earlier = shapely.STRtree(polygons).query(polygons, predicate="intersects")
        differ = (earlier < later) & (labels[earlier] != labels[later])
        later, earlier = later[differ], earlier[differ]
        overlap = shapely.relate_pattern(polygons[later], polygons[earlier], "T********")  # what only touches does not
        later, earlier = later[overlap], earlier[overlap]
        order = np.argsort(later, kind="stable")
        for one, other in zip(later[order].tolist(), earlier[order].tolist(), strict=True):
            layers[one] = max(layers[one], layers[other] + (labels[one] < labels[other]))
    groups: dict[tuple[int, int], list[Polygon]] = {}
    for layer, label, polygon in zip(layers.tolist(), labels.tolist(), polygons.tolist(), strict=True):
        groups.setdefault((layer, label), []).append(polygon)
    return [
        (label, shapely.to_wkt(shapely.multipolygons(groups[layer, label]), rounding_precision=_DECIMALS))
        for layer, label in sorted(groups)
    ]
