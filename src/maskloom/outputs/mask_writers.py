"""Masks of many images, written one image after the other: folders of files, tables, COCO, vector files.

Every writer takes the images in the order in which they are to stand, asks each for its masks or polygons when its turn
comes, and leaves a file whole or not at all. Knows nothing about where masks come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.data.image_io import write_png
from maskloom.encodings.grid_coordinates import Grid, to_grid
from maskloom.encodings.vector_files import Feature
from maskloom.errors import UserError
from maskloom.outputs.legends import Legend
from maskloom.outputs.maps import class_paths
from maskloom.outputs.mask_sets import painted
from maskloom.outputs.tables import CocoWriter, SubmissionFormat, SubmissionWriter
from maskloom.outputs.vectors import write_features
from maskloom.rasters.georeference import Georeference, same_crs, to_crs
from maskloom.rasters.writing import write_geotiff
from maskloom.records import Size, check_id

if TYPE_CHECKING:
    from shapely import Polygon


@dataclass(frozen=True, slots=True)
class ImageMasks:
    """The masks of one image, made when asked for.

    ``size`` is (height, width), None where it is unknown and polygons need none; ``listed_as`` is how a table or COCO
    file calls the image. ``masks`` gives a bool mask H×W, ``polygons`` the polygons in pixels, of each label that
    occurs; classes may overlap, and ``IGNORE`` may be among the masks' labels.
    """

    name: str
    listed_as: str
    size: Size | None
    georeference: Georeference | None
    masks: Callable[[], Mapping[int, np.ndarray]]
    polygons: Callable[[], Mapping[int, list[Polygon]]]

    def known_size(self) -> Size:
        """Returns the size; raises ``UserError`` where it is unknown."""
        if self.size is None:
            raise UserError(
                f"{self.name}: the image's size is unknown; state --size HEIGHTxWIDTH, or give the images with --like"
            )
        return self.size

    def known_georeference(self) -> Georeference:
        """Returns the georeference; raises ``UserError`` where there is none."""
        if self.georeference is None:
            raise UserError(
                f"{self.name}: a GeoTIFF needs a CRS and transform, found none; give georeferenced images with --like"
            )
        return self.georeference


def write_pngs(folder: Path, images: Iterable[ImageMasks], legend: Legend) -> None:
    """Writes ``<name>.png`` per image: 0 and 255 of a binary set, else its labels; ``IGNORE`` where a mask says so."""
    for image in images:
        check_id(image.name)
        write_png(folder / f"{image.name}.png", _label_map(image, legend))


def write_layers(folder: Path, images: Iterable[ImageMasks], legend: Legend) -> None:
    """Writes ``<name>/<class>.png`` of 0 and 255 per image and class, for classes that overlap."""
    for image in images:
        masks, blank = image.masks(), np.zeros(image.known_size(), bool)
        paths = class_paths(folder, image.name, tuple(legend.names.values()))
        for label, path in zip(legend.names, paths, strict=True):
            write_png(path, masks.get(label, blank).astype(np.uint8) * np.uint8(255))


def write_geotiffs(folder: Path, images: Iterable[ImageMasks], legend: Legend) -> None:
    """Writes ``<name>.tif`` per image, with the values that ``write_pngs`` writes."""
    for image in images:
        check_id(image.name)
        write_geotiff(folder / f"{image.name}.tif", _label_map(image, legend), image.known_georeference())


def _label_map(image: ImageMasks, legend: Legend) -> np.ndarray:
    """Returns uint8 H×W, or uint16 for larger labels."""
    masks, size = image.masks(), image.known_size()
    if legend.is_binary:
        (label,) = legend.names
        mask = masks.get(label)
        return np.zeros(size, np.uint8) if mask is None else mask.astype(np.uint8) * np.uint8(255)
    largest = max(legend.names)
    if largest > 0xFFFF:
        raise UserError(f"expected labels of at most 65535, found {largest}; number the classes with --classes")
    labels = painted(masks.items(), size, image.name, blank=legend.blank)
    return labels.astype(np.uint8 if largest <= 0xFF else np.uint16)


def write_run_lengths(
    path: Path, images: Iterable[ImageMasks], legend: Legend, form: SubmissionFormat, classes: Sequence[str]
) -> None:
    """Writes a table with a row per image, or per image and class where the format has classes."""
    labels = {name: label for label, name in legend.names.items()}
    with SubmissionWriter(path, form) as writer:
        for image in images:
            masks, blank = image.masks(), np.zeros(image.known_size(), bool)
            for name in classes:
                label = labels.get(name) if form.has_classes else next(iter(legend.names))
                mask = blank if label is None else masks.get(label, blank)
                writer.write(image.listed_as, mask, name)


def write_wkt(
    path: Path,
    images: Iterable[ImageMasks],
    legend: Legend,
    *,
    columns: tuple[str, ...],
    classes: Sequence[str],
    grids: Mapping[str, Grid] | None = None,
) -> None:
    """Writes a table with a row per image and class: a MultiPolygon in pixels, or in the grid's coordinates."""
    labels = {name: label for label, name in legend.names.items()}

    def features() -> Iterator[Feature]:
        for image in images:
            found = image.polygons()
            for name in classes:
                polygons = found.get(labels[name], []) if name in labels else []
                yield Feature(_in_grid(_multipolygon(polygons), image, grids), name, image.listed_as)

    name_column, class_column, wkt_column = columns
    write_features(path, features(), crs=None, columns=(name_column, class_column, wkt_column))


def _multipolygon(polygons: Sequence[Polygon]) -> Any:
    import shapely

    return shapely.multipolygons(list(polygons)) if polygons else shapely.MultiPolygon()


def _in_grid(geometry: Any, image: ImageMasks, grids: Mapping[str, Grid] | None) -> Any:
    if grids is None:
        return geometry
    if image.name not in grids:
        raise UserError(f"image {image.name!r} is not in the table of grid sizes; give the table that has it")
    return to_grid(geometry, image.known_size(), grids[image.name])


def write_coco(path: Path, images: Iterable[ImageMasks], legend: Legend) -> None:
    """Writes COCO JSON with one annotation per 8-connected piece; category ids are the labels."""
    with CocoWriter(path, legend.task()) as writer:
        for image in images:
            masks, blank = image.masks(), np.zeros(image.known_size(), bool)
            for label, class_name in legend.names.items():
                writer.write(image.name, image.listed_as, class_name, masks.get(label, blank))


def write_vectors(path: Path, images: Iterable[ImageMasks], legend: Legend, *, crs: str | None) -> None:
    """Writes one feature per polygon, in the units of the CRS that all images have, or in pixels where that is None.

    An image without polygons gives one empty feature, so that it stays known.
    """

    def features() -> Iterator[Feature]:
        for image in images:
            found = image.polygons()
            for label, name in legend.names.items():
                polygons = found.get(label, [])
                if crs is not None and image.georeference is not None:
                    polygons = to_crs(polygons, image.georeference)
                yield from (Feature(polygon, name, image.name) for polygon in polygons)
            if not any(found.values()):
                yield Feature(_multipolygon([]), "", image.name)

    write_features(path, features(), crs=crs)


def common_crs(images: Sequence[ImageMasks]) -> str | None:
    """Returns the one CRS of all images, None where none has one; raises ``UserError`` naming two that differ."""
    first = images[0]
    expected = _crs(first)
    for image in images:
        found = _crs(image)
        if found != expected and (found is None or expected is None or not same_crs(found, expected)):
            raise UserError(
                f"a file has one CRS, found {expected or 'none'} ({first.name}) and {found or 'none'} ({image.name}); "
                "convert the images of each CRS by themselves"
            )
    return expected


def _crs(image: ImageMasks) -> str | None:
    return None if image.georeference is None else image.georeference.crs
