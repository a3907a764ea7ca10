"""Deep supervision: coarser maps of a network that is being trained are judged too, beside its own.

Lee et al., "Deeply-Supervised Nets", https://arxiv.org/abs/1409.5185; the factor 0.4 is that of PSPNet's auxiliary
loss, https://arxiv.org/abs/1612.01105. Knows nothing about terms and networks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from maskloom.records import Size

if TYPE_CHECKING:
    from maskloom.losses.terms import Loss, PlainLoss


def deeply_supervised(
    loss: PlainLoss, coarser: Callable[[int], PlainLoss], *, image_height: int, num_maps: int, weight: float
) -> Loss:
    """Returns the loss of logits alone as it is, and of a tuple (logits, coarser ones …) with those added.

    Each of the coarser maps N×≥num_maps×h×w adds ``weight`` times the loss of its first ``num_maps`` against the labels
    at its size, taken from the nearest pixel: not divided by how many there are, as published. ``coarser`` makes that
    loss for images of so many rows, as many of ``image_height`` as the map has of the labels: pixel constants follow.
    With a weight of 0 coarser maps are not looked at.
    """
    at_height = cache(coarser)

    def total(logits: Tensor | tuple[Tensor, ...], labels: Tensor) -> Tensor:
        if isinstance(logits, Tensor):
            return loss(logits, labels)
        own, *others = logits
        value = loss(own, labels)
        for maps in others if weight > 0 else ():
            height, width = maps.shape[-2:]
            rows = max(1, round(image_height * height / labels.shape[-2]))
            value = value + weight * at_height(rows)(maps[:, :num_maps], labels_at(labels, (height, width)))
        return value

    return total


def labels_at(labels: Tensor, size: Size) -> Tensor:
    """Returns labels …×H×W at ``size`` (height, width): of every pixel the one on which its centre falls.

    Where that is the border of two, as half-way down, it is the later one.
    """
    for dim, length in zip((-2, -1), size, strict=True):
        places = torch.arange(length, device=labels.device)
        labels = labels.index_select(dim, (2 * places + 1) * labels.shape[dim] // (2 * length))
    return labels
