"""How long each stage of a run took, for its report; stages that an earlier recipe left in the run are passed over.

Knows nothing about what stages do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maskloom.data.sources.base import DataSource
from maskloom.recipe import Recipe
from maskloom.run_directory import RunDirectory
from maskloom.run_status import planned_stages
from maskloom.stages.fold_tables import FoldTables, leaf_name


def stage_seconds(
    run: RunDirectory,
    recipe: Recipe,
    tables: FoldTables,
    source: DataSource,
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, float]:
    """Returns the seconds of each finished stage that the recipe has; of a training in several sessions, those of all.

    ``curves`` are the logged epochs of trainings by the leaf names of their folds.
    """
    stages = _stages_of(recipe, tables, source)
    markers = [run.read_marker(stage) for stage in run.stages() if stage in stages]
    seconds = {marker["stage"]: float(marker["seconds"]) for marker in markers}
    for leaf, epochs in curves.items():
        stage = f"train/{leaf}"
        if epochs and stage in seconds:
            seconds[stage] = max(seconds[stage], float(epochs[-1]["seconds"]))
    return seconds


def _stages_of(recipe: Recipe, tables: FoldTables, source: DataSource) -> set[str]:
    """Returns the names of the stages that the recipe has."""
    planned = planned_stages(
        recipe.model_dump(mode="json"), unlabelled=bool(source.unlabelled), submission=bool(source.submission)
    )
    others = {stage for stage in planned if not stage.startswith("train/")}  # the tables know how many folds there are
    folds = ((member.name, fold) for member in recipe.members for fold in range(tables.of(member.name).num_folds))
    return others | {f"train/{leaf_name(*each)}" for each in folds}
