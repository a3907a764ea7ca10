"""Focal loss: cross-entropy in which pixels count less the surer the network is of them.

Of every pixel -(1 - q)^γ·log q, with q the probability of its true class; γ = 0 is plain cross-entropy, 2 is published
(Lin et al., "Focal Loss for Dense Object Detection", https://arxiv.org/abs/1708.02002). The mean is over the pixels
(and maps) that count, or Σ w·loss / Σ w with class weights w, so that γ = 0 gives exactly what ``pixel`` gives; the
paper divides by the number of objects instead, which masks do not have. Computed in float32 from logarithms, so that
neither the sure nor the hopeless lose their gradient to rounding; where nothing counts it is 0 with a gradient of 0.
Knows nothing about tasks, settings and networks.

Shapes: N images, K maps, H×W pixels; labels are uint8 with ``IGNORE``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from maskloom.records import IGNORE

_LEAST = 1e-12
"""1 - q is held so far from 0, where its power has no slope for γ below 1; float32 has nothing between 0 and 6e-8."""


def focal(logits: Tensor, labels: Tensor, *, gamma: float, class_weights: Sequence[float] | None = None) -> Tensor:
    """Returns the focal loss of maps that are decided each for itself, a scalar.

    ``logits`` and ``labels`` (0, 1, IGNORE) are N×K×H×W. ``class_weights`` (one per map) are the weights of the map's
    true pixels, all others weigh 1: α / (1 - α) of the paper, but for a factor that the weighted mean takes away.
    """
    logits = logits.float()
    truth = labels == 1
    counted = (labels != IGNORE).to(torch.float32)
    if class_weights is not None:
        counted = counted * _table(class_weights, logits)[:, None, None].where(truth, 1.0)
    signed = logits.where(truth, -logits)
    # 1 - σ(x) is σ(-x): the factor's logarithm is exact at both ends.
    losses = -(gamma * functional.logsigmoid(-signed)).exp() * functional.logsigmoid(signed)
    count = counted.sum()
    return (losses * counted).sum() / count.where(count > 0, torch.inf)


def focal_exclusive(
    log_probabilities: Tensor, labels: Tensor, *, gamma: float, class_weights: Sequence[float] | None = None
) -> Tensor:
    """Returns the focal loss of exclusive classes, a scalar.

    ``log_probabilities`` is N×K×H×W float32 (log-softmax over K), ``labels`` N×H×W of 0…K-1 and IGNORE;
    ``class_weights`` are one weight per class, that of the true class counts.
    """
    valid = labels != IGNORE
    places = labels.long().where(valid, 0)
    of_truth = log_probabilities.gather(1, places[:, None])[:, 0]
    unsure = (-torch.expm1(of_truth)).clamp(min=_LEAST)
    losses = -unsure.pow(gamma) * of_truth
    counted = valid.to(torch.float32)
    if class_weights is not None:
        counted = counted * _table(class_weights, log_probabilities)[places]
    count = counted.sum()
    return (losses * counted).sum() / count.where(count > 0, torch.inf)


def _table(weights: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(weights, dtype=torch.float32, device=like.device)
