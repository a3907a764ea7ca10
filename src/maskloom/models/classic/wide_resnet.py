"""The U-Net over WideResNet38 of TernausNetV2, which the 22nd place in Signate's AI Edge contest used too.

The encoder is model A2 of Wu et al. (https://arxiv.org/abs/1611.10080) up to its fifth group: a convolution, then
groups of 3, 3, 6 and 3 residual blocks with the activation before the convolutions, each group after 2×2 maximum
pooling; the two groups of bottlenecks that only its classifier needs are left out, as there. The decoder's blocks
double the sides, and their maps are joined with the encoder's of that size, the decoder's first.
Sources: https://github.com/ternaus/TernausNetV2, https://arxiv.org/abs/1806.00844.

Two things are ours. In-place activated normalisation is plain batch normalisation and leaky ReLU here, which compute
the same but for the factor, whose absolute value the in-place one takes: weights trained with it fit where all factors
are positive. And there is no published list of names: they follow TernausNetV2's (conv1 … conv5 for the groups,
block1.bn1, block1.convs.conv1 and block1.proj_conv inside, center, dec5 … dec1 and final).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from maskloom.models.classic.attention import begin_neutral
from maskloom.models.classic.layers import Block, ConvRelu, check_sides, he_normal, joined
from maskloom.models.classic.unet_resnet import chosen_block, transposed_block
from maskloom.models.encoders import NetworkSettings, multiple_of

STEM = 64
GROUPS = ((3, 128, 128), (3, 256, 256), (6, 512, 512), (3, 512, 1024))
"""Residual blocks of the groups conv2 … conv5, and the filters of their first and second convolutions."""
WIDTHS = ((256, 256), (256, 256), (256, 256), (64, 64), (64, 32))
"""Filters (in the middle, of the result) of the blocks center, dec5 … dec2: multiples of 32 base filters."""
LAST_WIDTH = 32
SLOPE = 0.01
"""Of the encoder's leaky ReLUs for negative values."""


class WideResNetUnet(nn.Module):
    """U-Net over WideResNet38; sides are multiples of 32."""

    def __init__(self, settings: NetworkSettings, num_maps: int) -> None:
        super().__init__()
        self.multiple = multiple_of(settings)
        stem = settings.scaled(STEM)
        groups = [(count, settings.scaled(first), settings.scaled(second)) for count, first, second in GROUPS]
        skips = [stem, *(second for _, _, second in groups)]
        first = nn.Conv2d(settings.channels, stem, 3, padding=1, bias=False)
        self.conv1 = nn.Sequential(OrderedDict(conv1=first))
        self.conv2 = residual_group(skips[0], *groups[0])
        self.conv3 = residual_group(skips[1], *groups[1])
        self.conv4 = residual_group(skips[2], *groups[2])
        self.conv5 = residual_group(skips[3], *groups[3])
        widths = [(settings.scaled(middle), settings.scaled(filters)) for middle, filters in WIDTHS]
        self.center = chosen_block(BLOCKS, settings, skips[4], *widths[0])
        self.dec5 = chosen_block(BLOCKS, settings, widths[0][1] + skips[4], *widths[1])
        self.dec4 = chosen_block(BLOCKS, settings, widths[1][1] + skips[3], *widths[2])
        self.dec3 = chosen_block(BLOCKS, settings, widths[2][1] + skips[2], *widths[3])
        self.dec2 = chosen_block(BLOCKS, settings, widths[3][1] + skips[1], *widths[4])
        last_width = settings.scaled(LAST_WIDTH)
        self.dec1 = ConvRelu(widths[4][1] + skips[0], last_width)
        he_normal(self)
        begin_neutral(self)
        self.final = nn.Conv2d(last_width, num_maps, 1)
        self.supervised = {"dec3": widths[3][1], "dec4": widths[2][1], "dec5": widths[1][1]}
        """Parts that deep supervision looks at, at 1/2, 1/4 and 1/8 of the sides, and how many maps each gives."""

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits N×maps×H×W."""
        check_sides(images, self.multiple)
        skips = self.encode(images)
        maps = self.center(functional.max_pool2d(skips[-1], 2))
        maps = self.dec5(joined(maps, skips[4]))
        maps = self.dec4(joined(maps, skips[3]))
        maps = self.dec3(joined(maps, skips[2]))
        maps = self.dec2(joined(maps, skips[1]))
        maps = self.dec1(joined(maps, skips[0]))
        logits: Tensor = self.final(maps)
        return logits

    def encode(self, images: Tensor) -> list[Tensor]:
        """Returns the maps of the five groups before they are pooled, finest first; none is normalised at its end."""
        skips = [self.conv1(images)]
        for group in (self.conv2, self.conv3, self.conv4, self.conv5):
            skips.append(group(functional.max_pool2d(skips[-1], 2)))
        return skips


class PreActivationBlock(nn.Module):
    """Normalisation and leaky ReLU before each of two convolutions 3×3, beside a shortcut.

    The shortcut is the block's input, or, where the number of maps changes, a 1×1 convolution of the activated one.
    """

    def __init__(self, channels: int, middle: int, filters: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.convs = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(channels, middle, 3, padding=1, bias=False),
                bn2=nn.BatchNorm2d(middle),
                activation=nn.LeakyReLU(SLOPE, inplace=True),
                conv2=nn.Conv2d(middle, filters, 3, padding=1, bias=False),
            )
        )
        self.proj_conv = nn.Conv2d(channels, filters, 1, bias=False) if channels != filters else None

    def forward(self, maps: Tensor) -> Tensor:
        """Returns N×filters×H×W."""
        activated = functional.leaky_relu(self.bn1(maps), SLOPE)
        shortcut = maps if self.proj_conv is None else self.proj_conv(activated)
        result: Tensor = self.convs(activated) + shortcut
        return result


def residual_group(channels: int, num_blocks: int, middle: int, filters: int) -> nn.Sequential:
    """Returns residual blocks one after another, named block1, block2 …."""
    incoming = [channels, *[filters] * (num_blocks - 1)]
    blocks = (PreActivationBlock(count, middle, filters) for count in incoming)
    return nn.Sequential(OrderedDict((f"block{number}", each) for number, each in enumerate(blocks, start=1)))


def nearest_block(channels: int, middle: int, filters: int, *after: nn.Module) -> nn.Module:
    """Returns the nearest pixel twice in both directions, two convolutions with ReLU, and ``after``."""
    doubling = nn.Upsample(scale_factor=2, mode="nearest")
    return Block(doubling, ConvRelu(channels, middle), ConvRelu(middle, filters), *after)


BLOCKS: dict[str, Callable[..., nn.Module]] = {"nearest": nearest_block, "deconv": transposed_block}
"""How a block doubles the sides."""
