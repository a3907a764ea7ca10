"""Test-time views: the eight symmetries of the square as exact tensor moves, each with its exact inverse.

Values are moved, never resampled. Knows nothing about networks or how the views' results are merged.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from maskloom.errors import UserError, closest


@dataclass(frozen=True, slots=True)
class View:
    """One symmetry: first (if ``swaps``) exchange height and width, then flip rows and columns.

    Works on the last two axes of any tensor; a view that ``swaps`` turns ``…×H×W`` into ``…×W×H``.
    """

    name: str
    swaps: bool = False
    flips_rows: bool = False
    flips_columns: bool = False

    @property
    def is_identity(self) -> bool:
        """Whether the view leaves everything where it is."""
        return not (self.swaps or self.flips_rows or self.flips_columns)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the images as this view sees them; the tensor itself, or a view of it, where nothing is flipped."""
        return self._flipped(images.transpose(-1, -2) if self.swaps else images)

    def inverse(self, maps: Tensor) -> Tensor:
        """Returns maps of the view moved back to where the images were; exactly undoes ``forward``."""
        flipped = self._flipped(maps)
        return flipped.transpose(-1, -2) if self.swaps else flipped

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
}
"""Common sets of views; the identity comes first in each. "flips_transpose" is that of Dstl's 3rd place."""


def find_views(names: str | tuple[str, ...]) -> tuple[View, ...]:
    """Returns the views of a set ("flip") or of a list of names, in that order.

    Raises ``UserError`` for an unknown name, a repeated one, or an empty list.
    """
    if isinstance(names, str):
        if names not in VIEW_SETS:
            raise UserError(f"views {names!r}: expected the name of a set of views; {closest(names, VIEW_SETS)}")
        names = VIEW_SETS[names]
    for name in names:
        if name not in VIEWS:
            raise UserError(f"views: unknown view {name!r}; {closest(name, VIEWS)}")
    if not names or len(set(names)) != len(names):
        raise UserError(f"views: expected at least one view and each only once, found {list(names)}")
    return tuple(VIEWS[name] for name in names)
