"""Mask files to stored values, and where a TIFF says of itself that it knows none (nodata, a mask, alpha).

Knows nothing about what the values mean.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from maskloom.data.image_io import MAX_PIXELS, image_size, read_mask_values
from maskloom.data.record_images import TIFF_SUFFIXES, Stamp, stamp_of
from maskloom.errors import BadFile
from maskloom.rasters.reading import Raster, open_raster
from maskloom.rasters.tiff_tags import check_image
from maskloom.storage.placeholders import at_hand
from maskloom.windows import Window


def read_stored(path: Path, *, colours: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns what ``read_mask_values`` does, and bool H×W of where the file knows a value; None: everywhere.

    Of a TIFF that hides pixels, the values are as a window of it is read: floats stay floats, and hidden ones may be
    NaN. TIFFs that are read whole only (of several pages, say) hide nothing. Raises ``BadFile`` as
    ``read_mask_values`` does.
    """
    at_hand(path)
    if path.suffix.lower() not in TIFF_SUFFIXES or not _hides(path, stamp_of(path), has_colours=colours):
        return read_mask_values(path, colours=colours), None
    image_size(path, max_pixels=MAX_PIXELS)
    with open_raster(path) as raster:
        stored, is_valid = raster.read(Window(0, 0, *raster.size))
    return stored[:, :, 0] if stored.shape[2] == 1 else stored, is_valid


@lru_cache(maxsize=2**16)
def _hides(path: Path, stamp: Stamp, *, has_colours: bool) -> bool:
    try:
        with open_raster(path) as raster:
            if has_colours:
                check_image(path, raster.form)  # a palette stands for its colours
            return _is_mask(raster) and not raster.is_all_valid
    except BadFile:  # reading it says so, or reads it in another way
        return False


def _is_mask(raster: Raster) -> bool:
    return (raster.count == 1 and raster.dtype.kind in "uif") or (raster.count == 3 and raster.dtype == np.uint8)
