"""The water of a Dstl folder's images without a network, in both published ways, from their files.

One draws a fixed line through an index; the other searches index and threshold of every scene on the polygons of its
training images, on the grid of M. Knows nothing about networks, nor about how a submission is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from maskloom.contests.dstl.truth import CLASSES
from maskloom.contests.dstl.water import (
    CCCI,
    FULL_SCALE,
    SEARCH,
    SceneThreshold,
    SearchRules,
    Water,
    ccci_water,
    index_map,
    search,
    searched_water,
    unknown_threshold,
)
from maskloom.data.record_images import read_record_image
from maskloom.data.scene_truth import PolygonTruth
from maskloom.errors import some_of
from maskloom.rasters.georeference import Georeference, to_crs, to_pixels
from maskloom.rasters.indices import band_names, index
from maskloom.rasters.stack import open_stack
from maskloom.records import Record, Shapes, Task
from maskloom.windows import Window

if TYPE_CHECKING:
    from shapely import Polygon

FAST_WATER, SLOW_WATER = CLASSES.index("fast_water"), CLASSES.index("slow_water")
BANDS = band_names("dstl")
M_BANDS = band_names("worldview3_m")
"""Of M alone: the searched indices take its red and blue, those of the fixed line that of RGB."""

_M = 0  # the number of M among a record's further files
_WATER = Task(kind="binary", classes=("water",))


def water_by_line(record: Record) -> dict[int, list[Polygon]]:
    """Returns both kinds of water by label, in pixels of the image: where one index exceeds one value, as everywhere.

    The image has the bands of RGB, M and P.
    """
    pixels = read_record_image(record)
    expression = index(CCCI.index, BANDS)
    bands = {name: pixels[..., BANDS.index(name)].astype(np.float32) / FULL_SCALE for name in expression.names}
    return _by_label(ccci_water(np.asarray(expression.evaluate(bands))))


class SearchedWater:
    """Water by the index and the threshold of each scene, on the grid of M.

    A scene is a group of records. One that has water in its ``labelled`` images takes what finds it best there; one
    that has none in them has none; one without labelled images follows the published rule for unknown scenes, by all of
    its ``unlabelled`` images.
    """

    def __init__(
        self, labelled: Sequence[Record], unlabelled: Sequence[Record], *, rules: SearchRules = SEARCH
    ) -> None:
        self._rules = rules
        self._unlabelled = tuple(unlabelled)
        self._thresholds: dict[str, SceneThreshold | None] = {
            scene: search(map(self._values_and_truth, images), rules=rules)
            for scene, images in _by_scene(labelled).items()
        }

    def __call__(self, record: Record) -> dict[int, list[Polygon]]:
        """Returns both kinds of water by label, in pixels of the image."""
        threshold = self.threshold_of(record.group)
        if threshold is None:
            return {FAST_WATER: [], SLOW_WATER: []}
        bands, placed = _m_file(record)
        water = searched_water(index_map(threshold.index, bands), threshold.below, rules=self._rules)
        return _by_label(Water(*(to_pixels(each, placed) for each in (water.fast, water.slow))))

    def threshold_of(self, scene: str) -> SceneThreshold | None:
        """Returns what water of a scene is found by, None where there is none."""
        if scene not in self._thresholds:
            images = (record for record in self._unlabelled if record.group == scene)
            maps = (index_map(self._rules.unknown_index, _m_file(record)[0]) for record in images)
            self._thresholds[scene] = unknown_threshold(maps, rules=self._rules)
        return self._thresholds[scene]

    def told(self) -> str:
        """Returns what was found for the scenes so far, in words."""
        return some_of([f"{scene} {_words(found)}" for scene, found in sorted(self._thresholds.items())])

    def found(self) -> dict[str, dict[str, str | float | None] | None]:
        """Returns index, threshold and Jaccard index (None: not known) by scene, None for a scene without water."""
        return {
            scene: None
            if each is None
            else {
                "index": each.index,
                "below": each.below,
                "jaccard": None if math.isnan(each.jaccard) else round(each.jaccard, 6),
            }
            for scene, each in sorted(self._thresholds.items())
        }

    def _values_and_truth(self, record: Record) -> tuple[dict[str, np.ndarray], np.ndarray]:
        bands, placed = _m_file(record)
        values = {name: index_map(name, bands) for name in self._rules.indices}
        return values, _truth(record, placed, next(iter(values.values())).shape)


def _by_scene(records: Iterable[Record]) -> dict[str, list[Record]]:
    scenes: dict[str, list[Record]] = {}
    for record in records:
        scenes.setdefault(record.group, []).append(record)
    return scenes


def _m_file(record: Record) -> tuple[dict[str, np.ndarray], Georeference]:
    """Returns the bands of M as it lies, H×W float32 in [0, 1], and where pixels of the image lie in its pixels.

    That is the image's place on a ground whose units are pixels of M, where the file was moved to by registration.
    """
    with open_stack(record.image, (record.bands[_M],)) as stack:
        layer = stack.layers[1]
        assert layer.sampling is not None, "a further file is sampled"
        pixels, _ = layer.raster.read(Window(0, 0, *layer.raster.size))
        placed = Georeference(None, layer.sampling.to_source)
    scaled = pixels.astype(np.float32) / np.float32(FULL_SCALE)
    return {name: scaled[..., place] for place, name in enumerate(M_BANDS)}, placed


def _truth(record: Record, placed: Georeference, size: tuple[int, ...]) -> np.ndarray:
    """Returns where the polygons of both kinds of water lie in M, uint8 H×W of 0 and 1."""
    import shapely

    assert isinstance(record.truth, Shapes), "the truth of the layout"
    height, width = size
    water = [shapely.from_wkt(wkt) for label, wkt in record.truth.wkt if label in (FAST_WATER, SLOW_WATER)]
    polygons = to_crs(shapely.get_parts(np.array(water, dtype=object)).tolist(), placed)
    truth = PolygonTruth((height, width), [(0, polygon) for polygon in polygons])
    return truth.labels(Window(0, 0, height, width), _WATER)


def _by_label(water: Water) -> dict[int, list[Polygon]]:
    return {FAST_WATER: water.fast, SLOW_WATER: water.slow}


def _words(found: SceneThreshold | None) -> str:
    return "has none" if found is None else f"{found.index} < {found.below:g} (Jaccard {found.jaccard:.3f})"
