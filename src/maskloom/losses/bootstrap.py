"""Losses that trust labels less, or look at the hardest pixels only: bootstrapped cross-entropy and its online form.

Binary cross-entropy in float32 over the pixels (and maps) whose label counts; 0 with a gradient of 0 where nothing
does. Knows nothing about tasks, settings and networks.

Shapes: logits and labels are N×K×H×W (N images, K maps, H×W pixels); labels are uint8 of 0, 1, IGNORE.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from maskloom.records import IGNORE


def bootstrapped_bce(logits: Tensor, labels: Tensor, *, alpha: float, mixture: Literal["soft", "hard"]) -> Tensor:
    """Returns the mean cross-entropy to the targets α·y + (1 - α)·q over all labels that count, a scalar.

    q is the model's own prediction: "soft" p = σ(x), "hard" 1 where p > 0.5, else 0. The gradient of "soft" runs
    through q as well, as in the published code: the second part is then (1 - α) times the entropy of the prediction;
    with q held fixed the loss would be α times the plain one as far as gradients can tell.
    Source: Reed et al., https://arxiv.org/abs/1412.6596; Carvana, 4th place (α = 0.95).
    """
    logits = logits.float()
    valid = (labels != IGNORE).to(torch.float32)
    truth = (labels == 1).to(torch.float32)
    own = logits.sigmoid() if mixture == "soft" else (logits > 0).to(torch.float32)
    targets = alpha * truth + (1 - alpha) * own
    losses = functional.binary_cross_entropy_with_logits(logits, targets, weight=valid, reduction="sum")
    return losses / valid.sum().clamp(min=1)


def online_bootstrapping(logits: Tensor, labels: Tensor, *, hardest: int, threshold: float) -> Tensor:
    """Returns the mean cross-entropy of each image's ``hardest`` pixels whose error exceeds ``threshold``, a scalar.

    The error is |y - p| in [0, 1]. Up to ``hardest`` pixels (over all maps) are taken of every image, and the mean is
    over all that were taken in the batch; an image without such an error adds none. Of equal errors at the limit any
    may be taken.
    Source: Wu et al., https://arxiv.org/abs/1605.06885; Carvana, 4th place (32,768 pixels, 0.3, batches of one image).
    """
    valid = (labels != IGNORE).to(torch.float32)
    truth = (labels == 1).to(torch.float32)
    losses = functional.binary_cross_entropy_with_logits(logits.float(), truth, weight=valid, reduction="none")
    # The cross-entropy is -log(1 - error): the same order, without equal values where the error rounds to 1.
    largest = losses.flatten(1).topk(min(hardest, losses[0].numel()), sorted=False).values
    taken = (largest > -math.log1p(-threshold)).to(torch.float32)
    return (largest * taken).sum() / taken.sum().clamp(min=1)
