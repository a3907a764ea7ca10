"""Which class gives way to which, by name in a recipe and by number for those who clear maps."""

from __future__ import annotations

from typing import Any

import pytest

from maskloom.config import parse
from maskloom.ensembling.precedence import Precedence, numbered
from maskloom.errors import UserError
from maskloom.records import Task

LAYERS = Task(kind="multilabel", classes=("water", "road", "house"))


def rule(winner: str, losers: Any = "all") -> Precedence:
    return parse(Precedence, {"winner": winner, "losers": losers})


def test_names_become_numbers_in_the_order_of_the_rules() -> None:
    assert numbered([rule("house"), rule("road", ["water"])], LAYERS) == ((2, (0, 1)), (1, (0,)))
    assert numbered([], Task(kind="binary", classes=("house",))) == ()


@pytest.mark.parametrize(
    ("winner", "losers", "reason"),
    [
        ("hous", "all", "no class is called 'hous'; did you mean 'house'"),
        ("house", ["rod"], "no class is called 'rod'; did you mean 'road'"),
        ("house", ["road", "house"], "expected losers other than 'house' itself"),
    ],
)
def test_classes_that_are_none(winner: str, losers: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        numbered([rule(winner, losers)], LAYERS)


def test_classes_that_cannot_overlap_need_no_rules() -> None:
    with pytest.raises(UserError, match=r"expected a multilabel task, .* found a multiclass one"):
        numbered([rule("b")], Task(kind="multiclass", classes=("a", "b")))


def test_one_class_is_no_list() -> None:
    with pytest.raises(UserError, match="losers"):
        rule("house", "road")
