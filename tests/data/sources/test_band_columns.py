"""Tables whose images are of several files each: learnt from as scenes of such tables are predicted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maskloom.data.record_images import read_record_image
from maskloom.data.sources.band_columns import band_columns
from maskloom.data.sources.base import DataSettings, DataSource
from maskloom.data.sources.table import open_table
from maskloom.data.truth import read_truth
from maskloom.errors import BadFile, UserError
from maskloom.rasters.writing import write_geotiff
from maskloom.records import BandFile

SIZE = (6, 8)
FIELD = '"POLYGON ((1 1, 4 1, 4 3, 1 3, 1 1))"'


def write(path: Path, seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(1, 9, (1, *size)).astype(np.uint16)
    path.parent.mkdir(exist_ok=True)
    write_geotiff(path, pixels, None)
    return pixels[0]


def opened(folder: Path, text: str, **settings: object) -> DataSource:
    (folder / "train.csv").write_text(text)
    return open_table(folder, DataSettings.model_validate(settings))


def scenes(folder: Path) -> list[np.ndarray]:
    """Two scenes of three files; the third is half as fine. Returns what the first holds on its grid."""
    for number, name in enumerate("ab"):
        write(folder / "images" / f"{name}.tif", number)
        write(folder / "images" / f"{name}_nir.tif", number + 10)
        write(folder / "images" / f"{name}_swir.tif", number + 20, (3, 4))
    coarse = write(folder / "images" / "a_swir.tif", 20, (3, 4)).repeat(2, 0).repeat(2, 1)
    return [write(folder / "images" / "a.tif", 0), write(folder / "images" / "a_nir.tif", 10), coarse]


def test_further_files_stand_in_columns(tmp_path: Path) -> None:
    expected = scenes(tmp_path)
    text = (
        "id,image,Band,band_2,resampling_2,class,wkt,site\n"
        f"north,a.tif,a_nir.tif,a_swir.tif,Nearest,field,{FIELD},7\n"
        f"north,a.tif,a_nir.tif,a_swir.tif,Nearest,road,{FIELD},7\n"
        f"south,b.tif,b_nir.tif,b_swir.tif,,road,{FIELD},8\n"
    )
    source = opened(tmp_path, text)
    first, second = source.records
    assert first.bands == (
        BandFile(path=tmp_path / "images" / "a_nir.tif"),
        BandFile(path=tmp_path / "images" / "a_swir.tif", resampling="nearest"),
    )
    assert [band.resampling for band in second.bands] == ["bicubic", "bicubic"]
    assert np.array_equal(read_record_image(first), np.stack(expected, axis=2))
    assert read_truth(first, source.task, source.coding)[0].sum() == 6
    assert dict(first.attributes) == {"site": "7"}
    assert any("every image is a stack of 3 files with 3 bands" in note for note in source.notes)
    assert DataSource.from_json(source.to_json(), tmp_path) == source


def test_masks_and_images_without_truth(tmp_path: Path) -> None:
    scenes(tmp_path)
    write_geotiff(tmp_path / "a_mask.tif", np.eye(*SIZE, dtype=np.uint8), None)
    source = opened(tmp_path, "image,band,mask\na.tif,a_swir.tif,a_mask.tif\nb.tif,b_swir.tif,\n")
    assert [record.id for record in source.records] == ["a"] and len(source.unlabelled[0].bands) == 1


def test_what_is_wrong_names_the_image(tmp_path: Path) -> None:
    scenes(tmp_path)
    head = "image,band,wkt\n"
    with pytest.raises(BadFile, match=r"b_nr\.tif: no such file"):
        opened(tmp_path, f"{head}a.tif,a_nir.tif,{FIELD}\nb.tif,b_nr.tif,{FIELD}\n")
    source = opened(tmp_path, f"{head}a.tif,a_nir.tif,{FIELD}\nb.tif,b_nr.tif,{FIELD}\n", skip_bad=True)
    assert [record.id for record in source.records] == ["a"] and len(source.problems) == 1
    with pytest.raises(BadFile, match=r"b\.tif: expected 2 files for image 'b', as 'a' has, found 1"):
        opened(tmp_path, f"{head}a.tif,a_nir.tif,{FIELD}\nb.tif,,{FIELD}\n")
    with pytest.raises(
        UserError, match=r"expected id 'a' once, found it again \(band 'a_nir\.tif' and 'a_swir\.tif'\)"
    ):
        opened(tmp_path, f"{head}a.tif,a_nir.tif,{FIELD}\na.tif,a_swir.tif,\n")
    with pytest.raises(UserError, match=r"train\.csv: resampling: found 'bicubc'; did you mean 'bicubic'"):
        opened(tmp_path, f"image,band,resampling,wkt\na.tif,a_nir.tif,bicubc,{FIELD}\n")
    with pytest.raises(UserError, match="expected a file in the column 'band', found none but what comes after it"):
        opened(tmp_path, f"image,band,band_2,wkt\na.tif,,a_nir.tif,{FIELD}\n")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("image,band,band_1", "expected each column once, found 'band_1' again"),
        ("image,band_2", "expected the column 'band' before 'band_2'"),
        ("image,band,resampling_2", "expected a column 'band_2' for 'resampling_2'"),
    ],
)
def test_columns_that_are_wrong(tmp_path: Path, header: str, message: str) -> None:
    with pytest.raises(BadFile, match=message):
        band_columns(tmp_path / "train.csv", header.split(","))
