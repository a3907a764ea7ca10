"""From parts to pixels: a pinhole camera, a z-buffer over parts and shading by a studio's lights.

Gives the object alone, as a layer with exact coverage. Knows nothing about the backdrop or about files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt

from maskloom.data.studio.geometry import Array, Part, Surface
from maskloom.records import Size

DISTANCE, EYE, AIM = 9.5, 2.55, 0.98
"""Camera: distance from the turntable's middle, height, height it looks at."""
FIELD = 5.75
"""Studio units across a 3:2 photo at the turntable's middle."""
KEY = np.array((-0.45, -0.62, 0.64), np.float32)
FILL = np.array((0.80, -0.50, 0.33), np.float32)
SHIFT = 5
"""Fraction bits of the polygon filler's coordinates."""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera before the turntable; pixel centres lie at half-integers."""

    size: Size
    focal: float
    """In pixels."""

    @property
    def axes(self) -> Array:
        """Rows: right, down, forward."""
        forward = np.array((0, DISTANCE, AIM - EYE))
        forward /= np.linalg.norm(forward)
        right = np.array((1.0, 0, 0))
        return np.stack([right, np.cross(forward, right), forward]).astype(np.float32)

    @property
    def position(self) -> Array:
        """Where the camera stands."""
        return np.array((0, -DISTANCE, EYE), np.float32)

    @classmethod
    def before(cls, size: Size) -> Camera:
        """Returns the camera that frames the turntable in a photo of this size."""
        height, width = size
        return cls(size, float(np.hypot(DISTANCE, EYE - AIM) * min(width, 1.5 * height) / FIELD))

    def project(self, points: Array) -> tuple[Array, Array]:
        """Returns pixel coordinates N×2 (x, y) and the depth N of points N×3."""
        seen = (points - self.position) @ self.axes.T
        middle = np.array((self.size[1] / 2, self.size[0] / 2), np.float32)
        pixels = seen[:, :2] / seen[:, 2:] * np.float32(self.focal) + middle
        return np.asarray(pixels, np.float32), np.asarray(seen[:, 2], np.float32)

    def rays(self, x: Array, y: Array) -> Array:
        """Returns directions 3×N through pixel coordinates; their share along the camera's axis is 1."""
        right, down, forward = self.axes
        across = (x - np.float32(self.size[1] / 2)) / np.float32(self.focal)
        below = (y - np.float32(self.size[0] / 2)) / np.float32(self.focal)
        return np.asarray(across * right[:, None] + below * down[:, None] + forward[:, None], np.float32)

    def floor_to_pixels(self, size: int, reach: float) -> npt.NDArray[np.float64]:
        """Returns the 3×3 matrix from a square floor map (``size`` pixels over ±``reach`` units) to pixels."""
        corners = np.array([(-1, -1, 0), (1, -1, 0), (1, 1, 0), (-1, 1, 0)], np.float32) * min(reach, DISTANCE * 0.6)
        seen, _ = self.project(corners)
        source = (corners[:, :2] / reach * 0.5 + 0.5) * size - 0.5
        return np.asarray(cv2.getPerspectiveTransform(source.astype(np.float32), (seen - 0.5).astype(np.float32)))


@dataclass(frozen=True)
class Layer:
    """An object alone: colour H×W×3 (linear, times coverage), coverage and the share of backdrop hidden, both H×W."""

    top: int
    left: int
    colour: Array
    coverage: Array
    hidden: Array


def draw_layer(parts: Sequence[Part], turn: Array, size: Size, *, mirrored: bool = False) -> Layer | None:
    """Returns the object turned by a 3×3 matrix as seen in a photo of ``size``; None where nothing is in the picture.

    Coverage is measured on a grid of 4×4 points in every pixel. ``mirrored`` gives what a polished floor shows.
    """
    over = 1 if min(size) >= 600 or mirrored else 2
    camera = Camera.before((size[0] * over, size[1] * over))
    scene = Scene.placed(parts, turn, camera, mirrored=mirrored)
    window = _window(scene.pixels, size, over)
    if window is None:
        return None
    left, top, width, height = window
    faces = scene.visible_faces((left * over, top * over, width * over, height * over))
    fine = 4 // over
    coverage = scene.coverage((left * over, top * over, width * over, height * over), fine)
    colour, hidden = _shade(scene, faces, (left * over, top * over))
    colour, hidden = _spread(colour, hidden, faces > 0)
    hidden *= coverage
    colour *= coverage[..., None]
    if over > 1:
        colour, hidden, coverage = (
            np.asarray(cv2.resize(value, (width, height), interpolation=cv2.INTER_AREA), np.float32)
            for value in (colour, hidden, coverage)
        )
    return Layer(top, left, colour, coverage, hidden)


def _window(pixels: Array, size: Size, over: int) -> tuple[int, int, int, int] | None:
    low = np.floor(pixels.min(axis=0) / over).astype(int) - 2
    high = np.ceil(pixels.max(axis=0) / over).astype(int) + 3
    left, top = max(int(low[0]), 0), max(int(low[1]), 0)
    right, bottom = min(int(high[0]), size[1]), min(int(high[1]), size[0])
    return (left, top, right - left, bottom - top) if right > left and bottom > top else None


@dataclass(frozen=True)
class Scene:
    """All parts of an object before a camera, with the faces that look away dropped."""

    camera: Camera
    parts: Sequence[Part]
    turn: Array
    mirrored: bool
    pixels: Array
    """Of the vertices, V×2."""
    faces: npt.NDArray[np.int64]
    owner: npt.NDArray[np.int64]
    """The part of each face; faces of one part lie together, far ones first."""
    planes: Array
    """F×6×3: one over depth, normal and uv as functions of pixel x, y and 1."""

    @classmethod
    def placed(cls, parts: Sequence[Part], turn: Array, camera: Camera, *, mirrored: bool) -> Scene:
        """Returns the turned object in the studio."""
        starts = np.cumsum([0, *(len(part.vertices) for part in parts)])
        vertices = np.concatenate([part.vertices for part in parts]) @ turn.T
        normals = np.concatenate([part.normals for part in parts]) @ turn.T
        faces = np.concatenate([part.faces + start for part, start in zip(parts, starts, strict=False)])
        owner = np.repeat(np.arange(len(parts)), [len(part.faces) for part in parts])
        if mirrored:
            flip = np.array((1, 1, -1), np.float32)
            vertices, normals, faces = vertices * flip, normals * flip, faces[:, ::-1]
        pixels, depth = camera.project(vertices)
        corner = pixels[faces]
        first, second = corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]
        area = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]
        kept = np.flatnonzero(area < -1e-6)  # y points down, so a face that looks here runs clockwise
        order = np.lexsort((-depth[faces[kept]].mean(axis=1), owner[kept]))
        kept = kept[order]
        uv = np.concatenate([part.uv for part in parts])
        values = np.concatenate([1 / depth[:, None], normals, uv], axis=1)
        planes = _planes(corner[kept], area[kept], values[faces[kept]])
        return cls(camera, parts, turn, mirrored, pixels, faces[kept], owner[kept], planes)

    def visible_faces(self, window: tuple[int, int, int, int]) -> npt.NDArray[np.int32]:
        """Returns, for each pixel of a window (left, top, width, height), the number of its face plus 1, or 0."""
        left, top, width, height = window
        nearest = np.zeros((height, width), np.float32)
        result = np.zeros((height, width), np.int32)
        drawn = np.zeros((height, width), np.int32)
        offset = np.array((left + 0.5, top + 0.5), np.float32)
        corners = np.round((self.pixels[self.faces] - offset) * 2**SHIFT).astype(np.int32)
        bounds = np.searchsorted(self.owner, np.arange(len(self.parts) + 1))
        for start, end in pairwise(bounds):
            if start == end:
                continue
            low = np.clip((corners[start:end].min(axis=(0, 1)) >> SHIFT) - 1, 0, (width, height))
            high = np.clip((corners[start:end].max(axis=(0, 1)) >> SHIFT) + 2, 0, (width, height))
            box = (slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0])))
            if drawn[box].size == 0:
                continue
            for number in range(start, end):
                cv2.fillConvexPoly(drawn, corners[number], number + 1, cv2.LINE_8, SHIFT)
            self._keep_nearer(drawn[box], nearest[box], result[box], (left + int(low[0]), top + int(low[1])))
            drawn[box] = 0
        return result

    def _keep_nearer(
        self, drawn: npt.NDArray[np.int32], nearest: Array, result: npt.NDArray[np.int32], origin: tuple[int, int]
    ) -> None:
        y, x = np.nonzero(drawn)
        face = drawn[y, x]
        plane = self.planes[face - 1, 0]
        closeness = (
            plane[:, 0] * (x + np.float32(origin[0] + 0.5))
            + plane[:, 1] * (y + np.float32(origin[1] + 0.5))
            + plane[:, 2]
        )
        wins = closeness > nearest[y, x]
        y, x = y[wins], x[wins]
        nearest[y, x], result[y, x] = closeness[wins], face[wins]

    def coverage(self, window: tuple[int, int, int, int], fine: int) -> Array:
        """Returns the share of each pixel's ``fine``×``fine`` points that the object covers."""
        left, top, width, height = window
        canvas = np.zeros((height * fine, width * fine), np.uint8)
        points = (self.pixels[self.faces] - np.array((left, top), np.float32)) * fine - 0.5
        for triangle in np.round(points * 2**SHIFT).astype(np.int32):
            cv2.fillConvexPoly(canvas, triangle, 255, cv2.LINE_8, SHIFT)
        shrunk = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA) if fine > 1 else canvas
        return shrunk.astype(np.float32) / np.float32(255)


def _planes(corner: Array, area: Array, values: Array) -> Array:
    """Returns F×K×3 coefficients of the planes through K values at the corners F×3×2 of triangles."""
    a, b, c = (corner[:, place].astype(np.float64) for place in range(3))
    span = values[:, 1:].astype(np.float64) - values[:, :1]
    twice = area.astype(np.float64)[:, None]
    dx = (span[:, 0] * (c - a)[:, 1:] - span[:, 1] * (b - a)[:, 1:]) / twice
    dy = (span[:, 1] * (b - a)[:, :1] - span[:, 0] * (c - a)[:, :1]) / twice
    rest = values[:, 0] - dx * a[:, :1] - dy * a[:, 1:]
    return np.stack([dx, dy, rest], axis=-1).astype(np.float32)


def _shade(scene: Scene, faces: npt.NDArray[np.int32], origin: tuple[int, int]) -> tuple[Array, Array]:
    """Returns linear colour H×W×3 and the share of backdrop hidden H×W of the pixels that show a face."""
    flat = np.flatnonzero(faces)
    number = faces.ravel()[flat] - 1
    order = np.argsort(scene.owner[number], kind="stable")
    flat, number = flat[order], number[order]
    row, column = np.divmod(flat, faces.shape[1])
    x, y = (column + (origin[0] + 0.5)).astype(np.float32), (row + (origin[1] + 0.5)).astype(np.float32)
    plane = scene.planes[number]
    value = np.ascontiguousarray((plane[..., 0] * x[:, None] + plane[..., 1] * y[:, None] + plane[..., 2]).T)
    ray = scene.camera.rays(x, y)
    position = scene.camera.position[:, None] + ray / np.maximum(value[0], 1e-4)
    ray /= np.linalg.norm(ray, axis=0)
    normal = value[1:4] / np.maximum(np.linalg.norm(value[1:4], axis=0), 1e-6)
    if scene.mirrored:
        flip = np.array((1, 1, -1), np.float32)[:, None]
        position, normal, ray = position * flip, normal * flip, ray * flip
    surface = _materials(scene, scene.owner[number], position, normal, ray, value[4:6])
    light, hidden = _light(surface, position, normal, ray)
    if scene.mirrored:
        light, hidden = (layer * np.exp(-0.8 * np.maximum(position[2], 0)) for layer in (light, hidden))
    colour = np.zeros((faces.size, 3), np.float32)
    colour[flat] = light.T
    covered = np.zeros(faces.size, np.float32)
    covered[flat] = hidden
    return colour.reshape(*faces.shape, 3), covered.reshape(faces.shape)


def _materials(
    scene: Scene, owner: npt.NDArray[np.int64], position: Array, normal: Array, ray: Array, uv: Array
) -> Surface:
    """Returns the painted surface of all pixels; they come sorted by part."""
    table = np.array(
        [(*m.colour, m.reflect, m.gloss, m.metal, m.glow, m.transmit) for m in (p.material for p in scene.parts)]
    )
    value = np.ascontiguousarray(table.astype(np.float32)[owner].T)
    bounds = np.searchsorted(owner, np.arange(len(scene.parts) + 1))
    for part, start, end in zip(scene.parts, bounds[:-1], bounds[1:], strict=True):
        if part.paint is None or start == end:
            continue
        back = np.asarray(part.turn.T @ scene.turn.T, np.float32)
        own = (back @ position[:, start:end] - (part.turn.T @ part.shift)[:, None]) / np.float32(part.scale)
        facing, seen = (np.asarray(back @ vector[:, start:end], np.float32) for vector in (normal, ray))
        here = value[:, start:end]
        part.paint(Surface(np.asarray(own, np.float32), facing, seen, uv[:, start:end], here[:3], *here[3:]))
    return Surface(position, normal, ray, uv, value[:3], *value[3:])


def _light(surface: Surface, position: Array, normal: Array, ray: Array) -> tuple[Array, Array]:
    """Returns the light that leaves each pixel towards the camera, and the share of backdrop it hides."""
    facing = np.clip(-np.sum(normal * ray, axis=0), 0, 1)
    mirror = ray + 2 * facing * normal
    gloss = surface.gloss
    fresnel = surface.reflect + 0.75 * gloss * gloss * (1 - facing) ** 5
    near_floor = np.clip(1 - position[2] / np.float32(0.55), 0, 1) ** 2
    open_sky = 0.5 + 0.5 * normal[2]
    diffuse = 0.13 + 0.40 * open_sky + 0.62 * _facing(normal, KEY) + 0.13 * _facing(normal, FILL)
    diffuse *= 1 - near_floor * (0.72 - 0.5 * open_sky)
    occluded = 1 - 0.75 * near_floor * np.clip(0.35 - mirror[2], 0, 1)
    shine = _environment(mirror, gloss) * occluded
    sharp = 8 + 420 * gloss**3
    towards = np.maximum(mirror[0] * KEY[0] + mirror[1] * KEY[1] + mirror[2] * KEY[2], 0)
    shine += (0.4 + 9 * gloss**4) * np.exp(-(1 - towards) * sharp)
    solid = diffuse * (1 - fresnel) * (1 - surface.metal) * (1 - surface.transmit) + surface.glow
    tint = 1 + (surface.colour - 1) * surface.metal
    return surface.colour * solid + tint * (shine * fresnel), 1 - surface.transmit * (1 - fresnel)


def _facing(normal: Array, light: Array) -> Array:
    return np.asarray(np.maximum(normal[0] * light[0] + normal[1] * light[1] + normal[2] * light[2], 0), np.float32)


def _environment(mirror: Array, gloss: Array) -> Array:
    """Returns how bright the studio is in a direction: two long lights overhead, bright walls, a darker floor."""
    blur = 0.03 + 0.6 * (1 - gloss) ** 2
    up = mirror[2]
    wall = 0.62 + 0.75 * np.clip(up * 1.6, 0, 1)
    floor = 0.16 + 0.30 * np.clip(1 + up * 1.2, 0, 1)
    light = floor + (wall - floor) * _step(up, np.float32(0.02), blur)
    light *= 1 - 0.55 * np.exp(-(((up - 0.02) / (0.05 + blur)) ** 2))
    height = np.maximum(up, 0.08)
    across, along = mirror[0] / height, mirror[1] / height
    strips = _step(0.34 - np.abs(np.abs(along + 0.15) - 0.75), np.float32(0), blur * 0.9) * _step(
        2.6 - np.abs(across), np.float32(0), blur
    )
    return np.asarray(light + 4.5 * strips * _step(up, np.float32(0.22), blur), np.float32)


def _step(value: Array, edge: np.float32, blur: Array) -> Array:
    t = np.clip((value - edge) / (2 * blur) + 0.5, 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def _spread(colour: Array, hidden: Array, seen: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
    """Returns the layers with the colour of the nearest seen pixels in a rim of one pixel around them."""
    weight = cv2.blur(seen.astype(np.float32), (3, 3))
    rim = ~seen & (weight > 0)
    colour[rim] = cv2.blur(colour, (3, 3))[rim] / weight[rim][:, None]
    hidden[rim] = cv2.blur(hidden, (3, 3))[rim] / weight[rim]
    return colour, hidden
