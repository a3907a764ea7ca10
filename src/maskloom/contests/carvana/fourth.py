"""Carvana, 4th place: five kinds of U-Nets, pretrained on their own labels, a second layer, boxes, holes filled.

The system of the team 80 TFlops. Sources: https://github.com/killthekitten/kaggle-carvana-2017 and the team's slides.
"""

from __future__ import annotations

from maskloom.contests.carvana.common import HALF, WHOLE, adam, complete
from maskloom.contests.carvana.folds import AREA_5
from maskloom.data.augment import PRESETS
from maskloom.data.input_policy import InputPolicy
from maskloom.data.sources.base import DataSource
from maskloom.ensembling.postprocess import FarStep, HolesStep, PostprocessSettings
from maskloom.ensembling.pseudo_labels import PseudoLabelSettings
from maskloom.inference.guidance import GuidanceSettings, RegionSettings
from maskloom.inference.merging import Merge
from maskloom.inference.predictor import InferenceSettings
from maskloom.losses.terms import LossSettings, LossTerm
from maskloom.members import MemberSettings
from maskloom.models.encoders import NetworkSettings
from maskloom.recipe import EnsembleSettings, Recipe, Scale
from maskloom.training.engine import TrainingSettings
from maskloom.training.optimisers import OptimiserSettings
from maskloom.training.schedules import ScheduleSettings

SIMPLE = NetworkSettings(architecture="unet_plain", weights="none")
VGG = NetworkSettings(architecture="unet_vgg_4th", encoder="vgg16", weights="hub")
INCEPTION = NetworkSettings(architecture="unet_inception_resnet_4th", encoder="inception_resnet_v2", weights="hub")
MOBILENET = NetworkSettings(architecture="unet_mobilenet_4th", encoder="mobilenetv1_100", weights="hub")
RESNET = NetworkSettings(architecture="unet_resnet50_4th", encoder="resnet50", weights="hub")
"""The last four were pretrained: their encoders start from the hub's weights, unless a file is stated."""

CROPS = InputPolicy(mode="window", size=(1024, 1024))
"""Random crops in training, overlapping tiles in prediction."""

BCE = LossSettings(terms=(LossTerm(kind="bce"),))
DICE = LossSettings(terms=(LossTerm(kind="dice"),))
BCE_02_DICE_08 = LossSettings(terms=(LossTerm(kind="bce", weight=0.2), LossTerm(kind="dice", weight=0.8)))
SOFT_BOOTSTRAP = LossSettings(
    terms=(LossTerm(kind="bootstrapped_bce", mixture="soft", weight=0.2), LossTerm(kind="dice", weight=0.8))
)
HARD_BOOTSTRAP = LossSettings(
    terms=(LossTerm(kind="bootstrapped_bce", mixture="hard", weight=0.2), LossTerm(kind="dice", weight=0.8))
)
HARDEST_PIXELS = LossSettings(terms=(LossTerm(kind="online_bootstrapping", hardest=32_768, threshold=0.3),))
BORDER_BCE = LossSettings(terms=(LossTerm(kind="border_bce", weight=0.05), LossTerm(kind="dice", weight=0.95)))
BORDER_DICE = LossSettings(terms=(LossTerm(kind="border_dice", weight=0.05), LossTerm(kind="dice", weight=0.95)))

TRIANGLES = ScheduleSettings(kind="triangular", base=0.1, half_cycle=2, mode="triangular")
"""Four epochs from a tenth of the learning rate up to it and back; no numbers are published."""

BOXES = GuidanceSettings(
    region=RegionSettings(of="unet", kind="box", threshold=100 / 255, minimum_area=50_000, margin=64, round_to=64)
)
"""The second pass: what the plain U-Net's mask shows to be the car, with a margin, in multiples of 64 pixels."""

SECOND_LAYER = GuidanceSettings(maps=("refined", "mobilenet"))
"""One out-of-fold map per network; the published second layer saw all folds' maps of two networks, ten in all."""

TREE = Merge(
    children=("unet", "vgg", "inception", "mobilenet", "resnet", "refined", "boxed", "second"),
    weights=(0.25, 1, 1, 1, 1, 1, 1, 1),
)
"""The mean, but "weak networks only help in small amounts": the plain U-Net, by an amount that is ours."""


def carvana_4th(source: DataSource, *, device: str, scale: Scale = "full") -> Recipe:
    """Returns the system of the 4th place: eight members of five folds, their mean, holes filled, far pieces removed.

    ``--set ensemble.tree.kind=mode`` lets a majority decide, as published beside the mean. Without unlabelled photos
    all learn from true labels alone. The device changes nothing. Raises ``UserError`` for data with fewer than 5 cars
    or of another task.
    """
    recipe = Recipe(
        name="carvana_4th",
        metric="dice",
        folds=AREA_5,
        members=_members(),
        pseudo=(
            PseudoLabelSettings(
                members=("refined",),
                teachers=("vgg", "mobilenet", "resnet"),
                train="pretrain_then_refine",
                # The whole test set: 100,064 photos are 25 times as many as a fold trains on.
                outnumber=30,
                minimum_confidence=0,
                ignore_below=0,
            ),
        ),
        inference=InferenceSettings(views="none"),
        ensemble=EnsembleSettings(tree=TREE, thresholds=HALF),
        postprocess=PostprocessSettings(steps=(HolesStep(), FarStep()), choose="always"),
    )
    return complete(recipe, source, scale)


def _members() -> tuple[MemberSettings, ...]:
    """Networks, losses, inputs and rates are published, not which went together: here each occurs at least once.

    Rates lie within the published 1e-5…1e-3: the highest without pretrained weights, the lowest for refining.
    """
    return (
        _member("unet", SIMPLE, BCE, adam(1e-3), policy=CROPS),
        _member("vgg", VGG, BORDER_DICE, adam(1e-4, frozen=("encoder.0.", "encoder.2."))),  # of VGG's early layers
        _member("inception", INCEPTION, HARDEST_PIXELS, adam(1e-4)),
        _member("mobilenet", MOBILENET, SOFT_BOOTSTRAP, adam(1e-4), policy=CROPS, schedule=TRIANGLES),
        _member("resnet", RESNET, BCE_02_DICE_08, adam(1e-4), views="flip"),
        _member("refined", RESNET, HARD_BOOTSTRAP, adam(1e-5), views="flip"),
        _member("boxed", MOBILENET, BORDER_BCE, adam(1e-4), guidance=BOXES),
        _member("second", SIMPLE, DICE, adam(1e-3), guidance=SECOND_LAYER),
    )


def _member(
    name: str,
    network: NetworkSettings,
    loss: LossSettings,
    optimiser: OptimiserSettings,
    *,
    policy: InputPolicy = WHOLE,
    schedule: ScheduleSettings = ScheduleSettings(kind="constant"),  # noqa: B008 (it is frozen)
    views: str | None = None,
    guidance: GuidanceSettings | None = None,
) -> MemberSettings:
    """30 epochs of single images, every epoch's weights kept with their scores, and the best of them used."""
    return MemberSettings(
        name=name,
        network=network,
        input=policy,
        loss=loss,
        optimiser=optimiser,
        schedule=schedule,
        augment=PRESETS["carvana_4th"],
        training=TrainingSettings(epochs=30, batch_size=1, early_stopping=45, keep_epochs=True),
        keep="best",
        guidance=guidance,
        views=views,
    )
