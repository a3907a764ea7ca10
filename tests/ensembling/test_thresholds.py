from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.ensembling.thresholds import (
    best_threshold,
    counts_at_all,
    curve,
    decide,
    fit_thresholds,
    histograms,
)
from maskloom.metrics import from_labels, per_class
from maskloom.records import IGNORE, Task

BINARY = Task(kind="binary", classes=("thing",))
LAYERS = Task(kind="multilabel", classes=("a", "b"))
THREE = Task(kind="multiclass", classes=("a", "b", "c"))


def some_images(task: Task, seed: int, count: int = 4) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    size = (6, 7)
    images = []
    for _ in range(count):
        values = rng.integers(0, 256, (task.num_maps, *size), dtype=np.uint8)
        shape = (task.num_maps, *size) if task.kind == "multilabel" else size
        top = task.num_maps if task.kind == "multiclass" else 2
        labels = rng.integers(0, top, shape).astype(np.uint8)
        labels[rng.random(shape) < 0.1] = IGNORE
        images.append((values, labels))
    return images


def test_histogram_by_hand() -> None:
    values = np.array([[[0, 7], [7, 255]]], np.uint8)
    labels = np.array([[0, 1], [0, IGNORE]], np.uint8)
    found = histograms(values, labels, BINARY)
    assert found.shape == (1, 2, 256) and found.dtype == np.int64
    assert found.sum() == 3 and found[0, 0, 0] == 1 and found[0, 0, 7] == 1 and found[0, 1, 7] == 1


def test_histogram_of_classes_counts_each_against_the_rest() -> None:
    values = np.array([[[9]], [[8]], [[7]]], np.uint8)
    found = histograms(values, np.array([[1]], np.uint8), THREE)
    assert [tuple(np.argwhere(layer)[0]) for layer in found] == [(0, 9), (1, 8), (0, 7)]


@settings(max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([BINARY, LAYERS]), st.integers(0, 255), st.sampled_from(["dice", "iou"]))
def test_curve_equals_counting_pixels(seed: int, task: Task, threshold: int, metric: str) -> None:
    images = some_images(task, seed)
    records = [histograms(values, labels, task) for values, labels in images]
    counts = [from_labels(decide(v, [threshold] * task.num_maps, task), t, task) for v, t in images]
    for record, count in zip(records, counts, strict=True):
        at_all = [values[:, threshold] for values in counts_at_all(record)]
        assert all(np.array_equal(a, b) for a, b in zip(at_all, (count.tp, count.fp, count.fn), strict=True))
    found = curve(records, metric, task)[:, threshold]
    expected = per_class(counts, metric)
    occurs = ~np.isnan(expected)
    assert np.allclose(found[occurs], expected[occurs], atol=1e-12)


def test_two_empty_masks_score_one() -> None:
    record = histograms(np.full((1, 2, 2), 100, np.uint8), np.zeros((2, 2), np.uint8), BINARY)
    for metric in ("dice", "iou"):
        scores = curve([record], metric, BINARY)[0]
        assert np.all(scores[:101] == 0) and np.all(scores[101:] == 1)


def test_the_known_best_threshold_is_found() -> None:
    values = np.array([[[10, 30, 50, 200]]], np.uint8)
    labels = np.array([[0, 0, 1, 1]], np.uint8)
    record = histograms(values, labels, BINARY)
    assert fit_thresholds([record], "dice", BINARY) == [41]  # 31…50 are perfect; of the middle, the one nearer to 128
    assert fit_thresholds([histograms(255 - values, 1 - labels, BINARY)], "dice", BINARY) == [215]  # 206…225
    easy = histograms(np.array([[[10, 200]]], np.uint8), np.array([[0, 1]], np.uint8), BINARY)
    assert fit_thresholds([easy], "iou", BINARY) == [128]
    assert fit_thresholds([], "dice", BINARY) == [128]
    nothing = histograms(values, labels * 0, BINARY)
    assert fit_thresholds([nothing], "dice", BINARY) == [128]


def test_ties_go_to_the_middle_of_the_longest_plateau() -> None:
    def plateaus(*runs: tuple[int, int]) -> int:
        scores = np.zeros(256)
        for start, stop in runs:
            scores[start:stop] = 0.9
        return best_threshold(scores)

    assert plateaus((0, 256)) == 128
    assert plateaus((128, 129), (10, 60)) == 128
    assert plateaus((10, 13), (200, 205)) == 202
    assert plateaus((10, 15), (200, 205)) == 202  # as long: nearer to 128
    assert plateaus((20, 21)) == 20
    assert plateaus((20, 22)) == 21 and plateaus((200, 202)) == 200


def test_decisions() -> None:
    values = np.array([[[0, 127, 128, 255]], [[200, 50, 128, 0]]], np.uint8)
    assert decide(values[:1], [128], BINARY).tolist() == [[0, 0, 1, 1]]
    assert decide(values[:1], [0], BINARY).tolist() == [[1, 1, 1, 1]]
    assert decide(values, [128, 50], LAYERS).tolist() == [[[0, 0, 1, 1]], [[1, 1, 1, 0]]]
    three = np.random.default_rng(0).integers(0, 5, (3, 20, 20), dtype=np.uint8)
    found = decide(three, [], THREE)
    assert found.dtype == np.uint8 and np.array_equal(found, three.argmax(axis=0))


def test_wrong_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        decide(np.zeros((1, 2, 2)), [128], BINARY)
    with pytest.raises(ValueError, match="threshold"):
        decide(np.zeros((2, 2, 2), np.uint8), [128], LAYERS)
    with pytest.raises(ValueError, match="size"):
        histograms(np.zeros((1, 2, 2), np.uint8), np.zeros((2, 3), np.uint8), BINARY)
