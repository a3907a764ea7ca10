"""The stage ``submit``: the contest's table holds what the sample asks for, in run lengths that the images can have."""

from __future__ import annotations

import gzip
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from maskloom.contests.carvana.submission import SUBMISSION
from maskloom.data.mask_coding import MaskCoding
from maskloom.data.sources.base import DataSource
from maskloom.errors import BadFile
from maskloom.progress import Silent
from maskloom.records import Record, Task
from maskloom.run_directory import RunDirectory
from maskloom.stages.prediction import write_submission


def surroundings(folder: Path, runs: str) -> Any:
    """A run that predicted two photos of 4×6 pixels, the second with these run lengths."""
    sample = folder / "sample_submission.csv"
    sample.write_text("img,rle_mask\nb_01.jpg,1 1\na_01.jpg,1 1\n")
    photos = tuple(Record(id=name, image=folder / f"{name}.jpg", size=(4, 6)) for name in ("a_01", "b_01"))
    source = DataSource(
        layout="carvana", root=folder, task=Task(kind="binary", classes=("car",)), coding=MaskCoding(), records=(),
        unlabelled=photos, sample_submission=sample, submission="carvana",
    )  # fmt: skip
    run = RunDirectory(folder / "run")
    (run.predictions / "rows").mkdir(parents=True)
    (run.predictions / "rows" / "000000.csv").write_text(f"a_01,car,4,6,1 24\nb_01,car,4,6,{runs}\n")
    return SimpleNamespace(run=run, source=source, progress=Silent())


def test_rows_follow_the_sample(tmp_path: Path) -> None:
    path = write_submission(surroundings(tmp_path, "3 2 23 2"), SUBMISSION)
    assert path.name == "submission.csv.gz"
    assert gzip.decompress(path.read_bytes()).decode() == "img,rle_mask\nb_01.jpg,3 2 23 2\na_01.jpg,1 24\n"


@pytest.mark.parametrize(
    ("runs", "reason"),
    [("23 3", "within the 24 pixels of 6×4"), ("0 2", "counted from 0"), ("3 2 4 1", "overlap"), ("3", "pairs")],
)
def test_impossible_run_lengths_are_refused(tmp_path: Path, runs: str, reason: str) -> None:
    with pytest.raises(BadFile, match=rf"submission\.csv\.gz: row 'b_01\.jpg': run lengths: .*{reason}"):
        write_submission(surroundings(tmp_path, runs), SUBMISSION)
