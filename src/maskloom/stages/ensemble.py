"""Stage ``ensemble``: weights and thresholds fitted on out-of-fold maps, every fitted score also cross-fitted.

A score of something fitted on the maps it is scored on flatters. So the records are dealt into parts (the folds, or
five parts of the groups where there is one fold), and each part is scored with what was fitted on the others.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskloom.data.truth import read_truth
from maskloom.encodings.probability_maps import read_map
from maskloom.ensembling.crossfit import crossfit, deal_parts
from maskloom.ensembling.thresholds import HALF, curve, decide, fit_thresholds, histograms
from maskloom.ensembling.weights import PixelSample, fit_weights, sample_pixels
from maskloom.errors import UserError, closest
from maskloom.files import read_json, write_json, write_text
from maskloom.inference.merging import RESULT, Merge, merge_stored, pruned, standard_tree
from maskloom.inference.predictor import Predictor
from maskloom.metrics import Counts, Metric, dice, from_labels, iou, per_class, score_records
from maskloom.models.bundle import load_bundle
from maskloom.recipe import Recipe
from maskloom.records import Record, Task
from maskloom.run_directory import RunDirectory
from maskloom.runtime import derive_seed
from maskloom.stages.context import Context, leaf_name


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
    weights: dict[str, float]
    """Per member."""

    def evaluation(self) -> dict[str, Any]:
        """Returns what ``maskloom evaluate --json`` prints."""
        return {"metric": self.metric, **self.scores, "thresholds": self.thresholds, "weights": self.weights}


def load_ensemble(run: RunDirectory) -> Ensemble:
    """Returns what the stage left in the run."""
    values = read_json(run.ensemble)
    return Ensemble(**(values | {"tree": Merge.model_validate(values["tree"])}))


def open_predictor(run: RunDirectory, ensemble: Ensemble, recipe: Recipe, device: torch.device) -> Predictor:
    """Returns the one-pass predictor over every network of the ensemble."""
    keep = {member.name: member.keep for member in recipe.members}
    segmenters = {}
    for leaf in ensemble.tree.leaves():
        member, _, fold = leaf.partition("/fold")
        segmenters[leaf] = load_bundle(run.bundle(member, int(fold), keep[member]))
    return Predictor(ensemble.tree, segmenters, recipe.inference, device)


def fit_ensemble(context: Context) -> list[Path]:
    """Returns the files left: ``ensemble.json`` and ``images.csv`` with one row per validated record."""
    recipe, task = context.recipe, context.source.task
    fold_of = _validated(context)
    records = context.records(set(fold_of))
    parts = deal_parts(
        [record.group for record in records], [fold_of[record.id] for record in records], seed=recipe.seed
    )
    fitting = Fitting(context, records, fold_of)
    if len(set(parts)) > 1:
        scored = crossfit(records, parts, fit=fitting.fit, apply=lambda fit, inside: fitting.counts(inside, *fit))
        counts = {record_id: count for part in scored.values() for record_id, count in part.items()}
    else:  # a single record: nothing can be fitted elsewhere, so nothing is fitted
        counts = fitting.counts(records, fitting.equal_weights, [HALF] * task.num_maps)
    weights, thresholds = fitting.fit(records)
    final = fitting.counts(records, weights, thresholds)
    half = fitting.counts(records, fitting.equal_weights, [HALF] * task.num_maps)
    curves = np.zeros((0, 256))
    if task.kind != "multiclass":
        curves = curve(fitting.histograms(records, weights), recipe.metric, task)

    def summarise(counts: Mapping[str, Counts]) -> dict[str, Any]:
        return _summary(records, fold_of, recipe.metric, task, counts)

    scores = {
        "oof": summarise(counts),
        "fitted_on_all": summarise(final),
        "half": summarise(half),
        "members": {member.name: _member_scores(context, member.name, summarise) for member in recipe.members},
    }
    result = {
        "metric": recipe.metric,
        "tree": ensemble_tree(context, weights).model_dump(mode="json"),
        "thresholds": thresholds,
        "scores": scores,
        "curve": curves.round(6).tolist(),
        "weights": weights,
    }
    write_json(context.run.ensemble, result)
    images = context.run.ensemble.with_name("images.csv")
    write_text(images, _image_rows(records, fold_of, counts, task))
    return [context.run.ensemble, images]


def _validated(context: Context) -> dict[str, int]:
    """Returns the fold in which each record is validated."""
    table = context.fold_table()
    return {record_id: fold for fold in range(table.num_folds) for record_id in table.split(fold)[1]}


class Fitting:
    """Stored maps of every member, merged and counted; keeps per-record histograms of the last weights asked for."""

    def __init__(self, context: Context, records: Sequence[Record], fold_of: Mapping[str, int]) -> None:
        self._context, self._fold_of = context, fold_of
        self._members = [member.name for member in context.recipe.members]
        self._samples: dict[str, PixelSample] = {}
        self._weights: tuple[float, ...] = ()
        self._histograms: dict[str, np.ndarray] = {}
        if context.recipe.ensemble.weights == "fitted" and len(self._members) > 1:
            self._samples = dict(zip((record.id for record in records), self._map(self._sample, records), strict=True))

    @property
    def equal_weights(self) -> dict[str, float]:
        """The same weight for every member."""
        return {name: 1 / len(self._members) for name in self._members}

    def fit(self, records: Sequence[Record]) -> tuple[dict[str, float], list[int]]:
        """Returns member weights and thresholds fitted on these records."""
        weights = self.equal_weights
        if self._samples:
            folds = [self._fold_of[record.id] for record in records]
            parts = deal_parts([record.group for record in records], folds, seed=self._context.recipe.seed)
            fitted = fit_weights([self._samples[record.id] for record in records], parts)
            weights = dict(zip(self._members, fitted, strict=True))
        task, wanted = self._context.source.task, self._context.recipe.ensemble.thresholds
        if task.kind == "multiclass" or wanted != "fitted":
            stated = HALF if wanted == "fitted" else round(255 * wanted)
            return weights, [stated] * task.num_maps
        return weights, fit_thresholds(self.histograms(records, weights), self._context.recipe.metric, task)

    def histograms(self, records: Sequence[Record], weights: Mapping[str, float]) -> list[np.ndarray]:
        """Returns the merged map's histogram of every record, int64 C×2×256."""
        if self._weights != tuple(weights.values()):  # those of one set of weights at a time: memory stays flat
            self._weights, self._histograms = tuple(weights.values()), {}
        missing = [record for record in records if record.id not in self._histograms]
        found = self._map(lambda record: self._histogram(record, weights), missing)
        self._histograms.update(zip((record.id for record in missing), found, strict=True))
        return [self._histograms[record.id] for record in records]

    def counts(
        self, records: Sequence[Record], weights: Mapping[str, float], thresholds: list[int]
    ) -> dict[str, Counts]:
        """Returns the counts of every record's decided mask."""
        task = self._context.source.task

        def count(record: Record) -> Counts:
            values, truth = self._merged(record, weights), self._truth(record)
            return from_labels(decide(values, thresholds, task), truth, task)

        return dict(zip((record.id for record in records), self._map(count, records), strict=True))

    def _map(self, function: Any, records: Sequence[Record]) -> list[Any]:
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(function, records))

    def _truth(self, record: Record) -> np.ndarray:
        return read_truth(record, self._context.source.task, self._context.source.coding)

    def _maps(self, record: Record) -> dict[str, np.ndarray]:
        return {name: read_map(self._context.run.oof_map(name, record.id)) for name in self._members}

    def _merged(self, record: Record, weights: Mapping[str, float]) -> np.ndarray:
        """Returns the map of the part of the tree that never saw the record."""
        return out_of_fold_map(
            self._context.run,
            ensemble_tree(self._context, weights),
            record,
            self._fold_of[record.id],
            self._context.source.task,
        )

    def _histogram(self, record: Record, weights: Mapping[str, float]) -> np.ndarray:
        return histograms(self._merged(record, weights), self._truth(record), self._context.source.task)

    def _sample(self, record: Record) -> PixelSample:
        seed = derive_seed(self._context.recipe.seed, "weights", record.id)
        return sample_pixels(self._maps(record), self._truth(record), self._context.source.task, seed=seed)


def check_tree(recipe: Recipe, num_folds: int) -> None:
    """Raises ``UserError`` unless a stated tree names networks of this run, and some of every fold at every tap."""
    tree = recipe.ensemble.tree
    if tree is None:
        return
    known = {leaf_name(member.name, fold) for member in recipe.members for fold in range(num_folds)}
    for leaf in tree.leaves():
        if leaf not in known:
            raise UserError(f"ensemble.tree: expected networks of this run, found {leaf!r}; {closest(leaf, known)}")
    for fold in range(num_folds):
        pruned(tree, in_fold(fold))


def in_fold(fold: int) -> Callable[[str], bool]:
    """Returns the function that accepts the leaves of one fold."""
    return lambda leaf: leaf.endswith(f"/fold{fold}")


def ensemble_tree(context: Context, weights: Mapping[str, float]) -> Merge:
    """Returns the recipe's tree, or the mean of each member's folds and the weighted mean of the members."""
    if context.recipe.ensemble.tree is not None:
        return context.recipe.ensemble.tree
    folds = range(context.fold_table().num_folds)
    members = {name: [leaf_name(name, fold) for fold in folds] for name in weights}
    return standard_tree(members, list(weights.values()))


def out_of_fold_map(run: RunDirectory, tree: Merge, record: Record, fold: int, task: Task) -> np.ndarray:
    """Returns the record's merged map uint8 C×H×W from the networks of its own fold, which never saw its group."""
    honest = pruned(tree, in_fold(fold))

    def stored(leaf: str) -> np.ndarray:
        return read_map(run.oof_map(leaf.partition("/fold")[0], record.id))

    return merge_stored(honest, stored, exclusive=task.kind == "multiclass")[RESULT]


def _summary(
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


def _member_scores(
    context: Context, member: str, summarise: Callable[[Mapping[str, Counts]], dict[str, Any]]
) -> dict[str, Any]:
    scores = read_json(context.run.oof(member) / "scores.json")
    with_views = summarise({key: Counts.from_json(value["views"]) for key, value in scores.items()})
    plain = summarise({key: Counts.from_json(value["plain"]) for key, value in scores.items()})
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
