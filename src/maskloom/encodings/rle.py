"""Masks as run lengths: ``start length`` text of contests, and COCO's counts, plain or compressed.

A mask here is a bool array H×W. Text says where each run of foreground starts and how long it is; pixels are counted
along rows (``order="row"``) or down columns (``"column"``), from ``base`` 0 or 1. COCO counts pixels down columns and
lists the lengths of background and foreground runs in turn. Knows nothing about tables, files or classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from maskloom.errors import UserError
from maskloom.records import Size

Order = Literal["row", "column"]
Base = Literal[0, 1]

_TEXT_ALPHABET = frozenset("0123456789 \t\r\n")
_FEW_RUNS = 20_000  # below this, filling slices in a loop is quicker than a cumulative sum over all pixels
_LARGEST_MASK = 2**32  # pixels; COCO counts are 32 bits wide


# Runs ---------------------------------------------------------------------------------------------------------------


def foreground_runs(mask: np.ndarray, *, order: Order = "row") -> tuple[np.ndarray, np.ndarray]:
    """Returns the zero-based starts and ends (exclusive) of the foreground runs, int64, in ascending order."""
    mask = _checked(mask)
    changes = _row_changes(mask) if order == "row" else _column_changes(mask, mask.shape[0])
    return changes[0::2], changes[1::2]


def fill_runs(starts: np.ndarray, ends: np.ndarray, size: Size, *, order: Order = "row") -> np.ndarray:
    """Returns the bool mask H×W whose foreground runs are [start, end); the runs must be sorted, apart and inside."""
    height, width = size
    flat = np.zeros(height * width, bool)
    if len(starts) < _FEW_RUNS:
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            flat[start:end] = True
    else:
        steps = np.zeros(height * width + 1, np.int8)
        np.add.at(steps, starts, 1)
        np.add.at(steps, ends, -1)
        np.cumsum(steps[:-1], dtype=np.int8, out=flat.view(np.int8))
    if order == "row":
        return flat.reshape(height, width)
    return np.ascontiguousarray(flat.reshape(width, height).T)


def _checked(mask: np.ndarray) -> np.ndarray:
    if mask.ndim != 2 or mask.dtype != bool:
        raise ValueError(f"expected a bool mask H×W, got {mask.dtype} {mask.shape}")
    return np.ascontiguousarray(mask)


def _row_changes(mask: np.ndarray) -> np.ndarray:
    """Returns where the mask changes along rows, with an even number of entries: start, end, start, end, …"""
    flat = mask.reshape(-1)
    inner = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    first = [0] if flat.size and flat[0] else []
    last = [flat.size] if flat.size and flat[-1] else []
    return np.concatenate([np.array(first, np.int64), inner, np.array(last, np.int64)])


def _column_changes(mask: np.ndarray, height: int, top: int = 0, left: int = 0) -> np.ndarray:
    """Returns where the mask changes down columns, start, end, start, …; avoids the slow transposed copy.

    ``mask`` may be a window at (top, left) of an image of this height; positions are those of the image.
    """
    rows, columns = np.divmod(np.flatnonzero(mask[1:] != mask[:-1]), mask.shape[1])
    inner = (columns + left) * height + rows + 1 + top
    starts = (np.flatnonzero(mask[0]) + left) * height + top
    ends = (np.flatnonzero(mask[-1]) + left) * height + top + mask.shape[0]
    changes = np.sort(np.concatenate([inner, starts, ends]))
    # A run that reaches the foot of one column and goes on at the head of the next ends and starts at one position.
    same = np.flatnonzero(changes[1:] == changes[:-1])
    return np.delete(changes, np.concatenate([same, same + 1])) if len(same) else changes


# Text ---------------------------------------------------------------------------------------------------------------


def encode_runs(mask: np.ndarray, *, order: Order = "row", base: Base = 1) -> str:
    """Returns ``"start length start length …"`` of a bool mask H×W; an empty mask is the empty text.

    >>> encode_runs(np.array([[False, True, True], [False, False, True]]))
    '2 2 6 1'
    """
    starts, ends = foreground_runs(mask, order=order)
    pairs = np.stack([starts + base, ends - starts], axis=1)
    return " ".join(map(str, pairs.reshape(-1).tolist()))


def decode_runs(text: str, size: Size, *, order: Order = "row", base: Base = 1) -> np.ndarray:
    """Returns the bool mask H×W that ``start length …`` text describes; empty text is an empty mask.

    Raises ``UserError`` for an odd count, anything but whole numbers, a length of 0, runs that overlap or are not
    in ascending order, and runs outside the image.
    """
    return fill_runs(*_runs_inside(text, size, base), size, order=order)


def check_runs(text: str, size: Size, *, base: Base = 1) -> None:
    """Raises ``UserError`` where ``decode_runs`` would, in either order, without making a mask."""
    _runs_inside(text, size, base)


def _runs_inside(text: str, size: Size, base: Base) -> tuple[np.ndarray, np.ndarray]:
    """Returns zero-based starts and ends that are sorted, apart and inside an image of the size."""
    starts, ends = _parse_text(text)
    starts, ends = starts - base, ends - base
    if len(starts):
        _check_inside(int(starts[0]), int(ends[-1]), size, base)
    return starts, ends


def _check_inside(first: int, end: int, size: Size, base: Base) -> None:
    pixels = size[0] * size[1]
    if first < 0:
        raise UserError(
            f"run lengths: expected starts from {base} on, found a run at {first + base}; are they counted from 0?"
        )
    if end > pixels:
        raise UserError(
            f"run lengths: expected runs within the {pixels} pixels of {size[1]}×{size[0]} (width×height), found one "
            f"that ends at {end}; check the image's size, and whether pixels are counted from {1 - base}"
        )


def _parse_text(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns starts and ends (start + length) as written, after all checks that need no size."""
    if not set(text) <= _TEXT_ALPHABET:
        odd = next(word for word in re.split("[ \t\r\n]", text) if not set(word) <= _TEXT_ALPHABET)
        raise UserError(f"run lengths: expected whole numbers 'start length …', found {odd[:40]!r}; mend the table")
    words = text.split()
    if len(words) % 2:
        raise UserError(f"run lengths: expected pairs 'start length', found {len(words)} numbers; is the text cut off?")
    if any(len(word) > 18 for word in words):
        raise UserError("run lengths: expected positions inside an image, found a number of more than 18 digits")
    numbers = np.fromiter(map(int, words), np.int64, len(words)).reshape(-1, 2)
    starts, ends = numbers[:, 0], numbers[:, 0] + numbers[:, 1]
    if len(numbers) and numbers[:, 1].min() < 1:
        raise UserError("run lengths: expected lengths of at least 1, found 0; leave empty runs out")
    overlap = np.flatnonzero(starts[1:] < ends[:-1])
    if len(overlap):
        at = int(overlap[0])
        raise UserError(
            "run lengths: expected ascending runs that do not overlap, found "
            f"'{starts[at]} {ends[at] - starts[at]}' followed by '{starts[at + 1]} {ends[at + 1] - starts[at + 1]}'"
        )
    return starts, ends


# Recognising how text is to be read ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to read ``start length`` text."""

    order: Order
    base: Base

    def __str__(self) -> str:
        way = "along rows" if self.order == "row" else "down columns"
        return f"{way} from {self.base} (order {self.order}, base {self.base})"


def possible_readings(
    runs: Iterable[tuple[str, Size]],
    *,
    orders: Sequence[Order] = ("row", "column"),
    bases: Sequence[Base] = (0, 1),
) -> tuple[Reading, ...]:
    """Returns the readings under which every text is valid; one left means recognised, none means contradiction.

    ``runs`` pairs each text with the size of its image; ``orders`` and ``bases`` narrow the choice to what is
    stated. A run at position 0 excludes base 1, a run up to position H·W excludes base 0. Both orders are always
    valid, so the order has to be stated, unless it makes no difference: where every mask is empty, full, or one pixel
    high or wide, only the first of ``orders`` is returned, and likewise of ``bases`` where every mask is empty.
    Raises ``UserError`` for text that no reading accepts.
    """
    allowed = set(bases)
    any_text, order_matters = False, False
    for text, size in runs:
        starts, ends = _parse_text(text)
        if not len(starts):
            continue
        any_text = True
        pixels = size[0] * size[1]
        first, end = int(starts[0]), int(ends[-1])
        if end - min(first, 1) > pixels:
            _check_inside(0, end - min(first, 1), size, 0 if first == 0 else 1)
        if first == 0:
            allowed.discard(1)
        if end == pixels + 1:
            allowed.discard(0)
        order_matters |= min(size) > 1 and int((ends - starts).sum()) < pixels
    left = [base for base in bases if base in allowed]
    return tuple(
        Reading(order, base)
        for order in (orders if order_matters else orders[:1])
        for base in (left if any_text else left[:1])
    )


# COCO ---------------------------------------------------------------------------------------------------------------


def coco_encode(mask: np.ndarray, corner: tuple[int, int] = (0, 0), size: Size | None = None) -> dict[str, Any]:
    """Returns ``{"size": [height, width], "counts": text}`` of a bool mask, equal to pycocotools' ``encode``.

    With ``corner`` (top, left) and ``size`` the image is empty but for the mask there; that costs as much as the mask
    is large, whatever the image: for the many small components of one photo.
    """
    mask = _checked(mask)
    size = (mask.shape[0], mask.shape[1]) if size is None else size
    if corner[0] + mask.shape[0] > size[0] or corner[1] + mask.shape[1] > size[1] or min(corner) < 0:
        raise ValueError(f"window {mask.shape} at {corner} reaches outside the image {size}")
    changes = _column_changes(mask, size[0], *corner)
    counts = np.diff(changes, prepend=0, append=size[0] * size[1])
    if len(changes) and changes[-1] == size[0] * size[1]:
        counts = counts[:-1]
    return {"size": [int(size[0]), int(size[1])], "counts": _compress(counts)}


def coco_decode(rle: Mapping[str, Any]) -> np.ndarray:
    """Returns the bool mask H×W of COCO run lengths, compressed text or a list of counts, as pycocotools' ``decode``.

    Raises ``UserError`` when size or counts are malformed or the counts do not add up to height·width.
    """
    starts, ends, size = coco_runs(rle)
    return fill_runs(starts, ends, size, order="column")


def coco_runs(rle: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, Size]:
    """Returns the starts and ends of the foreground runs, counted down columns from 0, and the size.

    Costs as much as there are runs, whatever the image's size. Raises ``UserError`` as ``coco_decode`` does.
    """
    size = _coco_size(rle)
    counts = rle.get("counts")
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    if isinstance(counts, str):
        lengths = _decompress(counts)
    elif isinstance(counts, list) and all(type(count) is int and 0 <= count < _LARGEST_MASK for count in counts):
        lengths = np.array(counts, np.int64)
    else:
        raise UserError("COCO run lengths: expected 'counts' as text or a list of whole numbers, found something else")
    if len(lengths) and lengths.min() < 0:
        raise UserError("COCO run lengths: expected counts of at least 0, found a negative one; is the text damaged?")
    total = int(lengths.sum())
    if total != size[0] * size[1]:
        raise UserError(
            f"COCO run lengths: expected counts that add up to {size[0] * size[1]} ({size[0]} high, {size[1]} wide), "
            f"found {total}; is the text cut off, or its size wrong?"
        )
    positions = np.cumsum(lengths)
    ends = positions[1::2]
    return positions[0::2][: len(ends)], ends, size


def _coco_size(rle: Mapping[str, Any]) -> Size:
    size = rle.get("size")
    is_pair = isinstance(size, list | tuple) and len(size) == 2 and all(type(side) is int for side in size)
    if not is_pair or min(size) < 1 or size[0] * size[1] >= _LARGEST_MASK:  # type: ignore[arg-type,index]
        raise UserError(f"COCO run lengths: expected 'size' as [height, width], found {size!r}")
    return size[0], size[1]  # type: ignore[index]


def _compress(counts: np.ndarray) -> str:
    """Returns COCO's text: each count but the first three minus the one two before, in groups of 5 bits, low first.

    Bit 6 of a character says that more follow; the last group's top bit is the sign (cocoapi, ``rleToString``).
    """
    values = counts.astype(np.int64)
    values[3:] -= counts[1:-2]
    characters: list[np.ndarray] = []
    written: list[np.ndarray] = []
    more = np.ones(len(values), bool)
    while more.any():
        group = values & 31
        values = values >> 5
        written.append(more)
        more = more & np.where(group & 16, values != -1, values != 0)
        characters.append((group | np.where(more, 32, 0)) + 48)
    table = np.stack(characters, axis=1).astype(np.uint8)
    text: bytes = table[np.stack(written, axis=1)].tobytes()
    return text.decode("ascii")


def _decompress(text: str) -> np.ndarray:
    """Returns the counts of COCO's text (cocoapi, ``rleFrString``)."""
    try:
        groups = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        groups = np.array([-1])
    if not len(groups):
        return groups
    last = (groups & 32) == 0
    if groups.min() < 0 or groups.max() > 63 or not last[-1]:
        raise UserError("COCO run lengths: expected compressed counts, found damaged text; export the file again")
    ends = np.flatnonzero(last)
    firsts = np.concatenate([[0], ends[:-1] + 1])
    num_groups = ends - firsts + 1
    if num_groups.max() > 7:
        raise UserError(
            "COCO run lengths: expected counts of at most 32 bits, found a larger one; is the text damaged?"
        )
    shifts = 5 * (np.arange(len(groups)) - np.repeat(firsts, num_groups))
    values = np.add.reduceat((groups & 31) << shifts, firsts)
    values -= np.where(groups[ends] & 16, np.int64(1) << (5 * num_groups), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
