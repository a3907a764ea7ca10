"""The stage on maps made by hand: what is fitted on what, and what is left of images without a single valid pixel."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskloom.config import parse
from maskloom.data.folds import FoldRow, FoldSettings, FoldTable
from maskloom.data.image_io import write_png
from maskloom.data.mask_coding import MaskCoding
from maskloom.data.sources.base import DataSource
from maskloom.encodings.probability_maps import write_map
from maskloom.errors import UserError
from maskloom.files import read_json, write_json
from maskloom.inference.merging import Merge
from maskloom.metrics import from_labels
from maskloom.progress import Silent
from maskloom.recipe import Recipe
from maskloom.records import MaskFile, Record, Task
from maskloom.run_directory import RunDirectory
from maskloom.stages.context import Context
from maskloom.stages.ensemble import Fitting, check_tree, fit_ensemble
from maskloom.stages.fold_tables import FoldTables
from maskloom.stages.scoring import decided

BINARY = Task(kind="binary", classes=("thing",))
CODINGS = {
    "binary": MaskCoding(kind="foreground"),
    "multiclass": MaskCoding(kind="values", values=((0, 0), (1, 1)), ignore=(9,)),
}


def recipe(names: str, **ensemble: Any) -> Recipe:
    members = [
        {
            "name": name, "network": {"weights": "none"}, "input": {"mode": "full"},
            "loss": {"terms": [{"kind": "bce"}]}, "training": {},
        }
        for name in names
    ]  # fmt: skip
    return parse(Recipe, {"name": "r", "metric": "dice", "members": members, "ensemble": ensemble})


def context(
    folder: Path, task: Task, complete: Recipe, masks: list[np.ndarray], maps: Any, folds: list[int]
) -> Context:
    """Returns a run whose networks are done: ``maps(member, mask)`` is what a member predicted for a mask."""
    run = RunDirectory(folder / "run")
    records = []
    for index, mask in enumerate(masks):
        path = folder / f"{index}.png"
        write_png(path, mask)
        records.append(Record(id=str(index), image=path, size=mask.shape, truth=MaskFile(path=path)))  # type: ignore[arg-type]
    for member in complete.members:
        scores = {}
        for record, mask in zip(records, masks, strict=True):
            values = maps(member.name, mask)
            write_map(run.oof_map(member.name, record.id), values)
            truth = np.where(mask == 9, 255, mask).astype(np.uint8)
            counts = from_labels(decided(values, task), truth, task).to_json()
            scores[record.id] = {"views": counts, "plain": counts}
        write_json(run.oof(member.name) / "scores.json", scores)
    FoldTable(tuple(FoldRow(str(index), str(index), fold) for index, fold in enumerate(folds))).to_csv(run.folds)
    source = DataSource(layout="folder", root=folder, task=task, coding=CODINGS[task.kind], records=tuple(records))
    return Context(run=run, recipe=complete, source=source, device=torch.device("cpu"), progress=Silent(), workers=0)


def noisy(member: str, mask: np.ndarray) -> np.ndarray:
    """Member "a" is nearly right everywhere, "b" knows nothing."""
    rng = np.random.default_rng(int(mask.sum()))
    right = np.where(mask == 1, 230, 25).astype(np.uint8)
    return right[None] if member == "a" else rng.integers(0, 256, (1, *mask.shape)).astype(np.uint8)


def halves(count: int) -> list[np.ndarray]:
    masks = [np.zeros((8, 8), np.uint8) for _ in range(count)]
    for index, mask in enumerate(masks):
        mask[: 2 + index % 5] = 1
    return masks


@pytest.mark.parametrize("folds", [[0] * 8 + [-1], [0, 1] * 4 + [-1]])
def test_weights_are_fitted_whatever_the_number_of_folds(tmp_path: Path, folds: list[int]) -> None:
    surroundings = context(tmp_path, BINARY, recipe("ab", weights="fitted"), halves(9), noisy, folds)
    fit_ensemble(surroundings)
    result = read_json(surroundings.run.ensemble)
    assert result["weights"]["a"] > 0.9
    assert result["scores"]["oof"]["mean"] == 1  # only with fitted weights in every part
    assert result["scores"]["half"]["mean"] < 1  # nothing fitted: equal weights


def test_histograms_of_one_set_of_weights_are_kept(tmp_path: Path) -> None:
    folds = [0, 1] * 4
    surroundings = context(tmp_path, BINARY, recipe("ab"), halves(8), noisy, folds)
    fitting = Fitting(surroundings, surroundings.source.records, {str(i): fold for i, fold in enumerate(folds)})
    for share in (0.5, 0.7, 0.9):
        fitting.histograms(surroundings.source.records, {"a": share, "b": 1 - share})
        assert len(fitting._histograms) == 8


def test_an_image_without_a_valid_pixel_has_a_score(tmp_path: Path) -> None:
    task = Task(kind="multiclass", classes=("background", "thing"))
    masks = [*halves(3), np.full((8, 8), 9, np.uint8)]

    def right(_: str, mask: np.ndarray) -> np.ndarray:
        return np.stack([np.where(mask == 1, 0, 255), np.where(mask == 1, 255, 0)]).astype(np.uint8)

    surroundings = context(tmp_path, task, recipe("a"), masks, right, [0, 0, 1, 1])
    fit_ensemble(surroundings)
    images = surroundings.run.ensemble.with_name("images.csv")
    assert [row["dice"] for row in csv.DictReader(images.read_text().splitlines())] == ["1.000000"] * 4


def test_a_stated_tree_is_checked_before_training() -> None:
    tables = FoldTables(FoldTable((FoldRow("x", "x", 0), FoldRow("y", "y", 1))), {})
    check_tree(recipe("ab"), tables)
    check_tree(recipe("ab", tree={"children": ["a/fold0", "a/fold1"]}), tables)
    check_tree(recipe("ab", tree={"children": ["a", "b"]}), tables)
    with pytest.raises(UserError, match=r"found 'a/fold2'; did you mean 'a/fold"):
        check_tree(recipe("ab", tree={"children": ["a/fold0", "a/fold2"]}), tables)
    with pytest.raises(UserError, match="for every fold"):
        check_tree(recipe("ab", tree={"children": ["a/fold0"]}), tables)


def worse_and_better(member: str, mask: np.ndarray) -> np.ndarray:
    """Member "a" is right, "b" misses a row of the object, "c" misses all of it."""
    right = np.where(mask == 1, 255, 0).astype(np.uint8)
    if member == "b":
        right[0] = 0
    return np.zeros_like(right)[None] if member == "c" else right[None]


def test_members_are_weighted_by_rank(tmp_path: Path) -> None:
    surroundings = context(tmp_path, BINARY, recipe("bca", weights="rank"), halves(8), worse_and_better, [0, 1] * 4)
    fit_ensemble(surroundings)
    assert read_json(surroundings.run.ensemble)["weights"] == pytest.approx({"b": 2 / 6, "c": 1 / 6, "a": 3 / 6})


def test_members_are_weighted_by_score(tmp_path: Path) -> None:
    masks = [np.pad(np.ones((2, 8), np.uint8), ((0, 6), (0, 0)))] * 4
    surroundings = context(tmp_path, BINARY, recipe("bc", weights="score"), masks, worse_and_better, [0, 1] * 2)
    fit_ensemble(surroundings)
    # "b" finds one of two rows: Dice 2/3, error 1/3; "c" finds nothing: Dice 0, error 1.
    assert read_json(surroundings.run.ensemble)["weights"] == pytest.approx({"b": 3 / 4, "c": 1 / 4})


def test_a_member_with_folds_of_its_own_is_scored_over_them(tmp_path: Path) -> None:
    complete = recipe("ab")
    own = complete.members[1].model_copy(update={"folds": FoldSettings(count=4)})
    complete = complete.model_copy(update={"members": (complete.members[0], own)})
    surroundings = context(tmp_path, BINARY, complete, halves(8), worse_and_better, [0, 1] * 4)
    rows = tuple(FoldRow(str(index), str(index), index % 4) for index in range(8))
    FoldTable(rows).to_csv(surroundings.run.member_folds("b"))
    fit_ensemble(surroundings)
    result = read_json(surroundings.run.ensemble)
    assert len(result["scores"]["members"]["a"]["folds"]) == 2
    assert len(result["scores"]["members"]["b"]["folds"]) == 4
    leaves = Merge.model_validate(result["tree"]).leaves()
    assert leaves == ["a/fold0", "a/fold1", "b/fold0", "b/fold1", "b/fold2", "b/fold3"]
