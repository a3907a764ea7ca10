"""What stands on the turntable: the list of kinds, and one object drawn from a seed and a number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from maskloom.data.studio.cars import OUTLINES, build_car
from maskloom.data.studio.furniture import chair, lamp
from maskloom.data.studio.geometry import Colour, Material, Part
from maskloom.data.studio.palette import COLOURS, jittered
from maskloom.data.studio.robots import robot
from maskloom.data.studio.vessels import bottles, teapot
from maskloom.errors import UserError, closest
from maskloom.runtime import derive_seed, generator

TALLEST = 2.68
"""Height of the tallest object, in studio units."""
KINDS = ("car", "chair", "robot", "van", "lamp", "bottles", "teapot")
SCALES: dict[str, float] = {"robot": 1.1, "bottles": 1.16, "chair": 1.12, "lamp": 1.12, "teapot": 1.4}


@dataclass(frozen=True)
class StudioObject:
    """One object: its parts and what the metadata table says about it."""

    id: str
    kind: str
    style: str
    colour: str
    year: int
    turn: float
    """Angle of view 1 about the vertical axis, in radians."""
    parts: tuple[Part, ...]


def draw_object(seed: int, index: int, kind: str | None = None) -> StudioObject:
    """Returns object number ``index`` of the studio ``seed``; without a ``kind`` the kinds take turns.

    Raises ``UserError`` for an unknown kind.
    """
    kind = KINDS[index % len(KINDS)] if kind is None else kind
    if kind not in BUILDERS:
        raise UserError(f"studio kind {kind!r}: expected one of the kinds the studio can draw, {closest(kind, KINDS)}")
    rng = generator(seed, "studio object", index)
    order = generator(seed, "studio colours").permutation(len(COLOURS))  # each once before any comes again
    colour = list(COLOURS)[order[index % len(COLOURS)]]
    year, turn = int(rng.integers(1998, 2018)), float(rng.uniform(0, 2 * np.pi))
    style, parts = BUILDERS[kind](rng, jittered(rng, COLOURS[colour]))
    name = f"{derive_seed(seed, 'studio id', index) & 0xFFFFFFFFFFFF:012x}"
    tall = max(float(part.vertices[:, 2].max()) for part in parts)
    grown = tuple(part.scaled(min(SCALES.get(kind, 1.0), TALLEST / tall)) for part in parts)
    return StudioObject(name, kind, style, colour, year, turn, grown)


def _car(rng: np.random.Generator, colour: Colour) -> tuple[str, list[Part]]:
    style = str(rng.choice([style for style in OUTLINES if style != "van"]))
    flake = float(rng.choice([0.0, 0.35]))
    return style, build_car(rng, style, Material(colour, reflect=0.085, gloss=0.95, metal=flake))


def _van(rng: np.random.Generator, colour: Colour) -> tuple[str, list[Part]]:
    return "van", build_car(rng, "van", Material(colour, reflect=0.07, gloss=0.93))


BUILDERS: dict[str, Callable[[np.random.Generator, Colour], tuple[str, list[Part]]]] = {
    "car": _car,
    "chair": chair,
    "robot": robot,
    "van": _van,
    "lamp": lamp,
    "bottles": bottles,
    "teapot": teapot,
}
