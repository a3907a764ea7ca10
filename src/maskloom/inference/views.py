"""Test-time views: the eight symmetries of the square as exact tensor moves, each with its exact inverse; and scales.

A symmetry moves values and never resamples them. A view may besides say at which scale the network is asked; whoever
asks it resizes what goes in and what comes out. Knows nothing about networks or how the views' results are merged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from maskloom.errors import UserError, closest
from maskloom.records import Size

SCALES = (0.25, 4.0)
"""The smallest and the largest factor of a view."""


@dataclass(frozen=True, slots=True)
class View:
    """One symmetry: first (if ``swaps``) exchange height and width, then flip rows and columns; and a scale.

    Works on the last two axes of any tensor; a view that ``swaps`` turns ``…×H×W`` into ``…×W×H``.
    """

    name: str
    swaps: bool = False
    flips_rows: bool = False
    flips_columns: bool = False
    scale: float = 1.0
    """Factor on both sides at which the network sees the moved image; see ``size_of``."""

    @property
    def is_identity(self) -> bool:
        """Whether the view leaves everything where it is, and at its size."""
        return not (self.swaps or self.flips_rows or self.flips_columns) and self.scale == 1

    def forward(self, images: Tensor) -> Tensor:
        """Returns the images as this view sees them, at their own scale.

        That is the tensor itself, or a view of it, where nothing is flipped.
        """
        return self._flipped(images.transpose(-1, -2) if self.swaps else images)

    def inverse(self, maps: Tensor) -> Tensor:
        """Returns maps of the view moved back to where the images were; exactly undoes ``forward``."""
        flipped = self._flipped(maps)
        return flipped.transpose(-1, -2) if self.swaps else flipped

    def size_of(self, size: Size, multiple: int) -> Size:
        """Returns at which (height, width) the network sees a moved image of ``size``; the same one at scale 1.

        Else ``scale`` times each side, to the nearest multiple of ``multiple`` (of two the larger), at least one: so an
        image of few multiples is seen a little wider or higher than it is.
        """
        if self.scale == 1:
            return size
        height, width = (multiple * max(1, int(side * self.scale / multiple + 0.5)) for side in size)
        return height, width

    def _flipped(self, values: Tensor) -> Tensor:
        axes = [axis for axis, flips in ((-2, self.flips_rows), (-1, self.flips_columns)) if flips]
        return values.flip(axes) if axes else values


VIEWS = {
    view.name: view
    for view in (
        View("identity"),
        View("hflip", flips_columns=True),
        View("vflip", flips_rows=True),
        View("rot180", flips_rows=True, flips_columns=True),
        View("transpose", swaps=True),
        View("rot90", swaps=True, flips_rows=True),
        View("rot270", swaps=True, flips_columns=True),
        View("antitranspose", swaps=True, flips_rows=True, flips_columns=True),
    )
}
"""The eight symmetries by name; rotations are counter-clockwise, as in ``torch.rot90(…, dims=(-2, -1))``."""

VIEW_SETS = {
    "none": ("identity",),
    "flip": ("identity", "hflip"),
    "flips": ("identity", "hflip", "vflip", "rot180"),
    "flips_transpose": ("identity", "hflip", "vflip", "transpose"),
    "symmetry": tuple(VIEWS),
    "scales": ("identity", "identity@0.75", "identity@1.25"),
    "flip_scales": ("identity", "hflip", "identity@0.75", "hflip@0.75", "identity@1.25", "hflip@1.25"),
}
"""Common sets of views; the identity comes first in each. "flips_transpose" is that of Dstl's 3rd place."""


def find_views(names: str | tuple[str, ...]) -> tuple[View, ...]:
    """Returns the views of a set ("flip") or of a list of names, in that order.

    A name is that of a symmetry, or one at a scale, as "hflip@0.75". Raises ``UserError`` for an unknown name, a scale
    that is none, a repeated view, or an empty list.
    """
    if isinstance(names, str):
        if names not in VIEW_SETS:
            raise UserError(f"views {names!r:.80}: expected the name of a set of views; {closest(names, VIEW_SETS)}")
        names = VIEW_SETS[names]
    views = tuple(map(_find, names))
    if not views or len({replace(view, name="") for view in views}) != len(views):
        raise UserError(f"views: expected at least one view and each only once, found {list(names)}")
    return views


def _find(name: str) -> View:
    symmetry, at, factor = name.partition("@")
    if symmetry not in VIEWS:
        raise UserError(f"views: unknown view {name!r}; {closest(symmetry, VIEWS)}")
    if not at:
        return VIEWS[symmetry]
    try:
        scale = float(factor)
    except ValueError:
        scale = 0.0
    if not SCALES[0] <= scale <= SCALES[1]:
        raise UserError(
            f"views: expected a factor from {SCALES[0]:g} to {SCALES[1]:g} after @, found {factor!r} in {name!r}; "
            f"write for instance {symmetry}@0.75"
        )
    return replace(VIEWS[symmetry], name=name, scale=scale)
