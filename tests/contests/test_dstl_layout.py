"""The Dstl layout as published: both ways to read it, tables plain and gzipped, and everything that can be wrong."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile

from maskloom.contests.dstl import open_dstl, recognise
from maskloom.contests.dstl.truth import CLASSES
from maskloom.data.sources.base import DataSettings, DataSource
from maskloom.data.truth import read_truth
from maskloom.errors import BadFile, UserError
from maskloom.records import Shapes

SIZE = (40, 48)
X_MAX, Y_MIN = 48 * 48 / 49, -40 * 40 / 41  # with this grid a pixel is one unit: (x, y) in pixels is (x, -y) here
BOX = "POLYGON ((2 -1, 7 -1, 7 -4, 2 -4, 2 -1))"
IMAGES = ("6010_0_1", "6010_2_2", "6020_4_0")
TEST = "6030_1_1"


def raster(path: Path, bands: int, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (bands, *size) if bands > 1 else size
    tifffile.imwrite(path, np.full(shape, 300, np.uint16), photometric="minisblack", planarconfig="separate")


def image(folder: Path, name: str) -> None:
    raster(folder / "three_band" / f"{name}.tif", 3, SIZE)
    raster(folder / "sixteen_band" / f"{name}_M.tif", 8, (10, 12))
    raster(folder / "sixteen_band" / f"{name}_P.tif", 1, SIZE)


def table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]], zipped: bool = False) -> None:
    stream = io.StringIO()
    csv.writer(stream).writerows([header, *rows])
    if zipped:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(stream.getvalue().encode()))
    else:
        path.write_text(stream.getvalue())


def polygons(folder: Path, rows: Sequence[Sequence[object]], zipped: bool = False) -> None:
    table(folder / "train_wkt_v4.csv", ("ImageId", "ClassType", "MultipolygonWKT"), rows, zipped)


def grids(folder: Path, names: Sequence[str], zipped: bool = False) -> None:
    table(folder / "grid_sizes.csv", ("", "Xmax", "Ymin"), [(name, X_MAX, Y_MIN) for name in names], zipped)


def rows_of(name: str, **wkt: str) -> list[tuple[object, ...]]:
    return [(name, number, wkt.get(known, "MULTIPOLYGON EMPTY")) for number, known in enumerate(CLASSES, start=1)]


def fill(folder: Path, zipped: bool = False) -> Path:
    for name in (*IMAGES, TEST):
        image(folder, name)
    grids(folder, (*IMAGES, TEST, "6999_0_0"), zipped)
    polygons(folder, [row for name in IMAGES for row in rows_of(name, trees=BOX)], zipped)
    sample = [(TEST, number, "MULTIPOLYGON EMPTY") for number in range(1, 11)]
    table(folder / "sample_submission.csv", ("ImageId", "ClassType", "MultipolygonWKT"), sample, zipped)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fill(tmp_path)


def opened(path: Path, **settings: object) -> DataSource:
    return open_dstl(path, DataSettings.model_validate(settings))


def box_mask(label: int = 4) -> np.ndarray:
    maps = np.zeros((10, *SIZE), np.uint8)
    maps[label, 1:4, 2:7] = 1
    return maps


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gz"])
def test_the_whole_layout(tmp_path: Path, zipped: bool) -> None:
    folder = fill(tmp_path, zipped)
    assert recognise(folder)
    source = opened(folder)
    assert source.layout == source.submission == "dstl"
    assert source.task.kind == "multilabel" and source.task.classes == CLASSES and len(CLASSES) == 10
    assert [(record.id, record.group) for record in source.records] == [
        ("6010_0_1", "6010"),
        ("6010_2_2", "6010"),
        ("6020_4_0", "6020"),
    ]
    first = source.records[0]
    assert dict(first.attributes) == {"row": "0", "column": "1"} and first.size == SIZE
    assert first.image == folder / "three_band" / "6010_0_1.tif"
    assert [(band.path.name, band.resampling) for band in first.bands] == [
        ("6010_0_1_M.tif", "bicubic"),
        ("6010_0_1_P.tif", "bicubic"),
    ]
    assert np.array_equal(read_truth(first, source.task, source.coding), box_mask())
    (test,) = source.unlabelled
    assert test.id == TEST and test.truth is None and len(test.bands) == 2
    assert source.sample_submission is not None and not source.problems
    assert DataSource.from_json(source.to_json(), folder) == source


def test_swir_alone(tmp_path: Path) -> None:
    for name in IMAGES:
        raster(tmp_path / "sixteen_band" / f"{name}_A.tif", 8, SIZE)
    grids(tmp_path, IMAGES)
    polygons(tmp_path, [row for name in IMAGES for row in rows_of(name, crops=BOX)])
    assert recognise(tmp_path)
    source = opened(tmp_path)
    assert [record.image.name for record in source.records] == [f"{name}_A.tif" for name in IMAGES]
    assert not source.records[0].bands and source.sample_submission is None
    assert np.array_equal(read_truth(source.records[0], source.task, source.coding), box_mask(5))
    assert any("SWIR" in note for note in source.notes)


def test_the_folder_decides_the_way(folder: Path) -> None:
    for name in IMAGES:
        raster(folder / "sixteen_band" / f"{name}_A.tif", 8, (8, 9))
    assert opened(folder).records[0].size == SIZE
    source = opened(folder, images="sixteen_band")
    assert source.records[0].size == (8, 9) and not source.unlabelled
    with pytest.raises(UserError, match="three_band or sixteen_band, found 'photos'"):
        opened(folder, images="photos")


def test_a_small_grid_scales_the_polygons(folder: Path) -> None:
    """Half as many pixels per side: the box covers a quarter of the pixels, by the contest's own formula."""
    for name in IMAGES:
        raster(folder / "sixteen_band" / f"{name}_A.tif", 8, (20, 24))
    shapes = opened(folder, images="sixteen_band").records[0].truth
    assert isinstance(shapes, Shapes)
    ((label, text),) = shapes.wkt
    from shapely import from_wkt

    across, down = (24 * 24 / 25) / X_MAX, (20 * 20 / 21) / -Y_MIN
    assert label == 4 and from_wkt(text).bounds == pytest.approx((2 * across, down, 7 * across, 4 * down), abs=1e-5)


def test_every_kind_of_empty_is_empty(folder: Path) -> None:
    empty = ("GEOMETRYCOLLECTION EMPTY", "MULTIPOLYGON EMPTY", "POLYGON EMPTY")
    rows = [row for name in IMAGES[1:] for row in rows_of(name)]
    polygons(folder, [*rows, *((IMAGES[0], number, text) for number, text in enumerate(empty, start=1))])
    source = opened(folder)
    assert [record.truth for record in source.records] == [Shapes(wkt=())] * 3
    assert not read_truth(source.records[0], source.task, source.coding).any()


def test_what_lies_outside_is_cut_off_and_said(folder: Path) -> None:
    outside = "MULTIPOLYGON (((-5 3, 7 3, 7 -4, -5 -4, -5 3)), ((100 -100, 110 -100, 110 -110, 100 -100)))"
    polygons(folder, [*rows_of(IMAGES[0], roads=outside), *rows_of(IMAGES[1], trees=BOX)])
    source = opened(folder)
    labels = read_truth(source.records[0], source.task, source.coding)
    assert labels[2].sum() == labels[2, :4, :7].sum() == 28
    assert any("cut off at its border: 6010_0_1 roads" in note for note in source.notes)
    assert len(source.unlabelled) == 2


def test_rings_that_cross_themselves_are_repaired_and_said(folder: Path) -> None:
    bow_tie = "POLYGON ((0 0, 8 -8, 8 0, 0 -8, 0 0))"
    overlapping = "MULTIPOLYGON (((0 0, 6 0, 6 -6, 0 -6, 0 0)), ((3 0, 9 0, 9 -6, 3 -6, 3 0)))"
    polygons(folder, rows_of(IMAGES[0], roads=bow_tie, crops=overlapping))
    source = opened(folder)
    labels = read_truth(source.records[0], source.task, source.coding)
    assert labels[5].sum() == labels[5, :6, :9].sum() == 54
    assert 0 < labels[2].sum() < 64
    assert any("repaired: 6010_0_1 roads, 6010_0_1 crops" in note for note in source.notes)


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def replaced(number: int, image: str = IMAGES[0], class_type: object = 5, wkt: str = BOX) -> Callable[[Path], None]:
    """Returns what puts one row in the place of another, and leaves all others sound."""
    rows: list[Sequence[object]] = [row for name in IMAGES for row in rows_of(name, trees=BOX)]
    rows[number] = (image, class_type, wkt)
    return lambda folder: polygons(folder, rows)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (without("sixteen_band/6010_0_1_M.tif"), r"6010_0_1_M.tif: no such file, but image '6010_0_1' needs it"),
        (without("sixteen_band/6010_0_1_P.tif"), r"6010_0_1_P.tif: no such file"),
        (without("three_band/6010_0_1.tif"), r"three_band/6010_0_1.tif: no such file"),
        (lambda folder: grids(folder, (*IMAGES[1:], TEST)), r"grid_sizes.csv: expected a row for image '6010_0_1'"),
        (lambda folder: (folder / "three_band/6010_0_1.tif").write_text("text"), r"6010_0_1.tif: expected an image"),
        (lambda folder: (folder / "sixteen_band/6010_0_1_M.tif").write_bytes(b""), r"_M.tif: .*an empty file"),
        (replaced(4, class_type=11), r"row 6 \(6010_0_1, class 11\): expected a class number of 1 to 10"),
        (replaced(4, class_type="trees"), r"class trees\): expected a class number"),
        (replaced(4, class_type=4), r"class 4\): found a second row for this image and class"),
        (replaced(4, wkt="POLYGON ((0 0, 1"), r"row 6 \(6010_0_1, class 5\): expected WKT polygons"),
        (replaced(4, wkt=""), r"expected WKT polygons or MULTIPOLYGON EMPTY, found ''"),
        (replaced(4, wkt="POINT (1 1)"), r"expected polygons, found a Point"),
        (replaced(4, wkt="POLYGON ((0 0, nan 1, 2 2, 0 0))"), r"expected finite coordinates"),
    ],
)
def test_bad_images_are_named_and_can_be_left_out(folder: Path, spoil: Callable[[Path], None], reason: str) -> None:
    spoil(folder)
    with pytest.raises(BadFile, match=reason) as caught:
        opened(folder)
    assert "\n" not in str(caught.value)
    source = opened(folder, skip_bad=True)
    assert [record.id for record in source.records] == list(IMAGES[1:])
    assert [record.id for record in source.unlabelled] == [TEST] and len(source.problems) == 1


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (replaced(4, image="6111_0_0"), r"three_band/6111_0_0.tif: no such file, but image '6111_0_0' needs it"),
        (replaced(4, image="../6111"), r"row 6 \(../6111, class 5\): expected <scene>_<row>_<column>"),
        (lambda folder: raster(folder / "three_band/photo.tif", 3, SIZE), r"photo.tif: expected a name <scene>_<row>"),
    ],
)
def test_strangers_are_named_and_can_be_left_out(folder: Path, spoil: Callable[[Path], None], reason: str) -> None:
    spoil(folder)
    with pytest.raises(BadFile, match=reason):
        opened(folder)
    source = opened(folder, skip_bad=True)
    assert [record.id for record in source.records] == list(IMAGES) and len(source.problems) == 1


def test_damaged_tables(folder: Path) -> None:
    (folder / "train_wkt_v4.csv").write_text("ImageId,ClassType,MultipolygonWKT\n6010_0_1,5\n")
    with pytest.raises(BadFile, match="expected 3 columns in row 2, found 2"):
        opened(folder)
    (folder / "train_wkt_v4.csv").write_text("image,class,wkt\n")
    with pytest.raises(BadFile, match="expected the columns ImageId,ClassType,MultipolygonWKT, found image,class,wkt"):
        opened(folder)
    (folder / "train_wkt_v4.csv").unlink()
    with pytest.raises(UserError, match=r"expected train_wkt_v4\.csv or"):
        opened(folder)
    assert not recognise(folder)


def test_a_damaged_gzip_of_grids_is_named(tmp_path: Path) -> None:
    folder = fill(tmp_path, zipped=True)
    (folder / "grid_sizes.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(BadFile, match=r"grid_sizes.csv.gz: expected the columns ImageId,Xmax,Ymin, found no gzip"):
        opened(folder)
    (folder / "grid_sizes.csv.gz").write_bytes(gzip.compress(b"a,b\n"))
    with pytest.raises(BadFile, match=r"grid_sizes.csv.gz: expected the columns"):
        opened(folder)


def test_wrong_settings(folder: Path) -> None:
    with pytest.raises(UserError, match="multilabel task"):
        opened(folder, task="binary")
    with pytest.raises(UserError, match=r"leave data\.masks out"):
        opened(folder, masks="masks")
    with pytest.raises(UserError, match="expected 10 names"):
        opened(folder, classes=["a"])


def test_groups_and_limits(folder: Path) -> None:
    assert {record.group for record in opened(folder, limit=1).records} == {"6010"}
    assert opened(folder, group="row").records[2].group == "4"


def test_images_of_the_sample_that_are_not_here_or_have_polygons_are_noted(folder: Path) -> None:
    rows = [(name, 1, "MULTIPOLYGON EMPTY") for name in ("6555_0_0", IMAGES[0])]
    table(folder / "sample_submission.csv", ("ImageId", "ClassType", "MultipolygonWKT"), rows)
    notes = opened(folder).notes
    assert any("not here, a submission needs them: 6555_0_0" in note for note in notes)
    assert any("names images that have polygons: 6010_0_1" in note for note in notes)


def test_another_folder_is_not_recognised(tmp_path: Path) -> None:
    grids(tmp_path, IMAGES)
    polygons(tmp_path, [])
    assert not recognise(tmp_path) and not recognise(tmp_path / "none")
    raster(tmp_path / "three_band" / "photo.tif", 3, SIZE)
    assert not recognise(tmp_path)
