"""Truth of a scene by window, from polygons or from a mask raster.

The labels of a window are those that the whole scene has there, bit for bit; the whole is never rasterised nor kept.
Knows nothing about images, nor about where truth comes from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from maskloom.data.mask_coding import MaskCoding, apply_known
from maskloom.encodings.polygons import polygons_of
from maskloom.errors import BadFile, UserError
from maskloom.rasters.reading import Raster
from maskloom.records import IGNORE, Size, Task
from maskloom.windows import Window

if TYPE_CHECKING:
    from shapely import Polygon
    from shapely.geometry.base import BaseGeometry


_BAND = 256  # rows: polygons are indexed band by band, so that a window meets few edges of a large one
_CELL = 512  # pixels: the side of the squares in which the pixels of a mask raster are counted
_ENTRIES = 2**13  # edges whose pixels are counted at a time
_FARTHEST = 2.0**30  # pixels

# Polygons -----------------------------------------------------------------------------------------------------------


class PolygonTruth:
    """The polygons of a scene's classes, rasterised in any window by the rule of ``rasterize_wkt``.

    GDAL sets the pixels whose centre lies inside: each row of centres is filled between the edges that cross it. The
    crossings are computed here as GDAL computes them, in the scene's own coordinates: in those of a window they would
    round differently, and a centre that lies on an edge, or very near, could change sides.
    """

    def __init__(self, size: Size, shapes: Iterable[tuple[int, str | BaseGeometry]]) -> None:
        """Takes pairs of class index and areas, WKT or shapely, in pixels of a scene of ``size``; painted in turn.

        Raises ``UserError`` for other geometries and for coordinates that are no finite pixels.
        """
        import shapely

        pairs = [(label, polygon) for label, shape in shapes for polygon in _polygons(shape)]
        polygons = np.array([polygon for _, polygon in pairs], dtype=object)
        rims, rim_of = _rims(polygons)
        order = np.argsort(np.append(np.arange(len(pairs)), rim_of), kind="stable")
        labels = np.array([label for label, _ in pairs], np.int64)
        ends, polygon = _edges(np.append(polygons, rims)[order])
        rows = np.clip(np.ceil(ends[:, [1, 3]] - 0.5), 0, size[0]).astype(np.int64)  # whose centres the edge crosses
        crosses = rows[:, 0] < rows[:, 1]
        self.size = size
        self._classes = np.unique(labels)
        self._ends, self._rows, polygon = ends[crosses], rows[crosses], polygon[crosses]

        # An item is what a polygon has in one band of rows; its edges are _entries[_starts[i]:_starts[i + 1]].
        first, last = self._rows[:, 0] // _BAND, (self._rows[:, 1] - 1) // _BAND
        entries, bands = np.repeat(np.arange(len(first)), last - first + 1), _ranges(first, last - first + 1)
        by_item = np.lexsort((bands, polygon[entries]))
        entries, bands = entries[by_item], bands[by_item]
        starts = np.flatnonzero(np.diff(polygon[entries], prepend=-1) | np.diff(bands, prepend=-1))
        self._entries, self._starts = entries, np.append(starts, len(entries))
        source = order[polygon[entries[starts]]]
        self._is_rim = source >= len(pairs)
        self._label = np.append(labels, labels[rim_of])[source]
        tops = np.maximum(self._rows[entries, 0], bands * _BAND)
        bottoms = np.minimum(self._rows[entries, 1], (bands + 1) * _BAND)
        self._tops, self._bottoms = np.minimum.reduceat(tops, starts), np.maximum.reduceat(bottoms, starts)
        xs = self._ends[entries][:, [0, 2]]
        self._lefts, self._rights = np.minimum.reduceat(xs.min(1), starts), np.maximum.reduceat(xs.max(1), starts)
        self._tree = shapely.STRtree(shapely.box(self._lefts, self._tops, self._rights, self._bottoms))

    def labels(self, window: Window, task: Task) -> np.ndarray:
        """Returns the labels of a window inside the scene: uint8 H×W, or C×H×W of 0 and 1 (multilabel).

        In a multiclass task later polygons cover earlier ones, and what none covers is label 0. Raises ``UserError``
        for a polygon of a class that the task has not.
        """
        import shapely

        _check_inside(window, self.size)
        self._check_classes(task)
        bottom, right = window.top + window.height, window.left + window.width
        items = np.sort(self._tree.query(shapely.box(window.left, window.top, right, bottom)))  # in turn
        size = (window.height, window.width)
        classes = self._label[items]
        if task.kind == "multilabel":
            maps = np.zeros((task.num_maps, *size), np.uint8)
            for label in np.unique(classes).tolist():
                self._paint(maps[label], window, items[classes == label], 1)
            return maps
        labels = np.zeros(size, np.uint8)
        changes = np.flatnonzero(np.diff(classes)) + 1 if task.kind == "multiclass" else np.zeros(0, np.int64)
        for run in np.split(items, changes) if len(items) else ():
            self._paint(labels, window, run, 1 if task.kind == "binary" else int(self._label[run[0]]))
        return labels

    def classes_present(self, task: Task) -> list[int]:
        """Returns the class indices whose polygons hold a pixel of the scene, ascending."""
        self._check_classes(task)
        return list(self._pixels)

    def pixel_of(self, label: int, task: Task, rng: np.random.Generator) -> tuple[int, int]:
        """Returns (row, column) of a random pixel in the polygons of a class that is present.

        Each pixel of each polygon is as likely, so one that several of them cover is so many times as likely.
        """
        items, ends = self._pixels[label]
        number = int(rng.integers(ends[-1]))
        place = int(np.searchsorted(ends, number, side="right"))
        rest = number - (int(ends[place - 1]) if place else 0)
        _, starts, stops = self._spans(items[place : place + 1], Window(0, 0, *self.size))
        passed = np.cumsum(stops - starts)
        span = int(np.searchsorted(passed, rest, side="right"))
        row, column = divmod(int(stops[span]) - (int(passed[span]) - rest), self.size[1] + 1)
        return row, column

    def _check_classes(self, task: Task) -> None:
        wrong = self._classes[(self._classes < 0) | (self._classes >= task.num_maps)]
        if len(wrong):
            raise UserError(
                f"expected polygons of the {task.num_maps} classes {', '.join(task.classes)[:200]}, found the class "
                f"index {wrong[0]}; indices begin with 0"
            )

    @cached_property
    def _pixels(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """By class: the items that hold pixels, and the sum of their pixels up to and with each."""
        counts = np.zeros(len(self._label), np.int64)
        bounds = np.unique(np.searchsorted(self._starts[:-1], np.arange(0, len(self._entries) + _ENTRIES, _ENTRIES)))
        for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            owners, starts, stops = self._spans(np.arange(first, last), Window(0, 0, *self.size))
            np.add.at(counts, first + owners, stops - starts)
        counts[self._is_rim] = 0  # nearly all of them lie in their polygon
        found = {}
        for label in np.unique(self._label[counts > 0]).tolist():
            items = np.flatnonzero((self._label == label) & (counts > 0))
            found[label] = (items, np.cumsum(counts[items]))
        return found

    def _paint(self, target: np.ndarray, window: Window, items: np.ndarray, value: int) -> None:
        """Sets the pixels of a window that any of the items covers."""
        top, bottom = max(window.top, self._tops[items].min()), self._bottoms[items].max()
        left, right = max(window.left, np.floor(self._lefts[items].min())), np.ceil(self._rights[items].max())
        bottom, right = min(window.top + window.height, bottom), min(window.left + window.width, right)
        if bottom <= top or right <= left:
            return
        inner = Window(int(top), int(left), int(bottom - top), int(right - left))
        _, starts, stops = self._spans(items, inner)
        cells = inner.height * (inner.width + 1)
        steps = np.bincount(starts, minlength=cells) - np.bincount(stops, minlength=cells)
        is_inside = steps.reshape(inner.height, -1).cumsum(axis=1)[:, :-1] > 0
        rows, columns = Window(inner.top - window.top, inner.left - window.left, inner.height, inner.width).slices
        target[rows, columns][is_inside] = value

    def _spans(self, items: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the runs of pixels that items cover in a window: the place of each one's item, start and stop.

        Starts and stops are row·(width + 1) + column of the window, so a run of no pixels is possible.
        """
        counts = self._starts[items + 1] - self._starts[items]
        owners = np.repeat(np.arange(len(items)), counts)
        entries = self._entries[_ranges(self._starts[items], counts)]
        tops = np.maximum(self._rows[entries, 0], np.maximum(self._tops[items], window.top)[owners])
        bottom = window.top + window.height
        bottoms = np.minimum(self._rows[entries, 1], np.minimum(self._bottoms[items], bottom)[owners])
        heights = np.maximum(bottoms - tops, 0)
        rows, owners = _ranges(tops, heights), np.repeat(owners, heights)
        x1, y1, x2, y2 = self._ends[np.repeat(entries, heights)].T
        crossings = ((rows + 0.5) - y1) * (x2 - x1) / (y2 - y1) + x1
        columns = np.clip(np.floor(crossings + 0.5) - window.left, 0, window.width).astype(np.int64)
        cells = window.height * (window.width + 1)
        keys = np.sort(owners * cells + (rows - window.top) * (window.width + 1) + columns)
        owners = keys[0::2] // cells  # a polygon's edges cross each row an even number of times
        return owners, keys[0::2] - owners * cells, keys[1::2] - owners * cells


def _polygons(shape: str | BaseGeometry) -> list[Polygon]:
    """Returns the polygons of an area, also of nested collections; raises ``UserError`` for anything else."""
    import shapely

    polygons = polygons_of(shape)
    farthest = np.abs(shapely.get_coordinates(np.array(polygons, dtype=object))).max(initial=0)
    if farthest > _FARTHEST:
        raise UserError(f"expected polygons in pixels, found coordinates of up to {farthest:g} in {shape!s:.60}")
    return polygons


def _edges(polygons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the slanting edges n×4 (x1, y1, x2, y2; y1 < y2) of polygons, and the number of each one's polygon."""
    import shapely

    rings, owner = shapely.get_rings(polygons, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    slants = (ring[1:] == ring[:-1]) & (points[1:, 1] != points[:-1, 1])
    ends = np.concatenate([points[:-1], points[1:]], axis=1)[slants]
    points_down = ends[:, 1] < ends[:, 3]
    return np.where(points_down[:, None], ends, ends[:, [2, 3, 0, 1]]), owner[ring[1:][slants]]


def _rims(polygons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns boxes around the centres on edges that GDAL fills besides, and the number of each one's polygon.

    These are horizontal edges that GDAL, which turns every ring clockwise with y up, follows from right to left. For
    all but the upper edges of holes the filling between crossings has them already.
    """
    import shapely

    rings, owner = shapely.get_rings(polygons, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    lies = (ring[1:] == ring[:-1]) & (points[1:, 1] == points[:-1, 1]) & (points[1:, 1] % 1 == 0.5)
    start, end, ring = points[:-1][lies], points[1:][lies], ring[1:][lies]
    concerned = np.unique(ring)
    is_clockwise = np.zeros(len(rings), bool)
    is_clockwise[concerned] = ~shapely.is_ccw(rings[concerned])
    for number in concerned[~shapely.is_simple(rings[concerned])].tolist():
        is_clockwise[number] = _is_clockwise(shapely.get_coordinates(rings[number]))
    fills = (start[:, 0] > end[:, 0]) == is_clockwise[ring]
    fills &= start[:, 0] != end[:, 0]
    left, right = np.minimum(start, end)[fills], np.maximum(start, end)[fills]
    return shapely.box(left[:, 0], left[:, 1] - 0.5, right[:, 0], right[:, 1] + 0.5), owner[ring[fills]]


def _is_clockwise(ring: np.ndarray) -> bool:
    """Returns the direction, y up, that GDAL sees in a ring n×2 that crosses or touches itself (first point = last).

    It is that of the turn at the lowest point (of several the rightmost), or the sign of the area where that point
    comes twice or lies beside a neighbour.
    """
    points = ring[:-1]
    lowest = int(np.lexsort((-points[:, 0], points[:, 1]))[0])
    before, after = points[lowest - 1] - points[lowest], points[(lowest + 1) % len(points)] - points[lowest]
    turn = after[0] * before[1] - before[0] * after[1]
    is_single = np.count_nonzero((points == points[lowest]).all(axis=1)) == 1
    if turn != 0 and is_single and min(np.abs(before).max(), np.abs(after).max()) >= 1e-5:
        return bool(turn < 0)
    area = np.sum(points[:, 0] * (np.roll(points[:, 1], -1) - np.roll(points[:, 1], 1)))
    return bool(area < 0)


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns start, start + 1 … for each start and count, one after the other."""
    ranges: np.ndarray = np.arange(int(counts.sum())) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
    return ranges


def _check_inside(window: Window, size: Size) -> None:
    if window.clipped(size) != window:
        raise ValueError(f"{window} reaches outside the scene of {size} (height, width)")


# Mask rasters -------------------------------------------------------------------------------------------------------


class MaskTruth:
    """A mask raster on the scene's grid, read by window; ``coding`` says what its values or colours mean.

    In a multilabel task whose coding is "foreground" each band is the map of one class. For what the file declares
    invalid (nodata, a mask) see ``apply_known``.
    """

    def __init__(self, raster: Raster, coding: MaskCoding, *, counts: Mapping[Task, np.ndarray] | None = None) -> None:
        """Takes an opened raster; ``counts`` are those of ``counts``, found by another process."""
        self.size = raster.size
        self._raster, self._coding = raster, coding
        self._counts = dict(counts or {})

    def labels(self, window: Window, task: Task) -> np.ndarray:
        """Returns the labels of a window inside the scene: uint8 H×W, or C×H×W (multilabel) of 0, 1 and ``IGNORE``.

        Raises ``BadFile`` where the raster is damaged, or holds other bands or values than the coding lists.
        """
        stored, is_valid = self._raster.read(window)
        bands = stored.shape[2]
        if task.kind == "multilabel" and self._coding.kind == "foreground":
            if bands != task.num_maps:
                raise BadFile(self._raster.path, f"expected a band for each of {task.num_maps} classes, found {bands}")
            return np.stack([self._labels(stored[:, :, band], is_valid) for band in range(bands)])
        if bands not in (1, 3, 4):
            raise BadFile(self._raster.path, f"expected a mask of one band, or of colours, found {bands} bands")
        labels = self._labels(stored[:, :, 0] if bands == 1 else stored[:, :, :3], is_valid)
        if task.kind != "multilabel":
            return labels
        maps = np.stack([labels == label for label in range(task.num_maps)]).astype(np.uint8)
        maps[:, labels == IGNORE] = IGNORE
        return maps

    def _labels(self, stored: np.ndarray, is_valid: np.ndarray) -> np.ndarray:
        return apply_known(self._coding, stored, is_valid, self._raster.path)

    def counts(self, task: Task) -> np.ndarray:
        """Returns the pixels of each class in each square of 512 pixels, int64 classes × squares, row by row.

        Reads the whole raster once, square by square. The one class of a binary task is the foreground.
        """
        if task not in self._counts:
            squares = [self._square(number) for number in range(_num_squares(self.size))]
            found = [[np.count_nonzero(plane) for plane in _planes(self.labels(at, task), task)] for at in squares]
            self._counts[task] = np.array(found, np.int64).T
        return self._counts[task]

    def classes_present(self, task: Task) -> list[int]:
        """Returns the class indices that have a pixel, ascending; reads the whole raster at the first call."""
        present: list[int] = np.flatnonzero(self.counts(task).any(axis=1)).tolist()
        return present

    def pixel_of(self, label: int, task: Task, rng: np.random.Generator) -> tuple[int, int]:
        """Returns (row, column) of a random pixel of a class that is present; each is as likely."""
        ends = np.cumsum(self.counts(task)[label])
        number = int(rng.integers(ends[-1]))
        place = int(np.searchsorted(ends, number, side="right"))
        square = self._square(place)
        plane = list(_planes(self.labels(square, task), task))[label]
        rest = number - (int(ends[place - 1]) if place else 0)
        row, column = divmod(int(np.flatnonzero(plane)[rest]), square.width)
        return square.top + row, square.left + column

    def _square(self, number: int) -> Window:
        row, column = divmod(number, -(-self.size[1] // _CELL))
        return Window(row * _CELL, column * _CELL, _CELL, _CELL).clipped(self.size)


def _num_squares(size: Size) -> int:
    return -(-size[0] // _CELL) * -(-size[1] // _CELL)


def _planes(labels: np.ndarray, task: Task) -> Iterable[np.ndarray]:
    """Yields the bool array H×W of each class index."""
    if task.kind == "multilabel":
        return (plane == 1 for plane in labels)
    return (labels == value for value in ((1,) if task.kind == "binary" else range(task.num_maps)))
