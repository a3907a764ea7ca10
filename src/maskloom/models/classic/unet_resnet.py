"""The U-Net over ResNet of the 22nd place in Signate's AI Edge contest, in the way of TernausNet.

The centre stands on the pooled last stage; every block doubles the sides, and its maps are joined with the encoder's
of that size, the decoder's first, except at the two finest sizes, which have no skip.
Source: https://github.com/EvgenyKashin/signate_segmentation. scSE, which its author had planned, is ours: with
``attention`` it stands at the end of every block, center and dec5 … dec1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.nn import functional

from maskloom.models.classic.attention import ScSE, begin_neutral
from maskloom.models.classic.layers import Block, ConvRelu, check_sides, he_normal, joined
from maskloom.models.classic.resnet import ResNet
from maskloom.models.encoders import NetworkSettings, multiple_of

WIDTHS = ((512, 256), (512, 256), (512, 256), (256, 64), (128, 128), (128, 32))
"""Filters (in the middle, of the result) of the blocks center, dec5 … dec1: multiples of 32 base filters."""
LAST_WIDTH = 32


class ResNetUnet(nn.Module):
    """U-Net over ResNet18, 34, 50, 101 or 152; sides are multiples of 64."""

    def __init__(self, settings: NetworkSettings, num_maps: int) -> None:
        super().__init__()
        self.multiple = multiple_of(settings)
        self.resnet = ResNet(settings)
        skips = self.resnet.widths
        widths = [(settings.scaled(middle), settings.scaled(filters)) for middle, filters in WIDTHS]
        self.center = chosen_block(BLOCKS, settings, skips[3], *widths[0])
        self.dec5 = chosen_block(BLOCKS, settings, widths[0][1] + skips[3], *widths[1])
        self.dec4 = chosen_block(BLOCKS, settings, widths[1][1] + skips[2], *widths[2])
        self.dec3 = chosen_block(BLOCKS, settings, widths[2][1] + skips[1], *widths[3])
        self.dec2 = chosen_block(BLOCKS, settings, widths[3][1] + skips[0], *widths[4])
        self.dec1 = chosen_block(BLOCKS, settings, widths[4][1], *widths[5])
        last_width = settings.scaled(LAST_WIDTH)
        self.dec0 = ConvRelu(widths[5][1], last_width)
        he_normal(self)
        begin_neutral(self)
        self.final = nn.Conv2d(last_width, num_maps, 1)
        self.supervised = {"dec2": widths[4][1], "dec3": widths[3][1], "dec4": widths[2][1]}
        """Parts that deep supervision looks at, at 1/2, 1/4 and 1/8 of the sides, and how many maps each gives."""

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits N×maps×H×W."""
        check_sides(images, self.multiple)
        skips = self.encode(images)
        maps = self.center(functional.max_pool2d(skips[-1], 2))
        maps = self.decode(maps, skips)
        logits: Tensor = self.final(maps)
        return logits

    def encode(self, images: Tensor) -> list[Tensor]:
        """Returns the maps of the four residual stages, finest first."""
        resnet = self.resnet
        maps = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(images))))
        first = resnet.layer1(maps)
        second = resnet.layer2(first)
        third = resnet.layer3(second)
        return [first, second, third, resnet.layer4(third)]

    def decode(self, maps: Tensor, skips: list[Tensor]) -> Tensor:
        """Returns maps at the size of the input."""
        maps = self.dec5(joined(maps, skips[3]))
        maps = self.dec4(joined(maps, skips[2]))
        maps = self.dec3(joined(maps, skips[1]))
        maps = self.dec2(joined(maps, skips[0]))
        result: Tensor = self.dec0(self.dec1(maps))
        return result


class NearestBlock(nn.Module):
    """The nearest pixel twice in both directions, then two convolutions with ReLU, and what comes after them."""

    def __init__(self, channels: int, middle: int, filters: int, *after: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(ConvRelu(channels, middle), ConvRelu(middle, filters), *after)

    def forward(self, maps: Tensor) -> Tensor:
        """Returns N×filters×2H×2W."""
        result: Tensor = self.block(functional.interpolate(maps, scale_factor=2, mode="nearest"))
        return result


def transposed_block(channels: int, middle: int, filters: int, *after: nn.Module) -> nn.Module:
    """Returns a convolution with ReLU, a transposed convolution 4×4 that doubles the sides, ReLU, and ``after``."""
    doubling = nn.ConvTranspose2d(middle, filters, 4, stride=2, padding=1)
    return Block(ConvRelu(channels, middle), doubling, nn.ReLU(inplace=True), *after)


BLOCKS: dict[str, Callable[..., nn.Module]] = {"nearest": NearestBlock, "deconv": transposed_block}
"""How a block doubles the sides."""


def chosen_block(
    blocks: Mapping[str, Callable[..., nn.Module]], settings: NetworkSettings, channels: int, middle: int, filters: int
) -> nn.Module:
    """Returns the decoder block, one of ``blocks``, that the settings want."""
    after = [ScSE(filters)] if settings.attention else []
    return blocks[settings.upsampling or "nearest"](channels, middle, filters, *after)
