"""Folds of blocks: scenes divided into parts that validate, and the ground that is left to train each fold.

Each block becomes a record of its own (``ScenePart``). What comes after training treats blocks as it treats images: one
is predicted by the network of its fold, counted, scored and post-processed by itself, and a fold's score is the
metric's over its blocks. So Dice is the mean over blocks, where one without any object that is left empty counts 1, and
IoU that of their summed counts.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from maskloom.data.folds import FoldSettings, is_of_blocks
from maskloom.data.image_io import write_png
from maskloom.data.input_policy import InputPolicy
from maskloom.data.scene_parts import ScenePart, parts_among, parts_of, scenes_of
from maskloom.data.scene_windows import files_problem, has_place, read_inside
from maskloom.data.sources.base import DataSource
from maskloom.data.spatial_folds import Scene, SpatialFoldTable, check_scenes, divide, make_spatial_folds
from maskloom.data.statistics import count_pixels
from maskloom.errors import UserError
from maskloom.rasters.georeference import read_georeference, same_crs
from maskloom.records import MaskFile, Record
from maskloom.run_directory import RunDirectory
from maskloom.stages.context import Context
from maskloom.windows import Window


def labels_folder(run: RunDirectory) -> Path:
    """Returns where the labels of blocks lie, one file each."""
    return run.root / "blocks"


def divided(context: Context) -> Context:
    """Returns the context whose scenes are replaced by their blocks, where folds are of blocks; else itself.

    Raises ``UserError`` where the recipe holds what does not go with blocks, and for scenes that cannot be read by
    window.
    """
    settings, records = context.recipe.folds, context.source.records
    table = _stated_table(settings)
    if table is None and settings.kind != "blocks":
        return context
    if objection := context.recipe.objection_to_blocks():
        raise UserError(objection)
    for record in records:
        if problem := files_problem(record, context.source.coding):
            raise UserError(f"folds of blocks: {problem}")
    scenes = placed(records)
    if table is None:
        windows: Mapping[str, Sequence[Window]] = divide(scenes, settings)
    else:
        assert settings.table is not None, "it was read from there"
        check_scenes(table, scenes, settings.table)
        windows = _windows(table)
    return context.with_source(_with_parts(context.source, windows, context.run))


def with_parts(source: DataSource, table: SpatialFoldTable | None, run: RunDirectory) -> DataSource:
    """Returns the source whose scenes are replaced by the blocks of a run's table; itself where there is none.

    Raises ``Damaged`` where the stored labels of a block are no longer what they were.
    """
    if table is None:
        return source
    found = _with_parts(source, _windows(table), run)
    run.check(_labels_path(part) for part in parts_among(found.records))
    return found


def _with_parts(source: DataSource, windows: Mapping[str, Sequence[Window]], run: RunDirectory) -> DataSource:
    folder = labels_folder(run)
    parts = (part for record in source.records for part in parts_of(record, windows.get(record.id, ()), folder))
    return replace(source, records=tuple(parts))


def _windows(table: SpatialFoldTable) -> dict[str, list[Window]]:
    found: dict[str, list[Window]] = {}
    for row in table.rows:
        found.setdefault(row.scene, []).append(row.window)
    return found


def _stated_table(settings: FoldSettings) -> SpatialFoldTable | None:
    """Returns the table of blocks that a user handed back, if one was."""
    if settings.table is None or settings.kind not in ("table", "auto", "blocks"):
        return None
    is_one = settings.kind == "blocks" or is_of_blocks(settings.table)
    return SpatialFoldTable.from_csv(settings.table) if is_one else None


def placed(records: Sequence[Record]) -> list[Scene]:
    """Returns the scenes of records, or of their parts, with where they lie."""
    return [Scene(scene.id, scene.size, read_georeference(scene.image)) for scene in scenes_of(records)]


# Stage ``folds`` ------------------------------------------------------------------------------------------------------


def write_block_folds(context: Context, settings: FoldSettings, path: Path) -> list[Path]:
    """Returns the files left: the table of blocks, and the labels of each.

    Labels are cut out of the truth once, and are ``IGNORE`` where the image is invalid. A table that was handed back
    keeps its folds; its buffers are at least those of the settings.
    """
    parts = parts_among(context.source.records)
    shutil.rmtree(labels_folder(context.run), ignore_errors=True)
    areas: dict[tuple[str, Window], tuple[int, ...]] = {}
    with ThreadPoolExecutor(4) as pool:
        counted = pool.map(lambda part: _write_labels(context, part, settings), parts)
        for done, (part, found) in enumerate(zip(parts, counted, strict=True), start=1):
            areas[part.scene.id, part.window] = found
            context.progress.advance(done, len(parts), "labels of blocks")
    table = _stated_table(settings)
    scenes = placed(parts)
    if table is None:
        table = make_spatial_folds(scenes, settings, areas=lambda scene, window: areas[scene, window])
    else:
        rows = (replace(row, buffer=max(row.buffer, settings.buffer)) for row in table.rows)
        table = SpatialFoldTable(tuple(rows))
    table.to_csv(path)
    known = {scene.georeference.crs for scene in scenes if scene.georeference and scene.georeference.crs}
    if len(known) > 1:
        context.progress.note("scenes of different CRS are taken to lie apart: give overlapping ones the same CRS")
    return [path, *(_labels_path(part) for part in parts)]


def _labels_path(part: ScenePart) -> Path:
    assert isinstance(part.truth, MaskFile), "as parts are made"
    return part.truth.path


def _write_labels(context: Context, part: ScenePart, settings: FoldSettings) -> tuple[int, ...]:
    """Writes the labels of a block; returns its valid area, or the area of each class."""
    task = context.source.task
    _, labels = read_inside(part.scene, part.window, task, context.source.coding)
    write_png(_labels_path(part), labels.reshape(-1, labels.shape[-1]))
    classes, _, valid = count_pixels(labels, task)
    return classes if settings.balance == "classes" else (valid,)


def check_block_folds(context: Context, path: Path, exact: Iterable[Sequence[str]]) -> None:
    """Raises ``UserError`` where a run's table of blocks lists others than the data is divided into.

    And where one image occurs more than once (``exact`` sets of ids with equal pixels): its copies would train and
    validate one network.
    """
    parts = {(part.scene.id, part.window) for part in parts_among(context.source.records)}
    table = SpatialFoldTable.from_csv(path)
    if {(row.scene, row.window) for row in table.rows} != parts:
        raise UserError(
            f"{path}: expected the {len(parts):,} blocks that the recipe divides the scenes into, found others; hand "
            "an edited table back with --set folds.kind=table --set folds.table=FILE"
        )
    for copies in exact:
        raise UserError(
            f"the image of {copies[0]!r} occurs more than once ({copies[1]!r}), and blocks of both would lie on both "
            "sides of a split; remove the copies"
        )


# Stages ``train`` -----------------------------------------------------------------------------------------------------


def training_ground(
    context: Context, table: SpatialFoldTable, fold: int, policy: InputPolicy
) -> tuple[list[Record], dict[str, list[Window]]]:
    """Returns the scenes that train a fold, and by their ids the areas that no training window may touch.

    Scenes without room for a window are left out, and said to be. Raises ``UserError`` where none has room.
    """
    scenes = {scene.id: scene for scene in placed(context.source.records)}
    forbidden = {name: table.forbidden(name, fold, scenes=_of_one_crs(scene, scenes)) for name, scene in scenes.items()}
    records = scenes_of(context.source.records)
    with_room = [record for record in records if has_place(record, policy, forbidden[record.id])]
    if not with_room:
        raise UserError(
            f"folds: expected room for windows of {policy.size} (height, width) outside the blocks that fold {fold} "
            "validates and their buffer, found none in any scene; choose smaller windows, larger blocks (folds.side), "
            "a smaller buffer or fewer folds"
        )
    if len(with_room) < len(records):
        left_out = sorted({record.id for record in records} - {record.id for record in with_room})
        context.progress.note(
            f"fold {fold}: {len(left_out)} scene(s) without room for a training window: {', '.join(left_out[:5])}"
            f"{' …' * (len(left_out) > 5)}"
        )
    return with_room, {record.id: forbidden[record.id] for record in with_room}


def _of_one_crs(scene: Scene, scenes: Mapping[str, Scene]) -> list[Scene]:
    """Returns the scenes that lie in the CRS of one of them, that one included; none where it has no CRS."""
    crs = scene.georeference.crs if scene.georeference else None
    return [
        each
        for each in scenes.values()
        if crs and each.georeference and each.georeference.crs and same_crs(crs, each.georeference.crs)
    ]
