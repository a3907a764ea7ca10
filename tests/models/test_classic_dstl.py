"""The U-Net of Dstl's 3rd place: its formula of parameters, its operations, its first weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from maskloom.data.input_policy import InputPolicy
from maskloom.errors import UserError
from maskloom.inference.fusing import fuse
from maskloom.models.classic.dstl import EluUnet, conv_blocks, he_uniform
from maskloom.models.classic.table import CLASSIC
from maskloom.models.decoders import build_network
from maskloom.models.encoders import NetworkSettings, encoder_normalisation, multiple_of
from maskloom.models.segmenter import Normalisation, build_segmenter
from maskloom.records import Task


def settings_of(**values: Any) -> NetworkSettings:
    return NetworkSettings.model_validate({"architecture": "unet_elu", "weights": "none", **values})


def built(num_maps: int = 1, **values: Any) -> Any:
    torch.manual_seed(0)
    return build_network(settings_of(**values), num_maps)


def num_parameters(channels: int, filters: list[int], maps: int) -> int:
    """Returns those of two 3×3 convolutions with bias and normalisation per level down and up, and of the head."""
    total, incoming = filters[0] * maps + maps, channels
    for count in filters:
        total += 9 * (incoming + count) * count + 2 * 3 * count
        incoming = count
    for coarse, count in zip(filters[:0:-1], filters[-2::-1], strict=True):
        total += 9 * (coarse + count + count) * count + 2 * 3 * count
    return total


@pytest.mark.parametrize(("channels", "maps", "width"), [(16, 1, 1.0), (16, 10, 1.0), (3, 1, 1.0), (8, 2, 0.125)])
def test_it_has_the_parameters_of_its_formula(channels: int, maps: int, width: float) -> None:
    with torch.device("meta"):
        network = CLASSIC["unet_elu"](settings_of(channels=channels, width=width), maps)
    assert isinstance(network, EluUnet)
    filters = [round(count * width) for count in (32, 64, 128, 256, 512)]
    assert sum(each.numel() for each in network.parameters()) == num_parameters(channels, filters, maps)
    assert num_parameters(16, [32, 64, 128, 256, 512], 1) == 7_856_289


@pytest.mark.parametrize(("channels", "height", "width"), [(16, 112, 112), (1, 16, 32), (20, 48, 16)])
def test_everything_learns_at_the_size_of_the_input(channels: int, height: int, width: int) -> None:
    network = built(3, channels=channels, width=0.125).train()
    logits = network(torch.randn(2, channels, height, width))
    assert logits.shape == (2, 3, height, width) and logits.dtype == torch.float32
    logits.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    stem = network.down[0][0].weight
    assert stem.shape[1] == channels and stem.grad.any()


def elu(maps: Tensor) -> Tensor:
    return torch.where(maps > 0, maps, maps.exp() - 1)


def described(images: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """The published description once more, from tensors by their names."""

    def double(maps: Tensor, name: str) -> Tensor:
        for conv, norm in ((0, 1), (3, 4)):
            maps = functional.conv2d(maps, weights[f"{name}.{conv}.weight"], weights[f"{name}.{conv}.bias"], padding=1)
            mean, variance, factor, offset = (
                weights[f"{name}.{norm}.{part}"][:, None, None]
                for part in ("running_mean", "running_var", "weight", "bias")
            )
            maps = elu((maps - mean) / (variance + 1e-3).sqrt() * factor + offset)
        return maps

    levels = [double(images, "down.0")]
    for depth in range(1, 5):
        quarters = [levels[-1][..., row::2, column::2] for row in (0, 1) for column in (0, 1)]
        levels.append(double(torch.stack(quarters).amax(dim=0), f"down.{depth}"))
    maps = levels[4]
    for depth in range(4):
        doubled = maps.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        maps = double(torch.cat([doubled, levels[3 - depth]], dim=1), f"up.{depth}")
    return functional.conv2d(maps, weights["head.weight"], weights["head.bias"])


def test_it_computes_its_published_description() -> None:
    network = built(2, channels=5, width=0.125).double().eval()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point() and tensor.ndim == 1:  # biases, factors and means
                tensor.add_(torch.randn_like(tensor), alpha=0.1)
        images = torch.randn(2, 5, 32, 48, dtype=torch.float64)
        found, expected = network(images), described(images, network.state_dict())
    assert float(expected.std()) > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_first_weights_are_uniform_as_wide_as_he_et_al_say() -> None:
    torch.manual_seed(0)
    layers = conv_blocks(16, 64)
    he_uniform(layers)
    for layer in (layers[0], layers[3]):
        limit = math.sqrt(6 / (9 * layer.in_channels))
        weights = layer.weight.detach()
        assert limit * 0.99 < weights.abs().max() <= limit
        assert float(weights.std()) == pytest.approx(limit / math.sqrt(3), rel=0.02)  # of a uniform distribution
        assert float(weights.var()) == pytest.approx(2 / (9 * layer.in_channels), rel=0.04)
        assert not layer.bias.any()
    first = built(width=0.25).head.weight
    assert torch.equal(first, built(width=0.25).head.weight) and first.abs().max() <= math.sqrt(6 / 8)


def test_normalisation_is_that_of_keras_and_folds_away() -> None:
    network = built(channels=4, width=0.125)
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == 18 and {norm.eps for norm in norms} == {1e-3}
    fused = fuse(network, 4, side=64)
    assert (fused.num_pairs, fused.reason) == (18, "")


def test_it_is_known_by_its_name() -> None:
    settings = settings_of(channels=16)
    assert settings.encoder == "none" and multiple_of(settings) == 16
    assert encoder_normalisation(settings) == ((0.0,) * 16, (1.0,) * 16)
    with pytest.raises(UserError, match="multiples of 16 pixels, found 112×120; pad to 112×128"):
        built(width=0.125)(torch.zeros(1, 3, 112, 120))
    windows = InputPolicy(mode="window", size=(112, 112), multiple=16, margin=16)
    task, unit = Task(kind="binary", classes=("crops",)), Normalisation(mean=(0,) * 16, std=(1,) * 16)
    narrow = settings.model_copy(update={"width": 0.125})
    segmenter = build_segmenter(narrow, task=task, policy=windows, normalisation=unit)
    logits = segmenter.logits(torch.zeros(2, 16, 112, 112, dtype=torch.uint8))
    assert logits.shape == (2, 1, 112, 112)
