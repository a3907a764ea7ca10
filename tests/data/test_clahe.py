"""CLAHE: OpenCV's own on luma, nothing else touched, floats refused."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from maskloom.data.clahe import clahe
from maskloom.errors import UnfitImage

RNG = np.random.default_rng(0)
DULL = RNG.integers(100, 120, (64, 64, 1), np.uint8).repeat(3, axis=2)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_luma_is_equalised_as_opencv_does_it(dtype: type) -> None:
    photo = (RNG.integers(0, 256, (90, 70, 3)).astype(dtype) * (257 if dtype == np.uint16 else 1)).astype(dtype)
    kept = photo.copy()
    expected = cv2.cvtColor(photo, cv2.COLOR_RGB2YUV)
    expected[..., 0] = cv2.createCLAHE(2.0, (8, 8)).apply(np.ascontiguousarray(expected[..., 0]))
    assert np.array_equal(clahe(photo), cv2.cvtColor(expected, cv2.COLOR_YUV2RGB))
    assert np.array_equal(photo, kept)


def test_low_contrast_is_spread_and_grey_stays_grey() -> None:
    spread = clahe(DULL)
    assert spread.shape == DULL.shape and spread.dtype == np.uint8
    assert spread.std() > 2 * DULL.std()
    assert np.ptp(spread.astype(int), axis=2).max() <= 1


def test_other_counts_of_channels_are_equalised_one_by_one() -> None:
    many = RNG.integers(0, 60, (64, 64, 5), np.uint8)
    found = clahe(many)
    for number in range(5):
        assert np.array_equal(found[..., number : number + 1], clahe(many[..., number : number + 1]))
    assert clahe(DULL[..., :1].astype(np.uint16)).shape == (64, 64, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_guides_stay_as_they_are(channels: int) -> None:
    image = RNG.integers(0, 60, (64, 64, channels + 2), np.uint8)
    found = clahe(image, channels=channels)
    assert np.array_equal(found[..., channels:], image[..., channels:])
    assert np.array_equal(found[..., :channels], clahe(image[..., :channels]))


def test_floats_are_refused() -> None:
    with pytest.raises(UnfitImage, match=r"found float32; set input\.clahe=false and augment\.clahe=0"):
        clahe(DULL.astype(np.float32))
