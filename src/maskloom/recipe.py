"""The typed description of a complete system: data, folds, members, inference, ensemble, deliverables.

A recipe is data. It is made by a function in ``recipes/`` or ``contests/`` that knows the source and the device, or
read from a YAML file that names such a function as its ``base`` and lists what differs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from maskloom.config import Config, load_yaml, parse
from maskloom.data.augment import PRESETS, AugmentSettings
from maskloom.data.folds import FoldSettings
from maskloom.data.input_policy import InputPolicy
from maskloom.data.sources.base import DataSettings
from maskloom.errors import UserError, closest
from maskloom.inference.merging import Merge
from maskloom.inference.predictor import InferenceSettings
from maskloom.losses.terms import LossSettings
from maskloom.models.encoders import NetworkSettings
from maskloom.training.engine import TrainingSettings
from maskloom.training.optimisers import OptimiserSettings
from maskloom.training.schedules import ScheduleSettings

Scale = Literal["full", "smoke"]


class MemberSettings(Config):
    """Network + input policy + loss + optimiser + schedule + augmentation + folds: what trains K models."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """Names its folder in the run and its row in the report."""
    network: NetworkSettings
    input: InputPolicy
    loss: LossSettings
    optimiser: OptimiserSettings = OptimiserSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    augment: AugmentSettings = AugmentSettings()
    """Settings, or the name of a preset."""
    training: TrainingSettings
    keep: Literal["last", "best"] = "last"
    """Which weights of a fold predict. "last" leaves the validation fold unused by training, so its out-of-fold
    score is free of selection; "best" is the epoch with the highest validation score."""
    validation_images: int | None = Field(default=None, ge=1)
    """Score the learning curve on so many images of the fold, evenly spread (all when None)."""

    @field_validator("augment", mode="before")
    @classmethod
    def _preset(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value not in PRESETS:
            raise ValueError(f"expected settings or the name of a preset; {closest(value, PRESETS)}")
        return PRESETS[value]


class EnsembleSettings(Config):
    """How out-of-fold maps become masks."""

    tree: Merge | None = None
    """The tree over "member/fold" leaves; None: the mean of each member's folds, then of the members."""
    weights: Literal["equal", "fitted"] = "equal"
    """Of the members in the standard tree: equal, or fitted on out-of-fold maps."""
    thresholds: Literal["fitted"] | float = "fitted"
    """Per class on the stored 8-bit value (binary and multilabel): fitted on out-of-fold maps, or one probability."""

    @field_validator("thresholds")
    @classmethod
    def _threshold_is_a_probability(cls, value: Literal["fitted"] | float) -> Literal["fitted"] | float:
        if value != "fitted" and not 0 <= value <= 1:
            raise ValueError("expected fitted or a probability from 0 to 1; an 8-bit value is divided by 255")
        return value

    @model_validator(mode="after")
    def _weights_need_the_standard_tree(self) -> EnsembleSettings:
        if self.tree is not None and self.weights == "fitted":
            raise ValueError("weights: fitted needs the standard tree; remove `tree` or state its weights")
        return self


class DeliverySettings(Config):
    """What the run writes for images without truth that came with the data."""

    masks: bool = True
    """PNG masks under ``predictions/masks``."""
    submission: bool = True
    """The contest's table, where the data's layout has one."""


class Recipe(Config):
    """The complete description of a system."""

    name: str
    seed: int = Field(default=0, ge=0)
    scale: Scale = "full"
    """"smoke" runs the same stages on shrunken sizes and epochs."""
    metric: Literal["dice", "iou"]
    """"dice": mean over images; "iou": mean over classes of the IoU of summed counts."""
    data: DataSettings = DataSettings()
    folds: FoldSettings = FoldSettings()
    members: tuple[MemberSettings, ...] = Field(min_length=1)
    inference: InferenceSettings = InferenceSettings()
    ensemble: EnsembleSettings = EnsembleSettings()
    delivery: DeliverySettings = DeliverySettings()

    @model_validator(mode="after")
    def _names_differ(self) -> Recipe:
        names = [member.name for member in self.members]
        if len(set(names)) != len(names):
            raise ValueError(f"member names must differ from each other, found {names}")
        return self

    @model_validator(mode="after")
    def _channels_agree(self) -> Recipe:
        found = {member.name: member.network.channels for member in self.members}
        if len(set(found.values())) > 1:
            stated = ", ".join(f"{name}: {channels}" for name, channels in found.items())
            raise ValueError(
                f"expected the same network.channels in every member, which are given the same images; found {stated}"
            )
        return self


def read_recipe_file(path: Path) -> dict[str, Any]:
    """Returns the mapping of a recipe file; raises ``UserError`` unless it is a YAML mapping of recipe keys."""
    values = load_yaml(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of recipe keys, found {type(values).__name__}")
    known = {"base", *Recipe.model_fields}
    for key in values:
        if key not in known:
            raise UserError(f"{path}: unknown key {str(key)!r}, {closest(str(key), known)}")
    return values


def merged(recipe: Recipe, changes: dict[str, Any], *, origin: str) -> Recipe:
    """Returns the recipe with a file's ``changes`` laid over it; mappings are merged, everything else replaced."""
    return parse(Recipe, _merge(recipe.model_dump(mode="json"), changes), origin=origin)


def _merge(base: Any, changes: Any) -> Any:
    if isinstance(base, dict) and isinstance(changes, dict):
        return {key: _merge(base.get(key), changes[key]) if key in changes else base[key] for key in base | changes}
    return changes
