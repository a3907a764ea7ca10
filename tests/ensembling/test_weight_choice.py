"""Which candidate a class takes: the one whose masks score best where neither weights nor thresholds were fitted."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.ensembling.crossfit import crossfit
from maskloom.ensembling.thresholds import decide, fit_thresholds, histograms
from maskloom.ensembling.weight_choice import WeightChoice
from maskloom.metrics import from_labels, per_class
from maskloom.records import Task

TASK = Task(kind="multilabel", classes=("water", "crops"))
Metric = Literal["dice", "iou"]


def drawn(seed: int, num_records: int = 6, num_candidates: int = 3) -> tuple[list[list[np.ndarray]], list[np.ndarray]]:
    """Returns maps (of records, of candidates) uint8 2×8×9, and truths; some classes are missing in some records."""
    rng = np.random.default_rng(seed)
    truths = [
        (rng.random((2, 8, 9)) < rng.choice([0, 0.1, 0.5], (2, 1, 1))).astype(np.uint8) for _ in range(num_records)
    ]
    maps = [
        [
            np.clip(128 + rng.normal(60 * (2.0 * truth - 1), 80 + 60 * candidate), 0, 255).astype(np.uint8)
            for candidate in rng.permutation(num_candidates)
        ]
        for truth in truths
    ]
    return maps, truths


def chosen(
    maps: list[list[np.ndarray]], truths: list[np.ndarray], parts: list[int], metric: Metric, threshold: int | None
) -> list[int]:
    choice = WeightChoice(len(maps[0]), 2, metric, threshold=threshold)
    for part, of_record, truth in zip(parts, maps, truths, strict=True):
        choice.add(part, [histograms(values, truth, TASK) for values in of_record])
    return choice.best()


def plainly(
    maps: list[list[np.ndarray]], truths: list[np.ndarray], parts: list[int], metric: Metric, threshold: int | None
) -> np.ndarray:
    """Returns the scores candidates×classes, computed mask by mask with what scores an ensemble."""
    scores = []
    for candidate in range(len(maps[0])):

        def cuts(outside: list[int], candidate: int = candidate) -> list[int]:
            if threshold is not None:
                return [threshold] * 2
            return fit_thresholds(
                [histograms(maps[one][candidate], truths[one], TASK) for one in outside], metric, TASK
            )

        def counts(found: list[int], inside: list[int], candidate: int = candidate) -> list:  # type: ignore[type-arg]
            return [from_labels(decide(maps[one][candidate], found, TASK), truths[one], TASK) for one in inside]

        parted = crossfit(list(range(len(maps))), parts, fit=cuts, apply=counts)
        scores.append(per_class([each for part in parted.values() for each in part], metric))
    return np.array(scores)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["dice", "iou"]), st.sampled_from([None, 100]))
def test_it_is_the_one_whose_masks_score_best(seed: int, metric: Metric, threshold: int | None) -> None:
    maps, truths = drawn(seed)
    parts = [0, 0, 4, 4, 7, 7]
    scores = plainly(maps, truths, parts, metric, threshold)
    for number, taken in enumerate(chosen(maps, truths, parts, metric, threshold)):
        assert scores[taken, number] == pytest.approx(scores[:, number].max(), abs=1e-12)


def test_of_equally_good_ones_the_first() -> None:
    maps, truths = drawn(1, num_candidates=1)
    assert chosen([of_record * 3 for of_record in maps], truths, [0, 1] * 3, "iou", None) == [0, 0]


def test_classes_choose_by_themselves() -> None:
    truths = [(np.random.default_rng(seed).random((2, 8, 9)) < 0.4).astype(np.uint8) for seed in range(4)]
    maps = [
        [np.stack([255 * truth[0], 128 + 0 * truth[1]]), np.stack([128 + 0 * truth[0], 255 * truth[1]])]
        for truth in truths
    ]
    assert chosen(maps, truths, [0, 1, 0, 1], "dice", None) == [0, 1]


def test_one_that_looks_good_only_where_its_threshold_was_fitted_is_not_taken() -> None:
    """The second candidate separates each part perfectly, but at thresholds that the other part's contradict."""
    truth = (np.random.default_rng(0).random((2, 8, 9)) < 0.5).astype(np.uint8)
    dull = np.where(truth == 1, 150, 100).astype(np.uint8)
    dull[:, 0] = 125
    dark, bright = np.where(truth == 1, 40, 10).astype(np.uint8), np.where(truth == 1, 250, 220).astype(np.uint8)
    assert chosen([[dull, dark], [dull, bright]], [truth, truth], [0, 1], "iou", None) == [0, 0]
    assert chosen([[dull, dark], [dull, dark]], [truth, truth], [0, 1], "iou", None) == [1, 1]


def test_a_single_part_judges_nothing() -> None:
    maps, truths = drawn(2)
    assert chosen(maps, truths, [5] * 6, "dice", None) == [0, 0]
