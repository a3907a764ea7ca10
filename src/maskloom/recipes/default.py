"""The recipe for whoever knows nothing yet: one U-Net, cross-validated, planned from the data and the device.

The plan is a pure function of the source and the kind of device, so the same data gives the same recipe everywhere.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from maskloom.data.augment import PRESETS
from maskloom.data.folds import FoldSettings
from maskloom.data.image_io import read_image
from maskloom.data.input_policy import InputPolicy
from maskloom.data.sources.base import DataSource
from maskloom.errors import BadFile, UserError
from maskloom.inference.predictor import InferenceSettings
from maskloom.losses.terms import LossSettings
from maskloom.models.encoders import NetworkSettings
from maskloom.recipe import MemberSettings, Recipe, Scale
from maskloom.records import Size
from maskloom.training.engine import TrainingSettings
from maskloom.training.optimisers import OptimiserSettings
from maskloom.training.schedules import ScheduleSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What a kind of device can afford."""

    encoder: str
    decoder: tuple[int, ...] | None
    """Filters of the U-Net's decoder, deepest first; None for the usual."""
    folds: int
    full_pixels: int
    """Images of one shape are trained whole up to so many pixels, and shrunk to them beyond."""
    progressive: float
    """The share of the epochs that see whole images at half their sides."""
    window: int
    """Side of the training window for images of many shapes, in pixels."""
    total_pixels: float
    """Pixels that training may see, over all folds."""
    max_epochs: int


BUDGETS = {
    "cpu": Budget(
        encoder="tf_efficientnet_lite0",
        decoder=(128, 64, 32, 16, 16),
        folds=3,
        full_pixels=512 * 512,
        progressive=0.75,
        window=256,
        total_pixels=8e8,
        max_epochs=40,
    ),
    "cuda": Budget(
        encoder="tf_efficientnet_lite2",
        decoder=None,
        folds=5,
        full_pixels=1024 * 1024,
        progressive=0.0,
        window=512,
        total_pixels=1.2e11,
        max_epochs=60,
    ),
}
SMOKE = Budget(
    encoder="tf_efficientnet_lite0",
    decoder=(128, 64, 32, 16, 16),
    folds=2,
    full_pixels=96 * 96,
    progressive=0.5,
    window=64,
    total_pixels=1.5e6,
    max_epochs=2,
)
MIN_EPOCH = 200
"""Small data is drawn from several times in one epoch, up to so many images."""
BATCH_PIXELS = 8 * 256 * 256
"""One optimiser step sees about so many pixels, at least 2 and at most 16 images."""


def default(source: DataSource, *, device: str, scale: Scale = "full") -> Recipe:
    """Returns the recipe for this source on a "cpu" or "cuda" device."""
    if not source.records:
        raise UserError(f"{source.root}: expected images with masks to learn from, found none")
    budget = SMOKE if scale == "smoke" else BUDGETS[device]
    task = source.task
    policy = input_policy([record.size for record in source.records], budget)
    num_folds, num_training = plan_folds(source, budget)
    height, width = policy.size or (1, 1)
    pixels = height * width
    batch_size = int(min(max(BATCH_PIXELS // pixels, 4), 16)) if scale == "full" else 4
    progressive = budget.progressive if policy.mode == "resize" else 0.0
    draws = int(budget.total_pixels / num_folds / (pixels * (1 - 0.75 * progressive)))  # half the sides, a quarter
    images_per_epoch = max(num_training, min(MIN_EPOCH, draws // 4), batch_size)
    epochs = min(max(draws // images_per_epoch, 2), budget.max_epochs)
    multiclass = task.kind == "multiclass"
    member = MemberSettings(
        name="unet",
        network=NetworkSettings(
            architecture="unet", encoder=budget.encoder, channels=num_channels(source), decoder_channels=budget.decoder
        ),
        input=policy,
        loss=LossSettings.model_validate(
            {"terms": [{"kind": "cross_entropy" if multiclass else "bce"}, {"kind": "dice"}]}
        ),
        optimiser=OptimiserSettings(kind="adamw", lr=1e-3, weight_decay=1e-2),
        schedule=ScheduleSettings(kind="one_cycle"),
        augment=PRESETS["symmetry_light" if policy.mode == "window" else "light"],
        training=TrainingSettings(
            epochs=epochs,
            progressive=progressive,
            images_per_epoch=images_per_epoch,
            batch_size=batch_size,
            ema_decay=0.99,
            clip_norm=1.0,
            validate_every=max(1, epochs // 5),
        ),
        validation_images=64,
    )
    return Recipe(
        name="default",
        scale=scale,
        metric="iou" if multiclass else "dice",
        folds=FoldSettings(
            count=num_folds if num_folds > 1 else budget.folds,
            stratify="none" if multiclass else "area_dealt",
        ),
        members=(member,),
        inference=InferenceSettings(views="flips" if policy.mode == "window" else "flip"),
    )


def num_channels(source: DataSource) -> int:
    """Returns the channels of the network's input: those of the first good image, and 3 for grey, which is repeated.

    Damaged images are passed over here; the survey reports them all.
    """
    for record in source.records:
        try:
            channels: int = read_image(record.image).shape[2]
        except BadFile:
            continue
        return 3 if channels == 1 else channels
    return 3


def has_given_folds(source: DataSource) -> bool:
    """Returns whether the data came with training and validation folders."""
    return any(record.split == "val" for record in source.records)


def plan_folds(source: DataSource, budget: Budget) -> tuple[int, int]:
    """Returns the number of folds and the number of images that train each."""
    total = len(source.records)
    if has_given_folds(source):
        return 1, sum(record.split != "val" for record in source.records)
    groups = len({record.group for record in source.records})
    if groups < 2:
        raise UserError(
            f"{source.root}: expected at least 2 groups to cross-validate, found {groups}; "
            "add images, or state how ids form groups with --set data.group=REGEX"
        )
    count = min(budget.folds, groups)
    return count, max(total * (count - 1) // count, 1)


def input_policy(sizes: list[Size], budget: Budget) -> InputPolicy:
    """Returns whole images where they share one shape, else windows at full resolution.

    Aspect ratios within 2 % count as one shape. Whole images larger than the budget are shrunk to it.
    """
    ratios = [height / width for height, width in sizes]
    if max(ratios) / min(ratios) > 1.02:
        return InputPolicy(mode="window", size=(budget.window, budget.window), prefer_class=0.25)
    (height, width), _ = Counter(sizes).most_common(1)[0]
    shrink = min(1.0, math.sqrt(budget.full_pixels / (height * width)))
    return InputPolicy(mode="resize", size=(max(round(height * shrink), 1), max(round(width * shrink), 1)))
