"""Signate AI Edge (street scenes), 22nd place: a U-Net over ResNet34 on whole photos that learns all 20 categories.

Published are the network, the sizes, optimiser, schedule and losses. Its folds were seven, of which it trained some;
here every fold has its network, and they predict together.
"""

from __future__ import annotations

from maskloom.contests.signate.layout import ATTRIBUTES
from maskloom.data.augment import PRESETS
from maskloom.data.folds import FoldSettings
from maskloom.data.input_policy import InputPolicy
from maskloom.data.sources.base import DataSource
from maskloom.errors import UserError
from maskloom.inference.predictor import InferenceSettings
from maskloom.losses.terms import LossSettings, LossTerm
from maskloom.members import MemberSettings
from maskloom.models.encoders import NetworkSettings
from maskloom.recipe import Recipe, Scale
from maskloom.recipes.smoke import smoked
from maskloom.records import usual_size
from maskloom.training.engine import TrainingSettings
from maskloom.training.optimisers import OptimiserSettings
from maskloom.training.schedules import ScheduleSettings

FOLDS = FoldSettings(kind="kfold", count=7, stratify="attributes", attributes=ATTRIBUTES, seed=42)
"""Photos of each route and time of day, shuffled with seed 42 and dealt over seven folds."""

WHOLE = InputPolicy(mode="full", multiple=64)
"""Whole photos: 1936×1216 are padded to 1984×1216, 24 mirrored columns on each side."""

JACCARD_WEIGHT = 0.3
"""The share of -log Jaccard in the loss; cross-entropy has the rest. Published as a setting; the best run had none."""

LEARNING_RATE = 1e-4
MINIMUM = 1e-6
"""The learning rate below which the schedule does not fall."""


def mixed(share: float, num_classes: int) -> LossSettings:
    """Returns (1 - share)·cross-entropy - share·(mean over all classes of log Jaccard); at 0 or 1 one of them alone.

    A class that the batch does not show counts, too: as published, its loss is that of the pixels taken for it. The
    published loss divides the weight of its sum over classes by their number, so this is its mean (``losses.py`` of the
    source, ``LossMulti``).
    """
    terms = []
    if share < 1:
        terms.append(LossTerm(kind="cross_entropy", weight=1 - share))
    if share > 0:
        terms.append(LossTerm(kind="jaccard", log=True, over_classes="sum", smooth=1e-15, weight=share / num_classes))
    return LossSettings(terms=tuple(terms))


def signate_22nd(source: DataSource, *, device: str, scale: Scale = "full") -> Recipe:
    """Returns the system of the 22nd place: seven networks on whole photos, all categories learnt, four submitted.

    The device changes nothing. Raises ``UserError`` for data of another task, for photos without the contest's
    attributes, and for fewer photos (groups) than folds.
    """
    if source.task.kind != "multiclass":
        raise UserError(
            f"{source.root}: expected exclusive classes for signate_22nd, found a {source.task.kind} task; choose "
            "another recipe, such as default"
        )
    lacking = [name for name in ATTRIBUTES if any(name not in record.attributes for record in source.records)]
    if lacking:
        raise UserError(
            f"{source.root}: expected photos with the attributes {' and '.join(ATTRIBUTES)} for the folds of "
            f"signate_22nd, found none of {' and '.join(lacking)}; give the contest's folder, or choose default"
        )
    groups = len({record.group for record in source.records})
    if groups < FOLDS.count:
        raise UserError(
            f"{source.root}: expected at least {FOLDS.count} photos (groups) for the {FOLDS.count} folds of "
            f"signate_22nd, found {groups}; add photos, or choose a recipe that takes fewer, such as default"
        )
    member = MemberSettings(
        name="unet",
        network=NetworkSettings(architecture="unet_resnet", encoder="resnet34"),
        input=WHOLE,
        loss=mixed(JACCARD_WEIGHT, len(source.task.classes)),
        optimiser=OptimiserSettings(kind="adam", lr=LEARNING_RATE, weight_decay=0),
        schedule=ScheduleSettings(
            kind="plateau",
            gamma=0.3,
            patience=3,
            min_delta=1e-3,
            relative_delta=True,
            minimum=MINIMUM / LEARNING_RATE,
        ),
        augment=PRESETS["mirror"],
        training=TrainingSettings(epochs=200, batch_size=3, early_stopping=10),
        keep="best",
    )
    recipe = Recipe(
        name="signate_22nd",
        metric="iou",
        folds=FOLDS,
        members=(member,),
        inference=InferenceSettings(views="none"),
    )
    if scale == "full":
        return recipe
    return smoked(recipe, usual_size(record.size for record in source.records))
