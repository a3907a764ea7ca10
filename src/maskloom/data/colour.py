"""Colour changes of float32 batches N×C×H×W: tone (an affine map of the colours), shifts in HSV, grey areas.

All work element by element, so that a sample's result never depends on the rest of its batch. Tone comes first and
the HSV shift is exact, not a rotation in YIQ: ranges given in OpenCV's 8-bit units then mean what they meant there.
Integer images are kept inside their range.
"""

from __future__ import annotations

import torch
from torch import Tensor

FULL_SCALE: dict[torch.dtype, float | None] = {torch.uint8: 255.0, torch.uint16: 65535.0, torch.float32: None}
"""The largest value by the dtype that the images were stored in; None: not bounded."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""


def tone(images: Tensor, means: Tensor, factors: Tensor, full: float | None) -> Tensor:
    """Returns the images with brightness, contrast and chroma multiplied by ``factors`` (N×3).

    One affine map: gain·(chroma·x + (1 - chroma)·luma) + offset, with gain = brightness·contrast and the offset that
    keeps the image's mean luma (``means``, N) under contrast. Images of other than three channels keep their chroma.
    """
    brightness, contrast, chroma = (part.view(-1, 1, 1, 1) for part in factors.unbind(dim=1))
    gain = brightness * contrast
    offset = (1 - contrast) * brightness * means.view(-1, 1, 1, 1)
    if images.shape[1] == 3:
        grey = _luma(images).unsqueeze(1).mul_(gain * (1 - chroma)).add_(offset)
        result = images.mul(gain * chroma).add_(grey)
    else:
        result = images.mul(gain).add_(offset)
    return result if full is None else result.clamp_(0, full)


def _luma(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(dim=1)
    return red.mul(LUMA[0]).add_(green.mul(LUMA[1])).add_(blue.mul(LUMA[2]))


def grey_where(images: Tensor, area: Tensor) -> Tensor:
    """Returns RGB images with luma instead of colour where ``area`` (bool N×1×H×W) is true.

    Images of other than three channels stay as they are.
    """
    if images.shape[1] != 3:
        return images
    return torch.where(area, _luma(images).unsqueeze(1), images)


def mean_luma(images: Tensor) -> Tensor:
    """Returns the mean luma of each image, float32 N; the mean of all channels where there are not three.

    Sums of stored integers are exact in float64, so that no order of summation shows.
    """
    sums = images.sum(dim=(2, 3), dtype=torch.float64) / (images.shape[2] * images.shape[3])
    if images.shape[1] != 3:
        return sums.mean(dim=1).float()
    return (sums[:, 0] * LUMA[0] + sums[:, 1] * LUMA[1] + sums[:, 2] * LUMA[2]).float()


def shift_hsv(images: Tensor, shifts: Tensor, full: float | None) -> Tensor:
    """Returns RGB images with ``shifts`` (N×3) added to hue, saturation and value.

    Units are OpenCV's for 8 bits: hue 180 to the circle, saturation and value 255 to full. Hue turns around,
    saturation and value are cut off at 0 and full; pixels without saturation stay grey (OpenCV would tint them red).
    Floats count as 0…1. Images of other than three channels only have the value added to each channel.
    """
    top = full or 1.0
    hue, saturation, value = (part.view(-1, 1, 1) for part in shifts.unbind(dim=1))
    if images.shape[1] != 3:
        return images.add(value.unsqueeze(1) * (top / 255)).clamp_(0, top)
    red, green, blue = images.unbind(dim=1)
    brightest = torch.maximum(torch.maximum(red, green), blue)
    spread = brightest - torch.minimum(torch.minimum(red, green), blue)
    sector = _hue(red, green, blue, brightest, spread).add_(hue / 30)  # six sectors to the circle
    new_spread = (spread / brightest.clamp(min=1e-12)).add_(saturation / 255).clamp_(0, 1)
    new_spread.mul_(spread > 0)
    new_value = brightest.add(value * (top / 255)).clamp_(0, top)
    new_spread.mul_(new_value)
    result = torch.empty_like(images)
    for channel, start in enumerate((5.0, 3.0, 1.0)):
        place = sector + start
        place.sub_(place.div(6).floor_().mul_(6))
        weight = torch.minimum(place, place.neg().add_(4)).clamp_(0, 1)
        torch.sub(new_value, weight.mul_(new_spread), out=result[:, channel])
    return result


def _hue(red: Tensor, green: Tensor, blue: Tensor, brightest: Tensor, spread: Tensor) -> Tensor:
    """Returns the hue in sectors of 60 degrees, -1…5; 0 for grey."""
    is_red, is_green = brightest == red, brightest == green
    first = torch.where(is_red, green, torch.where(is_green, blue, red))
    second = torch.where(is_red, blue, torch.where(is_green, red, green))
    corner = torch.where(is_red, 0.0, torch.where(is_green, 2.0, 4.0))
    return (first - second).div_(spread.clamp(min=1e-12)).add_(corner)
