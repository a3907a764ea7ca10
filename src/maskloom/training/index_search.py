"""Thresholds of spectral indices, found on training truth: every index, direction and threshold is tried at once.

Per class, index and truth a histogram between all thresholds holds everything that any of them can count, so images
are read once, by window or whole, memory stays flat, and searches over parts add up to the search over the whole.
After Dstl's 3rd place, which tries thresholds from -2.00 to 2.00 in steps of 0.01 per scene; the differences: both
directions are tried, the images of a scene are searched together, and "below" includes the threshold itself. Knows
nothing about files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from maskloom.config import Config
from maskloom.rasters.indices import Direction, IndexRule, IndexText, band_names, index, index_values
from maskloom.records import IGNORE, Task

Counts = NDArray[np.int64]

NUM_THRESHOLDS = 401
THRESHOLDS: tuple[float, ...] = tuple(round(number / 100 - 2, 2) for number in range(NUM_THRESHOLDS))
"""-2.00, -1.99, …, 2.00."""
DIRECTIONS: tuple[Direction, ...] = ("above", "below")

_EDGES = np.array(THRESHOLDS, np.float32)
_NUM_BINS = 2 * NUM_THRESHOLDS + 1
"""Below the first threshold, equal to it, between it and the second, equal to the second …, above the last."""
_NOT_FINITE = _NUM_BINS
_NUM_CODES = _NUM_BINS + 1
_ZERO = NUM_THRESHOLDS // 2
"""The place of the threshold 0."""


@dataclass(frozen=True, slots=True)
class FoundRule:
    """The best rule for a class, and its Jaccard index on the pixels of the search, in (0, 1]."""

    rule: IndexRule
    jaccard: float


class IndexSearch:
    """Histograms of indices over the pixels of each class and the others: ``add`` images, then ask for the ``best``.

    ``a + b`` is the search over both. Counts are whole numbers, so neither order nor windows make a difference.
    """

    def __init__(self, task: Task, indices: Sequence[str], bands: str | Sequence[str], *, scale: float = 1.0) -> None:
        """``indices``: names or expressions; ``bands``: the images' channels in their order, or the name of a set.

        ``scale``: the stored value that counts as 1. Raises ``UserError`` for what is no index over these bands.
        """
        self.task, self.indices, self.bands, self.scale = task, tuple(indices), band_names(bands), scale
        self._expressions = [index(text, self.bands) for text in self.indices]
        if not self._expressions:
            raise ValueError("expected at least one index to search with, got none")
        self.counts: Counts = np.zeros((task.num_maps, len(self.indices), 2, _NUM_CODES), np.int64)
        """Pixels per map, index, truth (0 no, 1 yes) and place of the value among the thresholds."""

    def add(self, pixels: np.ndarray, labels: np.ndarray) -> None:
        """Counts the pixels of an image or a window; those whose label is ``IGNORE`` count nowhere.

        ``pixels`` is H×W×C as stored; ``labels`` uint8 H×W (binary; multiclass: each class against the rest) or
        maps×H×W (multilabel). Raises ``ValueError`` for other shapes, ``UserError`` for other bands.
        """
        layers = self.task.num_maps if self.task.kind == "multilabel" else 1
        if labels.dtype != np.uint8 or labels.size != layers * pixels.shape[0] * pixels.shape[1]:
            raise ValueError(
                f"expected uint8 labels of {layers} layer(s) and the size of the pixels {pixels.shape[:2]}, got "
                f"{labels.dtype} {labels.shape}"
            )
        layered = labels.reshape(layers, -1)
        truths = [self._truth(layered[min(number, layers - 1)], number) for number in range(self.task.num_maps)]
        for place, values in enumerate(index_values(pixels, self.bands, self._expressions, scale=self.scale)):
            codes = _coded(values.ravel())
            for number, truth in enumerate(truths):
                counted = np.bincount(codes + truth, minlength=3 * _NUM_CODES).reshape(3, _NUM_CODES)
                self.counts[number, place] += counted[:2]

    def _truth(self, labels: np.ndarray, number: int) -> np.ndarray:
        """Returns uint16 of 0 (not the class), one and two times the number of codes (the class; ignored)."""
        table = np.zeros(256, np.uint16)
        table[number if self.task.kind == "multiclass" else 1] = _NUM_CODES
        table[IGNORE] = 2 * _NUM_CODES
        truth: np.ndarray = table[labels]
        return truth

    def __add__(self, other: IndexSearch) -> IndexSearch:
        """Returns the search over the images of both."""
        mine = (self.task, self.indices, self.bands, self.scale)
        if mine != (other.task, other.indices, other.bands, other.scale):
            raise ValueError("cannot add searches of other classes, indices, bands or scales")
        total = IndexSearch(self.task, self.indices, self.bands, scale=self.scale)
        total.counts = self.counts + other.counts
        return total

    def jaccard(self) -> NDArray[np.float64]:
        """Returns the Jaccard index float64 per map, index, direction (as ``DIRECTIONS``) and threshold.

        A class "above" holds value ≥ threshold, "below" value ≤ threshold, and values that are not finite nowhere.
        0 where neither truth nor rule has a pixel.
        """
        up_to = self.counts[..., :_NUM_BINS].cumsum(axis=-1)
        below = up_to[..., 1::2]  # up to and with each threshold
        above = up_to[..., -1:] - up_to[..., :-1:2]
        predicted = np.stack([above, below], axis=-2)  # maps × indices × truth × directions × thresholds
        false_positives, true_positives = predicted[:, :, 0], predicted[:, :, 1]
        positives = self.counts[:, :, 1].sum(axis=-1)[..., None, None]
        scores: NDArray[np.float64] = true_positives / np.maximum(positives + false_positives, 1)
        return scores

    def best(self) -> tuple[FoundRule | None, ...]:
        """Returns the rule of the highest Jaccard index per map; None where the class never occurs or is never hit.

        Of thresholds that are equally good, the middle of the longest run of such (of an even number, the one nearer
        to 0). Of runs equally long, the one whose middle is nearest to 0, then the first index, then "above".
        """
        return tuple(self._best(scores) for scores in self.jaccard())

    def _best(self, scores: NDArray[np.float64]) -> FoundRule | None:
        """Returns the best rule of one map from its scores per index, direction and threshold."""
        top = float(scores.max())
        if top == 0:
            return None
        found: list[tuple[int, int, int, int, int]] = []
        for place, direction in product(range(len(self.indices)), range(len(DIRECTIONS))):
            best = np.flatnonzero(scores[place, direction] == top)
            for run in np.split(best, np.flatnonzero(np.diff(best) > 1) + 1):
                if len(run):
                    middle = _middle(int(run[0]), int(run[-1]))
                    found.append((-len(run), abs(middle - _ZERO), place, direction, middle))
        _, _, place, direction, middle = min(found)
        rule = IndexRule(expression=self.indices[place], threshold=THRESHOLDS[middle], direction=DIRECTIONS[direction])
        return FoundRule(rule, top)


def _coded(values: np.ndarray) -> np.ndarray:
    """Returns the place of each float32 value among the thresholds: uint16, odd where it equals one."""
    codes = np.searchsorted(_EDGES, values, side="left") + np.searchsorted(_EDGES, values, side="right")
    codes[~np.isfinite(values)] = _NOT_FINITE
    return codes.astype(np.uint16)


def _middle(first: int, last: int) -> int:
    half = (first + last) // 2
    return half if half >= _ZERO else -(-(first + last) // 2)


class SceneSearch:
    """One search per scene, since haze, sun and season move an index; ``new`` begins one."""

    def __init__(self, new: Callable[[], IndexSearch]) -> None:
        self._new = new
        self.scenes: dict[str, IndexSearch] = {}

    def add(self, scene: str, pixels: np.ndarray, labels: np.ndarray) -> None:
        """Counts an image or a window of a scene; see ``IndexSearch.add``."""
        if scene not in self.scenes:
            self.scenes[scene] = self._new()
        self.scenes[scene].add(pixels, labels)

    def __add__(self, other: SceneSearch) -> SceneSearch:
        """Returns the search over the images of both, scene by scene."""
        both = SceneSearch(self._new)
        for scene, search in [*self.scenes.items(), *other.scenes.items()]:
            both.scenes[scene] = both.scenes.get(scene, self._new()) + search
        return both

    def whole(self) -> IndexSearch:
        """Returns the search over all scenes together."""
        return sum(self.scenes.values(), start=self._new())

    def best(self) -> dict[str, tuple[FoundRule | None, ...]]:
        """Returns the best rules per scene, one per map; None for a class that the scene's truth does not hold."""
        return {scene: search.best() for scene, search in self.scenes.items()}

    def rules(self, unknown: Mapping[int, UnknownScene] | None = None) -> tuple[SceneRules, ...]:
        """Returns, per map, the rule of each scene, and for scenes without truth what ``unknown`` says by map."""
        found = self.best()
        return tuple(
            SceneRules(
                scenes={scene: _rule(rules[number]) for scene, rules in found.items()},
                unknown=(unknown or {}).get(number),
            )
            for number in range(self._new().task.num_maps)
        )


def _rule(found: FoundRule | None) -> IndexRule | None:
    return found.rule if found else None


class UnknownScene(Config):
    """The rule for a scene without truth: one of two thresholds, by the index's lowest value in the whole scene.

    Dstl's 3rd place finds water so: dstl_rei below -1.7 where the 5×5 mosaic's minimum is below that, else below -0.6.
    """

    expression: IndexText
    direction: Direction = "below"
    limit: float
    """What the lowest value is compared with."""
    threshold_if_lower: float
    """The threshold where the lowest value lies below ``limit``."""
    threshold_if_not: float

    def rule(self, lowest: float) -> IndexRule:
        """Returns the rule for a scene whose lowest finite value is ``lowest``."""
        threshold = self.threshold_if_lower if lowest < self.limit else self.threshold_if_not
        return IndexRule(expression=self.expression, threshold=threshold, direction=self.direction)


class SceneRules(Config):
    """The rules of one class by scene."""

    scenes: dict[str, IndexRule | None]
    """Of scenes with truth; None where the class was not there, which is then found nowhere in the scene."""
    unknown: UnknownScene | None = None
    """For all other scenes; None: the class is found nowhere there."""

    def of(self, scene: str, lowest: Callable[[str], float]) -> IndexRule | None:
        """Returns the scene's rule; ``lowest`` gives the lowest value of an index in it, and is asked if needed."""
        if scene in self.scenes or self.unknown is None:
            return self.scenes.get(scene)
        return self.unknown.rule(lowest(self.unknown.expression))


def lowest_value(text: str, bands: str | Sequence[str], windows: Iterable[np.ndarray], *, scale: float = 1.0) -> float:
    """Returns the lowest finite value of an index over the windows (H×W×C, as stored) of a scene; inf without any.

    Raises ``UserError`` where the index needs other bands.
    """
    names = band_names(bands)
    expression = index(text, names)
    lowest = np.inf
    for pixels in windows:
        (values,) = index_values(pixels, names, [expression], scale=scale)
        lowest = min(lowest, float(np.min(values, where=np.isfinite(values), initial=np.inf)))
    return lowest
