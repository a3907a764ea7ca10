"""Stage ``report``: everything a run knows about itself, gathered for the report page."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from maskloom.data.record_images import read_record_image
from maskloom.data.sources.base import DataSource
from maskloom.data.statistics import Survey
from maskloom.data.truth import read_sample
from maskloom.ensembling.thresholds import decide
from maskloom.errors import BadFile, UserError
from maskloom.files import read_json
from maskloom.inference.merging import RESULT
from maskloom.inference.views import find_views
from maskloom.integrity import read_sealed
from maskloom.members import MemberSettings
from maskloom.outputs.overlays import class_colours, displayed, shrunk
from maskloom.outputs.report import render_report
from maskloom.outputs.report_input import (
    ChangedMask,
    ClassExample,
    Example,
    LookAlikes,
    MemberFacts,
    PseudoFold,
    PseudoRound,
    ReportInput,
)
from maskloom.outputs.report_pictures import class_panels
from maskloom.outputs.report_words import plural
from maskloom.recipe import Recipe
from maskloom.records import IGNORE, BadSize, Record
from maskloom.run_directory import RunDirectory
from maskloom.stages.block_folds import with_parts
from maskloom.stages.contest_score import Scorers
from maskloom.stages.ensemble import Ensemble, load_ensemble, out_of_fold_maps
from maskloom.stages.error_analysis import load_errors
from maskloom.stages.evaluation import evaluation, read_recipe
from maskloom.stages.fold_tables import FoldTables, leaf_name
from maskloom.stages.postprocess import changed_examples
from maskloom.stages.prediction import left_out
from maskloom.stages.pseudo import read_choices
from maskloom.stages.pseudo_report import labelled_examples, summaries
from maskloom.stages.pseudo_views import round_of, teacher_notes, teachers_of, views_among
from maskloom.stages.stage_times import stage_seconds
from maskloom.storage.mirror import Mirror
from maskloom.storage.placeholders import is_placeholder
from maskloom.storage.places import local_data
from maskloom.storage.remote import Changed
from maskloom.storage.urls import path_of, url_of
from maskloom.training.tracking import read_log

Pictured = TypeVar("Pictured")

NUM_EXAMPLES = 4
"""Best and worst images shown, each."""
NUM_CLASS_EXAMPLES = 20
"""Worst images of single classes shown, together; of so many classes that not each can have one, the worst have."""
NUM_CHANGED = 4
"""Images shown before and after post-processing."""
NUM_LABELLED = 6
"""Images shown with their pseudo-labels, per round."""
NUM_LOOK_ALIKES = 24
"""Pairs of near-duplicates shown."""
_CHANGED = (BadFile, BadSize, Changed, FileNotFoundError)
"""What reading raises where a file of the data is gone, or is another one now."""


def write_report(run: RunDirectory, scorers: Scorers | None = None) -> Path:
    """Returns the report page, written from what the finished stages left; ``scorers`` as ``evaluation`` takes them."""
    facts = read_sealed(run.facts)
    source = _source(read_sealed(run.source), facts["data"])
    ensemble = load_ensemble(run)
    images = _image_scores(run)
    pairs = read_json(run.checked(run.near_duplicates))
    recipe = read_recipe(run)
    tables = FoldTables.read(run, recipe)
    curves = _learning_curves(run, recipe, tables)
    scored = with_parts(source, tables.blocks, run)
    examples = _examples(run, scored, ensemble, tables, images)
    errors = load_errors(run)
    labelled = [number for number in range(len(recipe.pseudo)) if run.finished(f"pseudo/{number}")]
    unpredicted = left_out(run, source.root) if source.unlabelled else {}
    page = ReportInput(
        name=run.root.resolve().name,
        data=facts["data"],
        layout=source.layout,
        recipe_yaml=run.recipe.read_text(encoding="utf-8"),
        evaluation=evaluation(run, scorers),
        classes=source.task.classes,
        task_kind=source.task.kind,
        learning_curves=curves,
        image_scores=[row[ensemble.metric] for row in images],
        threshold_curve=ensemble.curve,
        survey=Survey.from_json(read_json(run.checked(run.survey)), source.root),
        folds=tables.shared,
        near_duplicates=pairs,
        look_alikes=_look_alikes(source, pairs[:NUM_LOOK_ALIKES]),
        left_out=(*source.problems, *unpredicted.values()),
        notes=source.notes,
        num_unlabelled=len(source.unlabelled),
        hardware=facts["hardware"],
        seconds=stage_seconds(run, recipe, tables, source, curves),
        members=_member_facts(recipe, tables),
        changed_masks=_changed_masks(run, recipe, scored),
        pseudo_rounds=[_pseudo_round(run, recipe, source, tables, number) for number in labelled],
        errors=errors,
        class_examples=_class_examples(run, scored, ensemble, tables, images, errors or {}),
        examples=examples,
        num_unread=min(2 * NUM_EXAMPLES, len(images)) - len(examples),
    )
    render_report(run.report, page)
    return run.report


def _source(described: dict[str, Any], place: str) -> DataSource:
    """Returns the source as it was described, of which the report needs pictures and nothing else.

    Data at a URL are listed only where this machine has never listed them. Where they are gone, or cannot be had, they
    are as those of a folder that is gone: the page is written without these pictures.
    """
    url = url_of(place)
    if url is None:
        return DataSource.from_json(described, path_of(place))
    try:
        mirror = Mirror.of(url, "data")
        root = mirror.root if mirror.known() else local_data(url)
        source = DataSource.from_json(described, root)
        images = (record.image for record in (*source.records, *source.unlabelled))
        lacking = next((image for image in images if image.is_relative_to(root) and is_placeholder(image)), None)
        if lacking is None or mirror.store.stat(lacking.relative_to(root).as_posix()) is not None:
            return source
    except UserError:  # of its store; a wrong description is told below
        pass
    return DataSource.from_json(described, path_of(place))  # a path that is none


def _unless_changed(pictures: Callable[[], list[Pictured]]) -> list[Pictured]:
    """Returns the pictures, or none where an object at a URL is another one now."""
    try:
        return pictures()
    except Changed:
        return []


def _member_facts(recipe: Recipe, tables: FoldTables) -> dict[str, MemberFacts]:
    """Returns what the recipe says about each member beyond its network and training."""
    found = {member.name: _facts_of(recipe, member, tables) for member in recipe.members}
    names = [outside.name for outside in recipe.outside]
    return found | {name: MemberFacts(asked="elsewhere", notes=tuple(_on_leaderboard(recipe, name))) for name in names}


def _facts_of(recipe: Recipe, member: MemberSettings, tables: FoldTables) -> MemberFacts:
    notes = [f"{plural(tables.of(member.name).num_folds, 'fold')} of its own"] if member.folds is not None else []
    if member.guidance is not None:
        region = member.guidance.region
        notes += [f"sees the maps of {', '.join(member.guidance.maps)}"] if member.guidance.maps else []
        if region is not None:
            notes.append(f"looks at {'the box' if region.kind == 'box' else 'the outline'} that {region.of} finds")
    notes += [f"begins with the weights of {member.start}"] if member.start is not None else []
    number = round_of(recipe, member.name)
    if number is not None:
        notes.append(f"learns from pseudo-labels, round {number}")
        if any(recipe.member(name).selected_by for name in teachers_of(recipe, number)):
            notes.append("its teachers were chosen by the folds that it is scored on")
    if member.selected_by:
        notes.append(f"its validation folds had a say in its training ({', '.join(member.selected_by)})")
    notes += _on_leaderboard(recipe, member.name)
    views = find_views(member.views_of(recipe.inference).views)
    return MemberFacts(asked="with views" if any(not view.is_identity for view in views) else "once", notes=notes)


def _on_leaderboard(recipe: Recipe, member: str) -> list[str]:
    """Returns the member's score on the contest's leaderboard, where the recipe states it."""
    stated = recipe.delivery.leaderboard
    return [f"{stated[member]:.10g} on the leaderboard"] if member in stated else []


def _changed_masks(run: RunDirectory, recipe: Recipe, source: DataSource) -> list[ChangedMask]:
    if not (recipe.postprocess.steps and run.finished("postprocess")):
        return []
    return [
        each
        for each in _unless_changed(lambda: changed_examples(run, recipe, source, NUM_CHANGED))
        if not np.array_equal(each.before, each.after)  # the part that it is scored with took other steps
    ]


_LEARNING = {
    "scratch": "Trained on these and on true labels together.",
    "from_weights": "Trained on these and on true labels together, from the weights of an earlier member.",
    "pretrain_then_refine": "Trained on these alone first, then on true labels alone.",
}


def _pseudo_round(
    run: RunDirectory, recipe: Recipe, source: DataSource, tables: FoldTables, number: int
) -> PseudoRound:
    settings, found = recipe.pseudo[number], summaries(read_choices(run, number))
    several = len({fold.folds_of for fold in found}) > 1
    return PseudoRound(
        number=number,
        teachers=teachers_of(recipe, number),
        pupils=settings.members,
        train=_LEARNING[settings.train],
        minimum_confidence=settings.minimum_confidence,
        folds=[
            PseudoFold(
                name=f"{fold.folds_of}, fold {fold.fold}" if several else f"fold {fold.fold}",
                offered=fold.offered,
                reasons=fold.reasons,
                least_confidence=fold.least_confidence,
            )
            for fold in found
        ],
        notes=teacher_notes(recipe, number, views_among(recipe, tables, source.records, number)),
        examples=_unless_changed(lambda: labelled_examples(run, source, number, NUM_LABELLED)),
    )


def _learning_curves(run: RunDirectory, recipe: Recipe, tables: FoldTables) -> dict[str, list[dict[str, Any]]]:
    """Returns the epochs of every training by the leaf name of its fold."""
    return {
        leaf_name(member.name, fold): read_log(run.checked(run.fold(member.name, fold) / "log.jsonl"))
        for member in recipe.members
        if member.network.minimises_loss
        for fold in range(tables.of(member.name).num_folds)
    }


def _look_alikes(source: DataSource, pairs: list[dict[str, Any]]) -> list[LookAlikes]:
    """Returns pictures of pairs of near-duplicates; one whose file is gone is left out, as data may have moved."""
    by_id = {record.id: record for record in source.records}
    found = []
    for pair in pairs:
        try:
            first, second = (shrunk(displayed(read_record_image(by_id[pair[side]]))) for side in ("first", "second"))
        except _CHANGED:
            continue
        found.append(LookAlikes(ids=(pair["first"], pair["second"]), images=(first, second)))
    return found


def _image_scores(run: RunDirectory) -> list[dict[str, Any]]:
    with run.checked(run.ensemble.with_name("images.csv")).open(encoding="utf-8", newline="") as stream:
        rows = csv.DictReader(stream)
        return [
            {"id": row["id"], "fold": int(row["fold"])} | {k: float(row[k]) for k in ("dice", "iou")} for row in rows
        ]


def _examples(
    run: RunDirectory, source: DataSource, ensemble: Ensemble, tables: FoldTables, images: list[dict[str, Any]]
) -> list[Example]:
    """Returns the best and the worst images; one whose files are gone or changed is left out (the page says so)."""
    ranked = sorted(images, key=lambda row: row[ensemble.metric])
    chosen: list[tuple[Literal["best", "worst"], dict[str, Any]]]
    chosen = [("worst", row) for row in ranked[:NUM_EXAMPLES]]
    chosen += [("best", row) for row in reversed(ranked[NUM_EXAMPLES:][-NUM_EXAMPLES:])]
    records = {record.id: record for record in source.records}
    examples = []
    for kind, row in chosen:
        try:
            examples.append(_example(run, source, ensemble, tables, records[row["id"]], row, kind))
        except _CHANGED:
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
    prediction = _decided(run, source, ensemble, tables, record)
    image, truth = _read_pair(record, source)
    return Example(
        id=record.id,
        kind=kind,
        fold=row["fold"],
        score=row[ensemble.metric],
        image=image,
        truth=truth,
        prediction=prediction,
    )


def _read_pair(record: Record, source: DataSource) -> tuple[np.ndarray, np.ndarray]:
    """Returns image and labels; raises one of ``_CHANGED`` where they are not what the run has learnt from."""
    sample = read_sample(record, source.task, source.coding)
    assert sample.labels is not None, "every record of a source has truth"
    return sample.image, sample.labels


def _decided(
    run: RunDirectory, source: DataSource, ensemble: Ensemble, tables: FoldTables, record: Record
) -> np.ndarray:
    values = out_of_fold_maps(run, ensemble.tree, record, tables, source.task)[RESULT]
    labels: np.ndarray = decide(values, ensemble.thresholds, source.task)
    return labels


def _class_examples(
    run: RunDirectory,
    source: DataSource,
    ensemble: Ensemble,
    tables: FoldTables,
    images: list[dict[str, Any]],
    errors: dict[str, Any],
) -> list[ClassExample]:
    """Returns the worst images of each class, in the order of classes; one whose files are gone or changed is left out.

    One image after the other is read and only small pictures of it are kept.
    """
    task = source.task
    found = [each for each in errors.get("worst", []) if each["images"]]
    score = {name: 0.0 if value is None else value for name, value in ensemble.scores["oof"]["classes"].items()}
    hardest = sorted(found, key=lambda each: score[each["class"]])[:NUM_CLASS_EXAMPLES]
    of_each = max(min(2, NUM_CLASS_EXAMPLES // max(len(found), 1)), 1)
    folds, records = {row["id"]: row["fold"] for row in images}, {record.id: record for record in source.records}
    colours = class_colours(task.classes, task.kind)
    examples = []
    for each in (each for each in found if each in hardest):
        index = task.classes.index(each["class"])
        for image in each["images"][:of_each]:
            record = records[image["id"]]
            try:
                pixels, truth = _read_pair(record, source)
                labels = _decided(run, source, ensemble, tables, record)
            except _CHANGED:
                continue
            alone = (_of_class(truth, index, source), _of_class(labels, index, source))
            examples.append(
                ClassExample(
                    name=each["class"],
                    id=record.id,
                    score=image["score"],
                    wrong=image["wrong"],
                    fold=folds.get(record.id),
                    panels=class_panels(pixels, *alone, colours[index]),
                )
            )
    return examples


def _of_class(labels: np.ndarray, index: int, source: DataSource) -> np.ndarray:
    """Returns labels H×W of one class alone: 0, 1, and IGNORE where it was."""
    if source.task.kind == "multilabel":
        layer: np.ndarray = labels[index]
        return layer
    return np.where(labels == IGNORE, IGNORE, labels == index).astype(np.uint8)
