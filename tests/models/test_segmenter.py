"""What goes into the network and what comes out, with networks whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from maskloom.config import parse
from maskloom.data.input_policy import InputPolicy
from maskloom.errors import UserError
from maskloom.models.encoders import NetworkSettings
from maskloom.models.segmenter import Normalisation, Segmenter, build_segmenter
from maskloom.records import Task

BINARY = Task(kind="binary", classes=("car",))
THREE = Task(kind="multiclass", classes=("sky", "road", "car"))
TWO_MAPS = Task(kind="multilabel", classes=("water", "crops"))


def segmenter(
    network: nn.Module, task: Task = THREE, *, mean: tuple[float, ...] = (0.5, 0.25, 0.0), scale: float = 255.0
) -> Segmenter:
    return Segmenter(
        network=network,
        normalisation=Normalisation(mean=mean, std=tuple(0.5 for _ in mean), scale=scale),
        policy=InputPolicy(),
        task=task,
        network_settings=NetworkSettings(channels=len(mean), weights="none"),
    )


@pytest.mark.parametrize(("dtype", "scale"), [(np.uint8, 255.0), (np.uint16, 65535.0), (np.float32, 1.0)])
def test_stored_values_are_normalised(dtype: type, scale: float) -> None:
    rng = np.random.default_rng(0)
    stored = (rng.random((2, 3, 4, 5)) * scale).astype(dtype)
    expected = (stored / scale - np.array([0.5, 0.25, 0.0]).reshape(3, 1, 1)) / 0.5
    logits = segmenter(nn.Identity(), scale=scale).logits(torch.from_numpy(stored))
    assert logits.dtype == torch.float32
    np.testing.assert_allclose(logits.numpy(), expected, atol=1e-6)


def test_logits_are_float32_under_autocast() -> None:
    network = nn.Conv2d(3, 3, 1)
    images = torch.randint(0, 256, (1, 3, 4, 4), dtype=torch.uint8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(images.float()).dtype == torch.bfloat16
        assert segmenter(network).logits(images).dtype == torch.float32


def test_logits_have_the_size_of_the_images_whatever_the_stride() -> None:
    images = torch.randint(0, 256, (1, 3, 8, 12), dtype=torch.uint8)
    assert segmenter(nn.AvgPool2d(4)).logits(images).shape == (1, 3, 8, 12)


def test_channels_last_changes_the_order_and_not_the_values() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    plain = segmenter(nn.Conv2d(3, 3, 3, padding=1))
    before = plain.logits(images)
    moved = plain.to("cpu", channels_last=True)
    assert moved is plain and moved.channels_last
    assert moved.normalise(images).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(moved.logits(images), before)
    assert moved.to("cpu", channels_last=False).normalise(images).is_contiguous()


def test_the_images_are_not_changed() -> None:
    images = torch.rand(1, 3, 4, 4)
    before = images.clone()
    segmenter(nn.Identity(), scale=1.0).logits(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize("task", [BINARY, THREE, TWO_MAPS])
def test_probabilities_follow_the_task(task: Task) -> None:
    logits = torch.randn(2, task.num_maps, 3, 3)
    found = segmenter(nn.Identity(), task).probabilities(logits)
    if task.kind == "multiclass":
        torch.testing.assert_close(found.sum(dim=1), torch.ones(2, 3, 3))
        torch.testing.assert_close(found, logits.exp() / logits.exp().sum(dim=1, keepdim=True))
    else:
        torch.testing.assert_close(found, 1 / (1 + (-logits).exp()))


def test_images_of_other_channels_are_refused() -> None:
    with pytest.raises(UserError, match=r"expected images of 3 channel\(s\).*found 1"):
        segmenter(nn.Identity()).logits(torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize(
    "values", [{"mean": [0.5], "std": [0.5, 0.5]}, {"mean": [0.5], "std": [0.0]}, {"mean": [], "std": []}]
)
def test_a_normalisation_that_cannot_be_computed_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(UserError):
        parse(Normalisation, values)


def test_a_fresh_segmenter_fits_its_task() -> None:
    settings = NetworkSettings(encoder="resnet18", weights="none", channels=1)
    normalisation = Normalisation(mean=(0.5,), std=(0.5,))
    fresh = build_segmenter(settings, task=TWO_MAPS, policy=InputPolicy(), normalisation=normalisation)
    assert fresh.logits(torch.zeros((2, 1, 64, 32), dtype=torch.uint8)).shape == (2, 2, 64, 32)
    with pytest.raises(UserError, match="expected 3 as the normalisation has"):
        build_segmenter(
            settings,
            task=BINARY,
            policy=InputPolicy(),
            normalisation=Normalisation(mean=(0.5,) * 3, std=(0.5,) * 3),
        )


def test_another_network_leaves_the_first_as_it_was() -> None:
    first = segmenter(nn.Identity())
    second = first.with_network(nn.Flatten(0))
    assert isinstance(first.network, nn.Identity) and isinstance(second.network, nn.Flatten)
    assert second.policy is first.policy
