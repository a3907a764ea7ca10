"""Soft Jaccard against hand-computed values and NumPy formulas, and its logarithm where the truth is empty."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskloom.losses.region import soft_jaccard, soft_jaccard_exclusive
from maskloom.records import IGNORE

PUBLISHED = 1e-12


def numpy_jaccard(p: np.ndarray, y: np.ndarray, smooth: float = 1.0) -> float:
    """As published: the union is the sum of both less the overlap."""
    overlap = (p * y).sum()
    return float((overlap + smooth) / (p.sum() + y.sum() - overlap + smooth))


def random_case(seed: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Returns probabilities and labels of three images of two maps; in one image of one map nothing counts."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, IGNORE], size=(3, 2, 4, 5)).astype(np.uint8)
    labels[1, 0] = IGNORE
    return rng.random(labels.shape), labels


def test_soft_jaccard_of_a_two_by_two_mask() -> None:
    p = torch.tensor([[[[0.5, 1.0], [0.25, 0.9]]]])
    labels = torch.tensor([[[[1, 1], [0, IGNORE]]]], dtype=torch.uint8)
    assert soft_jaccard(p, labels).item() == pytest.approx(1 - (1.5 + 1) / (2 + 0.25 + 1))
    assert soft_jaccard(p, labels, smooth=PUBLISHED, log=True).item() == pytest.approx(-np.log(1.5 / 2.25))


def test_exclusive_soft_jaccard_of_a_two_by_two_mask() -> None:
    first = torch.tensor([[0.5, 1.0], [0.25, 0.9]])
    p = torch.stack([first, 1 - first, torch.zeros(2, 2)])[None]
    labels = torch.tensor([[[0, 0], [1, IGNORE]]], dtype=torch.uint8)
    mean = ((1.5 + 1) / (2.25 + 1) + (0.75 + 1) / (1.5 + 1)) / 2  # class 2 is not there
    assert soft_jaccard_exclusive(p, labels).item() == pytest.approx(1 - mean)
    assert soft_jaccard_exclusive(p, labels, log=True).item() == pytest.approx(-np.log(mean))


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("smooth", [1.0, PUBLISHED])
def test_every_form_of_soft_jaccard_equals_its_formula(log: bool, per_image: bool, smooth: float) -> None:
    p, labels = random_case()
    if per_image:
        regions = [(n, k) for n in range(3) for k in range(2) if (n, k) != (1, 0)]
    else:
        regions = [(slice(None), k) for k in range(2)]  # type: ignore[misc]
    found = []
    for region in regions:
        valid = labels[region] != IGNORE
        found.append(numpy_jaccard(p[region][valid], labels[region][valid] == 1, smooth))
    mean = np.mean(found)
    loss = soft_jaccard(
        torch.from_numpy(p).float(), torch.from_numpy(labels), smooth=smooth, per_image=per_image, log=log
    )
    assert loss.item() == pytest.approx(-np.log(mean) if log else 1 - mean, rel=1e-5)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("smooth", [1.0, PUBLISHED])
def test_exclusive_soft_jaccard_equals_the_formula_of_one_hot_labels(log: bool, smooth: float) -> None:
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.ones(5), size=(2, 6, 4)).transpose(0, 3, 1, 2)
    labels = rng.choice([0, 2, 4, IGNORE], size=(2, 6, 4)).astype(np.uint8)
    valid = labels != IGNORE
    mean = np.mean([numpy_jaccard(p[:, label][valid], labels[valid] == label, smooth) for label in (0, 2, 4)])
    found = soft_jaccard_exclusive(torch.from_numpy(p).float(), torch.from_numpy(labels), smooth=smooth, log=log)
    assert found.item() == pytest.approx(-np.log(mean) if log else 1 - mean, rel=1e-5)


def test_a_perfect_map_costs_nothing_and_an_inverted_one_all() -> None:
    labels = torch.tensor([[[[1, 0], [0, 1]]]], dtype=torch.uint8)
    truth = labels.float()
    for log in (False, True):
        assert soft_jaccard(truth, labels, smooth=PUBLISHED, log=log).item() == 0
        assert soft_jaccard_exclusive(torch.cat([1 - truth, truth], 1), labels[:, 0], log=log).item() == 0
    assert soft_jaccard(1 - truth, labels, smooth=PUBLISHED).item() == pytest.approx(1)
    assert soft_jaccard(1 - truth, labels, smooth=PUBLISHED, log=True).item() == pytest.approx(np.log(4 / 1e-12))


def test_the_loss_is_never_negative_however_the_sums_round() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        labels = torch.randint(0, 2, (1, 1, 64, 64), dtype=torch.uint8, generator=generator)
        sure = (labels.float() - 1e-7 * torch.rand(labels.shape, generator=generator)).abs()
        assert soft_jaccard(sure, labels, smooth=PUBLISHED, log=True).item() >= 0
        both = torch.cat([1 - sure, sure], dim=1)
        assert soft_jaccard_exclusive(both, labels[:, 0], smooth=PUBLISHED, log=True).item() >= 0


@pytest.mark.parametrize("logit", [-1e4, -100.0, -20.0, -3.0, 0.0, 5.0, 1e4])
@pytest.mark.parametrize("label", [0, 1])
def test_an_empty_or_missed_truth_has_a_large_loss_and_a_small_gradient(logit: float, label: int) -> None:
    """With the published constant."""
    logits = torch.full((1, 1, 400, 500), logit, requires_grad=True)
    p = logits.sigmoid()
    loss = soft_jaccard(p, torch.full(p.shape, label, dtype=torch.uint8), smooth=PUBLISHED, log=True)
    loss.backward()
    one = torch.tensor(logit, dtype=torch.float64).sigmoid().item()
    total = 200_000 * one
    if label:
        expected = -np.log((total + PUBLISHED) / (200_000 + PUBLISHED))
    else:
        expected = -np.log(PUBLISHED / (total + PUBLISHED))
    assert loss.item() == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert logits.grad.abs().sum().item() <= 1.001
    if label == 0 and -20 <= logit <= 5:  # it pushes down: every pixel by its share of what is there, times 1 - p
        share = (1 - one) * total / (total + PUBLISHED)
        assert logits.grad.sum().item() == pytest.approx(share, rel=1e-3)


def test_an_empty_map_beside_a_full_one_leaves_the_logarithm_to_the_full_one() -> None:
    logits = torch.zeros(1, 2, 8, 8, requires_grad=True)
    labels = torch.stack([torch.ones(8, 8), torch.zeros(8, 8)])[None].to(torch.uint8)
    loss = soft_jaccard(logits.sigmoid(), labels, smooth=PUBLISHED, log=True)
    loss.backward()
    assert loss.item() == pytest.approx(-np.log((0.5 + 0) / 2), rel=1e-5)
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert logits.grad[0, 1].abs().max() < 1e-9 < logits.grad[0, 0].abs().min()


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("log", [False, True])
def test_where_nothing_counts_it_is_zero_with_a_gradient_of_zero(per_image: bool, log: bool) -> None:
    logits = torch.randn(2, 1, 4, 4, requires_grad=True)
    labels = torch.full((2, 1, 4, 4), IGNORE, dtype=torch.uint8)
    loss = soft_jaccard(logits.sigmoid(), labels, smooth=PUBLISHED, per_image=per_image, log=log)
    loss = loss + soft_jaccard_exclusive(logits.sigmoid(), labels[:, 0], smooth=PUBLISHED, log=log)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("log", [False, True])
def test_images_in_which_nothing_counts_leave_the_mean_alone(log: bool) -> None:
    p, labels = torch.rand(2, 1, 4, 4), torch.ones((2, 1, 4, 4), dtype=torch.uint8)
    labels[0] = IGNORE
    torch.testing.assert_close(
        soft_jaccard(p, labels, per_image=True, log=log), soft_jaccard(p[1:], labels[1:], per_image=True, log=log)
    )


def test_a_class_without_a_true_pixel_is_left_out() -> None:
    logits = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.ones((1, 4, 4), dtype=torch.uint8)
    loss = soft_jaccard_exclusive(logits.softmax(dim=1), labels, smooth=PUBLISHED, log=True)
    one = soft_jaccard(logits.softmax(dim=1)[:, 1:2], labels[:, None], smooth=PUBLISHED, log=True)
    torch.testing.assert_close(loss, one)
    loss.backward()
    assert logits.grad is not None and logits.grad.isfinite().all() and logits.grad[:, 1].lt(0).all()
