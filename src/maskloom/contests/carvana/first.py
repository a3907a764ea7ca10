"""Carvana, 1st place: scratch, VGG11, LinkNet34 and TernausNet, 49 networks, and the hull of unsure regions.

The system of the team best[over]fitting (asanakoy, albu, ternaus). Sources:
https://github.com/asanakoy/kaggle_carvana_segmentation, the winners' interview, https://arxiv.org/abs/1801.05746.
"""

from __future__ import annotations

from maskloom.contests.carvana.common import BCE_AND_DICE, HALF, WHOLE, adam, complete
from maskloom.contests.carvana.folds import AREA_5, AREA_BINS_7, RANDOM_5, RANDOM_7, VIEW_AREA_5
from maskloom.data.augment import PRESETS
from maskloom.data.folds import FoldSettings
from maskloom.data.input_policy import InputPolicy
from maskloom.data.sources.base import DataSource
from maskloom.ensembling.postprocess import HullStep, PostprocessSettings
from maskloom.ensembling.pseudo_labels import PseudoLabelSettings
from maskloom.inference.merging import Merge
from maskloom.inference.predictor import InferenceSettings
from maskloom.losses.terms import LossSettings, LossTerm
from maskloom.members import MemberSettings
from maskloom.models.encoders import NetworkSettings
from maskloom.recipe import EnsembleSettings, Recipe, Scale
from maskloom.training.engine import TrainingSettings
from maskloom.training.optimisers import OptimiserSettings
from maskloom.training.phases import Phase
from maskloom.training.schedules import ScheduleSettings

LINKNET = "linknet"
"""The mean of the six LinkNet configurations: a member of the average, and what the hull is made by."""

BOUNDARY = LossSettings(terms=(LossTerm(kind="boundary_bce"), LossTerm(kind="boundary_dice")))
"""Both weighted 3 near the boundary; the window is that of the image's height."""

LOG_DICE = LossSettings(terms=(LossTerm(kind="bce"), LossTerm(kind="dice", log=True, smooth=1e-15)))
"""BCE - log(soft Dice over the batch)."""


def carvana_1st(source: DataSource, *, device: str, scale: Scale = "full") -> Recipe:
    """Returns the system of the 1st place as published; the device changes nothing.

    Four members of equal weight: scratch and vgg11v1 of 7 folds at 1024×1024, LinkNet34 in 6 configurations of 5
    folds and TernausNet of 5 folds at full size; the hull of unsure regions by LinkNet's map; threshold 0.5. All but
    scratch start from ImageNet's weights, which the hub has. Without unlabelled photos all learn from true labels
    alone. Raises ``UserError`` for data with fewer than 7 cars or of another task.
    """
    recipe = Recipe(
        name="carvana_1st",
        metric="dice",
        folds=RANDOM_7,
        members=(_scratch(), _vgg11v1(), *_linknets(), _ternaus()),
        # "The networks are trained again" is all that is published: here the two that repeat the first LinkNet, which
        # shares their folds and so may label for them.
        pseudo=(PseudoLabelSettings(members=("linknet_fma_44", "linknet_fma_88"), teachers=("linknet_fma",)),),
        inference=InferenceSettings(views="none"),  # only the LinkNets are published with test-time flips
        ensemble=EnsembleSettings(tree=_tree(), thresholds=HALF),
        postprocess=PostprocessSettings(steps=(HullStep(map=LINKNET),), choose="always"),
    )
    return complete(recipe, source, scale)


def _tree() -> Merge:
    """Returns the plain mean of the four members, each the mean of its networks."""
    linknets = tuple(member.name for member in _linknets())
    return Merge(children=("scratch", "vgg11v1", Merge(children=linknets, name=LINKNET), "ternaus"))


def _scratch() -> MemberSettings:
    return MemberSettings(
        name="scratch",
        network=NetworkSettings(architecture="unet_scratch", weights="none"),
        input=InputPolicy(mode="resize", size=(1024, 1024), multiple=64),
        loss=BOUNDARY,
        optimiser=OptimiserSettings(kind="sgd", lr=5e-3, momentum=0.9, weight_decay=5e-4, decay_norm_and_bias=True),
        schedule=ScheduleSettings(kind="decay", every=100, gamma=0.5),
        augment=PRESETS["carvana_2"],
        training=TrainingSettings(epochs=250, batch_size=1, accumulation=4),
    )


def _vgg11v1() -> MemberSettings:
    """Two augmentations in turn under one schedule of three cycles."""
    return MemberSettings(
        name="vgg11v1",
        network=NetworkSettings(architecture="unet_vgg11", weights="hub"),
        input=InputPolicy(mode="resize", size=(1024, 1024)),
        loss=BOUNDARY,
        optimiser=adam(1e-4),
        schedule=ScheduleSettings(kind="cycles", cycle=((10, 1.0), (5, 0.1), (5, 0.01))),
        augment=PRESETS["carvana_1"],
        training=TrainingSettings(
            phases=(Phase(epochs=15), Phase(epochs=45, augment=PRESETS["carvana_0"])),
            batch_size=1,  # no batch is published: that of the same author's other member
            accumulation=4,
        ),
        folds=AREA_BINS_7,
    )


def _linknets() -> tuple[MemberSettings, ...]:
    """Six configurations over two fold files; 44 and 88 are published seeds.

    Here the seed of a member follows from its name, which the published seeds are part of.
    """
    return (
        _linknet("linknet_fma", AREA_5),
        _linknet("linknet_fma_44", AREA_5),
        _linknet("linknet_fma_88", AREA_5),
        _linknet("linknet_f04a_44", VIEW_AREA_5),
        _linknet("linknet_f04a_clahe", VIEW_AREA_5, clahe=True),
        _linknet("linknet_f04a_clahe_rmsprop", VIEW_AREA_5, clahe=True, rmsprop=True),
    )


def _linknet(name: str, folds: FoldSettings, *, clahe: bool = False, rmsprop: bool = False) -> MemberSettings:
    """Staged decay, then cycles restarted with Adam, which is also what the decay begins with unless it is RMSProp."""
    start = OptimiserSettings(kind="rmsprop", lr=1e-4, weight_decay=0, momentum=0, smoothing=0.99)
    return MemberSettings(
        name=name,
        network=NetworkSettings(architecture="linknet_deconv", encoder="resnet34", weights="hub"),
        input=WHOLE.model_copy(update={"clahe": clahe}),
        loss=BCE_AND_DICE,
        optimiser=start if rmsprop else adam(1e-4),
        schedule=ScheduleSettings(kind="decay", every=12, gamma=0.1),
        augment=PRESETS["carvana_linknet"],
        training=TrainingSettings(
            phases=(  # "from epoch 23": epochs are counted from 0, as programs do
                Phase(epochs=23),
                Phase(
                    epochs=17,
                    optimiser=adam(1e-4),
                    schedule=ScheduleSettings(kind="cycles", cycle=((2, 1.0), (2, 0.1), (1, 0.01))),
                ),
            ),
            batch_size=4,
            hard_negative_every=10,
            clip_norm=1.0,
        ),
        folds=folds,
        views="flip",
        view_merge="logit_mean",
    )


def _ternaus() -> MemberSettings:
    """A new Adam each epoch, its rate halved after every two epochs of five."""
    return MemberSettings(
        name="ternaus",
        network=NetworkSettings(architecture="ternausnet", encoder="vgg11", weights="hub"),
        input=WHOLE,
        loss=LOG_DICE,
        optimiser=adam(1e-4),
        schedule=ScheduleSettings(kind="cycles", cycle=((2, 1.0), (2, 0.5), (1, 0.25))),
        augment=PRESETS["carvana_ternaus"],
        training=TrainingSettings(phases=(Phase(epochs=52, fresh_optimiser="epoch"),), batch_size=4),
        folds=RANDOM_5,
    )
