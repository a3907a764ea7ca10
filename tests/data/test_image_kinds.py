"""The kind that a header tells is that of the decoded image, or not known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from maskloom.data.image_io import read_image, write_png
from maskloom.data.image_kinds import Accepted, ImageKind, read_kinds

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8)
COLOUR = np.repeat(GREY[:, :, None], 3, axis=2)
UNKNOWN = ImageKind()


def pillow(path: Path, mode: str) -> None:
    Image.fromarray(COLOUR).convert(mode).save(path)


def tiff(path: Path, pixels: np.ndarray, **options: object) -> None:
    tifffile.imwrite(path, pixels, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.bmp", "a.webp", "a.tif"])
@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA", "LA", "CMYK", "1"])
def test_of_pillow_files(tmp_path: Path, name: str, mode: str) -> None:
    path = tmp_path / name
    try:
        pillow(path, mode)
    except (OSError, ValueError):
        pytest.skip("there are no such files")
    (found,) = read_kinds([path])
    image = read_image(path)
    assert found.dtype in ("", image.dtype.name) and found.channels in (0, image.shape[2])
    if path.suffix in (".jpg", ".png", ".gif"):
        assert found == ImageKind(image.shape[2], "uint8")


@pytest.mark.parametrize("count", [1, 3, 4])
def test_of_png_with_16_bits(tmp_path: Path, count: int) -> None:
    write_png(tmp_path / "a.png", np.zeros((6, 8, count), np.uint16))
    assert read_kinds([tmp_path / "a.png"]) == [ImageKind(min(count, 3), "uint16")]


@pytest.mark.parametrize(
    ("pixels", "options", "expected"),
    [
        (np.zeros((6, 8, 5), np.uint16), {"photometric": "minisblack", "planarconfig": "contig"}, (5, "uint16")),
        (np.zeros((5, 6, 8), np.uint8), {"photometric": "minisblack", "planarconfig": "separate"}, (5, "uint8")),
        (np.zeros((6, 8, 4), np.uint8), {"photometric": "rgb", "extrasamples": [2]}, (3, "uint8")),
        (np.zeros((6, 8), np.int16), {}, (1, "float32")),
        (np.zeros((6, 8), np.float64), {}, (1, "float32")),
        (np.zeros((3, 6, 8), np.uint8), {"photometric": "minisblack"}, (0, "")),  # pages
    ],
)
def test_of_tiffs(tmp_path: Path, pixels: np.ndarray, options: dict[str, object], expected: tuple[int, str]) -> None:
    tiff(tmp_path / "a.tif", pixels, **options)
    assert read_kinds([tmp_path / "a.tif"]) == [ImageKind(*expected)]
    image = read_image(tmp_path / "a.tif")
    assert expected in ((0, ""), (image.shape[2], image.dtype.name))


def test_what_is_no_image_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("text")
    assert read_kinds([tmp_path / "a.png", tmp_path / "missing.tif"]) == [UNKNOWN, UNKNOWN]


def test_what_is_accepted() -> None:
    accepted = Accepted(channels=3, dtype="uint8")
    for fine in (UNKNOWN, ImageKind(3, "uint8"), ImageKind(1, "uint8"), ImageKind(0, "uint8"), ImageKind(3, "")):
        assert accepted.problem(fine) == ""
    assert "found 4" in accepted.problem(ImageKind(4, "uint8")) and "uint16" in accepted.problem(ImageKind(1, "uint16"))
    assert "found 1" in Accepted(channels=3, dtype="uint8", takes_grey=False).problem(ImageKind(1, "uint8"))
