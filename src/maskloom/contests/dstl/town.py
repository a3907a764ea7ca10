"""A square kilometre of countryside, drawn: the areas of the ten Dstl classes as polygons in metres.

x runs to the right, y down, both from 0 to ``SIDE``. Knows nothing about images, bands or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from maskloom.contests.dstl.truth import CLASSES
from maskloom.encodings.outlines import areas

if TYPE_CHECKING:
    from shapely import LineString, Polygon
    from shapely.geometry.base import BaseGeometry

SIDE = 1000.0
"""Metres."""

Town = dict[int, list["Polygon"]]
"""The polygons of each label 0…9."""

_QUARTER = 4  # segments of a rounded corner


def draw_town(rng: np.random.Generator, *, river: bool = True, ponds: int = 4) -> Town:
    """Returns polygons of every class, valid, without overlaps inside a class and inside the square.

    ``river``: one waterway crosses the square; ``ponds``: so many standing waters are tried.
    """
    from shapely import Polygon, union_all

    water = _river(rng) if river else Polygon()
    standing = _ponds(rng, ponds).difference(water.buffer(15))
    wet = union_all([water, standing])
    lines = _road_lines(rng)
    roads = union_all([line.buffer(width / 2, quad_segs=_QUARTER) for line, width in lines]).difference(wet)
    tracks = union_all([_wobbly(rng, 60).buffer(1.4, quad_segs=_QUARTER) for _ in range(3)])
    tracks = tracks.difference(union_all([wet, roads]))
    crops = _fields(rng).difference(union_all([wet.buffer(4), roads.buffer(3), tracks.buffer(1)]))
    taken = union_all([wet, roads.buffer(1), tracks, crops])
    buildings = _along_roads(rng, lines, taken)
    structures = _structures(rng, buildings, union_all([taken, *buildings]))
    trees = _trees(rng, crops).difference(union_all([wet, roads, tracks, *buildings, *structures]))
    large = _vehicles(rng, lines, 8, (2.6, 9.5), roads)
    small = _vehicles(rng, lines, 40, (1.9, 4.6), roads.difference(union_all(large).buffer(1)))
    parts: Sequence[Sequence[BaseGeometry]] = (
        buildings, structures, [roads], [tracks], [trees], [crops], [water], [standing], large, small,
    )  # fmt: skip
    return {label: _inside(parts[label]) for label in range(len(CLASSES))}


def _inside(shapes: Sequence[BaseGeometry]) -> list[Polygon]:
    """Returns the areas inside the square of more than a quarter of a square metre."""
    import shapely

    whole = shapely.union_all(list(shapes))
    cut = areas([shapely.intersection(whole, shapely.box(0, 0, SIDE, SIDE))])
    return [polygon for polygon in cut if polygon.area > 0.25]


def _wobbly(rng: np.random.Generator, swing: float) -> LineString:
    """Returns a line across the square, from side to side or from top to bottom, with slow bends."""
    from shapely import LineString

    along = np.linspace(-30, SIDE + 30, 60)
    waves = rng.uniform(1, 3, 2)[:, None] * along / SIDE * 2 * np.pi + rng.uniform(0, 2 * np.pi, (2, 1))
    across = rng.uniform(0.15, 0.85) * SIDE + (np.sin(waves) * swing * rng.uniform(0.3, 1, (2, 1))).sum(axis=0)
    pairs = np.stack([along, across] if rng.random() < 0.5 else [across, along], axis=1)
    return LineString(pairs)


def _river(rng: np.random.Generator) -> BaseGeometry:
    return _wobbly(rng, 70).buffer(rng.uniform(25, 38), quad_segs=_QUARTER)


def _ponds(rng: np.random.Generator, count: int) -> BaseGeometry:
    from shapely import Polygon, union_all

    shapes = [Polygon()]
    for _ in range(count):
        angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
        radius = rng.uniform(10, 32) * (1 + 0.18 * np.sin(2 * angles + rng.uniform(0, 6)) + 0.1 * np.sin(3 * angles))
        centre = rng.uniform(60, SIDE - 60, 2)
        shapes.append(Polygon(centre + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)))
    return union_all(shapes)


def _road_lines(rng: np.random.Generator) -> list[tuple[LineString, float]]:
    """Returns the middles and widths of roads: one through road with bends, straight streets off a common direction."""
    from shapely import LineString

    turn = rng.uniform(0, np.pi)
    lines = [(_wobbly(rng, 40), 9.0)]
    for number in range(5):
        angle = turn + (np.pi / 2) * (number % 2)
        middle = rng.uniform(0.25, 0.75, 2) * SIDE
        reach = rng.uniform(150, 420) * np.array([np.cos(angle), np.sin(angle)])
        lines.append((LineString([middle - reach, middle + reach]), float(rng.uniform(5, 7.5))))
    return lines


def _fields(rng: np.random.Generator) -> BaseGeometry:
    """Returns rectangles that do not touch each other."""
    from shapely import union_all

    fields: list[BaseGeometry] = []
    turn = rng.uniform(0, np.pi)
    for _ in range(7):
        shape = _rectangle(rng.uniform(0, SIDE, 2), rng.uniform(90, 240), rng.uniform(80, 180), turn)
        fields.append(shape.difference(union_all(fields).buffer(5)))
    return union_all(fields)


def _rectangle(centre: np.ndarray, length: float, width: float, angle: float) -> Polygon:
    from shapely import Polygon

    along = np.array([np.cos(angle), np.sin(angle)]) * length / 2
    across = np.array([-np.sin(angle), np.cos(angle)]) * width / 2
    return Polygon([centre + along + across, centre + along - across, centre - along - across, centre - along + across])


def _direction(line: LineString, distance: float) -> tuple[np.ndarray, float]:
    """Returns the point at a distance along the line, and the line's angle there."""
    from shapely import line_interpolate_point

    ends = [line_interpolate_point(line, distance + step) for step in (-1, 1)]
    (x0, y0), (x1, y1) = ((end.x, end.y) for end in ends)
    return np.array([(x0 + x1) / 2, (y0 + y1) / 2]), float(np.arctan2(y1 - y0, x1 - x0))


def _along_roads(
    rng: np.random.Generator, lines: Sequence[tuple[LineString, float]], taken: BaseGeometry
) -> list[Polygon]:
    """Returns houses on both sides of the roads, some with a wing, that touch neither each other nor what is taken."""
    import shapely

    shapely.prepare(taken)
    houses: list[Polygon] = []
    for line, width in lines:
        distance = rng.uniform(5, 20)
        while distance < line.length - 5:
            place, angle = _direction(line, distance)
            length, depth = rng.uniform(9, 20), rng.uniform(7, 13)
            side = (width / 2 + depth / 2 + rng.uniform(3, 8)) * rng.choice([-1, 1])
            centre = place + side * np.array([-np.sin(angle), np.cos(angle)])
            house = _rectangle(centre, length, depth, angle)
            if rng.random() < 0.3:
                house = house.union(_rectangle(centre, depth * 0.8, length, angle))
            around = house.buffer(1.5)
            if not taken.intersects(house) and not any(other.intersects(around) for other in houses):
                houses.append(house)
            distance += rng.uniform(14, 40)
    return houses


def _structures(rng: np.random.Generator, houses: Sequence[Polygon], taken: BaseGeometry) -> list[BaseGeometry]:
    """Returns sheds and walls near houses."""
    structures: list[BaseGeometry] = []
    for house in houses:
        if rng.random() < 0.5:
            continue
        centre = np.array([house.centroid.x, house.centroid.y]) + rng.uniform(-22, 22, 2)
        angle = rng.uniform(0, np.pi)
        is_wall = rng.random() < 0.4
        length, width = (rng.uniform(12, 30), 1.2) if is_wall else (rng.uniform(3, 6), rng.uniform(2.5, 4.5))
        structures.append(_rectangle(centre, length, width, angle).difference(taken))
    return structures


def _trees(rng: np.random.Generator, crops: BaseGeometry) -> BaseGeometry:
    """Returns single crowns, groves, and a hedge of trees along some fields."""
    import shapely

    centres = [rng.uniform(0, SIDE, (160, 2))]
    for _ in range(3):
        centres.append(rng.uniform(0, SIDE, 2) + rng.normal(0, rng.uniform(15, 35), (70, 2)))
    if not crops.is_empty:
        edge = crops.boundary
        places = shapely.line_interpolate_point(edge, rng.uniform(0, edge.length, 90))
        centres.append(shapely.get_coordinates(places) + rng.normal(0, 1, (90, 2)))
    points = shapely.points(np.concatenate(centres))
    return shapely.union_all(shapely.buffer(points, rng.uniform(1.8, 5, len(points)), quad_segs=_QUARTER))


def _vehicles(
    rng: np.random.Generator,
    lines: Sequence[tuple[LineString, float]],
    count: int,
    size: tuple[float, float],
    road: BaseGeometry,
) -> list[BaseGeometry]:
    """Returns vehicles of (width, length) in both lanes, those of them that stand on the road and touch no other."""
    placed: list[BaseGeometry] = []
    for _ in range(count):
        line, width = lines[int(rng.integers(len(lines)))]
        place, angle = _direction(line, rng.uniform(10, line.length - 10))
        lane = rng.choice([-1, 1]) * (width / 4 + 0.2)
        centre = place + lane * np.array([-np.sin(angle), np.cos(angle)])
        vehicle = _rectangle(centre, size[1], size[0], angle)
        if road.contains(vehicle) and not any(other.intersects(vehicle) for other in placed):
            placed.append(vehicle)
    return placed
