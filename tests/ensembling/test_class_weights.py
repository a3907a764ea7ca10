"""Weights a class may take: equal, fitted on all classes, fitted on its own maps; 0 for who does not predict it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.ensembling.weights import (
    GAP,
    PixelSample,
    class_candidates,
    fit_weights,
    log_loss,
    optimal_weights,
    sample_each_class,
)
from maskloom.records import IGNORE, Task

TWO = Task(kind="multilabel", classes=("common", "rare"))
BOTH = np.ones((2, 2), bool)
PARTS = [0, 1, 2, 0, 1, 2]
"""Of six records."""


def records(seed: int, sharpness: np.ndarray, num_records: int = 6) -> list[list[PixelSample]]:
    """Returns samples of records in which members (rows) know classes (columns) as sharply as stated."""
    rng = np.random.default_rng(seed)
    num_members, num_classes = sharpness.shape

    def given(number: int) -> PixelSample:
        logits = rng.normal(1, 2, (num_members, 80)) * sharpness[:, [number]]
        return PixelSample((1 / (1 + np.exp(-logits))).clip(0.001, 0.999).astype(np.float32))

    return [[given(number) for number in range(num_classes)] for _ in range(num_records)]


def test_each_takes_the_class_that_it_knows() -> None:
    labels = np.zeros((2, 10, 10), np.uint8)
    labels[0, :5], labels[1, 2:3, 3:5] = 1, 1
    perfect, ignorant = 255 * labels, np.full_like(labels, 128)
    maps = {"first": np.stack([perfect[0], ignorant[1]]), "second": np.stack([ignorant[0], perfect[1]])}
    samples = [sample_each_class(maps, labels, TWO, seed=seed) for seed in range(4)]
    equal, common, own = class_candidates(samples, BOTH, PARTS[:4])
    assert equal.on_all.tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert own.on_all == pytest.approx(np.eye(2))
    assert np.ptp(common.on_all, axis=1) == pytest.approx([0, 0]), "the same in every class"
    assert all(weights == pytest.approx(np.eye(2)) for weights in own.outside.values())


def test_what_is_fitted_outside_a_part_never_saw_it() -> None:
    sure, unsure = [0.9] * 5, [0.2] * 5
    better = PixelSample(np.array([sure, unsure], np.float32))
    contrary = PixelSample(np.array([unsure, sure], np.float32))
    equal, common, own = class_candidates([[better, better], [contrary, contrary]], BOTH, [3, 7])
    for candidate in (common, own):
        assert candidate.outside[3] == pytest.approx(np.array([[0, 0], [1, 1]])), "by part 7"
        assert candidate.outside[7] == pytest.approx(np.array([[1, 1], [0, 0]])), "by part 3"
        assert candidate.on_all == pytest.approx(np.full((2, 2), 0.5))
    assert all((weights == 0.5).all() for weights in (equal.on_all, *equal.outside.values()))


def test_fitted_weights_are_kept_where_they_help_unseen_records() -> None:
    sure, unsure = [0.9] * 5, [0.2] * 5
    better = PixelSample(np.array([sure, unsure], np.float32))
    contrary = PixelSample(np.array([unsure, sure], np.float32))
    mostly = [better] * 10 + [contrary] * 2
    assert fit_weights(mostly, [0] * 10 + [1] * 2) == [0.5, 0.5], "each fold misleads"
    assert fit_weights(mostly)[0] > 0.7, "dealt one by one they do not"


def test_members_that_do_not_predict_a_class_have_no_weight_there() -> None:
    samples = records(1, np.array([[9.0, 0.1, 1], [0.5, 1, 1], [2, 0.5, 1]]))
    predicts = np.array([[False, True, False], [True, False, False], [True, True, False]])
    equal, own = class_candidates(samples, predicts, PARTS)
    assert equal.on_all.tolist() == [[0, 0.5, 0], [0.5, 0, 0], [0.5, 0.5, 0]]
    for weights in (own.on_all, *own.outside.values()):
        assert (weights[~predicts] == 0).all() and weights.sum(axis=0) == pytest.approx([1, 1, 0])
    without = [PixelSample(each[0].given_to_truth[1:]) for each in samples]
    assert own.on_all[1:, 0].tolist() == optimal_weights(without)


def test_a_single_member_has_nothing_to_choose() -> None:
    (only,) = class_candidates(records(2, np.ones((1, 2))), np.array([[True, False]]), PARTS)
    assert only.on_all.tolist() == [[1, 0]] and set(only.outside) == {0, 1, 2}


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.integers(2, 4))
def test_candidates_are_the_best_of_what_they_may_be(seed: int, num_members: int) -> None:
    rng = np.random.default_rng(seed)
    samples = records(seed, rng.uniform(0.2, 2, (num_members, 3)))
    together = [np.concatenate([one.given_to_truth[:, ::3] for one in each], axis=1) for each in samples]
    equal, common, own = (each.on_all for each in class_candidates(samples, np.ones((num_members, 3), bool), PARTS))
    assert common[:, 1].tolist() == optimal_weights([PixelSample(values) for values in together])
    for number in range(3):
        inside = [each[number] for each in samples]
        assert sum(own[:, number]) == pytest.approx(1) and min(own[:, number]) >= 0
        losses = [log_loss(inside, weights[:, number]) for weights in (equal, common)]
        assert log_loss(inside, own[:, number]) <= min(losses) + 2 * GAP


def test_every_class_is_sampled_by_itself() -> None:
    labels = np.zeros((2, 40, 50), np.uint8)
    labels[0, :20], labels[1, :39] = 1, IGNORE
    values = np.stack([np.full((40, 50), 51, np.uint8), np.full((40, 50), 204, np.uint8)])
    common, rare = sample_each_class({"m": values, "n": 255 - values}, labels, TWO, seed=3, num_pixels=40)
    assert common.given_to_truth.shape == rare.given_to_truth.shape == (2, 40)
    assert common.given_to_truth[0] == pytest.approx(np.repeat([0.2, 0.8], 20))
    assert rare.given_to_truth[0] == pytest.approx(np.full(40, 0.2))
    rows = np.repeat(np.arange(40, dtype=np.uint8), 50).reshape(1, 40, 50).repeat(2, axis=0)
    first, second = sample_each_class({"m": rows}, np.ones_like(labels), TWO, seed=3, num_pixels=7)
    assert not np.array_equal(first.given_to_truth, second.given_to_truth), "other pixels of each class"
    again, _ = sample_each_class({"m": rows}, np.ones_like(labels), TWO, seed=3, num_pixels=7)
    assert np.array_equal(first.given_to_truth, again.given_to_truth)


def test_records_without_a_labelled_pixel_do_not_count() -> None:
    """A part of such records alone has no loss, which must not speak for the weights fitted on the others."""
    nothing = PixelSample(np.zeros((2, 0), np.float32))
    contrary = [PixelSample(np.array(rows, np.float32)) for rows in ([[0.9], [0.2]], [[0.2], [0.8]])]
    assert fit_weights(contrary, [0, 1]) == [0.5, 0.5]
    assert fit_weights([*contrary, *[nothing] * 8], [0, 1, *[2] * 8]) == [0.5, 0.5]
    assert fit_weights([nothing, nothing], [0, 1]) == [0.5, 0.5]
