"""Spatial folds: blocks of scenes dealt into K parts by where they lie, with room between training and validation.

For scenes too large, or too few, to be dealt whole (``folds`` does that). The result is a table that a user can edit
and hand back. Knows nothing about pixels: areas are given.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from maskloom.config import Config
from maskloom.data.fold_rows import ALWAYS_TRAINING, read_rows
from maskloom.errors import UserError, closest
from maskloom.files import write_text
from maskloom.rasters.georeference import Georeference, same_crs
from maskloom.records import Size
from maskloom.runtime import derive_seed
from maskloom.windows import Window

MAX_BLOCKS = 100_000
"""Of one scene; more are taken for a mistake in the side of blocks."""
MAX_FOLDS = 1_000
"""Each is a network of every member."""

_COLUMNS = ("scene", "top", "left", "height", "width", "fold")
_BUFFER = "buffer"


class SpatialFoldSettings(Config):
    """How scenes are divided into blocks."""

    count: int = Field(default=5, ge=2, le=MAX_FOLDS)
    """The number of folds."""
    side: float = Field(default=512, gt=0)
    """Of a square block, in ``unit``."""
    unit: Literal["pixels", "crs"] = "pixels"
    """"pixels": blocks begin at the scene's first pixel, and a rest of less than half a side goes to the block
    before; "crs": blocks are cells of one grid over the ground, in the units of the CRS, so that scenes which overlap,
    or are cut out of each other, agree."""
    balance: Literal["none", "valid", "classes"] = "none"
    """What is to be alike in all folds. "none": a block's fold depends on nothing but its place and the seed; "valid":
    the valid area; "classes": the area of each class. Balanced blocks are dealt from the largest share of anything
    down, each to the fold that has least of what it holds."""
    buffer: int = Field(default=0, ge=0, le=1_000_000)
    """Pixels that lie at least between a validation block and any training window; blocks of a table that states more
    keep that."""
    seed: int = Field(default=0, ge=0)
    """Of the places' hashes; where blocks are balanced, it decides between equal ones."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What is divided: an image by its id and size (height, width), and where it lies, if that is known."""

    id: str
    size: Size
    georeference: Georeference | None = None


@dataclass(frozen=True, slots=True)
class BlockRow:
    """One line of the table; ``fold`` is 0…K-1, or -1 for always training.

    No training window of that fold comes nearer to the block than ``buffer`` pixels.
    """

    scene: str
    window: Window
    fold: int
    buffer: int = 0


@dataclass(frozen=True, slots=True)
class SpatialFoldTable:
    """Which fold validates each block."""

    rows: tuple[BlockRow, ...]

    def __post_init__(self) -> None:
        used = {row.fold for row in self.rows} - {ALWAYS_TRAINING}
        if not used or used != set(range(max(used) + 1)):
            raise UserError(f"folds: expected the numbers 0, 1, 2 … without gaps (or -1), found {sorted(used)}")
        if all(row.fold == 0 for row in self.rows):
            raise UserError("folds: everything lies in fold 0, which leaves nothing to train on; use two or more folds")
        for scene, blocks in _by_scene(self.rows).items():
            _check_apart(scene, [row.window for row in blocks])

    @property
    def num_folds(self) -> int:
        """The number of folds."""
        return max(row.fold for row in self.rows) + 1

    def validation(self, scene: str, fold: int) -> list[Window]:
        """Returns the blocks of a scene that a fold validates, in the table's order."""
        return [row.window for row in self._validated(scene, fold)]

    def _validated(self, scene: str, fold: int) -> list[BlockRow]:
        if not 0 <= fold < self.num_folds:
            raise ValueError(f"fold must lie in 0…{self.num_folds - 1}, got {fold}")
        rows = [row for row in self.rows if row.scene == scene]
        if not rows:
            hint = closest(scene, {row.scene for row in self.rows})
            raise UserError(f"folds: no block of scene {scene!r} is in the table; {hint}")
        return [row for row in rows if row.fold == fold]

    def forbidden(self, scene: str, fold: int, *, scenes: Sequence[Scene] = ()) -> list[Window]:
        """Returns the areas of a scene that no training window of a fold may touch.

        These are its validation blocks, grown by their buffers to every side, also beyond the border. Where ``scenes``
        say where this one and others of the table lie, the others' validation blocks count too, as far as they reach
        into this one. Raises ``UserError`` where two of these have different CRS.
        """
        blocks = [(row.window, row.buffer) for row in self._validated(scene, fold)]
        known = {row.scene for row in self.rows}
        places = {each.id: each for each in scenes if each.georeference and each.georeference.crs and each.id in known}
        here = places.pop(scene, None)
        if here is None:
            return [_grown(block, buffer) for block, buffer in blocks]
        for other in places.values():
            rows = self._validated(other.id, fold)
            blocks += [(_seen_from(here, other, row.window), row.buffer) for row in rows]
        return [area for block, buffer in blocks if _meets(area := _grown(block, buffer), here.size)]

    def to_csv(self, path: Path) -> None:
        """Writes the table (columns scene, top, left, height, width, fold, buffer), atomically."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow((*_COLUMNS, _BUFFER))
        for row in self.rows:
            at = row.window
            writer.writerow((row.scene, at.top, at.left, at.height, at.width, row.fold, row.buffer))
        write_text(path, stream.getvalue())

    @classmethod
    def from_csv(cls, path: Path) -> SpatialFoldTable:
        """Returns the table of a file; the column ``buffer`` may be missing. Raises ``UserError``."""
        rows = read_rows(path, "table of blocks", _COLUMNS)
        try:
            return cls(tuple(_parse_row(row, line) for line, row in rows))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def _parse_row(row: Mapping[str, str], line: int) -> BlockRow:
    try:
        top, left, height, width, fold = (int(row[column]) for column in _COLUMNS[1:])
        buffer = int(row.get(_BUFFER) or 0)
    except ValueError:
        top = left = height = width = fold = buffer = -2
    if not row["scene"] or min(top, left, buffer) < 0 or min(height, width) < 1 or fold < ALWAYS_TRAINING:
        raise UserError(
            f"line {line}: expected a scene, top, left, height and width in pixels, a fold of 0, 1, 2 … or -1, and a "
            f"buffer in pixels or none, found {','.join(row.values()):.100}"
        )
    return BlockRow(row["scene"], Window(top, left, height, width), fold, buffer)


def _by_scene(rows: Iterable[BlockRow]) -> dict[str, list[BlockRow]]:
    scenes: dict[str, list[BlockRow]] = {}
    for row in rows:
        scenes.setdefault(row.scene, []).append(row)
    return scenes


def _check_apart(scene: str, blocks: Sequence[Window]) -> None:
    """Raises ``UserError`` where two blocks share a pixel; looked up on the grid of all their sides."""
    rows, columns = ({side: place for place, side in enumerate(_all_sides(blocks, axis))} for axis in (0, 1))
    is_taken = np.zeros((len(rows), len(columns)), bool)
    for block in blocks:
        (top, bottom), (left, right) = _sides(block)
        part = is_taken[rows[top] : rows[bottom], columns[left] : columns[right]]
        if part.any():
            raise UserError(f"folds: {block} of scene {scene!r} overlaps another block; give every pixel to one block")
        part[:] = True


def _sides(at: Window) -> tuple[tuple[int, int], tuple[int, int]]:
    return (at.top, at.top + at.height), (at.left, at.left + at.width)


def _all_sides(blocks: Iterable[Window], axis: int) -> list[int]:
    return sorted({side for block in blocks for side in _sides(block)[axis]})


def _grown(at: Window, buffer: int) -> Window:
    return Window(at.top - buffer, at.left - buffer, at.height + 2 * buffer, at.width + 2 * buffer)


def _meets(at: Window, size: Size) -> bool:
    (top, bottom), (left, right) = _sides(at)
    return top < size[0] and bottom > 0 and left < size[1] and right > 0


def _seen_from(here: Scene, other: Scene, block: Window) -> Window:
    """Returns the pixels of one scene that a block of another touches."""
    one, two = here.georeference, other.georeference
    assert one and two and one.crs and two.crs  # the caller sees to that
    if not same_crs(one.crs, two.crs):
        raise UserError(
            f"scenes {here.id!r} and {other.id!r}: expected one CRS, found {one.crs:.60} and {two.crs:.60}; bring them "
            "to one, or leave out scenes that lie far apart"
        )
    (top, bottom), (left, right) = _sides(block)
    corners = np.array([(left, top, 1), (right, top, 1), (right, bottom, 1), (left, bottom, 1)], np.float64)
    ground = corners @ _matrix(two).T
    xy = np.round(np.linalg.solve(_matrix(one), ground.T)[:2], 6)  # what falls onto a pixel's side stays there
    (x, y), (far_x, far_y) = np.floor(xy.min(axis=1)).astype(int), np.ceil(xy.max(axis=1)).astype(int)
    return Window(int(y), int(x), int(far_y - y), int(far_x - x))


def _matrix(georeference: Georeference) -> np.ndarray:
    return np.array([georeference.transform[:3], georeference.transform[3:], (0, 0, 1)], np.float64)


def check_scenes(table: SpatialFoldTable, scenes: Iterable[Scene], path: Path) -> None:
    """Raises ``UserError`` naming the table's file unless its blocks cover every scene, and nothing else, exactly."""
    blocks = _by_scene(table.rows)
    sizes = {scene.id: scene.size for scene in scenes}
    for name, rows in blocks.items():
        if name not in sizes:
            raise UserError(f"{path}: scene {name!r} is not in the data; {closest(name, sizes)}")
        outside = [row.window for row in rows if not _lies_in(row.window, sizes[name])]
        if outside:
            height, width = sizes[name]
            raise UserError(f"{path}: expected blocks inside scene {name!r} of {width}×{height}, found {outside[0]}")
    for name, (height, width) in sizes.items():
        covered = sum(row.window.height * row.window.width for row in blocks.get(name, ()))
        if covered != height * width:
            raise UserError(
                f"{path}: expected blocks that cover scene {name!r} of {width}×{height}, found {covered:,} of "
                f"{height * width:,} pixels; add the missing blocks (fold -1: always training)"
            )


def _lies_in(at: Window, size: Size) -> bool:
    (top, bottom), (left, right) = _sides(at)
    return top >= 0 and left >= 0 and bottom <= size[0] and right <= size[1]


# Dealing ------------------------------------------------------------------------------------------------------------

Cell = tuple[str, int, int]
"""The place of a block: its scene ("" for cells of the ground) and its row and column."""


def divide(scenes: Sequence[Scene], settings: SpatialFoldSettings) -> dict[str, list[Window]]:
    """Returns the blocks of each scene, row by row: every pixel lies in exactly one.

    Raises ``UserError`` where a scene's place is needed and not known.
    """
    _check_places(scenes, settings)
    return {scene.id: [window for _, window in _blocks(scene, settings)] for scene in scenes}


def make_spatial_folds(
    scenes: Sequence[Scene],
    settings: SpatialFoldSettings,
    *,
    areas: Callable[[str, Window], Sequence[float]] | None = None,
) -> SpatialFoldTable:
    """Returns the table of all blocks, scene by scene and row by row: every pixel lies in exactly one.

    What shares a cell of the ground has one fold. ``areas`` are needed to balance: they return a block's valid area,
    or the area of each class. Without balance, blocks that are left out or added change no other. Raises
    ``UserError`` where a fold would stay empty, or a scene's place is needed and not known.
    """
    _check_places(scenes, settings)
    blocks = [(scene.id, cell, window) for scene in scenes for cell, window in _blocks(scene, settings)]
    hashes = {cell: derive_seed(settings.seed, "blocks", *cell) for _, cell, _ in blocks}
    if settings.balance == "none":
        fold_of = {cell: place % settings.count for cell, place in hashes.items()}
    else:
        fold_of = _balanced(blocks, hashes, settings.count, areas)
    missing = sorted(set(range(settings.count)) - set(fold_of.values()))
    if missing:
        raise UserError(
            f"folds: expected blocks for {settings.count} folds, found none for fold {missing[0]} of {len(hashes)} "
            f"blocks; use a smaller side than {settings.side:g}, fewer folds, or another seed"
        )
    return SpatialFoldTable(
        tuple(BlockRow(scene, window, fold_of[cell], settings.buffer) for scene, cell, window in blocks)
    )


def _check_places(scenes: Sequence[Scene], settings: SpatialFoldSettings) -> None:
    """Raises ``UserError`` unless blocks of the ground can be drawn in all scenes, where these are wanted."""
    first: str | None = None
    for scene in scenes if settings.unit == "crs" else ():
        place = scene.georeference
        if place is None or place.crs is None:
            raise UserError(
                f"scene {scene.id!r}: expected a CRS, found none; give it one, or state the side of blocks in pixels "
                "(unit=pixels)"
            )
        if place.transform[1] or place.transform[3]:
            raise UserError(
                f"scene {scene.id!r}: expected rows along an axis of its CRS, found them turned; warp the raster, or "
                "state the side of blocks in pixels (unit=pixels)"
            )
        first = first or place.crs
        if not same_crs(first, place.crs):
            raise UserError(
                f"scene {scene.id!r}: expected the CRS of the other scenes, {first:.60}, found {place.crs:.60}; bring "
                "all to one, or state the side of blocks in pixels (unit=pixels)"
            )


def _blocks(scene: Scene, settings: SpatialFoldSettings) -> list[tuple[Cell, Window]]:
    """Returns the blocks of a scene row by row, each with its place."""
    height, width = scene.size
    if settings.unit == "pixels":
        rows, columns = (_runs(np.arange(side) + 0.5, settings.side, joins_rest=True) for side in (height, width))
        name = scene.id
    else:
        assert scene.georeference is not None  # _check_places sees to that
        a, _, c, _, e, f = scene.georeference.transform
        rows = _runs(f + e * (np.arange(height) + 0.5), settings.side)
        columns = _runs(c + a * (np.arange(width) + 0.5), settings.side)
        name = ""
    if len(rows) * len(columns) > MAX_BLOCKS:
        raise UserError(
            f"scene {scene.id!r}: expected at most {MAX_BLOCKS:,} blocks, found {len(rows) * len(columns):,} of side "
            f"{settings.side:g} (unit={settings.unit}); use a larger side"
        )
    return [
        ((name, row, column), Window(top, left, bottom - top, right - left))
        for row, top, bottom in rows
        for column, left, right in columns
    ]


def _runs(centres: np.ndarray, side: float, *, joins_rest: bool = False) -> list[tuple[int, int, int]]:
    """Returns (cell, start, stop) of the pixels along an axis whose centres lie in one cell of ``side``."""
    cells = np.floor(np.round(centres / side, 9)).astype(np.int64)  # rounded: scenes may differ in the last digits
    starts = np.append(0, np.flatnonzero(np.diff(cells)) + 1).tolist()
    if joins_rest and len(starts) > 1 and len(cells) - starts[-1] < side / 2:
        starts.pop()
    stops = [*starts[1:], len(cells)]
    return [(int(cells[start]), start, stop) for start, stop in zip(starts, stops, strict=True)]


def _balanced(
    blocks: Sequence[tuple[str, Cell, Window]],
    hashes: Mapping[Cell, int],
    count: int,
    areas: Callable[[str, Window], Sequence[float]] | None,
) -> dict[Cell, int]:
    """Returns the fold of each place: the largest shares are dealt first, each to the fold that holds least of them.

    What a fold holds of a block's kind is the sum over classes of its share times the block's. Places without any
    area go where their hash says.
    """
    if areas is None:
        raise ValueError("balancing blocks needs their areas")
    found: dict[Cell, np.ndarray] = {}
    for scene, cell, window in blocks:
        found[cell] = found.get(cell, 0.0) + np.asarray(areas(scene, window), np.float64)
    table = np.stack(list(found.values()))
    totals = table.sum(axis=0)
    shares = table[:, totals > 0] / totals[totals > 0]
    places = list(found)
    fold_of = {cell: hashes[cell] % count for cell in places}
    held = np.zeros((count, shares.shape[1]))
    largest = shares.max(axis=1, initial=0.0)
    for number in sorted(range(len(places)), key=lambda number: (-largest[number], hashes[places[number]])):
        if largest[number] > 0:
            loads = (held * shares[number]).sum(axis=1)
            fold = min(range(count), key=lambda fold: (loads[fold], held[fold].sum(), fold))
            held[fold] += shares[number]
            fold_of[places[number]] = fold
    return fold_of
