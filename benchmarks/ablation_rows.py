"""The rows of ``ablation.py``: scores from what a finished run has stored, gains with intervals, and the table."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ablation_parts import DETECTABLE, counts_of_mean, gain_cells

from maskloom.data.image_io import read_mask_values
from maskloom.data.sources.base import DataSource
from maskloom.data.truth import read_truth
from maskloom.ensembling.bootstrap import Gain, paired_bootstrap
from maskloom.ensembling.thresholds import HALF, decide
from maskloom.errors import UserError
from maskloom.files import read_json
from maskloom.inference.merging import RESULT, Merge
from maskloom.metrics import Counts, dice, from_labels
from maskloom.models.bundle import load_bundle
from maskloom.outputs.maps import mask_paths
from maskloom.recipe import Recipe
from maskloom.records import Record
from maskloom.run_directory import RunDirectory
from maskloom.stages.ensemble import out_of_fold_maps
from maskloom.stages.fold_tables import FoldTables
from maskloom.stages.postprocess import result_path
from maskloom.stages.pseudo import read_choices

ROUNDING = 1e-5
"""Scores in the run's tables have 6 digits."""

Scores = dict[str, float]
"""Dice by photo."""


class Scored:
    """Dice of the labelled photos out of fold, and of the photos held back, from a finished run."""

    def __init__(self, run: RunDirectory, recipe: Recipe, source: DataSource) -> None:
        self.run, self.recipe, self.source = run, recipe, source
        self.tables = FoldTables.read(run, recipe)
        self.records = source.records

    def without_views(self, member: str) -> Scores:
        """Returns the scores that the run counted without test-time views, at one half."""
        counts = read_json(self.run.oof(member) / "scores.json")
        return {record.id: float(dice(Counts.from_json(counts[record.id]["plain"]))[0]) for record in self.records}

    def of_mean(self, *members: str) -> Scores:
        """Returns the scores of the mean of members' out-of-fold maps, with views, at one half."""
        tree = self.tables.expanded(Merge(children=members), self.recipe.names)

        def score(record: Record) -> float:
            maps = out_of_fold_maps(self.run, tree, record, self.tables, self.source.task)
            return self._score(maps[RESULT], record, self.source)

        with ThreadPoolExecutor(4) as pool:
            return dict(zip((record.id for record in self.records), pool.map(score, self.records), strict=True))

    def postprocessed(self) -> tuple[Scores, Scores]:
        """Returns the scores before and after the steps that were chosen on the other folds."""
        with result_path(self.run).with_suffix(".csv").open(encoding="utf-8", newline="") as stream:
            lines = list(csv.DictReader(stream))
        before, after = ({line["id"]: float(line[name]) for line in lines} for name in ("before", "after"))
        return before, after

    def folds_on(
        self,
        member: str,
        unseen: Sequence[Record],
        source: DataSource,
        device: torch.device,
        on_progress: Callable[[int, int], object],
    ) -> tuple[Scores, Scores]:
        """Returns, of photos that no fold saw, the mean score of a member's networks, and the score of their mean."""
        leaves = self.tables.leaves(member)
        segmenters = {leaf: load_bundle(self.run.bundle(member, fold, "last")) for fold, leaf in enumerate(leaves)}
        found = counts_of_mean(segmenters, self.recipe.inference, device, unseen, source, on_progress)
        alone = {each.id: float(np.mean([dice(found[leaf][each.id])[0] for leaf in leaves])) for each in unseen}
        return alone, {each.id: float(dice(found[RESULT][each.id])[0]) for each in unseen}

    def delivered(self, unseen: Sequence[Record], source: DataSource) -> Scores:
        """Returns the scores of the masks that the run wrote for unlabelled photos."""
        task, folder = source.task, self.run.predictions / "masks"
        scores = {}
        for record in unseen:
            (file,) = mask_paths(folder, record.id, task)
            labels = (read_mask_values(file) > 0).astype(np.uint8)
            scores[record.id] = float(dice(from_labels(labels, read_truth(record, task, source.coding), task))[0])
        return scores

    def _score(self, values: np.ndarray, record: Record, source: DataSource) -> float:
        task = source.task
        truth = read_truth(record, task, source.coding)
        return float(dice(from_labels(decide(values, [HALF], task), truth, task))[0])

    def chosen_steps(self) -> list[str]:
        """Returns the kinds of the steps that were chosen on all labelled photos."""
        return [step["kind"] for step in read_json(result_path(self.run))["steps"]]

    def num_pseudo_labels(self) -> list[int]:
        """Returns how many pseudo-labels each fold learnt from."""
        chosen = [int(row["fold"]) for row in read_choices(self.run, 0) if row["chosen"] == "yes"]
        return [chosen.count(fold) for fold in sorted(set(chosen))]

    def seconds(self) -> float:
        """Returns what the stages of the run took together."""
        return sum(float(read_json(marker)["seconds"]) for marker in (self.run.root / "stages").rglob("*.json"))


@dataclass(frozen=True, kw_only=True)
class Row:
    """A system, and how it compares with another one on the same photos."""

    name: str
    what: str
    score: float
    before: float | None
    gain: Gain | None
    num_photos: int
    num_cars: int
    held_back: bool
    """Whether the photos are those of the cars held back."""

    @property
    def smallest_effect(self) -> float:
        """The true gain that such an experiment would find in 80 % of all cases."""
        return DETECTABLE * self.gain.standard_error if self.gain else 0.0

    def to_json(self) -> dict[str, Any]:
        known: dict[str, Any] = {
            "row": self.name,
            "what": self.what,
            "on": "held back" if self.held_back else "out of fold",
            "photos": self.num_photos,
            "cars": self.num_cars,
            "dice": round(self.score, 6),
        }
        if self.gain is not None and self.before is not None:
            known["before"] = round(self.before, 6)
            known["gain"] = self.gain.to_json()
            known["smallest_effect"] = round(self.smallest_effect, 7)
        return known


def rows(
    scored: Scored,
    unseen: Sequence[Record],
    source: DataSource,
    device: torch.device,
    on_progress: Callable[[int, int], object],
    *,
    first: tuple[str, str],
    pupils: tuple[str, str],
    stacked: str,
) -> list[Row]:
    """Returns the rows of the table; ``unseen`` are the photos held back, with their truth as ``source`` has it."""
    network, flipped = scored.without_views(first[0]), scored.of_mean(first[0])
    two, taught, layered = scored.of_mean(*first), scored.of_mean(*pupils), scored.of_mean(*pupils, stacked)
    before, after = scored.postprocessed()
    apart = max(abs(before[name] - layered[name]) for name in layered)
    if apart > ROUNDING:
        raise UserError(f"expected the run's own scores before post-processing, found others by up to {apart:.2g}")
    alone, folds = scored.folds_on(first[0], unseen, source, device, on_progress)
    whole = scored.delivered(unseen, source)
    labelled = scored.records
    return [
        _row("single network", f"{first[0]}, without views", network, None, labelled),
        _row("+ TTA", "mean of the photo and its mirror image", flipped, network, labelled),
        _row("+ folds", f"mean map of {first[0]}'s folds", folds, alone, unseen, held_back=True),
        _row("+ second member", f"mean of {' and '.join(first)}, compared with TTA", two, flipped, labelled),
        _row("+ pseudo-labels", "both anew, also on the surest labels of the cars held back", taught, two, labelled),
        _row("+ second layer", f"mean of both and {stacked}, which sees their maps", layered, taught, labelled),
        _row("+ post-processing", "steps chosen on the other folds", after, before, labelled),
        _row(
            "whole system", "all of it, compared with a single network with TTA", whole, alone, unseen, held_back=True
        ),
    ]


def _row(
    name: str, what: str, after: Scores, before: Scores | None, records: Sequence[Record], *, held_back: bool = False
) -> Row:
    return Row(
        name=name,
        what=what,
        score=mean(after),
        before=None if before is None else mean(before),
        gain=None if before is None else _gain(before, after, records),
        num_photos=len(records),
        num_cars=len({record.group for record in records}),
        held_back=held_back,
    )


def _gain(before: Mapping[str, float], after: Mapping[str, float], records: Iterable[Record]) -> Gain:
    """Returns the mean gain over photos, with its interval over cars."""
    differences: dict[str, list[float]] = {}
    for record in records:
        differences.setdefault(record.group, []).append(after[record.id] - before[record.id])
    return paired_bootstrap(differences)


def mean(scores: Mapping[str, float]) -> float:
    """Returns the mean score of all photos."""
    return float(np.mean(list(scores.values())))


def markdown(found: Sequence[Row], result: Mapping[str, Any]) -> str:
    """Returns the table, and what one must know to read it."""
    lines = [
        "| step | Dice | gain ·10⁻⁴ | 95 % interval | P(gain > 0) | smallest effect ·10⁻⁴ | cars |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found:
        cells = [f"{row.name}: {row.what}", f"{row.score:.5f}", "", "", "", "", f"{row.num_cars}"]
        if row.held_back:
            cells[1], cells[6] = f"{row.before:.5f} → {row.score:.5f}", f"{row.num_cars} held back"
        if row.gain is not None:
            cells[2:6] = [*gain_cells(row.gain, 1e-4), f"{1e4 * row.smallest_effect:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    height, width = result["size"]
    alone = ", ".join(f"{name} {score:.5f}" for name, score in result["members_alone"].items())
    return "\n".join(
        [
            *lines,
            "",
            f"Inputs of {height}×{width} (height×width), {result['folds']} folds, {result['epochs']} epochs of "
            f"{result['images_per_epoch']} images for every network. Out of fold on the labelled cars, each row "
            f"compared with the one above it; two rows on the cars held back. Smallest effect: {DETECTABLE:.2f} "
            "standard errors (5 % two-sided, 80 % power).",
            "",
            f"Members alone, out of fold with TTA: {alone}. Pseudo-labels that each fold learnt from: "
            f"{', '.join(map(str, result['pseudo_labels_of_folds']))}. Post-processing steps chosen on all folds: "
            f"{', '.join(result['postprocess']) or 'none'}.",
            "",
        ]
    )
