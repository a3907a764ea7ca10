"""Probabilities against outcomes: hand-made pixels, the definition in plain loops, the laws of adding up."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from maskloom.ensembling.calibration import NUM_BINS, calibration_error, outcomes, reliability
from maskloom.ensembling.thresholds import decide
from maskloom.records import IGNORE, Task

BINARY = Task(kind="binary", classes=("car",))
THREE = Task(kind="multiclass", classes=("sky", "road", "car"))
LAYERS = Task(kind="multilabel", classes=("water", "crops"))
MAPS = arrays.arrays(np.uint8, (3, 4, 6))
TRUTHS = arrays.arrays(np.uint8, (4, 6), elements=st.sampled_from([0, 1, 2, IGNORE]))


def test_outcomes_of_a_hand_made_image() -> None:
    values = np.array([[[200, 10, 60]], [[30, 240, 90]], [[25, 5, 105]]], np.uint8)  # 3×1×3
    labels = decide(values, [], THREE)
    assert labels.tolist() == [[0, 1, 2]]
    found = outcomes(values, labels, np.array([[0, 2, IGNORE]], np.uint8), THREE)
    assert found.shape == (3, 2, 256) and found.sum() == 2
    assert found[0, 1, 200] == 1  # sky, right
    assert found[1, 0, 240] == 1  # road, wrong
    single = outcomes(values[:1], (values[0] >= 128).astype(np.uint8), np.array([[1, 0, IGNORE]], np.uint8), BINARY)
    assert single.shape == (1, 2, 256) and (single[0, 1, 200], single[0, 0, 10], single.sum()) == (1, 1, 2)


def test_every_layer_of_a_multilabel_map_is_a_binary_map() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (2, 5, 5)).astype(np.uint8)
    truth = rng.choice([0, 1, IGNORE], (2, 5, 5)).astype(np.uint8)
    found = outcomes(values, truth, truth, LAYERS)
    for index in range(2):
        layer = slice(index, index + 1)
        assert np.array_equal(found[layer], outcomes(values[layer], truth[index], truth[index], BINARY))


def test_a_bin_holds_seventeen_values() -> None:
    outcome = np.ones((2, 256), np.int64)
    assert [each.pixels for each in reliability(outcome)] == [2 * 18] + [2 * 17] * (NUM_BINS - 1)
    edges = np.zeros((2, 256), np.int64)
    edges[0, [17, 18, 255]] = 1  # 1/15 closes the first bin
    assert [each.pixels for each in reliability(edges)] == [1, 1] + [0] * 12 + [1]


def test_calibration_by_hand() -> None:
    outcome = np.zeros((2, 256), np.int64)
    outcome[:, 204] = (20, 80)  # 100 pixels of 0.8, 80 of them true: nothing is off
    assert calibration_error(outcome) == 0
    outcome[:, 255] = (150, 150)  # 300 of 1.0, half of them true: off by 0.5
    assert calibration_error(outcome) == pytest.approx(300 / 400 * 0.5)
    bins = reliability(outcome)
    assert (bins[11].pixels, bins[11].probability, bins[11].share) == (100, pytest.approx(0.8), pytest.approx(0.8))
    assert (bins[14].probability, bins[14].share) == (1, 0.5)
    assert math.isnan(bins[0].share) and math.isnan(calibration_error(np.zeros((2, 256), np.int64)))
    with pytest.raises(ValueError, match="expected int64 outcomes"):
        calibration_error(np.zeros((2, 255), np.int64))


@settings(max_examples=30)
@given(MAPS, TRUTHS)
def test_the_error_is_the_published_formula(values: np.ndarray, truth: np.ndarray) -> None:
    """Guo et al. 2017, equation 3, pixel by pixel."""
    labels = decide(values, [], THREE)
    members: dict[int, list[tuple[float, bool]]] = {}
    for place in zip(*np.nonzero(truth != IGNORE), strict=True):
        value = int(values[(labels[place], *place)])
        number = next(m for m in range(1, NUM_BINS + 1) if 255 * (m - 1) < NUM_BINS * max(value, 1) <= 255 * m)
        members.setdefault(number, []).append((value / 255, bool(labels[place] == truth[place])))
    total = sum(len(each) for each in members.values())
    expected = sum(
        len(each) / total * abs(np.mean([right for _, right in each]) - np.mean([stated for stated, _ in each]))
        for each in members.values()
    )
    found = calibration_error(outcomes(values, labels, truth, THREE).sum(axis=0))
    assert (math.isnan(found) and not total) or found == pytest.approx(expected)


@settings(max_examples=30)
@given(MAPS, TRUTHS, st.integers(0, 6))
def test_outcomes_of_parts_add_up_to_the_whole(values: np.ndarray, truth: np.ndarray, cut: int) -> None:
    labels = decide(values, [], THREE)
    whole = outcomes(values, labels, truth, THREE)
    parts = [
        outcomes(values[:, :, part], labels[:, part], truth[:, part], THREE) for part in (slice(cut), slice(cut, None))
    ]
    assert np.array_equal(parts[0] + parts[1], whole)
    assert whole.sum() == (truth != IGNORE).sum()
    assert whole[:, 1].sum() == ((labels == truth) & (truth != IGNORE)).sum()


def test_sizes_must_agree() -> None:
    values, labels = np.zeros((3, 4, 6), np.uint8), np.zeros((4, 6), np.uint8)
    with pytest.raises(ValueError, match="differ in size"):
        outcomes(values, labels, labels[:2], THREE)
