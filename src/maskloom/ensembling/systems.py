"""Two systems on the same images: what each scores, by how much the second is better, and how sure that is.

A system is one run, or several runs of one recipe with different seeds. Chance enters twice: which groups happen to be
in the data (the paired bootstrap) and which numbers the training happened to draw (the spread over seeds). Knows
nothing about runs on disk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskloom.ensembling.bootstrap import DRAWS, Gain, Tally, compare_tallies, tally
from maskloom.metrics import Counts, Metric, per_class, score_records

STANDARD_ERRORS = 2.0
"""A difference of fewer standard errors than this is within noise: about 5 in 100 such come of chance alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunScore:
    """One run: the score of all images together, and of each fold where these can be compared."""

    score: float
    folds: tuple[float, ...]
    """Empty where the folds of the runs differ."""

    @property
    def mean(self) -> float | None:
        """Over folds."""
        return float(np.mean(self.folds)) if self.folds else None

    @property
    def std(self) -> float | None:
        """Over folds, as a run's own scores have it (of the folds there are)."""
        return float(np.std(self.folds)) if self.folds else None

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values, scores to 6 digits."""
        return {
            "score": round(self.score, 6),
            "mean": rounded(self.mean),
            "std": rounded(self.std),
            "folds": [round(score, 6) for score in self.folds],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class SystemScore:
    """The runs of one system."""

    runs: tuple[RunScore, ...]
    classes: tuple[float | None, ...]
    """Per class, the mean over runs; None for a class that no truth holds (metric iou)."""

    @property
    def mean(self) -> float:
        """Over runs, of their score on all images together."""
        return float(np.mean([run.score for run in self.runs]))

    @property
    def seed_std(self) -> float | None:
        """Standard deviation over seeds, estimated from these (n - 1); None for a single run."""
        if len(self.runs) < 2:
            return None
        return float(np.std([run.score for run in self.runs], ddof=1))


@dataclass(frozen=True, kw_only=True, slots=True)
class SystemGain:
    """How much better the second system is than the first."""

    first: SystemScore
    second: SystemScore
    gain: Gain
    """Of all classes, over groups, between the means over seeds."""
    class_gains: tuple[Gain | None, ...]
    """Per class; None for a class that no truth holds (metric iou)."""

    @property
    def seed_error(self) -> float | None:
        """Standard error of the difference that seeds alone make; None unless both systems have several runs."""
        sides = [(side.seed_std, len(side.runs)) for side in (self.first, self.second)]
        parts = [std**2 / count for std, count in sides if std is not None]
        return math.sqrt(sum(parts)) if len(parts) == len(sides) else None

    @property
    def standard_error(self) -> float | None:
        """Of the difference, over groups and seeds (as far as there are several); None with a single group.

        Both add as if they were independent, which is on the safe side. That over groups is widened by √(n / (n - 1))
        for the n groups it was estimated from.
        """
        num_groups = self.gain.num_groups
        if num_groups < 2:
            return None
        over_groups = self.gain.standard_error * math.sqrt(num_groups / (num_groups - 1))
        return math.hypot(over_groups, self.seed_error or 0.0)

    @property
    def smallest_effect(self) -> float | None:
        """The smallest difference that these groups and seeds could show: so many standard errors."""
        return None if self.standard_error is None else STANDARD_ERRORS * self.standard_error


def compare_systems(
    first: Sequence[Sequence[Counts]],
    second: Sequence[Sequence[Counts]],
    groups: Sequence[str],
    metric: Metric,
    *,
    folds: Sequence[int] | None = None,
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> SystemGain:
    """Returns the scores of two systems and their difference, from the counts of every run per record.

    All runs have the same records in the same order, ``groups`` their groups, ``folds`` their folds (None: these
    differ between the runs). The difference is that of the means over each system's runs; it is drawn over groups for
    all runs at once. Raises ``ValueError`` without runs or records, and for other numbers of them.
    """
    lengths = {len(run) for run in (*first, *second)}
    if not first or not second or lengths != {len(groups)} or not groups:
        raise ValueError(f"expected runs on both sides, all of the {len(groups)} records, got {sorted(lengths)}")
    sides = [[tally(run) for run in side] for side in (first, second)]

    def gain(places: slice) -> Gain:
        # Runs beside each other as classes: a mean over these is the mean over runs of each one's score, as the truth
        # and with it the classes that occur are the same in all runs.
        before, after = (np.concatenate([run[..., places] for run in side], axis=2) for side in sides)
        return compare_tallies(before, [after], groups, metric, confidence=confidence, draws=draws, seed=seed)[0]

    scores = [_system_score(side, metric, folds) for side in (first, second)]
    absent = [first_score is None for first_score in scores[0].classes]
    return SystemGain(
        first=scores[0],
        second=scores[1],
        gain=gain(slice(None)),
        class_gains=tuple(None if gone else gain(slice(place, place + 1)) for place, gone in enumerate(absent)),
    )


def _system_score(runs: Sequence[Sequence[Counts]], metric: Metric, folds: Sequence[int] | None) -> SystemScore:
    classes = np.mean([per_class(run, metric) for run in runs], axis=0).tolist()
    return SystemScore(
        runs=tuple(_run_score(run, metric, folds) for run in runs),
        classes=tuple(None if math.isnan(score) else score for score in classes),
    )


def _run_score(run: Sequence[Counts], metric: Metric, folds: Sequence[int] | None) -> RunScore:
    by_fold: dict[int, list[Counts]] = {}
    for fold, counts in zip(folds or [], run, strict=folds is not None):
        by_fold.setdefault(fold, []).append(counts)
    return RunScore(
        score=score_records(run, metric),
        folds=tuple(score_records(by_fold[fold], metric) for fold in sorted(by_fold)),
    )


def first_other_truth(first: Sequence[Counts], second: Sequence[Counts]) -> int | None:
    """Returns the first record whose truth differs between two runs (in its pixels per class), or None."""
    true = [_true_pixels(tally(run)) for run in (first, second)]
    differing = np.flatnonzero((true[0] != true[1]).any(axis=1))
    return int(differing[0]) if len(differing) else None


def _true_pixels(counts: Tally) -> np.ndarray:
    """Returns the pixels of each class in the truth of N records: N×C."""
    pixels: np.ndarray = counts[:, 0] + counts[:, 2]
    return pixels


def rounded(value: float | None) -> float | None:
    """Returns a score to 6 digits, for JSON."""
    return None if value is None else round(value, 6)
