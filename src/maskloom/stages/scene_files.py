"""Stored blocks of scenes → files: class rasters, probability and uncertainty rasters, polygons, tables of WKT.

- ``<id>.tif``: labels 0 and 1 (binary), 0…n-1 (multiclass), or a band of 0 and 1 per class (multilabel); nodata is 255.
- ``<id>.probabilities.tif``: a band per class, round(255·p); 0 where the scene is invalid.
- ``<id>.uncertainty.tif``: round(255·u), 0 where the scene is invalid: u = 1 - |2p - 1| per class, or 1 - (p₁ - p₂) of
  the two largest where classes exclude each other. It is computed of the stored 8-bit probabilities.
- ``predictions.geojson``, ``.gpkg``, ``.fgb``: a feature per 4-connected piece, with its class and its scene, in the
  CRS of all scenes; a scene without any has one empty feature. Label 0 called "background" is no class. Every feature
  is valid by itself; where outlines were simplified or buffered, those of neighbours may overlap.
- ``predictions.csv.gz``: a row per scene and class, a valid MultiPolygon in pixels or in the coordinates of a grid.

All are read off the blocks one after the other: memory holds a block, and for polygons a row of blocks as bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.data.record_images import image_files
from maskloom.encodings.grid_coordinates import Grid, read_grids, to_grid
from maskloom.encodings.outlines import repaired
from maskloom.encodings.polygon_settings import PolygonSettings
from maskloom.encodings.probability_maps import read_map
from maskloom.encodings.vector_files import DSTL_COLUMNS, WKT_COLUMNS, Feature
from maskloom.errors import BadFile, UserError
from maskloom.files import checksum
from maskloom.inference.blocks import BlockGrid
from maskloom.inference.merging import RESULT
from maskloom.outputs.legends import BACKGROUND
from maskloom.outputs.vectors import write_features
from maskloom.rasters.georeference import to_crs
from maskloom.rasters.writing import write_geotiff_blocks
from maskloom.records import IGNORE, Task
from maskloom.stages.by_workers import names_in
from maskloom.stages.scene_sources import Scene, shared_crs
from maskloom.windows import Window

if TYPE_CHECKING:
    from shapely import Polygon

SCENE_FORMATS = ("geotiff", "geojson", "gpkg", "fgb", "wkt")

_NOTHING = np.zeros((1, 1, 1), np.uint8)  # what is stored of a block that is invalid everywhere
_STRIP_ROWS = 256  # rows that outlines are found in at a time
_POLYGONS_AT_A_TIME = 1000
_Values = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What is to be written, and where; raises ``UserError`` for options that have no meaning together."""

    out: Path
    to: str
    probabilities: bool = False
    uncertainty: bool = False
    polygons: PolygonSettings = field(default_factory=PolygonSettings)
    grid: Path | None = None

    def __post_init__(self) -> None:
        if self.to == "geotiff" and self.polygons.changes:
            raise UserError(
                "simplify, min_area, min_hole and buffer shape polygons, found them with --to geotiff; "
                f"leave them out, or choose --to {', '.join(SCENE_FORMATS[1:])}"
            )
        if self.to == "wkt" and self.polygons.changes and self.polygons.units == "crs":
            raise UserError(
                "units=crs: a table of WKT is in pixels or in grid coordinates, not in a CRS; state units=pixels, or "
                "choose --to geojson"
            )
        if self.grid is not None and self.to != "wkt":
            raise UserError(f"{self.grid}: a table of grid sizes is for --to wkt, found --to {self.to}; leave it out")

    def facts(self) -> list[Any]:
        """Returns what decides the files' content, for a fingerprint."""
        grid = None if self.grid is None else checksum(self.grid)
        return [self.to, self.probabilities, self.uncertainty, self.polygons.model_dump(mode="json"), grid]


def check_scenes(scenes: Sequence[Scene], wanted: Wanted, *, note: Callable[[str], None]) -> str | None:
    """Returns the CRS of the polygons, None for pixels and grids.

    Raises ``UserError`` for scenes that cannot be written together or would be overwritten, or are not in the table of
    grid sizes.
    """
    files = scene_files(scenes, wanted)
    if len(set(files)) < len(files):
        twice = next(file for file in files if files.count(file) > 1)
        raise UserError(f"{twice}: two scenes would write this file; rename one of them")
    inputs = {file.resolve() for scene in scenes for file in image_files(scene.record)}
    for file in files:
        if file.resolve() in inputs:
            raise UserError(f"{file}: would overwrite a file that scenes are read from; choose another --out")
    if wanted.grid is not None:
        known = read_grids(wanted.grid)
        for scene in scenes:
            if scene.id not in known:
                raise BadFile(wanted.grid, f"has no row for scene {scene.id!r}; give the table that has it")
    if wanted.to in ("geotiff", "wkt") or not scenes:
        return None
    crs = shared_crs(scenes)
    if crs is None and wanted.polygons.changes and wanted.polygons.units == "crs":
        raise UserError(
            f"units=crs: expected scenes with a CRS, found none in {scenes[0].record.image}; state units=pixels, or "
            "give the scenes their CRS (gdal_edit.py -a_srs)"
        )
    if crs is None:
        note("no CRS is known: polygons are written in pixels, x to the right and y down")
    return crs


def scene_files(scenes: Sequence[Scene], wanted: Wanted) -> list[Path]:
    """Returns the files that are written for these scenes."""
    asked = {"": wanted.to == "geotiff", ".probabilities": wanted.probabilities, ".uncertainty": wanted.uncertainty}
    kinds = [kind for kind, is_asked in asked.items() if is_asked]
    files = [_raster_file(scene, kind, wanted) for scene in scenes for kind in kinds]
    return files if wanted.to == "geotiff" else [*files, _shared_file(wanted)]


def _raster_file(scene: Scene, kind: str, wanted: Wanted) -> Path:
    return wanted.out / f"{scene.id}{kind}.tif"


def _shared_file(wanted: Wanted) -> Path:
    return wanted.out / ("predictions.csv.gz" if wanted.to == "wkt" else f"predictions.{wanted.to}")


# Blocks --------------------------------------------------------------------------------------------------------------


def stored(maps: Mapping[str, np.ndarray] | None, is_valid: np.ndarray) -> np.ndarray:
    """Returns what is stored of a block, uint8 (C+1)×h×w: its maps, and where it is valid (0 or 1) behind them."""
    if maps is None:
        return _NOTHING
    return np.concatenate([maps[RESULT], is_valid[None].astype(np.uint8)])


class StoredBlocks:
    """The blocks of one scene on disk, a file each."""

    def __init__(self, folder: Path, grid: BlockGrid, num_maps: int) -> None:
        self.folder, self.grid = folder, grid
        self.windows = grid.blocks()
        self._num_maps = num_maps

    def path(self, number: int) -> Path:
        """Returns the file of a block."""
        return self.folder / f"{number:06d}.map"

    def there(self) -> set[int]:
        """Returns the numbers of the blocks that are there, whoever stored them."""
        found = (name.partition(".") for name in names_in(self.folder))
        return {int(number) for number, _, kind in found if kind == "map" and number.isdecimal()}

    def __iter__(self) -> Iterator[tuple[Window, np.ndarray, np.ndarray]]:
        """Yields every block's window, its maps uint8 C×h×w, and where it is valid (bool h×w), row by row."""
        for number, window in enumerate(self.windows):
            values = read_map(self.path(number))
            shape = (self._num_maps + 1, window.height, window.width)
            if values.shape == _NOTHING.shape:
                values = np.zeros(shape, np.uint8)
            if values.shape != shape:
                raise BadFile(self.path(number), f"expected a block of {shape}, found {values.shape}; delete it")
            yield window, values[:-1], values[-1] > 0


def uncertainty_of(values: np.ndarray, task: Task) -> np.ndarray:
    """Returns how unsure 8-bit maps C×h×w are, uint8: 255 where nothing speaks for one class more than for another.

    C×h×w of 255 - |2v - 255|; where classes exclude each other, 1×h×w of 255 - (v₁ - v₂) of the two largest.
    """
    if task.kind == "multiclass":
        second, first = np.partition(values, -2, axis=0)[-2:]
        sure: np.ndarray = (first - second)[None]
    else:
        sure = np.abs(2 * values.astype(np.int16) - 255).astype(np.uint8)
    return np.uint8(255) - sure


# Files ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SceneWriter:
    """Writes files of scenes whose blocks are all there."""

    wanted: Wanted
    task: Task
    stored: Mapping[str, StoredBlocks]
    """By scene."""
    decide: Callable[[np.ndarray], np.ndarray]
    """Gives labels uint8 h×w or C×h×w of 8-bit maps C×h×w, every pixel by itself."""
    crs: str | None

    def write(self, scenes: Sequence[Scene], on_scene: Callable[[str], object]) -> None:
        """Writes all files of these scenes, each whole or not at all; ``on_scene`` hears whose turn it is."""
        for scene in scenes:
            on_scene(scene.id)
            for kind, count, values, nodata in self._rasters():
                blocks = ((window, values(maps, is_valid)) for window, maps, is_valid in self.stored[scene.id])
                path = _raster_file(scene, kind, self.wanted)
                write_geotiff_blocks(
                    path, scene.record.size, count, np.uint8, scene.georeference, blocks, nodata=nodata
                )
        if self.wanted.to == "wkt":
            grids = None if self.wanted.grid is None else read_grids(self.wanted.grid)
            columns = WKT_COLUMNS if grids is None else DSTL_COLUMNS
            write_features(_shared_file(self.wanted), self._rows(scenes, grids, on_scene), crs=None, columns=columns)
        elif self.wanted.to != "geotiff":
            write_features(_shared_file(self.wanted), self._features(scenes, on_scene), crs=self.crs)

    def _rasters(self) -> Iterator[tuple[str, int, _Values, int | None]]:
        """Yields the kind, number of bands, values of a block (C×h×w) and nodata value of each raster of a scene."""
        task = self.task
        if self.wanted.to == "geotiff":
            yield "", task.num_maps if task.kind == "multilabel" else 1, self._labels, IGNORE
        if self.wanted.probabilities:
            yield ".probabilities", task.num_maps, lambda maps, is_valid: maps, None
        if self.wanted.uncertainty:
            count = 1 if task.kind == "multiclass" else task.num_maps
            yield ".uncertainty", count, lambda maps, is_valid: uncertainty_of(maps, task) * is_valid, None

    def _labels(self, maps: np.ndarray, is_valid: np.ndarray) -> np.ndarray:
        labels = self.decide(maps)
        found: np.ndarray = np.where(is_valid, labels, np.uint8(IGNORE))
        return found.reshape(-1, *is_valid.shape)

    def _classes(self) -> list[tuple[int, str]]:
        """Returns number and name of the classes that polygons are made of."""
        numbered = list(enumerate(self.task.classes))
        if self.task.kind == "multiclass" and numbered[0][1].lower() == BACKGROUND:
            return numbered[1:]
        return numbered

    def _strips(self, scene: Scene, number: int) -> Iterator[np.ndarray]:
        """Yields the mask of a class from top to bottom, bool h×W of the scene's width."""
        rows = groupby(self.stored[scene.id], key=lambda block: block[0].top)
        for _, blocks in rows:
            strip: np.ndarray | None = None
            for window, maps, is_valid in blocks:
                if strip is None:
                    strip = np.zeros((window.height, scene.record.size[1]), np.bool_)
                if is_valid.any():
                    strip[:, window.left : window.left + window.width] = self._mask(maps, number) & is_valid
            assert strip is not None, "groups are not empty"
            for top in range(0, len(strip), _STRIP_ROWS):
                yield strip[top : top + _STRIP_ROWS]

    def _mask(self, maps: np.ndarray, number: int) -> np.ndarray:
        labels = self.decide(maps)
        if self.task.kind == "multilabel":
            return np.asarray(labels[number] == 1)
        return np.asarray(labels == (1 if self.task.kind == "binary" else number))

    def _outlines(self, scene: Scene, number: int) -> Iterator[Polygon]:
        from maskloom.encodings.strip_outlines import outlines_of_strips

        return outlines_of_strips(self._strips(scene, number), scene.record.size[1])

    def _features(self, scenes: Sequence[Scene], on_scene: Callable[[str], object]) -> Iterator[Feature]:
        import shapely

        for scene in scenes:
            on_scene(scene.id)
            is_empty = True
            for number, name in self._classes():
                for polygon in self._delivered(scene, self._outlines(scene, number)):
                    is_empty = False
                    yield Feature(polygon, name, scene.id)
            if is_empty:
                yield Feature(shapely.MultiPolygon(), "", scene.id)

    def _delivered(self, scene: Scene, outlines: Iterator[Polygon]) -> Iterator[Polygon]:
        """Yields outlines, given in pixels, cleaned and in the CRS; each by itself, so that memory stays flat."""
        settings = self.wanted.polygons
        in_pixels, in_crs = (settings.changes and settings.units == unit for unit in ("pixels", "crs"))
        for some in _batches(_each_cleaned(outlines, settings) if in_pixels else outlines):
            moved = some if self.crs is None or scene.georeference is None else to_crs(some, scene.georeference)
            for polygon in _each_cleaned(moved, settings) if in_crs else moved:
                # What is valid in pixels may touch itself by what the digits of ground coordinates leave.
                yield from [polygon] if polygon.is_valid else repaired([polygon])

    def _rows(
        self, scenes: Sequence[Scene], grids: Mapping[str, Grid] | None, on_scene: Callable[[str], object]
    ) -> Iterator[Feature]:
        import shapely

        for scene in scenes:
            on_scene(scene.id)
            for number, name in self._classes():
                found = list(self._outlines(scene, number))
                polygons = self.wanted.polygons.cleaned(found)
                area: Any = shapely.multipolygons(polygons) if polygons else shapely.MultiPolygon()
                yield Feature(
                    area if grids is None else to_grid(area, scene.record.size, grids[scene.id]), name, scene.id
                )


def _each_cleaned(polygons: Iterable[Polygon], settings: PolygonSettings) -> Iterator[Polygon]:
    return (part for polygon in polygons for part in settings.cleaned([polygon]))


def _batches(polygons: Iterable[Polygon]) -> Iterator[list[Polygon]]:
    waiting = iter(polygons)
    while some := list(islice(waiting, _POLYGONS_AT_A_TIME)):
        yield some
