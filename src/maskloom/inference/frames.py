"""Where a cut lies in its raster, and from which tiles of the whole raster's grid a part of it is predicted.

Every pixel of a raster in tiles is a weighted sum over the tiles that cover it. Whoever asks a network about all of
those, where they lie on the raster and with the weights that they have there, gets what the whole raster in one piece
gives. Knows nothing about networks and what else is cut.
"""

from __future__ import annotations

from dataclasses import dataclass

from maskloom.data.input_policy import InputPolicy, Placement, place
from maskloom.records import Size
from maskloom.windows import Padding, Window, tile_starts


@dataclass(frozen=True, slots=True)
class Frame:
    """A cut of a raster: (height, width) of the raster, the window that was cut out, the part whose map is wanted.

    The map is right in the part; elsewhere in the cut, tiles are missing.
    """

    size: Size
    window: Window
    part: Window


@dataclass(frozen=True, slots=True)
class TileLine:
    """The tiles of a raster along one axis, in pixels of the raster as it is padded for one network."""

    starts: tuple[int, ...]
    tile: int
    margin: int
    """So many pixels on both sides of a tile count in no map."""
    before: int
    """Padding before the raster's first pixel."""
    raster: int
    """Pixels of the raster."""
    length: int
    """Pixels of the raster as it is padded."""

    def touching(self, first: int, last: int) -> list[int]:
        """Returns the starts of the tiles of which something counts in the raster's pixels [first, last)."""
        first, last, margin = first + self.before, last + self.before, self.margin
        return [start for start in self.starts if start + margin < last and first < start + self.tile - margin]

    def seen(self, first: int, last: int) -> tuple[int, int]:
        """Returns the raster's pixels that those tiles see, as [first, last)."""
        starts = self.touching(first, last)
        return max(starts[0] - self.before, 0), min(starts[-1] + self.tile - self.before, self.raster)


def tile_lines(size: Size, policy: InputPolicy, overlap: float | None) -> tuple[TileLine, TileLine]:
    """Returns the rows and columns of tiles that ``data.input_policy.tile_windows`` gives for a raster of ``size``."""
    if policy.mode != "window" or policy.size is None:
        raise ValueError(f"only mode window has tiles, got mode {policy.mode}")
    placement, margin = place(size, policy), policy.margin
    centres = [side - 2 * margin for side in policy.size]
    common = int((policy.overlap if overlap is None else overlap) * min(centres))

    def line(axis: int, before: int) -> TileLine:
        length = placement.padded[axis]
        starts = tile_starts(length - 2 * margin, centres[axis], common)
        assert policy.size is not None
        return TileLine(tuple(starts), policy.size[axis], margin, before, size[axis], length)

    return line(0, placement.padding.top), line(1, placement.padding.left)


def place_cut(frame: Frame, policy: InputPolicy) -> Placement:
    """Returns where a cut lies in the network's input: padded on the borders of the raster alone, as that is."""
    padding, window = place(frame.size, policy).padding, frame.window
    size = window.height, window.width
    own = Padding(
        padding.top if window.top == 0 else 0,
        padding.bottom if window.top + window.height == frame.size[0] else 0,
        padding.left if window.left == 0 else 0,
        padding.right if window.left + window.width == frame.size[1] else 0,
    )
    return Placement(size, size, own)
