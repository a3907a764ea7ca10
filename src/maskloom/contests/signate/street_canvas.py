"""What street scenes are painted on: labels and colours of one size, seen by a camera above the road.

Things stand in metres: x to the right of the camera, height above the road, depth ahead. Knows nothing about what is
painted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from maskloom.contests.signate.colours import CATEGORIES
from maskloom.records import Size

Rgb = tuple[float, float, float]
"""Red, green and blue as drawn by daylight, 0-255."""

CAMERA = 1.4
"""Metres above the road."""
FOCAL = 1.1
"""Of the lens, in heights of the image."""


class Canvas:
    """Labels and colours that are painted over, through a camera above the road."""

    def __init__(self, size: Size, *, horizon: float, bend: float) -> None:
        self.size, self.horizon = size, horizon
        self.labels = np.full(size, CATEGORIES.index("ground"), np.uint8)
        self.colours = np.zeros((*size, 3), np.uint8)
        self._middle = size[1] / size[0] / 2 + bend

    @property
    def width(self) -> float:
        """The width of the image in heights."""
        return self.size[1] / self.size[0]

    def seen(self, x: float, height: float, depth: float) -> tuple[float, float]:
        """Returns where a point stands in the image, (x, y) in heights of the image from its upper left corner."""
        return self._middle + FOCAL * x / depth, self.horizon + FOCAL * (CAMERA - height) / depth

    def paint(self, category: str, corners: Sequence[tuple[float, float]], colour: Rgb) -> None:
        """Fills a polygon of points in heights of the image; its edges belong to it."""
        height = self.size[0]
        # 1/16 pixels; far outside, OpenCV's own limits come near.
        points = np.clip(np.array(corners) * height - 0.5, -8 * height, 8 * height)
        fixed = np.rint(points * 16).astype(np.int32)
        cv2.fillPoly(self.labels, [fixed], CATEGORIES.index(category), lineType=cv2.LINE_8, shift=4)
        cv2.fillPoly(self.colours, [fixed], colour, lineType=cv2.LINE_8, shift=4)

    def block(
        self, category: str, x: tuple[float, float], height: tuple[float, float], depth: float, colour: Rgb
    ) -> None:
        """Fills an upright rectangle across the line of sight."""
        corners = [(x[0], height[0]), (x[0], height[1]), (x[1], height[1]), (x[1], height[0])]
        self.paint(category, [self.seen(*corner, depth) for corner in corners], colour)

    def disc(
        self, category: str, x: float, height: float, radii: tuple[float, float], depth: float, colour: Rgb
    ) -> None:
        """Fills an upright ellipse across the line of sight; radii across and up."""
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        ring = [(x + radii[0] * np.cos(angle), height + radii[1] * np.sin(angle)) for angle in angles]
        self.paint(category, [self.seen(*point, depth) for point in ring], colour)

    def strip(self, category: str, x: tuple[float, float], colour: Rgb, depth: tuple[float, float]) -> None:
        """Fills a part of the ground that runs ahead."""
        near, far = depth
        corners = [(x[0], near), (x[0], far), (x[1], far), (x[1], near)]
        self.paint(category, [self.seen(across, 0, ahead) for across, ahead in corners], colour)


Painter = Callable[[Canvas], None]
"""Paints one thing."""


def varied(colour: Rgb, rng: np.random.Generator, spread: float) -> Rgb:
    """Returns a colour a little lighter or darker, and a little off; ``spread`` is of the logarithm of its factor."""
    factor = float(np.exp(rng.normal(0, spread)))
    red, green, blue = (min(part * factor * float(rng.uniform(0.96, 1.04)), 255.0) for part in colour)
    return red, green, blue
