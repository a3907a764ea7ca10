from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskloom.config import parse
from maskloom.errors import UserError
from maskloom.training.schedules import ScheduleSettings, learning_rate_factor, num_without_gain, plateau


def factors(settings: ScheduleSettings, num_steps: int) -> list[float]:
    return [learning_rate_factor(settings, step, num_steps) for step in range(num_steps)]


def test_one_cycle_equals_torch() -> None:
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=1.0, total_steps=50, pct_start=0.3, div_factor=25, final_div_factor=1e4, cycle_momentum=False
    )
    expected = []
    for _ in range(50):
        expected.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        reference.step()
    assert factors(ScheduleSettings(kind="one_cycle"), 50) == pytest.approx(expected)


def test_cosine_falls_by_half_a_cosine_after_its_warm_up() -> None:
    found = factors(ScheduleSettings(kind="cosine", warmup=0.2, end=0.1), 10)
    assert found[:2] == pytest.approx([1 / 3, 2 / 3])
    assert found[2:] == pytest.approx([0.1 + 0.9 * (1 + math.cos(math.pi * k / 7)) / 2 for k in range(8)])
    assert found[-1] == pytest.approx(0.1)


def test_step_multiplies_at_each_milestone() -> None:
    found = factors(ScheduleSettings(kind="step", milestones=(0.5, 0.8), gamma=0.1), 10)
    assert found == pytest.approx([1.0] * 5 + [0.1] * 3 + [0.01] * 2)


def test_constant_is_one_after_its_warm_up() -> None:
    assert factors(ScheduleSettings(kind="constant", warmup=0.3), 10) == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 7)


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5]), max_size=15), st.integers(0, 3))
def test_plateau_equals_torch(scores: list[float], patience: int) -> None:
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, mode="max", factor=0.5, patience=patience, threshold=0.0, min_lr=0.05, eps=0.0
    )
    for score in scores:
        reference.step(score)
    expected = optimiser.param_groups[0]["lr"]
    assert plateau(scores, patience=patience, gamma=0.5, minimum=0.05) == pytest.approx(expected)
    settings = ScheduleSettings(kind="plateau", gamma=0.5, patience=patience, minimum=0.05)
    assert learning_rate_factor(settings, 5, 10, scores=scores) == pytest.approx(expected)


@given(st.sampled_from(["one_cycle", "cosine", "step", "constant"]), st.integers(1, 40))
def test_every_factor_is_between_zero_and_one(kind: str, num_steps: int) -> None:
    settings = parse(ScheduleSettings, {"kind": kind})
    assert all(0 <= factor <= 1 for factor in factors(settings, num_steps))


def test_scores_without_gain_are_counted_from_the_first_best() -> None:
    assert num_without_gain([]) == 0
    assert num_without_gain([0.5]) == 0
    assert num_without_gain([0.5, 0.6, 0.6, 0.4]) == 2


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "one_cycle", "warmup": 0.1}, "peak"),
        ({"kind": "step", "milestones": [0.5, 30]}, "fractions"),
        ({"kind": "cosin"}, "cosine"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse(ScheduleSettings, values)
