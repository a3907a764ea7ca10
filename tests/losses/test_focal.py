"""Focal loss against its formula in NumPy, cases by hand, and plain cross-entropy at γ = 0."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from maskloom.losses.focal import focal, focal_exclusive
from maskloom.losses.pixel import bce, cross_entropy
from maskloom.records import IGNORE


def maps_case(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(2, 3, 5, 4))
    return logits, rng.choice([0, 1, IGNORE], size=logits.shape).astype(np.uint8)


def classes_case(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return 2 * rng.normal(size=(2, 4, 5, 6)), rng.choice([0, 1, 3, IGNORE], size=(2, 5, 6)).astype(np.uint8)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("weights", [None, (0.5, 0.0, 3.0)])
def test_maps_equal_the_formula(gamma: float, weights: tuple[float, ...] | None) -> None:
    logits, labels = maps_case()
    total = divisor = 0.0
    for (_, number, _, _), x, y in zip(np.ndindex(*logits.shape), logits.ravel(), labels.ravel(), strict=True):
        if y == IGNORE:
            continue
        p = 1 / (1 + np.exp(-x))
        q = p if y == 1 else 1 - p
        weight = weights[number] if weights and y == 1 else 1.0
        total += weight * -((1 - q) ** gamma) * np.log(q)
        divisor += weight
    found = focal(torch.from_numpy(logits).float(), torch.from_numpy(labels), gamma=gamma, class_weights=weights)
    assert found.item() == pytest.approx(total / divisor, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("weights", [None, (1.0, 0.0, 2.0, 0.25)])
def test_classes_equal_the_formula(gamma: float, weights: tuple[float, ...] | None) -> None:
    logits, labels = classes_case()
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    total = divisor = 0.0
    for image, row, column in np.ndindex(*labels.shape):
        y = labels[image, row, column]
        if y == IGNORE:
            continue
        q, weight = p[image, y, row, column], weights[y] if weights else 1.0
        total += weight * -((1 - q) ** gamma) * np.log(q)
        divisor += weight
    found = focal_exclusive(
        torch.from_numpy(logits).float().log_softmax(dim=1),
        torch.from_numpy(labels),
        gamma=gamma,
        class_weights=weights,
    )
    assert found.item() == pytest.approx(total / divisor, rel=1e-5)


def test_one_pixel_by_hand() -> None:
    logits = torch.tensor([[[[math.log(3)]]]])  # p = 3/4
    label = torch.zeros((1, 1, 1, 1), dtype=torch.uint8)
    assert focal(logits, label, gamma=2.0).item() == pytest.approx(0.75**2 * math.log(4))
    assert focal(logits, label + 1, gamma=2.0).item() == pytest.approx(0.25**2 * math.log(4 / 3))


def test_without_gamma_it_is_cross_entropy() -> None:
    logits, labels = (torch.from_numpy(array) for array in maps_case(1))
    torch.testing.assert_close(focal(logits, labels, gamma=0.0), bce(logits, labels))
    logits, labels = (torch.from_numpy(array) for array in classes_case(1))
    log_p, weights = logits.float().log_softmax(dim=1), (1.0, 2.0, 0.5, 3.0)
    expected = cross_entropy(log_p, labels, class_weights=weights)
    torch.testing.assert_close(focal_exclusive(log_p, labels, gamma=0.0, class_weights=weights), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_gradients_are_finite_however_sure_the_network_is(gamma: float) -> None:
    values = torch.tensor([-1e4, -200.0, -30.0, 0.0, 17.0, 90.0, 1e4])
    for label in (0, 1):
        logits = values.reshape(1, 1, 1, -1).clone().requires_grad_()
        focal(logits, torch.full(logits.shape, label, dtype=torch.uint8), gamma=gamma).backward()
        assert logits.grad is not None and logits.grad.isfinite().all()
        pair = torch.stack([values, -values])[None, :, None].requires_grad_()
        labels = torch.full((1, 1, 7), label, dtype=torch.uint8)
        loss = focal_exclusive(pair.log_softmax(dim=1), labels, gamma=gamma)
        loss.backward()
        assert loss.isfinite() and pair.grad is not None and pair.grad.isfinite().all()


def test_the_hopeless_have_a_gradient_and_the_sure_have_next_to_none() -> None:
    logits = torch.tensor([-60.0, 60.0]).reshape(1, 1, 1, 2).requires_grad_()
    focal(logits, torch.ones((1, 1, 1, 2), dtype=torch.uint8), gamma=2.0).backward()
    assert logits.grad is not None
    assert logits.grad[0, 0, 0, 0].item() == pytest.approx(-0.5) and abs(logits.grad[0, 0, 0, 1].item()) < 1e-20


def test_where_nothing_counts_it_is_zero_with_a_gradient_of_zero() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    labels = torch.full((2, 3, 4, 4), IGNORE, dtype=torch.uint8)
    loss = focal(logits, labels, gamma=2.0, class_weights=(1.0, 2.0, 3.0))
    loss = loss + focal_exclusive(logits.log_softmax(dim=1), labels[:, 0], gamma=0.5)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()
