"""Windows and tile grids: half-open rectangles in pixel coordinates. Knows nothing about pixels themselves."""

from __future__ import annotations

from dataclasses import dataclass

from maskloom.records import Size


@dataclass(frozen=True, slots=True)
class Window:
    """Rows [top, top+height) and columns [left, left+width); may reach outside the image (see ``clipped``)."""

    top: int
    left: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a window needs a height and width of at least 1, got {self.height}×{self.width}")

    @property
    def slices(self) -> tuple[slice, slice]:
        """Row and column slices; only valid for a window inside the array."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    def clipped(self, size: Size) -> Window:
        """Returns the part of the window that lies inside an image of this size."""
        top, left = max(self.top, 0), max(self.left, 0)
        bottom, right = min(self.top + self.height, size[0]), min(self.left + self.width, size[1])
        return Window(top, left, bottom - top, right - left)


@dataclass(frozen=True, slots=True)
class Padding:
    """Pixels added on each side."""

    top: int
    bottom: int
    left: int
    right: int

    def __post_init__(self) -> None:
        if min(self.top, self.bottom, self.left, self.right) < 0:
            raise ValueError(f"padding cannot be negative, got {self}")

    @property
    def any(self) -> bool:
        """Whether anything is added."""
        return bool(self.top or self.bottom or self.left or self.right)

    def interior(self, padded: Size) -> Window:
        """Returns the window of the original image inside the padded one."""
        return Window(self.top, self.left, padded[0] - self.top - self.bottom, padded[1] - self.left - self.right)


def padding_to(size: Size, target: Size) -> Padding:
    """Returns the padding that centres an image of ``size`` in ``target`` (the odd pixel goes to bottom and right)."""
    rows, columns = max(target[0] - size[0], 0), max(target[1] - size[1], 0)
    return Padding(rows // 2, rows - rows // 2, columns // 2, columns - columns // 2)


def round_up(size: Size, multiple: int) -> Size:
    """Returns the smallest size whose sides are multiples of ``multiple`` and not below ``size``."""
    return -(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Returns the first pixels of evenly spread tiles that cover [0, length) with at least ``overlap`` in common.

    A tile longer than the axis starts at 0 and reaches outside; the caller pads.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap must lie in [0, tile), got {overlap} for a tile of {tile}")
    if length <= tile:
        return [0]
    steps = -(-(length - tile) // (tile - overlap))
    return [round(step * (length - tile) / steps) for step in range(steps + 1)]


def tile_grid(size: Size, tile: Size, overlap: int) -> list[Window]:
    """Returns the tiles, in row-major order, that cover an image of ``size``; each is exactly ``tile`` large."""
    return [
        Window(top, left, *tile)
        for top in tile_starts(size[0], tile[0], overlap)
        for left in tile_starts(size[1], tile[1], overlap)
    ]
