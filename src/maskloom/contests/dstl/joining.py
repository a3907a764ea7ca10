"""How the classes of the Dstl contest become one submission: which gives way to which, and what is too small to keep.

The rules are data, the published ones included: the areas of every class are drawn, overlaps are cleared by precedence,
and what is left is outlined again. Source: github.com/ternaus/kaggle_dstl_submission. Knows nothing about networks,
tables or where the polygons come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from maskloom.contests.dstl.truth import CLASSES
from maskloom.contests.dstl.water import RGB_SIZE, area_factor
from maskloom.encodings.grid_coordinates import Grid, to_grid, to_pixels
from maskloom.encodings.outlines import areas, cleaned, outlines, repaired
from maskloom.errors import UserError, closest
from maskloom.masks import clear_overlaps
from maskloom.records import Size

if TYPE_CHECKING:
    from shapely import Polygon


def _all_but(winner: str) -> tuple[str, ...]:
    return tuple(name for name in CLASSES if name != winner)


@dataclass(frozen=True, kw_only=True, slots=True)
class JoiningRules:
    """Which class clears which, in this order, and what is done to polygons before and after.

    ``precedence`` pairs a class with those that it clears where it lies. ``minimum_areas`` are by class, square pixels
    of an image of ``reference`` size, ``minimum_area`` is that of all others; smaller polygons go, smaller holes are
    filled. ``buffers``, by class and in grid units, move outlines outwards before overlaps are cleared. Raises
    ``UserError`` for a class that is none.
    """

    precedence: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("fast_water", _all_but("fast_water")),
        ("slow_water", ("roads",)),
        ("buildings", _all_but("buildings")),
        ("roads", ("slow_water",)),
    )
    minimum_areas: Mapping[str, float] = field(default_factory=lambda: {"fast_water": 5_000.0, "slow_water": 100.0})
    minimum_area: float = 10.0
    buffers: Mapping[str, float] = field(default_factory=lambda: {"buildings": 2.6e-5})
    reference: Size = RGB_SIZE

    def __post_init__(self) -> None:
        named = [name for winner, losers in self.precedence for name in (winner, *losers)]
        for name in (*named, *self.minimum_areas, *self.buffers):
            if name not in CLASSES:
                raise UserError(f"unknown class {name!r}; {closest(name, CLASSES)}")

    def labels(self) -> list[tuple[int, tuple[int, ...]]]:
        """Returns ``precedence`` by label, as ``masks.clear_overlaps`` takes it."""
        return [
            (CLASSES.index(winner), tuple(CLASSES.index(loser) for loser in losers))
            for winner, losers in self.precedence
        ]

    def smallest(self, label: int) -> float:
        """Returns the smallest area of a polygon of the class, for an image of ``reference`` size."""
        return self.minimum_areas.get(CLASSES[label], self.minimum_area)


PUBLISHED = JoiningRules()


def joined(
    polygons: Mapping[int, Sequence[Polygon]],
    size: Size,
    grid: Grid,
    *,
    rules: JoiningRules = PUBLISHED,
    scaled: bool = True,
) -> dict[int, list[Polygon]]:
    """Returns the polygons of one image of ``size`` (height, width), by label and in pixels, without overlaps.

    ``polygons`` are the same before: what several polygons of a class cover counts once. They are buffered, drawn by
    the pixel-centre rule, cleared of each other and outlined again, so the result runs along the edges of pixels and is
    valid. With ``scaled``, areas are for images of the published size and follow this one's.
    """
    maps = np.zeros((len(CLASSES), *size), np.bool_)
    for label, found in polygons.items():
        if not 0 <= label < len(CLASSES):
            raise ValueError(f"expected labels of 0 to {len(CLASSES) - 1}, got {label}")
        maps[label] = _drawn(buffered(found, size, grid, rules.buffers.get(CLASSES[label], 0.0)), size)
    return joined_maps(maps, rules=rules, scaled=scaled)


def joined_maps(maps: np.ndarray, *, rules: JoiningRules = PUBLISHED, scaled: bool = True) -> dict[int, list[Polygon]]:
    """Returns the same from maps C×H×W (bool, or uint8 of 0 and 1), C being the ten classes; nothing is buffered."""
    if maps.ndim != 3 or len(maps) != len(CLASSES):
        raise ValueError(f"expected maps of {len(CLASSES)} classes C×H×W, got shape {maps.shape}")
    factor = area_factor((maps.shape[1], maps.shape[2]), rules.reference) if scaled else 1.0
    cleared = clear_overlaps(maps, rules.labels())
    kept: dict[int, list[Polygon]] = {}
    for label, is_class in enumerate(cleared):
        smallest = factor * rules.smallest(label)
        kept[label] = cleaned(outlines(is_class != 0), min_area=smallest, min_hole=smallest)
    return kept


def buffered(polygons: Sequence[Polygon], size: Size, grid: Grid, distance: float) -> list[Polygon]:
    """Returns polygons in pixels whose outline lies farther out by ``distance``, which is in grid units."""
    import shapely

    if not distance or not len(polygons):
        return list(polygons)
    on_grid = [to_grid(polygon, size, grid) for polygon in polygons]
    grown = repaired(areas(shapely.buffer(on_grid, distance)))
    return [to_pixels(polygon, size, grid) for polygon in grown]


def _drawn(polygons: Sequence[Polygon], size: Size) -> np.ndarray:
    from rasterio.features import rasterize

    whole = repaired(polygons)
    if not whole:
        return np.zeros(size, np.bool_)
    # One shape per polygon: rings of one shape are filled by the even-odd rule.
    mask: np.ndarray = rasterize(whole, out_shape=size, fill=0, default_value=1, dtype="uint8")
    return mask.view(np.bool_)
