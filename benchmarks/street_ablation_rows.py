"""The rows of ``street_ablation.py``: counts of finished runs, gains with intervals over segments, and the tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation_parts import DETECTABLE, counts_of_mean, gain_cells, signed

from maskloom.data.folds import FoldTable
from maskloom.data.sources.base import DataSource
from maskloom.ensembling.bootstrap import Gain, compare_tallies, tally
from maskloom.files import checksum, fingerprint, read_json, write_json
from maskloom.inference.merging import RESULT
from maskloom.inference.predictor import InferenceSettings
from maskloom.metrics import Counts, per_class, score_records
from maskloom.models.bundle import load_bundle
from maskloom.records import Record
from maskloom.run_directory import RunDirectory

MEMBER = "unet"
"""The member of the recipe that is measured."""
VIEWS = ("flip", "flip_scales")
UNIT = 1e-3
"""Gains are told in thousandths."""

ByRecord = dict[str, Counts]
OnProgress = Callable[[int, int], object]


@dataclass(frozen=True, kw_only=True)
class Judge:
    """One of the two sides on which rows are judged."""

    name: str
    source: DataSource
    data: Path
    """From where runs read it."""
    segments: Mapping[str, str]
    """The segment of every record that is judged, by id."""
    tables: Sequence[Path] | None
    """The table of each fold; None where the data's own val folder is judged."""

    def table(self, seed: int) -> Path:
        """Returns the table of the fold that a seed judges."""
        assert self.tables is not None, "only folds have tables"
        return self.tables[seed % len(self.tables)]

    def validated(self, seed: int) -> list[Record]:
        """Returns the records that a seed judges."""
        if self.tables is None:
            return [record for record in self.source.records if record.id in self.segments]
        ids = set(FoldTable.from_csv(self.table(seed)).split(0)[1])
        return [record for record in self.source.records if record.id in ids]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished run: one network."""

    row: str
    seed: int
    run: Path

    @property
    def bundle(self) -> Path:
        """Its network."""
        return RunDirectory(self.run).bundle(MEMBER, 0, "last")

    @property
    def minutes(self) -> float:
        """That its training took."""
        seconds: float = read_json(RunDirectory(self.run).marker(f"train/{MEMBER}/fold0"))["seconds"]
        return seconds / 60


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """Counts of several seeds on one side, and the segment of each."""

    by_seed: tuple[ByRecord, ...]
    segments: Mapping[str, str]

    @cached_property
    def counts(self) -> list[Counts]:
        """Those of all seeds, one after the other."""
        return [counts for seed in self.by_seed for counts in seed.values()]

    @property
    def groups(self) -> list[str]:
        """The segment of each of them."""
        return [self.segments[name] for seed in self.by_seed for name in seed]

    @property
    def scores(self) -> list[float]:
        """The mean IoU of each seed."""
        return [score_records(list(seed.values()), "iou") for seed in self.by_seed]

    def gain_over(self, before: Pooled) -> Gain:
        """Returns the gain over other counts of the same records."""
        return compare_tallies(tally(before.counts), [tally(self.counts)], before.groups, "iou")[0]


@dataclass(frozen=True, kw_only=True)
class Side:
    """A row on one side."""

    iou: float
    """Mean IoU of counts summed over all seeds."""
    by_class: list[float]
    before: float | None
    """Of what it is compared with."""
    gain: Gain | None
    seed_gains: list[float]
    minutes: float | None
    """Of one training; None where nothing was trained."""

    def to_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """Returns plain JSON values."""
        known: dict[str, Any] = {
            "iou": round(self.iou, 6),
            "by_class": {name: _number(value) for name, value in zip(classes, self.by_class, strict=True)},
            "minutes": None if self.minutes is None else round(self.minutes, 2),
        }
        if self.gain is not None and self.before is not None:
            known |= {"before": round(self.before, 6), "gain": self.gain.to_json()}
            known |= {"seed_gains": [round(value, 6) for value in self.seed_gains]}
            known["smallest_effect"] = round(DETECTABLE * self.gain.standard_error, 7)
        return known


@dataclass(frozen=True, kw_only=True)
class Row:
    """One change to the recipe, on each side that it was judged on."""

    name: str
    what: str
    sides: Mapping[str, Side]

    def to_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """Returns plain JSON values."""
        sides = {name: side.to_json(classes) for name, side in self.sides.items()}
        return {"row": self.name, "what": self.what, "judged": sides}


def rows(
    trained: Sequence[Trained],
    judges: Sequence[Judge],
    words: Mapping[str, str],
    *,
    base: str,
    inference: InferenceSettings,
    device: torch.device,
    scores: Path,
    on_progress: OnProgress,
) -> list[Row]:
    """Returns the rows: the base, every row that was trained, views, and the mean of the folds' networks.

    Networks learnt for the first of the ``judges``. ``words`` says what each trained row is; ``inference`` how networks
    are asked, but for their views. What they are asked for here is kept in the folder ``scores``.
    """
    runs: dict[str, list[Trained]] = {}
    for each in trained:
        runs.setdefault(each.row, []).append(each)
    learnt, val = judges[0], judges[-1]

    def asked(judge: Judge, seed: int, networks: Sequence[Trained], views: str) -> _Asked:
        records = judge.validated(seed)
        settings = inference.model_copy(update={"views": views})
        return _asked(records, judge.source, networks, settings, device=device, folder=scores, on_progress=on_progress)

    def pool(name: str, judge: Judge, views: str) -> Pooled:
        seeds = tuple(
            counts_in_run(each)
            if judge is learnt and views == "none"
            else asked(judge, each.seed, [each], views)[RESULT]
            for each in runs[name]
        )
        return Pooled(by_seed=seeds, segments=judge.segments)

    plain = {(name, judge.name): pool(name, judge, "none") for name in runs for judge in judges}

    def side(name: str, judge: Judge) -> Side:
        minutes = float(np.mean([each.minutes for each in runs[name]]))
        return _side(plain[name, judge.name], None if name == base else plain[base, judge.name], minutes)

    found = [
        Row(
            name=name,
            what="the recipe, without views" if name == base else words[name],
            sides={judge.name: side(name, judge) for judge in judges},
        )
        for name in runs
    ]
    for views in VIEWS:
        sides = {judge.name: _side(pool(base, judge, views), plain[base, judge.name], None) for judge in judges}
        found.append(Row(name=f"views: {views}", what="the recipe's networks, asked so", sides=sides))
    networks = _one_of_each_fold(runs[base], learnt)
    if len(networks) > 1:
        answers = asked(val, 0, networks, "none")
        alone = Pooled(by_seed=tuple(answers[_name(each)] for each in networks), segments=val.segments)
        mean = Pooled(by_seed=(answers[RESULT],) * len(networks), segments=val.segments)
        what = f"mean of the networks of {len(networks)} folds, compared with each of them"
        found.append(Row(name="folds", what=what, sides={"val": _side(mean, alone, None)}))
    return found


def _side(pooled: Pooled, before: Pooled | None, minutes: float | None) -> Side:
    return Side(
        iou=score_records(pooled.counts, "iou"),
        by_class=[float(value) for value in per_class(pooled.counts, "iou")],
        before=None if before is None else score_records(before.counts, "iou"),
        gain=None if before is None else pooled.gain_over(before),
        seed_gains=[] if before is None else [a - b for a, b in zip(pooled.scores, before.scores, strict=True)],
        minutes=minutes,
    )


def _one_of_each_fold(networks: Sequence[Trained], judge: Judge) -> list[Trained]:
    """Returns the first network of every fold; none where there are no folds."""
    if judge.tables is None:
        return []
    first: dict[Path, Trained] = {}
    for each in networks:
        first.setdefault(judge.table(each.seed), each)
    return list(first.values())


# Counts --------------------------------------------------------------------------------------------------------------


def counts_in_run(trained: Trained) -> ByRecord:
    """Returns the counts without views of the records that a run validated."""
    stored = read_json(RunDirectory(trained.run).oof(MEMBER) / "scores.json")
    return {name: Counts.from_json(counts["plain"]) for name, counts in stored.items()}


_Asked = dict[str, ByRecord]
"""Counts of each network by its name, and of their mean under "result"."""


def _asked(
    records: Sequence[Record],
    source: DataSource,
    networks: Sequence[Trained],
    settings: InferenceSettings,
    *,
    device: torch.device,
    folder: Path,
    on_progress: OnProgress,
) -> _Asked:
    """Returns what networks and their mean predict of records, asked in this way; kept in the folder."""
    files = {_name(each): each.bundle for each in networks}
    sums = {name: checksum(path) for name, path in files.items()}
    mark = fingerprint(settings.model_dump(mode="json"), [record.id for record in records], sums)
    kept = folder / f"{mark[:24]}.json"
    if not kept.is_file():
        segmenters = {name: load_bundle(path) for name, path in files.items()}
        found = counts_of_mean(segmenters, settings, device, records, source, on_progress)
        write_json(
            kept,
            {name: {each: counts.to_json() for each, counts in of.items()} for name, of in found.items()},
        )
    stored = read_json(kept)
    return {name: {each: Counts.from_json(counts) for each, counts in of.items()} for name, of in stored.items()}


def _name(trained: Trained) -> str:
    return f"{trained.row}_{trained.seed}"


# Tables --------------------------------------------------------------------------------------------------------------


def markdown(found: Sequence[Row], result: Mapping[str, Any]) -> str:
    """Returns a table of gains and one of classes for each side, and what one must know to read them."""
    return "\n".join([line for name in result["segments"] for line in _tables(found, name, result)])


def _tables(found: Sequence[Row], judge: str, result: Mapping[str, Any]) -> list[str]:
    titles = {
        "val": "On the val folder",
        "segments": f"On {result['folds']} folds of consecutive parts of every drive of the train folder",
    }
    lines = [
        f"## {titles[judge]}: {result['images'][judge]} images, {result['segments'][judge]} segments",
        "",
        "| row | mIoU | gain ·10⁻³ | 95 % interval | P(gain > 0) | gains of the seeds ·10⁻³ | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    there = [(row, row.sides[judge]) for row in found if judge in row.sides]
    for row, side in there:
        # The folds' mean is compared with its own networks, all others with the first row.
        score = f"{side.before:.4f} → {side.iou:.4f}" if row.name == "folds" else f"{side.iou:.4f}"
        seeds = ", ".join(signed(value, UNIT) for value in side.seed_gains)
        minutes = "" if side.minutes is None else f"{side.minutes:.1f}"
        cells = [f"{row.name}: {row.what}", score, *gain_cells(side.gain, UNIT), seeds, minutes]
        lines.append(f"| {' | '.join(cells)} |")
    classes = result["classes"]
    lines += ["", f"| IoU | {' | '.join(classes)} |", "|" + "---|" * (len(classes) + 1)]
    for row, side in there:
        cells = ["–" if np.isnan(value) else f"{value:.3f}" for value in side.by_class]
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    minutes = f"{result['minutes_per_run']:g}"
    lines += [
        "",
        f"{result['seeds']} seed(s), about {minutes} minutes of training each by estimate. Gains are over the first "
        "row; intervals are of the paired bootstrap over segments and say nothing about other seeds.",
        "",
    ]
    return lines


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 6)
