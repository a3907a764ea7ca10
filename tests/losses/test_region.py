"""Soft Dice against hand-computed values and NumPy formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskloom.losses.region import soft_dice, soft_dice_exclusive
from maskloom.records import IGNORE


def numpy_dice(p: np.ndarray, y: np.ndarray, smooth: float = 1.0) -> float:
    return 1 - (2 * (p * y).sum() + smooth) / (p.sum() + y.sum() + smooth)


def test_soft_dice_of_a_two_by_two_mask() -> None:
    p = torch.tensor([[[[0.5, 1.0], [0.25, 0.9]]]])
    labels = torch.tensor([[[[1, 1], [0, IGNORE]]]], dtype=torch.uint8)
    assert soft_dice(p, labels).item() == pytest.approx(1 - (2 * 1.5 + 1) / (1.75 + 2 + 1))


def test_exclusive_soft_dice_of_a_two_by_two_mask() -> None:
    first = torch.tensor([[0.5, 1.0], [0.25, 0.9]])
    p = torch.stack([first, 1 - first, torch.zeros(2, 2)])[None]
    labels = torch.tensor([[[0, 0], [1, IGNORE]]], dtype=torch.uint8)
    class_0 = 1 - (2 * 1.5 + 1) / (1.75 + 2 + 1)
    class_1 = 1 - (2 * 0.75 + 1) / (1.25 + 1 + 1)
    assert soft_dice_exclusive(p, labels).item() == pytest.approx((class_0 + class_1) / 2)  # class 2 is not there


@pytest.mark.parametrize("smooth", [1.0, 0.01])
def test_soft_dice_equals_the_formula_over_the_batch(smooth: float) -> None:
    rng = np.random.default_rng(0)
    p = rng.random((3, 2, 4, 5))
    labels = rng.choice([0, 1, IGNORE], size=p.shape).astype(np.uint8)
    expected = []
    for index in range(2):
        valid = labels[:, index] != IGNORE
        expected.append(numpy_dice(p[:, index][valid], labels[:, index][valid] == 1, smooth))
    found = soft_dice(torch.from_numpy(p).float(), torch.from_numpy(labels), smooth=smooth)
    assert found.item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_exclusive_soft_dice_equals_the_formula_over_present_classes() -> None:
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.ones(5), size=(2, 6, 4)).transpose(0, 3, 1, 2)
    labels = rng.choice([0, 2, 4, IGNORE], size=(2, 6, 4)).astype(np.uint8)
    valid = labels != IGNORE
    expected = [numpy_dice(p[:, label][valid], labels[valid] == label) for label in (0, 2, 4)]
    found = soft_dice_exclusive(torch.from_numpy(p).float(), torch.from_numpy(labels))
    assert found.item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_two_empty_maps_cost_nothing() -> None:
    assert soft_dice(torch.zeros(1, 1, 3, 3), torch.zeros((1, 1, 3, 3), dtype=torch.uint8)).item() == 0


def test_every_map_counts_even_an_absent_one() -> None:
    p = torch.tensor([1.0, 1.0]).reshape(1, 2, 1, 1).expand(1, 2, 2, 2)
    labels = torch.stack([torch.ones(2, 2), torch.zeros(2, 2)])[None].to(torch.uint8)
    assert soft_dice(p, labels).item() == pytest.approx((0 + 1 - 1 / 5) / 2)
