"""Whether stated probabilities hold: exact counts of the 8-bit probabilities that came true, and how far they are off.

Pixels are put into bins of equal width by their probability; of those that were given 0.8, four in five should come
true. Source: C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On Calibration of Modern Neural Networks" (ICML 2017,
arXiv:1706.04599), sections 2 and 3. Counts are whole numbers of every 8-bit value, so those of images add up exactly to
those of the whole. Knows nothing about files and where the maps come from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maskloom.ensembling.thresholds import NUM_VALUES, Histogram, histograms
from maskloom.records import IGNORE, Task

NUM_BINS = 15
"""As in the source. 255 = 15 · 17, so that every bin is of 17 whole 8-bit values (the first one also has 0)."""
_VALUES_PER_BIN = (NUM_VALUES - 1) // NUM_BINS


@dataclass(frozen=True, slots=True)
class Bin:
    """Pixels whose probability lies in (m / 15, (m + 1) / 15], the first bin with 0."""

    pixels: int
    probability: float
    """Their mean probability; NaN without pixels."""
    share: float
    """Of those that came true; NaN without pixels."""


def outcomes(values: np.ndarray, labels: np.ndarray, truth: np.ndarray, task: Task) -> Histogram:
    """Returns the judged pixels of one image per class, whether it came true (0 no, 1 yes) and 8-bit value: int64
    C×2×256.

    Multiclass: a pixel counts once, under the class that ``labels`` H×W chose, with that class's probability (the
    confidence of the source). Else every pixel counts in each map with the probability of "there". ``values`` is uint8
    C×H×W, ``truth`` as for ``histograms``.
    """
    if task.kind != "multiclass":
        return histograms(values, truth, task)
    if not labels.shape == truth.shape == values.shape[1:]:
        raise ValueError(f"maps, labels, truth differ in size: {values.shape[1:]}, {labels.shape}, {truth.shape}")
    judged = truth != IGNORE
    chosen = labels[judged].astype(np.int32)
    confidence = np.take_along_axis(values, labels[None], axis=0)[0][judged]
    codes = (2 * chosen + (chosen == truth[judged])) * NUM_VALUES + confidence
    counts = np.bincount(codes, minlength=2 * NUM_VALUES * task.num_maps)
    return counts.reshape(task.num_maps, 2, NUM_VALUES).astype(np.int64)


def reliability(outcome: NDArray[np.int64]) -> list[Bin]:
    """Returns the 15 bins of one class's outcomes 2×256, lowest probabilities first."""
    pixels, stated, true = _binned(outcome)
    with np.errstate(invalid="ignore"):
        probability, share = stated / pixels / (NUM_VALUES - 1), true / pixels
    bins = zip(pixels.tolist(), probability.tolist(), share.tolist(), strict=True)
    return [Bin(*each) for each in bins]


def calibration_error(outcome: NDArray[np.int64]) -> float:
    """Returns the expected calibration error of one class's outcomes 2×256, in [0, 1]; NaN without pixels.

    The mean over pixels of how far their bin's share of true ones is from its mean probability, equation 3 of the
    source: sum over bins of |bin| / n · |share(bin) - probability(bin)|.
    """
    pixels, stated, true = _binned(outcome)
    if not pixels.sum():
        return float("nan")
    return float(np.abs((NUM_VALUES - 1) * true - stated).sum() / ((NUM_VALUES - 1) * pixels.sum()))


def _binned(outcome: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Returns pixels, the sum of their 8-bit values, and those that came true, of every bin."""
    if outcome.shape != (2, NUM_VALUES) or outcome.dtype != np.int64:
        raise ValueError(f"expected int64 outcomes 2×{NUM_VALUES}, got {outcome.dtype} {outcome.shape}")
    both = outcome.sum(axis=0)

    def summed(counts: NDArray[np.int64]) -> NDArray[np.int64]:
        total: NDArray[np.int64] = counts[1:].reshape(NUM_BINS, _VALUES_PER_BIN).sum(axis=1)
        total[0] += counts[0]
        return total

    return summed(both), summed(both * np.arange(NUM_VALUES)), summed(outcome[1])
