"""Which class gives way to which where classes overlap, as a recipe states it.

Knows nothing about where maps come from; every pixel is decided by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from maskloom.config import Config
from maskloom.errors import UserError, closest
from maskloom.records import Task

Rules = tuple[tuple[int, tuple[int, ...]], ...]
"""Winner and losers by their numbers, in their order, as ``masks.clear_overlaps`` takes them."""


class Precedence(Config):
    """Where the winner lies, its losers are cleared. Rules hold in their order: what was cleared wins nothing later."""

    winner: str
    """The class that stays."""
    losers: tuple[str, ...] | Literal["all"] = "all"
    """The classes that give way to it; "all": every other."""


def numbered(precedence: Sequence[Precedence], task: Task) -> Rules:
    """Returns rules by the numbers of a task's classes.

    Raises ``UserError`` for a task whose classes cannot overlap, classes that it has not, and a class that would clear
    itself.
    """
    if precedence and task.kind != "multilabel":
        raise UserError(
            f"delivery.precedence: expected a multilabel task, whose classes can overlap, found a {task.kind} one; "
            "remove it"
        )
    places = {name: number for number, name in enumerate(task.classes)}
    found: list[tuple[int, tuple[int, ...]]] = []
    for rule in precedence:
        losers = _losers(rule, task)
        for name in (rule.winner, *losers):
            if name not in places:
                raise UserError(f"delivery.precedence: no class is called {name!r}; {closest(name, places)}")
        if rule.winner in losers:
            raise UserError(f"delivery.precedence: expected losers other than {rule.winner!r} itself; remove it there")
        found.append((places[rule.winner], tuple(places[name] for name in losers)))
    return tuple(found)


def _losers(rule: Precedence, task: Task) -> tuple[str, ...]:
    if isinstance(rule.losers, str):
        return tuple(name for name in task.classes if name != rule.winner)
    return rule.losers
