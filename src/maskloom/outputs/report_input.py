"""What a report is made from: a run's scores, curves, data and settings, gathered by whoever knows the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from maskloom.data.folds import FoldTable
from maskloom.data.statistics import Survey
from maskloom.errors import UserError
from maskloom.records import TaskKind


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Example:
    """One of the best or worst images: ``image`` H×W×C as stored, label arrays as everywhere in the package."""

    id: str
    kind: Literal["best", "worst"]
    score: float
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    fold: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class ClassExample:
    """One of a class's worst images: the part where the class's errors are, small enough for a page."""

    name: str
    """Of the class."""
    id: str
    score: float
    """Of the class in the whole image."""
    wrong: int
    """Pixels of the whole image that miss the class or are too much of it."""
    fold: int | None
    panels: Sequence[tuple[str, np.ndarray]]
    """Pictures uint8 H×W×3 with their captions."""


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class LookAlikes:
    """Two images of different groups that look alike, H×W×C as stored or already small."""

    ids: tuple[str, str]
    images: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberFacts:
    """What the recipe says about a member that its scores do not."""

    asked: Literal["with views", "once", "elsewhere"] = "with views"
    """Whether its networks are asked with test-time views; "elsewhere": its maps came from outside."""
    notes: Sequence[str] = ()
    """What sets it apart: own folds, what guides it, what it begins with or also learns from."""


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class ChangedMask:
    """An image whose mask post-processing changes: label arrays without and with the steps."""

    id: str
    fold: int
    score_before: float
    score_after: float
    image: np.ndarray
    truth: np.ndarray
    before: np.ndarray
    after: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class PseudoFold:
    """What one fold learns from in a round of pseudo-labels."""

    name: str
    offered: int
    reasons: Mapping[str, int]
    """Images by what became of them; under "chosen" those it learns from."""
    least_confidence: float
    """Of the chosen ones."""


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class PseudoLabelled:
    """An image that a fold learns from, with its labels; unsure pixels are ``IGNORE``."""

    id: str
    fold: int
    why: str
    confidence: float
    agreement: float
    image: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class PseudoRound:
    """A round in which members learn from labels that others gave to images without truth."""

    number: int
    teachers: Sequence[str]
    pupils: Sequence[str]
    train: str
    """How the pupils learn from the labels, in words."""
    minimum_confidence: float
    folds: Sequence[PseudoFold]
    notes: Sequence[str] = ()
    """What the reader should know of it, such as teachers that label for some folds only."""
    examples: Sequence[PseudoLabelled] = ()
    """Some of the chosen images, the least sure first."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportInput:
    """Everything a report shows."""

    recipe_yaml: str
    evaluation: Mapping[str, Any]
    """``metric``; ``oof`` (cross-fitted), ``fitted_on_all``, ``half`` and each of ``members``: ``mean``, ``std``,
    ``folds``, ``classes``; members also ``without_views``; ``thresholds`` and ``weights`` (of the members that are in
    the ensemble, by class where they differ by class); of versions that know them also ``pixels``, ``boundary`` and
    ``contest`` (see ``stages.evaluation``). Where masks are post-processed, ``postprocess``: ``choose``, ``trials``,
    ``steps_of_parts``, ``scores`` (``without``, ``with``) and ``gain``."""
    classes: Sequence[str]
    task_kind: TaskKind
    learning_curves: Mapping[str, Sequence[Mapping[str, Any]]]
    """Per "member/fold" the epochs with ``epoch``, ``loss`` and ``score`` (None where not measured)."""
    image_scores: Sequence[float]
    """Of every validated image, cross-fitted."""
    threshold_curve: Sequence[Sequence[float]]
    """Score at every 8-bit threshold per class; empty for multiclass."""
    survey: Survey
    hardware: Mapping[str, str | int | float]
    seconds: Mapping[str, float]
    """Per finished stage."""
    near_duplicates: Sequence[Mapping[str, Any]] = ()
    """``first``, ``second`` and ``similarity`` of images of different groups that look alike."""
    look_alikes: Sequence[LookAlikes] = ()
    """Pictures of some of them."""
    left_out: Sequence[UserError] = ()
    """What opening the data and predicting left out; what the survey left out is in the survey."""
    notes: Sequence[str] = ()
    """Every guess made about the data, in words."""
    num_unlabelled: int = 0
    members: Mapping[str, MemberFacts] = field(default_factory=dict)
    """Facts about members, by name; one without facts is asked with test-time views."""
    changed_masks: Sequence[ChangedMask] = ()
    """Images whose score post-processing changes most."""
    pseudo_rounds: Sequence[PseudoRound] = ()
    errors: Mapping[str, Any] | None = None
    """``confusion``, ``calibration``, ``mean_iou``, ``attributes``, ``worst`` as ``ensemble/errors.json`` holds them;
    None in a run that has not looked."""
    class_examples: Sequence[ClassExample] = ()
    """Each class's worst images, class by class; empty for binary tasks."""
    examples: Sequence[Example] = ()
    num_unread: int = 0
    """Best and worst images that could not be read any more."""
    folds: FoldTable | None = None
    name: str = ""
    """Of the run."""
    data: str = ""
    """Where the data was."""
    layout: str = ""
    """The data's layout as it was recognised."""

    @property
    def metric_name(self) -> str:
        """The metric as people say it."""
        if self.evaluation["metric"] == "dice":
            return "mean Dice"
        return "IoU" if self.task_kind == "binary" else "mean IoU"

    def member(self, name: str) -> MemberFacts:
        """Returns the facts about a member."""
        return self.members.get(name, MemberFacts())

    def score_text(self, value: float | None) -> str:
        """Returns a score as the page writes it."""
        return "–" if value is None else f"{value:.{score_digits(self.evaluation['oof']['mean'])}f}"

    @property
    def num_straddling(self) -> int:
        """The number of pairs of look-alikes of which one trains a network that the other validates."""
        if self.folds is None:
            return len(self.near_duplicates)
        fold_of = self.folds.fold_of()
        return sum(fold_of.get(pair["first"]) != fold_of.get(pair["second"]) for pair in self.near_duplicates)


def score_digits(mean: float) -> int:
    """Returns the decimals of scores: five near 1, where four would hide what folds, views and steps differ by."""
    return 5 if mean >= 0.99 else 4
