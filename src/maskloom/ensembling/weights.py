"""Weights of an ensemble's members, fitted on pixels of maps by networks that never saw them.

The log loss of a weighted mean of probabilities is convex in the weights, and only what each member gave to the
truth matters. Fitted weights are kept only when they beat equal ones on records that they were not fitted on. In a
multilabel task each class may have weights of its own, fitted on its own maps as a task of one class; which are kept is
said elsewhere (``weight_choice``). Knows nothing about files, networks or where the maps come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maskloom.inference.merging import STORED_EPSILON
from maskloom.records import IGNORE, Task
from maskloom.runtime import derive_seed, generator

GAP = 1e-5
"""Certified distance (nats per pixel) from the best log loss at which fitting ends."""
MAX_STEPS = 5000
NEGLIGIBLE = 1e-4
"""Weights below this become 0, so that a member without use need not be run."""


@dataclass(frozen=True, slots=True)
class PixelSample:
    """What members gave to the truth at sampled pixels of one record: float32 members×pixels in (0, 1)."""

    given_to_truth: NDArray[np.float32]


def sample_pixels(
    maps: Mapping[str, np.ndarray], labels: np.ndarray, task: Task, *, seed: int, num_pixels: int = 2000
) -> PixelSample:
    """Returns what each member's map (uint8 C×H×W, in order) gave to the truth at some pixels of one record.

    The valid pixels are cut into ``num_pixels`` equal stretches and one pixel of each is drawn, so the sample covers
    the image evenly and an unimportant part is as likely as any: its log loss is an estimate of the image's. For
    multilabel tasks so many (class, pixel) pairs are drawn. The same seed draws the same pixels.
    """
    valid = np.flatnonzero(labels.ravel() != IGNORE)
    count = min(num_pixels, len(valid))
    edges = np.linspace(0, len(valid), count + 1).astype(np.int64)
    drawn = generator(seed, "pixels").integers(edges[:-1], edges[1:])
    chosen = valid[drawn]
    truth = labels.ravel()[chosen]
    rows = [_given_to_truth(values, truth, chosen, task) for values in maps.values()]
    return PixelSample(np.clip(np.array(rows, np.float32) / 255, STORED_EPSILON, 1 - STORED_EPSILON))


def sample_each_class(
    maps: Mapping[str, np.ndarray], labels: np.ndarray, task: Task, *, seed: int, num_pixels: int = 2000
) -> list[PixelSample]:
    """Returns a sample of each class of a multilabel task, in their order; see ``sample_pixels``.

    ``num_pixels`` are drawn of every class, so a rare one has as many as a frequent one.
    """
    alone = [Task(kind="binary", classes=(name,)) for name in task.classes]
    return [
        sample_pixels(
            {name: values[[number]] for name, values in maps.items()},
            labels[number],
            one,
            seed=derive_seed(seed, "class", number),
            num_pixels=num_pixels,
        )
        for number, one in enumerate(alone)
    ]


def _given_to_truth(values: np.ndarray, truth: np.ndarray, chosen: np.ndarray, task: Task) -> np.ndarray:
    if task.kind == "multiclass":
        return np.asarray(values.reshape(len(values), -1)[truth, chosen])
    taken = values.ravel()[chosen]
    return np.asarray(np.where(truth == 1, taken, 255 - taken))


def log_loss(samples: Sequence[PixelSample], weights: Sequence[float]) -> float:
    """Returns the mean log loss (nats) of the weighted mean, every record counting alike."""
    losses = [
        -np.log(np.asarray(weights) @ sample.given_to_truth.astype(np.float64)).mean()
        for sample in samples
        if sample.given_to_truth.size
    ]
    return float(np.mean(losses)) if losses else 0.0


def optimal_weights(samples: Sequence[PixelSample]) -> list[float]:
    """Returns the non-negative weights of sum 1 with the smallest log loss; deterministic.

    Multiplies each weight by the mean of what its member gave to the truth relative to the mixture (expectation
    maximisation of mixture proportions; Cover's algorithm for log-optimal portfolios). The largest such factor minus
    1 bounds the distance from the optimum, which is what ends the iteration.
    """
    filled = [sample.given_to_truth.astype(np.float64) for sample in samples if sample.given_to_truth.size]
    num_members = len(samples[0].given_to_truth)
    weights = np.full(num_members, 1 / num_members)
    if not filled:
        return [1 / num_members] * num_members
    given = np.concatenate(filled, axis=1)
    importance = np.concatenate([np.full(values.shape[1], 1 / values.shape[1]) for values in filled]) / len(filled)
    for _ in range(MAX_STEPS):
        factors = given @ (importance / (weights @ given))
        if factors.max() - 1 <= GAP:
            break
        weights = weights * factors
        weights /= weights.sum()
    weights[weights < NEGLIGIBLE] = 0
    return [float(weight) for weight in weights / weights.sum()]


@dataclass(frozen=True, slots=True)
class Candidate:
    """Weights members×classes that may be taken: at least 0, of sum 1 over those who predict a class, 0 for others."""

    on_all: NDArray[np.float64]
    """Fitted on all records."""
    outside: Mapping[int, NDArray[np.float64]]
    """By part of the records, fitted on those of the other parts."""


def fit_weights(samples: Sequence[PixelSample], parts: Sequence[int] | None = None) -> list[float]:
    """Returns one weight per member, at least 0 and of sum 1: fitted, or equal ones where fitting does not help.

    Fitting helps when, over all ``parts`` (one number per sample, such as its fold; dealt round-robin when None),
    weights fitted on the other parts have a smaller log loss than equal ones. Samples without a pixel do not count.
    """
    if not samples:
        raise ValueError("expected at least one sample, got none")
    parts = [index % 5 for index in range(len(samples))] if parts is None else parts
    num_members = len(samples[0].given_to_truth)
    equal = [1 / num_members] * num_members
    judged = [(sample, part) for sample, part in zip(samples, parts, strict=True) if sample.given_to_truth.size]
    if num_members == 1 or len({part for _, part in judged}) < 2:
        return equal
    honest = [log_loss([sample], _outside(samples, parts, part)) for sample, part in judged]
    return optimal_weights(samples) if np.mean(honest) < log_loss([sample for sample, _ in judged], equal) else equal


def class_candidates(
    samples: Sequence[Sequence[PixelSample]], predicts: NDArray[np.bool_], parts: Sequence[int]
) -> list[Candidate]:
    """Returns weights of which each class may take what serves it best: equal ones, those of all, and its own.

    ``samples`` hold every record's sample of each class (see ``sample_each_class``), ``predicts`` (members×classes)
    says who predicts a class, ``parts`` are one number per record. That a class is combined from the members' maps of
    this class alone is what StackingC does (Seewald, "How to make stacking better and faster", ICML 2002); a rare class
    has too few pixels for weights of its own to be sure of, so weights fitted on all classes together are there, too,
    where all members predict all classes.
    """
    if not samples:
        raise ValueError("expected at least one sample, got none")
    numbers = sorted(set(parts))
    equal = predicts / np.maximum(predicts.sum(axis=0), 1)
    found = [Candidate(equal, dict.fromkeys(numbers, equal))]
    if len(predicts) == 1:
        return found
    if predicts.all():
        together = [_together(of_record) for of_record in samples]
        columns = (1, predicts.shape[1])
        found.append(
            Candidate(
                np.tile(np.transpose([optimal_weights(together)]), columns),
                {part: np.tile(np.transpose([_outside(together, parts, part)]), columns) for part in numbers},
            )
        )
    own = Candidate(np.zeros(predicts.shape), {part: np.zeros(predicts.shape) for part in numbers})
    for number, inside in enumerate(predicts.T):
        if inside.any():
            alone = [PixelSample(of_record[number].given_to_truth[inside]) for of_record in samples]
            own.on_all[inside, number] = optimal_weights(alone)
            for part in numbers:
                own.outside[part][inside, number] = _outside(alone, parts, part)
    return [*found, own]


def _together(of_record: Sequence[PixelSample]) -> PixelSample:
    """Returns a record's sample of all classes, as large as that of one."""
    step = len(of_record)
    return PixelSample(np.concatenate([each.given_to_truth[:, ::step] for each in of_record], axis=1))


def _outside(samples: Sequence[PixelSample], parts: Sequence[int], number: int) -> list[float]:
    """Returns weights fitted on the samples of all other parts; on all samples where there are no others."""
    return optimal_weights([each for each, part in zip(samples, parts, strict=True) if part != number] or samples)
