"""What a network learns from the maps of other members: as further input channels, or as where to look.

A second-layer network sees the image and members' maps side by side; a coarse-to-fine network sees only a box around
the object, or windows along its outline, that a member's map points at. Works on stored 8-bit maps, so that training
on files and prediction in one pass see the same. Knows nothing about networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
from pydantic import Field, model_validator

from maskloom.config import Config
from maskloom.masks import label_components
from maskloom.records import Size
from maskloom.windows import Window, round_up

ROWS = 1280
"""The height of photos that pixel constants are stated for (those of the Carvana contest)."""


class RegionSettings(Config):
    """Where a network looks, according to a member's map; elsewhere that map stays as it is."""

    of: str
    """The member whose map says where the object is."""
    kind: Literal["box", "contour"] = "box"
    """"box": one window around the largest component; "contour": windows of one size along the outline of all
    components that are large enough."""
    threshold: float = Field(default=100 / 255, ge=0, lt=1)
    """The object is where the map lies above this probability (8-bit value above round(255·threshold))."""
    minimum_area: int = Field(default=50_000, ge=1, le=10**9)
    """Components of fewer pixels are no object."""
    margin: int = Field(default=64, ge=0, le=32_768)
    """Pixels. "box": added on each side of the component (published: 64 by Carvana's 4th place, 150 by its 7th);
    "contour": every pixel that has the outline within so many rows and columns, at least 1, is looked at."""
    round_to: int = Field(default=64, ge=1, le=32_768)
    """"box": its sides are rounded up to multiples of so many pixels; 1: left as they are."""
    window: int = Field(default=256, ge=1, le=32_768)
    """"contour": the side of a window in pixels."""
    context: int = Field(default=32, ge=0, le=32_768)
    """"contour": pixels that are looked at lie at least so far inside a window, except along the image's border."""
    scale_pixels: bool = True
    """Whether the pixel constants are meant for images of 1280 rows and follow the image's height."""

    @model_validator(mode="after")
    def _windows_have_an_interior(self) -> RegionSettings:
        if self.kind == "contour" and self.window <= 2 * self.context:
            raise ValueError(f"window must exceed twice the context, found {self.window} and {self.context}")
        return self

    def scaled(self, height: int) -> RegionSettings:
        """Returns the settings with the pixel constants that hold for an image of this height."""
        if not self.scale_pixels or height == ROWS:
            return self
        factor = height / ROWS
        context = round(self.context * factor)
        return self.model_copy(
            update={
                "minimum_area": max(round(self.minimum_area * factor**2), 1),
                "margin": round(self.margin * factor),
                "round_to": max(round(self.round_to * factor), 1),
                "window": max(round(self.window * factor), 2 * context + 1),
                "context": context,
            }
        )


class GuidanceSettings(Config):
    """What a network is given besides the image."""

    maps: tuple[str, ...] = ()
    """Members whose maps follow the image's channels, in this order, one channel per class: a second-layer network."""
    region: RegionSettings | None = None
    """Where the network looks, learning and predicting; None: at the whole image."""

    @model_validator(mode="after")
    def _guides_somehow(self) -> GuidanceSettings:
        if not self.maps and self.region is None:
            raise ValueError("expected maps, a region, or both; leave guidance out where there is none")
        if len(set(self.maps)) != len(self.maps):
            raise ValueError(f"maps: expected every member once, found {list(self.maps)}")
        return self

    @property
    def needed(self) -> tuple[str, ...]:
        """The members whose maps are needed, each once."""
        return tuple(dict.fromkeys((*self.maps, *([self.region.of] if self.region else []))))


def guides_of(maps: Sequence[np.ndarray]) -> np.ndarray:
    """Returns members' maps, each uint8 C×H×W, as the channels uint8 H×W×K that ``with_guides`` appends to an image."""
    return np.moveaxis(np.concatenate(maps), 0, 2)


def regions_of(values: np.ndarray, settings: RegionSettings) -> list[Window]:
    """Returns where to look, in pixels of the image, by a map uint8 H×W, or C×H×W where any class counts as object.

    "box": the box of the largest component (the first of equal ones), grown by the margin within the image, its sides
    then rounded up: centred, moved inside the image where it fits, else beyond the border on both sides. "contour":
    windows of one size such that every pixel of the image with both object and background within ``margin`` rows and
    columns lies in the interior of one; few, chosen from top to bottom, inside the image where they fit. No windows
    where nothing is large enough, or where there is no outline.

    Sources: Carvana, 4th and 7th place (box), 11th and 15th (contour).
    """
    if values.dtype != np.uint8 or values.ndim not in (2, 3):
        raise ValueError(f"expected a map uint8 H×W or C×H×W, got {values.dtype} {values.shape}")
    plane = values if values.ndim == 2 else values.max(axis=0)
    here = settings.scaled(plane.shape[0])
    labels, count = label_components(plane > round(255 * here.threshold))
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    areas[0] = 0
    if areas.max() < here.minimum_area:
        return []
    if here.kind == "box":
        return [_box(labels == areas.argmax(), here)]
    return _contour_windows((areas >= here.minimum_area)[labels], here)


def _box(piece: np.ndarray, settings: RegionSettings) -> Window:
    """Returns the window around all that is set."""
    (top, height), (left, width) = (
        _grown(np.flatnonzero(piece.any(axis=axis)), length, settings)
        for axis, length in zip((1, 0), piece.shape, strict=True)
    )
    return Window(top, left, height, width)


def _grown(places: np.ndarray, length: int, settings: RegionSettings) -> tuple[int, int]:
    """Returns start and length of what covers these places and the margin along an axis, rounded up."""
    start, end = max(int(places[0]) - settings.margin, 0), min(int(places[-1]) + 1 + settings.margin, length)
    side = round_up((end - start, 1), settings.round_to)[0]
    return _moved_inside(start - (side - (end - start)) // 2, side, length), side


def _moved_inside(start: int, side: int, length: int) -> int:
    """Returns the start of a side moved inside an axis, or centred about it where the side is longer."""
    return min(max(start, 0), length - side) if side <= length else -((side - length) // 2)


def _contour_windows(mask: np.ndarray, settings: RegionSettings) -> list[Window]:
    """Returns windows whose interiors cover the band around the mask's outline, in the order of their choice.

    Greedy: the topmost pixel left decides the rows, and the columns follow from where the interior then covers most.
    """
    kernel = np.ones((2 * max(settings.margin, 1) + 1,) * 2, np.uint8)
    grey = mask.view(np.uint8)
    left_over = cv2.dilate(grey, kernel) != cv2.erode(grey, kernel)
    inner = settings.window - 2 * settings.context
    windows: list[Window] = []
    while True:
        row, column = divmod(int(left_over.argmax()), mask.shape[1])
        if not left_over[row, column]:
            return windows
        first = max(column - inner + 1, 0)
        sums = np.concatenate([[0], left_over[row : row + inner, first : column + inner].sum(axis=0).cumsum()])
        ends = np.minimum(np.arange(column - first + 1) + inner, len(sums) - 1)
        start = first + int((sums[ends] - sums[: len(ends)]).argmax())
        top = _moved_inside(row - settings.context, settings.window, mask.shape[0])
        left = _moved_inside(start - settings.context, settings.window, mask.shape[1])
        window = Window(top, left, settings.window, settings.window)
        left_over[_interior(window, settings.context, (mask.shape[0], mask.shape[1])).slices] = False
        windows.append(window)


def _interior(window: Window, context: int, size: Size) -> Window:
    """Returns the part of a window in an image of ``size`` that lies ``context`` inside it, or along the border."""
    seen = window.clipped(size)
    top, left = (start + context if start > 0 else start for start in (seen.top, seen.left))
    bottom, right = seen.top + seen.height, seen.left + seen.width
    bottom -= context if bottom < size[0] else 0
    right -= context if right < size[1] else 0
    return Window(top, left, bottom - top, right - left)
