"""Polygons of a mask: exact outlines with holes against ``rasterio.features.shapes`` and shapely.

The mask is drawn: discs of many sizes with small holes, 3300×3300. Both sides give one polygon per 4-connected piece,
and the geometries are compared. One thread each, in turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import cv2
import numpy as np
import shapely
from common import report
from rasterio.features import shapes
from shapely.geometry import shape

from maskloom.encodings.outlines import outlines


def discs(side: int, seed: int = 1) -> np.ndarray:
    """Returns a bool mask of discs, some with holes."""
    drawn, random = np.zeros((side, side), np.uint8), np.random.default_rng(seed)
    for value, count, radii in ((1, side // 3, (4, 40)), (0, side // 11, (2, 6))):
        for _ in range(count):
            x, y = (int(place) for place in random.integers(0, side, 2))
            cv2.circle(drawn, (x, y), int(random.integers(*radii)), value, -1)
    return drawn > 0


def peer(mask: np.ndarray) -> list[shapely.Polygon]:
    """What a user writes."""
    return [shape(geometry) for geometry, _ in shapes(mask.view(np.uint8), mask=mask, connectivity=4)]


def seconds(polygonise: Callable[[np.ndarray], list[shapely.Polygon]], mask: np.ndarray) -> float:
    began = time.perf_counter()
    polygonise(mask)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=3300)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    mask = discs(arguments.side)
    ours, theirs = (shapely.normalize(shapely.multipolygons(side(mask))) for side in (outlines, peer))
    times = [(seconds(outlines, mask), seconds(peer, mask)) for _ in range(arguments.repeats)]
    report(
        "polygonising",
        [our for our, _ in times],
        [their for _, their in times],
        "seconds",
        objects=len(ours.geoms),
        same_geometry=bool(ours.equals(theirs)),
    )


if __name__ == "__main__":
    main()
