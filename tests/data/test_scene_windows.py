"""Windows of scenes are what the whole scene holds there, though it is never read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from maskloom.contests.dstl import open_dstl
from maskloom.contests.dstl.stand_in import write_stand_in
from maskloom.data import dataset as room
from maskloom.data.augment import AugmentSettings
from maskloom.data.band_math import BandSettings
from maskloom.data.dataset import Key, SegmentationDataset
from maskloom.data.input_policy import InputPolicy, cut_image, cut_labels
from maskloom.data.record_images import read_record_image
from maskloom.data.scene_windows import drawn_window, is_scene, read_window
from maskloom.data.sources.base import DataSettings, DataSource
from maskloom.data.truth import read_truth
from maskloom.errors import BadFile
from maskloom.records import IGNORE, Record, Task
from maskloom.windows import Window

BANDS = BandSettings(names="dstl", full_scale=2047, indices=("dstl_ndwi", "dstl_ccci"))
POLICY = InputPolicy(mode="window", size=(48, 48), margin=8, multiple=16, bands=BANDS)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> DataSource:
    folder = tmp_path_factory.mktemp("scenes")
    write_stand_in(folder, images=2, scale=0.03, seed=4)
    return open_dstl(folder, DataSettings())


def first(source: DataSource) -> Record:
    """The first scene, its M file moved as a registration would."""
    record = source.records[0]
    moved = replace(record.bands[0], moved=(1.0, 0.0, 0.4, 0.0, 1.0, -0.7))
    return replace(record, bands=(moved, *record.bands[1:]))


@pytest.mark.parametrize("top_left", [(0, 0), (-8, -8), (30, -3), (70, 74)])
def test_a_window_is_that_of_the_whole(source: DataSource, top_left: tuple[int, int]) -> None:
    record, window = first(source), Window(*top_left, 40, 36)
    image, labels = read_window(record, window, POLICY, source.task)
    assert np.array_equal(image, cut_image(read_record_image(record), window))
    assert np.array_equal(labels, cut_labels(read_truth(record, source.task, source.coding), window))


def samples(source: DataSource, **changes: object) -> SegmentationDataset:
    values = {
        "records": [first(source)], "task": source.task, "coding": source.coding, "policy": POLICY,
        "augment": AugmentSettings(), "seed": 3, "channels": 12,
    }  # fmt: skip
    return SegmentationDataset(**values | changes)  # type: ignore[arg-type]


def test_samples_have_indices_behind_the_bands_and_a_margin_that_counts_nowhere(source: DataSource) -> None:
    item = samples(source)[Key(0, 0, 0)]
    assert (item.image.shape, item.image.dtype, item.channels) == ((48, 48, 14), np.float32, 14)
    assert item.image[..., :12].min() >= 0 and item.image[..., :12].max() <= 1
    assert item.labels.shape == (10, 48, 48)
    counted = (item.labels != IGNORE).all(axis=0)
    assert counted[8:-8, 8:-8].all() and counted.sum() == 32 * 32


def test_the_same_windows_come_from_an_image_that_is_read_whole(
    source: DataSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one place to draw from there is nothing random, and both ways give the same."""
    height, width = source.records[0].size
    policy = InputPolicy(mode="window", size=(112, 112), margin=4, multiple=16, bands=BANDS)
    assert max(height, width) + 8 <= 112
    by_window = samples(source, policy=policy)[Key(0, 0, 0)]
    monkeypatch.setattr(room, "is_scene", lambda *_: False)
    whole = samples(source, policy=policy)[Key(0, 0, 0)]
    assert np.array_equal(by_window.image, whole.image) and np.array_equal(by_window.labels, whole.labels)


def test_a_member_learns_its_classes_alone(source: DataSource) -> None:
    part = Task(kind="multilabel", classes=("roads", "trees"))
    whole, some = samples(source)[Key(0, 0, 0)], samples(source, part=part)[Key(0, 0, 0)]
    assert np.array_equal(some.labels, whole.labels[[2, 4]])


def test_preferred_windows_hold_the_class(source: DataSource) -> None:
    policy = POLICY.model_copy(update={"prefer_class": 1.0})
    part = Task(kind="multilabel", classes=("roads",))
    for seed in range(20):
        window = drawn_window(first(source), policy, source.task, np.random.default_rng(seed), part=part)
        _, labels = read_window(first(source), window, policy, source.task)
        assert (labels[2] == 1).any()


def test_what_needs_the_whole_image_is_read_whole(source: DataSource) -> None:
    record = first(source)
    assert is_scene(record, POLICY)
    assert not is_scene(replace(record, bands=()), POLICY)
    assert not is_scene(record, POLICY.model_copy(update={"scale": 0.5}))
    assert not is_scene(record, InputPolicy(mode="full"))


def test_a_file_of_bands_that_is_gone_is_named(source: DataSource, tmp_path: Path) -> None:
    record = source.records[0]
    lost = replace(record, bands=(replace(record.bands[0], path=tmp_path / "gone_M.tif"),))
    with pytest.raises(BadFile, match="gone_M"):
        read_window(lost, Window(0, 0, 8, 8), POLICY, source.task)
    with pytest.raises(BadFile, match="gone_M"):
        read_record_image(lost)
