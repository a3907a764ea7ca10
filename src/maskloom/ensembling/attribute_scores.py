"""Scores of the images that share an attribute's value, or two of them, and whether they differ from all others.

Images differ by chance, so a difference counts as one only where a bootstrap over groups says so: whole groups are
drawn with replacement, and the interval of (score of the part - score of the rest) must lie on one side of 0. Many
parts are compared, so each interval is wider: with ``n`` comparisons its tails hold 1 / n of what one would have
(Bonferroni). Knows nothing about what attributes mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskloom.ensembling.bootstrap import DRAWS, Gain, Tally, gains_of, mean_dice, tally
from maskloom.metrics import Counts, Metric, score_records

MAX_VALUES = 24
"""An attribute of more values has no table: it is nearly a name of its own for every group."""
MAX_CROSSED = 16
"""An attribute of more values is not paired with others."""
MAX_PAIRS = 6
"""Pairs of attributes, those with the fewest combinations first."""
MAX_COMPARED = 100
"""Parts that are judged, attributes alone before pairs: of more, too few draws would lie in an interval's tails."""
MIN_GROUPS = 10
"""Parts, or rests, of fewer groups are not judged: with so few, the draws show too little of how groups differ."""

Values = tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PartScore:
    """The images of one value, or of one combination of two."""

    values: Values
    """In the order of the table's names; "" where an image does not state the attribute."""
    num_images: int
    num_groups: int
    score: float
    """By the run's metric, of these images alone."""
    difference: Gain | None
    """This part's score less that of the rest; None where either has too few groups. With the metric "iou" both are
    means over the classes that occur in both."""

    @property
    def beyond_noise(self) -> bool:
        """Whether the whole interval of the difference lies on one side of 0."""
        return self.difference is not None and (self.difference.low > 0 or self.difference.high < 0)

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {
            "values": list(self.values),
            "images": self.num_images,
            "groups": self.num_groups,
            "score": round(self.score, 6),
            "difference": None if self.difference is None else self.difference.to_json(),
            "beyond_noise": self.beyond_noise,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class AttributeTable:
    """The parts into which one attribute, or two, divide the images."""

    names: Values
    parts: Sequence[PartScore]

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {"names": list(self.names), "parts": [part.to_json() for part in self.parts]}


@dataclass(frozen=True, kw_only=True, slots=True)
class AttributeScores:
    """What there is to say about attributes."""

    tables: Sequence[AttributeTable]
    left_out: Mapping[str, str]
    """Attributes without a table, and why."""
    num_compared: int
    """Parts whose difference was judged."""
    confidence: float
    """That none of these intervals misses its difference."""

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {
            "tables": [table.to_json() for table in self.tables],
            "left_out": dict(self.left_out),
            "num_compared": self.num_compared,
            "min_groups": MIN_GROUPS,
            "confidence": self.confidence,
        }


def attribute_scores(
    counts: Sequence[Counts],
    attributes: Sequence[Mapping[str, str]],
    groups: Sequence[str],
    metric: Metric,
    *,
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> AttributeScores:
    """Returns a table per attribute, and per pair of attributes of which neither follows from the other.

    Counts, attributes and groups are those of the same images. The same seed gives the same intervals. Raises
    ``ValueError`` for sequences of different lengths.
    """
    if not len(counts) == len(attributes) == len(groups):
        raise ValueError(f"expected as many counts as attributes and groups, got {len(counts)}, {len(attributes)}, "
                         f"{len(groups)}")  # fmt: skip
    columns, left_out = _columns(attributes)
    found = [(names, _parts(values)) for names, values in (*_alone(columns), *_crossed(columns))]
    group_of = np.unique(np.asarray(groups, str), return_inverse=True)[1]
    sizes = np.bincount(group_of)
    judged = [
        (names, values, rows)
        for names, parts in found
        for values, rows in parts.items()
        if _fewest_groups(np.bincount(group_of[rows], minlength=len(sizes)), sizes) >= MIN_GROUPS
    ][:MAX_COMPARED]
    gains: list[Gain] = []
    if judged:
        statistic = _differences(tally(counts), group_of, [rows for _, _, rows in judged], metric)
        single = 1 - (1 - confidence) / len(judged)
        gains = gains_of(statistic, len(sizes), single, draws, seed)
    gain_of = {(names, values): gain for (names, values, _), gain in zip(judged, gains, strict=True)}
    tables = [
        AttributeTable(
            names=names,
            parts=[
                PartScore(
                    values=values,
                    num_images=len(rows),
                    num_groups=len(np.unique(group_of[rows])),
                    score=score_records([counts[row] for row in rows], metric),
                    difference=gain_of.get((names, values)),
                )
                for values, rows in parts.items()
            ],
        )
        for names, parts in found
    ]
    return AttributeScores(tables=tables, left_out=left_out, num_compared=len(judged), confidence=confidence)


def _columns(attributes: Sequence[Mapping[str, str]]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Returns the values, one per image, of attributes that divide the images, and why others do not."""
    columns: dict[str, list[str]] = {}
    left_out: dict[str, str] = {}
    known: dict[tuple[int, ...], str] = {}
    for name in dict.fromkeys(name for each in attributes for name in each):
        values = [str(each.get(name, "")) for each in attributes]
        different = list(dict.fromkeys(values))
        number = {value: index for index, value in enumerate(different)}
        pattern = tuple(number[value] for value in values)
        if len(different) < 2:
            left_out[name] = "all images have the same value"
        elif len(different) > MAX_VALUES:
            left_out[name] = f"{len(different)} values, more than {MAX_VALUES}"
        elif pattern in known:
            left_out[name] = f"divides the images as {known[pattern]} does"
        else:
            columns[name], known[pattern] = values, name
    return columns, left_out


def _alone(columns: Mapping[str, list[str]]) -> Iterator[tuple[Values, list[Values]]]:
    for name, values in columns.items():
        yield (name,), [(value,) for value in values]


def _crossed(columns: Mapping[str, list[str]]) -> list[tuple[Values, list[Values]]]:
    """Returns pairs of attributes with the values of every image; none where one attribute follows from the other."""
    number = {name: len(set(values)) for name, values in columns.items()}
    few = [name for name in columns if number[name] <= MAX_CROSSED]
    pairs: list[tuple[Values, list[Values]]] = []
    for names in combinations(few, 2):
        values: list[Values] = list(zip(*(columns[name] for name in names), strict=True))
        if len(set(values)) > max(number[name] for name in names):
            pairs.append((names, values))
    return sorted(pairs, key=lambda pair: len(set(pair[1])))[:MAX_PAIRS]


def _parts(values: Sequence[Values]) -> dict[Values, NDArray[np.intp]]:
    """Returns the rows of the images of every value, in the order of the values."""
    rows: dict[Values, list[int]] = {}
    for row, value in enumerate(values):
        rows.setdefault(value, []).append(row)
    return {value: np.array(rows[value], np.intp) for value in sorted(rows)}


def _fewest_groups(inside: NDArray[np.intp], sizes: NDArray[np.intp]) -> int:
    """Returns how many groups a part or its rest meets, the smaller number, from both's images by group."""
    return min(int((inside > 0).sum()), int((sizes > inside).sum()))


Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def _differences(
    counts: Tally, group_of: NDArray[np.intp], parts: Sequence[NDArray[np.intp]], metric: Metric
) -> Statistic:
    """Returns what maps how often each group counts (B×G) to each part's score less that of its rest (B×K).

    A draw that holds no image of the part, or none of the rest, shows no difference: 0.
    """
    num_groups = int(group_of.max()) + 1
    values = counts
    if metric == "dice":
        scores = mean_dice(counts)
        values = np.stack([scores, np.ones(len(scores))], axis=1)
    difference = _dice_difference if metric == "dice" else _iou_difference
    total = _summed(values, group_of, np.arange(len(counts)), num_groups).reshape(num_groups, -1)
    met = [np.unique(group_of[rows]) for rows in parts]  # only groups that a part meets change its counts
    summed = [
        _summed(values, group_of, rows, num_groups)[groups].reshape(len(groups), -1)
        for rows, groups in zip(parts, met, strict=True)
    ]

    def statistic(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        whole = weights @ total
        found = np.empty((len(weights), len(parts)))
        for index, (groups, sums) in enumerate(zip(met, summed, strict=True)):
            part = weights[:, groups] @ sums
            found[:, index] = difference(part, whole - part)
        return found

    return statistic


def _dice_difference(part: NDArray[np.float64], rest: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the difference of the mean Dice, for each of B sums of scores and numbers of images."""
    means = [each[:, 0] / np.maximum(each[:, 1], 1) for each in (part, rest)]
    found: NDArray[np.float64] = np.where((part[:, 1] > 0) & (rest[:, 1] > 0), means[0] - means[1], 0.0)
    return found


def _summed(
    values: NDArray[Any], group_of: NDArray[np.intp], rows: NDArray[np.intp], num_groups: int
) -> NDArray[np.float64]:
    """Returns the sum of these rows' values over each group."""
    total = np.zeros((num_groups, *values.shape[1:]))
    np.add.at(total, group_of[rows], values[rows])
    return total


def _iou_difference(part: NDArray[np.float64], rest: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the difference of the mean IoU over the classes that occur in both, for each of B sums of 3·C counts."""
    first, second = (each.reshape(len(each), 3, -1) for each in (part, rest))
    known = (first[:, 0] + first[:, 2] > 0) & (second[:, 0] + second[:, 2] > 0)
    scores = [each[:, 0] / np.maximum(each.sum(axis=1), 1) for each in (first, second)]
    number = known.sum(axis=1)
    found: NDArray[np.float64] = ((scores[0] - scores[1]) * known).sum(axis=1) / np.maximum(number, 1)
    return found
