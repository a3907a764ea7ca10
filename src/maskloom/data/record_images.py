"""A record's image as one array: its file alone, or with the bands of further files behind it, or a part of these.

Knows nothing about truth, samples and networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from maskloom.data.image_io import MAX_PIXELS, read_image
from maskloom.data.scene_parts import ScenePart
from maskloom.errors import BadFile
from maskloom.rasters.reading import open_raster
from maskloom.rasters.tiff_tags import check_image
from maskloom.records import Record
from maskloom.storage.placeholders import at_hand
from maskloom.windows import Window

MOVED_RIM = 16.0
"""So many pixels beyond its edge a file that was registered is mirrored: a shift leaves no rim without pixels."""
TIFF_SUFFIXES = (".tif", ".tiff")
"""Suffixes, in lower case, of files that may say of pixels that they are unknown."""
Stamp = tuple[int, int] | None
"""Length and time of change of a file, by which something remembered of it is told from what replaced it."""
_UNMOVED = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def read_record_image(record: Record) -> np.ndarray:
    """Returns the image of a record as stored, H×W×C uint8, uint16 or float32, its further bands last.

    Pixels that the scene of a part, a raster with bands or one whose nodata value is NaN calls invalid are 0. Raises
    ``BadFile`` as ``read_image`` does, and where a file of bands is missing, damaged or of other ground.
    """
    if isinstance(record, ScenePart):
        pixels, is_valid = read_pixels(record.scene, record.window)
        pixels[~is_valid] = 0
        return pixels
    if not record.bands and not _has_nan_nodata(record.image):
        return read_image(record.image)
    height, width = record.size
    if height * width > MAX_PIXELS:
        raise BadFile(record.image, f"{width}×{height} pixels are over the budget of {MAX_PIXELS:,} for a whole image")
    pixels, is_valid = read_pixels(record, Window(0, 0, height, width))
    pixels[~is_valid] = 0
    return pixels


def read_pixels(record: Record, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Returns a window inside the image of a record of TIFFs, H×W×C as stored, and bool H×W of where it is valid.

    Only what the window needs is read of each file. Raises ``BadFile`` as ``read_record_image`` does.
    """
    from maskloom.rasters.stack import REFLECTED, open_stack

    is_moved = any(band.moved != _UNMOVED for band in record.bands)
    with open_stack(record.image, record.bands, reflected=MOVED_RIM if is_moved else REFLECTED) as stack:
        if stack.size != record.size:
            found, expected = (f"{width}×{height}" for height, width in (stack.size, record.size))
            raise BadFile(record.image, f"the image is {found} now, it was {expected} when opened")
        return stack.read(window)


def image_files(record: Record) -> Iterator[Path]:
    """Yields the files that a record's image is read from."""
    yield record.image
    for band in record.bands:
        yield band.path


def stamp_of(path: Path) -> Stamp:
    """Returns the stamp of a file, None where there is no such file."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns


def _has_nan_nodata(path: Path) -> bool:
    """Returns whether a TIFF says that its NaN are pixels without data: no network can be given their values."""
    return path.suffix.lower() in TIFF_SUFFIXES and _says_nan(at_hand(path), stamp_of(path))


@lru_cache(maxsize=2**16)
def _says_nan(path: Path, stamp: Stamp) -> bool:
    try:
        with open_raster(path) as raster:
            check_image(path, raster.form)
            return raster.nodata is not None and math.isnan(raster.nodata)
    except BadFile:  # reading it says so, or it is read whole only
        return False
