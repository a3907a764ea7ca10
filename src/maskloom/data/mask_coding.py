"""How the stored values of mask files become labels, checked strictly. Knows nothing about files but their names.

Labels are uint8 H×W: 0…n-1 and IGNORE. A stored value that the coding does not list is an error, never a silent class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from maskloom.errors import BadFile, UserError
from maskloom.records import IGNORE

Colour = tuple[int, int, int]
"""(red, green, blue), 0-255 each."""

NO_CLASS = 254
"""Label of multilabel mask files where no class is present; becomes 0 in every map."""

_MAX_NAMED = 8  # values or colours that a message lists


@dataclass(frozen=True, kw_only=True)
class MaskCoding:
    """How the stored values of mask files become labels.

    ``foreground``: stored > ``above`` becomes 1, the rest 0 (instance ids, JPEG masks; colours by any channel).
    ``values``: (stored value, label) pairs. ``colours``: (colour, label) pairs. ``ignore`` and ``ignore_colours``
    list what becomes IGNORE. Any other value is an error.
    """

    kind: Literal["foreground", "values", "colours"] = "foreground"
    above: int = 0
    values: tuple[tuple[int, int], ...] = ()
    colours: tuple[tuple[Colour, int], ...] = ()
    ignore: tuple[int, ...] = ()
    ignore_colours: tuple[Colour, ...] = ()

    def __post_init__(self) -> None:
        if any(not 0 <= label <= IGNORE for _, label in (*self.values, *self.colours)):
            raise UserError("a mask coding has labels of 0 to 255")

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {
            "kind": self.kind,
            "above": self.above,
            "values": [list(pair) for pair in self.values],
            "colours": [[list(colour), label] for colour, label in self.colours],
            "ignore": list(self.ignore),
            "ignore_colours": [list(colour) for colour in self.ignore_colours],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> MaskCoding:
        """Returns the coding that ``to_json`` described; raises ``KeyError`` or ``TypeError`` for anything else."""
        return cls(
            kind=values["kind"],
            above=int(values["above"]),
            values=tuple((int(value), int(label)) for value, label in values["values"]),
            colours=tuple((_colour(colour), int(label)) for colour, label in values["colours"]),
            ignore=tuple(int(value) for value in values["ignore"]),
            ignore_colours=tuple(_colour(colour) for colour in values["ignore_colours"]),
        )


def _colour(values: Iterable[int]) -> Colour:
    red, green, blue = (int(value) for value in values)
    return red, green, blue


def apply(coding: MaskCoding, stored: np.ndarray, path: Path) -> np.ndarray:
    """Returns labels (uint8 H×W) of the stored values H×W or colours H×W×3.

    Raises ``BadFile`` naming the values that the coding does not list, how many pixels have them, and what it lists.
    """
    if coding.kind == "foreground":
        return _apply_foreground(coding, stored)
    if coding.kind == "colours":
        return _apply_colours(coding, stored, path)
    return _apply_values(coding, single_channel(stored, path), path)


def apply_known(coding: MaskCoding, stored: np.ndarray, is_valid: np.ndarray | None, path: Path) -> np.ndarray:
    """Returns labels of the stored values as ``apply`` does, of which a file knows those where bool H×W ``is_valid``.

    The others are ``IGNORE``, unless the coding names their value (for "foreground": as background): GDAL writes the
    nodata value 0 where 0 is background. None: the file knows all. Raises ``BadFile`` for fractions, too.
    """
    if coding.kind == "values":
        stored = single_channel(stored, path)
    hidden = None if is_valid is None or is_valid.all() else ~is_valid & ~_is_named(coding, stored)
    if hidden is not None:
        stored = stored.copy()
        stored[hidden] = _any_named(coding)
    if stored.dtype.kind == "f":
        stored = whole_numbers(stored, path)
    labels = apply(coding, stored, path)
    if hidden is not None:
        labels[hidden] = IGNORE
    return labels


def whole_numbers(stored: np.ndarray, path: Path) -> np.ndarray:
    """Returns floats as int64; raises ``BadFile`` for others than whole numbers of 25 bits."""
    if not np.array_equal(stored, np.rint(stored)) or np.abs(stored).max(initial=0) > 2**24:
        raise BadFile(path, "expected whole numbers as labels in a mask, found fractions; store it as integers")
    return stored.astype(np.int64)


def _is_named(coding: MaskCoding, stored: np.ndarray) -> np.ndarray:
    """Returns where stored values H×W or colours H×W×3 have a meaning in the coding; any foreground has none."""
    if coding.kind == "foreground":
        highest = stored if stored.ndim == 2 else stored.max(axis=2)
        named: np.ndarray = (highest >= 0) & (highest <= coding.above)
    elif coding.kind == "values":
        named = np.isin(stored, [*(value for value, _ in coding.values), *coding.ignore])
    else:
        colours = stored if stored.ndim == 3 else np.repeat(stored[:, :, None], 3, axis=2)
        named = np.isin(packed_colours(colours), [pack(colour) for colour, _ in coding.colours])
    return named


def _any_named(coding: MaskCoding) -> int | Colour:
    """Returns a value, or colour, that the coding knows."""
    if coding.kind == "colours":
        return coding.colours[0][0]
    return coding.values[0][0] if coding.kind == "values" else 0


def single_channel(stored: np.ndarray, path: Path) -> np.ndarray:
    """Returns the stored values H×W, also of a grey mask that was saved as RGB; raises ``BadFile`` for real colours."""
    if stored.ndim == 2:
        return stored
    if not is_grey(stored):
        raise BadFile(path, "expected a mask of labels, found colours; list them in classes.yaml (name: [r, g, b])")
    return stored[:, :, 0]


def is_grey(stored: np.ndarray) -> bool:
    """Returns whether the three channels of H×W×3 are equal everywhere."""
    return bool(np.array_equal(stored[:, :, 0], stored[:, :, 1]) and np.array_equal(stored[:, :, 0], stored[:, :, 2]))


def _apply_foreground(coding: MaskCoding, stored: np.ndarray) -> np.ndarray:
    highest = stored if stored.ndim == 2 else stored.max(axis=2)
    labels = (highest > coding.above).astype(np.uint8)
    if coding.ignore and (stored.ndim == 2 or is_grey(stored)):
        labels[np.isin(highest, coding.ignore)] = IGNORE
    for colour in coding.ignore_colours if stored.ndim == 3 else ():
        labels[(stored == colour).all(axis=2)] = IGNORE
    return labels


def _apply_values(coding: MaskCoding, stored: np.ndarray, path: Path) -> np.ndarray:
    table = _value_table(coding)
    if stored.dtype == np.uint8:
        labels = table[:256][stored]
    else:
        outside = (stored < 0) | (stored >= len(table))
        labels = table[np.where(outside, 0, stored)]
        labels[outside] = -1
    if labels.size and labels.min() < 0:
        expected = [*(value for value, _ in coding.values), *coding.ignore]
        raise _unexpected(path, stored[labels < 0], expected, str)
    result: np.ndarray = labels.astype(np.uint8)
    return result


@lru_cache(maxsize=16)
def _value_table(coding: MaskCoding) -> np.ndarray:
    """Returns labels by stored value, int16, -1 where the coding lists nothing."""
    pairs = [*coding.values, *((value, IGNORE) for value in coding.ignore)]
    table = np.full(max(256, 1 + max((value for value, _ in pairs), default=0)), -1, np.int16)
    for value, label in pairs:
        table[value] = label
    return table


def _apply_colours(coding: MaskCoding, stored: np.ndarray, path: Path) -> np.ndarray:
    if stored.ndim == 2:
        if stored.dtype != np.uint8:
            raise BadFile(path, f"expected a mask of 8-bit colours, found one band of {stored.dtype}")
        stored = np.repeat(stored[:, :, None], 3, axis=2)
    pairs = sorted((pack(colour), label) for colour, label in _colour_pairs(coding))
    codes, labels = (np.array(column) for column in zip(*pairs, strict=True))
    packed = packed_colours(stored)
    places = np.minimum(np.searchsorted(codes, packed), len(codes) - 1)
    wrong = codes[places] != packed
    if wrong.any():
        expected = [pack(colour) for colour, _ in _colour_pairs(coding)]
        problem = _unexpected(path, packed[wrong], expected, colour_text)
        row, column = divmod(int(wrong.argmax()), wrong.shape[1])
        first = f"the first is {colour_text(int(packed[row, column]))} in row {row}, column {column}"
        raise BadFile(path, f"{problem.reason} ({first})")
    result: np.ndarray = labels.astype(np.uint8)[places]
    return result


def _colour_pairs(coding: MaskCoding) -> tuple[tuple[Colour, int], ...]:
    return (*coding.colours, *((colour, IGNORE) for colour in coding.ignore_colours))


def pack(colour: Colour) -> int:
    """Returns the colour as one number, 0xRRGGBB."""
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def packed_colours(stored: np.ndarray) -> np.ndarray:
    """Returns H×W int32 of 0xRRGGBB for H×W×3 uint8."""
    wide = stored.astype(np.int32)
    return wide[:, :, 0] << 16 | wide[:, :, 1] << 8 | wide[:, :, 2]


def colour_text(packed: int) -> str:
    """Returns ``(r, g, b)``."""
    return str((packed >> 16, packed >> 8 & 255, packed & 255))


def _unexpected(path: Path, wrong: np.ndarray, expected: list[int], text: Callable[[int], str]) -> BadFile:
    values, counts = np.unique(wrong, return_counts=True)
    most = np.argsort(-counts, kind="stable")[:_MAX_NAMED]
    found = ", ".join(f"{text(int(values[place]))} in {counts[place]:,} pixels" for place in most)
    known = ", ".join(text(value) for value in expected[: 2 * _MAX_NAMED])
    more = ", …" if len(values) > _MAX_NAMED else ""
    known += ", …" if len(expected) > 2 * _MAX_NAMED else ""
    return BadFile(
        path,
        f"expected the mask values {known}, found {found}{more}; mend the mask, or list its values in classes.yaml",
    )
