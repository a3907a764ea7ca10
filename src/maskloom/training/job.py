"""What a training is given and what it leaves: settings, job, result. Knows nothing about how a step is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from maskloom.config import Config
from maskloom.data.dataset import SegmentationDataset
from maskloom.models.segmenter import Segmenter
from maskloom.training.optimisers import OptimiserSettings
from maskloom.training.phases import MAX_EPOCHS, EpochPlan, Phase, plan_epochs
from maskloom.training.schedules import ScheduleSettings, cycle_ends


class TrainingSettings(Config):
    """How long and in what portions a network learns."""

    epochs: int = Field(default=10, ge=1, le=MAX_EPOCHS)
    """How many; with ``phases`` their sum, which need not be stated."""
    phases: tuple[Phase, ...] = ()
    """Parts with an optimiser, schedule or augmentation of their own; none: one phase of ``epochs`` epochs."""
    progressive: float = Field(default=0.0, ge=0, lt=1)
    """Progressive resizing: this share of the epochs, the first ones, sees whole resized images at half their sides,
    for about 40 % of the time each; validation and prediction see them at full size."""
    images_per_epoch: int | None = Field(default=None, ge=1, le=10_000_000)
    """How many draws make an epoch; None: every image once."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] | Literal["auto"] = 8
    """Images per batch; "auto": ``auto_batch_size`` images, cut into as few pieces as memory asks for, which is found
    once at the start. Any batch is cut smaller when memory runs out in the middle."""
    auto_batch_size: int = Field(default=16, ge=1, le=65_536)
    accumulation: int = Field(default=1, ge=1, le=65_536)
    """Batches per step: the gradient is the mean over all their images."""
    hard_negative_every: int | None = Field(default=None, ge=1)
    """Within each so many steps of an epoch, the one with the highest loss is made once more, as a step of its own."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Upper bound of the norm of all gradients together."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Bundles and validation use the moving average of the weights, with this decay after its warm-up."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """Of the network's own computing; "auto": bf16 where the device computes it natively, else float32 on a CPU and
    fp16 on a GPU. Weights and losses are float32 always."""
    channels_last: bool = True
    """Keep weights and inputs in channels-last order, which convolutions prefer."""
    sync_batch_norm: bool = False
    """Where several devices train one network, batch normalisation takes the statistics of the whole batch instead of
    those of each device's part of it; not together with ``compile``."""
    compile: bool = False
    """Compile the network, which takes a minute at each start and pays on long trainings."""
    early_stopping: int | None = Field(default=None, ge=1)
    """End after so many validations in a row without a new best score, whatever the phase."""
    early_stopping_delta: float = Field(default=0.0, ge=0)
    """Early stopping counts only a score above the best one by more than this as a new best one."""
    validate_every: int = Field(default=1, ge=1)
    """Epochs between validations; the last epoch is always validated."""
    validate_from: float = Field(default=0.0, ge=0, le=1)
    """The fraction of the epochs before which nothing is validated."""
    keep_epochs: bool = False
    """Keep the bundle of every epoch, with its score, in the folder ``epochs``."""
    soup: int | None = Field(default=None, ge=2)
    """Also make a bundle with the mean of the weights of so many epochs, those with the highest validation scores (the
    last ones where nothing is validated); its batch-norm statistics are measured on training images."""
    checkpoint_seconds: float = Field(default=60.0, ge=0)
    """Inside an epoch the state is saved so often; it is also saved at the end of every epoch."""
    tensorboard: bool = False
    """Also write curves for TensorBoard, into the folder ``tensorboard``."""

    @model_validator(mode="after")
    def _epochs_are_those_of_the_phases(self) -> TrainingSettings:
        total = sum(phase.epochs for phase in self.phases)
        if total > MAX_EPOCHS:
            raise ValueError(f"phases: expected at most {MAX_EPOCHS} epochs together, found {total}")
        if self.phases and "epochs" not in self.model_fields_set:
            object.__setattr__(self, "epochs", total)  # the class is frozen for everyone else
        if self.phases and self.epochs != total:
            raise ValueError(
                f"epochs: expected {total}, which the {len(self.phases)} phases add up to, found {self.epochs}; "
                "leave it out, or change the epochs of the phases (phases.N.epochs)"
            )
        return self


def snapshot_epochs(plans: Sequence[EpochPlan]) -> tuple[int, ...]:
    """Returns the epochs, counted from 1, after which the network is kept: the ends of a schedule's cycles."""
    schedules = {plan.span: plan.schedule for plan in plans}
    return tuple(
        span.start + end
        for span, schedule in schedules.items()
        if schedule.kind == "snapshots"
        for end in cycle_ends(len(span), schedule.num_cycles)
    )


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """Everything that decides what a training produces, and where."""

    segmenter: Segmenter
    """Fresh, the same for the same seed; it is trained in place."""
    dataset: SegmentationDataset
    """With the augmentation that holds until a phase states another."""
    loss: Callable[[Tensor, Tensor], Tensor]
    """Maps logits float32 N×maps×H×W and uint8 labels to a scalar; a segmenter that gives several in training, as with
    deep supervision, needs one that takes them as they are given."""
    optimiser: OptimiserSettings
    """Until a phase states another."""
    schedule: ScheduleSettings
    """Until a phase states another."""
    training: TrainingSettings
    validate: Callable[[Segmenter], float] | None
    """Scores a segmenter, higher is better; None: nothing is validated, and best is last."""
    folder: Path
    seed: int
    device: torch.device
    num_workers: int = 0
    """Processes that read samples; changes nothing but speed."""
    fingerprint: str
    """Of all inputs; what another job left in the folder is not continued but replaced."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """JSON kept in the bundles beside "epoch" and "score"."""

    def plan(self) -> tuple[EpochPlan, ...]:
        """Returns what holds in each epoch."""
        return plan_epochs(
            self.training.phases,
            epochs=self.training.epochs,
            optimiser=self.optimiser,
            schedule=self.schedule,
            augment=self.dataset.augment,
            progressive=self.training.progressive,
        )

    @property
    def checkpoint(self) -> Path:
        """Everything needed to continue."""
        return self.folder / "checkpoint.safetensors"

    @property
    def best(self) -> Path:
        """The bundle of the epoch with the highest validation score."""
        return self.folder / "best.safetensors"

    @property
    def last(self) -> Path:
        """The bundle after the last epoch."""
        return self.folder / "last.safetensors"

    def epoch_bundle(self, epoch: int) -> Path:
        """Returns where the bundle of that epoch, counted from 1, is kept if ``training.keep_epochs`` says so."""
        return self.folder / "epochs" / f"{epoch:04d}.safetensors"

    def epoch_bundles(self) -> list[Path]:
        """Returns the kept bundles of epochs, in order."""
        return sorted((self.folder / "epochs").glob("[0-9]*.safetensors"))

    @property
    def soup(self) -> Path:
        """The bundle with the mean of good epochs' weights, if ``training.soup`` asks for it."""
        return self.folder / "soup.safetensors"

    def snapshot(self, number: int) -> Path:
        """Returns where the network at the end of that cycle, counted from 1, is kept if the schedule has snapshots."""
        return self.folder / "snapshots" / f"{number}.safetensors"

    def snapshots(self) -> tuple[Path, ...]:
        """Returns the bundles of all cycles that the schedule has, in order."""
        return tuple(map(self.snapshot, range(1, len(snapshot_epochs(self.plan())) + 1)))

    def snapshots_there(self) -> list[Path]:
        """Returns the bundles of cycles that lie in the folder, of whatever training."""
        return sorted((self.folder / "snapshots").glob("[0-9]*.safetensors"))

    def kept(self) -> tuple[Path, ...]:
        """Returns the bundles that a finished training leaves, but for those of all epochs."""
        soup = (self.soup,) if self.training.soup else ()
        return self.best, self.last, *soup, *self.snapshots()

    @property
    def log(self) -> Path:
        """One line of JSON per event."""
        return self.folder / "log.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingResult:
    """What a finished training left."""

    best: Path
    last: Path
    best_score: float | None
    """None where nothing was validated."""
    best_epoch: int
    """Counted from 1; the last one where nothing was validated."""
    epochs: tuple[dict[str, Any], ...]
    """The log's line of each epoch."""
    soup: Path | None = None
    """None where none was asked for."""
    snapshots: tuple[Path, ...] = ()
    """Of each cycle, if the schedule keeps such."""
