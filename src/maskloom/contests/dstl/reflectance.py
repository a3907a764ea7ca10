"""What the surfaces of a stand-in look like: reflectance by material and band, and what the sensors make of it.

Bands are WorldView-3's: eight from coastal to the second near infrared, eight short-wave infrared ones. Values are of
the usual size, chosen so that the contest's indices tell what they tell on real images: water reflects nothing from the
near infrared on, vegetation much, and raw values of the red edge and the second near infrared lie close together on
land. Knows nothing about shapes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskloom.contests.dstl.truth import CLASSES

BACKGROUND = ("soil", "grass")
"""The two materials that ground without a class is mixed from."""
M_LIMIT = 2047
"""The largest stored value of RGB, M and P: 11 bits."""
A_LIMIT = 16383
"""The largest stored value of A: 14 bits."""


@dataclass(frozen=True, slots=True)
class Material:
    """Reflectance in the 16 bands; how far objects differ from each other and pixels from their object (relative)."""

    reflectance: tuple[float, ...]
    between: float
    texture: float


def _material(visible: str, infrared: str, between: float, texture: float) -> Material:
    values = tuple(float(value) / 100 for value in f"{visible} {infrared}".split())
    if len(values) != 16:
        raise ValueError(f"expected 16 reflectances, got {len(values)}")
    return Material(values, between, texture)


MATERIALS: dict[str, Material] = {
    "soil": _material("10 12 16 20 23 26 29 31", "36 40 41 41 37 36 35 33", 0.08, 0.12),
    "grass": _material("4 5 9 8 7 20 32 34", "33 25 24 23 15 15 14 13", 0.08, 0.15),
    "buildings": _material("17 20 24 28 30 32 34 35", "36 37 37 37 35 34 34 33", 0.20, 0.05),
    "structures": _material("20 23 27 29 30 31 32 32", "31 30 30 30 28 28 27 27", 0.20, 0.06),
    "roads": _material("10 11 12 13 14 15 16 16.5", "18 19 20 20 19 19 18 18", 0.05, 0.05),
    "tracks": _material("13 16 21 26 29 32 34 35", "40 44 45 45 41 40 39 37", 0.06, 0.08),
    "trees": _material("2 3 5 4.5 3.5 20 34 36", "32 20 19 18 9 9 8 8", 0.10, 0.30),
    "crops": _material("3 4.5 9 7.5 5 26 46 49", "42 26 25 24 13 13 12 11", 0.15, 0.10),
    "fast_water": _material("7 8 10 9 7 5 2.5 2", "1 0.5 0.5 0.5 0.3 0.3 0.3 0.3", 0.03, 0.03),
    "slow_water": _material("4 5 7 5.5 4 3 1.5 1.2", "0.8 0.4 0.4 0.4 0.3 0.3 0.3 0.3", 0.06, 0.03),
    "large_vehicles": _material("30 32 34 34 34 34 34 34", "28 27 27 27 25 25 25 25", 0.30, 0.02),
    "small_vehicles": _material("20 21 22 22 23 23 23 23", "20 19 19 19 18 18 18 18", 0.50, 0.02),
}
"""By class and background."""

_M_GAIN = np.array([800, 700, 1000, 1000, 1000, 1150, 1000, 700], np.float32)
_M_HAZE = np.array([110, 60, 50, 40, 30, 18, 8, 5], np.float32)
_A_GAIN = np.array([14000, 12000, 12000, 11500, 11000, 11000, 10500, 10000], np.float32)
_A_HAZE = np.array([90, 60, 50, 50, 40, 40, 40, 40], np.float32)
_PAN = np.array([0.02, 0.14, 0.24, 0.18, 0.22, 0.14, 0.06, 0.0], np.float32)


def raw_values() -> np.ndarray:
    """Returns what a perfect sensor stores: float32, materials × 20 (RGB, M, P, then A), rows as in ``MATERIALS``."""
    reflectance = np.array([material.reflectance for material in MATERIALS.values()], np.float32)
    visible = reflectance[:, :8] * _M_GAIN + _M_HAZE
    pan = visible @ _PAN
    infrared = reflectance[:, 8:] * _A_GAIN + _A_HAZE
    return np.concatenate([visible[:, [4, 2, 1]], visible, pan[:, None], infrared], axis=1)


def material_of(label: int) -> int:
    """Returns the row in ``raw_values`` of a class's label 0…9."""
    return list(MATERIALS).index(CLASSES[label])
