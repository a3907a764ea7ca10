"""Stage ``ensemble``: weights and thresholds fitted on out-of-fold maps, every fitted score also cross-fitted.

A score of something fitted on the maps it is scored on flatters. So the records are dealt into parts (the folds, or
five parts of the groups where there is one fold), and each part is scored with what was fitted on the others.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskloom.data.truth import read_truth
from maskloom.ensembling.crossfit import crossfit, deal_parts
from maskloom.ensembling.thresholds import HALF, curve, decide, fit_thresholds, histograms
from maskloom.errors import UserError, closest
from maskloom.files import read_json, write_json, write_text
from maskloom.inference.merging import RESULT, Merge, merge_stored, predicted_classes, pruned, standard_tree
from maskloom.inference.predictor import Predictor
from maskloom.inference.shares import Weight
from maskloom.metrics import Counts, Metric, dice, from_labels, iou, per_class, score_records
from maskloom.recipe import Recipe
from maskloom.records import Record, Task
from maskloom.run_directory import RunDirectory
from maskloom.stages.context import Context
from maskloom.stages.error_analysis import ErrorSums, error_analysis, errors_path, has_outlines
from maskloom.stages.fold_tables import FoldTables, leaf_parts
from maskloom.stages.guides import (
    bundles_of,
    by_leaf,
    guiding_trees,
    networks_of,
    own_inference,
    stored_map,
)
from maskloom.stages.member_weights import MemberWeights, Weights, by_class, stored_counts


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """What the stage decided, and how it scores."""

    metric: Metric
    tree: Merge
    """Over "member/fold" leaves: what predicts new images."""
    thresholds: list[int]
    """Per class, on the 8-bit value; not used by multiclass tasks."""
    scores: dict[str, Any]
    """``oof`` (cross-fitted), ``fitted_on_all``, ``half`` (equal weights, cut at one half: nothing fitted), and each
    of ``members``: mean, std and folds."""
    curve: list[list[float]]
    """Score at every 8-bit threshold per class; empty for multiclass."""
    weights: dict[str, float | dict[str, float]]
    """Per member; where they differ by class, of each class."""
    task: Task | None = None
    """Of the map; None: that of the networks, which is the same for all."""
    guiding: dict[str, Merge] = field(default_factory=dict)
    """Of members whose maps guide others: how these maps are made, over leaves."""

    def evaluation(self) -> dict[str, Any]:
        """Returns what ``maskloom evaluate --json`` prints."""
        return {"metric": self.metric, **self.scores, "thresholds": self.thresholds, "weights": self.weights}


def load_ensemble(run: RunDirectory) -> Ensemble:
    """Returns what the stage left in the run."""
    values = read_json(run.checked(run.ensemble))
    guiding = {name: Merge.model_validate(tree) for name, tree in values["guiding"].items()}
    stated = values.get("task")
    task = stated and Task(kind=stated["kind"], classes=tuple(stated["classes"]))
    return Ensemble(**(values | {"tree": Merge.model_validate(values["tree"]), "guiding": guiding, "task": task}))


def open_predictor(run: RunDirectory, ensemble: Ensemble, recipe: Recipe, device: torch.device) -> Predictor:
    """Returns the one-pass predictor over every network of the ensemble."""
    segmenters = bundles_of(run, recipe, networks_of(ensemble.tree, ensemble.guiding))
    return Predictor(
        ensemble.tree,
        segmenters,
        recipe.inference,
        device,
        guidance=by_leaf(recipe, segmenters),
        members=ensemble.guiding,
        own=own_inference(recipe, segmenters),
        task=ensemble.task,
    )


def fit_ensemble(context: Context) -> list[Path]:
    """Returns the files left: ``ensemble.json``, ``images.csv`` with one row per validated record, ``errors.json``, and
    ``counts.json``, the cross-fitted counts of every record.
    """
    recipe, task = context.recipe, context.source.task
    fold_of = context.fold_tables().validated(asked_members(recipe))
    if not fold_of:
        raise UserError(
            "folds: expected records that every member of the ensemble validates, found none; "
            "let the members' own folds leave the same records in training only"
        )
    records = context.records(set(fold_of))
    parts = deal_parts(
        [record.group for record in records], [fold_of[record.id] for record in records], seed=recipe.seed
    )
    fitting = Fitting(context, records, fold_of)
    errors = ErrorSums(task, outlines=has_outlines(records, task))
    if len(set(parts)) > 1:
        scored = crossfit(
            records, parts, fit=fitting.fit, apply=lambda fit, inside: fitting.counts(inside, *fit, errors=errors)
        )
        counts = {record_id: count for part in scored.values() for record_id, count in part.items()}
    else:  # a single record: nothing can be fitted elsewhere, so nothing is fitted
        counts = fitting.counts(records, fitting.equal_weights, [HALF] * task.num_maps, errors=errors)
    weights, thresholds = fitting.fit(records)
    final = fitting.counts(records, weights, thresholds)
    half = fitting.counts(records, fitting.equal_weights, [HALF] * task.num_maps)
    curves = np.zeros((0, 256))
    if task.kind != "multiclass":
        curves = curve(fitting.histograms(records, weights), recipe.metric, task)

    def summarise(counts: Mapping[str, Counts]) -> dict[str, Any]:
        return summary(records, fold_of, recipe.metric, task, counts)

    scores = {
        "oof": summarise(counts),
        "fitted_on_all": summarise(final),
        "half": summarise(half),
        "members": {name: _member_scores(context, name) for name in recipe.names},
    }
    tables = context.fold_tables()
    tree = ensemble_tree(context, tables, weights)
    guiding = guiding_trees(recipe, tables, tree)
    result = {
        "metric": recipe.metric,
        "tree": tree.model_dump(mode="json"),
        "guiding": {name: node.model_dump(mode="json") for name, node in guiding.items()},
        "thresholds": thresholds,
        "scores": scores,
        "curve": curves.round(6).tolist(),
        "weights": by_class(weights, task.classes),
        "task": {"kind": task.kind, "classes": list(task.classes)},
    }
    write_json(context.run.ensemble, result)
    images = context.run.ensemble.with_name("images.csv")
    write_text(images, _image_rows(records, fold_of, counts, task))
    found = error_analysis(records, counts, errors, recipe.metric, task, seed=recipe.seed)
    write_json(errors_path(context.run), found)
    write_counts(counts_path(context.run), counts)
    return [context.run.ensemble, images, errors_path(context.run), counts_path(context.run)]


def counts_path(run: RunDirectory) -> Path:
    """Returns where the stage leaves the counts of every record."""
    return run.ensemble.with_name("counts.json")


def write_counts(path: Path, counts: Mapping[str, Counts]) -> None:
    """Writes counts by record, for whoever compares this run with another."""
    write_json(path, {record_id: count.to_json() for record_id, count in counts.items()})


def read_counts(path: Path) -> dict[str, Counts]:
    """Returns what ``write_counts`` wrote."""
    return {record_id: Counts.from_json(values) for record_id, values in read_json(path).items()}


def asked_members(recipe: Recipe) -> list[str]:
    """Returns the members that the ensemble asks: of the stated tree, else of the standard one."""
    if recipe.ensemble.tree is None:
        return recipe.ensemble_names
    return list(dict.fromkeys(leaf_parts(leaf)[0] for leaf in recipe.ensemble.tree.leaves()))


class Fitting:
    """Stored maps of every member, merged and counted; keeps per-record histograms of the last weights asked for."""

    def __init__(self, context: Context, records: Sequence[Record], fold_of: Mapping[str, int]) -> None:
        self._context = context
        self._tables = context.fold_tables()
        self._fitted = MemberWeights(context, asked_members(context.recipe), records, fold_of)
        self._weights: tuple[Weight, ...] = ()
        self._histograms: dict[str, np.ndarray] = {}

    @property
    def equal_weights(self) -> Weights:
        """The same weight for every member."""
        return self._fitted.equal

    def fit(self, records: Sequence[Record]) -> tuple[Weights, list[int]]:
        """Returns member weights and thresholds fitted on these records."""
        weights = self._fitted.fit(records)
        task, stated = self._context.source.task, self._context.recipe.ensemble.stated_threshold
        if task.kind == "multiclass" or stated is not None:
            return weights, [HALF if stated is None else stated] * task.num_maps
        cuts = fit_thresholds(self.histograms(records, weights), self._context.recipe.metric, task)
        predicted = predicted_classes(ensemble_tree(self._context, self._tables, weights))
        # A class that no member predicts is 0 everywhere: only threshold 0, which marks everything, could score.
        return weights, [cut if predicted is None or number in predicted else HALF for number, cut in enumerate(cuts)]

    def histograms(self, records: Sequence[Record], weights: Mapping[str, Weight]) -> list[np.ndarray]:
        """Returns the merged map's histogram of every record, int64 C×2×256."""
        if self._weights != tuple(weights.values()):  # those of one set of weights at a time: memory stays flat
            self._weights, self._histograms = tuple(weights.values()), {}
        missing = [record for record in records if record.id not in self._histograms]
        found = self._map(lambda record: self._histogram(record, weights), missing)
        self._histograms.update(zip((record.id for record in missing), found, strict=True))
        return [self._histograms[record.id] for record in records]

    def counts(
        self,
        records: Sequence[Record],
        weights: Mapping[str, Weight],
        thresholds: list[int],
        *,
        errors: ErrorSums | None = None,
    ) -> dict[str, Counts]:
        """Returns the counts of every record's decided mask; adds what goes wrong in it to ``errors``."""
        task = self._context.source.task

        def labelled(record: Record) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            values = self._merged(record, weights)
            return values, decide(values, thresholds, task), self._truth(record)

        if errors is None:
            counted = self._map(lambda record: from_labels(*labelled(record)[1:], task), records)
        else:
            counted = self._map(lambda record: errors.of_image(*labelled(record)), records, errors.add)
        return dict(zip((record.id for record in records), counted, strict=True))

    def _map(
        self,
        function: Callable[[Record], Any],
        records: Sequence[Record],
        then: Callable[[Any], Any] = lambda found: found,
    ) -> list[Any]:
        """Returns what ``then``, record by record, makes of what ``function`` found, several records at a time."""
        with ThreadPoolExecutor(4) as pool:
            return [then(found) for found in pool.map(function, records)]

    def _truth(self, record: Record) -> np.ndarray:
        return read_truth(record, self._context.source.task, self._context.source.coding)

    def _merged(self, record: Record, weights: Mapping[str, Weight]) -> np.ndarray:
        """Returns the map of the part of the tree that never saw the record."""
        tree = ensemble_tree(self._context, self._tables, weights)
        return out_of_fold_maps(self._context.run, tree, record, self._tables, self._context.source.task)[RESULT]

    def _histogram(self, record: Record, weights: Mapping[str, Weight]) -> np.ndarray:
        return histograms(self._merged(record, weights), self._truth(record), self._context.source.task)


def check_tree(recipe: Recipe, tables: FoldTables) -> None:
    """Raises ``UserError`` unless a stated tree names networks of this run, and some at every tap for every record."""
    if recipe.ensemble.tree is None:
        return
    tree = tables.expanded(recipe.ensemble.tree, [member.name for member in recipe.members])
    known = {leaf for member in recipe.members for leaf in tables.leaves(member.name)}
    known |= {outside.name for outside in recipe.outside}
    for leaf in tree.leaves():
        if leaf not in known:
            raise UserError(f"ensemble.tree: expected networks of this run, found {leaf!r}; {closest(leaf, known)}")
    seen = set()
    for record_id in tables.validated(asked_members(recipe)):
        honest = tables.honest(record_id)
        kept = frozenset(leaf for leaf in known if honest(leaf))
        if kept not in seen:
            seen.add(kept)
            pruned(tree, honest)


def ensemble_tree(context: Context, tables: FoldTables, weights: Mapping[str, Weight]) -> Merge:
    """Returns the recipe's tree, or the mean of each member's folds and the weighted mean of the members."""
    recipe = context.recipe
    trained = [member.name for member in recipe.members]
    if recipe.ensemble.tree is not None:
        return tables.expanded(recipe.ensemble.tree, trained, recipe.partial_members(context.source.task))
    members = {name: tables.leaves(name) if name in trained else (name,) for name in weights}
    return standard_tree(members, list(weights.values()), recipe.partial_members(context.source.task))


def out_of_fold_maps(
    run: RunDirectory, tree: Merge, record: Record, tables: FoldTables, task: Task
) -> dict[str, np.ndarray]:
    """Returns the record's merged map ("result") and taps, uint8 C×H×W, from networks that never saw its group."""
    honest = pruned(tree, tables.honest(record.id))

    def stored(leaf: str) -> np.ndarray:
        return stored_map(run, leaf_parts(leaf)[0], record)

    return merge_stored(honest, stored, exclusive=task.kind == "multiclass")


def summary(
    records: Sequence[Record], fold_of: Mapping[str, int], metric: Metric, task: Task, counts: Mapping[str, Counts]
) -> dict[str, Any]:
    """Returns mean and standard deviation over folds, each fold, all images together, and every class."""
    folds = sorted(set(fold_of.values()))
    scores = [
        score_records([counts[record.id] for record in records if fold_of[record.id] == fold], metric) for fold in folds
    ]
    everything = [counts[record.id] for record in records]
    classes = [None if np.isnan(score) else round(float(score), 6) for score in per_class(everything, metric)]
    return {
        "mean": round(float(np.mean(scores)), 6),
        "std": round(float(np.std(scores)), 6),
        "folds": [round(score, 6) for score in scores],
        "all_images": round(score_records(everything, metric), 6),
        "classes": dict(zip(task.classes, classes, strict=True)),
    }


def _member_scores(context: Context, member: str) -> dict[str, Any]:
    """Returns a member's summary over its own folds, with test-time views and (``without_views``) without."""
    recipe, task = context.recipe, context.source.task
    task = next((settings.task_of(task) for settings in recipe.members if settings.name == member), task)
    tables = context.fold_tables()
    fold_of = {record_id: tables.fold(member, record_id) for record_id in tables.validated([member])}
    records = [record for record in context.source.records if record.id in fold_of]
    with_views, plain = (
        summary(records, fold_of, recipe.metric, task, stored_counts(context.run, member, kind))
        for kind in ("views", "plain")
    )
    return with_views | {"without_views": plain}


def _image_rows(records: Sequence[Record], fold_of: Mapping[str, int], counts: Mapping[str, Counts], task: Task) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "fold", "dice", "iou"])
    for record in records:
        count = counts[record.id]
        occurring = (count.tp + count.fp + count.fn > 0) if task.kind == "multiclass" else np.ones(task.num_maps, bool)
        if not occurring.any():  # every pixel is ignored: nothing is wrong, which scores 1
            occurring[:] = True
        means = [f"{np.mean(score(count)[occurring]):.6f}" for score in (dice, iou)]
        writer.writerow([record.id, fold_of[record.id], *means])
    return text.getvalue()
