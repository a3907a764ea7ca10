"""Losses that judge regions as wholes: soft Dice (V-Net, https://arxiv.org/abs/1606.04797, with plain sums).

Dice is (2·Σp·y + s) / (Σp + Σy + s) with s = 1 pixel, so that two empty maps give 1 and an empty truth a gentle push;
s stands above and below, where some published codes write 2·(Σp·y + s) above (which passes 1) or s below alone (which
has no logarithm for an empty truth). The loss is 1 - Dice, or -log(Dice). Pixels labelled ``IGNORE`` are in no sum;
where nothing counts the loss is 0 with a gradient of 0. Computed in float32. Knows nothing about tasks, settings and
networks.

Shapes: N images, K maps, H×W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskloom.records import IGNORE

SMOOTH = 1.0
"""Pixels added to numerator and denominator."""


def soft_dice(
    probabilities: Tensor,
    labels: Tensor,
    *,
    smooth: float = SMOOTH,
    weights: Tensor | None = None,
    per_image: bool = False,
    log: bool = False,
) -> Tensor:
    """Returns one minus the mean soft Dice, a scalar in [0, 1), or with ``log`` minus the logarithm of that mean.

    ``probabilities`` is N×K×H×W float32, ``labels`` N×K×H×W of 0, 1, IGNORE: binary and multilabel tasks. The sums
    run over the whole batch and the mean over maps, of which every one counts, present or not; with ``per_image`` the
    sums run over each image and the mean over the images (and maps) in which anything counts.
    ``weights`` (N×K×H×W float32, at least 0, and 0 where the label is IGNORE) multiply every pixel in all three sums.
    """
    # Float masks: products are three times as fast as torch.where here.
    counted = (labels != IGNORE).to(torch.float32) if weights is None else weights
    truth = (labels == 1).to(torch.float32)
    if weights is not None:
        truth = truth * weights
    pixels = (2, 3) if per_image else (0, 2, 3)
    overlap = (probabilities * truth).sum(dim=pixels)
    predicted = (probabilities * counted).sum(dim=pixels)
    ratio = _ratio(overlap, predicted, truth.sum(dim=pixels), smooth)
    if not per_image:
        return -ratio.mean().log() if log else (1 - ratio).mean()
    present = (counted.sum(dim=pixels) > 0).to(torch.float32)
    num_present = present.sum()
    if not log:
        return ((1 - ratio) * present).sum() / num_present.clamp(min=1)
    mean = (ratio * present).sum() / num_present.clamp(min=1)
    return -mean.where(num_present > 0, 1).log()


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
