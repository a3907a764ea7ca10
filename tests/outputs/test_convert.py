"""Masks through every kind of file and back: the same masks, the same numbers, the same place on the ground."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

from maskloom.api import convert, score
from maskloom.data.image_io import read_mask_values, write_png
from maskloom.encodings.rle import decode_runs, encode_runs
from maskloom.encodings.vector_files import Feature, read_features
from maskloom.errors import UserError
from maskloom.outputs import convert as convert_module
from maskloom.outputs import mask_sets
from maskloom.outputs.mask_sets import FolderMasks
from maskloom.outputs.polygon_sets import PolygonMasks
from maskloom.outputs.vectors import write_features
from maskloom.rasters.georeference import Georeference, read_georeference
from maskloom.rasters.writing import write_geotiff

RNG = np.random.default_rng(4)
SIZES = {"a": (24, 31), "deep/b": (17, 20), "c": (9, 40)}
PLACE = Georeference("EPSG:32633", (2.0, 0.0, 500_000.0, 0.0, -2.0, 100_000.0))
ELSEWHERE = Georeference("EPSG:32634", (2.0, 0.0, 500_000.0, 0.0, -2.0, 100_000.0))


def noise(size: tuple[int, int], values: int) -> np.ndarray:
    """Returns labels in blocks and single pixels: pieces that meet at corners, holes, full borders."""
    coarse = np.kron(RNG.integers(0, values, (size[0] // 4 + 1, size[1] // 4 + 1)), np.ones((4, 4)))
    labels = coarse[: size[0], : size[1]].astype(np.uint8)
    spots = RNG.random(size) < 0.1
    labels[spots] = RNG.integers(0, values, int(spots.sum()))
    return labels


BINARY = {name: noise(size, 2) * np.uint8(255) for name, size in SIZES.items()} | {"empty": np.zeros((5, 6), np.uint8)}
LABELS = {name: noise(size, 3) for name, size in SIZES.items()}


def folder(path: Path, masks: dict[str, np.ndarray]) -> Path:
    for name, mask in masks.items():
        write_png(path / f"{name}.png", mask)
    return path


def scenes(path: Path, masks: dict[str, np.ndarray], place: Georeference = PLACE) -> Path:
    for name, mask in masks.items():
        write_geotiff(path / f"{name}.tif", mask, place)
    return path


def same(found: Path, masks: dict[str, np.ndarray], suffix: str = ".png") -> None:
    assert sorted(path.relative_to(found).as_posix() for path in found.rglob(f"*{suffix}")) == sorted(
        name + suffix for name in masks
    )
    for name, mask in masks.items():
        stored = read_mask_values(found / f"{name}{suffix}")
        assert stored.dtype == mask.dtype and np.array_equal(stored, mask), name


# --- there and back --------------------------------------------------------------------------------------------------

WAYS: list[tuple[str, dict[str, Any]]] = [
    ("t.csv", {}),
    ("t.csv.gz", {"order": "column", "base": 0}),
    ("t.csv", {"to": "wkt"}),
    ("t.json", {}),
    ("t.geojson", {}),
    ("t.gpkg", {}),
    ("t.fgb", {}),
    ("again", {}),
]


@pytest.mark.parametrize(("name", "options"), WAYS, ids=[f"{name}-{len(options)}" for name, options in WAYS])
@pytest.mark.parametrize("masks", [BINARY, LABELS], ids=["binary", "labels"])
def test_png_to_every_kind_and_back(
    tmp_path: Path, name: str, options: dict[str, Any], masks: dict[str, np.ndarray]
) -> None:
    if name.endswith((".gpkg", ".fgb")):
        pytest.importorskip("pyogrio")
    source = folder(tmp_path / "in", masks)
    there = convert(source, tmp_path / name, **options)
    assert there.num_images == len(masks)
    options.pop("to", None)
    back = convert(there.out, tmp_path / "back", like=source, **options)
    assert back.num_images == len(masks)
    same(back.out, masks)


def test_geotiff_to_geojson_and_back_keeps_the_ground(tmp_path: Path) -> None:
    for kind, masks in (("binary", BINARY), ("labels", LABELS)):
        source = scenes(tmp_path / kind, masks)
        features = convert(source, tmp_path / f"{kind}.geojson").out
        crs, found = read_features(features)
        assert crs == "EPSG:32633"
        bounds = shapely.total_bounds([feature.geometry for feature in found])
        assert bounds[0] >= 500_000 and bounds[3] <= 100_000 and bounds[2] <= 500_000 + 2 * 40
        area = 4 * sum(np.count_nonzero(mask) for mask in masks.values())
        assert sum(feature.geometry.area for feature in found) == pytest.approx(area)
        back = convert(features, tmp_path / f"{kind}-back", like=source, to="geotiff").out
        same(back, masks, ".tif")
        assert all(read_georeference(back / f"{name}.tif") == PLACE for name in masks)


def test_a_png_takes_the_place_of_its_image(tmp_path: Path) -> None:
    images = scenes(tmp_path / "images", {name: np.zeros((*mask.shape,), np.uint8) for name, mask in BINARY.items()})
    masks = folder(tmp_path / "masks", BINARY)
    back = convert(masks, tmp_path / "tif", like=images, to="geotiff").out
    same(back, BINARY, ".tif")
    assert read_georeference(back / "deep" / "b.tif") == PLACE
    one = convert(folder(tmp_path / "one", {"other": BINARY["a"]}), tmp_path / "one.geojson", like=images / "a.tif")
    assert read_features(one.out)[0] == "EPSG:32633"


def test_class_names_are_kept(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", LABELS)
    names = ["sky", "road", "car"]
    table = convert(source, tmp_path / "t.csv", classes=names).out
    assert table.read_text().splitlines()[0] == "id,class,rle"
    assert {line.split(",")[1] for line in table.read_text().splitlines()[1:]} == set(names)
    same(convert(table, tmp_path / "back", classes=names, like=source).out, LABELS)
    coco = convert(source, tmp_path / "t.json", classes=["background", "road", "car"]).out
    assert json.loads(coco.read_text())["categories"] == [{"id": 1, "name": "road"}, {"id": 2, "name": "car"}]
    same(convert(coco, tmp_path / "coco-back").out, LABELS)


def test_what_no_class_covers_is_ignored_where_0_is_a_class(tmp_path: Path) -> None:
    labels = {"a": np.array([[0, 1, 11, 2]], np.uint8)}
    source = folder(tmp_path / "in", labels)
    table = convert(source, tmp_path / "t.csv", classes=["sky", "road", "car"], ignore=11).out
    back = convert(table, tmp_path / "back", classes=["sky", "road", "car"], like=source).out
    assert read_mask_values(back / "a.png").tolist() == [[0, 1, 255, 2]]


def test_instance_ids_are_foreground_on_request(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", {"a": np.array([[0, 7, 300, 0]], np.uint16)})
    back = convert(source, tmp_path / "out", foreground=True).out
    assert read_mask_values(back / "a.png").tolist() == [[0, 255, 255, 0]]


def test_overlapping_classes_become_layers(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("id,class,rle\na,roof,1 3\na,tree,3 2\n")
    with pytest.raises(UserError, match="--to layers"):
        convert(table, tmp_path / "labels", size=(2, 3))
    out = convert(table, tmp_path / "layers", size=(2, 3), to="layers").out
    assert read_mask_values(out / "a" / "roof.png").tolist() == [[255, 255, 255], [0, 0, 0]]
    assert read_mask_values(out / "a" / "tree.png").tolist() == [[0, 0, 255], [255, 0, 0]]


def test_layers_are_read_as_they_were_written(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("id,class,rle\na,roof,1 3\na,tree,3 2\ndeep/b,roof,\ndeep/b,tree,6 1\n")
    layers = convert(table, tmp_path / "layers", size=(2, 3), to="layers").out
    back = convert(layers, tmp_path / "back.csv").out
    assert sorted(back.read_text().splitlines()[1:]) == sorted(table.read_text().splitlines()[1:])
    again = convert(layers, tmp_path / "again.csv", classes=("tree", "roof")).out
    assert sorted(again.read_text().splitlines()[1:]) == sorted(table.read_text().splitlines()[1:])
    with pytest.raises(UserError, match="class 'tree' is not among roof, wall"):
        convert(layers, tmp_path / "wrong.csv", classes=("roof", "wall"))
    with pytest.raises(UserError, match="masks of different classes overlap"):
        convert(layers, tmp_path / "labels", to="png")
    overlap = convert(layers, tmp_path / "o.geojson").out
    areas: dict[tuple[str, str], float] = {}
    for each in read_features(overlap)[1]:
        key = each.image, each.class_name
        areas[key] = areas.get(key, 0) + float(shapely.area(each.geometry))
    assert areas == {("a", "roof"): 3, ("a", "tree"): 2, ("deep/b", "tree"): 1}


def test_layers_of_others_are_told_by_their_classes(tmp_path: Path) -> None:
    """Predictions of classes that may overlap, and masks that the data has, say nothing about themselves."""
    mask = np.array([[0, 1], [1, 0]], np.uint8)
    source = folder(tmp_path / "in", {"a/roof": mask, "a/tree": 1 - mask, "b/roof": 0 * mask, "b/tree": mask})
    lines = convert(source, tmp_path / "t.csv", classes=("roof", "tree")).out.read_text().splitlines()[1:]
    assert sorted(lines) == ["a,roof,2 2", "a,tree,1 1 4 1", "b,roof,", "b,tree,2 2"]
    assert len(convert(source, tmp_path / "plain.csv").out.read_text().splitlines()) == 5, "four masks without classes"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda at: (at / "a" / "tree.png").unlink(), r"one file per class in a \(roof, tree\), found none tree.png"),
        (lambda at: write_png(at / "a" / "sea.png", np.zeros((2, 3), np.uint8)), "found also a sea.png"),
        (lambda at: write_png(at / "a" / "tree.png", np.zeros((3, 3), np.uint8)), "tree.png"),
        (
            lambda at: write_png(at / "a" / "tree.png", np.array([[0, 1, 2]] * 2, np.uint8)),
            "one class, 0 and one other",
        ),
        (lambda at: (at / "a" / "tree.png").write_bytes(b"PNG"), "tree.png"),
        (lambda at: (at / ".maskloom.json").write_text('{"to": "layers", "classes": {"roof": "1"}}'), "convert again"),
    ],
    ids=["missing", "further", "size", "values", "damaged", "marker"],
)
def test_spoilt_layers_are_told_by_name(tmp_path: Path, spoil: Any, message: str) -> None:
    table = tmp_path / "t.csv"
    table.write_text("id,class,rle\na,roof,1 3\na,tree,3 2\n")
    layers = convert(table, tmp_path / "layers", size=(2, 3), to="layers").out
    spoil(layers)
    with pytest.raises(UserError, match=message):
        convert(layers, tmp_path / "back.csv")
    assert not (tmp_path / "back.csv").exists()


# --- known answers ---------------------------------------------------------------------------------------------------


def test_a_table_in_the_order_of_a_sample(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", {"a_mask": BINARY["a"], "z_mask": BINARY["c"]})
    sample = tmp_path / "sample.csv"
    sample.write_text("img,rle_mask\nz.jpg,1 1\na.jpg,1 1\n")
    lines = convert(source, tmp_path / "t.csv", like=sample).out.read_text().splitlines()
    assert lines[0] == "img,rle_mask" and [line.split(",")[0] for line in lines[1:]] == ["z.jpg", "a.jpg"]
    assert lines[1].split(",")[1] == encode_runs(BINARY["c"] > 0)
    sample.write_text("img,rle_mask\nz.jpg,1 1\nq.jpg,1 1\n")
    with pytest.raises(UserError, match=r"1 missing: q\.jpg"):
        convert(source, tmp_path / "u.csv", like=sample)
    assert not (tmp_path / "u.csv").exists()


def test_the_grid_of_the_dstl_contest(tmp_path: Path) -> None:
    # 99 × 99 pixels: W′ = 98.01, so pixel 49.005 is half of the grid.
    grid, table = tmp_path / "grid_sizes.csv", tmp_path / "train.csv"
    grid.write_text(",Xmax,Ymin\na,0.01,-0.02\n")
    table.write_text(
        "ImageId,ClassType,MultipolygonWKT\na,10,GEOMETRYCOLLECTION EMPTY\n"
        'a,2,"MULTIPOLYGON (((0 0, 0.005 0, 0.005 -0.01, 0 -0.01, 0 0)))"\n'
    )
    mask = read_mask_values(convert(table, tmp_path / "png", grid=grid, size=(99, 99)).out / "a.png")
    expected = np.zeros((99, 99), np.uint8)
    expected[:49, :49] = 2
    assert np.array_equal(mask, expected)
    back = convert(table, tmp_path / "back.csv", to="wkt", grid=grid, size=(99, 99)).out.read_text().splitlines()
    assert back[0] == "ImageId,ClassType,MultipolygonWKT" and back[2] == "a,10,MULTIPOLYGON EMPTY"
    found = shapely.from_wkt(back[1].split(",", 2)[2].strip('"'))
    assert found.bounds == pytest.approx((0, -0.01, 0.005, 0))
    with pytest.raises(UserError, match="--grid"):
        convert(table, tmp_path / "without", size=(99, 99))


def test_polygons_without_an_image_fall_on_those_they_lie_on(tmp_path: Path) -> None:
    left = Georeference("EPSG:32633", (1.0, 0.0, 500_000.0, 0.0, -1.0, 100_000.0))
    right = Georeference("EPSG:32633", (1.0, 0.0, 500_010.0, 0.0, -1.0, 100_000.0))
    images = scenes(tmp_path / "images", {"left": np.zeros((8, 10), np.uint8)}, left)
    scenes(images, {"right": np.zeros((8, 10), np.uint8)}, right)
    scenes(images, {"far": np.zeros((8, 10), np.uint8)}, Georeference("EPSG:32633", (1, 0, 0.0, 0, -1.0, 0.0)))
    drawn = tmp_path / "drawn.geojson"
    shape = shapely.box(500_008, 99_996, 500_013, 100_000)
    feature = {"type": "Feature", "properties": {}, "geometry": json.loads(shapely.to_geojson(shape))}
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    drawn.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": [feature]}))
    out = convert(drawn, tmp_path / "masks", like=images).out
    masks = {name: read_mask_values(out / f"{name}.png") > 0 for name in ("left", "right", "far")}
    assert [int(mask.sum()) for mask in masks.values()] == [8, 12, 0]
    assert masks["left"][:4, 8:].all() and masks["right"][:4, :3].all()


def test_polygons_on_no_image_are_told_and_refused_where_all_are(tmp_path: Path) -> None:
    images = scenes(tmp_path / "images", {"a": np.zeros((8, 10), np.uint8)})
    inside, away = shapely.box(500_002, 99_992, 500_006, 99_996), shapely.box(600_000, 99_996, 600_003, 99_998)
    drawn, notes = tmp_path / "t.geojson", list[str]()
    write_features(drawn, [Feature(shape, "", "") for shape in (inside, away)], crs="EPSG:32633")
    found = PolygonMasks.open(drawn, images=FolderMasks.open(images), note=notes.append)
    assert int(found.values("a", (8, 10)).astype(bool).sum()) == 4
    assert notes == ["t.geojson: 1 of 2 polygons lie on none of the 1 images"]
    write_features(drawn, [Feature(away, "", "")], crs="EPSG:32633")
    for judge in (lambda: convert(drawn, tmp_path / "masks", like=images), lambda: score(drawn, images)):
        with pytest.raises(UserError, match="found all 1 outside every one of 1; they span 600000 to 600003 east"):
            judge()
    assert not (tmp_path / "masks").exists()


def test_polygons_in_another_crs_are_brought_to_the_images(tmp_path: Path) -> None:
    images = scenes(tmp_path / "images", {"a": BINARY["a"]})
    features = convert(images, tmp_path / "t.geojson").out
    elsewhere = tmp_path / "degrees.geojson"
    from rasterio.warp import transform_geom

    content = json.loads(features.read_text())
    del content["crs"]  # so EPSG:4326
    for feature in content["features"]:
        feature["geometry"] = transform_geom("EPSG:32633", "EPSG:4326", feature["geometry"])
    elsewhere.write_text(json.dumps(content))
    same(convert(elsewhere, tmp_path / "back", like=images).out, {"a": BINARY["a"]})


def test_cleaning_is_in_pixels(tmp_path: Path) -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[2:10, 2:10] = 255
    mask[15, 15] = 255
    source = scenes(tmp_path / "in", {"a": mask})
    (feature,) = read_features(convert(source, tmp_path / "t.geojson", min_area=2).out)[1]
    assert feature.geometry.area == 4 * 64  # pixels of 2 × 2 units
    out = read_mask_values(convert(source, tmp_path / "png", min_area=2).out / "a.png")
    assert out[15, 15] == 0 and np.array_equal(out[:12, :12], mask[:12, :12])


def test_vector_files_are_copied_with_what_they_say(tmp_path: Path) -> None:
    pytest.importorskip("pyogrio")
    content = {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "properties": {"image": "a", "class": "roof", "height": 3.5},
                "geometry": json.loads(shapely.to_geojson(shapely.box(1.25, 2.5, 3, 4))),
            }
        ],
    }
    source = tmp_path / "in.geojson"
    source.write_text(json.dumps(content))
    crs, (feature,) = read_features(convert(source, tmp_path / "out.gpkg").out)
    assert (crs, feature.image, feature.class_name) == ("EPSG:4326", "a", "roof")
    assert dict(feature.attributes) == {"height": 3.5}
    assert feature.geometry.equals(shapely.box(1.25, 2.5, 3, 4))


def test_options_are_not_passed_over_between_vector_files(tmp_path: Path) -> None:
    """``size`` cuts polygons off at the border of their image; what means nothing there is refused."""
    source, out = tmp_path / "in.geojson", tmp_path / "out.geojson"
    write_features(source, [Feature(shapely.MultiPolygon([shapely.box(1, 1, 9, 3)]), "roof", "a")], crs=None)
    grid = tmp_path / "grid.csv"
    grid.write_text("ImageId,Xmax,Ymin\na,0.01,-0.01\n")
    refused: list[tuple[dict[str, Any], str]] = [
        ({"grid": tmp_path / "none.csv"}, "no such file"), ({"grid": grid}, "--grid gives the coordinates"),
        ({"order": "column"}, "--order and --base are of run lengths"), ({"base": 0}, "--order and --base"),
    ]  # fmt: skip
    for options, message in refused:
        with pytest.raises(UserError, match=message):
            convert(source, out, **options)
        assert not out.exists()
    (feature,) = read_features(convert(source, out, size=(5, 5)).out)[1]
    assert feature.geometry.bounds == (1, 1, 5, 3)


def test_score_reads_polygons(tmp_path: Path) -> None:
    source = scenes(tmp_path / "in", LABELS)
    for name, options in (("t.geojson", {}), ("t.csv", {"to": "wkt"})):
        table = convert(source, tmp_path / name, **options).out
        found = score(table, source)
        assert (found.kind, found.dice, len(found.images)) == ("multiclass", 1, len(LABELS))


def test_a_folder_is_filled_again_and_no_other(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", BINARY)
    out = convert(source, tmp_path / "out").out
    same(convert(source, tmp_path / "out").out, BINARY)
    other = folder(tmp_path / "other", LABELS)
    with pytest.raises(UserError, match="holds masks of another source"):
        convert(other, out)
    with pytest.raises(UserError, match="found other files"):
        convert(source, other)
    with pytest.raises(UserError, match="is read from"):
        convert(source, source / "below")


def test_run_lengths_are_those_of_the_masks(tmp_path: Path) -> None:
    lines = convert(folder(tmp_path / "in", BINARY), tmp_path / "t.csv").out.read_text().splitlines()
    runs = dict(line.split(",") for line in lines[1:])
    for name, mask in BINARY.items():
        assert np.array_equal(decode_runs(runs[name], mask.shape), mask > 0)


# --- large images -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_sets, "MAX_DRAWN", 100)


def test_a_stated_size_has_a_budget_and_that_of_an_image_the_memory(
    tmp_path: Path, small_budget: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table of run lengths for scenes larger than anything that is drawn for a size that a file only claims."""
    masks = {"a": BINARY["a"]}
    images, source = scenes(tmp_path / "images", masks), folder(tmp_path / "in", masks)
    for name in ("t.csv", "t.geojson"):
        there = convert(source, tmp_path / name).out
        back = convert(there, tmp_path / f"{name}-back", like=images, to="geotiff").out
        same(back, masks, ".tif")
        assert len(score(images, there).images) == 1
        with pytest.raises(UserError, match=r"31×24 \(width×height\) = 744 pixels is over the budget of 100"):
            convert(there, tmp_path / "other", size=SIZES["a"])
    with pytest.raises(UserError, match="over the budget of 100"):
        score(there, there, size=SIZES["a"])
    monkeypatch.setattr(mask_sets, "free_memory", lambda: 8 * 743)
    with pytest.raises(UserError, match="over the 743 for which there is memory now"):
        convert(there, tmp_path / "others", like=images, to="geotiff")
    assert not (tmp_path / "other").exists() and not (tmp_path / "others").exists()


def test_a_coco_file_that_claims_a_size_has_its_budget_beside_images_too(tmp_path: Path, small_budget: None) -> None:
    masks = {"a": BINARY["a"]}
    images, source = scenes(tmp_path / "images", masks), folder(tmp_path / "in", masks)
    coco = convert(source, tmp_path / "t.json").out
    with pytest.raises(UserError, match="over the budget of 100"):
        convert(coco, tmp_path / "back", like=images)
    assert not (tmp_path / "back").exists()


def test_masks_that_no_memory_holds_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(convert_module, "write_pngs", too_large)
    with pytest.raises(UserError, match="take more memory than there is; cut the images into tiles"):
        convert(folder(tmp_path / "in", {"a": BINARY["a"]}), tmp_path / "out")


def test_no_more_than_eight_files_are_looked_at_before_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []
    monkeypatch.setattr(convert_module, "check_areas", lambda _, path: seen.append(path))
    convert(folder(tmp_path / "in", {f"{number:02d}": BINARY["a"] for number in range(15)}), tmp_path / "out")
    assert [path.stem for path in seen] == ["00", "02", "04", "06", "08", "10", "12", "14"]
