"""Two systems with differences, seeds and absent classes whose answers are known by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from maskloom.ensembling.bootstrap import compare_tallies, tally
from maskloom.ensembling.systems import compare_systems, first_other_truth
from maskloom.metrics import Counts, Metric, score_records


def counts(tp: int, fp: int, fn: int) -> Counts:
    return Counts(tp=np.array([tp]), fp=np.array([fp]), fn=np.array([fn]))


def random_run(seed: int, num_records: int = 12, num_classes: int = 3) -> list[Counts]:
    """Returns counts whose truth is the same for every seed; the last class occurs in no truth."""
    true = np.random.default_rng(0).integers(5, 40, (num_records, num_classes))
    true[:, -1] = 0
    rng = np.random.default_rng(seed)
    tp = rng.integers(0, true + 1)
    fp = rng.integers(0, 9, true.shape)
    return [Counts(tp=a, fp=b, fn=t - a) for a, b, t in zip(tp, fp, true, strict=True)]


GROUPS = [str(index // 3) for index in range(12)]


def test_dice_by_hand() -> None:
    # Dice 2/3 and 1 on image a, 0 and 1/2 on b.
    first, second = [counts(2, 1, 1), counts(0, 3, 3)], [counts(3, 0, 0), counts(2, 3, 1)]
    found = compare_systems([first], [second], ["x", "y"], "dice", folds=[0, 1])
    assert [run.score for run in found.first.runs] == pytest.approx([1 / 3])
    assert found.first.runs[0].folds == pytest.approx((2 / 3, 0))
    assert (found.first.runs[0].mean, found.first.runs[0].std) == pytest.approx((1 / 3, 1 / 3))
    assert found.second.mean == pytest.approx((1 + 4 / 8) / 2)
    assert found.gain.mean == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert (found.gain.probability, found.gain.num_groups) == (1, 2)
    assert found.first.seed_std is None and found.seed_error is None
    # Two groups: their mean is a, b or in the middle in 1, 1 and 2 of 4 draws, so the error is |a - b| / 2 / √2 …
    drawn = (1 / 2 - 1 / 3) / 2 / math.sqrt(2)
    assert found.gain.standard_error == pytest.approx(drawn, rel=0.05)
    # … and √2 more for being estimated from two.
    assert found.smallest_effect == pytest.approx(2 * drawn * math.sqrt(2), rel=0.05)


@pytest.mark.parametrize("metric", ["dice", "iou"])
def test_a_single_run_is_what_the_bootstrap_says(metric: Metric) -> None:
    first, second = random_run(1), random_run(2)
    found = compare_systems([first], [second], GROUPS, metric)
    assert found.gain == compare_tallies(tally(first), [tally(second)], GROUPS, metric)[0]
    assert found.gain.mean == pytest.approx(score_records(second, metric) - score_records(first, metric))
    assert found.first.runs[0].folds == () and found.first.runs[0].mean is None
    same = compare_systems([first], [first], GROUPS, metric)
    assert (same.gain.mean, same.gain.low, same.gain.high, same.gain.probability) == (0, 0, 0, 0.5)


@pytest.mark.parametrize("metric", ["dice", "iou"])
def test_the_difference_is_that_of_the_means_over_seeds(metric: Metric) -> None:
    first, second = [random_run(seed) for seed in (1, 2, 3)], [random_run(seed) for seed in (4, 5)]
    found = compare_systems(first, second, GROUPS, metric, draws=200)
    scores = [[score_records(run, metric) for run in side] for side in (first, second)]
    assert found.gain.mean == pytest.approx(np.mean(scores[1]) - np.mean(scores[0]))
    assert found.first.seed_std == pytest.approx(np.std(scores[0], ddof=1))
    variance = np.var(scores[0], ddof=1) / 3 + np.var(scores[1], ddof=1) / 2
    assert found.seed_error == pytest.approx(math.sqrt(variance))
    over_groups = found.gain.standard_error * math.sqrt(4 / 3)
    assert found.standard_error == pytest.approx(math.hypot(over_groups, found.seed_error))
    # The draws are the same for all runs, and a mean of differences is the difference of the means.
    each = [compare_systems([a], [b], GROUPS, metric, draws=200).gain.mean for a in first for b in second]
    assert found.gain.mean == pytest.approx(np.mean(each))


def test_every_class_by_itself_and_one_that_is_absent() -> None:
    first, second = random_run(1), random_run(2)
    found = compare_systems([first], [second, random_run(3)], GROUPS, "iou", draws=50)
    assert found.class_gains[2] is None and found.first.classes[2] is None
    for place in (0, 1):
        gain, (before, after) = found.class_gains[place], (found.first.classes[place], found.second.classes[place])
        assert gain is not None and before is not None and after is not None
        assert gain.mean == pytest.approx(after - before)
    known = compare_systems([first], [second], GROUPS, "dice", draws=50)
    assert known.class_gains[2] is not None  # an absent class has a Dice: 1 where nothing is predicted
    assert np.mean([each.mean for each in known.class_gains if each]) == pytest.approx(known.gain.mean)


def test_one_group_says_nothing_about_chance() -> None:
    found = compare_systems([random_run(1)], [random_run(2)], ["all"] * 12, "iou")
    assert found.standard_error is None and found.smallest_effect is None


def test_seeds_on_one_side_alone_are_no_seed_noise() -> None:
    found = compare_systems([random_run(1)], [random_run(2), random_run(3)], GROUPS, "iou")
    assert found.second.seed_std is not None and found.seed_error is None


def test_bad_arguments() -> None:
    run = random_run(1)
    for first, second, groups in (([], [run], GROUPS), ([run], [run[:5]], GROUPS), ([[]], [[]], [])):
        with pytest.raises(ValueError, match="expected runs"):
            compare_systems(first, second, groups, "dice")


def test_another_truth_is_found() -> None:
    first, second = random_run(1), random_run(2)
    assert first_other_truth(first, second) is None
    second[7] = Counts(tp=second[7].tp, fp=second[7].fp, fn=second[7].fn + np.array([0, 1, 0]))
    assert first_other_truth(first, second) == 7
