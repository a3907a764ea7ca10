"""Stage ``postprocess``: which steps change the ensemble's masks, searched on out-of-fold maps and cross-fitted.

As in the stage ``ensemble``, each part of the records is scored with what was chosen on the others: weights, thresholds
and steps alike. Maps are read record by record and leave nothing but counts, so memory does not grow with the data.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from maskloom.data.sources.base import DataSource
from maskloom.data.truth import read_sample, read_truth
from maskloom.ensembling.bootstrap import Tally, compare_tallies, tally
from maskloom.ensembling.crossfit import crossfit, deal_parts
from maskloom.ensembling.postprocess import (
    Found,
    Plan,
    Postprocessor,
    Trial,
    check_steps,
    count_plans,
    search,
    single_class_steps,
    step_text,
    with_fitted_thresholds,
)
from maskloom.ensembling.thresholds import decide, fit_thresholds
from maskloom.errors import BadFile
from maskloom.files import read_json, write_json, write_text
from maskloom.inference.merging import RESULT, Merge, tap_names
from maskloom.inference.shares import Weight
from maskloom.metrics import Counts, from_labels, score_records
from maskloom.outputs.report_input import ChangedMask
from maskloom.recipe import Recipe
from maskloom.records import BadSize, Record, Task
from maskloom.run_directory import RunDirectory
from maskloom.stages.context import Context
from maskloom.stages.ensemble import (
    Fitting,
    asked_members,
    ensemble_tree,
    load_ensemble,
    out_of_fold_maps,
    summary,
    write_counts,
)
from maskloom.stages.fold_tables import FoldTables


def result_path(run: RunDirectory) -> Path:
    """Returns where the stage leaves what it decided."""
    return run.ensemble.with_name("postprocess.json")


def with_steps_path(run: RunDirectory) -> Path:
    """Returns where the stage leaves the counts of every record with the steps that the other parts chose."""
    return run.ensemble.with_name("postprocess_counts.json")


def check_postprocess(recipe: Recipe, task: Task) -> None:
    """Raises ``UserError`` for a step that names a class or map that this recipe has not; needs no finished stage."""
    tree = recipe.ensemble.tree
    check_steps(recipe.postprocess, task, [] if tree is None else tap_names(tree))


def load_postprocessor(run: RunDirectory, task: Task) -> Postprocessor:
    """Returns what the stage decided; of a run without it, a postprocessor without steps."""
    path = result_path(run)
    return Postprocessor(_plan(read_json(run.checked(path))["steps"]) if path.is_file() else (), task)


def _plan(steps: Any) -> Plan:
    return TypeAdapter(Plan).validate_python(steps)


def fit_postprocess(context: Context) -> list[Path]:
    """Returns the files left: ``postprocess.json``, ``postprocess.csv`` with one row per validated record, and
    ``postprocess_counts.json``, the counts of every record with the steps.
    """
    recipe, task = context.recipe, context.source.task
    fold_of = context.fold_tables().validated(asked_members(recipe))
    records = context.records(set(fold_of))
    parts = deal_parts(
        [record.group for record in records], [fold_of[record.id] for record in records], seed=recipe.seed
    )
    choice = _Choice(context, records, fold_of)

    def apply(fitted: _Fitted, inside: list[Record]) -> tuple[Plan, dict[str, _Pair]]:
        return fitted.found.plan, choice.pairs(fitted, inside)

    if len(set(parts)) > 1:
        outcomes = crossfit(records, parts, fit=choice.fit, apply=apply)
    else:  # a single record: nothing can be chosen elsewhere
        outcomes = {parts[0]: apply(choice.fit([]), records)}
    final = choice.fit(records)
    pairs = {record_id: pair for _, inside in outcomes.values() for record_id, pair in inside.items()}
    before = {record.id: pairs[record.id].before for record in records}
    after = {record.id: pairs[record.id].after for record in records}
    gain = compare_tallies(
        tally(list(before.values())),
        [tally(list(after.values()))],
        [record.group for record in records],
        recipe.metric,
        draws=recipe.postprocess.draws,
        seed=recipe.seed,
    )[0]
    result = {
        "metric": recipe.metric,
        "choose": recipe.postprocess.choose,
        "steps": [step.model_dump(mode="json") for step in final.found.plan],
        "trials": [_trial_to_json(trial) for trial in final.found.trials],
        "steps_of_parts": {str(part): [step_text(step) for step in plan] for part, (plan, _) in outcomes.items()},
        "scores": {
            "without": summary(records, fold_of, recipe.metric, task, before),
            "with": summary(records, fold_of, recipe.metric, task, after),
        },
        "gain": gain.to_json(),
    }
    table = result_path(context.run).with_suffix(".csv")
    write_text(table, _rows(context, records, fold_of, pairs))
    write_json(result_path(context.run), result)
    write_counts(with_steps_path(context.run), after)
    return [result_path(context.run), table, with_steps_path(context.run)]


def _trial_to_json(trial: Trial) -> dict[str, Any]:
    return {
        "step": trial.step.model_dump(mode="json"),
        "text": step_text(trial.step),
        "gain": None if trial.gain is None else trial.gain.to_json(),
        "chosen": trial.chosen,
        "why": trial.why,
    }


def _rows(context: Context, records: Sequence[Record], fold_of: Mapping[str, int], pairs: Mapping[str, _Pair]) -> str:
    """Returns the table of every record's score without and with the steps that the other parts chose."""
    metric, text = context.recipe.metric, io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "fold", "before", "after"])
    for record in records:
        scores = [score_records([counts], metric) for counts in (pairs[record.id].before, pairs[record.id].after)]
        writer.writerow([record.id, fold_of[record.id], *(f"{score:.6f}" for score in scores)])
    return text.getvalue()


@dataclass(frozen=True, slots=True)
class _Fitted:
    """What was fitted on some records."""

    weights: Mapping[str, Weight]
    thresholds: list[int]
    found: Found


@dataclass(frozen=True, slots=True)
class _Pair:
    """One record's counts without and with the steps."""

    before: Counts
    after: Counts


class _Choice:
    """Fits weights, thresholds and steps on some records, and counts others with them."""

    def __init__(self, context: Context, records: Sequence[Record], fold_of: Mapping[str, int]) -> None:
        self._context, self._tables = context, context.fold_tables()
        self._fitting = Fitting(context, records, fold_of)

    def fit(self, records: Sequence[Record]) -> _Fitted:
        """Returns what is best on these records; without records, nothing fitted (steps that are always on stay)."""
        recipe, task = self._context.recipe, self._context.source.task
        if records:
            weights, thresholds = self._fitting.fit(records)
        else:
            weights, thresholds = self._fitting.equal_weights, fit_thresholds([], recipe.metric, task)
        candidates = single_class_steps(recipe.postprocess, task)
        if any(step.kind == "threshold" for step in candidates):
            histograms = self._fitting.histograms(records, weights)
            candidates = with_fitted_thresholds(candidates, fit_thresholds(histograms, recipe.metric, task), task)
        if not records:
            plan = tuple(candidates) if recipe.postprocess.choose == "always" else ()
            return _Fitted(weights, thresholds, Found(plan=plan, trials=()))
        found = search(
            candidates,
            lambda plans: self._tallies(plans, records, weights, thresholds),
            [record.group for record in records],
            recipe.metric,
            recipe.postprocess,
            seed=recipe.seed,
        )
        return _Fitted(weights, thresholds, found)

    def pairs(self, fitted: _Fitted, records: Sequence[Record]) -> dict[str, _Pair]:
        """Returns every record's counts without and with the fitted steps."""
        counted = self._counted([(), fitted.found.plan], records, fitted.weights, fitted.thresholds)
        return {
            record.id: _Pair(*(Counts(tp=counts[0], fp=counts[1], fn=counts[2]) for counts in both))
            for record, both in zip(records, counted, strict=True)
        }

    def _tallies(
        self, plans: Sequence[Plan], records: Sequence[Record], weights: Mapping[str, Weight], thresholds: list[int]
    ) -> list[Tally]:
        counted = np.stack(list(self._counted(plans, records, weights, thresholds)))
        return [counted[:, index] for index in range(len(plans))]

    def _counted(
        self, plans: Sequence[Plan], records: Sequence[Record], weights: Mapping[str, Weight], thresholds: list[int]
    ) -> Iterator[Tally]:
        """Yields the counts P×3×C of each record after each plan, in order."""
        task = self._context.source.task
        tree = ensemble_tree(self._context, self._tables, weights)

        def count(record: Record) -> Tally:
            maps = _maps(self._context.run, tree, record, self._tables, task)
            truth = read_truth(record, task, self._context.source.coding)
            return count_plans(plans, decide(maps[RESULT], thresholds, task), maps, truth, task)

        with ThreadPoolExecutor(4) as pool:
            for done, counts in enumerate(pool.map(count, records), start=1):
                self._context.progress.advance(done, len(records), f"{len(plans)} plan(s)")
                yield counts


def _maps(run: RunDirectory, tree: Merge, record: Record, tables: FoldTables, task: Task) -> dict[str, np.ndarray]:
    """Returns the record's merged map and taps, from networks that never saw its group."""
    return out_of_fold_maps(run, tree, record, tables, task)


def changed_examples(run: RunDirectory, recipe: Recipe, source: DataSource, count: int) -> list[ChangedMask]:
    """Returns the images whose score the steps change most, for better or worse, by the stage's table.

    The masks shown are those of the final steps. Images whose file is gone are left out.
    """
    with run.checked(result_path(run).with_suffix(".csv")).open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["before"] != row["after"]]
    rows.sort(key=lambda row: (-abs(float(row["after"]) - float(row["before"])), row["id"]))
    records = {record.id: record for record in source.records}
    ensemble, task, tables = load_ensemble(run), source.task, FoldTables.read(run, recipe)
    postprocessor = load_postprocessor(run, task)
    found: list[ChangedMask] = []
    for row in rows[:count]:
        record = records[row["id"]]
        try:
            maps = _maps(run, ensemble.tree, record, tables, task)
            sample = read_sample(record, task, source.coding)
        except (BadFile, BadSize, FileNotFoundError):
            continue
        before = decide(maps[RESULT], ensemble.thresholds, task)
        after = postprocessor(before, maps)
        image, truth = sample.image, sample.labels
        assert truth is not None, "every record of a source has truth"
        scores = [score_records([from_labels(labels, truth, task)], ensemble.metric) for labels in (before, after)]
        found.append(
            ChangedMask(
                id=record.id,
                fold=int(row["fold"]),
                score_before=scores[0],
                score_after=scores[1],
                image=image,
                truth=truth,
                before=before,
                after=after,
            )
        )
    return found
