from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from maskloom.data import statistics
from maskloom.data.duplicates import exact_duplicates, near_duplicates
from maskloom.data.image_io import write_png
from maskloom.data.mask_coding import MaskCoding
from maskloom.data.sources.base import DataSource
from maskloom.data.statistics import Survey, channel_statistics, count_pixels, survey
from maskloom.errors import UserError
from maskloom.records import IGNORE, MaskFile, Record, Task

BINARY = Task(kind="binary", classes=("cell",))


def make_source(root: Path, count: int = 4, *, channels: int = 3, dtype: str = "uint8") -> DataSource:
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    records = []
    for index in range(count):
        size = (20 + index, 30)
        image, mask = root / "images" / f"{index}.png", root / "masks" / f"{index}.png"
        write_png(image, rng.integers(0, 256, (*size, channels)).astype(dtype))
        pixels = np.zeros(size, np.uint8)
        pixels[: 2 * index] = 255
        write_png(mask, pixels)
        records.append(Record(id=str(index), image=image, size=size, truth=MaskFile(path=mask), group=f"g{index // 2}"))
    return DataSource(layout="folder", root=root, task=BINARY, coding=MaskCoding(), records=tuple(records))


def test_survey_counts_what_is_there(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    heard: list[tuple[int, int]] = []
    found = survey(source, workers=2, on_progress=lambda done, total: heard.append((done, total)))
    assert heard == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [facts.id for facts in found.records] == ["0", "1", "2", "3"]
    assert [facts.group for facts in found.records] == ["g0", "g0", "g1", "g1"]
    assert found.areas() == {"0": 0.0, "1": 60.0, "2": 120.0, "3": 180.0}
    assert found.class_pixels == (360,)
    assert found.valid_pixels == 30 * (20 + 21 + 22 + 23)
    assert found.sizes == {(20, 30): 1, (21, 30): 1, (22, 30): 1, (23, 30): 1}
    assert (found.dtype, found.num_channels, found.problems, found.bad_ids) == ("uint8", 3, (), frozenset())


def test_channel_moments_are_those_of_all_pixels_together(tmp_path: Path) -> None:
    from maskloom.data.image_io import read_image

    source = make_source(tmp_path, channels=3, dtype="uint16")
    found = survey(source)
    pixels = np.concatenate([read_image(record.image).reshape(-1, 3) for record in source.records]).astype(np.float64)
    np.testing.assert_allclose(found.channel_mean, pixels.mean(axis=0))
    np.testing.assert_allclose(found.channel_std, pixels.std(axis=0))
    assert found.dtype == "uint16"


def test_survey_is_the_same_for_any_number_of_workers_and_after_json(tmp_path: Path) -> None:
    source = make_source(tmp_path, 6)
    one, many = survey(source, workers=1), survey(source, workers=5)
    assert one.to_json() == many.to_json()
    again = Survey.from_json(json.loads(json.dumps(one.to_json())), source.root)
    assert again.to_json() == one.to_json()
    assert np.array_equal(again.records[3].thumbnail, one.records[3].thumbnail)


def test_bad_files_are_collected_with_paths_below_the_data(tmp_path: Path) -> None:
    source = make_source(tmp_path / "data")
    source.records[0].image.write_text("no picture")
    write_png(tmp_path / "data" / "masks" / "2.png", np.zeros((5, 5), np.uint8))
    found = survey(source)
    assert [facts.id for facts in found.records] == ["1", "3"]
    assert found.bad_ids == {"0", "2"}
    assert found.problems[0].path == source.records[0].image
    assert found.problems[1].path == tmp_path / "data" / "masks" / "2.png"
    assert "5×5" in found.problems[1].reason
    values = found.to_json()
    assert [row["path"] for row in values["bad"]] == ["images/0.png", "masks/2.png"]
    assert Survey.from_json(values, Path("/moved")).problems[0].path == Path("/moved/images/0.png")


def test_unlabelled_images_on_request(tmp_path: Path) -> None:
    from dataclasses import replace

    source = make_source(tmp_path)
    test = replace(source.records[3], truth=None)
    source = replace(source, records=source.records[:3], unlabelled=(test,))
    assert len(survey(source).records) == 3
    found = survey(source, unlabelled=True)
    assert found.records[3].class_pixels == ()
    assert set(found.areas()) == {"0", "1", "2"}


def test_duplicates_are_read_from_a_survey(tmp_path: Path) -> None:
    source = make_source(tmp_path, 5)
    source.records[3].image.write_bytes(source.records[0].image.read_bytes())
    records = (*source.records[:3], Record(**{**_values(source.records[3]), "size": (20, 30)}), source.records[4])
    write_png(tmp_path / "masks" / "3.png", np.zeros((20, 30), np.uint8))
    from dataclasses import replace

    found = survey(replace(source, records=records))
    assert exact_duplicates(found) == [("0", "3")]
    assert near_duplicates(found) == []  # exact copies are told once, not again as near ones


def _values(record: Record) -> dict[str, object]:
    return {name: getattr(record, name) for name in Record.__slots__}


def test_defects_of_ours_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(statistics, "examine", broken)
    with pytest.raises(ZeroDivisionError):
        survey(make_source(tmp_path), workers=2)


def test_few_records_are_under_way_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, lock, running, most = make_source(tmp_path, 12), threading.Lock(), 0, 0
    examine = statistics.examine

    def counted(record: Record, data: DataSource) -> statistics.RecordFacts:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        try:
            return examine(record, data)
        finally:
            with lock:
                running -= 1

    monkeypatch.setattr(statistics, "examine", counted)
    survey(source, workers=3)
    assert most <= 3


def test_count_pixels_of_each_task() -> None:
    labels = np.array([[0, 1, 2], [2, 2, IGNORE]], np.uint8)
    assert count_pixels(np.array([[0, 1, 1, IGNORE]], np.uint8), BINARY) == ((2,), 1, 3)
    assert count_pixels(labels, Task(kind="multiclass", classes=("a", "b", "c"))) == ((1, 1, 3), 1, 5)
    maps = np.array([[[1, 1]], [[1, IGNORE]]], np.uint8)
    assert count_pixels(maps, Task(kind="multilabel", classes=("a", "b"))) == ((2, 1), 1, 1)


@pytest.mark.parametrize("channels", [1, 3, 4, 5, 9])
def test_channel_statistics_of_many_channels(channels: int) -> None:
    image = np.random.default_rng(0).random((7, 9, channels)).astype(np.float32)
    mean, std = channel_statistics(image)
    np.testing.assert_allclose(mean, image.mean(axis=(0, 1), dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(std, image.std(axis=(0, 1), dtype=np.float64), rtol=1e-5)


def test_foreign_json_is_refused() -> None:
    with pytest.raises(UserError, match="expected a stored survey"):
        Survey.from_json({"task": {}})


def test_empty_survey_has_empty_statistics() -> None:
    found = Survey(task=BINARY, records=())
    assert (found.channel_mean, found.channel_std, found.class_pixels, found.valid_pixels) == ((), (), (0,), 0)
    assert (near_duplicates(found), exact_duplicates(found)) == ([], [])
