"""The loss of a member: a weighted sum of terms, as settings and as one function of logits and labels.

Pixel constants are stated for photos of 1280 rows, as the systems that published them do, and follow the height at
which the network sees the image. Imports torch only when a loss is built, since recipes are read with these settings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from maskloom.config import Config
from maskloom.errors import UserError
from maskloom.losses.balance import Balance, class_weights
from maskloom.records import Task

if TYPE_CHECKING:
    from torch import Tensor

PlainLoss = Callable[["Tensor", "Tensor"], "Tensor"]
"""Maps logits N×maps×H×W and uint8 labels (N×H×W, or N×maps×H×W for multilabel) to a scalar float32."""

Loss = Callable[["Tensor | tuple[Tensor, ...]", "Tensor"], "Tensor"]
"""The same, also of logits followed by coarser ones of the same images, as networks with deep supervision give them."""

TermKind = Literal[
    "bce",
    "cross_entropy",
    "dice",
    "jaccard",
    "focal",
    "lovasz",
    "tversky",
    "ohem",
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
    """"bce" for binary and multilabel tasks, "cross_entropy" for multiclass, "dice" and "jaccard" for all; also for all
    "focal", in which sure pixels count less, "lovasz", the extension of Jaccard to errors (hinge of the logits for
    binary and multilabel tasks, softmax for multiclass), and "tversky", which weighs false positives and negatives.
    "ohem" is the cross-entropy of each image's hardest pixels (multiclass). The others are for binary and multilabel
    tasks: "boundary_bce" and "boundary_dice" weight pixels near the boundary more, "border_bce" and "border_dice" see
    only pixels near it, "bootstrapped_bce" mixes the model's own prediction into the target, "online_bootstrapping" is
    the BCE of the hardest pixels, "signed_distance" lets auxiliary maps of the network (one per map of the task) learn
    the signed log distance to the boundary."""
    weight: float = Field(default=1.0, gt=0)
    """Factor of this term."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Part of the target spread over all classes ("bce" and "cross_entropy")."""
    class_weights: tuple[float, ...] | Balance | None = None
    """One weight per class, at least 0 and one above it ("cross_entropy", "ohem" and "focal"): of the pixels that are
    truly of the class; in binary and multilabel tasks the others weigh 1. Or the rule by which they follow from the
    images that a fold learns from (multiclass): "median_frequency", in inverse proportion to a class's share of the
    images that show it, "root_frequency", the square roots of these, or "log_frequency", 1 / ln(1.02 + its share)."""
    weight_limit: float = Field(default=10.0, ge=1)
    """No class weight that follows from a rule is more than so many times the smallest one."""
    gamma: float = Field(default=2.0, ge=0)
    """Power of 1 - p(true class) by which a pixel counts ("focal"); 2 is published."""
    smooth: float = Field(default=1.0, ge=1e-30)
    """Pixels added above and below the fraction (the Dice terms, "jaccard" and "tversky"); Dstl's 3rd place takes
    1e-12, Signate's 22nd 1e-15."""
    log: bool = False
    """-log(Dice) instead of 1 - Dice, -log(Jaccard) instead of 1 - Jaccard (the Dice terms of binary and multilabel
    tasks, and "jaccard")."""
    over_classes: Literal["mean", "sum", "sum_present"] = "mean"
    """How the classes of a multiclass task come together ("jaccard"): "mean" judges the mean Jaccard of the classes
    that the batch's truth holds; "sum" adds every class's own loss, absent ones included, as is published with ``log``
    (Signate's 22nd place: weight 1 - j of "cross_entropy" and j / number of classes of this); "sum_present" adds those
    that are there."""
    per_image: bool | None = None
    """Dice, Jaccard, Tversky or Lovász of each image, then their mean, instead of that over the batch; None: over the
    batch for "dice", "jaccard" and "tversky", of each image for "lovasz", "boundary_dice" and "border_dice" (binary and
    multilabel tasks; multiclass is over the batch)."""
    false_positives: float = Field(default=0.3, gt=0)
    """How much a pixel counts that is predicted and not true ("tversky"); 0.5 and 0.5 is Dice."""
    false_negatives: float = Field(default=0.7, gt=0)
    """How much a pixel counts that is true and not predicted ("tversky")."""
    power: float = Field(default=1.0, gt=0, le=4)
    """Of 1 - Tversky, of each class by itself ("tversky"); 0.75 is the published focal Tversky loss."""
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
    hardest: int = Field(default=32_768, ge=1, le=10**9)
    """At most so many pixels per image count, for photos of 1280 rows; scales as an area ("online_bootstrapping")."""
    threshold: float = Field(default=0.3, ge=0, lt=1)
    """Only pixels count whose probability is off by more ("online_bootstrapping" and "ohem")."""
    least: int = Field(default=65_536, ge=1, le=10**9)
    """Where fewer pixels of an image are off by more, so many of the hardest ones count, for photos of 1280 rows;
    scales as an area ("ohem")."""
    fraction: float | None = Field(default=None, gt=0, le=1)
    """This share of each image's pixels counts, the hardest ones, whatever their error, instead of ``threshold`` and
    ``least`` ("ohem")."""
    scale_pixels: bool = True
    """Pixel constants follow the height of the image from 1280 rows; False: they are taken as they stand (windows,
    ``hardest``, ``least``, and the pixels in which "signed_distance" measures)."""

    @property
    def class_numbers(self) -> tuple[float, ...] | None:
        """The weights of the classes; raises ``ValueError`` where they are still a rule (see ``balanced``)."""
        if isinstance(self.class_weights, str):
            raise ValueError(f"class_weights: expected numbers, got the rule {self.class_weights}; balance the loss")
        return self.class_weights


class LossSettings(Config):
    """The terms whose weighted sum is minimised."""

    terms: tuple[LossTerm, ...] = Field(default=(LossTerm(kind="bce"), LossTerm(kind="dice")), min_length=1)
    target: Literal["foreground", "background"] = "foreground"
    """What the terms judge: "background" turns labels and logits round, so that Dice is that of the background
    (binary tasks); the network still predicts the foreground."""
    deep_supervision: float = Field(default=0.4, ge=0)
    """Factor of the whole sum on each coarser map that a network with deep supervision gives while it is trained;
    labels are brought to its size from the nearest pixel. 0 lets these maps learn nothing."""


DICE_TERMS: tuple[TermKind, ...] = ("dice", "boundary_dice", "border_dice")
REGION_TERMS: tuple[TermKind, ...] = (*DICE_TERMS, "jaccard")
BOUNDARY_TERMS: tuple[TermKind, ...] = ("boundary_bce", "boundary_dice")
BORDER_TERMS: tuple[TermKind, ...] = ("border_bce", "border_dice")
TERMS_OF_ALL_TASKS: tuple[TermKind, ...] = ("dice", "jaccard", "focal", "lovasz", "tversky")
TERMS_OF_EXCLUSIVE_CLASSES: tuple[TermKind, ...] = ("cross_entropy", "ohem")

TERMS_WITH: dict[str, tuple[TermKind, ...]] = {
    "label_smoothing": ("bce", "cross_entropy"),
    "class_weights": ("cross_entropy", "ohem", "focal"),
    "weight_limit": ("cross_entropy", "ohem", "focal"),
    "gamma": ("focal",),
    "smooth": (*REGION_TERMS, "tversky"),
    "log": REGION_TERMS,
    "over_classes": ("jaccard",),
    "per_image": (*REGION_TERMS, "tversky", "lovasz"),
    "false_positives": ("tversky",),
    "false_negatives": ("tversky",),
    "power": ("tversky",),
    "weighting": BOUNDARY_TERMS,
    "window": BOUNDARY_TERMS + BORDER_TERMS,
    "mixture": ("bootstrapped_bce",),
    "alpha": ("bootstrapped_bce",),
    "hardest": ("online_bootstrapping",),
    "threshold": ("online_bootstrapping", "ohem"),
    "least": ("ohem",),
    "fraction": ("ohem",),
    "scale_pixels": (*BOUNDARY_TERMS, *BORDER_TERMS, "online_bootstrapping", "ohem", "signed_distance"),
}
"""The terms that each option belongs to."""


def num_auxiliary_maps(settings: LossSettings, task: Task) -> int:
    """Returns how many maps after the task's own the loss expects of the network."""
    return task.num_maps if any(term.kind == "signed_distance" for term in settings.terms) else 0


def balanced(
    settings: LossSettings, task: Task, class_pixels: Sequence[Sequence[int]], valid_pixels: Sequence[int]
) -> LossSettings:
    """Returns the settings with numbers in place of the rules for class weights; themselves where there are none.

    ``class_pixels`` holds for every image that is learnt from the pixels of each class, ``valid_pixels`` those that
    count. Raises ``UserError`` for a term or an option that does not fit the task, such as a rule where classes do not
    exclude each other.
    """
    for index, term in enumerate(settings.terms):
        _check(term, task, f"loss.terms.{index}")
    terms = tuple(
        term.model_copy(
            update={
                "class_weights": class_weights(term.class_weights, class_pixels, valid_pixels, limit=term.weight_limit),
                "weight_limit": LossTerm.model_fields["weight_limit"].default,
            }
        )
        if isinstance(term.class_weights, str)
        else term
        for term in settings.terms
    )
    return settings if terms == settings.terms else settings.model_copy(update={"terms": terms})


def build_loss(settings: LossSettings, task: Task, *, image_height: int = 1280) -> Loss:
    """Returns the loss: a function of logits N×maps×H×W (any float type) and uint8 labels, giving a float32 scalar.

    Labels are N×H×W for binary and multiclass tasks, N×maps×H×W for multilabel ones; ``IGNORE`` counts nowhere, and
    a batch of nothing else gives 0 with a gradient of 0. The logits are the task's maps, then
    ``num_auxiliary_maps(settings, task)`` others; of these only "signed_distance" knows. A tuple of logits and coarser
    ones is judged as ``settings.deep_supervision`` says; no distances are learnt from coarser ones. ``image_height`` is
    the height in pixels of the whole image at the scale at which the network sees it, also where it sees windows of it.
    Rules for class weights must have become numbers (``balanced``). Raises ``UserError`` for a term or an option that
    does not fit the task.
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
    from maskloom.losses.deep_supervision import deeply_supervised

    of_coarser = tuple(term for term in settings.terms if term.kind != "signed_distance")
    return deeply_supervised(
        _plain_loss(settings, settings.terms, task, image_height),
        lambda height: _plain_loss(settings, of_coarser, task, height),
        image_height=image_height,
        num_maps=task.num_maps,
        weight=settings.deep_supervision if of_coarser else 0.0,
    )


def _plain_loss(settings: LossSettings, terms: tuple[LossTerm, ...], task: Task, image_height: int) -> PlainLoss:
    """Returns the weighted sum of these terms of the settings."""
    if task.kind == "multiclass":
        from maskloom.losses.exclusive import exclusive_loss

        return exclusive_loss(terms, image_height=image_height)
    from maskloom.losses.maps import map_loss

    return map_loss(
        terms,
        num_maps=task.num_maps,
        num_auxiliary_maps=task.num_maps if any(term.kind == "signed_distance" for term in terms) else 0,
        image_height=image_height,
        background=settings.target == "background",
    )


def _check(term: LossTerm, task: Task, where: str) -> None:
    """Raises ``UserError`` unless the term and its options mean something for the task."""
    usual = ("binary", "multilabel")
    fitting: tuple[str, ...] = ("multiclass",) if term.kind in TERMS_OF_EXCLUSIVE_CLASSES else usual
    if task.kind not in fitting and term.kind not in TERMS_OF_ALL_TASKS:
        instead = "cross_entropy" if task.kind == "multiclass" else "bce"
        raise UserError(
            f"{where}: {term.kind!r} is for {' and '.join(fitting)} tasks, found a {task.kind} task; use {instead!r}"
        )
    stated = [option for option in TERMS_WITH if getattr(term, option) != LossTerm.model_fields[option].default]
    for option in stated:
        kinds = TERMS_WITH[option]
        if term.kind not in kinds:
            others = ", ".join(map(repr, kinds))
            raise UserError(f"{where}.{option}: {term.kind!r} has no such option, only {others}; leave it out")
        if task.kind == "multiclass" and (option == "per_image" or (option == "log" and term.kind == "dice")):
            raise UserError(f"{where}.{option}: for {' and '.join(usual)} tasks, found a multiclass task; leave it out")
        if task.kind != "multiclass" and option == "over_classes":
            raise UserError(f"{where}.{option}: for multiclass tasks, found a {task.kind} task; leave it out")
        if term.fraction is not None and option in ("threshold", "least"):
            raise UserError(f"{where}.{option}: fraction takes its place, found both; leave one of them out")
    if isinstance(term.class_weights, str):
        if task.kind != "multiclass":
            raise UserError(
                f"{where}.class_weights: {term.class_weights!r} is for multiclass tasks, found a {task.kind} task; "
                "state numbers, or leave it out"
            )
        return
    if "weight_limit" in stated:
        raise UserError(
            f"{where}.weight_limit: expected a rule in class_weights, such as root_frequency, found "
            f"{'none' if term.class_weights is None else 'numbers'}; leave it out"
        )
    if term.class_weights is None:
        return
    weights = term.class_weights
    if len(weights) != task.num_maps or min(weights) < 0 or max(weights) <= 0:
        raise UserError(
            f"{where}.class_weights: expected {task.num_maps} weights of at least 0, not all 0, found {list(weights)}"
        )
