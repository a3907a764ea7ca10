"""Windows with a margin: only centres count, border pixels are learnt, and what is seen is what prediction sees."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from coordinate_images import label_of, make_dataset, picture, write_records

from maskloom.data.augment import PRESETS, apply
from maskloom.data.dataset import Key, mask_mean, preferred_window, without
from maskloom.data.input_policy import InputPolicy, centre_of, place, prepare_image
from maskloom.data.loader import batches
from maskloom.data.mask_coding import MaskCoding
from maskloom.records import IGNORE, MaskFile, Record, Size, Task
from maskloom.windows import Padding, Window

MARGIN = 6
CENTRE = 20
WINDOW = InputPolicy(mode="window", size=(32, 32), multiple=8, margin=MARGIN)
BINARY = Task(kind="binary", classes=("thing",))
INSIDE = slice(MARGIN, MARGIN + CENTRE)


def binary_record(folder: Path, mask: np.ndarray) -> Record:
    size: Size = (mask.shape[0], mask.shape[1])
    cv2.imwrite(str(folder / "a.png"), picture(size)[..., ::-1])
    cv2.imwrite(str(folder / "m.png"), mask)
    return Record(id="a", image=folder / "a.png", size=size, truth=MaskFile(path=folder / "m.png"))


@pytest.mark.parametrize("padding", ["reflect", "edge"])
@pytest.mark.parametrize("size", [(90, 120), (20, 20), (13, 70), (5, 3)])
def test_only_the_centre_counts_and_windows_are_those_of_prediction(tmp_path: Path, size: Size, padding: str) -> None:
    policy = WINDOW.model_copy(update={"padding": padding})
    dataset = make_dataset(write_records(tmp_path, [size]), policy)
    prepared, placement = prepare_image(picture(size), policy)
    rows, columns = np.mgrid[: prepared.shape[0], : prepared.shape[1]]
    rows, columns = rows - placement.padding.top, columns - placement.padding.left
    is_content = (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
    labels = np.where(is_content, label_of(columns, rows), IGNORE)
    possible = {
        prepared[top : top + 32, left : left + 32].tobytes(): (top, left)
        for top in range(prepared.shape[0] - 31)
        for left in range(prepared.shape[1] - 31)
    }
    for turn in range(10):
        item = dataset[Key(0, 0, turn)]
        top, left = possible[item.image.tobytes()]
        expected = np.full((32, 32), IGNORE)
        expected[INSIDE, INSIDE] = labels[top : top + 32, left : left + 32][INSIDE, INSIDE]
        assert np.array_equal(item.labels, expected)


def test_an_image_as_large_as_the_centre_is_learnt_to_its_corners(tmp_path: Path) -> None:
    item = make_dataset(write_records(tmp_path, [(CENTRE, CENTRE)]), WINDOW)[Key(0, 0, 0)]
    assert np.array_equal(item.labels[INSIDE, INSIDE], label_of(*np.mgrid[:CENTRE, :CENTRE][::-1]))
    assert (item.labels != IGNORE).sum() == CENTRE**2
    mirrored = np.pad(picture((CENTRE, CENTRE)), [(MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)], mode="reflect")
    assert np.array_equal(item.image, mirrored)


def test_every_pixel_is_learnt_and_none_of_the_padding(tmp_path: Path) -> None:
    dataset = make_dataset(write_records(tmp_path, [(24, 22)]), WINDOW)
    seen = set()
    for turn in range(150):
        item = dataset[Key(0, 0, turn)]
        where = item.labels != IGNORE
        assert where.sum() == CENTRE**2  # the image is larger than a centre, so no centre holds padding
        seen |= set(zip(item.image[where][:, 1].tolist(), item.image[where][:, 0].tolist(), strict=True))
    assert seen == {(row, column) for row in range(24) for column in range(22)}


@pytest.mark.parametrize("corner", [(0, 0), (0, 69), (59, 0), (59, 69), (30, 35)])
def test_a_preferred_pixel_counts_even_in_the_corner(tmp_path: Path, corner: tuple[int, int]) -> None:
    mask = np.zeros((60, 70), np.uint8)
    mask[corner] = 1
    policy = WINDOW.model_copy(update={"prefer_class": 1.0})
    dataset = make_dataset([binary_record(tmp_path, mask)], policy, task=BINARY, coding=MaskCoding())
    assert all((dataset[Key(0, 0, turn)].labels == 1).sum() == 1 for turn in range(8))


def test_the_mean_of_the_mask_is_that_of_the_centre() -> None:
    """A left half of foreground: which left edges give a mixed centre is known, and so is their share."""
    labels = np.zeros((24, 120), np.uint8)
    labels[:, :60] = 1
    padding = Padding(MARGIN, MARGIN, MARGIN, MARGIN)
    edges = np.arange(120 + 2 * MARGIN - 32 + 1)  # in pixels of the padded labels, all as likely
    means = 255 * np.clip(60 - edges, 0, CENTRE) / CENTRE  # the centre begins at column `edge` of the labels
    mixed = (means > 3) & (means < 252)
    q = mixed.mean()
    for keep in (0.0, 0.5):
        rng = np.random.default_rng(0)
        windows = [
            preferred_window(labels, (32, 32), rng, means=(3, 252), keep=keep, padding=padding, margin=MARGIN)
            for _ in range(1000)
        ]
        assert {window.left for window in windows} <= set(edges.tolist())
        share = np.mean([mixed[window.left] for window in windows])
        assert share == pytest.approx(q / (q + (1 - q) * keep), abs=0.05)


def test_preferred_means_hold_in_the_samples(tmp_path: Path) -> None:
    mask = np.zeros((60, 120), np.uint8)
    mask[:, :60] = 1
    policy = InputPolicy.model_validate({**WINDOW.model_dump(), "prefer_mask_mean": (3, 252), "keep_background": 0.0})
    dataset = make_dataset([binary_record(tmp_path, mask)], policy, task=BINARY, coding=MaskCoding())
    assert all(3 < mask_mean(dataset[Key(0, 0, turn)].labels) < 252 for turn in range(20))


def test_flips_and_transposes_leave_the_margin_where_it_is(tmp_path: Path) -> None:
    dataset = make_dataset(write_records(tmp_path, [(40, 50)] * 4), WINDOW, augment=PRESETS["symmetry"])
    (batch,) = batches(dataset, epoch=0, batch_size=4)
    assert batch.draws is not None
    _, labels = apply(batch.images, batch.labels, batch.draws)
    counts = torch.zeros(32, 32, dtype=torch.bool)
    counts[INSIDE, INSIDE] = True
    assert torch.equal(labels != IGNORE, counts.expand(4, -1, -1))


def test_centres_and_padding_are_counted_in_pixels() -> None:
    window, margin = Window(-2, 3, 16, 24), 4
    assert centre_of(window, margin) == Window(2, 7, 8, 16)
    assert centre_of(window, 0) == window
    assert without(Padding(5, 0, 7, 0), window) == Window(-7, -4, 16, 24)


def test_regions_have_margins_of_their_own(tmp_path: Path) -> None:
    records = write_records(tmp_path, [(60, 90)])
    region = Window(10, 20, CENTRE, CENTRE)
    item = make_dataset(records, WINDOW, regions=lambda record: [region])[Key(0, 0, 0)]
    assert place((CENTRE, CENTRE), WINDOW).padded == (32, 32)
    mirrored, _ = prepare_image(picture((60, 90))[region.slices], WINDOW)
    assert np.array_equal(item.image, mirrored)  # as prediction treats a region
    assert (item.labels != IGNORE).sum() == CENTRE**2


def test_without_a_margin_samples_are_windows_of_the_padded_image(tmp_path: Path) -> None:
    policy = InputPolicy(mode="window", size=(32, 32), padding="edge")
    item = make_dataset(write_records(tmp_path, [(20, 25)]), policy)[Key(0, 0, 0)]
    prepared, placement = prepare_image(picture((20, 25)), policy)
    assert np.array_equal(item.image, prepared)
    inside = np.zeros((32, 32), bool)
    inside[placement.padding.interior(placement.padded).slices] = True
    assert np.array_equal(item.labels != IGNORE, inside)
