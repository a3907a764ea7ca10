"""Rasters of any size, predicted block by block: the grid of blocks, what is read around each, one block's maps.

A block's maps depend on nothing but the pixels that are read for it, so neither the order of blocks nor who predicts
which changes anything. Knows nothing about files, and nothing about what becomes of the maps.

How far is read around a block decides whether its border shows. Where neighbouring tiles overlap, both weigh the same
in the middle of what they have in common, and beyond it the nearer one outweighs the other. Half the overlap is read
around a block: its border then lies on such a line, and every pixel is as far inside its tile as blending asks. What a
tile beyond the border would add is left out, as where only the centres of tiles are kept. Where a block's side holds a
whole number of strides, all tiles fall on one grid over the raster and none is asked about twice. A margin is read too.

The maps are therefore not quite those of the raster in one piece. With ``seams="blended"`` they are, for networks that
see windows: a block is then predicted from all tiles of the raster's grid that touch it, with the weights that they
have there (``inference.frames``). Tiles on a border are asked about once for each block there, which for overlaps of a
quarter or a half makes 1.1 to 1.3 times as many of 256, and 1.6 to 2.2 times of 512.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from maskloom.data.image_io import MAX_PIXELS
from maskloom.data.input_policy import InputPolicy
from maskloom.errors import UserError
from maskloom.inference.frames import Frame, TileLine, tile_lines
from maskloom.inference.guidance import GuidanceSettings
from maskloom.records import Size
from maskloom.windows import Window

SIDES = (512, 1024, 1536, 2048)
"""Sides of blocks, in pixels: multiples of the tiles in which rasters are stored."""
CONTEXT = 256
"""So many pixels are read around blocks for networks that see images whole or in parts: nobody knows how far they
look."""
MAX_BYTES = 2**29
"""What the pixels of the blocks that wait, are read and are predicted may take together."""

_BYTES_PER_VALUE = 10  # three blocks of 16 bits, and one of 32 bits on the device


class Readable(Protocol):
    """A raster that is read by window: pixels H×W×C, and where they are valid (bool H×W)."""

    @property
    def size(self) -> Size:
        """(height, width)."""

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Returns the pixels of a window inside the raster, and where they are valid."""


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """Blocks of ``side`` pixels from the raster's first pixel on; those at its far borders are what is left of it."""

    size: Size
    """(height, width) of the raster."""
    side: int
    halo: Size = (0, 0)
    """How many (rows, columns) are read on every side of a block."""
    least: Size = (0, 0)
    """What is read has at least so many (rows, columns) where the raster has them: whole tiles."""
    stride: Size | None = None
    """(rows, columns) from one tile to the next where the tiles of all blocks lie on one grid over the raster."""
    lines: tuple[tuple[TileLine, TileLine], ...] = ()
    """Of each network, the rows and columns of its tiles over the raster, where blocks are predicted from all of them
    that touch it; what is read is then what these see."""

    def blocks(self) -> list[Window]:
        """Returns the blocks, row by row."""
        height, width = self.size
        return [
            Window(top, left, min(self.side, height - top), min(self.side, width - left))
            for top in range(0, height, self.side)
            for left in range(0, width, self.side)
        ]

    def seen(self, part: Window) -> Window:
        """Returns the window that is read to predict a block or a part of one."""
        top, bottom = self._span(0, part.top, part.height)
        left, right = self._span(1, part.left, part.width)
        return Window(top, left, bottom - top, right - left)

    def _span(self, axis: int, start: int, length: int) -> tuple[int, int]:
        if self.lines:
            ends = [lines[axis].seen(start, start + length) for lines in self.lines]
            return min(first for first, _ in ends), max(last for _, last in ends)
        total, least = self.size[axis], min(self.least[axis], self.size[axis])
        first, last = max(start - self.halo[axis], 0), min(start + length + self.halo[axis], total)
        last = min(max(last, first + least), total)
        return max(min(first, last - least), 0), last

    def filled(self, block: Window, is_valid: np.ndarray) -> Window:
        """Returns the part of a block that must be predicted for the sake of its valid pixels (bool h×w, some are).

        What is left out are whole strides on its sides: the part is cut off as blocks are. Where blocks have all tiles
        that touch them, it is everything on the sides.
        """
        top, bottom = self._filled(0, block.top, np.asarray(is_valid.any(axis=1)))
        left, right = self._filled(1, block.left, np.asarray(is_valid.any(axis=0)))
        return Window(top, left, bottom - top, right - left)

    def _filled(self, axis: int, start: int, is_valid: np.ndarray) -> tuple[int, int]:
        length, halo = len(is_valid), self.halo[axis]
        if self.lines:
            return start + int(is_valid.argmax()), start + length - int(is_valid[::-1].argmax())
        # At the raster's border tiles are spread otherwise.
        if self.stride is None or start < halo or start + length + halo > self.size[axis] or length < self.side:
            return start, start + length
        stride = self.stride[axis]
        first, last = int(is_valid.argmax()), length - int(is_valid[::-1].argmax())
        return start + first // stride * stride, start + -(-last // stride) * stride


@dataclass(frozen=True, slots=True)
class _Tiling:
    """How one network tiles what it is given, along one axis, in pixels of the raster."""

    tile: int
    """What a margin leaves of a tile; 0 for a network that takes all at once."""
    seen: int
    """The whole tile."""
    stride: int
    halo: int

    def cost(self, side: int, halo: int) -> float:
        """Returns how many pixels the network looks at for every pixel of a block."""
        length = side + 2 * halo
        if not self.tile:
            return length / side
        return (1 + max(math.ceil((length - self.tile) / self.stride), 0)) * self.seen / side


def block_grid(
    size: Size,
    networks: Iterable[tuple[InputPolicy, GuidanceSettings | None]],
    *,
    channels: int,
    overlap: float | None = None,
    whole_pixels: int | None = None,
    seams: Literal["cut", "blended"] = "cut",
) -> BlockGrid:
    """Returns the blocks of a raster of ``size`` for the networks that are to see it, the same on every machine.

    ``overlap`` of neighbouring tiles is a fraction of their shorter side; None: as each policy says. Networks of
    windows see no tiles of rasters of at most ``whole_pixels`` pixels (None: always tiles). The side is the one of
    ``SIDES`` for which networks look at the fewest pixels, as far as the memory of ``channels`` allows. Around networks
    that are given members' maps twice as much is read, so that those maps are as good. Contrasts are equalised
    (``policy.clahe``) within what is read for a block.

    Networks that see images resized as a whole, or look where a member finds objects, are given the whole raster as one
    block; raises ``UserError`` where it is too large for that.
    """
    asked = [(policy.asked_about(size, whole_pixels), guidance) for policy, guidance in networks]
    if not asked:
        raise ValueError("expected at least one network")
    whole = _reason_for_all(asked)
    if whole:
        if size[0] * size[1] > MAX_PIXELS:
            raise UserError(
                f"expected networks that can be asked about parts of a raster, found {whole}, which need all of it: "
                f"{size[1]}×{size[0]} (width×height) pixels are over the budget of {MAX_PIXELS:,} for a whole image; "
                "train on windows (members.N.input.mode=window), or cut or shrink the raster"
            )
        return BlockGrid(size, max(size))
    if seams == "blended":
        return _blended(size, asked, channels, overlap)
    tilings = [tuple(_tiling(policy, axis, overlap) for axis in (0, 1)) for policy, _ in asked]
    guided = any(guidance is not None for _, guidance in asked)
    reach = 2 if guided else 1
    halo = (reach * max(rows.halo for rows, _ in tilings), reach * max(columns.halo for _, columns in tilings))
    least = (max(rows.tile for rows, _ in tilings), max(columns.tile for _, columns in tilings))

    def cost(side: int) -> float:
        return sum(rows.cost(side, halo[0]) * columns.cost(side, halo[1]) for rows, columns in tilings)

    def is_affordable(side: int) -> bool:
        values = (side + 2 * halo[0]) * (side + 2 * halo[1]) * channels
        return values * _BYTES_PER_VALUE <= MAX_BYTES

    side = min(filter(is_affordable, SIDES), key=lambda side: (round(cost(side), 6), side), default=SIDES[0])
    grid = BlockGrid(size, side, halo, least)
    rows, columns = tilings[0]
    same = len(set(tilings)) == 1 and not guided and all(policy.scale == 1 and not policy.clahe for policy, _ in asked)
    if same and all(_fits(side, halo[axis], tiling) for axis, tiling in enumerate((rows, columns))):
        return BlockGrid(size, side, halo, least, (rows.stride, columns.stride))
    return grid


def _blended(
    size: Size, networks: Sequence[tuple[InputPolicy, GuidanceSettings | None]], channels: int, overlap: float | None
) -> BlockGrid:
    """Returns blocks that are predicted from all tiles of the raster that touch them, as large as memory allows.

    Raises ``UserError`` for networks whose tiles in a part of a raster are not those in the whole.
    """
    for policy, guidance in networks:
        settings = {"scale": policy.scale != 1, "clahe": policy.clahe, "guidance": guidance is not None}
        found = [f"input.mode={policy.mode}"] if policy.mode != "window" else []
        found += [name for name, is_set in settings.items() if is_set]
        if found:
            raise UserError(
                "inference.seams=blended: expected networks that see windows, without scale, clahe and guidance, found "
                f"{', '.join(found)}; set inference.seams=cut"
            )
    lines = tuple(dict.fromkeys(tile_lines(size, policy, overlap) for policy, _ in networks))
    reach = [max(each[axis].tile for each in lines) for axis in (0, 1)]

    def is_affordable(side: int) -> bool:
        values = (side + 2 * reach[0]) * (side + 2 * reach[1]) * channels
        return values * _BYTES_PER_VALUE <= MAX_BYTES

    return BlockGrid(size, max(filter(is_affordable, SIDES), default=SIDES[0]), lines=lines)


def _reason_for_all(networks: Iterable[tuple[InputPolicy, GuidanceSettings | None]]) -> str:
    for policy, guidance in networks:
        if policy.mode == "resize":
            return "networks of whole resized images (input.mode=resize)"
        if guidance is not None and guidance.region is not None:
            return "networks that look where objects are (guidance.region)"
    return ""


def _tiling(policy: InputPolicy, axis: int, overlap: float | None) -> _Tiling:
    if policy.mode != "window" or policy.size is None:
        return _Tiling(0, 0, 1, CONTEXT)
    centres = [side - 2 * policy.margin for side in policy.size]
    centre = centres[axis]
    common = int((policy.overlap if overlap is None else overlap) * min(centres))
    halo = policy.margin + (common + 1) // 2
    tile, seen, stride, reach = (
        math.ceil(length / policy.scale) for length in (centre, policy.size[axis], centre - common, halo)
    )
    return _Tiling(tile, seen, stride, reach)


def _fits(side: int, halo: int, tiling: _Tiling) -> bool:
    """Whether tiles lie at multiples of their stride in what is read for a block, and so does a block's side."""
    return tiling.tile > 0 and side % tiling.stride == 0 and (side + 2 * halo - tiling.tile) % tiling.stride == 0


@dataclass(frozen=True, slots=True)
class BlockPixels:
    """What was read to predict one block."""

    block: Window
    is_valid: np.ndarray
    """bool h×w of the block."""
    part: Window
    """What of the block is predicted."""
    seen: Window
    """What was read for it."""
    raster: Size
    """(height, width) of the raster."""
    pixels: np.ndarray | None
    """H×W×C of ``seen``, 0 where invalid; None where no pixel of the block is valid."""
    frame: Frame | None = None
    """Where the pixels lie in the raster, where they are predicted from the tiles of the whole raster."""


def read_block(raster: Readable, grid: BlockGrid, block: Window) -> BlockPixels:
    """Returns what a block is predicted from, read within the raster; beyond its borders networks see it mirrored."""
    seen = grid.seen(block)
    pixels, known = raster.read(seen)
    is_valid = known[_within(block, seen)]
    if not is_valid.any():
        return BlockPixels(block, is_valid, block, seen, grid.size, None)
    if not known.all():
        pixels[~known] = 0
    part = grid.filled(block, is_valid)
    needed = grid.seen(part)
    if needed != seen:
        pixels = np.ascontiguousarray(pixels[_within(needed, seen)])
    frame = Frame(grid.size, needed, part) if grid.lines else None
    return BlockPixels(block, is_valid, part, needed, grid.size, pixels, frame)


def predict_block(predict: Callable[..., dict[str, np.ndarray]], found: BlockPixels) -> dict[str, np.ndarray] | None:
    """Returns a block's maps by name, uint8 C×h×w, 0 where it is invalid; None where it is invalid everywhere.

    ``predict`` gives the maps uint8 C×H×W of an image H×W×C, as a ``Predictor`` does; it is not asked in vain. It is
    told the raster's size as ``raster``, and the frame where there is one.
    """
    if found.pixels is None:
        return None
    shape = found.is_valid.shape
    maps: dict[str, np.ndarray] = {}
    for name, values in predict(found.pixels, raster=found.raster, frame=found.frame).items():
        placed = np.zeros((len(values), *shape), np.uint8)
        placed[(..., *_within(found.part, found.block))] = values[(..., *_within(found.part, found.seen))]
        placed *= found.is_valid
        maps[name] = placed
    return maps


def _within(window: Window, outer: Window) -> tuple[slice, slice]:
    """Returns the slices that cut a window out of an array of a larger window."""
    return Window(window.top - outer.top, window.left - outer.left, window.height, window.width).slices
