"""The stage on maps made by hand: what is chosen on what, that it is scored on other parts, and what is left of it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskloom.config import parse
from maskloom.data.folds import FoldRow, FoldTable
from maskloom.data.image_io import write_png
from maskloom.data.mask_coding import MaskCoding
from maskloom.data.sources.base import DataSource
from maskloom.encodings.probability_maps import write_map
from maskloom.errors import UserError
from maskloom.files import read_json
from maskloom.progress import Silent
from maskloom.recipe import Recipe
from maskloom.records import MaskFile, Record, Task
from maskloom.run_directory import RunDirectory
from maskloom.stages import postprocess as stage
from maskloom.stages.context import Context
from maskloom.stages.ensemble import asked_members, fit_ensemble
from maskloom.stages.postprocess import changed_examples, check_postprocess, fit_postprocess, load_postprocessor

BINARY = Task(kind="binary", classes=("car",))
SIZE = (24, 40)


def recipe(*steps: dict[str, Any], names: str = "a", tree: Any = None, **more: Any) -> Recipe:
    members = [
        {
            "name": name, "network": {"weights": "none"}, "input": {"mode": "full"},
            "loss": {"terms": [{"kind": "bce"}]}, "training": {},
        }
        for name in names
    ]  # fmt: skip
    values = {"name": "r", "metric": "dice", "members": members, "postprocess": {"steps": list(steps), **more}}
    return parse(Recipe, values | {"ensemble": {"tree": tree, "thresholds": 0.5}})


def car(index: int) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[6:20, 3 : 30 + index % 5] = 1
    return mask


def holed(index: int, mask: np.ndarray) -> np.ndarray:
    """Every car has a window that is not in its mask."""
    values = np.where(mask == 1, 220, 20).astype(np.uint8)
    values[9 : 11 + index % 3, 10:15] = 60
    return values


def context(folder: Path, complete: Recipe, maps: Any, *, count: int = 12, folds: Any = None) -> Context:
    """Returns a run whose networks are done: ``maps(index, mask)`` is what its members predicted for a mask."""
    run = RunDirectory(folder / "run")
    records, rows = [], []
    for index in range(count):
        path = folder / f"{index}.png"
        write_png(path, car(index))
        write_png(folder / "images" / f"{index}.png", np.repeat(car(index)[:, :, None] * 90, 3, axis=2))
        image = folder / "images" / f"{index}.png"
        records.append(Record(id=str(index), image=image, size=SIZE, group=f"car{index}", truth=MaskFile(path=path)))
        rows.append(FoldRow(str(index), f"car{index}", index % 3 if folds is None else folds[index]))
        for member in complete.members:
            values = maps(index, car(index))
            write_map(run.oof_map(member.name, str(index)), (values if member.name != "blind" else values * 0)[None])
    FoldTable(tuple(rows)).to_csv(run.folds)
    coding = MaskCoding(kind="foreground")
    source = DataSource(layout="folder", root=folder, task=BINARY, coding=coding, records=tuple(records))
    return Context(run=run, recipe=complete, source=source, device=torch.device("cpu"), progress=Silent(), workers=0)


def fitted(surroundings: Context, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs the ensemble stage without the members' own scores, then this one."""
    monkeypatch.setattr("maskloom.stages.ensemble._member_scores", lambda *_: {"mean": 0.0})
    fit_ensemble(surroundings)
    files = fit_postprocess(surroundings)
    assert all(path.is_file() for path in files)
    found: dict[str, Any] = read_json(surroundings.run.root / "ensemble" / "postprocess.json")
    return found


def test_what_helps_every_car_is_switched_on_and_scored_on_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    surroundings = context(tmp_path, recipe({"kind": "holes"}, {"kind": "far"}), holed)
    found = fitted(surroundings, monkeypatch)
    assert [step["kind"] for step in found["steps"]] == ["holes"]
    assert [trial["chosen"] for trial in found["trials"]] == [True, False]
    assert found["trials"][0]["text"] == "fill holes (car)"
    assert found["steps_of_parts"] == {str(part): ["fill holes (car)"] for part in range(3)}
    assert found["scores"]["with"]["mean"] == 1
    ensemble = read_json(surroundings.run.ensemble)
    assert found["scores"]["without"] == ensemble["scores"]["oof"]  # fitted and scored in the same way
    assert found["gain"]["mean"] == pytest.approx(1 - ensemble["scores"]["oof"]["all_images"], abs=2e-6)
    assert found["gain"]["low"] > 0 and found["gain"]["num_groups"] == 12
    rows = list(csv.DictReader((surroundings.run.root / "ensemble" / "postprocess.csv").read_text().splitlines()))
    assert [row["after"] for row in rows] == ["1.000000"] * 12 and all(float(row["before"]) < 1 for row in rows)
    postprocessor = load_postprocessor(surroundings.run, BINARY)
    values = holed(0, car(0))
    labels = (values >= 128).astype(np.uint8)
    assert np.array_equal(postprocessor(labels, {"result": values[None]}), car(0))


def test_a_step_chosen_by_one_part_is_scored_on_that_part_alone_by_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Holes are to be filled in folds 1 and 2 and are real in fold 0, whose records must be scored by the others."""
    surroundings = context(tmp_path, recipe({"kind": "holes"}), holed, count=18)
    for record in surroundings.source.records:
        if int(record.id) % 3 == 0:
            assert isinstance(record.truth, MaskFile)
            write_png(record.truth.path, (holed(int(record.id), car(int(record.id))) >= 128).astype(np.uint8))
    found = fitted(surroundings, monkeypatch)
    assert found["steps_of_parts"]["0"] == ["fill holes (car)"]  # chosen on folds 1 and 2, where it always helps
    assert found["scores"]["without"]["folds"][0] == 1 > found["scores"]["with"]["folds"][0]


def test_nothing_is_fitted_for_steps_that_are_always_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    surroundings = context(tmp_path, recipe({"kind": "holes"}, choose="always"), lambda _, mask: mask * 255, count=4)
    found = fitted(surroundings, monkeypatch)
    assert [step["kind"] for step in found["steps"]] == ["holes"]
    assert found["gain"]["mean"] == 0 and found["scores"]["with"] == found["scores"]["without"]
    assert changed_examples(surroundings.run, surroundings.recipe, surroundings.source, 3) == []


def test_a_fitted_threshold_is_a_step_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ensemble states one half; every car has a rim that only a lower threshold takes in."""

    def rimmed(index: int, mask: np.ndarray) -> np.ndarray:
        values = np.where(mask == 1, 220, 20).astype(np.uint8)
        values[6] = np.where(mask[6] == 1, 80, 20)
        return values

    surroundings = context(tmp_path, recipe({"kind": "threshold"}), rimmed)
    found = fitted(surroundings, monkeypatch)
    (step,) = found["steps"]
    assert step["kind"] == "threshold" and 21 <= round(255 * step["value"]) <= 80
    assert found["scores"]["with"]["mean"] == 1 > found["scores"]["without"]["mean"]


def test_steps_read_the_map_of_a_tap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {"children": [{"name": "seer", "children": ["a"]}, {"children": ["b"]}]}
    step = {
        "kind": "hull",
        "map": "seer",
        "minimum_area": 9,
        "margin": 3,
        "iterations": 0,
        "top": 1,
        "scale_pixels": False,
    }

    def unsure(index: int, mask: np.ndarray) -> np.ndarray:
        values = np.where(mask == 1, 220, 20).astype(np.uint8)
        values[6:12, 8:20] = 100
        return values

    surroundings = context(tmp_path, recipe(step, names="ab", tree=tree), unsure)
    check_postprocess(surroundings.recipe, BINARY)
    assert asked_members(surroundings.recipe) == ["a", "b"]
    found = fitted(surroundings, monkeypatch)
    assert [step["kind"] for step in found["steps"]] == ["hull"] and found["scores"]["with"]["mean"] == 1
    examples = changed_examples(surroundings.run, surroundings.recipe, surroundings.source, 2)
    assert len(examples) == 2 and examples[0].score_before < examples[0].score_after == 1
    assert examples[0].image.shape == (*SIZE, 3) and np.array_equal(examples[0].after, examples[0].truth)
    with pytest.raises(UserError, match=r"steps\.0\.map"):
        check_postprocess(recipe(step, names="ab"), BINARY)


def test_a_single_record_is_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    surroundings = context(tmp_path, recipe({"kind": "holes"}), holed, count=2, folds=[0, -1])
    found = fitted(surroundings, monkeypatch)
    assert found["steps"] == [] and "1 group(s) cannot tell" in found["trials"][0]["why"]


def test_maps_are_read_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more maps are held than threads work, however many records there are."""
    held, most = 0, 0
    original = stage._maps

    class Held(dict[str, np.ndarray]):
        def __del__(self) -> None:
            nonlocal held
            held -= 1

    def counted(*arguments: Any) -> Held:
        nonlocal held, most
        held += 1
        most = max(most, held)
        return Held(original(*arguments))

    monkeypatch.setattr(stage, "_maps", counted)
    fitted(context(tmp_path, recipe({"kind": "holes"}), holed, count=24), monkeypatch)
    assert 1 <= most <= 8


def test_a_run_without_the_stage_changes_nothing(tmp_path: Path) -> None:
    labels = np.ones(SIZE, np.uint8)
    assert load_postprocessor(RunDirectory(tmp_path), BINARY)(labels, {}) is labels
