"""scSE with gates known by hand, and as part of the U-Net over ResNet."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from maskloom.models.classic.attention import ScSE, begin_neutral
from maskloom.models.decoders import build_network
from maskloom.models.encoders import NetworkSettings


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_gates_by_hand() -> None:
    """Two channels of 1×2 pixels: means 2 and -1, of which the first is positive after one layer of the identity."""
    block = ScSE(2)
    with torch.no_grad():
        block.cSE[0].weight.copy_(torch.tensor([[1.0, 1.0]]))  # 2 - 1 = 1
        block.cSE[0].bias.fill_(0.5)  # 1.5
        block.cSE[2].weight.copy_(torch.tensor([[2.0], [-1.0]]))  # 3 and -1.5
        block.cSE[2].bias.copy_(torch.tensor([-1.0, 0.5]))  # 2 and -1
        block.sSE.weight.copy_(torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1))
        block.sSE.bias.fill_(2.0)
        found = block(torch.tensor([[[[1.0, 3.0]], [[-2.0, 0.0]]]]))
    left, right = sigmoid(1 - 6 + 2), sigmoid(3 + 0 + 2)
    expected = [[1 * (sigmoid(2) + left), 3 * (sigmoid(2) + right)], [-2 * (sigmoid(-1) + left), 0.0]]
    torch.testing.assert_close(found, torch.tensor(expected).reshape(1, 2, 1, 2))


@pytest.mark.parametrize("channels", [1, 2, 5, 64])
def test_it_begins_as_the_identity_and_learns(channels: int) -> None:
    block = ScSE(channels)
    begin_neutral(block)
    maps = torch.randn(3, channels, 4, 6, requires_grad=True)
    found = block(maps)
    assert torch.equal(found, maps)
    found.square().sum().backward()
    assert block.cSE[2].weight.grad is not None and block.sSE.weight.grad is not None
    assert block.sSE.weight.grad.any() and block.cSE[2].bias.grad.any()


@pytest.mark.parametrize("upsampling", ["nearest", "deconv"])
@pytest.mark.parametrize("architecture", ["unet_resnet", "unet_wideresnet38"])
def test_a_fresh_network_computes_what_it_would_without(architecture: str, upsampling: str) -> None:
    values: dict[str, Any] = {"architecture": architecture, "upsampling": upsampling, "weights": "none", "width": 0.25}
    if architecture == "unet_resnet":
        values["encoder"] = "resnet18"
    torch.manual_seed(0)
    plain = build_network(NetworkSettings.model_validate(values), 2).eval()
    attended = build_network(NetworkSettings.model_validate({**values, "attention": "scse"}), 2).eval()
    added = attended.state_dict().keys() - plain.state_dict().keys()
    assert plain.state_dict().keys() <= attended.state_dict().keys()
    assert len(added) == 6 * (6 if architecture == "unet_resnet" else 5)
    assert all(".cSE." in name or ".sSE." in name for name in added)
    attended.load_state_dict(plain.state_dict(), strict=False)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(attended(images), plain(images))
        for module in attended.modules():
            if isinstance(module, ScSE):
                nn.init.constant_(module.sSE.bias, 1.0)
        assert not torch.equal(attended(images), plain(images))
