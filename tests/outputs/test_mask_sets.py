"""Mask sets class by class, with masks worked out by hand: unions of pieces, overlaps, classes without a name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from maskloom.data.image_io import write_png
from maskloom.encodings.rle import coco_encode
from maskloom.errors import BadFile, UserError
from maskloom.outputs.legends import with_legend
from maskloom.outputs.mask_sets import check_areas, open_mask_set

LEFT = np.array([[1, 1, 0, 0], [1, 1, 0, 0]], bool)
MIDDLE = np.array([[0, 1, 1, 0], [0, 0, 1, 0]], bool)
CORNER = np.array([[0, 0, 0, 0], [0, 0, 0, 1]], bool)


def coco(path: Path, parts: list[tuple[int, object]]) -> Path:
    content = {
        "images": [{"id": 5, "file_name": "a.jpg", "height": 2, "width": 4}],
        "annotations": [{"image_id": 5, "category_id": kind, "segmentation": segment} for kind, segment in parts],
    }
    path.write_text(json.dumps(content))
    return path


def test_coco_pieces_of_one_category_are_united(tmp_path: Path) -> None:
    uncompressed = {"size": [2, 4], "counts": [7, 1]}
    polygon = [[0, 0, 1, 0, 1, 1, 0, 1]]
    path = coco(
        tmp_path / "a.json",
        [(3, coco_encode(MIDDLE)), (3, coco_encode(LEFT)), (3, uncompressed), (7, polygon), (7, coco_encode(CORNER))],
    )
    layers = open_mask_set(path).layers("a", (2, 4))
    assert np.array_equal(layers[3], LEFT | MIDDLE | CORNER)
    assert layers[7].tolist() == [[True, False, False, False], [False, False, False, True]]
    with pytest.raises(UserError, match="overlap"):
        open_mask_set(path).values("a", (2, 4))


def test_coco_pieces_of_another_size_are_refused(tmp_path: Path) -> None:
    path = coco(tmp_path / "a.json", [(1, coco_encode(LEFT.T))])
    with pytest.raises(BadFile, match=r"image 'a': the image is \(2, 4\), a segmentation \(4, 2\)"):
        open_mask_set(path).values("a", (2, 4))


def test_coco_categories_without_a_name_are_called_by_their_id(tmp_path: Path) -> None:
    masks = open_mask_set(coco(tmp_path / "a.json", [(3, coco_encode(LEFT)), (9, coco_encode(CORNER))]))
    classified, _ = with_legend(masks)
    assert dict(classified.legend.names) == {3: "3", 9: "9"}
    assert not classified.legend.is_binary


def test_a_table_of_pieces(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("ImageId,EncodedPixels\na.jpg,1 2\na.jpg,5 2\n")
    assert np.array_equal(open_mask_set(path).layers("a", (2, 4))[1], LEFT)


def test_values_of_files_keep_their_numbers(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.array([[0, 1, 2, 3], [3, 2, 1, 255]], np.uint8))
    classified, note = with_legend(open_mask_set(tmp_path))
    assert dict(classified.legend.names) == {1: "1", 2: "2", 3: "3"}
    assert "multiclass" in note
    assert sorted(classified.layers("a", (2, 4))) == [1, 2, 3, 255]


def test_legends_with_and_without_a_background(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.array([[0, 1, 2, 2]], np.uint8))
    masks = open_mask_set(tmp_path)
    named = with_legend(masks, classes=["Background", "road", "car"])[0].legend
    assert (dict(named.names), named.blank) == ({1: "road", 2: "car"}, 0)
    full = with_legend(masks, classes=["sky", "road", "car"])[0].legend
    assert (dict(full.names), full.blank) == ({0: "sky", 1: "road", 2: "car"}, 255)
    assert full.task().classes == ("sky", "road", "car") and named.task().classes == ("background", "road", "car")
    one = with_legend(masks, classes=["car"])[0].legend
    assert (dict(one.names), one.is_binary) == ({1: "car"}, True)
    for classes in (["a", "a"], ["a", ""]):
        with pytest.raises(UserError, match="different names"):
            with_legend(masks, classes=classes)
    with pytest.raises(UserError, match="leave one out"):
        with_legend(masks, classes=["a", "b"], foreground=True)


def test_some_without_a_class_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,class,rle\na,car,1 2\na,,5 2\n")
    with pytest.raises(UserError, match="some masks have a class"):
        with_legend(open_mask_set(path))


def disks(*, side: int, apart: int, colour: int = 1) -> np.ndarray:
    """Returns instance ids (times ``colour``) of disks in a square grid, which nearly touch."""
    rows, columns = np.mgrid[:side, :side]
    number = rows // apart * (side // apart) + columns // apart + 1
    near = (rows % apart - apart / 2) ** 2 + (columns % apart - apart / 2) ** 2 < (apart / 2) ** 2
    return np.where(near, number * colour, 0)


def hairs(*directions: tuple[int, int]) -> np.ndarray:
    """Returns instance ids of lines, one pixel wide and 30 long, that run by so many rows and columns per pixel."""
    ids = np.zeros((300, 300), int)
    for number in range(240):
        rows, columns = directions[number % len(directions)]
        top, left = (number * 37) % 270, (number * 53) % 270
        for step in range(30):
            ids[top + rows * step, left + columns * step] = number + 1
    return ids


def points() -> np.ndarray:
    """Returns 400 instance ids of a pixel each."""
    ids = np.zeros((200, 200), int)
    ids[5::10, 5::10] = np.arange(1, 401).reshape(20, 20)
    return ids


@pytest.mark.parametrize(
    "mask",
    [
        hairs((1, 0)),
        hairs((0, 1)),
        hairs((1, 0), (0, 1)),
        hairs((1, 1), (1, 0), (0, 1)),
        points(),
        disks(side=256, apart=12),
        disks(side=256, apart=12, colour=7001),
        np.tile(np.arange(32), (32, 1)),
        np.repeat(np.arange(100), 4)[None, :],
        np.tile(np.arange(100), (40, 1)),
        np.zeros((1, 1), int),
    ],
)
def test_areas_of_one_value_are_a_mask(mask: np.ndarray) -> None:
    check_areas(mask, Path("a.png"))


@pytest.mark.parametrize(("highest", "what"), [(0xFF, "values"), (0xFFFF, "values"), (0xFFFFFF, "colours")])
def test_a_photo_is_no_mask(highest: int, what: str) -> None:
    """Half of it a white backdrop, the rest with the noise that photos have."""
    rng = np.random.default_rng(0)
    photo = rng.integers(0, highest, (120, 200), endpoint=True)
    photo[:, :100] = highest
    with pytest.raises(UserError, match=rf"^a\.png: .* found [\d,]+ different {what} side by side, as in a photo"):
        check_areas(photo, Path("a.png"))


def test_a_photo_cut_out_of_its_ground_is_no_mask() -> None:
    """Its object is all different values; in front of the ground there is nothing else."""
    rng = np.random.default_rng(0)
    photo = np.zeros((120, 200), int)
    photo[30:90, 50:150] = rng.integers(1, 0xFF, (60, 100))
    with pytest.raises(UserError, match="as in a photo"):
        check_areas(photo, Path("a.png"))
