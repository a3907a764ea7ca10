"""Stage ``oof/<member>``: every labelled record predicted by the network that never saw its group.

Each record leaves its map (with test-time views) and a small file of counts without views; a killed stage keeps
what it finished, and one that lacks some of its files, or finds them damaged, makes those anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from maskloom.data.scene_parts import ScenePart, parts_among
from maskloom.data.truth import read_truth
from maskloom.encodings.probability_maps import write_map
from maskloom.executors.tasks import Call, Here, ShardProgress, shards
from maskloom.files import read_json, write_json
from maskloom.inference.merging import RESULT, Merge
from maskloom.inference.predictor import PLAIN, Predictor
from maskloom.inference.streaming import predict_records
from maskloom.integrity import Seal
from maskloom.members import MemberSettings
from maskloom.metrics import from_labels
from maskloom.rasters.georeference import read_georeference
from maskloom.rasters.writing import write_geotiff_blocks
from maskloom.records import Record
from maskloom.run_directory import RunDirectory
from maskloom.stages.context import Context
from maskloom.stages.guides import bundles_of, by_leaf, given_out_of_fold, stored_map
from maskloom.stages.scoring import answer, decided, of_classes, reader_of_parts

SHARD = 64
"""Records that a worker is given at a time, at most."""


def predict_out_of_fold(context: Context, member: MemberSettings, *, fingerprint: str) -> list[Path]:
    """Returns the files left: ``scores.json``, and the map and the counts of every validated record.

    Where folds are of blocks, records are parts of scenes, and each scene's map is put together from theirs.
    """
    folder, stage = context.run.oof(member.name), f"oof/{member.name}"
    context.run.begin(stage, folder, fingerprint)
    table = context.fold_tables().of(member.name)
    all_records = context.source.records
    places = {record.id: place for place, record in enumerate(all_records)}
    by_fold = {
        fold: sorted(places[name] for name in table.split(fold)[1] if name in places) for fold in range(table.num_folds)
    }
    _predict_folds(context, member, by_fold)
    scores: dict[str, dict[str, object]] = {}
    counts: list[Path] = []
    for fold, validated in by_fold.items():
        for record in (all_records[place] for place in validated):
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


def _predict_folds(context: Context, member: MemberSettings, by_fold: Mapping[int, Sequence[int]]) -> None:
    """Predicts the records of every fold, given by their places among all, that are not finished yet, in shards.

    Enters what they leave.
    """
    run, executor, records = context.run, context.executor, context.source.records
    ledger = run.ledger(f"oof/{member.name}")
    missing = {
        fold: [place for place in places if not all(map(ledger.is_sound, _files(run, member, records[place])))]
        for fold, places in by_fold.items()
    }
    total = sum(map(len, by_fold.values()))
    done = total - sum(map(len, missing.values()))
    progress = ShardProgress(context.progress, done=done, total=total)
    shared = executor.share(context)
    tickets = [
        executor.submit(
            Call(
                name=f"oof/{member.name}",
                function=_predict_shard,
                shared=shared,
                arguments=(member.name, fold, tuple(shard)),
                shard=place and f"fold {fold}, images {place}",
                order=context.turn(member.name) + 1,
            ),
            progress=progress.listener(f"fold {fold}"),
            on_told=lambda told: ledger.add(*told),
        )
        for fold, wanted in missing.items()
        for place, shard in shards(wanted, executor, at_most=SHARD)
    ]
    for ticket in tickets:
        executor.collect(ticket)


def _files(run: RunDirectory, member: MemberSettings, record: Record) -> tuple[Path, Path]:
    """Returns what a finished record leaves; the counts are written, and told, last."""
    return run.oof_map(member.name, record.id), _counts_path(run.oof(member.name), record)


def _predict_shard(here: Here, shared: Context, name: str, fold: int, places: Sequence[int]) -> None:
    """Predicts some of a fold's records, given by their places among all; tells of every finished file and its seal."""
    context = shared.at(here)
    member, task = context.recipe.member(name), context.source.task
    part = member.task_of(task)
    asked = member.views_of(context.recipe.inference)
    predictor = here.keeper.get(("oof", name, fold), lambda: _predictor(context, member, fold))

    def consume(record: Record, maps: dict[str, np.ndarray]) -> None:
        truth = read_truth(record, task, context.source.coding)
        labels = of_classes(truth, part, task)
        counts = {
            kind: from_labels(of_classes(decided(maps[name], task), part, task), labels, part).to_json()
            for kind, name in (("views", RESULT), ("plain", PLAIN))
        }
        map_file, counts_file = _files(context.run, member, record)
        write_map(map_file, maps[RESULT])
        write_json(counts_file, counts)
        here.tell((map_file, Seal.of(map_file)))
        here.tell((counts_file, Seal.of(counts_file)))  # last: that it is known says that the record is finished

    predict_records(
        answer(predictor, task, (RESULT, PLAIN)),
        context.checked([context.source.records[place] for place in places]),
        consume,
        read=reader_of_parts(
            member.image_channels,
            member.input,
            given_out_of_fold(context.run, member),
            overlap=asked.overlap,
            whole_pixels=asked.whole_pixels,
        ),
        on_progress=here.progress.advance,
    )


def _predictor(context: Context, member: MemberSettings, fold: int) -> Predictor:
    """Returns the networks of one fold, ready to be asked."""
    leaves = context.fold_tables().leaves_of_fold(member.name, fold)
    predictor = Predictor(
        Merge(children=leaves),
        bundles_of(context.run, context.recipe, leaves),
        member.views_of(context.recipe.inference),
        context.device,
        plain=True,
        guidance=by_leaf(context.recipe, leaves),
        task=context.source.task,
    )
    context.say(predictor.notes)
    return predictor
