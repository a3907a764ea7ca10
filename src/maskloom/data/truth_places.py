"""Truth that can be read but lies elsewhere than its image: what no shape of an array tells.

Knows nothing about labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from maskloom.encodings.polygons import polygons_of
from maskloom.errors import BadFile
from maskloom.rasters.georeference import Georeference, read_georeference
from maskloom.records import MaskFile, Record, Shapes, Size

if TYPE_CHECKING:
    from pathlib import Path

_OFF = 1.0
"""Pixels that corners of image and mask may lie apart: half of one is what two conventions differ by."""
_TIFFS = (".tif", ".tiff")


def check_place(record: Record) -> None:
    """Raises ``BadFile`` where image and mask say that they lie in different places, and for shapes far from the image.

    Shapes just outside the image only say that nothing is there; those farther away than the image is large are
    polygons in other units than pixels.
    """
    if isinstance(record.truth, MaskFile) and record.truth.coded != "labels":
        _check_mask(record, record.truth.path)
    elif isinstance(record.truth, Shapes):
        _check_shapes(record, record.truth)


def _check_mask(record: Record, mask: Path) -> None:
    if not all(path.suffix.lower() in _TIFFS for path in (record.image, mask)):
        return
    ours, theirs = read_georeference(record.image), read_georeference(mask)
    if ours is None or theirs is None or ours.crs is None or theirs.crs is None:
        return
    if (off := _apart(ours, theirs, record.size)) > _OFF:
        raise BadFile(
            mask,
            f"expected a mask on the grid of its image, found it up to {off:,.0f} of the image's pixels away "
            f"({_corner(theirs)}, the image {_corner(ours)}); export it on the image's grid, or take a wrong "
            "georeference away (gdal_edit.py -unsetgt)",
        )


def _corner(place: Georeference) -> str:
    return f"from {place.transform[2]:.10g}, {place.transform[5]:.10g} on in {place.crs:.40}"


def _apart(ours: Georeference, theirs: Georeference, size: Size) -> float:
    """Returns the largest distance between corners of two grids of one size, in pixels of the first."""
    height, width = size
    corners = np.array([(0, 0, 1), (width, 0, 1), (0, height, 1), (width, height, 1)], np.float64).T
    place, other = (np.array(each.transform, np.float64).reshape(2, 3) for each in (ours, theirs))
    distances = np.linalg.solve(place[:, :2], (other - place) @ corners)
    return float(np.abs(distances).max())


def _check_shapes(record: Record, truth: Shapes) -> None:
    import shapely

    height, width = record.size
    polygons = [polygon for _, wkt in truth.wkt for polygon in polygons_of(wkt)]
    if not polygons:
        return
    left, top, right, bottom = shapely.total_bounds(np.array(polygons, dtype=object))
    if left > 2 * width or top > 2 * height or right < -width or bottom < -height:
        raise BadFile(
            record.image,
            f"expected polygons in its {width}×{height} pixels, x to the right and y down, found all of them far away "
            f"(x {left:.6g} to {right:.6g}, y {top:.6g} to {bottom:.6g}); polygons on the ground go into a GeoJSON, "
            "with their CRS, beside the rasters",
        )
