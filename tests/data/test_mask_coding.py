"""Stored values become labels exactly as listed; anything else is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.data.mask_coding import MaskCoding, apply
from maskloom.errors import BadFile, UserError
from maskloom.records import IGNORE

PATH = Path("mask.png")


def array(*rows: list[int], dtype: type = np.uint8) -> np.ndarray:
    return np.array(rows, dtype)


def test_foreground_is_all_above() -> None:
    stored = array([0, 1, 700], [9, 0, 65535], dtype=np.uint16)
    assert apply(MaskCoding(ignore=(9,)), stored, PATH).tolist() == [[0, 1, 1], [IGNORE, 0, 1]]
    assert apply(MaskCoding(above=127), array([127, 128]), PATH).tolist() == [[0, 1]]
    colours = np.zeros((1, 2, 3), np.uint8)
    colours[0, 1, 2] = 1
    assert apply(MaskCoding(), colours, PATH).tolist() == [[0, 1]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_values(dtype: type) -> None:
    coding = MaskCoding(kind="values", values=((0, 0), (7, 1), (200, 2)), ignore=(255,))
    labels = apply(coding, array([0, 7], [200, 255], dtype=dtype), PATH)
    assert labels.dtype == np.uint8 and labels.tolist() == [[0, 1], [2, IGNORE]]


@pytest.mark.parametrize(("dtype", "value"), [(np.uint8, 3), (np.uint16, 9000), (np.int32, -1), (np.int32, 1 << 20)])
def test_unexpected_values_are_named_and_counted(dtype: type, value: int) -> None:
    coding = MaskCoding(kind="values", values=((0, 0), (255, 1)))
    with pytest.raises(BadFile, match=rf"expected the mask values 0, 255, found {value} in 2 pixels") as caught:
        apply(coding, array([0, value], [value, 255], dtype=dtype), PATH)
    assert "mask.png" in str(caught.value) and "\n" not in str(caught.value)


def test_many_unexpected_values_are_cut_short() -> None:
    coding = MaskCoding(kind="values", values=((0, 0),))
    with pytest.raises(BadFile, match="…"):
        apply(coding, np.arange(256, dtype=np.uint8).reshape(16, 16), PATH)


def test_colours() -> None:
    coding = MaskCoding(kind="colours", colours=(((9, 0, 0), 1), ((0, 0, 0), 0)), ignore_colours=((1, 2, 3),))
    stored = np.array([[(0, 0, 0), (9, 0, 0), (1, 2, 3)]], np.uint8)
    assert apply(coding, stored, PATH).tolist() == [[0, 1, IGNORE]]
    assert apply(coding, np.zeros((1, 2), np.uint8), PATH).tolist() == [[0, 0]]
    stored[0, 0] = (0, 0, 1)
    with pytest.raises(BadFile, match=r"found \(0, 0, 1\) in 1 pixels"):
        apply(coding, stored, PATH)


def test_grey_saved_as_rgb_is_read_by_value_and_real_colours_are_not() -> None:
    coding = MaskCoding(kind="values", values=((0, 0), (5, 1)))
    stored = np.array([[(0, 0, 0), (5, 5, 5)]], np.uint8)
    assert apply(coding, stored, PATH).tolist() == [[0, 1]]
    with pytest.raises(BadFile, match="found colours"):
        apply(coding, np.array([[(0, 0, 5)]], np.uint8), PATH)


@given(st.dictionaries(st.integers(0, 300), st.integers(0, 20), min_size=1, max_size=9), st.data())
def test_apply_is_the_mapping(mapping: dict[int, int], data: st.DataObject) -> None:
    stored = data.draw(st.lists(st.sampled_from(sorted(mapping)), min_size=1, max_size=20))
    coding = MaskCoding(kind="values", values=tuple(mapping.items()))
    labels = apply(coding, np.array([stored], np.uint16), PATH)
    assert labels.tolist() == [[mapping[value] for value in stored]]


def test_json_round_trip() -> None:
    coding = MaskCoding(kind="colours", colours=(((1, 2, 3), 0),), ignore=(4,), ignore_colours=((5, 6, 7),), above=2)
    assert MaskCoding.from_json(json.loads(json.dumps(coding.to_json()))) == coding


def test_labels_must_fit() -> None:
    with pytest.raises(UserError, match="0 to 255"):
        MaskCoding(kind="values", values=((0, 300),))


def test_ignored_values_count_nowhere_also_in_grey_masks_saved_as_colours() -> None:
    stored = np.array([[0, 7, 255]], np.uint8)
    coding = MaskCoding(kind="foreground", ignore=(7,))
    for pixels in (stored, np.repeat(stored[:, :, None], 3, axis=2)):
        assert apply(coding, pixels, Path("a.png")).tolist() == [[0, IGNORE, 1]]
