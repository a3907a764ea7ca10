"""Intervals whose ends are known without drawing, and the run's own metric on every draw."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.ensembling import bootstrap
from maskloom.ensembling.bootstrap import compare_tallies, paired_bootstrap, tally
from maskloom.metrics import Counts, Metric, score_records


def counts(rng: np.random.Generator, classes: int) -> Counts:
    values = rng.integers(0, 9, (3, classes)) * (rng.random(classes) < 0.8)
    return Counts(tp=values[0], fp=values[1], fn=values[2])


# --- differences -----------------------------------------------------------------------------------------------------


def test_equal_differences_leave_no_doubt() -> None:
    found = paired_bootstrap({"a": [0.5], "b": [0.5, 0.5]})
    assert (found.mean, found.low, found.high, found.probability) == (0.5, 0.5, 0.5, 1)
    assert found.standard_error == 0 and found.num_groups == 2 and found.confidence == 0.95
    nothing = paired_bootstrap({"a": [0.0], "b": [0.0]})
    assert (nothing.mean, nothing.low, nothing.high, nothing.probability) == (0, 0, 0, 0.5)


def test_two_groups_are_drawn_in_four_ways() -> None:
    """aa, ab, ba, bb are as likely: -1, 1, 1, 3."""
    found = paired_bootstrap({"a": [-1.0], "b": [3.0]}, draws=40_000)
    assert (found.mean, found.low, found.high) == (1, -1, 3)
    assert found.probability == pytest.approx(0.75, abs=0.01)
    assert found.standard_error == pytest.approx(2**0.5, rel=0.02)


def test_the_mean_is_over_images_and_the_draw_over_groups() -> None:
    """Group a has three images of 0, b one of 1: drawn aa 0, ab and ba 1/4, bb 1."""
    found = paired_bootstrap({"a": [0, 0, 0], "b": [1]}, confidence=0.4)
    assert (found.mean, found.low, found.high) == (0.25, 0.25, 0.25)
    assert (paired_bootstrap({"a": [0, 0, 0], "b": [1]}).low, paired_bootstrap({"a": [0, 0, 0], "b": [1]}).high) == (
        0,
        1,
    )


def test_many_groups_give_the_normal_interval() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(0.3, 2.0, 900)
    found = paired_bootstrap({str(index): [value] for index, value in enumerate(values)}, draws=20_000)
    error = values.std() / 30
    assert found.standard_error == pytest.approx(error, rel=0.03)
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.05 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.05 * error)


def test_the_seed_decides_and_blocks_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = {str(index): [float(value)] for index, value in enumerate(np.random.default_rng(0).normal(size=12))}
    first = paired_bootstrap(differences, seed=3)
    assert paired_bootstrap(differences, seed=3) == first != paired_bootstrap(differences, seed=4)
    monkeypatch.setattr(bootstrap, "_BLOCK", 1200)
    assert paired_bootstrap(differences, seed=3).to_json() == first.to_json()


def test_wrong_arguments_are_refused() -> None:
    for values, message in (({}, "at least one image"), ({"a": [], "b": [1.0]}, "empty group")):
        with pytest.raises(ValueError, match=message):
            paired_bootstrap(values)
    with pytest.raises(ValueError, match="confidence"):
        paired_bootstrap({"a": [1.0]}, confidence=1)
    with pytest.raises(ValueError, match="group for each record"):
        compare_tallies(np.zeros((2, 3, 1), np.int64), [], ["a"], "dice")


# --- counts ----------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["dice", "iou"]), st.integers(1, 3))
def test_every_draw_is_scored_as_the_run_is(seed: int, metric: Metric, classes: int) -> None:
    rng = np.random.default_rng(seed)
    before, after = ([counts(rng, classes) for _ in range(5)] for _ in range(2))
    groups = ["x", "y", "x", "z", "y"]
    (found,) = compare_tallies(tally(before), [tally(after)], groups, metric, draws=60, confidence=0.999999, seed=seed)
    assert found.mean == pytest.approx(score_records(after, metric) - score_records(before, metric), abs=1e-12)
    every = []
    for drawn in np.stack(np.meshgrid(*[["x", "y", "z"]] * 3), axis=-1).reshape(-1, 3):
        chosen = [index for name in drawn for index, group in enumerate(groups) if group == name]
        scores = [score_records([side[index] for index in chosen], metric) for side in (after, before)]
        is_told = metric == "dice" or any((before[index].tp + before[index].fn).any() for index in chosen)
        every.append(scores[0] - scores[1] if is_told else 0.0)
    for end in (found.low, found.high):
        assert min(every) - 1e-9 <= end <= max(every) + 1e-9
    assert np.abs(np.array(every) - found.high).min() < 1e-3 * max(1e-9, np.ptp(every)) + 1e-9


def test_a_draw_without_the_class_shows_no_difference() -> None:
    """The class is in a alone; one false pixel of the first system in b must not make it look far worse."""
    truth = Counts(tp=np.array([10]), fp=np.array([0]), fn=np.array([0]))
    nothing = Counts(tp=np.array([0]), fp=np.array([0]), fn=np.array([0]))
    one_false = Counts(tp=np.array([0]), fp=np.array([1]), fn=np.array([0]))
    worse = Counts(tp=np.array([9]), fp=np.array([0]), fn=np.array([1]))
    before, after = [truth, one_false, nothing, nothing], [worse, nothing, nothing, nothing]
    (found,) = compare_tallies(tally(before), [tally(after)], ["a", "b", "c", "d"], "iou")
    assert found.mean == pytest.approx(9 / 10 - 10 / 11)
    assert found.low == pytest.approx(-0.1) and found.high < 0.25


def test_dice_counts_and_differences_agree() -> None:
    rng = np.random.default_rng(7)
    before, after = ([counts(rng, 2) for _ in range(30)] for _ in range(2))
    groups = [str(index % 9) for index in range(30)]
    differences: dict[str, list[float]] = {str(index): [] for index in range(9)}
    for group, first, second in zip(groups, before, after, strict=True):
        differences[group].append(score_records([second], "dice") - score_records([first], "dice"))
    (found,) = compare_tallies(tally(before), [tally(after)], groups, "dice")
    expected = paired_bootstrap(differences)
    for name in ("mean", "low", "high", "standard_error"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-12)
    assert found.to_json()["num_groups"] == 9


def test_several_systems_meet_the_same_draws() -> None:
    rng = np.random.default_rng(8)
    before, after, other = (tally([counts(rng, 2) for _ in range(12)]) for _ in range(3))
    groups = [str(index) for index in range(12)]
    for metric in ("dice", "iou"):
        alone = [compare_tallies(before, [tallied], groups, metric)[0].to_json() for tallied in (after, other)]
        assert [gain.to_json() for gain in compare_tallies(before, [after, other], groups, metric)] == alone
