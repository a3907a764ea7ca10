"""Pixels to the ground and back: corners worked out by hand, laws for any transform."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from maskloom.data.image_io import write_png
from maskloom.errors import BadFile, UserError
from maskloom.rasters.georeference import Georeference, read_georeference, reprojected, same_crs, to_crs, to_pixels
from maskloom.rasters.writing import write_geotiff

NORTH_UP = Georeference("EPSG:32723", (0.5, 0.0, 200_000.0, 0.0, -0.5, 7_000_000.0))
SQUARE = shapely.box(2, 4, 6, 10)


def test_corners_by_hand() -> None:
    (ground,) = to_crs([SQUARE], NORTH_UP)
    assert ground.bounds == (200_001.0, 6_999_995.0, 200_003.0, 6_999_998.0)
    assert to_crs([], NORTH_UP) == []


@given(
    st.tuples(*[st.floats(-100, 100)] * 6).filter(lambda t: abs(t[0] * t[4] - t[1] * t[3]) > 1e-2),
    st.lists(st.tuples(st.floats(0, 1000), st.floats(0, 1000)), min_size=3, max_size=8),
)
def test_there_and_back(
    transform: tuple[float, float, float, float, float, float], points: list[tuple[float, float]]
) -> None:
    georeference = Georeference(None, transform)
    polygon = shapely.Polygon(points)
    (back,) = to_pixels(to_crs([polygon], georeference), georeference)
    assert np.allclose(shapely.get_coordinates(back), shapely.get_coordinates(polygon), rtol=0, atol=1e-4)


def test_a_transform_agrees_with_rasterio() -> None:
    from rasterio.transform import Affine, xy

    turned = Georeference("EPSG:32723", (0.4, 0.3, 5.0, 0.3, -0.4, 9.0))
    (ground,) = to_crs([SQUARE], turned)
    x, y = SQUARE.exterior.xy
    expected = np.stack(xy(Affine(*turned.transform), y, x, offset="ul"), axis=1)
    assert np.allclose(ground.exterior.coords, expected)


def test_reading(tmp_path: Path) -> None:
    mask = np.zeros((4, 6), np.uint8)
    write_geotiff(tmp_path / "a.tif", mask, NORTH_UP)
    write_geotiff(tmp_path / "plain.tif", mask, None)
    write_png(tmp_path / "a.png", mask)
    assert read_georeference(tmp_path / "a.tif") == NORTH_UP
    assert read_georeference(tmp_path / "plain.tif") is None
    assert read_georeference(tmp_path / "a.png") is None


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "half.tif").write_bytes(b"II*\0\x08\0\0\0")
    for name in ("half.tif", "absent.tif"):
        with pytest.raises(BadFile) as caught:
            read_georeference(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_transform_must_be_undone() -> None:
    with pytest.raises(UserError, match="can be undone"):
        Georeference(None, (1.0, 2.0, 0.0, 2.0, 4.0, 0.0))


def test_crs_are_compared_by_meaning() -> None:
    from rasterio.crs import CRS

    assert same_crs("EPSG:32723", CRS.from_epsg(32723).to_wkt())
    assert not same_crs("EPSG:32723", "EPSG:4326")
    with pytest.raises(UserError, match="expected a CRS"):
        same_crs("EPSG:32723", "somewhere")
    with pytest.raises(UserError, match="expected a CRS"):
        same_crs("EPSG:32723", "EPSG:nonsense")


def test_another_crs() -> None:
    # The equator at the central meridian of UTM zone 33 north is (500 km, 0).
    (ground,) = reprojected([shapely.box(15, 0, 15.001, 0.001)], "EPSG:4326", "EPSG:32633")
    left, bottom, right, top = ground.bounds
    assert (left, bottom) == pytest.approx((500_000, 0), abs=1e-3)
    assert (right - left, top - bottom) == pytest.approx((111.3, 110.5), abs=0.2)
    with pytest.raises(UserError):
        reprojected([shapely.box(0, 95, 1, 99)], "EPSG:4326", "EPSG:32633")
