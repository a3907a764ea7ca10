"""Input policies: sizes, exact ways back, padding that counts in nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.config import parse
from maskloom.data.input_policy import (
    InputPolicy,
    Placement,
    content_size,
    pad_labels,
    place,
    prepare_image,
    resize_image,
    resize_labels,
)
from maskloom.errors import UserError
from maskloom.records import IGNORE
from maskloom.windows import Padding

SIDES = st.integers(1, 70)


@given(SIDES, SIDES, st.sampled_from([1, 8, 32]), st.sampled_from(["reflect", "edge"]))
@settings(max_examples=40, deadline=None)
def test_whole_images_come_back_exactly(height: int, width: int, multiple: int, padding: str) -> None:
    image = np.random.default_rng(height * 100 + width).integers(0, 256, (height, width, 3), np.uint8)
    policy = InputPolicy(multiple=multiple, padding=padding)
    prepared, placement = prepare_image(image, policy)
    assert prepared.shape == (*placement.padded, 3)
    assert placement.padded[0] % multiple == placement.padded[1] % multiple == 0
    assert max(a - b for a, b in zip(placement.padded, (height, width), strict=True)) < multiple
    assert np.array_equal(prepared[placement.padding.interior(placement.padded).slices], image)
    sides = [(placement.padding.top, placement.padding.bottom), (placement.padding.left, placement.padding.right)]
    assert np.array_equal(prepared, np.pad(image, [*sides, (0, 0)], mode=padding))  # NumPy's "reflect" is reflect-101


def test_a_published_size_gets_one_column_each_side() -> None:
    assert place((1280, 1918), InputPolicy()) == Placement((1280, 1918), (1280, 1918), Padding(0, 0, 1, 1))


@given(SIDES, SIDES)
@settings(max_examples=20, deadline=None)
def test_labels_are_ignored_in_the_padding_and_nowhere_else(height: int, width: int) -> None:
    labels = np.ones((height, width), np.uint8)
    padding = place((height, width), InputPolicy()).padding
    prepared = pad_labels(labels, padding)
    assert (prepared != IGNORE).sum() == labels.size
    planes = pad_labels(np.stack([labels, labels]), padding)
    assert np.array_equal(planes, np.stack([prepared, prepared]))


@pytest.mark.parametrize("channels", [1, 3, 4, 7])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_every_depth_and_count_of_channels_passes(channels: int, dtype: type) -> None:
    image = np.full((40, 50, channels), 7, dtype)
    for policy in (
        InputPolicy(),
        InputPolicy(mode="resize", size=(20, 30)),
        InputPolicy(mode="resize", size=(80, 30)),
        InputPolicy(mode="window", size=(64, 32)),
        InputPolicy(scale=0.5),
    ):
        prepared, placement = prepare_image(image, policy)
        assert prepared.shape == (*placement.padded, channels) and prepared.dtype == dtype
        assert np.allclose(prepared, 7)


def test_resized_labels_take_the_nearest_pixel_centre() -> None:
    labels = np.arange(12, dtype=np.uint8).reshape(2, 6)
    assert resize_labels(labels, (2, 2)).tolist() == [[1, 4], [7, 10]]
    assert resize_labels(labels[None], (4, 6)).tolist() == [labels.repeat(2, axis=0).tolist()]


def test_shrinking_by_a_whole_factor_is_the_mean() -> None:
    image = np.array([[0, 2, 10, 30], [4, 6, 20, 40]], np.float32)[..., None]
    assert resize_image(image, (1, 2))[..., 0].tolist() == [[3.0, 25.0]]


def test_images_smaller_than_the_window_are_padded_to_it_and_larger_ones_are_not() -> None:
    policy = InputPolicy(mode="window", size=(64, 64))
    assert place((20, 100), policy).padded == (64, 100)
    assert place((70, 71), policy).padded == (70, 71)


def test_scale_and_resize_decide_the_content() -> None:
    assert content_size((100, 51), InputPolicy(scale=0.5)) == (50, 26)
    assert content_size((1, 1), InputPolicy(scale=0.1)) == (1, 1)
    assert place((100, 50), InputPolicy(mode="resize", size=(40, 64))).padded == (64, 64)
    assert place((100, 50), InputPolicy()).resized is False


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "window"}, "needs a size"),
        ({"mode": "full", "size": [64, 64]}, "takes no size"),
        ({"mode": "window", "size": [60, 64]}, r"multiples of 32, found \(60, 64\); use \(64, 64\)"),
        ({"mode": "resize", "size": [0, 64]}, "at least 1"),
        ({"mode": "resize", "size": [64, 64], "scale": 0.5}, "takes no scale"),
        ({"overlap": 1.0}, "overlap"),
        ({"pading": "edge"}, "did you mean 'padding'"),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(InputPolicy, values)


def test_the_caller_keeps_its_arrays() -> None:
    image, labels = np.zeros((5, 5, 3), np.uint8), np.zeros((5, 5), np.uint8)
    prepare_image(image, InputPolicy())[0][:] = 9
    pad_labels(labels, Padding(1, 0, 0, 0))[:] = 9
    assert not image.any() and not labels.any()
