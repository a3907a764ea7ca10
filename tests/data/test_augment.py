"""Augmentation: exact symmetries, masks that move along, ranges that are kept, results that stand alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from coordinate_images import label_of, picture
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.config import parse
from maskloom.data.augment import PRESETS, AugmentSettings, Draw, apply, clahe, draw, stack
from maskloom.errors import UserError

NEUTRAL = np.array([0, 0, 0, 1, 1, 1], np.float32)
SYMMETRIES = [
    (matrix, turn)
    for rows, columns in ((1, 1), (1, -1), (-1, 1), (-1, -1))
    for matrix, turn in (
        ([[columns, 0, 0], [0, rows, 0], [0, 0, 1]], lambda a, r=rows, c=columns: a[..., ::r, ::c]),
        ([[0, columns, 0], [rows, 0, 0], [0, 0, 1]], lambda a, r=rows, c=columns: a[..., ::r, ::c].swapaxes(-1, -2)),
    )
]


def batch_of(count: int, size: tuple[int, int] = (24, 24), dtype: type = np.uint8) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (count, 3, *size)).astype(dtype)
    return torch.from_numpy(images), torch.from_numpy(rng.integers(0, 3, (count, *size)).astype(np.uint8))


def moved_by(matrix: object) -> Draw:
    return Draw(np.array(matrix, np.float32), NEUTRAL)


@pytest.mark.parametrize("number", range(8))
def test_flips_and_transposes_move_pixels_exactly(number: int) -> None:
    matrix, turn = SYMMETRIES[number]
    images, labels = batch_of(2)
    got_images, got_labels = apply(images, labels, stack([moved_by(matrix)] * 2))
    assert got_images.dtype == torch.float32 and got_labels.dtype == torch.uint8
    assert np.array_equal(got_images.numpy(), turn(images.numpy()).astype(np.float32))
    assert np.array_equal(got_labels.numpy(), turn(labels.numpy()))


@pytest.mark.parametrize("number", range(8))
def test_exact_moves_agree_with_resampling(number: int) -> None:
    matrix = np.array(SYMMETRIES[number][0], np.float32)
    nearly = matrix.copy()
    nearly[0, 2] = 1e-5  # no longer a pure symmetry, so it is resampled
    images, labels = batch_of(1)
    exact, resampled = (apply(images, labels, stack([moved_by(one)])) for one in (matrix, nearly))
    assert torch.allclose(exact[0], resampled[0], atol=1e-2)
    assert torch.equal(exact[1], resampled[1])


def test_drawn_symmetries_are_all_eight_and_exact() -> None:
    images, labels = batch_of(1)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(60):
        got, _ = apply(images, labels, stack([draw(PRESETS["symmetry"], rng, (24, 24))]))
        assert torch.equal(got.flatten().sort().values, images.float().flatten().sort().values)
        seen.add(got.numpy().tobytes())
    assert len(seen) == 8


def test_flips_also_turn_images_that_are_not_square() -> None:
    images, labels = batch_of(1, (10, 30))
    flipped = Draw(np.diag([-1.0, 1.0, 1.0]).astype(np.float32), NEUTRAL)
    assert torch.equal(apply(images, labels, stack([flipped]))[0], images.float().flip(3))
    with pytest.raises(ValueError, match="square"):
        apply(images, labels, stack([moved_by(SYMMETRIES[1][0])]))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_nothing_drawn_changes_nothing_and_no_argument_is_modified(dtype: type) -> None:
    images, labels = batch_of(3, dtype=dtype)
    kept_images, kept_labels = images.clone(), labels.clone()
    got = apply(images, labels, stack([draw(PRESETS["none"], np.random.default_rng(0), (24, 24))] * 3))
    assert torch.equal(got[0], images.float()) and torch.equal(got[1], labels)
    rng = np.random.default_rng(4)
    if dtype == np.float32:
        images, kept_images = images / 255, kept_images / 255
    changed = apply(images, labels, stack([draw(PRESETS["strong"], rng, (24, 24)) for _ in range(3)]))
    assert not torch.equal(changed[0], images.float())
    assert torch.equal(images, kept_images) and torch.equal(labels, kept_labels)


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_masks_move_exactly_along(seed: int) -> None:
    """Every pixel's colours say where it came from, and its label is the one of that place."""
    pixels = picture((60, 80)).astype(np.float32)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()
    labels = label_of(images[:, 0], images[:, 1]).to(torch.uint8)
    warps = AugmentSettings(
        horizontal_flip=0.5, vertical_flip=0.5, geometric=1.0, shift=0.2, scale=(0.6, 1.6), rotate=180
    )
    drawn = draw(warps, np.random.default_rng(seed), (60, 80))
    moved, moved_labels = apply(images, labels, stack([drawn]))
    columns, rows = moved[:, 0], moved[:, 1]
    decided = ((columns - columns.round()).abs() < 0.49) & ((rows - rows.round()).abs() < 0.49)
    expected = label_of(columns.round(), rows.round()).to(torch.uint8)
    assert torch.equal(moved_labels[decided], expected[decided])
    planes = torch.stack([labels == label for label in range(3)], dim=1).to(torch.uint8)
    assert torch.equal(apply(images, planes, stack([drawn]))[1][:, 1], (moved_labels == 1).to(torch.uint8))


def test_a_shift_by_whole_pixels_is_that_shift() -> None:
    images, labels = batch_of(1)
    matrix = np.eye(3, dtype=np.float32)
    matrix[:2, 2] = (-3, 2)  # output (x, y) comes from (x - 3, y + 2)
    got, got_labels = apply(images, labels, stack([moved_by(matrix)]))
    assert torch.allclose(got[0, :, :-2, 3:], images[0, :, 2:, :-3].float(), atol=2e-2)
    assert torch.equal(got_labels[0, :-2, 3:], labels[0, 2:, :-3])
    assert torch.equal(got_labels[0, -2:, 3:], labels[0, -2:, :-3].flip(0))  # mirrored about the outer edge


@pytest.mark.parametrize("preset", PRESETS)
def test_a_sample_does_not_depend_on_its_batch(preset: str) -> None:
    images, labels = batch_of(6, (32, 32))
    rng = np.random.default_rng(2)
    draws = [draw(PRESETS[preset], rng, (32, 32)) for _ in range(6)]
    together = apply(images, labels, stack(draws))
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        alone = apply(images[part], labels[part], stack(draws[part]))
        assert torch.equal(alone[0], together[0][part]) and torch.equal(alone[1], together[1][part])


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_keep_their_ranges_and_reach_them(preset: str) -> None:
    chosen = PRESETS[preset]
    size = (100, 100) if chosen.transpose else (100, 200)
    rng = np.random.default_rng(0)
    draws = [draw(chosen, rng, size) for _ in range(800)]
    warped = [one.matrix for one in draws if chosen.warps and abs(one.matrix[:2, :2]).max() not in (0.0, 1.0)]
    scales = [1 / math.sqrt(abs(np.linalg.det(matrix[:2, :2]))) for matrix in warped]
    degrees = [math.degrees(math.atan2(abs(matrix[0, 1]), abs(matrix[0, 0]))) for matrix in warped]
    if chosen.transpose:  # what was turned by d and transposed reads as 90 - d
        degrees = [min(angle, 90 - angle) for angle in degrees]
    if chosen.warps:
        assert chosen.scale[0] - 1e-4 <= min(scales) < chosen.scale[0] + 0.03
        assert chosen.scale[1] - 0.03 < max(scales) <= chosen.scale[1] + 1e-4
        assert 0.95 * chosen.rotate < max(degrees) <= chosen.rotate + 1e-3
        assert len(warped) / len(draws) == pytest.approx(chosen.geometric, abs=0.06)
        shifts = [np.linalg.solve(matrix[:2, :2].astype(float), matrix[:2, 2]) for matrix in warped]
        furthest = np.abs(shifts).max(axis=0) / (chosen.shift * size[1], chosen.shift * size[0])
        assert furthest.min() > 0.95 and furthest.max() < 1 + 1e-4
    colours = np.stack([one.colour for one in draws]) - NEUTRAL
    limits = np.array([chosen.hue, chosen.saturation, chosen.value, chosen.brightness, chosen.contrast, chosen.chroma])
    limits[5] = 1.0 if chosen.grey else limits[5]
    assert (np.abs(colours).max(axis=0) <= limits + 1e-5).all()
    assert (np.abs(colours).max(axis=0) >= 0.9 * limits).all()


def test_the_published_ranges() -> None:
    first, second, zeroth, linknet = (PRESETS[f"carvana_{name}"] for name in ("1", "2", "0", "linknet"))
    assert (zeroth.geometric, zeroth.rotate, zeroth.scale, zeroth.shift) == (0.75, 5, (0.91, 1.21), 0.0625)
    assert not zeroth.tones and not zeroth.shifts_colours
    assert first == second.model_copy(update={"rotate": 10.0})
    assert (second.rotate, second.brightness, second.contrast, second.chroma, second.grey) == (7, 0.5, 0.5, 0.3, 0.25)
    assert (linknet.hue, linknet.saturation, linknet.value, linknet.brightness) == (10, 25, 25, 0.1)
    assert all(PRESETS[name].horizontal_flip == 0.5 for name in PRESETS if name != "none")


def test_one_setting_leaves_the_draws_of_the_others() -> None:
    plain = AugmentSettings(horizontal_flip=0.5, geometric=1.0, rotate=10)
    richer = plain.model_copy(update={"hue": 10.0, "colour": 1.0, "grey": 0.5})
    one, other = (draw(chosen, np.random.default_rng(7), (32, 32)) for chosen in (plain, richer))
    assert np.array_equal(one.matrix, other.matrix) and not np.array_equal(one.colour, other.colour)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale": [1.2, 0.8]}, "smallest, largest"),
        ({"horizontal_flip": 1.5}, "horizontal_flip"),
        ({"rotat": 5}, "did you mean 'rotate'"),
    ],
)
def test_settings_refuse_what_cannot_be(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(AugmentSettings, values)


def test_presets_are_known_by_whether_they_change_anything() -> None:
    assert [name for name in PRESETS if PRESETS[name].is_identity] == ["none"]
    assert AugmentSettings(rotate=5, geometric=0).is_identity and not AugmentSettings(clahe=0.1).is_identity


def test_clahe_spreads_luma_and_keeps_flat_images_grey() -> None:
    rng = np.random.default_rng(0)
    dull = rng.integers(100, 120, (64, 64, 1), np.uint8).repeat(3, axis=2)
    spread = clahe(dull)
    assert spread.shape == dull.shape and spread.dtype == np.uint8
    assert spread.std() > 2 * dull.std()
    assert np.ptp(spread.astype(int), axis=2).max() <= 1
    assert clahe(dull[..., :1].astype(np.uint16)).shape == (64, 64, 1)
    assert clahe(dull[..., [0, 0, 0, 0, 0]]).shape == (64, 64, 5)
    with pytest.raises(UserError, match=r"augment\.clahe=0"):
        clahe(dull.astype(np.float32))
