from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.ensembling.weights import PixelSample, fit_weights, log_loss, optimal_weights, sample_pixels
from maskloom.records import IGNORE, Task

BINARY = Task(kind="binary", classes=("thing",))
THREE = Task(kind="multiclass", classes=("a", "b", "c"))
LAYERS = Task(kind="multilabel", classes=("a", "b"))


def sample(*rows: list[float]) -> PixelSample:
    return PixelSample(np.array(rows, np.float32))


def test_two_members_with_a_known_optimum() -> None:
    # A pixel that only the first gets right three times, and only the second once: log-optimal weights are 3/4, 1/4
    # for complementary members (the mixture gives w to three pixels and 1 - w to one), up to the small epsilon.
    found = optimal_weights([sample([0.999, 0.999, 0.999, 0.001], [0.001, 0.001, 0.001, 0.999])])
    assert found == pytest.approx([0.75, 0.25], abs=2e-3)


def test_the_better_member_takes_all() -> None:
    assert optimal_weights([sample([0.9, 0.8], [0.5, 0.4])]) == pytest.approx([1, 0], abs=1e-3)
    assert optimal_weights([sample([0.7, 0.6], [0.7, 0.6], [0.7, 0.6])]) == pytest.approx([1 / 3] * 3)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 5))
def test_no_corner_or_neighbour_is_better(seed: int, num_members: int) -> None:
    rng = np.random.default_rng(seed)
    samples = [PixelSample(rng.uniform(0.01, 0.99, (num_members, 30)).astype(np.float32)) for _ in range(3)]
    weights = np.array(optimal_weights(samples))
    assert weights.min() >= 0 and weights.sum() == pytest.approx(1)
    best = log_loss(samples, weights)
    for corner in np.eye(num_members):
        for step in (0.01, 0.1, 1):
            assert log_loss(samples, (1 - step) * weights + step * corner) >= best - 1e-4


def test_every_record_counts_alike() -> None:
    large, small = sample([0.9] * 50, [0.1] * 50), sample([0.1], [0.9])
    assert optimal_weights([large, small]) == pytest.approx([0.5, 0.5], abs=1e-3)


def noisy(rng: np.random.Generator, sharpness: float) -> np.ndarray:
    return np.clip(rng.normal(0.7, sharpness, 200), 0.02, 0.98)


def test_fitting_is_kept_only_where_it_helps_unseen_records() -> None:
    rng = np.random.default_rng(1)
    good = [sample(noisy(rng, 0.05).tolist(), noisy(rng, 0.4).tolist()) for _ in range(6)]
    fitted = fit_weights(good)
    assert fitted[0] > 0.7 and fitted == fit_weights(good)
    # Each part prefers another member than the rest: what is fitted on the others is worse than equal weights.
    contrary = [sample([0.9] * 5, [0.2] * 5), sample([0.2] * 5, [0.9] * 5)]
    assert fit_weights(contrary, [0, 1]) == [0.5, 0.5]
    assert fit_weights(good, [0] * 6) == [0.5, 0.5]  # nothing to check it on
    assert fit_weights([sample([0.5, 0.6])] * 3) == [1.0]
    with pytest.raises(ValueError, match="at least one"):
        fit_weights([])


def test_samples_hold_what_was_given_to_the_truth() -> None:
    values = np.array([[[51, 204]]], np.uint8)
    found = sample_pixels({"m": values, "n": 255 - values}, np.array([[0, 1]], np.uint8), BINARY, seed=0)
    assert found.given_to_truth == pytest.approx(np.array([[0.8, 0.8], [0.2, 0.2]]))
    classes = np.array([[[51, 0]], [[102, 0]], [[102, 255]]], np.uint8)
    found = sample_pixels({"m": classes}, np.array([[1, 2]], np.uint8), THREE, seed=0)
    assert found.given_to_truth[0] == pytest.approx([0.4, 1 - 1 / 1020])
    layers = sample_pixels({"m": classes[:2]}, np.array([[[1, 0]], [[0, IGNORE]]], np.uint8), LAYERS, seed=0)
    assert layers.given_to_truth[0] == pytest.approx([0.2, 1 - 1 / 1020, 0.6])


def test_samples_are_spread_seeded_and_leave_ignored_pixels_out() -> None:
    values = np.repeat(np.arange(200, dtype=np.uint8), 50).reshape(1, 200, 50)
    labels = np.ones((200, 50), np.uint8)
    labels[150:] = IGNORE
    one, two, other = (sample_pixels({"m": values}, labels, BINARY, seed=s, num_pixels=150) for s in (1, 1, 2))
    rows = np.round(one.given_to_truth[0] * 255)
    assert np.array_equal(rows[1:], np.arange(1, 150))  # one pixel from each stretch, which is a row here
    assert np.array_equal(one.given_to_truth, two.given_to_truth)
    assert other.given_to_truth.shape == (1, 150)
    nothing = sample_pixels({"m": values}, np.full_like(labels, IGNORE), BINARY, seed=1)
    assert nothing.given_to_truth.shape == (1, 0)
    assert optimal_weights([nothing]) == [1.0]
