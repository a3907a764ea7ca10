"""Counts against hand-made examples and closed formulas; the laws of adding them up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from maskloom.metrics import Counts, dice, from_labels, iou, per_class, score_records, total
from maskloom.records import IGNORE, Task

BINARY = Task(kind="binary", classes=("car",))
THREE = Task(kind="multiclass", classes=("sky", "road", "car"))
TWO_MAPS = Task(kind="multilabel", classes=("water", "crops"))


def labels(num_classes: int, *, ignore: bool, shape: tuple[int, ...] = (5, 7)) -> st.SearchStrategy[np.ndarray]:
    values = [*range(num_classes), *([IGNORE] if ignore else [])]
    return arrays.arrays(np.uint8, shape, elements=st.sampled_from(values))


def counts(tp: list[int], fp: list[int], fn: list[int]) -> Counts:
    return Counts.from_json({"tp": tp, "fp": fp, "fn": fn})


def test_binary_counts_of_a_hand_made_pair() -> None:
    truth = np.array([[1, 1, 0], [0, IGNORE, 1]], np.uint8)
    prediction = np.array([[1, 0, 1], [0, 1, 1]], np.uint8)
    found = from_labels(prediction, truth, BINARY)
    assert found == counts([2], [1], [1])
    assert dice(found) == pytest.approx([4 / 6])
    assert iou(found) == pytest.approx([2 / 4])


def test_multiclass_counts_of_a_hand_made_pair() -> None:
    truth = np.array([[0, 0, 1], [1, IGNORE, 2]], np.uint8)
    prediction = np.array([[0, 1, 1], [2, 0, 2]], np.uint8)
    assert from_labels(prediction, truth, THREE) == counts([1, 1, 1], [0, 1, 1], [1, 1, 0])


@given(labels(3, ignore=False), labels(3, ignore=True))
def test_multiclass_counts_equal_the_definition(prediction: np.ndarray, truth: np.ndarray) -> None:
    found = from_labels(prediction, truth, THREE)
    valid = truth != IGNORE
    for label in range(3):
        predicted, true = (prediction == label) & valid, (truth == label) & valid
        assert found.tp[label] == (predicted & true).sum()
        assert found.fp[label] == (predicted & ~true).sum()
        assert found.fn[label] == (true & ~predicted).sum()
    assert found.tp.sum() + found.fn.sum() == valid.sum()


@given(labels(2, ignore=False, shape=(2, 4, 5)), labels(2, ignore=True, shape=(2, 4, 5)))
def test_multilabel_counts_each_map_as_a_binary_task(prediction: np.ndarray, truth: np.ndarray) -> None:
    found = from_labels(prediction, truth, TWO_MAPS)
    single = [from_labels(prediction[index], truth[index], BINARY) for index in range(2)]
    assert found == counts(*([int(getattr(one, name)[0]) for one in single] for name in ("tp", "fp", "fn")))


@given(labels(3, ignore=False), labels(3, ignore=True), st.integers(0, 7))
def test_counts_of_parts_add_up_to_the_whole(prediction: np.ndarray, truth: np.ndarray, cut: int) -> None:
    left = from_labels(prediction[:, :cut], truth[:, :cut], THREE)
    right = from_labels(prediction[:, cut:], truth[:, cut:], THREE)
    assert left + right == from_labels(prediction, truth, THREE) == right + left + Counts.zero(3)


@given(labels(3, ignore=True))
def test_a_perfect_prediction_scores_one_and_a_wrong_one_zero(truth: np.ndarray) -> None:
    perfect = from_labels(np.where(truth == IGNORE, 0, truth), truth, THREE)
    assert score_records([perfect], "dice") == score_records([perfect], "iou") == 1
    wrong = from_labels(np.where(truth == IGNORE, 0, (truth + 1) % 3).astype(np.uint8), truth, THREE)
    if (truth != IGNORE).any():
        assert score_records([wrong], "iou") == 0


@given(labels(2, ignore=False), labels(2, ignore=True))
def test_dice_and_iou_name_the_same_overlap(prediction: np.ndarray, truth: np.ndarray) -> None:
    found = from_labels(prediction, truth, BINARY)
    jaccard = iou(found)
    np.testing.assert_allclose(dice(found), 2 * jaccard / (1 + jaccard))


def test_two_empty_masks_score_one() -> None:
    empty = np.zeros((3, 3), np.uint8)
    found = from_labels(empty, empty, BINARY)
    assert dice(found) == iou(found) == [1.0]
    assert score_records([found], "iou") == 1
    assert score_records([from_labels(np.ones_like(empty), empty, BINARY)], "iou") == 0


def test_dice_is_a_mean_over_images_and_iou_one_over_summed_counts() -> None:
    records = [counts([10], [0], [0]), counts([0], [5], [5])]
    assert score_records(records, "dice") == pytest.approx(0.5)
    assert score_records(records, "iou") == pytest.approx(10 / 20)
    assert total(records) == counts([10], [5], [5])


def test_a_class_that_no_truth_holds_is_left_out_of_the_mean_iou() -> None:
    records = [counts([4, 0, 6], [0, 3, 2], [3, 0, 2])]
    scores = per_class(records, "iou")
    assert np.isnan(scores[1])
    assert score_records(records, "iou") == pytest.approx((4 / 7 + 6 / 10) / 2)


def test_json_gives_the_counts_back() -> None:
    found = counts([2**40, 1], [0, 3], [5, 0])
    assert Counts.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    ("prediction", "truth", "task", "message"),
    [
        (np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8), BINARY, "differ in shape"),
        (np.zeros((2, 2), np.uint8), np.full((2, 2), 7, np.uint8), BINARY, "other values"),
        (np.full((2, 2), 2, np.uint8), np.zeros((2, 2), np.uint8), BINARY, "expected a prediction"),
        (np.zeros((2, 2), np.uint8), np.full((2, 2), 3, np.uint8), THREE, "truth labels of 0 to 2"),
        (np.full((2, 2), IGNORE, np.uint8), np.zeros((2, 2), np.uint8), THREE, "prediction labels of 0 to 2"),
        (np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8), TWO_MAPS, "C×H×W"),
    ],
)
def test_what_cannot_be_counted_is_refused(prediction: np.ndarray, truth: np.ndarray, task: Task, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_labels(prediction, truth, task)


def test_no_records_are_refused() -> None:
    with pytest.raises(ValueError, match="no records"):
        score_records([], "dice")
