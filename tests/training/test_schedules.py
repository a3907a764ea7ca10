from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskloom.config import parse
from maskloom.errors import UserError
from maskloom.training.schedules import ScheduleSettings, learning_rate_factor, num_without_gain, plateau

KINDS = ["one_cycle", "cosine", "step", "constant", "cycles", "decay", "triangular", "snapshots"]


def factors(settings: ScheduleSettings, num_steps: int, *, steps_per_epoch: int = 1) -> list[float]:
    return [
        learning_rate_factor(settings, step, num_steps, steps_per_epoch=steps_per_epoch) for step in range(num_steps)
    ]


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


def test_cycles_of_ten_five_and_five_epochs() -> None:
    """Carvana, 1st place, the VGG11 member: its cycle of 20 epochs is the default one."""
    found = factors(ScheduleSettings(kind="cycles"), 60 * 3, steps_per_epoch=3)
    assert found == ([1.0] * 30 + [0.1] * 15 + [0.01] * 15) * 3


def test_cycles_that_halve_every_second_epoch_of_five() -> None:
    """Carvana, 1st place, TernausNet: 1e-4 × 0.5^(epoch mod 5 // 2), over 52 epochs."""
    settings = ScheduleSettings(kind="cycles", cycle=((2, 1.0), (2, 0.5), (1, 0.25)))
    expected = [0.5 ** (epoch % 5 // 2) for epoch in range(52) for _ in range(7)]
    assert factors(settings, 52 * 7, steps_per_epoch=7) == expected


def test_a_cycle_longer_than_the_training_is_squeezed_in_proportion() -> None:
    settings = ScheduleSettings(kind="cycles")
    assert factors(settings, 8, steps_per_epoch=4) == [1.0] * 4 + [0.1] * 2 + [0.01] * 2  # 2 epochs
    assert factors(settings, 2, steps_per_epoch=1) == [1.0, 0.1]
    assert factors(settings, 1, steps_per_epoch=1) == [1.0]
    assert factors(settings, 40, steps_per_epoch=2) == [1.0] * 20 + [0.1] * 10 + [0.01] * 10  # exactly one


@pytest.mark.parametrize(
    ("every", "gamma", "epochs", "expected"),
    [
        (12, 0.1, 30, [1.0] * 12 + [0.1] * 12 + [0.01] * 6),
        (100, 0.5, 250, [1.0] * 100 + [0.5] * 100 + [0.25] * 50),
        (12, 0.1, 13, [1.0] * 12 + [0.1]),
        (12, 0.1, 12, [1.0] * 6 + [0.1] * 6),
        (12, 0.1, 2, [1.0, 0.1]),
        (12, 0.1, 1, [1.0]),
    ],
)
def test_decay_multiplies_after_every_so_many_epochs(
    every: int, gamma: float, epochs: int, expected: list[float]
) -> None:
    settings = ScheduleSettings(kind="decay", every=every, gamma=gamma)
    assert factors(settings, epochs) == pytest.approx(expected)
    if epochs > 1:
        per_step = [factor for factor in expected for _ in range(6)]
        assert factors(settings, epochs * 6, steps_per_epoch=6) == pytest.approx(per_step)


def test_triangles_by_hand() -> None:
    """A rise and a fall of 2 epochs of 2 steps each, from 0.2 to 1 in steps of 0.2."""
    up_and_down = [0.2, 0.4, 0.6, 0.8, 1.0, 0.8, 0.6, 0.4]
    settings = ScheduleSettings(kind="triangular", base=0.2, half_cycle=2)
    assert factors(settings, 20, steps_per_epoch=2) == pytest.approx((up_and_down * 3)[:20])
    halved = [0.2 + (value - 0.2) / 2 for value in up_and_down]
    settings = settings.model_copy(update={"mode": "triangular2"})
    assert factors(settings, 16, steps_per_epoch=2) == pytest.approx(up_and_down + halved)


@pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
def test_triangles_equal_torch(mode: str) -> None:
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    reference = torch.optim.lr_scheduler.CyclicLR(
        optimiser, base_lr=0.01, max_lr=1.0, step_size_up=15, mode=mode, gamma=0.9**0.1, cycle_momentum=False
    )
    expected = []
    for _ in range(100):
        expected.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        reference.step()
    settings = parse(
        ScheduleSettings, {"kind": "triangular", "base": 0.01, "half_cycle": 1.5, "mode": mode, "gamma": 0.9}
    )
    assert factors(settings, 100, steps_per_epoch=10) == pytest.approx(expected)


def test_a_triangle_longer_than_the_training_is_squeezed_into_it() -> None:
    settings = ScheduleSettings(kind="triangular", base=0.0, half_cycle=8)
    assert factors(settings, 8, steps_per_epoch=4) == pytest.approx([0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25])
    assert factors(settings, 1, steps_per_epoch=1) == [0.0]


@given(
    st.lists(st.sampled_from([0.0, 0.125, 0.25, 0.375, 0.5, 0.75]), max_size=15),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.1, 0.15]),
    st.booleans(),
    st.integers(0, 3),
    st.sampled_from(["score", "loss"]),
)
def test_plateau_equals_torch(
    values: list[float],
    patience: int,
    min_delta: float,
    relative: bool,
    cooldown: int,
    monitor: Literal["score", "loss"],
) -> None:
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser,
        mode="max" if monitor == "score" else "min",
        factor=0.5,
        patience=patience,
        threshold=min_delta,
        threshold_mode="rel" if relative else "abs",
        cooldown=cooldown,
        min_lr=0.05,
        eps=0.0,
    )
    settings = ScheduleSettings(
        kind="plateau",
        monitor=monitor,
        gamma=0.5,
        patience=patience,
        minimum=0.05,
        min_delta=min_delta,
        relative_delta=relative,
        cooldown=cooldown,
    )
    other = [0.5] * 9  # what is not monitored does not matter
    for count, value in enumerate(values, start=1):
        reference.step(value)
        seen = values[:count]
        scores, losses = (seen, other) if monitor == "score" else (other, seen)
        found = learning_rate_factor(settings, 5, 10, steps_per_epoch=1, scores=scores, losses=losses)
        assert found == pytest.approx(optimiser.param_groups[0]["lr"])


def test_a_plateau_of_the_loss_by_hand() -> None:
    """Halved after 2 epochs without a loss 0.1 lower; the 1 epoch after that does not count; never below 0.2."""
    settings = ScheduleSettings(
        kind="plateau", monitor="loss", gamma=0.5, patience=1, min_delta=0.1, cooldown=1, minimum=0.2
    )
    losses = [1.0, 0.95, 0.91, 0.92, 0.95, 0.95, 0.5, math.nan, 0.45, 0.6, 0.6, 0.6, 0.6, 0.6]
    found = [
        learning_rate_factor(settings, 0, 1, steps_per_epoch=1, losses=losses[:count])
        for count in range(1, len(losses) + 1)
    ]
    assert found == [1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2]
    with pytest.raises(ValueError, match="expected the losses so far"):
        learning_rate_factor(settings, 0, 1, steps_per_epoch=1, scores=[0.5])
    assert learning_rate_factor(settings, 0, 1, steps_per_epoch=1, losses=[]) == 1.0


def test_a_plateau_without_gain_takes_as_long_as_torch_says() -> None:
    found = [plateau([0.5] * count, patience=2, gamma=0.1, minimum=0.0, cooldown=2) for count in range(1, 12)]
    assert found == pytest.approx([1.0] * 3 + [0.1] * 5 + [0.01] * 3)


def test_plateau_of_the_published_rmsprop() -> None:
    """Carvana, 3rd place: ×0.2 after more than 5 validations without a gain of 1e-4, here down to a floor of 0.05."""
    scores = [0.99, *[0.99009] * 5, 0.99005, *[0.99] * 6, *[0.99] * 6]
    settings = ScheduleSettings(kind="plateau", gamma=0.2, patience=5, min_delta=1e-4, minimum=0.05)
    found = [
        learning_rate_factor(settings, 0, 1, steps_per_epoch=1, scores=scores[:count])
        for count in range(1, len(scores) + 1)
    ]
    assert found == pytest.approx([1.0] * 6 + [0.2] * 6 + [0.05] * 7)


def test_plateau_of_the_published_adam() -> None:
    """Signate, 22nd place: ×0.3 after more than 3 validations without a gain of 1e-3, from 1e-4 down to 1e-6."""
    settings = ScheduleSettings(kind="plateau", gamma=0.3, patience=3, min_delta=1e-3, minimum=1e-6 / 1e-4)
    scores = [0.6, *[0.6009] * 4, *[0.6] * 16]
    rates = [
        1e-4 * learning_rate_factor(settings, 0, 1, steps_per_epoch=1, scores=scores[:count])
        for count in range(1, len(scores) + 1)
    ]
    expected = [1e-4] * 4 + [3e-5] * 4 + [9e-6] * 4 + [2.7e-6] * 4 + [1e-6] * 5
    assert rates == pytest.approx(expected)


@given(st.sampled_from(KINDS), st.integers(1, 40), st.integers(1, 5))
def test_every_factor_is_between_zero_and_one(kind: str, epochs: int, steps_per_epoch: int) -> None:
    settings = parse(ScheduleSettings, {"kind": kind})
    found = factors(settings, epochs * steps_per_epoch, steps_per_epoch=steps_per_epoch)
    assert all(0 <= factor <= 1 for factor in found)


@given(st.sampled_from(["cycles", "decay"]), st.integers(4, 60), st.integers(1, 5), st.integers(0, 300))
def test_factors_in_epochs_do_not_depend_on_the_steps_of_an_epoch(
    kind: str, epochs: int, steps_per_epoch: int, step: int
) -> None:
    """Wherever the training holds a whole cycle: the factor of an epoch's every step is that of the epoch."""
    settings = ScheduleSettings(kind=kind, cycle=((3, 1.0), (1, 0.5)), every=3)  # type: ignore[arg-type]
    step %= epochs * steps_per_epoch
    found = learning_rate_factor(settings, step, epochs * steps_per_epoch, steps_per_epoch=steps_per_epoch)
    assert found == learning_rate_factor(settings, step // steps_per_epoch, epochs, steps_per_epoch=1)


def test_scores_without_gain_are_counted_from_the_first_best() -> None:
    assert num_without_gain([]) == 0
    assert num_without_gain([0.5]) == 0
    assert num_without_gain([0.5, 0.6, 0.6, 0.4]) == 2


def test_small_gains_count_once_they_add_up() -> None:
    assert num_without_gain([0.5, 0.55, 0.6], min_delta=0.1) == 2
    assert num_without_gain([0.5, 0.55, 0.625], min_delta=0.1) == 0


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "one_cycle", "warmup": 0.1}, "peak"),
        ({"kind": "triangular", "warmup": 0.1}, "half_cycle"),
        ({"kind": "cycles", "cycle": []}, "at least 1 item"),
        ({"kind": "cycles", "cycle": [[0, 1.0]]}, "greater than or equal to 1"),
        ({"kind": "cycles", "cycle": [[2, 10]]}, "less than or equal to 1"),
        ({"kind": "triangular", "base": 1.0}, "less than 1"),
        ({"kind": "step", "milestones": [0.5, 30]}, "fractions"),
        ({"kind": "cosin"}, "cosine"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse(ScheduleSettings, values)
