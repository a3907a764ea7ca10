"""Cross-entropy on the hardest pixels of exclusive classes (online hard example mining, OHEM).

Which pixels are hard is judged by their loss without class weights, in each image by itself: so a batch is worth as
much as its images one after the other. Source: Shrivastava et al., https://arxiv.org/abs/1604.03540, in the form that
segmentation uses: all pixels whose true class gets less than a given probability (0.7), but never fewer than a given
number. Computed in float32. Knows nothing about tasks, settings and networks.

Shapes: N images, K classes, H×W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from maskloom.records import IGNORE


def hardest_cross_entropy(
    log_probabilities: Tensor,
    labels: Tensor,
    *,
    fraction: float | None = None,
    threshold: float = 0.3,
    least: int = 1,
    class_weights: Sequence[float] | None = None,
) -> Tensor:
    """Returns the mean of -log p(true class) over each image's hardest pixels, a scalar.

    ``log_probabilities`` is N×K×H×W float32 (log-softmax over K), ``labels`` N×H×W of 0…K-1 and IGNORE. With
    ``fraction`` in (0, 1] that share of the pixels that count is taken, to the nearest whole number and at least one;
    else those with 1 - p(true class) above ``threshold`` in [0, 1), and where these are fewer than ``least``, the
    ``least`` hardest ones (all, where no more count). Of equal losses at the limit the first pixels are taken. The mean
    is over all that were taken in the batch, with ``class_weights`` the one weighted by the true class's weight; 0 with
    a gradient of 0 where nothing counts.
    """
    valid = labels != IGNORE
    places = labels.long().where(valid, 0)
    losses = -log_probabilities.gather(1, places[:, None])[:, 0]
    # Losses are at least 0: what does not count comes last.
    ordered, order = losses.where(valid, -1.0).flatten(1).sort(dim=1, descending=True, stable=True)
    count = valid.flatten(1).sum(dim=1)
    if fraction is not None:
        number = (count * fraction).round().long().clamp(min=1)
    else:
        number = (ordered > -math.log1p(-threshold)).sum(dim=1).clamp(min=least)
    ranks = torch.arange(ordered.shape[1], device=ordered.device)
    weights = (ranks < torch.minimum(number, count)[:, None]).to(torch.float32)
    if class_weights is not None:
        table = torch.tensor(class_weights, dtype=torch.float32, device=ordered.device)
        weights = weights * table[places].flatten(1).gather(1, order)
    total = weights.sum()
    return (ordered * weights).sum() / total.where(total > 0, torch.inf)
