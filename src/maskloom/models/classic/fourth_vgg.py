"""What the 4th place in Kaggle's Carvana challenge made of VGG16: a U-Net of seven stages, and one frozen stage.

Three stages are VGG16's, four follow with filters of their own; the way up is by transposed convolutions, each
followed by one convolution, all with bias and ReLU and without batch normalisation.
Source: https://github.com/killthekitten/kaggle-carvana-2017.
"""

from __future__ import annotations

import warnings
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskloom.models import pretrained
from maskloom.models.classic.layers import ConvRelu, check_sides, he_normal, joined
from maskloom.models.classic.vgg import VGG_FILTERS, vgg_features
from maskloom.models.encoders import NetworkSettings, multiple_of

NUM_VGG_LAYERS = 16
"""Layers of VGG16's first three stages as torchvision counts them, the pooling after the third left out."""

LOWER_FILTERS = (384, 512, 512, 512)
"""Filters of stages 4 … 7."""

UP_FILTERS = (384, 256, 192, 128, 64, 32)
"""Filters of the decoder, coarsest first."""


class VggUnet7(nn.Module):
    """U-Net of seven stages, six poolings deep; sides are multiples of 32.

    Where the sides are no multiples of 64, the last pooling rounds up, and what comes up from there is cut to the size
    of the maps it is joined with.
    """

    def __init__(self, settings: NetworkSettings, num_maps: int) -> None:
        super().__init__()
        self.multiple = multiple_of(settings)
        layers, stages = vgg_features(settings)
        self.encoder = nn.Sequential(*list(layers)[:NUM_VGG_LAYERS])
        skips = [stage[-1].out_channels for stage in stages[:3]]
        self.lower = nn.ModuleList()
        for count in (settings.scaled(count) for count in LOWER_FILTERS):
            self.lower.append(nn.Sequential(ConvRelu(skips[-1], count), ConvRelu(count, count)))
            skips.append(count)
        channels = skips.pop()
        self.decoder = nn.ModuleList()
        for count in (settings.scaled(count) for count in UP_FILTERS):
            self.decoder.append(UpStage(channels, skips.pop(), count))
            channels = count
        self.dropout = nn.Dropout2d(settings.dropout or 0.0)
        self.head = nn.Conv2d(channels, num_maps, 1)
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits N×maps×H×W."""
        check_sides(images, self.multiple)
        *skips, maps = self.encode(images)
        for stage in self.decoder:
            maps = stage(maps, skips.pop())
        logits: Tensor = self.head(self.dropout(maps))
        return logits

    def encode(self, images: Tensor) -> list[Tensor]:
        """Returns the maps of the seven stages before they are pooled, finest first."""
        stages = []
        maps = images
        for layer in self.encoder:
            if isinstance(layer, nn.MaxPool2d):
                stages.append(maps)
            maps = layer(maps)
        stages.append(maps)
        for stage in self.lower:
            stages.append(stage(functional.max_pool2d(stages[-1], 2, ceil_mode=True)))
        return stages


class UpStage(nn.Module):
    """Doubles the sides by a transposed convolution, joins the maps of that size, and convolves once."""

    def __init__(self, channels: int, skip: int, filters: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, filters, 3, stride=2)
        self.convolution = ConvRelu(filters + skip, filters)

    def forward(self, coarse: Tensor, finer: Tensor) -> Tensor:
        """Returns N×filters×H×W for finer maps N×C×H×W.

        The transposed convolution gives one row and one column more than twice as many; the last are cut off, as
        TensorFlow does under the padding "same".
        """
        height, width = finer.shape[-2:]
        doubled = functional.relu(self.up(coarse)[..., :height, :width])
        maps: Tensor = self.convolution(joined(doubled, finer))
        return maps


class FrozenStage(nn.Sequential):
    """The two convolutions of VGG16's first stage at full size, 64 maps: never trained, always in evaluation mode."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for filters in VGG_FILTERS["vgg16"][0]:
            self.append(nn.Conv2d(channels, filters, 3, padding=1)).append(nn.ReLU(inplace=True))
            channels = filters
        self.num_maps = channels
        he_normal(self)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Returns this stage, in evaluation mode whatever is asked."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Returns N×64×H×W, which no gradient goes through."""
        maps = images
        with torch.no_grad():
            for layer in self:
                maps = layer(maps)
        return maps


def frozen_stage(settings: NetworkSettings) -> FrozenStage:
    """Returns the stage with the hub's ImageNet weights where ``settings.weights`` names the hub, else random ones.

    A file holds the weights of the network's own encoder only, so any but "hub" and "none" is said aloud to leave this
    stage random. Raises ``UserError`` when the hub cannot be reached.
    """
    stage = FrozenStage(settings.channels)
    if settings.weights == "hub":
        stage.load_state_dict(_hub_weights(settings.channels))
    elif settings.weights != "none":
        warnings.warn(
            f"network.weights: {settings.weights!r} has no weights of the frozen VGG16 stage, its filters stay random; "
            "state weights=hub, or start from a bundle",
            stacklevel=2,
        )
    return stage


def _hub_weights(channels: int) -> dict[str, Tensor]:
    """Returns the tensors of VGG16's first stage under the stage's own names."""
    from segmentation_models_pytorch.encoders import get_encoder

    with torch.random.fork_rng(devices=[]):
        whole = get_encoder("vgg16", in_channels=channels, depth=1, weights=None)
        pretrained.load(whole, "vgg16", pretrained.Source(kind="hub"), channels)
    state = {name.removeprefix("features."): tensor for name, tensor in whole.state_dict().items()}
    return {name: tensor for name, tensor in state.items() if name.startswith(("0.", "2."))}
