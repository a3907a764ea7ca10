"""What the inputs that are spoilt begin as: small images of every format, pairs with masks, commands about them."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from fuzz_bench import Bench
from fuzz_mutations import of_bytes, of_png, of_tiff
from numpy.random import Generator
from PIL import Image

SIZE = (32, 48)
Make = Callable[[Generator, Path, Bench], dict[str, Any]]
"""Writes a case into a folder, and returns what is to be done with it."""


def _pixels(channels: int = 3, dtype: Any = np.uint8) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 256, (*SIZE, channels)).astype(dtype)
    return cv2.GaussianBlur(values, (5, 5), 0).reshape(*SIZE, channels)


def _mask(size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    mask[8:20, 8:30] = 255
    return mask


def _pillow(pixels: np.ndarray, kind: str, mode: str | None = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(stream, kind, **options)
    return stream.getvalue()


def _tiff(pixels: np.ndarray, **options: Any) -> bytes:
    import tifffile

    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, **options)
    return stream.getvalue()


def geotiff(**options: Any) -> bytes:
    from rasterio.io import MemoryFile
    from rasterio.transform import Affine

    with MemoryFile() as memory:
        profile = {"driver": "GTiff", "width": 64, "height": 64, "count": 3, "dtype": "uint8", "crs": "EPSG:32633",
                   "transform": Affine(2, 0, 5e5, 0, -2, 1e5), "nodata": 0, **options}  # fmt: skip
        with memory.open(**profile) as raster:
            for band in range(profile["count"]):
                raster.write(np.full((64, 64), 90 + band, profile["dtype"]), band + 1)
        return bytes(memory.read())


@cache
def images() -> dict[str, bytes]:
    """Returns a small image file of every kind that is read, by a name with its suffix."""
    colour, grey, mask = _pixels(), _pixels(1)[:, :, 0], _mask()
    bands = np.moveaxis(_pixels(5, np.uint16), 2, 0).copy()
    exif = Image.Exif()
    exif[274] = 6
    found = {
        "colour.png": cv2.imencode(".png", colour)[1].tobytes(),
        "grey.png": cv2.imencode(".png", grey)[1].tobytes(),
        "deep.png": cv2.imencode(".png", (colour.astype(np.uint16) * 257))[1].tobytes(),
        "palette.png": _pillow(colour, "PNG", "P"),
        "alpha.png": _pillow(colour, "PNG", "RGBA"),
        "bits.png": _pillow(mask, "PNG", "1"),
        "plain.jpg": cv2.imencode(".jpg", colour)[1].tobytes(),
        "turned.jpg": _pillow(colour, "JPEG", exif=exif.tobytes(), progressive=True),
        "inks.jpg": _pillow(colour, "JPEG", "CMYK"),
        "grey.jpg": _pillow(grey, "JPEG"),
        "still.gif": _pillow(colour, "GIF", "P"),
        "moving.gif": _pillow(colour, "GIF", "P", save_all=True, append_images=[Image.fromarray(colour[::-1].copy())]),
        "plain.bmp": _pillow(colour, "BMP"),
        "palette.bmp": _pillow(colour, "BMP", "P"),
        "lossy.webp": _pillow(colour, "WEBP"),
        "lossless.webp": _pillow(colour, "WEBP", lossless=True),
        "turned.webp": _pillow(colour, "WEBP", exif=exif.tobytes()),
        "strips.tif": _tiff(colour, photometric="rgb", rowsperstrip=8),
        "tiles.tif": _tiff(np.kron(grey, np.ones((2, 2), np.uint8)), tile=(32, 32), compression="zlib"),
        "floats.tif": _tiff(_pixels(4, np.float32), photometric="minisblack", planarconfig="contig"),
        "pages.tif": _tiff(np.stack([grey, grey]), photometric="minisblack"),
        "big.tif": _tiff(colour, photometric="rgb", bigtiff=True),
        "planes.tif": _tiff(bands, photometric="minisblack", planarconfig="separate"),
        "lzw.tif": geotiff(compress="lzw", predictor=2),
        "jpeg.tif": geotiff(compress="jpeg", tiled=True, blockxsize=32, blockysize=32),
        "zstd.tif": geotiff(compress="zstd"),
        "packbits.tif": geotiff(compress="packbits"),
    }  # fmt: skip
    return found


def spoilt_image(rng: Generator, name: str, data: bytes) -> bytes:
    if name.endswith(".png") and rng.random() < 0.7:
        return of_png(rng, data)
    if name.endswith(".tif") and rng.random() < 0.6:
        return of_tiff(rng, data)
    return of_bytes(rng, data)


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))


def pairs(folder: Path, names: str = "abc") -> None:
    colour, mask = cv2.imencode(".png", _pixels())[1].tobytes(), cv2.imencode(".png", _mask())[1].tobytes()
    for name in names:
        write(folder / "images" / f"{name}.png", colour)
        write(folder / "masks" / f"{name}.png", mask)


def command(*arguments: str) -> dict[str, Any]:
    return {"do": "command", "arguments": [str(each) for each in arguments]}
