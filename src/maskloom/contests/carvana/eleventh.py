"""Carvana, 11th place: a rough outline at a quarter of the size, then a network for windows around the edge.

Only the two stages are published: networks, windows and training are chosen here.
"""

from __future__ import annotations

from maskloom.contests.carvana.common import BCE_AND_DICE, HALF, WHOLE, adam, complete
from maskloom.contests.carvana.folds import AREA_5
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

QUARTER = InputPolicy(mode="full", multiple=32, scale=0.25)
"""1918×1280 becomes 480×320."""

EDGE = GuidanceSettings(region=RegionSettings(of="outline", kind="contour", threshold=0.5, margin=32, window=256))
"""Windows of 256×256 at full resolution; the outline is right to a few of its pixels, of which each is 4 here."""


def carvana_11th(source: DataSource, *, device: str, scale: Scale = "full") -> Recipe:
    """Returns the system of the 11th place: inside and outside from the outline, the edge from its own network.

    The device changes nothing. Raises ``UserError`` for data with fewer than 5 cars or of another task.
    """
    outline = MemberSettings(
        name="outline",
        network=NetworkSettings(architecture="unet_plain", weights="none"),
        input=QUARTER,
        loss=BCE_AND_DICE,
        optimiser=adam(1e-3),
        schedule=ScheduleSettings(kind="decay", every=20, gamma=0.1),
        augment=PRESETS["carvana_2"],
        training=TrainingSettings(epochs=60, batch_size=8),
        in_ensemble=False,
    )
    edge = MemberSettings(
        name="edge",
        network=NetworkSettings(architecture="unet_vgg11"),
        input=WHOLE,  # of a window, which is all that this network ever sees
        loss=BCE_AND_DICE,
        optimiser=adam(1e-4),
        schedule=ScheduleSettings(kind="decay", every=20, gamma=0.1),
        augment=PRESETS["carvana_0"],
        training=TrainingSettings(epochs=60, batch_size=16),
        guidance=EDGE,
    )
    recipe = Recipe(
        name="carvana_11th",
        metric="dice",
        folds=AREA_5,
        members=(outline, edge),
        inference=InferenceSettings(views="flip"),
        ensemble=EnsembleSettings(thresholds=HALF),
    )
    return complete(recipe, source, scale)
