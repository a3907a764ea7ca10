"""Small triangle meshes and the primitives they are made from: boxes, tubes, lofts, surfaces of revolution.

Lengths are in studio units (a car is about 4.4 long), z points up and the floor is z = 0. Knows nothing about
cameras, light or which objects exist.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Material:
    """How a part answers to light; colours are linear RGB in [0, 1]."""

    colour: Colour
    reflect: float = 0.04
    """Share of light reflected head-on."""
    gloss: float = 0.5
    """0 is chalk, 1 a mirror."""
    metal: float = 0.0
    """1 tints the reflection with the colour."""
    glow: float = 0.0
    """Light of its own, in units of the backdrop's brightness."""
    transmit: float = 0.0
    """Share of the backdrop that shines through."""


@dataclass
class Surface:
    """The visible pixels of one part, for its paint to change in place.

    ``position``, ``normal`` and ``ray`` (from the camera) are 3×N in the part's own axes, ``uv`` is 2×N; ``colour``
    is 3×N and the rest N long, as in ``Material``.
    """

    position: Array
    normal: Array
    ray: Array
    uv: Array
    colour: Array
    reflect: Array
    gloss: Array
    metal: Array
    glow: Array
    transmit: Array

    def fill(self, where: npt.NDArray[np.bool_], material: Material) -> None:
        """Gives the chosen pixels another material."""
        self.colour[:, where] = np.asarray(material.colour, np.float32)[:, None]
        self.reflect[where], self.gloss[where], self.metal[where] = material.reflect, material.gloss, material.metal
        self.glow[where], self.transmit[where] = material.glow, material.transmit


Paint = Callable[[Surface], None]


@dataclass(frozen=True)
class Part:
    """A closed triangle mesh with outward faces: vertices and normals V×3, uv V×2, faces F×3 (vertex numbers).

    ``turn``, ``scale`` and ``shift`` say how the mesh came from its own axes, in which its paint works:
    vertex = scale · turn @ own + shift.
    """

    vertices: Array
    normals: Array
    uv: Array
    faces: npt.NDArray[np.int64]
    material: Material
    paint: Paint | None = None
    turn: Array = field(default_factory=lambda: np.eye(3, dtype=np.float32))
    shift: Array = field(default_factory=lambda: np.zeros(3, np.float32))
    scale: float = 1.0

    def moved(self, x: float, y: float, z: float) -> Part:
        """Returns the part shifted."""
        offset = np.array((x, y, z), np.float32)
        return replace(self, vertices=self.vertices + offset, shift=self.shift + offset)

    def scaled(self, factor: float) -> Part:
        """Returns the part scaled about the origin."""
        size = np.float32(factor)
        return replace(self, vertices=self.vertices * size, shift=self.shift * size, scale=self.scale * factor)

    def turned(self, axis: int, angle: float) -> Part:
        """Returns the part turned by ``angle`` radians about the x (0), y (1) or z (2) axis through the origin."""
        turn = rotation(axis, angle)
        vertices, normals = self.vertices @ turn.T, self.normals @ turn.T
        return replace(self, vertices=vertices, normals=normals, turn=turn @ self.turn, shift=turn @ self.shift)


def rotation(axis: int, angle: float) -> Array:
    """Returns the 3×3 matrix that turns column vectors by ``angle`` radians about one axis."""
    first, second = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3, dtype=np.float32)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return matrix


def mesh(vertices: Array, uv: Array, faces: npt.NDArray[np.int64], material: Material, paint: Paint | None) -> Part:
    """Returns a part with smooth normals: each the area-weighted mean of the faces around the vertex."""
    corner = vertices[faces]
    weighted = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    kept = np.linalg.norm(weighted, axis=1) > 1e-12
    faces, weighted = faces[kept], weighted[kept]
    normals = np.zeros_like(vertices)
    for column in range(3):
        np.add.at(normals, faces[:, column], weighted)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)
    return Part(vertices, normals, uv, faces, material, paint)


def sheet(grid: Array, material: Material, paint: Paint | None = None, *, wrap: bool = True) -> Part:
    """Returns the surface over an M×N×3 grid; ``wrap`` joins the last column to the first.

    A face looks to the left of the rows' direction when columns run ahead. uv: rows and columns in [0, 1].
    """
    rows, columns = grid.shape[:2]
    if wrap:  # repeat the seam, so that uv may jump there; its normals are averaged below
        grid, columns = np.concatenate([grid, grid[:, :1]], axis=1), columns + 1
    number = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = number[:-1, :-1], number[:-1, 1:], number[1:, 1:], number[1:, :-1]
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    u, v = np.meshgrid(np.linspace(0, 1, rows), np.linspace(0, 1, columns), indexing="ij")
    uv = np.stack([u, v], -1).reshape(-1, 2).astype(np.float32)
    part = mesh(np.ascontiguousarray(grid, np.float32).reshape(-1, 3), uv, faces, material, paint)
    if wrap:
        normals = part.normals.reshape(rows, columns, 3)
        seam = normals[:, 0] + normals[:, -1]
        seam /= np.maximum(np.linalg.norm(seam, axis=1, keepdims=True), 1e-20)
        normals[:, 0] = normals[:, -1] = seam
    return part


def revolve(
    profile: Sequence[tuple[float, float]], material: Material, paint: Paint | None = None, *, sides: int = 40
) -> Part:
    """Returns the surface of a profile of (radius, z) points, from bottom to top, turned about the z axis.

    Corners sharper than 35° stay sharp. uv are the place along the profile and the angle.
    """
    line = np.array(creased(profile), np.float32)
    angle = np.linspace(0, 2 * np.pi, sides, endpoint=False, dtype=np.float32)
    grid = np.stack(
        [line[:, :1] * np.cos(angle), line[:, :1] * np.sin(angle), np.repeat(line[:, 1:], sides, axis=1)], axis=-1
    )
    return sheet(grid, material, paint)


def creased(profile: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the profile with its sharp corners doubled, so that normals do not flow around them."""
    points = [tuple(map(float, point)) for point in profile]
    result = [points[0]]
    for before, here, after in zip(points, points[1:], points[2:], strict=False):
        heading = np.arctan2(here[1] - before[1], here[0] - before[0])
        turn = np.arctan2(after[1] - here[1], after[0] - here[0]) - heading
        sharp = abs((turn + np.pi) % (2 * np.pi) - np.pi) > np.deg2rad(35)
        result += [here, here] if sharp else [here]
    return [(point[0], point[1]) for point in [*result, points[-1]]]


def smooth_profile(points: Sequence[tuple[float, float]], count: int) -> list[tuple[float, float]]:
    """Returns ``count`` points of a Catmull-Rom curve through the given ones."""
    known = np.array([points[0], *points, points[-1]], np.float64)
    place = np.linspace(0, len(points) - 1 - 1e-9, count)
    start = place.astype(int)
    t = (place - start)[:, None]
    p0, p1, p2, p3 = (known[start + shift] for shift in range(4))
    curve = 0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * (p1 - p2) + p3 - p0) * t**3)
    return [(float(max(first, 0.0)), float(second)) for first, second in curve]


def tube(
    path: Sequence[tuple[float, float, float]],
    radius: float | Sequence[float],
    material: Material,
    paint: Paint | None = None,
    *,
    sides: int = 12,
) -> Part:
    """Returns a round bar along a path, closed at both ends; ``radius`` is one number or one for each point."""
    line = np.array(path, np.float64)
    radii = np.broadcast_to(np.asarray(radius, np.float64), len(line))
    tangent = np.gradient(line, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    side = np.cross(tangent[0], np.eye(3)[np.argmin(np.abs(tangent[0]))])
    angle = np.linspace(0, 2 * np.pi, sides, endpoint=False)[:, None]
    rings = []
    for centre, forward, width in zip(line, tangent, radii, strict=True):
        side = side - forward * (side @ forward)
        side /= np.linalg.norm(side)
        up = np.cross(forward, side)
        rings.append(centre + width * (np.cos(angle) * side + np.sin(angle) * up))
    start, end = np.repeat(line[:1], sides, axis=0), np.repeat(line[-1:], sides, axis=0)
    grid = np.stack([start, rings[0], *rings, rings[-1], end])
    return sheet(grid.astype(np.float32), material, paint)


def ring(
    radius: float, thickness: float, material: Material, *, arc: tuple[float, float] = (0, 2 * np.pi), steps: int = 28
) -> Part:
    """Returns a bent bar of round section in the x–z plane about the origin, over an arc of angles in radians."""
    angles = np.linspace(*arc, steps)
    return tube([(radius * np.cos(a), 0.0, radius * np.sin(a)) for a in angles], thickness, material)


def rounded_box(
    size: tuple[float, float, float],
    material: Material,
    paint: Paint | None = None,
    *,
    sharpness: float = 6,
    steps: int = 12,
) -> Part:
    """Returns a superellipsoid centred on the origin: a ball at sharpness 2, nearly a box from 8 on."""
    exponent = 2.0 / sharpness

    def bent(value: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.sign(value) * np.abs(value) ** exponent

    latitude = np.linspace(-np.pi / 2, np.pi / 2, steps + 1)
    longitude = np.linspace(-np.pi, np.pi, 2 * steps, endpoint=False)
    across, height = bent(np.cos(latitude))[:, None], bent(np.sin(latitude))[:, None]
    grid = np.stack(
        [
            size[0] / 2 * across * bent(np.cos(longitude)),
            size[1] / 2 * across * bent(np.sin(longitude)),
            size[2] / 2 * np.repeat(height, 2 * steps, axis=1),
        ],
        axis=-1,
    )
    return sheet(grid.astype(np.float32), material, paint)


def box(size: tuple[float, float, float], material: Material, paint: Paint | None = None) -> Part:
    """Returns a box with sharp edges, centred on the origin; uv run over each of its sides."""
    corners, uv = [], []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            square = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], np.float32)
            face = np.insert(square if sign > 0 else square[::-1], 0, sign, axis=1)
            corners.append(np.roll(face, axis, axis=1))
            uv.append(square / 2 + 0.5)
    vertices = np.concatenate(corners) * np.array(size, np.float32) / 2
    faces = np.concatenate([np.array([(0, 1, 2), (0, 2, 3)]) + 4 * side for side in range(6)])
    return mesh(vertices.astype(np.float32), np.concatenate(uv).astype(np.float32), faces, material, paint)
