"""Losses that judge every pixel by itself: binary cross-entropy and cross-entropy, with labels that may be ignored.

All are means over the pixels (and maps) that count, computed in float32. Where nothing counts they are 0 with a
gradient of 0. Labels are uint8 with ``IGNORE``. Knows nothing about tasks, settings and networks.

Shapes: N images, K maps, H×W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from maskloom.records import IGNORE


def bce(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0, weights: Tensor | None = None) -> Tensor:
    """Returns the mean of -y·log σ(x) - (1 - y)·log(1 - σ(x)) over the labels that count, a scalar.

    ``logits`` and ``labels`` (0, 1, IGNORE) are N×K×H×W; ``label_smoothing`` s in [0, 1) replaces the targets 0 and 1
    by s/2 and 1 - s/2. With ``weights`` (N×K×H×W float32, at least 0, and 0 where the label is IGNORE) it is the
    weighted mean Σ w·bce / Σ w over the whole batch, not per image.
    """
    counted = (labels != IGNORE).to(torch.float32) if weights is None else weights
    targets = (labels == 1).to(torch.float32)
    if label_smoothing:
        targets = targets * (1 - label_smoothing) + label_smoothing / 2
    losses = functional.binary_cross_entropy_with_logits(logits.float(), targets, weight=counted, reduction="sum")
    count = counted.sum()
    return losses / count.where(count > 0, torch.inf)


def cross_entropy(
    log_probabilities: Tensor,
    labels: Tensor,
    *,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Returns the mean of -log p(true class) over the pixels that count, a scalar.

    ``log_probabilities`` is N×K×H×W float32 (log-softmax over K, which another term may share), ``labels`` N×H×W of
    0…K-1 and IGNORE. With ``class_weights`` (one per class) it is the mean weighted by the true class's weight;
    ``label_smoothing`` s takes 1 - s of the true class and s/K of every class. Equal to torch's ``cross_entropy``.
    """
    num_classes = log_probabilities.shape[1]
    weights = None
    if class_weights is not None:
        weights = torch.tensor(class_weights, dtype=torch.float32, device=log_probabilities.device)
    valid = labels != IGNORE
    losses = functional.nll_loss(log_probabilities, labels.long(), weight=weights, ignore_index=IGNORE, reduction="sum")
    if label_smoothing:
        weighted = log_probabilities if weights is None else log_probabilities * weights[:, None, None]
        spread = -(weighted.sum(dim=1) * valid).sum() / num_classes
        losses = (1 - label_smoothing) * losses + label_smoothing * spread
    if weights is None:
        return losses / valid.sum().clamp(min=1)
    # IGNORE is beyond the weights, so ignored pixels borrow class 0 and are then left out.
    count = (weights[labels.long().where(valid, 0)] * valid).sum()
    return losses / count.where(count > 0, torch.inf)
