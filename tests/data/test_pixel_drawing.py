"""Pixels drawn for trees: as many as stated, with all that surrounds them, none that sees what is forbidden."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from maskloom.data import pixel_drawing
from maskloom.data.input_policy import InputPolicy
from maskloom.data.mask_coding import MaskCoding
from maskloom.data.pixel_drawing import PixelDrawing
from maskloom.records import IGNORE, MaskFile, Record, Task
from maskloom.windows import Window

SIZE = (50, 70)
NUMBERS = np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE)
REACH = 3


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """An image in which each pixel holds its own number, whose mask is the lowest bit, its first five rows unknown."""
    image, mask = tmp_path / "a.tif", tmp_path / "m.tif"
    tifffile.imwrite(image, NUMBERS)
    values = (NUMBERS % 2).astype(np.uint8)
    values[:5] = 9
    tifffile.imwrite(mask, values)
    return Record(id="a", image=image, size=SIZE, truth=MaskFile(path=mask), group="a")


def drawn(record: Record, forbidden: list[Window] | None = None, *, seed: int = 0, share: float = 0.5) -> np.ndarray:
    """The numbers of the pixels that are drawn, whose surroundings and labels are found to be theirs."""
    drawing = PixelDrawing(
        task=Task(kind="binary", classes=("odd",)),
        coding=MaskCoding(ignore=(9,)),
        policy=InputPolicy(mode="window", multiple=1, size=(32, 32), margin=REACH),
        channels=1,
        share=share,
        reach=REACH,
        seed=seed,
    )
    mirrored = np.pad(NUMBERS, REACH, mode="reflect")
    found = []
    for pixels, chosen, labels in drawing.squares(record, forbidden):
        assert pixels.shape == (chosen.shape[0] + 2 * REACH, chosen.shape[1] + 2 * REACH, 1)
        inner = pixels[REACH:-REACH, REACH:-REACH, 0]
        top, left = divmod(int(inner[0, 0]), SIZE[1])
        np.testing.assert_array_equal(
            pixels[..., 0], mirrored[top : top + pixels.shape[0], left : left + pixels.shape[1]]
        )
        np.testing.assert_array_equal(labels, inner[chosen] % 2)
        assert IGNORE not in labels
        found.append(inner[chosen])
    return np.concatenate(found)


@pytest.mark.parametrize("side", [16, 512])
def test_a_share_is_drawn_of_the_labelled_pixels_each_at_most_once(
    record: Record, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixel_drawing, "SIDE", side)
    found = drawn(record)
    assert len(set(found.tolist())) == len(found) == pytest.approx(45 * 70 / 2, rel=0.07)
    assert found.min() >= 5 * 70
    np.testing.assert_array_equal(drawn(record), found)
    assert set(drawn(record, seed=1).tolist()) != set(found.tolist())
    assert len(drawn(record, share=1)) == 45 * 70


def test_read_by_window_it_is_the_same(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = drawn(record)
    monkeypatch.delattr(pixel_drawing, "read_sample")
    np.testing.assert_array_equal(drawn(record, []), whole)


@pytest.mark.parametrize("side", [16, 512])
def test_no_pixel_sees_what_is_forbidden(record: Record, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_drawing, "SIDE", side)
    areas = [Window(20, 30, 10, 12), Window(-5, -5, 17, 15), Window(44, 60, 50, 50), Window(90, 90, 4, 4)]
    allowed = np.ones(SIZE, np.bool_)
    allowed[:5] = False
    for area in areas[:3]:
        rows = slice(max(area.top - REACH, 0), area.top + area.height + REACH)
        allowed[rows, max(area.left - REACH, 0) : area.left + area.width + REACH] = False
    assert set(drawn(record, areas, share=1).tolist()) == set(NUMBERS[allowed].tolist())
