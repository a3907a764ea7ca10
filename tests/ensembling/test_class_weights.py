"""Weights fitted per class: by its own maps, kept where they help unseen records, none for who does not predict it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.ensembling.weights import (
    GAP,
    PixelSample,
    fit_class_weights,
    fit_weights,
    log_loss,
    optimal_weights,
    sample_each_class,
)
from maskloom.records import IGNORE, Task

TWO = Task(kind="multilabel", classes=("common", "rare"))
BOTH = np.ones((2, 2), bool)


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
    assert fit_class_weights(samples, BOTH) == [pytest.approx((1, 0)), pytest.approx((0, 1))]


def test_identical_members_are_equal_in_every_class() -> None:
    samples = records(0, np.ones((1, 2)))
    twice = [[PixelSample(np.repeat(one.given_to_truth, 2, axis=0)) for one in each] for each in samples]
    assert fit_class_weights(twice, BOTH) == [(0.5, 0.5), (0.5, 0.5)]


def test_a_class_in_which_fitting_does_not_help_unseen_records_stays_equal() -> None:
    sure, unsure = [0.9] * 5, [0.2] * 5
    better = PixelSample(np.array([sure, unsure], np.float32))
    contrary = PixelSample(np.array([unsure, sure], np.float32))
    found = fit_class_weights([[better, better], [better, contrary]], BOTH, [0, 1])
    assert found == [pytest.approx((1, 0.5)), pytest.approx((0, 0.5))]
    mostly = [[better]] * 10 + [[contrary]] * 2
    assert fit_class_weights(mostly, BOTH[:, :1], [0] * 10 + [1] * 2) == [(0.5,), (0.5,)], "each fold misleads"
    assert fit_class_weights(mostly, BOTH[:, :1])[0] > (0.7,), "dealt one by one they do not"


def test_members_that_do_not_predict_a_class_have_no_weight_there() -> None:
    samples = records(1, np.array([[9.0, 0.1, 1], [0.5, 1, 1], [2, 0.5, 1]]))
    predicts = np.array([[False, True, False], [True, False, False], [True, True, False]])
    found = np.array(fit_class_weights(samples, predicts))
    assert (found[~predicts] == 0).all() and found.sum(axis=0) == pytest.approx([1, 1, 0])
    without = [[PixelSample(one.given_to_truth[1:]) for one in each] for each in samples]
    assert fit_weights([each[0] for each in without], None) == found[1:, 0].tolist()
    alone = fit_class_weights(samples, np.array([[True, False, True], [False, True, False], [False, False, False]]))
    assert alone == [(1, 0, 1), (0, 1, 0), (0, 0, 0)]


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.integers(2, 4))
def test_weights_are_the_classs_own_those_of_all_or_equal(seed: int, num_members: int) -> None:
    rng = np.random.default_rng(seed)
    samples = records(seed, rng.uniform(0.2, 2, (num_members, 3)))
    together = [np.concatenate([one.given_to_truth[:, ::3] for one in each], axis=1) for each in samples]
    common = optimal_weights([PixelSample(values) for values in together])
    found = fit_class_weights(samples, np.ones((num_members, 3), bool))
    for number, weights in enumerate(zip(*found, strict=True)):
        inside = [each[number] for each in samples]
        assert sum(weights) == pytest.approx(1) and min(weights) >= 0
        equal, own = [1 / num_members] * num_members, optimal_weights(inside)
        choices = [choice for choice in (equal, own, common) if list(weights) == pytest.approx(choice)]
        assert choices, "weights of the class, of all classes, or equal ones"
        if choices == [own]:
            assert log_loss(inside, weights) <= min(log_loss(inside, each) for each in (equal, common)) + 2 * GAP


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


def test_a_class_of_few_pixels_takes_the_weights_of_all_classes() -> None:
    samples = records(14, np.array([[1.0, 1.0], [0.2, 0.2]]))
    few = [[common, PixelSample(rare.given_to_truth[:, :4])] for common, rare in samples]
    own = fit_weights([rare for _, rare in few])
    together = [PixelSample(np.concatenate([each.given_to_truth[:, ::2] for each in both], axis=1)) for both in few]
    assert own == [0.5, 0.5], "four pixels say nothing that holds elsewhere"
    found = np.array(fit_class_weights(few, BOTH))
    np.testing.assert_allclose(found[:, 1], optimal_weights(together), atol=1e-9)
    assert found[0, 1] > 0.6
    partly = fit_class_weights(few, np.array([[True, True], [False, True]]))  # who predicts what differs by class
    assert [weight[1] for weight in partly] == own
