"""An encoder of timm or segmentation-models-pytorch inside a published network, and its maps at 1/2 … 1/32.

The map at 1/s of an image of H×W pixels (multiples of 32) is exactly H/s×W/s, and its unit (i, j) is centred at pixel
(s·i, s·j), as in a ResNet. timm's Inceptions convolve and pool without padding, so their maps are smaller than that
and begin inside the image. They are shown the image continued by its border pixels, 37 before and 6 after, and what
their maps then have too much of is cut off: the first unit of the map at 1/32 is centred at the 37th pixel, and
H + 43 rows give H/32 of its units. Away from the border this is what padding every layer would give, from the
encoder as it was trained.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from maskloom.models.encoders import NetworkSettings, resolve

UNPADDED = ("inception_v3", "inception_resnet_v2")
"""Encoders of timm whose strided layers have no padding; all lose the same."""

BEFORE, AFTER = 37, 6
"""Pixels by which their image is continued at the top and left, and at the bottom and right."""

SURPLUS = (17, 7, 3, 1, 0)
"""Units cut off at the top and left of their maps at 1/2, 1/4 … 1/32; the rest at the bottom and right."""


def build_encoder(settings: NetworkSettings) -> Any:
    """Returns the encoder with random weights, as segmentation-models-pytorch wraps it; see ``feature_maps``."""
    from maskloom.models import torchvision_guard

    torchvision_guard.ensure()
    from segmentation_models_pytorch.encoders import get_encoder

    return get_encoder(resolve(settings.encoder), in_channels=settings.channels, depth=5, weights=None)


def feature_maps(encoder: Any, images: Tensor, *, unpadded: bool) -> list[Tensor]:
    """Returns the encoder's maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of the images (N×C×H×W, sides multiples of 32)."""
    if not unpadded:
        return list(encoder(images)[1:])
    height, width = images.shape[-2:]
    maps = encoder(functional.pad(images, (BEFORE, AFTER, BEFORE, AFTER), mode="replicate"))[1:]
    return [
        each[..., start : start + height // stride, start : start + width // stride]
        for each, start, stride in zip(maps, SURPLUS, (2, 4, 8, 16, 32), strict=True)
    ]
