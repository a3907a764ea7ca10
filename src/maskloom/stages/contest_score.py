"""A contest's own score of a run's out-of-fold masks, made of the counts of every image, and what computes it.

Knows no contest: who computes the score is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maskloom.data.mask_coding import MaskCoding
from maskloom.metrics import Counts
from maskloom.records import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class ContestScore:
    """What the masks would score if the contest scored the images that the run has truth of."""

    contest: str
    rule: str
    """How the score is made, in a sentence."""
    score: float
    """0…1, higher is better."""
    num_images: int
    """That count."""
    classes: Mapping[str, float]
    """By scored class that the truth of some image holds: its mean over these images."""
    lacking: Sequence[str] = ()
    """What the contest scores but no class of the data holds alone: it counts nowhere here."""
    ignored: Sequence[str] = ()
    """What the data leaves out and the contest does not: whatever is predicted in its pixels is wrong there."""

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {
            "contest": self.contest,
            "rule": self.rule,
            "score": round(self.score, 6),
            "num_images": self.num_images,
            "classes": {name: round(score, 6) for name, score in self.classes.items()},
            "lacking": list(self.lacking),
            "ignored": list(self.ignored),
        }


Scorer = Callable[[Mapping[str, Counts], Task, MaskCoding], ContestScore | None]
"""From the counts of every image, by its id, with the data's classes and how its masks became them; None where there is
nothing that the contest would score."""
Scorers = Mapping[str, Scorer]
"""By contest, as ``DataSource.submission`` names it."""
