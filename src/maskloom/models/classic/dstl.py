"""The U-Net with ELUs that is trained from scratch: 3rd place in Kaggle's Dstl satellite imagery challenge.

Five levels of two 3×3 convolutions, each with batch normalisation and ELU, 2×2 maximum pooling between them, and the
nearest pixel on the way up, the decoder's own maps first in each concatenation. Published in Keras: its ε of 1e-3 in
the batch normalisation is kept, its moving average (0.99) is torch's (0.9), as in ``fourth``. What was published as
part of the network and is not here: the cropping of 16 pixels on every side before the loss (``InputPolicy.margin``)
and the sigmoid.
Source: https://github.com/ternaus/kaggle_dstl_submission, https://arxiv.org/abs/1706.06169.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskloom.models.classic.layers import check_sides, joined
from maskloom.models.encoders import NetworkSettings, multiple_of

FILTERS = (32, 64, 128, 256, 512)


class EluUnet(nn.Module):
    """U-Net of four poolings; sides are multiples of 16."""

    def __init__(self, settings: NetworkSettings, num_maps: int) -> None:
        super().__init__()
        self.multiple = multiple_of(settings)
        filters = [settings.scaled(count) for count in FILTERS]
        incoming = [settings.channels, *filters[:-1]]
        self.down = nn.ModuleList(conv_blocks(*pair) for pair in zip(incoming, filters, strict=True))
        self.up = nn.ModuleList(
            conv_blocks(coarse + count, count) for coarse, count in zip(filters[:0:-1], filters[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(filters[0], num_maps, 1)
        he_uniform(self)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits N×maps×H×W."""
        check_sides(images, self.multiple)
        *skips, maps = self.encode(images)
        for stage, skip in zip(self.up, reversed(skips), strict=True):
            maps = stage(joined(functional.interpolate(maps, scale_factor=2, mode="nearest"), skip))
        logits: Tensor = self.head(maps)
        return logits

    def encode(self, images: Tensor) -> list[Tensor]:
        """Returns the maps of the five levels before they are pooled, finest first."""
        levels: list[Tensor] = []
        for stage in self.down:
            levels.append(stage(functional.max_pool2d(levels[-1], 2) if levels else images))
        return levels


def conv_blocks(channels: int, filters: int) -> nn.Sequential:
    """Returns two convolutions 3×3 with bias, each with batch normalisation and ELU."""
    layers = nn.Sequential()
    for incoming in (channels, filters):
        layers.append(nn.Conv2d(incoming, filters, 3, padding=1))
        layers.append(nn.BatchNorm2d(filters, eps=1e-3))
        layers.append(nn.ELU(inplace=True))
    return layers


@torch.no_grad()
def he_uniform(network: nn.Module) -> None:
    """Draws every convolution's weights uniformly from ±√(6 / inputs), with biases of 0.

    As wide as ``layers.he_normal``, without its tails. From He et al., https://arxiv.org/abs/1502.01852.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:  # nothing to draw there
            limit = math.sqrt(6 / (module.in_channels / module.groups * math.prod(module.kernel_size)))
            module.weight.uniform_(-limit, limit)
            if module.bias is not None:
                module.bias.zero_()
