"""Weights of exclusive classes by how frequent they are in the images that are learnt from.

A loss states a rule by name, so that a recipe stays data; the numbers follow once the pixels of every class have been
counted. Knows nothing about files, folds and networks, and imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Balance = Literal["median_frequency", "root_frequency", "log_frequency"]
"""median_frequency: the median of all classes' frequencies over the class's own, where a frequency is the share of the
class in the images that show it (Eigen and Fergus, https://arxiv.org/abs/1411.4734). root_frequency: the square root of
that. log_frequency: 1 / ln(1.02 + the class's share of all pixels) (ENet, https://arxiv.org/abs/1606.02147)."""

LOG_OFFSET = 1.02
"""As published: it keeps ENet's weights between 1.4 and 50."""


def class_weights(
    rule: Balance, class_pixels: Sequence[Sequence[int]], valid_pixels: Sequence[int], *, limit: float
) -> tuple[float, ...]:
    """Returns one weight per class, at least 0; their mean over the classes that occur is 1.

    ``class_pixels`` holds for every image the pixels of each class (N×K), ``valid_pixels`` those that count (N). No
    weight is more than ``limit`` times the smallest one. A class that no image shows has 1, and so has every class
    where nothing is shown at all.

    >>> class_weights("median_frequency", [[80, 20], [80, 20]], [100, 100], limit=10.0)
    (0.4, 1.6)
    """
    pixels = np.asarray(class_pixels, np.float64).reshape(len(valid_pixels), -1)
    valid = np.asarray(valid_pixels, np.float64)
    shown = pixels.sum(axis=0)
    present = shown > 0
    weights = np.ones(len(present))
    if present.any():
        if rule == "log_frequency":
            raw = 1 / np.log(LOG_OFFSET + shown[present] / valid.sum())
        else:
            frequency = shown[present] / ((pixels[:, present] > 0) * valid[:, None]).sum(axis=0)
            raw = np.median(frequency) / frequency
            raw = np.sqrt(raw) if rule == "root_frequency" else raw
        raw = np.minimum(raw, limit * raw.min())
        weights[present] = raw / raw.mean()
    return tuple(round(float(weight), 6) for weight in weights)
