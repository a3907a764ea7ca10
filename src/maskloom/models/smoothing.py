"""Bands smoothed by Gaussians, as ``cv2.GaussianBlur`` smooths float images, how much they vary below these, and both.

Sums are written out tap by tap: no convolution, whose precision, order and algorithm depend on the device. Taps that
lie opposite are added first, so that the eight symmetries change a result by no more than rounding. Knows nothing about
images and what smoothed bands are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from maskloom.models.tree_settings import TreeSettings, radius

NOISE = 1e-3
"""Of the mean: surroundings that vary by less are even, and what is told apart in them is rounding."""


@lru_cache(maxsize=256)
def half_kernel(sigma: float) -> tuple[float, ...]:
    """Returns the weights of a pixel and of those 1, 2 … pixels beside it; both sides together they add up to 1."""
    distances = torch.arange(radius(sigma) + 1, dtype=torch.float64)
    weights = torch.exp(-(distances**2) / (2 * sigma * sigma))
    return tuple((weights / (2 * weights.sum() - weights[0])).tolist())


def mirrored(start: int, stop: int, length: int, device: torch.device) -> Tensor:
    """Returns the indices int64 in [0, length) of the pixels from ``start`` to ``stop``, however far these lie outside.

    Beyond the outermost pixel centres they are mirrored about these (reflect-101).
    """
    period = max(2 * (length - 1), 1)
    places = torch.arange(start, stop, device=device).remainder(period)
    return torch.minimum(places, period - places) if length > 1 else torch.zeros_like(places)


def smoothed(images: Tensor, sigmas: Sequence[float], reach: int) -> Tensor:
    """Returns N×(sigmas · C)×h×w of images N×C×(h + 2 · reach)×(w + 2 · reach), as exact: all bands per Gaussian.

    ``reach`` is at least the radius of each Gaussian; a sigma of 0 gives the bands as they are.
    """
    height, width = images.shape[-2] - 2 * reach, images.shape[-1] - 2 * reach
    planes = []
    for sigma in sigmas:
        far = radius(sigma) if sigma else 0
        around = images[..., reach - far : reach + far + height, reach - far : reach + far + width]
        planes.append(_along(_along(around, sigma, -1), sigma, -2) if sigma else around)
    return torch.cat(planes, dim=1)


def deviations(images: Tensor, sigmas: Sequence[float], reach: int) -> Tensor:
    """Returns the standard deviation of every band below Gaussians, sizes and order as those of ``smoothed``."""
    return _moments(images.double(), sigmas, reach)[1].float()


def contrasts(images: Tensor, sigmas: Sequence[float], around: Sequence[float], reach: int) -> Tensor:
    """Returns N×(around · sigmas · C)×h×w: by how many deviations smoothed bands lie above the mean of surroundings.

    ``around`` are the Gaussians of these. Per Gaussian of the surroundings all smoothed bands, in their order. What
    varies by less than ``NOISE`` of its mean counts as varying by so much; where all is 0, the contrast is.
    """
    values = images.double()
    near = smoothed(values, sigmas, reach)
    planes = []
    for sigma in around:
        mean, deviation = (each.repeat(1, len(sigmas), 1, 1) for each in _moments(values, (sigma,), reach))
        unit = deviation + NOISE * mean.abs()
        planes.append(torch.where(unit > 0, (near - mean) / unit, 0.0).float())
    return torch.cat(planes, dim=1)


def _moments(values: Tensor, sigmas: Sequence[float], reach: int) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation below Gaussians of float64 values.

    The second is the root of the smoothed squares less the square of the smoothed values, a small difference of large
    numbers.
    """
    mean, squares = smoothed(values, sigmas, reach), smoothed(values * values, sigmas, reach)
    return mean, (squares - mean * mean).clamp_(min=0).sqrt_()


def features(images: Tensor, settings: TreeSettings) -> Tensor:
    """Returns what trees look at: float32 N×(planes · C)×h×w of float32 images as ``smoothed`` takes them, finite."""
    planes = [smoothed(images, settings.sigmas, settings.reach)]
    if settings.deviations:
        planes.append(deviations(images, settings.deviations, settings.reach))
    if settings.contrasts:
        planes.append(contrasts(images, settings.sigmas, settings.contrasts, settings.reach))
    return torch.cat(planes, dim=1) if len(planes) > 1 else planes[0]


def _along(values: Tensor, sigma: float, axis: int) -> Tensor:
    """Returns the values smoothed along an axis, at whose both ends the Gaussian's radius is lost."""
    weights = half_kernel(sigma)
    far = len(weights) - 1
    length = values.shape[axis] - 2 * far
    total = values.narrow(axis, far, length) * weights[0]
    for distance, weight in enumerate(weights[1:], start=1):
        both = values.narrow(axis, far - distance, length) + values.narrow(axis, far + distance, length)
        total.add_(both, alpha=weight)
    return total
