"""Confusions and scores against scikit-learn, hand-made examples and the counts that follow from them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from maskloom.metrics import (
    Confusion,
    Counts,
    Metric,
    confusions,
    counts_of,
    dice,
    from_labels,
    iou,
    mean_over_classes,
    of_pixels,
    total,
)
from maskloom.records import IGNORE, Task

THREE = Task(kind="multiclass", classes=("sky", "road", "car"))
BINARY = Task(kind="binary", classes=("car",))
LAYERS = Task(kind="multilabel", classes=("water", "crops"))


def labels(values: list[int], shape: tuple[int, ...] = (4, 6)) -> st.SearchStrategy[np.ndarray]:
    return arrays.arrays(np.uint8, shape, elements=st.sampled_from(values))


def test_a_hand_made_confusion() -> None:
    truth = np.array([[0, 0, 1], [1, IGNORE, 2]], np.uint8)
    prediction = np.array([[0, 1, 1], [2, 0, 2]], np.uint8)
    (found,) = confusions(prediction, truth, THREE)
    assert found.pixels.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert found.shares().tolist() == [[0.5, 0.5, 0], [0, 0.5, 0.5], [0, 0, 1]]
    (single,) = confusions(*(np.array([row], np.uint8) for row in ([1, 0, 1, 1], [1, 1, 0, IGNORE])), BINARY)
    assert single.pixels.tolist() == [[0, 1], [1, 1]]  # rows: truth


@settings(max_examples=30)
@given(labels([0, 1, 2]), labels([0, 1, 2, IGNORE]))
def test_it_equals_scikit_learn(prediction: np.ndarray, truth: np.ndarray) -> None:
    judge = pytest.importorskip("sklearn.metrics")
    judged = truth != IGNORE
    (found,) = confusions(prediction, truth, THREE)
    if judged.any():
        expected = judge.confusion_matrix(truth[judged], prediction[judged], labels=[0, 1, 2])
        assert np.array_equal(found.pixels, expected)
        common = {"labels": [0, 1, 2], "average": None, "zero_division": 1.0}  # two empty masks score 1
        counts = from_labels(prediction, truth, THREE)
        assert np.allclose(iou(counts), judge.jaccard_score(truth[judged], prediction[judged], **common))
        assert np.allclose(dice(counts), judge.f1_score(truth[judged], prediction[judged], **common))
    assert found.pixels.sum() == judged.sum()


@settings(max_examples=30)
@given(labels([0, 1], (2, 3, 4)), labels([0, 1, IGNORE], (2, 3, 4)))
def test_a_map_has_one_of_two_labels(prediction: np.ndarray, truth: np.ndarray) -> None:
    found = confusions(prediction, truth, LAYERS)
    assert len(found) == 2
    for index, each in enumerate(found):
        as_classes = Task(kind="multiclass", classes=("not", "there"))
        assert each == confusions(prediction[index], truth[index], as_classes)[0]
    assert counts_of(found, LAYERS) == from_labels(prediction, truth, LAYERS)


@settings(max_examples=30)
@given(labels([0, 1, 2]), labels([0, 1, 2, IGNORE]), st.integers(0, 6))
def test_confusions_of_parts_add_up_to_the_whole(prediction: np.ndarray, truth: np.ndarray, cut: int) -> None:
    parts = [confusions(prediction[:, part], truth[:, part], THREE)[0] for part in (slice(cut), slice(cut, None))]
    (whole,) = confusions(prediction, truth, THREE)
    assert parts[0] + parts[1] == whole == Confusion.zero(3) + whole
    assert counts_of([whole], THREE) == from_labels(prediction, truth, THREE)
    present = whole.pixels.sum(axis=1) > 0
    assert np.array_equal(np.isnan(whole.shares()).any(axis=1), ~present)
    assert whole.shares()[present].sum(axis=1) == pytest.approx(1)


def test_confusions_of_other_forms_are_refused() -> None:
    with pytest.raises(ValueError, match="as many rows as columns"):
        Confusion(pixels=np.zeros((2, 3), np.int64))
    with pytest.raises(ValueError, match="expected int64"):
        Confusion(pixels=np.zeros((2, 2)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot add"):
        Confusion.zero(2) + Confusion.zero(3)


@pytest.mark.parametrize(("metric", "score"), [("iou", 0.5), ("dice", 2 / 3)])
def test_the_mean_over_classes_with_and_without_absent_ones(metric: Metric, score: float) -> None:
    def whole(tp: list[int], fp: list[int], fn: list[int]) -> Counts:
        return Counts.from_json({"tp": tp, "fp": fp, "fn": fn})

    def means(found: Counts) -> list[float]:
        return [mean_over_classes(found, metric, absent=absent) for absent in ("left out", "counted")]  # type: ignore[arg-type]

    never = whole([50, 0], [0, 0], [50, 0])  # the second class is neither there nor predicted
    assert means(never) == pytest.approx([score, (score + 1) / 2])
    predicted = whole([50, 0], [0, 9], [50, 0])
    assert means(predicted) == pytest.approx([score, score / 2])
    nothing = whole([0, 0], [0, 3], [0, 0])
    assert means(nothing) == [0.5, 0.5]
    for found in (never, predicted):
        np.testing.assert_allclose(of_pixels(found, metric), [score, np.nan])


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_scores_of_all_pixels_are_those_of_scikit_learn(seed: int, num_classes: int) -> None:
    """Images of other sizes, some classes absent from the truth; scikit-learn sees their pixels in one row."""
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    task = Task(kind="multiclass", classes=tuple(f"c{index}" for index in range(num_classes)))
    pairs = [rng.integers(0, num_classes, (2, *rng.integers(1, 7, 2)), dtype=np.uint8) for _ in range(3)]
    whole = total([from_labels(predicted, true, task) for predicted, true in pairs])
    predicted, true = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
    options = {"labels": list(range(num_classes)), "average": None, "zero_division": 1.0}
    occurs = np.isin(range(num_classes), true)
    for metric, judge in (("iou", sklearn.jaccard_score), ("dice", sklearn.f1_score)):
        expected = np.where(occurs, judge(true, predicted, **options), np.nan)
        np.testing.assert_allclose(of_pixels(whole, metric), expected, atol=1e-12)
