"""The empty studio — floor, round wall, turntable, light stands — and what an object does to it: shadows.

The empty studio is the same for every photo of a seed and size, as in a real one. Colours are linear RGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from maskloom.data.studio.geometry import Array, Part
from maskloom.data.studio.render import Camera
from maskloom.records import Size
from maskloom.runtime import generator

WALL, TABLE = 6.4, 2.72
"""Distance of the round wall and radius of the turntable, from its middle."""
FLOOR_MAP, FLOOR_REACH = 512, 4.4
"""Pixels and half width, in studio units, of the floor maps for shadows."""


@lru_cache(maxsize=2)
def empty_studio(seed: int, size: Size) -> Array:
    """Returns the photo of the studio with nothing on the turntable, H×W×3; treat it as read-only."""
    rng = generator(seed, "studio")
    camera = Camera.before(size)
    height, width = size
    x, y = np.meshgrid(np.arange(width, dtype=np.float32) + 0.5, np.arange(height, dtype=np.float32) + 0.5)
    ray = camera.rays(x.ravel(), y.ravel()).reshape(3, height, width)
    bearing = ray[0] / ray[1]
    # where each ray meets the round wall, and where the floor; the nearer one is seen
    a, b, c = ray[0] ** 2 + ray[1] ** 2, 2 * ray[1] * camera.position[1], camera.position[1] ** 2 - WALL**2
    to_wall = (-b + np.sqrt(np.maximum(b * b - 4 * a * c, 0))) / (2 * a)
    to_floor = np.where(ray[2] < -1e-4, camera.position[2] / np.maximum(-ray[2], 1e-4), np.float32(1e4))
    reach = np.minimum(to_wall, to_floor)
    place = camera.position[:, None, None] + ray * reach
    apart = np.hypot(place[0], place[1])
    light = _wall_and_floor(place, apart, bearing)
    light *= _turntable(apart, reach / camera.focal)
    light *= 1 + _texture(rng, camera, size)
    # the floor keeps its grey, the wall's lamps are warmer or cooler
    warm, cool = rng.uniform(0.98, 1.02, 3), 1 + rng.uniform(-0.09, 0.09) * np.array((1.0, 0.1, -1.0))
    share = np.clip((place[2] / 1.5), 0, 1)[..., None]
    photo = np.asarray(light[..., None] * (warm * (1 - share) + cool * share), np.float32)
    _stands(rng, camera, photo)
    photo.flags.writeable = False
    return photo


def _wall_and_floor(place: Array, apart: Array, bearing: Array) -> Array:
    pool = np.exp(-((apart / 4.6) ** 2))
    floor = 0.24 + 0.24 * pool
    wall = 0.27 + 0.36 * np.exp(-(((place[2] - 2.2) / 2.4) ** 2)) * np.exp(-((bearing / 0.30) ** 2)) + 0.05 * bearing
    # the cove: floor bends into wall over 1.6 units
    bent = np.clip((apart - (WALL - 1.5)) / 1.5, 0, 1) * 0.5 + np.clip(place[2] / 1.1, 0, 1) * 0.5
    bent = bent * bent * (3 - 2 * bent)
    shade = 1 - 0.10 * np.exp(-(((bent - 0.45) / 0.2) ** 2))
    return np.asarray((floor * (1 - bent) + wall * bent) * shade, np.float32)


def _turntable(apart: Array, pixel: Array) -> Array:
    """Returns the turntable's brightness; ``pixel`` is the width of a pixel in studio units."""

    def inside(radius: float) -> Array:
        return np.clip((radius - apart) / (pixel * 1.5) + 0.5, 0, 1)

    gap = inside(TABLE + 0.028) - inside(TABLE)
    groove = inside(TABLE * 0.86) - inside(TABLE * 0.86 - 0.012)
    rings = 0.012 * np.sin(apart * 26) * inside(TABLE)
    return np.asarray(1 + 0.05 * inside(TABLE) + rings - 0.62 * gap - 0.22 * groove, np.float32)


def _texture(rng: np.random.Generator, camera: Camera, size: Size) -> Array:
    """Returns stains and grain of the floor, in perspective, and the faint clouds of the wall."""
    side = 1024
    noise = np.zeros((side, side), np.float32)
    for cells, strength in ((8, 0.035), (32, 0.02), (128, 0.016), (512, 0.018)):
        coarse = rng.standard_normal((cells, cells)).astype(np.float32)
        noise += strength * cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    for _ in range(14):  # tyre marks and scuffs
        start, turn = rng.uniform(0.2, 0.8, 2) * side, rng.uniform(0, 360)
        axes = (int(rng.uniform(40, 300)), int(rng.uniform(40, 300)))
        centre = (int(start[0]), int(start[1]))
        first = rng.uniform(0, 300)
        mark = np.zeros_like(noise)
        cv2.ellipse(
            mark, centre, axes, turn, first, first + rng.uniform(10, 60), 1.0, int(rng.integers(1, 5)), cv2.LINE_AA
        )
        noise -= cv2.GaussianBlur(mark, (0, 0), 1.2) * rng.uniform(0.01, 0.07)
    matrix = camera.floor_to_pixels(side, 6.0)
    floor = cv2.warpPerspective(noise, matrix, (size[1], size[0]), flags=cv2.INTER_LINEAR)
    clouds = cv2.resize(
        rng.standard_normal((4, 7)).astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_CUBIC
    )
    return np.asarray(floor + 0.012 * clouds, np.float32)


def _stands(rng: np.random.Generator, camera: Camera, photo: Array) -> None:
    """Draws two light stands with their soft boxes, mostly outside the picture, and tape on the floor."""
    for side in (-1, 1):
        x, y = side * rng.uniform(3.25, 3.7), rng.uniform(1.2, 2.6)
        head = rng.uniform(2.3, 2.9)
        for foot in ((-0.35, 0.1), (0.35, 0.1), (0.0, -0.35)):
            _bar(camera, photo, [(x + foot[0], y + foot[1], 0), (x, y, 0.55)], 0.016, 0.03)
        _bar(camera, photo, [(x, y, 0.2), (x, y, head)], 0.02, 0.03)
        low, high, inner, outer = head - 0.55, head + 0.65, x - side * 0.50, x + side * 0.35
        frame = [(inner, y, low), (inner, y, high), (outer, y + 0.5, high + 0.03), (outer, y + 0.5, low - 0.03)]
        _patch(camera, photo, frame, 0.03, 1.0)
        shrunk = [(inner + side * 0.04, y, low + 0.04), (inner + side * 0.04, y, high - 0.04)]
        shrunk += [(outer, y + 0.5, high - 0.01), (outer, y + 0.5, low + 0.01)]
        _patch(camera, photo, shrunk, 1.25, 1.0)
    for _ in range(3):
        x, y = rng.uniform(-3.4, 3.4), float(rng.choice([-3.15, -2.95, 3.2]))
        tape = [(x, y, 0.0), (x + 0.32, y, 0), (x + 0.32, y + 0.055, 0), (x, y + 0.055, 0)]
        _patch(camera, photo, tape, float(rng.choice([0.05, 0.75])), 0.6)


def _bar(camera: Camera, photo: Array, ends: list[tuple[float, float, float]], radius: float, shade: float) -> None:
    (x0, y0, z0), (x1, y1, z1) = ends
    corners = [(x0 - radius, y0, z0), (x0 + radius, y0, z0), (x1 + radius, y1, z1), (x1 - radius, y1, z1)]
    _patch(camera, photo, corners, shade, 1.0)


def _patch(
    camera: Camera, photo: Array, corners: list[tuple[float, float, float]], shade: float, opacity: float
) -> None:
    seen, _ = camera.project(np.array(corners, np.float32))
    mask = np.zeros(photo.shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, np.round((seen - 0.5) * 16).astype(np.int32), 255, cv2.LINE_AA, 4)
    share = (mask.astype(np.float32) * np.float32(opacity / 255))[..., None]
    photo *= 1 - share
    photo += share * np.float32(shade)


def shadow(parts: Sequence[Part], turn: Array, size: Size, *, depth: float, softness: float) -> Array:
    """Returns how much light is left on the floor, H×W in (0, 1]: soft shadows of the lights and a dark contact.

    ``depth`` in [0, 1] is the strength of the lights' shadow, ``softness`` their width in studio units.
    """
    # the key light is an area: its shadow is the mean over points on it, each the sum of the parts' outlines
    lights = [
        (-0.75, -0.9),
        (-0.55, -0.6),
        (-0.3, -0.75),
        (-0.45, -0.25),
        (0.0, -0.3),
        (0.12, 0.05),
        (-0.1, 0.15),
        (0.75, -0.45),
    ]
    total = np.zeros((FLOOR_MAP, FLOOR_MAP), np.float32)
    contact = np.zeros((FLOOR_MAP, FLOOR_MAP), np.float32)
    hulls = [_shell(part, turn) for part in parts]
    for x, y in lights:
        canvas = np.zeros((FLOOR_MAP, FLOOR_MAP), np.uint8)
        for points in hulls:
            _fill_hull(canvas, points[:, :2] - points[:, 2:] * np.array((x, y), np.float32) * np.float32(softness))
        total += canvas
    for points in hulls:
        low = points[points[:, 2] < points[:, 2].min() + 0.05]
        height = float(low[:, 2].min())
        if height < 0.45 and len(low) > 2:
            canvas = np.zeros((FLOOR_MAP, FLOOR_MAP), np.uint8)
            _fill_hull(canvas, low[:, :2])
            blurred = cv2.GaussianBlur(canvas, (0, 0), 2.5 + 22 * height)
            contact = np.maximum(contact, blurred * np.float32(np.exp(-0.9 * height) / 255))
    soft = cv2.GaussianBlur(total / np.float32(255 * len(lights)), (0, 0), 7)
    left = (1 - depth * soft) * (1 - 0.93 * contact)
    matrix = Camera.before(size).floor_to_pixels(FLOOR_MAP, FLOOR_REACH)
    dark = (1 - left).astype(np.float32)  # outside the map there is no shadow
    return np.asarray(1 - cv2.warpPerspective(dark, matrix, (size[1], size[0])), np.float32)


def _shell(part: Part, turn: Array) -> Array:
    return np.asarray(part.vertices @ turn.T, np.float32)


def _fill_hull(canvas: npt.NDArray[np.uint8], points: Array) -> None:
    place = ((points / FLOOR_REACH * 0.5 + 0.5) * FLOOR_MAP - 0.5) * 16
    hull = cv2.convexHull(np.round(place).astype(np.int32))
    cv2.fillConvexPoly(canvas, hull, 255, cv2.LINE_AA, 4)


def tick_marks(turn: float, size: Size) -> Array:
    """Returns the marks on the turntable's rim, which turn with the object: H×W, 1 where there is none."""
    camera = Camera.before(size)
    mask = np.zeros(size, np.uint8)
    for number in range(48):
        angle = turn + 2 * np.pi * number / 48
        long, half = (0.16, 0.010) if number % 4 == 0 else (0.08, 0.006)
        along = np.array((np.cos(angle), np.sin(angle), 0.0))
        across = np.array((-np.sin(angle), np.cos(angle), 0.0)) * half
        inner, outer = along * (TABLE - 0.06 - long), along * (TABLE - 0.06)
        corners = np.stack([inner - across, inner + across, outer + across, outer - across]).astype(np.float32)
        seen, _ = camera.project(corners)
        cv2.fillConvexPoly(mask, np.round((seen - 0.5) * 16).astype(np.int32), 255, cv2.LINE_AA, 4)
    return np.asarray(1 - mask.astype(np.float32) * np.float32(0.45 / 255), np.float32)
