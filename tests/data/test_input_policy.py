"""Input policies: sizes, exact ways back, parts that cover once, cuts beyond the border, padding that never counts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.config import parse
from maskloom.data.clahe import clahe
from maskloom.data.input_policy import (
    InputPolicy,
    Placement,
    content_size,
    cut_image,
    cut_labels,
    pad_labels,
    part_windows,
    place,
    prepare_image,
    resize_image,
    resize_labels,
    shrunk,
    tile_windows,
)
from maskloom.errors import UnfitImage, UserError
from maskloom.records import IGNORE
from maskloom.windows import Padding, Window, tile_grid

SIDES = st.integers(1, 70)


AT = st.sampled_from(["both", "end"])


@given(SIDES, SIDES, st.sampled_from([1, 8, 32]), st.sampled_from(["reflect", "edge"]), AT)
@settings(max_examples=40, deadline=None)
def test_whole_images_come_back_exactly(height: int, width: int, multiple: int, padding: str, at: str) -> None:
    image = np.random.default_rng(height * 100 + width).integers(0, 256, (height, width, 3), np.uint8)
    policy = InputPolicy(multiple=multiple, padding=padding, padding_at=at)
    prepared, placement = prepare_image(image, policy)
    assert prepared.shape == (*placement.padded, 3)
    assert placement.padded[0] % multiple == placement.padded[1] % multiple == 0
    assert max(a - b for a, b in zip(placement.padded, (height, width), strict=True)) < multiple
    assert np.array_equal(prepared[placement.padding.interior(placement.padded).slices], image)
    sides = [(placement.padding.top, placement.padding.bottom), (placement.padding.left, placement.padding.right)]
    assert np.array_equal(prepared, np.pad(image, [*sides, (0, 0)], mode=padding))  # NumPy's "reflect" is reflect-101


def test_padding_may_lie_at_the_right_and_bottom_alone() -> None:
    end = InputPolicy(padding_at="end")
    assert place((1280, 1918), end).padding == Padding(0, 0, 0, 2)
    assert place((1270, 1918), end).padding == Padding(0, 10, 0, 2)
    halves = InputPolicy(mode="parts", parts=(1, 2), multiple=64, padding_at="end")
    assert place((1280, 1918), halves).padding == Padding(0, 0, 0, 2)
    window = InputPolicy(mode="window", size=(64, 64), padding_at="end")
    assert place((50, 90), window).padding == Padding(0, 14, 0, 0)
    around = window.model_copy(update={"margin": 16})
    assert place((20, 90), around).padding == Padding(16, 28, 16, 16), "a margin is on every side"


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
        InputPolicy(mode="parts", parts=(1, 2), scale=1.5),
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


@given(SIDES, SIDES, st.integers(1, 15))
@settings(max_examples=30, deadline=None)
def test_a_margin_is_padded_on_every_side(height: int, width: int, margin: int) -> None:
    policy = InputPolicy(mode="window", size=(32, 64), margin=margin)
    image = np.random.default_rng(height * 100 + width).integers(0, 256, (height, width, 3), np.uint8)
    prepared, placement = prepare_image(image, policy)
    padding = placement.padding
    sides = (padding.top, padding.bottom, padding.left, padding.right)
    assert min(sides) >= margin
    assert placement.padded == (max(height + 2 * margin, 32), max(width + 2 * margin, 64))
    assert np.array_equal(prepared, np.pad(image, [sides[:2], sides[2:], (0, 0)], mode="reflect"))


def test_published_margin() -> None:
    policy = InputPolicy(mode="window", size=(112, 112), multiple=16, margin=16)
    assert policy.overlap == 0 and InputPolicy.model_validate({**policy.model_dump(), "overlap": 0.5}).overlap == 0.5
    assert place((160, 240), policy).padding == Padding(16, 16, 16, 16)
    assert tile_windows((160, 240), policy) == [Window(top, left, 112, 112) for top in (0, 80) for left in (0, 80, 160)]
    assert len(tile_windows((160, 240), policy, overlap=0.5)) == 3 * 5
    with pytest.raises(ValueError, match="only cut into tiles by mode window, got mode full"):
        tile_windows((160, 240), InputPolicy())


@given(SIDES, SIDES, st.sampled_from([0.0, 0.25, 0.6]))
@settings(max_examples=20, deadline=None)
def test_tiles_without_a_margin_are_a_grid_over_the_padded_image(height: int, width: int, overlap: float) -> None:
    policy = InputPolicy(mode="window", size=(32, 24), multiple=8, overlap=overlap)
    padded = place((height, width), policy).padded
    assert tile_windows((height, width), policy) == tile_grid(padded, (32, 24), int(overlap * 24))


def test_scale_and_resize_decide_the_content() -> None:
    assert content_size((100, 51), InputPolicy(scale=0.5)) == (50, 26)
    assert content_size((1, 1), InputPolicy(scale=0.1)) == (1, 1)
    assert place((100, 50), InputPolicy(mode="resize", size=(40, 64))).padded == (64, 64)
    assert place((100, 50), InputPolicy()).resized is False


def test_whole_resized_images_can_be_shrunk_and_others_not() -> None:
    whole = InputPolicy(mode="resize", size=(427, 640), multiple=64)
    assert shrunk(whole, 1) is whole
    assert shrunk(whole, 0.5) == InputPolicy(mode="resize", size=(214, 320), multiple=64)
    with pytest.raises(UserError, match=r"input.mode=resize\), found mode window; set it to 0"):
        shrunk(InputPolicy(mode="window", size=(64, 64)), 0.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "window"}, "needs a size"),
        ({"mode": "full", "size": [64, 64]}, "takes no size"),
        ({"mode": "window", "size": [60, 64]}, r"multiples of 32, found \(60, 64\); use \(64, 64\)"),
        ({"mode": "resize", "size": [0, 64]}, "at least 1"),
        ({"mode": "resize", "size": [64, 64], "scale": 0.5}, "takes no scale"),
        ({"overlap": 1.0}, "overlap"),
        ({"mode": "parts"}, "needs parts of"),
        ({"mode": "parts", "parts": [1, 1]}, r"two or more, found \(1, 1\)"),
        ({"mode": "parts", "parts": [1, 2], "size": [64, 64]}, "mode parts takes no size"),
        ({"parts": [1, 2]}, "mode full takes no parts"),
        ({"prefer_mask_mean": [3, 252]}, "mode full has none"),
        ({"mode": "window", "size": [64, 64], "prefer_mask_mean": [252, 3]}, "low, high"),
        ({"mode": "window", "size": [64, 64], "prefer_mask_mean": [3, 252], "prefer_class": 0.5}, "one of them"),
        ({"margin": 4}, "mode full has no windows to take a margin from, found margin 4; set it to 0 or choose window"),
        ({"mode": "parts", "parts": [1, 2], "margin": 4}, "mode parts has no windows"),
        ({"mode": "window", "size": [64, 32], "margin": 16}, r"leaves nothing of .* \(64, 32\); take at most 15"),
        ({"mode": "window", "size": [64, 32], "margin": -1}, "margin: Input should be greater than or equal to 0"),
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


@given(SIDES, SIDES, st.integers(1, 3), st.integers(1, 4), st.sampled_from([1, 8, 32]))
@settings(max_examples=40, deadline=None)
def test_parts_cover_the_image_exactly_once(height: int, width: int, rows: int, columns: int, multiple: int) -> None:
    if rows == columns == 1:
        columns = 2
    policy = InputPolicy(mode="parts", parts=(rows, columns), multiple=multiple)
    image = np.random.default_rng(height * 100 + width).integers(0, 256, (height, width, 3), np.uint8)
    prepared, placement = prepare_image(image, policy)
    windows = part_windows((height, width), policy)
    times = np.zeros(prepared.shape[:2], int)
    rebuilt = np.zeros_like(prepared)
    for window in windows:
        assert window.height % multiple == window.width % multiple == 0
        times[window.slices] += 1
        rebuilt[window.slices] = prepared[window.slices]
    assert len(windows) == rows * columns and (times == 1).all()
    assert np.array_equal(rebuilt[placement.padding.interior(placement.padded).slices], image)


def test_halves_of_the_published_size() -> None:
    halves = InputPolicy(mode="parts", parts=(1, 2))
    assert part_windows((1280, 1918), halves) == [Window(0, 0, 1280, 960), Window(0, 960, 1280, 960)]
    assert place((1280, 1918), halves).padding == Padding(0, 0, 1, 1)
    assert halves.overlap == 0 and InputPolicy(mode="window", size=(32, 32)).overlap == 0.25


@given(st.integers(40, 200), st.integers(2, 4), st.sampled_from([0.1, 0.25, 0.5]))
@settings(max_examples=30, deadline=None)
def test_overlapping_parts_share_what_was_asked(width: int, columns: int, overlap: float) -> None:
    policy = InputPolicy(mode="parts", parts=(1, columns), multiple=1, overlap=overlap)
    windows = part_windows((10, width), policy)
    total = place((10, width), policy).padded[1]
    assert windows[0].left == 0 and windows[-1].left + windows[-1].width == total
    assert len(windows) == columns and len({window.width for window in windows}) == 1
    for first, second in pairwise(windows):
        shared = first.left + first.width - second.left
        assert abs(shared - overlap * first.width) <= 2


def test_parts_that_cannot_differ_are_one() -> None:
    assert part_windows((20, 20), InputPolicy(mode="parts", parts=(1, 2), overlap=0.5)) == [
        Window(0, 0, 32, 64),
    ]


def test_clahe_comes_before_resizing_and_padding_and_leaves_guides() -> None:
    image = np.random.default_rng(0).integers(90, 140, (60, 50, 4), np.uint8)
    policy = InputPolicy(mode="resize", size=(30, 25), clahe=True)
    prepared, placement = prepare_image(image, policy, channels=3)
    inside = prepared[placement.padding.interior(placement.padded).slices]
    assert np.array_equal(inside[..., :3], resize_image(clahe(image[..., :3]), (30, 25)))
    assert np.array_equal(inside[..., 3:], resize_image(image[..., 3:], (30, 25)))
    with pytest.raises(UnfitImage, match="float32"):
        prepare_image(image.astype(np.float32), policy)


@given(st.integers(-30, 60), st.integers(-30, 60), st.integers(1, 50), st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_cuts_beyond_the_border_mirror_images_and_ignore_labels(top: int, left: int, height: int, width: int) -> None:
    image = np.random.default_rng(1).integers(0, 256, (23, 31, 4), np.uint8)
    labels = np.random.default_rng(2).integers(0, 3, (23, 31), np.uint8)
    window = Window(top, left, height, width)
    far = 200  # a large mirrored and a large ignored plane say what lies where
    plane = np.pad(image, [(far, far), (far, far), (0, 0)], mode="reflect")
    marked = np.pad(labels, far, constant_values=IGNORE)
    place_of = slice(far + top, far + top + height), slice(far + left, far + left + width)
    assert np.array_equal(cut_image(image, window), plane[place_of])
    edges = np.pad(image, [(far, far), (far, far), (0, 0)], mode="edge")
    assert np.array_equal(cut_image(image, window, padding="edge"), edges[place_of])
    assert np.array_equal(cut_labels(labels, window), marked[place_of])
    assert np.array_equal(cut_labels(np.stack([labels, labels]), window), np.stack([marked[place_of]] * 2))


def test_one_pixel_can_be_mirrored_too() -> None:
    assert (cut_image(np.full((1, 1, 3), 9, np.uint8), Window(-2, -3, 6, 7)) == 9).all()
