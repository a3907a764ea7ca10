"""Grid coordinates of the Dstl contest, by its own formula."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely import Point, box

from maskloom.encodings.grid_coordinates import Grid, read_grids, to_grid, to_pixels
from maskloom.errors import BadFile, UserError

SIZE = (3349, 3396)
GRID = Grid(0.009188, -0.00904)


def test_the_far_corner_lies_a_pixel_short() -> None:
    corner = to_pixels(Point(0.009188, -0.00904), SIZE, GRID)
    assert corner.x == pytest.approx(3396 * 3396 / 3397)
    assert corner.y == pytest.approx(3349 * 3349 / 3350)


def test_a_box_by_hand() -> None:
    scaled = to_pixels(box(0, -1, 2, 0), (1, 3), Grid(4.0, -2.0))
    assert scaled.bounds == pytest.approx((0, 0, 2 * 2.25 / 4, 1 * 0.5 / 2))


@given(st.floats(0, 1), st.floats(0, 1))
def test_there_and_back(across: float, down: float) -> None:
    point = Point(across * GRID.x_max, down * GRID.y_min)
    again = to_grid(to_pixels(point, SIZE, GRID), SIZE, GRID)
    assert (again.x, again.y) == pytest.approx((point.x, point.y), abs=1e-15)


@pytest.mark.parametrize("extent", [(0.0, -1.0), (1.0, 1.0), (float("nan"), -1.0), (1.0, float("-inf"))])
def test_impossible_grids_are_refused(extent: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="expected a grid"):
        Grid(*extent)


@pytest.mark.parametrize("header", [",Xmax,Ymin", "imageId,Xmax,Ymin", "\ufeffImageId,Xmax,Ymin"])
def test_grid_sizes(tmp_path: Path, header: str) -> None:
    path = tmp_path / "grid_sizes.csv"
    path.write_text(f"{header}\n6120_2_4,0.00918,-0.00904\n6120_2_3,0.009169,-0.00904\n\n", encoding="utf-8")
    assert read_grids(path) == {"6120_2_4": Grid(0.00918, -0.00904), "6120_2_3": Grid(0.009169, -0.00904)}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "expected the columns ImageId,Xmax,Ymin, found "),
        ("id,x,y\n", "found id,x,y"),
        ("ImageId,Xmax,Ymin\na,1\n", "row 2: expected an image"),
        ("ImageId,Xmax,Ymin\na,1,two\n", "row 2: expected an image"),
        ("ImageId,Xmax,Ymin\na,1,2\n", "Ymin < 0"),
        ("ImageId,Xmax,Ymin\n../a,1,-2\n", "cannot name an output file"),
        ("ImageId,Xmax,Ymin\na,1,-1\na,1,-1\n", "two rows for 'a'"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "grid_sizes.csv"
    path.write_text(content)
    with pytest.raises(BadFile) as caught:
        read_grids(path)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_or_binary_table(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="no such file"):
        read_grids(tmp_path / "none.csv")
    (tmp_path / "grid.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadFile, match="expected a CSV table"):
        read_grids(tmp_path / "grid.csv")


def test_a_compressed_table_is_read_as_it_lies(tmp_path: Path) -> None:
    path = tmp_path / "grid_sizes.csv.gz"
    path.write_bytes(gzip.compress(b",Xmax,Ymin\n6120_2_4,0.00918,-0.00904\n"))
    assert read_grids(path) == {"6120_2_4": Grid(0.00918, -0.00904)}
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(BadFile, match=r"grid_sizes\.csv\.gz: expected a CSV table, plain or \.gz"):
        read_grids(path)
