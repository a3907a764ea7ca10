"""Nodata counts in nobody's out-of-fold score: truth that is wrong where an image has no values changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

import maskloom
from maskloom.config import parse
from maskloom.data.image_io import read_image, write_png
from maskloom.files import read_json
from maskloom.rasters.writing import write_geotiff
from maskloom.recipe import Recipe
from maskloom.records import IGNORE

BANDS = ("red", "nir")
SIZE = (24, 30)


def scenes(folder: Path, nodata: float) -> Path:
    """Six scenes of two bands whose last six columns are nodata; there the masks say the contrary of the index."""
    rng = np.random.default_rng(0)
    for number in range(6):
        truth = np.zeros(SIZE, bool)
        truth[4 + number : 15, 5:20] = True
        value = np.where(truth, 0.5, -0.5)
        pixels = (np.stack([(1 - value) / 2, (1 + value) / 2]) * rng.uniform(800, 1200, SIZE)).astype(np.float32)
        if nodata == 0:
            pixels = pixels.astype(np.uint16)
        pixels[:, :, 24:] = nodata
        truth[:, 24:] = number % 2 == 0
        (folder / "images").mkdir(parents=True, exist_ok=True)
        write_geotiff(folder / "images" / f"{number}.tif", pixels, None, nodata=nodata)
        write_png(folder / "masks" / f"{number}.png", truth.astype(np.uint8) * 255)
    return folder


@pytest.mark.parametrize("nodata", [0, np.nan])
def test_a_perfect_member_scores_one_on_the_pixels_that_are_there(tmp_path: Path, nodata: float) -> None:
    index = {"bands": BANDS, "rules": [{"expression": "(nir - red) / (nir + red)"}]}
    member = {
        "name": "plants",
        "network": {"architecture": "index", "channels": 2, "index": index},
        "input": {"mode": "full", "multiple": 1, "bands": {"names": BANDS, "full_scale": 2047}},
    }
    recipe = parse(Recipe, {"name": "r", "metric": "iou", "folds": {"kind": "kfold", "count": 3}, "members": [member]})
    run = maskloom.fit(recipe, scenes(tmp_path / "data", nodata), run=tmp_path / "run", device="cpu", workers=0)
    scores = read_json(run.folder.oof("plants") / "scores.json")
    assert len(scores) == 6
    for number in range(6):
        plants = (11 - number) * 15
        assert scores[str(number)]["plain"] == {"tp": [plants], "fp": [0], "fn": [0]}
        assert scores[str(number)]["views"] == {"tp": [plants], "fp": [0], "fn": [0]}
    assert run.evaluate()["oof"]["mean"] == 1.0
    images = tmp_path / "data" / "images"
    run.predict(images, out=tmp_path / "png", to="png")
    run.predict(images, out=tmp_path / "ground", to="geotiff")
    with rasterio.open(tmp_path / "ground" / "0.tif") as file:
        found = file.read(1)
    assert (found[:, 24:] == IGNORE).all()
    assert np.array_equal(read_image(tmp_path / "png" / "0.png")[:, :24, 0] > 0, found[:, :24] == 1)
