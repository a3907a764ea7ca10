"""Carvana, 10th place: a network that detects the background, a classic U-Net, one on image halves; no antennas.

Only these ideas are published: networks and training are chosen here, after the 1st place's U-Net from scratch.
"""

from __future__ import annotations

from maskloom.contests.carvana.common import BCE_AND_DICE, HALF, adam, complete
from maskloom.contests.carvana.folds import AREA_5
from maskloom.data.augment import PRESETS
from maskloom.data.input_policy import InputPolicy
from maskloom.data.sources.base import DataSource
from maskloom.ensembling.postprocess import PostprocessSettings, ThinStep
from maskloom.inference.predictor import InferenceSettings
from maskloom.losses.terms import LossSettings
from maskloom.members import MemberSettings
from maskloom.models.encoders import NetworkSettings
from maskloom.recipe import EnsembleSettings, Recipe, Scale
from maskloom.training.engine import TrainingSettings
from maskloom.training.schedules import ScheduleSettings

SQUARE = InputPolicy(mode="resize", size=(1024, 1024), multiple=64)
HALVES = InputPolicy(mode="parts", parts=(1, 2), multiple=64)
"""Left and right half of a photo, each 960×1280 of 1918×1280."""

BACKGROUND = LossSettings(terms=BCE_AND_DICE.terms, target="background")


def carvana_10th(source: DataSource, *, device: str, scale: Scale = "full") -> Recipe:
    """Returns the system of the 10th place: the mean of three U-Nets that differ in what they look at, thin parts off.

    The device changes nothing. Raises ``UserError`` for data with fewer than 5 cars or of another task.
    """
    recipe = Recipe(
        name="carvana_10th",
        metric="dice",
        folds=AREA_5,
        members=(
            _unet("background", SQUARE, BACKGROUND),
            _unet("unet", SQUARE, BCE_AND_DICE),
            _unet("halves", HALVES, BCE_AND_DICE),
        ),
        inference=InferenceSettings(views="flip"),
        ensemble=EnsembleSettings(thresholds=HALF),
        postprocess=PostprocessSettings(steps=(ThinStep(),), choose="always"),
    )
    return complete(recipe, source, scale)


def _unet(name: str, policy: InputPolicy, loss: LossSettings) -> MemberSettings:
    return MemberSettings(
        name=name,
        network=NetworkSettings(architecture="unet_scratch", weights="none"),
        input=policy,
        loss=loss,
        optimiser=adam(1e-3),
        schedule=ScheduleSettings(kind="decay", every=20, gamma=0.1),
        augment=PRESETS["carvana_2"],
        training=TrainingSettings(epochs=60, batch_size=1, accumulation=4),
    )
