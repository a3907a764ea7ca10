"""Each kind of truth becomes the same labels, at the image's size or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

from maskloom.data.image_io import write_png
from maskloom.data.mask_coding import NO_CLASS, MaskCoding
from maskloom.data.truth import read_sample, read_truth
from maskloom.encodings.rle import coco_encode, encode_runs
from maskloom.errors import BadFile
from maskloom.rasters.writing import write_geotiff
from maskloom.records import IGNORE, BadSize, CocoSegments, MaskFile, Record, RunLengths, Shapes, Task, Truth

SIZE = (6, 8)
BINARY = Task(kind="binary", classes=("car",))
MULTICLASS = Task(kind="multiclass", classes=("background", "a", "b"))
MULTILABEL = Task(kind="multilabel", classes=("a", "b"))
CODING = MaskCoding()
BOX = np.zeros(SIZE, bool)
BOX[1:4, 2:7] = True
WKT = "POLYGON ((2 1, 7 1, 7 4, 2 4, 2 1))"


def record(truth: Truth | None, folder: Path = Path(), size: tuple[int, int] = SIZE) -> Record:
    return Record(id="a", image=folder / "a.png", size=size, truth=truth)


@pytest.mark.parametrize(
    "truth",
    [
        RunLengths(runs=((0, encode_runs(BOX, order="row", base=1)),), order="row", base=1),
        RunLengths(runs=((0, encode_runs(BOX, order="column", base=0)),), order="column", base=0),
        Shapes(wkt=((0, WKT),)),
        CocoSegments(segments=((0, coco_encode(BOX)),)),
        CocoSegments(segments=((0, [[2.0, 1.0, 7.0, 1.0, 7.0, 4.0, 2.0, 4.0]]),)),
    ],
)
def test_pieces_of_a_box(truth: Truth) -> None:
    labels = read_truth(record(truth), BINARY, CODING)
    assert labels.dtype == np.uint8 and np.array_equal(labels, BOX)


def test_later_classes_cover_earlier_ones_in_multiclass_and_overlap_in_multilabel() -> None:
    other = np.zeros(SIZE, bool)
    other[3:, 5:] = True
    runs = tuple((label, encode_runs(mask)) for label, mask in ((0, BOX), (1, other)))
    maps = read_truth(record(RunLengths(runs=runs, order="row", base=1)), MULTILABEL, CODING)
    assert np.array_equal(maps, np.stack([BOX, other]))
    shifted = tuple((label + 1, text) for label, text in runs)
    labels = read_truth(record(RunLengths(runs=shifted, order="row", base=1)), MULTICLASS, CODING)
    assert np.array_equal(labels, np.where(other, 2, BOX))


def test_mask_file(tmp_path: Path) -> None:
    write_png(tmp_path / "m.png", (BOX * 255).astype(np.uint8))
    coding = MaskCoding(kind="values", values=((0, 0), (255, 1)))
    assert np.array_equal(read_truth(record(MaskFile(path=tmp_path / "m.png")), BINARY, coding), BOX)
    with pytest.raises(BadSize, match=r"the mask is 8×6 .*expected the image's 9×6"):
        read_truth(record(MaskFile(path=tmp_path / "m.png"), size=(6, 9)), BINARY, coding)


def test_multilabel_mask_file(tmp_path: Path) -> None:
    write_png(tmp_path / "m.png", np.array([[0, 1, 2, 9]], np.uint8))
    coding = MaskCoding(kind="values", values=((0, NO_CLASS), (1, 0), (2, 1)), ignore=(9,))
    maps = read_truth(record(MaskFile(path=tmp_path / "m.png"), size=(1, 4)), MULTILABEL, coding)
    assert maps.tolist() == [[[0, 1, 0, IGNORE]], [[0, 0, 1, IGNORE]]]


@pytest.mark.parametrize(
    "truth",
    [
        RunLengths(runs=((0, "1 2 3"),), order="row", base=1),
        RunLengths(runs=((0, "40 20"),), order="row", base=1),
        Shapes(wkt=((0, "POLYGON ((0 0"),)),
        CocoSegments(segments=((0, [[1.0, 2.0]]),)),
    ],
)
def test_unreadable_pieces_name_the_record(truth: Truth) -> None:
    with pytest.raises(BadFile, match="the truth of record 'a' cannot be read") as caught:
        read_truth(record(truth), BINARY, CODING)
    assert "\n" not in str(caught.value)


def test_run_lengths_of_another_size() -> None:
    with pytest.raises(BadSize):
        read_truth(record(CocoSegments(segments=((0, coco_encode(BOX.T.copy())),))), BINARY, CODING)


def test_sample(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    write_png(tmp_path / "a.png", image)
    sample = read_sample(record(Shapes(wkt=((0, WKT),)), tmp_path), BINARY, CODING)
    assert np.array_equal(sample.image, image) and np.array_equal(sample.labels, BOX)
    assert read_sample(record(None, tmp_path), BINARY, CODING).labels is None
    with pytest.raises(BadFile, match="it was 9×6 when opened"):
        read_sample(record(None, tmp_path, (6, 9)), BINARY, CODING)


def tiff_mask(folder: Path, values: list[float], dtype: str, nodata: float | None, colormap: bool = False) -> Record:
    path = folder / "mask.tif"
    form = {"driver": "GTiff", "height": 1, "width": len(values), "count": 1, "dtype": dtype, "nodata": nodata}
    with rasterio.open(path, "w", **form, transform=rasterio.Affine(2, 0, 9, 0, -2, 9)) as file:
        file.write(np.array([[values]], dtype))
        if colormap:
            file.write_colormap(1, {0: (0, 0, 0, 255), 7: (9, 9, 9, 255)})
    return record(MaskFile(path=path), size=(1, len(values)))


VALUES = MaskCoding(kind="values", values=((0, 0), (7, 1)))


@pytest.mark.parametrize(
    ("values", "dtype", "nodata", "expected"),
    [
        ([0, 7, 255], "uint8", 255, IGNORE),
        ([0, 7, -9999], "int16", -9999, IGNORE),
        ([0, 7, np.nan], "float32", np.nan, IGNORE),
        ([0, 7, -3.4e38], "float32", -3.4e38, IGNORE),
        ([0, 7, 0], "uint8", 0, 0),  # as GDAL writes background
        ([0, 7, 7], "uint8", 7, 1),
    ],
)
def test_nodata_of_a_mask_is_ignored_unless_it_is_a_class(
    tmp_path: Path, values: list[float], dtype: str, nodata: float, expected: int
) -> None:
    assert read_truth(tiff_mask(tmp_path, values, dtype, nodata), BINARY, VALUES).tolist() == [[0, 1, expected]]
    if nodata != 7:
        assert read_truth(tiff_mask(tmp_path, values, dtype, nodata), BINARY, CODING).tolist() == [[0, 1, expected]]


def test_nodata_of_a_mask_with_a_palette_is_ignored(tmp_path: Path) -> None:
    found = tiff_mask(tmp_path, [0, 7, 255], "uint8", 255, colormap=True)
    assert read_truth(found, BINARY, VALUES).tolist() == [[0, 1, IGNORE]]
    maps = read_truth(found, MULTILABEL, MaskCoding(kind="values", values=((0, NO_CLASS), (7, 1))))
    assert maps.tolist() == [[[0, 0, IGNORE]], [[0, 1, IGNORE]]]


def test_values_that_are_neither_class_nor_nodata_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="expected the mask values 0, 7, found 9 in 1 pixels"):
        read_truth(tiff_mask(tmp_path, [0, 7, 9], "uint8", 255), BINARY, VALUES)
    with pytest.raises(BadFile, match="NaN is nodata"):
        read_truth(tiff_mask(tmp_path, [0, 7, np.nan], "float32", None), BINARY, VALUES)


@pytest.mark.parametrize("bands", [1, 2])
def test_nan_that_is_nodata_is_0_and_ignored(tmp_path: Path, bands: int) -> None:
    pixels = np.arange(1, 7 * bands, dtype=np.float32)[: 6 * bands].reshape(bands, 2, 3)
    pixels[-1, 1, 2] = np.nan
    write_geotiff(tmp_path / "a.tif", pixels, None, nodata=np.nan)
    write_png(tmp_path / "mask.png", np.ones((2, 3), np.uint8))
    image = tmp_path / "a.tif"
    found = read_sample(
        Record(id="a", image=image, size=(2, 3), truth=MaskFile(path=tmp_path / "mask.png")), BINARY, CODING
    )
    assert found.labels is not None and found.labels.tolist() == [[1, 1, 1], [1, 1, IGNORE]]
    expected = np.moveaxis(pixels, 0, -1).copy()
    expected[1, 2] = 0
    assert found.image.dtype == np.float32 and np.array_equal(found.image, expected)
    write_geotiff(image, pixels, None, nodata=-1)
    with pytest.raises(BadFile, match="1 values that are NaN or infinite; fill them in, or say that NaN is nodata"):
        read_sample(Record(id="a", image=image, size=(2, 3)), BINARY, CODING)
