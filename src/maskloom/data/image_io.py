"""Image files to arrays and back, by stated rules, with a pixel budget. Knows nothing about classes or records.

An image comes out as H×W×C of uint8, uint16 or float32:

- Files are told apart by content, not by suffix. Images *and masks* are turned as their EXIF orientation says.
- Greyscale has one channel, colour three (RGB); a multi-band TIFF keeps its bands, also when they are stored as pages.
- Alpha is dropped: the colours are taken as stored, composited over nothing. Grey with alpha becomes grey.
- Palette images and all GIFs become RGB; CMYK becomes RGB (for JPEG as Pillow converts it, without a colour profile).
- 16 bits stay 16 bits; 1-bit images become 0 and 255; other integers and float64 of a TIFF become float32.
- The first frame of an animated GIF, WebP or PNG is the image.

A mask keeps its stored numbers: palette indices, grey values (1-, 2- and 4-bit grey unscaled), or RGB colours.
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from maskloom.data.image_headers import PNG_SIGNATURE, ImageHeader, read_header
from maskloom.errors import BadFile, UserError
from maskloom.files import write_bytes
from maskloom.records import Size
from maskloom.storage.placeholders import at_hand

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")
"""File suffixes, in lower case, that a folder is searched for."""

MAX_PIXELS = 200_000_000
"""The budget for decoding a whole image: 14,000×14,000 pixels."""

_MAX_TIFF_BYTES = 8 * 2**30  # decoded; a header can claim 65,535 bands of 8 bytes
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what it would log becomes the one message
_IS_ANCILLARY = 0x20  # in the first letter of a PNG's chunk
_DAMAGED = "restore the file from its source, or leave the record out with --skip-bad"


def image_size(path: Path, *, max_pixels: int | None = None) -> Size:
    """Returns (height, width) after EXIF orientation, from the header alone.

    Raises ``BadFile`` when the file is no image, or claims more than ``max_pixels`` (None: any size is fine).
    """
    return (read_header(path) if max_pixels is None else _checked_header(path, max_pixels)).size


def read_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Returns the image as H×W×C uint8, uint16 or float32, converted by the rules of this module.

    Raises ``BadFile`` when the file is missing, damaged, cut off, larger than ``max_pixels`` by its header (nothing
    is decoded then), or holds NaN or infinite values.
    """
    header = _checked_header(at_hand(path), max_pixels)
    pixels = _guarded(path, lambda: _decode(path, header, mask=False, colours=True))
    return _finished(path, header, pixels if pixels.ndim == 3 else pixels[:, :, None])


def read_mask_values(path: Path, *, colours: bool = False, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Returns the stored values of a mask: H×W integers (grey values, palette indices), or H×W×3 uint8 colours.

    With ``colours`` a palette file gives its colours instead of its indices. Raises ``BadFile`` as ``read_image``
    does, and for values that are not whole numbers or more than three bands.
    """
    header = _checked_header(at_hand(path), max_pixels)
    pixels = _finished(path, header, _guarded(path, lambda: _decode(path, header, mask=True, colours=colours)))
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim == 3 and (pixels.shape[2] != 3 or pixels.dtype != np.uint8):
        found = f"{pixels.shape[2]} bands of {pixels.dtype}"
        raise BadFile(path, f"expected a mask of one band of labels or of 8-bit colours, found {found}")
    if pixels.dtype == np.float32:
        if not np.array_equal(pixels, np.rint(pixels)) or np.abs(pixels).max() > 2**24:
            raise BadFile(path, "expected whole numbers as labels in a mask, found fractions; store it as integers")
        pixels = pixels.astype(np.int32)
    return pixels


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Writes H×W (grey), H×W×1, H×W×3 (RGB) or H×W×4 (RGBA) of uint8 or uint16 as PNG, atomically.

    Raises ``UserError`` when the file cannot be written.
    """
    import cv2

    if pixels.dtype not in (np.uint8, np.uint16) or pixels.ndim not in (2, 3):
        raise ValueError(f"expected uint8 or uint16 of H×W or H×W×C, got {pixels.dtype} {pixels.shape}")
    if pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4):
        raise ValueError(f"a PNG holds 1, 3 or 4 channels, got {pixels.shape[2]}")
    if pixels.ndim == 3 and pixels.shape[2] >= 3:
        swap = cv2.COLOR_RGB2BGR if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
        pixels = cv2.cvtColor(np.ascontiguousarray(pixels), swap)
    done, content = cv2.imencode(".png", np.ascontiguousarray(pixels))
    if not done:
        raise ValueError(f"{path}: the PNG encoder refused an array of {pixels.dtype} {pixels.shape}")
    write_bytes(path, content.tobytes())


def _checked_header(path: Path, max_pixels: int) -> ImageHeader:
    header = read_header(path)
    height, width = header.size
    if height * width > max_pixels:
        raise BadFile(
            path,
            f"the header claims {width}×{height} (width×height) = {height * width:,} pixels, over the budget of "
            f"{max_pixels:,} for decoding a whole image; cut it into tiles or make it smaller",
        )
    return header


def _guarded(path: Path, decode: Any) -> np.ndarray:
    """Returns what ``decode`` returns; whatever a decoder raises becomes one ``BadFile``."""
    try:
        return decode()  # type: ignore[no-any-return]
    except UserError:
        raise
    except MemoryError:
        raise BadFile(
            path, "decoding it takes more memory than there is; cut it into tiles or make it smaller"
        ) from None
    except Exception as error:  # decoders raise anything from SyntaxError to zlib.error on damaged data
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadFile(path, f"the image data is cut off or damaged ({reason}); {_DAMAGED}") from None


def _finished(path: Path, header: ImageHeader, pixels: np.ndarray) -> np.ndarray:
    """Returns the decoded pixels turned, checked against the header, finite and contiguous."""
    if pixels.shape[:2] != header.stored:
        found, expected = (f"{width}×{height}" for height, width in (pixels.shape[:2], header.stored))
        raise BadFile(path, f"the header claims {expected} pixels (width×height), the data hold {found}; {_DAMAGED}")
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8)
    elif pixels.dtype not in (np.uint8, np.uint16):
        if pixels.dtype.kind not in "iuf":
            raise BadFile(path, f"expected numbers of 8, 16 or 32 bits, found {pixels.dtype}")
        with np.errstate(over="ignore"):
            pixels = pixels.astype(np.float32)
        bad = pixels.size - int(np.isfinite(pixels).sum())
        if bad:
            remedy = "fill them in"
            if header.format == "tiff" and np.isnan(pixels).any():
                remedy += ", or say that NaN is nodata (gdal_edit.py -a_nodata nan)"
            raise BadFile(path, f"expected finite numbers, found {bad:,} values that are NaN or infinite; {remedy}")
    return np.ascontiguousarray(turned(pixels, header.orientation))


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Returns the view of H×W or H×W×C pixels that the EXIF orientation (1-8) asks for."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _decode(path: Path, header: ImageHeader, *, mask: bool, colours: bool) -> np.ndarray:
    if header.format == "tiff":
        return _decode_tiff(path, mask=mask, colours=colours)
    data = path.read_bytes()
    if header.format == "jpeg":
        return _decode_jpeg(data)
    if header.format != "png":
        return _decode_pillow(data, mask=mask, colours=colours, always_colour=header.format == "gif")
    data = plain_png(data, has_palette=header.colour_type == 3)
    if header.colour_type == 3 and not colours:
        return _decode_pillow(data, mask=mask, colours=False)
    return _decode_png(data, header, mask=mask)


def _decode_jpeg(data: bytes) -> np.ndarray:
    import simplejpeg

    _, _, colour_space, _ = simplejpeg.decode_jpeg_header(data)
    if colour_space in ("CMYK", "YCCK"):
        return _decode_pillow(data, mask=False, colours=True)
    target = "GRAY" if colour_space.upper() == "GRAY" else "RGB"
    try:
        return simplejpeg.decode_jpeg(data, colorspace=target)  # type: ignore[no-any-return]
    except ValueError as error:
        # Strict mode turns each warning into an error. Filler bytes between segments harm nothing, and many
        # cameras write them; a missing end or a broken segment means lost pixels.
        if "extraneous bytes before marker" not in str(error):
            raise
        return simplejpeg.decode_jpeg(data, colorspace=target, strict=False)  # type: ignore[no-any-return]


def plain_png(data: bytes, *, has_palette: bool) -> bytes:
    """Returns a PNG without what pixels do not depend on: profiles, texts, further frames, which colours are clear.

    Raises ``ValueError`` unless every chunk is whole, its checksum right, and what is needed in its place. libpng would
    print to the terminal by itself; this finds the damage first, in silence, but for that of pixels whose checksum is
    right.
    """
    needed = [(kind, chunk) for kind, chunk in _png_chunks(data) if kind[0] & _IS_ANCILLARY == 0]
    if not has_palette:
        needed = [(kind, chunk) for kind, chunk in needed if kind != b"PLTE"]  # which then is a suggestion
    parts = [kind for kind, group in groupby(kind for kind, _ in needed) if kind == b"IDAT" or len(list(group)) == 1]
    if parts != [b"IHDR", *([b"PLTE"] if has_palette else []), b"IDAT", b"IEND"]:
        raise ValueError("its parts are not those of a PNG, or not in their order")
    (_, header), (_, palette) = needed[:2]
    if len(header) != 25 or header[18] or header[19] or header[20] > 1:  # compression, filters, interlacing
        raise ValueError("the header states what no PNG has")
    if has_palette and (len(palette) - 12) not in range(3, 769, 3):
        raise ValueError("the palette holds no whole colours, or too many")
    return b"".join([PNG_SIGNATURE, *(chunk for _, chunk in needed)])


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yields kind and bytes (length and checksum, too) of each chunk; raises ``ValueError`` for one that is damaged."""
    position = len(PNG_SIGNATURE)
    view = memoryview(data)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            break
        if struct.unpack_from(">I", data, end)[0] != zlib.crc32(view[position + 4 : end]):
            raise ValueError("wrong checksum")
        kind = data[position + 4 : position + 8]
        yield kind, view[position : end + 4]
        if kind == b"IEND":
            return
        position = end + 4
    raise ValueError("the end is missing")


def _decode_png(data: bytes, header: ImageHeader, *, mask: bool) -> np.ndarray:
    import cv2

    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("the decoder gave up")
    if header.colour_type in (0, 4):  # grey, with alpha as four channels
        grey = pixels if pixels.ndim == 2 else pixels[:, :, 0]
        # OpenCV stretches low bit depths to 0…255; a mask wants the number that was stored.
        return grey // np.uint8(255 // (2**header.depth - 1)) if mask and header.depth < 8 else grey
    if pixels.ndim == 2:
        return pixels
    swap = cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGB
    return cv2.cvtColor(pixels, swap)


def _decode_pillow(data: bytes, *, mask: bool, colours: bool, always_colour: bool = False) -> np.ndarray:
    from PIL import Image

    if Image.MAX_IMAGE_PIXELS is not None:  # Pillow's own budget is smaller; the header was held against ours before
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, MAX_PIXELS)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        if image.mode == "1":
            return np.asarray(image) if mask else np.asarray(image.convert("L"))
        if image.mode == "P" and not colours:
            return np.asarray(image)
        grey = image.mode in ("L", "LA", "La") and (mask or not always_colour)
        return np.asarray(image.convert("L" if grey else "RGB"))


def _decode_tiff(path: Path, *, mask: bool, colours: bool) -> np.ndarray:
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        pages = list(tiff.series[0].pages)
        page = pages[0].aspage()  # type: ignore[union-attr]
        needed = page.nbytes * len(pages)
        if needed > _MAX_TIFF_BYTES:
            held = f"{len(pages)} page(s) of {page.samplesperpixel} bands of {page.dtype}, {needed / 2**30:.0f} GiB"
            allowed = f"the budget of {_MAX_TIFF_BYTES / 2**30:.0f} GiB for decoding a whole image"
            raise BadFile(path, f"the header claims {held}, over {allowed}; cut it into tiles, or leave bands out")
        layers = [_tiff_layers(path, number, each.aspage()) for number, each in enumerate(pages)]  # type: ignore[union-attr]
        if len({layer.shape[:2] for layer in layers}) > 1:
            raise ValueError("the pages differ in size")
        pixels = layers[0] if len(layers) == 1 else np.concatenate(layers, axis=2)
        return _by_photometric(page, pixels, mask=mask, colours=colours)


def _tiff_layers(path: Path, number: int, page: Any) -> np.ndarray:
    """Returns one page as H×W×bands; tifffile decodes plain and deflated pages, GDAL the other compressions."""
    if page.imagedepth > 1:
        raise ValueError("expected a flat image, found a volume")
    if int(page.compression) in (1, 8, 32946):
        pixels: np.ndarray = page.asarray().reshape(page.shape)
        if page.axes == "SYX":
            return np.moveaxis(pixels, 0, -1)
        return pixels if page.axes == "YXS" else pixels.reshape(*page.shape, 1)
    return _gdal_layers(path, number)


def _gdal_layers(path: Path, number: int) -> np.ndarray:
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    name = f"GTIFF_DIR:{number + 1}:{path}" if number else str(path)
    with rasterio.Env(), rasterio.open(name, driver="GTiff") as raster:  # without it GDAL prints what it complains of
        return np.moveaxis(raster.read(), 0, -1)


def _by_photometric(page: Any, pixels: np.ndarray, *, mask: bool, colours: bool) -> np.ndarray:
    """Returns the pixels of a TIFF with palette, inverted grey, CMYK and alpha resolved."""
    photometric = int(page.photometric)
    alpha = bool(page.extrasamples) and int(page.extrasamples[-1]) in (1, 2)
    if alpha and pixels.shape[2] > 1:
        pixels = pixels[:, :, :-1]
    if page.bitspersample == 1:
        pixels = pixels.astype(np.uint8)
        if photometric == 0:
            pixels = 1 - pixels
        return pixels if mask else pixels * np.uint8(255)
    if photometric == 0 and pixels.dtype.kind == "u":
        inverted: np.ndarray = np.iinfo(pixels.dtype).max - pixels
        return inverted
    if photometric == 3 and colours and page.colormap is not None:
        # Stored as 16 bits per channel.
        table: np.ndarray = (np.asarray(page.colormap).T >> 8).astype(np.uint8)
        coloured: np.ndarray = table[pixels[:, :, 0]]
        return coloured
    if photometric == 5 and pixels.shape[2] == 4 and pixels.dtype == np.uint8:
        from PIL import Image

        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels), mode="CMYK").convert("RGB"))
    return pixels
