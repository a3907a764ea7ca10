"""Pseudo-labels: predictions of unlabelled images that are sure enough to learn from, how sure they are, and which.

Confidence is measured where it can fail, near the predicted boundary; agreement compares the networks of different
folds. Selection is deterministic and gives a reason for every image. Knows nothing about files, networks and folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from maskloom.config import Config
from maskloom.ensembling.thresholds import HALF, decide
from maskloom.errors import UserError
from maskloom.metrics import dice, from_labels
from maskloom.records import IGNORE, Task

ROWS = 1280
"""Height of the photos that pixel constants are stated for."""

Reason = Literal["chosen", "validated", "look-alike", "damaged", "unsure", "disagreement", "beyond the number"]
"""Why an image was taken or not."""


class PseudoLabelSettings(Config):
    """One round: some members label images without truth, others learn from those labels beside the true ones.

    The networks of fold k learn only from labels made by networks that never saw what fold k validates.
    """

    members: tuple[str, ...] = Field(min_length=1)
    """The members that learn from the labels."""
    teachers: tuple[str, ...] | None = None
    """The members whose networks label, with equal weights; None: all that learn in no round from this one on."""
    train: Literal["scratch", "from_weights", "pretrain_then_refine"] = "scratch"
    """"scratch": on true and pseudo-labels together, from fresh (or pretrained) weights; "from_weights": the same, from
    the weights of the member that the learning one names as its ``start``; "pretrain_then_refine": on the
    pseudo-labels alone, then on the true labels alone (Carvana, 4th place)."""
    number: int | None = Field(default=None, ge=1)
    """So many images at most, the surest first."""
    share: float | None = Field(default=None, gt=0, le=1)
    """Or so large a share of the images without truth."""
    outnumber: float = Field(default=4.0, gt=0)
    """At most so many pseudo-labels for each true one that the fold trains on (Carvana, 1st place: there should be
    more of them than of labels, and 19 times as many images were at hand)."""
    minimum_confidence: float = Field(default=0.5, ge=0, le=1)
    """Images below are never taken: 1 where every pixel near the predicted boundary is decided, 0 where none is."""
    minimum_agreement: float = Field(default=0.0, ge=0, le=1)
    """Images whose folds agree less (mean Dice of all pairs) are never taken. Above 0, networks that saw what a fold
    validates have a say in which images it learns from, though never in what their labels are."""
    rank_by: Literal["confidence", "agreement"] = "confidence"
    """What the surest images have most of; the other decides ties."""
    band: float = Field(default=10, ge=0)
    """Confidence looks at so many pixels on both sides of the predicted boundary."""
    scale_pixels: bool = True
    """``band`` follows the image's height from 1280 rows; False: it is taken as it stands."""
    ignore_below: float = Field(default=0.2, ge=0, lt=1)
    """Pixels that are less sure count in no loss: 0.2 leaves out probabilities between 0.4 and 0.6."""

    @model_validator(mode="after")
    def _one_limit(self) -> PseudoLabelSettings:
        if self.number is not None and self.share is not None:
            raise ValueError("expected number or share, found both; state one of them")
        return self

    @model_validator(mode="after")
    def _teachers_do_not_learn(self) -> PseudoLabelSettings:
        both = sorted(set(self.members) & set(self.teachers or ()))
        if both:
            raise ValueError(f"{both[0]} cannot learn from its own labels in one round; let another member learn")
        return self

    def limit(self, num_images: int, num_labelled: int) -> int:
        """Returns how many of the images may be taken by a fold that trains on so many true labels; at least 1."""
        wanted = num_images if self.share is None else round(self.share * num_images)
        wanted = wanted if self.number is None else self.number
        return max(min(wanted, num_images, int(self.outnumber * num_labelled)), 1)


def sureness(values: np.ndarray, task: Task) -> np.ndarray:
    """Returns how sure each pixel is: uint8 K×H×W, 0 undecided … 255 sure, from 8-bit maps C×H×W.

    Twice the distance of the probability from 0.5 (K = C); in multiclass tasks the largest probability less the second
    (K = 1), which for two classes is the same.
    """
    if task.kind == "multiclass":
        two = np.partition(values, values.shape[0] - 2, axis=0)[-2:]
        largest: np.ndarray = (two[1] - two[0])[None]
        return largest
    distance: np.ndarray = np.abs(2 * values.astype(np.int16) - 255).astype(np.uint8)
    return distance


def confidence(values: np.ndarray, task: Task, *, band: float) -> float:
    """Returns the mean ``sureness`` near the predicted boundary, 0…1, of 8-bit maps C×H×W.

    Near are pixels at most ``band`` pixels from one that has another label beside it (labels at one half, or the
    largest). In multilabel tasks all maps count together. An image without any boundary is looked at as a whole.
    """
    labels = _half(values, task)
    planes = labels if task.kind == "multilabel" else labels[None]
    near = np.stack([_near_boundary(plane, band) for plane in planes])
    sure = sureness(values, task)
    return float((sure[near] if near.any() else sure).mean()) / 255


def _near_boundary(labels: np.ndarray, band: float) -> np.ndarray:
    """Returns the pixels of H×W at most ``band`` from one whose neighbour by side has another label."""
    import cv2

    edge = np.zeros(labels.shape, bool)
    below, beside = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    edge[1:] |= below
    edge[:-1] |= below
    edge[:, 1:] |= beside
    edge[:, :-1] |= beside
    if not edge.any():
        return edge
    distance = cv2.distanceTransform((~edge).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(distance <= band)


def _half(values: np.ndarray, task: Task) -> np.ndarray:
    return decide(values, [HALF] * task.num_maps, task)


def agreement(maps: Sequence[np.ndarray], task: Task) -> float:
    """Returns the mean Dice of all pairs of maps (uint8 C×H×W) of one image, decided at one half; 1 for a single map.

    The Dice of a pair is the mean over classes, in multiclass tasks over those that either map has.
    """
    labels = [_half(values, task) for values in maps]
    pairs = [_pair_dice(first, second, task) for first, second in combinations(labels, 2)]
    return float(np.mean(pairs)) if pairs else 1.0


def _pair_dice(first: np.ndarray, second: np.ndarray, task: Task) -> float:
    counts = from_labels(first, second, task)
    scores = dice(counts)
    if task.kind == "multiclass":
        scores = scores[counts.tp + counts.fp + counts.fn > 0]
    return float(scores.mean())


def pseudo_label(values: np.ndarray, task: Task, *, ignore_below: float) -> np.ndarray:
    """Returns labels to learn from: those at one half (or the largest), ``IGNORE`` where the sureness is lower.

    uint8 H×W, or C×H×W for multilabel tasks, from 8-bit maps C×H×W.
    """
    labels = _half(values, task).copy()
    unsure = sureness(values, task) < 255 * ignore_below
    labels[unsure if task.kind == "multilabel" else unsure[0]] = IGNORE
    return labels


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One image without truth as one fold sees it."""

    id: str
    confidence: float
    agreement: float
    barred: Reason | None = None
    """Why it cannot be taken, however sure it is."""
    barred_by: str = ""
    """The same in words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What became of one image in one fold."""

    id: str
    confidence: float
    agreement: float
    reason: Reason
    why: str

    @property
    def chosen(self) -> bool:
        """Whether the fold learns from it."""
        return self.reason == "chosen"


def choose(candidates: Sequence[Candidate], settings: PseudoLabelSettings, *, num_labelled: int) -> list[Choice]:
    """Returns a choice for every candidate, the surest first; equal ones in the order of their ids.

    ``num_labelled`` is the number of true labels that the fold trains on.
    """
    limit = settings.limit(len(candidates), num_labelled)
    first, second = ("confidence", "agreement") if settings.rank_by == "confidence" else ("agreement", "confidence")
    ranked = sorted(candidates, key=lambda each: (-getattr(each, first), -getattr(each, second), each.id))
    choices, rank = [], 0
    for each in ranked:
        reason, why = _refusal(each, settings)
        if reason is None:
            rank += 1
            reason = "chosen" if rank <= limit else "beyond the number"
            why = f"number {rank} by {first}" + ("" if rank <= limit else f", {limit} are taken")
        choices.append(Choice(id=each.id, confidence=each.confidence, agreement=each.agreement, reason=reason, why=why))
    return choices


def _refusal(candidate: Candidate, settings: PseudoLabelSettings) -> tuple[Reason | None, str]:
    if candidate.barred is not None:
        return candidate.barred, candidate.barred_by
    if not is_sure(candidate.confidence, candidate.agreement, settings):
        if candidate.confidence < settings.minimum_confidence:
            return "unsure", f"confidence {candidate.confidence:.3f} is below {settings.minimum_confidence}"
        return "disagreement", f"agreement {candidate.agreement:.3f} is below {settings.minimum_agreement}"
    return None, ""


def is_sure(confidence: float, agreement: float, settings: PseudoLabelSettings) -> bool:
    """Returns whether an image passes both minima."""
    return confidence >= settings.minimum_confidence and agreement >= settings.minimum_agreement


def nothing_chosen(choices: Sequence[Choice], settings: PseudoLabelSettings, *, round_: str, fold: str) -> UserError:
    """Returns what to raise when a fold takes none of its candidates: how far the best was off, and what to change.

    ``round_`` is the setting's place, such as ``pseudo.0``, ``fold`` names the fold.
    """
    start = f"{round_}: expected images to learn from for {fold}, found none among {len(choices)}"
    for reason, measure in (("unsure", "confidence"), ("disagreement", "agreement")):
        refused = [choice for choice in choices if choice.reason == reason]
        if refused:
            best = max(refused, key=lambda choice: float(getattr(choice, measure)))
            value, minimum = getattr(best, measure), getattr(settings, f"minimum_{measure}")
            lower = int(value * 100) / 100
            return UserError(
                f"{start}: the best {measure} was {value:.3f} ({best.id}), below {round_}.minimum_{measure}={minimum}; "
                f"set it to {lower} or less, or train the teachers longer"
            )
    some = f", for instance {choices[0].id}: {choices[0].why}" if choices else ""
    return UserError(f"{start}{some}; add images of other groups, or remove this round")
