"""The exact outlines of a mask that comes strip by strip: as ``outlines`` draws them, for masks larger than memory.

What is kept from strip to strip are the edges of the pieces that reach the last row; a piece is traced when it has
ended. Knows nothing about files, classes or the ground.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from maskloom.encodings.outlines import Edges, assembled, cycles, find_corners
from maskloom.masks import label_components

if TYPE_CHECKING:
    from shapely import Polygon

_PIXELS = 2**22
"""Strips of more pixels are taken in parts: the arrays that a part needs are about ten times as large."""

_EDGE_BYTES = 12
"""Of a kept edge: y, start and end as int32."""


def outlines_of_strips(strips: Iterable[np.ndarray], width: int) -> Iterator[Polygon]:
    """Yields the polygons that ``outlines`` returns for the mask of which bool strips h×W come from top to bottom.

    Each comes as soon as the rows so far show that its piece has ended; those that end together come by first pixel.
    Strips may differ in height, be of one row, or empty. Memory holds one strip, what ended with it, and the edges
    of the pieces that go on: 12 bytes per horizontal edge. A strip costs its pixels and the pieces at its border, so
    some hundred rows at a time are best. Raises ``ValueError`` for a strip of another type or width.

    >>> [polygon.wkt for polygon in outlines_of_strips([np.array([[False, True, True]])] * 2, width=3)]
    ['POLYGON ((1 0, 3 0, 3 2, 1 2, 1 0))']
    """
    tracer = _Tracer(width)
    for strip in strips:
        if strip.ndim != 2 or strip.dtype != bool or strip.shape[1] != width:
            raise ValueError(f"expected bool strips h×{width}, got {strip.dtype} {strip.shape}")
        rows = max(_PIXELS // max(width, 1), 1)
        for top in range(0, len(strip), rows):
            yield from tracer.add(strip[top : top + rows])
    yield from tracer.add(np.zeros((1, width), bool))


class _Tracer:
    """Takes a mask part by part, keeps what goes on and gives what has ended."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._top = 0  # the first row of the next part
        self._row = np.full(width, -1)  # the last row so far: the place in _open of each pixel's piece, -1 if unset
        self._open: list[bytearray] = []  # the edges of each piece that reaches the last row

    def add(self, part: np.ndarray) -> list[Polygon]:
        """Returns the polygons of the pieces that do not reach the last row of ``part``, the next rows of the mask."""
        top, self._top = self._top, self._top + len(part)
        if not (self._open or part.any()):
            return []
        # Numbers count the open pieces first, then the components of this part. What meets at the seam is one piece.
        known = len(self._open)
        labels, count = label_components(part, connectivity=4)
        meets = (self._row >= 0) & part[0]
        piece_of = _united(known + count, self._row[meets], _numbers(labels[0][meets], known))
        in_last_row = piece_of[_numbers(labels[-1][part[-1]], known)]
        goes_on = np.zeros(known + count, bool)
        goes_on[in_last_row] = True
        place = np.where(goes_on, np.cumsum(goes_on) - 1, -1)

        edges, numbers = self._edges(part, labels)
        rows = np.stack([edges.y + top, edges.start, edges.end], axis=1).astype(np.int32)
        pieces = piece_of[numbers]
        ended = self._pass_on(place, piece_of[:known])
        self._keep(rows, place[pieces])
        self._row = np.full(self._width, -1)
        self._row[part[-1]] = place[in_last_row]
        is_new = ~goes_on[pieces]
        owners = [np.full(len(table), piece) for piece, table in ended]
        tables = [table for _, table in ended]
        return _traced(np.concatenate([*tables, rows[is_new]]), np.concatenate([*owners, pieces[is_new]]), self._width)

    def _edges(self, part: np.ndarray, labels: np.ndarray) -> tuple[Edges, np.ndarray]:
        """Returns the edges above the rows of a part, y counted from its top, and the number of each one's piece."""
        padded = np.zeros((len(part) + 1, self._width + 2), bool)
        padded[0, 1:-1] = self._row >= 0
        padded[1:, 1:-1] = part
        edges = Edges.between(find_corners(padded))
        rows, columns = edges.y - ~edges.is_above, edges.left  # of the piece's pixels; row -1: the last one before
        return edges, np.where(rows < 0, self._row[columns], _numbers(labels[rows, columns], len(self._open)))

    def _pass_on(self, place: np.ndarray, piece_of: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Makes room for the pieces that go on, with the edges they had; returns (piece, edges) of what has ended."""
        before, self._open = self._open, [bytearray() for _ in range(int(place.max()) + 1)]
        ended: list[tuple[int, np.ndarray]] = []
        for piece, here, kept in zip(piece_of.tolist(), place[piece_of].tolist(), before, strict=True):
            if here < 0:
                ended.append((piece, np.frombuffer(kept, np.int32).reshape(-1, 3)))
                continue
            shorter, longer = sorted((self._open[here], kept), key=len)
            longer += shorter
            self._open[here] = longer
        return ended

    def _keep(self, rows: np.ndarray, places: np.ndarray) -> None:
        """Adds edges to the open pieces at these places; those at -1 are left out."""
        order = np.argsort(places, kind="stable")[np.count_nonzero(places < 0) :]
        content = memoryview(rows[order].tobytes())
        present, begins = np.unique(places[order], return_index=True)
        bounds = (np.append(begins, len(order)) * _EDGE_BYTES).tolist()
        for here, begin, end in zip(present.tolist(), bounds[:-1], bounds[1:], strict=True):
            self._open[here] += content[begin:end]


def _numbers(labels: np.ndarray, known: int) -> np.ndarray:
    """Returns the numbers of labels 1…n where ``known`` open pieces are counted first."""
    numbers: np.ndarray = labels.astype(np.int64) + (known - 1)
    return numbers


def _united(count: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns for each of 0…count-1 the smallest number that it is one with, if one[i] and other[i] are for all i."""
    smallest = np.arange(count)
    while True:
        low, high = np.minimum(smallest[one], smallest[other]), np.maximum(smallest[one], smallest[other])
        if np.array_equal(low, high):
            return smallest
        np.minimum.at(smallest, high, low)
        while not np.array_equal(smallest, further := smallest[smallest]):
            smallest = further


def _traced(rows: np.ndarray, pieces: np.ndarray, width: int) -> list[Polygon]:
    """Returns the polygons of whole pieces by first pixel; their edges n×3 (y, start, end) come in any order."""
    if not len(rows):
        return []
    rows = rows.astype(np.int64)
    by_row = np.argsort(rows[:, 0] * (width + 1) + rows[:, 1:].min(axis=1))
    edges, pieces = Edges(*np.ascontiguousarray(rows[by_row].T)), pieces[by_row]
    x = np.stack([edges.left, np.maximum(edges.start, edges.end)], axis=1).ravel()
    y, falls = np.repeat(edges.y, 2), np.repeat(edges.is_above, 2)
    down = (np.repeat(pieces, 2) * (width + 1) + x) * (int(y.max()) + 1) + y
    # Where two pixels of one piece meet at a corner, its rim must not touch itself: it turns there around the unset
    # pixels, so the vertical edge from above goes on with the horizontal one that has its pixel below.
    order, starts = cycles(edges.following(np.argsort(2 * down + ~falls)))
    return assembled(edges, order, starts, pieces[order[starts[:-1]]])
