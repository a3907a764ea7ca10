"""The signed log distance against brute force, cases by hand, and its symmetries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from maskloom.losses.distance import signed_distance, signed_log_distance
from maskloom.records import IGNORE


def numpy_target(labels: np.ndarray, pixel_size: float = 1.0) -> np.ndarray:
    target = np.zeros(labels.shape)
    for (n, k, y, x), label in np.ndenumerate(labels):
        if label == IGNORE:
            continue
        others = np.argwhere(labels[n, k] == 1 - label)
        distance = min((math.hypot(y - v, x - u) * pixel_size for v, u in others), default=math.inf)
        target[n, k, y, x] = (1 if label else -1) * math.log1p(min(distance, 1280)) / math.log1p(1280)
    return target


def random_labels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice([0, 0, 0, 1, IGNORE], size=(2, 2, 9, 12)).astype(np.uint8)


@pytest.mark.parametrize("pixel_size", [1.0, 2.5])
def test_target_equals_brute_force(pixel_size: float) -> None:
    labels = random_labels()
    found = signed_log_distance(torch.from_numpy(labels), pixel_size=pixel_size)
    assert found.dtype == torch.float32
    assert np.allclose(found.numpy(), numpy_target(labels, pixel_size), atol=1e-6)


def test_a_row_by_hand() -> None:
    labels = torch.tensor([[[[0, 0, 0, 1, 1, IGNORE]]]], dtype=torch.uint8)
    logs = [-math.log(4), -math.log(3), -math.log(2), math.log(2), math.log(3), 0]
    assert signed_log_distance(labels).flatten().tolist() == pytest.approx([value / math.log(1281) for value in logs])


@pytest.mark.parametrize("value", [0, 1])
def test_without_the_other_class_all_is_as_far_as_can_be(value: int) -> None:
    labels = torch.full((1, 1, 5, 6), value, dtype=torch.uint8)
    labels[..., 0] = IGNORE
    target = signed_log_distance(labels)
    assert not target[..., 0].any()
    assert torch.allclose(target[..., 1:], torch.full((1, 1, 5, 5), 2.0 * value - 1))


def test_classes_that_change_places_change_the_sign() -> None:
    labels = torch.from_numpy(random_labels(1))
    inverted = (1 - labels).where(labels != IGNORE, labels)
    torch.testing.assert_close(signed_log_distance(inverted), -signed_log_distance(labels))


def test_loss_equals_the_formula() -> None:
    labels = random_labels(2)
    maps = np.random.default_rng(3).normal(size=labels.shape)
    expected = np.abs(maps - numpy_target(labels, 2.0))[labels != IGNORE].mean()
    found = signed_distance(torch.from_numpy(maps).float(), torch.from_numpy(labels), pixel_size=2.0)
    assert found.item() == pytest.approx(expected, rel=1e-5)
