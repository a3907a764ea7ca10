"""Carvana, 3rd place: a U-Net with a dilated bottleneck at two sizes, pseudo-labels, averaged by rank.

Source: https://github.com/lyakaap/Kaggle-Carvana-3rd-Place-Solution.
"""

from __future__ import annotations

from maskloom.contests.carvana.common import HALF, WHOLE, complete
from maskloom.contests.carvana.folds import RANDOM_5, RANDOM_6
from maskloom.data.augment import PRESETS
from maskloom.data.folds import FoldSettings
from maskloom.data.input_policy import InputPolicy
from maskloom.data.sources.base import DataSource
from maskloom.ensembling.pseudo_labels import PseudoLabelSettings
from maskloom.inference.predictor import InferenceSettings
from maskloom.losses.terms import LossSettings, LossTerm
from maskloom.members import MemberSettings
from maskloom.models.encoders import NetworkSettings
from maskloom.recipe import EnsembleSettings, Recipe, Scale
from maskloom.training.engine import TrainingSettings
from maskloom.training.optimisers import OptimiserSettings
from maskloom.training.schedules import ScheduleSettings

SMALLER = InputPolicy(mode="resize", size=(1024, 1536))
"""1536×1024; the 1920×1280 of the other networks are photos at full size with one more column on each side."""

PLAIN = LossSettings(terms=(LossTerm(kind="bce"), LossTerm(kind="dice")))
WEIGHTED = LossSettings(terms=(LossTerm(kind="boundary_bce", weighting="hill"), LossTerm(kind="dice")))
"""BCE weighted 5·exp(-5·|avg₅₀(mask) - 0.5|), scaled to mean 1."""


def carvana_3rd(source: DataSource, *, device: str, scale: Scale = "full") -> Recipe:
    """Returns the system of the 3rd place: 5 networks at 1536×1024 and 6 at 1920×1280, weighted by rank.

    Networks of the same sizes and folds learn first, and label the photos without truth for them. Ranks are those of
    the out-of-fold scores, where the published ones came from the public leaderboard. Without unlabelled photos all
    learn from true labels alone. The device changes nothing. Raises ``UserError`` for data with fewer than 6 cars or
    of another task.
    """
    recipe = Recipe(
        name="carvana_3rd",
        metric="dice",
        folds=RANDOM_5,
        members=(
            # Both losses are published, not which network had which: plain to label, weighted to predict.
            _member("first_1536", SMALLER, PLAIN, in_ensemble=False),
            _member("first_1920", WHOLE, PLAIN, folds=RANDOM_6, in_ensemble=False),
            _member("dilated_1536", SMALLER, WEIGHTED),
            _member("dilated_1920", WHOLE, WEIGHTED, folds=RANDOM_6),
        ),
        # How many and how sure is not published.
        pseudo=(PseudoLabelSettings(members=("dilated_1536", "dilated_1920"), teachers=("first_1536", "first_1920")),),
        inference=InferenceSettings(views="flip"),  # not published; flips are all that these networks learnt with
        ensemble=EnsembleSettings(weights="rank", thresholds=HALF),
    )
    return complete(recipe, source, scale)


def _member(
    name: str, policy: InputPolicy, loss: LossSettings, *, folds: FoldSettings | None = None, in_ensemble: bool = True
) -> MemberSettings:
    """Plateau and early stopping are published; the most epochs and the batch are chosen here."""
    return MemberSettings(
        name=name,
        network=NetworkSettings(architecture="unet_dilated", weights="none", bottleneck="cascade"),
        input=policy,
        loss=loss,
        # Decay and ε of Keras, in which it was published.
        optimiser=OptimiserSettings(kind="rmsprop", lr=1e-4, weight_decay=0, momentum=0, smoothing=0.9, epsilon=1e-7),
        schedule=ScheduleSettings(kind="plateau", gamma=0.2, patience=5, min_delta=1e-4),
        augment=PRESETS["carvana_3rd"],
        training=TrainingSettings(epochs=100, batch_size=4, early_stopping=10, early_stopping_delta=1e-4),
        keep="best",  # what early stopping stopped for
        folds=folds,
        in_ensemble=in_ensemble,
    )
