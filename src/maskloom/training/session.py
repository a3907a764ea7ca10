"""A training under way in this process: where it stands, what it works with, what it tells. Makes no step itself."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from maskloom.data.dataset import SegmentationDataset
from maskloom.data.input_policy import shrunk
from maskloom.models.bundle import save_bundle
from maskloom.models.segmenter import Segmenter
from maskloom.runtime import Precision
from maskloom.training.checkpoint import Position, save_checkpoint
from maskloom.training.job import TrainingJob
from maskloom.training.mining import HardNegatives
from maskloom.training.phases import EpochPlan, StepTimes, seconds_left
from maskloom.training.schedules import learning_rate_factor
from maskloom.training.team import Team
from maskloom.training.tracking import Log, OnProgress, Pace, TrainingProgress
from maskloom.training.updates import Updater


def samples(dataset: SegmentationDataset, plan: EpochPlan) -> SegmentationDataset:
    """Returns the dataset as an epoch wants it; raises ``UserError`` where its images do not allow that."""
    return replace(dataset, augment=plan.augment, policy=shrunk(dataset.policy, plan.image_scale))


@dataclass(kw_only=True)
class Session:
    """One training from its start, or from its checkpoint, on."""

    job: TrainingJob
    plans: tuple[EpochPlan, ...]
    """What holds in each epoch."""
    learnable: frozenset[str]
    """Names of the parameters that the network itself lets learn."""
    position: Position
    updater: Updater
    mining: HardNegatives
    log: Log
    precision: Precision
    on_progress: OnProgress | None
    team: Team | None = None
    """The processes that make this training together, all in the same place of it; None: this one alone."""
    pace: Pace = field(default_factory=Pace)
    saved: float = field(default_factory=time.monotonic)
    reported: float = -math.inf
    clocked: float = field(default_factory=time.monotonic)
    times: StepTimes = field(default_factory=StepTimes)
    _timed: tuple[int, float] = field(init=False)
    """The step at which the times were last added to, and when."""

    def __post_init__(self) -> None:
        self._timed = (self.position.step, time.monotonic())

    @property
    def plan(self) -> EpochPlan:
        """What holds in the present epoch."""
        return self.plans[self.position.epoch]

    @property
    def dataset(self) -> SegmentationDataset:
        """The samples of the present epoch."""
        return samples(self.job.dataset, self.plan)

    @property
    def steps_per_epoch(self) -> int:
        """Those that repeat hard batches included."""
        return self.mining.num_updates

    @property
    def num_steps(self) -> int:
        """Of the whole training."""
        return self.job.training.epochs * self.steps_per_epoch

    def factor(self, step: int) -> float:
        """Returns the learning rate's factor for a step of the present epoch, counted from the training's start."""
        plan, per_epoch = self.plan, self.steps_per_epoch
        since = [event for event in self.position.epochs_done if event["epoch"] > plan.span.start]
        return learning_rate_factor(
            plan.schedule,
            step - plan.span.start * per_epoch,
            len(plan.span) * per_epoch,
            steps_per_epoch=per_epoch,
            scores=[event["score"] for event in since if event["score"] is not None],
            losses=[event["loss"] for event in since if event["loss"] is not None],
        )

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.team is None or self.team.leads

    @property
    def num_ranks(self) -> int:
        """How many processes make this training."""
        return 1 if self.team is None else self.team.size

    def keep(self, path: Path, segmenter: Segmenter, extra: dict[str, Any]) -> None:
        """Writes a bundle."""
        if self.writes:
            save_bundle(path, segmenter, extra)

    def save(self) -> None:
        """Writes the checkpoint; a finished training keeps only where it stands."""
        self.clock()
        finished = self.position.finished
        if not finished:
            self.updater.check()
        if self.writes:
            save_checkpoint(self.job.checkpoint, self.position, None if finished else self.updater, self.mining)
        self.saved = time.monotonic()

    def clock(self) -> None:
        """Adds the time since the last call to the position's."""
        now = time.monotonic()
        self.position.seconds += now - self.clocked
        self.clocked = now

    def progress(self, *, note: str = "") -> TrainingProgress:
        """Returns how far the training is; waits for the device."""
        position, scores = self.position, self.position.scores
        loss = self.updater.mean_loss()  # which waits, so that the steps below are done
        self._time()
        return TrainingProgress(
            epoch=position.epoch + 1,
            epochs=self.job.training.epochs,
            step=position.step,
            steps=self.num_steps,
            loss=loss,
            rate=self.pace.rate,
            eta=seconds_left(
                self.plans,
                self.times,
                epoch=position.epoch,
                step_in_epoch=position.step_in_epoch,
                steps_per_epoch=self.steps_per_epoch,
            ),
            score=scores[-1] if scores else None,
            best=max(scores, default=None),
            note=note,
        )

    def _time(self) -> None:
        """Adds the steps since the last call to the times: all of one epoch, since each one asks at its end."""
        step, now = self.position.step, time.monotonic()
        steps, seconds = step - self._timed[0], now - self._timed[1]
        self.times.add(self.plan.image_scale, steps=steps, seconds=seconds)
        self._timed = (step, now)

    def report(self, progress: TrainingProgress) -> None:
        """Tells whoever waits."""
        if self.on_progress is not None:
            self.on_progress(progress)
        self.reported = time.monotonic()
