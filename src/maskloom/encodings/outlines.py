"""Masks → polygons: the exact outlines of pixels, and what makes them presentable.

Coordinates are pixels: x to the right, y down, (0, 0) the outer corner of the first pixel. Outlines run along the
edges of pixels, so the way back (``rasterize_wkt``) loses nothing. Knows nothing about files, classes or the ground.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.errors import UserError
from maskloom.masks import label_components
from maskloom.records import Size

if TYPE_CHECKING:
    from shapely import LinearRing, Polygon
    from shapely.geometry.base import BaseGeometry

MOST_CROSSINGS = 2000
"""So often outlines that are to be repaired may cross themselves: time grows with the square, to seconds here."""
_PAIRS = 500_000  # of segments of a ring, which are looked at; a ring of 700 points is counted exactly
_OUTSIDE = 1e-6  # pixels; coordinates that went to the ground, or to a grid, and back may end so far outside


def outlines(mask: np.ndarray) -> list[Polygon]:
    """Returns the outlines of a bool mask H×W, one polygon with its holes per 4-connected piece, by first pixel.

    Pieces that meet at a corner are two polygons. No ring touches itself: where the rim of a piece meets itself at a
    corner, what it encloses is a hole. So every polygon is valid, and so is the MultiPolygon of all.

    >>> [polygon.wkt for polygon in outlines(np.array([[False, True, True]]))]
    ['POLYGON ((1 0, 3 0, 3 1, 1 1, 1 0))']
    """
    if mask.ndim != 2 or mask.dtype != bool:
        raise ValueError(f"expected a bool mask H×W, got {mask.dtype} {mask.shape}")
    segments = _Segments(mask)
    order, starts = segments.rings()
    if not len(order):
        return []
    return assembled(segments.edges, order, starts, _pieces(mask, segments.edges, order[starts[:-1]]))


def _pieces(mask: np.ndarray, edges: Edges, firsts: np.ndarray) -> np.ndarray:
    """Returns the number of each ring's piece by the ring's first edge; labelled only if there are holes."""
    is_above = edges.is_above[firsts]
    if is_above.all():
        return np.arange(len(firsts))
    labels, _ = label_components(mask, connectivity=4)
    pieces: np.ndarray = labels[edges.y[firsts] - ~is_above, edges.left[firsts]]
    return pieces


def assembled(edges: Edges, order: np.ndarray, starts: np.ndarray, pieces: np.ndarray) -> list[Polygon]:
    """Returns the polygons of rings of edges, given as ``cycles`` gives them, in the order of their shells.

    ``pieces`` holds a number for each ring that is the same for the rings of one piece. Edges must be sorted row by
    row, so that each ring begins with its topmost one.
    """
    import shapely

    is_shell = edges.is_above[order[starts[:-1]]]  # the topmost edge of a shell has its piece below, of a hole above
    shell_of = np.zeros(int(pieces.max()) + 1, np.int64)
    shell_of[pieces[is_shell]] = np.arange(np.count_nonzero(is_shell))
    sequence = np.lexsort((~is_shell, shell_of[pieces]))  # each shell before its holes; stable: holes keep their order
    counts = np.diff(starts)[sequence]
    places = np.repeat(starts[:-1][sequence], counts) + _counted(counts)
    coordinates, ring_ends = _closed_rings(edges, order[places], counts)
    polygon_starts = np.flatnonzero(is_shell[sequence])
    offsets = (np.append(0, ring_ends), np.append(polygon_starts, len(counts)))
    polygons: list[Polygon] = shapely.from_ragged_array(shapely.GeometryType.POLYGON, coordinates, offsets).tolist()
    return polygons


def _counted(counts: np.ndarray) -> np.ndarray:
    """Returns 0…n-1 for each count n, one after the other."""
    ends = np.cumsum(counts)
    counted: np.ndarray = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
    return counted


def _closed_rings(edges: Edges, order: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the coordinates (x, y) of rings of so many edges, and where each ends; first point = last."""
    ends = np.cumsum(2 * counts + 1)
    within = np.arange(len(order)) * 2 + np.repeat(np.arange(len(counts)), counts)
    coordinates = np.empty((ends[-1], 2))
    coordinates[within, 0], coordinates[within + 1, 0] = edges.start[order], edges.end[order]
    coordinates[within, 1] = coordinates[within + 1, 1] = edges.y[order]
    coordinates[ends - 1] = coordinates[ends - 1 - 2 * counts]
    return coordinates, ends


@dataclass(frozen=True, slots=True)
class Corners:
    """Where the outline turns, row by row: each corner ends one horizontal and one vertical edge.

    ``falls``: the pixel below and to the right is set. Where two pixels meet at a corner, like \\ or like /, two
    corners lie in one place: first the end of the edge on the left, then (``is_second``) the start of the edge on the
    right. ``is_lower``: the corner of the lower of two such pixels, as long as these count as two pieces.
    """

    y: np.ndarray
    x: np.ndarray
    falls: np.ndarray
    is_second: np.ndarray
    is_lower: np.ndarray


def find_corners(padded: np.ndarray) -> Corners:
    """Returns the corners between the rows of a bool array H+1×W+2, which is unset in its first and last column.

    ``x`` counts from 0 at the left of the second column, ``y`` from 0 between the first and the second row.
    """
    changes = padded[:, 1:] ^ padded[:, :-1]
    turns = changes[1:] ^ changes[:-1]
    meetings = changes[1:] & changes[:-1]
    meetings &= padded[1:, 1:] ^ padded[:-1, 1:]
    turns |= meetings
    places = np.flatnonzero(turns)
    is_meeting = meetings.ravel()[places]
    twice = np.repeat(np.arange(len(places)), 1 + is_meeting)
    is_second = np.diff(twice, prepend=-1) == 0
    y, x = np.divmod(places[twice], turns.shape[1])
    falls = padded[y + 1, x + 1]
    # The corner of the upper pixel comes first on the way down: the left one of \, the right one of /.
    return Corners(y, x, falls, is_second, is_meeting[twice] & (is_second == falls))


@dataclass(frozen=True, slots=True)
class Edges:
    """Horizontal edges, row by row, each directed so that the mask lies to its right (on the screen).

    ``start`` and ``end`` are x, ``y`` is the row of both.
    """

    y: np.ndarray
    start: np.ndarray
    end: np.ndarray

    @classmethod
    def between(cls, corners: Corners) -> Edges:
        """Returns the edges between the corners: edge n leads from corner 2n to corner 2n+1, or back."""
        left, right, is_above = corners.x[0::2], corners.x[1::2], corners.falls[0::2]
        return cls(corners.y[0::2], np.where(is_above, left, right), np.where(is_above, right, left))

    @property
    def is_above(self) -> np.ndarray:
        """Whether the mask lies below the edge."""
        is_above: np.ndarray = self.start < self.end
        return is_above

    @property
    def left(self) -> np.ndarray:
        """The first column of the edge."""
        left: np.ndarray = np.minimum(self.start, self.end)
        return left

    def following(self, down: np.ndarray) -> np.ndarray:
        """Returns the edge that follows each one: a vertical edge leads from its end to the start of that one.

        ``down`` sorts the corners (2n the left one of edge n, 2n+1 its right one) column by column, from the top.
        """
        partner = np.empty_like(down)  # the corner at the other end of the vertical edge
        partner[down[0::2]], partner[down[1::2]] = down[1::2], down[0::2]
        following: np.ndarray = partner[2 * np.arange(len(self.y)) + self.is_above] // 2
        return following


class _Segments:
    """The edges of a mask and which one follows which; a ring is a cycle of ``following``."""

    def __init__(self, mask: np.ndarray) -> None:
        corners = find_corners(np.pad(mask, 1))
        self.edges = Edges.between(corners)
        height = len(mask) + 1
        self.following = self.edges.following(np.argsort((corners.x * height + corners.y) * 2 + corners.is_lower))
        second = np.flatnonzero(corners.is_second)
        self._meetings = np.stack([second - 1, second]) // 2  # pairs of segments that meet at a pixel's corner
        self._meet_at_start = corners.falls[second]  # both start there if the pixels lie like \, end there if like /

    def rings(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the segments ring by ring, and where each ring starts (and the last ends); none touches itself."""
        following, ring = self.following, _smallest_on_cycle(self.following)
        touches = ring[self._meetings[0]] == ring[self._meetings[1]]
        if touches.any():
            following = self._split(touches)
            ring = _smallest_on_cycle(following)
        return _in_turn(following, ring)

    def _split(self, touches: np.ndarray) -> np.ndarray:
        """Returns ``following`` with its ways exchanged at these meetings, which makes two rings of each one.

        Curves on one side of a ring do not cross, so the exchanges do not disturb each other.
        """
        ways = []
        for here in (touches & self._meet_at_start, touches & ~self._meet_at_start):
            way = np.arange(len(self.following))
            one, other = self._meetings[:, here]
            way[one], way[other] = other, one
            ways.append(way)
        starts, ends = ways
        split: np.ndarray = starts[self.following[ends]]
        return split


def cycles(following: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the members of a permutation cycle by cycle, each from its smallest on, and where each cycle starts.

    Cycles come in the order of their smallest members; the last start is the end of the last cycle.
    """
    return _in_turn(following, _smallest_on_cycle(following))


def _smallest_on_cycle(following: np.ndarray) -> np.ndarray:
    """Returns for each member of a permutation the smallest one on its cycle, looking twice as far ahead each time."""
    smallest, ahead = np.arange(len(following)), following
    while True:
        smaller = np.minimum(smallest, smallest[ahead])
        if np.array_equal(smaller, smallest):
            return smallest
        smallest, ahead = smaller, ahead[ahead]


def _in_turn(following: np.ndarray, smallest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the members cycle by cycle, each from its smallest on; where each cycle starts, and the last ends."""
    members = np.arange(len(following))
    is_first = smallest == members
    ahead, steps = np.where(is_first, members, following), (~is_first).astype(np.int64)  # steps to the smallest
    while (more := steps[ahead]).any():
        steps += more
        ahead = ahead[ahead]
    cycle = (np.cumsum(is_first) - 1)[smallest]
    counts = np.bincount(cycle)
    starts = np.append(0, np.cumsum(counts))
    order = np.empty_like(members)
    order[starts[cycle] + (-steps) % counts[cycle]] = members
    return order, starts


# Cleaning -----------------------------------------------------------------------------------------------------------


def cleaned(
    polygons: Sequence[Polygon],
    *,
    simplify: float = 0.0,
    min_area: float = 0.0,
    min_hole: float = 0.0,
    buffer: float = 0.0,
) -> list[Polygon]:
    """Returns polygons without small parts and holes, simplified and buffered; lengths are in their own unit.

    In this order: parts of less than ``min_area`` (holes not counted as area) go, holes of less than ``min_hole`` are
    filled, vertices that move the outline by at most ``simplify`` go (Douglas-Peucker, each polygon's topology kept),
    the outline moves outwards by ``buffer`` (inwards if negative, which may split or swallow a polygon), and what has
    come to overlap or cross is repaired. None of the result is empty, and their MultiPolygon is valid. With nothing
    asked, polygons that are valid come back unchanged.
    """
    import shapely

    if min(simplify, min_area, min_hole) < 0:
        raise ValueError(f"expected at least 0, got simplify={simplify}, min_area={min_area}, min_hole={min_hole}")
    shapes = np.array(list(polygons), dtype=object)
    if min_area:
        shapes = shapes[shapely.area(shapes) >= min_area]
    if min_hole:
        holed = shapely.get_num_interior_rings(shapes) > 0
        shapes[holed] = [_without_small_holes(polygon, min_hole) for polygon in shapes[holed]]
    if simplify:
        shapes = shapely.simplify(shapes, simplify, preserve_topology=True)
    if buffer:
        shapes = shapely.buffer(shapes, buffer, quad_segs=16)
    return repaired(areas(shapes))


def _without_small_holes(polygon: Polygon, minimum: float) -> Polygon:
    import shapely

    rings = shapely.get_rings(polygon)
    is_kept = shapely.area(shapely.polygons(rings)) >= minimum
    return shapely.polygons(rings[0], holes=rings[1:][is_kept[1:]])


def repaired(polygons: Sequence[Polygon]) -> list[Polygon]:
    """Returns polygons that cover the same area and whose MultiPolygon is valid; valid ones come back unchanged.

    Inside one polygon that crosses itself the even-odd rule holds, several that overlap are united, as in
    ``rasterize_wkt``; those that meet no other stay as they are, as a table may hold tens of thousands of which a few
    overlap. Empty polygons, and whatever has no area, are left out. Raises ``UserError`` for outlines that cross
    themselves more often than ``MOST_CROSSINGS``, which are none of areas.
    """
    import shapely

    filled = [polygon for polygon in polygons if not polygon.is_empty]
    if not filled or shapely.is_valid(shapely.multipolygons(filled)):
        return filled
    _check_crossings(filled)
    parts = np.array(areas(shapely.make_valid(filled)), dtype=object)
    one, other = shapely.STRtree(parts).query(parts, predicate="intersects")
    meets = np.zeros(len(parts), np.bool_)
    meets[one[one != other]] = True
    return areas([*parts[~meets].tolist(), shapely.union_all(parts[meets])])


def _check_crossings(polygons: Sequence[Polygon]) -> None:
    import shapely

    shapes = np.array(polygons, dtype=object)
    shapes = shapes[~shapely.is_valid(shapes)]
    counts = [sum(map(num_crossings, shapely.get_rings(shape))) for shape in shapes]
    if (largest := max(counts, default=0)) > MOST_CROSSINGS or np.hypot.reduce(counts) > MOST_CROSSINGS:
        points = int(shapely.get_num_coordinates(shapes[counts.index(largest)]))
        raise UserError(
            f"expected the outlines of areas, found one of {points} points that crosses itself some {largest} times; "
            f"{MOST_CROSSINGS} can be repaired; see that its points are in order, or leave it out"
        )


def num_crossings(ring: LinearRing) -> int:
    """Returns how often a ring crosses itself, which touching is not; of a long one an estimate by some segments."""
    import shapely

    points = shapely.get_coordinates(ring)
    segments = shapely.linestrings(np.stack([points[:-1], points[1:]], axis=1))
    num_chosen = min(len(segments), max(_PAIRS // len(segments), 16))
    chosen = np.linspace(0, len(segments) - 1, num_chosen).astype(np.int64)
    crossed = shapely.STRtree(segments).query(segments[chosen], predicate="crosses")
    return round(int(crossed.shape[1]) * len(segments) / len(chosen) / 2)


def clipped(polygons: Sequence[Polygon], size: Size) -> tuple[list[Polygon], int]:
    """Returns the parts of valid polygons inside an image of ``size`` (height, width), and how many reach outside it.

    Coordinates are pixels; polygons that lie inside come back unchanged.
    """
    import shapely

    height, width = size
    shapes = np.array(polygons, dtype=object)
    left, top, right, bottom = shapely.bounds(shapes).reshape(-1, 4).T
    reaches = (left < -_OUTSIDE) | (top < -_OUTSIDE) | (right > width + _OUTSIDE) | (bottom > height + _OUTSIDE)
    if not reaches.any():
        return list(polygons), 0
    shapes[reaches] = shapely.intersection(shapes[reaches], shapely.box(0, 0, width, height))
    return areas(shapes), int(reaches.sum())


def areas(geometries: Iterable[BaseGeometry]) -> list[Polygon]:
    """Returns the polygons in geometries, those of collections too; points, lines and empty polygons are left out."""
    import shapely

    parts = np.array(list(geometries), dtype=object)
    while np.any(shapely.get_type_id(parts) > shapely.GeometryType.POLYGON):  # collections may hold MultiPolygons
        parts = shapely.get_parts(parts)
    is_area = (shapely.get_type_id(parts) == shapely.GeometryType.POLYGON) & ~shapely.is_empty(parts)
    polygons: list[Polygon] = parts[is_area].tolist()
    return polygons
