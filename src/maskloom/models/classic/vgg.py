"""U-Nets over a VGG encoder without batch normalisation: TernausNet (VGG11, VGG16) and the 1st place's VGG11 U-Net.

Each stage of VGG is followed by 2×2 maximum pooling; each decoder block doubles the sides, and its maps are joined
with the encoder's of that size, the decoder's first.
Sources: https://arxiv.org/abs/1801.05746, https://github.com/ternaus/TernausNet (both TernausNets),
https://github.com/asanakoy/kaggle_carvana_segmentation (the other, there called vgg11v1).

Published state dicts name VGG's convolutions twice, below ``encoder`` and by their stage; both names are one tensor,
here as there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from maskloom.models.classic.layers import Block, ConvRelu, check_sides, he_normal, joined
from maskloom.models.encoders import NetworkSettings, multiple_of

VGG_FILTERS = {
    "vgg11": ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    "vgg16": ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
}
"""Filters of the convolutions in each stage (https://arxiv.org/abs/1409.1556, columns A and D)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """What differs between the published networks over VGG."""

    widths: tuple[tuple[int, int], ...]
    """Filters (in the middle, of the result) of the blocks center, dec5, dec4, dec3, dec2."""
    last_width: int
    """Filters of dec1."""
    block: Callable[[int, int, int], nn.Module]
    """Builds a block from its channels, middle and result."""
    last: Callable[[int, int], nn.Module]
    """Builds dec1 from its channels and filters."""
    in_sequences: bool
    """Whether a stage is named as a sequence (conv3.0, conv3.2) or by its convolutions (conv3s, conv3)."""


def transposed_block(first: Callable[[int, int], nn.Module], channels: int, middle: int, filters: int) -> nn.Module:
    """Returns ``first`` (convolution and ReLU), then a transposed convolution 3×3 that doubles the sides, and ReLU."""
    doubling = nn.ConvTranspose2d(middle, filters, 3, stride=2, padding=1, output_padding=1)
    return Block(first(channels, middle), doubling, nn.ReLU(inplace=True))


def bilinear_block(channels: int, middle: int, filters: int) -> nn.Module:
    """Returns bilinear up-sampling by 2 (corners not kept), then two convolutions with ReLU."""
    doubling = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    return Block(doubling, ConvRelu(channels, middle), ConvRelu(middle, filters))


def nested_conv_relu(channels: int, filters: int) -> nn.Module:
    """Returns a convolution 3×3 with ReLU under the name that the 1st place's VGG11 U-Net gives it."""
    return Block(nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU(inplace=True))


UNET_VGG11 = Variant(
    widths=((1024, 512), (512, 512), (512, 256), (256, 128), (128, 64)),
    last_width=64,
    block=lambda channels, middle, filters: transposed_block(nested_conv_relu, channels, middle, filters),
    last=nested_conv_relu,
    in_sequences=False,
)
TERNAUSNET_11 = Variant(
    widths=((512, 256), (512, 256), (512, 128), (256, 64), (128, 32)),
    last_width=32,
    block=lambda channels, middle, filters: transposed_block(ConvRelu, channels, middle, filters),
    last=ConvRelu,
    in_sequences=False,
)
TERNAUSNET_16 = Variant(
    widths=((512, 256), (512, 256), (512, 256), (256, 64), (128, 32)),
    last_width=32,
    block=bilinear_block,
    last=ConvRelu,
    in_sequences=True,
)


class VggUnet(nn.Module):
    """U-Net over five stages of VGG; sides are multiples of 32."""

    def __init__(self, settings: NetworkSettings, num_maps: int, variant: Variant) -> None:
        super().__init__()
        self.multiple = multiple_of(settings)
        self.encoder, stages = vgg_features(settings)
        for depth, convolutions in enumerate(stages, start=1):
            self._name_stage(depth, convolutions, variant.in_sequences)
        *skips, deepest = (convolutions[-1].out_channels for convolutions in stages)
        widths = [(settings.scaled(middle), settings.scaled(filters)) for middle, filters in variant.widths]
        self.center = variant.block(deepest, *widths[0])
        self.dec5 = variant.block(widths[0][1] + deepest, *widths[1])
        self.dec4 = variant.block(widths[1][1] + skips[3], *widths[2])
        self.dec3 = variant.block(widths[2][1] + skips[2], *widths[3])
        self.dec2 = variant.block(widths[3][1] + skips[1], *widths[4])
        last_width = settings.scaled(variant.last_width)
        self.dec1 = variant.last(widths[4][1] + skips[0], last_width)
        he_normal(self)
        self.final = nn.Conv2d(last_width, num_maps, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits N×maps×H×W."""
        check_sides(images, self.multiple)
        skips = self.encode(images)
        maps = self.center(functional.max_pool2d(skips[-1], 2))
        maps = self.decode(maps, skips)
        logits: Tensor = self.final(maps)
        return logits

    def encode(self, images: Tensor) -> list[Tensor]:
        """Returns the maps of VGG's five stages before they are pooled, finest first."""
        skips = []
        maps = images
        for layer in self.encoder:
            if isinstance(layer, nn.MaxPool2d):
                skips.append(maps)
                if len(skips) == len(VGG_FILTERS["vgg11"]):  # the last pooling stands before the centre
                    break
            maps = layer(maps)
        return skips

    def decode(self, maps: Tensor, skips: list[Tensor]) -> Tensor:
        """Returns maps at the size of the input."""
        maps = self.dec5(joined(maps, skips[4]))
        maps = self.dec4(joined(maps, skips[3]))
        maps = self.dec3(joined(maps, skips[2]))
        maps = self.dec2(joined(maps, skips[1]))
        result: Tensor = self.dec1(joined(maps, skips[0]))
        return result

    def _name_stage(self, depth: int, convolutions: list[nn.Conv2d], in_sequence: bool) -> None:
        if in_sequence:
            layers = (layer for convolution in convolutions for layer in (convolution, nn.ReLU(inplace=True)))
            self.add_module(f"conv{depth}", nn.Sequential(*layers))
            return
        names = (f"conv{depth}s", f"conv{depth}")[-len(convolutions) :]
        for name, convolution in zip(names, convolutions, strict=True):
            self.add_module(name, convolution)


def vgg_features(settings: NetworkSettings) -> tuple[nn.Sequential, list[list[nn.Conv2d]]]:
    """Returns VGG's layers, numbered as torchvision numbers them, and the convolutions of each stage."""
    layers = nn.Sequential()
    stages = []
    channels = settings.channels
    for stage in VGG_FILTERS[settings.encoder]:
        convolutions = []
        for count in stage:
            filters = settings.scaled(count)
            convolutions.append(nn.Conv2d(channels, filters, 3, padding=1))
            layers.append(convolutions[-1]).append(nn.ReLU(inplace=True))
            channels = filters
        layers.append(nn.MaxPool2d(2, 2))
        stages.append(convolutions)
    return layers, stages
