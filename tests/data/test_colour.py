"""Colour: known answers, and OpenCV's HSV as the judge."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from maskloom.data.augment import Draw, apply, stack
from maskloom.data.colour import grey_where, mean_luma, shift_hsv, tone

RNG = np.random.default_rng(5)
PHOTO = torch.from_numpy(RNG.integers(0, 256, (1, 3, 40, 40)).astype(np.float32))


def toned(brightness: float, contrast: float, chroma: float, images: torch.Tensor = PHOTO) -> torch.Tensor:
    return tone(images, mean_luma(images), torch.tensor([[brightness, contrast, chroma]]), None)


def shifted(hue: float, saturation: float, value: float, images: torch.Tensor = PHOTO) -> torch.Tensor:
    return shift_hsv(images, torch.tensor([[hue, saturation, value]]), 255.0)


def pixel(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)


def test_brightness_multiplies() -> None:
    assert torch.allclose(toned(1.5, 1, 1), PHOTO * 1.5)


def test_contrast_keeps_the_mean_luma() -> None:
    changed = toned(1, 0.5, 1)
    mean = mean_luma(PHOTO)
    assert torch.allclose(mean_luma(changed), mean, atol=1e-3)
    assert torch.allclose(changed, (PHOTO - mean) * 0.5 + mean, atol=1e-3)


def test_no_chroma_is_luma() -> None:
    grey = toned(1, 1, 0)[0]
    expected = 0.299 * PHOTO[0, 0] + 0.587 * PHOTO[0, 1] + 0.114 * PHOTO[0, 2]
    assert torch.allclose(grey, expected.expand(3, -1, -1), atol=1e-3)


def test_integers_stay_in_their_range() -> None:
    image = PHOTO.to(torch.uint8)
    bright = stack([Draw(np.eye(3, dtype=np.float32), np.array([0, 0, 0, 1.9, 1.9, 1], np.float32))])
    values = apply(image, torch.zeros(1, 40, 40, dtype=torch.uint8), bright)[0]
    assert values.min() >= 0 and values.max() == 255
    deep = (image.to(torch.int32) * 257).to(torch.uint16)
    deep_values = apply(deep, torch.zeros(1, 40, 40, dtype=torch.uint8), bright)[0]
    assert torch.allclose(deep_values, values * 257, rtol=1e-4, atol=0.5)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_counts_of_channels_keep_their_chroma(channels: int) -> None:
    images = torch.from_numpy(RNG.random((2, channels, 6, 6), dtype=np.float32))
    neutral = torch.ones(2, 3)
    assert torch.equal(tone(images, mean_luma(images), neutral * torch.tensor([1, 1, 0.0]), None), images)
    assert torch.allclose(
        shift_hsv(images, torch.tensor([[30.0, 40, 25.5]] * 2), None), (images + 0.1).clamp(0, 1), atol=1e-6
    )


@pytest.mark.parametrize(
    ("shift", "expected"),
    [
        ((60, 0, 0), (0, 255, 0)),  # 60 of OpenCV's units are 120 degrees: red becomes green
        ((-60, 0, 0), (0, 0, 255)),
        ((30, 0, 0), (255, 255, 0)),
        ((90, 0, 0), (0, 255, 255)),
        ((0, -255, 0), (255, 255, 255)),
        ((0, 0, -55), (200, 0, 0)),
        ((0, 50, 50), (255, 0, 0)),
    ],
)
def test_shifts_of_pure_red(shift: tuple[float, float, float], expected: tuple[int, int, int]) -> None:
    assert torch.allclose(shifted(*shift, images=pixel(255, 0, 0)), pixel(*expected), atol=1e-3)


def test_an_area_turns_to_luma() -> None:
    area = torch.zeros(1, 1, 40, 40, dtype=torch.bool)
    area[..., 10:20, 5:9] = True
    got = grey_where(PHOTO, area)
    assert torch.equal(got[0][:, ~area[0, 0]], PHOTO[0][:, ~area[0, 0]])
    assert torch.allclose(got[..., 10:20, 5:9], toned(1, 1, 0)[..., 10:20, 5:9], atol=1e-3)
    assert torch.equal(grey_where(PHOTO[:, :2], area), PHOTO[:, :2])


def test_grey_stays_grey() -> None:
    assert torch.allclose(shifted(40, 100, 10, images=pixel(120, 120, 120)), pixel(130, 130, 130))
    assert torch.equal(shifted(40, 100, 0, images=pixel(0, 0, 0)), pixel(0, 0, 0))


@pytest.mark.parametrize("shift", [(0, 0, 0), (10, 0, 0), (-37, 25, 0), (5, -25, 20), (80, 90, -90)])
def test_shifts_agree_with_opencv(shift: tuple[float, float, float]) -> None:
    photo = PHOTO[0].permute(1, 2, 0).numpy() / np.float32(255)
    hsv = cv2.cvtColor(photo, cv2.COLOR_RGB2HSV)  # float: hue in degrees, saturation and value in 0…1
    hsv[..., 0] = (hsv[..., 0] + 2 * shift[0]) % 360
    hsv[..., 1:] = np.clip(hsv[..., 1:] + np.array(shift[1:], np.float32) / 255, 0, 1)
    expected = torch.from_numpy(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255)
    assert torch.allclose(shifted(*shift)[0].permute(1, 2, 0), expected, atol=0.05)
