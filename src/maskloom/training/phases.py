"""The phases of a training: what changes at which epoch, as data; resolved into what holds in each single epoch.

Everything here follows from the settings and the epoch's number, so that a training taken up anywhere knows where it
stands. Knows nothing about what a step does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, field_validator

from maskloom.config import Config
from maskloom.data.augment import PRESETS, AugmentSettings
from maskloom.errors import closest
from maskloom.training.optimisers import OptimiserSettings
from maskloom.training.schedules import ScheduleSettings

MAX_EPOCHS = 100_000
"""Of a whole training; more are taken for a mistake."""


class Phase(Config):
    """So many epochs of a training, and what begins with them; what is left out goes on from the phase before.

    The first phase goes on from the member's own settings. So a phase that states only ``augment`` keeps the
    optimiser's memory of gradients and its place in the schedule.
    """

    epochs: int = Field(ge=1, le=MAX_EPOCHS)
    """How many."""
    optimiser: OptimiserSettings | None = None
    """Begins anew here, without memory of gradients; left out: the one so far goes on."""
    schedule: ScheduleSettings | None = None
    """Begins here, and runs over this phase and those after it that state none; left out: the one so far goes on."""
    augment: AugmentSettings | None = None
    """Settings, or the name of a preset; left out: those so far."""
    fresh_optimiser: Literal["start", "epoch"] | None = None
    """"start": the optimiser forgets its gradients here even if it is not stated anew; "epoch": at the start of each
    epoch of this phase; left out: only where ``optimiser`` is stated."""

    @field_validator("augment", mode="before")
    @classmethod
    def _preset(cls, value: Any) -> Any:
        return augment_preset(value)


def augment_preset(value: Any) -> Any:
    """Returns the settings of that name where ``value`` is a text, else ``value``; for pydantic's "before" validators.

    Raises ``ValueError`` with the closest name.
    """
    if not isinstance(value, str):
        return value
    if value not in PRESETS:
        raise ValueError(f"expected settings or the name of a preset; {closest(value, PRESETS)}")
    return PRESETS[value]


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochPlan:
    """What holds in one epoch."""

    phase: int
    """Counted from 1."""
    optimiser: OptimiserSettings
    is_fresh: bool
    """Whether the optimiser begins anew with this epoch."""
    schedule: ScheduleSettings
    span: range
    """The epochs, counted from 0, over which the schedule runs."""
    augment: AugmentSettings
    image_scale: float
    """Factor on both sides of whole resized images."""


def plan_epochs(
    phases: Sequence[Phase],
    *,
    epochs: int,
    optimiser: OptimiserSettings,
    schedule: ScheduleSettings,
    augment: AugmentSettings,
    progressive: float = 0.0,
) -> tuple[EpochPlan, ...]:
    """Returns the plan of each of ``epochs`` epochs; without phases they are one phase of the given settings.

    With phases, ``epochs`` must be their sum (the settings see to that). ``progressive`` is the share of the epochs,
    the first ones, that see images at half their sides; the last epoch never does.
    """
    num_small = small_epochs(epochs, progressive)
    phases = phases or (Phase(epochs=epochs),)
    plans: list[EpochPlan] = []
    for number, (phase, span) in enumerate(zip(phases, _spans(phases), strict=True), start=1):
        optimiser, schedule = phase.optimiser or optimiser, phase.schedule or schedule
        augment = phase.augment or augment
        first = len(plans)
        begins = not plans or phase.optimiser is not None or phase.fresh_optimiser is not None
        plans.extend(
            EpochPlan(
                phase=number,
                optimiser=optimiser,
                is_fresh=begins if epoch == 0 else phase.fresh_optimiser == "epoch",
                schedule=schedule,
                span=span,
                augment=augment,
                image_scale=0.5 if first + epoch < num_small else 1.0,
            )
            for epoch in range(phase.epochs)
        )
    return tuple(plans)


def small_epochs(epochs: int, progressive: float) -> int:
    """Returns how many epochs, the first ones, see images at half their sides."""
    return min(round(progressive * epochs), epochs - 1)


PIXEL_POWER = 0.72
"""A step takes so long as its pixels to this power, until it has been timed: of progressive trainings on two CPU cores
the steps at full size took 2.7 = 4^0.72 times as long as those at half the sides."""
ENOUGH_STEPS = 3
"""The first ones of a scale find memory and caches unprepared; so many are believed."""


@dataclass(slots=True)
class StepTimes:
    """How long steps take on images of each scale, with all that happens between them, as far as they were timed."""

    timed: dict[float, tuple[int, float]] = field(default_factory=dict)
    """By image scale the number of steps, and their seconds."""

    def add(self, scale: float, *, steps: int, seconds: float) -> None:
        """Takes what was timed."""
        before = self.timed.get(scale, (0, 0.0))
        self.timed[scale] = (before[0] + steps, before[1] + seconds)

    def seconds_per_step(self, scale: float) -> float:
        """Returns how long a step takes on images of that scale, from the nearest scale that was timed; 0 for none."""
        timed = {known: each for known, each in self.timed.items() if each[0]}
        enough = [known for known, (steps, _) in timed.items() if steps >= ENOUGH_STEPS] or list(timed)
        if not enough:
            return 0.0
        nearest = min(enough, key=lambda known: abs(math.log(known / scale)))
        steps, seconds = timed[nearest]
        factor: float = (scale / nearest) ** (2 * PIXEL_POWER)
        return factor * seconds / steps


def seconds_left(
    plans: Sequence[EpochPlan], times: StepTimes, *, epoch: int, step_in_epoch: int, steps_per_epoch: int
) -> float:
    """Returns how long the training will take from a step of an epoch on, each epoch by its images' scale."""
    whole = sum(times.seconds_per_step(plan.image_scale) for plan in plans[epoch:]) * steps_per_epoch
    return whole - times.seconds_per_step(plans[epoch].image_scale) * step_in_epoch


def _spans(phases: Sequence[Phase]) -> list[range]:
    """Returns for each phase the epochs over which its schedule runs."""
    shared: list[list[int]] = []
    """For each schedule, the epochs of the phases that share it."""
    for number, phase in enumerate(phases):
        if number == 0 or phase.schedule is not None:
            shared.append([])
        shared[-1].append(phase.epochs)
    spans, first = [], 0
    for lengths in shared:
        spans += [range(first, first + sum(lengths))] * len(lengths)
        first += sum(lengths)
    return spans
