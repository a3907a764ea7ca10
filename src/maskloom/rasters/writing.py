"""Georeferenced rasters, written whole or not at all, in blocks and with overviews. Knows nothing about classes."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from maskloom.errors import UserError
from maskloom.files import atomic_path
from maskloom.rasters.georeference import Georeference
from maskloom.rasters.opening import CACHE_BYTES

_BLOCK = 512
_SMALLEST_OVERVIEW = 256  # pixels of the longer side


def write_geotiff(
    path: Path,
    values: np.ndarray,
    georeference: Georeference | None,
    *,
    nodata: float | None = None,
    overviews: bool = True,
) -> None:
    """Writes one band H×W or bands C×H×W as deflated GeoTIFF, tiled from 512 pixels on, BigTIFF where needed.

    Overviews lie inside the file, each half the one before, by nearest neighbour, so that labels stay labels. Raises
    ``UserError`` when the file cannot be written.
    """
    import rasterio
    from rasterio.enums import Resampling
    from rasterio.errors import NotGeoreferencedWarning, RasterioError
    from rasterio.transform import Affine

    if values.ndim not in (2, 3):
        raise ValueError(f"expected H×W or C×H×W, got an array of shape {values.shape}")
    bands = values.reshape(-1, *values.shape[-2:])
    height, width = bands.shape[1:]
    place = {"crs": georeference.crs, "transform": Affine(*georeference.transform)} if georeference else {}
    blocks = {"tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK} if min(height, width) >= _BLOCK else {}
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    factors = _overview_factors(max(height, width)) if overviews else []
    with atomic_path(path) as temporary:
        try:
            with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
                with rasterio.open(
                    temporary, "w", driver="GTiff", height=height, width=width, count=len(bands), dtype=bands.dtype,
                    nodata=nodata, compress="deflate", bigtiff="if_safer", photometric="minisblack",
                    alpha="unspecified", **place, **blocks,
                ) as dataset:  # fmt: skip
                    dataset.write(bands)
                if factors:
                    with rasterio.open(temporary, "r+") as dataset:
                        dataset.build_overviews(factors, Resampling.nearest)
        except RasterioError as error:
            reason = " ".join(str(error.__cause__ or error).split())
            raise UserError(f"{path}: the raster cannot be written ({reason}); is the disk full?") from None
        if not _is_whole(temporary, 1 + len(factors)):
            raise UserError(f"{path}: the raster was written in part; is the disk full?")


def _is_whole(path: Path, num_pages: int) -> bool:
    """Whether a TIFF has so many pages and all their blocks; GDAL says nothing of what fails while it closes a file."""
    import tifffile

    length = path.stat().st_size
    try:
        with tifffile.TiffFile(path) as tiff:
            pages = [page.aspage() for page in tiff.pages]
    except (tifffile.TiffFileError, ValueError, OSError):
        return False
    blocks = [block for page in pages for block in zip(page.dataoffsets, page.databytecounts, strict=True)]
    return len(pages) == num_pages and all(count > 0 and offset + count <= length for offset, count in blocks)


def _overview_factors(longer: int) -> list[int]:
    factors: list[int] = []
    while longer // 2 ** (len(factors) + 1) >= _SMALLEST_OVERVIEW:
        factors.append(2 ** (len(factors) + 1))
    return factors
