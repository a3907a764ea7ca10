"""The Dstl submission: what is written, in which order, how exactly, and what is refused."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import Polygon, box

from maskloom.contests.dstl.submission import (
    AREA_TOLERANCE,
    EMPTY,
    DstlWriter,
    grid_wkt,
    read_sample,
    read_submission,
    validate,
)  # fmt: skip
from maskloom.encodings.grid_coordinates import Grid, to_grid, to_pixels
from maskloom.encodings.outlines import outlines
from maskloom.errors import BadFile, UserError

SIZE = (3349, 3396)
GRIDS = {"6010_0_0": Grid(0.009188, -0.00904), "6020_1_1": Grid(0.009169, -0.009042)}
HEADER = "ImageId,ClassType,MultipolygonWKT\n"


def sample(folder: Path, images: tuple[str, ...] = ("6020_1_1", "6010_0_0")) -> Path:
    path = folder / "sample_submission.csv"
    dummy = '"MULTIPOLYGON (((0 0, 0.009188 0, 0.009188 -0.00904, 0 -0.00904, 0 0)))"'
    path.write_text(HEADER + "".join(f"{image},{number},{dummy}\n" for image in images for number in range(1, 11)))
    return path


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as stream:
        return list(csv.reader(stream))


def test_rows_stand_in_the_order_of_the_sample_whatever_the_order_of_images(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    with DstlWriter(path, GRIDS, sample=sample(tmp_path)) as writer:
        assert writer.images == ["6020_1_1", "6010_0_0"]
        writer.write("6010_0_0", SIZE, {0: [box(0, 0, 10, 10)], 9: []})
        writer.write("6020_1_1", SIZE, {})
    header, *found = rows(path)
    assert header == ["ImageId", "ClassType", "MultipolygonWKT"]
    assert [(image, number) for image, number, _ in found] == [
        (image, str(number)) for image in ("6020_1_1", "6010_0_0") for number in range(1, 11)
    ]
    assert [text == EMPTY for _, _, text in found] == [True] * 10 + [False] + [True] * 9
    validate(path, tmp_path / "sample_submission.csv")


def test_without_a_sample_images_are_sorted(tmp_path: Path) -> None:
    path = tmp_path / "out.csv.gz"
    with DstlWriter(path, GRIDS, images=reversed(GRIDS)) as writer:
        for image in reversed(GRIDS):
            writer.write(image, SIZE, {})
    found = list(read_submission(path))
    assert [(row.image, row.label) for row in found] == [(image, label) for image in GRIDS for label in range(10)]
    assert not any(row.polygons for row in found)


def test_coordinates_are_those_of_the_grid(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    ring = Polygon([(10, 20), (30, 20), (30, 50), (10, 50)], [[(15, 25), (15, 30), (20, 30), (20, 25)]])
    with DstlWriter(path, GRIDS, images=["6010_0_0"]) as writer:
        writer.write("6010_0_0", SIZE, {4: [ring, box(100, 100, 101, 101)]})
    (row,) = [row for row in read_submission(path) if row.polygons]
    assert row.label == 4 and len(row.polygons) == 2
    assert row.polygons[0].bounds[3] < 0  # y runs downwards from 0
    back = [to_pixels(polygon, SIZE, GRIDS["6010_0_0"]) for polygon in row.polygons]
    assert [polygon.area for polygon in back] == pytest.approx([20 * 30 - 25, 1], rel=AREA_TOLERANCE)
    assert back[0].symmetric_difference(ring).area < 1e-5


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_any_mask_is_written_validly_and_exactly(seed: int) -> None:
    mask = np.random.default_rng(seed).random((12, 15)) < 0.5
    grid = GRIDS["6010_0_0"]
    placed = [to_grid(polygon, SIZE, grid) for polygon in outlines(mask)]
    again = shapely.from_wkt(grid_wkt(placed))
    assert again.is_valid and again.geom_type == "MultiPolygon"
    assert to_pixels(again, SIZE, grid).area == pytest.approx(mask.sum(), rel=AREA_TOLERANCE)


def test_tiny_areas_keep_their_area() -> None:
    sliver = Polygon([(0, 0), (1e-3, 0), (1e-3, 1e-9)])
    assert shapely.from_wkt(grid_wkt([sliver])).area == pytest.approx(sliver.area, rel=AREA_TOLERANCE)


def test_what_overlaps_or_crosses_itself_is_repaired() -> None:
    bow_tie = Polygon([(0, 0), (4, 4), (4, 0), (0, 4)])
    assert shapely.from_wkt(grid_wkt([bow_tie])).area == pytest.approx(8)
    assert shapely.from_wkt(grid_wkt([box(0, 0, 2, 2), box(1, 0, 3, 2)])).area == pytest.approx(6)
    assert grid_wkt([]) == grid_wkt([Polygon()]) == EMPTY
    with pytest.raises(UserError, match="finite"):
        grid_wkt([Polygon([(0, 0), (np.inf, 0), (1, 1)])])


def test_missing_images_unknown_ones_and_two_of_one(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    given = sample(tmp_path)
    with (
        pytest.raises(UserError, match=r"no rows for 6020_1_1 class 1, .* and 5 more"),
        DstlWriter(path, GRIDS, sample=given) as writer,
    ):
        writer.write("6010_0_0", SIZE, {})
    with pytest.raises(UserError, match="two rows"), DstlWriter(path, GRIDS, sample=given) as writer:
        writer.write("6010_0_0", SIZE, {})
        writer.write("6010_0_0", SIZE, {})
    with (
        pytest.raises(UserError, match=r"6111_0_0.* no row in grid_sizes"),
        DstlWriter(path, GRIDS, sample=given) as writer,
    ):
        writer.write("6111_0_0", SIZE, {})
    more = {**GRIDS, "6111_0_0": GRIDS["6010_0_0"]}
    with pytest.raises(UserError, match="not among"), DstlWriter(path, more, sample=given) as writer:
        writer.write("6111_0_0", SIZE, {})
    with pytest.raises(ValueError, match="labels of 0 to 9"), DstlWriter(path, GRIDS, sample=given) as writer:
        writer.write("6010_0_0", SIZE, {10: []})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["sample_submission.csv"]


def test_validation_names_what_is_missing_and_what_is_too_much(tmp_path: Path) -> None:
    expected = sample(tmp_path)
    path = tmp_path / "out.csv"
    lines = [f"{image},{number},{EMPTY}\n" for image in ("6010_0_0", "6020_1_1") for number in range(1, 11)]
    path.write_text(HEADER + "".join(lines[::-1]))
    validate(path, expected)
    path.write_text(HEADER + "".join(lines[:-1]) + f"6111_0_0,3,{EMPTY}\n")
    with pytest.raises(UserError, match=r"1 missing: 6020_1_1 class 10; 1 not in the sample: 6111_0_0 class 3"):
        validate(path, expected)
    path.write_text(HEADER + "".join(lines) + lines[0])
    with pytest.raises(BadFile, match=r"row 22 \(6010_0_0, class 1\): found a second row"):
        validate(path, expected)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("6010_0_0,0,MULTIPOLYGON EMPTY", "expected a class number of 1 to 10"),
        ("6010_0_0,1,MULTIPOLYGON", "expected WKT polygons"),
        ('6010_0_0,1,"POLYGON ((0 0, 4 4, 4 0, 0 4, 0 0))"', "expected valid areas, found Self-intersection"),
        ('6010_0_0,1,"LINESTRING (0 0, 4 4)"', "found a LineString"),
        ("6010_0_0,1", "expected 3 columns in row 2, found 2"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: str, reason: str) -> None:
    path = tmp_path / "out.csv"
    path.write_text(HEADER + row + "\n")
    with pytest.raises(BadFile, match=reason):
        validate(path, sample(tmp_path))


def test_reading_repairs_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text(HEADER + '6010_0_0,1,"POLYGON ((0 0, 4 4, 4 0, 0 4, 0 0))"\n6010_0_0,2,GEOMETRYCOLLECTION EMPTY\n')
    notes: list[str] = []
    first, second = read_submission(path, note=notes.append)
    assert sum(polygon.area for polygon in first.polygons) == pytest.approx(8) and not second.polygons
    assert notes == ["out.csv: areas in 1 rows cross or touch themselves; repaired"]


def test_a_submission_written_back_has_its_areas(tmp_path: Path) -> None:
    path, again = tmp_path / "out.csv", tmp_path / "again.csv"
    mask = np.random.default_rng(3).random((40, 40)) < 0.6
    with DstlWriter(path, GRIDS, images=GRIDS) as writer:
        for image in GRIDS:
            writer.write(image, SIZE, {label: outlines(mask) for label in (1, 7)})
    with DstlWriter(again, GRIDS, sample=path) as writer:
        for row in read_submission(path):
            writer.write_row(row.image, row.label, row.polygons)
    before, after = list(read_submission(path)), list(read_submission(again))
    assert [row[:2] for row in before] == [row[:2] for row in after]
    for one, other in zip(before, after, strict=True):
        areas = [sum(polygon.area for polygon in row.polygons) for row in (one, other)]
        assert areas[0] == pytest.approx(areas[1], rel=AREA_TOLERANCE)


def test_damaged_samples(tmp_path: Path) -> None:
    path = tmp_path / "sample.csv"
    path.write_text(HEADER)
    with pytest.raises(BadFile, match="found none; restore the file"):
        read_sample(path)
    path.write_text("img,rle_mask\n")
    with pytest.raises(BadFile, match="expected the columns"):
        DstlWriter(tmp_path / "out.csv", GRIDS, sample=path)
