"""Outlines of mask sets: what is stored becomes the classes compared, and the scores stand beside the others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import maskloom
from maskloom.boundary_score import Tolerance, boundary_counts, f_score, mean_f_score
from maskloom.cli import app
from maskloom.data.image_io import write_png
from maskloom.errors import UserError
from maskloom.outputs.comparison import compare
from maskloom.records import IGNORE, Task

NEAR = Tolerance(1, "pixels")


def folder(path: Path, masks: dict[str, np.ndarray]) -> Path:
    for name, mask in masks.items():
        write_png(path / f"{name}.png", mask)
    return path


def square(left: int, value: int) -> np.ndarray:
    mask = np.zeros((20, 30), np.uint8)
    mask[5:9, left : left + 4] = value
    return mask


def test_a_square_moved_by_two(tmp_path: Path) -> None:
    # 12 outline pixels each. Within one pixel of the other's outline: two shared in each row, one more where the row
    # goes on, one of the column between them on each end, and none of the outer column's inner two.
    truth = folder(tmp_path / "t", {"a": square(5, 1), "b": square(5, 1), "c": square(5, 0)})
    found = compare(truth, folder(tmp_path / "p", {"a": square(7, 255), "b": square(5, 255), "c": square(5, 0)}),
                    boundary=NEAR)  # fmt: skip
    assert found.boundary is not None
    assert found.boundary.mean == (pytest.approx((8 / 12 + 1) / 2),)  # c has no outline on either side
    assert found.boundary.total == found.boundary.precision == found.boundary.recall == (pytest.approx(20 / 24),)
    values = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert values["boundary"]["tolerance"] == "1"
    assert values["boundary"]["per_class"]["foreground"]["mean"] == values["boundary"]["mean"] == found.boundary.score
    lines = found.table().splitlines()
    assert lines[1].split() == ["Dice", "IoU", "Boundary"]
    assert [line.split()[-1] for line in lines[2:4]] == ["0.8333", "0.8333"]
    assert "1 pixel apart" in lines[4] and "0.8333" in lines[4]


def test_without_being_asked_for_nothing_changes(tmp_path: Path) -> None:
    found = compare(folder(tmp_path / "t", {"a": square(5, 1)}), folder(tmp_path / "p", {"a": square(6, 1)}))
    assert found.boundary is None and "boundary" not in found.to_json() and "Boundary" not in found.table()


def test_values_and_colours_are_labels_and_the_ignored_one_is_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    labels = [
        {name: np.kron(rng.integers(0, 3, (6, 7)), np.ones((4, 4), int)).astype(np.uint8) for name in "ab"}
        for _ in range(2)
    ]
    for mask in labels[0].values():
        mask[8:14, 3:9] = IGNORE
    task = Task(kind="multiclass", classes=("0", "1", "2"))
    counts = [boundary_counts(labels[1][name], labels[0][name], task) for name in "ab"]
    shown = np.zeros((256, 3), np.uint8)
    shown[[0, 1, 2, 255]] = [(9, 9, 0), (0, 4, 250), (200, 0, 1), (0, 0, 0)]
    stored = np.zeros(256, np.uint16)
    stored[[0, 1, 2, 255]] = [0, 7, 4000, 12]
    for coding, ignored in ((stored, 12), (shown, 0)):
        sides = [folder(tmp_path / f"{ignored}{place}", {name: coding[mask] for name, mask in side.items()})
                 for place, side in enumerate(labels)]  # fmt: skip
        found = compare(*sides, ignore=ignored, boundary=Tolerance())
        assert found.boundary is not None and found.boundary.tolerance == Tolerance()
        assert sorted(found.boundary.mean) == pytest.approx(sorted(mean_f_score(counts)))
        assert sorted(found.boundary.total) == pytest.approx(sorted(f_score(counts[0] + counts[1])))


def test_at_the_doors(tmp_path: Path) -> None:
    truth = folder(tmp_path / "t", {"a": square(5, 1)})
    words = ["score", str(truth), str(folder(tmp_path / "p", {"a": square(7, 1)})), "--boundary"]
    default, stated = (
        json.loads(CliRunner().invoke(app, [*words, "--json", *more]).stdout)["boundary"]
        for more in ([], ["--tolerance", "1"])
    )
    assert (default["tolerance"], stated["tolerance"]) == ("0.75%", "1")
    assert (default["mean"], stated["mean"]) == (pytest.approx(4 / 12), pytest.approx(8 / 12))
    found = maskloom.score(truth, tmp_path / "p", boundary=True, tolerance="2")
    assert found.boundary is not None and found.boundary.mean == (1,)
    with pytest.raises(UserError, match="tolerance '2px'"):
        maskloom.score(truth, tmp_path / "p", boundary=True, tolerance="2px")
    with pytest.raises(UserError, match="tolerance 2: expected boundary beside it"):
        maskloom.score(truth, tmp_path / "p", tolerance="2")


def test_many_instance_ids_are_refused(tmp_path: Path) -> None:
    ids = {"a": np.arange(600, dtype=np.uint16).repeat(3).reshape(20, 90)}
    sides = [folder(tmp_path / name, ids) for name in "tp"]
    with pytest.raises(UserError, match="at most 255 classes, found 600 values") as caught:
        compare(*sides, boundary=NEAR)
    assert "\n" not in str(caught.value)
    assert compare(*sides, boundary=NEAR, foreground=True).boundary is not None
