"""What several published networks share: the check of sides, the first weights, and joining maps."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from maskloom.errors import UserError


def check_sides(images: Tensor, multiple: int) -> None:
    """Raises ``UserError`` unless both sides of the images (N×C×H×W) are multiples of ``multiple`` pixels."""
    height, width = images.shape[-2:]
    if height % multiple or width % multiple:
        up = [-(-side // multiple) * multiple for side in (height, width)]
        raise UserError(
            f"expected sides that are multiples of {multiple} pixels, found {height}×{width}; pad to {up[0]}×{up[1]}"
        )


def joined(first: Tensor, second: Tensor) -> Tensor:
    """Returns the maps of both, in this order, as N×(C₁+C₂)×H×W."""
    return torch.cat([first, second], dim=1)


@torch.no_grad()
def he_normal(network: nn.Module) -> None:
    """Draws every convolution's weights so that ReLUs keep the signal's variance, with biases of 0.

    From He et al., https://arxiv.org/abs/1502.01852; a transposed convolution of stride s sees only k²/s² of its
    kernel per output pixel. Without batch normalisation and without pretrained weights, torch's own first weights let
    the signal of so many layers vanish.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and not module.weight.is_meta:  # nothing to draw there
            seen = module.in_channels / module.groups * math.prod(module.kernel_size)
            if isinstance(module, nn.ConvTranspose2d):
                seen /= math.prod(module.stride)
            module.weight.normal_(0.0, math.sqrt(2 / seen))
            if module.bias is not None:
                module.bias.zero_()


class ConvRelu(nn.Module):
    """Convolution 3×3 with bias, then ReLU; its weights are called ``conv``."""

    def __init__(self, channels: int, filters: int, *, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, filters, 3, padding=dilation, dilation=dilation)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, maps: Tensor) -> Tensor:
        """Returns N×filters×H×W."""
        result: Tensor = self.activation(self.conv(maps))
        return result


class Block(nn.Module):
    """Layers one after another, called ``block``."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(*layers)

    def forward(self, maps: Tensor) -> Tensor:
        """Returns what the last layer gives."""
        result: Tensor = self.block(maps)
        return result
