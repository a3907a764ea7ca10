"""A run's folder, from nothing to finished: whose it is, who works in it, and the stages of its recipe.

Knows nothing about where folders come from, nor about what stages do.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from itertools import count
from pathlib import Path

from maskloom.data.sources.base import DataSource
from maskloom.errors import UserError
from maskloom.executors.fence import wait_for_former
from maskloom.executors.sites import Site, Work, usual_loaders
from maskloom.files import TEMPORARY_PREFIX
from maskloom.heartbeat import Heartbeat
from maskloom.integrity import Damaged, read_sealed, write_sealed
from maskloom.pipeline import run_pipeline
from maskloom.progress import Progress, Several
from maskloom.recipe import Recipe
from maskloom.registry import scorers, submitters
from maskloom.run_directory import FORMAT, RunDirectory
from maskloom.run_lock import LOCK, held
from maskloom.run_status import planned_stages
from maskloom.runtime import hardware, make_deterministic, num_cores
from maskloom.stages.context import Context
from maskloom.storage.places import origin_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitting:
    """What is done in a run's folder, and by whom."""

    recipe: Recipe
    source: DataSource
    site: Site
    workers: int | None
    """Loader processes; None: as many as the cores suggest."""
    devices_per_network: int
    progress: Progress

    def run(self, root: Path) -> None:
        """Runs every stage that is not finished yet.

        Raises ``UserError`` for a folder of other things, of other images, or that somebody works in.
        """
        folder = RunDirectory(root)
        _check_empty_or_run(folder, self.progress.note)
        _check_same_data(folder, self.source)
        with held(root):
            wait_for_former(root, self.progress)
            _check_empty_or_run(folder, lambda _: None)  # again: somebody else may have begun and ended since
            _check_same_data(folder, self.source)
            write_sealed(
                folder.facts,
                {
                    "format": FORMAT,
                    "version": version("maskloom"),
                    "data": origin_of(self.source.root),
                    "hardware": hardware(self.site.device),
                },
            )
            make_deterministic()
            heartbeat = Heartbeat(root, command="fit", device=str(self.site.device), stages=self._stages())
            work = Work(run=root, command="fit", loaders=self.workers, is_deterministic=True, sees=(self.source.root,))
            with heartbeat, self.site.workers(work, self.progress) as executor:
                context = Context(
                    run=folder,
                    recipe=self.recipe,
                    source=self.source,
                    device=self.site.device,
                    progress=Several((self.progress, heartbeat)),
                    workers=usual_loaders(num_cores()) if self.workers is None else self.workers,
                    executor=executor,
                    devices_per_network=self.devices_per_network,
                )
                run_pipeline(context, submitters().get(self.source.submission), scorers())

    def _stages(self) -> list[str]:
        source = self.source
        return planned_stages(
            self.recipe.model_dump(mode="json"),
            unlabelled=bool(source.unlabelled),
            submission=bool(source.submission),
        )


def dated_folder(name: str) -> Path:
    """Returns a new folder, made so that none of several runs of one second, or of a clock set back, shares it."""
    stem = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    for number in count(1):
        folder = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError("counting does not end")


def _check_empty_or_run(folder: RunDirectory, note: Callable[[str], None]) -> None:
    """Raises ``UserError`` for a folder of anything else, before a file is put into it."""
    if folder.facts.is_file():
        try:
            RunDirectory.existing(folder.root)
        except Damaged:
            note(f"damaged, and made anew: {folder.facts.name}")
    elif folder.root.is_dir() and any(
        entry.name != LOCK and not entry.name.startswith(TEMPORARY_PREFIX) for entry in folder.root.iterdir()
    ):
        raise UserError(
            f"{folder.root}: expected a run folder or an empty one, found other files; choose another folder"
        )


def _check_same_data(folder: RunDirectory, source: DataSource) -> None:
    """Raises ``UserError`` where a run of other images would be undone, most likely by a mistaken folder.

    Data that was moved, and data that changed in its place, are the run's own.
    """
    try:
        facts, before = read_sealed(folder.facts), read_sealed(folder.source)
    except UserError:  # nothing there, or damaged: made anew
        return
    place, now = origin_of(source.root), source.to_json()
    if facts.get("data") in (None, place):
        return
    known, found = ([record["id"] for record in each.get("records", ())] for each in (before, now))
    if before.get("task") != now["task"] or known != found:
        raise UserError(
            f"{folder.root}: made from the images in {facts['data']}, found other ones in {place}; choose another "
            f"folder for this run, or remove {folder.source} if these are to replace them"
        )
