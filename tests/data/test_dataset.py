"""Samples: windows that show what they should, classes that are preferred, refusals in one line."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from coordinate_images import CODING, TASK, label_of, make_dataset, picture, write_records
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.data.augment import PRESETS, AugmentSettings
from maskloom.data.dataset import Key, choose_window, class_pixel, with_channels
from maskloom.data.input_policy import InputPolicy
from maskloom.data.mask_coding import MaskCoding
from maskloom.errors import BadFile, UserError
from maskloom.records import IGNORE, BadSize, MaskFile, Record, Task

WINDOW = InputPolicy(mode="window", size=(32, 32))
BINARY = Task(kind="binary", classes=("thing",))


def test_windows_are_cut_alike_from_image_and_mask(tmp_path: Path) -> None:
    dataset = make_dataset(write_records(tmp_path, [(90, 120)]), WINDOW)
    corners = set()
    for turn in range(20):
        item = dataset[Key(0, 0, turn)]
        columns, rows = item.image[..., 0].astype(int), item.image[..., 1].astype(int)
        assert item.image.shape == (32, 32, 3)
        assert np.array_equal(item.labels, label_of(columns, rows))
        corners.add((rows[0, 0], columns[0, 0]))
    assert len(corners) > 15


def test_a_small_image_is_padded_and_its_padding_ignored(tmp_path: Path) -> None:
    item = make_dataset(write_records(tmp_path, [(20, 120)]), WINDOW)[Key(0, 0, 0)]
    inside = item.labels != IGNORE
    assert item.image.shape == (32, 32, 3)
    assert inside[6:26].all() and not inside[:6].any() and not inside[26:].any()
    assert np.array_equal(item.image[:6, :, 1], item.image[7:13, :, 1][::-1])


def test_one_key_is_one_sample_and_each_part_of_it_counts(tmp_path: Path) -> None:
    records = write_records(tmp_path, [(90, 120), (90, 120)])
    always = PRESETS["strong"].model_copy(update={"geometric": 1.0})
    dataset = make_dataset(records, WINDOW, augment=always)
    keys = [Key(0, 0, 0), Key(1, 0, 0), Key(0, 1, 0), Key(0, 0, 1)]
    items = {key: dataset[key] for key in keys}
    again = make_dataset(records, WINDOW, augment=always)
    for key in reversed(keys):
        assert np.array_equal(again[key].image, items[key].image)
        assert np.array_equal(again[key].draw.matrix, items[key].draw.matrix)
    assert len({item.draw.matrix.tobytes() for item in items.values()}) == 4
    assert len({item.image.tobytes() for item in items.values()}) == 4
    other = make_dataset(records, WINDOW, augment=always, seed=4)
    assert not np.array_equal(other[keys[0]].draw.matrix, items[keys[0]].draw.matrix)


@given(st.integers(32, 80), st.integers(32, 80), st.integers(0, 79), st.integers(0, 79), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_windows_lie_inside_and_hold_their_centre(height: int, width: int, row: int, column: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    centre = (min(row, height - 1), min(column, width - 1))
    for wanted in (None, centre):
        window = choose_window((height, width), (32, 32), rng, centre=wanted)
        assert window.clipped((height, width)) == window
    assert window.top <= centre[0] < window.top + 32 and window.left <= centre[1] < window.left + 32


def test_a_rare_class_is_found_when_preferred(tmp_path: Path) -> None:
    mask = np.zeros((200, 200), np.uint8)
    mask[150:153, 20:24] = 1
    cv2.imwrite(str(tmp_path / "a.png"), picture((200, 200)))
    cv2.imwrite(str(tmp_path / "m.png"), mask)
    record = Record(id="a", image=tmp_path / "a.png", size=(200, 200), truth=MaskFile(path=tmp_path / "m.png"))
    shares = {}
    for share in (0.0, 0.5, 1.0):
        policy = WINDOW.model_copy(update={"prefer_class": share})
        dataset = make_dataset([record], policy, task=BINARY, coding=MaskCoding())
        shares[share] = np.mean([(dataset[Key(0, 0, turn)].labels == 1).any() for turn in range(60)])
    assert shares[0.0] < 0.2 < shares[0.5] < 0.85 and shares[1.0] == 1.0


def test_preferred_pixels_are_uniform_over_classes_present() -> None:
    labels = np.zeros((10, 12), np.uint8)
    labels[2, 3:5] = 2
    labels[5] = IGNORE
    rng = np.random.default_rng(0)
    found = [class_pixel(labels, TASK, rng) for _ in range(400)]
    values = [labels[pixel] for pixel in found if pixel]
    assert set(values) == {0, 2} and np.mean(np.array(values) == 2) == pytest.approx(0.5, abs=0.1)
    assert {pixel for pixel in found if labels[pixel] == 2} == {(2, 3), (2, 4)}
    assert class_pixel(np.where(labels == 2, 0, labels), BINARY, rng) is None
    planes = np.zeros((2, 10, 12), np.uint8)
    planes[1, 9, 11] = 1
    task = Task(kind="multilabel", classes=("a", "b"))
    assert class_pixel(planes, task, rng) == (9, 11)
    assert class_pixel(planes[:, :5], task, rng) is None


def test_resized_images_keep_masks_in_place(tmp_path: Path) -> None:
    item = make_dataset(write_records(tmp_path, [(90, 120)]), InputPolicy(mode="resize", size=(30, 40)))[Key(0, 0, 0)]
    centres = np.mgrid[1:90:3, 1:120:3]
    assert np.array_equal(item.labels, label_of(centres[1], centres[0]))
    assert np.abs(item.image[..., 0].astype(int) - centres[1]).max() <= 1


def test_channels_are_matched_or_refused() -> None:
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    assert np.array_equal(with_channels(grey, 3, Path("x")), np.concatenate([grey] * 3, axis=2))
    assert with_channels(grey, 1, Path("x")) is grey
    remedy = r"--set 'members\.\*\.network\.channels=3'"
    with pytest.raises(BadFile, match=rf"x: expected an image of 1 channel.* found 3.*{remedy}"):
        with_channels(np.zeros((2, 2, 3), np.uint8), 1, Path("x"))


def test_transposing_needs_squares(tmp_path: Path) -> None:
    records = write_records(tmp_path, [(40, 64)])
    symmetry = PRESETS["symmetry"]
    assert make_dataset(records, WINDOW, augment=symmetry)[Key(0, 0, 0)].draw is not None
    for policy in (InputPolicy(multiple=8), InputPolicy(mode="window", size=(32, 64))):
        with pytest.raises(UserError, match=r"square inputs, found 64×.*augment\.transpose=0"):
            make_dataset(records, policy, augment=symmetry)


def test_records_without_truth_or_none_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a mask to learn from"):
        make_dataset([Record(id="a", image=tmp_path / "a.png", size=(4, 4))], WINDOW)
    with pytest.raises(UserError, match="at least one image"):
        make_dataset([], WINDOW)


def test_a_mask_of_another_size_is_named(tmp_path: Path) -> None:
    (record,) = write_records(tmp_path, [(40, 50)])
    cv2.imwrite(str(tmp_path / "0_mask.png"), np.zeros((40, 51), np.uint8))
    with pytest.raises(BadSize, match="0: the mask is 51×40"):
        make_dataset([record], WINDOW)[Key(0, 0, 0)]


def test_floats_out_of_range_cannot_be_shifted_in_colour(tmp_path: Path) -> None:
    import tifffile

    tifffile.imwrite(tmp_path / "a.tif", np.full((32, 32, 3), 7.0, np.float32), photometric="rgb")
    cv2.imwrite(str(tmp_path / "m.png"), np.zeros((32, 32), np.uint8))
    record = Record(id="a", image=tmp_path / "a.tif", size=(32, 32), truth=MaskFile(path=tmp_path / "m.png"))
    dataset = make_dataset([record], WINDOW, augment=AugmentSettings(colour=1.0, hue=10))
    with pytest.raises(BadFile, match=r"found 7…7; set augment\.colour=0"):
        dataset[Key(0, 0, 0)]
    item = make_dataset([record], WINDOW, augment=PRESETS["light"], coding=CODING)[Key(0, 0, 0)]
    assert item.image.dtype == np.float32
