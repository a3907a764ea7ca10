"""Features through every kind of file and back, and what is said of files that are not as they should be."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import shapely
from shapely import MultiPolygon, Polygon, box

from maskloom.encodings import vector_files
from maskloom.encodings.vector_files import DSTL_COLUMNS, Feature, is_wkt_table, read_features
from maskloom.errors import BadFile, UserError
from maskloom.files import TEMPORARY_PREFIX
from maskloom.outputs.vectors import write_features
from maskloom.rasters.georeference import same_crs

HOLED = Polygon(box(0.1, 0, 7, 9).exterior, [box(2, 2, 3, 4.25).exterior])
PAIR = MultiPolygon([box(20, 1, 30, 2), box(40, 1 / 3, 50, 2)])
FEATURES = [
    Feature(HOLED, "house", "scenes/a", {"score": 0.5, "storeys": 2, "sold": True, "owner": "Žofie"}),
    Feature(PAIR, "road", "scenes/a", {"score": 1, "storeys": None}),
    Feature(MultiPolygon(), "", "b"),
]
FILES = ["out.geojson", "out.gpkg", "out.fgb", "out.csv", "out.csv.gz"]


def same(feature: Feature) -> tuple[str, str, str]:
    return feature.image, feature.class_name, shapely.normalize(MultiPolygon(parts(feature))).wkt


def parts(feature: Feature) -> list[Polygon]:
    return shapely.get_parts(feature.geometry).tolist()


@pytest.mark.parametrize("name", FILES)
def test_there_and_back(tmp_path: Path, name: str) -> None:
    notes: list[str] = []
    write_features(tmp_path / name, iter(FEATURES), crs=None)
    crs, features = read_features(tmp_path / name, note=notes.append)
    assert crs is None
    assert sorted(map(same, features)) == sorted(map(same, FEATURES))
    assert notes == [f"{name}: 1 of 3 features are empty"]
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", FILES[:3])
def test_attributes_come_back(tmp_path: Path, name: str) -> None:
    write_features(tmp_path / name, FEATURES, crs=None)
    found = {feature.class_name: feature.attributes for feature in read_features(tmp_path / name)[1]}
    assert found["house"] == {"score": 0.5, "storeys": 2, "sold": True, "owner": "Žofie"}
    assert found["road"]["score"] == 1
    assert found["road"]["storeys"] is None


@pytest.mark.parametrize("name", FILES[:3])
@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326"])
def test_the_crs_is_kept(tmp_path: Path, name: str, crs: str) -> None:
    write_features(tmp_path / name, FEATURES[:2], crs=crs)
    assert read_features(tmp_path / name)[0] == crs


@pytest.mark.parametrize("name", FILES[:3])
def test_a_crs_without_a_number_is_kept_as_wkt(tmp_path: Path, name: str) -> None:
    from rasterio.crs import CRS

    own = CRS.from_proj4("+proj=tmerc +lat_0=47.123 +lon_0=8.456 +k=1 +x_0=0 +y_0=0 +ellps=bessel +units=m")
    write_features(tmp_path / name, FEATURES[:1], crs=own.to_wkt())
    crs, features = read_features(tmp_path / name)
    assert crs is not None and CRS.from_user_input(crs) == own
    assert len(features) == 1


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326"])
def test_gdal_understands_our_geojson(tmp_path: Path, crs: str) -> None:
    pyogrio = pytest.importorskip("pyogrio.raw")
    write_features(tmp_path / "out.geojson", FEATURES[:2], crs=crs)
    facts, _, shapes, _ = pyogrio.read(tmp_path / "out.geojson")
    assert facts["crs"] == crs
    assert [shapely.from_wkb(shape).area for shape in shapes] == [HOLED.area, PAIR.area]


def test_geojson_of_wgs84_is_as_rfc_7946_wants_it(tmp_path: Path) -> None:
    write_features(tmp_path / "out.geojson", [Feature(shapely.reverse(HOLED), "house", "a")], crs="EPSG:4326")
    content = json.loads((tmp_path / "out.geojson").read_text())
    assert content.keys() == {"type", "features"}
    (feature,) = content["features"]
    assert feature["properties"] == {"image": "a", "class": "house"}
    outer, inner = (shapely.LinearRing(ring) for ring in feature["geometry"]["coordinates"])
    assert outer.is_ccw and not inner.is_ccw


def test_nothing_at_all_is_a_file_too(tmp_path: Path) -> None:
    for name in FILES:
        write_features(tmp_path / name, [], crs=None)
        assert read_features(tmp_path / name) == (None, [])


def test_a_table_in_the_columns_of_a_contest(tmp_path: Path) -> None:
    features = [Feature(box(0, 0, 1, 1), "1", "6120_2_4"), Feature(MultiPolygon(), "2", "6120_2_4")]
    write_features(tmp_path / "sub.csv.gz", features, crs=None, columns=DSTL_COLUMNS)
    assert gzip.decompress((tmp_path / "sub.csv.gz").read_bytes()).decode().splitlines() == [
        "ImageId,ClassType,MultipolygonWKT",
        '6120_2_4,1,"MULTIPOLYGON (((1 0, 1 1, 0 1, 0 0, 1 0)))"',
        "6120_2_4,2,MULTIPOLYGON EMPTY",
    ]
    assert is_wkt_table(tmp_path / "sub.csv.gz")


@pytest.mark.parametrize("name", [name for name in FILES if name != "out.csv"])
def test_equal_features_give_equal_bytes_whenever_they_are_written(tmp_path: Path, name: str) -> None:
    written = []
    for _ in range(2):
        write_features(tmp_path / name, FEATURES, crs=None)
        written.append((tmp_path / name).read_bytes())
        time.sleep(0.005)  # GeoPackages tell the time in milliseconds
    assert written[0] == written[1]


def test_a_date_that_the_user_has_chosen_stands_in_a_geopackage(tmp_path: Path) -> None:
    pyogrio = pytest.importorskip("pyogrio")
    option, date = "OGR_CURRENT_DATE", "2001-02-03T04:05:06.000Z"
    write_features(tmp_path / "out.gpkg", FEATURES, crs=None)
    assert b"1970-01-01T00:00:00.000Z" in (tmp_path / "out.gpkg").read_bytes()
    assert pyogrio.get_gdal_config_option(option) is None  # other writers have their own time
    pyogrio.set_gdal_config_options({option: date})
    try:
        write_features(tmp_path / "out.gpkg", FEATURES, crs=None)
        assert pyogrio.get_gdal_config_option(option) == date
    finally:
        pyogrio.set_gdal_config_options({option: None})
    assert date.encode() in (tmp_path / "out.gpkg").read_bytes()


def test_a_table_of_run_lengths_is_no_table_of_wkt(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text("img,rle_mask\na,1 2\n")
    assert not is_wkt_table(tmp_path / "runs.csv")


@pytest.mark.parametrize("name", FILES)
def test_a_failure_leaves_the_old_file(tmp_path: Path, name: str) -> None:
    def failing() -> Any:
        yield FEATURES[0]
        raise RuntimeError("power cut")

    (tmp_path / name).write_text("old")
    with pytest.raises(RuntimeError, match="power cut"):
        write_features(tmp_path / name, failing(), crs=None)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "old")]


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a file ending in"):
        write_features(tmp_path / "out.shp", FEATURES, crs=None)
    with pytest.raises(UserError, match="cannot hold the CRS EPSG:32633"):
        write_features(tmp_path / "out.csv", FEATURES, crs="EPSG:32633")
    for name in FILES[:3]:
        with pytest.raises(UserError, match=r"CRS|written") as caught:
            write_features(tmp_path / name, FEATURES, crs="EPSG:nonsense")
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.gpkg", "a.fgb"])
@pytest.mark.parametrize(("free", "said"), [(1000, "the disk is full; free some space"), (2**40, "written as")])
def test_gdal_that_gives_up_for_lack_of_room_is_told_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, free: int, said: str
) -> None:
    pyogrio = pytest.importorskip("pyogrio")

    def failing(path: Path, *_: Any, **__: Any) -> None:
        raise RuntimeError(f"{path}: no such table: gpkg_contents")

    monkeypatch.setattr(pyogrio.raw, "write", failing)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(UserError, match=said) as caught:
        write_features(tmp_path / name, FEATURES, crs="EPSG:32633")
    assert TEMPORARY_PREFIX not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_features_are_checked_when_made() -> None:
    with pytest.raises(ValueError, match="Polygon"):
        Feature(shapely.Point(0, 0), "house", "a")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="cannot name an output file"):
        Feature(HOLED, "house", "../a")


def test_without_pyogrio_geojson_still_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_features(tmp_path / "there.gpkg", FEATURES, crs=None)
    monkeypatch.setitem(sys.modules, "pyogrio", None)
    monkeypatch.setitem(sys.modules, "pyogrio.raw", None)
    write_features(tmp_path / "out.geojson", FEATURES, crs=None)
    assert len(read_features(tmp_path / "out.geojson")[1]) == 3
    for name in ("out.gpkg", "out.fgb"):
        with pytest.raises(UserError, match=r"pip install maskloom\[vector\]"):
            write_features(tmp_path / name, FEATURES, crs=None)
    with pytest.raises(UserError, match=r"pip install maskloom\[vector\]"):
        read_features(tmp_path / "there.gpkg")


# --- files of others -------------------------------------------------------------------------------------------------


def collection(geometry: Any, **properties: Any) -> dict[str, Any]:
    return {
        "type": "FeatureCollection",
        "features": [{"type": "Feature", "properties": properties, "geometry": geometry}],
    }


def polygon(*points: tuple[Any, ...]) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [points]}


SQUARE = polygon((0, 0), (4, 0), (4, 4), (0, 4), (0, 0))


def written(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_geojson_as_others_write_it(tmp_path: Path) -> None:
    tall = polygon((0, 0, 7), (4, 0, 7), (4, 4, 7), (0, 4, 7), (0, 0, 7))
    path = written(tmp_path / "in.geojson", collection(tall, Label="roof", tags=["a", "b"], IMAGE=12))
    crs, (feature,) = read_features(path)
    assert crs == "EPSG:4326"
    assert (feature.class_name, feature.image) == ("roof", "12")
    assert feature.attributes == {"tags": '["a", "b"]'}
    assert not feature.geometry.has_z and feature.geometry.area == 16


def test_geojson_without_fields_or_areas(tmp_path: Path) -> None:
    content = collection(SQUARE)
    content["features"] += [{"type": "Feature", "properties": None, "geometry": None}]
    content["features"] += collection({"type": "GeometryCollection", "geometries": []})["features"]
    notes: list[str] = []
    _, features = read_features(written(tmp_path / "in.geojson", content), note=notes.append)
    assert [(each.image, each.class_name, each.geometry.area) for each in features] == [
        ("", "", 16),
        *[("", "", 0)] * 2,
    ]
    assert notes == ["in.geojson: 2 of 3 features are empty"]


@pytest.mark.parametrize(
    ("member", "expected"),
    [
        ({"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}, "EPSG:4326"),
        ({"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}, "EPSG:32633"),
        ({"type": "name", "properties": {"name": "EPSG:3857"}}, "EPSG:3857"),
        (None, None),
    ],
)
def test_the_older_member_crs(tmp_path: Path, member: Any, expected: str | None) -> None:
    path = written(tmp_path / "in.geojson", {"crs": member, **collection(SQUARE)})
    assert read_features(path)[0] == expected


def test_rings_without_area_are_told_from_empty_features_and_repaired_ones(tmp_path: Path) -> None:
    rings = ["POLYGON ((0 0, 4 4, 0 0))", "POLYGON EMPTY", "POLYGON ((0 0, 4 4, 4 0, 0 4, 0 0))"]
    (tmp_path / "in.csv").write_text("id,wkt\n" + "".join(f'a,"{ring}"\n' for ring in rings))
    notes: list[str] = []
    read_features(tmp_path / "in.csv", note=notes.append)
    assert notes == [
        "in.csv: 1 of 3 features are empty",
        "in.csv: 1 of 3 features are rings without area, taken as empty: row 2",
        "in.csv: 1 of 3 features cross or touch themselves; repaired: row 4",
    ]


def test_a_crs_that_is_none_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    for judge in (vector_files.parsed_crs, lambda crs: same_crs(crs, "EPSG:4326")):
        with pytest.raises(UserError, match="EPSG:99999"):
            judge("EPSG:99999")
    assert capfd.readouterr() == ("", "")  # GDAL says nothing by itself


def test_rings_that_cross_or_touch_are_repaired_and_counted(tmp_path: Path) -> None:
    bow_tie = polygon((0, 0), (2, 2), (2, 0), (0, 2), (0, 0))
    content = collection(bow_tie, image="a")
    touching = polygon((0, 0), (4, 0), (4, 2), (2, 0), (0, 4), (0, 0))
    content["features"] += collection(touching)["features"] + collection(SQUARE)["features"]
    notes: list[str] = []
    _, features = read_features(written(tmp_path / "in.geojson", content), note=notes.append)
    assert [each.geometry.area for each in features] == pytest.approx([2, 6, 16])
    assert all(each.geometry.is_valid for each in features)
    assert notes == ["in.geojson: 2 of 3 features cross or touch themselves; repaired: feature 1, feature 2"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "expected GeoJSON, found something else or a part"),
        ('{"type": "FeatureCollection", "features": [{"type"', "expected GeoJSON, found something else or a part"),
        ("[" * 100_000, "expected GeoJSON, found something else or a part"),
        ([], "expected a GeoJSON FeatureCollection, found 'list'"),
        (SQUARE, "expected a GeoJSON FeatureCollection, found 'Polygon'"),
        ({"features": [7]}, "feature 1: expected GeoJSON polygons"),
        (
            collection({"type": "Point", "coordinates": [0, 0]}),
            "feature 1: expected polygons, found a Point in 'POINT (0 0)'; draw areas",
        ),
        (collection({"type": "Polygon"}), "feature 1: expected GeoJSON polygons"),
        (collection(polygon((0, 0), (1, 1))), "feature 1: expected GeoJSON polygons"),
        (collection(polygon((0, 0), (1, "a"), (1, 1), (0, 0))), "feature 1: expected GeoJSON polygons"),
        (collection(polygon((0, 0), (float("nan"), 1), (1, 1), (0, 0))), "feature 1: expected"),
        (collection(SQUARE, image="../../etc/passwd"), "cannot name an output file"),
        ({"crs": {"type": "link"}, **collection(SQUARE)}, "expected 'crs' with a name"),
        ({"crs": {"properties": {"name": "moon"}}, **collection(SQUARE)}, "expected a CRS"),
    ],
)
def test_bad_geojson_is_refused(tmp_path: Path, content: Any, reason: str) -> None:
    with pytest.raises(BadFile) as caught:
        read_features(written(tmp_path / "in.geojson", content))
    assert reason in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "expected columns such as id,class,wkt"),
        ("a,b\n", "found a,b"),
        ("id,class,wkt\na,1\n", "expected 3 columns in row 2, found 2"),
        ("id,class,wkt\na,1,POLYGON((0 0\n", "row 2: expected WKT polygons"),
        ("id,class,wkt\na,1,\n", "row 2: expected WKT polygons"),
        ("id,class,wkt\na,1,POINT (1 1)\n", "row 2: expected polygons, found a Point"),
        ('id,class,wkt\na,1,"POLYGON ((0 0, nan 1, 1 1, 0 0))"\n', "row 2: expected finite coordinates"),
        ("id,class,wkt\n/a,1,POLYGON EMPTY\n", "row 2: id '/a' cannot name"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, content: str, reason: str) -> None:
    with pytest.raises(BadFile) as caught:
        read_features(written(tmp_path / "in.csv", content))
    assert reason in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["GEOMETRYCOLLECTION EMPTY", "MULTIPOLYGON EMPTY", "POLYGON EMPTY"])
def test_every_kind_of_nothing(tmp_path: Path, text: str) -> None:
    path = written(tmp_path / "in.csv", f"ImageId,ClassType,MultipolygonWKT\n6120_2_4,7,{text}\n")
    ((feature,),) = (read_features(path)[1],)
    assert (feature.image, feature.class_name, feature.geometry.is_empty) == ("6120_2_4", "7", True)


def test_overlapping_parts_of_a_row_are_united(tmp_path: Path) -> None:
    text = MultiPolygon([box(0, 0, 2, 2), box(1, 0, 3, 2)]).wkt
    (feature,) = read_features(written(tmp_path / "in.csv", f'id,wkt,score\na,"{text}",0.5\n'))[1]
    assert (feature.geometry.area, feature.class_name, feature.attributes) == (6, "", {"score": "0.5"})


@pytest.mark.parametrize("name", ["in.gpkg", "in.fgb"])
def test_damaged_layers_are_refused(tmp_path: Path, name: str) -> None:
    write_features(tmp_path / name, FEATURES, crs="EPSG:32633")
    whole = (tmp_path / name).read_bytes()
    for content in (b"some text", b"", whole[: len(whole) // 2]):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadFile, match="expected") as caught:
            read_features(tmp_path / name)
        assert "\n" not in str(caught.value)


VRT = '<OGRVRTDataSource><OGRVRTLayer name="secret"><SrcDataSource>{}</SrcDataSource></OGRVRTLayer></OGRVRTDataSource>'


@pytest.mark.parametrize("name", ["in.gpkg", "in.fgb"])
@pytest.mark.parametrize("kind", ["vrt", "geojson", "the other"])
def test_content_of_another_kind_is_not_opened(tmp_path: Path, name: str, kind: str) -> None:
    """GDAL would: a text that names another file of the disk, for example."""
    pytest.importorskip("pyogrio")
    write_features(tmp_path / "secret.geojson", FEATURES[:1], crs=None)
    other = tmp_path / ("other.fgb" if name == "in.gpkg" else "other.gpkg")
    write_features(other, FEATURES[:1], crs=None)
    content = {
        "vrt": VRT.format(tmp_path / "secret.geojson").encode(),
        "geojson": (tmp_path / "secret.geojson").read_bytes(),
        "the other": other.read_bytes(),
    }[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadFile, match="found something else; save the layer") as caught:
        read_features(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_an_open_ring_is_one_line(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Of which GDAL warns, too, with an option of its own to be set."""
    pytest.importorskip("pyogrio")
    write_features(tmp_path / "in.fgb", [Feature(box(2, 3, 20, 15), "car", "a")], crs=None)
    ring = b"".join(struct.pack("<dd", *corner) for corner in box(2, 3, 20, 15).exterior.coords)
    data = (tmp_path / "in.fgb").read_bytes()
    assert data.count(ring) == 1
    (tmp_path / "in.fgb").write_bytes(data.replace(ring, ring[:-16] + struct.pack("<dd", 5, 5)))
    with pytest.raises(BadFile, match="expected polygons, found"):
        read_features(tmp_path / "in.fgb")
    assert not recwarn.list


def test_several_layers_are_refused(tmp_path: Path) -> None:
    import numpy as np
    import pyogrio.raw

    for layer in ("houses", "roads"):
        shapes = np.array([HOLED.wkb], dtype=object)
        pyogrio.raw.write(tmp_path / "in.gpkg", shapes, [], [], layer=layer, geometry_type="Polygon", crs="EPSG:32633")
    with pytest.raises(BadFile, match="expected one layer of polygons, found houses, roads"):
        read_features(tmp_path / "in.gpkg")


def test_curves_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A curve polygon (type 10) of one straight ring, as other programs keep it in a GeoPackage."""
    square = shapely.to_wkb(box(0, 0, 1, 1).exterior, byte_order=1)
    curve = struct.pack("<BII", 1, 10, 1) + square
    monkeypatch.setattr(vector_files, "read_layer", lambda path: (None, iter([(curve, {})])))
    with pytest.raises(BadFile, match=r"feature 1: expected polygons, found something else \(Nonlinear"):
        read_features(written(tmp_path / "in.gpkg", "a file"))


def test_geojson_for_which_there_is_no_memory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.geojson"
    write_features(path, FEATURES, crs=None)
    monkeypatch.setattr(vector_files, "json_budget", lambda: 100)
    with pytest.raises(
        BadFile, match=r"out\.geojson: expected GeoJSON of at most 100 bytes, .* memory now, found \d+; "
    ):
        read_features(path)


def test_size_budget_missing_files_and_other_kinds(tmp_path: Path) -> None:
    path = written(tmp_path / "in.geojson", collection(SQUARE))
    with pytest.raises(BadFile, match="at most 10 bytes"):
        read_features(path, max_bytes=10)
    with pytest.raises(BadFile, match="no such file"):
        read_features(tmp_path / "none.geojson")
    with pytest.raises(UserError, match="expected a file ending in"):
        read_features(written(tmp_path / "in.shp", "text"))
