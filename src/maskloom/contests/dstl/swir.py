"""Dstl's eight short-wave infrared bands alone: U-Nets over all ten classes, and an index classifier beside them.

No published system: the contest's teams left these bands out, since a pixel of theirs is 7.5 m wide. Images are as
small as scenes are few, so networks are small and see many changed windows; every score is out of fold, by scene.
"""

from __future__ import annotations

from collections import Counter

from maskloom.contests.dstl.truth import CLASSES
from maskloom.data.augment import AugmentSettings
from maskloom.data.band_math import BandSettings
from maskloom.data.folds import FoldSettings
from maskloom.data.input_policy import InputPolicy
from maskloom.data.sources.base import DataSource
from maskloom.errors import UserError
from maskloom.inference.predictor import InferenceSettings
from maskloom.losses.terms import LossSettings, LossTerm
from maskloom.models.encoders import NetworkSettings
from maskloom.rasters.indices import IndexRule, IndexSettings, band_names
from maskloom.recipe import EnsembleSettings, MemberSettings, Recipe, Scale
from maskloom.recipes.smoke import smoked
from maskloom.training.engine import TrainingSettings
from maskloom.training.optimisers import OptimiserSettings
from maskloom.training.schedules import ScheduleSettings

BANDS = band_names("worldview3_swir")
FULL_SCALE = 16383
"""14 bits."""
NUM_FOLDS = 5

CANDIDATES = (
    "5 * swir1",
    "5 * swir4",
    "5 * swir8",
    "(swir1 + swir2 + swir3 + swir4) / 4 * 5",
    "(swir5 + swir6 + swir7 + swir8) / 4 * 5",
    "5 * (swir1 - swir8)",
    "(swir1 - swir4) / (swir1 + swir4)",
    "(swir2 - swir3) / (swir2 + swir3)",
    "(swir3 - swir6) / (swir3 + swir6)",
    "(swir4 - swir8) / (swir4 + swir8)",
)
"""Indices of which each class takes the best: water is dark, plants hold water. Five times, as thresholds are 0.01
apart and most values lie below a fifth of the scale."""

LOSS = LossSettings(terms=(LossTerm(kind="bce"), LossTerm(kind="jaccard")))

AUGMENT = AugmentSettings(
    horizontal_flip=0.5, vertical_flip=0.5, transpose=0.5, geometric=0.7, shift=0.05, scale=(0.8, 1.6), rotate=45,
    brightness=0.3, contrast=0.2,
)  # fmt: skip
"""The eight symmetries, objects of other sizes, and other light: a gain common to all bands, since scenes differ by
more than half in it."""


def dstl_swir(source: DataSource, *, device: str, scale: Scale = "full") -> Recipe:
    """Returns a recipe for the SWIR files of a Dstl folder, over folds of scenes.

    The device changes nothing. Raises ``UserError`` for data that is not the contest's SWIR files alone.
    """
    if source.layout != "dstl" or source.records[0].bands:
        is_rgb = source.layout == "dstl"
        found = "RGB files; state --set data.images=sixteen_band" if is_rgb else f"{source.layout}; choose default"
        raise UserError(f"{source.root}: expected the SWIR files of the Dstl layout for dstl_swir, found {found}")
    num_scenes = len({record.group for record in source.records})
    recipe = Recipe(
        name="dstl_swir",
        metric="iou",
        folds=FoldSettings(kind="kfold", count=min(max(num_scenes, 2), NUM_FOLDS)),
        members=(_index(), _unet_elu(), _unet()),
        inference=InferenceSettings(views="symmetry"),
        ensemble=EnsembleSettings(weights="fitted"),
    )
    if scale == "full":
        return recipe
    (size, _), *_ = Counter(record.size for record in source.records).most_common(1)
    return smoked(recipe, size)


def _unet_elu() -> MemberSettings:
    """Returns the published network of the contest, half as wide, on the pixels as they are."""
    return MemberSettings(
        name="unet_elu",
        network=NetworkSettings(architecture="unet_elu", weights="none", channels=len(BANDS), width=0.5),
        input=InputPolicy(mode="window", size=(96, 96), multiple=16, overlap=0.5, prefer_class=0.5),
        loss=LOSS,
        optimiser=OptimiserSettings(kind="adamw", lr=2e-3, weight_decay=5e-2),
        schedule=ScheduleSettings(kind="one_cycle"),
        augment=AUGMENT,
        training=_training(epochs=10, images_per_epoch=320),
    )


def _unet() -> MemberSettings:
    """Returns a U-Net over a pretrained encoder, on images of twice the size: its strides are half as coarse there."""
    return MemberSettings(
        name="unet",
        network=NetworkSettings(channels=len(BANDS), decoder_channels=(128, 64, 32, 16, 16)),
        input=InputPolicy(mode="window", size=(192, 192), scale=2.0, overlap=0.5, prefer_class=0.5),
        loss=LOSS,
        optimiser=OptimiserSettings(kind="adamw", lr=1e-3, weight_decay=5e-2),
        schedule=ScheduleSettings(kind="one_cycle"),
        augment=AUGMENT,
        training=_training(epochs=5, images_per_epoch=240),
    )


def _training(*, epochs: int, images_per_epoch: int) -> TrainingSettings:
    return TrainingSettings(
        epochs=epochs,
        images_per_epoch=images_per_epoch,
        batch_size=8,
        ema_decay=0.99,
        clip_norm=1.0,
        validate_every=epochs,
    )


def _index() -> MemberSettings:
    """Returns the index classifier: of each class the best index, direction and threshold on the training scenes."""
    rules = tuple(IndexRule(expression=text) for text in CANDIDATES)
    assert len(rules) == len(CLASSES), "a rule per class; each class takes the best of all"
    return MemberSettings(
        name="index",
        network=NetworkSettings(
            architecture="index", channels=len(BANDS), index=IndexSettings(bands=BANDS, rules=rules)
        ),
        input=InputPolicy(mode="full", multiple=1, bands=BandSettings(names="worldview3_swir", full_scale=FULL_SCALE)),
        views="none",
    )
