"""Weight maps and border masks against window-by-window NumPy loops, hand-computed rows, and their symmetries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from maskloom.losses.boundary import (
    BAND_WINDOWS,
    averaged_mask,
    band_weights,
    band_window,
    border_mask,
    hill_weights,
    scaled_window,
)
from maskloom.records import IGNORE

MAPS = (band_weights, hill_weights, border_mask, averaged_mask)


def blobs(height: int = 20, width: int = 26, seed: int = 0, *, ignore: bool = True) -> Tensor:
    """Returns two images of two maps with a few rectangles of foreground and of ignored pixels."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((2, 2, height, width), dtype=np.uint8)
    for image in labels.reshape(-1, height, width):
        for value in (1, 1, 0, IGNORE) if ignore else (1, 1, 0):
            top, left = rng.integers(height - 4), rng.integers(width - 4)
            image[top : top + rng.integers(3, 12), left : left + rng.integers(3, 12)] = value
    return torch.from_numpy(labels)


def row(*values: int) -> Tensor:
    return torch.tensor([[[values]]], dtype=torch.uint8)


def numpy_windows(labels: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns foreground and counted pixels in the window around each pixel, one window after the other."""
    foreground, counted = np.zeros(labels.shape), np.zeros(labels.shape)
    before, after = (window - 1) // 2, window // 2
    for (n, k, y, x), _ in np.ndenumerate(labels):
        seen = labels[n, k, max(0, y - before) : y + after + 1, max(0, x - before) : x + after + 1]
        foreground[n, k, y, x], counted[n, k, y, x] = (seen == 1).sum(), (seen != IGNORE).sum()
    return foreground, counted


def numpy_mean_one(weights: np.ndarray, labels: np.ndarray) -> np.ndarray:
    weights = weights * (labels != IGNORE)
    for n, k in np.ndindex(labels.shape[:2]):
        weights[n, k] *= (labels[n, k] != IGNORE).sum() / weights[n, k].sum()
    return weights


@pytest.mark.parametrize("window", [2, 3, 6, 11, 50])  # the last is larger than the image
def test_maps_equal_the_formulas(window: int) -> None:
    labels = blobs()
    values = labels.numpy()
    foreground, counted = numpy_windows(values, window)
    average = foreground / np.maximum(counted, 1)
    band = np.where((average >= 0.01) & (average <= 0.99), 3.0, 1.0)
    hill = 5 * np.exp(-5 * np.abs(average - 0.5))
    border = (foreground > 0) & (foreground < counted) & (values != IGNORE)
    assert np.allclose(averaged_mask(labels, window).numpy(), average, rtol=1e-6)
    assert np.allclose(band_weights(labels, window).numpy(), numpy_mean_one(band, values), rtol=1e-5)
    assert np.allclose(hill_weights(labels, window).numpy(), numpy_mean_one(hill, values), rtol=1e-5)
    assert np.array_equal(border_mask(labels, window).numpy(), border)


@pytest.mark.parametrize(("height", "window"), BAND_WINDOWS.items())
def test_published_windows_at_their_heights(height: int, window: int) -> None:
    """A summed-area table at the published size, whose zeros beyond the frame the square's windows do not reach."""
    labels = torch.zeros((1, 1, height, 160), dtype=torch.uint8)
    labels[..., height // 2 - 20 : height // 2 + 30, 60:100] = 1
    table = np.zeros((height + window, 160 + window))
    table[window // 2 + 1 : window // 2 + 1 + height, window // 2 + 1 : window // 2 + 1 + 160] = labels[0, 0]
    table = table.cumsum(0).cumsum(1)
    sums = table[window:, window:] - table[:-window, window:] - table[window:, :-window] + table[:-window, :-window]
    average = sums / window**2
    weights = np.where((average >= 0.01) & (average <= 0.99), 3.0, 1.0)
    found = band_weights(labels, band_window(height))[0, 0].numpy()
    assert np.allclose(found, weights / weights.mean(), rtol=1e-5)


def test_published_windows() -> None:
    assert {height: band_window(height) for height in BAND_WINDOWS} == {128: 11, 256: 21, 512: 21, 1024: 41, 1280: 51}
    assert [band_window(height) for height in (768, 640, 192, 64, 2560, 1)] == [31, 27, 17, 5, 103, 3]
    assert [scaled_window(50, height) for height in (1280, 640, 512, 16)] == [50, 25, 20, 3]
    assert [scaled_window(21, height) for height in (1280, 640, 1024, 2560, 16)] == [21, 11, 17, 43, 3]


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(2, 200))
def test_windows_grow_with_the_image_and_stay_centred(first: int, second: int, window: int) -> None:
    low, high = sorted((first, second))
    assert 3 <= band_window(low) <= band_window(high) and band_window(low) % 2 == 1
    assert 3 <= scaled_window(window, low) <= scaled_window(window, high)
    assert window % 2 == 0 or scaled_window(window, low) % 2 == 1
    assert scaled_window(window, 1280) == max(3, window)


def test_a_row_by_hand() -> None:
    labels = row(0, 0, 1, 1, 1)
    assert averaged_mask(labels, 3).flatten().tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])
    assert band_weights(labels, 3).flatten().tolist() == pytest.approx([5 / 9, 15 / 9, 15 / 9, 5 / 9, 5 / 9])
    assert border_mask(labels, 3).flatten().tolist() == [0, 1, 1, 0, 0]
    steep, flat = np.exp(-5 / 6), np.exp(-5 / 2)
    hill = np.array([flat, steep, steep, flat, flat])
    assert hill_weights(labels, 3).flatten().tolist() == pytest.approx((hill / hill.mean()).tolist())


def test_ignored_pixels_are_of_neither_class() -> None:
    labels = row(0, IGNORE, 1, 1, IGNORE, IGNORE)
    assert averaged_mask(labels, 3).flatten().tolist() == [0, 0.5, 1, 1, 1, 0]  # nothing counts around the last
    assert border_mask(labels, 3).flatten().tolist() == [0] * 6  # the ignored one sees both classes, and is ignored
    assert band_weights(labels, 3).flatten().tolist() == [1, 0, 1, 1, 0, 0]
    assert border_mask(labels, 5).flatten().tolist() == [1, 0, 1, 0, 0, 0]


def test_an_even_window_reaches_one_pixel_further_right_and_down() -> None:
    labels = row(0, 0, 0, 1, 0, 0)
    assert averaged_mask(labels, 2).flatten().tolist() == [0, 0, 0.5, 0.5, 0, 0]
    assert averaged_mask(labels, 4).flatten().tolist() == pytest.approx([0, 0.25, 0.25, 0.25, 1 / 3, 0])
    assert averaged_mask(labels.mT, 2).flatten().tolist() == [0, 0, 0.5, 0.5, 0, 0]


def test_the_ends_of_the_band_belong_to_it() -> None:
    labels = torch.zeros((1, 1, 30, 30), dtype=torch.uint8)
    labels[..., 15, 15] = 1  # 1 of 100 pixels
    assert (band_weights(labels, 10) > 1).sum() == 100
    assert (band_weights(1 - labels, 10) > 1).sum() == 100
    assert (band_weights(labels, 11) > 1).sum() == 0


@pytest.mark.parametrize("function", MAPS)
@pytest.mark.parametrize("window", [3, 8])
def test_a_frame_of_ignored_pixels_is_as_good_as_the_edge(function, window: int) -> None:  # type: ignore[no-untyped-def]
    labels = blobs()
    framed = torch.full((2, 2, 40, 40), IGNORE, dtype=torch.uint8)
    framed[..., 9:29, 5:31] = labels
    torch.testing.assert_close(function(framed, window)[..., 9:29, 5:31], function(labels, window))


@pytest.mark.parametrize("function", MAPS)
def test_centred_windows_turn_with_the_image(function) -> None:  # type: ignore[no-untyped-def]
    labels = blobs(20, 20)
    torch.testing.assert_close(function(labels.flip(3), 7), function(labels, 7).flip(3))
    torch.testing.assert_close(function(labels.rot90(1, (2, 3)), 7), function(labels, 7).rot90(1, (2, 3)))


@pytest.mark.parametrize("function", [band_weights, hill_weights, border_mask])
def test_classes_may_change_places(function) -> None:  # type: ignore[no-untyped-def]
    labels = blobs()
    inverted = (1 - labels).where(labels != IGNORE, labels)
    torch.testing.assert_close(function(inverted, 7), function(labels, 7))


@pytest.mark.parametrize("function", [band_weights, hill_weights])
def test_weights_have_mean_one_over_what_counts_in_each_image(function) -> None:  # type: ignore[no-untyped-def]
    labels = blobs()
    labels[0, 0] = IGNORE
    weights = function(labels, 7)
    assert not weights[labels == IGNORE].any()
    num_valid = (labels != IGNORE).sum(dim=(2, 3)).float()
    torch.testing.assert_close(weights.sum(dim=(2, 3)), num_valid)
    torch.testing.assert_close(weights[1:], function(labels[1:], 7))  # no image hears of its neighbours


@pytest.mark.parametrize("value", [0, 1])
def test_one_class_alone_has_no_boundary(value: int) -> None:
    labels = torch.full((1, 1, 9, 9), value, dtype=torch.uint8)
    assert not border_mask(labels, 5).any()
    assert (band_weights(labels, 5) == 1).all() and torch.allclose(hill_weights(labels, 5), torch.ones(1, 1, 9, 9))


def test_windows_of_more_pixels_than_16_bits_count() -> None:
    labels = torch.ones((1, 1, 300, 200), dtype=torch.uint8)
    labels[..., :50] = 0
    average = averaged_mask(labels, 199)
    assert average[0, 0, 150, 100].item() == pytest.approx(150 / 199)  # columns 1…199
    assert average[0, 0, 0, 0].item() == pytest.approx(0.5)  # columns 0…99
