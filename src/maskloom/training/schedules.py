"""How the learning rate changes over a training: pure functions of the step (and, for plateau, of past scores).

Every schedule returns a factor that multiplies the optimiser's learning rate. There is no state to keep or restore:
the factor follows from the step number and the scores so far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from maskloom.config import Config


class ScheduleSettings(Config):
    """Which schedule; lengths are fractions of the whole training, so they hold for any number of epochs."""

    kind: Literal["one_cycle", "cosine", "step", "plateau", "constant"] = "one_cycle"
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """All but one_cycle: the fraction of the steps over which the factor first rises linearly to 1."""
    peak: float = Field(default=0.3, gt=0, lt=1)
    """one_cycle: the fraction of the steps after which the factor is 1."""
    start: float = Field(default=0.04, gt=0, le=1)
    """one_cycle: the factor of the first step."""
    end: float = Field(default=4e-6, ge=0, le=1)
    """one_cycle and cosine: the factor of the last step."""
    milestones: tuple[float, ...] = (0.6, 0.85)
    """step: fractions of the training after which the factor is multiplied by ``gamma``."""
    gamma: float = Field(default=0.1, gt=0, lt=1)
    """step and plateau: the multiplier."""
    patience: int = Field(default=3, ge=0)
    """plateau: so many validations in a row may bring no better score before the factor is multiplied."""
    minimum: float = Field(default=1e-4, ge=0, le=1)
    """plateau: the factor never falls below."""

    @model_validator(mode="after")
    def _consistent(self) -> ScheduleSettings:
        if self.kind == "one_cycle" and self.warmup:
            raise ValueError("one_cycle has its own rise: set `peak` instead of `warmup`")
        if not all(0 < milestone < 1 for milestone in self.milestones):
            raise ValueError(f"milestones must be fractions between 0 and 1, found {list(self.milestones)}")
        return self


def learning_rate_factor(
    settings: ScheduleSettings, step: int, num_steps: int, *, scores: Sequence[float] = ()
) -> float:
    """Returns the factor of the learning rate for ``step`` in 0 … num_steps-1.

    ``scores`` are the validation scores so far, oldest first, higher is better; only plateau looks at them.
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
            return plateau(scores, patience=settings.patience, gamma=settings.gamma, minimum=settings.minimum)
        case "constant":
            return 1.0


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


def plateau(scores: Sequence[float], *, patience: int, gamma: float, minimum: float) -> float:
    """Returns the factor after these validation scores: multiplied by ``gamma`` whenever they stopped rising.

    As torch's ``ReduceLROnPlateau`` with mode "max" and threshold 0: after more than ``patience`` scores in a row
    that are not above the best one, the factor is multiplied and the counting begins again.
    """
    factor, best, since_best = 1.0, -math.inf, 0
    for score in scores:
        best, since_best = (score, 0) if score > best else (best, since_best + 1)
        if since_best > patience:
            factor, since_best = max(factor * gamma, minimum), 0
    return factor


def num_without_gain(scores: Sequence[float]) -> int:
    """Returns how many of the latest scores brought no new best one."""
    if not scores:
        return 0
    return len(scores) - 1 - scores.index(max(scores))
