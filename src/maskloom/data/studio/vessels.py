"""Bottles, some of clear glass, and teapots."""

from __future__ import annotations

import numpy as np

from maskloom.data.studio.geometry import Colour, Material, Part, Surface, revolve, ring, smooth_profile, tube
from maskloom.data.studio.palette import any_colour, jittered


def _bottle(rng: np.random.Generator, colour: Colour) -> list[Part]:
    height, radius = rng.uniform(1.6, 2.3), rng.uniform(0.26, 0.36)
    neck, shoulder = radius * rng.uniform(0.28, 0.4), rng.uniform(0.52, 0.68)
    outline = [(radius * 0.92, 0.012), (radius, 0.06), (radius, 0.3 * height), (radius, shoulder * height)]
    outline += [(neck * 1.25, (shoulder + 0.17) * height), (neck, (shoulder + 0.24) * height), (neck, height)]
    profile = [(0.0, 0.0), (radius * 0.85, 0.0), *smooth_profile(outline, 26), (0.0, height)]
    clear = rng.random() < 0.65
    tint = tuple(0.25 * value for value in colour)
    glass = Material((tint[0], tint[1], tint[2]), reflect=0.06, gloss=0.97, transmit=0.62 if clear else 0.0)
    level, label = rng.uniform(0.3, 0.95) * shoulder * height, rng.uniform(0.25, 0.42) * height
    paper, ink = (
        jittered(rng, (0.7, 0.66, 0.55)),
        any_colour(rng, "red", "blue", "black", "green"),
    )

    def paint(surface: Surface) -> None:
        x, y, z = surface.position
        if clear:
            edge = np.clip(1 - np.abs(np.sum(surface.normal * surface.ray, axis=0)), 0, 1) ** 2
            surface.transmit *= (1 - 0.85 * edge).astype(np.float32)
            surface.transmit[z < level] *= 0.3
        angle = np.arctan2(y, x)
        chosen = (np.abs(z - label) < 0.15 * height) & (np.abs(angle) < 1.9)
        surface.fill(chosen, Material(paper, gloss=0.2))
        band = np.abs(np.abs(z - label) - 0.125 * height) < 0.008
        words = (
            (np.abs(z - label) < 0.04 * height) & (np.mod(angle * 9 + np.sin(z * 60), 1) < 0.6) & (np.abs(angle) < 1.2)
        )
        surface.fill(chosen & (band | words), Material(ink, gloss=0.2))

    cap = Material(ink, gloss=0.6) if rng.random() < 0.6 else Material((0.35, 0.22, 0.12), gloss=0.1)
    top = [(0, height), (neck * 1.15, height), (neck * 1.15, height + 0.13), (neck, height + 0.15), (0, height + 0.15)]
    return [revolve(profile, glass, paint), revolve(top, cap, sides=24)]


def bottles(rng: np.random.Generator, colour: Colour) -> tuple[str, list[Part]]:
    """Returns the number in words and the parts of one to three bottles."""
    count = int(rng.integers(1, 4))
    parts = []
    for place in range(count):
        own = colour if place == 0 else any_colour(rng)
        angle, apart = 2 * np.pi * place / count + 0.4, 0.0 if count == 1 else 0.48
        spin = rng.uniform(-3, 3)
        parts += [
            part.turned(2, spin).moved(apart * np.cos(angle), apart * np.sin(angle), 0) for part in _bottle(rng, own)
        ]
    return ("single", "pair", "trio")[count - 1], parts


def teapot(rng: np.random.Generator, colour: Colour) -> tuple[str, list[Part]]:
    """Returns the pattern and parts of a glazed teapot."""
    style = str(rng.choice(["plain", "banded", "dotted"]))
    glaze = Material(colour, reflect=0.06, gloss=0.93)
    radius, tall = rng.uniform(0.72, 0.88), rng.uniform(1.0, 1.3)
    outline = [
        (radius * 0.6, 0.03),
        (radius * 0.93, 0.25 * tall),
        (radius, 0.45 * tall),
        (radius * 0.82, 0.76 * tall),
        (radius * 0.48, 0.97 * tall),
        (radius * 0.44, tall),
    ]
    contrast = (0.7, 0.68, 0.6) if sum(colour) < 0.9 else (0.03, 0.06, 0.2)

    def paint(surface: Surface) -> None:
        angle, z = np.arctan2(surface.position[1], surface.position[0]), surface.position[2] / tall
        chosen = np.zeros(z.shape, bool)
        if style == "banded":
            chosen = (np.abs(z - 0.62) < 0.05) | (np.abs(z - 0.52) < 0.012) | (np.abs(z - 0.72) < 0.012)
        elif style == "dotted":
            row = np.floor(z * 6)
            chosen = (
                np.hypot(np.mod(z * 6, 1) - 0.5, (np.mod(angle * 14 / (2 * np.pi) + 0.5 * row, 1) - 0.5) * 1.4) < 0.24
            )
        surface.fill(chosen, Material(contrast, reflect=0.06, gloss=0.93))

    profile = [(0, 0), (radius * 0.58, 0), *smooth_profile(outline, 24), (0, tall)]
    parts = [revolve(profile, glaze, paint, sides=48)]
    lid = [
        (radius * 0.46, tall),
        (radius * 0.46, tall + 0.03),
        *smooth_profile(
            [
                (radius * 0.44, tall + 0.05),
                (radius * 0.2, tall + 0.14),
                (0.06, tall + 0.16),
                (0.11, tall + 0.25),
                (0.06, tall + 0.32),
                (0, tall + 0.33),
            ],
            20,
        ),
    ]
    parts.append(revolve([(0, tall), *lid], glaze, sides=32))
    spout = [
        (radius * 0.8, 0.0, 0.33 * tall),
        (radius * 1.25, 0, 0.45 * tall),
        (radius * 1.5, 0, 0.8 * tall),
        (radius * 1.8, 0, 1.02 * tall),
    ]
    smooth = np.stack(
        [np.interp(np.linspace(0, 3, 14), range(4), [point[axis] for point in spout]) for axis in (0, 1, 2)], 1
    )
    parts.append(
        tube([tuple(point) for point in smooth.tolist()], np.linspace(0.2, 0.085, 14).tolist(), glaze, sides=16)
    )
    handle = ring(0.42 * tall, 0.06, glaze, arc=(0.32 * np.pi, 1.56 * np.pi))
    parts.append(handle.moved(-radius * 0.78, 0, 0.52 * tall))
    return style, parts
