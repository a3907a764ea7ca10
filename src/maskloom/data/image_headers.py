"""What the first bytes of an image file say: format, size, EXIF orientation. Nothing is decoded.

Opening a source asks every file for its size, so this must cost microseconds; and a file that claims a monstrous
size must be refused before any decoder sees it. Files are told apart by content, never by suffix. Knows nothing
about pixels.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from maskloom.errors import BadFile
from maskloom.records import Size
from maskloom.storage.ranges import open_part

FORMATS = "JPEG, PNG, GIF, BMP, WebP or TIFF"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_ORIENTATION_TAG = 274
_MAX_MARKERS = 4096  # a sane JPEG has a few dozen segments before its frame header
_MAX_CHUNKS = 4096
_MAX_TAGS = 4096


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Format, stored (height, width), EXIF orientation 1-8; PNG bit depth and colour type, else 0.

    ``channels`` are those of the decoded image (1: grey, 3: RGB), 0 where it takes more than the header to know.
    """

    format: str
    stored: Size
    orientation: int = 1
    depth: int = 0
    colour_type: int = 0
    channels: int = 0

    @property
    def size(self) -> Size:
        """(height, width) once the image is turned as EXIF says."""
        return (self.stored[1], self.stored[0]) if self.orientation >= 5 else self.stored


def read_header(path: Path) -> ImageHeader:
    """Returns the header of an image file.

    Raises ``BadFile`` when the file is missing, empty, not an image of a known format, or has a damaged header.
    """
    try:
        with open_part(path) as stream:
            header = _parse(path, stream)
    except BadFile:
        raise
    except OSError as error:
        raise BadFile(path, f"cannot be read ({error.strerror or error}); expected an image ({FORMATS})") from None
    except (struct.error, IndexError, ValueError, OverflowError):
        raise BadFile(path, "the header is cut off or damaged; restore the file from its source") from None
    if min(header.stored) < 1:
        raise BadFile(path, f"the header claims {_text(header.stored)} pixels; restore the file from its source")
    return header


def _text(size: Size) -> str:
    return f"{size[1]}×{size[0]} (width×height)"


def _parse(path: Path, stream: BinaryIO) -> ImageHeader:
    start = stream.read(32)
    if start[:3] == b"\xff\xd8\xff":
        return _jpeg(stream)
    if start[:8] == PNG_SIGNATURE:
        return _png(stream, start)
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff(stream, start)
    if start[:6] in (b"GIF87a", b"GIF89a"):
        width, height = struct.unpack_from("<HH", start, 6)
        return ImageHeader("gif", (height, width), channels=3)
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return _webp(stream, start)
    if start[:2] == b"BM" and len(start) >= 26:
        return _bmp(start)
    raise BadFile(path, f"expected an image ({FORMATS}), found {_describe(start)}; replace or remove the file")


def _describe(start: bytes) -> str:
    """Returns in a few words what a file that is no image looks like."""
    if not start:
        return "an empty file"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer"
    text = start.decode("utf-8", "ignore")
    if len(text.encode()) >= len(start) - 3 and all(char.isprintable() or char in "\t\r\n" for char in text):
        return f"text ({text[:16].strip()!r}…)"  # up to 3 bytes of the last character may be cut off
    return "other content"


def _jpeg(stream: BinaryIO) -> ImageHeader:
    stream.seek(2)
    orientation = 1
    for _ in range(_MAX_MARKERS):
        marker = _next_marker(stream)
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # these stand alone, without a length
            continue
        if marker in (0xD9, 0xDA):
            break
        (length,) = struct.unpack(">H", stream.read(2))
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            _, height, width, components = struct.unpack(">BHHB", stream.read(6))
            return ImageHeader("jpeg", (height, width), orientation, channels={1: 1, 3: 3, 4: 3}.get(components, 0))
        if marker == 0xE1:
            segment = stream.read(length - 2)
            if segment[:6] == b"Exif\0\0":
                orientation = _exif_orientation(segment[6:])
        else:
            stream.seek(length - 2, 1)
    raise ValueError("no frame header")


def _next_marker(stream: BinaryIO) -> int:
    if stream.read(1) != b"\xff":
        raise ValueError("expected a marker")
    while (byte := stream.read(1)) == b"\xff":  # fill bytes
        pass
    return byte[0]


def _exif_orientation(exif: bytes) -> int:
    """Returns the orientation of an EXIF block, 1 (as stored) where it is absent or damaged."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (offset,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, offset)
        for index in range(min(count, _MAX_TAGS)):
            tag, _, _, value = struct.unpack_from(order + "HHIH", exif, offset + 2 + 12 * index)
            if tag == _ORIENTATION_TAG:
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _png(stream: BinaryIO, start: bytes) -> ImageHeader:
    if start[12:16] != b"IHDR":
        raise ValueError("no IHDR")
    width, height, depth, colour_type = struct.unpack_from(">IIBB", start, 16)
    orientation = 1
    stream.seek(8)
    for _ in range(_MAX_CHUNKS):
        chunk = stream.read(8)
        if len(chunk) < 8 or chunk[4:] in (b"IDAT", b"IEND"):
            break
        (length,) = struct.unpack(">I", chunk[:4])
        if chunk[4:] == b"eXIf":
            orientation = _exif_orientation(stream.read(min(length, 1 << 20)))
            break
        stream.seek(length + 4, 1)
    channels = {0: 1, 4: 1, 2: 3, 3: 3, 6: 3}.get(colour_type, 0)
    return ImageHeader("png", (height, width), orientation, depth, colour_type, channels)


def _bmp(start: bytes) -> ImageHeader:
    (length,) = struct.unpack_from("<I", start, 14)
    width, height = struct.unpack_from("<HH" if length == 12 else "<ii", start, 18)
    return ImageHeader("bmp", (abs(height), width))


def _webp(stream: BinaryIO, start: bytes) -> ImageHeader:
    kind = start[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", start, 26)
        return ImageHeader("webp", (height & 0x3FFF, width & 0x3FFF))
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", start, 21)
        return ImageHeader("webp", ((bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1))
    if kind != b"VP8X":
        raise ValueError("unknown WebP chunk")
    width, height = (int.from_bytes(start[at : at + 3], "little") + 1 for at in (24, 27))
    return ImageHeader("webp", (height, width), _webp_orientation(stream) if start[20] & 0x08 else 1)


def _webp_orientation(stream: BinaryIO) -> int:
    stream.seek(12)
    for _ in range(_MAX_CHUNKS):
        chunk = stream.read(8)
        if len(chunk) < 8:
            break
        (length,) = struct.unpack("<I", chunk[4:])
        if chunk[:4] == b"EXIF":
            block = stream.read(min(length, 1 << 20))
            return _exif_orientation(block.removeprefix(b"Exif\0\0"))
        stream.seek(length + length % 2, 1)
    return 1


def _tiff(stream: BinaryIO, start: bytes) -> ImageHeader:
    order = "<" if start[:2] == b"II" else ">"
    big = b"+" in start[2:4]
    (offset,) = struct.unpack_from(order + ("Q" if big else "I"), start, 8 if big else 4)
    stream.seek(offset)
    (count,) = struct.unpack(order + ("Q" if big else "H"), stream.read(8 if big else 2))
    length = 20 if big else 12
    tags: dict[int, int] = {}
    for _ in range(min(count, _MAX_TAGS)):
        entry = stream.read(length)
        tag, kind = struct.unpack_from(order + "HH", entry)
        if tag in (256, 257, _ORIENTATION_TAG):
            layout = {3: "H", 4: "I", 16: "Q"}[kind] if kind in (3, 4, 16) else "H"
            (tags[tag],) = struct.unpack_from(order + layout, entry, 12 if big else 8)
    if 256 not in tags or 257 not in tags:
        raise ValueError("no size")
    orientation = tags.get(_ORIENTATION_TAG, 1)
    return ImageHeader("tiff", (tags[257], tags[256]), orientation if 1 <= orientation <= 8 else 1)
