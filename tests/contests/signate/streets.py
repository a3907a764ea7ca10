"""What the tests of this contest share: its layout with flat annotations, and a score by another way."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from maskloom.contests.signate.colours import CATEGORIES, COLOURS

SIZE = (24, 32)
ROUTES, TIMES = ("A", "B"), ("day", "night")

Rows = Mapping[str, Mapping[str, Sequence[Sequence[int]]]]
"""What a submission says of one image."""


def coloured(labels: np.ndarray) -> np.ndarray:
    """Returns the published colours of labels that are places in ``CATEGORIES``."""
    return np.array(list(COLOURS.values()), np.uint8)[labels]


def write_png(path: Path, rgb: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))


def write_photo(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*size, 3), 90, np.uint8))


def striped(number: int = 0) -> np.ndarray:
    """Returns labels in which every category has some pixels: columns in turn, begun elsewhere for each number."""
    return np.broadcast_to((np.arange(SIZE[1]) + number) % len(CATEGORIES), SIZE).astype(np.uint8)


def fill(folder: Path, count: int = 4, tests: int = 2) -> Path:
    """Writes a whole folder of the contest with striped annotations."""
    for number in range(count):
        name = f"train_{number:04d}"
        write_photo(folder / "seg_train_images" / f"{name}.jpg")
        write_png(folder / "seg_train_annotations" / f"{name}.png", coloured(striped(number)))
        attributes = {"route": ROUTES[number % 2], "timeofday": TIMES[number // 2 % 2]}
        (folder / "seg_train_annotations" / f"{name}.json").write_text(json.dumps({"attributes": attributes}))
    for number in range(tests):
        write_photo(folder / "seg_test_images" / f"test_{number:03d}.jpg")
    return folder


def score_by_pixels(truth: Mapping[str, Rows], predicted: Mapping[str, Rows]) -> float:
    """Returns the contest's score by its words alone: sets of pixels, and means.

    Of all that the package does, nothing is used here.
    """
    means = []
    for image, categories in truth.items():
        values = []
        for category, rows in categories.items():
            true = pixels(rows)
            found = pixels(predicted.get(image, {}).get(category, {}))
            if true:
                values.append(len(true & found) / len(true | found))
        if values:
            means.append(sum(values) / len(values))
    return sum(means) / len(means)


def pixels(rows: Mapping[str, Sequence[Sequence[int]]]) -> set[tuple[int, int]]:
    return {(int(row), x) for row, segments in rows.items() for first, last in segments for x in range(first, last + 1)}


def rows_by_pixel(labels: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, list[list[int]]]]:
    """Returns what a submission says of labels, one pixel after the other: categories, rows, inclusive segments."""
    found: dict[str, dict[str, list[list[int]]]] = {}
    for y, row in enumerate(labels.tolist()):
        for x, label in enumerate(row):
            if label >= len(names):
                continue
            segments = found.setdefault(names[label], {}).setdefault(str(y), [])
            if segments and segments[-1][1] == x - 1:
                segments[-1][1] = x
            else:
                segments.append([x, x])
    return found
