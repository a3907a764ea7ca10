"""Opens TIFF files with GDAL in a way that suits us: its cache is capped, its complaints become one ``BadFile``.

Of a raster at a URL only the parts are read that are asked for.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from maskloom.errors import BadFile
from maskloom.storage.placeholders import at_hand, is_placeholder
from maskloom.storage.ranges import Parts, RangedFile, is_worth_fetching

CACHE_BYTES = 64 * 2**20
"""GDAL's cache of decoded blocks; without a cap it takes 5 % of the machine's memory."""

_BESIDE = (".aux.xml", ".msk", ".tfw", ".tifw", ".wld", ".tab")
"""What GDAL looks for beside a TIFF, and would miss where it is given the file alone."""


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Yields the rasterio dataset of a TIFF; whatever GDAL cannot open or read in the block raises ``BadFile``.

    Raises ``UserError`` where a raster at a URL cannot be read for its store's sake.
    """
    import rasterio
    from rasterio._err import CPLE_BaseError  # no public name for what GDAL says itself
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    parts = Parts(path) if is_placeholder(path) and not _is_fetched(path) else None
    try:
        with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), _dataset(path, parts) as dataset:
            yield dataset
        if parts is not None and parts.problem is not None:  # GDAL may go on without what it lacks
            raise parts.problem
    except (RasterioError, CPLE_BaseError, BadFile) as error:
        if parts is not None and parts.problem is not None:
            raise parts.problem from error
        if isinstance(error, BadFile):
            raise
        if not path.exists():
            raise BadFile(path, "no such file") from None
        reason = " ".join(str(error).split())
        raise BadFile(path, f"expected a whole TIFF raster, found something else or a part ({reason})") from None


@contextmanager
def in_silence() -> Iterator[None]:
    """Keeps GDAL from printing what it complains of while the block runs.

    Who opens a raster sees to that for its own thread alone; another that reads it has to do so, too.
    """
    import rasterio
    from rasterio.session import DummySession

    if rasterio.env.hasenv():
        yield
    else:
        with rasterio.Env(DummySession()):  # else an installed boto3 is asked for credentials, each time
            yield


@contextmanager
def _dataset(path: Path, parts: Parts | None) -> Iterator[Any]:
    """Yields the dataset of a file, or of parts of one, which GDAL gets through functions of ours."""
    import rasterio

    if parts is None:
        with rasterio.open(path, driver="GTiff", sharing=False) as dataset:
            yield dataset
        return
    # GDAL keeps such functions by the folder of the file: each opening has one of its own.
    name = f"/{uuid.uuid4().hex}/{path.name}"

    def opener(asked: Any, *_: Any, **__: Any) -> RangedFile:
        if not str(asked).endswith(name):
            raise FileNotFoundError(str(asked))
        return RangedFile(parts, silent=True)

    with (
        rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"),
        rasterio.open(name, driver="GTiff", sharing=False, opener=opener) as dataset,
    ):
        yield dataset


def _is_fetched(path: Path) -> bool:
    """Returns whether the whole of a raster of a mirror is there now: fetched where parts of it will not do."""
    beside = [other for suffix in _BESIDE for other in _names(path, suffix) if other.exists()]
    if not beside and not is_worth_fetching(path):
        return False
    for file in (path, *beside):
        at_hand(file)
    return True


def _names(path: Path, suffix: str) -> tuple[Path, ...]:
    return path.with_suffix(suffix), path.with_name(path.name + suffix)
