"""The recipe for whoever knows nothing yet: one U-Net, cross-validated, planned from the data and the device.

The plan is a pure function of the source, the kind of device and the installed weights: the same data gives the same
recipe on all of a kind.
"""

from __future__ import annotations

from dataclasses import replace

from maskloom.data.augment import PRESETS
from maskloom.data.sources.base import DataSource
from maskloom.inference.predictor import InferenceSettings
from maskloom.losses.terms import LossSettings
from maskloom.members import MemberSettings
from maskloom.models.encoders import NetworkSettings
from maskloom.recipe import Recipe, Scale
from maskloom.recipes.planning import (
    EARLY_STAGES,
    LIGHT_DECODER,
    Budget,
    Whole,
    Windows,
    affordable,
    are_scenes,
    check_records,
    fold_settings,
    input_policy,
    kind_of,
    num_channels,
    plan_folds,
    portions,
    training_settings,
    windows_of,
)
from maskloom.training.optimisers import OptimiserSettings
from maskloom.training.schedules import ScheduleSettings

BUDGETS = {
    "cpu": Budget(
        encoder="tf_efficientnet_lite0",
        folds=3,
        whole=Whole(most_pixels=512 * 512, total_pixels=7.2e8, decoder=LIGHT_DECODER, progressive=0.57),
        windows=Windows(side=256, total_pixels=1.0e9, decoder=LIGHT_DECODER),
        max_epochs=40,
        frozen=EARLY_STAGES,
    ),
    "cpu with bf16": Budget(
        encoder="tf_efficientnet_lite0",
        folds=3,
        whole=Whole(most_pixels=512 * 512, total_pixels=1.3e9),
        windows=Windows(side=256, total_pixels=1.3e9),
        max_epochs=40,
    ),
    "cuda": Budget(
        encoder="tf_efficientnet_lite2",
        folds=5,
        whole=Whole(most_pixels=1024 * 1024, total_pixels=1.2e11),
        windows=Windows(side=512, total_pixels=1.2e11),
        max_epochs=60,
    ),
}
"""By kind of device; a CPU that computes bf16 natively is three times as fast as one that does not."""


def default(source: DataSource, *, device: str, scale: Scale = "full") -> Recipe:
    """Returns the recipe for this source on a "cpu" or "cuda" device.

    What a CPU can afford depends on whether it computes bf16 natively.
    """
    check_records(source)
    budget = affordable(source, BUDGETS[kind_of(device)])
    if scale == "smoke":
        budget = smoked(budget)
    policy = (
        windows_of(budget) if are_scenes(source) else input_policy([record.size for record in source.records], budget)
    )
    is_whole = policy.mode == "resize"
    num_folds, num_training = plan_folds(source, budget)
    learning = portions(
        policy, budget, num_folds=num_folds, num_training=num_training, batch_size=None if scale == "full" else 4
    )
    is_short = learning.is_short
    multiclass = source.task.kind == "multiclass"
    member = MemberSettings(
        name="unet",
        network=NetworkSettings(
            architecture="unet",
            encoder=budget.encoder,
            channels=num_channels(source),
            decoder_channels=budget.whole.decoder if is_whole else budget.windows.decoder,
        ),
        input=policy,
        loss=LossSettings.model_validate(
            {"terms": [{"kind": "cross_entropy" if multiclass else "bce"}, {"kind": "dice"}]}
        ),
        optimiser=OptimiserSettings(
            kind="adamw", lr=2e-3 if is_short else 1e-3, weight_decay=1e-2, frozen=budget.frozen
        ),
        schedule=ScheduleSettings(kind="one_cycle", peak=0.15 if is_short else 0.3),
        augment=PRESETS["mirror" if is_short else "light" if is_whole else "symmetry_light"],
        training=training_settings(learning),
        validation_images=32,
    )
    return Recipe(
        name="default",
        scale=scale,
        metric="iou" if multiclass else "dice",
        folds=fold_settings(source, budget, num_folds=num_folds, stratify="none" if multiclass else "area_dealt"),
        members=(member,),
        inference=InferenceSettings(views="flips" if policy.mode == "window" else "flip"),
    )


def smoked(budget: Budget) -> Budget:
    """Returns the budget of a trial that ends in seconds: the same networks on tiny pictures."""
    return replace(
        budget,
        folds=2,
        whole=replace(budget.whole, most_pixels=96 * 96, total_pixels=1.5e6),
        windows=replace(budget.windows, side=64, total_pixels=1.5e6),
        max_epochs=2,
    )
