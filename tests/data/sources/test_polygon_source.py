"""Rasters with one file of polygons: in any CRS they cover the same pixels; what is doubtful is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shapely import Polygon, affinity, box

from maskloom.data.sources.base import DataSettings, DataSource
from maskloom.data.sources.polygons import open_polygons, recognise
from maskloom.data.truth import read_truth
from maskloom.encodings.vector_files import Feature
from maskloom.errors import BadFile, UserError
from maskloom.outputs.vectors import write_features
from maskloom.rasters.georeference import Georeference, reprojected, to_crs
from maskloom.rasters.writing import write_geotiff
from maskloom.records import Record

SIZE = (20, 30)
PLACE = Georeference("EPSG:32633", (2.0, 0.0, 500_000.0, 0.0, -2.0, 5_000_000.0))
EAST = Georeference("EPSG:32633", (2.0, 0.0, 500_060.0, 0.0, -2.0, 5_000_000.0))
"""Right beside it."""


def raster(path: Path, place: Georeference | None = PLACE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_geotiff(path, np.zeros((3, *SIZE), np.uint8), place)
    return path


def square(left: float, top: float, right: float, bottom: float, place: Georeference = PLACE) -> Polygon:
    """Returns a box in pixels of a raster, on the ground."""
    return to_crs([box(left, top, right, bottom)], place)[0]


def vectors(path: Path, *shapes: tuple[str, Polygon], crs: str | None = "EPSG:32633", **attributes: Any) -> Path:
    """Writes a file of features with a class each, in ``crs``, given in that of the rasters."""
    moved = [reprojected([shape], "EPSG:32633", crs)[0] if crs else shape for _, shape in shapes]
    features = [Feature(shape, name, "", attributes) for (name, _), shape in zip(shapes, moved, strict=True)]
    write_features(path, features, crs=crs)
    return path


def opened(path: Path, **settings: object) -> DataSource:
    return open_polygons(path, DataSettings.model_validate(settings))


def truth(source: DataSource, record: Record) -> np.ndarray:
    return read_truth(record, source.task, source.coding)


def pixels(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = 1
    return mask


@pytest.mark.parametrize("name", ["truth.geojson", "truth.gpkg", "truth.fgb"])
@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326", "EPSG:3035", "EPSG:3857"])
def test_the_same_pixels_in_every_crs_and_kind_of_file(tmp_path: Path, name: str, crs: str) -> None:
    if not name.endswith("json"):
        pytest.importorskip("pyogrio")
    raster(tmp_path / "a.tif")
    vectors(tmp_path / name, ("", square(3, 4, 10, 9)), ("", square(8, 2, 12, 6)), crs=crs)
    assert recognise(tmp_path, DataSettings())
    source = opened(tmp_path)
    assert (source.layout, source.task.kind, source.task.classes) == ("polygons", "binary", ("foreground",))
    (record,) = source.records
    assert (record.id, record.size, record.group) == ("a", SIZE, "a")
    assert np.array_equal(truth(source, record), pixels((3, 4, 10, 9), (8, 2, 12, 6)))
    assert DataSource.from_json(source.to_json(), tmp_path) == source


def test_a_polygon_over_two_rasters_is_cut_between_them_and_a_raster_without_one_is_unlabelled(tmp_path: Path) -> None:
    raster(tmp_path / "images" / "west" / "a.tif")
    raster(tmp_path / "images" / "b.tif", EAST)
    raster(tmp_path / "images" / "c.tif", Georeference("EPSG:32633", (2.0, 0.0, 600_000.0, 0.0, -2.0, 5_000_000.0)))
    vectors(tmp_path / "truth.geojson", ("house", square(25, 5, 35, 8)), crs="EPSG:4326")
    source = opened(tmp_path)
    assert {record.id: record.attributes.get("folder") for record in source.records} == {"b": None, "west/a": "west"}
    found = {record.id: truth(source, record) for record in source.records}
    assert np.array_equal(found["west/a"], pixels((25, 5, 30, 8)))
    assert np.array_equal(found["b"], pixels((0, 5, 5, 8)))
    assert [record.id for record in source.unlabelled] == ["c"]
    assert source.task.classes == ("house",)


def test_a_polygon_that_ends_where_a_raster_begins_labels_only_its_own(tmp_path: Path) -> None:
    raster(tmp_path / "a.tif")
    raster(tmp_path / "b.tif", EAST)
    vectors(tmp_path / "truth.geojson", ("", square(20, 5, 30, 8)), crs="EPSG:4326")
    source = opened(tmp_path)
    assert [record.id for record in source.records] == ["a"]


def test_a_polygon_as_large_as_a_country_is_cut_off_before_it_is_moved(tmp_path: Path) -> None:
    raster(tmp_path / "a.tif")
    land = box(5, 30, 25, 60)  # degrees; the hole is the middle of the raster
    left, bottom, right, top = reprojected([square(10, 5, 20, 10)], "EPSG:32633", "EPSG:4326")[0].bounds
    hole = box(left, bottom, right, top)
    write_features(tmp_path / "truth.geojson", [Feature(land - hole, "", "")], crs="EPSG:4326")
    source = opened(tmp_path)
    assert np.array_equal(truth(source, source.records[0]), 1 - pixels((10, 5, 20, 10)))


def test_classes_that_exclude_each_other_are_painted_in_their_order(tmp_path: Path) -> None:
    raster(tmp_path / "a.tif")
    shapes = [("road", square(0, 0, 30, 10)), ("house", square(5, 0, 10, 10)), ("road", square(5, 4, 10, 6))]
    vectors(tmp_path / "truth.geojson", *shapes)
    source = opened(tmp_path, task="multiclass")
    assert source.task.classes == ("background", "house", "road")
    expected = 2 * pixels((0, 0, 30, 10))
    expected[:, 5:10] = pixels((5, 0, 10, 10))[:, 5:10]
    expected[4:6, 5:10] = 2
    assert np.array_equal(truth(source, source.records[0]), expected)


def test_classes_that_overlap_are_layers(tmp_path: Path) -> None:
    raster(tmp_path / "a.tif")
    vectors(tmp_path / "truth.geojson", ("tree", square(0, 0, 10, 10)), ("house", square(5, 5, 15, 15)))
    source = opened(tmp_path)
    assert (source.task.kind, source.task.classes) == ("multilabel", ("house", "tree"))
    assert np.array_equal(truth(source, source.records[0]), np.stack([pixels((5, 5, 15, 15)), pixels((0, 0, 10, 10))]))


@pytest.mark.parametrize("stated", ["yaml", "settings"])
def test_classes_are_stated_and_an_attribute_holds_names_or_values(tmp_path: Path, stated: str) -> None:
    raster(tmp_path / "a.tif")
    shapes = [
        Feature(square(0, 0, 5, 5), "", "", {"Landuse": "road"}),
        Feature(square(9, 9, 12, 12), "", "", {"Landuse": 1}),
    ]
    write_features(tmp_path / "truth.geojson", shapes, crs="EPSG:32633")
    settings: dict[str, object] = {"classes": ["none", "house", "road"], "column": "landuse"}
    if stated == "yaml":
        lines = "classes: [none, house, road]\ncolumn: landuse\ntask: multilabel\n"
        (tmp_path / "classes.yaml").write_text(lines.replace("none", "'none'"))
        settings = {}
    source = opened(tmp_path, **settings)
    assert source.task.kind == ("multilabel" if stated == "yaml" else "multiclass")
    found = truth(source, source.records[0])
    houses = found[0] == 1 if stated == "yaml" else found == 1
    roads = found[1] == 1 if stated == "yaml" else found == 2
    assert np.array_equal(houses, pixels((9, 9, 12, 12))) and np.array_equal(roads, pixels((0, 0, 5, 5)))


def test_the_settings_rename_what_classes_yaml_names(tmp_path: Path) -> None:
    raster(tmp_path / "a.tif")
    vectors(tmp_path / "truth.geojson", ("3", square(0, 0, 5, 5)), ("7", square(9, 9, 12, 12)))
    (tmp_path / "classes.yaml").write_text("classes: {house: 3, road: 7}\n")
    assert opened(tmp_path).task.classes == ("background", "house", "road")
    assert opened(tmp_path, classes=["Haus", "Weg"]).task.classes == ("background", "Haus", "Weg")
    with pytest.raises(UserError, match=r"expected 2 names as in classes.yaml, found Haus"):
        opened(tmp_path, classes=["Haus"])


def test_without_a_column_all_polygons_are_of_one_class(tmp_path: Path) -> None:
    raster(tmp_path / "a.tif")
    vectors(tmp_path / "truth.geojson", ("flat", square(0, 0, 5, 5)), ("gable", square(9, 9, 12, 12)))
    source = opened(tmp_path, column="", classes=["house"])
    assert source.task.classes == ("house",)
    assert np.array_equal(truth(source, source.records[0]), pixels((0, 0, 5, 5), (9, 9, 12, 12)))


def test_features_that_name_a_raster_are_its_own_and_empty_ones_say_that_there_is_nothing(tmp_path: Path) -> None:
    for name in ("spring", "autumn", "winter", "summer"):
        raster(tmp_path / f"{name}.tif")
    shapes = [
        Feature(square(0, 0, 5, 5), "crop", "spring"),
        Feature(square(9, 9, 12, 12), "crop", "autumn.tif"),
        Feature(Polygon(), "", "winter"),
        Feature(square(1, 1, 2, 2), "crop", "elsewhere"),
    ]
    write_features(tmp_path / "truth.geojson", shapes, crs="EPSG:32633")
    source = opened(tmp_path)
    found = {record.id: truth(source, record) for record in source.records}
    assert sorted(found) == ["autumn", "spring", "winter"]
    assert np.array_equal(found["spring"], pixels((0, 0, 5, 5)))
    assert np.array_equal(found["autumn"], pixels((9, 9, 12, 12)))
    assert not found["winter"].any()
    assert [record.id for record in source.unlabelled] == ["summer"]


def test_rasters_of_the_same_ground_are_one_group_neighbours_are_not(tmp_path: Path) -> None:
    raster(tmp_path / "spring.tif")
    raster(tmp_path / "autumn.tif", Georeference("EPSG:32633", (2.0, 0.0, 500_004.0, 0.0, -2.0, 5_000_004.0)))
    raster(tmp_path / "beside.tif", EAST)
    vectors(tmp_path / "truth.geojson", ("", square(3, 4, 10, 9)), ("", square(1, 1, 5, 5, EAST)))
    source = opened(tmp_path)
    groups = {record.id: record.group for record in source.records}
    assert groups["spring"] == groups["autumn"] != groups["beside"]
    assert any("1 of 3 rasters show the ground of another one" in note for note in source.notes)


def test_a_raster_whose_features_lie_elsewhere_is_not_taken_for_empty(tmp_path: Path) -> None:
    raster(tmp_path / "a.tif")
    raster(tmp_path / "b.tif", EAST)
    shapes = [Feature(square(0, 0, 5, 5), "", "a"), Feature(square(0, 0, 5, 5), "", "b")]
    write_features(tmp_path / "truth.geojson", shapes, crs="EPSG:32633")
    source = opened(tmp_path, skip_bad=True)
    assert ([each.id for each in source.records], [each.id for each in source.unlabelled]) == (["a"], ["b"])


def test_a_name_that_two_rasters_have_is_refused_a_whole_id_is_not(tmp_path: Path) -> None:
    for year in ("2019", "2020"):
        raster(tmp_path / year / "t1.tif")
    write_features(tmp_path / "truth.geojson", [Feature(square(0, 0, 5, 5), "", "t1.tif")], crs="EPSG:32633")
    with pytest.raises(BadFile, match=r"'t1\.tif', which several rasters are called"):
        opened(tmp_path)
    write_features(tmp_path / "truth.geojson", [Feature(square(0, 0, 5, 5), "", "2020/t1")], crs="EPSG:32633")
    assert [record.id for record in opened(tmp_path).records] == ["2020/t1"]


@pytest.mark.parametrize("name", ["http://127.0.0.1:9/x", "/vsicurl/http://127.0.0.1:9/x", "/etc/hostname", "x.prj"])
def test_a_crs_is_never_looked_up_elsewhere(tmp_path: Path, name: str) -> None:
    raster(tmp_path / "a.tif")
    content = json.loads(vectors(tmp_path / "truth.geojson", ("", square(0, 0, 5, 5))).read_text())
    content["crs"] = {"type": "name", "properties": {"name": name}}
    (tmp_path / "truth.geojson").write_text(json.dumps(content))
    with pytest.raises(UserError, match="expected a CRS such as"):
        opened(tmp_path)


@pytest.mark.parametrize("damage", ["digits", "surrogate"])
def test_odd_json_is_one_line(tmp_path: Path, damage: str) -> None:
    raster(tmp_path / "a.tif")
    file = vectors(tmp_path / "truth.geojson", ("", square(0, 0, 5, 5)))
    content = json.loads(file.read_text())
    content["features"][0]["properties"]["image"] = "\ud800" if damage == "surrogate" else 12345
    text = json.dumps(content)
    file.write_text(text.replace("12345", "9" * 5000) if damage == "digits" else text)
    with pytest.raises(BadFile) as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)


def test_names_of_other_things_are_no_rasters(tmp_path: Path) -> None:
    raster(tmp_path / "a.tif")
    write_features(tmp_path / "truth.geojson", [Feature(square(0, 0, 5, 5), "", "survey 12")], crs="EPSG:32633")
    source = opened(tmp_path)
    assert [record.id for record in source.records] == ["a"]
    assert any("name images that are not here ('survey 12' …)" in note for note in source.notes)


def test_rings_that_touch_themselves_are_mended_and_said(tmp_path: Path) -> None:
    raster(tmp_path / "a.tif")
    left, top = 500_000, 5_000_000
    bow = [[left, top], [left + 20, top - 20], [left + 20, top], [left, top - 20], [left, top]]
    content = {
        "type": "FeatureCollection",
        "crs": {"type": "name", "properties": {"name": "EPSG:32633"}},
        "features": [{"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [bow]}}],
    }
    (tmp_path / "truth.geojson").write_text(json.dumps(content))
    source = opened(tmp_path)
    assert "truth.geojson: 1 of 1 features cross or touch themselves; repaired: feature 1" in source.notes
    found = truth(source, source.records[0])
    assert found[5, 0] and found[5, 9] and not found[1, 5] and not found[8, 5]


def _no_crs(folder: Path) -> None:
    vectors(folder / "truth.geojson", ("", square(0, 0, 5, 5)), crs=None)


def _raster_without_crs(folder: Path) -> None:
    vectors(folder / "truth.geojson", ("", square(0, 0, 5, 5)))
    raster(folder / "b.tif", None)


def _some_outside(folder: Path) -> None:
    shapes = [("", square(0, 0, 5, 5)), ("", square(50, 0, 55, 5)), ("", square(90, 0, 95, 5))]
    vectors(folder / "truth.geojson", *shapes)


def _all_outside(folder: Path) -> None:
    vectors(folder / "truth.geojson", ("", affinity.translate(square(0, 0, 5, 5), 10_000, 0)))


def _point(folder: Path) -> None:
    content = {"type": "FeatureCollection", "features": [_feature({"type": "Point", "coordinates": [15, 45]})]}
    (folder / "truth.geojson").write_text(json.dumps(content))


def _feature(geometry: dict[str, Any], **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "properties": properties, "geometry": geometry}


def _meters_as_degrees(folder: Path) -> None:
    ring = [[500_000, 5_000_000], [500_010, 5_000_000], [500_010, 4_999_990], [500_000, 5_000_000]]
    content = {"type": "FeatureCollection", "features": [_feature({"type": "Polygon", "coordinates": [ring]})]}
    (folder / "truth.geojson").write_text(json.dumps(content))


def _unknown_class(folder: Path) -> None:
    vectors(folder / "truth.geojson", ("house", square(0, 0, 5, 5)), ("hause", square(6, 6, 9, 9)))
    (folder / "classes.yaml").write_text("classes: [house, road]\n")


def _no_class(folder: Path) -> None:
    vectors(folder / "truth.geojson", ("house", square(0, 0, 5, 5)), ("", square(6, 6, 9, 9)))


def _no_column(folder: Path) -> None:
    vectors(folder / "truth.geojson", ("", square(0, 0, 5, 5)), landcover="house")
    (folder / "classes.yaml").write_text("classes: [house, road]\n")


def _misspelt_column(folder: Path) -> None:
    vectors(folder / "truth.geojson", ("", square(0, 0, 5, 5)), landcover="house")
    (folder / "classes.yaml").write_text("classes: [house, road]\ncolumn: landcovr\n")


def _colours(folder: Path) -> None:
    vectors(folder / "truth.geojson", ("house", square(0, 0, 5, 5)))
    (folder / "classes.yaml").write_text("classes: {house: [255, 0, 0]}\n")


def _several(folder: Path) -> None:
    vectors(folder / "truth.geojson", ("", square(0, 0, 5, 5)))
    vectors(folder / "other.geojson", ("", square(0, 0, 5, 5)))


def _nothing(folder: Path) -> None:
    write_features(folder / "truth.geojson", [], crs="EPSG:32633")


def _background(folder: Path) -> None:
    vectors(folder / "truth.geojson", ("background", square(0, 0, 5, 5)), ("house", square(6, 6, 9, 9)))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_no_crs, "expected polygons with a CRS, found none"),
        (_raster_without_crs, "b.tif: expected a raster with a CRS, found none"),
        (_some_outside, r"2 of 3 features lie outside every raster \(feature 2, feature 3\)"),
        (_all_outside, "found all 1 outside every one of 1; they span 510000 to 510010 east"),
        (_point, "feature 1: expected polygons, found a Point"),
        (_meters_as_degrees, "expected longitudes and latitudes.* found coordinates of up to 5000000"),
        (_unknown_class, r"feature 2: found the class 'hause', which is not stated \(did you mean 'house'\?\)"),
        (_no_class, "feature 2: found no class"),
        (_no_column, "expected an attribute that holds one of 2 classes, found that it goes by none of class, "),
        (_misspelt_column, "expected the attribute 'landcovr' .* did you mean 'landcover'?"),
        (_colours, "polygons, which have no colours"),
        (_several, "expected one file of polygons, found 2"),
        (_nothing, "expected polygons, found none"),
        (_background, "found a class 'background', which is what nothing covers"),
    ],
)
def test_what_is_doubtful_is_refused_in_one_line(tmp_path: Path, make: Callable[[Path], None], reason: str) -> None:
    raster(tmp_path / "a.tif")
    make(tmp_path)
    with pytest.raises(UserError, match=reason) as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)


def test_bad_rasters_and_features_outside_can_be_left_out(tmp_path: Path) -> None:
    raster(tmp_path / "a.tif")
    raster(tmp_path / "b.tif", None)
    (tmp_path / "c.tif").write_bytes(b"II*\0 and no more")
    _some_outside(tmp_path)
    source = opened(tmp_path, skip_bad=True)
    assert [record.id for record in source.records] == ["a"]
    places = [problem.path.name for problem in source.problems if isinstance(problem, BadFile)]
    assert places == ["b.tif", "c.tif", "truth.geojson"]


def test_a_raster_that_lies_nowhere_is_to_blame_itself_and_can_be_left_out(tmp_path: Path) -> None:
    raster(tmp_path / "a.tif")
    raster(tmp_path / "b.tif", Georeference("EPSG:4326", PLACE.transform))  # metres that are called degrees
    vectors(tmp_path / "truth.geojson", ("", square(3, 4, 10, 9)))
    with pytest.raises(BadFile, match=r"b\.tif: expected .* somewhere in EPSG:32633.* correct the wrong CRS"):
        opened(tmp_path)
    source = opened(tmp_path, skip_bad=True)
    assert [record.id for record in source.records] == ["a"]
    assert [problem.path.name for problem in source.problems if isinstance(problem, BadFile)] == ["b.tif"]


def test_the_plane_of_a_site_needs_no_place_on_the_globe(tmp_path: Path) -> None:
    site = 'LOCAL_CS["site",UNIT["metre",1]]'
    for name, left in (("a", 0.0), ("b", 4.0), ("c", 60.0)):
        raster(tmp_path / f"{name}.tif", Georeference(site, (2.0, 0.0, left, 0.0, -2.0, 40.0)))
    write_features(tmp_path / "truth.geojson", [Feature(box(6, 22, 20, 32), "", "")], crs=site)
    source = opened(tmp_path)
    groups = {record.id: record.group for record in (*source.records, *source.unlabelled)}
    assert groups["a"] == groups["b"] != groups["c"]
    assert np.array_equal(truth(source, source.records[0]), pixels((3, 4, 10, 9)))


def test_one_of_several_files_is_chosen_and_predictions_are_no_rasters(tmp_path: Path) -> None:
    raster(tmp_path / "a.tif")
    for folder, mark in (("out", ".maskloom.json"), ("runs", "run.json")):
        raster(tmp_path / folder / "deeper" / "a.tif")
        (tmp_path / folder / mark).write_text("{}")
    _several(tmp_path)
    source = opened(tmp_path, masks="other.geojson")
    assert [record.id for record in source.records] == ["a"]
    assert not recognise(tmp_path, DataSettings(masks="masks"))
    with pytest.raises(UserError, match="found none"):
        opened(tmp_path, masks="missing.geojson")


def test_a_folder_without_rasters_or_polygons_is_none_of_these(tmp_path: Path) -> None:
    assert not recognise(tmp_path, DataSettings())
    _some_outside(tmp_path)
    assert not recognise(tmp_path, DataSettings())
    with pytest.raises(UserError, match="expected TIFF rasters"):
        opened(tmp_path)
