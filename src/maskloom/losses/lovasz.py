"""Lovász losses: the convex extension of the Jaccard loss, on the hinge of logits or on softmax probabilities.

Berman, Triki and Blaschko, "The Lovász-Softmax loss: a tractable surrogate for the optimization of the
intersection-over-union measure in neural networks", CVPR 2018, https://arxiv.org/abs/1705.08790. The pixels of a
region are sorted by their error, largest first; each error counts as much as the Jaccard loss 1 - |∩| / |∪| grows when
this pixel is got wrong after all those before it. Of equal errors the first pixel comes first. A region without a true
pixel costs its largest error.

Pixels labelled ``IGNORE`` are sorted behind all others and count nothing; where nothing counts the loss is 0 with a
gradient of 0. Errors are float32, counts whole numbers, and what an error counts is computed from them in a form that
subtracts no two nearly equal numbers, which the growth of the Jaccard loss of millions of pixels otherwise is.
Every call sorts each region: 1.2 million pixels take some tenths of a second per class on a CPU. Knows nothing about
tasks, settings and networks.

Shapes: N images, K maps, H×W pixels, P pixels in a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskloom.records import IGNORE

_BEHIND = -1.0
"""The error of pixels that do not count: below all that cost something."""


def lovasz_hinge(logits: Tensor, labels: Tensor, *, per_image: bool = True) -> Tensor:
    """Returns the Lovász hinge of maps that are decided each for itself, a scalar.

    ``logits`` and ``labels`` (0, 1, IGNORE) are N×K×H×W. The error of a pixel is 1 - x where it is true and 1 + x where
    it is not, 0 where that is negative. With ``per_image`` a region is a map of one image (as published for binary
    masks), and the mean is over the regions in which anything counts; else it is a map of the whole batch, and all maps
    count.
    """
    logits = logits.float()
    if not per_image:
        logits, labels = logits.transpose(0, 1), labels.transpose(0, 1)
    first = 2 if per_image else 1
    logits, labels = logits.flatten(first).flatten(0, first - 1), labels.flatten(first).flatten(0, first - 1)
    truth, counted = labels == 1, labels != IGNORE
    errors = (1 - logits.where(truth, -logits)).where(counted, _BEHIND)
    values = (errors.relu() * _growth(errors.detach(), truth)).sum(dim=1)
    if not per_image:
        return values.mean()
    return values.sum() / counted.any(dim=1).sum().clamp(min=1)


def lovasz_softmax(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Returns the mean Lovász loss of the classes that the batch's truth holds, a scalar in [0, 1].

    ``probabilities`` is N×K×H×W float32 (summing to 1 over K), ``labels`` N×H×W of 0…K-1 and IGNORE. The error of a
    pixel is 1 - p of a class where it is true, else p; a region is a class in the whole batch. Classes without a true
    pixel are left out, as the paper's experiments do ("present").
    """
    flat = labels.flatten()
    counted = flat != IGNORE
    total, num_present = probabilities.new_zeros(()), probabilities.new_zeros(())
    for index in range(probabilities.shape[1]):  # one after the other: an order of all pixels takes 8 bytes each
        truth = flat == index
        values = probabilities[:, index].flatten()
        errors = (1 - values).where(truth, values).where(counted, _BEHIND)
        present = truth.any().to(torch.float32)
        total = total + present * (errors.relu() * _growth(errors.detach()[None], truth[None])[0]).sum()
        num_present = num_present + present
    return total / num_present.clamp(min=1)


@torch.no_grad()
def _growth(errors: Tensor, truth: Tensor) -> Tensor:
    """Returns what each error counts, float32 R×P: how much the Jaccard loss grows with this pixel; sums to 1 per row.

    ``errors`` is float32 R×P, ``truth`` bool R×P. After i pixels, c of them true, the intersection is T - c and the
    union T + i - c, where T pixels are true. One more true pixel takes 1 from the intersection and leaves the union U:
    the loss grows by 1 / U. One that is not true adds 1 to the union: with the intersection I it grows by
    I / (U·(U - 1)), U the new one. Without any true pixel the first one makes it 1.
    """
    order = errors.sort(dim=1, descending=True, stable=True).indices
    ordered = truth.gather(1, order)
    num_true = truth.sum(dim=1, keepdim=True)
    intersection = num_true - ordered.cumsum(dim=1)
    union = num_true + (~ordered).cumsum(dim=1)
    whole, before = union.to(torch.float32), (union - 1).to(torch.float32)
    of_false = (intersection.to(torch.float32) / whole / before.clamp(min=1)).where(before > 0, 1.0)
    # Unions are 0 only before the first pixel of a region without a true one.
    steps = (1 / whole.clamp(min=1)).where(ordered, of_false)
    return torch.empty_like(steps).scatter_(1, order, steps)
