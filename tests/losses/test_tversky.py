"""Tversky and focal Tversky against NumPy formulas, and as the Dice and Jaccard that they contain."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskloom.losses.region import (
    soft_dice,
    soft_dice_exclusive,
    soft_jaccard,
    soft_jaccard_exclusive,
    tversky,
    tversky_exclusive,
)
from maskloom.records import IGNORE


def numpy_tversky(p: np.ndarray, y: np.ndarray, a: float, b: float, smooth: float) -> float:
    hits, false_alarms, misses = (p * y).sum(), (p * (1 - y)).sum(), ((1 - p) * y).sum()
    return float((hits + smooth) / (hits + a * false_alarms + b * misses + smooth))


def maps_case(seed: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Returns probabilities and labels of three images of two maps; in one image of one map nothing counts."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, IGNORE], size=(3, 2, 4, 5)).astype(np.uint8)
    labels[1, 0] = IGNORE
    return rng.random(labels.shape), labels


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("power", [1.0, 0.75, 2.0])
@pytest.mark.parametrize("smooth", [1.0, 1e-12])
def test_maps_equal_the_formula(per_image: bool, power: float, smooth: float) -> None:
    p, labels = maps_case()
    regions = [(n, k) for n in range(3) for k in range(2) if (n, k) != (1, 0)]
    if not per_image:
        regions = [(slice(None), k) for k in range(2)]  # type: ignore[misc]
    found = []
    for region in regions:
        counted = labels[region] != IGNORE
        index = numpy_tversky(p[region][counted], (labels[region][counted] == 1).astype(float), 0.3, 0.7, smooth)
        found.append((1 - index) ** power)
    loss = tversky(
        torch.from_numpy(p).float(),
        torch.from_numpy(labels),
        false_positives=0.3,
        false_negatives=0.7,
        power=power,
        smooth=smooth,
        per_image=per_image,
    )
    assert loss.item() == pytest.approx(np.mean(found), rel=1e-5)


@pytest.mark.parametrize("power", [1.0, 0.75])
def test_classes_equal_the_formula(power: float) -> None:
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.ones(5), size=(2, 6, 4)).transpose(0, 3, 1, 2)
    labels = rng.choice([0, 2, 4, IGNORE], size=(2, 6, 4)).astype(np.uint8)
    counted = labels != IGNORE
    found = [
        (1 - numpy_tversky(p[:, index][counted], (labels[counted] == index).astype(float), 0.2, 0.9, 1.0)) ** power
        for index in (0, 2, 4)
    ]
    loss = tversky_exclusive(
        torch.from_numpy(p).float(), torch.from_numpy(labels), false_positives=0.2, false_negatives=0.9, power=power
    )
    assert loss.item() == pytest.approx(np.mean(found), rel=1e-5)


def test_dice_and_jaccard_are_among_them() -> None:
    p, labels = (torch.from_numpy(array) for array in maps_case())
    p = p.float()
    half, whole = {"false_positives": 0.5, "false_negatives": 0.5}, {"false_positives": 1.0, "false_negatives": 1.0}
    torch.testing.assert_close(tversky(p, labels, **half), soft_dice(p, labels, smooth=2.0))
    torch.testing.assert_close(tversky(p, labels, **whole), soft_jaccard(p, labels))
    both, exclusive = torch.cat([p, 1 - p], dim=1)[:, ::2], labels[:, 0]
    torch.testing.assert_close(
        tversky_exclusive(both, exclusive, **half), soft_dice_exclusive(both, exclusive, smooth=2.0)
    )
    torch.testing.assert_close(tversky_exclusive(both, exclusive, **whole), soft_jaccard_exclusive(both, exclusive))


def test_misses_cost_more_than_false_alarms() -> None:
    labels = torch.tensor([[[[1, 1, 0, 0]]]], dtype=torch.uint8)
    settings = {"false_positives": 0.3, "false_negatives": 0.7, "smooth": 1e-12}
    miss = tversky(torch.tensor([[[[1.0, 0.0, 0.0, 0.0]]]]), labels, **settings)
    alarm = tversky(torch.tensor([[[[1.0, 1.0, 1.0, 0.0]]]]), labels, **settings)
    assert miss.item() == pytest.approx(0.7 / 1.7) and alarm.item() == pytest.approx(0.3 / 2.3)


@pytest.mark.parametrize("power", [0.5, 0.75, 1.0, 2.0])
@pytest.mark.parametrize("strength", [0.0, 30.0, -30.0, 1e4, -1e4])
@pytest.mark.parametrize("value", [0, 1, IGNORE])
def test_gradients_are_finite_everywhere(power: float, strength: float, value: int) -> None:
    logits = torch.full((2, 3, 4, 4), strength)
    logits[:, 1:] *= -1
    logits.requires_grad_()
    labels = torch.full(logits.shape, value, dtype=torch.uint8)
    settings = {"false_positives": 0.3, "false_negatives": 0.7, "power": power}
    loss = tversky(logits.sigmoid(), labels, **settings)
    loss = loss + tversky(logits.sigmoid(), labels, per_image=True, **settings)
    loss = loss + tversky_exclusive(logits.softmax(dim=1), labels[:, 0], **settings)
    loss.backward()
    assert loss.isfinite() and loss.item() >= 0
    assert logits.grad is not None and logits.grad.isfinite().all()
    if value == IGNORE:
        assert loss.item() == 0 and not logits.grad.any()


def test_a_perfect_map_costs_nothing_at_any_power() -> None:
    labels = torch.tensor([[[[1, 0], [0, 1]]]], dtype=torch.uint8)
    for power in (0.5, 0.75, 1.0, 2.0):
        settings = {"false_positives": 0.3, "false_negatives": 0.7, "power": power}
        assert tversky(labels.float(), labels, **settings).item() == 0
        both = torch.cat([1 - labels.float(), labels.float()], dim=1)
        assert tversky_exclusive(both, labels[:, 0], **settings).item() == 0
