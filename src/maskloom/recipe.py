"""The typed description of a complete system: data, folds, members, inference, ensemble, deliverables.

A recipe is data. It is made by a function in ``recipes/`` or ``contests/`` that knows the source and the device, or
read from a YAML file that names such a function as its ``base`` and lists what differs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from maskloom.config import Config, load_yaml, parse
from maskloom.data.augment import AugmentSettings
from maskloom.data.band_registration import RegistrationSettings
from maskloom.data.folds import FoldSettings
from maskloom.data.input_policy import InputPolicy
from maskloom.data.polygon_alignment import AlignmentSettings
from maskloom.data.scene_windows import policy_problem
from maskloom.data.sources.base import DataSettings
from maskloom.encodings.polygon_settings import PolygonSettings
from maskloom.ensembling.postprocess import PostprocessSettings
from maskloom.ensembling.precedence import Precedence
from maskloom.ensembling.pseudo_labels import PseudoLabelSettings
from maskloom.errors import UserError, closest
from maskloom.inference.guidance import GuidanceSettings
from maskloom.inference.merging import Merge
from maskloom.inference.predictor import InferenceSettings
from maskloom.inference.views import find_views
from maskloom.losses.terms import LossSettings
from maskloom.models.encoders import NetworkSettings, multiple_of
from maskloom.records import Task
from maskloom.training.engine import TrainingSettings
from maskloom.training.job import snapshot_epochs
from maskloom.training.optimisers import OptimiserSettings
from maskloom.training.phases import augment_preset, plan_epochs
from maskloom.training.schedules import ScheduleSettings

Scale = Literal["full", "smoke"]


class MemberSettings(Config):
    """Network + input policy + loss + optimiser + schedule + augmentation + folds: what trains K models."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """Names its folder in the run and its row in the report."""
    classes: tuple[str, ...] | None = Field(default=None, min_length=1)
    """The classes of a multilabel task that it learns and predicts; None: all. Each class of the ensemble's map is
    merged over the members that predict it, and is 0 where none does."""
    network: NetworkSettings
    input: InputPolicy
    loss: LossSettings = LossSettings()
    """What is minimised. To be stated, but for an index classifier and trees, which minimise none in epochs."""
    optimiser: OptimiserSettings = OptimiserSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    augment: AugmentSettings = AugmentSettings()
    """Settings, or the name of a preset."""
    training: TrainingSettings = TrainingSettings()
    """How long and in what portions it learns. To be stated like the loss."""
    keep: Literal["last", "best", "soup", "snapshots"] = "last"
    """Which weights of a fold predict. "last" leaves the validation fold unused by training, so its out-of-fold score
    is free of selection, unless early stopping or a plateau schedule looks at it (``selected_by``); "best" is the
    epoch with the highest validation score; "soup" has the mean weights of the best epochs (``training.soup``);
    "snapshots" are all networks at the ends of the schedule's cycles (``schedule.kind=snapshots``), whose maps are
    averaged."""
    validation_images: int | None = Field(default=None, ge=1)
    """Score the learning curve on so many images of the fold, evenly spread (all when None)."""
    folds: FoldSettings | None = None
    """Folds of this member's own; None: the recipe's."""
    start: str | None = None
    """An earlier member with the same network and folds, whose network of the same fold gives the first weights."""
    guidance: GuidanceSettings | None = None
    """What it is given besides the image: maps of members listed before it (or from outside), or where to look."""
    views: str | tuple[str, ...] | None = None
    """Test-time views of this member's own; None: as ``inference.views`` says."""
    view_merge: Literal["mean", "logit_mean", "geometric"] | None = None
    """How its views are merged; None: as ``inference.view_merge`` says."""
    in_ensemble: bool = True
    """Whether the standard tree holds it; one that only serves others (by maps, labels or weights) need not."""

    @field_validator("augment", mode="before")
    @classmethod
    def _preset(cls, value: Any) -> Any:
        return augment_preset(value)

    @model_validator(mode="after")
    def _what_trains_is_stated(self) -> MemberSettings:
        for name in ("loss", "training"):
            if self.network.minimises_loss and name not in self.model_fields_set:
                raise ValueError(
                    f"{name}: expected it for a network that is trained, found none; state it (only an index "
                    "classifier and trees need none)"
                )
        return self

    @model_validator(mode="after")
    def _trees_see_pixels_alone(self) -> MemberSettings:
        trees = self.network.trees
        if trees is None:
            return self
        if problem := trees.input_problem(self.input):
            raise ValueError(problem)
        if self.keep not in ("last", "best"):
            raise ValueError(f"keep: trees are grown once, found {self.keep}; state last")
        for name in ("start", "guidance"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name}: trees are grown from nothing and see the image alone; leave it out")
        return self

    @model_validator(mode="after")
    def _sides_fit_the_network(self) -> MemberSettings:
        multiple = multiple_of(self.network)
        if self.input.multiple % multiple:
            raise ValueError(
                f"input.multiple: {self.network.architecture} takes sides that are multiples of {multiple}, "
                f"found {self.input.multiple}; state {multiple}"
            )
        return self

    @field_validator("views")
    @classmethod
    def _views_exist(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if value is not None:
            find_views(value)
        return value

    @property
    def image_channels(self) -> int:
        """The channels of the images as stored: those of the network without the indices computed from them."""
        return self.network.channels - (len(self.input.bands.indices) if self.input.bands else 0)

    @model_validator(mode="after")
    def _channels_are_named(self) -> MemberSettings:
        bands = self.input.bands
        if bands is not None and self.network.channels != len(bands.bands) + len(bands.indices):
            raise ValueError(
                f"network.channels: expected {len(bands.bands) + len(bands.indices)}, {len(bands.bands)} bands and "
                f"{len(bands.indices)} indices of them, found {self.network.channels}"
            )
        return self

    @property
    def num_snapshots(self) -> int:
        """How many networks each fold keeps at the ends of its schedule's cycles."""
        plans = plan_epochs(
            self.training.phases,
            epochs=self.training.epochs,
            optimiser=self.optimiser,
            schedule=self.schedule,
            augment=self.augment,
        )
        return len(snapshot_epochs(plans))

    @model_validator(mode="after")
    def _kept_weights_are_there(self) -> MemberSettings:
        if self.keep == "soup" and self.training.soup is None:
            raise ValueError("keep: soup expects training.soup to say of how many epochs, found none; state it")
        if self.keep == "snapshots" and self.num_snapshots == 0:
            raise ValueError("keep: snapshots expects schedule.kind=snapshots, found another; state it, or keep last")
        return self

    @model_validator(mode="after")
    def _losses_can_be_compared(self) -> MemberSettings:
        schedules = [self.schedule, *(phase.schedule for phase in self.training.phases if phase.schedule is not None)]
        watches = any(each.kind == "plateau" and each.monitor == "loss" for each in schedules)
        if watches and self.training.progressive:
            raise ValueError(
                "schedule.monitor: loss expects epochs of one image size, found training.progressive="
                f"{self.training.progressive:g}, whose losses differ by size; set training.progressive=0"
            )
        return self

    def task_of(self, task: Task) -> Task:
        """Returns what its networks learn of the data's task; raises ``UserError`` for classes that are not there."""
        if self.classes is None:
            return task
        if task.kind != "multilabel":
            raise UserError(
                f"{self.name}.classes: expected a multilabel task, whose classes can be learnt one by one, found a "
                f"{task.kind} one; remove classes"
            )
        for name in self.classes:
            if name not in task.classes:
                raise UserError(f"{self.name}.classes: no class is called {name!r}; {closest(name, task.classes)}")
        return Task(kind="multilabel", classes=tuple(name for name in task.classes if name in self.classes))

    def class_numbers(self, task: Task) -> tuple[int, ...] | None:
        """Returns the numbers of its classes in the data's task; None for a member that learns all."""
        part = self.task_of(task)
        return None if part == task else tuple(map(task.classes.index, part.classes))

    @property
    def selected_by(self) -> tuple[str, ...]:
        """What chooses weights by the fold that they are scored on: its out-of-fold score is a little too good."""
        found = [f"keep={self.keep}"] if self.keep in ("best", "soup") else []
        found += ["early stopping"] if self.training.early_stopping is not None else []
        phases = [phase.schedule for phase in self.training.phases]
        schedules = [self.schedule, *(schedule for schedule in phases if schedule is not None)]
        waits = any(each.kind == "plateau" and each.monitor == "score" for each in schedules)
        return (*found, *(["a plateau schedule"] if waits else []))

    def views_of(self, inference: InferenceSettings) -> InferenceSettings:
        """Returns how the member's networks are asked: the recipe's way, with its own views where it states some."""
        own = {"views": self.views, "view_merge": self.view_merge}
        return inference.model_copy(update={name: value for name, value in own.items() if value is not None})


class OutsideMember(Config):
    """Maps that were made elsewhere, as teams exchange them: they join the ensemble like a member's own."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """Names it in the tree and in the report."""
    folder: Path
    """8-bit PNG maps, round(255·p), named by record id (``<id>.png``; ``<id>/<class>.png`` where there is a map per
    class). Those of labelled records must come from networks that never saw them: nothing else can be checked."""


class EnsembleSettings(Config):
    """How out-of-fold maps become masks."""

    tree: Merge | None = None
    """The tree over "member/fold" leaves, where a member's name stands for the mean of its folds; None: the mean of
    each member's folds, then of the members."""
    weights: Literal["equal", "fitted", "fitted_per_class", "score", "rank"] = "equal"
    """Of the members in the standard tree. "fitted": by log loss on out-of-fold maps; "fitted_per_class": the same in
    each class by itself, for multilabel tasks (exclusive classes share each pixel: their maps would no longer add up
    to 1); "score": in proportion to 1 / (1 - score) out of fold; "rank": n for the best of n members out of fold, 1 for
    the worst."""
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
