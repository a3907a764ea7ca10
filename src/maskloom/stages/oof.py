"""Stage ``oof/<member>``: every labelled record predicted by the network that never saw its group.

Each record leaves its map (with test-time views) and a small file of counts without views; a killed stage keeps
what it finished, and one that lacks some of its files, or finds them damaged, makes those anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from maskloom.data.scene_parts import ScenePart, parts_among
from maskloom.data.truth import read_truth
from maskloom.encodings.probability_maps import write_map
from maskloom.files import read_json, write_json
from maskloom.inference.merging import RESULT, Merge
from maskloom.inference.predictor import PLAIN, Predictor
from maskloom.inference.streaming import predict_records
from maskloom.integrity import Ledger
from maskloom.metrics import from_labels
from maskloom.rasters.georeference import read_georeference
from maskloom.rasters.writing import write_geotiff_blocks
from maskloom.recipe import MemberSettings
from maskloom.records import Record
from maskloom.stages.context import Context
from maskloom.stages.guides import bundles_of, by_leaf, given_out_of_fold, stored_map
from maskloom.stages.scoring import answer, decided, of_classes, reader_of_parts


def predict_out_of_fold(context: Context, member: MemberSettings, *, fingerprint: str) -> list[Path]:
    """Returns the files left: ``scores.json``, and the map and the counts of every validated record.

    Where folds are of blocks, records are parts of scenes, and each scene's map is put together from theirs.
    """
    folder, stage = context.run.oof(member.name), f"oof/{member.name}"
    context.run.begin(stage, folder, fingerprint)
    ledger = context.run.ledger(stage)
    table = context.fold_tables().of(member.name)
    scores: dict[str, dict[str, object]] = {}
    total = sum(len(table.split(fold)[1]) for fold in range(table.num_folds))
    counts: list[Path] = []
    for fold in range(table.num_folds):
        records = context.records(set(table.split(fold)[1]))
        _predict_fold(context, member, fold, records, ledger=ledger, done=len(scores), total=total)
        for record in records:
            scores[record.id] = read_json(_counts_path(folder, record)) | {"fold": fold}
            counts.append(_counts_path(folder, record))
    write_json(folder / "scores.json", scores)
    maps = [context.run.oof_map(member.name, record_id) for record_id in scores]
    return [folder / "scores.json", *maps, *counts, *_scene_maps(context, member, scores)]


def _scene_maps(context: Context, member: MemberSettings, validated: Collection[str]) -> Iterator[Path]:
    """Yields the rasters of scenes' maps, 8 bits per class, written from those of their parts; 0 where these train."""
    by_scene: dict[str, list[ScenePart]] = {}
    for part in parts_among(context.source.records):
        by_scene.setdefault(part.scene.id, []).append(part)
    for name, parts in by_scene.items():
        scene, count = parts[0].scene, context.source.task.num_maps
        path = context.run.oof(member.name) / "scenes" / f"{name}.tif"
        blocks = (
            (part.window, stored_map(context.run, member.name, part))
            if part.id in validated
            else (part.window, np.zeros((count, *part.size), np.uint8))
            for part in parts
        )
        write_geotiff_blocks(path, scene.size, count, np.uint8, read_georeference(scene.image), blocks)
        yield path


def _counts_path(folder: Path, record: Record) -> Path:
    return folder / "counts" / f"{record.id}.json"


def _predict_fold(
    context: Context,
    member: MemberSettings,
    fold: int,
    records: list[Record],
    *,
    ledger: Ledger,
    done: int,
    total: int,
) -> None:
    folder, task, part = context.run.oof(member.name), context.source.task, member.task_of(context.source.task)
    leaves = context.fold_tables().leaves_of_fold(member.name, fold)
    asked = member.views_of(context.recipe.inference)
    predictor = Predictor(
        Merge(children=leaves),
        bundles_of(context.run, context.recipe, leaves),
        asked,
        context.device,
        plain=True,
        guidance=by_leaf(context.recipe, leaves),
        task=task,
    )
    context.say(predictor.notes)

    def consume(record: Record, maps: dict[str, np.ndarray]) -> None:
        truth = read_truth(record, task, context.source.coding)
        labels = of_classes(truth, part, task)
        counts = {
            kind: from_labels(of_classes(decided(maps[name], task), part, task), labels, part).to_json()
            for kind, name in (("views", RESULT), ("plain", PLAIN))
        }
        write_map(context.run.oof_map(member.name, record.id), maps[RESULT])
        write_json(_counts_path(folder, record), counts)
        ledger.add(context.run.oof_map(member.name, record.id))
        ledger.add(_counts_path(folder, record))  # last: that it is known says that the record is finished

    def is_finished(record: Record) -> bool:
        files = (_counts_path(folder, record), context.run.oof_map(member.name, record.id))
        return all(map(ledger.is_sound, files))

    predict_records(
        answer(predictor, task, (RESULT, PLAIN)),
        records,
        consume,
        read=reader_of_parts(
            member.image_channels,
            member.input,
            asked.overlap,
            given_out_of_fold(context.run, member),
        ),
        skip=is_finished,
        on_progress=lambda count, _: context.progress.advance(done + count, total, f"fold {fold}"),
    )
