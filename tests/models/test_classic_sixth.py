"""The networks of Carvana's 6th place: LinkNets over Inception v3, DenseNet and ResNet, and PSPNets over ResNet."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from maskloom.errors import UserError
from maskloom.models.classic.features import feature_maps
from maskloom.models.classic.sixth import EncoderLinkNet, link_block, link_head
from maskloom.models.classic.table import CLASSIC
from maskloom.models.decoders import build_network
from maskloom.models.encoders import Architecture, NetworkSettings

CHANNELS = {
    ("incnet", "inception_v3"): [64, 192, 288, 768, 2048],
    ("dinknet", "densenet121"): [64, 256, 512, 1024, 1024],
    ("dinknet", "densenet169"): [64, 256, 512, 1280, 1664],
}
"""The encoders' maps at 1/2 … 1/32."""

ENCODER_PARAMETERS = {"inception_v3": 21_785_568, "densenet121": 6_953_856, "densenet169": 12_484_480}
"""The encoders' trainable parameters without their classifiers, as torchvision counts them."""


def settings_of(architecture: str, **values: Any) -> NetworkSettings:
    return NetworkSettings.model_validate({"architecture": architecture, "weights": "none", **values})


@cache
def built(architecture: str, **values: Any) -> Any:
    torch.manual_seed(0)
    return build_network(settings_of(architecture, **values), 2)


@cache
def without_memory(architecture: Architecture, **values: Any) -> Any:
    with torch.device("meta"):
        return CLASSIC[architecture](settings_of(architecture, **values), 2)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def block_parameters(channels: int, middle: int, filters: int) -> int:
    """Returns those of a 1×1, a transposed 3×3 and a 1×1 convolution with bias, each with batch normalisation."""
    return channels * middle + 3 * middle + 9 * middle**2 + 3 * middle + middle * filters + 3 * filters


@pytest.mark.parametrize(
    ("architecture", "encoder", "width"),
    [*((*pair, 1.0) for pair in CHANNELS), ("incnet", "inception_v3", 0.125), ("dinknet", "densenet121", 0.125)],
)
def test_the_decoder_has_the_parameters_of_its_formula(architecture: Architecture, encoder: str, width: float) -> None:
    network = without_memory(architecture, encoder=encoder, width=width)
    stem, *channels = CHANNELS[architecture, encoder]
    last, head = round(stem * width), round(32 * width)
    pairs = list(zip(channels[::-1], [*channels[-2::-1], last], strict=True))
    decoder = sum(block_parameters(coarse, round(coarse / 4 * width), finer) for coarse, finer in pairs)
    final = 9 * last * head + head + 9 * head * head + head + 4 * head * 2 + 2
    assert count(network.encoder) == ENCODER_PARAMETERS[encoder]
    assert count(network) == ENCODER_PARAMETERS[encoder] + decoder + final


@pytest.mark.parametrize(
    ("architecture", "encoder", "channels"),
    [
        ("incnet", "inception_v3", 3),
        ("dinknet", "densenet121", 4),
        ("linknet_deconv", "resnet18", 3),
        ("linknet_deconv", "resnet34", 3),
        ("pspnet", "resnet18", 3),
        ("pspnet", "resnet34", 1),
    ],
)
def test_everything_learns_at_the_size_of_the_input(architecture: str, encoder: str, channels: int) -> None:
    network = built(architecture, encoder=encoder, channels=channels).train()
    for batch, height, width in ((1, 96, 64), (2, 32, 64)):
        logits = network(torch.randn(batch, channels, height, width))
        assert logits.shape == (batch, 2, height, width) and logits.dtype == torch.float32
    logits.square().mean().backward()
    used = {name: parameter for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in used.values())
    unused = network.state_dict().keys() & {name for name, _ in network.named_parameters()} - used.keys()
    assert all(architecture == "pspnet" and name.startswith("encoder.layer") for name in unused)  # it stops at 1/8
    stem = next(network.parameters())
    assert stem.shape[1] == channels and stem.grad.any()


def test_other_sides_are_refused() -> None:
    with pytest.raises(UserError, match="multiples of 32 pixels, found 48×64; pad to 64×64"):
        built("dinknet", encoder="densenet121", channels=4)(torch.zeros(1, 4, 48, 64))


def test_the_head_doubles_sides_exactly() -> None:
    head = link_head(1, 1, 1)
    for layer, place in zip(head[::2], ((1, 1), (1, 1), (1, 1)), strict=True):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        with torch.no_grad():
            layer.weight[0, 0, place[0], place[1]] = 1.0
    maps = torch.rand(1, 1, 3, 4)
    expected = torch.zeros(1, 1, 6, 8)
    expected[..., ::2, ::2] = maps  # 2i + 1, minus 1 for the 3×3 convolution's border, and (1, 1) of 2×2 padded by 1
    torch.testing.assert_close(head(maps), expected)


def test_a_block_doubles_sides_exactly() -> None:
    block = link_block(2, 3, 4).eval()
    for layer, target, source, place in ((block[0], 1, 1, 0), (block[3], 1, 1, 1), (block[6], 2, 1, 0)):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        with torch.no_grad():
            layer.weight[target, source, place, place] = 1.0
    maps = torch.rand(1, 2, 3, 5)
    expected = torch.zeros(1, 4, 6, 10)
    expected[:, 2, ::2, ::2] = maps[:, 1]
    torch.testing.assert_close(block(maps), expected / (1 + 1e-5) ** 1.5)


def test_skips_are_added_where_they_are_as_large() -> None:
    network = built("dinknet", encoder="densenet121", channels=4).eval()
    assert isinstance(network, EncoderLinkNet)
    images = torch.randn(1, 4, 64, 96)
    with torch.no_grad():
        _, quarter, eighth, sixteenth, last = feature_maps(network.encoder, images, unpadded=False)
        blocks = network.decoder
        expected = blocks[2](blocks[1](blocks[0](last) + sixteenth) + eighth) + quarter
        torch.testing.assert_close(network(images), network.head(blocks[3](expected)))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96), (32, 96)])
def test_inceptions_maps_have_exact_sizes(height: int, width: int) -> None:
    encoder = built("incnet", encoder="inception_v3", channels=3).encoder.eval()
    with torch.no_grad():
        maps = feature_maps(encoder, torch.randn(1, 3, height, width), unpadded=True)
    expected = zip(CHANNELS["incnet", "inception_v3"], (2, 4, 8, 16, 32), strict=True)
    assert [tuple(each.shape) for each in maps] == [(1, count, height // s, width // s) for count, s in expected]


def test_inceptions_units_are_centred_at_their_pixels() -> None:
    """The pixels that a unit depends on lie evenly around the one at stride times its index."""
    encoder = built("incnet", encoder="inception_v3", channels=3).encoder.eval()
    images = torch.randn(1, 3, 160, 192, requires_grad=True)
    for maps, stride in zip(feature_maps(encoder, images, unpadded=True)[:3], (2, 4, 8), strict=True):
        unit = maps[..., 80 // stride, 96 // stride].double().sum()
        (gradient,) = torch.autograd.grad(unit, images, retain_graph=True)
        for axis, place in ((1, 80), (0, 96)):
            pixels = gradient.abs().sum(dim=(0, 1)).sum(dim=axis).nonzero().flatten()
            assert int(pixels[0]) + int(pixels[-1]) == 2 * place
