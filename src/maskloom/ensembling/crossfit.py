"""Honest scores of fitted things: each part of the records is scored with what was fitted on the other parts.

Knows nothing about what is fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from maskloom.runtime import derive_seed

Item = TypeVar("Item")
Fitted = TypeVar("Fitted")
Outcome = TypeVar("Outcome")


def crossfit(
    items: Sequence[Item],
    parts: Sequence[int],
    *,
    fit: Callable[[list[Item]], Fitted],
    apply: Callable[[Fitted, list[Item]], Outcome],
) -> dict[int, Outcome]:
    """Returns, per part in ascending order, ``apply(fit(items outside the part), items of the part)``.

    Raises ``ValueError`` with fewer than two parts: what is fitted on the records it is scored on flatters.
    """
    numbers = sorted(set(parts))
    if len(parts) != len(items) or len(numbers) < 2:
        raise ValueError(f"expected a part per item and at least 2 parts, got {len(items)} items, parts {numbers}")
    outcomes = {}
    for number in numbers:
        outside = [item for item, part in zip(items, parts, strict=True) if part != number]
        inside = [item for item, part in zip(items, parts, strict=True) if part == number]
        outcomes[number] = apply(fit(outside), inside)
    return outcomes


def deal_parts(groups: Sequence[str], folds: Sequence[int], *, seed: int, num_parts: int = 5) -> list[int]:
    """Returns the part of each record: its fold, or, where all share one fold, a part of whole groups.

    Groups are shuffled by the seed and dealt round-robin; with a single group every record is its own group.
    """
    if len(set(folds)) > 1:
        return list(folds)
    if len(set(groups)) < 2:
        groups = [str(index) for index in range(len(groups))]
    order = sorted(set(groups), key=lambda group: derive_seed(seed, "part", group))
    number = {group: index % num_parts for index, group in enumerate(order)}
    return [number[group] for group in groups]
