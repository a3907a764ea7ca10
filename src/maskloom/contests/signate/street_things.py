"""What stands and moves on a drawn street: vehicles, people, signals, signs, posts and cones, each as a painter.

A maker takes where a thing stands, metres to the right and ahead, and a generator that it draws its looks from. Knows
nothing about roads and light.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from maskloom.contests.signate.street_canvas import Canvas, Painter, Rgb, varied

Maker = Callable[[float, float, np.random.Generator], Painter]
"""Takes x and depth of a thing."""

_PAINTS: tuple[Rgb, ...] = (
    (200, 200, 205), (40, 42, 48), (160, 30, 32), (34, 60, 120), (235, 235, 230), (96, 100, 104),
)  # fmt: skip


def _vehicle(name: str, width: float, height: float, paints: Sequence[Rgb]) -> Maker:
    """Returns what makes a painter of vehicles seen from behind."""

    def make(x: float, depth: float, rng: np.random.Generator) -> Painter:
        paint = varied(paints[int(rng.integers(len(paints)))], rng, 0.1)
        half, top = width / 2 * float(rng.uniform(0.92, 1.08)), height * float(rng.uniform(0.92, 1.08))

        def draw(canvas: Canvas) -> None:
            for side in (-1, 1):
                wheel = sorted((x + side * half * 0.95, x + side * half * 0.6))
                canvas.block(name, (wheel[0], wheel[1]), (0, 0.4), depth, (22, 22, 24))
            canvas.block(name, (x - half, x + half), (0.25, 0.62 * top), depth, paint)
            canvas.block(name, (x - 0.85 * half, x + 0.85 * half), (0.55 * top, top), depth, paint)
            canvas.block(name, (x - 0.75 * half, x + 0.75 * half), (0.62 * top, 0.92 * top), depth, (48, 56, 66))
            for side in (-1, 1):
                canvas.disc(name, x + side * 0.8 * half, 0.5 * top, (0.12, 0.09), depth, (215, 34, 30))

        return draw

    return make


def _rider(name: str, width: float, height: float, frame: Rgb) -> Maker:
    """Returns what makes a painter of one person, on two wheels where there is a frame, seen from behind."""

    def make(x: float, depth: float, rng: np.random.Generator) -> Painter:
        clothes = varied((125, 120, 115), rng, 0.5)
        half, top = width / 2, height * float(rng.uniform(0.88, 1.06))

        def draw(canvas: Canvas) -> None:
            if name == "pedestrian":
                for side in (-1, 1):
                    leg = sorted((x + side * 0.15 * half, x + side * 0.7 * half))
                    canvas.block(name, (leg[0], leg[1]), (0, 0.5 * top), depth, (44, 44, 60))
            else:
                canvas.disc(name, x, 0.3 * top, (half, 0.3 * top), depth, frame)
            canvas.disc(name, x, 0.63 * top, (half, 0.24 * top), depth, clothes)
            canvas.disc(name, x, 0.92 * top, (0.11, 0.08 * top), depth, (196, 156, 130))

        return draw

    return make


def _signal(x: float, depth: float, rng: np.random.Generator) -> Painter:
    """Returns a painter of three lamps side by side on a pole, which is among the others."""
    shining, mirrored = int(rng.integers(3)), 1 if rng.random() < 0.5 else -1
    bright, dark = ((60, 235, 170), (250, 200, 40), (245, 50, 40)), ((20, 60, 48), (66, 54, 16), (70, 20, 16))

    def draw(canvas: Canvas) -> None:
        pole = x + mirrored * 1.1
        canvas.block("others", (pole - 0.09, pole + 0.09), (0, 5.2), depth, (120, 122, 124))
        canvas.block("signal", (x - 0.7, x + 0.7), (4.7, 5.3), depth, (36, 40, 38))
        for lamp in range(3):
            colour = bright[lamp] if lamp == shining else dark[lamp]
            canvas.disc("signal", x + 0.44 * (lamp - 1), 5.0, (0.18, 0.18), depth, colour)

    return draw


def _sign(x: float, depth: float, rng: np.random.Generator) -> Painter:
    """Returns a painter of a round or a square plate."""
    is_round, height = rng.random() < 0.6, float(rng.uniform(2.4, 3.6))
    plate: Rgb = (28, 70, 170) if rng.random() < 0.5 else (215, 40, 40)

    def draw(canvas: Canvas) -> None:
        canvas.block("others", (x - 0.05, x + 0.05), (0, height), depth, (130, 130, 132))
        if is_round:
            canvas.disc("signs", x, height, (0.38, 0.38), depth, plate)
            canvas.disc("signs", x, height, (0.25, 0.25), depth, (236, 236, 236))
        else:
            canvas.block("signs", (x - 0.6, x + 0.6), (height - 0.35, height + 0.35), depth, plate)

    return draw


def _pole(x: float, depth: float, rng: np.random.Generator) -> Painter:
    """Returns a painter of a lamp post."""
    height, reach = float(rng.uniform(5, 8)), float(rng.uniform(0.8, 2))
    arm = (x - reach, x) if x > 0 else (x, x + reach)

    def draw(canvas: Canvas) -> None:
        canvas.block("others", (x - 0.12, x + 0.12), (0, height), depth, (104, 106, 108))
        canvas.block("others", arm, (height - 0.2, height), depth, (104, 106, 108))

    return draw


def _cone(x: float, depth: float, rng: np.random.Generator) -> Painter:
    """Returns a painter of a traffic cone."""
    height = float(rng.uniform(0.7, 1.0))

    def draw(canvas: Canvas) -> None:
        corners = [(x - 0.32, 0.0), (x - 0.05, height), (x + 0.05, height), (x + 0.32, 0.0)]
        canvas.paint("obstacle", [canvas.seen(*corner, depth) for corner in corners], (235, 96, 30))
        canvas.block("obstacle", (x - 0.19, x + 0.19), (0.4 * height, 0.58 * height), depth, (236, 236, 232))

    return draw


MAKERS: Mapping[str, Maker] = {
    "car": _vehicle("car", 1.75, 1.5, _PAINTS),
    "bus": _vehicle("bus", 2.5, 3.1, ((60, 130, 80), (220, 190, 90), (200, 70, 60))),
    "truck": _vehicle("truck", 2.4, 3.3, ((225, 225, 222), (90, 110, 150))),
    "svehicle": _vehicle("svehicle", 2.3, 2.5, ((240, 180, 30),)),
    "motorbike": _rider("motorbike", 0.8, 1.65, (30, 30, 34)),
    "bicycle": _rider("bicycle", 0.6, 1.6, (150, 155, 160)),
    "pedestrian": _rider("pedestrian", 0.55, 1.75, (0, 0, 0)),
    "signal": _signal,
    "signs": _sign,
    "others": _pole,
    "obstacle": _cone,
}
"""The makers by category."""
