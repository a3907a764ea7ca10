"""The weighted sum: which terms fit which task, and the laws that every loss obeys."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskloom.config import parse
from maskloom.errors import UserError
from maskloom.losses.terms import Loss, LossSettings, build_loss
from maskloom.records import IGNORE, Task

BINARY = Task(kind="binary", classes=("car",))
THREE = Task(kind="multiclass", classes=("sky", "road", "car"))
TWO_MAPS = Task(kind="multilabel", classes=("water", "crops"))

CASES = [
    pytest.param(task, terms, id=f"{task.kind}-{'+'.join(terms)}")
    for task, pixel in ((BINARY, "bce"), (THREE, "cross_entropy"), (TWO_MAPS, "bce"))
    for terms in ((pixel,), ("dice",), (pixel, "dice"))
]


def loss_of(task: Task, terms: tuple[str, ...]) -> Loss:
    return build_loss(parse(LossSettings, {"terms": [{"kind": kind} for kind in terms]}), task)


def random_labels(task: Task, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, task.num_maps, 8, 8) if task.kind == "multilabel" else (2, 8, 8)
    return torch.randint(0, 3 if task.kind == "multiclass" else 2, shape, generator=generator, dtype=torch.uint8)


def sure_logits(task: Task, labels: Tensor, strength: float) -> Tensor:
    """Returns logits that say the labels with this certainty."""
    if task.kind == "multiclass":
        planes = torch.stack([labels == index for index in range(task.num_maps)], dim=1)
    else:
        planes = (labels == 1).reshape(2, task.num_maps, 8, 8)
    return (planes.float() * 2 - 1) * strength


@pytest.mark.parametrize(("task", "terms"), CASES)
class TestLaws:
    def test_a_perfect_prediction_costs_nothing(self, task: Task, terms: tuple[str, ...]) -> None:
        labels = random_labels(task)
        assert loss_of(task, terms)(sure_logits(task, labels, 30.0), labels).item() == pytest.approx(0, abs=1e-5)

    def test_an_inverted_prediction_costs_most(self, task: Task, terms: tuple[str, ...]) -> None:
        labels = random_labels(task)
        assert loss_of(task, terms)(sure_logits(task, labels, -30.0), labels).item() > 0.5

    def test_ignored_pixels_change_nothing(self, task: Task, terms: tuple[str, ...]) -> None:
        loss, labels = loss_of(task, terms), random_labels(task)
        labels[..., :3] = IGNORE
        torch.manual_seed(0)
        logits = torch.randn(2, task.num_maps, 8, 8, requires_grad=True)
        value = loss(logits, labels)
        value.backward()
        assert logits.grad is not None
        assert not logits.grad[..., :3].any() and logits.grad[..., 3:].any()
        torch.testing.assert_close(value, loss(logits[..., 3:], labels[..., 3:]))

    def test_nothing_but_ignored_pixels_gives_zero_with_a_zero_gradient(
        self, task: Task, terms: tuple[str, ...]
    ) -> None:
        logits = torch.randn(2, task.num_maps, 8, 8, requires_grad=True)
        value = loss_of(task, terms)(logits, torch.full_like(random_labels(task), IGNORE))
        value.backward()
        assert value.item() == 0
        assert logits.grad is not None and not logits.grad.any()

    def test_gradients_of_extreme_logits_are_finite(self, task: Task, terms: tuple[str, ...]) -> None:
        labels = random_labels(task)
        logits = (sure_logits(task, labels, 1e4) * torch.randn(2, task.num_maps, 8, 8).sign()).requires_grad_()
        loss_of(task, terms)(logits, labels).backward()
        assert logits.grad is not None and logits.grad.isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_logits_are_judged_in_float32(
        self, task: Task, terms: tuple[str, ...], dtype: torch.dtype
    ) -> None:
        loss, labels = loss_of(task, terms), random_labels(task)
        logits = torch.randn(2, task.num_maps, 8, 8).to(dtype)
        value = loss(logits, labels)
        assert value.dtype == torch.float32
        assert value.item() == loss(logits.float(), labels).item()

    def test_a_step_down_the_gradient_lowers_the_loss(self, task: Task, terms: tuple[str, ...]) -> None:
        loss, labels = loss_of(task, terms), random_labels(task)
        torch.manual_seed(1)
        logits = torch.randn(2, task.num_maps, 8, 8, requires_grad=True)
        before = loss(logits, labels)
        before.backward()
        assert logits.grad is not None
        assert loss(logits.detach() - 0.1 * logits.grad, labels) < before


def test_terms_add_up_by_their_weights() -> None:
    labels, logits = random_labels(BINARY), torch.randn(2, 1, 8, 8)
    settings = LossSettings.model_validate(
        {"terms": [{"kind": "bce", "weight": 0.25}, {"kind": "dice", "weight": 2.0}]}
    )
    expected = 0.25 * loss_of(BINARY, ("bce",))(logits, labels) + 2 * loss_of(BINARY, ("dice",))(logits, labels)
    torch.testing.assert_close(build_loss(settings, BINARY)(logits, labels), expected)


def test_labels_of_another_size_are_refused() -> None:
    for task in (BINARY, THREE):
        with pytest.raises(ValueError, match="labels"):
            build_loss(parse(LossSettings, {"terms": [{"kind": "dice"}]}), task)(
                torch.zeros(2, task.num_maps, 8, 8), torch.zeros((2, 8, 9), dtype=torch.uint8)
            )


@pytest.mark.parametrize(
    ("task", "term", "message"),
    [
        (THREE, {"kind": "bce"}, "use 'cross_entropy'"),
        (BINARY, {"kind": "cross_entropy"}, "use 'bce'"),
        (BINARY, {"kind": "dice", "label_smoothing": 0.1}, "no such option"),
        (BINARY, {"kind": "bce", "smooth": 2.0}, "only 'dice'"),
        (BINARY, {"kind": "bce", "class_weights": [1.0]}, "only 'cross_entropy'"),
        (THREE, {"kind": "cross_entropy", "class_weights": [1.0, 2.0]}, "expected 3 weights"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(task: Task, term: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_loss(parse(LossSettings, {"terms": [term]}), task)
    assert "\n" not in str(caught.value)
