"""Losses of whole regions: soft Dice (V-Net, https://arxiv.org/abs/1606.04797, plain sums), soft Jaccard, Tversky.

Dice is (2·Σp·y + s) / (Σp + Σy + s) with s = 1 pixel, so that two empty maps give 1 and an empty truth a gentle push;
s stands above and below, where some published codes write 2·(Σp·y + s) above (which passes 1) or s below alone (which
has no logarithm for an empty truth). Jaccard is (Σp·y + s) / (Σy + Σp·(1 - y) + s), which sums the union without a
difference of large numbers. The loss is one minus either, or minus its logarithm. Tversky is
(TP + s) / (TP + a·FP + b·FN + s) with TP = Σp·y, FP = Σp·(1 - y) and FN = Σ(1 - p)·y; its loss is a power of one minus
it. Pixels labelled ``IGNORE`` are in no sum; where nothing counts the loss is 0 with a gradient of 0. Computed in
float32. Knows nothing about tasks, settings and networks.

Shapes: N images, K maps, H×W pixels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from maskloom.records import IGNORE

SMOOTH = 1.0
"""Pixels added to numerator and denominator."""

OverClasses = Literal["mean", "sum", "sum_present"]
"""How exclusive classes come together; see ``soft_jaccard_exclusive``."""

_STRAIGHT = 1e-6
"""Below this the power of one minus Tversky is a straight line to 0, since powers below 1 have no slope there."""


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
    return _mean_loss(ratio, counted.sum(dim=pixels) > 0 if per_image else None, log)


def soft_jaccard(
    probabilities: Tensor,
    labels: Tensor,
    *,
    smooth: float = SMOOTH,
    per_image: bool = False,
    log: bool = False,
) -> Tensor:
    """Returns one minus the mean soft Jaccard, a scalar in [0, 1), or with ``log`` minus the logarithm of that mean.

    Arguments, sums and means as in ``soft_dice``. With ``log`` and a ``smooth`` as small as the published 1e-12, an
    empty truth costs -log(s / (Σp + s)), some 30 and more, until the map is empty to the last pixel, and so does a
    truth that is missed altogether. The loss stays finite all the same, and the gradients on the logits of a single
    map are at most 2 in sum, since those of σ fall with p: an empty truth pushes every pixel down by its share of Σp.
    Where another map of the mean holds something, an empty one adds next to nothing to the logarithm's gradient, and a
    term beside it (BCE) has to teach it.
    Source: https://arxiv.org/abs/1706.06169 (Dstl, 3rd place: BCE - log Jaccard, over the batch, s = 1e-12).
    """
    truth = (labels == 1).to(torch.float32)
    background = (labels == 0).to(torch.float32)
    pixels = (2, 3) if per_image else (0, 2, 3)
    overlap = (probabilities * truth).sum(dim=pixels)
    true = truth.sum(dim=pixels)
    union = true + (probabilities * background).sum(dim=pixels)
    ratio = (overlap + smooth) / (union + smooth)
    return _mean_loss(ratio, true + background.sum(dim=pixels) > 0 if per_image else None, log)


def soft_dice_exclusive(probabilities: Tensor, labels: Tensor, *, smooth: float = SMOOTH) -> Tensor:
    """Returns the mean of one minus soft Dice over the classes that the batch's truth holds, a scalar in [0, 1).

    ``probabilities`` is N×K×H×W float32 (summing to 1 over K), ``labels`` N×H×W of 0…K-1 and IGNORE: multiclass
    tasks. A class without a true pixel in the batch is left out: of a dozen classes most small crops hold a few, and
    the others would only repeat what the present ones say. Its false positives still cost the classes they replace.
    """
    overlap, true, predicted = _exclusive_sums(probabilities, labels)
    return _mean_loss(_ratio(overlap, predicted, true, smooth), true > 0, False)


def soft_jaccard_exclusive(
    probabilities: Tensor,
    labels: Tensor,
    *,
    smooth: float = SMOOTH,
    log: bool = False,
    over_classes: OverClasses = "mean",
) -> Tensor:
    """Returns one minus the soft Jaccard of exclusive classes, or with ``log`` minus its logarithm, a scalar.

    Each class against all others, over the whole batch; arguments as in ``soft_dice_exclusive``. ``over_classes``:

    - "mean": of the mean Jaccard of the classes that the batch's truth holds, the others are left out;
    - "sum": the sum of every class's own loss, over all classes. One without a true pixel costs -log(s / (Σp + s)) with
      ``log``, with gradients on the logits that are at most 2 in sum however small s is. This is the published form
      (TernausNet's loss of several classes, s = 1e-15); it grows with the number of classes, so the weight of the term
      is to be chosen for that: Signate's 22nd place divides it by their number;
    - "sum_present": that sum over the classes that the truth holds.
    """
    overlap, true, predicted = _exclusive_sums(probabilities, labels)
    # Two sums in which the overlap is contained may round below it; the union is never below the truth.
    union = true + (predicted - overlap).clamp(min=0)
    ratio = (overlap + smooth) / (union + smooth)
    if over_classes == "mean":
        return _mean_loss(ratio, true > 0, log)
    if over_classes == "sum_present":
        ratio = ratio.where(true > 0, 1)
    return -ratio.log().sum() if log else (1 - ratio).sum()


def tversky(
    probabilities: Tensor,
    labels: Tensor,
    *,
    false_positives: float,
    false_negatives: float,
    power: float = 1.0,
    smooth: float = SMOOTH,
    per_image: bool = False,
) -> Tensor:
    """Returns the mean of (1 - Tversky) to the ``power``, a scalar in [0, 1).

    Arguments, sums and means as in ``soft_dice``, but that the power is taken of every map (and image) by itself.
    ``false_positives`` and ``false_negatives`` are a and b: 0.5 and 0.5 make it Dice (with 2·s for s), 1 and 1 Jaccard;
    0.3 and 0.7 are those of Salehi et al., https://arxiv.org/abs/1706.05721, who find more small objects so. A power of
    0.75 is the focal Tversky loss of Abraham and Khan, https://arxiv.org/abs/1810.07842 (their γ = 4/3, of which they
    take 1 / γ). Below 1e-6 powers other than 1 are continued by a straight line to 0, so that gradients stay finite.
    """
    truth = (labels == 1).to(torch.float32)
    background = (labels == 0).to(torch.float32)
    pixels = (2, 3) if per_image else (0, 2, 3)
    wrong = false_positives * (probabilities * background).sum(dim=pixels)
    wrong = wrong + false_negatives * ((1 - probabilities) * truth).sum(dim=pixels)
    losses = _power(wrong / ((probabilities * truth).sum(dim=pixels) + wrong + smooth), power)
    if not per_image:
        return losses.mean()
    present = ((truth + background).sum(dim=pixels) > 0).to(torch.float32)
    return (losses * present).sum() / present.sum().clamp(min=1)


def tversky_exclusive(
    probabilities: Tensor,
    labels: Tensor,
    *,
    false_positives: float,
    false_negatives: float,
    power: float = 1.0,
    smooth: float = SMOOTH,
) -> Tensor:
    """Returns the mean of (1 - Tversky) to the ``power`` over the classes that the truth holds, a scalar in [0, 1).

    Each class against all others, over the whole batch; what is left out as in ``soft_dice_exclusive``, the other
    arguments as in ``tversky``.
    """
    overlap, true, predicted = _exclusive_sums(probabilities, labels)
    wrong = false_positives * (predicted - overlap).clamp(min=0) + false_negatives * (true - overlap).clamp(min=0)
    losses = _power(wrong / (overlap + wrong + smooth), power)
    present = (true > 0).to(torch.float32)
    return (losses * present).sum() / present.sum().clamp(min=1)


def _exclusive_sums(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns per class, float32 K: Σp·y, Σy and Σp over the pixels that count."""
    valid = labels != IGNORE
    # One pass over the probability of the true class instead of a one-hot copy of the labels.
    of_truth = probabilities.gather(1, labels.long().where(valid, 0)[:, None])[:, 0]
    masks = [labels == index for index in range(probabilities.shape[1])]
    overlap = torch.stack([(of_truth * mask).sum() for mask in masks])
    true = torch.stack([mask.sum() for mask in masks]).to(torch.float32)
    predicted = (probabilities * valid[:, None]).sum(dim=(0, 2, 3))
    return overlap, true, predicted


def _ratio(overlap: Tensor, predicted: Tensor, true: Tensor, smooth: float) -> Tensor:
    return (2 * overlap + smooth) / (predicted + true + smooth)


def _mean_loss(ratio: Tensor, present: Tensor | None, log: bool) -> Tensor:
    """Returns one minus the mean ratio, or minus its logarithm; where nothing is ``present`` (bool, None: all), 0."""
    if present is None:
        return -ratio.mean().log() if log else (1 - ratio).mean()
    counts = present.to(torch.float32)
    num_present = counts.sum()
    if not log:
        return ((1 - ratio) * counts).sum() / num_present.clamp(min=1)
    mean = (ratio * counts).sum() / num_present.clamp(min=1)
    return -mean.where(num_present > 0, 1).log()


def _power(values: Tensor, power: float) -> Tensor:
    """Returns values of at least 0 to a power, with a finite slope everywhere."""
    if power == 1:
        return values
    line = values * _STRAIGHT ** (power - 1)
    return values.clamp(min=_STRAIGHT).pow(power).where(values >= _STRAIGHT, line)
