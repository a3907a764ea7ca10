"""Cars and vans: one lofted body per car whose windows, lights and seams are painted on by position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskloom.data.studio.geometry import (
    Array,
    Colour,
    Material,
    Paint,
    Part,
    Surface,
    revolve,
    rounded_box,
    sheet,
    tube,
)
from maskloom.data.studio.palette import BLACK, CHROME

Mask = npt.NDArray[np.bool_]

# Roof lines from tail (0) to nose (1), as shares of length and height; then where the windscreen and the rear window
# begin and end along the length (tail first), and the doors' seams.
OUTLINES: dict[str, tuple[list[tuple[float, float]], tuple[float, float, float, float], tuple[float, ...]]] = {
    "sedan": (
        [
            (0, 0.50),
            (0.02, 0.66),
            (0.15, 0.70),
            (0.31, 0.95),
            (0.42, 1),
            (0.54, 0.98),
            (0.71, 0.66),
            (0.95, 0.55),
            (1, 0.42),
        ],
        (0.17, 0.30, 0.56, 0.70),
        (0.31, 0.46, 0.65),
    ),
    "hatchback": (
        [(0, 0.50), (0.02, 0.68), (0.09, 0.92), (0.25, 1), (0.48, 0.99), (0.69, 0.68), (0.95, 0.56), (1, 0.42)],
        (0.025, 0.085, 0.50, 0.68),
        (0.24, 0.43, 0.64),
    ),
    "van": (
        [(0, 0.40), (0.01, 0.88), (0.04, 0.99), (0.40, 1), (0.70, 0.98), (0.86, 0.64), (0.97, 0.52), (1, 0.36)],
        (0.012, 0.03, 0.715, 0.85),
        (0.36, 0.58, 0.79),
    ),
    "pickup": (
        [
            (0, 0.50),
            (0.01, 0.62),
            (0.33, 0.63),
            (0.38, 0.93),
            (0.50, 1),
            (0.60, 0.97),
            (0.74, 0.68),
            (0.96, 0.60),
            (1, 0.44),
        ],
        (0.335, 0.375, 0.615, 0.73),
        (0.36, 0.52, 0.69),
    ),
    "estate": (
        [(0, 0.50), (0.02, 0.72), (0.07, 0.95), (0.22, 1), (0.50, 0.98), (0.69, 0.68), (0.95, 0.62), (1, 0.46)],
        (0.025, 0.066, 0.52, 0.68),
        (0.20, 0.42, 0.64),
    ),
}
GLASS = Material((0.02, 0.024, 0.024), reflect=0.08, gloss=0.95, transmit=0.66)
RUBBER = Material((0.012, 0.012, 0.013), gloss=0.12)


@dataclass(frozen=True)
class CarShape:
    """The measures of one car, in studio units."""

    style: str
    length: float
    half_width: float
    height: float
    wheel_radius: float
    wheels: tuple[float, float]
    sill: float
    belt: float
    crease: float
    """Height of the line along the doors."""

    def roof(self, x: Array) -> Array:
        """Returns the height of the body's top above each x."""
        outline = np.array(OUTLINES[self.style][0])
        fine = np.linspace(0, 1, 200)
        line = np.interp(fine, outline[:, 0], outline[:, 1])
        padded = np.pad(line, 4, mode="edge")
        line = np.convolve(padded, np.ones(9) / 9, mode="valid")
        return np.asarray(np.interp(x / self.length + 0.5, fine, line) * self.height, np.float32)


def draw_shape(rng: np.random.Generator, style: str) -> CarShape:
    """Returns a car of that style with its own proportions."""
    length = {"hatchback": 3.9, "van": 4.5, "pickup": 4.6}.get(style, 4.35) * rng.uniform(0.94, 1.05)
    height = {"sedan": 1.42, "hatchback": 1.48, "van": 1.95, "pickup": 1.72, "estate": 1.62}[style] * rng.uniform(
        0.96, 1.05
    )
    radius = rng.uniform(0.30, 0.35) * (1.12 if style == "pickup" else 1.0)
    front, rear = length * rng.uniform(0.30, 0.325), -length * rng.uniform(0.27, 0.31)
    sill = rng.uniform(0.17, 0.22) + (0.12 if style == "pickup" else 0.0)
    belt = height * rng.uniform(0.61, 0.645) if style != "van" else height * 0.56
    half_width = rng.uniform(0.84, 0.92) * (1.06 if style in ("van", "pickup") else 1.0)
    return CarShape(
        style, length, half_width, height, radius, (rear, front), sill, belt, belt * rng.uniform(0.74, 0.86)
    )


def body_grid(car: CarShape) -> Array:
    """Returns the body's surface as stations (tail to nose) × 41 points around the section × 3."""
    ends = np.array([0.0, 0.55, 0.83, 0.94, 0.985])
    x = np.concatenate([np.full(5, -0.5), np.linspace(-0.5, 0.5, 52), np.full(5, 0.5)]) * car.length
    bulge = np.array([0.055, 0.05, 0.038, 0.022, 0.01])
    x[:5] -= bulge
    x[-5:] += bulge[::-1]
    shrink = np.concatenate([ends, np.ones(52), ends[::-1]])
    share = np.clip(x / car.length + 0.5, 0, 1)
    width = car.half_width * (1 - 0.17 * np.abs(2 * share - 1) ** 5 - 0.035 * np.abs(2 * share - 1) ** 2)
    top = car.roof(x.astype(np.float32)).astype(np.float64)
    belt = np.minimum(car.belt, top - 0.07)
    rise = np.clip((top - belt) / (car.height - car.belt), 0, 1)
    tumble = (0.10 if car.style == "van" else 0.20) * np.clip((top - belt - 0.07) / (car.height - car.belt), 0, 1)
    sill, crease = np.full_like(x, car.sill), np.minimum(car.crease, belt - 0.05)
    # half a section as (share of the width, height), from the middle of the floor to the middle of the roof
    points = [
        (np.zeros_like(x), sill), (np.full_like(x, 0.6), sill), (np.full_like(x, 0.90), sill + 0.005),
        (np.full_like(x, 0.955), sill + 0.05), (np.full_like(x, 0.975), sill + 0.16),
        (np.full_like(x, 0.99), 0.5 * (sill + 0.16 + crease)), (np.full_like(x, 1.0), crease - 0.015),
        (np.full_like(x, 0.985), crease + 0.02), (np.full_like(x, 0.98), belt - 0.02),
        (0.955 - 0.02 * rise, belt + 0.015),
        (0.95 - 0.5 * tumble, belt + 0.5 * (top - belt)), (0.945 - 0.93 * tumble, top - 0.075 * rise - 0.015),
        (0.915 - 1.0 * tumble, top - 0.036 * rise - 0.006), (0.85 - 1.0 * tumble, top - 0.012 * rise),
        (0.55 - 0.5 * tumble, top + 0.012), (np.full_like(x, 0.25), top + 0.022), (np.zeros_like(x), top + 0.025),
    ]  # fmt: skip
    half_y = np.stack([share_of for share_of, _ in points], axis=1) * width[:, None]
    half_z = np.stack([height for _, height in points], axis=1)
    middle = (0.46 * top + 0.54 * car.sill)[:, None]
    half_y, half_z = half_y * shrink[:, None], middle + (half_z - middle) * shrink[:, None]
    y = np.concatenate([half_y, -half_y[:, -2:0:-1]], axis=1)
    z = np.concatenate([half_z, half_z[:, -2:0:-1]], axis=1)
    grid = np.stack([np.repeat(x[:, None], y.shape[1], axis=1), y, z], axis=-1)
    return grid.astype(np.float32)


def body_paint(car: CarShape, trim: Colour, *, panel_van: bool) -> Paint:
    """Returns the function that paints windows, wheel arches, lights, seams, grille and plates onto the body."""
    tail_low, tail_high, screen_high, screen_low = ((share - 0.5) * car.length for share in OUTLINES[car.style][1])
    seams = [(share - 0.5) * car.length for share in OUTLINES[car.style][2]]
    plastic = Material(trim, gloss=0.25)

    def paint(surface: Surface) -> None:
        x, y, z = surface.position
        out, side = np.abs(y), np.abs(surface.normal[1]) > 0.55
        top = car.roof(x)
        low_side = side & (z < car.belt - 0.01)
        for seam in seams:
            surface.fill(low_side & (np.abs(x - seam) < 0.0065) & (z > car.sill + 0.10), BLACK)
            handle = (np.abs(x - seam - 0.13) < 0.075) & (np.abs(z - car.crease - 0.06) < 0.014)
            surface.fill(low_side & handle & (seam < seams[-1]), CHROME)
        surface.fill((z < car.sill + 0.075) & (z < top), plastic)
        for wheel in car.wheels:
            apart = np.hypot(x - wheel, z - car.wheel_radius)
            surface.fill(side & (apart < car.wheel_radius * 1.17), BLACK)
        _paint_front(surface, car, x, out, z)
        _paint_tail(surface, car, x, out, z)
        frame = (z > car.belt + 0.03) & (out > 0.55 * car.half_width)
        window = side & frame & (top - z > 0.085) & (x > tail_low + 0.08) & (x < screen_low - 0.10)
        pillar = np.zeros_like(window)
        for seam in seams[:2] if not panel_van else seams[1:2]:
            pillar |= np.abs(x - seam) < 0.03
        if panel_van:
            window &= x > seams[1]
        surface.fill(side & frame & (top - z > 0.065) & (x > tail_low + 0.05) & (x < screen_low - 0.07) & window, BLACK)
        across = (~side) & (out < 0.80 * car.half_width) & (z > car.belt + 0.02)
        screen = across & (x > screen_high) & (x < screen_low + 0.02)
        rear = across & (x > tail_low - 0.03) & (x < tail_high) & (not panel_van)
        _paint_glass(surface, car, (window & ~pillar) | screen | rear)

    return paint


def _paint_front(surface: Surface, car: CarShape, x: Array, out: Array, z: Array) -> None:
    nose = float(car.roof(np.array([0.48 * car.length], np.float32))[0])
    front = (x > 0.455 * car.length) & (surface.normal[0] > 0.12)
    lamp = front & (np.abs(z - 0.83 * nose) < 0.075) & (out > 0.56 * car.half_width) & (x > 0.45 * car.length)
    surface.fill(lamp, Material((0.35, 0.37, 0.38), reflect=0.25, gloss=0.97))
    bulb = np.hypot(out - 0.72 * car.half_width, z - 0.83 * nose)
    surface.fill(lamp & (bulb < 0.055), BLACK)
    surface.fill(lamp & (bulb < 0.044), Material((0.9, 0.9, 0.85), reflect=0.4, gloss=0.97, glow=0.8))
    grille = front & (np.abs(z - 0.60 * nose) < 0.075) & (out < 0.52 * car.half_width)
    surface.fill(grille, BLACK)
    surface.fill(grille & (np.mod(z, 0.034) < 0.011), CHROME)
    plate = front & (np.abs(z - 0.44 * nose) < 0.042) & (out < 0.23)
    surface.fill(plate, Material((0.72, 0.72, 0.66), gloss=0.3))
    letters = plate & (np.abs(z - 0.44 * nose) < 0.024) & (np.mod(surface.position[1], 0.062) < 0.036) & (out < 0.20)
    surface.fill(letters, BLACK)


def _paint_tail(surface: Surface, car: CarShape, x: Array, out: Array, z: Array) -> None:
    tail = float(car.roof(np.array([-0.49 * car.length], np.float32))[0])
    rear = (x < -0.47 * car.length) & (surface.normal[0] < -0.08)
    lamp = rear & (np.abs(z - 0.80 * min(tail, car.belt * 1.05)) < 0.09) & (out > 0.62 * car.half_width)
    surface.fill(lamp, Material((0.45, 0.008, 0.01), reflect=0.12, gloss=0.95, glow=0.25))
    surface.fill(lamp & (np.abs(z - 0.80 * min(tail, car.belt * 1.05)) < 0.02), Material((0.8, 0.75, 0.7), gloss=0.9))
    plate = rear & (np.abs(z - 0.50) < 0.045) & (out < 0.25)
    surface.fill(plate, Material((0.72, 0.66, 0.30), gloss=0.3))
    surface.fill(
        plate & (np.abs(z - 0.50) < 0.024) & (np.mod(surface.position[1], 0.062) < 0.036) & (out < 0.21), BLACK
    )
    surface.fill((x < -0.45 * car.length) & (np.abs(z - 0.62 * car.belt) < 0.005), BLACK)


def _paint_glass(surface: Surface, car: CarShape, glass: Mask) -> None:
    """Glass shows the backdrop only where the ray also leaves through glass and no seat is in its way."""
    if not glass.any():
        return
    surface.fill(glass, GLASS)
    position, ray = surface.position[:, glass], surface.ray[:, glass]
    steep = np.where(np.abs(ray[1]) < 1e-3, np.float32(1e-3), ray[1])
    to_far = (np.sign(steep) * car.half_width * 0.86 - position[1]) / steep
    exit_x, exit_z = position[0] + to_far * ray[0], position[2] + to_far * ray[2]
    cabin = (exit_x > -0.36 * car.length) & (exit_x < 0.16 * car.length)
    clear = (to_far > 0) & cabin & (exit_z > car.belt - 0.05) & (car.roof(exit_x) - exit_z > 0.08)
    to_seat = (np.sign(steep) * 0.32 - position[1]) / steep
    seat_x, seat_z = position[0] + to_seat * ray[0], position[2] + to_seat * ray[2]
    for place in (-0.02, -0.19):
        head = np.hypot((seat_x - place * car.length) / 0.115, (seat_z - car.belt - 0.13) / 0.115) < 1
        back = (np.abs(seat_x - place * car.length) < 0.17) & (seat_z < car.belt + 0.07)
        clear &= ~(head | back)
    surface.transmit[glass] = np.where(clear, np.float32(GLASS.transmit), np.float32(0.0))


def wheel(radius: float, spokes: int, rim: Colour) -> Part:
    """Returns a wheel about the y axis, centred on the origin, whose outer side looks to +y (its own +z)."""
    half, r = 0.105, radius
    profile = [
        (0, -half), (0.7 * r, -half), (0.94 * r, -half), (r, -0.7 * half), (r, 0.7 * half), (0.94 * r, half),
        (0.74 * r, half * 1.02), (0.70 * r, half * 0.85), (0.62 * r, half * 0.6), (0.2 * r, half * 0.75),
        (0, half * 0.85),
    ]  # fmt: skip
    alloy = Material(rim, reflect=0.5, gloss=0.75, metal=0.9)

    def paint(surface: Surface) -> None:
        x, y, out = surface.position
        apart, angle = np.hypot(x, y), np.arctan2(y, x)
        face = (apart < 0.735 * r) & (out > 0)
        surface.fill(face, alloy)
        gap = np.abs(np.mod(angle * spokes / (2 * np.pi), 1.0) - 0.5) < 0.16 + 0.14 * apart / r
        surface.fill(face & gap & (apart > 0.24 * r) & (apart < 0.64 * r), BLACK)
        surface.fill(face & (apart < 0.07 * r), BLACK)

    return revolve(profile, RUBBER, paint, sides=36).turned(0, -np.pi / 2)


def build_car(rng: np.random.Generator, style: str, finish: Material) -> list[Part]:
    """Returns the parts of a car of that style: body, wheels, mirrors, and often an antenna or roof rails."""
    car = draw_shape(rng, style)
    dark = tuple(float(value) for value in rng.uniform(0.01, 0.03, 1).repeat(3))
    trim: Colour = (dark[0], dark[1], dark[2])
    parts = [sheet(body_grid(car), finish, body_paint(car, trim, panel_van=style == "van" and rng.random() < 0.6))]
    rim = wheel(
        car.wheel_radius, int(rng.integers(5, 11)), (0.6, 0.61, 0.63) if rng.random() < 0.75 else (0.05, 0.05, 0.055)
    )
    for x in car.wheels:
        for side in (-1, 1):
            turned = rim if side > 0 else rim.turned(2, np.pi)
            parts.append(turned.moved(x, side * (car.half_width - 0.085), car.wheel_radius))
    cowl = (OUTLINES[style][1][3] - 0.5) * car.length
    case = finish if rng.random() < 0.7 else Material(trim, gloss=0.4)
    for side in (-1, 1):
        y = side * (car.half_width + 0.07)
        parts.append(rounded_box((0.12, 0.21, 0.15), case, sharpness=3.5).moved(cowl - 0.16, y, car.belt + 0.09))
        arm = [(cowl - 0.15, side * car.half_width * 0.9, car.belt), (cowl - 0.15, y, car.belt + 0.06)]
        parts.append(tube(arm, 0.02, Material(trim), sides=8))
    return parts + _roof_fittings(rng, car)


def _roof_fittings(rng: np.random.Generator, car: CarShape) -> list[Part]:
    parts = []
    steel = Material((0.015, 0.015, 0.016), gloss=0.4)
    if rng.random() < 0.75:
        x = float(rng.choice([-0.26, -0.05, 0.02])) * car.length if car.style != "pickup" else 0.02 * car.length
        foot = float(car.roof(np.array([x], np.float32))[0]) + 0.005
        length, lean = rng.uniform(0.3, 0.75), rng.uniform(0.15, 0.6)
        rod = [(x - lean * length * t, 0.0, foot + length * t) for t in np.linspace(0, 1, 5)]
        parts.append(tube(rod, np.linspace(0.0062, 0.0026, 5).tolist(), steel, sides=6))
        parts.append(rounded_box((0.09, 0.05, 0.06), steel, sharpness=3, steps=6).moved(x, 0, foot))
    if car.style in ("estate", "van") and rng.random() < 0.6:
        for side in (-1, 1):
            along = np.linspace(-0.24, 0.02, 9) * car.length
            height = car.roof(along.astype(np.float32)) + 0.05 - 0.05 * np.abs(np.linspace(-1, 1, 9)) ** 8
            y = side * car.half_width * 0.66
            rail = [(float(a), y, float(b)) for a, b in zip(along, height, strict=True)]
            parts.append(tube(rail, 0.016, CHROME if rng.random() < 0.5 else steel, sides=8))
    return parts
