"""Where training windows of a scene lie: anywhere, or around a class, and never on forbidden ground.

Knows nothing about images, nor about what is done with a window.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maskloom.data.scene_truth import MaskTruth, PolygonTruth
from maskloom.errors import UserError
from maskloom.records import Size, Task
from maskloom.windows import Window

MAX_DRAWS = 50
"""So many windows are drawn at most in search of one that touches nothing forbidden."""


def draw_window(
    size: Size,
    window: Size,
    rng: np.random.Generator,
    *,
    truth: PolygonTruth | MaskTruth | None = None,
    task: Task | None = None,
    prefer_class: float = 0.0,
    forbidden: Sequence[Window] = (),
) -> Window:
    """Returns a random window of that size inside a scene of ``size`` that shares no pixel with a ``forbidden`` one.

    With probability ``prefer_class`` it is drawn for a class: one of those present in ``truth``, each as likely, then
    a pixel of the class (``pixel_of``), and the window lies as near around it as it fits into the scene. Where that
    touches something forbidden, another pixel of the class is drawn, ``MAX_DRAWS`` times at most. In all other cases
    every allowed position is equally likely. Raises ``UserError`` where there is none.
    """
    if window[0] > size[0] or window[1] > size[1]:
        raise UserError(
            f"expected windows that fit into the scene of {size[1]}×{size[0]} (width×height), found "
            f"{window[1]}×{window[0]}; choose smaller windows"
        )
    bounds = bounds_of(forbidden)
    if prefer_class > 0 and truth is not None:
        if task is None or truth.size != size:
            raise ValueError(f"windows drawn for a class need the task, and truth of {size}, got {task}, {truth.size}")
        chosen = _class_window(window, rng, truth, task, bounds) if rng.random() < prefer_class else None
        if chosen is not None:
            return chosen
    ends = (size[0] - window[0] + 1, size[1] - window[1] + 1)
    for _ in range(MAX_DRAWS):
        chosen = Window(int(rng.integers(ends[0])), int(rng.integers(ends[1])), *window)
        if is_allowed(chosen, bounds):
            return chosen
    return _counted_window(size, window, rng, bounds)


def _class_window(
    window: Size, rng: np.random.Generator, truth: PolygonTruth | MaskTruth, task: Task, bounds: np.ndarray
) -> Window | None:
    """Returns an allowed window around a pixel of a class, or None where none was found."""
    classes = truth.classes_present(task)
    if not classes:
        return None
    label = classes[int(rng.integers(len(classes)))]
    for _ in range(MAX_DRAWS):
        chosen = window_around(truth.pixel_of(label, task, rng), window, truth.size)
        if is_allowed(chosen, bounds):
            return chosen
    return None


def window_around(pixel: tuple[int, int], window: Size, size: Size) -> Window:
    """Returns the window whose middle is as near to a pixel (row, column) as it fits into ``size``."""
    top, left = (
        min(max(at - side // 2, 0), length - side) for at, side, length in zip(pixel, window, size, strict=True)
    )
    return Window(top, left, *window)


def has_room(size: Size, window: Size, forbidden: Sequence[Window]) -> bool:
    """Returns whether a window of that size fits into a scene of ``size`` without touching what is forbidden."""
    fits = window[0] <= size[0] and window[1] <= size[1]
    return fits and bool(_positions(size, window, bounds_of(forbidden))[2].any())


def bounds_of(areas: Sequence[Window]) -> np.ndarray:
    """Returns areas as an int64 array n×4 of top, left, bottom and right, as ``is_allowed`` takes them."""
    sides = [(area.top, area.left, area.top + area.height, area.left + area.width) for area in areas]
    return np.array(sides, np.int64).reshape(-1, 4)


def is_allowed(window: Window, bounds: np.ndarray) -> bool:
    """Returns whether a window shares no pixel with areas n×4 (see ``bounds_of``)."""
    below, right = window.top + window.height, window.left + window.width
    top, left, bottom, far = bounds.T
    return not np.any((top < below) & (bottom > window.top) & (left < right) & (far > window.left))


def _counted_window(size: Size, window: Size, rng: np.random.Generator, bounds: np.ndarray) -> Window:
    """Returns a window at one of the allowed positions, each as likely, found by counting them."""
    rows, columns, counts = _positions(size, window, bounds)
    passed = np.cumsum(counts)
    if not passed[-1]:
        raise UserError(
            f"expected room for windows of {window[1]}×{window[0]} (width×height) outside the validation areas and "
            "their buffer, found none; choose smaller windows, a smaller buffer or fewer folds"
        )
    number = int(rng.integers(passed[-1]))
    place = int(np.searchsorted(passed, number, side="right"))
    row, column = divmod(place, len(columns) - 1)
    down, across = divmod(int(passed[place]) - number - 1, int(columns[column + 1] - columns[column]))
    return Window(int(rows[row]) + down, int(columns[column]) + across, *window)


def _positions(size: Size, window: Size, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns rows and columns that divide all positions of a window, and how many are allowed in each rectangle.

    Areas forbid rectangles of positions; between their sides all positions of a rectangle are alike.
    """
    ends = np.array(size) - window + 1
    lows = np.clip(bounds[:, :2] - window + 1, 0, ends)
    highs = np.clip(bounds[:, 2:], 0, ends)
    rows, columns = (np.unique(np.concatenate([[0, ends[axis]], lows[:, axis], highs[:, axis]])) for axis in (0, 1))
    counts = np.outer(np.diff(rows), np.diff(columns))
    row_places = np.searchsorted(rows, np.stack([lows[:, 0], highs[:, 0]], axis=1)).tolist()
    column_places = np.searchsorted(columns, np.stack([lows[:, 1], highs[:, 1]], axis=1)).tolist()
    for (top, bottom), (left, right) in zip(row_places, column_places, strict=True):
        counts[top:bottom, left:right] = 0
    return rows, columns, counts
