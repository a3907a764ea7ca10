"""How the learning rate changes over a training: pure functions of the step (and, for plateau, of what was reached).

Every schedule returns a factor that multiplies the optimiser's learning rate. There is no state to keep or restore:
the factor follows from the step number and the scores or losses so far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from maskloom.config import Config


class ScheduleSettings(Config):
    """Which schedule. Lengths of cycles, decay and triangular are epochs, those of the others fractions of the whole.

    "snapshots" are cosine falls from 1 to 0 that begin anew; at the end of each the network is kept.

    A training (or those of its phases that share the schedule) with fewer epochs than one cycle squeezes the cycle:
    all its parts shrink in proportion until it fits exactly. Decay in at most ``every`` epochs falls once, half-way.
    """

    kind: Literal[
        "one_cycle", "cosine", "step", "plateau", "constant", "cycles", "decay", "triangular", "snapshots"
    ] = "one_cycle"
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """All but one_cycle, triangular and snapshots: the fraction of the steps over which the factor first rises linearly
    to 1."""
    peak: float = Field(default=0.3, gt=0, lt=1)
    """one_cycle: the fraction of the steps after which the factor is 1."""
    start: float = Field(default=0.04, gt=0, le=1)
    """one_cycle: the factor of the first step."""
    end: float = Field(default=4e-6, ge=0, le=1)
    """one_cycle and cosine: the factor of the last step."""
    milestones: tuple[float, ...] = (0.6, 0.85)
    """step: fractions of the training after which the factor is multiplied by ``gamma``."""
    gamma: float = Field(default=0.1, gt=0, lt=1)
    """step, plateau and decay: the multiplier; triangular's exp_range: what an epoch leaves of the height."""
    monitor: Literal["score", "loss"] = "score"
    """plateau: what must go on getting better: the validation score, or the mean training loss of an epoch, which
    leaves the validation fold unused (not with ``training.progressive``)."""
    patience: int = Field(default=3, ge=0)
    """plateau: so many validations (epochs, for the loss) in a row may bring nothing better before the factor is
    multiplied."""
    min_delta: float = Field(default=0.0, ge=0)
    """plateau: only what beats the best one so far by more than this is better."""
    relative_delta: bool = False
    """plateau: ``min_delta`` is a fraction of the best one so far, as torch takes it unless told otherwise."""
    cooldown: int = Field(default=0, ge=0)
    """plateau: so many validations (epochs, for the loss) after the factor was multiplied do not count."""
    minimum: float = Field(default=1e-4, ge=0, le=1)
    """plateau: the factor never falls below; a floor of the learning rate itself, divided by ``optimiser.lr``."""
    cycle: tuple[tuple[Annotated[int, Field(ge=1, le=1_000_000)], Annotated[float, Field(ge=0, le=1)]], ...] = Field(
        default=((10, 1.0), (5, 0.1), (5, 0.01)), min_length=1
    )
    """cycles: pairs of a number of epochs and their factor, repeated in turn to the end."""
    every: int = Field(default=12, ge=1)
    """decay: the factor is multiplied by ``gamma`` after each so many epochs."""
    base: float = Field(default=0.1, ge=0, lt=1)
    """triangular: the lowest factor; the highest is 1, so that the optimiser's learning rate is the cycle's highest."""
    half_cycle: float = Field(default=2.0, gt=0)
    """triangular: so many epochs does the factor rise, and so many it falls again."""
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular"
    """triangular: the height above ``base`` stays, is halved with each cycle, or falls by ``gamma`` with each epoch."""
    num_cycles: int = Field(default=5, ge=1)
    """snapshots: into so many cycles of whole epochs is the training divided, one per epoch where it has fewer; some
    are an epoch longer where they cannot be equal."""

    @model_validator(mode="after")
    def _consistent(self) -> ScheduleSettings:
        if self.kind == "one_cycle" and self.warmup:
            raise ValueError("one_cycle has its own rise: set `peak` instead of `warmup`")
        if self.kind == "triangular" and self.warmup:
            raise ValueError("triangular has its own rise: set `half_cycle` instead of `warmup`")
        if self.kind == "snapshots" and self.warmup:
            raise ValueError("snapshots begin each cycle at the highest rate: leave `warmup` out")
        if not all(0 < milestone < 1 for milestone in self.milestones):
            raise ValueError(f"milestones must be fractions between 0 and 1, found {list(self.milestones)}")
        return self


OPTIONS: dict[str, tuple[str, ...]] = {
    "one_cycle": ("peak", "start", "end"),
    "cosine": ("warmup", "end"),
    "step": ("warmup", "milestones", "gamma"),
    "plateau": (
        "warmup", "gamma", "monitor", "patience", "min_delta", "relative_delta", "cooldown", "minimum",
    ),
    "constant": ("warmup",),
    "cycles": ("warmup", "cycle"),
    "decay": ("warmup", "gamma", "every"),
    "triangular": ("base", "half_cycle", "mode", "gamma"),
    "snapshots": ("num_cycles",),
}  # fmt: skip
"""The settings that each kind looks at."""


def learning_rate_factor(
    settings: ScheduleSettings,
    step: int,
    num_steps: int,
    *,
    steps_per_epoch: int,
    scores: Sequence[float] = (),
    losses: Sequence[float] | None = None,
) -> float:
    """Returns the factor of the learning rate for ``step`` in 0 … num_steps-1.

    ``num_steps`` are those of all epochs over which this schedule runs, ``steps_per_epoch`` those of each.
    ``scores`` are the validation scores since it began, oldest first, higher is better; ``losses`` the mean training
    losses of the epochs since then. Only plateau looks at them, at the one that it monitors; raises ``ValueError``
    where it monitors losses and is given none.
    """
    if settings.kind == "one_cycle":
        return one_cycle(step, num_steps, peak=settings.peak, start=settings.start, end=settings.end)
    num_warmup = int(settings.warmup * num_steps)
    if step < num_warmup:
        return (step + 1) / (num_warmup + 1)
    match settings.kind:
        case "cosine":
            last = num_steps - 1 - num_warmup
            return _cosine_between(1.0, settings.end, (step - num_warmup) / last if last > 0 else 0.0)
        case "step":
            passed = sum(step >= milestone * num_steps for milestone in settings.milestones)
            return float(settings.gamma**passed)
        case "plateau":
            if settings.monitor == "loss" and losses is None:
                raise ValueError("expected the losses so far of a plateau that monitors the loss, got none")
            return plateau(
                scores if settings.monitor == "score" else losses or (),
                patience=settings.patience,
                gamma=settings.gamma,
                minimum=settings.minimum,
                min_delta=settings.min_delta,
                relative=settings.relative_delta,
                cooldown=settings.cooldown,
                lower_is_better=settings.monitor == "loss",
            )
        case "cycles":
            return cycles(step, num_steps, cycle=settings.cycle, steps_per_epoch=steps_per_epoch)
        case "decay":
            period = settings.every * steps_per_epoch
            passed = step // period if num_steps > period else int(2 * step >= num_steps)
            return float(settings.gamma**passed)
        case "triangular":
            half = min(settings.half_cycle * steps_per_epoch, num_steps / 2)
            height = _height(settings, step, half, steps_per_epoch)
            return settings.base + (1 - settings.base) * height * triangle(step, half)
        case "constant":
            return 1.0
        case "snapshots":
            return restarts(step, num_steps, num_cycles=settings.num_cycles, steps_per_epoch=steps_per_epoch)


def one_cycle(step: int, num_steps: int, *, peak: float, start: float, end: float) -> float:
    """Returns the factor of the one-cycle policy: a cosine rise from ``start`` to 1, a cosine fall to ``end``.

    Smith & Topin, "Super-Convergence" (2018), in the two-phase form of torch's ``OneCycleLR``; momentum stays as it is.
    """
    highest = peak * num_steps - 1
    last = num_steps - 1
    if step <= highest and highest > 0:
        return _cosine_between(start, 1.0, step / highest)
    highest = max(highest, 0.0)
    return _cosine_between(1.0, end, (step - highest) / (last - highest) if last > highest else 0.0)


def _cosine_between(first: float, second: float, progress: float) -> float:
    return second + (first - second) * (1 + math.cos(math.pi * progress)) / 2


def cycles(step: int, num_steps: int, *, cycle: Sequence[tuple[int, float]], steps_per_epoch: int) -> float:
    """Returns the factor of the part of the repeated ``cycle`` of (epochs, factor) that holds at ``step``."""
    epochs = sum(part for part, _ in cycle)
    length = min(epochs * steps_per_epoch, num_steps)
    place = step % length
    end = 0
    for part, factor in cycle[:-1]:
        end += part
        if place * epochs < end * length:
            return factor
    return cycle[-1][1]


def restarts(step: int, num_steps: int, *, num_cycles: int, steps_per_epoch: int) -> float:
    """Returns the factor of cosine falls from 1 that begin anew: (cos(π·step / length) + 1) / 2, ``step`` in its cycle.

    Huang et al., "Snapshot Ensembles: Train 1, get M for free" (2017), https://arxiv.org/abs/1704.00109; but that
    cycles are whole epochs, so that what an epoch leaves is a network at the end of its cycle.
    """
    first = 0
    for end in cycle_ends(num_steps // steps_per_epoch, num_cycles):
        if step < end * steps_per_epoch:
            break
        first = end * steps_per_epoch
    return _cosine_between(1.0, 0.0, (step - first) / (end * steps_per_epoch - first))


def cycle_ends(epochs: int, num_cycles: int) -> tuple[int, ...]:
    """Returns after how many of ``epochs`` epochs each cycle ends; there are at most as many cycles as epochs."""
    count = min(num_cycles, epochs)
    return tuple(number * epochs // count for number in range(1, count + 1))


def triangle(step: int, half: float) -> float:
    """Returns the height, 0…1, of a triangular wave that rises for ``half`` steps from 0 and falls as long.

    Smith, "Cyclical Learning Rates for Training Neural Networks" (2017): 1 - abs(step / half - 2 cycle + 1).
    """
    number = math.floor(1 + step / (2 * half))
    return max(0.0, 1 - abs(step / half - 2 * number + 1))


def _height(settings: ScheduleSettings, step: int, half: float, steps_per_epoch: int) -> float:
    """Returns what Smith's variants multiply the triangle by.

    Smith lets exp_range fall by gamma with every iteration; here it is the same fall stated per epoch, so that it
    holds for any number of images.
    """
    match settings.mode:
        case "triangular":
            return 1.0
        case "triangular2":
            return float(0.5 ** math.floor(step / (2 * half)))
        case "exp_range":
            return float(settings.gamma ** (step / steps_per_epoch))


def plateau(
    values: Sequence[float],
    *,
    patience: int,
    gamma: float,
    minimum: float,
    min_delta: float = 0.0,
    relative: bool = False,
    cooldown: int = 0,
    lower_is_better: bool = False,
) -> float:
    """Returns the factor after these scores or losses: multiplied by ``gamma`` whenever they stopped getting better.

    As torch's ``ReduceLROnPlateau`` with mode "max" ("min" where ``lower_is_better``) and an absolute or ``relative``
    threshold: after more than ``patience`` values in a row that do not beat the best one by more than ``min_delta``
    (times the size of the best one), the factor is multiplied and the counting begins again, ``cooldown`` values later.
    A value that is not a number is never better.
    """
    factor, best, since_best, resting = 1.0, -math.inf, 0, 0
    for value in values:
        score = -value if lower_is_better else value
        delta = min_delta * abs(best) if relative and math.isfinite(best) else min_delta
        best, since_best = (score, 0) if score > best + delta else (best, since_best + 1)
        if resting:
            resting, since_best = resting - 1, 0
        if since_best > patience:
            factor, since_best, resting = max(factor * gamma, minimum), 0, cooldown
    return factor


def num_without_gain(scores: Sequence[float], *, min_delta: float = 0.0) -> int:
    """Returns how many of the latest scores brought no new best one, which is above the old by more than ``min_delta``.

    Small gains add up: they are measured from the last score that counted as best.
    """
    best, since_best = -math.inf, 0
    for score in scores:
        best, since_best = (score, 0) if score > best + min_delta else (best, since_best + 1)
    return since_best
