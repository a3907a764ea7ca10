"""The 6th place's LinkNets in Kaggle's Carvana challenge: over Inception v3 ("incnet") and over a DenseNet ("dinknet").

The team published names and scores, not code. The decoder is LinkNet's (https://arxiv.org/abs/1707.03718) in the form
that the challenge's 1st place gave it, see ``linknet``: the encoder's maps at 1/16, 1/8 and 1/4 are added to the
decoder's, those at 1/2 are not used again.
"""

from __future__ import annotations

from torch import Tensor, nn

from maskloom.models.classic.features import UNPADDED, build_encoder, feature_maps
from maskloom.models.classic.layers import check_sides, he_normal
from maskloom.models.encoders import NetworkSettings, multiple_of

HEAD_FILTERS = 32


class EncoderLinkNet(nn.Module):
    """LinkNet over any encoder with maps at 1/2 … 1/32; sides are multiples of 32.

    The decoder's maps are as many as the encoder's that they are added to; ``width`` scales what lies between, and
    everything after the last addition.
    """

    def __init__(self, settings: NetworkSettings, num_maps: int) -> None:
        super().__init__()
        self.multiple = multiple_of(settings)
        self.unpadded = settings.encoder in UNPADDED
        self.encoder = build_encoder(settings)
        stem, *channels = self.encoder.out_channels[1:]
        last = settings.scaled(stem)
        self.decoder = nn.ModuleList(
            link_block(coarse, settings.scaled(coarse // 4), finer)
            for coarse, finer in zip(channels[::-1], [*channels[-2::-1], last], strict=True)
        )
        self.head = link_head(last, settings.scaled(HEAD_FILTERS), num_maps)
        he_normal(self.decoder)
        he_normal(self.head)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits N×maps×H×W."""
        check_sides(images, self.multiple)
        _, *skips, maps = feature_maps(self.encoder, images, unpadded=self.unpadded)
        *blocks, last = self.decoder
        for block, skip in zip(blocks, reversed(skips), strict=True):
            maps = block(maps) + skip
        logits: Tensor = self.head(last(maps))
        return logits


def link_block(channels: int, middle: int, filters: int) -> nn.Sequential:
    """Returns LinkNet's decoder block: to ``middle`` maps, to twice the sides, to ``filters`` maps."""
    return nn.Sequential(
        nn.Conv2d(channels, middle, 1),
        nn.BatchNorm2d(middle),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(middle, middle, 3, stride=2, padding=1, output_padding=1),
        nn.BatchNorm2d(middle),
        nn.ReLU(inplace=True),
        nn.Conv2d(middle, filters, 1),
        nn.BatchNorm2d(filters),
        nn.ReLU(inplace=True),
    )


def link_head(channels: int, filters: int, num_maps: int) -> nn.Sequential:
    """Returns the head, from sides h over 2h + 1 and 2h - 1 to 2h."""
    return nn.Sequential(
        nn.ConvTranspose2d(channels, filters, 3, stride=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(filters, filters, 3),
        nn.ReLU(inplace=True),
        nn.Conv2d(filters, num_maps, 2, padding=1),
    )
