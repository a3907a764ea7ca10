"""Lovász losses against the definition of the extension, spelled out with sets, and cases by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskloom.losses.lovasz import lovasz_hinge, lovasz_softmax
from maskloom.records import IGNORE


def extension(errors: np.ndarray, truth: np.ndarray) -> float:
    """Returns Σ error · (Δ(first i pixels) - Δ(first i - 1)), where Δ(M) = |M| / |truth ∪ M| of a set M of mistakes."""
    true = set(np.flatnonzero(truth).tolist())
    mistakes: set[int] = set()
    total = before = 0.0
    for pixel in np.argsort(-errors, kind="stable").tolist():
        mistakes.add(pixel)
        after = len(mistakes) / len(true | mistakes)
        total += max(errors[pixel], 0.0) * (after - before)
        before = after
    return total


def hinge_errors(logits: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.asarray(1 - logits * np.where(truth, 1, -1))


def maps_case(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(3, 2, 6, 5))
    labels = rng.choice([0, 1, IGNORE], size=logits.shape).astype(np.uint8)
    labels[1, 0][labels[1, 0] == 1] = 0  # an image without a true pixel
    labels[2, 1] = IGNORE
    return logits, labels


@pytest.mark.parametrize("per_image", [True, False])
def test_the_hinge_equals_the_definition(per_image: bool) -> None:
    logits, labels = maps_case()
    regions = [(n, k) for n in range(3) for k in range(2) if (n, k) != (2, 1)]
    if not per_image:
        regions = [(slice(None), k) for k in range(2)]  # type: ignore[misc]
    found = []
    for region in regions:
        counted = labels[region] != IGNORE
        truth = labels[region][counted] == 1
        found.append(extension(hinge_errors(logits[region][counted], truth), truth))
    loss = lovasz_hinge(torch.from_numpy(logits).float(), torch.from_numpy(labels), per_image=per_image)
    assert loss.item() == pytest.approx(np.mean(found), rel=1e-5)


def test_the_softmax_equals_the_definition() -> None:
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.ones(5), size=(2, 6, 4)).transpose(0, 3, 1, 2)
    labels = rng.choice([0, 2, 4, IGNORE], size=(2, 6, 4)).astype(np.uint8)
    counted = labels != IGNORE
    found = []
    for index in (0, 2, 4):  # the others are not there
        truth = labels[counted] == index
        values = p[:, index][counted]
        found.append(extension(np.where(truth, 1 - values, values), truth))
    loss = lovasz_softmax(torch.from_numpy(p).float(), torch.from_numpy(labels))
    assert loss.item() == pytest.approx(np.mean(found), rel=1e-5)


def test_hard_probabilities_cost_the_jaccard_loss_itself() -> None:
    """On the corners of the cube the extension is the set function."""
    predicted = torch.tensor([[[0, 0, 1], [1, 1, 0]]])
    labels = torch.tensor([[[0, 1, 1], [1, 0, 0]]], dtype=torch.uint8)
    p = torch.nn.functional.one_hot(predicted, 2).permute(0, 3, 1, 2).float()
    expected = 1 - (2 / 4 + 2 / 4) / 2
    assert lovasz_softmax(p, labels).item() == pytest.approx(expected)


def test_the_hinge_of_four_pixels_by_hand() -> None:
    logits = torch.tensor([[[[2.0, -1.0], [0.5, -3.0]]]])
    labels = torch.tensor([[[[1, 1], [0, 0]]]], dtype=torch.uint8)
    # errors -1, 2, 1.5, -2: mistakes {1}: 1/2, {1, 2}: 2/3
    assert lovasz_hinge(logits, labels).item() == pytest.approx(2 * 1 / 2 + 1.5 * (2 / 3 - 1 / 2))


def test_an_empty_truth_costs_its_largest_error() -> None:
    logits = torch.tensor([[[[-2.0, 0.5, 1.5]]]], requires_grad=True)
    loss = lovasz_hinge(logits, torch.zeros((1, 1, 1, 3), dtype=torch.uint8))
    loss.backward()
    assert loss.item() == pytest.approx(2.5)
    assert logits.grad is not None and logits.grad.flatten().tolist() == [0, 0, 1]


def test_what_errors_count_keeps_its_precision_on_many_pixels() -> None:
    """A difference of Jaccard losses in float32 would lose it: all errors are 1, so the loss is 1 to rounding."""
    labels = (torch.arange(1_000_000) % 3 == 0).to(torch.uint8).reshape(1, 1, 1000, 1000)
    logits = torch.zeros(1, 1, 1000, 1000, requires_grad=True)
    loss = lovasz_hinge(logits, labels)
    loss.backward()
    assert loss.item() == pytest.approx(1, abs=1e-5)
    assert logits.grad is not None
    last = logits.grad.flatten()[-1].item()  # the last pixel is true: the union is the whole image
    assert last == pytest.approx(-1e-6, rel=1e-4)


@pytest.mark.parametrize("strength", [0.0, 50.0, 1e4, -1e4])
def test_gradients_are_finite_at_extremes(strength: float) -> None:
    _, labels = maps_case(2)
    labels = torch.from_numpy(labels)
    logits = (torch.randn(labels.shape, generator=torch.Generator().manual_seed(0)).sign() * strength).requires_grad_()
    loss = lovasz_hinge(logits, labels) + lovasz_hinge(logits, labels, per_image=False)
    loss = loss + lovasz_softmax(logits.softmax(dim=1), labels[:, 0])
    loss.backward()
    assert loss.isfinite() and logits.grad is not None and logits.grad.isfinite().all()


def test_where_nothing_counts_it_is_zero_with_a_gradient_of_zero() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    labels = torch.full((2, 3, 4, 4), IGNORE, dtype=torch.uint8)
    for per_image in (True, False):
        loss = lovasz_hinge(logits, labels, per_image=per_image) + lovasz_softmax(logits.softmax(dim=1), labels[:, 0])
        loss.backward()
        assert loss.item() == 0
        assert logits.grad is not None and not logits.grad.any()
