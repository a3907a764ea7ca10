"""What a finished run scored on every record that it predicted out of fold, post-processed where it says so.

Runs of versions that stored no counts are counted again from their maps, without post-processing: as in the stage
``ensemble``, each part of the records is decided with the weights and thresholds that were fitted on the others, so
these counts are those that the run's own score was made of. Knows nothing about other runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from maskloom.config import load_yaml, parse
from maskloom.data.sources.base import DataSource
from maskloom.ensembling.crossfit import crossfit, deal_parts
from maskloom.ensembling.thresholds import HALF
from maskloom.errors import UserError
from maskloom.integrity import read_sealed
from maskloom.metrics import Counts, score_records
from maskloom.progress import Progress
from maskloom.recipe import Recipe
from maskloom.records import Record
from maskloom.run_directory import RunDirectory
from maskloom.stages.block_folds import with_parts
from maskloom.stages.context import Context
from maskloom.stages.ensemble import Fitting, asked_members, counts_path, load_ensemble, read_counts
from maskloom.stages.fold_tables import FoldTables
from maskloom.stages.member_weights import Weights
from maskloom.stages.postprocess import with_steps_path
from maskloom.storage.places import local_data
from maskloom.storage.urls import path_of, url_of

_SAME_SCORE = 5e-4
"""Scores of the same maps may differ so much between machines, where weights were fitted; other masks differ more."""


@dataclass(frozen=True)
class FinishedRun:
    """A finished run as far as its out-of-fold results need it."""

    folder: RunDirectory
    recipe: Recipe
    source: DataSource
    """As it was described; where it is at a URL, its files are looked for only when they are read."""

    @classmethod
    def open(cls, root: Path) -> FinishedRun:
        """Returns the run at ``root``; raises ``UserError`` where there is none, or one that is not finished."""
        folder = RunDirectory.existing(root)
        folder.decision()
        recipe = parse(Recipe, load_yaml(folder.recipe), origin=str(folder.recipe))
        return cls(folder, recipe, DataSource.from_json(read_sealed(folder.source), path_of(_data_of(folder))))

    @cached_property
    def folds(self) -> dict[str, int]:
        """The fold of every record that has an out-of-fold result."""
        return self._tables.validated(asked_members(self.recipe))

    @cached_property
    def records(self) -> list[Record]:
        """These records, in the source's order."""
        source = with_parts(self.source, self._tables.blocks, self.folder)
        return [record for record in source.records if record.id in self.folds]

    @property
    def lacks_postprocessing(self) -> bool:
        """Whether its counts are those before post-processing, though its predictions are post-processed."""
        return bool(self.recipe.postprocess.steps) and not with_steps_path(self.folder).is_file()

    def counts(self, progress: Progress) -> dict[str, Counts]:
        """Returns the counts of every record's mask; reads all maps and masks where these are not stored.

        Raises ``UserError`` where the masks are gone or no longer those of the run.
        """
        stored_counts = with_steps_path(self.folder) if self.recipe.postprocess.steps else counts_path(self.folder)
        if stored_counts.is_file():
            return read_counts(self.folder.checked(stored_counts))
        place = _data_of(self.folder)
        if url_of(place) is not None:
            there = DataSource.from_json(read_sealed(self.folder.source), local_data(place))
            return replace(self, source=there)._compared(progress)
        return self._compared(progress)

    def _compared(self, progress: Progress) -> dict[str, Counts]:
        """Returns the counts of masks that are read, compared with the score that the run states."""
        if not self.source.root.exists():
            raise UserError(
                f"{self.folder.root}: expected its masks in {self.source.root}, found no such place; start `fit` with "
                "their new place (--data), which repeats nothing"
            )
        progress.stage(f"count {self.folder.root}", cached=False)
        counts = self._counted(progress)
        score = score_records(list(counts.values()), self.recipe.metric)
        stored = load_ensemble(self.folder).scores["oof"]["all_images"]
        if abs(score - stored) > _SAME_SCORE:
            raise UserError(
                f"{self.folder.root}: expected the masks that gave its score of {stored:.6f}, found others, which give "
                f"{score:.6f}; start `fit` again"
            )
        return counts

    def _counted(self, progress: Progress) -> dict[str, Counts]:
        recipe, records, fold_of = self.recipe, self.records, self.folds
        context = Context(
            run=self.folder,
            recipe=recipe,
            source=self.source,
            device=torch.device("cpu"),
            progress=progress,
            workers=0,
        )
        parts = deal_parts(
            [record.group for record in records], [fold_of[record.id] for record in records], seed=recipe.seed
        )
        fitting = Fitting(context, records, fold_of)
        if len(set(parts)) < 2:  # a single record: nothing was fitted
            return fitting.counts(records, fitting.equal_weights, [HALF] * self.source.task.num_maps)
        done = 0

        def apply(fitted: tuple[Weights, list[int]], inside: list[Record]) -> dict[str, Counts]:
            nonlocal done
            found = fitting.counts(inside, *fitted)
            done += len(inside)
            progress.advance(done, len(records))
            return found

        scored = crossfit(records, parts, fit=fitting.fit, apply=apply)
        return {record_id: count for part in scored.values() for record_id, count in part.items()}

    @cached_property
    def _tables(self) -> FoldTables:
        return FoldTables.read(self.folder, self.recipe)


def _data_of(folder: RunDirectory) -> str:
    """Returns where the data of a run are: a path or a URL."""
    return str(read_sealed(folder.facts)["data"])
