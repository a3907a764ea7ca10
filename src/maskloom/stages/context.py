"""What every stage is given: the run folder, the recipe, the data, the device, the listener."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from maskloom.data.sources.base import DataSource
from maskloom.progress import Progress
from maskloom.recipe import Recipe
from maskloom.records import MaskFile, Record
from maskloom.run_directory import RunDirectory
from maskloom.stages.fold_tables import FoldTables

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """One run's surroundings, handed to every stage."""

    run: RunDirectory
    recipe: Recipe
    source: DataSource
    device: torch.device
    progress: Progress
    workers: int

    def with_source(self, source: DataSource) -> Context:
        """Returns the same surroundings with other data (after damaged records were left out)."""
        return replace(self, source=source)

    def say(self, notes: Iterable[str]) -> None:
        """Hands notes to the run's listener."""
        for note in notes:
            self.progress.note(note)

    def fold_tables(self) -> FoldTables:
        """Returns the run's fold tables, once the ``folds`` stage is finished."""
        return FoldTables.read(self.run, self.recipe)

    def records(self, ids: set[str]) -> list[Record]:
        """Returns the labelled records of these ids in the source's order.

        Raises ``Damaged`` where the run stores their labels, and these are no longer what they were.
        """
        records = [record for record in self.source.records if record.id in ids]
        self.run.check(record.truth.path for record in records if isinstance(record.truth, MaskFile))
        return records

    def num_channels(self) -> int:
        """Returns the channels of the images, the same for every member (the recipe sees to that)."""
        return self.recipe.members[0].image_channels
