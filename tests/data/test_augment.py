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
from maskloom.data.augment import PRESETS, AugmentSettings, Draw, apply, draw, stack
from maskloom.data.colour import LUMA
from maskloom.errors import UserError
from maskloom.records import IGNORE

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
        assert 0.95 * chosen.rotate <= max(degrees) <= chosen.rotate + 1e-3
        assert len(warped) / len(draws) == pytest.approx(chosen.geometric, abs=0.06)
        shifts = [np.linalg.solve(matrix[:2, :2].astype(float), matrix[:2, 2]) for matrix in warped]
        furthest = np.abs(shifts).max(axis=0)
        limits = chosen.shift * np.array([size[1], size[0]])
        assert (0.95 * limits <= furthest).all() and (furthest <= limits * (1 + 1e-4)).all()
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
    ternaus, third, fourth = (PRESETS[f"carvana_{name}"] for name in ("ternaus", "3rd", "4th"))
    assert (ternaus.hue, ternaus.saturation, ternaus.value, ternaus.colour) == (50, 5, 15, 0.5)
    assert ternaus.one_of_colour and not ternaus.warps and not ternaus.tones
    assert third == AugmentSettings(horizontal_flip=0.5)
    assert (fourth.scale, fourth.geometric, fourth.rotate, fourth.shift) == ((0.95, 1.05), 1.0, 0, 0)
    assert all(PRESETS[name].horizontal_flip == 0.5 for name in PRESETS if name != "none")


def test_one_setting_leaves_the_draws_of_the_others() -> None:
    plain = AugmentSettings(horizontal_flip=0.5, geometric=1.0, rotate=10)
    richer = plain.model_copy(update={"hue": 10.0, "colour": 1.0, "grey": 0.5})
    one, other = (draw(chosen, np.random.default_rng(7), (32, 32)) for chosen in (plain, richer))
    assert np.array_equal(one.matrix, other.matrix) and not np.array_equal(one.colour, other.colour)
    again = draw(richer.model_copy(update={"object_grey": 1.0}), np.random.default_rng(7), (32, 32))
    assert np.array_equal(again.colour, other.colour) and again.object_grey and not other.object_grey


def test_the_draws_of_a_seed_stay_what_they_were() -> None:
    """The formula over the generator's numbers in the order in which they were first taken."""
    chosen = AugmentSettings(horizontal_flip=0.5, geometric=1.0, shift=0.1, colour=1.0, hue=10, tone=1.0, contrast=0.4)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        chance, across = rng.random(10), rng.uniform(-1, 1, 10)
        found = draw(chosen, np.random.default_rng(seed), (100, 200))
        mirrored = -1 if chance[0] < 0.5 else 1
        assert found.matrix == pytest.approx(
            np.array([[mirrored, 0, -mirrored * 20 * across[2]], [0, 1, -10 * across[3]], [0, 0, 1]]), abs=1e-5
        )
        assert found.colour == pytest.approx([10 * across[4], 0, 0, 1, 1 + 0.4 * across[8], 1])


def test_one_of_colour_is_either_shift_or_grey_object() -> None:
    rng = np.random.default_rng(3)
    draws = [draw(PRESETS["carvana_ternaus"], rng, (32, 32)) for _ in range(4000)]
    shifted = np.array([bool(one.colour[:3].any()) for one in draws])
    grey = np.array([one.object_grey for one in draws])
    assert not (shifted & grey).any()
    assert shifted.mean() == pytest.approx(0.25, abs=0.025) and grey.mean() == pytest.approx(0.25, abs=0.025)
    alone = AugmentSettings(object_grey=0.3)
    assert np.mean([draw(alone, rng, (32, 32)).object_grey for _ in range(4000)]) == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("multilabel", [False, True])
def test_a_grey_object_is_grey_and_nothing_else_changes(multilabel: bool) -> None:
    images, labels = batch_of(3)
    labels[:, :5] = IGNORE
    planes = torch.stack([labels == 1, labels == 2], dim=1).to(torch.uint8)
    planes[:, :, :5] = IGNORE
    chosen = [Draw(np.eye(3, dtype=np.float32), NEUTRAL, object_grey=number != 1) for number in range(3)]
    kept = images.clone()
    got, got_labels = apply(images, planes if multilabel else labels, stack(chosen))
    inside = (labels == 1) | (labels == 2)
    inside[1] = False
    luma = sum(weight * images[:, channel].float() for channel, weight in enumerate(LUMA))
    for channel in range(3):
        assert torch.allclose(got[:, channel][inside], luma[inside], atol=1e-3)
        assert torch.equal(got[:, channel][~inside], images[:, channel].float()[~inside])
    assert torch.equal(images, kept) and torch.equal(got_labels, planes if multilabel else labels)


def test_the_grey_object_moves_with_its_mask() -> None:
    images, labels = batch_of(1)
    flip = np.diag([-1.0, 1.0, 1.0]).astype(np.float32)
    got, got_labels = apply(images, labels, stack([Draw(flip, NEUTRAL, object_grey=True)]))
    spread = got.amax(dim=1) - got.amin(dim=1)
    assert (spread[got_labels > 0] == 0).all() and (spread[got_labels == 0] > 0).float().mean() > 0.9
    assert torch.equal(got_labels, labels.flip(2))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_guides_move_like_the_image_and_keep_their_values(dtype: type, channels: int) -> None:
    """The guides repeat the image: with geometry alone they stay equal, with colours only the image changes."""
    images, labels = batch_of(4, dtype=np.uint8)
    values = images[:, :channels].numpy().astype(dtype)
    images = torch.from_numpy(values / np.float32(255) if dtype == np.float32 else values)
    doubled = torch.cat([images, images], dim=1)
    strong = PRESETS["strong"].model_copy(update={"geometric": 1.0, "colour": 1.0, "tone": 1.0, "object_grey": 1.0})
    rng = np.random.default_rng(5)
    draws = [draw(strong, rng, (24, 24)) for _ in range(4)]
    plain = [Draw(one.matrix, NEUTRAL) for one in draws]
    moved, _ = apply(images, labels, stack(plain))
    coloured, _ = apply(images, labels, stack(draws))
    got, got_labels = apply(doubled, labels, stack(draws, channels=channels))
    assert torch.equal(got[:, channels:], moved)
    assert torch.equal(got[:, :channels], coloured) and not torch.equal(coloured, moved)
    assert torch.equal(got_labels, apply(images, labels, stack(plain))[1])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale": [1.2, 0.8]}, "smallest, largest"),
        ({"horizontal_flip": 1.5}, "horizontal_flip"),
        ({"rotat": 5}, "did you mean 'rotate'"),
        ({"one_of_colour": True, "object_grey": 0.5}, "set object_grey=0"),
    ],
)
def test_settings_refuse_what_cannot_be(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(AugmentSettings, values)


def test_presets_are_known_by_whether_they_change_anything() -> None:
    assert [name for name in PRESETS if PRESETS[name].is_identity] == ["none"]
    assert AugmentSettings(rotate=5, geometric=0).is_identity and not AugmentSettings(clahe=0.1).is_identity
    assert not AugmentSettings(object_grey=0.1).is_identity and not AugmentSettings(one_of_colour=True).is_identity
    assert AugmentSettings(one_of_colour=True, colour=0).is_identity
