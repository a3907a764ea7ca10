"""The recipe for street scenes and the like, whose classes exclude each other: planned for rare and thin things.

Beside the plan of ``default``: class weights, wide changes of scale, views at three scales, windows at full
resolution, a larger encoder where there is a GPU. The plan is a pure function of the source and the kind of device.
Which parts are worth their time is what ``benchmarks/street_ablation.py`` measures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from maskloom.data.augment import AugmentSettings
from maskloom.data.input_policy import InputPolicy
from maskloom.data.sources.base import DataSource
from maskloom.inference.predictor import InferenceSettings
from maskloom.losses.terms import LossSettings, LossTerm
from maskloom.members import MemberSettings
from maskloom.models.encoders import NetworkSettings
from maskloom.recipe import Recipe, Scale
from maskloom.recipes.planning import (
    EARLY_STAGES,
    LIGHT_DECODER,
    MIN_EPOCH,
    Budget,
    Portions,
    Whole,
    Windows,
    affordable,
    are_scenes,
    check_records,
    fold_settings,
    have_one_shape,
    kind_of,
    num_channels,
    plan_folds,
    portions,
    training_settings,
    windows_of,
)
from maskloom.recipes.smoke import smoked
from maskloom.records import Size, TaskKind, usual_size
from maskloom.training.optimisers import OptimiserSettings
from maskloom.training.schedules import ScheduleSettings

BUDGETS = {
    "cpu": Budget(
        encoder="tf_efficientnet_lite0",
        folds=3,
        whole=Whole(most_pixels=512 * 512, total_pixels=1.4e9, decoder=LIGHT_DECODER),
        windows=Windows(side=384, total_pixels=1.1e9, decoder=LIGHT_DECODER, prefer_class=0.5, most_pixels=1024 * 640),
        max_epochs=40,
        frozen=EARLY_STAGES,
    ),
    "cpu with bf16": Budget(
        encoder="tf_efficientnet_lite2",
        folds=3,
        whole=Whole(most_pixels=512 * 512, total_pixels=1.6e9),
        windows=Windows(side=384, total_pixels=1.6e9, prefer_class=0.5, most_pixels=1024 * 640, smallest_side=256),
        max_epochs=40,
    ),
    "cuda": Budget(
        encoder="tf_efficientnetv2_s.in21k_ft_in1k",
        folds=5,
        whole=Whole(most_pixels=768 * 768, total_pixels=1.2e11),
        windows=Windows(side=768, total_pixels=1.2e11, prefer_class=0.5),
        max_epochs=300,
        batch_pixels=8 * 768 * 768,
    ),
}
"""By kind of device; a CPU that computes bf16 natively is three times as fast as one that does not."""
WEIGHTS: dict[str, Literal["auto", "hub"]] = {"cpu": "auto", "cpu with bf16": "auto", "cuda": "hub"}
"""Where the encoder's first weights come from; those of the CPUs' encoders install as packages."""
STREET = AugmentSettings(
    horizontal_flip=0.5,
    geometric=0.8,
    shift=0.1,
    scale=(0.8, 1.6),
    rotate=3,
    brightness=0.3,
    contrast=0.3,
    chroma=0.3,
)
"""Things are seen from near and far, at noon and at dusk; up stays up."""
WINDOWS_PER_STEP = 4
"""Where images could be seen whole: as many as there would be images."""
FEW_EPOCHS = 40
"""A training of so many has a rate that rises high and soon, and the encoder follows at half of it."""


def modern(source: DataSource, *, device: str, scale: Scale = "full") -> Recipe:
    """Returns the recipe for this source on a "cpu" or "cuda" device.

    What a CPU can afford depends on whether it computes bf16 natively. Binary and multilabel data are taken, too.
    """
    check_records(source)
    kind = kind_of(device)
    budget = affordable(source, BUDGETS[kind])
    sizes = [each.size for each in source.records]
    scenes = are_scenes(source)
    num_folds, num_training = plan_folds(source, budget)
    if scenes:
        policy, is_cut = windows_of(budget), False
        learning = portions(policy, budget, num_folds=num_folds, num_training=num_training)
    else:
        policy = street_policy(sizes, budget)
        is_cut = policy.mode == "window" and could_be_whole(sizes, budget)
        learning = street_portions(policy, sizes, budget, num_folds=num_folds, num_training=num_training)
    is_brief = learning.epochs <= FEW_EPOCHS
    member = MemberSettings(
        name="unet",
        network=NetworkSettings(
            architecture="unet",
            encoder=budget.encoder,
            weights=WEIGHTS[kind],
            channels=num_channels(source),
            decoder_channels=(budget.whole if policy.mode == "resize" else budget.windows).decoder,
        ),
        input=policy,
        loss=street_loss(source.task.kind),
        optimiser=OptimiserSettings(
            kind="adamw",
            lr=2e-3 if is_brief else 1e-3,
            encoder_lr_factor=0.5 if is_brief else 1.0,
            weight_decay=1e-2,
            frozen=budget.frozen,
        ),
        schedule=ScheduleSettings(kind="one_cycle", peak=0.15 if is_brief else 0.3),
        augment=STREET,
        training=training_settings(learning),
        validation_images=32,
    )
    multiclass = source.task.kind == "multiclass"
    recipe = Recipe(
        name="modern",
        metric="iou" if multiclass else "dice",
        folds=fold_settings(source, budget, num_folds=num_folds, stratify="none" if multiclass else "area_dealt"),
        members=(member,),
        inference=InferenceSettings(views="flip_scales", whole_pixels=budget.whole.most_pixels if is_cut else None),
    )
    if scale == "full":
        return recipe
    # Scenes are read by window, which no scale goes with: of these the windows alone become smaller.
    return smoked(recipe, (1, 1) if scenes else usual_size(record.size for record in source.records))


def street_loss(kind: TaskKind) -> LossSettings:
    """Returns cross-entropy and Dice, for exclusive classes with weights that are mild.

    Dice alone sees to it that a rare class is not given up; weights let its pixels shape what is learnt. Those that
    make all classes equal, beside Dice, ask for far too many pixels of the rare ones.
    """
    if kind != "multiclass":
        return LossSettings(terms=(LossTerm(kind="bce"), LossTerm(kind="dice")))
    weighted = LossTerm(kind="cross_entropy", class_weights="root_frequency")
    return LossSettings(terms=(weighted, LossTerm(kind="dice")))


def street_policy(sizes: Sequence[Size], budget: Budget) -> InputPolicy:
    """Returns windows, or whole images where they share one shape and are small enough.

    Whole images keep their size, and windows are of images at full resolution as far as ``Windows.most_pixels`` lets
    them: thin things do not survive shrinking. Images that could be seen whole are seen in windows where these have
    ``Windows.smallest_side`` at least.
    """
    height, width = usual_size(sizes)
    windows = budget.windows
    if could_be_whole(sizes, budget):
        side = min(window_side(sizes), windows.side)
        if windows.smallest_side is None or side < windows.smallest_side:
            return InputPolicy(mode="resize", size=(height, width))
        return InputPolicy(mode="window", size=(side, side), prefer_class=windows.prefer_class)
    shrink = 1.0 if windows.most_pixels is None else min(1.0, math.sqrt(windows.most_pixels / (height * width)))
    return windows_of(budget, scale=shrink)


def window_side(sizes: Sequence[Size]) -> int:
    """Returns three quarters of the shortest side of all images, down to a multiple of 64."""
    return min(map(min, sizes)) * 3 // 4 // 64 * 64


def could_be_whole(sizes: Sequence[Size], budget: Budget) -> bool:
    """Returns whether all images have one shape and are so small that seeing them whole could be afforded."""
    return have_one_shape(sizes) and max(height * width for height, width in sizes) <= budget.whole.most_pixels


def street_portions(
    policy: InputPolicy, sizes: Sequence[Size], budget: Budget, *, num_folds: int, num_training: int
) -> Portions:
    """Returns ``planning.portions``; windows of images that could be seen whole have those of whole images.

    A step has as many of them, and an epoch as many pixels.
    """
    batch_size = None
    if policy.mode == "window" and could_be_whole(sizes, budget):
        num_training = round(max(num_training, MIN_EPOCH) * windows_each(sizes, policy))
        batch_size = WINDOWS_PER_STEP
    return portions(policy, budget, num_folds=num_folds, num_training=num_training, batch_size=batch_size)


def windows_each(sizes: Sequence[Size], policy: InputPolicy) -> float:
    """Returns how many windows have as many pixels as an image: an epoch of so many sees as much as one of images."""
    height, width = usual_size(sizes)
    high, wide = policy.size or (height, width)
    return height * width / (high * wide)
