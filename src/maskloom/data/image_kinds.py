"""The kind of an image by its header: channels and number type as ``image_io.read_image`` gives them.

So that images which networks do not take are told before work begins on others. Knows nothing about networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from maskloom.data.image_headers import read_header
from maskloom.errors import BadFile
from maskloom.rasters.reading import open_raster
from maskloom.rasters.tiff_tags import check_image
from maskloom.storage.placeholders import is_placeholder

_THREADS = 8


@dataclass(frozen=True, slots=True)
class ImageKind:
    """Channels (0: not known) and number type (uint8, uint16, float32; "": not known)."""

    channels: int = 0
    dtype: str = ""


@dataclass(frozen=True, slots=True)
class Accepted:
    """Images that networks take; with ``takes_grey``, one channel stands for three."""

    channels: int
    dtype: str
    takes_grey: bool = True

    def problem(self, found: ImageKind) -> str:
        """Returns why they do not take an image, with what to do; "" where nothing is known against it."""
        is_grey = self.takes_grey and (found.channels, self.channels) == (1, 3)
        if found.channels not in (0, self.channels) and not is_grey:
            return (
                f"expected an image of {self.channels} channel(s) as the networks take, found {found.channels}; "
                "convert the image"
            )
        if found.dtype not in ("", self.dtype):
            return (
                f"expected {self.dtype} values as the networks were trained on, found {found.dtype}; "
                "convert the image to that depth"
            )
        return ""


def read_kinds(paths: Sequence[Path]) -> list[ImageKind]:
    """Returns the kinds of image files in order; nothing is known of one that is damaged or not fetched yet."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(_kind, paths, chunksize=64))


def _kind(path: Path) -> ImageKind:
    if is_placeholder(path):
        return ImageKind()
    try:
        header = read_header(path)
        if header.format != "tiff":
            return ImageKind(header.channels, "uint16" if header.depth == 16 else "uint8")
        with open_raster(path) as raster:
            check_image(path, raster.form)
            return ImageKind(raster.count, stored_type(raster.dtype.name))
    except BadFile:  # perhaps a TIFF that is read whole only: of several pages, with a palette
        return ImageKind()


def stored_type(name: str) -> str:
    """Returns the number type that pixels of a TIFF of that type get."""
    return name if name in ("uint8", "uint16") else "float32"
