"""What a network is built from, by name, and how its encoder sees pixels: settings, names, normalisation.

An encoder is named as timm names it ("tf_efficientnet_lite0", "convnext_tiny.fb_in22k"), or as
segmentation-models-pytorch does where it has its own ("resnet34", "mit_b0"), which comes first. Knows nothing about
weight files (``pretrained``) and nothing about decoders' insides. Imports neither torch nor timm until asked, since
recipes are read with these settings.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

from pydantic import Field

from maskloom.config import Config
from maskloom.errors import UserError, closest

Architecture = Literal["unet", "linknet", "fpn", "pspnet", "deeplabv3plus", "upernet", "segformer"]

MULTIPLE = 32
"""Sides of a network's input are multiples of this many pixels."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

TIMM_PREFIX = "tu-"
"""How segmentation-models-pytorch marks an encoder that timm builds."""


class NetworkSettings(Config):
    """One network: decoder, encoder, where the encoder's weights come from, and the input's channels."""

    architecture: Architecture = "unet"
    """The decoder: U-Net, LinkNet, FPN, PSPNet, DeepLabV3+, UPerNet or SegFormer's."""
    encoder: str = Field(default="tf_efficientnet_lite0", min_length=1, max_length=200)
    """Name in timm or segmentation-models-pytorch."""
    weights: str = "auto"
    """"auto" (installed package, else none and said aloud), "none", "installed", "hub", or the path of a file."""
    channels: int = Field(default=3, ge=1, le=1024)
    """Channels of the input image."""
    decoder_channels: tuple[int, ...] | None = None
    """Width of the decoder: five numbers, deepest first, for the U-Net, one for the others; None for the usual."""
    attention: Literal["scse"] | None = None
    """Attention in the U-Net's decoder (scSE, https://arxiv.org/abs/1808.08127)."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout before the last layer, where the decoder has one (FPN, PSPNet, DeepLabV3+)."""


@cache
def encoder_names() -> tuple[frozenset[str], frozenset[str]]:
    """Returns the names that segmentation-models-pytorch and timm know, in this order."""
    from maskloom.models import torchvision_guard

    torchvision_guard.ensure()
    import timm
    from segmentation_models_pytorch.encoders import get_encoder_names

    # "timm-…" are deprecated aliases of timm's own names.
    own = frozenset(name for name in get_encoder_names() if not name.startswith("timm-"))
    return own, frozenset(timm.list_models()) | frozenset(timm.list_pretrained())


def resolve(encoder: str) -> str:
    """Returns the name under which segmentation-models-pytorch builds this encoder: its own, or timm's with "tu-".

    Raises ``UserError`` with the closest name for one that neither knows.
    """
    own, timm_names = encoder_names()
    if encoder in own:
        return encoder
    name = encoder.removeprefix(TIMM_PREFIX)
    if name in timm_names:
        return TIMM_PREFIX + name
    near = closest(encoder, own | timm_names)
    hint = near if near.startswith("did you mean") else "see timm.list_models() for the names"
    raise UserError(
        f"network.encoder: expected an encoder of timm or segmentation-models-pytorch, found {encoder!r}; {hint}"
    )


def encoder_normalisation(settings: NetworkSettings) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation per input channel that the encoder's weights expect, on the scale 0…1.

    Those of ImageNet where the encoder states none. One channel takes the average of the three; more than three
    repeat them in turn, as the stem's weights do (see ``pretrained``).
    """
    name = resolve(settings.encoder)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    if name.startswith(TIMM_PREFIX):
        import timm

        stated = timm.get_pretrained_cfg(name.removeprefix(TIMM_PREFIX))
        if stated is not None and len(stated.mean) == len(stated.std) == 3:
            mean, std = tuple(stated.mean), tuple(stated.std)
    return _for_channels(mean, settings.channels), _for_channels(std, settings.channels)


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(values[index % len(values)] for index in range(channels))
