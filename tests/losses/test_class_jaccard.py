"""-log Jaccard summed over classes, as published, against its formula and where classes are absent."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskloom.config import parse
from maskloom.losses.region import soft_jaccard_exclusive
from maskloom.losses.terms import LossSettings, build_loss
from maskloom.records import IGNORE, Task

PUBLISHED = 1e-15
FIVE = Task(kind="multiclass", classes=("a", "b", "c", "d", "e"))


def case() -> tuple[np.ndarray, np.ndarray]:
    """Returns logits of five classes and labels that hold three of them."""
    rng = np.random.default_rng(1)
    return 2 * rng.normal(size=(2, 5, 6, 4)), rng.choice([0, 2, 4, IGNORE], size=(2, 6, 4)).astype(np.uint8)


def numpy_jaccards(logits: np.ndarray, labels: np.ndarray, smooth: float) -> list[float]:
    """Returns each class's Jaccard over the batch: intersection over sum of both less the intersection."""
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    counted = labels != IGNORE
    found = []
    for index in range(logits.shape[1]):
        truth, values = labels[counted] == index, p[:, index][counted]
        overlap = (values * truth).sum()
        found.append(float((overlap + smooth) / (values.sum() + truth.sum() - overlap + smooth)))
    return found


@pytest.mark.parametrize("smooth", [1.0, PUBLISHED])
@pytest.mark.parametrize("log", [True, False])
def test_sums_over_classes_equal_the_formula(smooth: float, log: bool) -> None:
    logits, labels = case()
    jaccards = numpy_jaccards(logits, labels, smooth)
    losses = [-np.log(value) if log else 1 - value for value in jaccards]
    p, truth = torch.from_numpy(logits).float().softmax(dim=1), torch.from_numpy(labels)
    for over_classes, expected in (("sum", sum(losses)), ("sum_present", losses[0] + losses[2] + losses[4])):
        found = soft_jaccard_exclusive(p, truth, smooth=smooth, log=log, over_classes=over_classes)  # type: ignore[arg-type]
        assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("j", [0.3, 0.7])
def test_the_published_mixture_is_two_terms(j: float) -> None:
    """(1 - j)·cross-entropy - j/classes·Σ log Jaccard, with weights of classes in the cross-entropy alone."""
    logits, labels = case()
    weights = (1.0, 2.0, 0.5, 1.0, 3.0)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    pixels = [(n, y, r, c) for (n, r, c), y in np.ndenumerate(labels) if y != IGNORE]
    total = sum(weights[y] for _, y, _, _ in pixels)
    entropy = sum(-weights[y] * np.log(p[n, y, r, c]) for n, y, r, c in pixels) / total
    expected = (1 - j) * entropy - j / 5 * sum(np.log(numpy_jaccards(logits, labels, PUBLISHED)))
    terms = [
        {"kind": "cross_entropy", "weight": 1 - j, "class_weights": weights},
        {"kind": "jaccard", "weight": j / 5, "log": True, "over_classes": "sum", "smooth": PUBLISHED},
    ]
    loss = build_loss(parse(LossSettings, {"terms": terms}), FIVE)
    assert loss(torch.from_numpy(logits), torch.from_numpy(labels)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("strength", [0.0, 20.0, 80.0, 1e4])
def test_an_absent_class_costs_much_and_pushes_little(strength: float) -> None:
    """Every class but one is absent, and one of those is predicted everywhere."""
    logits = torch.zeros(1, 5, 30, 40)
    logits[:, 1] = strength
    logits.requires_grad_()
    labels = torch.zeros((1, 30, 40), dtype=torch.uint8)
    loss = soft_jaccard_exclusive(logits.softmax(dim=1), labels, smooth=PUBLISHED, log=True, over_classes="sum")
    loss.backward()
    assert loss.isfinite() and loss.item() > 30
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert logits.grad.abs().sum().item() <= 2 * 5 * 1.001


def test_where_nothing_counts_it_is_zero_with_a_gradient_of_zero() -> None:
    for over_classes in ("mean", "sum", "sum_present"):
        logits = torch.randn(2, 3, 4, 4, requires_grad=True)
        labels = torch.full((2, 4, 4), IGNORE, dtype=torch.uint8)
        p = logits.softmax(dim=1)
        loss = soft_jaccard_exclusive(p, labels, smooth=PUBLISHED, log=True, over_classes=over_classes)  # type: ignore[arg-type]
        loss.backward()
        assert loss.item() == 0
        assert logits.grad is not None and not logits.grad.any()
