"""Paired bootstrap over groups: the difference between two systems on the same images, and how sure it is.

Images of one group (the views of a car, the tiles of a scene) are easy or hard together, so whole groups are drawn with
replacement; both systems are scored on the same draw, so what makes a draw easy cancels. Source: B. Efron and
R. J. Tibshirani, "An Introduction to the Bootstrap" (1993), chapters 8 and 13 (percentile interval). Knows nothing
about what the systems are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from maskloom.metrics import Counts, Metric
from maskloom.runtime import generator

Tally = NDArray[np.int64]
"""Counts of many records: N×3×C, true positives, false positives and false negatives per record and class."""

DRAWS = 10_000
"""Draws of groups unless asked otherwise."""
_BLOCK = 4_000_000
"""Drawn groups held at a time, so that memory does not grow with the draws."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """A difference (the second system less the first) with its uncertainty."""

    mean: float
    """On the groups as they are."""
    low: float
    high: float
    """The interval that holds ``confidence`` of the draws, as much left out on either side."""
    standard_error: float
    """Standard deviation over the draws."""
    probability: float
    """Share of the draws with a difference above 0; one of exactly 0 counts half."""
    confidence: float
    num_groups: int

    def to_json(self) -> dict[str, float | int]:
        """Returns plain JSON values, differences to 7 digits."""
        return {name: round(value, 7) for name, value in asdict(self).items()}


def paired_bootstrap(
    differences_by_group: Mapping[str, Sequence[float]],
    *,
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Gain:
    """Returns the mean difference over all images, with its interval over groups.

    ``differences_by_group`` holds the score of the second system less that of the first, per image of each group. The
    same seed gives the same interval. Raises ``ValueError`` without images.
    """
    sums = np.array([[sum(values)] for values in differences_by_group.values()], np.float64).reshape(-1, 1)
    sizes = np.array([len(values) for values in differences_by_group.values()], np.float64)
    if not sizes.sum():
        raise ValueError("expected differences of at least one image, got none")
    if not sizes.all():
        raise ValueError("expected differences in every group, got an empty group; leave it out")
    return gains_of(lambda weights: (weights @ sums) / (weights @ sizes)[:, None], len(sizes), confidence, draws, seed)[
        0
    ]


def compare_tallies(
    before: Tally,
    after: Sequence[Tally],
    groups: Sequence[str],
    metric: Metric,
    *,
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> list[Gain]:
    """Returns how much better each of several systems scores than the one before, by the run's metric.

    All tallies are of the same records, ``groups`` their groups. "dice" is the mean over images and classes; "iou" the
    mean over classes of the IoU of counts summed over a draw; a draw that has none of the classes in its truth shows no
    difference, unless no record has. The draws are the same for every system.
    """
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    if len(groups) != len(before) or not len(before):
        raise ValueError(f"expected a group for each record and at least one, got {len(groups)} for {len(before)}")

    def summed(values: NDArray[np.float64]) -> NDArray[np.float64]:
        total = np.zeros((len(names), *values.shape[1:]))
        np.add.at(total, group_of, values)
        return total

    if metric == "dice":
        first, sizes = mean_dice(before), summed(np.ones(len(before)))
        sums = summed(np.stack([mean_dice(tally) - first for tally in after], axis=1))
        return gains_of(
            lambda weights: (weights @ sums) / (weights @ sizes)[:, None], len(names), confidence, draws, seed
        )
    whole = [summed(tally.astype(np.float64)) for tally in (before, *after)]
    has_classes = bool((whole[0][:, 0] + whole[0][:, 2]).any())

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        sums = [np.tensordot(weights, counts, axes=1) for counts in whole]
        first, *others = map(_mean_iou, sums)
        differences = np.stack([other - first for other in others], axis=1)
        if has_classes:  # a draw without any class in its truth says nothing about them
            differences[((sums[0][:, 0] + sums[0][:, 2]) == 0).all(axis=1)] = 0.0
        return differences

    return gains_of(statistic, len(names), confidence, draws, seed)


def tally(counts: Sequence[Counts]) -> Tally:
    """Returns the counts of records as one array N×3×C."""
    return np.stack([np.stack((count.tp, count.fp, count.fn)) for count in counts])


def mean_dice(counts: Tally) -> NDArray[np.float64]:
    """Returns each record's mean Dice over the classes, as ``metrics.score_records`` takes it."""
    tp, fp, fn = counts[:, 0], counts[:, 1], counts[:, 2]
    whole = 2 * tp + fp + fn
    scores: NDArray[np.float64] = np.where(whole > 0, 2 * tp / np.maximum(whole, 1), 1.0).mean(axis=1)
    return scores


def _mean_iou(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the mean IoU over classes that occur for each of B×3×C sums, as ``metrics.score_records`` takes it."""
    tp, fp, fn = counts[:, 0], counts[:, 1], counts[:, 2]
    whole = tp + fp + fn
    scores = np.where(whole > 0, tp / np.maximum(whole, 1), 1.0)
    known = tp + fn > 0
    known[~known.any(axis=1)] = True
    means: NDArray[np.float64] = (scores * known).sum(axis=1) / known.sum(axis=1)
    return means


def gains_of(
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    num_groups: int,
    confidence: float,
    draws: int,
    seed: int,
) -> list[Gain]:
    """Returns one gain per column of ``statistic``, which maps how often each group counts (B×G) to differences B×K."""
    if not 0 < confidence < 1 or draws < 1:
        raise ValueError(f"expected a confidence between 0 and 1 and at least 1 draw, got {confidence} and {draws}")
    means = statistic(np.ones((1, num_groups)))[0]
    rng = generator(seed, "bootstrap", num_groups)
    block = max(_BLOCK // num_groups, 1)
    drawn = [statistic(_weights(rng, min(block, draws - start), num_groups)) for start in range(0, draws, block)]
    values = np.concatenate(drawn)
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    errors = values.std(axis=0)
    above = (values > 0).mean(axis=0) + (values == 0).mean(axis=0) / 2
    return [
        Gain(
            mean=float(means[index]),
            low=float(low[index]),
            high=float(high[index]),
            standard_error=float(errors[index]),
            probability=float(above[index]),
            confidence=confidence,
            num_groups=num_groups,
        )
        for index in range(len(means))
    ]


def _weights(rng: np.random.Generator, rows: int, num_groups: int) -> NDArray[np.float64]:
    """Returns how often each group was drawn: rows×G, each row ``num_groups`` draws with replacement."""
    drawn = rng.integers(num_groups, size=(rows, num_groups)) + np.arange(rows)[:, None] * num_groups
    counts = np.bincount(drawn.ravel(), minlength=rows * num_groups)
    return counts.reshape(rows, num_groups).astype(np.float64)
