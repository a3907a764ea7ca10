"""The Dstl recipe end to end on small drawn towns: registered, trained per class, joined, and written as WKT."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import shapely

import maskloom
from maskloom.config import parse
from maskloom.contests.dstl import open_dstl, validate
from maskloom.contests.dstl.deliver import WATER_FILE
from maskloom.contests.dstl.stand_in import write_stand_in
from maskloom.contests.dstl.submission import read_submission
from maskloom.contests.dstl.third import NETWORK_CLASSES, dstl_3rd
from maskloom.contests.dstl.truth import CLASSES, label_of, read_rows
from maskloom.data import band_registration as room
from maskloom.data.sources.base import DataSettings
from maskloom.errors import UserError
from maskloom.files import read_json
from maskloom.rasters.registration import Registration
from maskloom.recipe import Recipe
from scenes import described_scenes


def test_the_recipe_is_what_is_published() -> None:
    recipe = dstl_3rd(described_scenes(25), device="cpu")
    assert [member.classes for member in recipe.members] == [(name,) for name in NETWORK_CLASSES]
    assert {member.network.channels for member in recipe.members} == {16}
    assert {member.image_channels for member in recipe.members} == {12}
    one = recipe.member("tracks")
    assert (one.training.batch_size, one.training.images_per_epoch, one.training.epochs) == (96, 400 * 96, 100)
    assert (one.input.size, one.input.margin, one.input.overlap) == ((112, 112), 16, 0.0)
    assert [phase.optimiser.lr for phase in one.training.phases if phase.optimiser] == [1e-4]
    assert (recipe.inference.views, recipe.inference.view_merge) == ("flips_transpose", "geometric")


def test_other_data_is_refused() -> None:
    with pytest.raises(UserError, match="found SWIR bands alone; add the others"):
        dstl_3rd(described_scenes(5, swir=True), device="cpu")
    with pytest.raises(UserError, match="found the layout folder; choose default"):
        dstl_3rd(replace(described_scenes(5), layout="folder"), device="cpu")


def two_members(folder: Path) -> Recipe:
    """Two of the six networks at smoke scale, on windows that are read alone."""
    recipe = dstl_3rd(open_dstl(folder, DataSettings()), device="cpu", scale="smoke")
    values = recipe.model_dump(mode="json")
    values["members"] = [member for member in values["members"] if member["name"] in ("buildings", "trees")]
    values["inference"]["views"] = "none"
    values["members"][0]["input"]["scale"] = 1.0
    return parse(Recipe, values)


def test_end_to_end(tmp_path: Path) -> None:
    data, folder = tmp_path / "data", tmp_path / "run"
    write_stand_in(data, images=5, test_images=1, scale=0.08, seed=5)  # a river crosses the test image
    run = maskloom.fit(two_members(data), data, run=folder, device="cpu", workers=0)

    shifts = json.loads((data / "shifts.json").read_text())
    assert len(shifts) == 5
    for image, files in shifts.items():
        found = read_json(folder / "data" / "registration" / f"{image}.json")["0"]["moved"]
        assert found[2] == pytest.approx(files["M"]["x"], abs=0.1)
        assert found[5] == pytest.approx(files["M"]["y"], abs=0.1)

    scores = run.evaluate()
    assert set(scores["members"]["buildings"]["classes"]) == {"buildings"}
    assert set(scores["oof"]["classes"]) == set(open_dstl(data, DataSettings()).task.classes)

    sample = data / "sample_submission.csv"
    validate(folder / "submission.csv.gz", sample)
    rows = {row.label: row.polygons for row in read_submission(folder / "submission.csv.gz")}
    assert len(rows) == 10
    found = {CLASSES[label]: shapely.union_all(polygons) for label, polygons in rows.items() if polygons}
    assert set(found) == {"buildings", "trees", "fast_water"}  # what two networks and the index of water can know
    solution = {CLASSES[label_of(data, row)]: row.wkt for row in read_rows(data / "solution_wkt.csv")}
    river = shapely.from_wkt(solution["fast_water"])
    assert found["fast_water"].area > 0.4 * river.area
    assert found["fast_water"].intersection(river).area > 0.8 * found["fast_water"].area
    assert found["fast_water"].intersection(found["buildings"]).area == pytest.approx(0, abs=1e-12)
    assert (folder / "report.html").is_file()

    assert not (folder / WATER_FILE).exists()
    searched = ["delivery.water=search"]
    maskloom.fit(two_members(data), data, run=folder, device="cpu", workers=0, settings=searched)
    chosen = read_json(folder / WATER_FILE)
    assert set(chosen) >= {record.group for record in open_dstl(data, DataSettings()).records}
    validate(folder / "submission.csv.gz", sample)
    rows = {row.label: row.polygons for row in read_submission(folder / "submission.csv.gz")}
    water = shapely.union_all([*rows[CLASSES.index("fast_water")], *rows[CLASSES.index("slow_water")]])
    assert water.intersection(river).area > 0.4 * river.area


def test_what_cannot_be_registered_stops_the_run_or_stays_as_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, folder = tmp_path / "data", tmp_path / "run"
    write_stand_in(data, images=3, scale=0.04, seed=6)
    recipe = two_members(data)
    first = open_dstl(data, DataSettings()).records[0].id
    found = room.register_files

    def failing(image: Path, file: Path, **settings: Any) -> Registration:
        if image.stem == first:
            raise UserError("nothing found")
        return found(image, file, **settings)

    monkeypatch.setattr(room, "register_files", failing)
    with pytest.raises(UserError, match=r"nothing found; or leave such files as they lie: --set registration\.failed"):
        maskloom.fit(recipe, data, run=folder, device="cpu", workers=0)

    monkeypatch.setattr("maskloom.pipeline.with_registration", stop)
    with pytest.raises(Stopped):
        maskloom.fit(recipe, data, run=folder, device="cpu", workers=0, settings=["registration.failed=leave"])
    left = {path.stem: read_json(path) for path in (folder / "data" / "registration").glob("6*.json")}
    assert left[first] == {} and len(left) == 3
    assert all(set(files) == {"0"} for image, files in left.items() if image != first)


class Stopped(Exception):
    """The stage is done."""


def stop(_: object) -> None:
    raise Stopped
