"""Losses that judge regions as wholes: soft Dice (V-Net, https://arxiv.org/abs/1606.04797, with plain sums).

Per map over the whole batch: 1 - (2·Σp·y + s) / (Σp + Σy + s), with s = 1 pixel, so that two empty maps give 0 and an
empty truth a gentle push. Pixels labelled ``IGNORE`` are in no sum; where nothing counts the loss is 0 with a gradient
of 0. Computed in float32. Knows nothing about tasks, settings and networks.

Shapes: N images, K maps, H×W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskloom.records import IGNORE

SMOOTH = 1.0
"""Pixels added to numerator and denominator."""


def soft_dice(probabilities: Tensor, labels: Tensor, *, smooth: float = SMOOTH) -> Tensor:
    """Returns the mean over maps of one minus soft Dice, a scalar in [0, 1); every map counts, present or not.

    ``probabilities`` is N×K×H×W float32, ``labels`` N×K×H×W of 0, 1, IGNORE: binary and multilabel tasks.
    """
    valid = (labels != IGNORE).to(torch.float32)  # float masks: products are three times as fast as torch.where here
    truth = (labels == 1).to(torch.float32)
    overlap = (probabilities * truth).sum(dim=(0, 2, 3))
    predicted = (probabilities * valid).sum(dim=(0, 2, 3))
    true = truth.sum(dim=(0, 2, 3))
    return (1 - _ratio(overlap, predicted, true, smooth)).mean()


def soft_dice_exclusive(probabilities: Tensor, labels: Tensor, *, smooth: float = SMOOTH) -> Tensor:
    """Returns the mean of one minus soft Dice over the classes that the batch's truth holds, a scalar in [0, 1).

    ``probabilities`` is N×K×H×W float32 (summing to 1 over K), ``labels`` N×H×W of 0…K-1 and IGNORE: multiclass
    tasks. A class without a true pixel in the batch is left out: of a dozen classes most small crops hold a few, and
    the others would only repeat what the present ones say. Its false positives still cost the classes they replace.
    """
    num_classes = probabilities.shape[1]
    valid = labels != IGNORE
    # One pass over the probability of the true class instead of a one-hot copy of the labels.
    of_truth = probabilities.gather(1, labels.long().where(valid, 0)[:, None])[:, 0]
    masks = [labels == index for index in range(num_classes)]
    overlap = torch.stack([(of_truth * mask).sum() for mask in masks])
    true = torch.stack([mask.sum() for mask in masks]).to(torch.float32)
    predicted = (probabilities * valid[:, None]).sum(dim=(0, 2, 3))
    present = (true > 0).to(torch.float32)
    losses = (1 - _ratio(overlap, predicted, true, smooth)) * present
    return losses.sum() / present.sum().clamp(min=1)


def _ratio(overlap: Tensor, predicted: Tensor, true: Tensor, smooth: float) -> Tensor:
    return (2 * overlap + smooth) / (predicted + true + smooth)
