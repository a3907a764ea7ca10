"""What a report is made from: a run's scores, curves, data and settings, gathered by whoever knows the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
class LookAlikes:
    """Two images of different groups that look alike, H×W×C as stored or already small."""

    ids: tuple[str, str]
    images: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportInput:
    """Everything a report shows."""

    recipe_yaml: str
    evaluation: Mapping[str, Any]
    """``metric``; ``oof`` (cross-fitted), ``fitted_on_all``, ``half`` and each of ``members``: ``mean``, ``std``,
    ``folds``, ``classes``; members also ``without_views``; ``thresholds`` and ``weights``."""
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

    @property
    def num_straddling(self) -> int:
        """The number of pairs of look-alikes of which one trains a network that the other validates."""
        if self.folds is None:
            return len(self.near_duplicates)
        fold_of = self.folds.fold_of()
        return sum(fold_of.get(pair["first"]) != fold_of.get(pair["second"]) for pair in self.near_duplicates)
