from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maskloom.inference.fusing import fuse


def trained_norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.uniform_(norm.bias, -1, 1)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 3)
    return norm


def test_a_folded_network_computes_the_same() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False), trained_norm(4), nn.ReLU(), nn.Conv2d(4, 3, 1), trained_norm(3)
    )
    images = torch.randn(2, 2, 16, 16)
    fused = fuse(network, 2)
    assert fused.num_pairs == 2 and fused.reason == ""
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.network.modules())
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == 2
    assert torch.allclose(fused.network(images), network.eval()(images), atol=1e-4)


class Shared(nn.Module):
    """The convolution's output is used beside its normalisation, where no hook sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 1), trained_norm(2)

    def forward(self, images: Tensor) -> Tensor:
        values = self.conv(images)
        return values + self.norm(values)


class Twice(nn.Module):
    """One normalisation after two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), trained_norm(2)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.two(self.norm(self.one(images))))


class Broken(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise RuntimeError("no such size")


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Shared(), "differs by"),
        (Twice(), "no convolution"),
        (Broken(), "no such size"),
    ],
)
def test_what_cannot_be_folded_stays_and_says_why(network: nn.Module, reason: str) -> None:
    fused = fuse(network, 2)
    assert fused.num_pairs == 0 and reason in fused.reason
    assert not fused.network.training
    if not isinstance(network, Broken):
        images = torch.randn(1, 2, 4, 4)
        assert torch.equal(fused.network(images), network.eval()(images))


def test_without_batch_normalisation_there_is_nothing_to_say() -> None:
    fused = fuse(nn.Conv2d(2, 1, 1), 2)
    assert (fused.num_pairs, fused.reason) == (0, "")
