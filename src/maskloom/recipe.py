"""The typed description of a complete system: data, folds, members, inference, ensemble, deliverables.

A recipe is data. It is made by a function in ``recipes/`` or ``contests/`` that knows the source and the device, or
read from a YAML file that names such a function as its ``base`` and lists what differs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from maskloom.config import Config, load_yaml, parse
from maskloom.data.band_registration import RegistrationSettings
from maskloom.data.folds import FoldSettings
from maskloom.data.polygon_alignment import AlignmentSettings
from maskloom.data.scene_windows import policy_problem
from maskloom.data.sources.base import DataSettings
from maskloom.encodings.polygon_settings import PolygonSettings
from maskloom.ensembling.postprocess import PostprocessSettings
from maskloom.ensembling.precedence import Precedence
from maskloom.ensembling.pseudo_labels import PseudoLabelSettings
from maskloom.errors import UserError, closest
from maskloom.inference.merging import Merge
from maskloom.inference.predictor import InferenceSettings
from maskloom.members import MemberSettings, OutsideMember
from maskloom.records import Task

Scale = Literal["full", "smoke"]


class EnsembleSettings(Config):
    """How out-of-fold maps become masks."""

    tree: Merge | None = None
    """The tree over "member/fold" leaves, where a member's name stands for the mean of its folds; None: the mean of
    each member's folds, then of the members."""
    weights: Literal["equal", "fitted", "fitted_per_class", "score", "rank"] = "equal"
    """Of the members in the standard tree. "fitted": by log loss on out-of-fold maps; "fitted_per_class": each class
    takes what scores best in the metric of equal weights, those fitted on all classes and those fitted on it alone, for
    multilabel tasks (exclusive classes share each pixel: their maps would no longer add up to 1); "score": in
    proportion to 1 / (1 - score) out of fold; "rank": n for the best of n members out of fold, 1 for the worst."""
    thresholds: Literal["fitted"] | float = "fitted"
    """Per class on the stored 8-bit value (binary and multilabel): fitted on out-of-fold maps, or one probability."""

    @field_validator("thresholds")
    @classmethod
    def _threshold_is_a_probability(cls, value: Literal["fitted"] | float) -> Literal["fitted"] | float:
        if value != "fitted" and not 0 <= value <= 1:
            raise ValueError("expected fitted or a probability from 0 to 1; an 8-bit value is divided by 255")
        return value

    @property
    def stated_threshold(self) -> int | None:
        """The stated threshold of every class, on the 8-bit value; None where thresholds are fitted."""
        return None if self.thresholds == "fitted" else round(255 * self.thresholds)

    @model_validator(mode="after")
    def _weights_need_the_standard_tree(self) -> EnsembleSettings:
        if self.tree is not None and self.weights != "equal":
            raise ValueError(f"weights: {self.weights} needs the standard tree; remove `tree` or state its weights")
        return self


class DeliverySettings(Config):
    """What the run writes for images without truth that came with the data, and how rasters are delivered."""

    masks: bool = True
    """PNG masks under ``predictions/masks``."""
    submission: bool = True
    """The contest's table, where the data's layout has one."""
    precedence: tuple[Precedence, ...] | None = None
    """Which class gives way to which, of a multilabel task, in predicted rasters, their polygons, and a contest's
    polygons; None: none does, and in a contest's table its own rules hold. Scores are those of the classes before."""
    water: Literal["ccci", "search"] | None = None
    """How a submission to the Dstl contest finds water that no member predicts: "ccci" by a fixed line through that
    index, "search" by an index and a threshold searched per scene on training polygons; None: like "ccci"."""
    polygons: PolygonSettings = PolygonSettings()
    """How the outlines of predicted rasters are cleaned; ``predict`` may be asked otherwise."""
    leaderboard: dict[str, float] = Field(default_factory=dict)
    """Scores on a contest's leaderboard by member, as they become known: the report shows them beside the out-of-fold
    ones. Nothing follows from them."""


class Recipe(Config):
    """The complete description of a system."""

    name: str
    seed: int = Field(default=0, ge=0)
    scale: Scale = "full"
    """"smoke" runs the same stages on shrunken sizes and epochs."""
    metric: Literal["dice", "iou"]
    """"dice": mean over images; "iou": mean over classes of the IoU of summed counts."""
    data: DataSettings = DataSettings()
    registration: RegistrationSettings | None = None
    """How further band files are brought onto their image; None: they stay as they lie."""
    alignment: AlignmentSettings | None = None
    """How polygons that were drawn beside their image are moved onto it where they are learnt from; None: they are
    not. Truth that scores stays as it lies."""
    folds: FoldSettings = FoldSettings()
    members: tuple[MemberSettings, ...] = Field(min_length=1)
    """Trained in this order; what a member needs of others comes before it."""
    outside: tuple[OutsideMember, ...] = ()
    """Maps from elsewhere."""
    inference: InferenceSettings = InferenceSettings()
    ensemble: EnsembleSettings = EnsembleSettings()
    postprocess: PostprocessSettings = PostprocessSettings()
    """What may change the ensemble's masks; nothing without steps."""
    pseudo: tuple[PseudoLabelSettings, ...] = ()
    """Rounds in which members learn from labels that earlier members gave to images without truth, counted from 0."""
    delivery: DeliverySettings = DeliverySettings()

    @model_validator(mode="after")
    def _names_differ(self) -> Recipe:
        names = self.names
        if len(set(names)) != len(names):
            raise ValueError(f"member names must differ from each other, found {names}")
        return self

    @model_validator(mode="after")
    def _scored_members_are_there(self) -> Recipe:
        for name in self.delivery.leaderboard:
            if name not in self.names:
                raise ValueError(f"delivery.leaderboard: no member is called {name!r}; {closest(name, self.names)}")
        return self

    @model_validator(mode="after")
    def _earlier_members_are_there(self) -> Recipe:
        earlier: dict[str, MemberSettings] = {}
        for member in self.members:
            if member.start is not None:
                first = earlier.get(member.start)
                if first is None:
                    raise ValueError(
                        f"{member.name}.start: expected a member listed before it ({', '.join(earlier) or 'none is'}), "
                        f"found {member.start}"
                    )
                if first.folds != member.folds or first.network != member.network:
                    raise ValueError(
                        f"{member.name}.start: expected the network and folds of {first.name}, found others; "
                        "weights fit no other network, and other folds would leak"
                    )
            known = [*earlier, *(outside.name for outside in self.outside)]
            for name in member.guidance.needed if member.guidance else ():
                if name not in known:
                    raise ValueError(
                        f"{member.name}.guidance: expected members listed before it or from outside "
                        f"({', '.join(known) or 'none are'}), found {name}"
                    )
            earlier[member.name] = member
        if not any(member.in_ensemble for member in self.members):
            raise ValueError("in_ensemble: expected at least one member in the ensemble, found none")
        return self

    @property
    def names(self) -> list[str]:
        """The names of all members, those from outside last."""
        return [member.name for member in self.members] + [outside.name for outside in self.outside]

    @property
    def ensemble_names(self) -> list[str]:
        """The members of the standard tree, those from outside last."""
        own = [member.name for member in self.members if member.in_ensemble]
        return own + [outside.name for outside in self.outside]

    def member(self, name: str) -> MemberSettings:
        """Returns the member of that name, which must be there."""
        return next(member for member in self.members if member.name == name)

    def partial_members(self, task: Task) -> dict[str, tuple[int, ...]]:
        """Returns the numbers of the classes of every member that predicts only some of the task's."""
        found = {member.name: member.class_numbers(task) for member in self.members}
        return {name: numbers for name, numbers in found.items() if numbers is not None}

    @model_validator(mode="after")
    def _partial_members_fit_in(self) -> Recipe:
        for member in self.members:
            if member.classes is None:
                continue
            if self.ensemble.weights not in ("equal", "fitted_per_class"):
                raise ValueError(
                    f"ensemble.weights: {self.ensemble.weights} compares members that predict the same classes, "
                    f"{member.name} predicts some of them; state equal or fitted_per_class"
                )
            if member.guidance is not None and member.guidance.region is not None:
                raise ValueError(f"{member.name}: expected a member of all classes for guidance.region; remove classes")
        return self

    def objection_to_blocks(self) -> str:
        """Returns what of the recipe does not go with folds of blocks, with what to do; "" where all does."""
        kfold = "or divide whole scenes (folds.kind=kfold)"
        if self.pseudo:
            found = f"{len(self.pseudo)} round(s)"
            return f"pseudo: folds of blocks expect no pseudo-labels, found {found}; remove them, {kfold}"
        if self.alignment is not None:
            return f"alignment: folds of blocks expect polygons as they lie, found some to be moved; remove it, {kfold}"
        if self.outside:
            name = self.outside[0].name
            return f"outside: folds of blocks expect maps of this run alone, found {name}; remove it, {kfold}"
        for number, member in enumerate(self.members):
            at = f"members.{number}"
            if member.folds is not None:
                return f"{at}.folds: folds of blocks are those of all members, found own ones; remove them, {kfold}"
            if member.guidance is not None:
                return f"{at}.guidance: folds of blocks expect members that see the image alone; remove it, {kfold}"
            if member.network.index is not None:
                return f"{at}.network: folds of blocks expect networks, found an index classifier; remove it, {kfold}"
            if problem := policy_problem(member.input):
                return f"{at}.input: folds of blocks: {problem}; change it, {kfold}"
        return ""

    @model_validator(mode="after")
    def _trees_learn_from_truth(self) -> Recipe:
        grown = {member.name for member in self.members if member.network.trees is not None}
        for number, settings in enumerate(self.pseudo):
            if found := sorted(grown & set(settings.members)):
                raise ValueError(f"pseudo.{number}.members: trees learn from true labels alone, remove {found[0]}")
        return self

    @model_validator(mode="after")
    def _blocks_fit_in(self) -> Recipe:
        for number, member in enumerate(self.members):
            if member.folds is not None and member.folds.kind == "blocks":
                raise ValueError(f"members.{number}.folds: blocks are for all members; state folds.kind=blocks instead")
        if self.folds.kind == "blocks" and (objection := self.objection_to_blocks()):
            raise ValueError(objection)
        return self

    @property
    def takes_grey(self) -> bool:
        """Whether an image of one band may stand for three equal ones: not where bands are told from each other."""
        are_stacks = self.data.bands is not None and len(self.data.bands) > 1
        return not are_stacks and all(member.input.bands is None for member in self.members)

    @model_validator(mode="after")
    def _channels_agree(self) -> Recipe:
        found = {member.name: member.image_channels for member in self.members}
        if len(set(found.values())) > 1:
            stated = ", ".join(f"{name}: {channels}" for name, channels in found.items())
            raise ValueError(
                "expected the same network.channels in every member, which are given the same images (indices apart); "
                f"found {stated}"
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
