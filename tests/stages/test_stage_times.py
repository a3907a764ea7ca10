"""Times of stages: those of the recipe alone, whatever else lies in the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskloom.config import parse
from maskloom.data.folds import FoldRow, FoldTable
from maskloom.data.mask_coding import MaskCoding
from maskloom.data.sources.base import DataSource
from maskloom.recipe import Recipe
from maskloom.records import Record, Task
from maskloom.run_directory import RunDirectory
from maskloom.stages.fold_tables import FoldTables
from maskloom.stages.stage_times import stage_seconds

TWO, THREE = (FoldTable(tuple(FoldRow(str(row), str(row), row) for row in range(count))) for count in (2, 3))
BELONG = (
    "register", "survey", "folds", "folds/b", "pseudo/0", "train/a/fold0", "train/a/fold1", "train/b/fold2", "oof/a",
    "oof/b", "oof/theirs", "ensemble", "postprocess", "predict", "submit", "report",
)  # fmt: skip
OF_EARLIER_RECIPES = ("folds/a", "folds/gone", "pseudo/1", "train/a/fold2", "train/gone/fold0", "oof/gone")
BARE = ("survey", "folds", "train/a/fold0", "train/a/fold1", "oof/a", "ensemble", "report")


def recipe(*, has_all: bool) -> Recipe:
    parts = {"network": {"weights": "none"}, "input": {"mode": "full"}, "loss": {"terms": [{"kind": "bce"}]}}
    members = [{"name": "a"}, {"name": "b", "folds": {"count": 3}}] if has_all else [{"name": "a"}]
    more = {
        "outside": [{"name": "theirs", "folder": "maps"}],
        "pseudo": [{"members": ["b"], "teachers": ["a"]}],
        "postprocess": {"steps": [{"kind": "holes"}]},
        "registration": {"pairs": [{"file": 0, "image_band": 0, "band": 0}]},
    }
    values = {"name": "r", "metric": "dice", "members": [parts | {"training": {}} | each for each in members]}
    return parse(Recipe, values | (more if has_all else {}))


def source(folder: Path, *, has_all: bool) -> DataSource:
    record = Record(id="x", image=folder / "x.png", size=(4, 4))
    return DataSource(
        layout="folder", root=folder, task=Task(kind="binary", classes=("car",)), coding=MaskCoding(),
        records=(record,), unlabelled=(record,) * has_all, submission="carvana" * has_all,
    )  # fmt: skip


@pytest.mark.parametrize(("has_all", "expected"), [(True, BELONG), (False, BARE)])
def test_stages_of_earlier_recipes_do_not_count(tmp_path: Path, has_all: bool, expected: tuple[str, ...]) -> None:
    run = RunDirectory(tmp_path / "run")
    for stage in (*BELONG, *OF_EARLIER_RECIPES):
        run.finish(stage, "mark", [], 2.0)
    tables = FoldTables(TWO, {"b": THREE} if has_all else {})
    epochs = [{"seconds": 1.0}, {"seconds": 7.5}]
    found = stage_seconds(run, recipe(has_all=has_all), tables, source(tmp_path, has_all=has_all), {"a/fold0": epochs})
    assert found == dict.fromkeys(expected, 2.0) | {"train/a/fold0": 7.5}
