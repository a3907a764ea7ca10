"""Batches: the same for any number of workers and after any restart; errors of workers in one line."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
import torch
from coordinate_images import label_of, make_dataset, write_records
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.data.augment import PRESETS, apply
from maskloom.data.dataset import SegmentationDataset
from maskloom.data.input_policy import InputPolicy, place
from maskloom.data.loader import Batch, batches, epoch_keys, num_batches
from maskloom.errors import BadFile, UserError
from maskloom.records import IGNORE, BadSize, MaskFile, Record

WINDOW = InputPolicy(mode="window", size=(32, 32), prefer_class=0.5)


@pytest.fixture
def dataset(tmp_path: Path) -> SegmentationDataset:
    sizes = [(40 + 3 * number, 60 - number) for number in range(7)]
    return make_dataset(write_records(tmp_path, sizes), WINDOW, augment=PRESETS["strong"])


def same(one: Batch, other: Batch) -> bool:
    assert one.draws is not None and other.draws is not None
    return one.ids == other.ids and all(
        torch.equal(a, b)
        for a, b in (
            (one.images, other.images),
            (one.labels, other.labels),
            (one.draws.matrices, other.draws.matrices),
            (one.draws.colours, other.draws.colours),
            (one.draws.object_greys, other.draws.object_greys),
        )
    )


def test_batches_do_not_depend_on_workers_nor_on_where_they_start(dataset: SegmentationDataset) -> None:
    plain = list(batches(dataset, epoch=1, batch_size=3, images_per_epoch=16))
    assert len(plain) == num_batches(dataset, batch_size=3, images_per_epoch=16) == 5
    for workers, start in ((1, 0), (2, 0), (0, 2), (2, 3), (0, 5), (2, 5)):
        got = list(batches(dataset, epoch=1, batch_size=3, images_per_epoch=16, num_workers=workers, start=start))
        assert len(got) == 5 - start
        assert all(same(one, other) for one, other in zip(got, plain[start:], strict=True))


def test_epochs_differ_and_nothing_global_decides(dataset: SegmentationDataset) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    first = next(batches(dataset, epoch=0, batch_size=4))
    before = torch.random.get_rng_state()
    other = next(batches(dataset, epoch=1, batch_size=4))
    again = next(batches(dataset, epoch=0, batch_size=4, num_workers=1))
    assert same(first, again) and not same(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_every_record_comes_once_before_any_comes_again(total: int, count: int, epoch: int) -> None:
    records = [Record(id=str(n), image=Path("x"), size=(9, 9), truth=MaskFile(path=Path("m"))) for n in range(count)]
    keys = epoch_keys(make_dataset(records, InputPolicy()), epoch=epoch, images_per_epoch=total)
    assert len(keys) == len(set(keys)) == total
    for turn in range(-(-total // count)):
        part = keys[turn * count : (turn + 1) * count]
        assert {key.draw for key in part} == {turn}
        assert len({key.record for key in part}) == len(part)


def test_a_short_last_batch_is_dropped_unless_it_is_the_only_one(dataset: SegmentationDataset) -> None:
    assert [len(batch.ids) for batch in batches(dataset, epoch=0, batch_size=3)] == [3, 3]
    assert [len(batch.ids) for batch in batches(dataset, epoch=0, batch_size=9)] == [7]
    in_order = [batch.ids for batch in batches(dataset, epoch=0, batch_size=3, shuffle=False)]
    assert in_order == [["0", "1", "2"], ["3", "4", "5"]]
    with pytest.raises(UserError, match="batch_size"):
        next(batches(dataset, epoch=0, batch_size=0))


def test_whole_images_share_the_largest_size_and_padding_counts_nowhere(tmp_path: Path) -> None:
    sizes = [(20, 40), (50, 33), (33, 33)]
    dataset = make_dataset(write_records(tmp_path, sizes), InputPolicy(multiple=8), augment=PRESETS["none"])
    (batch,) = batches(dataset, epoch=0, batch_size=3, shuffle=False)
    assert batch.draws is None and batch.images.shape == (3, 3, 56, 40) and batch.images.dtype == torch.uint8
    for size, image, labels in zip(sizes, batch.images, batch.labels, strict=True):
        counted = labels != IGNORE
        assert counted.sum() == size[0] * size[1]
        columns, rows = image[0][counted].int(), image[1][counted].int()
        assert torch.equal(labels[counted].int(), label_of(columns, rows))
        assert columns.max() == size[1] - 1 and rows.max() == size[0] - 1
        assert image[0].max() == size[1] - 1  # padding repeats what is there


@pytest.mark.parametrize(("at", "left"), [("both", 1), ("end", 0)])
def test_photos_lie_in_a_batch_as_in_prediction(tmp_path: Path, at: str, left: int) -> None:
    (record,) = write_records(tmp_path, [(1280, 1918)])
    policy = InputPolicy.model_validate({"padding_at": at})
    (batch,) = batches(make_dataset([record], policy, augment=PRESETS["none"]), epoch=0, batch_size=1)
    assert batch.images.shape == (1, 3, 1280, 1920)
    counted = (batch.labels[0] != IGNORE).all(0).nonzero()
    padding = place(record.size, policy).padding
    assert (int(counted[0]), 1919 - int(counted[-1])) == (left, 2 - left) == (padding.left, padding.right)


def test_augmented_batches_keep_images_and_labels_together(tmp_path: Path) -> None:
    dataset = make_dataset(write_records(tmp_path, [(60, 60)] * 4), WINDOW, augment=PRESETS["carvana_0"])
    (batch,) = batches(dataset, epoch=0, batch_size=4)
    assert batch.draws is not None
    images, labels = apply(batch.images, batch.labels, batch.draws)
    columns, rows = images[:, 0], images[:, 1]
    decided = ((columns - columns.round()).abs() < 0.49) & ((rows - rows.round()).abs() < 0.49)
    assert torch.equal(labels[decided], label_of(columns.round(), rows.round()).to(torch.uint8)[decided])


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_the_data_arrive_as_they_are(tmp_path: Path, workers: int) -> None:
    records = write_records(tmp_path, [(40, 40)] * 3)
    (tmp_path / "1.png").write_text("no image")
    dataset = make_dataset(records, WINDOW)
    with pytest.raises(BadFile) as caught:
        list(batches(dataset, epoch=0, batch_size=1, num_workers=workers))
    assert type(caught.value) is BadFile and caught.value.path == tmp_path / "1.png"
    assert "\n" not in str(caught.value)
    cv2.imwrite(str(tmp_path / "2_mask.png"), np.zeros((3, 3), np.uint8))
    with pytest.raises(BadSize, match="the mask is 3×3"):
        list(batches(make_dataset(records[2:], WINDOW), epoch=0, batch_size=1, num_workers=workers))


def test_images_of_different_depth_do_not_mix(tmp_path: Path) -> None:
    records = write_records(tmp_path, [(40, 40)] * 2)
    cv2.imwrite(str(tmp_path / "1.png"), np.zeros((40, 40, 3), np.uint16))
    with pytest.raises(BadFile, match=r"1\.png: expected uint8 values as in .*0\.png, found uint16"):
        next(batches(make_dataset(records, WINDOW), epoch=0, batch_size=2, shuffle=False))


def test_a_killed_worker_is_told_and_does_not_hang(dataset: SegmentationDataset) -> None:
    before = {child.pid for child in psutil.Process().children()}
    stream = batches(dataset, epoch=0, batch_size=1, num_workers=2, images_per_epoch=400)
    next(stream)
    workers = {child.pid for child in psutil.Process().children()} - before
    assert len(workers) == 2
    started = time.monotonic()
    os.kill(min(workers), signal.SIGKILL)
    with pytest.raises(UserError, match="loader processes to live, found one killed"):
        list(stream)
    assert time.monotonic() - started < 30


def test_workers_end_with_the_stream(dataset: SegmentationDataset) -> None:
    before = {child.pid for child in psutil.Process().children()}
    stream = batches(dataset, epoch=0, batch_size=1, num_workers=2, images_per_epoch=400)
    next(stream)
    stream.close()
    assert {child.pid for child in psutil.Process().children()} <= before
