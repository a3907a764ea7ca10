"""Cross-entropy on the hardest pixels against a plain search in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskloom.config import parse
from maskloom.losses.hardest import hardest_cross_entropy
from maskloom.losses.pixel import cross_entropy
from maskloom.losses.terms import LossSettings, build_loss
from maskloom.records import IGNORE, Task


def case(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 3, IGNORE], size=(3, 7, 6)).astype(np.uint8)
    labels[1, 1:] = IGNORE  # few pixels that count
    return 2 * rng.normal(size=(3, 4, 7, 6)), labels


def hardest_by_search(
    logits: np.ndarray,
    labels: np.ndarray,
    *,
    fraction: float | None = None,
    threshold: float = 0.3,
    least: int = 1,
    weights: tuple[float, ...] = (1.0,) * 4,
) -> float:
    total = divisor = 0.0
    for image, truth in zip(logits, labels, strict=True):
        p = np.exp(image) / np.exp(image).sum(axis=0)
        rows, columns = np.nonzero(truth != IGNORE)
        classes = truth[rows, columns]
        q = p[classes, rows, columns]
        order = np.argsort(q)
        if fraction is not None:
            taken = order[: max(1, int(np.round(fraction * len(q))))]
        else:
            taken = order[: max(least, int((1 - q > threshold).sum()))]
        of_class = np.array(weights)[classes[taken]]
        total += float((of_class * -np.log(q[taken])).sum())
        divisor += float(of_class.sum())
    return total / divisor


@pytest.mark.parametrize(
    "settings",
    [
        {"fraction": 0.2},
        {"fraction": 1.0},
        {"fraction": 0.001},
        {"threshold": 0.3},
        {"threshold": 0.9},
        {"threshold": 0.99, "least": 9},
        {"threshold": 0.3, "least": 1000},
    ],
)
@pytest.mark.parametrize("weights", [None, (1.0, 0.25, 5.0, 2.0)])
def test_the_hardest_are_found(settings: dict[str, float], weights: tuple[float, ...] | None) -> None:
    logits, labels = case()
    expected = hardest_by_search(logits, labels, **settings, **({"weights": weights} if weights else {}))  # type: ignore[arg-type]
    log_p = torch.from_numpy(logits).float().log_softmax(dim=1)
    found = hardest_cross_entropy(log_p, torch.from_numpy(labels), class_weights=weights, **settings)  # type: ignore[arg-type]
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_all_pixels_are_plain_cross_entropy() -> None:
    logits, labels = (torch.from_numpy(array) for array in case(1))
    log_p = logits.float().log_softmax(dim=1)
    torch.testing.assert_close(hardest_cross_entropy(log_p, labels, fraction=1.0), cross_entropy(log_p, labels))
    torch.testing.assert_close(hardest_cross_entropy(log_p, labels, least=10**6), cross_entropy(log_p, labels))


def test_only_the_hardest_have_a_gradient() -> None:
    logits = torch.zeros(1, 2, 1, 5)
    logits[0, 0, 0] = torch.tensor([3.0, 2.0, -1.0, -5.0, 9.0])
    logits.requires_grad_()
    labels = torch.tensor([[[1, 1, 1, 1, IGNORE]]], dtype=torch.uint8)
    hardest_cross_entropy(logits.log_softmax(dim=1), labels, threshold=0.99, least=2).backward()
    assert logits.grad is not None
    p = logits.detach().softmax(dim=1)[0, 0, 0, :2]
    torch.testing.assert_close(logits.grad[0, 0, 0], torch.cat([p / 2, torch.zeros(3)]))


def test_sure_pixels_do_not_thin_out_the_hard_ones() -> None:
    """A tenth is asked for, a twentieth is hard, and the loss of all others rounds to 0."""
    logits = torch.zeros(1, 2, 1, 100)
    logits[0, 0] = 200.0
    labels = torch.zeros((1, 1, 100), dtype=torch.uint8)
    labels[0, 0, :5] = 1
    found = hardest_cross_entropy(logits.log_softmax(dim=1), labels, fraction=0.1)
    assert found.item() == pytest.approx(200 * 5 / 10)


@pytest.mark.parametrize("settings", [{"fraction": 0.25}, {"threshold": 0.0}, {"threshold": 0.3, "least": 4}])
def test_extremes_and_nothing_at_all_are_finite(settings: dict[str, float]) -> None:
    for value in (0, IGNORE):
        logits = (torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)).sign() * 1e4).requires_grad_()
        labels = torch.full((2, 4, 4), value, dtype=torch.uint8)
        loss = hardest_cross_entropy(logits.log_softmax(dim=1), labels, **settings)  # type: ignore[arg-type]
        loss.backward()
        assert loss.isfinite() and logits.grad is not None and logits.grad.isfinite().all()
        assert (loss.item() == 0) == (value == IGNORE) and logits.grad.any() == (value != IGNORE)


def test_the_least_number_follows_the_image_as_an_area() -> None:
    logits, labels = (torch.from_numpy(array) for array in case(3))
    four = Task(kind="multiclass", classes=("a", "b", "c", "d"))
    log_p = logits.float().log_softmax(dim=1)

    def asked(height: int, **changes: object) -> torch.Tensor:
        term = {"kind": "ohem", "threshold": 0.99, "least": 48, **changes}
        return build_loss(parse(LossSettings, {"terms": [term]}), four, image_height=height)(logits, labels)

    def taken(least: int) -> torch.Tensor:
        return hardest_cross_entropy(log_p, labels, threshold=0.99, least=least)

    torch.testing.assert_close(asked(1280), taken(48))
    torch.testing.assert_close(asked(640), taken(12))
    torch.testing.assert_close(asked(10), taken(1))
    torch.testing.assert_close(asked(640, scale_pixels=False), taken(48))
