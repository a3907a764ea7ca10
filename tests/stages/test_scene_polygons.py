"""Polygons of scenes as they are asked for: buffered, without small holes, simplified, in pixels or on the ground."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from tiny_scenes import LAYERS, PLACE, SIDE, Known, write_run, write_scene

from maskloom.encodings.vector_files import Feature, read_features
from maskloom.inference import blocks as blocks_room
from maskloom.progress import Silent
from maskloom.rasters.georeference import to_crs
from maskloom.stages import scenes as stage

SUFFIXES = ("geojson", "gpkg", "fgb")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_room, "SIDES", (SIDE,))
    monkeypatch.setattr(stage, "PAUSE_SECONDS", 0.01)


def scene(path: Path) -> None:
    """A square of 40 pixels with holes of 6×6 and 12×12, and one of 5 pixels far away."""
    pixels = np.full((3, 100, 120), 9, np.uint8)
    pixels[:, 20:60, 30:70] = 200
    pixels[:, 30:36, 40:46] = 9
    pixels[:, 40:52, 50:62] = 9
    pixels[:, 90:95, 100:105] = 200
    write_scene(path, pixels=pixels)


def predicted(tmp_path: Path, *, to: str = "geojson", known: Any = None, **options: Any) -> list[Feature]:
    """Returns the features of the scene, predicted with options, and ``recipe`` as changes of the run's."""
    scene(tmp_path / "scenes/a.tif")
    known = known or Known()
    stage.predict_scenes(
        write_run(tmp_path / "run", **options.pop("recipe", {})), tmp_path / "scenes", out=tmp_path / "out", to=to,
        opened=lambda: known, progress=Silent(), **options,
    )  # fmt: skip
    _, features = read_features(tmp_path / f"out/predictions.{'csv.gz' if to == 'wkt' else to}")
    return features


def areas(features: list[Feature]) -> list[float]:
    return sorted(round(feature.geometry.area, 3) for feature in features)


PIXEL = 4.0  # square metres


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_small_holes_are_filled(tmp_path: Path, suffix: str) -> None:
    found = predicted(tmp_path, to=suffix, min_hole=37)
    assert areas(found) == [25 * PIXEL, (1600 - 144) * PIXEL]


def test_a_hole_of_just_the_area_stays(tmp_path: Path) -> None:
    assert areas(predicted(tmp_path, min_hole=36)) == [25 * PIXEL, (1600 - 36 - 144) * PIXEL]


def rounded(side: float, buffer: float) -> float:
    """Returns the area of a square that is buffered, its corners a quarter of a polygon of 64 sides each."""
    return side**2 + 4 * side * buffer + 32 * math.sin(2 * math.pi / 64) * buffer**2


@pytest.mark.parametrize(("options", "metres"), [({"buffer": 1.5}, 3.0), ({"buffer": 3.0, "units": "crs"}, 3.0)])
def test_a_square_is_buffered_in_either_unit(tmp_path: Path, options: dict[str, Any], metres: float) -> None:
    found = predicted(tmp_path, **options, min_hole=10_000)
    assert areas(found) == pytest.approx([rounded(10, metres), rounded(80, metres)], abs=1e-3)
    (square,) = to_crs([shapely.box(30, 20, 70, 60)], PLACE)
    large = max((feature.geometry for feature in found), key=lambda geometry: geometry.area)
    left, bottom, right, top = square.bounds
    assert large.bounds == pytest.approx((left - metres, bottom - metres, right + metres, top + metres))


def test_inwards_a_small_square_vanishes(tmp_path: Path) -> None:
    assert areas(predicted(tmp_path, buffer=-2.5, min_hole=10_000)) == [35**2 * PIXEL]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "options",
    [{"simplify": 7.0}, {"simplify": 14.0, "units": "crs"}, {"buffer": 2.0, "simplify": 1.0, "min_area": 3.0}],
)
def test_every_feature_is_valid(tmp_path: Path, suffix: str, options: dict[str, Any]) -> None:
    write_scene(tmp_path / "scenes/b.tif")
    found = [feature.geometry for feature in predicted(tmp_path, to=suffix, **options)]
    assert len(found) > 10 and all(geometry.is_valid and not geometry.is_empty for geometry in found)


def test_simplification_is_the_same_in_either_unit(tmp_path: Path) -> None:
    found = []
    for name, options in (("pixels", {"simplify": 2.0}), ("ground", {"simplify": 4.0, "units": "crs"})):
        write_scene(tmp_path / name / "scenes/b.tif")
        found.append(areas(predicted(tmp_path / name, **options)))
    assert len(found[0]) > 10 and found[0] == pytest.approx(found[1])


def test_the_recipe_says_how_and_options_say_otherwise(tmp_path: Path) -> None:
    recipe = {"delivery": {"polygons": {"min_hole": 400.0, "min_area": 200.0, "units": "crs"}}}
    assert areas(predicted(tmp_path / "a", recipe=recipe)) == [(1600 - 144) * PIXEL]
    found = predicted(tmp_path / "b", recipe=recipe, min_area=0.0, min_hole=577.0)
    assert areas(found) == [25 * PIXEL, 1600 * PIXEL]
    # 36 pixels are 144 square metres; a raster has no polygons, so what the recipe says of them does not matter.
    scene(tmp_path / "c/scenes/a.tif")
    stage.predict_scenes(
        write_run(tmp_path / "c/run", **recipe), tmp_path / "c/scenes", out=tmp_path / "c/out", to="geotiff",
        opened=lambda: Known(), progress=Silent(),
    )  # fmt: skip
    assert (tmp_path / "c/out/a.tif").is_file()


def test_tables_hold_valid_areas_that_are_united(tmp_path: Path) -> None:
    (row,) = predicted(tmp_path, to="wkt", buffer=40.0)
    assert row.geometry.is_valid and len(shapely.get_parts(row.geometry)) == 1


def overlapping(path: Path) -> None:
    """Red over the left two thirds, green over the right two."""
    pixels = np.full((3, 70, 90), 9, np.uint8)
    pixels[0, :, :60] = 200
    pixels[1, :, 30:] = 200
    write_scene(path, pixels=pixels)


@pytest.mark.parametrize(("winner", "expected"), [("red", (60, 30)), ("green", (30, 60)), (None, (60, 60))])
def test_where_classes_overlap_the_recipe_says_which_stays(
    tmp_path: Path, winner: str | None, expected: tuple[int, int]
) -> None:
    overlapping(tmp_path / "scenes/a.tif")
    recipe = {"delivery": {"precedence": [{"winner": winner}]}} if winner else {}
    known: Any = Known(LAYERS)
    for to in ("geotiff", "geojson"):
        stage.predict_scenes(
            write_run(tmp_path / "run", **recipe), tmp_path / "scenes", out=tmp_path / to, to=to,
            opened=lambda: known, progress=Silent(),
        )  # fmt: skip
    with rasterio.open(tmp_path / "geotiff/a.tif") as dataset:
        assert [np.count_nonzero(band) for band in dataset.read()] == [70 * width for width in expected]
    _, features = read_features(tmp_path / "geojson/predictions.geojson")
    found = {feature.class_name: feature.geometry.area / PIXEL for feature in features}
    assert found == {"red": 70 * expected[0], "green": 70 * expected[1]}
