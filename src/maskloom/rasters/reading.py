"""Rasters of any size, read by window: memory stays as small as the window. Knows nothing about classes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskloom.errors import BadFile
from maskloom.rasters.georeference import Georeference, georeference_of
from maskloom.rasters.opening import in_silence, opened
from maskloom.rasters.tiff_tags import TiffForm, check_readable, read_form
from maskloom.records import Size
from maskloom.windows import Window


@dataclass(frozen=True, slots=True)
class Raster:
    """An opened raster: ``size`` (height, width), ``count`` bands of ``dtype``, ``nodata`` value or None.

    A last band that the file marks as alpha is no band: it says which pixels are valid.
    """

    path: Path
    size: Size
    count: int
    dtype: np.dtype[Any]
    nodata: float | None
    georeference: Georeference | None
    form: TiffForm
    _dataset: Any

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Returns the pixels H×W×C of a window inside the raster, and the bool array H×W of where they are valid.

        Valid is what neither the nodata value nor a mask of the file excludes. Raises ``BadFile`` where the file is
        damaged or cut off.
        """
        from rasterio._err import CPLE_BaseError  # no public name for what GDAL says itself
        from rasterio.errors import RasterioError
        from rasterio.windows import Window as RasterioWindow

        if window.clipped(self.size) != window:
            raise ValueError(f"{window} reaches outside the raster of {self.size} (height, width)")
        place = RasterioWindow(window.left, window.top, window.width, window.height)
        try:
            with in_silence():
                bands = self._dataset.read(list(range(1, self.count + 1)), window=place)
                is_valid = self._valid(bands, place)
        except (RasterioError, CPLE_BaseError) as error:
            reason = " ".join(str(error.__cause__ or error).split())
            raise BadFile(self.path, f"the raster is cut off or damaged at {window} ({reason}); restore it") from None
        return np.ascontiguousarray(np.moveaxis(bands, 0, -1)), is_valid

    @property
    def is_all_valid(self) -> bool:
        """Whether the file excludes no pixel: it has no nodata value, mask or alpha."""
        from rasterio.enums import MaskFlags

        return all(set(of_band) == {MaskFlags.all_valid} for of_band in self._dataset.mask_flag_enums)

    def _valid(self, bands: np.ndarray, place: Any) -> np.ndarray:
        """Returns bool H×W as GDAL's dataset mask says; it is only read where the pixels C×H×W do not tell."""
        from rasterio.enums import MaskFlags

        if self.is_all_valid:
            return np.ones(bands.shape[1:], np.bool_)
        flags = [set(of_band) for of_band in self._dataset.mask_flag_enums]
        if len(flags) != self.count or any(of_band != {MaskFlags.nodata} for of_band in flags):
            masked: np.ndarray = self._dataset.dataset_mask(window=place) > 0
            return masked
        pairs = zip(bands, self._dataset.nodatavals, strict=True)
        known = [~np.isnan(band) if np.isnan(nodata) else band != nodata for band, nodata in pairs]
        is_valid: np.ndarray = np.logical_or.reduce(known)  # one valid band makes a valid pixel
        return is_valid


@contextmanager
def open_raster(path: Path) -> Iterator[Raster]:
    """Yields a TIFF raster, to be read by window from one thread; raises ``BadFile`` for anything else.

    GDAL's cache is capped. Bands of different types are read as the type of the first. Overviews and masks inside the
    file are no pages of their own. Refused is what GDAL would read otherwise than whole images are read: several
    pages, greys where 0 is white, an orientation. Whether a palette will do is left to who reads (``check_image``).
    """
    from rasterio.enums import ColorInterp

    with opened(path) as dataset:
        form = read_form(path)
        check_readable(path, form)
        has_alpha = dataset.count > 1 and dataset.colorinterp[-1] == ColorInterp.alpha
        yield Raster(
            path=path,
            size=(dataset.height, dataset.width),
            count=dataset.count - has_alpha,
            dtype=np.dtype(dataset.dtypes[0]),
            nodata=dataset.nodata,
            georeference=georeference_of(path, dataset),
            form=form,
            _dataset=dataset,
        )
