"""Parts, preferred windows, guides and regions: image, labels and guides stay together, and one key is one sample."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from coordinate_images import label_of, make_dataset, picture, write_records

from maskloom.data.augment import PRESETS, AugmentSettings, apply
from maskloom.data.clahe import clahe
from maskloom.data.dataset import MAX_DRAWS, Key, mask_mean, preferred_window, with_guides
from maskloom.data.input_policy import InputPolicy, part_windows, prepare_image
from maskloom.data.loader import batches
from maskloom.data.mask_coding import MaskCoding
from maskloom.errors import BadFile, UserError
from maskloom.records import IGNORE, MaskFile, Record, Size, Task
from maskloom.windows import Window

FULL = InputPolicy(multiple=8)
WINDOW = InputPolicy(mode="window", size=(32, 32))
HALVES = InputPolicy(mode="parts", parts=(1, 2), multiple=8)
BINARY = Task(kind="binary", classes=("thing",))


def own_places(record: Record) -> np.ndarray:
    """Guides that repeat the picture's columns and rows."""
    return picture(record.size)[..., :2]


def corners(record: Record) -> list[Window]:
    """A window inside, one beyond the upper left corner, one beyond the lower right."""
    height, width = record.size
    return [Window(5, 7, 24, 32), Window(-6, -4, 24, 32), Window(height - 20, width - 10, 24, 32)]


def binary_record(folder: Path, mask: np.ndarray) -> Record:
    size: Size = (mask.shape[0], mask.shape[1])
    cv2.imwrite(str(folder / "a.png"), picture(size)[..., ::-1])
    cv2.imwrite(str(folder / "m.png"), mask)
    return Record(id="a", image=folder / "a.png", size=size, truth=MaskFile(path=folder / "m.png"))


def test_a_sample_is_one_of_the_parts(tmp_path: Path) -> None:
    dataset = make_dataset(write_records(tmp_path, [(40, 70)]), HALVES)
    starts = Counter()
    for turn in range(40):
        item = dataset[Key(0, 0, turn)]
        inside = item.labels != IGNORE
        columns, rows = item.image[..., 0].astype(int), item.image[..., 1].astype(int)
        assert item.image.shape == (40, 40, 3)
        assert np.array_equal(item.labels[inside], label_of(columns, rows)[inside])
        assert inside.sum() == 35 * 40  # 70 columns and 5 of padding on either side
        starts[int(columns[inside].min())] += 1
    assert set(starts) == {0, 35} and min(starts.values()) > 8


def test_parts_see_in_training_what_they_see_in_prediction(tmp_path: Path) -> None:
    policy = InputPolicy(mode="parts", parts=(2, 2), multiple=8, scale=0.5, clahe=True, overlap=0.2)
    (record,) = write_records(tmp_path, [(60, 90)])
    prepared, _ = prepare_image(picture((60, 90)), policy)
    dataset = make_dataset([record], policy)
    parts = [prepared[window.slices] for window in part_windows((60, 90), policy)]
    drawn = [dataset[Key(0, 0, turn)].image for turn in range(40)]
    seen = [[number for number, part in enumerate(parts) if np.array_equal(part, image)] for image in drawn]
    assert all(len(found) == 1 for found in seen) and {found[0] for found in seen} == {0, 1, 2, 3}


@pytest.mark.parametrize("mode", [{}, {"mode": "resize", "size": (30, 45)}, {"mode": "window", "size": (32, 32)}])
def test_clahe_is_the_same_in_training_and_prediction(tmp_path: Path, mode: dict[str, object]) -> None:
    records = write_records(tmp_path, [(64, 96)])
    plain, equalised = (InputPolicy.model_validate({"clahe": on, **mode}) for on in (False, True))
    item = make_dataset(records, equalised)[Key(0, 0, 0)]
    prepared, placement = prepare_image(picture((64, 96)), equalised)
    if equalised.mode == "window":
        rows, columns = make_dataset(records, plain)[Key(0, 0, 0)].image[0, 0, 1::-1]
        expected = prepared[rows : rows + 32, columns : columns + 32]
    else:
        expected = prepared[placement.padding.interior(placement.padded).slices]
    assert np.array_equal(item.image, expected)
    assert np.array_equal(item.labels, make_dataset(records, plain)[Key(0, 0, 0)].labels)


@pytest.mark.parametrize("choice", [{"policy": {"clahe": True}}, {"augment": {"clahe": 1.0}}])
def test_clahe_of_floats_is_refused_by_file(tmp_path: Path, choice: dict[str, dict[str, object]]) -> None:
    import tifffile

    tifffile.imwrite(tmp_path / "a.tif", np.full((32, 32, 3), 0.5, np.float32), photometric="rgb")
    cv2.imwrite(str(tmp_path / "m.png"), np.zeros((32, 32), np.uint8))
    record = Record(id="a", image=tmp_path / "a.tif", size=(32, 32), truth=MaskFile(path=tmp_path / "m.png"))
    policy = InputPolicy.model_validate(choice.get("policy", {}))
    dataset = make_dataset([record], policy, augment=AugmentSettings.model_validate(choice.get("augment", {})))
    with pytest.raises(BadFile, match=r"a\.tif: CLAHE expects 8- or 16-bit images, found float32"):
        dataset[Key(0, 0, 0)]


def test_the_mean_of_a_mask() -> None:
    labels = np.array([[0, 1, 1, 4], [IGNORE, IGNORE, 0, 0]], np.uint8)
    assert mask_mean(labels) == 255 * 3 / 6
    assert mask_mean(np.full((2, 2), IGNORE, np.uint8)) == 0
    planes = np.array([[[0, 1, 0, IGNORE]], [[0, 1, 1, IGNORE]]], np.uint8)
    assert mask_mean(planes) == 255 * 2 / 3


def test_mixed_windows_are_preferred_and_others_kept_as_often_as_published(tmp_path: Path) -> None:
    """A left half of foreground: windows are mixed with a known probability q, so their share is q / (q + (1 - q)k)."""
    labels = np.zeros((32, 132), np.uint8)
    labels[:, :66] = 1
    drawn = np.arange(101)  # the windows' left edges, all as likely
    means = 255 * np.clip(66 - drawn, 0, 32) / 32
    mixed = (means > 3) & (means < 252)
    q = mixed.mean()
    for keep in (0.0, 0.7, 1.0):
        rng = np.random.default_rng(0)
        windows = [preferred_window(labels, (32, 32), rng, means=(3, 252), keep=keep) for _ in range(1500)]
        share = np.mean([mixed[window.left] for window in windows])
        assert share == pytest.approx(q / (q + (1 - q) * keep), abs=0.04)
    record = binary_record(tmp_path, labels)
    policy = InputPolicy(mode="window", size=(32, 32), prefer_mask_mean=(3, 252), keep_background=0)
    dataset = make_dataset([record], policy, task=BINARY, coding=MaskCoding())
    assert all(3 < mask_mean(dataset[Key(0, 0, turn)].labels) < 252 for turn in range(30))


def test_where_no_window_is_mixed_the_search_ends() -> None:
    class Counting(np.random.Generator):
        asked = 0

        def random(self, *args: object, **options: object) -> object:  # type: ignore[override]
            Counting.asked += 1
            return super().random(*args, **options)  # type: ignore[call-overload]

    rng = Counting(np.random.PCG64(0))
    window = preferred_window(np.zeros((64, 64), np.uint8), (32, 32), rng, means=(3, 252), keep=0)
    assert window.clipped((64, 64)) == window and Counting.asked == MAX_DRAWS == 50


def test_guides_take_the_range_of_the_image() -> None:
    guides = np.array([[[0, 255], [10, 128]]], np.uint8)
    for dtype, factor in ((np.uint8, 1), (np.uint16, 257), (np.float32, 1 / 255)):
        image = np.ones((1, 2, 3), dtype)
        joined = with_guides(image, guides)
        assert joined.dtype == dtype and np.array_equal(joined[..., :3], image)
        assert joined[..., 3:] == pytest.approx(guides.astype(float) * factor)
    assert with_guides(np.ones((1, 2, 3), np.uint16), guides)[0, 0, 4] == 65535
    for wrong in (guides[:, :1], guides[..., 0], guides.astype(np.float32)):
        with pytest.raises(ValueError, match="guides as uint8 1×2×K"):
            with_guides(np.ones((1, 2, 3), np.uint8), wrong)


@pytest.mark.parametrize("policy", [FULL, WINDOW, HALVES, InputPolicy(mode="resize", size=(20, 30), multiple=8)])
@pytest.mark.parametrize("regions", [None, corners])
def test_guides_are_cut_and_moved_like_the_image(tmp_path: Path, policy: InputPolicy, regions: object) -> None:
    augment = PRESETS["strong"].model_copy(update={"geometric": 1.0, "colour": 1.0, "tone": 1.0})
    records = write_records(tmp_path, [(60, 90)] * 2)
    plain, coloured = (
        make_dataset(records, policy, augment=settings, guides=own_places, regions=regions)
        for settings in (PRESETS["carvana_0"].model_copy(update={"geometric": 1.0}), augment)
    )
    for dataset in (plain, coloured):
        (batch,) = batches(dataset, epoch=2, batch_size=2)
        assert batch.images.shape[1] == 5 and batch.draws is not None
        assert torch.equal(batch.images[:, 3:], batch.images[:, :2])
        moved, labels = apply(batch.images, batch.labels, batch.draws)
        if dataset is plain:
            assert torch.equal(moved[:, 3:], moved[:, :2])
        else:
            assert not torch.equal(moved[:, 3:], moved[:, :2])
        if policy.mode == "resize":
            continue
        columns, rows = moved[:, 3], moved[:, 4]
        decided = ((columns - columns.round()).abs() < 0.49) & ((rows - rows.round()).abs() < 0.49) & (labels != IGNORE)
        assert decided.sum() > 500
        assert torch.equal(labels[decided], label_of(columns.round(), rows.round()).to(torch.uint8)[decided])


def test_a_sample_is_cut_from_one_of_the_regions(tmp_path: Path) -> None:
    dataset = make_dataset(write_records(tmp_path, [(60, 90)]), FULL, regions=corners)
    seen = Counter()
    for turn in range(60):
        item = dataset[Key(0, 0, turn)]
        inside = item.labels != IGNORE
        columns, rows = item.image[..., 0].astype(int), item.image[..., 1].astype(int)
        assert item.image.shape == (24, 32, 3)
        assert np.array_equal(item.labels[inside], label_of(columns, rows)[inside])
        seen[int(rows[inside].min()), int(columns[inside].min()), int(inside.sum())] += 1
    assert set(seen) == {(5, 7, 24 * 32), (0, 0, 18 * 28), (40, 80, 20 * 10)} and min(seen.values()) > 8


def test_a_region_is_treated_as_an_image(tmp_path: Path) -> None:
    records = write_records(tmp_path, [(60, 90)])
    region = Window(10, 20, 40, 48)
    policy = InputPolicy(mode="resize", size=(20, 24), clahe=True, multiple=8)
    item = make_dataset(records, policy, regions=lambda record: [region])[Key(0, 0, 0)]
    cut = picture((60, 90))[region.slices]
    expected, placement = prepare_image(cut, policy)
    assert np.array_equal(item.image, expected[placement.padding.interior(placement.padded).slices])
    assert not np.array_equal(item.image, prepare_image(clahe(picture((60, 90)))[region.slices], policy)[0])
    whole = make_dataset(records, FULL, regions=lambda record: [])[Key(0, 0, 0)]
    assert np.array_equal(whole.image, picture((60, 90)))


def test_a_region_decides_whether_an_image_can_be_transposed(tmp_path: Path) -> None:
    records = write_records(tmp_path, [(60, 90)])
    square = make_dataset(records, FULL, augment=PRESETS["symmetry"], regions=lambda record: [Window(0, 0, 32, 32)])
    assert square[Key(0, 0, 0)].draw is not None
    oblong = make_dataset(records, FULL, augment=PRESETS["symmetry"], regions=corners)
    with pytest.raises(UserError, match="square inputs, found 32×24"):
        oblong[Key(0, 0, 0)]
    with pytest.raises(UserError, match="square inputs, found 48×64"):
        make_dataset(records, HALVES, augment=PRESETS["symmetry"])


def test_one_key_is_one_sample_whatever_the_workers(tmp_path: Path) -> None:
    records = write_records(tmp_path, [(60, 90)] * 3)
    policy = InputPolicy(mode="window", size=(16, 16), multiple=8, prefer_mask_mean=(3, 252), clahe=True)
    augment = PRESETS["strong"].model_copy(update={"one_of_colour": True})
    dataset = make_dataset(records, policy, augment=augment, guides=own_places, regions=corners)
    plain = list(batches(dataset, epoch=1, batch_size=3, images_per_epoch=12))
    for workers, start in ((2, 0), (1, 2)):
        again = list(batches(dataset, epoch=1, batch_size=3, images_per_epoch=12, num_workers=workers, start=start))
        for one, other in zip(again, plain[start:], strict=True):
            assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
            assert torch.equal(one.draws.object_greys, other.draws.object_greys) and one.draws.channels == 3
    assert len({batch.images.numpy().tobytes() for batch in plain}) == 4
    other_seed = make_dataset(records, policy, augment=augment, guides=own_places, regions=corners, seed=4)
    assert not torch.equal(next(batches(other_seed, epoch=1, batch_size=3)).images, plain[0].images)
