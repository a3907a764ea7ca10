"""The depth-6 U-Net that is trained from scratch: "scratch" of the 1st place in Kaggle's Carvana challenge.

Six stages of two convolutions with batch normalisation, 2×2 maximum pooling after each; bilinear up-sampling by 2 that
keeps the corners, as torch did in 2017; three convolutions per stage on the way up.
Source: https://github.com/asanakoy/kaggle_carvana_segmentation.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from maskloom.models.classic.layers import check_sides, joined
from maskloom.models.encoders import NetworkSettings, multiple_of

FILTERS = (32, 64, 128, 256, 512, 1024)
CENTRE = 1024


class ScratchUnet(nn.Module):
    """U-Net of depth 6; sides are multiples of 64."""

    def __init__(self, settings: NetworkSettings, num_maps: int) -> None:
        super().__init__()
        self.multiple = multiple_of(settings)
        filters = [settings.scaled(count) for count in FILTERS]
        centre = settings.scaled(CENTRE)
        incoming = [settings.channels, *filters[:-1]]
        for depth, (channels, count) in enumerate(zip(incoming, filters, strict=True), start=1):
            self.add_module(f"down{depth}", Stage(channels, count, num_layers=2))
        self.center = Layers(filters[-1], centre, num_layers=2)
        below = [*filters[1:], centre]
        for depth in range(len(filters), 0, -1):
            count = filters[depth - 1]
            self.add_module(f"up{depth}", Stage(below[depth - 1] + count, count, num_layers=3))
        self.final = nn.Conv2d(filters[0], num_maps, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits N×maps×H×W."""
        check_sides(images, self.multiple)
        skips = self.encode(images)
        maps = self.center(functional.max_pool2d(skips[-1], 2))
        maps = self.decode(maps, skips)
        logits: Tensor = self.final(maps)
        return logits

    def encode(self, images: Tensor) -> list[Tensor]:
        """Returns the maps of the six stages before they are pooled, finest first."""
        skips: list[Tensor] = []
        for depth in range(1, len(FILTERS) + 1):
            maps = functional.max_pool2d(skips[-1], 2) if skips else images
            skips.append(self.get_submodule(f"down{depth}")(maps))
        return skips

    def decode(self, maps: Tensor, skips: list[Tensor]) -> Tensor:
        """Returns maps at the size of the input; the skip comes first in each concatenation."""
        for depth in range(len(FILTERS), 0, -1):
            doubled = functional.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=True)
            maps = self.get_submodule(f"up{depth}")(joined(skips[depth - 1], doubled))
        return maps


class Stage(nn.Module):
    """The convolutions of one depth, called ``conv``."""

    def __init__(self, channels: int, filters: int, *, num_layers: int) -> None:
        super().__init__()
        self.conv = Layers(channels, filters, num_layers=num_layers)

    def forward(self, maps: Tensor) -> Tensor:
        """Returns N×filters×H×W."""
        result: Tensor = self.conv(maps)
        return result


class Layers(nn.Module):
    """Convolutions 3×3 with bias, each followed by batch normalisation and ReLU."""

    def __init__(self, channels: int, filters: int, *, num_layers: int) -> None:
        super().__init__()
        self.convs = nn.Sequential()
        for number in range(num_layers):
            convolution = nn.Conv2d(channels if number == 0 else filters, filters, 3, padding=1)
            self.convs.append(nn.Sequential(convolution, nn.BatchNorm2d(filters), nn.ReLU(inplace=True)))

    def forward(self, maps: Tensor) -> Tensor:
        """Returns N×filters×H×W."""
        result: Tensor = self.convs(maps)
        return result
