"""Polygons of known pixels, pixel-centre rule and COCO's rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import shapely
from pycocotools import mask as judge

from maskloom.encodings.polygons import polygons_of, rasterize_coco, rasterize_wkt
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


def test_polygons_of_text_and_of_geometries_are_the_same() -> None:
    wkt = (
        "GEOMETRYCOLLECTION (GEOMETRYCOLLECTION (MULTIPOLYGON (((0 0, 1 0, 1 1, 0 0)), ((5 5, 6 5, 6 6, 5 5)))), "
        "POLYGON Z ((2 2 7, 3 2 7, 3 3 7, 2 2 7)), LINESTRING EMPTY, POLYGON EMPTY)"
    )
    found = polygons_of(wkt)
    assert [polygon.bounds for polygon in found] == [(0, 0, 1, 1), (5, 5, 6, 6), (2, 2, 3, 3)]
    assert not any(polygon.has_z for polygon in found)
    assert polygons_of(shapely.from_wkt(wkt)) == found
    bow_tie = "POLYGON ((0 0, 4 4, 4 0, 0 4, 0 0))"
    assert polygons_of(bow_tie) == [shapely.from_wkt(bow_tie)]  # as it is: nothing is repaired here


@pytest.mark.parametrize("kind", ["POINT", "LINESTRING", "POLYGON", "MULTIPOINT", "MULTIPOLYGON", "GEOMETRYCOLLECTION"])
def test_nothing_has_no_polygons_whatever_its_kind(kind: str) -> None:
    assert polygons_of(f"{kind} EMPTY") == polygons_of(shapely.from_wkt(f"{kind} EMPTY")) == []


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ("", "expected WKT polygons or MULTIPOLYGON EMPTY, found ''"),
        ("POLYGON ((0 0,\n1", r"found 'POLYGON ((0 0,\n1'"),
        ("MULTIPOINT (1 1, 2 2)", "expected polygons, found a Point in 'MULTIPOINT (1 1, 2 2)'; draw areas"),
        (shapely.LineString([(0, 0), (1, 1)]), "found a LineString in 'LINESTRING (0 0, 1 1)'"),
        ("POLYGON ((0 0, NaN 1, 1 1, 0 0))", "expected finite coordinates, found NaN or infinity in 'POLYGON"),
        ("CIRCULARSTRING (0 0, 1 1, 2 0)", "expected"),
        ("CURVEPOLYGON (CIRCULARSTRING (0 0, 2 0, 2 2, 0 2, 0 0))", "expected"),
    ],
)
def test_what_has_no_areas_is_named(shape: Any, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        polygons_of(shape)
    assert reason in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


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
