"""Colours and materials that the objects share; colours are linear RGB."""

from __future__ import annotations

import numpy as np

from maskloom.data.studio.geometry import Colour, Material

# "studio grey" and "fog" nearly vanish before the backdrop
COLOURS: dict[str, Colour] = {
    "red": (0.42, 0.012, 0.015),
    "orange": (0.62, 0.16, 0.015),
    "yellow": (0.66, 0.42, 0.02),
    "green": (0.03, 0.17, 0.05),
    "teal": (0.01, 0.20, 0.22),
    "blue": (0.012, 0.05, 0.26),
    "sky": (0.12, 0.32, 0.50),
    "violet": (0.12, 0.03, 0.20),
    "sand": (0.45, 0.34, 0.20),
    "black": (0.008, 0.008, 0.009),
    "graphite": (0.06, 0.062, 0.068),
    "silver": (0.42, 0.43, 0.45),
    "white": (0.78, 0.78, 0.76),
    "studio grey": (0.36, 0.36, 0.36),
    "fog": (0.52, 0.53, 0.54),
}
WOODS: tuple[Colour, ...] = ((0.30, 0.15, 0.06), (0.12, 0.05, 0.025), (0.45, 0.28, 0.13), (0.05, 0.03, 0.02))
CHROME = Material((0.75, 0.76, 0.78), reflect=0.75, gloss=0.9, metal=1.0)
BLACK = Material((0.006, 0.006, 0.006), reflect=0.02, gloss=0.1)


def jittered(rng: np.random.Generator, colour: Colour) -> Colour:
    """Returns a colour near the given one."""
    red, green, blue = (float(value) for value in np.clip(np.array(colour) * rng.uniform(0.85, 1.15, 3), 0.004, 0.85))
    return red, green, blue


def any_colour(rng: np.random.Generator, *names: str) -> Colour:
    """Returns one of the named colours, or of all, slightly changed."""
    return jittered(rng, COLOURS[str(rng.choice(names or list(COLOURS)))])
