"""Training windows of scenes: where one is drawn, and reading that one alone.

Scenes are records with further bands and truth in polygons; the whole is neither read nor rasterised. Knows nothing
about networks and augmentation.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from maskloom.data.input_policy import InputPolicy, cut_image, cut_labels, place
from maskloom.data.record_images import read_pixels
from maskloom.data.scene_truth import PolygonTruth
from maskloom.data.window_drawing import draw_window
from maskloom.records import IGNORE, Record, Shapes, Size, Task
from maskloom.windows import Window

_KEPT = 64  # scenes whose polygons stay indexed, in each process


def is_scene(record: Record, policy: InputPolicy) -> bool:
    """Returns whether windows of the record can be read by themselves: neither resized nor equalised as a whole."""
    by_window = policy.mode == "window" and policy.scale == 1 and not policy.clahe
    return by_window and bool(record.bands) and isinstance(record.truth, Shapes) and policy.prefer_mask_mean is None


def drawn_window(
    record: Record, policy: InputPolicy, task: Task, rng: np.random.Generator, *, part: Task | None = None
) -> Window:
    """Returns a random window in pixels of the record's image, of the policy's size; it may reach beyond the border.

    Every place in the image with the policy's padding is as likely; with probability ``policy.prefer_class`` the window
    lies around a pixel of a class that is there, of the ``task`` or of a ``part`` of its classes.
    """
    assert policy.size is not None, "the policy sees to that"
    placement = place(record.size, policy)
    top, left = placement.padding.top, placement.padding.left
    if rng.random() < policy.prefer_class:
        truth = _truth_of(record)
        wanted = (part or task).classes
        present = [label for label in truth.classes_present(task) if task.classes[label] in wanted]
        if present:
            row, column = truth.pixel_of(present[int(rng.integers(len(present)))], task, rng)
            ends = [length - side for length, side in zip(placement.padded, policy.size, strict=True)]
            first = min(max(row + top - policy.size[0] // 2, 0), ends[0])
            second = min(max(column + left - policy.size[1] // 2, 0), ends[1])
            return Window(first - top, second - left, *policy.size)
    drawn = draw_window(placement.padded, policy.size, rng)
    return Window(drawn.top - top, drawn.left - left, drawn.height, drawn.width)


def read_window(record: Record, window: Window, policy: InputPolicy, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixels H×W×C as stored and the labels of a window, which may reach beyond the record's image.

    There pixels are filled as the policy says and labels are ``IGNORE``, which they also are where the files know no
    pixel. Raises ``BadFile`` for a damaged file.
    """
    inside = window.clipped(record.size)
    pixels, is_valid = read_pixels(record, inside)
    labels = _truth_of(record).labels(inside, task)
    if not is_valid.all():
        pixels[~is_valid] = 0
        labels[..., ~is_valid] = IGNORE
    own = Window(window.top - inside.top, window.left - inside.left, window.height, window.width)
    return cut_image(pixels, own, padding=policy.padding), cut_labels(labels, own)


def _truth_of(record: Record) -> PolygonTruth:
    assert isinstance(record.truth, Shapes), "see is_scene"
    return _indexed(record.size, record.truth)


@lru_cache(maxsize=_KEPT)
def _indexed(size: Size, shapes: Shapes) -> PolygonTruth:
    return PolygonTruth(size, shapes.wkt)
