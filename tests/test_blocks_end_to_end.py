"""One raster and its mask: divided into blocks, learnt from, scored, reported, and predicted again."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import maskloom
from maskloom.data.folds import FoldSettings
from maskloom.data.spatial_folds import SpatialFoldTable
from maskloom.errors import UserError
from maskloom.files import checksum
from maskloom.rasters.georeference import Georeference
from maskloom.rasters.reading import open_raster
from maskloom.rasters.writing import write_geotiff
from maskloom.windows import Window
from small import SMALL

PLACE = Georeference("EPSG:32633", (0.5, 0.0, 500_000.0, 0.0, -0.5, 100_000.0))
SIZE = (200, 260)


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright roofs on dark ground, the lower right corner without data."""
    folder = tmp_path_factory.mktemp("town") / "data"
    rng = np.random.default_rng(0)
    labels = np.zeros(SIZE, np.uint8)
    for top, left in rng.integers(0, 230, (40, 2)):
        labels[top : top + 12, left : left + 15] = 255
    pixels = rng.integers(30, 90, (3, *SIZE)).astype(np.uint8)
    pixels[:, labels > 0] += 120
    pixels[:, 190:, 240:] = 0
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    write_geotiff(folder / "images" / "town.tif", pixels, PLACE, nodata=0)
    write_geotiff(folder / "masks" / "town.tif", labels, PLACE)
    return folder


def test_one_raster_is_divided_learnt_and_scored(town: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = maskloom.fit("default", town, run=folder, settings=SMALL, device="cpu", workers=0)
    table = SpatialFoldTable.from_csv(folder / "folds.csv")
    assert table.num_folds == 2 and {row.scene for row in table.rows} == {"town"}
    evaluation = run.evaluate()
    assert len(evaluation["oof"]["folds"]) == 2 and 0 <= evaluation["oof"]["mean"] <= 1
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert re.search(r"town/r\d+c\d+", report)
    with open_raster(folder / "oof" / "unet" / "scenes" / "town.tif") as raster:
        values, _ = raster.read(Window(0, 0, *SIZE))
        assert raster.georeference == PLACE and not values[190:, 240:].any() and values.any()
    run.predict(town / "images", out=tmp_path / "out", to="geotiff")
    with open_raster(tmp_path / "out" / "town.tif") as raster:
        assert raster.size == SIZE and raster.georeference == PLACE

    kept = {path: checksum(path) for path in sorted(folder.rglob("last.safetensors"))}
    again = maskloom.fit("default", town, run=folder, settings=SMALL, device="cpu", workers=0)
    assert again.evaluate() == evaluation
    handed_back = [*SMALL, "folds.kind=table", f"folds.table={folder / 'folds.csv'}"]
    other = maskloom.fit("default", town, run=tmp_path / "other", settings=handed_back, device="cpu", workers=0)
    assert other.evaluate() == evaluation
    assert [checksum(tmp_path / "other" / path.relative_to(folder)) for path in kept] == list(kept.values())


def test_what_is_stated_for_blocks(town: Path, tmp_path: Path) -> None:
    from maskloom.api import plan

    stated = [*SMALL, "folds.side=30", "folds.unit=crs", "folds.buffer=8", "folds.count=3", "folds.balance=classes"]
    recipe, _ = plan("default", town, settings=stated, device="cpu")
    assert recipe.folds == FoldSettings(kind="blocks", side=30, unit="crs", buffer=8, count=3, balance="classes")
    with pytest.raises(UserError, match="found mode full"):
        plan("default", town, settings=[*stated, "members.0.input={mode: full}"], device="cpu")
