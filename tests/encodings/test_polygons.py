"""Polygons of known pixels, pixel-centre rule and COCO's rule."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as judge

from maskloom.encodings.polygons import rasterize_coco, rasterize_wkt
from maskloom.encodings.rle import coco_encode
from maskloom.errors import UserError

SIZE = (4, 6)


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize(
    ("wkt", "expected"),
    [
        ("POLYGON ((1 1, 4 1, 4 3, 1 3, 1 1))", box(1, 1, 3, 4)),
        ("POLYGON ((1.4 1.4, 4.4 1.4, 4.4 3.4, 1.4 3.4, 1.4 1.4))", box(1, 1, 3, 4)),
        ("POLYGON ((1.6 1.6, 4.6 1.6, 4.6 3.6, 1.6 3.6, 1.6 1.6))", box(2, 2, 4, 5)),
        ("POLYGON ((-9 -9, 99 -9, 99 99, -9 99, -9 -9))", box(0, 0, 4, 6)),
        ("MULTIPOLYGON (((0 0, 4 0, 4 2, 0 2, 0 0)), ((2 0, 6 0, 6 2, 2 2, 2 0)))", box(0, 0, 2, 6)),
        ("GEOMETRYCOLLECTION (POLYGON ((0 0, 1 0, 1 1, 0 1, 0 0)), POLYGON EMPTY)", box(0, 0, 1, 1)),
        ("MULTIPOLYGON EMPTY", box(0, 0, 0, 0)),
        ("GEOMETRYCOLLECTION EMPTY", box(0, 0, 0, 0)),
        ("POLYGON ((40 40, 50 40, 50 50, 40 40))", box(0, 0, 0, 0)),
    ],
)
def test_wkt(wkt: str, expected: np.ndarray) -> None:
    mask = rasterize_wkt(wkt, SIZE)
    assert mask.dtype == bool
    assert np.array_equal(mask, expected)


def test_wkt_hole() -> None:
    wkt = "POLYGON ((0 0, 6 0, 6 4, 0 4, 0 0), (1 1, 3 1, 3 3, 1 3, 1 1))"
    assert np.array_equal(rasterize_wkt(wkt, SIZE), ~box(1, 1, 3, 3))


@pytest.mark.parametrize(
    "wkt",
    ["", "POLYGON", "POLYGON ((0 0, 1 1))", "1 5 9 3", "LINESTRING (0 0, 4 4)", "POLYGON ((0 0, NaN 1, 1 1, 0 0))"],
)
def test_bad_wkt_is_refused(wkt: str) -> None:
    with pytest.raises(UserError, match="expected") as caught:
        rasterize_wkt(wkt, SIZE)
    assert "\n" not in str(caught.value)


def test_coco_polygons_equal_pycocotools() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        rings = [(generator.random(2 * count) * 50 - 5).tolist() for count in generator.integers(3, 9, 3)]
        expected = judge.merge(judge.frPyObjects(rings, 40, 45))
        assert coco_encode(rasterize_coco(rings, (40, 45)))["counts"] == expected["counts"].decode()


def test_coco_polygons_of_a_box_and_of_nothing() -> None:
    assert np.array_equal(rasterize_coco([[1, 1, 4, 1, 4, 3, 1, 3]], SIZE), box(1, 1, 3, 4))
    assert not rasterize_coco([], SIZE).any()


@pytest.mark.parametrize(
    "polygon",
    [[1, 1, 4, 3], [1, 1, 4, 1, 4], "text", [1, 1, 4, 1, 4, "3"], [1, 1, 4, 1, 4, float("nan")], [0, 0, 1, 1e9, 1, 1]],
)
def test_bad_coco_polygons_are_refused(polygon: object) -> None:
    with pytest.raises(UserError, match="expected"):
        rasterize_coco([polygon], SIZE)  # type: ignore[list-item]
