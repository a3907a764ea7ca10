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


def random_case(seed: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns probabilities, labels and weights of three images of two maps; in one image of one map nothing counts."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, IGNORE], size=(3, 2, 4, 5)).astype(np.uint8)
    labels[1, 0] = IGNORE
    return rng.random(labels.shape), labels, rng.random(labels.shape) * (labels != IGNORE)


def weighted_dice(p: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    truth = labels == 1
    above = 2 * (weights * p * truth).sum() + 1
    return float(above / ((weights * p).sum() + (weights * truth).sum() + 1))


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_form_of_soft_dice_equals_its_formula(log: bool, per_image: bool, weighted: bool) -> None:
    p, labels, weights = random_case()
    applied = weights if weighted else (labels != IGNORE).astype(float)
    if per_image:
        regions = [(n, k) for n in range(3) for k in range(2) if (n, k) != (1, 0)]
    else:
        regions = [(slice(None), k) for k in range(2)]  # type: ignore[misc]
    mean = np.mean([weighted_dice(p[region], labels[region], applied[region]) for region in regions])
    found = soft_dice(
        torch.from_numpy(p).float(),
        torch.from_numpy(labels),
        weights=torch.from_numpy(weights).float() if weighted else None,
        per_image=per_image,
        log=log,
    )
    assert found.item() == pytest.approx(-np.log(mean) if log else 1 - mean, rel=1e-5)


def test_weights_and_logarithm_of_a_two_by_two_mask() -> None:
    p = torch.tensor([[[[0.5, 1.0], [0.25, 0.9]]]])
    labels = torch.tensor([[[[1, 1], [0, IGNORE]]]], dtype=torch.uint8)
    weights = torch.tensor([[[[2.0, 1.0], [4.0, 0.0]]]])
    dice = (2 * (2 * 0.5 + 1) + 1) / ((1 + 1 + 1) + (2 + 1) + 1)
    assert soft_dice(p, labels, weights=weights).item() == pytest.approx(1 - dice)
    assert soft_dice(p, labels, weights=weights, log=True).item() == pytest.approx(-np.log(dice))


def test_weights_of_zero_cut_pixels_out() -> None:
    p, labels, _ = random_case(3)
    weights = np.zeros_like(p)
    weights[..., :2] = labels[..., :2] != IGNORE
    tensors = [torch.from_numpy(array) for array in (p.astype(np.float32), labels, weights.astype(np.float32))]
    found = soft_dice(tensors[0], tensors[1], weights=tensors[2], per_image=True)
    torch.testing.assert_close(found, soft_dice(tensors[0][..., :2], tensors[1][..., :2], per_image=True))


@pytest.mark.parametrize("log", [False, True])
def test_images_in_which_nothing_counts_leave_the_mean_alone(log: bool) -> None:
    p, labels = torch.rand(2, 1, 4, 4), torch.ones((2, 1, 4, 4), dtype=torch.uint8)
    labels[0] = IGNORE
    torch.testing.assert_close(
        soft_dice(p, labels, per_image=True, log=log), soft_dice(p[1:], labels[1:], per_image=True, log=log)
    )


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e-12, 1.0])
def test_the_logarithm_of_a_missed_object_is_large_and_its_gradient_finite(value: float) -> None:
    """The published constant of 1e-15, where float32 rounds 1 - Dice to 1."""
    p = torch.full((1, 1, 2, 2), value, requires_grad=True)
    for label in (0, 1):
        p.grad = None
        loss = soft_dice(p, torch.full((1, 1, 2, 2), label, dtype=torch.uint8), smooth=1e-15, log=True)
        loss.backward()
        predicted, true = 4 * value, 4 * label
        expected = -np.log((2 * value * true + 1e-15) / (predicted + true + 1e-15))
        assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert p.grad is not None and p.grad.isfinite().all()
