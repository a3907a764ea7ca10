"""Post-processing: steps that change a decided mask, as settings and as one function, and the search that chooses them.

Pixel constants are stated for photos of 1918×1280, as the published systems do, and follow the image's height. Every
step acts on the mask of one class: what it adds becomes that class; what it takes away becomes nothing (binary,
multilabel) or the class with the next largest value (multiclass). Knows nothing about files and networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from maskloom.config import Config
from maskloom.ensembling.bootstrap import DRAWS, Gain, Tally, compare_tallies
from maskloom.errors import UserError, closest
from maskloom.masks import Erosion, fill_holes, hull_of_unsure, remove_far, remove_small, remove_thin
from maskloom.metrics import Metric, from_labels
from maskloom.records import Task

ROWS = 1280
"""Height of the photos that pixel constants are stated for."""
MIN_GROUPS = 6
"""With fewer groups no search: that all of five gain happens by chance once in 32 times."""
MERGED = "result"
"""The merged map of the whole ensemble, beside its taps."""

ElementSide = Annotated[int, Field(le=1_000)]
"""Pixels of an element that masks are eroded with."""


class _Step(Config):
    """What all steps have in common."""

    classes: tuple[str, ...] | None = None
    """The classes whose masks are changed; None: all, of a multiclass task all but the first (its background)."""


class _PixelStep(_Step):
    """What all steps with pixel constants have in common."""

    scale_pixels: bool = True
    """Lengths follow the image's height from 1280 rows, areas its square; False: they are taken as they stand."""


class ThresholdStep(_Step):
    """Decides the mask anew from the merged map (binary and multilabel); stated before all other steps."""

    kind: Literal["threshold"] = "threshold"
    value: Literal["fitted"] | Annotated[float, Field(ge=0, le=1)] = "fitted"
    """A probability, or "fitted" on the same out-of-fold maps as the search: worth a try where the ensemble's own
    threshold is stated."""


class HullStep(_PixelStep):
    """Replaces the mask around a large unsure region by the convex hull of what is likely the object.

    Source: Carvana, 1st place, merging and post-processing 2; the defaults are its constants.
    """

    kind: Literal["hull"] = "hull"
    map: str = MERGED
    """"result", or a tap of the ensemble tree: whose map says what is unsure (published: the LinkNet member's)."""
    low: int = Field(default=30, ge=0, le=255)
    high: int = Field(default=210, ge=0, le=255)
    """Unsure are the 8-bit values between ``low`` and ``high``, both excluded."""
    element: tuple[ElementSide, ElementSide] = (2, 1)
    """Height and width of the rectangle that the unsure region is eroded with, anchored at (height // 2, width // 2).
    (2, 1) reproduces the original: its call hands OpenCV the tuple (55, 55), which is taken as a column of two
    elements. (55, 55) is what was probably meant; 10 erosions with it leave nothing of most regions."""
    iterations: int = Field(default=10, ge=0, le=1_000)
    """How often it is eroded: what is scaled is the length that all erosions together take."""
    top: float = Field(default=0.5, gt=0, le=1)
    """Only this upper share of the image's rows is looked at."""
    minimum_area: float = Field(default=40_000, ge=0)
    """The largest contour left must enclose more, in square pixels."""
    margin: int = Field(default=50, ge=0, le=1_000_000)
    """Pixels by which its bounding box is grown."""
    above: int = Field(default=55, ge=0, le=255)
    """The object is the largest contour of 8-bit values above this."""

    @model_validator(mode="after")
    def _element_is_a_rectangle(self) -> HullStep:
        if min(self.element) < 1:
            raise ValueError(f"element: expected a height and width of at least 1, found {self.element}")
        return self


class HolesStep(_PixelStep):
    """Fills interior holes of the predicted object. Source: Carvana, 4th place."""

    kind: Literal["holes"] = "holes"
    maximum_area: float | None = Field(default=None, gt=0)
    """Only holes of at most so many square pixels; None: all."""


class SmallStep(_PixelStep):
    """Removes connected pieces that are small; the default area is ours."""

    kind: Literal["small"] = "small"
    minimum_area: float = Field(default=2000, gt=0)
    """Pieces of fewer square pixels go."""


class FarStep(_PixelStep):
    """Removes pieces far outside the contour of the largest one. Source: Carvana, 4th place; the distance is ours."""

    kind: Literal["far"] = "far"
    distance: float = Field(default=60, ge=0)
    """Pieces farther away go, in pixels."""


class ThinStep(_PixelStep):
    """Removes thin parts such as antennas. Source: Carvana, 10th place; width and length are ours."""

    kind: Literal["thin"] = "thin"
    width: float = Field(default=12, gt=0, le=1_000)
    """Parts narrower than so many pixels are thin; below 2 after scaling nothing is."""
    length: float = Field(default=24, ge=0)
    """They go where they reach farther than so many pixels from what is not thin; less is a corner."""


Step = Annotated[ThresholdStep | HullStep | HolesStep | SmallStep | FarStep | ThinStep, Field(discriminator="kind")]
"""One step; its ``kind`` says which."""
Plan = tuple[Step, ...]
"""Steps in the order in which they are taken, each for exactly one class."""


class PostprocessSettings(Config):
    """Which steps there are, and how it is decided which of them are taken."""

    steps: tuple[Step, ...] = ()
    """Candidates in the order in which they are taken; one kind may occur several times with other constants."""
    choose: Literal["searched", "always"] = "searched"
    """"searched": each step and class is switched on only when it helps out of fold beyond noise; "always": all are,
    as published systems do, and what they gain is still measured."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """A step helps beyond noise when the whole interval of its gain over groups lies above 0; the interval holds this
    share of the draws after Bonferroni's correction for the number of candidates."""
    draws: int = Field(default=DRAWS, ge=100, le=1_000_000)
    """Draws of the paired bootstrap."""

    @model_validator(mode="after")
    def _thresholds_come_first(self) -> PostprocessSettings:
        kinds = [step.kind == "threshold" for step in self.steps]
        if kinds != sorted(kinds, reverse=True):
            raise ValueError("a threshold decides the mask anew: state it before the steps that it would undo")
        return self


def check_steps(settings: PostprocessSettings, task: Task, taps: Iterable[str]) -> None:
    """Raises ``UserError`` for a step that names a class or map that is not there, or that the task cannot have."""
    known = [MERGED, *taps]
    for index, step in enumerate(settings.steps):
        place = f"postprocess.steps.{index}"
        if step.kind == "threshold" and task.kind == "multiclass":
            raise UserError(f"{place}: expected no threshold, as a multiclass task takes the largest value; remove it")
        for name in step.classes or ():
            if name not in task.classes:
                raise UserError(f"{place}.classes: expected classes of the task, {closest(name, task.classes)}")
        if isinstance(step, HullStep) and step.map not in known:
            raise UserError(
                f"{place}.map: expected 'result' or a tap of the ensemble tree, found {step.map!r}; "
                f"{closest(step.map, known)}"
            )


def single_class_steps(settings: PostprocessSettings, task: Task) -> list[Step]:
    """Returns the candidates, one for each step and class, in the order in which they are taken."""
    foreground = task.classes[1:] if task.kind == "multiclass" else task.classes
    return [
        step.model_copy(update={"classes": (name,)})
        for step in settings.steps
        for name in (foreground if step.classes is None else step.classes)
    ]


def with_fitted_thresholds(steps: Iterable[Step], thresholds: Sequence[int], task: Task) -> list[Step]:
    """Returns single-class steps with every fitted threshold stated: ``thresholds`` per class, on the 8-bit value."""

    def stated(step: Step) -> Step:
        if not isinstance(step, ThresholdStep) or step.value != "fitted":
            return step
        return step.model_copy(update={"value": thresholds[task.classes.index(_class_of(step))] / 255})

    return [stated(step) for step in steps]


def step_text(step: Step) -> str:
    """Returns a single-class step in words, such as ``fill holes (car)``."""
    texts = {
        "hull": "convex hull of unsure regions",
        "holes": "fill holes",
        "small": "remove small pieces",
        "far": "remove far pieces",
        "thin": "remove thin parts",
    }
    text = texts.get(step.kind, "")
    if isinstance(step, ThresholdStep):
        text = "threshold" + ("" if step.value == "fitted" else f" {step.value:.3f}")
    return f"{text} ({_class_of(step)})"


def _class_of(step: Step) -> str:
    assert step.classes is not None and len(step.classes) == 1  # as ``single_class_steps`` made it
    return step.classes[0]


@dataclass(frozen=True)
class Postprocessor:
    """Steps ready to be taken."""

    steps: Plan
    task: Task

    def __call__(self, labels: np.ndarray, maps: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the labels after all steps; without steps, the labels themselves.

        ``labels`` are as ``thresholds.decide`` gives them, ``maps`` the merged map ("result") and the ensemble's taps,
        uint8 C×H×W.
        """
        if not self.steps:
            return labels
        labels = labels.copy()
        for step in self.steps:
            index = self.task.classes.index(_class_of(step))
            if self.task.kind == "multilabel":
                labels[index] = changed(step, labels[index] == 1, maps, index)
            elif self.task.kind == "binary":
                labels = changed(step, labels == 1, maps, 0).view(np.uint8)
            else:
                mask = labels == index
                found = changed(step, mask, maps, index)
                lost = mask & ~found
                labels[lost] = _runner_up(maps[MERGED][:, lost], index)
                labels[found] = index
        return labels


def _runner_up(values: np.ndarray, index: int) -> np.ndarray:
    """Returns the class with the largest value other than ``index`` for each column of uint8 C×N."""
    others = values.astype(np.int16)
    others[index] = -1
    best: np.ndarray = others.argmax(axis=0).astype(np.uint8)
    return best


def changed(step: Step, mask: np.ndarray, maps: Mapping[str, np.ndarray], index: int) -> np.ndarray:
    """Returns a bool mask H×W of class ``index`` after one step; ``mask`` stays as it is."""
    if isinstance(step, ThresholdStep):
        assert step.value != "fitted"  # ``with_fitted_thresholds`` has stated it
        positive: np.ndarray = maps[MERGED][index] >= round(255 * step.value)
        return positive
    scale = mask.shape[0] / ROWS if step.scale_pixels else 1.0
    if isinstance(step, HolesStep):
        return fill_holes(mask, maximum_area=None if step.maximum_area is None else step.maximum_area * scale**2)
    if isinstance(step, SmallStep):
        return remove_small(mask, step.minimum_area * scale**2)
    if isinstance(step, FarStep):
        return remove_far(mask, step.distance * scale)
    if isinstance(step, ThinStep):
        return remove_thin(mask, round(step.width * scale), length=step.length * scale)
    height, width = step.element
    above, left = height // 2, width // 2
    taken = [step.iterations * side * scale for side in (above, height - 1 - above, left, width - 1 - left)]
    return hull_of_unsure(
        mask,
        maps[step.map][index],
        unsure=(step.low, step.high),
        erosion=Erosion(*(round(length) for length in taken)),
        top=step.top,
        minimum_area=step.minimum_area * scale**2,
        margin=round(step.margin * scale),
        above=step.above,
    )


def count_plans(
    plans: Sequence[Plan], labels: np.ndarray, maps: Mapping[str, np.ndarray], truth: np.ndarray, task: Task
) -> Tally:
    """Returns the counts of one record's labels after each plan: P×3×C.

    Classes of a multilabel task do not touch each other, so what one class goes through is counted once.
    """
    if task.kind != "multilabel":
        counts = [from_labels(Postprocessor(plan, task)(labels, maps), truth, task) for plan in plans]
        return np.stack([np.stack((count.tp, count.fp, count.fn)) for count in counts])
    columns = []
    for index, name in enumerate(task.classes):
        own = [tuple(step for step in plan if step.classes == (name,)) for plan in plans]
        different = list(dict.fromkeys(own))
        alone = {tap: values[index : index + 1] for tap, values in maps.items()}
        single = Task(kind="binary", classes=(name,))
        found = dict(zip(different, count_plans(different, labels[index], alone, truth[index], single), strict=True))
        columns.append(np.stack([found[plan] for plan in own]))
    return np.concatenate(columns, axis=2)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What the search found out about one candidate."""

    step: Step
    gain: Gain | None
    """When it was switched on, or in the last round where it was not; None where nothing was tried."""
    chosen: bool
    why: str


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search decided."""

    plan: Plan
    trials: tuple[Trial, ...]
    """Of every candidate, in the order in which steps are taken."""


def search(
    candidates: Sequence[Step],
    tallies: Callable[[Sequence[Plan]], list[Tally]],
    groups: Sequence[str],
    metric: Metric,
    settings: PostprocessSettings,
    *,
    seed: int = 0,
) -> Found:
    """Returns the steps that help beyond noise: greedily the best of them, until no further one does.

    ``tallies`` gives the counts N×3×C of all records after each of several plans; ``groups`` are the records' groups.
    In every round each remaining candidate is added to the plan, at its place in the order of ``candidates``; it
    passes when the interval of its gain by paired bootstrap over groups lies above 0. With ``choose: always`` every
    candidate is added in its turn.
    """
    gains: dict[int, Gain] = {}
    chosen: list[int] = []
    num_groups = len(set(groups))
    if settings.choose == "searched" and num_groups < MIN_GROUPS:
        why = f"not tried: {num_groups} group(s) cannot tell a gain from noise, {MIN_GROUPS} could"
        return Found(plan=(), trials=tuple(Trial(step=step, gain=None, chosen=False, why=why) for step in candidates))
    num_tried = len(candidates) if settings.choose == "searched" else 1
    confidence = 1 - (1 - settings.confidence) / max(num_tried, 1)

    def plan(indices: Iterable[int]) -> Plan:
        return tuple(candidates[index] for index in sorted(indices))

    before: Tally | None = None
    while len(chosen) < len(candidates):
        left = [index for index in range(len(candidates)) if index not in chosen]
        tried = left if settings.choose == "searched" else left[:1]
        plans = [plan([*chosen, index]) for index in tried]
        if before is None:
            before, *after = tallies([(), *plans])
        else:
            after = tallies(plans)
        found = compare_tallies(before, after, groups, metric, confidence=confidence, draws=settings.draws, seed=seed)
        gains.update(zip(tried, found, strict=True))
        passing = [index for index in tried if gains[index].low > 0 or settings.choose == "always"]
        if not passing:
            break
        best = max(passing, key=lambda index: gains[index].mean)
        chosen.append(best)
        before = after[tried.index(best)]
    trials = (
        Trial(
            step=step, gain=gains[index], chosen=index in chosen, why=_reason(gains[index], index in chosen, settings)
        )
        for index, step in enumerate(candidates)
    )
    return Found(plan=plan(chosen), trials=tuple(trials))


def _reason(gain: Gain, chosen: bool, settings: PostprocessSettings) -> str:
    if chosen:
        return "switched on: it helps beyond noise" if settings.choose == "searched" else "always on"
    if gain.mean == gain.low == gain.high == 0:
        return "left off: it changes no score"
    return "left off: within noise" if gain.high > 0 else "left off: it does harm"
