"""What one does to a mask: connected components with their boxes, holes, hulls, far, small and thin parts; overlaps.

A mask is a bool array H×W; functions return new arrays. Lengths are in pixels, areas in square pixels. Knows nothing
about what classes mean, nor about files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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


def label_components(mask: np.ndarray, *, connectivity: Literal[4, 8] = 8) -> tuple[np.ndarray, int]:
    """Returns labels H×W (0 background, 1…n the connected pieces, numbered by their first pixel) and n."""
    import cc3d

    if mask.ndim != 2 or mask.dtype != bool:
        raise ValueError(f"expected a bool mask H×W, got {mask.dtype} {mask.shape}")
    # As uint8: the path that cc3d 4.1.1 takes for bool arrays labels some pixels outside the mask (OpenCV as judge).
    grey = np.ascontiguousarray(mask).view(np.uint8)
    labels, count = cc3d.connected_components(grey, connectivity=connectivity, return_N=True)
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


def fill_holes(mask: np.ndarray, *, maximum_area: float | None = None) -> np.ndarray:
    """Returns the mask with its interior holes filled: background that no path of side-by-side pixels leads out of.

    Only holes of at most ``maximum_area`` are filled, where it is given. Background that touches the image's border is
    no hole. Source: Carvana, 4th place (the van's windows).
    """
    labels, count = label_components(~mask, connectivity=4)
    is_hole = np.ones(count + 1, bool)
    is_hole[0] = False
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        is_hole[edge] = False
    if maximum_area is not None:
        is_hole &= np.bincount(labels.ravel(), minlength=count + 1) <= maximum_area
    filled: np.ndarray = mask | is_hole[labels]
    return filled


def remove_small(mask: np.ndarray, minimum_area: float) -> np.ndarray:
    """Returns the mask without its 8-connected pieces of less than ``minimum_area``."""
    labels, count = label_components(mask)
    is_kept = np.bincount(labels.ravel(), minlength=count + 1) >= minimum_area
    is_kept[0] = False
    kept: np.ndarray = is_kept[labels]
    return kept


def remove_far(mask: np.ndarray, distance: float) -> np.ndarray:
    """Returns the mask without the pieces that lie farther than ``distance`` outside the largest piece's contour.

    Distances are between the nearest pixels' centres; a piece inside a hole of the largest one lies inside its
    contour. Source: Carvana, 4th place and a neighbour on its leaderboard.
    """
    import cv2

    labels, count = label_components(mask)
    if count < 2:
        return mask.copy()
    areas = np.bincount(labels.ravel())
    main = fill_holes(labels == 1 + int(areas[1:].argmax()))
    away = cv2.distanceTransform((~main).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    is_near = np.zeros(count + 1, bool)
    is_near[labels[away <= distance]] = True
    is_near[0] = False
    near: np.ndarray = is_near[labels]
    return near


def remove_thin(mask: np.ndarray, width: int, *, length: float) -> np.ndarray:
    """Returns the mask without its parts that are narrower than ``width`` and reach farther than ``length``.

    What a disc of diameter ``width`` cannot cover from inside (a morphological opening) falls into pieces; those that
    stay within ``length`` of what it covers are corners and come back whole, those that reach farther (antennas) go
    whole, and so do thin pieces beside the object. At the image's border an object counts as going on. A mask that is
    thin everywhere stays as it is: nothing is a part of it. Source: Carvana, 10th place (the opening; which pieces come
    back is ours).
    """
    import cv2

    if width < 2 or not mask.any():
        return mask.copy()
    offsets = np.arange(width) - (width - 1) / 2
    disc = (np.hypot(offsets[:, None], offsets) <= width / 2).astype(np.uint8)
    before, after = width // 2, width - 1 - width // 2  # mirrored, or an even disc would move the mask by a pixel
    eroded = cv2.erode(np.ascontiguousarray(mask).view(np.uint8), disc, anchor=(before, before))
    thick = cv2.dilate(eroded, disc, anchor=(after, after))
    if not thick.any():
        return mask.copy()
    thin = mask & (thick == 0)
    labels, count = label_components(thin)
    away = cv2.distanceTransform(1 - thick, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    reaches = np.zeros(count + 1, bool)
    reaches[labels[thin & (away > length)]] = True
    kept: np.ndarray = mask & ~reaches[labels]
    return kept


@dataclass(frozen=True, slots=True)
class Erosion:
    """A rectangular erosion: a pixel stays if all pixels up to so far in each direction belong, image borders apart."""

    above: int
    below: int
    left: int
    right: int


def hull_of_unsure(
    mask: np.ndarray,
    values: np.ndarray,
    *,
    unsure: tuple[int, int],
    erosion: Erosion,
    top: float,
    minimum_area: float,
    margin: int,
    above: int,
) -> np.ndarray:
    """Returns the mask with the box around a large unsure region replaced by the convex hull of the likely object.

    ``values`` are 8-bit probabilities H×W. Unsure are those strictly between the two of ``unsure``; that region is
    eroded, and the largest outer contour in the upper share ``top`` of the rows is looked at. If its area exceeds
    ``minimum_area``, the mask inside its bounding box, grown by ``margin`` and cut off at the image's border, becomes
    the convex hull of the largest contour of ``values`` > ``above`` (of the whole image). Without such a contour the
    mask stays. Areas are those of the polygon through pixel centres. Source: Carvana, 1st place (the published code
    lets a box that begins above the image wrap around; this one does not).
    """
    import cv2

    low, high = unsure
    size = (erosion.above + erosion.below + 1, erosion.left + erosion.right + 1)
    doubtful = ((values > low) & (values < high)).view(np.uint8)
    region = cv2.erode(doubtful, np.ones(size, np.uint8), anchor=(erosion.left, erosion.above))
    largest = _largest_contour(region[: int(top * len(region))])
    if largest is None or cv2.contourArea(largest) <= minimum_area:
        return mask.copy()
    outline = _largest_contour((values > above).astype(np.uint8))
    if outline is None:
        return mask.copy()
    hull = np.zeros(mask.shape, np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(outline), 1)
    left, first, width, height = cv2.boundingRect(largest)
    box = Window(first - margin, left - margin, height + 2 * margin, width + 2 * margin).clipped(mask.shape)
    replaced = mask.copy()
    replaced[box.slices] = hull[box.slices] == 1
    return replaced


def _largest_contour(region: np.ndarray) -> np.ndarray | None:
    """Returns the outer contour of the largest area above 0, the first of equal ones, or None."""
    import cv2

    contours, _ = cv2.findContours(np.ascontiguousarray(region), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    largest = max(contours, key=cv2.contourArea, default=None)
    return largest if largest is not None and cv2.contourArea(largest) > 0 else None


def clear_overlaps(maps: np.ndarray, rules: Sequence[tuple[int, tuple[int, ...]]]) -> np.ndarray:
    """Returns maps C×H×W, bool or uint8 of 0 and 1, in which overlapping classes give way to each other.

    Each rule names a winner and its losers by index: where the winner is set, its losers are cleared. Rules hold in
    their order, so what one has cleared wins nothing in a later one. Raises ``ValueError`` for an index that is none.

    >>> clear_overlaps(np.array([[[1, 1]], [[0, 1]]], bool), [(1, (0,))]).astype(int).tolist()
    [[[1, 0]], [[0, 1]]]
    """
    if maps.ndim != 3 or maps.dtype not in (bool, np.uint8):
        raise ValueError(f"expected bool or uint8 maps C×H×W, got {maps.dtype} {maps.shape}")
    cleared = maps.copy()
    for winner, losers in rules:
        if winner in losers or not all(0 <= index < len(maps) for index in (winner, *losers)):
            raise ValueError(f"expected a winner and other losers among {len(maps)} maps, got {winner} and {losers}")
        is_won = cleared[winner] != 0
        for loser in losers:
            cleared[loser][is_won] = 0
    return cleared
