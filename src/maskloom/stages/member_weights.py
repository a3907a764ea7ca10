"""Weights of an ensemble's members as the recipe asks for them: equal, fitted, or by the members' own scores.

Everything is read from out-of-fold maps and counts. Knows nothing about thresholds and merging.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np

from maskloom.data.truth import read_truth
from maskloom.ensembling.crossfit import deal_parts
from maskloom.ensembling.thresholds import Histogram, histograms
from maskloom.ensembling.weight_choice import WeightChoice
from maskloom.ensembling.weights import (
    Candidate,
    PixelSample,
    class_candidates,
    fit_weights,
    sample_each_class,
    sample_pixels,
)
from maskloom.errors import UserError
from maskloom.files import read_json
from maskloom.inference.merging import RESULT, Merge, check_class_weights, merge_stored
from maskloom.inference.shares import Weight
from maskloom.metrics import Counts, score_records
from maskloom.recipe import Recipe
from maskloom.records import Record, Task
from maskloom.run_directory import RunDirectory
from maskloom.runtime import derive_seed
from maskloom.stages.context import Context
from maskloom.stages.guides import stored_maps

Weights = dict[str, Weight]
"""By member: one number, or one number per class of a multilabel task, the same of all members."""


def check_member_weights(recipe: Recipe, task: Task) -> None:
    """Raises ``UserError`` where weights per class, fitted or stated in a tree, do not go with the data's task."""
    if recipe.ensemble.weights == "fitted_per_class" and task.kind != "multilabel":
        raise UserError(
            "ensemble.weights: fitted_per_class expects a multilabel task, whose maps are merged class by class, found "
            f"a {task.kind} one; use fitted"
        )
    if recipe.ensemble.tree is not None:
        check_class_weights(recipe.ensemble.tree, task)


def by_class(weights: Mapping[str, Weight], classes: Sequence[str]) -> dict[str, Any]:
    """Returns weights by member as they are stored and shown; where they are per class, by class of each member."""
    return {
        name: dict(zip(classes, weight, strict=True)) if isinstance(weight, tuple) else weight
        for name, weight in weights.items()
    }


class MemberWeights:
    """Fits weights on any of the records; keeps what their maps and counts give to that."""

    def __init__(
        self, context: Context, members: Sequence[str], records: Sequence[Record], fold_of: Mapping[str, int]
    ) -> None:
        self._context, self._members, self._fold_of = context, members, fold_of
        self._kind = context.recipe.ensemble.weights if len(members) > 1 else "equal"
        self._samples: dict[str, list[PixelSample]] = {}
        self._counts: dict[str, dict[str, Counts]] = {}
        if self._kind in ("score", "rank"):
            self._counts = {name: stored_counts(context.run, name, "views") for name in members}
        if self._kind in ("fitted", "fitted_per_class"):
            with ThreadPoolExecutor(4) as pool:
                found = pool.map(self._sampled, records)
            self._samples = dict(zip((record.id for record in records), found, strict=True))

    @property
    def equal(self) -> Weights:
        """The same weight for every member."""
        return {name: 1 / len(self._members) for name in self._members}

    def fit(self, records: Sequence[Record]) -> Weights:
        """Returns the weights that follow from these records, of sum 1; per class where they differ by class."""
        if self._kind == "equal":
            return self.equal
        if self._kind in ("score", "rank"):
            return self._by_score(records)
        folds = [self._fold_of[record.id] for record in records]
        parts = deal_parts([record.group for record in records], folds, seed=self._context.recipe.seed)
        samples = [self._samples[record.id] for record in records]
        if self._kind == "fitted":
            return dict(zip(self._members, fit_weights([only for (only,) in samples], parts), strict=True))
        found = self._by_class(records, class_candidates(samples, self._predicts(), parts), parts)
        if all(len(set(weight)) == 1 for weight in found):
            return {name: weight[0] for name, weight in zip(self._members, found, strict=True)}
        return dict(zip(self._members, found, strict=True))

    def _by_class(
        self, records: Sequence[Record], candidates: Sequence[Candidate], parts: Sequence[int]
    ) -> list[tuple[float, ...]]:
        """Returns, per member, one weight per class: those of the candidate that scores best in the class."""
        recipe, num_classes = self._context.recipe, self._context.source.task.num_maps
        choice = WeightChoice(len(candidates), num_classes, recipe.metric, threshold=recipe.ensemble.stated_threshold)
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(
                lambda record, part: self._histograms(record, [each.outside[part] for each in candidates]),
                records,
                parts,
            )
            for part, of_record in zip(parts, found, strict=True):
                choice.add(part, of_record)
        taken = [candidates[number].on_all[:, place] for place, number in enumerate(choice.best())]
        return [tuple(map(float, row)) for row in np.transpose(taken)]

    def _histograms(self, record: Record, weights: Sequence[np.ndarray]) -> list[Histogram]:
        """Returns the histograms of a record's map, merged by each of the weights members×classes."""
        task = self._context.source.task
        maps = stored_maps(self._context.run, self._members, record)
        truth = read_truth(record, task, self._context.source.coding)
        trees = [
            Merge(children=tuple(self._members), weights=tuple(tuple(map(float, row)) for row in each))
            for each in weights
        ]
        return [
            histograms(merge_stored(tree, maps.__getitem__, exclusive=False)[RESULT], truth, task) for tree in trees
        ]

    def _predicts(self) -> np.ndarray:
        """Returns which member predicts which class, bool members×classes."""
        task = self._context.source.task
        some = self._context.recipe.partial_members(task)
        everything = range(task.num_maps)
        return np.array([[number in some.get(name, everything) for number in everything] for name in self._members])

    def _by_score(self, records: Sequence[Record]) -> Weights:
        """Returns weights that follow from the members' scores on these records, by value or by rank; sum 1."""
        scores = {
            name: score_records([counts[record.id] for record in records], self._context.recipe.metric)
            for name, counts in self._counts.items()
        }
        if self._kind == "rank":
            ordered = sorted(scores, key=lambda name: scores[name])
            raw = {name: float(ordered.index(name) + 1) for name in self._members}
        else:
            raw = {name: 1 / max(1 - score, 1e-6) for name, score in scores.items()}
        return {name: value / sum(raw.values()) for name, value in raw.items()}

    def _sampled(self, record: Record) -> list[PixelSample]:
        """Returns a sample of the record's pixels, or one of each class."""
        task = self._context.source.task
        maps = stored_maps(self._context.run, self._members, record)
        truth = read_truth(record, task, self._context.source.coding)
        seed = derive_seed(self._context.recipe.seed, "weights", record.id)
        if self._kind == "fitted":
            return [sample_pixels(maps, truth, task, seed=seed)]
        return sample_each_class(maps, truth, task, seed=seed)


def stored_counts(run: RunDirectory, member: str, kind: Literal["views", "plain"]) -> dict[str, Counts]:
    """Returns the counts of a member's own out-of-fold masks by record."""
    scores = read_json(run.checked(run.oof(member) / "scores.json"))
    return {record_id: Counts.from_json(value[kind]) for record_id, value in scores.items()}
