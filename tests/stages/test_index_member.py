"""An index classifier as a member: thresholds found outside the fold, and the rest of the run as for any network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

import maskloom
from maskloom.config import parse
from maskloom.data.image_io import write_png
from maskloom.errors import UserError
from maskloom.models.bundle import load_bundle
from maskloom.recipe import Recipe

BANDS = ("red", "nir")


def member(**changes: object) -> dict[str, object]:
    rule = {"expression": "(nir - red) / (nir + red)"}
    return {
        "name": "plants",
        "network": {"architecture": "index", "channels": 2, "index": {"bands": BANDS, "rules": [rule]}},
        "input": {"mode": "full", "multiple": 1, "bands": {"names": BANDS, "full_scale": 2047}},
        **changes,
    }


def scenes(folder: Path) -> Path:
    """Six scenes of two bands in which plants are where (nir - red) / (nir + red) is 0.5 ± 0.1, and -0.5 elsewhere."""
    rng = np.random.default_rng(0)
    for number in range(6):
        truth = np.zeros((24, 30), np.uint8)
        truth[4 + number : 15, 5:20] = 255
        value = np.where(truth > 0, 0.5, -0.5) + rng.uniform(-0.1, 0.1, truth.shape)
        total = rng.uniform(800, 1200, truth.shape)
        pixels = np.stack([total * (1 - value) / 2, total * (1 + value) / 2], axis=-1)
        (folder / "images").mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / "images" / f"{number}.tif", pixels.round().astype(np.uint16), planarconfig="contig")
        write_png(folder / "masks" / f"{number}.png", truth)
    return folder


def recipe(**changes: object) -> Recipe:
    values = {"name": "r", "metric": "iou", "folds": {"kind": "kfold", "count": 3}, "members": [member(**changes)]}
    return parse(Recipe, values)


def test_the_threshold_is_found_and_the_class_with_it(tmp_path: Path) -> None:
    run = maskloom.fit(recipe(), scenes(tmp_path / "data"), run=tmp_path / "run", device="cpu", workers=0)
    assert run.evaluate()["oof"]["mean"] == 1.0
    network = load_bundle(run.folder.bundle("plants", 0, "last")).network
    assert -0.4 < float(network.thresholds[0]) < 0.4 and float(network.signs[0]) == 1
    assert run.folder.report.is_file()


def test_one_band_is_not_taken_for_three_that_have_names(tmp_path: Path) -> None:
    names = ("red", "green", "nir")
    data = scenes(tmp_path / "data")
    for path in (data / "images").iterdir():
        pixels = tifffile.imread(path)
        tifffile.imwrite(path, pixels[..., [0, 0, 1]], planarconfig="contig", photometric="minisblack")
    rule = {"expression": "(nir - red) / (nir + red)"}
    network = {"architecture": "index", "channels": 3, "index": {"bands": names, "rules": [rule]}}
    bands = {"mode": "full", "multiple": 1, "bands": {"names": names, "full_scale": 2047}}
    run = maskloom.fit(recipe(network=network, input=bands), data, run=tmp_path / "run", device="cpu", workers=0)
    (tmp_path / "new").mkdir()
    tifffile.imwrite(tmp_path / "new" / "B02.tif", np.ones((24, 30), np.uint16))
    for to in ("png", "geotiff"):
        with pytest.raises(UserError, match=r"B02\.tif: expected .*3 (channel|band)\(s\).* found 1"):
            run.predict(tmp_path / "new", out=tmp_path / to, to=to)


def test_bands_must_be_named_alike(tmp_path: Path) -> None:
    other = {"mode": "full", "multiple": 1, "bands": {"names": ("red", "nir2"), "full_scale": 2047}}
    with pytest.raises(UserError, match=r"plants: expected input\.bands that name the bands of network\.index\.bands"):
        maskloom.fit(recipe(input=other), scenes(tmp_path / "data"), run=tmp_path / "run", device="cpu", workers=0)
