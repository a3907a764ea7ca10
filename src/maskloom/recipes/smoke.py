"""A recipe shrunk until it ends in minutes on two cores: the same stages, architectures, losses and folds, less of all.

Only numbers change: sizes, epochs, images per epoch, batches, widths, trees, what is validated, and how sure a
pseudo-label must be (networks that learnt for an epoch are sure of nothing). What a system *is* stays: architectures,
losses, kinds of schedules and optimisers, fold schemes, the ensemble's tree, guided and later members, post-
processing.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from maskloom.data.input_policy import InputPolicy
from maskloom.ensembling.postprocess import PostprocessSettings
from maskloom.ensembling.pseudo_labels import PseudoLabelSettings
from maskloom.members import MemberSettings
from maskloom.models.encoders import NetworkSettings
from maskloom.recipe import Recipe
from maskloom.records import Size
from maskloom.training.engine import TrainingSettings
from maskloom.windows import round_up

PIXELS = 64 * 96
"""About so many pixels has a whole image, in place of the published ones."""
WINDOW = 64
"""Pixels of a training window's side, rounded up to what the network takes."""
EPOCHS = 1
"""Of a training, or of each of its phases, in which nothing happens between epochs."""
EPOCHS_TO_TELL = 2
"""Where something does: a new optimiser with each epoch, a schedule that waits for scores."""
IMAGES_PER_EPOCH = 8
BATCH_SIZE = 2
ACCUMULATION = 2
MINING = 3
"""Steps among which a hard negative is looked for."""
VALIDATION_IMAGES = 2
WIDTH = 1 / 16
NUM_TREES = 10
"""Of each class, where a member grows trees."""
PSEUDO_LABELS = 8
DRAWS = 200
"""Of the paired bootstrap in the search for post-processing steps."""


def smoked(recipe: Recipe, size: Size) -> Recipe:
    """Returns the recipe at smoke scale for images of ``size`` (height, width) in pixels."""
    return smoked_parts(recipe, ("members", "pseudo", "postprocess"), size)


def smoked_parts(recipe: Recipe, parts: Collection[str], size: Size) -> Recipe:
    """Returns the recipe with these parts at smoke scale and the others as they are.

    For what a file lays over a recipe of that scale: ``parts`` are the keys of the file. Those that have no smaller
    form, such as ``inference``, stay.
    """
    smaller = {
        "members": tuple(_member(member, size) for member in recipe.members),
        "pseudo": tuple(_pseudo(settings) for settings in recipe.pseudo),
        "postprocess": _postprocess(recipe.postprocess),
    }
    return recipe.model_copy(update={"scale": "smoke"} | {name: smaller[name] for name in smaller if name in parts})


def _member(member: MemberSettings, size: Size) -> MemberSettings:
    grows = member.network.trees is not None
    return member.model_copy(
        update={
            "network": _network(member.network),
            "input": _input(member.input, size, in_regions=_looks_at_regions(member), is_bound=grows),
            "training": _training(member),
            "validation_images": min(member.validation_images or VALIDATION_IMAGES, VALIDATION_IMAGES),
        }
    )


def _training(member: MemberSettings) -> TrainingSettings:
    """Returns a training of few short epochs; one of hard negatives still meets some."""
    settings = member.training
    waits = member.schedule.kind == "plateau"
    phases = tuple(
        phase.model_copy(update={"epochs": min(phase.epochs, _num_epochs(phase.fresh_optimiser == "epoch" or waits))})
        for phase in settings.phases
    )
    return settings.model_copy(
        update={
            "phases": phases,
            "epochs": sum(phase.epochs for phase in phases) or min(settings.epochs, _num_epochs(waits)),
            "images_per_epoch": min(settings.images_per_epoch or IMAGES_PER_EPOCH, IMAGES_PER_EPOCH),
            "batch_size": BATCH_SIZE,
            "accumulation": min(settings.accumulation, ACCUMULATION),
            "hard_negative_every": settings.hard_negative_every and min(settings.hard_negative_every, MINING),
        }
    )


def _num_epochs(told_apart: bool) -> int:
    return EPOCHS_TO_TELL if told_apart else EPOCHS


def _network(settings: NetworkSettings) -> NetworkSettings:
    """Returns the network with few filters and no pretrained weights, which would not fit so few."""
    trees = settings.trees and settings.trees.model_copy(update={"num_trees": min(settings.trees.num_trees, NUM_TREES)})
    few = {"width": min(settings.width, WIDTH), "weights": "none", "bundle": None, "trees": trees}
    return settings.model_copy(update=few)


def _looks_at_regions(member: MemberSettings) -> bool:
    return member.guidance is not None and member.guidance.region is not None


def _input(policy: InputPolicy, size: Size, *, in_regions: bool, is_bound: bool) -> InputPolicy:
    """Returns the policy on smaller images.

    Whole images become one small size, so that larger ones cost no more. Windows, parts and regions of images are of
    images that shrink by a scale; windows shrink more, so that an image still is several of them, unless the network
    ``is_bound`` to their margin.
    """
    if policy.mode == "resize" or (policy.mode == "full" and not in_regions):
        height, width = policy.size or size
        factor = _factor((height, width))
        smaller = round_up((max(round(height * factor), 1), max(round(width * factor), 1)), policy.multiple)
        return policy.model_copy(update={"mode": "resize", "size": smaller, "scale": 1.0})
    changes: dict[str, object] = {"scale": policy.scale * _factor(size)}
    if policy.size is not None and not is_bound:
        window = min(policy.size[0], WINDOW), min(policy.size[1], WINDOW)
        smaller = round_up(window, policy.multiple)
        changes |= {"size": smaller, "margin": policy.margin * min(smaller) // min(policy.size)}
    return policy.model_copy(update=changes)


def _factor(size: Size) -> float:
    return min(1.0, math.sqrt(PIXELS / (size[0] * size[1])))


def _pseudo(settings: PseudoLabelSettings) -> PseudoLabelSettings:
    """Returns a round of a few images, whatever the networks' doubts."""
    sure = {"minimum_confidence": 0.0, "minimum_agreement": 0.0, "ignore_below": 0.0}
    few = {"number": min(settings.number or PSEUDO_LABELS, PSEUDO_LABELS), "share": None}
    return settings.model_copy(update=sure | few)


def _postprocess(settings: PostprocessSettings) -> PostprocessSettings:
    return settings.model_copy(update={"draws": min(settings.draws, DRAWS)})
