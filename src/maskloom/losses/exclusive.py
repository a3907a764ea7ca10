"""The loss of exclusive labels (multiclass tasks): the terms over one batch.

The counterpart of ``maps``: the one place that knows which function a term's kind stands for here. The softmax of a
batch is computed once for all terms. Knows nothing about networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from maskloom.losses import boundary, focal, hardest, lovasz, pixel, region

if TYPE_CHECKING:
    from maskloom.losses.terms import LossTerm, PlainLoss


class ExclusiveBatch:
    """Log-probabilities N×K×H×W (float32) and labels N×H×W (uint8) of one batch, and what terms share of them."""

    def __init__(self, logits: Tensor, labels: Tensor) -> None:
        self.log_probabilities = logits.float().log_softmax(dim=1)
        self.labels = labels
        self._probabilities: Tensor | None = None

    @property
    def probabilities(self) -> Tensor:
        """The softmax of the logits."""
        if self._probabilities is None:
            self._probabilities = self.log_probabilities.exp()
        return self._probabilities


def exclusive_loss(terms: Sequence[LossTerm], *, image_height: int) -> PlainLoss:
    """Returns the weighted sum of the terms as a function of logits and labels; see ``terms.build_loss``."""
    weighted = [(term.weight, _evaluator(term, image_height if term.scale_pixels else None)) for term in terms]

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        if logits.shape[:1] + logits.shape[2:] != labels.shape:
            raise ValueError(f"logits {tuple(logits.shape)} do not fit labels {tuple(labels.shape)}")
        batch = ExclusiveBatch(logits, labels)
        total = batch.log_probabilities.new_zeros(())
        for weight, evaluate in weighted:
            total = total + weight * evaluate(batch)
        return total

    return loss


def _evaluator(term: LossTerm, image_height: int | None) -> Callable[[ExclusiveBatch], Tensor]:
    """Returns the term, without its factor, as a function of a batch; None as height scales no pixel constant."""
    weights = term.class_numbers
    match term.kind:
        case "cross_entropy":
            return lambda batch: pixel.cross_entropy(
                batch.log_probabilities,
                batch.labels,
                class_weights=weights,
                label_smoothing=term.label_smoothing,
            )
        case "focal":
            return lambda batch: focal.focal_exclusive(
                batch.log_probabilities, batch.labels, gamma=term.gamma, class_weights=weights
            )
        case "ohem":
            height = boundary.PUBLISHED_HEIGHT if image_height is None else image_height
            least = max(1, round(term.least * (height / boundary.PUBLISHED_HEIGHT) ** 2))
            return lambda batch: hardest.hardest_cross_entropy(
                batch.log_probabilities,
                batch.labels,
                fraction=term.fraction,
                threshold=term.threshold,
                least=least,
                class_weights=weights,
            )
        case "dice":
            return lambda batch: region.soft_dice_exclusive(batch.probabilities, batch.labels, smooth=term.smooth)
        case "jaccard":
            return lambda batch: region.soft_jaccard_exclusive(
                batch.probabilities, batch.labels, smooth=term.smooth, log=term.log, over_classes=term.over_classes
            )
        case "tversky":
            return lambda batch: region.tversky_exclusive(
                batch.probabilities,
                batch.labels,
                false_positives=term.false_positives,
                false_negatives=term.false_negatives,
                power=term.power,
                smooth=term.smooth,
            )
        case "lovasz":
            return lambda batch: lovasz.lovasz_softmax(batch.probabilities, batch.labels)
        case _:
            raise ValueError(f"{term.kind} is for maps that are decided each for itself")
