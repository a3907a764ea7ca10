"""TIFFs that GDAL reads otherwise than the reader of whole images: told apart by their tags, and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from PIL import Image

from maskloom.data.image_io import read_image
from maskloom.errors import BadFile
from maskloom.rasters.reading import open_raster
from maskloom.rasters.stack import open_stack
from maskloom.rasters.tiff_tags import TiffForm, read_form
from maskloom.rasters.writing import write_geotiff
from maskloom.windows import Window

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8)
WHOLE = Window(0, 0, 6, 8)
UPSIDE_DOWN = (274, "H", 1, 3, True)


def written(path: Path, *pages: np.ndarray, kinds: tuple[int, ...] = (), file: Any = (), **options: Any) -> Path:
    """Writes a TIFF; ``kinds`` are the kinds of the pages' directories, 0 (an image) where they are not stated."""
    with tifffile.TiffWriter(path, **dict(file)) as tiff:
        for number, page in enumerate(pages):
            stated = {"subfiletype": kinds[number]} if kinds else {}
            tiff.write(page, **{"photometric": "minisblack", "metadata": None, **stated, **options})
    return path


def palette(path: Path) -> Path:
    image = Image.fromarray(GREY % 3).convert("P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    image.save(path)
    return path


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize(
    ("pages", "options", "reason"),
    [
        (1, {"photometric": "miniswhite"}, "found one where 0 is white"),
        (3, {}, "expected a TIFF of one page, found several"),
        (1, {"extratags": [UPSIDE_DOWN]}, "found orientation 3"),
    ],
)
def test_what_would_be_read_otherwise_is_refused(
    tmp_path: Path, pages: int, options: dict[str, Any], reason: str, byteorder: str, bigtiff: bool
) -> None:
    images = [GREY + np.uint8(number) for number in range(pages)]
    path = written(tmp_path / "a.tif", *images, file={"byteorder": byteorder, "bigtiff": bigtiff}, **options)
    assert not np.array_equal(read_image(path), GREY[:, :, None])  # so the two readers would disagree
    with pytest.raises(BadFile, match=reason) as caught, open_raster(path):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reason"), [("palette", "found a palette; convert it"), ("inks", "CMYK"), ("bits", "found 1; convert it")]
)
def test_an_image_has_no_palette_but_a_mask_may(tmp_path: Path, name: str, reason: str) -> None:
    path = tmp_path / "a.tif"
    if name == "palette":
        palette(path)
    elif name == "inks":
        tifffile.imwrite(path, np.dstack([GREY] * 4), photometric="separated")
    else:
        tifffile.imwrite(path, GREY % 2 > 0, photometric="minisblack")
    with pytest.raises(BadFile, match=reason) as caught, open_stack(path):
        pass
    assert "\n" not in str(caught.value)
    with open_raster(path) as raster:
        pixels = raster.read(WHOLE)[0]
    if name == "palette":
        assert np.array_equal(pixels[:, :, 0], GREY % 3)


def test_a_file_of_bands_is_an_image_too(tmp_path: Path) -> None:
    from maskloom.records import BandFile

    image = written(tmp_path / "a.tif", GREY)
    band = BandFile(path=palette(tmp_path / "b.tif"), resampling="nearest", moved=(1, 0, 0, 0, 1, 0))
    with pytest.raises(BadFile, match=r"b\.tif: .*palette"), open_stack(image, [band]):
        pass


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize(
    ("pages", "kinds"),
    [
        ([GREY, GREY[:3, :4]], (0, 1)),  # an overview
        ([GREY, GREY > 3, GREY[:3, :4] > 3], (0, 4, 5)),  # a mask and its overview
    ],
)
def test_overviews_and_masks_are_no_pages(
    tmp_path: Path, pages: list[np.ndarray], kinds: tuple[int, ...], bigtiff: bool
) -> None:
    path = written(tmp_path / "a.tif", *pages, kinds=kinds, file={"bigtiff": bigtiff})
    assert not read_form(path).has_pages
    with open_raster(path) as raster:
        assert np.array_equal(raster.read(WHOLE)[0][:, :, 0], GREY)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_what_gdal_writes_opens(tmp_path: Path) -> None:
    """With overviews, a mask inside the file, and overviews of the mask."""
    values = np.random.default_rng(0).integers(0, 255, (3, 80, 90), np.uint8)
    path = tmp_path / "a.tif"
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", driver="GTiff", width=90, height=80, count=3, dtype="uint8") as dataset,
    ):
        dataset.write(values)
        dataset.write_mask(np.eye(80, 90) == 0)
        dataset.build_overviews([2, 4])
    with tifffile.TiffFile(path) as tiff:
        assert len(tiff.pages) == 6
    with open_stack(path) as stack:
        pixels, is_valid = stack.read(Window(0, 0, 80, 90))
    assert np.array_equal(is_valid, np.eye(80, 90) == 0)
    assert np.array_equal(pixels[is_valid], np.moveaxis(values, 0, -1)[is_valid])


def test_many_bands_are_not_one_bit(tmp_path: Path) -> None:
    write_geotiff(tmp_path / "a.tif", np.zeros((5, 6, 8), np.uint8), None)
    assert read_form(tmp_path / "a.tif") == TiffForm(bits=0)


def test_damaged_tags_say_what_they_can(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tif", GREY, GREY + np.uint8(1))
    whole = path.read_bytes()
    assert read_form(path).has_pages
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert read_form(path) in (TiffForm(), TiffForm(bits=1), TiffForm(has_pages=True))
    offset = int.from_bytes(whole[4:8], "little")
    count = int.from_bytes(whole[offset : offset + 2], "little")
    end = offset + 2 + 12 * count
    path.write_bytes(whole[:end] + whole[4:8] + whole[end + 4 :])  # the first directory follows itself
    assert not read_form(path).has_pages
    with pytest.raises(BadFile, match="cannot be read"):
        read_form(tmp_path / "none.tif")
