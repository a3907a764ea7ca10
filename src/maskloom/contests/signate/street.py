"""One drawn street scene: a photo with the category of every pixel, seen from a car, in true perspective.

The road runs straight ahead, in metres; what lies farther is painted first. The painting is flat; light, texture and
noise come over it. Knows nothing about files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np

from maskloom.contests.signate.colours import CATEGORIES
from maskloom.contests.signate.street_canvas import Canvas, Painter, Rgb, varied
from maskloom.contests.signate.street_things import MAKERS
from maskloom.records import Size

Route = Literal["city", "suburb", "highway"]
TimeOfDay = Literal["day", "evening", "night"]
ROUTES: tuple[Route, ...] = get_args(Route)
TIMES: tuple[TimeOfDay, ...] = get_args(TimeOfDay)

NEAREST, FARTHEST = 1.5, 400.0
"""Metres ahead between which the ground is drawn."""
LANE = 3.5
"""Metres."""

_MATERIALS: Mapping[str, tuple[Rgb, float]] = {
    "lane": ((92, 92, 96), 0.06),
    "ground": ((128, 120, 108), 0.14),
    "sidewalk": ((168, 160, 150), 0.08),
    "roadshoulder": ((118, 112, 104), 0.10),
    "sky": ((150, 190, 230), 0.02),
    "building": ((150, 135, 120), 0.06),
    "natural": ((62, 105, 48), 0.30),
    "wall": ((175, 175, 165), 0.05),
    "own": ((38, 38, 44), 0.02),
}
"""Mean colour and relative texture of what has no colour of its own."""
_TEXTURE = 0.04  # of all others
_LIGHT: Mapping[TimeOfDay, tuple[Rgb, Rgb, float]] = {
    "day": ((1.0, 1.0, 1.0), (150, 190, 230), 3.0),
    "evening": ((0.80, 0.62, 0.48), (225, 150, 105), 4.0),
    "night": ((0.26, 0.28, 0.38), (60, 62, 84), 6.0),
}
"""Factor on every colour, the sky's own colour by daylight, and the sensor's noise in grey levels."""
_ROADSIDE: Mapping[Route, tuple[tuple[str, float], ...]] = {
    "city": (("building", 0.7), ("natural", 0.15), ("wall", 0.15)),
    "suburb": (("building", 0.3), ("natural", 0.5), ("wall", 0.2)),
    "highway": (("building", 0.1), ("natural", 0.3), ("wall", 0.6)),
}
"""What stands beside the road, with its share."""
_CHANCES: Mapping[Route, Mapping[str, float]] = {
    "city": {"pedestrian": 0.8, "bicycle": 0.6, "motorbike": 0.4, "bus": 0.5, "truck": 0.3, "svehicle": 0.2,
             "signal": 0.9, "signs": 0.8, "obstacle": 0.4, "others": 0.8},
    "suburb": {"pedestrian": 0.5, "bicycle": 0.4, "motorbike": 0.3, "bus": 0.3, "truck": 0.3, "svehicle": 0.2,
               "signal": 0.6, "signs": 0.7, "obstacle": 0.3, "others": 0.6},
    "highway": {"pedestrian": 0.0, "bicycle": 0.0, "motorbike": 0.4, "bus": 0.4, "truck": 0.7, "svehicle": 0.3,
                "signal": 0.1, "signs": 0.9, "obstacle": 0.5, "others": 0.7},
}  # fmt: skip
"""How likely a scene holds one of these at least."""
_SEEN_AT: Mapping[str, tuple[float, float]] = {
    "bus": (28, 40), "truck": (22, 34), "svehicle": (16, 26), "signal": (12, 20), "signs": (9, 16), "car": (9, 14),
    "others": (8, 16), "pedestrian": (7.5, 12), "motorbike": (7.5, 11), "bicycle": (7.5, 11), "obstacle": (7.5, 10),
}  # fmt: skip
"""Between these depths, metres, the one of each kind in a complete scene stands: what is large stands far."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A photo, uint8 H×W×3 (RGB), and the place of each pixel's category in ``CATEGORIES``, uint8 H×W."""

    photo: np.ndarray
    labels: np.ndarray


def draw_street(
    rng: np.random.Generator, size: Size, *, route: Route = "city", time: TimeOfDay = "day", complete: bool = False
) -> Scene:
    """Returns a scene of ``size`` (height, width); with ``complete`` one of every kind of thing is put into it.

    What is put into it may still be hidden by what stands before it.
    """
    canvas = Canvas(size, horizon=float(rng.uniform(0.40, 0.46)), bend=float(rng.uniform(-0.1, 0.1)))
    road = _Road(left=-LANE * float(rng.uniform(0.6, 1.6)), right=LANE * float(rng.uniform(1.4, 1.7)))
    _draw_ground(canvas, road, rng, _LIGHT[time][1])
    things = _roadside(road, rng, route, complete=complete) + _things(road, rng, route, complete=complete)
    for _, draw in sorted(things, key=lambda thing: -thing[0]):
        draw(canvas)
    _draw_bonnet(canvas, rng)
    return Scene(_photographed(canvas, rng, time), canvas.labels)


Thing = tuple[float, Painter]
"""Its depth in metres, and what paints it."""


@dataclass(frozen=True, slots=True)
class _Road:
    """The edges of the lanes, metres to the right of the camera."""

    left: float
    right: float
    shoulder: float = 0.9
    sidewalk: float = 2.4

    def side(self, sign: int, beyond: float) -> float:
        """Returns a place so many metres outside the lanes, on the right (1) or left (-1)."""
        return self.right + beyond if sign > 0 else self.left - beyond


# The ground ---------------------------------------------------------------------------------------------------------


def _draw_ground(canvas: Canvas, road: _Road, rng: np.random.Generator, sky: Rgb) -> None:
    width, horizon = canvas.width, canvas.horizon
    canvas.paint("sky", [(-1, -1), (width + 1, -1), (width + 1, horizon), (-1, horizon)], sky)
    canvas.paint("ground", [(-1, horizon), (width + 1, horizon), (width + 1, 2), (-1, 2)], _shade("ground", rng))
    whole = NEAREST, FARTHEST
    for sign in (-1, 1):
        inner, middle = road.side(sign, 0), road.side(sign, road.shoulder)
        outer = road.side(sign, road.shoulder + road.sidewalk)
        canvas.strip("sidewalk", (middle, outer), _shade("sidewalk", rng), whole)
        canvas.strip("roadshoulder", (inner, middle), _shade("roadshoulder", rng), whole)
    canvas.strip("lane", (road.left, road.right), _shade("lane", rng), whole)
    line = LANE / 2
    while line < road.right - 1:  # dashes are painted on the lane and belong to it
        for start in np.arange(4.0, 80.0, 10.0):
            canvas.strip("lane", (line - 0.08, line + 0.08), (225, 225, 220), (float(start), float(start) + 5))
        line += LANE
    crossing = float(rng.uniform(8, 30))
    canvas.strip("ground", (road.left, road.right), _shade("ground", rng), (crossing, crossing + 4))


def _draw_bonnet(canvas: Canvas, rng: np.random.Generator) -> None:
    """The car's own bonnet, over the lower edge."""
    width, top = canvas.width, float(rng.uniform(0.90, 0.94))
    across = np.linspace(-0.05, 1.05, 24)
    arch = [(float(x) * width, top + 0.25 * float(x - 0.5) ** 2) for x in across]
    canvas.paint("own", [(-0.1, 1.2), *arch, (width + 0.1, 1.2)], _shade("own", rng))


def _shade(category: str, rng: np.random.Generator, spread: float = 0.08) -> Rgb:
    """Returns the colour of a thing of the category, a little lighter or darker than the mean."""
    return varied(_MATERIALS[category][0], rng, spread)


# What stands beside the road ----------------------------------------------------------------------------------------


def _roadside(road: _Road, rng: np.random.Generator, route: Route, *, complete: bool) -> list[Thing]:
    """Returns buildings, trees and walls along both sides."""
    names = [name for name, _ in _ROADSIDE[route]]
    shares = [share for _, share in _ROADSIDE[route]]
    things: list[Thing] = []
    for sign in (-1, 1):
        depth, number = float(rng.uniform(7, 10)), 0
        while depth < 150:
            length = float(rng.uniform(8, 22))
            name = str(rng.choice(names, p=shares))
            if complete and number < len(names):
                name = names[(number + (sign > 0)) % len(names)]
            if rng.random() < 0.85 or complete:
                things.append(_stretch(name, road, sign, (depth, depth + length), rng))
            depth, number = depth + length + float(rng.uniform(0, 4)), number + 1
    return things


def _stretch(name: str, road: _Road, sign: int, depth: tuple[float, float], rng: np.random.Generator) -> Thing:
    near, far = depth
    x = road.side(sign, road.shoulder + road.sidewalk + float(rng.uniform(0.5, 3)))
    if name == "natural":
        trees = [
            (ahead, float(rng.uniform(2, 4)), float(rng.uniform(1.4, 2.6)), _shade("natural", rng, 0.2))
            for ahead in np.arange(far, near, -3.5).tolist()
        ]

        def draw_trees(canvas: Canvas) -> None:
            for ahead, height, radius, colour in trees:
                canvas.block("natural", (x - 0.2, x + 0.2), (0, height), ahead, (74, 58, 44))
                canvas.disc("natural", x, height + 0.6 * radius, (radius, radius), ahead, colour)

        return far, draw_trees
    top = float(rng.uniform(1.6, 3)) if name == "wall" else float(rng.uniform(5, 18))
    front, side = _shade(name, rng, 0.25), _shade(name, rng, 0.25)
    away = x + sign * float(rng.uniform(6, 14))
    panes = varied((70, 84, 100), rng, 0.2)

    def draw(canvas: Canvas) -> None:
        along = [(0.0, near), (top, near), (top, far), (0.0, far)]
        canvas.block(name, (x, away), (0, top), near, front)
        canvas.paint(name, [canvas.seen(x, height, ahead) for height, ahead in along], side)
        if name == "building":  # windows are of the building, too
            for height in np.arange(1.5, top - 1.5, 3.0).tolist():
                row = [(height, near + 0.5), (height + 1.3, near + 0.5), (height + 1.3, far), (height, far)]
                canvas.paint(name, [canvas.seen(x, up, ahead) for up, ahead in row], panes)

    return far, draw


# What stands and moves on the road ----------------------------------------------------------------------------------


def _things(road: _Road, rng: np.random.Generator, route: Route, *, complete: bool) -> list[Thing]:
    """Returns vehicles, people, signals and signs; with ``complete`` one of each."""
    if complete:
        each = [(name, float(rng.uniform(*depths))) for name, depths in _SEEN_AT.items()]
        return [(depth, MAKERS[name](_place(name, road, rng), depth, rng)) for name, depth in each]
    numbers = {"car": int(rng.integers(0, 5))}
    for name, chance in _CHANCES[route].items():
        numbers[name] = 1 + int(rng.integers(0, 2)) if rng.random() < chance else 0
    depths = iter(rng.permutation(np.geomspace(7.5, 48, 24)).tolist())
    things: list[Thing] = []
    for name, count in numbers.items():
        for _ in range(count):
            depth = float(next(depths, rng.uniform(8, 48)))
            place = _place(name, road, rng)
            things.append((depth, MAKERS[name](place, depth, rng)))
    return things


def _place(name: str, road: _Road, rng: np.random.Generator) -> float:
    """Returns where a thing of the category stands, metres to the right."""
    sign = 1 if rng.random() < 0.5 else -1
    if name in ("car", "bus", "truck", "svehicle"):
        return float(rng.uniform(road.left + 0.8, road.right - 0.8))
    if name == "motorbike":
        return float(rng.uniform(road.left + 0.4, road.right - 0.4))
    if name in ("pedestrian", "others", "signs"):
        return road.side(sign, road.shoulder + float(rng.uniform(0.3, road.sidewalk)))
    if name == "signal":
        return float(rng.uniform(road.left, road.right + 2))
    return road.side(sign, float(rng.uniform(0.1, road.shoulder)))


# The photo ----------------------------------------------------------------------------------------------------------


def _photographed(canvas: Canvas, rng: np.random.Generator, time: TimeOfDay) -> np.ndarray:
    """Returns the photo of the painted colours: texture, light, the lens and noise."""
    size = canvas.size
    amplitude = np.array([_MATERIALS.get(name, ((0, 0, 0), _TEXTURE))[1] for name in CATEGORIES], np.float32)
    rough = rng.standard_normal(size, dtype=np.float32)
    for cells in (120, 30):
        rough += _smooth(rng, size, cells)
    light, _, noise = _LIGHT[time]
    brightness = 1 + 0.6 * amplitude[canvas.labels] * rough
    brightness *= 1 + 0.08 * _smooth(rng, size, 6)
    photo: np.ndarray = canvas.colours.astype(np.float32)
    photo *= brightness[:, :, None]
    photo *= np.array(light, np.float32)
    photo = np.asarray(cv2.GaussianBlur(photo, (0, 0), 0.6, borderType=cv2.BORDER_REFLECT))
    photo += noise * rng.standard_normal(photo.shape, dtype=np.float32)
    seen: np.ndarray = np.clip(np.rint(photo), 0, 255).astype(np.uint8)
    return seen


def _smooth(rng: np.random.Generator, size: Size, cells: int) -> np.ndarray:
    """Returns smooth noise of about unit variance with so many bumps across the height, float32 H×W."""
    width = max(4, round(cells * size[1] / size[0]))
    coarse = rng.standard_normal((max(4, cells), width), dtype=np.float32)
    return np.asarray(cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC))
