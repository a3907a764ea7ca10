"""Rasters of any size through a finished run: blocks shared among processes, then rasters, polygons or tables.

Every process that is started with the same command predicts blocks that no other one is at, stores each block's 8-bit
maps below ``.blocks``, and waits until all are there; one of them writes what was asked for. A claim is a lock of the
kernel's, which ends with its process, so a killed process costs the blocks that it was at. What is written depends
neither on who predicted which block nor on the order.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Unpack

import numpy as np

from maskloom.config import load_yaml, parse
from maskloom.data.image_kinds import Accepted
from maskloom.data.input_policy import InputPolicy
from maskloom.data.sources.base import DataSettings, DataSource
from maskloom.encodings.polygon_settings import PolygonChanges, PolygonSettings
from maskloom.ensembling.precedence import Precedence, numbered
from maskloom.ensembling.thresholds import decide
from maskloom.errors import BadFile, UserError, closest
from maskloom.executors.tasks import Executor
from maskloom.files import TEMPORARY_PREFIX, fingerprint
from maskloom.inference.blocks import block_grid
from maskloom.inference.guidance import GuidanceSettings
from maskloom.inference.merging import RESULT
from maskloom.masks import clear_overlaps
from maskloom.progress import Progress
from maskloom.recipe import Recipe
from maskloom.records import BandFile
from maskloom.run_directory import RunDirectory
from maskloom.runtime import generator
from maskloom.stages.claims import Claims
from maskloom.stages.fold_tables import leaf_parts
from maskloom.stages.guides import networks_of
from maskloom.stages.images import Opened, Prediction, mark_output, no_workers, opened_as
from maskloom.stages.scene_blocks import BlocksByWorkers, SceneWork, predict_blocks
from maskloom.stages.scene_delivery import FIRST_BLOCK, WRITING, Delivery
from maskloom.stages.scene_files import (
    SCENE_FORMATS,
    SceneWriter,
    StoredBlocks,
    Wanted,
    check_scenes,
)
from maskloom.stages.scene_registration import register_scenes
from maskloom.stages.scene_sources import Scene, find_scenes
from maskloom.stages.scene_table import is_table

BLOCKS, SHARED = ".blocks", ".scenes"
"""The folders, beside what is written, of blocks' maps, and of what the processes tell each other."""
PAUSE_SECONDS = 0.5
"""So long a process waits when others are at all the blocks that are left."""


def predict_scenes(
    run: RunDirectory,
    scenes: Path,
    *,
    out: Path,
    to: str,
    opened: Callable[[], Opened],
    bands: Mapping[str, Sequence[BandFile]] | None = None,
    layout: Callable[[Path, DataSettings], DataSource | None] = lambda *_: None,
    probabilities: bool = False,
    uncertainty: bool = False,
    grid: Path | None = None,
    skip_bad: bool = False,
    shuffle: int | None = None,
    progress: Progress,
    workers: Callable[[], AbstractContextManager[Executor]] = no_workers,
    accepted: Callable[[], Accepted | None] = lambda: None,
    **shapes: Unpack[PolygonChanges],
) -> Prediction:
    """Returns what was written for a TIFF raster, a folder of them, a table of scenes or a folder of a known layout.

    ``to`` is "geotiff" (``<id>.tif`` per scene), "geojson", "gpkg" or "fgb" (one file ``predictions.*`` of polygons),
    or "wkt" (``predictions.csv.gz``); see ``stages.scene_files`` for what is in them, and for ``probabilities`` and
    ``uncertainty``. Further files of a scene are those of the table (``stages.scene_table``), those of the layout,
    which ``layout`` opens by the settings that the run's data was read with, or, of TIFFs, ``bands`` by the scene's id.
    Where the run's recipe registers further files, those of scenes are, and ``registration/<id>.json`` says how they
    lie. ``shapes`` of polygons are those of ``encodings.polygon_settings``; what is None, or left out, is as the
    recipe's ``delivery.polygons`` says. Where classes overlap,
    ``delivery.precedence`` holds. ``grid`` is a table of grid sizes, in whose coordinates WKT is written. ``shuffle``
    seeds another order of blocks, which changes nothing else. With ``skip_bad``, scenes that are damaged or cannot be
    registered are left out.

    Started again it continues; started several times at once, the processes share the blocks. ``opened`` is asked, and
    ``workers`` are begun, once it is known what is missing. Where the executor has workers, these predict the blocks,
    and ``opened`` is to give what was decided alone. Scenes are decided by the run's thresholds: post-processing looks
    at whole objects, which blocks would cut, and is left out with a note. ``accepted`` says of which depth scenes must
    be.

    Raises ``UserError`` for what cannot be done, before any network is loaded where files alone tell.
    """
    if to not in SCENE_FORMATS:
        raise UserError(f"to={to!r}: {closest(to, SCENE_FORMATS)}")
    decision = run.decision()
    recipe = parse(Recipe, load_yaml(run.recipe), origin=str(run.recipe))
    wanted = Wanted(
        out=out, to=to, probabilities=probabilities, uncertainty=uncertainty, polygons=_polygons(recipe, to, shapes),
        grid=grid,
    )  # fmt: skip
    bad: list[BadFile] = []
    found = find_scenes(
        scenes,
        out=out,
        bands=bands or {},
        bad=bad if skip_bad else None,
        channels=max(member.image_channels for member in recipe.members),
        takes_grey=recipe.takes_grey,
        accepted=accepted(),
        layout=lambda folder: layout(folder, recipe.data.model_copy(update={"skip_bad": skip_bad})),
        note=progress.note,
    )
    crs = check_scenes(found, wanted, note=progress.note)
    mark_output(out, run, to, scenes if scenes.is_dir() or is_table(scenes) else scenes.parent)
    if recipe.registration is not None:
        found = register_scenes(
            found, recipe.registration, out=out, claims=out / SHARED / "registration.claims",
            bad=bad if skip_bad else None, progress=progress,
        )  # fmt: skip
    for problem in bad:
        progress.note(f"left out: {problem}")
    progress.stage("predict", cached=False)
    precedence = recipe.delivery.precedence or ()
    rules = [rule.model_dump(mode="json") for rule in precedence]
    options = fingerprint(wanted.facts(), decision, skip_bad, rules)
    parts = [[scene] for scene in found] if to == "geotiff" else [found] if found else []
    deliveries = [Delivery(wanted, part, options, out / SHARED) for part in parts]
    if not all(delivery.is_finished() for delivery in deliveries):
        ready = opened_as(run, decision, opened)
        process = _Process(ready, wanted, crs, found, precedence, skip_bad=skip_bad, shuffle=shuffle, progress=progress)
        pending = deliveries
        with workers() as executor, process.served_by(executor, run, decision):
            while pending:
                before = process.num_predicted
                pending = list(process.unfinished(pending))
                if pending and process.num_predicted == before:
                    time.sleep(PAUSE_SECONDS)
        _tidy(out, deliveries)
    left_out = [problem for delivery in deliveries for problem in delivery.left_out().values()]
    return Prediction(out=out, num_written=len(found) - len(left_out), bad=[*bad, *left_out])


def _polygons(recipe: Recipe, to: str, stated: PolygonChanges) -> PolygonSettings:
    """Returns how outlines are cleaned: as stated, and otherwise as the recipe says, where there are polygons."""
    usual = recipe.delivery.polygons if to != "geotiff" else PolygonSettings()
    changes = {name: value for name, value in stated.items() if value is not None}
    unit = changes.get("units", usual.units)
    kept = [name for name in ("simplify", "min_area", "min_hole", "buffer") if getattr(usual, name)]
    kept = [name for name in kept if name not in changes]
    if unit != usual.units and kept:
        raise UserError(
            f"units={unit}: the recipe states {', '.join(kept)} in {usual.units}; state them, too (0: not at all)"
        )
    return parse(PolygonSettings, usual.model_dump() | changes, origin="polygons")


def _tidy(out: Path, deliveries: Sequence[Delivery]) -> None:
    """Removes what killed processes left beside finished files, files of scenes left out, and empty folders."""
    kinds = {(file.parent, file.suffix) for delivery in deliveries for file in delivery.files()}
    leftovers = (path for folder, suffix in kinds for path in folder.glob(f"{TEMPORARY_PREFIX}*{suffix}"))
    for path in (*leftovers, *(file for delivery in deliveries for file in delivery.outdated())):
        path.unlink(missing_ok=True)
    for folder, _, _ in os.walk(out / BLOCKS, topdown=False):
        with suppress(OSError):  # one that is not empty
            Path(folder).rmdir()


class _Process:
    """One of the processes that share the work."""

    def __init__(
        self,
        opened: Opened,
        wanted: Wanted,
        crs: str | None,
        scenes: Sequence[Scene],
        precedence: Sequence[Precedence],
        *,
        skip_bad: bool,
        shuffle: int | None,
        progress: Progress,
    ) -> None:
        self.num_predicted = 0
        self._opened, self._skip_bad, self._shuffle, self._progress = opened, skip_bad, shuffle, progress
        self._rules = numbered(precedence, opened.task)
        self._has_steps = bool(opened.recipe.postprocess.steps)
        if self._has_steps:
            progress.note("post-processing looks at whole objects: scenes are decided by thresholds alone")
        networks, asked = asked_networks(opened), opened.recipe.inference
        self._workers: BlocksByWorkers | None = None
        self._records = {scene.id: scene.record for scene in scenes}
        self._stored: dict[str, StoredBlocks] = {}
        self._forgotten: set[Path] = set()
        for scene in scenes:
            grid = block_grid(
                scene.record.size,
                networks,
                channels=opened.channels,
                overlap=asked.overlap,
                whole_pixels=asked.whole_pixels,
                seams=asked.seams,
            )
            cut = fingerprint(scene.fingerprint, grid.side, grid.halo, grid.least, grid.stride, asked.seams)
            self._stored[scene.id] = StoredBlocks(wanted.out / BLOCKS / scene.id / cut, grid, opened.task.num_maps)
        self._writer = SceneWriter(wanted=wanted, task=opened.task, stored=self._stored, decide=self._decide, crs=crs)
        self._done, self._num_done = dict.fromkeys(self._stored, 0), 0
        self._total = sum(len(blocks.windows) for blocks in self._stored.values())

    @contextmanager
    def served_by(self, executor: Executor, run: RunDirectory, decision: str) -> Iterator[None]:
        """Lets the workers of an executor, where it has any, predict the blocks."""
        if not executor.is_parallel:
            yield
            return
        scenes = {name: (self._records[name], each.folder, each.grid) for name, each in self._stored.items()}
        work = SceneWork(
            run=run,
            decision=decision,
            scenes=scenes,
            num_maps=self._opened.task.num_maps,
            skip_bad=self._skip_bad,
        )
        with BlocksByWorkers(
            executor, work, self._stored, on_progress=self._count, leave_out=self._leave_out
        ) as self._workers:
            yield

    def unfinished(self, deliveries: Sequence[Delivery]) -> Iterator[Delivery]:
        """Visits the deliveries, and yields those that are not finished then."""
        waiting = []
        for delivery in deliveries:
            if self._workers is not None and not delivery.is_finished():
                waiting.append(delivery)
            elif not self.visit(delivery):
                yield delivery
        for number, delivery in enumerate(waiting):
            assert self._workers is not None, "they are waited for"
            self._workers.predict(delivery, islice(waiting, number + 1, None))
            if not self.visit(delivery):
                yield delivery

    def visit(self, delivery: Delivery) -> bool:
        """Returns whether a delivery is finished; predicts what of it is missing and no other process is at."""
        if not delivery.is_finished():
            with Claims(delivery.claims) as claims:
                is_complete, first = True, FIRST_BLOCK
                for scene in delivery.scenes:
                    is_complete &= self._is_predicted(scene, delivery, claims, first)
                    first += len(self._stored[scene.id].windows)
                if delivery.remaining():
                    if not is_complete or not claims.take(WRITING):
                        return False
                    if not delivery.is_finished():
                        try:
                            self._writer.write(delivery.remaining(), lambda name: self._tell(f"writing {name}"))
                        except BadFile as problem:
                            if not self._forget(problem.path):
                                raise
                            return False
                        delivery.finish()
        has_files = bool(delivery.remaining())  # and these are finished, by whichever process
        for scene in delivery.scenes:
            if has_files:
                shutil.rmtree(self._stored[scene.id].folder, ignore_errors=True)
            self._set(scene.id, len(self._stored[scene.id].windows))
        return True

    def _forget(self, path: Path) -> bool:
        """Removes a damaged block, so that it is predicted again, once; returns whether the file was such a block."""
        if path in self._forgotten or not any(path.parent == blocks.folder for blocks in self._stored.values()):
            return False
        self._forgotten.add(path)
        self._progress.note(f"damaged, and predicted again: {path}")
        path.unlink(missing_ok=True)
        self.num_predicted += 1  # so that there is no waiting for others
        return True

    def _is_predicted(self, scene: Scene, delivery: Delivery, claims: Claims, first: int) -> bool:
        """Returns whether all blocks of a scene are there, or it is left out; ``first`` is its first block's claim."""
        if scene.id in delivery.left_out():
            return True
        try:
            return self._predict_missing(scene, delivery, claims, first)
        except BadFile as problem:
            if not self._skip_bad:
                raise
            self._leave_out(delivery, scene, problem)
            return True

    def _leave_out(self, delivery: Delivery, scene: Scene, problem: BadFile) -> None:
        """Has the files written without a scene; several workers may have met with what is wrong with it."""
        if scene.id not in delivery.left_out():
            delivery.leave_out(scene, problem)
            self._progress.note(f"left out: {problem}")

    def _predict_missing(self, scene: Scene, delivery: Delivery, claims: Claims, first: int) -> bool:
        blocks, record = self._stored[scene.id], scene.record
        stored = blocks.there()
        missing = [number for number in range(len(blocks.windows)) if number not in stored]
        if delivery.is_finished():  # asked after looking for blocks, which go only once this is so
            return True
        there = len(blocks.windows) - len(missing)
        self._count(scene.id, there)
        if not missing:
            return True
        if self._workers is not None:  # what is missing is another process's, or was handed out and is damaged
            return False
        if self._shuffle is not None:
            missing = [missing[place] for place in generator(self._shuffle, scene.id).permutation(len(missing))]

        def take(number: int) -> bool:
            if not claims.take(first + number):
                return False
            if blocks.path(number).is_file() or delivery.is_finished():
                claims.give_back(first + number)
                return False
            return True

        def give_back(number: int) -> None:
            claims.give_back(first + number)
            self.num_predicted += 1

        def advance(done: int, _: int) -> None:
            self._count(scene.id, there + done)

        predict_blocks(self._opened, record, blocks, missing, take=take, on_stored=give_back, on_progress=advance)
        return blocks.there().issuperset(missing)

    def _count(self, scene: str, there: int) -> None:
        self._set(scene, there)
        self._tell(scene)

    def _set(self, scene: str, there: int) -> None:
        self._num_done += there - self._done[scene]
        self._done[scene] = there

    def _tell(self, detail: str) -> None:
        self._progress.advance(self._num_done, self._total, detail)

    def _decide(self, values: np.ndarray) -> np.ndarray:
        """Returns labels from 8-bit maps C×h×w, every pixel by itself."""
        if self._has_steps:
            labels = decide(values, self._opened.ensemble.thresholds, self._opened.task)
        else:
            labels = self._opened.labels({RESULT: values})
        return clear_overlaps(labels, self._rules) if self._rules else labels


def asked_networks(opened: Opened) -> list[tuple[InputPolicy, GuidanceSettings | None]]:
    """Returns how the networks of a run see images, once per member."""
    leaves = networks_of(opened.ensemble.tree, opened.ensemble.guiding)
    members = [opened.recipe.member(name) for name in dict.fromkeys(leaf_parts(leaf)[0] for leaf in leaves)]
    return [(member.input, member.guidance) for member in members]
