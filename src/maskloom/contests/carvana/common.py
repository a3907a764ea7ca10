"""What the Carvana recipes share: settings that several systems published, and the last steps to a complete recipe."""

from __future__ import annotations

from maskloom.data.folds import FoldSettings
from maskloom.data.input_policy import InputPolicy
from maskloom.data.sources.base import DataSource
from maskloom.errors import UserError
from maskloom.losses.terms import LossSettings, LossTerm
from maskloom.recipe import Recipe, Scale
from maskloom.recipes.smoke import smoked
from maskloom.records import usual_size
from maskloom.training.optimisers import OptimiserSettings

WHOLE = InputPolicy(mode="full", multiple=32)
"""Photos at full size: 1918×1280 are padded to 1920×1280, one mirrored column on each side."""

BCE_AND_DICE = LossSettings(terms=(LossTerm(kind="bce"), LossTerm(kind="dice", per_image=True)))
"""BCE + (1 - soft Dice)."""

HALF = 0.5
"""The threshold of every system: 128 of 255."""


def adam(lr: float, *, frozen: tuple[str, ...] = ()) -> OptimiserSettings:
    """Returns Adam as everyone used it: without weight decay."""
    return OptimiserSettings(kind="adam", lr=lr, weight_decay=0, frozen=frozen)


def complete(recipe: Recipe, source: DataSource, scale: Scale) -> Recipe:
    """Returns the recipe at the scale that was asked for, for data without unlabelled photos without pseudo-labels.

    Raises ``UserError`` when the data is no binary task, or has fewer cars than the recipe has folds: fewer folds
    would be another system.
    """
    if source.task.kind != "binary":
        raise UserError(
            f"{source.root}: expected a binary task for {recipe.name}, as car or no car, found {source.task.kind}; "
            "choose another recipe, such as default"
        )
    folds: list[FoldSettings] = [recipe.folds, *(member.folds for member in recipe.members if member.folds)]
    most = max(settings.count for settings in folds)
    found = len({record.group for record in source.records})
    if found < most:
        raise UserError(
            f"{source.root}: expected at least {most} cars (groups) for the {most} folds of {recipe.name}, found "
            f"{found}; add photos of other cars, or choose a recipe that takes fewer, such as default"
        )
    if not source.unlabelled:
        recipe = recipe.model_copy(update={"pseudo": ()})
    if scale == "full":
        return recipe
    return smoked(recipe, usual_size(record.size for record in source.records))
