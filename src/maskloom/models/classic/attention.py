"""Squeeze and excitation of maps, by channel and by place at once (scSE), for the decoders of published networks.

Knows nothing about where a network puts it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

REDUCTION = 2
"""The channel gate squeezes channels by this factor, which its authors found best; segmentation-models-pytorch, whose
decoders have an scSE of their own, takes 16."""


class ScSE(nn.Module):
    """Maps times a gate per channel, plus the same maps times a gate per pixel.

    The channel gate is σ(W₂·ReLU(W₁·z)) of the mean z over the whole image, so a tile does not see quite what the
    whole image would; the pixel gate is σ of a 1×1 convolution to one map.
    From Roy et al., "Concurrent Spatial and Channel Squeeze & Excitation", https://arxiv.org/abs/1803.02579, the two
    joined by addition; names are those of the paper.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(channels // REDUCTION, 1)
        self.cSE = nn.Sequential(nn.Linear(channels, squeezed), nn.ReLU(inplace=True), nn.Linear(squeezed, channels))
        self.sSE = nn.Conv2d(channels, 1, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Returns maps of the same shape, N×C×H×W."""
        by_channel: Tensor = self.cSE(maps.mean(dim=(2, 3))).sigmoid()[:, :, None, None]
        by_pixel: Tensor = self.sSE(maps).sigmoid()
        return maps * by_channel + maps * by_pixel


@torch.no_grad()
def begin_neutral(network: nn.Module) -> None:
    """Lets every scSE in the network begin as the identity: both gates give ½ everywhere until they have learnt."""
    for module in network.modules():
        if isinstance(module, ScSE):
            for parameter in (*module.cSE[2].parameters(), *module.sSE.parameters()):
                parameter.zero_()
