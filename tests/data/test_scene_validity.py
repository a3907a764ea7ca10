"""Pixels that the files of a record know no value of are ``IGNORE``, and no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp

from maskloom.data.image_io import write_png
from maskloom.data.scene_parts import parts_of
from maskloom.data.scene_validity import without_nodata
from maskloom.rasters.writing import write_geotiff
from maskloom.records import IGNORE, BandFile, Record
from maskloom.windows import Window

SIZE = (6, 8)
LABELS = np.ones(SIZE, np.uint8)
HIDDEN = np.zeros(SIZE, bool)
HIDDEN[2:4, 1:5] = True


def image(path: Path, *, nodata: float | None = 0, dtype: str = "uint16") -> Record:
    """A raster of two bands, of which both are 0 where it is hidden, and one is 0 elsewhere, too."""
    bands = np.full((2, *SIZE), 7, dtype)
    bands[:, HIDDEN] = 0
    bands[0, 0, 0] = 0
    write_geotiff(path, bands, None, nodata=nodata)
    return Record(id="a", image=path, size=SIZE)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_nodata_value_hides_where_all_bands_have_it_and_of_floats_any(tmp_path: Path, dtype: str) -> None:
    record = image(tmp_path / "a.tif", dtype=dtype)
    expected = np.where(HIDDEN, IGNORE, 1)
    expected[0, 0] = IGNORE if dtype == "float32" else 1
    assert np.array_equal(without_nodata(LABELS, record), expected)
    assert LABELS.all() and LABELS.max() == 1  # what was given stays as it was
    layers = without_nodata(np.stack([LABELS, 0 * LABELS]), record)
    assert (layers[:, HIDDEN] == IGNORE).all() and layers[0, 5, 5] == 1 and layers[1, 5, 5] == 0


def test_a_raster_without_nodata_and_other_images_hide_nothing(tmp_path: Path) -> None:
    assert without_nodata(LABELS, image(tmp_path / "a.tif", nodata=None)) is LABELS
    write_png(tmp_path / "a.png", np.zeros((*SIZE, 3), np.uint8))
    assert without_nodata(LABELS, Record(id="a", image=tmp_path / "a.png", size=SIZE)) is LABELS


def test_alpha_hides(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    form = {"driver": "GTiff", "height": 6, "width": 8, "count": 4, "dtype": "uint8", "photometric": "RGB"}
    with rasterio.open(path, "w", **form, transform=rasterio.Affine(2, 0, 9, 0, -2, 9)) as file:
        file.write(np.full((3, *SIZE), 9, np.uint8), [1, 2, 3])
        file.write(np.where(HIDDEN, 0, 255).astype(np.uint8), 4)
        file.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    found = without_nodata(LABELS, Record(id="a", image=path, size=SIZE))
    assert np.array_equal(found, np.where(HIDDEN, IGNORE, 1))


def test_of_several_files_each_hides(tmp_path: Path) -> None:
    record = image(tmp_path / "a.tif")
    further = np.full((1, 3, 4), 5, np.uint16)
    further[:, 0, 3] = 0
    write_geotiff(tmp_path / "b.tif", further, None, nodata=0)
    both = Record(
        id="a", image=record.image, size=SIZE, bands=(BandFile(path=tmp_path / "b.tif", resampling="nearest"),)
    )
    expected = HIDDEN.copy()
    expected[0:2, 6:8] = True
    found = without_nodata(LABELS, both)
    assert found[0, 0] == 1 and np.array_equal(found == IGNORE, expected)


def test_a_file_that_is_replaced_is_read_again(tmp_path: Path) -> None:
    record = image(tmp_path / "a.tif")
    assert (without_nodata(LABELS, record) == IGNORE).any()
    write_geotiff(tmp_path / "a.tif", np.ones((3, *SIZE), np.uint16), None, nodata=0)
    assert without_nodata(LABELS, record) is LABELS


def test_parts_of_scenes_have_their_own_labels(tmp_path: Path) -> None:
    scene = image(tmp_path / "a.tif")
    (part,) = parts_of(scene, [Window(0, 0, 4, 4)], tmp_path)
    labels = np.ones((4, 4), np.uint8)
    assert without_nodata(labels, part) is labels


def test_what_is_read_whole_only_hides_nothing(tmp_path: Path) -> None:
    import tifffile

    tifffile.imwrite(tmp_path / "pages.tif", np.zeros((2, *SIZE), np.uint8), photometric="minisblack")
    assert without_nodata(LABELS, Record(id="a", image=tmp_path / "pages.tif", size=SIZE)) is LABELS
    assert without_nodata(LABELS, Record(id="a", image=tmp_path / "missing.tif", size=SIZE)) is LABELS
