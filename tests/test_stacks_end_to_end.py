"""Scenes of two resolutions with polygons: registered, learnt from as stacks, and new ones predicted as stacks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from shapely import box

import maskloom
from maskloom.config import load_yaml
from maskloom.encodings.vector_files import Feature
from maskloom.errors import UserError
from maskloom.files import read_json
from maskloom.outputs.vectors import write_features
from maskloom.rasters.georeference import Georeference, to_crs
from maskloom.rasters.reading import open_raster
from maskloom.rasters.writing import write_geotiff
from small import SMALL

SIZE = (96, 128)
SHIFT = (1.2, -0.8)
"""(x, y) in pixels of 20 m by which the coarse file of every scene lies off."""
BANDS = "data.bands=[<id>/B04.tif, <id>/B08.tif, {file: <id>/B11.tif, resampling: bicubic}]"
REGISTRATION = "registration={pairs: [{file: 1, image_band: 0, band: 0}]}"


def ground(seed: int, size: tuple[int, int], x: float = 0.0, y: float = 0.0) -> np.ndarray:
    """A smooth periodic field of 0…10000, moved by (x, y) pixels; at half the size it is the same ground."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    down = 2 * np.pi * (rows + 0.5 - y) / size[0]
    across = 2 * np.pi * (columns + 0.5 - x) / size[1]
    rng = np.random.default_rng(seed)
    waves = [
        weight / (i + j) * np.cos(i * down + j * across + turn)
        for (i, j), weight, turn in zip(
            [(i, j) for i in range(1, 9) for j in range(1, 9)], rng.normal(size=64), rng.uniform(0, 7, 64), strict=True
        )
    ]
    return np.clip(5000 + 1500 * np.sum(waves, axis=0), 1, 10_000).astype(np.uint16)


def write_scenes(folder: Path, names: str) -> list[Georeference]:
    half = (SIZE[0] // 2, SIZE[1] // 2)
    places = []
    for name in names:
        number = ord(name)
        (folder / name).mkdir(parents=True)
        place = Georeference("EPSG:32633", (10.0, 0.0, 1e5 + 2e3 * number, 0.0, -10.0, 5e6))
        coarse = Georeference("EPSG:32633", (20.0, 0.0, 1e5 + 2e3 * number, 0.0, -20.0, 5e6))
        write_geotiff(folder / name / "B04.tif", ground(number, SIZE)[None], place)
        write_geotiff(folder / name / "B08.tif", ground(number + 1, SIZE)[None], place)
        write_geotiff(folder / name / "B11.tif", ground(number, half, *SHIFT)[None], coarse)
        places.append(place)
    return places


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stacks") / "data"
    places = write_scenes(folder, "abcd")
    shapes = [Feature(to_crs([box(10, 10, 60, 50)], place)[0], "", "") for place in places]
    write_features(folder / "fields.geojson", shapes, crs="EPSG:32633")
    return folder


def test_stacks_are_registered_and_learnt_from_and_new_ones_predicted(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    network = "members.0.network={architecture: unet_elu, weights: none, channels: 3, width: 0.25}"
    settings = [*SMALL, BANDS, REGISTRATION, network, "members.0.input={mode: window, size: [64, 64]}", "folds.count=2"]
    run = maskloom.fit("default", data, run=folder, settings=settings, device="cpu", workers=0)
    recipe = load_yaml(folder / "recipe.yaml")
    assert recipe["members"][0]["network"]["channels"] == 3 and len(recipe["data"]["bands"]) == 3
    for name in "abcd":
        moved = read_json(folder / "data" / "registration" / f"{name}.json")["1"]["moved"]
        assert (moved[2], moved[5]) == pytest.approx(SHIFT, abs=0.1)
    assert 0 <= run.evaluate()["oof"]["mean"] <= 1

    write_scenes(tmp_path / "new", "xy")
    run.predict(tmp_path / "new", out=tmp_path / "out", to="geotiff")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tif")) == ["x.tif", "y.tif"]
    moved = read_json(tmp_path / "out" / "registration" / "x.json")["files"]["1"]["moved"]
    assert (moved[2], moved[5]) == pytest.approx(SHIFT, abs=0.1)
    with open_raster(tmp_path / "out" / "x.tif") as raster:
        assert raster.size == SIZE and raster.georeference is not None and raster.georeference.crs == "EPSG:32633"
    (tmp_path / "new" / "y" / "B11.tif").unlink()
    with pytest.raises(UserError, match=r"y/B11\.tif: no such file, but image 'y' needs it"):
        run.predict(tmp_path / "new", out=tmp_path / "out", to="geotiff")
