"""Georeferenced rasters, written whole or not at all, in blocks and with overviews. Knows nothing about classes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from maskloom.files import atomic_path, write_refusal
from maskloom.rasters.georeference import Georeference
from maskloom.rasters.opening import CACHE_BYTES
from maskloom.records import Size
from maskloom.windows import Window

TILE = 512
"""The side of the tiles that a GeoTIFF consists of; one with a shorter side is stored in strips."""

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
    if values.ndim not in (2, 3):
        raise ValueError(f"expected H×W or C×H×W, got an array of shape {values.shape}")
    bands = values.reshape(-1, *values.shape[-2:])
    count, height, width = bands.shape
    with _new_raster(path, (height, width), count, bands.dtype, georeference, nodata, overviews) as dataset:
        dataset.write(bands)


def write_geotiff_blocks(
    path: Path,
    size: Size,
    count: int,
    dtype: np.dtype[Any] | type[np.generic] | str,
    georeference: Georeference | None,
    blocks: Iterable[tuple[Window, np.ndarray]],
    *,
    nodata: float | None = None,
    overviews: bool = True,
) -> None:
    """Writes a raster of ``size`` (height, width) and ``count`` bands as ``write_geotiff`` does, from its blocks.

    Each block is a window inside the raster and its values, C×h×w (or h×w where there is one band). Together they must
    cover the raster once. Memory holds one block and GDAL's capped cache; equal blocks in the same order give equal
    bytes. Blocks that begin at multiples of ``TILE`` and end there or at the raster's edge make the smallest file: a
    tile that comes in pieces may be stored more than once.

    Raises ``UserError`` when the file cannot be written, ``ValueError`` for blocks that do not fit; nothing is left
    then.
    """
    from rasterio.windows import Window as RasterioWindow

    kind = np.dtype(dtype)
    covered = 0
    with _new_raster(path, size, count, kind, georeference, nodata, overviews) as dataset:
        for window, values in blocks:
            expected = (count, window.height, window.width)
            fits = values.shape == expected or (count == 1 and values.shape == expected[1:])
            if not fits or window.clipped(size) != window:
                raise ValueError(f"expected {expected} values inside {size} pixels, got {values.shape} at {window}")
            if values.dtype != kind:
                raise ValueError(f"expected blocks of {kind}, got {values.dtype}")
            place = RasterioWindow(window.left, window.top, window.width, window.height)
            dataset.write(values.reshape(expected), window=place)
            covered += window.height * window.width
        if covered != size[0] * size[1]:
            raise ValueError(f"expected blocks that cover {size[0]}×{size[1]} pixels once, got {covered} pixels")


@contextmanager
def _new_raster(
    path: Path,
    size: Size,
    count: int,
    dtype: np.dtype[Any],
    georeference: Georeference | None,
    nodata: float | None,
    overviews: bool,
) -> Iterator[Any]:
    """Yields the rasterio dataset of a new file, to be filled; then its overviews are made and the file is checked."""
    import rasterio
    from rasterio.enums import Resampling
    from rasterio.errors import NotGeoreferencedWarning, RasterioError
    from rasterio.transform import Affine

    height, width = size
    place = {"crs": georeference.crs, "transform": Affine(*georeference.transform)} if georeference else {}
    tiles = {"tiled": True, "blockxsize": TILE, "blockysize": TILE} if min(size) >= TILE else {}
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    factors = _overview_factors(max(size)) if overviews else []
    with atomic_path(path) as temporary:
        try:
            with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
                with rasterio.open(
                    temporary, "w", driver="GTiff", height=height, width=width, count=count, dtype=dtype,
                    nodata=nodata, compress="deflate", bigtiff="if_safer", photometric="minisblack",
                    alpha="unspecified", **place, **tiles,
                ) as dataset:  # fmt: skip
                    yield dataset
                if factors:
                    with rasterio.open(temporary, "r+") as dataset:
                        dataset.build_overviews(factors, Resampling.nearest)
        except RasterioError as error:
            reason = " ".join(str(error.__cause__ or error).split())
            raise write_refusal(path, f"the raster cannot be written ({reason})") from None
        if not _is_whole(temporary, 1 + len(factors)):
            raise write_refusal(path, "the raster was written in part")


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
