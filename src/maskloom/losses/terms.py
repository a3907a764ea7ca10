"""The loss of a member: a weighted sum of terms, as settings and as one function of logits and labels.

Pixel constants are stated for photos of 1280 rows, as the systems that published them do, and follow the height at
which the network sees the image. Imports torch only when a loss is built, since recipes are read with these settings.
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

TermKind = Literal[
    "bce",
    "cross_entropy",
    "dice",
    "jaccard",
    "boundary_bce",
    "boundary_dice",
    "border_bce",
    "border_dice",
    "bootstrapped_bce",
    "online_bootstrapping",
    "signed_distance",
]


class LossTerm(Config):
    """One term of the sum."""

    kind: TermKind
    """"bce" for binary and multilabel tasks, "cross_entropy" for multiclass, "dice" and "jaccard" for all. The others
    are for binary and multilabel tasks: "boundary_bce" and "boundary_dice" weight pixels near the boundary more,
    "border_bce" and "border_dice" see only pixels near it, "bootstrapped_bce" mixes the model's own prediction into the
    target, "online_bootstrapping" is the BCE of the hardest pixels, "signed_distance" lets auxiliary maps of the
    network (one per map of the task) learn the signed log distance to the boundary."""
    weight: float = Field(default=1.0, gt=0)
    """Factor of this term."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Part of the target spread over all classes ("bce" and "cross_entropy")."""
    class_weights: tuple[float, ...] | None = None
    """One weight per class, at least 0 and one above it ("cross_entropy")."""
    smooth: float = Field(default=1.0, ge=1e-30)
    """Pixels added above and below the fraction (the Dice terms and "jaccard"); Dstl's 3rd place takes 1e-12."""
    log: bool = False
    """-log(Dice) instead of 1 - Dice, -log(Jaccard) instead of 1 - Jaccard (the Dice terms of binary and multilabel
    tasks, and "jaccard")."""
    per_image: bool | None = None
    """Dice or Jaccard of each image, then their mean, instead of that over the batch; None: over the batch for "dice"
    and "jaccard", of each image for "boundary_dice" and "border_dice" (binary and multilabel tasks)."""
    weighting: Literal["band", "hill"] = "band"
    """How "boundary_bce" and "boundary_dice" weight pixels: "band" 3 where the averaged mask is in [0.01, 0.99], else
    1; "hill" 5·exp(-5·|averaged mask - 0.5|); both scaled to mean 1. BCE takes the weights, Dice their squares."""
    window: int | None = Field(default=None, ge=2, le=10_000)
    """Side in pixels of the window around a pixel, for photos of 1280 rows (the boundary and border terms); None:
    as published, 51 for "band" (11, 21, 21, 41 for images of 128, 256, 512, 1024 rows, and on straight lines between
    them), 50 for "hill", 21 for borders."""
    mixture: Literal["soft", "hard"] = "soft"
    """What is mixed into the target: the predicted probability, or that rounded ("bootstrapped_bce")."""
    alpha: float = Field(default=0.95, ge=0, le=1)
    """The label's part of the target ("bootstrapped_bce")."""
    hardest: int = Field(default=32_768, ge=1)
    """At most so many pixels per image count, for photos of 1280 rows; scales as an area ("online_bootstrapping")."""
    threshold: float = Field(default=0.3, ge=0, lt=1)
    """Only pixels count whose probability is off by more ("online_bootstrapping")."""
    scale_pixels: bool = True
    """Pixel constants follow the height of the image from 1280 rows; False: they are taken as they stand (windows,
    ``hardest``, and the pixels in which "signed_distance" measures)."""


class LossSettings(Config):
    """The terms whose weighted sum is minimised."""

    terms: tuple[LossTerm, ...] = Field(default=(LossTerm(kind="bce"), LossTerm(kind="dice")), min_length=1)
    target: Literal["foreground", "background"] = "foreground"
    """What the terms judge: "background" turns labels and logits round, so that Dice is that of the background
    (binary tasks); the network still predicts the foreground."""


DICE_TERMS: tuple[TermKind, ...] = ("dice", "boundary_dice", "border_dice")
REGION_TERMS: tuple[TermKind, ...] = (*DICE_TERMS, "jaccard")
BOUNDARY_TERMS: tuple[TermKind, ...] = ("boundary_bce", "boundary_dice")
BORDER_TERMS: tuple[TermKind, ...] = ("border_bce", "border_dice")

TERMS_WITH: dict[str, tuple[TermKind, ...]] = {
    "label_smoothing": ("bce", "cross_entropy"),
    "class_weights": ("cross_entropy",),
    "smooth": REGION_TERMS,
    "log": REGION_TERMS,
    "per_image": REGION_TERMS,
    "weighting": BOUNDARY_TERMS,
    "window": BOUNDARY_TERMS + BORDER_TERMS,
    "mixture": ("bootstrapped_bce",),
    "alpha": ("bootstrapped_bce",),
    "hardest": ("online_bootstrapping",),
    "threshold": ("online_bootstrapping",),
    "scale_pixels": (*BOUNDARY_TERMS, *BORDER_TERMS, "online_bootstrapping", "signed_distance"),
}
"""The terms that each option belongs to."""


def num_auxiliary_maps(settings: LossSettings, task: Task) -> int:
    """Returns how many maps after the task's own the loss expects of the network."""
    return task.num_maps if any(term.kind == "signed_distance" for term in settings.terms) else 0


def build_loss(settings: LossSettings, task: Task, *, image_height: int = 1280) -> Loss:
    """Returns the loss: a function of logits N×maps×H×W (any float type) and uint8 labels, giving a float32 scalar.

    Labels are N×H×W for binary and multiclass tasks, N×maps×H×W for multilabel ones; ``IGNORE`` counts nowhere, and
    a batch of nothing else gives 0 with a gradient of 0. The logits are the task's maps, then
    ``num_auxiliary_maps(settings, task)`` others; of these only "signed_distance" knows. ``image_height`` is the
    height in pixels of the whole image at the scale at which the network sees it, also where it sees windows of it.
    Raises ``UserError`` for a term or an option that does not fit the task.
    """
    if image_height < 1:
        raise ValueError(f"expected an image height of at least 1 pixel, found {image_height}")
    for index, term in enumerate(settings.terms):
        _check(term, task, f"loss.terms.{index}")
    if settings.target == "background" and task.kind != "binary":
        raise UserError(
            f"loss.target: 'background' is for binary tasks, found a {task.kind} task, which can name the background "
            "as a class; leave it out"
        )
    if task.kind == "multiclass":
        return _exclusive_loss(settings.terms)
    from maskloom.losses.maps import map_loss

    return map_loss(
        settings.terms,
        num_maps=task.num_maps,
        num_auxiliary_maps=num_auxiliary_maps(settings, task),
        image_height=image_height,
        background=settings.target == "background",
    )


def _exclusive_loss(terms: tuple[LossTerm, ...]) -> Loss:
    """Returns the loss of exclusive labels (multiclass); the softmax is computed once for all terms."""
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
            elif term.kind == "jaccard":
                value = region.soft_jaccard_exclusive(log_probabilities.exp(), labels, smooth=term.smooth, log=term.log)
            else:
                value = region.soft_dice_exclusive(log_probabilities.exp(), labels, smooth=term.smooth)
            total = total + term.weight * value
        return total

    return loss


def _check(term: LossTerm, task: Task, where: str) -> None:
    """Raises ``UserError`` unless the term and its options mean something for the task."""
    usual = ("binary", "multilabel")
    everywhere = (task.kind,)
    fitting = {"dice": everywhere, "jaccard": everywhere, "cross_entropy": ("multiclass",)}.get(term.kind, usual)
    if task.kind not in fitting:
        instead = "cross_entropy" if task.kind == "multiclass" else "bce"
        raise UserError(
            f"{where}: {term.kind!r} is for {' and '.join(fitting)} tasks, found a {task.kind} task; use {instead!r}"
        )
    for option, kinds in TERMS_WITH.items():
        if getattr(term, option) == LossTerm.model_fields[option].default:
            continue
        if term.kind not in kinds:
            others = ", ".join(map(repr, kinds))
            raise UserError(f"{where}.{option}: {term.kind!r} has no such option, only {others}; leave it out")
        if task.kind == "multiclass" and (option == "per_image" or (option == "log" and term.kind == "dice")):
            raise UserError(f"{where}.{option}: for {' and '.join(usual)} tasks, found a multiclass task; leave it out")
    if term.class_weights is None:
        return
    weights = term.class_weights
    if len(weights) != task.num_maps or min(weights) < 0 or max(weights) <= 0:
        raise UserError(
            f"{where}.class_weights: expected {task.num_maps} weights of at least 0, not all 0, found {list(weights)}"
        )
