"""The loss of a member: a weighted sum of terms, as settings and as one function of logits and labels.

The softmax is computed once for all terms. Imports torch only when a loss is built, since recipes are read with these
settings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from maskloom.config import Config
from maskloom.errors import UserError
from maskloom.records import Task

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[["Tensor", "Tensor"], "Tensor"]
"""Maps logits N×maps×H×W and uint8 labels (N×H×W, or N×maps×H×W for multilabel) to a scalar float32."""


class LossTerm(Config):
    """One term of the sum."""

    kind: Literal["bce", "cross_entropy", "dice"]
    """"bce" for binary and multilabel tasks, "cross_entropy" for multiclass, "dice" for all."""
    weight: float = Field(default=1.0, gt=0)
    """Factor of this term."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Part of the target spread over all classes ("bce" and "cross_entropy")."""
    class_weights: tuple[float, ...] | None = None
    """One weight per class, at least 0 and one above it ("cross_entropy")."""
    smooth: float = Field(default=1.0, gt=0)
    """Pixels added above and below the fraction ("dice")."""


class LossSettings(Config):
    """The terms whose weighted sum is minimised."""

    terms: tuple[LossTerm, ...] = Field(default=(LossTerm(kind="bce"), LossTerm(kind="dice")), min_length=1)


def build_loss(settings: LossSettings, task: Task) -> Loss:
    """Returns the loss: a function of logits N×maps×H×W (any float type) and uint8 labels, giving a float32 scalar.

    Labels are N×H×W for binary and multiclass tasks, N×maps×H×W for multilabel ones; ``IGNORE`` counts nowhere, and
    a batch of nothing else gives 0 with a gradient of 0.
    Raises ``UserError`` for a term or an option that does not fit the task.
    """
    for index, term in enumerate(settings.terms):
        _check(term, task, f"loss.terms.{index}")
    return _exclusive_loss(settings.terms) if task.kind == "multiclass" else _map_loss(settings.terms)


def _map_loss(terms: tuple[LossTerm, ...]) -> Loss:
    """Returns the loss of maps that are decided each for itself (binary, multilabel)."""
    from maskloom.losses import pixel, region

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        logits = logits.float()
        labels = labels[:, None] if labels.ndim == 3 else labels
        if logits.shape != labels.shape:
            raise ValueError(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} differ in shape")
        total = logits.new_zeros(())
        for term in terms:
            if term.kind == "bce":
                value = pixel.bce(logits, labels, label_smoothing=term.label_smoothing)
            else:
                value = region.soft_dice(logits.sigmoid(), labels, smooth=term.smooth)
            total = total + term.weight * value
        return total

    return loss


def _exclusive_loss(terms: tuple[LossTerm, ...]) -> Loss:
    """Returns the loss of exclusive labels (multiclass)."""
    from maskloom.losses import pixel, region

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        if logits.shape[:1] + logits.shape[2:] != labels.shape:
            raise ValueError(f"logits {tuple(logits.shape)} do not fit labels {tuple(labels.shape)}")
        log_probabilities = logits.float().log_softmax(dim=1)
        total = log_probabilities.new_zeros(())
        for term in terms:
            if term.kind == "cross_entropy":
                value = pixel.cross_entropy(
                    log_probabilities, labels, class_weights=term.class_weights, label_smoothing=term.label_smoothing
                )
            else:
                value = region.soft_dice_exclusive(log_probabilities.exp(), labels, smooth=term.smooth)
            total = total + term.weight * value
        return total

    return loss


def _check(term: LossTerm, task: Task, where: str) -> None:
    """Raises ``UserError`` unless the term and its options mean something for the task."""
    fitting = {"bce": ("binary", "multilabel"), "cross_entropy": ("multiclass",)}.get(term.kind, (task.kind,))
    if task.kind not in fitting:
        instead = "cross_entropy" if task.kind == "multiclass" else "bce"
        raise UserError(
            f"{where}: {term.kind!r} is for {' and '.join(fitting)} tasks, found a {task.kind} task; use {instead!r}"
        )
    if term.label_smoothing and term.kind == "dice":
        raise UserError(f"{where}.label_smoothing: 'dice' has no such option; leave it out")
    if term.smooth != LossTerm.model_fields["smooth"].default and term.kind != "dice":
        raise UserError(f"{where}.smooth: only 'dice' has this option; leave it out")
    if term.class_weights is None:
        return
    if term.kind != "cross_entropy":
        raise UserError(f"{where}.class_weights: only 'cross_entropy' has this option; leave it out")
    weights = term.class_weights
    if len(weights) != task.num_maps or min(weights) < 0 or max(weights) <= 0:
        raise UserError(
            f"{where}.class_weights: expected {task.num_maps} weights of at least 0, not all 0, found {list(weights)}"
        )
