"""What is done to outlines before they are delivered: small parts and holes, simplification, a buffer; in which unit.

Knows nothing about masks, files or where polygons lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypedDict

from pydantic import Field

from maskloom.config import Config
from maskloom.encodings.outlines import cleaned

if TYPE_CHECKING:
    from shapely import Polygon


class PolygonChanges(TypedDict, total=False):
    """Settings that one prediction states; those that are None, or left out, stay as they are."""

    simplify: float | None
    min_area: float | None
    min_hole: float | None
    buffer: float | None
    units: str | None


class PolygonSettings(Config):
    """How outlines of pixels become polygons to hand on; lengths and areas are in ``units`` and their squares."""

    simplify: float = Field(default=0.0, ge=0)
    """The distance by which outlines may move to have fewer vertices."""
    min_area: float = Field(default=0.0, ge=0)
    """Smaller parts go; their holes do not count as area."""
    min_hole: float = Field(default=0.0, ge=0)
    """Smaller holes are filled."""
    buffer: float = 0.0
    """By so much outlines move outwards, inwards if negative; corners become round. It comes last."""
    units: Literal["pixels", "crs"] = "pixels"
    """"crs": those of the rasters' CRS, metres or degrees, say."""

    @property
    def changes(self) -> bool:
        """Whether outlines are changed at all."""
        return bool(self.simplify or self.min_area or self.min_hole or self.buffer)

    def cleaned(self, polygons: Sequence[Polygon]) -> list[Polygon]:
        """Returns polygons, in ``units``, as ``encodings.outlines.cleaned`` does: each is valid, and all together."""
        return cleaned(
            polygons, simplify=self.simplify, min_area=self.min_area, min_hole=self.min_hole, buffer=self.buffer
        )
