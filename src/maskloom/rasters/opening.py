"""Opens TIFF files with GDAL in a way that suits us: its cache is capped, its complaints become one ``BadFile``."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from maskloom.errors import BadFile

CACHE_BYTES = 64 * 2**20
"""GDAL's cache of decoded blocks; without a cap it takes 5 % of the machine's memory."""


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Yields the rasterio dataset of a TIFF; whatever GDAL cannot open or read in the block raises ``BadFile``."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    try:
        with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), rasterio.open(path, driver="GTiff", sharing=False) as dataset:
            yield dataset
    except RasterioError as error:
        if not path.exists():
            raise BadFile(path, "no such file") from None
        reason = " ".join(str(error).split())
        raise BadFile(path, f"expected a whole TIFF raster, found something else or a part ({reason})") from None
