"""ResNet for the published networks over it, with torchvision's names and shapes, in any width.

Source: https://arxiv.org/abs/1512.03385, with the stride in a bottleneck's 3×3 convolution, as torchvision has it.
"""

from __future__ import annotations

from torch import Tensor, nn

from maskloom.models.encoders import NetworkSettings

BLOCKS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
"""Residual blocks in each of the four stages."""

FILTERS = (64, 128, 256, 512)
FEWEST_FILTERS = 16
"""Of any stage, however small the width: of fewer maps in channels-last order, the backward pass of a strided 1×1
convolution (a shortcut) writes past its memory on CPUs, in torch 2.13 with oneDNN."""
NUM_CLASSES = 1000


class BasicBlock(nn.Module):
    """Two convolutions 3×3 beside a shortcut."""

    expansion = 1

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, filters, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(channels, filters, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Returns N×filters×H/stride×W/stride."""
        result = self.relu(self.bn1(self.conv1(maps)))
        result = self.bn2(self.conv2(result))
        shortened = maps if self.downsample is None else self.downsample(maps)
        joined: Tensor = self.relu(result + shortened)
        return joined


class Bottleneck(nn.Module):
    """Convolutions 1×1, 3×3 and 1×1 beside a shortcut; four times as many maps as filters."""

    expansion = 4

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        wide = filters * self.expansion
        self.conv1 = nn.Conv2d(channels, filters, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.conv3 = nn.Conv2d(filters, wide, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(wide)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(channels, wide, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Returns N×4·filters×H/stride×W/stride."""
        result = self.relu(self.bn1(self.conv1(maps)))
        result = self.relu(self.bn2(self.conv2(result)))
        result = self.bn3(self.conv3(result))
        shortened = maps if self.downsample is None else self.downsample(maps)
        joined: Tensor = self.relu(result + shortened)
        return joined


def shortcut(channels: int, filters: int, stride: int) -> nn.Module | None:
    """Returns the 1×1 convolution that brings the shortcut to the block's shape, or None where it has it already."""
    if stride == 1 and channels == filters:
        return None
    return nn.Sequential(nn.Conv2d(channels, filters, 1, stride=stride, bias=False), nn.BatchNorm2d(filters))


def residual_stage(
    block: type[BasicBlock | Bottleneck], channels: int, filters: int, num_blocks: int, *, stride: int
) -> nn.Sequential:
    """Returns residual blocks one after another, the first with the stride."""
    layers = nn.Sequential(block(channels, filters, stride))
    for _ in range(1, num_blocks):
        layers.append(block(filters * block.expansion, filters, 1))
    return layers


class ResNet(nn.Module):
    """The layers of a ResNet, which the networks over it call by themselves."""

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        block: type[BasicBlock | Bottleneck] = (
            BasicBlock if settings.encoder in ("resnet18", "resnet34") else Bottleneck
        )
        filters = [max(settings.scaled(count), FEWEST_FILTERS) for count in FILTERS]
        self.widths = tuple(count * block.expansion for count in filters)
        self.conv1 = nn.Conv2d(settings.channels, filters[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(filters[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        counts = BLOCKS[settings.encoder]
        self.layer1 = residual_stage(block, filters[0], filters[0], counts[0], stride=1)
        self.layer2 = residual_stage(block, self.widths[0], filters[1], counts[1], stride=2)
        self.layer3 = residual_stage(block, self.widths[1], filters[2], counts[2], stride=2)
        self.layer4 = residual_stage(block, self.widths[2], filters[3], counts[3], stride=2)
        self.fc = nn.Linear(self.widths[3], NUM_CLASSES)
        """Names ImageNet's classes; unused, but part of the published state dicts."""
