from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from maskloom.data.mask_coding import MaskCoding
from maskloom.data.sources.base import DataSource
from maskloom.records import Record, Task
from maskloom.stages.data import summary, unlabelled_fingerprint


def record(record_id: str, group: str, size: tuple[int, int] = (512, 640)) -> Record:
    return Record(id=record_id, image=Path(f"{record_id}.png"), size=size, group=group)


def source(*records: Record) -> DataSource:
    task = Task(kind="binary", classes=("car",))
    return DataSource(layout="folder", root=Path(), task=task, coding=MaskCoding(kind="foreground"), records=records)


def test_the_data_in_one_line() -> None:
    cars = [record(f"{car}_{view}", car) for car in "ab" for view in range(2)]
    assert summary(source(*cars)) == "4 images 640×512, in 2 groups; binary: car"
    mixed = replace(source(*cars[::2], record("x", "", (4, 4))), unlabelled=(record("y", ""),))
    expected = "3 images (2 sizes, 4×4 to 640×512), each its own group; 1 more without masks; binary: car"
    assert summary(mixed) == expected


def test_a_replaced_image_of_equal_length_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    os.utime(path, ns=(1, 1))
    opened = replace(source(), unlabelled=(Record(id="a", image=path, size=(1, 1)),))
    before = unlabelled_fingerprint(opened)
    assert unlabelled_fingerprint(opened) == before
    path.write_bytes(b"two")
    os.utime(path, ns=(2, 2))
    assert unlabelled_fingerprint(opened) != before
