"""Carvana, 6th place: very many members, LinkNets, incnet, dinknet, PSPNets and U-Nets, each over five folds.

The team published its table of members (out-of-fold mean, folds, standard deviation, with and without flips), which
every run's report shows, and no program: what the table does not say is chosen here and said so.
"""

from __future__ import annotations

from maskloom.contests.carvana.common import BCE_AND_DICE, HALF, WHOLE, adam, complete
from maskloom.contests.carvana.folds import AREA_5
from maskloom.data.augment import PRESETS
from maskloom.data.sources.base import DataSource
from maskloom.inference.predictor import InferenceSettings
from maskloom.members import MemberSettings
from maskloom.models.encoders import NetworkSettings
from maskloom.recipe import EnsembleSettings, Recipe, Scale
from maskloom.training.engine import TrainingSettings
from maskloom.training.schedules import ScheduleSettings

NETWORKS = {
    "linknet18": NetworkSettings(architecture="linknet_deconv", encoder="resnet18"),
    "linknet34": NetworkSettings(architecture="linknet_deconv", encoder="resnet34"),
    "incnet": NetworkSettings(architecture="incnet"),
    "dinknet": NetworkSettings(architecture="dinknet", encoder="densenet121"),
    "pspnet18": NetworkSettings(architecture="pspnet", encoder="resnet18"),
    "pspnet34": NetworkSettings(architecture="pspnet", encoder="resnet34"),
    # "unet mix" names no network: the two kinds of U-Net that its neighbours published.
    "unet_vgg11": NetworkSettings(architecture="unet_vgg11"),
    "unet_resnet34": NetworkSettings(architecture="unet_resnet", encoder="resnet34"),
}
"""The members by the names in the published table."""


def carvana_6th(source: DataSource, *, device: str, scale: Scale = "full") -> Recipe:
    """Returns the system of the 6th place: eight kinds of networks of five folds each, their plain mean, flips.

    The device changes nothing. Raises ``UserError`` for data with fewer than 5 cars or of another task.
    """
    recipe = Recipe(
        name="carvana_6th",
        metric="dice",
        folds=AREA_5,  # five columns are published, not how they were dealt
        members=tuple(_member(name, network) for name, network in NETWORKS.items()),
        inference=InferenceSettings(views="flip"),
        ensemble=EnsembleSettings(thresholds=HALF),
    )
    return complete(recipe, source, scale)


def _member(name: str, network: NetworkSettings) -> MemberSettings:
    """No training is published: full size, loss, augmentation and rates as the 1st place trained its LinkNets."""
    input_ = WHOLE.model_copy(update={"multiple": 64}) if network.architecture == "unet_resnet" else WHOLE
    return MemberSettings(
        name=name,
        network=network,
        input=input_,
        loss=BCE_AND_DICE,
        optimiser=adam(1e-4),
        schedule=ScheduleSettings(kind="decay", every=12, gamma=0.1),
        augment=PRESETS["carvana_linknet"],
        training=TrainingSettings(epochs=40, batch_size=4, clip_norm=1.0),
    )
