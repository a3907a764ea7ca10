"""What one does to a mask: connected components with their boxes.

A mask is a bool array H×W. Knows nothing about classes, files or probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskloom.windows import Window


@dataclass(frozen=True, slots=True)
class Component:
    """One connected piece of a mask.

    ``window`` is its smallest enclosing box, ``area`` its number of pixels, ``mask`` the bool array of the window
    in which this piece alone is set.
    """

    window: Window
    area: int
    mask: np.ndarray


def label_components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Returns labels H×W (0 background, 1…n the 8-connected pieces, numbered by their first pixel) and n."""
    import cc3d

    if mask.ndim != 2 or mask.dtype != bool:
        raise ValueError(f"expected a bool mask H×W, got {mask.dtype} {mask.shape}")
    # As uint8: the path that cc3d 4.1.1 takes for bool arrays labels some pixels outside the mask (OpenCV as judge).
    grey = np.ascontiguousarray(mask).view(np.uint8)
    labels, count = cc3d.connected_components(grey, connectivity=8, return_N=True)
    return labels, int(count)


def components(mask: np.ndarray) -> list[Component]:
    """Returns the 8-connected pieces of a bool mask H×W in the order of their first pixel, row by row."""
    import cc3d

    labels, count = label_components(mask)
    if not count:
        return []
    facts = cc3d.statistics(labels)
    boxes, areas = facts["bounding_boxes"], facts["voxel_counts"]
    return [_component(labels, index, boxes[index], int(areas[index])) for index in range(1, count + 1)]


def _component(labels: np.ndarray, index: int, box: tuple[slice, ...], area: int) -> Component:
    rows, columns = box[0], box[1]
    window = Window(int(rows.start), int(columns.start), int(rows.stop - rows.start), int(columns.stop - columns.start))
    return Component(window, area, labels[window.slices] == index)
