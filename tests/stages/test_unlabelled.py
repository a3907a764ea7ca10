from __future__ import annotations

import os
from pathlib import Path

from maskloom.data.mask_coding import MaskCoding
from maskloom.data.sources.base import DataSource
from maskloom.records import Record, Task
from maskloom.stages.unlabelled import unlabelled_fingerprint


def test_a_replaced_image_of_equal_length_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    os.utime(path, ns=(1, 1))
    opened = DataSource(
        layout="folder", root=Path(), task=Task(kind="binary", classes=("car",)),
        coding=MaskCoding(kind="foreground"), records=(), unlabelled=(Record(id="a", image=path, size=(1, 1)),),
    )  # fmt: skip
    before = unlabelled_fingerprint(opened)
    assert unlabelled_fingerprint(opened) == before
    path.write_bytes(b"two")
    os.utime(path, ns=(2, 2))
    assert unlabelled_fingerprint(opened) != before
