"""Boosted trees as a member: grown outside each fold, beside an index, and the rest of the run as for any network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

import maskloom
from maskloom.config import parse
from maskloom.data.image_io import write_png
from maskloom.errors import UserError
from maskloom.files import checksum
from maskloom.models.bundle import load_bundle, read_extra
from maskloom.models.tree_network import TreeNetwork
from maskloom.recipe import Recipe

TREES = {"sigmas": [0, 1], "num_trees": 20, "learning_rate": 0.2, "min_samples_leaf": 5, "share": 0.5}


def member(**changes: Any) -> dict[str, Any]:
    return {
        "name": "trees",
        "network": {"architecture": "trees", "channels": 2, "trees": TREES},
        "input": {"mode": "full", "multiple": 1},
        "views": "none",
        **changes,
    }


def scenes(folder: Path, *, kind: str = "binary") -> Path:
    """Six scenes of two bands: the class is where exactly one of them is bright, which no single threshold finds."""
    rng = np.random.default_rng(0)
    for number in range(6):
        size = 40 + number, 50
        bright = [np.zeros(size, np.bool_), np.zeros(size, np.bool_)]
        bright[0][4:25, 5:30], bright[1][15:35, 20 - number : 45] = True, True
        truth = bright[0] ^ bright[1]
        pixels = np.stack([np.where(each, 1200, 400) + rng.integers(-200, 200, size) for each in bright], axis=-1)
        (folder / "images").mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(folder / "images" / f"{number}.tif", pixels.astype(np.uint16), planarconfig="contig")
        mask = np.where(truth, 255, 0).astype(np.uint8)
        write_png(folder / "masks" / f"{number}.png", mask)
    return folder


def recipe(*members: dict[str, Any], **changes: Any) -> Recipe:
    values = {"name": "r", "metric": "iou", "folds": {"kind": "kfold", "count": 2}, "members": members or [member()]}
    return parse(Recipe, values | changes)


def test_trees_find_what_no_threshold_finds(tmp_path: Path) -> None:
    data = scenes(tmp_path / "data")
    run = maskloom.fit(recipe(), data, run=tmp_path / "run", device="cpu", workers=0)
    assert run.evaluate()["oof"]["mean"] > 0.97
    path = run.folder.bundle("trees", 0, "last")
    network = load_bundle(path).network
    assert isinstance(network, TreeNetwork) and network.features.shape == (20, 14)
    pixels = sum((40 + number) * 50 for number in range(6))
    assert read_extra(path)["pixels_learnt_from"] == pytest.approx(pixels / 2 / 2, rel=0.2)
    assert run.folder.report.is_file()
    again = maskloom.fit(recipe(), data, run=tmp_path / "again", device="cpu", workers=0)
    for fold in range(2):
        assert checksum(again.folder.bundle("trees", fold, "last")) == checksum(
            run.folder.bundle("trees", fold, "last")
        )


def test_windows_with_a_margin_and_a_cap(tmp_path: Path) -> None:
    windows = {"mode": "window", "multiple": 1, "size": [24, 24], "margin": 4}
    capped = {"architecture": "trees", "channels": 2, "trees": {**TREES, "max_pixels": 1000}}
    data = scenes(tmp_path / "data")
    run = maskloom.fit(
        recipe(member(input=windows), member(name="few", network=capped)),
        data, run=tmp_path / "run", device="cpu", workers=0,
    )  # fmt: skip
    whole = maskloom.fit(recipe(), data, run=tmp_path / "whole", device="cpu", workers=0)
    for number in range(6):
        maps = [each.folder.oof_map("trees", str(number)).read_bytes() for each in (run, whole)]
        assert maps[0] == maps[1], "tiles give what whole images give"
    assert read_extra(run.folder.bundle("few", 0, "last"))["pixels_learnt_from"] == pytest.approx(1000, rel=0.15)
    assert run.evaluate()["members"]["few"]["mean"] > 0.9


def test_folds_of_blocks_hide_what_they_validate(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth = np.zeros((192, 192), np.uint8)
    truth[20:90, 30:120] = truth[110:170, 60:180] = truth[100:185, 5:40] = 1
    pixels = np.where(truth > 0, 900, 500) + rng.integers(-150, 150, truth.shape)
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "masks").mkdir(parents=True)
    tifffile.imwrite(tmp_path / "data" / "images" / "a.tif", np.stack([pixels, pixels // 2], axis=-1).astype(np.uint16),
                     planarconfig="contig")  # fmt: skip
    tifffile.imwrite(tmp_path / "data" / "masks" / "a.tif", truth)
    windows = {"mode": "window", "multiple": 1, "size": [32, 32], "margin": 4}
    folds = {"kind": "blocks", "count": 2, "side": 64, "buffer": 4}
    run = maskloom.fit(
        recipe(member(input=windows), folds=folds), tmp_path / "data", run=tmp_path / "run", device="cpu", workers=0
    )
    assert run.evaluate()["oof"]["mean"] > 0.8
    learnt = [read_extra(run.folder.bundle("trees", fold, "last"))["pixels_learnt_from"] for fold in range(2)]
    assert 0 < sum(learnt) < 0.5 * 192 * 192 * 0.9, "buffers and what Gaussians see of a block are left out"


def test_nothing_is_trained_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = scenes(tmp_path / "data")
    index = {
        "name": "index",
        "network": {
            "architecture": "index", "channels": 2, "index": {"bands": ["a", "b"], "rules": [{"expression": "a - b"}]},
        },
        "input": {"mode": "full", "multiple": 1, "bands": {"names": ["a", "b"], "full_scale": 2047}},
    }  # fmt: skip
    members = (index, member())
    run = maskloom.fit(recipe(*members), data, run=tmp_path / "run", device="cpu", workers=0)
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(UserError, match=r"install it: pip install maskloom\[trees\]$"):
        maskloom.fit(recipe(*members), data, run=tmp_path / "other", device="cpu", workers=0)
    assert not list((tmp_path / "other").rglob("*.safetensors"))
    again = maskloom.fit(recipe(*members), data, run=tmp_path / "run", device="cpu", workers=0)  # all is grown
    assert again.evaluate()["oof"] == run.evaluate()["oof"]
    other = recipe(index | {"name": "other"}, member(), seed=1)  # other trees, in a run that has some
    with pytest.raises(UserError, match="expected LightGBM"):
        maskloom.fit(other, data, run=tmp_path / "run", device="cpu", workers=0)
    assert not list((tmp_path / "run" / "members" / "other").rglob("*.safetensors"))


def test_the_folds_that_trees_are_judged_on_had_no_say_in_them() -> None:
    asked = member(keep="best", training={"epochs": 1, "images_per_epoch": 8, "batch_size": 2, "early_stopping": 3})
    (found,) = recipe(asked).members
    assert found.selected_by == ()
