"""Stage ``report``: everything a run knows about itself, gathered for the report page."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, Literal

import numpy as np

from maskloom.config import load_yaml, parse
from maskloom.data.image_io import read_image
from maskloom.data.sources.base import DataSource
from maskloom.data.statistics import Survey
from maskloom.data.truth import read_truth
from maskloom.ensembling.thresholds import decide
from maskloom.errors import BadFile
from maskloom.files import read_json
from maskloom.inference.merging import RESULT
from maskloom.outputs.overlays import displayed, shrunk
from maskloom.outputs.report import Example, LookAlikes, ReportInput, render_report
from maskloom.recipe import Recipe
from maskloom.records import Record
from maskloom.run_directory import RunDirectory
from maskloom.stages.ensemble import Ensemble, load_ensemble, out_of_fold_maps
from maskloom.stages.fold_tables import FoldTables
from maskloom.stages.prediction import left_out
from maskloom.training.tracking import read_log

NUM_EXAMPLES = 4
"""Best and worst images shown, each."""
NUM_LOOK_ALIKES = 24
"""Pairs of near-duplicates shown."""


def write_report(run: RunDirectory) -> Path:
    """Returns the report page, written from what the finished stages left."""
    facts = read_json(run.facts)
    source = DataSource.from_json(read_json(run.source), Path(facts["data"]))
    ensemble = load_ensemble(run)
    images = _image_scores(run)
    pairs = read_json(run.near_duplicates)
    recipe = parse(Recipe, load_yaml(run.recipe), origin=str(run.recipe))
    tables = FoldTables.read(run, recipe)
    curves = _learning_curves(run, recipe, tables)
    examples = _examples(run, source, ensemble, tables, images)
    unpredicted = left_out(run, source.root) if source.unlabelled else {}
    page = ReportInput(
        name=run.root.resolve().name,
        data=facts["data"],
        layout=source.layout,
        recipe_yaml=run.recipe.read_text(encoding="utf-8"),
        evaluation=ensemble.evaluation(),
        classes=source.task.classes,
        task_kind=source.task.kind,
        learning_curves=curves,
        image_scores=[row[ensemble.metric] for row in images],
        threshold_curve=ensemble.curve,
        survey=Survey.from_json(read_json(run.survey), source.root),
        folds=tables.shared,
        near_duplicates=pairs,
        look_alikes=_look_alikes(source, pairs[:NUM_LOOK_ALIKES]),
        left_out=(*source.problems, *unpredicted.values()),
        notes=source.notes,
        num_unlabelled=len(source.unlabelled),
        hardware=facts["hardware"],
        seconds=_seconds(run, curves),
        examples=examples,
        num_unread=min(2 * NUM_EXAMPLES, len(images)) - len(examples),
    )
    render_report(run.report, page)
    return run.report


def score_lines(evaluation: dict[str, Any]) -> list[str]:
    """Returns the scores as lines for a terminal: ensemble, members, and classes where there are several."""
    metric = {"dice": "mean Dice", "iou": "mIoU"}[evaluation["metric"]]
    oof = evaluation["oof"]
    lines = [
        f"out-of-fold {metric}: {oof['mean']:.4f} ± {oof['std']:.4f} over {len(oof['folds'])} fold(s), cross-fitted"
    ]
    for name, scores in evaluation["members"].items():
        plain = scores["without_views"]["mean"]
        lines.append(f"  {name}: {scores['mean']:.4f} ± {scores['std']:.4f} (without test-time views {plain:.4f})")
    if len(oof["classes"]) > 1:
        lines += [
            f"  {name:<20} {'absent' if score is None else f'{score:.4f}'}" for name, score in oof["classes"].items()
        ]
    return lines


def _learning_curves(run: RunDirectory, recipe: Recipe, tables: FoldTables) -> dict[str, list[dict[str, Any]]]:
    """Returns the epochs of every trained network by its leaf name."""
    return {
        leaf: read_log(run.fold(member.name, fold) / "log.jsonl")
        for member in recipe.members
        for fold, leaf in enumerate(tables.leaves(member.name))
    }


def _seconds(run: RunDirectory, curves: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Returns the seconds of each finished stage; of a training that was continued, those of all its sessions."""
    markers = [read_json(path) for path in sorted((run.root / "stages").rglob("*.json"))]
    seconds = {marker["stage"]: float(marker["seconds"]) for marker in markers}
    for leaf, epochs in curves.items():
        stage = f"train/{leaf}"
        if epochs and stage in seconds:
            seconds[stage] = max(seconds[stage], float(epochs[-1]["seconds"]))
    return seconds


def _look_alikes(source: DataSource, pairs: list[dict[str, Any]]) -> list[LookAlikes]:
    """Returns pictures of pairs of near-duplicates; one whose file is gone is left out, as data may have moved."""
    paths = {record.id: record.image for record in source.records}
    found = []
    for pair in pairs:
        try:
            first, second = (shrunk(displayed(read_image(paths[pair[side]]))) for side in ("first", "second"))
        except (BadFile, FileNotFoundError):
            continue
        found.append(LookAlikes(ids=(pair["first"], pair["second"]), images=(first, second)))
    return found


def _image_scores(run: RunDirectory) -> list[dict[str, Any]]:
    with run.ensemble.with_name("images.csv").open(encoding="utf-8", newline="") as stream:
        rows = csv.DictReader(stream)
        return [
            {"id": row["id"], "fold": int(row["fold"])} | {k: float(row[k]) for k in ("dice", "iou")} for row in rows
        ]


def _examples(
    run: RunDirectory, source: DataSource, ensemble: Ensemble, tables: FoldTables, images: list[dict[str, Any]]
) -> list[Example]:
    """Returns the best and the worst images; one whose file is gone is left out (the page says so)."""
    ranked = sorted(images, key=lambda row: row[ensemble.metric])
    chosen: list[tuple[Literal["best", "worst"], dict[str, Any]]]
    chosen = [("worst", row) for row in ranked[:NUM_EXAMPLES]]
    chosen += [("best", row) for row in reversed(ranked[NUM_EXAMPLES:][-NUM_EXAMPLES:])]
    records = {record.id: record for record in source.records}
    examples = []
    for kind, row in chosen:
        try:
            examples.append(_example(run, source, ensemble, tables, records[row["id"]], row, kind))
        except (BadFile, FileNotFoundError):
            continue
    return examples


def _example(
    run: RunDirectory,
    source: DataSource,
    ensemble: Ensemble,
    tables: FoldTables,
    record: Record,
    row: dict[str, Any],
    kind: Literal["best", "worst"],
) -> Example:
    values = out_of_fold_maps(run, ensemble.tree, record, tables, source.task)[RESULT]
    prediction: np.ndarray = decide(values, ensemble.thresholds, source.task)
    return Example(
        id=record.id,
        kind=kind,
        fold=row["fold"],
        score=row[ensemble.metric],
        image=read_image(record.image),
        truth=read_truth(record, source.task, source.coding),
        prediction=prediction,
    )
