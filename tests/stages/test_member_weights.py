"""Weights per class in a run: fitted on maps made by hand, cross-fitted, stored, told and used; and who may ask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import maskloom.stages.ensemble as stage
from maskloom.config import parse, to_yaml
from maskloom.data.folds import FoldRow, FoldTable
from maskloom.data.image_io import write_png
from maskloom.data.mask_coding import MaskCoding
from maskloom.data.sources.base import DataSource
from maskloom.encodings.probability_maps import write_map
from maskloom.errors import UserError
from maskloom.files import read_json, write_json, write_text
from maskloom.inference.merging import Merge
from maskloom.metrics import from_labels
from maskloom.progress import Silent
from maskloom.recipe import Recipe
from maskloom.records import MaskFile, Record, Task
from maskloom.run_directory import RunDirectory
from maskloom.stages.context import Context
from maskloom.stages.ensemble import fit_ensemble, load_ensemble
from maskloom.stages.evaluation import evaluation, score_lines
from maskloom.stages.member_weights import MemberWeights, check_member_weights
from maskloom.stages.scoring import decided

TASK = Task(kind="multilabel", classes=("water", "crops"))
"""Not in the order of the alphabet, in which files hold them."""
Maps = Callable[[str, np.ndarray], np.ndarray]


def recipe(*members: dict[str, Any], **ensemble: Any) -> Recipe:
    parts = {
        "network": {"weights": "none"}, "input": {"mode": "full"}, "loss": {"terms": [{"kind": "bce"}]}, "training": {},
    }  # fmt: skip
    values = {"name": "r", "metric": "iou", "members": [parts | each for each in members], "ensemble": ensemble}
    return parse(Recipe, values)


def context(folder: Path, complete: Recipe, maps: Maps, *, folds: int = 2) -> Context:
    """Returns a run of eight records whose networks are done: ``maps(member, truth)`` is what a member predicted."""
    run, records, truths = RunDirectory(folder / "run"), [], {}
    for index in range(8):
        truth = np.zeros((2, 8, 8), np.uint8)
        truth[0, : 2 + index % 5], truth[1, :, : 1 + index % 4] = 1, 1
        path = folder / f"{index}.png"
        write_png(path, truth.reshape(-1, 8))
        records.append(Record(id=str(index), image=path, size=(8, 8), truth=MaskFile(path=path, coded="labels")))
        truths[str(index)] = truth
    for member in complete.members:
        scores, part = {}, member.task_of(TASK)
        own = [TASK.classes.index(name) for name in part.classes]
        for name, truth in truths.items():
            values = maps(member.name, truth)
            write_map(run.oof_map(member.name, name), values)
            counts = from_labels(decided(values[own], part), truth[own], part).to_json()
            scores[name] = {"views": counts, "plain": counts}
        write_json(run.oof(member.name) / "scores.json", scores)
    FoldTable(tuple(FoldRow(str(index), str(index), index % folds) for index in range(8))).to_csv(run.folds)
    write_text(run.recipe, to_yaml(complete))
    source = DataSource(layout="folder", root=folder, task=TASK, coding=MaskCoding(), records=tuple(records))
    return Context(run=run, recipe=complete, source=source, device=torch.device("cpu"), progress=Silent(), workers=0)


def experts(member: str, truth: np.ndarray) -> np.ndarray:
    """ "lake" is right about water, "farm" about crops; of the other class each is often sure of what is wrong."""
    known = {"lake": 0, "farm": 1}[member]
    values = np.where(truth == 1, 230, 25).astype(np.uint8)
    values[1 - known] = np.random.default_rng(int(truth.sum())).integers(0, 256, truth.shape[1:])
    return values


def test_each_class_has_its_expert(tmp_path: Path) -> None:
    surroundings = context(tmp_path, recipe({"name": "lake"}, {"name": "farm"}, weights="fitted_per_class"), experts)
    fit_ensemble(surroundings)
    stored = read_json(surroundings.run.ensemble)
    assert stored["weights"]["lake"] == {"water": pytest.approx(1), "crops": pytest.approx(0)}
    assert stored["weights"]["farm"] == {"water": pytest.approx(0), "crops": pytest.approx(1)}
    assert Merge.model_validate(stored["tree"]).weights == (pytest.approx((1, 0)), pytest.approx((0, 1)))
    assert stored["scores"]["oof"]["mean"] == 1, "only with the experts' weights in every part"
    assert stored["scores"]["half"]["mean"] < 1, "nothing fitted: equal weights"

    found = evaluation(surroundings.run)
    assert list(found["weights"]) == ["lake", "farm"] and list(found["weights"]["farm"]) == ["water", "crops"]
    assert load_ensemble(surroundings.run).weights == stored["weights"]
    lines = [line.split() for line in score_lines(found)]
    head = next(number for number, line in enumerate(lines) if line[-3:] == ["weight", "of", "farm"])
    assert lines[head][-6:-3] == ["weight", "of", "lake"]
    told = {line[0]: [float(cell) for cell in line[-2:]] for line in lines[head + 1 : head + 3]}
    assert told == {"water": [1, 0], "crops": [0, 1]}


def test_one_weight_for_all_classes_fits_neither(tmp_path: Path) -> None:
    surroundings = context(tmp_path, recipe({"name": "lake"}, {"name": "farm"}, weights="fitted"), experts)
    fit_ensemble(surroundings)
    stored = read_json(surroundings.run.ensemble)
    assert 0.2 < stored["weights"]["lake"] < 0.8 and stored["scores"]["oof"]["mean"] < 1
    assert all("weight of" not in line for line in score_lines(evaluation(surroundings.run)))


def test_the_cross_fitted_score_uses_weights_of_the_other_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first fold "lake" knows water, in the second "farm" does: what one fold teaches misleads in the other."""

    def turning(member: str, truth: np.ndarray) -> np.ndarray:
        index = int(truth[0].sum()) // 8 - 2
        right = (member == "lake") == (index % 2 == 0)
        return np.where(truth == (1 if right else 0), 200, 55).astype(np.uint8)

    asked: list[tuple[set[str], Any]] = []
    plain = stage.Fitting.counts

    def counts(self: stage.Fitting, records: Any, weights: Any, *others: Any, **more: Any) -> Any:
        asked.append(({record.id for record in records}, weights))
        return plain(self, records, weights, *others, **more)

    monkeypatch.setattr(stage.Fitting, "counts", counts)
    two = recipe({"name": "lake"}, {"name": "farm"}, weights="fitted_per_class")
    surroundings = context(tmp_path, two, turning)
    fit_ensemble(surroundings)
    folds = FoldTable.from_csv(surroundings.run.folds).fold_of()
    for inside, weights in asked[:2]:
        assert len({folds[name] for name in inside}) == 1
        others = [record for record in surroundings.source.records if record.id not in inside]
        assert weights == MemberWeights(surroundings, ["lake", "farm"], others, folds).fit(others)
    assert asked[0][1] != asked[1][1]


def test_a_member_of_some_classes_has_no_weight_in_the_others(tmp_path: Path) -> None:
    def partly(member: str, truth: np.ndarray) -> np.ndarray:
        if member == "lake":
            return experts(member, truth) * np.array([1, 0], np.uint8)[:, None, None]
        return np.random.default_rng(int(truth.sum())).integers(0, 256, truth.shape).astype(np.uint8)

    members = [{"name": "lake", "classes": ["water"]}, {"name": "both"}]
    surroundings = context(tmp_path, recipe(*members, weights="fitted_per_class"), partly)
    fit_ensemble(surroundings)
    stored = read_json(surroundings.run.ensemble)
    assert stored["weights"]["lake"] == {"water": pytest.approx(1), "crops": 0.0}
    assert stored["weights"]["both"] == {"water": pytest.approx(0), "crops": 1.0}


def test_weights_that_do_not_differ_are_one_number(tmp_path: Path) -> None:
    def alike(member: str, truth: np.ndarray) -> np.ndarray:
        return np.where(truth == 1, 230, 25).astype(np.uint8)

    two = recipe({"name": "lake"}, {"name": "farm"}, weights="fitted_per_class")
    surroundings = context(tmp_path, two, alike)
    fit_ensemble(surroundings)
    stored = read_json(surroundings.run.ensemble)
    assert stored["weights"] == {"lake": 0.5, "farm": 0.5} and stored["tree"]["weights"] == [0.5, 0.5]


def test_shares_of_a_stated_tree_are_by_class_where_it_states_them(tmp_path: Path) -> None:
    tree = {"children": [{"children": ["lake", "farm"], "weights": [[3, 0], [1, 2]]}, "farm"], "weights": [1, 1]}
    surroundings = context(tmp_path, recipe({"name": "lake"}, {"name": "farm"}, tree=tree), experts)
    fit_ensemble(surroundings)
    weights = evaluation(surroundings.run)["weights"]
    assert weights == {"lake": {"water": 0.375, "crops": 0.0}, "farm": {"water": 0.625, "crops": 1.0}}


def test_weights_per_class_need_classes_that_are_merged_one_by_one() -> None:
    fitted = recipe({"name": "a"}, weights="fitted_per_class")
    check_member_weights(fitted, TASK)
    for kind, classes in (("binary", ("car",)), ("multiclass", ("road", "car"))):
        task = Task(kind=kind, classes=classes)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=rf"^ensemble\.weights: fitted_per_class .*found a {kind} one; use fitted$"):
            check_member_weights(fitted, task)
    stated = recipe({"name": "a"}, tree={"children": ["a"], "weights": [[1, 1, 1]]})
    with pytest.raises(UserError, match="expected weights of 2 classes, found a list of 3"):
        check_member_weights(stated, TASK)
    with pytest.raises(UserError, match="state equal or fitted_per_class"):
        recipe({"name": "a", "classes": ["water"]}, weights="fitted")
    with pytest.raises(UserError, match="fitted_per_class needs the standard tree"):
        recipe({"name": "a"}, weights="fitted_per_class", tree={"children": ["a"]})
