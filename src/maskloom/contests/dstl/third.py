"""Dstl satellite imagery, 3rd place: a U-Net for each of six classes on 16 channels, and water by an index.

Published are networks, input, losses, optimiser, sampling, tiles and views. Of folds it had none, and its thresholds
were chosen by hand; here both follow the scenes, so that every score is out of fold.
"""

from __future__ import annotations

from maskloom.contests.dstl.joining import PUBLISHED
from maskloom.contests.dstl.truth import CLASSES
from maskloom.data.augment import AugmentSettings
from maskloom.data.band_math import BandSettings
from maskloom.data.band_registration import BandPair, RegistrationSettings
from maskloom.data.folds import FoldSettings
from maskloom.data.input_policy import InputPolicy
from maskloom.data.sources.base import DataSource
from maskloom.ensembling.precedence import Precedence
from maskloom.errors import UserError
from maskloom.inference.predictor import InferenceSettings
from maskloom.losses.terms import LossSettings, LossTerm
from maskloom.members import MemberSettings
from maskloom.models.encoders import NetworkSettings
from maskloom.recipe import DeliverySettings, Recipe, Scale
from maskloom.recipes.smoke import smoked
from maskloom.records import usual_size
from maskloom.training.engine import TrainingSettings
from maskloom.training.optimisers import OptimiserSettings
from maskloom.training.phases import Phase
from maskloom.training.schedules import ScheduleSettings

BANDS = BandSettings(names="dstl", full_scale=2047, indices=("dstl_evi", "dstl_ndwi", "dstl_savi", "dstl_ccci"))
"""RGB, eight bands of M and P on the grid of RGB, 11 bits; with four indices 16 channels."""

LOSS = LossSettings(terms=(LossTerm(kind="bce"), LossTerm(kind="jaccard", log=True, smooth=1e-12)))
"""BCE - log Jaccard, over the batch."""

TILES = InputPolicy(mode="window", size=(112, 112), margin=16, multiple=16, bands=BANDS)
"""Windows drawn uniformly, of which the inner 80×80 count; tiles whose inner 80×80 are kept."""

FLIPS = AugmentSettings(horizontal_flip=0.5, vertical_flip=0.5, transpose=0.5)

REGISTRATION = RegistrationSettings(pairs=(BandPair(file=0, image_band=1, band=2),))
"""M on RGB by their green bands, shifts only."""

NETWORK_CLASSES = CLASSES[:6]
"""The classes that have a network each; water has an index, vehicles were given up."""

PRECEDENCE = tuple(Precedence(winner=winner, losers=losers) for winner, losers in PUBLISHED.precedence)
"""Which class clears which, in the published order."""

STEPS_PER_EPOCH = 400
EPOCHS = 50
"""Of each of the two phases."""
BATCH_SIZES = {name: 96 if name == "tracks" else 128 for name in NETWORK_CLASSES}


def nadam(lr: float) -> OptimiserSettings:
    """Returns Nadam as published: without weight decay."""
    return OptimiserSettings(kind="nadam", lr=lr, weight_decay=0)


def dstl_3rd(source: DataSource, *, device: str, scale: Scale = "full") -> Recipe:
    """Returns the system of the 3rd place: six networks, one per class, over five folds of scenes, and water by CCCI.

    The second phase, published for most classes, is made for all. The device changes nothing. Raises ``UserError`` for
    data that is not the contest's RGB, M and P files.
    """
    if source.layout != "dstl" or not source.records[0].bands:
        swir = source.layout == "dstl"
        raise UserError(
            f"{source.root}: expected the Dstl layout with three_band/ and sixteen_band/ for dstl_3rd, found "
            f"{'SWIR bands alone; add the others' if swir else f'the layout {source.layout}; choose default'}"
        )
    num_scenes = len({record.group for record in source.records})
    recipe = Recipe(
        name="dstl_3rd",
        metric="iou",
        registration=REGISTRATION,
        folds=FoldSettings(kind="kfold", count=min(max(num_scenes, 2), 5)),
        members=tuple(map(_member, NETWORK_CLASSES)),
        inference=InferenceSettings(views="flips_transpose", view_merge="geometric"),
        delivery=DeliverySettings(precedence=PRECEDENCE, water="ccci"),
    )
    if scale == "full":
        return recipe
    return smoked(recipe, usual_size(record.size for record in source.records))


def _member(name: str) -> MemberSettings:
    """Returns the network of one class."""
    batch_size = BATCH_SIZES[name]
    return MemberSettings(
        name=name,
        classes=(name,),
        network=NetworkSettings(
            architecture="unet_elu", weights="none", channels=len(BANDS.bands) + len(BANDS.indices)
        ),
        input=TILES,
        loss=LOSS,
        augment=FLIPS,
        optimiser=nadam(1e-3),
        schedule=ScheduleSettings(kind="constant"),
        training=TrainingSettings(
            phases=(Phase(epochs=EPOCHS), Phase(epochs=EPOCHS, optimiser=nadam(1e-4))),
            images_per_epoch=STEPS_PER_EPOCH * batch_size,
            batch_size=batch_size,
        ),
    )
