"""Polygons that lie beside their images: training sees them moved, scores see them as they lie."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import shapely
import tifffile
from shapely.affinity import scale, translate

import maskloom
from maskloom.config import parse
from maskloom.data.image_io import write_png
from maskloom.errors import UserError
from maskloom.files import read_json
from maskloom.models.bundle import read_extra
from maskloom.recipe import Recipe
from maskloom.stages import alignment, train

BANDS = tuple(f"b{number}" for number in range(8))
SIDE = 48
FIELD = shapely.box(14, 12, 34, 36)
BESIDE = 3


def data(folder: Path) -> Path:
    """A Dstl folder of four images in which crops are bright, and their polygons three pixels to the right."""
    (folder / "sixteen_band").mkdir(parents=True)
    rows, sizes = [], []
    for number in range(4):
        name = f"600{number}_0_0"
        pixels = np.random.default_rng(number).normal(2000, 100, (8, SIDE, SIDE))
        pixels[:, 12:36, 14:34] += 6000
        tifffile.imwrite(folder / "sixteen_band" / f"{name}_A.tif", pixels.round().astype(np.uint16))
        sizes.append([name, "0.01", "-0.01"])
        unit = 0.01 / (SIDE * SIDE / (SIDE + 1))  # of the grid, per pixel
        lies = scale(translate(FIELD, BESIDE, 0), unit, -unit, origin=(0, 0))
        for label in range(1, 11):
            rows.append([name, label, shapely.MultiPolygon([lies]).wkt if label == 6 else "MULTIPOLYGON EMPTY"])
    for file, header, lines in (
        ("train_wkt_v4.csv", ["ImageId", "ClassType", "MultipolygonWKT"], rows),
        ("grid_sizes.csv", ["", "Xmax", "Ymin"], sizes),
    ):
        with (folder / file).open("w", newline="") as stream:
            csv.writer(stream).writerows([header, *lines])
    return folder


def recipe(**changes: object) -> Recipe:
    rules = [{"expression": "b0"}] + [None] * 9
    values = {
        "name": "r",
        "metric": "iou",
        "data": {"images": "sixteen_band"},
        "folds": {"kind": "kfold", "count": 2},
        "members": [
            {
                "name": "bright",
                "network": {"architecture": "index", "channels": 8, "index": {"bands": BANDS, "rules": rules}},
                "input": {"mode": "full", "multiple": 1, "bands": {"names": BANDS, "full_scale": 16383}},
            }
        ],
        **changes,
    }
    return parse(Recipe, values)


def learnt(run: maskloom.Run) -> float:
    """Returns the Jaccard index of crops that the classifier reached on what it learnt from."""
    return float(read_extra(run.folder.bundle("bright", 0, "last"))["jaccard_in_training"]["crops"])


def test_training_sees_polygons_on_the_image_and_scores_see_them_as_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = data(tmp_path / "data")
    plain = maskloom.fit(recipe(), folder, run=tmp_path / "plain", device="cpu", workers=0)
    run = maskloom.fit(recipe(alignment={}), folder, run=tmp_path / "run", device="cpu", workers=0)
    stored = [read_json(path) for path in sorted((tmp_path / "run" / "data" / "alignment").glob("600*.json"))]
    assert [(each["x"], each["y"]) for each in stored] == [(-BESIDE, 0)] * 4
    assert learnt(run) == 1 and learnt(plain) < 0.8
    overlap = (20 - BESIDE) / (20 + BESIDE)
    assert run.evaluate()["oof"]["classes"]["crops"] == pytest.approx(overlap, abs=1e-6)

    monkeypatch.setattr(alignment, "find_alignment", None)  # nothing is looked for again
    again = maskloom.fit(recipe(alignment={}), folder, run=tmp_path / "run", device="cpu", workers=0)
    assert learnt(again) == 1


def test_a_member_may_learn_from_polygons_as_they_lie(tmp_path: Path) -> None:
    folder = data(tmp_path / "data")
    members = [recipe().members[0].model_dump(mode="json") | {"name": name} for name in ("bright", "plain")]
    members[1]["aligned"] = False
    run = maskloom.fit(recipe(alignment={}, members=members), folder, run=tmp_path / "run", device="cpu", workers=0)
    as_it_lies = read_extra(run.folder.bundle("plain", 0, "last"))["jaccard_in_training"]["crops"]
    assert learnt(run) == 1 and as_it_lies < 0.8


def test_other_settings_that_move_nothing_else_train_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = data(tmp_path / "data")
    maskloom.fit(recipe(alignment={}), folder, run=tmp_path / "run", device="cpu", workers=0)
    monkeypatch.setattr(train, "search_fold", None)
    again = maskloom.fit(
        recipe(alignment={"minimum_gain": 0.01}), folder, run=tmp_path / "run", device="cpu", workers=0
    )
    assert learnt(again) == 1


def test_what_was_found_and_is_damaged_is_found_again(tmp_path: Path) -> None:
    folder = data(tmp_path / "data")
    maskloom.fit(recipe(alignment={}), folder, run=tmp_path / "run", device="cpu", workers=0)
    one = tmp_path / "run" / "data" / "alignment" / "6001_0_0.json"
    sound = one.read_bytes()
    one.write_bytes(sound.replace(b"-3", b"-2"))
    maskloom.fit(recipe(alignment={}), folder, run=tmp_path / "run", device="cpu", workers=0)
    assert one.read_bytes() == sound


def test_without_polygons_there_is_nothing_to_align(tmp_path: Path) -> None:
    for number in range(2):
        tifffile.imwrite(tmp_path / f"{number}.tif", np.zeros((24, 24, 8), np.uint16), planarconfig="contig")
        (tmp_path / "data" / "images").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{number}.tif").rename(tmp_path / "data" / "images" / f"{number}.tif")
        write_png(tmp_path / "data" / "masks" / f"{number}.png", np.full((24, 24), 255, np.uint8))
    with pytest.raises(UserError, match="alignment: expected truth as polygons"):
        maskloom.fit(
            recipe(alignment={}, data={}, members=[_of_masks()]), tmp_path / "data", run=tmp_path / "run", device="cpu"
        )


def _of_masks() -> dict[str, object]:
    member = recipe().members[0].model_dump(mode="json")
    member["network"]["index"]["rules"] = [{"expression": "b0"}]
    return member


def test_blocks_keep_polygons_as_they_lie() -> None:
    assert "alignment: folds of blocks expect polygons as they lie" in recipe(alignment={}).objection_to_blocks()
