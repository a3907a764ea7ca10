"""Polygons as a mask set: features of a vector file, or rows of a table of WKT.

Polygons lie in pixels, in the units of a CRS (images with a georeference place them), or in the grid coordinates of the
Dstl contest. What reaches outside its image is cut off there. Knows nothing about scores or other files' formats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from maskloom.encodings import grid_coordinates
from maskloom.encodings.outlines import areas, clipped
from maskloom.encodings.polygons import rasterize_wkt
from maskloom.encodings.vector_files import Feature, read_features
from maskloom.errors import BadFile, UserError
from maskloom.outputs.mask_sets import (
    FolderMasks,
    are_names,
    check_classes,
    class_values,
    painted,
    plain_name,
)
from maskloom.rasters.georeference import reprojected, same_crs, to_crs, to_pixels
from maskloom.records import Size

if TYPE_CHECKING:
    from shapely import Polygon

    from maskloom.encodings.grid_coordinates import Grid

ToPixels = Callable[[str, list["Polygon"], Size | None], list["Polygon"]]
"""Brings the polygons of a named image to its pixels; the size may be None where it does not matter."""

_Pieces = Mapping[str, Sequence[tuple[str, list["Polygon"]]]]


@dataclass(frozen=True, slots=True)
class PolygonMasks:
    """Polygons by class; ``crs`` is theirs, None for pixels and a contest's grid.

    ``num_clipped`` counts, by name and as they are asked for, the polygons that reach outside their image.
    """

    origin: Path
    crs: str | None
    pieces: _Pieces
    labels_of: Mapping[str, int]
    to_pixels: ToPixels
    images: FolderMasks | None = None
    num_clipped: dict[str, int] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        images: FolderMasks | None = None,
        grids: Mapping[str, Grid] | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> PolygonMasks:
        """Returns the file's polygons by image and class.

        Features without an image's name belong to every image that they lie on; without ``images``, to the one that is
        called like the file.
        """
        crs, features = read_features(path, note=note)
        if not features:
            raise BadFile(path, "expected polygons, found none")
        pieces: dict[str, list[tuple[str, list[Polygon]]]] = {}
        for feature in features:
            name = plain_name(feature.image) if feature.image else ""
            pieces.setdefault(name, []).append((feature.class_name, areas([feature.geometry])))
        if "" in pieces:
            nameless = pieces.pop("")
            dealt = {plain_name(path.stem): nameless} if images is None else _dealt(path, nameless, crs, images, note)
            for name, found in dealt.items():
                pieces.setdefault(name, []).extend(found)
        if crs is None and grids is None:
            _check_below(path, features)
        return cls(path, crs, pieces, class_values(_classes(features)), _frame(path, crs, images, grids), images)

    def numbered(self, values: Mapping[str, int]) -> PolygonMasks:
        """Returns the set with these label values for its classes; raises ``UserError`` for a class without one."""
        check_classes(self.origin, self.labels_of, values)
        return replace(self, labels_of=values)

    @property
    def has_names(self) -> bool:
        """Whether classes are names whose label values the file alone does not tell."""
        return are_names(self.labels_of)

    @property
    def names(self) -> Iterable[str]:
        """The names, each once."""
        return self.pieces.keys()

    def size(self, name: str) -> Size | None:
        """Returns (height, width) of the image that the polygons are placed on, or None where there is none."""
        return self.images.size(name) if self.images is not None and name in self.images.files else None

    def values(self, name: str, size: Size) -> np.ndarray:
        """Returns the label values, H×W."""
        return painted(self.layers(name, size).items(), size, f"{self.origin}: {name}")

    def layers(self, name: str, size: Size) -> dict[int, np.ndarray]:
        """Returns the bool mask H×W of each label value; they may overlap."""
        return {value: drawn(polygons, size) for value, polygons in self.polygons(name, size).items()}

    def check_placed(self, name: str, size: Size | None) -> None:
        """Raises ``UserError`` where the image has polygons that nothing places on its pixels."""
        if any(polygons for _, polygons in self.pieces.get(name, ())):
            self.to_pixels(name, [], size)

    def polygons(self, name: str, size: Size | None) -> dict[int, list[Polygon]]:
        """Returns the polygons in pixels by label value, cut off at the image's border where its size is known."""
        by_value: dict[int, list[Polygon]] = {}
        for class_name, polygons in self.pieces.get(name, ()):
            if polygons:
                by_value.setdefault(self.labels_of[class_name], []).extend(polygons)
        placed = {value: self.to_pixels(name, polygons, size) for value, polygons in by_value.items()}
        if size is None:
            return placed
        inside = {value: clipped(polygons, size) for value, polygons in placed.items()}
        self.num_clipped[name] = sum(num_clipped for _, num_clipped in inside.values())
        return {value: polygons for value, (polygons, _) in inside.items()}


def drawn(polygons: Sequence[Polygon], size: Size) -> np.ndarray:
    """Returns the bool mask H×W of the pixels whose centre lies in one of the polygons."""
    import shapely

    return rasterize_wkt(shapely.multipolygons(list(polygons)).wkt if polygons else "MULTIPOLYGON EMPTY", size)


def _classes(features: Sequence[Feature]) -> list[str]:
    """Returns the classes, sorted; features that only say that an image is empty need not name one."""
    named = {feature.class_name for feature in features if feature.class_name or not feature.geometry.is_empty}
    return sorted(named) or [""]


def _check_below(path: Path, features: Sequence[Feature]) -> None:
    """Raises ``UserError`` for polygons that all lie above the image: they are in grid coordinates, not in pixels."""
    tops = [feature.geometry.bounds[3] for feature in features if not feature.geometry.is_empty]
    if tops and max(tops) <= 0:
        raise UserError(
            f"{path}: expected polygons in pixels, y from 0 down, found none with y above 0; for the coordinates of "
            "the Dstl contest state its grid_sizes.csv (convert: --grid)"
        )


def _frame(path: Path, crs: str | None, images: FolderMasks | None, grids: Mapping[str, Grid] | None) -> ToPixels:
    if grids is not None:
        if crs is not None:
            raise UserError(f"{path}: expected polygons in grid coordinates, found the CRS {crs:.40}; leave --grid out")
        return lambda name, polygons, size: _from_grid(path, name, polygons, size, grids)
    if crs is not None:
        return lambda name, polygons, size: _from_ground(path, name, polygons, crs, images)
    return lambda name, polygons, size: polygons


def _from_grid(
    path: Path, name: str, polygons: list[Polygon], size: Size | None, grids: Mapping[str, Grid]
) -> list[Polygon]:
    if name not in grids:
        raise UserError(f"{path}: image {name!r} is not in the table of grid sizes; give the table that has it")
    if size is None:
        raise UserError(
            f"{path}: grid coordinates need the size of {name!r}: state --size HEIGHTxWIDTH, or --like IMAGES"
        )
    return [grid_coordinates.to_pixels(polygon, size, grids[name]) for polygon in polygons]


def _from_ground(path: Path, name: str, polygons: list[Polygon], crs: str, images: FolderMasks | None) -> list[Polygon]:
    georeference = images.georeference(name) if images is not None and name in images.files else None
    if georeference is None or georeference.crs is None:
        raise UserError(
            f"{path}: the polygons lie in {crs:.40}, found no image {name!r} with a CRS to place them on; "
            "give GeoTIFFs (convert: --like IMAGES; score: masks as GeoTIFF)"
        )
    if not same_crs(crs, georeference.crs):
        polygons = reprojected(polygons, crs, georeference.crs)
    return to_pixels(polygons, georeference)


def _dealt(
    path: Path,
    pieces: Sequence[tuple[str, list[Polygon]]],
    crs: str | None,
    images: FolderMasks,
    note: Callable[[str], None],
) -> dict[str, list[tuple[str, list[Polygon]]]]:
    """Returns by image the polygons that lie on it, cut off at its border; images without any are listed too.

    Those that lie on none are counted in a ``note``; raises ``UserError`` where that is true of all.
    """
    import shapely

    if crs is None:
        raise UserError(f"{path}: features without an image's name need a CRS to find it; add a field 'image'")
    flat = [(class_name, polygon) for class_name, polygons in pieces for polygon in polygons]
    tree = shapely.STRtree([polygon for _, polygon in flat])
    dealt: dict[str, list[tuple[str, list[Polygon]]]] = {}
    lies = np.zeros(len(flat), np.bool_)
    for name in images.names:
        (footprint,) = _footprint(path, name, crs, images)
        found = sorted(tree.query(footprint, predicate="intersects").tolist())
        inside = [
            (class_name, areas([polygon & footprint])) for class_name, polygon in (flat[place] for place in found)
        ]
        lies[found] = [bool(polygons) for _, polygons in inside]
        dealt[name] = [(class_name, polygons) for class_name, polygons in inside if polygons]
    num_away = int(np.count_nonzero(~lies))
    if flat and num_away == len(flat):
        left, bottom, right, top = shapely.total_bounds(tree.geometries)
        raise UserError(
            f"{path}: expected polygons on the images, found all {num_away} outside every one of {len(dealt)}; they "
            f"span {left:.6g} to {right:.6g} east and {bottom:.6g} to {top:.6g} north in {crs:.40}: correct the CRS of "
            "the file that has a wrong one"
        )
    if num_away:
        note(f"{path.name}: {num_away} of {len(flat)} polygons lie on none of the {len(dealt)} images")
    return dealt


def _footprint(path: Path, name: str, crs: str, images: FolderMasks) -> list[Polygon]:
    """Returns the rectangle of an image in a CRS."""
    import shapely

    georeference = images.georeference(name)
    if georeference is None or georeference.crs is None:
        raise UserError(f"{path}: the polygons lie in {crs:.40}, {images.files[name]} has no CRS; give GeoTIFFs")
    height, width = images.size(name)
    rectangle = to_crs([shapely.box(0, 0, width, height)], georeference)
    return rectangle if same_crs(crs, georeference.crs) else reprojected(rectangle, georeference.crs, crs)
