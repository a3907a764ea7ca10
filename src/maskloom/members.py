"""The members of a system: what trains the networks of one, and maps that were made elsewhere.

Each is judged by itself here; how members go together is the recipe's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from maskloom.config import Config
from maskloom.data.augment import AugmentSettings
from maskloom.data.folds import FoldSettings
from maskloom.data.input_policy import InputPolicy
from maskloom.errors import UserError, closest
from maskloom.inference.guidance import GuidanceSettings
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
    aligned: bool = True
    """Whether it learns from polygons where the recipe's ``alignment`` found them to lie; else as they lie."""
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
    def _cycles_run_to_their_end(self) -> MemberSettings:
        if self.network.minimises_loss and self.training.early_stopping is not None and self.num_snapshots:
            raise ValueError(
                "training.early_stopping: expected none with schedule.kind=snapshots, whose cycles all run to their "
                f"end, found {self.training.early_stopping}; set it to null"
            )
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
        if not self.network.minimises_loss:  # thresholds and trees are found without that fold
            return ()
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
