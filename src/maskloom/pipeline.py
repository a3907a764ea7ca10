"""The stages of a run and their order; each is skipped when what it came from has not changed.

A stage's fingerprint covers the settings and data it reads and the fingerprints of the stages before it, so a changed
recipe repeats what depends on the change and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from maskloom.config import to_yaml
from maskloom.files import checksum, fingerprint, remove_partial, write_json, write_text
from maskloom.outputs.tables import SubmissionFormat
from maskloom.recipe import MemberSettings
from maskloom.stages import data as data_stages
from maskloom.stages.context import Context
from maskloom.stages.ensemble import check_tree, fit_ensemble
from maskloom.stages.oof import predict_out_of_fold
from maskloom.stages.prediction import predict_unlabelled, write_submission
from maskloom.stages.reporting import write_report
from maskloom.stages.train import train_fold, weights_mark

RESULT_FORMAT = 1
"""Raise it when a stage computes something else from the same inputs: runs then repeat what depends on it."""


def run_pipeline(context: Context, submission: SubmissionFormat | None) -> None:
    """Runs every stage of the context's recipe that is not finished; leaves the report last."""
    remove_partial(context.run.root)
    write_text(context.run.recipe, to_yaml(context.recipe))
    recipe = context.recipe
    context.progress.note(data_stages.summary(context.source))
    data_mark = fingerprint(RESULT_FORMAT, data_stages.source_fingerprint(context.source))
    _stage(context, "survey", data_mark, lambda: data_stages.survey_data(context))
    # On every fit: its notes, problems and images without truth are no part of the survey's fingerprint.
    write_json(context.run.source, context.source.to_json())
    context = data_stages.without_bad_records(context)

    fold_mark = fingerprint(data_mark, recipe.folds.model_dump(mode="json"), _checksum(recipe.folds.table))
    _stage(context, "folds", fold_mark, lambda: data_stages.write_folds(context))
    data_stages.check_folds(context)
    table = context.fold_table()
    check_tree(recipe, table.num_folds)
    table_mark = checksum(context.run.folds)

    oof_marks = {}
    weights_marks = {member.name: weights_mark(member.network) for member in recipe.members}
    for member in recipe.members:
        marks = []
        trained = [recipe.seed, recipe.metric, _training_part(member), weights_marks[member.name]]
        for fold in range(table.num_folds):
            mark = fingerprint(data_mark, table_mark, fold, trained)
            name = f"train/{member.name}/fold{fold}"
            _stage(context, name, mark, lambda m=member, f=fold, k=mark: train_fold(context, m, f, fingerprint=k))  # type: ignore[misc]
            marks.append(mark)
        mark = fingerprint(marks, member.keep, recipe.inference.model_dump(mode="json"))
        name = f"oof/{member.name}"
        _stage(context, name, mark, lambda m=member, k=mark: predict_out_of_fold(context, m, fingerprint=k))  # type: ignore[misc]
        oof_marks[member.name] = mark

    ensemble_mark = fingerprint(oof_marks, recipe.metric, recipe.ensemble.model_dump(mode="json"))
    _stage(context, "ensemble", ensemble_mark, lambda: fit_ensemble(context))
    if context.source.unlabelled:
        unlabelled = data_stages.unlabelled_fingerprint(context.source)
        predict_mark = fingerprint(ensemble_mark, unlabelled, recipe.delivery.masks)
        _stage(context, "predict", predict_mark, lambda: predict_unlabelled(context, fingerprint=predict_mark))
        if submission is not None and recipe.delivery.submission:
            submit_mark = fingerprint(predict_mark, _checksum(context.source.sample_submission))
            _stage(context, "submit", submit_mark, lambda: [write_submission(context, submission)])
    _stage(context, "report", fingerprint(time.time_ns()), lambda: [write_report(context.run)])  # always anew


def _stage(context: Context, name: str, mark: str, execute: Callable[[], Sequence[Path]]) -> None:
    marker = context.run.finished(name)
    cached = marker is not None and marker["fingerprint"] == mark
    context.progress.stage(name, cached=cached)
    if cached:
        return
    context.run.marker(name).unlink(missing_ok=True)
    began = time.monotonic()
    files = execute()
    context.run.finish(name, mark, files, time.monotonic() - began)


def _training_part(member: MemberSettings) -> dict[str, object]:
    """Returns what decides a trained network: everything but what is read only afterwards."""
    return member.model_dump(mode="json", exclude={"keep": True, "training": {"checkpoint_seconds", "tensorboard"}})


def _checksum(path: Path | None) -> str:
    return checksum(path) if path is not None and path.is_file() else ""
