"""What is wrong with a street scene's data, through the command line: one line that names it, and exit code 2."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from streets import SIZE, coloured, fill, striped, write_photo, write_png

from maskloom.cli import main
from maskloom.contests.signate.colours import CATEGORIES
from maskloom.contests.signate.scoring import main as scorer
from maskloom.errors import UserError

Command = Callable[..., tuple[int, str, str]]
FIRST = Path("seg_train_annotations") / "train_0000.png"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command line; returns the exit code, what it printed, and what it said on the way."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["maskloom", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return code, printed.out, " ".join(printed.err.split())  # a terminal wraps lines

    return call


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Seven photos, no two alike, with striped annotations: one per fold of the published recipe."""
    folder, rng = fill(tmp_path / "data", count=7), np.random.default_rng(0)
    for path in sorted((folder / "seg_train_images").iterdir()):
        assert cv2.imwrite(str(path), rng.integers(0, 255, (*SIZE, 3), np.uint8))
    return folder


def fitted(command: Command, data: Path, recipe: str = "signate_22nd") -> tuple[int, str]:
    """Returns exit code and messages of the published recipe's command."""
    run = data.parent / "run"
    code, _, said = command("fit", recipe, "--data", data, "--run", run, "--set", "scale=smoke", "--device", "cpu",
                            "--workers", "0")  # fmt: skip
    return code, said


def strange_colour(data: Path) -> None:
    colours = coloured(striped())
    colours[5, 30] = colours[6, 1] = (1, 2, 3)
    write_png(data / FIRST, colours)


def empty_table(data: Path) -> None:
    (data / "class_table.yaml").write_text("".join(f"{name}: ignore\n" for name in CATEGORIES))


def table_of_one_class(data: Path) -> None:
    (data / "class_table.yaml").write_text("".join(f"{name}: street\n" for name in CATEGORIES))


def truth_of_another_size(data: Path) -> None:
    write_png(data / FIRST, coloured(striped()[:-3]))


def grey_values(data: Path) -> None:
    """Labels 0 … 20 in place of colours: all but 0 of them is nobody's grey."""
    assert cv2.imwrite(str(data / FIRST), (np.arange(SIZE[1]) % 21 * np.ones((SIZE[0], 1))).astype(np.uint8))


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (strange_colour, ["train_0000.png", "(1, 2, 3) in 2 pixels", "in row 5, column 30"]),
        (empty_table, ["class_table.yaml", "two classes or more, found none: every category is left out"]),
        (table_of_one_class, ["class_table.yaml", "two classes or more, found 'street' alone"]),
        (truth_of_another_size, ["train_0000", "32×21", "32×24"]),
        (grey_values, ["train_0000.png", "in row 0, column 0"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_bad_scenes_are_named_and_nothing_is_trained(
    command: Command, data: Path, spoil: Callable[[Path], None], named: list[str]
) -> None:
    spoil(data)
    code, said = fitted(command, data)
    assert code == 2
    error = said[said.index("error:") :]
    assert [words for words in named if words not in error] == [], error
    assert not list((data.parent / "run").glob("members/*")) and not list(data.parent.rglob(".partial-*"))


def test_photos_without_attributes_are_dealt_as_unknown_and_said(
    command: Command, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 4):
        (data / FIRST).with_name(f"train_{number:04d}.json").unlink()
    (data / FIRST).with_name("train_0002.json").write_text(json.dumps({"attributes": {"route": "A"}}))

    def stop(*_: object, **__: object) -> None:
        raise UserError("far enough")

    monkeypatch.setattr("maskloom.pipeline.check_tree", stop)  # after the folds
    code, said = fitted(command, data)
    assert code == 2 and "far enough" in said
    assert "2 photos have no attribute route, which is taken as 'unknown': train_0001, train_0004" in said
    assert "3 photos have no attribute timeofday, which is taken as 'unknown'" in said
    with (data.parent / "run" / "folds.csv").open(newline="") as stream:
        assert sorted(int(row["fold"]) for row in csv.DictReader(stream)) == list(range(7))


def test_labels_beyond_the_classes_are_named(command: Command, tmp_path: Path) -> None:
    """Plain label files of three classes, one of which holds a fourth."""
    data = tmp_path / "data"
    for number in range(4):
        write_photo(data / "images" / f"{number}.png")
        labels = (np.arange(SIZE[1]) % 3 * np.ones((SIZE[0], 1))).astype(np.uint8)
        labels[7, 9] = 3 if number == 2 else 0
        (data / "masks").mkdir(exist_ok=True)
        assert cv2.imwrite(str(data / "masks" / f"{number}.png"), labels)
    (data / "classes.yaml").write_text("classes: {road: 0, car: 1, sky: 2}\n")
    code, said = fitted(command, data, "default")
    assert code == 2 and "2.png" in said and "found 3" in said, said
    assert not list((tmp_path / "run").glob("members/*"))
    code, _, said = command("score", data / "masks", data / "masks", "--classes", "road,car,sky")
    assert code == 2 and "2" in said and "3" in said, said


def test_the_scorers_name_a_truth_of_another_size(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_png(tmp_path / "truth" / "a.png", coloured(striped()))
    write_png(tmp_path / "found" / "a.png", coloured(striped()[:, :-2]))
    with pytest.raises(SystemExit) as stopped:
        scorer([str(tmp_path / "truth"), str(tmp_path / "found")])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1
    assert "a.jpg" in said and "32×24" in said and "30×24" in said
    code, _, said = command("score", tmp_path / "truth", tmp_path / "found")
    assert code == 2 and "30×24" in said, said
