"""Deep supervision: coarser maps are judged by the same loss on labels at their size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from maskloom.config import parse
from maskloom.losses.deep_supervision import labels_at
from maskloom.losses.terms import LossSettings, build_loss, num_auxiliary_maps
from maskloom.records import IGNORE, Task

THREE = Task(kind="multiclass", classes=("sky", "road", "car"))
TWO_MAPS = Task(kind="multilabel", classes=("water", "crops"))
BINARY = Task(kind="binary", classes=("car",))


def case(task: Task, *, maps: int | None = None) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Returns logits at 16×24, 8×12 and 4×6 and labels."""
    generator = torch.Generator().manual_seed(0)
    count = maps or task.num_maps
    logits = tuple(torch.randn(2, count, 16 // k, 24 // k, generator=generator) for k in (1, 2, 4))
    shape = (2, task.num_maps, 16, 24) if task.kind == "multilabel" else (2, 16, 24)
    labels = torch.randint(0, 3 if task.kind == "multiclass" else 2, shape, generator=generator, dtype=torch.uint8)
    labels[..., :2] = IGNORE
    return logits, labels


@pytest.mark.parametrize("size", [(8, 12), (4, 6), (5, 7), (16, 24), (1, 1), (32, 30)])
def test_labels_are_those_of_the_nearest_pixel(size: tuple[int, int]) -> None:
    labels = torch.randint(0, 256, (2, 3, 16, 24), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    expected = functional.interpolate(labels.float(), size, mode="nearest-exact").to(torch.uint8)
    assert torch.equal(labels_at(labels, size), expected)
    assert torch.equal(labels_at(labels[:, 0], size), expected[:, 0])


def test_labels_at_half_the_sides_by_hand() -> None:
    labels = torch.arange(12, dtype=torch.uint8).reshape(2, 6)
    assert labels_at(labels, (1, 3)).tolist() == [[7, 9, 11]]


@pytest.mark.parametrize(
    ("task", "terms"),
    [
        (THREE, [{"kind": "cross_entropy"}, {"kind": "lovasz", "weight": 0.5}]),
        (TWO_MAPS, [{"kind": "bce"}, {"kind": "dice"}]),
        (BINARY, [{"kind": "bce"}, {"kind": "border_dice"}]),
    ],
)
@pytest.mark.parametrize("weight", [0.4, 1.0, 0.0])
def test_coarser_maps_add_their_share(task: Task, terms: list[dict[str, Any]], weight: float) -> None:
    logits, labels = case(task)
    settings = parse(LossSettings, {"terms": terms, "deep_supervision": weight})

    def alone(number: int) -> torch.Tensor:
        """The loss of one of the outputs, as if the image had its size."""
        size = (logits[number].shape[-2], logits[number].shape[-1])
        coarse = functional.interpolate(labels.reshape(2, -1, 16, 24).float(), size, mode="nearest-exact")
        truth = coarse.to(torch.uint8).reshape(*labels.shape[:-2], *size)
        return build_loss(settings, task, image_height=640 >> number)(logits[number], truth)

    found = build_loss(settings, task, image_height=640)(logits, labels)
    torch.testing.assert_close(found, alone(0) + weight * (alone(1) + alone(2)))


def test_every_output_learns_unless_its_weight_is_zero() -> None:
    for weight in (0.4, 0.0):
        logits, labels = case(THREE)
        logits = tuple(each.requires_grad_() for each in logits)
        build_loss(parse(LossSettings, {"terms": [{"kind": "cross_entropy"}], "deep_supervision": weight}), THREE)(
            logits, labels
        ).backward()
        assert logits[0].grad is not None and logits[0].grad.any()
        assert all((each.grad is not None and bool(each.grad.any())) == (weight > 0) for each in logits[1:])


def test_logits_without_others_are_judged_as_ever() -> None:
    logits, labels = case(THREE)
    loss = build_loss(parse(LossSettings, {"terms": [{"kind": "cross_entropy"}]}), THREE)
    assert loss(logits[0], labels).item() == loss((logits[0],), labels).item()


def test_distances_are_learnt_from_the_finest_maps_alone() -> None:
    terms = [{"kind": "bce"}, {"kind": "signed_distance"}]
    settings = parse(LossSettings, {"terms": terms})
    assert num_auxiliary_maps(settings, TWO_MAPS) == 2
    (finest, *_), labels = case(TWO_MAPS, maps=4)
    for maps in (2, 4):  # heads of their own may leave the auxiliary maps out
        (_, half, _), _ = case(TWO_MAPS, maps=maps)
        plain = build_loss(parse(LossSettings, {"terms": terms[:1]}), TWO_MAPS)
        expected = build_loss(settings, TWO_MAPS)(finest, labels)
        expected = expected + 0.4 * plain(half[:, :2], labels_at(labels, (8, 12)))
        torch.testing.assert_close(build_loss(settings, TWO_MAPS)((finest, half), labels), expected)
    only = parse(LossSettings, {"terms": terms[1:]})
    assert torch.equal(build_loss(only, TWO_MAPS)((finest, half), labels), build_loss(only, TWO_MAPS)(finest, labels))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_coarser_maps_are_judged_in_float32(dtype: torch.dtype) -> None:
    logits, labels = case(THREE)
    low = tuple(each.to(dtype) for each in logits)
    loss = build_loss(parse(LossSettings, {"terms": [{"kind": "cross_entropy"}, {"kind": "dice"}]}), THREE)
    value = loss(low, labels)
    assert value.dtype == torch.float32
    assert value.item() == loss(tuple(each.float() for each in low), labels).item()


def test_nothing_but_ignored_pixels_gives_zero() -> None:
    logits, labels = case(THREE)
    logits = tuple(each.requires_grad_() for each in logits)
    loss = build_loss(parse(LossSettings, {"terms": [{"kind": "cross_entropy"}, {"kind": "jaccard"}]}), THREE)
    value = loss(logits, torch.full_like(labels, IGNORE))
    value.backward()
    assert value.item() == 0
    assert all(each.grad is not None and not each.grad.any() for each in logits)
