"""Places that must be of this machine: a URL there is one line, and no folder is made that is called like it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from maskloom.api import convert, score
from maskloom.data.image_io import read_mask_values, write_png
from maskloom.errors import UserError
from maskloom.run_directory import FORMAT, RunDirectory
from maskloom.runs import Run
from test_cli import run

URL = "s3://bucket/x"
COMMANDS = {
    "score": ["score", URL, "masks"],
    "score, prediction": ["score", "masks", URL],
    "convert": ["convert", URL, "out"],
    "convert, out": ["convert", "masks", URL],
    "convert, table": ["convert", "masks", f"{URL}.csv"],
    "convert, like": ["convert", "masks", "out", "--like", URL],
    "convert, grid": ["convert", "masks", "out.csv", "--to", "wkt", "--grid", f"{URL}.csv"],
    "inspect": ["inspect", "data", "--out", f"{URL}.html"],
    "import-weights": ["import-weights", f"{URL}.pth", "--as", "ternaus-unet11", "--out", "net.safetensors"],
    "import-weights, out": ["import-weights", "net.pth", "--as", "ternaus-unet11", "--out", f"{URL}.safetensors"],
    "demo": ["demo", "--out", URL],
    "status": ["status", "run", "--html", f"{URL}.html"],
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: masks, data, and the beginning of a run."""
    monkeypatch.chdir(tmp_path)
    for folder in ("masks", "data/images", "data/masks"):
        write_png(tmp_path / folder / "a.png", np.array([[0, 255, 255, 0]], np.uint8))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(f'{{"format": {FORMAT}}}')
    return tmp_path


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS.keys())
def test_a_url_is_refused_in_a_line(
    arguments: Sequence[str], here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path for path in here.rglob("*") if ".lock" not in path.name}
    assert run(*arguments, monkeypatch=monkeypatch) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and said[0].startswith("error: s3://bucket/x")
    assert "expected a path of this machine, found a URL" in said[0]
    assert {path for path in here.rglob("*") if ".lock" not in path.name} == before


@pytest.mark.parametrize("place", [{"out": URL}, {"out": Path(URL)}, {"out": "out", "grid": f"{URL}.csv"}])
def test_predictions_are_written_here(here: Path, place: dict[str, Path | str]) -> None:
    opened = Run(folder=RunDirectory(here / "run"), device="cpu")
    with pytest.raises(UserError, match=r"^s3://bucket/x.*: expected a path of this machine"):
        opened.predict(here / "masks", to="wkt", **place)
    assert not (here / "s3:").exists() and not (here / "out").exists()


def test_the_url_of_a_file_is_its_path(here: Path) -> None:
    convert(here / "masks", f"file://{here}/out")
    assert read_mask_values(here / "out" / "a.png").tolist() == [[0, 255, 255, 0]]
    assert score(f"file://{here}/masks", here / "out").dice == 1.0
    assert not (here / "file:").exists()


def test_a_folder_that_is_called_like_a_url_is_a_folder(here: Path) -> None:
    write_png(here / "s3:" / "bucket" / "a.png", np.array([[0, 255]], np.uint8))
    assert convert(Path("s3:/bucket"), here / "out").num_images == 1
