"""Stage ``oof/<member>``: every labelled record predicted by the network that never saw its group.

Each record leaves its map (with test-time views) and a small file of counts without views; a killed stage keeps
what it finished, and one that lacks some of its files makes those anew.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from maskloom.data.truth import read_truth
from maskloom.encodings.probability_maps import write_map
from maskloom.files import read_json, write_json
from maskloom.inference.merging import RESULT, Merge
from maskloom.inference.predictor import PLAIN, Predictor
from maskloom.inference.streaming import predict_records
from maskloom.metrics import from_labels
from maskloom.models.bundle import load_bundle
from maskloom.recipe import MemberSettings
from maskloom.records import Record
from maskloom.stages.context import Context
from maskloom.stages.fold_tables import leaf_name
from maskloom.stages.guides import given_out_of_fold
from maskloom.stages.scoring import decided, of_classes, reader_with_maps


def predict_out_of_fold(context: Context, member: MemberSettings, *, fingerprint: str) -> list[Path]:
    """Returns the files left: ``scores.json`` and the map of every validated record."""
    folder = context.run.oof(member.name)
    context.run.begin(f"oof/{member.name}", folder, fingerprint)
    table = context.fold_tables().of(member.name)
    scores: dict[str, dict[str, object]] = {}
    total = sum(len(table.split(fold)[1]) for fold in range(table.num_folds))
    for fold in range(table.num_folds):
        records = context.records(set(table.split(fold)[1]))
        _predict_fold(context, member, fold, records, done=len(scores), total=total)
        for record in records:
            scores[record.id] = read_json(_counts_path(folder, record)) | {"fold": fold}
    write_json(folder / "scores.json", scores)
    return [folder / "scores.json", *(context.run.oof_map(member.name, record_id) for record_id in scores)]


def _counts_path(folder: Path, record: Record) -> Path:
    return folder / "counts" / f"{record.id}.json"


def _predict_fold(
    context: Context, member: MemberSettings, fold: int, records: list[Record], *, done: int, total: int
) -> None:
    folder, task, part = context.run.oof(member.name), context.source.task, member.task_of(context.source.task)
    leaf = leaf_name(member.name, fold)
    segmenter = load_bundle(context.run.bundle(member.name, fold, member.keep))
    predictor = Predictor(
        Merge(children=(leaf,)),
        {leaf: segmenter},
        member.views_of(context.recipe.inference),
        context.device,
        plain=True,
        guidance={leaf: member.guidance} if member.guidance else None,
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
        write_json(_counts_path(folder, record), counts)  # last: its presence says that the record is finished

    def is_finished(record: Record) -> bool:
        return _counts_path(folder, record).is_file() and context.run.oof_map(member.name, record.id).is_file()

    predict_records(
        lambda seen: predictor(*seen),
        records,
        consume,
        read=reader_with_maps(member.image_channels, given_out_of_fold(context.run, member)),
        skip=is_finished,
        on_progress=lambda count, _: context.progress.advance(done + count, total, f"fold {fold}"),
    )
