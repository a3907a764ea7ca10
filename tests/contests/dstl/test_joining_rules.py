"""The order in which classes of a submission clear each other: the published one, or the recipe's."""

from __future__ import annotations

from maskloom.contests.dstl.deliver import joining_rules
from maskloom.contests.dstl.joining import PUBLISHED
from maskloom.contests.dstl.third import PRECEDENCE
from maskloom.contests.dstl.truth import CLASSES
from maskloom.ensembling.precedence import Precedence, numbered
from maskloom.records import Task


def test_the_published_order_stands_in_the_recipe_of_the_contest() -> None:
    task = Task(kind="multilabel", classes=CLASSES)
    assert [each.winner for each in PRECEDENCE] == ["fast_water", "slow_water", "buildings", "roads"]
    assert list(numbered(PRECEDENCE, task)) == PUBLISHED.labels()
    assert joining_rules(PRECEDENCE, task) == PUBLISHED == joining_rules(None, task)


def test_another_order_is_that_of_the_submission_under_whatever_names() -> None:
    renamed = Task(kind="multilabel", classes=tuple(name.upper() for name in CLASSES))
    rules = joining_rules([Precedence(winner="ROADS", losers=("TREES", "CROPS"))], renamed)
    assert rules.precedence == (("roads", ("trees", "crops")),)
    assert (rules.minimum_areas, rules.buffers) == (PUBLISHED.minimum_areas, PUBLISHED.buffers)
    assert joining_rules([], renamed).precedence == ()
