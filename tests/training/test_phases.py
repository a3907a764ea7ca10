from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.config import Config, override, parse
from maskloom.data.augment import PRESETS, AugmentSettings
from maskloom.errors import UserError
from maskloom.training.job import TrainingSettings
from maskloom.training.optimisers import OptimiserSettings
from maskloom.training.phases import PIXEL_POWER, EpochPlan, Phase, StepTimes, plan_epochs, seconds_left
from maskloom.training.schedules import ScheduleSettings

ADAM = OptimiserSettings(kind="adam", lr=1e-4)
RMSPROP = OptimiserSettings(kind="rmsprop", lr=1e-4)
STAGED = ScheduleSettings(kind="decay", every=12)
CYCLIC = ScheduleSettings(kind="cycles", cycle=((2, 1.0), (2, 0.1), (1, 0.01)))


def plan(*phases: Phase, epochs: int = 3) -> tuple[EpochPlan, ...]:
    return plan_epochs(phases, epochs=epochs, optimiser=RMSPROP, schedule=STAGED, augment=PRESETS["light"])


def test_without_phases_everything_is_the_members_own() -> None:
    found = plan()
    assert [one.is_fresh for one in found] == [True, False, False]
    for one in found:
        assert (one.phase, one.optimiser, one.schedule, one.augment) == (1, RMSPROP, STAGED, PRESETS["light"])
        assert one.span == range(3)


def test_staged_decay_then_a_cyclic_restart_with_another_optimiser() -> None:
    """Carvana, 1st place, the LinkNet members: 40 epochs, from the 23rd on cyclic with Adam."""
    found = plan(Phase(epochs=22), Phase(epochs=18, optimiser=ADAM, schedule=CYCLIC))
    assert len(found) == 40
    assert [one.phase for one in found] == [1] * 22 + [2] * 18
    assert [epoch for epoch, one in enumerate(found) if one.is_fresh] == [0, 22]
    assert {(one.optimiser, one.schedule, one.span) for one in found[:22]} == {(RMSPROP, STAGED, range(22))}
    assert {(one.optimiser, one.schedule, one.span) for one in found[22:]} == {(ADAM, CYCLIC, range(22, 40))}


def test_a_phase_of_other_augmentation_keeps_optimiser_and_schedule() -> None:
    """Carvana, 1st place, the VGG11 member: 15 epochs of augmentation "1", then up to 60 of "0", in one schedule."""
    phases = parse(TrainingSettings, {"phases": [{"epochs": 15, "augment": "carvana_1"}, {"epochs": 45}]}).phases
    found = plan(phases[0], phases[1].model_copy(update={"augment": PRESETS["carvana_0"]}))
    assert [one.augment for one in found] == [PRESETS["carvana_1"]] * 15 + [PRESETS["carvana_0"]] * 45
    assert [epoch for epoch, one in enumerate(found) if one.is_fresh] == [0]
    assert {one.span for one in found} == {range(60)}


def test_a_new_optimiser_each_epoch() -> None:
    """Carvana, 1st place, TernausNet; the phase after it goes on with the last one."""
    found = plan(Phase(epochs=3, fresh_optimiser="epoch"), Phase(epochs=2))
    assert [one.is_fresh for one in found] == [True, True, True, False, False]


def test_the_same_optimiser_can_begin_anew() -> None:
    found = plan(Phase(epochs=2), Phase(epochs=2, fresh_optimiser="start"), Phase(epochs=1, fresh_optimiser="epoch"))
    assert [one.is_fresh for one in found] == [True, False, True, False, True]
    assert {one.optimiser for one in found} == {RMSPROP}


def test_what_a_phase_leaves_out_goes_on_from_the_phase_before() -> None:
    found = plan(
        Phase(epochs=1, optimiser=ADAM, augment=AugmentSettings()), Phase(epochs=2, schedule=CYCLIC), Phase(epochs=1)
    )
    assert {one.optimiser for one in found} == {ADAM}
    assert {one.augment for one in found} == {AugmentSettings()}
    assert [one.schedule for one in found] == [STAGED, CYCLIC, CYCLIC, CYCLIC]
    assert [one.span for one in found] == [range(1), range(1, 4), range(1, 4), range(1, 4)]


PHASES = st.builds(
    Phase,
    epochs=st.integers(1, 4),
    optimiser=st.sampled_from([None, ADAM]),
    schedule=st.sampled_from([None, CYCLIC]),
    fresh_optimiser=st.sampled_from([None, "start", "epoch"]),
)


@given(st.lists(PHASES, min_size=1, max_size=5))
def test_every_epoch_has_a_plan_and_lies_in_its_schedules_span(phases: list[Phase]) -> None:
    found = plan(*phases)
    assert len(found) == sum(phase.epochs for phase in phases)
    assert found[0].is_fresh
    for epoch, one in enumerate(found):
        assert epoch in one.span
        assert found[one.span.start].span == one.span == found[one.span[-1]].span


@pytest.mark.parametrize(
    ("epochs", "progressive", "scales"),
    [(4, 0.0, [1, 1, 1, 1]), (4, 0.75, [0.5, 0.5, 0.5, 1]), (3, 0.5, [0.5, 0.5, 1]), (2, 0.9, [0.5, 1]), (1, 0.9, [1])],
)
def test_the_first_epochs_see_half_the_sides_and_the_last_one_all(
    epochs: int, progressive: float, scales: list[float]
) -> None:
    for phases in ((), (Phase(epochs=1), Phase(epochs=epochs - 1)) if epochs > 1 else ()):
        found = plan_epochs(
            phases, epochs=epochs, optimiser=ADAM, schedule=CYCLIC, augment=PRESETS["none"], progressive=progressive
        )
        assert [each.image_scale for each in found] == scales


def test_the_number_of_epochs_is_the_sum_of_the_phases() -> None:
    phases = [{"epochs": 15}, {"epochs": 45}]
    settings = parse(TrainingSettings, {"phases": phases})
    assert settings.epochs == 60
    assert parse(TrainingSettings, {"phases": phases, "epochs": 60}) == settings
    assert parse(TrainingSettings, settings.model_dump(mode="json")) == settings
    assert parse(TrainingSettings, {}).epochs == 10
    with pytest.raises(UserError, match="expected 60, which the 2 phases add up to, found 30"):
        parse(TrainingSettings, {"phases": phases, "epochs": 30})


def test_phases_are_changed_like_any_setting() -> None:
    class Holder(Config):
        training: TrainingSettings

    holder = Holder(training=TrainingSettings(phases=(Phase(epochs=2), Phase(epochs=3))))
    changed = override(holder, ["training.phases.1.epochs=5", "training.epochs=7"])
    assert [phase.epochs for phase in changed.training.phases] == [2, 5]
    with pytest.raises(UserError, match="leave it out, or change the epochs of the phases"):
        override(holder, ["training.epochs=7"])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"epochs": 0}, "greater than or equal to 1"),
        ({"epochs": 1, "augment": "stron"}, "did you mean 'strong'"),
        ({"epochs": 1, "fresh_optimiser": "always"}, "'start' or 'epoch'"),
        ({"epochs": 1, "optimizer": {}}, "did you mean 'optimiser'"),
    ],
)
def test_phases_that_make_no_sense_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse(TrainingSettings, {"phases": [values]})


def times(**timed: tuple[int, float]) -> StepTimes:
    found = StepTimes()
    for scale, (steps, seconds) in timed.items():
        found.add({"half": 0.5, "whole": 1.0}[scale], steps=steps, seconds=seconds)
    return found


def test_steps_of_a_scale_that_was_not_timed_follow_from_its_pixels() -> None:
    half = times(half=(10, 20.0))
    assert half.seconds_per_step(0.5) == 2
    assert half.seconds_per_step(1.0) == pytest.approx(2 * 4**PIXEL_POWER)
    assert times(whole=(10, 20.0)).seconds_per_step(0.5) == pytest.approx(2 / 4**PIXEL_POWER)
    assert times(half=(10, 20.0), whole=(3, 15.0)).seconds_per_step(1.0) == 5
    assert times(half=(10, 20.0), whole=(2, 90.0)).seconds_per_step(1.0) == half.seconds_per_step(1.0)
    assert times(half=(1, 2.0), whole=(0, 9.0)).seconds_per_step(1.0) == half.seconds_per_step(1.0)
    assert times().seconds_per_step(1.0) == times(half=(0, 1.0)).seconds_per_step(0.5) == 0


def test_the_time_left_is_that_of_every_epoch_at_its_scale() -> None:
    """Of 4 epochs of 10 steps, 3 at half the sides, after 5 steps: 25 steps of 2 s and 10 of 5 s."""
    plans = plan_epochs((), epochs=4, optimiser=RMSPROP, schedule=STAGED, augment=PRESETS["light"], progressive=0.75)
    timed = times(half=(10, 20.0), whole=(10, 50.0))
    assert seconds_left(plans, timed, epoch=0, step_in_epoch=5, steps_per_epoch=10) == 25 * 2 + 10 * 5
    assert seconds_left(plans, timed, epoch=3, step_in_epoch=10, steps_per_epoch=10) == 0
    assert seconds_left(plans, times(), epoch=0, step_in_epoch=0, steps_per_epoch=10) == 0
