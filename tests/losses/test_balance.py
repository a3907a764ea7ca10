from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskloom.config import parse
from maskloom.errors import UserError
from maskloom.losses.balance import Balance, class_weights
from maskloom.losses.terms import LossSettings, LossTerm, balanced, build_loss
from maskloom.records import Task

THREE = Task(kind="multiclass", classes=("a", "b", "c"))
RULES: tuple[Balance, ...] = ("median_frequency", "root_frequency", "log_frequency")


def scaled(raw: list[float]) -> list[float]:
    return [value / float(np.mean(raw)) for value in raw]


def test_the_rules_by_hand() -> None:
    # Of the class c 10 pixels are in the second image alone, which has 50: a fifth of it.
    pixels, valid = [(80, 20, 0), (30, 10, 10)], [100, 50]
    frequencies = [110 / 150, 30 / 150, 10 / 50]
    balances = [0.2 / each for each in frequencies]
    expected = {
        "median_frequency": balances,
        "root_frequency": [math.sqrt(each) for each in balances],
        "log_frequency": [1 / math.log(1.02 + each / 150) for each in (110, 30, 10)],
    }
    for rule in RULES:
        assert class_weights(rule, pixels, valid, limit=100) == pytest.approx(scaled(expected[rule]), abs=1e-6)


def test_no_weight_exceeds_the_limit() -> None:
    weights = class_weights("median_frequency", [(9800, 100, 100)], [10000], limit=4)
    assert weights == pytest.approx(scaled([1, 4, 4]), abs=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_classes_that_are_not_there_weigh_one(rule: Balance) -> None:
    assert class_weights(rule, [(50, 50, 0)], [100], limit=10) == (1.0, 1.0, 1.0)
    assert class_weights(rule, [(0, 0)], [0], limit=10) == (1.0, 1.0)


@given(
    rule=st.sampled_from(RULES),
    pixels=st.lists(st.tuples(*[st.integers(0, 10_000)] * 4), min_size=1, max_size=5),
    limit=st.floats(1, 50),
)
def test_rarer_is_never_lighter_and_the_mean_is_one(rule: Balance, pixels: list[tuple[int, ...]], limit: float) -> None:
    whole = [tuple(max(value, 1) for value in image) for image in pixels]  # every class in every image
    valid = [sum(image) for image in whole]
    weights = np.array(class_weights(rule, whole, valid, limit=limit))
    order = np.argsort(np.sum(whole, axis=0), kind="stable")
    assert (np.diff(weights[order]) <= 1e-5).all()
    assert weights.mean() == pytest.approx(1, abs=1e-5)
    assert weights.max() <= limit * weights.min() * 1.001


def test_a_balanced_loss_is_that_of_the_numbers() -> None:
    settings = parse(LossSettings, {"terms": [{"kind": "cross_entropy", "class_weights": "log_frequency"}]})
    pixels, valid = [(80, 15, 5)], [100]
    ready = balanced(settings, THREE, pixels, valid)
    numbers = class_weights("log_frequency", pixels, valid, limit=10)
    assert ready.terms[0].class_weights == numbers
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 4, 4, generator=generator)
    labels = torch.randint(0, 3, (1, 4, 4), generator=generator, dtype=torch.uint8)
    expected = torch.nn.functional.cross_entropy(logits, labels.long(), weight=torch.tensor(numbers))
    torch.testing.assert_close(build_loss(ready, THREE)(logits, labels), expected)


def test_a_loss_of_numbers_stays_as_it_is() -> None:
    settings = LossSettings(terms=(LossTerm(kind="cross_entropy", class_weights=(1.0, 2.0, 3.0)),))
    assert balanced(settings, THREE, [(1, 1, 1)], [3]) is settings


@pytest.mark.parametrize(
    ("task", "term", "message"),
    [
        (Task(kind="binary", classes=("a",)), {"kind": "focal", "class_weights": "log_frequency"}, "is for multiclass"),
        (THREE, {"kind": "cross_entropy", "weight_limit": 5}, "expected a rule in class_weights.*found none"),
        (THREE, {"kind": "ohem", "weight_limit": 5, "class_weights": [1, 1, 1]}, "found numbers"),
        (THREE, {"kind": "dice", "class_weights": "log_frequency"}, "no such option"),
    ],
)
def test_rules_that_do_not_fit_are_refused(task: Task, term: dict[str, object], message: str) -> None:
    settings = parse(LossSettings, {"terms": [term]})
    with pytest.raises(UserError, match=message):
        build_loss(settings, task)
    with pytest.raises(UserError, match=message):
        balanced(settings, task, [(1,) * task.num_maps], [3])


def test_a_rule_must_have_become_numbers() -> None:
    settings = LossSettings(terms=(LossTerm(kind="cross_entropy", class_weights="log_frequency"),))
    with pytest.raises(ValueError, match="got the rule log_frequency"):
        build_loss(settings, THREE)
    with pytest.raises(UserError, match="class_weights"):
        parse(LossSettings, {"terms": [{"kind": "cross_entropy", "class_weights": "balanced"}]})
