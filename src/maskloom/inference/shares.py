"""What each child of an ensemble's node is of it: one number for all classes, or one number per class.

Knows nothing about trees and maps.
"""

from __future__ import annotations

from collections.abc import Sequence

Weight = float | tuple[float, ...]
"""Of one child: a number for all classes, or a number per class. All children of a node have the same kind."""


def numbers(weight: Weight) -> tuple[float, ...]:
    """Returns a child's numbers: one, or one per class."""
    return weight if isinstance(weight, tuple) else (weight,)


def is_used(weight: Weight) -> bool:
    """Returns whether a child of this weight counts, in some class."""
    return any(number > 0 for number in numbers(weight))


def totals(weights: Sequence[Weight]) -> tuple[float, ...]:
    """Returns the sum over children, one or one per class; () of no child."""
    return tuple(map(sum, zip(*map(numbers, weights), strict=True)))


def shares_of(weights: Sequence[Weight]) -> list[Weight]:
    """Returns each weight as a part of the sum over children; 0 of a class in which that sum is 0."""
    whole = totals(weights)

    def share(weight: Weight) -> Weight:
        parts = tuple(part / total if total > 0 else 0.0 for part, total in zip(numbers(weight), whole, strict=True))
        return parts if isinstance(weight, tuple) else parts[0]

    return [share(weight) for weight in weights]


def some_lost(weights: Sequence[Weight], left: Sequence[Weight]) -> bool:
    """Returns whether nothing of the weights is left, in some class that had a weight."""
    rest = totals(left) or (0.0,) * len(totals(weights))
    return any(before > 0 and after <= 0 for before, after in zip(totals(weights), rest, strict=True))
