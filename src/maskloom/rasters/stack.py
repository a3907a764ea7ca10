"""Several TIFFs of the same ground as one raster, on the grid of the first, read by window.

Every file is resampled once, from its own pixels straight to the grid. Knows nothing about records, classes or how a
shift between files is found (see ``registration``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskloom.errors import BadFile, UserError
from maskloom.rasters.georeference import Georeference, Transform, same_crs
from maskloom.rasters.reading import Raster, open_raster
from maskloom.rasters.resampling import Sampling, composed, inverse, shifted
from maskloom.rasters.tiff_tags import check_image
from maskloom.records import BandFile, Size
from maskloom.windows import Window

REFLECTED = 2.0
"""How far beyond a file's edge, in its pixels, its reflection counts as covered: the reach of bicubic sampling."""

_MAX_TURN = 1e-3  # pixels of a file that its rows may leave those of the grid by, over the whole grid
_PART_VALUES = 2**25  # values of a file read at a time: some rows of blocks even where a scene is wide


@dataclass(frozen=True, slots=True)
class Layer:
    """One opened file, how it is sampled on the grid (None where its own grid is that one), and the type it gets."""

    raster: Raster
    sampling: Sampling | None
    dtype: np.dtype[Any]

    def read(self, window: Window, bands: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """Returns a window of the grid as H×W×C, and the bool array H×W of where it is valid; 0 where it is not.

        Values that are computed and become integers are rounded and clipped. Raises ``BadFile`` where the file is
        damaged or cut off.
        """
        if self.sampling is None:
            pixels, is_valid = _read_clean(self.raster, window)
            return pixels[:, :, bands].astype(self.dtype, copy=False), is_valid
        size, count = (window.height, window.width), len(range(self.raster.count)[bands])
        pixels, is_valid = np.zeros((*size, count), self.dtype), np.zeros(size, np.bool_)
        for strip in self._strips(window):
            part = self.sampling.part(strip)
            if part is not None:
                rows = slice(strip.top - window.top, strip.top - window.top + strip.height)
                source, is_source = _read_clean(self.raster, part)
                values, is_valid[rows] = self.sampling.sample(source[:, :, bands], is_source, part, strip)
                if values.dtype.kind == "f" and self.dtype.kind != "f":
                    np.clip(np.rint(values, out=values), 0, np.iinfo(self.dtype).max, out=values)
                pixels[rows] = values
        return pixels, is_valid

    def _strips(self, window: Window) -> Iterator[Window]:
        assert self.sampling is not None
        tall, wide = (max(1.0, scale) for scale in self.sampling.scales)
        step = max(1, int(_PART_VALUES / (tall * wide * window.width * self.raster.count)))
        for top in range(window.top, window.top + window.height, step):
            yield Window(top, window.left, min(step, window.top + window.height - top), window.width)


@dataclass(frozen=True, slots=True)
class Stack:
    """Opened files on one grid: ``size`` (height, width), ``nodata`` and ``georeference`` are those of the first.

    ``count`` bands, those of the first file first, of ``dtype`` uint8 or uint16 where all files have that type, else
    float32.
    """

    path: Path
    size: Size
    count: int
    dtype: np.dtype[Any]
    nodata: float | None
    georeference: Georeference | None
    layers: tuple[Layer, ...]

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Returns the pixels H×W×C of a window inside the grid, and the bool array H×W of where all files are valid.

        Reading a window is reading the whole and cutting it out, bit for bit. A file is invalid where its nodata value
        or mask says so, where a band of floats is NaN, infinite or nodata, where a sampled pixel has any of that in it
        however little, and on ground that it does not cover; its bands are 0 there. Integers are rounded and clipped.
        Raises ``BadFile`` where a file is damaged or cut off.
        """
        if window.clipped(self.size) != window:
            raise ValueError(f"{window} reaches outside the raster of {self.size} (height, width)")
        if len(self.layers) == 1:
            alone, is_valid = self.layers[0].read(window)
            return alone.astype(self.dtype, copy=False), is_valid
        pixels = np.empty((window.height, window.width, self.count), self.dtype)
        is_valid = np.ones((window.height, window.width), np.bool_)
        first = 0
        for layer in self.layers:
            pixels[:, :, first : first + layer.raster.count], is_known = layer.read(window)
            is_valid &= is_known
            first += layer.raster.count
        return pixels, is_valid


@contextmanager
def open_stack(image: Path, bands: Sequence[BandFile] = (), *, reflected: float = REFLECTED) -> Iterator[Stack]:
    """Yields the stack of a TIFF and of further ones brought to its grid, to be read by window from one thread.

    Files with georeference are placed by it; their axes must be parallel. Where no file has one, all cover the same
    ground: their outer edges coincide and they differ in resolution only. ``BandFile.moved`` is part of the way from
    the grid to the file, so a registered file is sampled once, like any other.

    "nearest" takes single pixels, also of a file that is finer than the grid. "bicubic" weighs 4×4 pixels (see
    ``Sampling``), and averages over the pixel of the grid along an axis where that is two or more of the file's. Up to
    ``reflected`` pixels of a file beyond its edge are filled by reflection and are valid, so that a registered file
    loses no rim; what lies farther outside is not covered.

    Opening reads headers only, and memory follows the window. Raises ``BadFile`` for a file that is missing or no
    whole TIFF of numbers (but of a palette, say), that has another CRS or turned axes, that lies elsewhere, or of which
    only one says where it lies.
    """
    if not reflected >= 0:
        raise ValueError(f"expected a number of pixels, 0 or more, got {reflected}")
    with ExitStack() as files:
        first = _checked(files.enter_context(open_raster(image)))
        sampled: list[tuple[Raster, Sampling | None]] = [(first, None)]
        for band in bands:
            raster = _checked(files.enter_context(open_raster(band.path)))
            try:
                to_file = composed(band.moved, to_pixels_of(raster, first))
                sampling = Sampling(raster.size, to_file, band.resampling, reflected)
            except BadFile:
                raise
            except UserError as error:
                raise UserError(f"{band.path}: {error}") from None
            if sampling.part(Window(0, 0, *first.size)) is None:
                raise BadFile(band.path, f"covers no ground of {image}, as placed and moved; expected a file of it")
            sampled.append((raster, sampling))
        dtypes = {raster.dtype for raster, _ in sampled}
        dtype = first.dtype if dtypes in ({np.dtype(np.uint8)}, {np.dtype(np.uint16)}) else np.dtype(np.float32)
        yield Stack(
            path=image,
            size=first.size,
            count=sum(raster.count for raster, _ in sampled),
            dtype=dtype,
            nodata=first.nodata,
            georeference=first.georeference,
            layers=tuple(Layer(raster, sampling, dtype) for raster, sampling in sampled),
        )


def to_pixels_of(file: Raster, image: Raster) -> Transform:
    """Returns where the pixel coordinates of ``image`` lie in those of ``file``, by what both say of themselves.

    Raises ``BadFile`` for files of different CRS, with axes turned against each other, or when only one says where it
    lies.
    """
    ours, theirs = image.georeference, file.georeference
    if ours is None and theirs is None:
        return (file.size[1] / image.size[1], 0.0, 0.0, 0.0, file.size[0] / image.size[0], 0.0)
    if ours is None or theirs is None:
        placed, lost = (image.path, file.path) if theirs is None else (file.path, image.path)
        raise BadFile(
            lost,
            f"says nothing of where it lies on the ground, expected a georeference as {placed} has one; give it one "
            "(gdal_edit.py -a_srs EPSG:n -a_ullr left top right bottom), or where both cover the same ground remove "
            "the other's (gdal_edit.py -unsetgt -a_srs None)",
        )
    if (ours.crs is None) != (theirs.crs is None) or (ours.crs and theirs.crs and not same_crs(ours.crs, theirs.crs)):
        raise BadFile(
            file.path,
            f"expected the CRS of {image.path}, {_named(ours.crs)}, found {_named(theirs.crs)}; bring the files to one "
            "CRS (gdalwarp -t_srs), or correct the one that is wrong (gdal_edit.py -a_srs)",
        )
    # From corner to corner: ground coordinates are large, and their difference keeps the digits that matter.
    apart = shifted(ours.transform[2] - theirs.transform[2], ours.transform[5] - theirs.transform[5])
    a, b, c, d, e, f = composed(composed(inverse(_cornered(theirs)), apart), _cornered(ours))
    if max(abs(b) * image.size[0], abs(d) * image.size[1]) > _MAX_TURN:
        raise BadFile(
            file.path,
            f"expected rows and columns parallel to those of {image.path}, found them turned or sheared; bring the "
            "files to the same directions (gdalwarp)",
        )
    return (a, 0.0, c, 0.0, e, f)


def _cornered(georeference: Georeference) -> Transform:
    """Returns the transform as if the outer corner of the first pixel lay at (0, 0)."""
    a, b, _, d, e, _ = georeference.transform
    return (a, b, 0.0, d, e, 0.0)


def _named(crs: str | None) -> str:
    return "none" if crs is None else crs if len(crs) <= 80 else f"{crs[:80]}…"


def _checked(raster: Raster) -> Raster:
    if raster.dtype.kind not in "uif":
        raise BadFile(raster.path, f"expected bands of real numbers, found {raster.dtype}; leave the file out")
    check_image(raster.path, raster.form)
    return raster


def _read_clean(raster: Raster, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Returns a window of a file and where it is valid, with 0 elsewhere; no NaN is left, and floats are float32."""
    pixels, is_valid = raster.read(window)
    if pixels.dtype.kind == "f":
        with np.errstate(over="ignore"):
            pixels = pixels.astype(np.float32, copy=False)
            nodata = None if raster.nodata is None else np.asarray(raster.nodata).astype(np.float32)
        is_number = np.isfinite(pixels)
        if nodata is not None:
            is_number &= pixels != nodata
        is_valid &= is_number.all(axis=2)
    if not is_valid.all():
        pixels[~is_valid] = 0
    return pixels, is_valid
