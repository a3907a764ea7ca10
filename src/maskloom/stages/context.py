"""What every stage is given: the run folder, the recipe, the data, the device, the listener, who computes its tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from maskloom.data.sources.base import DataSource
from maskloom.executors.tasks import Executor, Here, InProcess
from maskloom.progress import Progress, Silent
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
    executor: Executor = field(default_factory=InProcess)
    devices_per_network: int = 1
    """How many devices, that of these surroundings and those after it, train one network together."""
    go_on: Callable[[], object] = lambda: None
    """To be called now and then by work that tells no steps; see ``Here.go_on``."""

    def __reduce__(self) -> tuple[Callable[..., Context], tuple[Any, ...]]:
        """Travels to another process without those who listen and compute here; see ``at``."""
        return (_arrived, (self.run, self.recipe, self.source, self.device, self.workers, self.devices_per_network))

    def at(self, here: Here) -> Context:
        """Returns the same surroundings where a task runs."""
        device = self.device
        if here.device is not None:
            import torch

            device = torch.device(here.device)
        workers = self.workers if here.loaders is None else here.loaders
        return replace(
            self, device=device, workers=workers, progress=here.progress, executor=InProcess(), go_on=here.go_on
        )  # fmt: skip

    def turn(self, member: str) -> int:
        """Returns the order of a member's trainings among tasks; that of its out-of-fold predictions is one more."""
        return 2 * self.recipe.names.index(member)

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
        return self.checked([record for record in self.source.records if record.id in ids])

    def checked(self, records: list[Record]) -> list[Record]:
        """Returns labelled records whose labels are about to be read; see ``records``."""
        self.run.check(record.truth.path for record in records if isinstance(record.truth, MaskFile))
        return records

    def num_channels(self) -> int:
        """Returns the channels of the images, the same for every member (the recipe sees to that)."""
        return self.recipe.members[0].image_channels


def _arrived(
    run: RunDirectory, recipe: Recipe, source: DataSource, device: torch.device, workers: int, devices_per_network: int
) -> Context:
    return Context(
        run=run,
        recipe=recipe,
        source=source,
        device=device,
        progress=Silent(),
        workers=workers,
        devices_per_network=devices_per_network,
    )
