"""LinkNet over ResNet with the 1st place's head: "linknet" in Kaggle's Carvana challenge.

A decoder block narrows to a quarter of its channels, doubles the sides by a transposed convolution and widens to the
next skip, which is added; the head is a transposed convolution without padding, then a 3×3 and a 2×2 convolution whose
losses of one pixel make up for it. Sources: https://arxiv.org/abs/1707.03718,
https://github.com/asanakoy/kaggle_carvana_segmentation.
"""

from __future__ import annotations

from torch import Tensor, nn

from maskloom.models.classic.layers import check_sides, he_normal
from maskloom.models.classic.resnet import ResNet
from maskloom.models.encoders import NetworkSettings, multiple_of

HEAD_FILTERS = 32


class LinkNet(nn.Module):
    """LinkNet over ResNet18 or ResNet34; sides are multiples of 32."""

    def __init__(self, settings: NetworkSettings, num_maps: int) -> None:
        super().__init__()
        self.multiple = multiple_of(settings)
        resnet = ResNet(settings)
        self.firstconv = resnet.conv1
        self.firstbn = resnet.bn1
        self.firstrelu = resnet.relu
        self.firstmaxpool = resnet.maxpool
        self.encoder1 = resnet.layer1
        self.encoder2 = resnet.layer2
        self.encoder3 = resnet.layer3
        self.encoder4 = resnet.layer4
        widths = resnet.widths
        self.decoder4 = DecoderBlock(widths[3], widths[2])
        self.decoder3 = DecoderBlock(widths[2], widths[1])
        self.decoder2 = DecoderBlock(widths[1], widths[0])
        self.decoder1 = DecoderBlock(widths[0], widths[0])
        head = settings.scaled(HEAD_FILTERS)
        self.finaldeconv1 = nn.ConvTranspose2d(widths[0], head, 3, stride=2)
        self.finalrelu1 = nn.ReLU(inplace=True)
        self.finalconv2 = nn.Conv2d(head, head, 3)
        self.finalrelu2 = nn.ReLU(inplace=True)
        he_normal(self)
        self.finalconv3 = nn.Conv2d(head, num_maps, 2, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits N×maps×H×W."""
        check_sides(images, self.multiple)
        skips = self.encode(images)
        maps = self.decode(skips)
        return self.head(maps)

    def encode(self, images: Tensor) -> list[Tensor]:
        """Returns the maps of the four residual stages, finest first."""
        maps = self.firstmaxpool(self.firstrelu(self.firstbn(self.firstconv(images))))
        first = self.encoder1(maps)
        second = self.encoder2(first)
        third = self.encoder3(second)
        return [first, second, third, self.encoder4(third)]

    def decode(self, skips: list[Tensor]) -> Tensor:
        """Returns maps at half the size of the input; the last block has no skip."""
        maps = self.decoder4(skips[3]) + skips[2]
        maps = self.decoder3(maps) + skips[1]
        maps = self.decoder2(maps) + skips[0]
        result: Tensor = self.decoder1(maps)
        return result

    def head(self, maps: Tensor) -> Tensor:
        """Returns logits of twice the maps' sides: 2h + 1 after the first layer, 2h - 1 after the second, then 2h."""
        maps = self.finalrelu1(self.finaldeconv1(maps))
        maps = self.finalrelu2(self.finalconv2(maps))
        logits: Tensor = self.finalconv3(maps)
        return logits


class DecoderBlock(nn.Module):
    """A convolution 1×1 to a quarter, a transposed one that doubles the sides, and one 1×1, each with norm and ReLU."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        quarter = max(channels // 4, 1)
        self.conv1 = nn.Conv2d(channels, quarter, 1)
        self.norm1 = nn.BatchNorm2d(quarter)
        self.relu1 = nn.ReLU(inplace=True)
        self.deconv2 = nn.ConvTranspose2d(quarter, quarter, 3, stride=2, padding=1, output_padding=1)
        self.norm2 = nn.BatchNorm2d(quarter)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(quarter, filters, 1)
        self.norm3 = nn.BatchNorm2d(filters)
        self.relu3 = nn.ReLU(inplace=True)

    def forward(self, maps: Tensor) -> Tensor:
        """Returns N×filters×2H×2W."""
        maps = self.relu1(self.norm1(self.conv1(maps)))
        maps = self.relu2(self.norm2(self.deconv2(maps)))
        result: Tensor = self.relu3(self.norm3(self.conv3(maps)))
        return result
