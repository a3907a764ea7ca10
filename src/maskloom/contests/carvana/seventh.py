"""Carvana, 7th place: a U-Net finds the box, another one segments it at full resolution; no folds, no ensemble.

Published are the two stages, the margin, the crops and the flips; the rest is chosen here.
"""

from __future__ import annotations

from maskloom.contests.carvana.common import BCE_AND_DICE, HALF, adam, complete
from maskloom.contests.carvana.folds import AREA_5, HELD_OUT
from maskloom.data.augment import PRESETS
from maskloom.data.input_policy import InputPolicy
from maskloom.data.sources.base import DataSource
from maskloom.inference.guidance import GuidanceSettings, RegionSettings
from maskloom.inference.predictor import InferenceSettings
from maskloom.members import MemberSettings
from maskloom.models.encoders import NetworkSettings
from maskloom.recipe import EnsembleSettings, Recipe, Scale
from maskloom.training.engine import TrainingSettings
from maskloom.training.schedules import ScheduleSettings

BOX = GuidanceSettings(region=RegionSettings(of="box", kind="box", threshold=0.5, margin=150, round_to=1))
"""The box around the largest component, 150 px larger on each side."""

CROPS = InputPolicy(mode="window", size=(512, 512), multiple=64)
"""512×512 of the box at full resolution, tiles of that size in prediction."""


def carvana_7th(source: DataSource, *, device: str, scale: Scale = "full") -> Recipe:
    """Returns the system of the 7th place: one network for the box, one for what is in it.

    The second stage is a single network, scored on a fifth of the cars. Boxes of training photos come from networks
    that never saw the car, which the published ones did not; so the first stage has folds here. The device changes
    nothing. Raises ``UserError`` for data with fewer than 5 cars or of another task.
    """
    box = MemberSettings(
        name="box",
        network=NetworkSettings(architecture="unet_plain", weights="none"),
        input=InputPolicy(mode="resize", size=(320, 480)),
        loss=BCE_AND_DICE,
        optimiser=adam(1e-3),
        schedule=ScheduleSettings(kind="decay", every=10, gamma=0.1),
        augment=PRESETS["carvana_2"],
        training=TrainingSettings(epochs=30, batch_size=8),
        in_ensemble=False,
    )
    car = MemberSettings(
        name="car",
        network=NetworkSettings(architecture="unet_resnet", encoder="resnet34"),
        input=CROPS,
        loss=BCE_AND_DICE,
        optimiser=adam(1e-4),
        schedule=ScheduleSettings(kind="decay", every=20, gamma=0.1),
        augment=PRESETS["carvana_0"],
        training=TrainingSettings(epochs=60, batch_size=8),
        guidance=BOX,
        folds=HELD_OUT,
    )
    recipe = Recipe(
        name="carvana_7th",
        metric="dice",
        folds=AREA_5,
        members=(box, car),
        inference=InferenceSettings(views="flip"),
        ensemble=EnsembleSettings(thresholds=HALF),
    )
    return complete(recipe, source, scale)
