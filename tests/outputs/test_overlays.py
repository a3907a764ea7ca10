from __future__ import annotations

import numpy as np
import pytest

from maskloom.outputs.overlays import (
    BACKGROUND,
    BOTH,
    EXTRA,
    MAX_SIDE,
    MISSED,
    WRONG,
    class_colours,
    densest_window,
    displayed,
    error_overlay,
    mask_overlay,
    shrunk,
    to_jpeg,
    wrong_pixels,
)

IMAGE = np.full((4, 4, 3), 100, np.uint8)


def test_binary_errors_have_their_colours_and_nothing_else_has() -> None:
    truth = np.zeros((4, 4), np.uint8)
    prediction = truth.copy()
    truth[0] = 1
    prediction[0, :2] = 1  # the rest of the row is missed
    prediction[2, 1] = 1  # too much
    truth[3, 3], prediction[3, 3] = 255, 1  # not judged
    drawn = error_overlay(IMAGE, prediction, truth, "binary")
    assert drawn.dtype == np.uint8 and drawn.shape == (4, 4, 3)
    missed, extra = (drawn == MISSED).all(axis=2), (drawn == EXTRA).all(axis=2)
    assert np.argwhere(missed).tolist() == [[0, 2], [0, 3]]
    assert np.argwhere(extra).tolist() == [[2, 1]]
    others = drawn[~(missed | extra)]
    assert (others.max(axis=1) == others.min(axis=1)).all(), "all else is grey"
    assert wrong_pixels(prediction, truth, "binary").sum() == 3


def test_multiclass_errors_are_wrong_pixels_and_ignored_ones_are_not() -> None:
    truth = np.array([[0, 1, 2, 255]], np.uint8)
    prediction = np.array([[0, 2, 2, 1]], np.uint8)
    drawn = error_overlay(IMAGE[:1], prediction, truth, "multiclass")
    assert (drawn == WRONG).all(axis=2).tolist() == [[False, True, False, False]]


def test_multilabel_errors_of_both_kinds_are_told_apart() -> None:
    truth = np.array([[[1, 1, 0]], [[0, 1, 0]]], np.uint8)
    prediction = np.array([[[0, 0, 0]], [[1, 1, 1]]], np.uint8)
    drawn = error_overlay(IMAGE[:1, :3], prediction, truth, "multilabel")
    assert [tuple(pixel) for pixel in drawn[0].tolist()] == [BOTH, MISSED, EXTRA]


def test_a_thin_error_survives_shrinking() -> None:
    truth = np.zeros((1280, 1920), np.uint8)
    prediction = truth.copy()
    prediction[:, 1000] = 1
    drawn = error_overlay(np.zeros((1280, 1920, 3), np.uint8), prediction, truth, "binary").astype(int)
    assert drawn.shape == (320, 480, 3)
    column = drawn[100, 250]
    assert column[0] > 150 and column[0] - column[2] > 120


def test_overlay_tints_the_class_and_leaves_the_rest() -> None:
    labels = np.zeros((4, 4), np.uint8)
    labels[1] = 1
    drawn = mask_overlay(IMAGE, labels, [(0, 200, 0)], "binary")
    assert (drawn[0] == 100).all()
    assert drawn[1, 0, 1] > 100 > drawn[1, 0, 0]


def test_colours_differ_and_none_is_that_of_an_error() -> None:
    colours = class_colours(["background", *(f"c{index}" for index in range(60))], "multiclass")
    assert colours[0] == BACKGROUND
    assert len(set(colours)) == len(colours)
    assert not {MISSED, EXTRA, WRONG, BOTH} & set(colours)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 2, 3, 8])
def test_every_kind_of_image_can_be_shown(dtype: str, channels: int) -> None:
    values = np.arange(6 * 5 * channels).reshape(6, 5, channels).astype(dtype)
    shown = displayed(values)
    assert shown.shape == (6, 5, 3) and shown.dtype == np.uint8


def test_pictures_are_small() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), dtype=np.uint8)
    small = shrunk(noise)
    assert small.shape == (360, MAX_SIDE, 3)
    assert shrunk(IMAGE) is IMAGE
    assert len(to_jpeg(small, max_bytes=1)) < len(to_jpeg(small, max_bytes=10**7))
    assert to_jpeg(small)[:2] == b"\xff\xd8"


def test_densest_window_holds_the_errors() -> None:
    wrong = np.zeros((800, 1200), bool)
    assert densest_window(wrong) is None
    wrong[600:620, 900:930] = True
    wrong[5, 5] = True
    window = densest_window(wrong)
    assert window is not None
    assert wrong[window].shape == (200, 300) and wrong[window].sum() == 600
    assert densest_window(np.ones((100, 100), bool)) is None, "the part would be nearly all"
