"""Chairs and lamps."""

from __future__ import annotations

import numpy as np

from maskloom.data.studio.geometry import Colour, Material, Paint, Part, Surface, box, revolve, rounded_box, tube
from maskloom.data.studio.palette import CHROME, WOODS


def _grain(colour: Colour, axis: int) -> Paint:
    """Returns a wood grain along one axis."""
    base = np.array(colour, np.float32)[:, None]

    def paint(surface: Surface) -> None:
        across = [surface.position[other] for other in range(3) if other != axis]
        along = surface.position[axis]
        rings = across[0] * 23 + across[1] * 31 + 0.6 * np.sin(along * 4.1) + 0.25 * np.sin(along * 13 + across[0] * 40)
        tone = 0.82 + 0.18 * np.sin(rings * 2.6) + 0.07 * np.sin(rings * 17)
        surface.colour[:] = base * tone

    return paint


def chair(rng: np.random.Generator, colour: Colour) -> tuple[str, list[Part]]:
    """Returns the style and parts of a wooden chair with thin bars and real gaps."""
    style = str(rng.choice(["slatted", "panelled", "barred"]))
    wood = WOODS[int(rng.integers(len(WOODS)))] if rng.random() < 0.6 else colour
    lumber = Material(wood, reflect=0.045, gloss=0.45)
    width, depth, seat = rng.uniform(0.95, 1.2), rng.uniform(0.95, 1.15), rng.uniform(1.0, 1.15)
    top, lean, thick = seat + rng.uniform(1.05, 1.35), rng.uniform(0.12, 0.26), rng.uniform(0.052, 0.076)
    parts = [_cushion(rng, colour, lumber, width, depth, seat)]
    for side in (-1, 1):
        y = side * (width / 2 - 0.06)
        parts.append(
            tube(
                [(depth / 2 - 0.02, y * 1.06, 0), (depth / 2 - 0.08, y, seat)],
                [thick * 0.7, thick],
                lumber,
                _grain(wood, 2),
            )
        )
        post = [(-depth / 2 - 0.05, y * 1.06, 0), (-depth / 2 + 0.06, y, seat), (-depth / 2 + 0.06 - lean, y, top)]
        parts.append(tube(post, [thick * 0.7, thick, thick * 0.8], lumber, _grain(wood, 2)))
        parts.append(tube([(-depth / 2, y * 1.03, 0.42), (depth / 2 - 0.05, y * 1.03, 0.36)], 0.03, lumber, sides=8))
        if rng.random() < 0.35:
            arm = [
                (-depth / 2, y, seat + 0.5),
                (depth / 2 - 0.1, y * 1.1, seat + 0.46),
                (depth / 2 - 0.06, y * 1.06, seat),
            ]
            parts.append(tube(arm, 0.035, lumber, _grain(wood, 0)))
    x, span = -depth / 2 + 0.06, width - 0.1
    parts.append(
        tube(
            [(x - lean, -span / 2, top), (x - lean - 0.03, 0, top + 0.04), (x - lean, span / 2, top)],
            0.062,
            lumber,
            _grain(wood, 1),
        )
    )
    slope = -float(np.arctan2(lean, top - seat))
    middle = (x - lean * 0.55, 0.0, seat + 0.55 * (top - seat))
    if style == "panelled":
        panel = rounded_box((0.06, span * 0.92, (top - seat) * 0.62), Material(colour, gloss=0.3), sharpness=8)
        parts.append(panel.turned(1, slope).moved(*middle))
    elif style == "barred":
        for height in np.linspace(0.3, 0.82, int(rng.integers(2, 5))):
            bar = box((0.035, span, 0.12), lumber, _grain(wood, 1))
            parts.append(bar.turned(1, slope).moved(x - lean * height, 0, seat + height * (top - seat)))
    else:
        for y in np.linspace(-span / 2 + 0.14, span / 2 - 0.14, int(rng.integers(4, 8))):
            parts.append(tube([(x, y, seat), (x - lean, y * 1.02, top)], 0.026, lumber, sides=8))
    return style, parts


def _cushion(
    rng: np.random.Generator, colour: Colour, lumber: Material, width: float, depth: float, height: float
) -> Part:
    stripes = rng.random() < 0.4
    second = tuple(0.5 * value + 0.25 for value in colour)

    def paint(surface: Surface) -> None:
        weave = 0.9 + 0.1 * np.sin(surface.position[0] * 150) * np.sin(surface.position[1] * 150)
        surface.colour *= weave.astype(np.float32)
        if stripes:
            chosen = np.mod(surface.position[1], 0.22) < 0.07
            surface.fill(chosen, Material((second[0], second[1], second[2]), gloss=0.1))

    padded = rng.random() < 0.6
    size = (depth, width, 0.15 if padded else 0.08)
    part = (
        rounded_box(size, Material(colour, gloss=0.1), paint, sharpness=6)
        if padded
        else rounded_box(size, lumber, sharpness=8)
    )
    return part.moved(0, 0, height)


def lamp(rng: np.random.Generator, colour: Colour) -> tuple[str, list[Part]]:
    """Returns the style and parts of a lamp on a thin pole, often lit."""
    style = str(rng.choice(["standing", "arched"]))
    metal = CHROME if rng.random() < 0.5 else Material((0.35, 0.22, 0.07), reflect=0.6, gloss=0.8, metal=1.0)
    metal = metal if rng.random() < 0.7 else Material((0.012, 0.012, 0.012), gloss=0.5)
    foot, height = rng.uniform(0.38, 0.55), rng.uniform(2.1, 2.45)
    parts = [revolve([(0, 0), (foot, 0), (foot, 0.045), (foot * 0.3, 0.085), (0.03, 0.11), (0, 0.11)], metal)]
    radius, drop, flare = rng.uniform(0.55, 0.75), rng.uniform(0.5, 0.68), rng.uniform(0.45, 0.95)
    pole = rng.uniform(0.02, 0.034)
    if style == "standing":
        centre, rim = 0.0, height - drop
        parts.append(tube([(0, 0, 0.08), (0, 0, height - 0.06)], pole, metal, sides=10))
    else:
        centre, rim = 0.75, height - drop - 0.35
        bend = np.linspace(np.pi, 0.12, 16)
        arch = [(-0.28, 0.0, 0.06), (-0.28, 0, height - 0.7)]
        arch += [(0.235 + 0.515 * np.cos(a), 0.0, height - 0.62 + 0.62 * np.sin(a)) for a in bend]
        parts = [parts[0].moved(-0.28, 0, 0)]
        parts.append(tube([*arch, (centre, 0, rim + drop)], pole, metal, sides=10))
    parts.append(_shade(rng, colour, radius, radius * flare, drop).moved(centre, 0, rim))
    bulb = Material((1.0, 0.86, 0.62), glow=2.2)
    parts.append(rounded_box((0.16, 0.16, 0.22), bulb, sharpness=2.2, steps=8).moved(centre, 0, rim + 0.12))
    if rng.random() < 0.6:
        x = centre + radius * 0.55
        chain = [(x, 0.0, rim + 0.05), (x, 0, rim - rng.uniform(0.2, 0.35))]
        parts.append(tube(chain, 0.0055, metal, sides=6))
        parts.append(rounded_box((0.05, 0.05, 0.05), metal, sharpness=2, steps=6).moved(*chain[-1]))
    return style, parts


def _shade(rng: np.random.Generator, colour: Colour, low: float, high: float, drop: float) -> Part:
    lit = rng.random() < 0.7
    pleats = int(rng.choice([0, 40, 64]))

    def paint(surface: Surface) -> None:
        if pleats:
            surface.colour *= (0.88 + 0.12 * np.sin(surface.uv[1] * 2 * np.pi * pleats)).astype(np.float32)
        if lit:
            surface.glow[:] = 0.75 * np.exp(-(((surface.position[2] / drop - 0.35) / 0.5) ** 2))
        edge = (surface.position[2] < 0.03 * drop) | (surface.position[2] > 0.97 * drop)
        surface.colour[:, edge] *= 0.35

    wall = 0.012
    profile = [(low - wall, 0), (low, 0), (high, drop), (high - wall, drop), (low - wall, 0)]
    fabric = tuple(0.6 * value + 0.15 for value in colour)
    return revolve(profile, Material((fabric[0], fabric[1], fabric[2]), gloss=0.08), paint, sides=48)
