"""Pixel losses against hand-computed values, NumPy formulas in float64, and torch's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from maskloom.losses.pixel import bce, cross_entropy
from maskloom.records import IGNORE


def numpy_bce(logits: np.ndarray, labels: np.ndarray, smoothing: float = 0.0) -> float:
    valid = labels != IGNORE
    targets = (labels[valid] == 1) * (1 - smoothing) + smoothing / 2
    p = 1 / (1 + np.exp(-logits[valid].astype(np.float64)))
    return float(np.mean(-targets * np.log(p) - (1 - targets) * np.log(1 - p)))


def test_bce_of_a_two_by_two_mask() -> None:
    logits = torch.tensor([[[[0.0, math.log(3)], [-math.log(3), 50.0]]]])
    labels = torch.tensor([[[[1, 1], [0, IGNORE]]]], dtype=torch.uint8)
    assert bce(logits, labels).item() == pytest.approx((math.log(2) + 2 * math.log(4 / 3)) / 3, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bce_equals_the_formula(smoothing: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    labels = rng.choice([0, 1, IGNORE], size=logits.shape).astype(np.uint8)
    found = bce(torch.from_numpy(logits), torch.from_numpy(labels), label_smoothing=smoothing)
    assert found.item() == pytest.approx(numpy_bce(logits, labels, smoothing), rel=1e-5)


def test_weighted_bce_equals_the_formula() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(2, 3, 4, 5))
    labels = rng.choice([0, 1, IGNORE], size=logits.shape).astype(np.uint8)
    weights = rng.random(logits.shape) * 0.01 * (labels != IGNORE)
    losses = np.log1p(np.exp(np.where(labels == 1, -logits, logits)))
    found = bce(torch.from_numpy(logits), torch.from_numpy(labels), weights=torch.from_numpy(weights).float())
    assert found.item() == pytest.approx((weights * losses).sum() / weights.sum(), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 1.0, 0.0)])
def test_cross_entropy_equals_torchs(smoothing: float, weights: tuple[float, ...] | None) -> None:
    rng = np.random.default_rng(1)
    logits = torch.from_numpy(rng.normal(size=(2, 4, 3, 5)).astype(np.float32))
    labels = torch.from_numpy(rng.choice([0, 1, 2, 3, IGNORE], size=(2, 3, 5)).astype(np.uint8))
    found = cross_entropy(logits.log_softmax(1), labels, class_weights=weights, label_smoothing=smoothing)
    expected = functional.cross_entropy(
        logits,
        labels.long(),
        weight=None if weights is None else torch.tensor(weights),
        ignore_index=IGNORE,
        label_smoothing=smoothing,
    )
    torch.testing.assert_close(found, expected)


def test_cross_entropy_equals_the_formula() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(2, 3, 4, 4))
    labels = rng.choice([0, 1, 2, IGNORE], size=(2, 4, 4)).astype(np.uint8)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    losses = [-log_p[n, label, y, x] for (n, y, x), label in np.ndenumerate(labels) if label != IGNORE]
    found = cross_entropy(torch.from_numpy(logits).float().log_softmax(1), torch.from_numpy(labels))
    assert found.item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_classes_without_weight_alone_give_zero() -> None:
    log_p = torch.randn(1, 2, 2, 2).log_softmax(1).requires_grad_()
    labels = torch.zeros((1, 2, 2), dtype=torch.uint8)
    loss = cross_entropy(log_p, labels, class_weights=(0.0, 1.0), label_smoothing=0.1)
    loss.backward()
    assert loss.item() == 0
    assert log_p.grad is not None and not log_p.grad.any()
