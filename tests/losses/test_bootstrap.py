"""Bootstrapped losses against NumPy formulas in float64 and cases by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from maskloom.losses.bootstrap import bootstrapped_bce, online_bootstrapping
from maskloom.losses.pixel import bce
from maskloom.records import IGNORE


def case(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(3, 2, 6, 7))
    return logits, rng.choice([0, 1, IGNORE], size=logits.shape).astype(np.uint8)


def tensors(logits: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(logits).float(), torch.from_numpy(labels)


@pytest.mark.parametrize("mixture", ["soft", "hard"])
@pytest.mark.parametrize("alpha", [0.95, 0.5])
def test_bootstrapped_equals_the_formula(mixture: str, alpha: float) -> None:
    logits, labels = case()
    valid = labels != IGNORE
    p = 1 / (1 + np.exp(-logits[valid]))
    own = p if mixture == "soft" else p > 0.5
    targets = alpha * (labels[valid] == 1) + (1 - alpha) * own
    expected = np.mean(-targets * np.log(p) - (1 - targets) * np.log(1 - p))
    found = bootstrapped_bce(*tensors(logits, labels), alpha=alpha, mixture=mixture)  # type: ignore[arg-type]
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mixture", ["soft", "hard"])
def test_all_trust_in_labels_is_plain_bce(mixture: str) -> None:
    logits, labels = tensors(*case())
    found = bootstrapped_bce(logits, labels, alpha=1.0, mixture=mixture)  # type: ignore[arg-type]
    torch.testing.assert_close(found, bce(logits, labels))


def test_one_pixel_by_hand() -> None:
    logits = torch.tensor([[[[math.log(3)]]]])  # p = 3/4 against the label 0
    labels = torch.zeros((1, 1, 1, 1), dtype=torch.uint8)
    soft = 0.2 * 0.75 * -math.log(0.75) + (1 - 0.2 * 0.75) * -math.log(0.25)
    hard = 0.2 * -math.log(0.75) + 0.8 * -math.log(0.25)
    assert bootstrapped_bce(logits, labels, alpha=0.8, mixture="soft").item() == pytest.approx(soft)
    assert bootstrapped_bce(logits, labels, alpha=0.8, mixture="hard").item() == pytest.approx(hard)


def test_the_soft_gradient_runs_through_the_models_own_prediction() -> None:
    logits, labels = tensors(*case(1))
    logits.requires_grad_()
    bootstrapped_bce(logits, labels, alpha=0.9, mixture="soft").backward()
    valid = labels != IGNORE
    p, truth = logits.detach().sigmoid(), (labels == 1).float()
    by_hand = 0.9 * (p - truth) - 0.1 * logits.detach() * p * (1 - p)  # the entropy's slope is -x·p·(1 - p)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.where(valid, by_hand, 0) / valid.sum())


@pytest.mark.parametrize(("hardest", "threshold"), [(5, 0.3), (1000, 0.3), (5, 0.0), (1, 0.9)])
def test_online_bootstrapping_equals_the_formula(hardest: int, threshold: float) -> None:
    logits, labels = case(2)
    taken: list[float] = []
    for image, truth in zip(logits, labels, strict=True):
        p = 1 / (1 + np.exp(-image[truth != IGNORE]))
        errors = np.abs(truth[truth != IGNORE] - p)
        errors = np.sort(errors)[::-1][:hardest]
        taken += list(-np.log(1 - errors[errors > threshold]))
    found = online_bootstrapping(*tensors(logits, labels), hardest=hardest, threshold=threshold)
    assert found.item() == pytest.approx(np.mean(taken), rel=1e-5)


def test_only_the_hardest_pixels_have_a_gradient() -> None:
    logits = torch.tensor([[[[3.0, 2.0, 1.0, -5.0, 9.0]]]], requires_grad=True)
    labels = torch.tensor([[[[0, 0, 0, 0, IGNORE]]]], dtype=torch.uint8)
    loss = online_bootstrapping(logits, labels, hardest=2, threshold=0.3)
    loss.backward()
    assert loss.item() == pytest.approx((math.log1p(math.exp(3)) + math.log1p(math.exp(2))) / 2)
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == pytest.approx(
        [1 / (1 + math.exp(-3)) / 2, 1 / (1 + math.exp(-2)) / 2, 0, 0, 0]
    )


def test_nothing_hard_costs_nothing() -> None:
    logits = torch.full((2, 1, 4, 4), 5.0, requires_grad=True)
    loss = online_bootstrapping(logits, torch.ones((2, 1, 4, 4), dtype=torch.uint8), hardest=8, threshold=0.3)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()
