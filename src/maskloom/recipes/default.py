"""The recipe for whoever knows nothing yet: one U-Net, cross-validated, planned from the data and the device.

The plan is a pure function of the source and the kind of device: the same data gives the same recipe on all of a kind.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

from maskloom.data.augment import PRESETS
from maskloom.data.folds import FoldSettings
from maskloom.data.input_policy import InputPolicy
from maskloom.data.record_images import read_record_image
from maskloom.data.scene_windows import SCENE_PIXELS, files_problem
from maskloom.data.sources.base import DataSource
from maskloom.errors import BadFile, UserError
from maskloom.inference.predictor import InferenceSettings
from maskloom.losses.terms import LossSettings
from maskloom.models.encoders import NetworkSettings
from maskloom.models.pretrained import installed_file
from maskloom.recipe import MemberSettings, Recipe, Scale
from maskloom.records import Size
from maskloom.runtime import fast_precision
from maskloom.training.engine import TrainingSettings
from maskloom.training.optimisers import OptimiserSettings
from maskloom.training.phases import small_epochs
from maskloom.training.schedules import ScheduleSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    """What can be afforded where all images have one shape: they are seen whole."""

    most_pixels: int
    """Larger images are shrunk to so many pixels."""
    total_pixels: float
    """Pixels that training sees, over all folds."""
    decoder: tuple[int, ...] | None = None
    """Filters of the U-Net's decoder, deepest first; None for the usual."""
    progressive: float = 0.0
    """The share of the epochs, the first ones, that see images at half their sides."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Windows:
    """What can be afforded where images have many shapes: windows of them are seen, at full resolution."""

    side: int
    """In pixels."""
    total_pixels: float
    """Pixels that training sees, over all folds."""
    decoder: tuple[int, ...] | None = None
    """As for whole images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What a kind of device can afford."""

    encoder: str
    folds: int
    whole: Whole
    windows: Windows
    max_epochs: int
    frozen: tuple[str, ...] = ()
    """How the names of parameters begin that keep their pretrained values."""


LIGHT_DECODER = (128, 64, 32, 16, 16)
EARLY_STAGES = tuple(f"encoder.model.{name}." for name in ("conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2"))
"""Of EfficientNet-Lite, up to an eighth of the image's sides: a third of a step's time is theirs."""
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
MIN_EPOCH = 200
"""Small data is drawn from several times in one epoch, up to so many images."""
MIN_EPOCHS = 7
"""Of large data an epoch sees a part, so that there are as many and the budget holds."""
SHORT = 8
"""A light training that sees its images fewer times cannot overfit: it learns faster, from images as they are."""
BATCH_PIXELS = 8 * 256 * 256
"""One optimiser step sees about so many pixels, at least 2 and at most 16 images."""


def default(source: DataSource, *, device: str, scale: Scale = "full") -> Recipe:
    """Returns the recipe for this source on a "cpu" or "cuda" device.

    What a CPU can afford depends on whether it computes bf16 natively.
    """
    if not source.records:
        raise UserError(f"{source.root}: expected images with masks to learn from, found none")
    budget = BUDGETS[kind_of(device)]
    if scale == "smoke":
        budget = smoked(budget)
    task = source.task
    divided = is_divided(source, budget)
    sizes = [record.size for record in source.records]
    policy = windows_of(budget) if are_scenes(source) else input_policy(sizes, budget)
    is_whole = policy.mode == "resize"
    num_folds, num_training = plan_folds(source, budget)
    height, width = policy.size or (1, 1)
    pixels = height * width
    batch_size = int(min(max(BATCH_PIXELS // pixels, 4), 16)) if scale == "full" else 4
    progressive = budget.whole.progressive if is_whole else 0.0
    total_pixels = budget.whole.total_pixels if is_whole else budget.windows.total_pixels
    draws = int(total_pixels / num_folds / (pixels * (1 - 0.75 * progressive)))  # at half the sides, a quarter
    images_per_epoch = min(max(num_training, MIN_EPOCH), draws // MIN_EPOCHS)
    images_per_epoch = max(images_per_epoch // batch_size, 1) * batch_size
    epochs = min(max(draws // images_per_epoch, 2), budget.max_epochs)
    is_short = progressive > 0 and epochs * images_per_epoch < SHORT * num_training
    multiclass = task.kind == "multiclass"
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
            kind="adamw",
            lr=2e-3 if is_short else 1e-3,
            weight_decay=1e-2,
            frozen=budget.frozen if sees_photos(source, budget) else (),
        ),
        schedule=ScheduleSettings(kind="one_cycle", peak=0.15 if is_short else 0.3),
        augment=PRESETS["mirror" if is_short else "light" if is_whole else "symmetry_light"],
        training=TrainingSettings(
            epochs=epochs,
            progressive=progressive,
            images_per_epoch=images_per_epoch,
            batch_size=batch_size,
            ema_decay=0.99,
            clip_norm=1.0,
            validate_every=max(1, epochs // 5),
            validate_from=first_whole_epoch(epochs, progressive),
        ),
        validation_images=32,
    )
    return Recipe(
        name="default",
        scale=scale,
        metric="iou" if multiclass else "dice",
        folds=FoldSettings(kind="blocks", count=num_folds, side=block_side(source, budget), balance="classes")
        if divided
        else FoldSettings(
            count=num_folds if num_folds > 1 else budget.folds,
            stratify="none" if multiclass else "area_dealt",
        ),
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


def first_whole_epoch(epochs: int, progressive: float) -> float:
    """Returns the first share of the epochs, whose images are not yet seen at full size: scores mean little there."""
    if progressive == 0:
        return 0.0
    return math.floor(1e4 * (small_epochs(epochs, progressive) + 1) / epochs) / 1e4


def kind_of(device: str) -> str:
    """Returns the device's kind, a key of ``BUDGETS``."""
    import torch

    is_fast = device == "cpu" and fast_precision(torch.device(device)) == "bf16"
    return "cpu with bf16" if is_fast else device


def num_channels(source: DataSource) -> int:
    """Returns the channels of the network's input: those of the first good image, and 3 for grey, which is repeated.

    Damaged images are passed over here; the survey reports them all.
    """
    for record in source.records:
        try:
            channels: int = read_record_image(record).shape[2]
        except BadFile:
            continue
        return 3 if channels == 1 else channels
    return 3


def sees_photos(source: DataSource, budget: Budget) -> bool:
    """Returns whether images have the three channels that pretrained weights expect, and such weights are installed.

    The early stages of a network for other channels, or of one from random weights, have to learn.
    """
    return num_channels(source) == 3 and installed_file(budget.encoder) is not None


def has_given_folds(source: DataSource) -> bool:
    """Returns whether the data came with training and validation folders."""
    return any(record.split == "val" for record in source.records)


def plan_folds(source: DataSource, budget: Budget) -> tuple[int, int]:
    """Returns the number of folds and the number of images that train each."""
    total = len(source.records)
    if is_divided(source, budget):
        num_windows = _num_pixels(source) // budget.windows.side**2
        return budget.folds, max(num_windows * (budget.folds - 1) // budget.folds, 1)
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


def are_scenes(source: DataSource) -> bool:
    """Returns whether windows of images are to be read by themselves: there is one alone, or all are large rasters."""
    sizes = [record.size[0] * record.size[1] for record in source.records]
    is_so = len(sizes) == 1 or min(sizes) >= SCENE_PIXELS
    return is_so and not any(files_problem(record, source.coding) for record in source.records)


def is_divided(source: DataSource, budget: Budget) -> bool:
    """Returns whether folds are of blocks: there are fewer scenes than folds."""
    groups = {record.group for record in source.records}
    return len(groups) < budget.folds and not has_given_folds(source) and are_scenes(source)


def block_side(source: DataSource, budget: Budget) -> int:
    """Returns the side of blocks of which there are about six for each fold, from one window up to 512 pixels."""
    side = math.isqrt(_num_pixels(source) // (6 * budget.folds))
    return max(budget.windows.side, min(side, 512))


def _num_pixels(source: DataSource) -> int:
    return sum(record.size[0] * record.size[1] for record in source.records)


def windows_of(budget: Budget) -> InputPolicy:
    """Returns windows at full resolution."""
    return InputPolicy(mode="window", size=(budget.windows.side, budget.windows.side), prefer_class=0.25)


def input_policy(sizes: list[Size], budget: Budget) -> InputPolicy:
    """Returns whole images where they share one shape, else windows at full resolution.

    Aspect ratios within 2 % count as one shape. Whole images larger than the budget are shrunk to it.
    """
    ratios = [height / width for height, width in sizes]
    if max(ratios) / min(ratios) > 1.02:
        return windows_of(budget)
    (height, width), _ = Counter(sizes).most_common(1)[0]
    shrink = min(1.0, math.sqrt(budget.whole.most_pixels / (height * width)))
    return InputPolicy(mode="resize", size=(max(round(height * shrink), 1), max(round(width * shrink), 1)))
