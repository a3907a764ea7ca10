"""Outlines against answers known by hand, and against distances between all pairs of their pixels."""

from __future__ import annotations

from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom import boundary_score
from maskloom.boundary_score import (
    BoundaryCounts,
    Tolerance,
    boundary_counts,
    f_score,
    mean_f_score,
    outlines,
    precision,
    recall,
)
from maskloom.errors import UserError
from maskloom.records import IGNORE, Task

BINARY = Task(kind="binary", classes=("thing",))
THREE = Task(kind="multiclass", classes=("sky", "road", "car"))
LAYERS = Task(kind="multilabel", classes=("roof", "tree"))


def square(top: int, left: int, side: int = 10, size: tuple[int, int] = (40, 50)) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


def pixels(value: float) -> Tolerance:
    return Tolerance(value, "pixels")


def counted(counts: BoundaryCounts) -> list[list[int]]:
    return list(counts.to_json().values())


def test_a_square_moved_sideways() -> None:
    truth, moved = square(10, 10), square(10, 13)
    # 36 pixels each, 7 of them shared above and below. Each pixel of tolerance adds two where the rows go on and two of
    # the column that lies between them; the columns lie 3 apart.
    for reach, matched in ((0, 14), (0.999, 14), (1, 18), (2, 22), (2.999, 22), (3, 36)):
        found = boundary_counts(moved, truth, BINARY, pixels(reach))
        assert counted(found) == [[matched], [36], [matched], [36]], reach
        assert f_score(found) == pytest.approx(matched / 36)


def test_distances_are_straight() -> None:
    truth, prediction = square(10, 10, side=1), square(13, 14, side=1)
    near, far = (boundary_counts(prediction, truth, BINARY, pixels(reach)) for reach in (5, 4.999))
    assert (counted(near), counted(far)) == ([[1], [1], [1], [1]], [[0], [1], [0], [1]])


def test_the_tolerance_follows_the_diagonal() -> None:
    assert Tolerance().pixels((30, 40)) == 0.375
    assert Tolerance.parse("10%").pixels((30, 40)) == pytest.approx(5)
    assert Tolerance.parse("2.5").pixels((30, 40)) == 2.5
    assert [Tolerance.parse(text).text() for text in ("0.75%", "1", "2")] == [
        "0.75 % of the diagonal", "1 pixel", "2 pixels",
    ]  # fmt: skip
    # 0.3 / 0.1 is a little less than 3: distances of exactly the tolerance agree all the same.
    truth = square(10, 10)
    assert f_score(boundary_counts(square(10, 13), truth, BINARY, pixels(0.3 / 0.1))) == 1
    assert f_score(boundary_counts(square(10, 13, size=(30, 40)), truth[:30, :40], BINARY, Tolerance.parse("6%"))) == 1


@pytest.mark.parametrize("text", ["", "three", "-1", "nan", "inf", "101%", "%"])
def test_other_tolerances_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="tolerance"):
        Tolerance.parse(text)


def test_precision_and_recall_by_hand() -> None:
    truth, prediction = square(5, 5, side=4), square(5, 5, side=4) | square(25, 30, side=4)
    found = boundary_counts(prediction, truth, BINARY)
    assert counted(found) == [[12], [24], [12], [12]]
    assert (precision(found), recall(found), f_score(found)) == (0.5, 1, pytest.approx(2 / 3))


def test_one_side_without_an_outline_scores_0_and_neither_nothing() -> None:
    nothing, everything = np.zeros((8, 9), np.uint8), np.ones((8, 9), np.uint8)
    for prediction, truth in ((nothing, square(2, 2, 3, (8, 9))), (square(2, 2, 3, (8, 9)), everything)):
        assert f_score(boundary_counts(prediction, truth, BINARY)) == 0
    assert np.isnan(f_score(boundary_counts(everything, nothing, BINARY)))  # the image's border is no outline


def test_ignored_pixels_are_as_if_they_were_not_there() -> None:
    truth, prediction = np.zeros((6, 9), np.uint8), np.zeros((6, 9), np.uint8)
    truth[:, 3:5], truth[:, 5:] = IGNORE, 1
    prediction[:, 4:] = 1  # the step lies among ignored pixels
    assert counted(boundary_counts(prediction, truth, BINARY, pixels(9))) == [[0], [0], [0], [0]]
    prediction[:, 2:] = 1  # the step has left them
    assert counted(boundary_counts(prediction, truth, BINARY, pixels(9))) == [[0], [6], [0], [0]]
    prediction[:, 3:5] = 77  # what is predicted there does not matter
    assert counted(boundary_counts(prediction, truth, BINARY, pixels(9))) == [[0], [6], [0], [0]]


def test_each_class_has_its_own_side_of_a_step() -> None:
    truth, prediction = np.zeros((4, 8), np.uint8), np.zeros((4, 8), np.uint8)
    truth[:, 4:], prediction[:, 4:] = 1, 2
    found = boundary_counts(prediction, truth, THREE, pixels(0))
    assert counted(found) == [[4, 0, 0], [4, 0, 4], [4, 0, 0], [4, 4, 0]]
    assert f_score(found).tolist() == [1, 0, 0]


def brute_force(prediction: np.ndarray, truth: np.ndarray, label: int, reach: float) -> list[int]:
    """The counts of a class by its definition: neighbours one by one, distances between all pairs."""
    height, width = truth.shape

    def outline(labels: np.ndarray) -> list[tuple[int, int]]:
        return [
            (row, column)
            for row in range(height)
            for column in range(width)
            if truth[row, column] != IGNORE
            and labels[row, column] == label
            and any(
                0 <= y < height and 0 <= x < width and truth[y, x] != IGNORE and labels[y, x] != label
                for y, x in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1))
            )
        ]

    def matched(points: list[tuple[int, int]], others: list[tuple[int, int]]) -> int:
        return sum(any((y - b) ** 2 + (x - a) ** 2 <= reach**2 for b, a in others) for y, x in points)

    predicted, true = outline(prediction), outline(truth)
    return [matched(predicted, true), len(predicted), matched(true, predicted), len(true)]


def coarse(rng: np.random.Generator, size: tuple[int, int], values: list[int]) -> np.ndarray:
    """Returns labels uint8 in patches, so that there are outlines longer than a pixel."""
    blocks = rng.choice(values, (size[0] // 3 + 1, size[1] // 3 + 1)).astype(np.uint8)
    labels = np.kron(blocks, np.ones((3, 3), np.uint8))[: size[0], : size[1]]
    return np.where(rng.random(size) < 0.05, rng.choice(values, size), labels).astype(np.uint8)


@settings(max_examples=50)
@given(seed=st.integers(0, 2**16), reach=st.sampled_from([0, 1, 2**0.5, 2, 3.7, 40]))
def test_counts_are_those_of_all_pairs(seed: int, reach: float) -> None:
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(1, 14)), int(rng.integers(1, 14)))
    truth, prediction = coarse(rng, size, [0, 1, 2, IGNORE]), coarse(rng, size, [0, 1, 2])
    expected = np.transpose([brute_force(prediction, truth, label, reach) for label in range(3)]).tolist()
    assert counted(boundary_counts(prediction, truth, THREE, pixels(reach))) == expected
    # A map of a multilabel task, and the foreground of a binary one, are the classes one by one.
    maps = [
        np.stack([np.where(side == IGNORE, IGNORE, side == label) for label in (1, 2)]).astype(np.uint8)
        for side in (prediction, truth)
    ]
    both = boundary_counts(*maps, LAYERS, pixels(reach))
    assert counted(both) == [row[1:] for row in expected]
    assert boundary_counts(maps[0][0], maps[1][0], BINARY, pixels(reach)).true == both.true[:1]


@settings(max_examples=50)
@given(seed=st.integers(0, 2**16))
def test_the_sides_exchanged_exchange_the_counts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = coarse(rng, (17, 12), [0, 1, 2]), coarse(rng, (17, 12), [0, 1, 2])
    there, back = (boundary_counts(*pair, THREE, pixels(1)) for pair in ((first, second), (second, first)))
    assert counted(there) == [counted(back)[place] for place in (2, 3, 0, 1)]
    assert np.nanmin(f_score(boundary_counts(first, first, THREE, pixels(0)))) == 1


@pytest.mark.parametrize("most_looks", [0, 10**12], ids=["by distance", "by looking around"])
def test_both_ways_of_matching_agree(most_looks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(11)
    truth, prediction = coarse(rng, (40, 60), [0, 1, 2, IGNORE]), coarse(rng, (40, 60), [0, 1])
    for reach in (0, 1, 1.5, 4, 200):
        expected = boundary_counts(prediction, truth, THREE, pixels(reach))
        with monkeypatch.context() as patched:
            patched.setattr(boundary_score, "_MOST_LOOKS", most_looks)
            assert boundary_counts(prediction, truth, THREE, pixels(reach)) == expected


def test_a_large_image_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long distances, where 32 bits round: against the nearest of every pixel of the other side."""
    monkeypatch.setattr(boundary_score, "_MOST_LOOKS", 0)
    rng = np.random.default_rng(5)
    truth, prediction = (np.zeros((700, 900), np.uint8) for _ in range(2))
    for labels in (truth, prediction):
        labels[rng.integers(1, 699, 60), rng.integers(1, 899, 60)] = 1
    points = [np.argwhere(outlines(side, np.ones(side.shape, bool)) & (side == 1)) for side in (prediction, truth)]
    squared = ((points[0][:, None] - points[1]) ** 2).sum(axis=2)
    for reach_squared in np.unique(squared.min(axis=1))[::7].tolist():
        found = boundary_counts(prediction, truth, BINARY, pixels(reach_squared**0.5))
        assert found.matched_predicted == (squared.min(axis=1) <= reach_squared).sum()
        assert found.matched_true == (squared.min(axis=0) <= reach_squared).sum()


def test_distances_are_those_of_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    rng = np.random.default_rng(2)
    truth, prediction = coarse(rng, (90, 120), [0, 1]), coarse(rng, (90, 120), [0, 1])
    everywhere = np.ones(truth.shape, bool)
    own, other = (outlines(side, everywhere) & (side == 1) for side in (prediction, truth))
    away = ndimage.distance_transform_edt(~other)[own]
    for reach in (0.5, 1, 1.5, 3):
        assert boundary_counts(prediction, truth, BINARY, pixels(reach)).matched_predicted == (away <= reach).sum()


def test_counts_add_up_and_survive_json() -> None:
    rng = np.random.default_rng(8)
    images = [boundary_counts(coarse(rng, (12, 15), [0, 1, 2]), coarse(rng, (12, 15), [0, 1]), THREE) for _ in range(4)]
    whole = reduce(add, images, BoundaryCounts.zero(3))
    assert whole == BoundaryCounts.from_json(whole.to_json())
    assert whole.true.tolist() == np.sum([image.true for image in images], axis=0).tolist()
    with pytest.raises(ValueError, match="3 and 2 classes"):
        whole + BoundaryCounts.zero(2)
    with pytest.raises(ValueError, match="int64"):
        BoundaryCounts(**{name: np.zeros(2) for name in whole.to_json()})


def test_the_mean_over_images_weighs_them_alike() -> None:
    truth, small = square(10, 10), square(10, 10, side=2)
    right = boundary_counts(truth, truth, BINARY)
    wrong = boundary_counts(square(30, 40, side=2), small, BINARY)
    empty = boundary_counts(small * 0, small * 0, BINARY)
    assert mean_f_score([right, wrong, empty]) == 0.5
    assert f_score(right + wrong + empty) == 36 / 40
    assert np.isnan(mean_f_score([empty]))
    with pytest.raises(ValueError, match="no images"):
        mean_f_score([])


def test_other_shapes_and_labels_are_refused() -> None:
    labels = np.zeros((4, 5), np.uint8)
    with pytest.raises(ValueError, match="H×W"):
        boundary_counts(labels[:3], labels, BINARY)
    with pytest.raises(ValueError, match="C×H×W"):
        boundary_counts(labels, labels, LAYERS)
    with pytest.raises(ValueError, match="2 maps"):
        boundary_counts(labels[None], labels[None], LAYERS)
    wrong = labels.copy()
    wrong[1, 1] = 3
    with pytest.raises(ValueError, match="prediction labels of 0 to 2, got 0 to 3"):
        boundary_counts(wrong, labels, THREE)
    with pytest.raises(ValueError, match="truth labels of 0 to 1, got 0 to 3"):
        boundary_counts(labels, wrong, BINARY)
