"""What masks seem to be, from small masks of every usual kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskloom.data.guessed_classes import infer_coding
from maskloom.data.image_io import write_png
from maskloom.data.mask_coding import NO_CLASS
from maskloom.errors import BadFile, UserError
from maskloom.rasters.writing import write_geotiff


def masks(folder: Path, *files: Sequence[int] | Sequence[tuple[int, int, int]], dtype: type = np.uint8) -> list[Path]:
    """Returns PNG masks of one row each with these values or colours."""
    paths = [folder / f"{number:04}.png" for number in range(len(files))]
    for path, values in zip(paths, files, strict=True):
        write_png(path, np.array([values], dtype))
    return paths


@pytest.mark.parametrize("pair", [(0, 255), (0, 1), (1, 2), (3, 200)])
def test_two_values_are_binary(tmp_path: Path, pair: tuple[int, int]) -> None:
    guess = infer_coding(masks(tmp_path, pair, pair[:1]))
    assert guess.task.kind == "binary" and guess.coding.values == ((pair[0], 0), (pair[1], 1))
    assert "two values" in guess.note and "all masks read" in guess.note


def test_few_values_are_classes_and_gaps_are_filled(tmp_path: Path) -> None:
    guess = infer_coding(masks(tmp_path, (0, 1, 2), (4, 5, 6)))
    assert guess.task.kind == "multiclass" and len(guess.task.classes) == 7
    assert guess.coding.values == tuple((value, value) for value in range(7))


def test_255_beside_labels_is_ignored(tmp_path: Path) -> None:
    guess = infer_coding(masks(tmp_path, (0, 1, 2, 255)))
    assert guess.coding.ignore == (255,) and len(guess.task.classes) == 3 and "255 are ignored" in guess.note


def test_two_labels_and_void_are_binary_with_ignore(tmp_path: Path) -> None:
    guess = infer_coding(masks(tmp_path, (0, 1, 255)))
    assert guess.task.kind == "binary" and guess.coding.ignore == (255,)


def test_masks_of_0_1_mixed_with_masks_of_0_255_are_binary(tmp_path: Path) -> None:
    guess = infer_coding(masks(tmp_path, (0, 1), (0, 255)))
    assert guess.task.kind == "binary" and guess.coding.kind == "foreground" and not guess.coding.ignore


@pytest.mark.parametrize("values", [range(60), (0, 5, 90, 700), (0, 1, 2, 40)])
def test_many_or_scattered_values_are_instances(tmp_path: Path, values: Sequence[int]) -> None:
    guess = infer_coding(masks(tmp_path, list(values), dtype=np.uint16))
    assert guess.task.kind == "binary" and guess.coding.kind == "foreground" and "instance" in guess.note


def test_only_one_value(tmp_path: Path) -> None:
    assert infer_coding(masks(tmp_path, (0, 0))).coding.kind == "foreground"


def test_colours(tmp_path: Path) -> None:
    two = infer_coding(masks(tmp_path, [(0, 0, 0), (255, 0, 0)]))
    assert two.task.kind == "binary" and two.coding.colours == (((0, 0, 0), 0), ((255, 0, 0), 1))
    three = infer_coding(masks(tmp_path, [(0, 0, 0), (255, 0, 0)], [(0, 0, 0), (9, 9, 9), (0, 0, 255)]))
    assert three.task.classes == ("#000000", "#0000ff", "#090909", "#ff0000")
    many = infer_coding(masks(tmp_path, [(value, 0, 0) for value in range(90)]))
    assert many.task.kind == "binary" and many.coding.kind == "foreground"


def test_jpeg_masks_are_split_in_the_middle(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16), np.uint8)
    pixels[3:9, 3:9] = 255
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=60)
    guess = infer_coding([tmp_path / "a.jpg"])
    assert guess.task.kind == "binary" and guess.coding.above == 127 and "JPEG" in guess.note
    with pytest.raises(UserError, match="cannot be JPEG"):
        infer_coding([tmp_path / "a.jpg"], task="multiclass")


def test_stated_task_and_ignore_are_kept_to(tmp_path: Path) -> None:
    paths = masks(tmp_path, (0, 1, 2, 9))
    assert infer_coding(paths, task="binary").coding.kind == "foreground"
    ignoring = infer_coding(paths, ignore=(9,))
    assert len(ignoring.task.classes) == 3 and ignoring.coding.ignore == (9,)
    many = infer_coding(paths, task="multiclass")
    assert [value for value, _ in many.coding.values] == [0, 1, 2, 9]
    labels = infer_coding(paths, task="multilabel", ignore=(9,))
    assert labels.coding.values == ((0, NO_CLASS), (1, 0), (2, 1)) and labels.task.classes == ("class_1", "class_2")


def test_a_rare_class_is_found_in_a_larger_sample(tmp_path: Path) -> None:
    paths = masks(tmp_path, *[(0, 1, 2)] * 40, (0, 1, 3), *[(0, 1, 2)] * 59)
    guess = infer_coding(paths)
    assert len(guess.task.classes) == 4 and "all masks read" in guess.note


def test_damaged_masks_are_passed_over_unless_all_are(tmp_path: Path) -> None:
    paths = masks(tmp_path, (0, 255), (0, 255))
    paths[0].write_text("text")
    assert infer_coding(paths).task.kind == "binary"
    with pytest.raises(BadFile, match="found text"):
        infer_coding(paths[:1])


def test_ignore_values_that_masks_cannot_have_are_refused(tmp_path: Path) -> None:
    colours = masks(tmp_path, [(0, 0, 0), (255, 0, 0), (0, 0, 9)])
    with pytest.raises(UserError, match=r"ignore 255: .* found colours; state the colour in classes.yaml"):
        infer_coding(colours, ignore=(255,))
    pixels = np.zeros((16, 16), np.uint8)
    pixels[3:9, 3:9] = 255
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=60)
    with pytest.raises(UserError, match=r"ignore 9: .* found JPEG files"):
        infer_coding([tmp_path / "a.jpg"], ignore=(9,))


def tiffs(folder: Path, *files: Sequence[float], nodata: float | None, dtype: str = "uint8") -> list[Path]:
    paths = [folder / f"{number:04}.tif" for number in range(len(files))]
    for path, values in zip(paths, files, strict=True):
        write_geotiff(path, np.array([values], dtype), None, nodata=nodata)
    return paths


@pytest.mark.parametrize(
    ("dtype", "nodata"), [("uint8", 200), ("int16", -9999), ("float32", np.nan), ("uint16", 65535)]
)
def test_nodata_of_files_is_no_value(tmp_path: Path, dtype: str, nodata: float) -> None:
    guess = infer_coding(tiffs(tmp_path, (0, 1, 2, nodata), (0, 1), nodata=nodata, dtype=dtype))
    assert guess.task.kind == "multiclass" and guess.coding.values == ((0, 0), (1, 1), (2, 2))
    assert guess.coding.ignore == ((int(nodata),) if nodata > 0 else ())


def test_nodata_0_and_what_leaves_one_value_alone_are_values(tmp_path: Path) -> None:
    for values, nodata in (((0, 1), 0), ((0, 255), 255), ((1, 255), 0)):
        guess = infer_coding(tiffs(tmp_path, values, values[:1], nodata=nodata))
        assert guess.coding.values == ((values[0], 0), (values[1], 1)) and guess.coding.ignore == ()
    other = tiffs(tmp_path, (0, 1, 2), nodata=2) + masks(tmp_path, (0, 2))
    assert infer_coding(other).coding.values == ((0, 0), (1, 1), (2, 2))  # a file without it has it as a class
