"""What the tags of a TIFF say of how its pixels are to be understood, beyond what GDAL says when it opens the file.

GDAL reads a raster as stored: palette indices, inverted greys, the first of several pages, unturned. The reader of
whole images resolves all of these, so files where it matters are to be told apart. Knows nothing about pixels.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from maskloom.errors import BadFile
from maskloom.storage.ranges import open_part

_NEW_KIND, _KIND, _BITS, _PHOTOMETRIC, _ORIENTATION = 254, 255, 258, 262, 274
_TAGS = (_NEW_KIND, _KIND, _BITS, _PHOTOMETRIC, _ORIENTATION)
_MIN_IS_WHITE, _PALETTE, _CMYK = 0, 3, 5
_REDUCED, _MASK = 1, 4  # bits of the kind of a directory: an overview, a mask of another
_FORMATS = {3: "H", 4: "I", 16: "Q"}  # of tags with one number
_MAX_TAGS = 4096
_MAX_DIRECTORIES = 4096


@dataclass(frozen=True, slots=True)
class TiffForm:
    """How a TIFF's first image is stored, in the numbers of the TIFF specification; ``bits`` is 0 for several bands.

    ``has_pages``: further images follow that are no overviews or masks of it.
    """

    photometric: int = 1
    bits: int = 8
    orientation: int = 1
    has_pages: bool = False


def read_form(path: Path) -> TiffForm:
    """Returns the form of a TIFF; where its tags are damaged, what could be read.

    Raises ``BadFile`` when the file cannot be opened.
    """
    found: list[dict[int, int]] = []
    try:
        with open_part(path) as stream:
            _collect(stream, found)
    except OSError as error:
        raise BadFile(path, f"cannot be read ({error.strerror or error})") from None
    except (struct.error, OverflowError):  # cut off: GDAL says so where pixels are missing
        pass
    if not found:
        return TiffForm()
    first = found[0]
    return TiffForm(
        photometric=first.get(_PHOTOMETRIC, 1),
        bits=first.get(_BITS, 1),
        orientation=first.get(_ORIENTATION, 1),
        has_pages=any(map(_is_page, found[1:])),
    )


def check_readable(path: Path, form: TiffForm) -> None:
    """Raises ``BadFile`` where GDAL, reading by window, would return other pixels than the file means."""
    if form.has_pages:
        raise BadFile(path, "expected a TIFF of one page, found several; make one page of them, with a band for each")
    if 2 <= form.orientation <= 8:
        found = f"found orientation {form.orientation}"
        raise BadFile(
            path, f"expected pixels stored upright (TIFF orientation 1), {found}; turn them and store it anew"
        )
    if form.photometric == _MIN_IS_WHITE:
        raise BadFile(path, "expected a TIFF where 0 is black, found one where 0 is white (min-is-white); invert it")


def check_image(path: Path, form: TiffForm) -> None:
    """Raises ``BadFile`` where indices, inks or bits would be taken for an image; a mask may be of such."""
    found = {_PALETTE: "a palette", _CMYK: "CMYK inks"}.get(form.photometric, "")
    if found:
        how = "gdal_translate -expand rgb" if form.photometric == _PALETTE else "to RGB"
        raise BadFile(path, f"expected a TIFF of grey values, RGB or bands, found {found}; convert it ({how})")
    if form.bits == 1:
        raise BadFile(path, "expected 8 bits per value or more in an image, found 1; convert it to grey of 0 and 255")


def _is_page(tags: dict[int, int]) -> bool:
    return not tags.get(_NEW_KIND, 0) & (_REDUCED | _MASK) and tags.get(_KIND, 1) != 2


def _collect(stream: BinaryIO, found: list[dict[int, int]]) -> None:
    """Appends the tags that tell the form, of each directory in the order of the file, up to the second page."""
    start = stream.read(16)
    order = "<" if start[:2] == b"II" else ">"
    is_big = b"+" in start[2:4]
    place, head, length, at = ("Q", "Q", 20, 12) if is_big else ("I", "H", 12, 8)
    (offset,) = struct.unpack_from(order + place, start, 8 if is_big else 4)
    seen = {0}
    while offset not in seen and len(found) < _MAX_DIRECTORIES:
        seen.add(offset)
        stream.seek(offset)
        (count,) = struct.unpack(order + head, stream.read(struct.calcsize(head)))
        if count > _MAX_TAGS:
            return
        entries = stream.read(count * length)
        tags = {}
        for number in range(count):
            tag, kind, values = struct.unpack_from(order + "HH" + place, entries, number * length)
            if tag in _TAGS:
                layout = _FORMATS.get(kind, "H")
                (tags[tag],) = struct.unpack_from(order + layout, entries, number * length + at)
                if values > 1:
                    tags[tag] = 0  # the field holds where they are
        found.append(tags)
        if len(found) > 1 and _is_page(tags):
            return
        (offset,) = struct.unpack(order + place, stream.read(struct.calcsize(place)))
