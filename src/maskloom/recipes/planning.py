"""What plans share: what a kind of device can afford, and what follows from the data's sizes, groups and amount.

The same data, kind of device and installed weights give the same plan. Knows nothing about networks and losses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from maskloom.data.folds import FoldSettings
from maskloom.data.input_policy import InputPolicy
from maskloom.data.record_images import read_record_image
from maskloom.data.scene_windows import SCENE_PIXELS, files_problem
from maskloom.data.sources.base import DataSource
from maskloom.errors import BadFile, UserError
from maskloom.models.pretrained import installed_file
from maskloom.recipe import Recipe
from maskloom.records import Size, usual_size
from maskloom.runtime import fast_precision
from maskloom.training.engine import TrainingSettings
from maskloom.training.phases import small_epochs


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    """What can be afforded where all images have one shape, and are therefore seen whole."""

    most_pixels: int
    """Larger images are shrunk to so many pixels, or cut into windows, as the plan has it."""
    total_pixels: float
    """Pixels that training sees, over all folds."""
    decoder: tuple[int, ...] | None = None
    """Filters of the U-Net's decoder, deepest first; None for the usual."""
    progressive: float = 0.0
    """The share of the epochs, the first ones, that see images at half their sides."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Windows:
    """What can be afforded where windows of images are seen."""

    side: int
    """In pixels."""
    total_pixels: float
    """Pixels that training sees, over all folds."""
    decoder: tuple[int, ...] | None = None
    """As for whole images."""
    prefer_class: float = 0.25
    """The share of the windows that are centred on a pixel of a class."""
    most_pixels: int | None = None
    """Larger images are shrunk to so many pixels, of which windows are then cut; None: full resolution."""
    smallest_side: int | None = None
    """Of windows of images that could be seen whole, as ``modern`` cuts them; None: such images are seen whole."""


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
    batch_pixels: int = 8 * 256 * 256
    """One optimiser step sees about so many pixels, at least 4 and at most 16 images."""


LIGHT_DECODER = (128, 64, 32, 16, 16)
"""Of a U-Net whose last stages, at full resolution, are most of the work on a CPU."""
EARLY_STAGES = tuple(f"encoder.model.{name}." for name in ("conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2"))
"""Of EfficientNet-Lite, up to an eighth of the image's sides: a third of a step's time is theirs."""
_MADE_OF = ("architecture", "encoder", "weights", "bundle", "channels")
MIN_EPOCH = 200
"""Small data is drawn from several times in one epoch, up to so many images."""
MIN_EPOCHS = 7
"""Of large data an epoch sees a part, so that there are as many and the budget holds."""
SHORT = 8
"""A light training that sees its images fewer times cannot overfit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Portions:
    """How long a network of one fold learns, and in what portions."""

    epochs: int
    images_per_epoch: int
    batch_size: int
    progressive: float
    """The share of the epochs, the first ones, at half the sides."""
    is_short: bool
    """Whether so little is seen of each image that the training cannot overfit."""


def portions(
    policy: InputPolicy, budget: Budget, *, num_folds: int, num_training: int, batch_size: int | None = None
) -> Portions:
    """Returns what keeps a training of ``num_training`` images, one of ``num_folds``, to the budget of pixels.

    ``batch_size`` None: as many images as make ``Budget.batch_pixels``.
    """
    is_whole = policy.mode == "resize"
    height, width = policy.size or (1, 1)
    pixels = height * width
    batch_size = batch_size or min(max(budget.batch_pixels // pixels, 4), 16)
    progressive = budget.whole.progressive if is_whole else 0.0
    total_pixels = budget.whole.total_pixels if is_whole else budget.windows.total_pixels
    draws = int(total_pixels / num_folds / (pixels * (1 - 0.75 * progressive)))  # at half the sides, a quarter
    images_per_epoch = min(max(num_training, MIN_EPOCH), draws // MIN_EPOCHS)
    images_per_epoch = max(images_per_epoch // batch_size, 1) * batch_size
    epochs = min(max(draws // images_per_epoch, 2), budget.max_epochs)
    return Portions(
        epochs=epochs,
        images_per_epoch=images_per_epoch,
        batch_size=batch_size,
        progressive=progressive,
        is_short=progressive > 0 and epochs * images_per_epoch < SHORT * num_training,
    )


def training_settings(portions: Portions) -> TrainingSettings:
    """Returns the usual settings of a training of these portions, validated five times from the first full size on."""
    return TrainingSettings(
        epochs=portions.epochs,
        progressive=portions.progressive,
        images_per_epoch=portions.images_per_epoch,
        batch_size=portions.batch_size,
        ema_decay=0.99,
        clip_norm=1.0,
        validate_every=max(1, portions.epochs // 5),
        validate_from=first_whole_epoch(portions.epochs, portions.progressive),
    )


def fold_settings(
    source: DataSource, budget: Budget, *, num_folds: int, stratify: Literal["none", "area_dealt"]
) -> FoldSettings:
    """Returns folds of blocks where scenes are to be divided, else given folders, else so many folds of groups."""
    if is_divided(source, budget):
        return FoldSettings(kind="blocks", count=num_folds, side=block_side(source, budget), balance="classes")
    return FoldSettings(count=num_folds if num_folds > 1 else budget.folds, stratify=stratify)


def first_whole_epoch(epochs: int, progressive: float) -> float:
    """Returns the first share of the epochs, whose images are not yet seen at full size: scores mean little there."""
    if progressive == 0:
        return 0.0
    return math.floor(1e4 * (small_epochs(epochs, progressive) + 1) / epochs) / 1e4


def check_records(source: DataSource) -> None:
    """Raises ``UserError`` where there is nothing to learn from."""
    if not source.records:
        raise UserError(f"{source.root}: expected images with masks to learn from, found none")


def kind_of(device: str) -> str:
    """Returns the device's kind, a key of a plan's budgets: a CPU that computes bf16 natively is one of its own."""
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


def affordable(source: DataSource, budget: Budget) -> Budget:
    """Returns the budget, with fewer pixels where the encoder's early stages, planned to keep their values, must learn.

    They keep them if they have learnt from such images, of three channels, and the pretrained weights are installed.
    """
    if not budget.frozen or (installed_file(budget.encoder) is not None and num_channels(source) == 3):
        return budget
    whole, windows = budget.whole, budget.windows
    return replace(
        budget,
        frozen=(),
        whole=replace(whole, total_pixels=whole.total_pixels * 2 / 3),
        windows=replace(windows, total_pixels=windows.total_pixels * 2 / 3),
    )


def released(planned: Recipe, asked: Recipe) -> Recipe:
    """Returns the recipe that was asked for; of a network that is not the planned one, what the plan froze learns.

    A plan freezes parts of one encoder with its pretrained weights: another has other parts, or knows nothing yet.
    """
    before = {member.name: member for member in planned.members}
    members = []
    for member in asked.members:
        plan = before.get(member.name, member)
        ours, theirs = (each.network.model_dump(include=set(_MADE_OF)) for each in (plan, member))
        if ours != theirs and member.optimiser.frozen == plan.optimiser.frozen:
            member = member.model_copy(update={"optimiser": member.optimiser.model_copy(update={"frozen": ()})})
        members.append(member)
    return asked.model_copy(update={"members": tuple(members)})


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


def windows_of(budget: Budget, *, scale: float = 1.0) -> InputPolicy:
    """Returns windows of images whose sides are first multiplied by ``scale``."""
    windows = budget.windows
    return InputPolicy(mode="window", size=(windows.side, windows.side), prefer_class=windows.prefer_class, scale=scale)


def have_one_shape(sizes: Sequence[Size]) -> bool:
    """Returns whether the aspect ratios of all images agree within 2 %."""
    ratios = [height / width for height, width in sizes]
    return max(ratios) / min(ratios) <= 1.02


def input_policy(sizes: Sequence[Size], budget: Budget) -> InputPolicy:
    """Returns whole images where they share one shape, else windows at full resolution.

    Whole images larger than the budget are shrunk to it.
    """
    if not have_one_shape(sizes):
        return windows_of(budget)
    height, width = usual_size(sizes)
    shrink = min(1.0, math.sqrt(budget.whole.most_pixels / (height * width)))
    return InputPolicy(mode="resize", size=(max(round(height * shrink), 1), max(round(width * shrink), 1)))
