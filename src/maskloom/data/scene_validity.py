"""Where the files of a record know no value (nodata, masks, ground that is not covered): such pixels count nowhere.

Knows nothing about truth, but that its labels may be ``IGNORE``.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from maskloom.data.record_images import TIFF_SUFFIXES, image_files, read_pixels
from maskloom.data.scene_parts import ScenePart
from maskloom.errors import BadFile
from maskloom.rasters.reading import open_raster
from maskloom.rasters.tiff_tags import check_image
from maskloom.records import IGNORE, Record
from maskloom.windows import Window

_ROWS = 1024  # that are read at a time
_KEPT = 256  # records, in each process, a bit per pixel of those that have invalid ones, deflated

_Stamps = tuple[tuple[int, int], ...]


def without_nodata(labels: np.ndarray, record: Record) -> np.ndarray:
    """Returns labels H×W or C×H×W that are ``IGNORE`` where the record's files know no value.

    That is what ``Raster.read`` and ``Stack.read`` call invalid: a nodata value, a mask or alpha, and, of several
    files, ground that one of them does not cover. Labels of parts of scenes have it already. Images other than TIFFs
    know all of their pixels. The array given is returned where nothing is hidden.
    """
    if isinstance(record, ScenePart) or not (record.bands or record.image.suffix.lower() in TIFF_SUFFIXES):
        return labels
    try:
        stamps = tuple((facts.st_size, facts.st_mtime_ns) for facts in (path.stat() for path in image_files(record)))
    except OSError:  # reading the image says so
        return labels
    bits = _invalid_bits(_Files(record), stamps)
    if bits is None:
        return labels
    height, width = record.size
    packed = np.frombuffer(zlib.decompress(bits), np.uint8)
    is_invalid = np.unpackbits(packed, count=height * width).view(np.bool_).reshape(height, width)
    hidden = labels.copy()
    hidden[..., is_invalid] = IGNORE
    return hidden


class _Files:
    """A record as the files that it is read from: attributes cannot be hashed."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self._key = (record.image, record.size, record.bands)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Files) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@lru_cache(maxsize=_KEPT)
def _invalid_bits(files: _Files, stamps: _Stamps) -> bytes | None:
    """Returns one bit per pixel, 1 where it is invalid, row by row, deflated; None where no pixel is."""
    record = files.record
    if not record.bands and _knows_all(record.image):
        return None
    height, width = record.size
    is_invalid = np.zeros(record.size, np.bool_)
    for top, bottom in pairwise([*range(0, height, _ROWS), height]):
        _, is_valid = read_pixels(record, Window(top, 0, bottom - top, width))
        is_invalid[top:bottom] = ~is_valid
    return zlib.compress(np.packbits(is_invalid).tobytes(), 1) if is_invalid.any() else None


def _knows_all(path: Path) -> bool:
    """Whether a TIFF hides nothing; so it is with one that is only read whole (several pages, a palette, turned …)."""
    try:
        with open_raster(path) as raster:
            check_image(path, raster.form)
            return raster.is_all_valid
    except BadFile:
        return True
