"""The U-Nets of the 4th place in Kaggle's Carvana challenge: a plain one, and one over each of three encoders.

A decoder stage doubles the sides (nearest pixel), joins the maps of that size, its own first, and has two
convolutions with batch normalisation and ReLU; the last one joins the image itself. Whole maps are dropped before the
1×1 convolution that gives logits (published with the sigmoid inside). Published in Keras: its ε of 1e-3 in the batch
normalisation is kept, its moving average (0.99) is torch's (0.9), because short trainings end before the slower one
has settled.
Source: https://github.com/killthekitten/kaggle-carvana-2017.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskloom.models.classic.features import UNPADDED, build_encoder, feature_maps
from maskloom.models.classic.fourth_vgg import frozen_stage
from maskloom.models.classic.layers import check_sides, he_normal
from maskloom.models.encoders import NetworkSettings, multiple_of

PLAIN_FILTERS = (32, 64, 128, 256)
PLAIN_DROPOUT = 0.2

DECODERS: dict[str, tuple[tuple[int, int], ...]] = {
    "unet_resnet50_4th": ((256, 256), (192, 192), (128, 128), (64, 64), (32, 32)),
    "unet_inception_resnet_4th": ((256, 256), (256, 256), (128, 128), (64, 64), (48, 32)),
    "unet_mobilenet_4th": ((256, 256), (256, 256), (192, 128), (96, 64), (48, 32)),
}
"""Filters of the two convolutions of each stage, coarsest first."""

DROPOUT = {"unet_resnet50_4th": 0.2, "unet_inception_resnet_4th": 0.4, "unet_mobilenet_4th": 0.2}
"""Published probability that a map is dropped."""


class PlainUnet(nn.Module):
    """U-Net of three poolings; also the published second layer, fed with the image and maps of the first."""

    def __init__(self, settings: NetworkSettings, num_maps: int) -> None:
        super().__init__()
        self.multiple = multiple_of(settings)
        filters = [settings.scaled(count) for count in PLAIN_FILTERS]
        incoming = [settings.channels, *filters[:-1]]
        self.down = nn.ModuleList(
            conv_blocks(channels, count, count) for channels, count in zip(incoming[:-1], filters[:-1], strict=True)
        )
        self.bottom = conv_blocks(incoming[-1], *[filters[-1]] * 3)
        self.up = nn.ModuleList(
            DecoderStage(coarse + count, (count, count))
            for coarse, count in zip(filters[:0:-1], filters[-2::-1], strict=True)
        )
        self.head = Head(filters[0], num_maps, PLAIN_DROPOUT if settings.dropout is None else settings.dropout)
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits N×maps×H×W."""
        check_sides(images, self.multiple)
        skips = []
        maps = images
        for stage in self.down:
            skips.append(stage(maps))
            maps = functional.max_pool2d(skips[-1], 2)
        maps = self.bottom(maps)
        for stage, skip in zip(self.up, reversed(skips), strict=True):
            maps = stage(maps, [skip])
        logits: Tensor = self.head(maps)
        return logits


class EncoderUnet(nn.Module):
    """U-Net over ResNet-50, Inception-ResNet v2 or MobileNet; sides are multiples of 32.

    The one over ResNet-50 also joins, at full size, the maps of VGG16's first stage, which is never trained.
    """

    def __init__(self, settings: NetworkSettings, num_maps: int) -> None:
        super().__init__()
        self.multiple = multiple_of(settings)
        self.unpadded = settings.encoder in UNPADDED
        self.encoder = build_encoder(settings)
        self.vgg = frozen_stage(settings) if settings.architecture == "unet_resnet50_4th" else None
        widths = [(settings.scaled(a), settings.scaled(b)) for a, b in DECODERS[settings.architecture]]
        *skips, channels = self.encoder.out_channels[1:]
        skips.insert(0, settings.channels + (self.vgg.num_maps if self.vgg else 0))
        self.decoder = nn.ModuleList()
        for skip, width in zip(reversed(skips), widths, strict=True):
            self.decoder.append(DecoderStage(channels + skip, width))
            channels = width[-1]
        dropout = DROPOUT[settings.architecture] if settings.dropout is None else settings.dropout
        self.head = Head(channels, num_maps, dropout)
        he_normal(self.decoder)
        he_normal(self.head)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits N×maps×H×W."""
        check_sides(images, self.multiple)
        *skips, maps = feature_maps(self.encoder, images, unpadded=self.unpadded)
        full_size = [images] if self.vgg is None else [images, self.vgg(images)]
        joined = [*([skip] for skip in reversed(skips)), full_size]
        for stage, finer in zip(self.decoder, joined, strict=True):
            maps = stage(maps, finer)
        logits: Tensor = self.head(maps)
        return logits


class DecoderStage(nn.Module):
    """Doubles the sides, joins the maps of that size, and convolves twice."""

    def __init__(self, channels: int, filters: tuple[int, int]) -> None:
        super().__init__()
        self.convolutions = conv_blocks(channels, *filters)

    def forward(self, coarse: Tensor, finer: Sequence[Tensor]) -> Tensor:
        """Returns N×filters×2H×2W for coarse maps N×C×H×W and finer ones of twice their sides."""
        doubled = functional.interpolate(coarse, scale_factor=2, mode="nearest")
        maps: Tensor = self.convolutions(torch.cat([doubled, *finer], dim=1))
        return maps


class Head(nn.Sequential):
    """Drops whole maps while training, then a 1×1 convolution to logits."""

    def __init__(self, channels: int, num_maps: int, dropout: float) -> None:
        super().__init__(nn.Dropout2d(dropout), nn.Conv2d(channels, num_maps, 1))


def conv_blocks(channels: int, *filters: int) -> nn.Sequential:
    """Returns convolutions 3×3 with bias, one per number of filters, each with batch normalisation and ReLU."""
    layers = nn.Sequential()
    for count in filters:
        layers.append(nn.Conv2d(channels, count, 3, padding=1))
        layers.append(nn.BatchNorm2d(count, eps=1e-3))
        layers.append(nn.ReLU(inplace=True))
        channels = count
    return layers
