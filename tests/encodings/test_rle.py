"""Run lengths: known answers, round trips, and pycocotools as the judge."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as judge

from maskloom.encodings import rle
from maskloom.errors import UserError

masks = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(lambda size: arrays(bool, size))


def blob(size: tuple[int, int] = (90, 70)) -> np.ndarray:
    noise = np.random.default_rng(3).random(size)
    rows, columns = np.mgrid[: size[0], : size[1]]
    return (rows - 40) ** 2 + (columns - 30) ** 2 < 900 + 200 * noise


def test_text_of_a_known_mask() -> None:
    mask = np.array([[0, 1, 1], [1, 0, 1]], bool)
    assert rle.encode_runs(mask) == "2 3 6 1"
    assert rle.encode_runs(mask, base=0) == "1 3 5 1"
    assert rle.encode_runs(mask, order="column") == "2 2 5 2"


@pytest.mark.parametrize(("value", "text"), [(False, ""), (True, "1 6")])
def test_empty_and_full_masks(value: bool, text: str) -> None:
    mask = np.full((2, 3), value)
    for order in ("row", "column"):
        assert rle.encode_runs(mask, order=order) == text
        assert np.array_equal(rle.decode_runs(text, (2, 3), order=order), mask)


@settings(max_examples=150, deadline=None)
@given(masks, st.sampled_from(["row", "column"]), st.sampled_from([0, 1]))
def test_text_round_trip(mask: np.ndarray, order: rle.Order, base: rle.Base) -> None:
    text = rle.encode_runs(mask, order=order, base=base)
    assert np.array_equal(rle.decode_runs(text, mask.shape, order=order, base=base), mask)
    assert rle.encode_runs(mask.T, order="row" if order == "column" else "column", base=base) == text
    assert rle.Reading(order, base) in rle.possible_readings([(text, mask.shape)]) or rle.possible_readings(
        [(text, mask.shape)], orders=[order], bases=[base]
    ) == (rle.Reading(order, base),)


@settings(max_examples=150, deadline=None)
@given(masks)
def test_coco_equals_pycocotools(mask: np.ndarray) -> None:
    expected = judge.encode(np.asfortranarray(mask.view(np.uint8)))
    found = rle.coco_encode(mask)
    assert found == {"size": list(mask.shape), "counts": expected["counts"].decode()}
    assert np.array_equal(rle.coco_decode(found), mask)
    assert np.array_equal(rle.coco_decode(expected), mask)


@settings(max_examples=100, deadline=None)
@given(masks, st.integers(0, 5), st.integers(0, 5), st.integers(0, 3), st.integers(0, 3))
def test_coco_window_equals_the_whole_image(mask: np.ndarray, top: int, left: int, below: int, right: int) -> None:
    whole = np.pad(mask, ((top, below), (left, right)))
    assert rle.coco_encode(mask, (top, left), whole.shape) == rle.coco_encode(whole)


@pytest.mark.parametrize(
    "mask", [blob(), np.random.default_rng(0).random((300, 400)) < 0.5, np.ones((2000, 900), bool)]
)
def test_larger_masks(mask: np.ndarray) -> None:
    expected = judge.encode(np.asfortranarray(mask.view(np.uint8)))
    assert rle.coco_encode(mask)["counts"] == expected["counts"].decode()
    assert np.array_equal(rle.coco_decode(expected), mask)
    for order in ("row", "column"):
        assert np.array_equal(rle.decode_runs(rle.encode_runs(mask, order=order), mask.shape, order=order), mask)


def test_lists_of_counts() -> None:
    assert rle.coco_decode({"size": [2, 2], "counts": [1, 2, 1]}).tolist() == [[False, True], [True, False]]
    assert rle.coco_decode({"size": [2, 2], "counts": [0, 4]}).all()
    assert not rle.coco_decode({"size": (2, 2), "counts": [4]}).any()


def test_touching_runs_are_one() -> None:
    assert rle.decode_runs("1 1 2 1", (1, 3)).tolist() == [[True, True, False]]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1", "pairs"),
        ("1 2 3", "pairs"),
        ("1 x", "whole numbers"),
        ("1.0 2", "whole numbers"),
        ("-1 2", "whole numbers"),
        ("١ 2", "whole numbers"),
        ("1\x0c2", r"whole numbers .* found .1.x0c2."),
        ("1 2 \u2003", "whole numbers"),
        ("1 0", "at least 1"),
        ("3 2 1 1", "ascending"),
        ("1 3 2 1", "overlap"),
        ("0 2", "counted from 0"),
        ("6 2", "within the 6 pixels"),
        ("1 99999999999999999999", "18 digits"),
        ("1 999999999999999999", "within"),
    ],
)
def test_garbage_text_is_refused(text: str, reason: str) -> None:
    for read in (rle.decode_runs, rle.check_runs):
        with pytest.raises(UserError, match=reason) as caught:
            read(text, (2, 3))
        assert "\n" not in str(caught.value)


def test_checking_draws_no_mask() -> None:
    rle.check_runs("", (2, 3))
    rle.check_runs("1 2 4 3", (2, 3))
    rle.check_runs("0 6", (2, 3), base=0)
    rle.check_runs("1 2 1000000000000 3", (2_000_000, 2_000_000))  # which no memory would hold


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"size": [2, 2]},
        {"size": [2], "counts": [4]},
        {"size": [0, 2], "counts": []},
        {"size": [2.0, 2], "counts": [4]},
        {"size": [10**6, 10**6], "counts": [10**12]},
        {"size": [2, 2], "counts": [3]},
        {"size": [2, 2], "counts": [5, -1]},
        {"size": [2, 2], "counts": [True, 3]},
        {"size": [2, 2], "counts": 4},
        {"size": [2, 2], "counts": ""},
        {"size": [2, 2], "counts": "é"},
        {"size": [2, 2], "counts": "!"},
        {"size": [2, 2], "counts": "T"},
        {"size": [2, 2], "counts": "T" * 40 + "1"},
        {"size": [2, 2], "counts": "5"},
        {"size": [2, 2], "counts": "8L"},
    ],
)
def test_garbage_coco_is_refused(value: dict[str, object]) -> None:
    with pytest.raises(UserError):
        rle.coco_decode(value)


def test_wrong_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="bool mask"):
        rle.encode_runs(np.zeros((2, 2), np.uint8))
    with pytest.raises(ValueError, match="outside"):
        rle.coco_encode(np.ones((2, 2), bool), (1, 0), (2, 2))


def test_readings() -> None:
    size = (2, 3)
    assert len(rle.possible_readings([("2 2", size)])) == 4
    assert {reading.base for reading in rle.possible_readings([("0 1", size), ("3 1", size)])} == {0}
    assert {reading.base for reading in rle.possible_readings([("2 2", size), ("6 1", size)])} == {1}
    assert rle.possible_readings([("0 1", size), ("6 1", size)]) == ()
    assert rle.possible_readings([("6 1", size)], orders=["column"]) == (rle.Reading("column", 1),)


def test_readings_that_make_no_difference() -> None:
    assert rle.possible_readings([("", (2, 3))]) == (rle.Reading("row", 0),)
    assert rle.possible_readings([("1 6", (2, 3)), ("", (4, 4))]) == (rle.Reading("row", 1),)
    assert rle.possible_readings([("0 3", (1, 9))]) == (rle.Reading("row", 0),)


@pytest.mark.parametrize("text", ["0 7", "1 7", "9 1", "a b"])
def test_text_no_reading_accepts(text: str) -> None:
    with pytest.raises(UserError):
        rle.possible_readings([(text, (2, 3))])
