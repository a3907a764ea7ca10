"""The task and the mask coding guessed from the masks themselves, with the guess in words.

A sample of masks is read. Two stored values are a binary task; few label values that (nearly) fill a range, or few
colours, are classes; many values are instance ids and so one foreground class. Every guess is meant to be said
aloud, and ``classes.yaml`` overrules it. What a file calls nodata is no value, but for 0, which often is background and
nodata at once, and where too few values would be left. Knows nothing about folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskloom.data.image_headers import read_header
from maskloom.data.mask_coding import NO_CLASS, Colour, MaskCoding, is_grey, packed_colours, whole_numbers
from maskloom.data.mask_files import read_stored
from maskloom.errors import BadFile, UserError
from maskloom.records import Task, TaskKind

SAMPLE = 64
"""Masks read for a guess, spread evenly over all."""
LARGE_SAMPLE = 512
"""Masks read once the guess is classes, so that a rare class is not missed."""

_MAX_CLASSES = 32  # more different values than this are instance ids
_FILLED = 0.75  # share of a range that label values fill at least; instance ids of a few images leave larger gaps
_VOID = 255  # by wide custom (PASCAL VOC, Cityscapes) the value of pixels that do not count
_MAX_VALUE = 65535  # that a coding can ignore by its number; the files say so of others themselves
_JPEG_THRESHOLD = 127  # compression blurs 0 and 255 into everything between


@dataclass(frozen=True, kw_only=True)
class Guess:
    """What the masks seem to be; ``note`` says it in one sentence with its evidence."""

    task: Task
    coding: MaskCoding
    note: str


@dataclass(frozen=True, slots=True)
class _Seen:
    """Values of the sampled masks: per file the stored values, or packed colours where any file is coloured.

    ``nodata`` are those that files call so, and no file uses otherwise; they are not among the others.
    """

    files: tuple[frozenset[int], ...]
    coloured: bool
    lossy: bool
    nodata: frozenset[int] = frozenset()

    @property
    def values(self) -> list[int]:
        """The values of all files together, ascending."""
        return sorted(frozenset().union(*self.files))


def infer_coding(paths: Sequence[Path], *, task: TaskKind | None = None, ignore: Sequence[int] = ()) -> Guess:
    """Returns the guess for these mask files; a stated ``task`` and stated ``ignore`` values are kept to.

    Damaged masks are passed over here (reading them will report them). Raises ``BadFile`` when none of the sample can
    be read, ``UserError`` when the masks contradict the stated task, or hold colours or blurred values of which
    none can be ignored by its number.
    """
    seen = _look(_spread(paths, SAMPLE))
    guess = _guess(seen, task, ignore)
    if guess.task.kind != "binary" and len(paths) > SAMPLE:
        seen = _look(_spread(paths, LARGE_SAMPLE))
        guess = _guess(seen, task, ignore)
    total = f"{len(seen.files)} of {len(paths)} masks read" if len(seen.files) < len(paths) else "all masks read"
    note = f"guessed from the masks ({total}): {guess.note}; state it in classes.yaml if this is wrong"
    return Guess(task=guess.task, coding=guess.coding, note=note)


def _spread(paths: Sequence[Path], count: int) -> list[Path]:
    if len(paths) <= count:
        return list(paths)
    return [paths[round(place * (len(paths) - 1) / (count - 1))] for place in range(count)]


def _look(paths: Sequence[Path]) -> _Seen:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(_values_of, paths))
    good = [entry for entry in found if not isinstance(entry, BadFile)]
    if not good:
        problems = [entry for entry in found if isinstance(entry, BadFile)]
        raise problems[0] if problems else UserError("expected masks to look at, found none")
    coloured = any(entry.coloured for entry in good)
    if coloured:
        good = [entry.as_colours() for entry in good]
    used, hidden = (
        frozenset[int]().union(*sets) for sets in zip(*((one.used, one.hidden) for one in good), strict=True)
    )
    nodata = hidden - used - {0}
    if len((used | hidden) - nodata) < 2:
        nodata = frozenset()
    files = tuple(entry.used | (entry.hidden - nodata) for entry in good)
    return _Seen(files, coloured, any(entry.lossy for entry in good), nodata)


@dataclass(frozen=True, slots=True)
class _File:
    """The different values of a mask, those ``used`` and those of pixels that it does not know, or packed colours."""

    used: frozenset[int]
    hidden: frozenset[int]
    coloured: bool
    lossy: bool

    def as_colours(self) -> _File:
        if self.coloured:
            return self
        used, hidden = (frozenset(value * 0x010101 for value in values) for values in (self.used, self.hidden))
        return _File(used, hidden, True, self.lossy)


def _values_of(path: Path) -> _File | BadFile:
    """Returns what a file holds; NaN and fractions that it calls nodata are left out."""
    try:
        lossy = read_header(path).format == "jpeg"
        stored, is_valid = read_stored(path)
        coloured = stored.ndim == 3 and not is_grey(stored)
        single = packed_colours(stored) if coloured else stored if stored.ndim == 2 else stored[:, :, 0]
        used = single.ravel() if is_valid is None else single[is_valid]
        if used.dtype.kind == "f":
            used = whole_numbers(used, path)
    except BadFile as problem:
        return problem
    hidden = np.unique(single[~is_valid]) if is_valid is not None else np.zeros(0, np.int64)
    hidden = hidden[np.isfinite(hidden) & (hidden == np.rint(hidden))]
    return _File(_different(used, coloured), frozenset(map(int, hidden.tolist())), coloured, lossy)


def _different(values: np.ndarray, coloured: bool) -> frozenset[int]:
    if coloured:
        present = np.zeros(1 << 24, bool)
        present[values] = True
        return frozenset(np.flatnonzero(present).tolist())
    found = np.flatnonzero(np.bincount(values)) if values.dtype == np.uint8 else np.unique(values)
    return frozenset(found.tolist())


def _guess(seen: _Seen, task: TaskKind | None, ignore: Sequence[int]) -> Guess:
    lossy = seen.lossy and len(seen.values) > 2
    if ignore and (lossy or seen.coloured):
        what, remedy = (
            ("JPEG files, whose compression blurs values", "export the masks as PNG")
            if lossy
            else ("colours", "state the colour in classes.yaml (ignore: [r, g, b])")
        )
        raise UserError(f"ignore {', '.join(map(str, ignore))}: expected masks of label values, found {what}; {remedy}")
    if lossy:
        return _lossy(task)
    if seen.coloured:
        return _colours(seen, task)
    nodata = sorted(value for value in seen.nodata if 0 <= value <= _MAX_VALUE and value not in ignore)
    values = [value for value in seen.values if value not in ignore]
    ignored = (*ignore, *nodata)
    if task is None and values and values[0] < 0:
        raise UserError(f"the masks hold negative values ({values[0]} …): state the classes in classes.yaml")
    if task != "binary" and _VOID not in ignored and _is_void(seen, values):
        values, ignored = [value for value in values if value != _VOID], (*ignored, _VOID)
    if task == "binary" or (task is None and not _are_classes(values)):
        return _one_foreground(values, ignored)
    if task is None and len(values) == 2:
        return _two_values(values, ignored)
    return _label_values(values, ignored, task or "multiclass")


def _is_void(seen: _Seen, values: list[int]) -> bool:
    """Whether 255 stands for pixels that do not count: beside two or more label values, in one and the same file.

    Masks of 0/1 mixed with masks of 0/255 are binary, so {0, 1, 255} must occur together at least once.
    """
    others = [value for value in values if value < _VOID]
    together = any(_VOID in file and len(file) > 2 for file in seen.files)
    return _VOID in values and len(others) == len(values) - 1 >= 2 and _are_classes(others) and together


def _are_classes(values: Sequence[int]) -> bool:
    if len(values) <= 2:
        return len(values) == 2
    return len(values) <= _MAX_CLASSES and len(values) >= _FILLED * (values[-1] - values[0] + 1) and values[0] <= 1


def _one_foreground(values: Sequence[int], ignored: tuple[int, ...]) -> Guess:
    if len(values) == 2:
        return _two_values(values, ignored)
    task = Task(kind="binary", classes=("foreground",))
    if len(values) > 2:
        reason = f"{len(values)} different values {values[0]}…{values[-1]}, taken for instance ids"
    else:
        reason = f"only the value {values[0]}" if values else "no values"
    note = f"{reason}, so binary: every value above 0 is the one foreground class"
    return Guess(task=task, coding=MaskCoding(kind="foreground", ignore=ignored), note=note + _said(ignored))


def _two_values(values: Sequence[int], ignored: tuple[int, ...]) -> Guess:
    low, high = values
    coding = MaskCoding(kind="values", values=((low, 0), (high, 1)), ignore=ignored)
    note = f"two values, so binary: {low} is background, {high} is foreground"
    return Guess(task=Task(kind="binary", classes=("foreground",)), coding=coding, note=note + _said(ignored))


def _label_values(values: Sequence[int], ignored: tuple[int, ...], kind: TaskKind) -> Guess:
    if values and len(values) >= _FILLED * (values[-1] - values[0] + 1):
        values = [value for value in range(values[0], values[-1] + 1) if value not in ignored]  # a rare class may lack
    background = ((0, NO_CLASS),) if kind == "multilabel" and 0 in values else ()
    stored = [value for value in values if not (background and value == 0)]
    if not (1 if kind == "multilabel" else 2) <= len(stored) <= 250:
        raise UserError(f"the masks hold {len(stored)} label values, which does not fit the stated task {kind}")
    coding = MaskCoding(
        kind="values",
        values=(*background, *((value, label) for label, value in enumerate(stored))),
        ignore=ignored,
    )
    note = f"the label values {stored[0]}…{stored[-1]}, so {kind} with {len(stored)} classes"
    task = Task(kind=kind, classes=tuple(f"class_{value}" for value in stored))
    return Guess(task=task, coding=coding, note=note + _said(ignored))


def _said(ignored: tuple[int, ...]) -> str:
    return f"; pixels of {', '.join(map(str, ignored))} are ignored" if ignored else ""


def _colours(seen: _Seen, task: TaskKind | None) -> Guess:
    colours = seen.values
    unpacked = [(value >> 16, value >> 8 & 255, value & 255) for value in colours]
    if task in (None, "binary") and len(colours) == 2:
        coding = MaskCoding(kind="colours", colours=((unpacked[0], 0), (unpacked[1], 1)))
        note = f"two colours, so binary: {unpacked[0]} is background, {unpacked[1]} is foreground"
        return Guess(task=Task(kind="binary", classes=("foreground",)), coding=coding, note=note)
    if task == "binary" or (task is None and len(colours) > _MAX_CLASSES):
        note = f"{len(colours)} colours, taken for instances, so binary: every colour but black is foreground"
        return Guess(task=Task(kind="binary", classes=("foreground",)), coding=MaskCoding(), note=note)
    if len(colours) > 250:
        raise UserError(f"the masks hold {len(colours)} colours: state those that are classes in classes.yaml")
    background: tuple[tuple[Colour, int], ...] = (((0, 0, 0), NO_CLASS),) if task == "multilabel" else ()
    stored = [colour for colour in unpacked if not (background and colour == (0, 0, 0))]
    coding = MaskCoding(
        kind="colours", colours=(*background, *((colour, label) for label, colour in enumerate(stored)))
    )
    names = tuple(f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in stored)
    kind: TaskKind = task or "multiclass"
    note = f"{len(stored)} colours ({', '.join(names[:6])}{', …' * (len(names) > 6)}), so {kind} with a class for each"
    return Guess(task=Task(kind=kind, classes=names), coding=coding, note=note)


def _lossy(task: TaskKind | None) -> Guess:
    if task not in (None, "binary"):
        raise UserError(f"{task} masks cannot be JPEG files, whose compression blurs the labels; export them as PNG")
    note = f"JPEG files, whose compression blurs values, so binary: above {_JPEG_THRESHOLD} is foreground"
    coding = MaskCoding(kind="foreground", above=_JPEG_THRESHOLD)
    return Guess(task=Task(kind="binary", classes=("foreground",)), coding=coding, note=note)
