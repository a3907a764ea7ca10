"""Carvana, 15th place: a coarse mask by a regular full-resolution U-Net, refined in patches along the contour.

Only the two stages are published: networks, patches and training are chosen here.
"""

from __future__ import annotations

from maskloom.contests.carvana.common import BCE_AND_DICE, HALF, WHOLE, adam, complete
from maskloom.contests.carvana.folds import AREA_5
from maskloom.data.augment import PRESETS
from maskloom.data.sources.base import DataSource
from maskloom.inference.guidance import GuidanceSettings, RegionSettings
from maskloom.inference.predictor import InferenceSettings
from maskloom.members import MemberSettings
from maskloom.models.encoders import NetworkSettings
from maskloom.recipe import EnsembleSettings, Recipe, Scale
from maskloom.training.engine import TrainingSettings
from maskloom.training.schedules import ScheduleSettings

PATCHES = GuidanceSettings(region=RegionSettings(of="coarse", kind="contour", threshold=0.5, margin=16, window=256))
"""Patches of 256×256; the coarse mask is of full resolution, so that its contour is close."""


def carvana_15th(source: DataSource, *, device: str, scale: Scale = "full") -> Recipe:
    """Returns the system of the 15th place: the coarse mask with the refined patches laid over it.

    The device changes nothing. Raises ``UserError`` for data with fewer than 5 cars or of another task.
    """
    coarse = MemberSettings(
        name="coarse",
        network=NetworkSettings(architecture="unet_plain", weights="none"),
        input=WHOLE,
        loss=BCE_AND_DICE,
        optimiser=adam(1e-3),
        schedule=ScheduleSettings(kind="decay", every=20, gamma=0.1),
        augment=PRESETS["carvana_0"],
        training=TrainingSettings(epochs=60, batch_size=4),
        in_ensemble=False,
    )
    patches = MemberSettings(
        name="patches",
        network=NetworkSettings(architecture="unet_vgg11"),
        input=WHOLE,  # of a patch
        loss=BCE_AND_DICE,
        optimiser=adam(1e-4),
        schedule=ScheduleSettings(kind="decay", every=20, gamma=0.1),
        augment=PRESETS["carvana_0"],
        training=TrainingSettings(epochs=60, batch_size=16),
        guidance=PATCHES,
    )
    recipe = Recipe(
        name="carvana_15th",
        metric="dice",
        folds=AREA_5,
        members=(coarse, patches),
        inference=InferenceSettings(views="flip"),
        ensemble=EnsembleSettings(thresholds=HALF),
    )
    return complete(recipe, source, scale)
