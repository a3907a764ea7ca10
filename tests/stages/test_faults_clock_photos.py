"""Photos and masks of which one was written by a clock that was wrong: each photo is predicted once, and as it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from test_images import photo, predicted

HOUR = 3600 * 10**9


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name, value in (("a", 10), ("b", 200)):
        photo(tmp_path / "photos" / f"{name}.png", value)
    return tmp_path / "photos"


def shift(folder: Path, ns: int) -> None:
    for path in folder.rglob("*"):
        facts = path.stat()
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + ns))


@pytest.mark.parametrize("to", ["png", "prob", "rle", "coco"])
def test_a_photo_changed_after_the_clock_went_back_is_predicted_again(photos: Path, tmp_path: Path, to: str) -> None:
    """The masks seem to be an hour younger than the photo that replaces one of theirs."""
    out = tmp_path / "out"
    assert predicted(photos, out, to)[1] == 2
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    shift(out, HOUR)
    photo(photos / "b.png", 20)
    done, asked = predicted(photos, out, to)
    assert asked >= 1 and done.num_written == 2
    assert any(before[path.name] != path.read_bytes() for path in out.glob("[!.]*"))
    assert predicted(photos, out, to)[1] == 0


@pytest.mark.parametrize("to", ["png", "prob"])
def test_masks_that_seem_older_than_their_photos_are_not_made_again(photos: Path, tmp_path: Path, to: str) -> None:
    """Photos on a server whose clock is ahead, or copied before the clock was set back."""
    shift(photos, HOUR)
    assert predicted(photos, tmp_path / "out", to)[1] == 2
    assert predicted(photos, tmp_path / "out", to)[1] == 0
