"""Robots with thin antennas, on tracks or on feet."""

from __future__ import annotations

import numpy as np

from maskloom.data.studio.geometry import Colour, Material, Paint, Part, Surface, box, rounded_box, tube
from maskloom.data.studio.palette import BLACK, any_colour


def robot(rng: np.random.Generator, colour: Colour) -> tuple[str, list[Part]]:
    """Returns the style and parts of a robot."""
    style = str(rng.choice(["tracked", "walking"]))
    shell, joint = Material(colour, reflect=0.05, gloss=0.75), Material((0.05, 0.05, 0.055), gloss=0.4)
    second = Material(any_colour(rng, "white", "graphite", "silver", "orange"), gloss=0.7)
    width, hip, tall = rng.uniform(0.8, 1.05), rng.uniform(0.55, 0.8), rng.uniform(0.8, 1.0)
    parts = [rounded_box((width * 0.7, width, tall), shell, _chest(tall), sharpness=5).moved(0, 0, hip + tall / 2)]
    neck, head = hip + tall, rng.uniform(0.36, 0.48)
    parts.append(tube([(0, 0, neck - 0.05), (0, 0, neck + 0.12)], 0.09, joint))
    parts.append(
        rounded_box((head * 1.2, head * 1.6, head), second, _face(head), sharpness=4).moved(0, 0, neck + 0.1 + head / 2)
    )
    for side in (-1, 1):
        parts += _limbs(rng, style, side, width, hip, tall, shell, joint)
        foot = neck + 0.1 + head
        if rng.random() < 0.8:
            tip = (-0.08, side * head * 0.9, foot + rng.uniform(0.3, 0.5))
            parts.append(tube([(0, side * head * 0.5, foot - 0.05), tip], [0.007, 0.0045], joint, sides=6))
            parts.append(
                rounded_box((0.07,) * 3, Material((0.6, 0.03, 0.02), glow=0.5, gloss=0.8), sharpness=2, steps=8).moved(
                    *tip
                )
            )
    return style, parts


def _limbs(
    rng: np.random.Generator,
    style: str,
    side: int,
    width: float,
    hip: float,
    tall: float,
    shell: Material,
    joint: Material,
) -> list[Part]:
    shoulder, raised = (0.0, side * (width / 2 + 0.03), hip + tall * 0.82), rng.uniform(-0.35, 0.6)
    elbow = (0.12, side * (width / 2 + 0.24), shoulder[2] - 0.38)
    hand = (elbow[0] + 0.36, elbow[1] + side * 0.03, elbow[2] + raised * 0.45)
    parts = [tube([shoulder, elbow], 0.05, joint), tube([elbow, hand], [0.06, 0.08], shell)]
    parts += [rounded_box((0.19,) * 3, shell, sharpness=2, steps=8).moved(*place) for place in (shoulder, elbow)]
    for angle in (-0.5, 0.5):
        tip = (hand[0] + 0.19, hand[1] + 0.12 * np.sin(angle) * side, hand[2] + 0.16 * angle)
        parts.append(tube([hand, tip], [0.03, 0.014], joint, sides=8))
    if style == "tracked":
        track = rounded_box(
            (width * 1.15, 0.24, 0.48), Material((0.02, 0.02, 0.021), gloss=0.2), _treads, sharpness=3.2
        )
        parts.append(track.moved(0, side * (width / 2 - 0.08), 0.24))
        parts.append(box((0.3, 0.2, hip), joint).moved(0, side * 0.18, hip / 2 + 0.05))
    else:
        y = side * width * 0.27
        parts.append(tube([(0, y, hip + 0.1), (0.05, y, hip * 0.5), (0, y, 0.1)], 0.075, joint))
        parts.append(rounded_box((0.48, 0.28, 0.16), shell, sharpness=4).moved(0.07, y, 0.08))
    return parts


def _treads(surface: Surface) -> None:
    surface.fill(
        np.mod(surface.position[0] * 9 + surface.position[2] * 3, 1) < 0.3, Material((0.09, 0.09, 0.09), gloss=0.2)
    )
    for wheel in (-0.3, 0.0, 0.3):
        hub = np.hypot(surface.position[0] - wheel, surface.position[2]) < 0.11
        surface.fill(
            hub & (np.abs(surface.normal[1]) > 0.8), Material((0.4, 0.4, 0.42), reflect=0.4, gloss=0.6, metal=1)
        )


def _chest(tall: float) -> Paint:
    def paint(surface: Surface) -> None:
        x, y, z = surface.position
        front = x > 0
        panel = front & (np.abs(y) < 0.26) & (np.abs(z - 0.08 * tall) < 0.22 * tall)
        surface.fill(panel, Material((0.03, 0.032, 0.036), gloss=0.5))
        dial = np.hypot(y + 0.12, z - 0.12 * tall)
        surface.fill(panel & (dial < 0.085), Material((0.7, 0.7, 0.66), gloss=0.6, glow=0.15))
        surface.fill(panel & (dial < 0.085) & (np.abs(y + 0.12 - 0.6 * (z - 0.12 * tall)) < 0.008), BLACK)
        for number, light in enumerate([(0.7, 0.05, 0.03), (0.75, 0.5, 0.05), (0.05, 0.6, 0.15)]):
            lamp = np.hypot(y - 0.12, z - tall * (0.22 - 0.11 * number)) < 0.032
            surface.fill(panel & lamp, Material(light, gloss=0.9, glow=0.9))
        surface.fill(~panel & (np.abs(np.abs(z) - 0.4 * tall) < 0.006), BLACK)

    return paint


def _face(head: float) -> Paint:
    def paint(surface: Surface) -> None:
        x, y, z = surface.position
        visor = (x > 0.2 * head) & (np.abs(z - 0.06 * head) < 0.27 * head) & (np.abs(y) < 0.66 * head)
        surface.fill(visor, Material((0.008, 0.009, 0.011), reflect=0.07, gloss=0.97))
        for side in (-1, 1):
            eye = np.hypot(y - side * 0.32 * head, z - 0.08 * head)
            surface.fill(visor & (eye < 0.15 * head), Material((0.15, 0.75, 0.9), gloss=0.9, glow=1.3))
            surface.fill(visor & (eye < 0.05 * head), Material((0.9, 0.98, 1.0), gloss=0.9, glow=1.6))

    return paint
