"""The U-Net with a dilated bottleneck: 3rd place in Kaggle's Carvana challenge.

Three stages, average pooling, six convolutions of dilation 1, 2, 4, 8, 16, 32 whose results are all summed, and
transposed convolutions on the way up; no batch normalisation.
Source: https://github.com/lyakaap/Kaggle-Carvana-3rd-Place-Solution (the author's version for torch).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskloom.models.classic.layers import Block, ConvRelu, check_sides, he_normal, joined
from maskloom.models.encoders import NetworkSettings, multiple_of

FILTERS = (44, 88, 176)
BOTTLENECK = 352
DILATIONS = (1, 2, 4, 8, 16, 32)


class DilatedUnet(nn.Module):
    """U-Net of depth 3; sides are multiples of 8.

    Side by side ("parallel"), each dilated convolution sees the pooled maps of the last stage; in the published
    program that mode is given but cannot run, so its shapes are ours.
    """

    def __init__(self, settings: NetworkSettings, num_maps: int) -> None:
        super().__init__()
        self.multiple = multiple_of(settings)
        self.parallel = settings.bottleneck == "parallel"
        filters = [settings.scaled(count) for count in FILTERS]
        wide = settings.scaled(BOTTLENECK)
        incoming = [settings.channels, *filters[:-1]]
        self.down_path = nn.ModuleList(double(*pair) for pair in zip(incoming, filters, strict=True))
        self.bottleneck_path = nn.ModuleList(
            ConvRelu(filters[-1] if self.parallel or dilation == 1 else wide, wide, dilation=dilation)
            for dilation in DILATIONS
        )
        below = [wide, *filters[:0:-1]]
        self.up_path = nn.ModuleList(UpBlock(*pair) for pair in zip(below, filters[::-1], strict=True))
        he_normal(self)
        self.last = nn.Conv2d(filters[0], num_maps, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits N×maps×H×W."""
        check_sides(images, self.multiple)
        skips = self.encode(images)
        maps = self.bottleneck(functional.avg_pool2d(skips[-1], 2))
        maps = self.decode(maps, skips)
        logits: Tensor = self.last(maps)
        return logits

    def encode(self, images: Tensor) -> list[Tensor]:
        """Returns the maps of the three stages before they are pooled, finest first."""
        skips = [self.down_path[0](images)]
        for stage in self.down_path[1:]:
            skips.append(stage(functional.avg_pool2d(skips[-1], 2)))
        return skips

    def bottleneck(self, maps: Tensor) -> Tensor:
        """Returns the sum of what the six dilated convolutions give."""
        results: list[Tensor] = []
        for convolution in self.bottleneck_path:
            results.append(convolution(maps if self.parallel or not results else results[-1]))
        return torch.stack(results).sum(dim=0)

    def decode(self, maps: Tensor, skips: list[Tensor]) -> Tensor:
        """Returns maps at the size of the input."""
        for block, skip in zip(self.up_path, reversed(skips), strict=True):
            maps = block(maps, skip)
        return maps


class UpBlock(nn.Module):
    """A transposed convolution that doubles the sides, its maps first and the skip after them, two convolutions."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, filters, 4, stride=2, padding=1)
        self.conv_block = double(2 * filters, filters)

    def forward(self, maps: Tensor, skip: Tensor) -> Tensor:
        """Returns N×filters at the skip's size."""
        result: Tensor = self.conv_block(joined(self.up(maps), skip))
        return result


def double(channels: int, filters: int) -> nn.Module:
    """Returns two convolutions with ReLU."""
    return Block(ConvRelu(channels, filters), ConvRelu(filters, filters))
