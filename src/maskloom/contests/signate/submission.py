"""The submission of Signate's AI Edge contest: for each test photo and category, rows of pixels as segments, in JSON.

``{image: {category: {row: [[x_start, x_end], …]}}}``: names with their suffix, rows and columns from 0, both ends
inclusive; a category without pixels is absent, a photo without any is there and empty. Source:
github.com/EvgenyKashin/signate_segmentation. Files are written and read one photo at a time. Knows nothing of scores.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from maskloom.contests.signate.colours import CATEGORIES, SCORED
from maskloom.encodings.table_files import text_writer
from maskloom.errors import BadFile, UserError, closest, some_of
from maskloom.outputs.ordered import InOrder
from maskloom.records import Size

Segments = NDArray[np.int64]
"""Pixels of one category, N×3: row, first column and last column (inclusive), sorted, without overlap."""

ImageSegments = Mapping[str, Segments]
"""The segments of one image by category; a category without pixels is absent."""

_SPACE = re.compile(r"[ \t\r\n]*")
_ROW = re.compile(r"0|[1-9][0-9]{0,8}")
_LONGEST_ROW = 10**9  # pixels


# Pixels and segments ------------------------------------------------------------------------------------------------


def mask_segments(mask: np.ndarray) -> Segments:
    """Returns the segments of a bool mask H×W, the longest that there are.

    >>> mask_segments(np.array([[True, True, False, True]])).tolist()
    [[0, 0, 1], [0, 3, 3]]
    """
    if mask.ndim != 2 or mask.dtype != bool:
        raise ValueError(f"expected a bool mask H×W, got {mask.dtype} {mask.shape}")
    framed = np.zeros((mask.shape[0], mask.shape[1] + 2), np.int8)
    framed[:, 1:-1] = mask
    steps = np.diff(framed, axis=1)
    rows, firsts = np.nonzero(steps == 1)
    _, ends = np.nonzero(steps == -1)  # in the same order: along the rows
    return np.stack([rows, firsts, ends - 1], axis=1).astype(np.int64)


def segments_mask(segments: Segments, size: Size) -> np.ndarray:
    """Returns the bool mask H×W of segments; raises ``ValueError`` for one that reaches outside."""
    if len(segments) and (segments.min() < 0 or segments[:, 0].max() >= size[0] or segments[:, 2].max() >= size[1]):
        raise ValueError(f"expected segments inside {size[1]}×{size[0]} (width×height), got some outside")
    steps = np.zeros((size[0], size[1] + 1), np.int8)
    steps[segments[:, 0], segments[:, 1]] += 1  # no two begin, and no two end, at one place
    steps[segments[:, 0], segments[:, 2] + 1] -= 1
    return np.cumsum(steps[:, :-1], axis=1, dtype=np.int8).view(bool)


def label_segments(
    labels: np.ndarray, classes: Sequence[str], categories: Sequence[str] = SCORED
) -> dict[str, Segments]:
    """Returns the segments of labels H×W (uint8, a class's label is its place) of those categories that occur.

    A category that is no class has none.
    """
    present = set(np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist())
    return {
        category: mask_segments(labels == classes.index(category))
        for category in categories
        if category in classes and classes.index(category) in present
    }


# Writing ------------------------------------------------------------------------------------------------------------


class SignateWriter:
    """Writes a submission; a context manager, and nothing is left behind when its block fails.

    ``images`` are the names, with their suffix and in the file's order; they may come in any order and from several
    threads, and all must have come when the block ends.
    """

    def __init__(self, path: Path, images: Sequence[str]) -> None:
        self._path, self._images = path, images
        self._stack = ExitStack()
        self._written = 0

    def __enter__(self) -> Self:
        """Opens the file under a temporary name."""
        with ExitStack() as stack:
            self._stream = stack.enter_context(text_writer(self._path))
            self._stream.write("{")
            self._order: InOrder[str] = InOrder(self._images, self._emit, folder=self._path.parent)
            stack.callback(self._order.close)
            stack.push(self._finish)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """Puts the file in place, or removes it after an error; raises ``UserError`` when images are missing."""
        return self._stack.__exit__(kind, error, trace)

    def write(self, image: str, segments: ImageSegments) -> None:
        """Takes one image; raises ``UserError`` for one that is not expected or comes twice."""
        unknown = [category for category in segments if category not in CATEGORIES]
        if unknown:
            raise ValueError(f"{image!r}: expected categories of the contest, got {unknown}")
        rows = {
            category: _rows(segments[category])
            for category in CATEGORIES
            if category in segments and len(segments[category])
        }
        self._order.put(image, json.dumps(rows, separators=(",", ":")))

    def _emit(self, image: str, text: str) -> None:
        self._stream.write((",\n" if self._written else "\n") + json.dumps(image) + ":" + text)
        self._written += 1

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return
        if missing := self._order.missing():
            raise UserError(f"{self._path}: expected {len(self._images)} images, found none for {some_of(missing)}")
        self._stream.write("\n}\n")


def _rows(segments: Segments) -> dict[str, list[list[int]]]:
    rows: dict[str, list[list[int]]] = {}
    for row, first, last in segments.tolist():
        rows.setdefault(str(row), []).append([first, last])
    return rows


# Reading and checking -----------------------------------------------------------------------------------------------


def read_submission(path: Path) -> Iterator[tuple[str, dict[str, Segments]]]:
    """Yields the images of a submission in their order, each with its segments by category.

    Rows and segments may stand in any order; a category or a row that holds nothing is as good as absent. Raises
    ``BadFile`` for anything but the published form: an image, a category or a row that comes twice, a category that is
    none, a row that is no number, and segments that overlap, are no two whole numbers from 0 on, or end before they
    begin.
    """
    seen: set[str] = set()
    for image, content in _entries(path):
        if image in seen:
            raise BadFile(path, f"found the image {image!r} twice, expected it once")
        seen.add(image)
        if not isinstance(content, dict):
            raise BadFile(path, f"{image}: expected segments by category, found {_short(content)}")
        segments: dict[str, Segments] = {}
        for category, rows in content.items():
            if category not in CATEGORIES:
                raise BadFile(path, f"{image}: unknown category {category!r}; {closest(category, CATEGORIES)}")
            try:
                found = _segments(rows)
            except ValueError as error:
                raise BadFile(path, f"{image} {category}: {error}") from None
            if len(found):
                segments[category] = found
        yield image, segments


def _segments(rows: Any) -> Segments:
    """Returns what a category holds; raises ``ValueError`` where it is not as it should be."""
    if not isinstance(rows, dict):
        raise ValueError(f"expected lists of segments by row, found {_short(rows)}")
    found: list[tuple[int, int, int]] = []
    for row, segments in rows.items():
        if not _ROW.fullmatch(row):
            raise ValueError(f"expected the number of a row, found {row!r}")
        if not isinstance(segments, list):
            raise ValueError(f"row {row}: expected a list of segments, found {_short(segments)}")
        for segment in segments:
            if not (isinstance(segment, list) and [type(end) for end in segment] == [int, int]):
                raise ValueError(f"row {row}: expected segments [first, last] of integers, found {_short(segment)}")
            if not 0 <= segment[0] <= segment[1] < _LONGEST_ROW:
                raise ValueError(f"row {row}: expected segments [first, last] from 0 on, found {_short(segment)}")
            found.append((int(row), segment[0], segment[1]))
    array = np.array(sorted(found), np.int64).reshape(-1, 3)
    overlap = np.flatnonzero((array[1:, 0] == array[:-1, 0]) & (array[1:, 1] <= array[:-1, 2]))
    if len(overlap):
        one, other = array[overlap[0]].tolist(), array[overlap[0] + 1].tolist()
        raise ValueError(f"row {one[0]}: expected segments that do not overlap, found {one[1:]} and {other[1:]}")
    return array


def validate(path: Path, images: Mapping[str, Size], *, categories: Sequence[str] = SCORED) -> None:
    """Raises ``UserError`` unless the submission holds exactly these images, in their order and inside their sizes.

    ``images`` are names with sizes (height, width); every pixel may have one of ``categories`` at most, and no other.
    """
    expected = list(images)
    names = []
    for image, segments in read_submission(path):
        names.append(image)
        if image not in images:
            raise BadFile(path, f"found the image {image!r}, which is none of the {len(images)} expected ones")
        strange = [category for category in segments if category not in categories]
        if strange:
            raise BadFile(path, f"{image}: expected the categories {', '.join(categories)}, found {strange[0]!r}")
        check_pixels(path, image, segments, images[image])
    missing = [name for name in expected if name not in set(names)]
    if missing:
        raise BadFile(path, f"expected {len(images)} images, found none for {some_of(missing)}; predict them all")
    if names != expected:
        place = next(place for place, name in enumerate(names) if name != expected[place])
        raise BadFile(path, f"expected {expected[place]!r} as image {place + 1}, found {names[place]!r}; sort them")


def check_pixels(path: Path, image: str, segments: ImageSegments, size: Size | None = None) -> None:
    """Raises ``BadFile`` unless every pixel has one category at most and lies inside ``size``, where it is known."""
    categories = list(segments)
    for category, found in segments.items():
        if size is not None and len(found) and (found[:, 0].max() >= size[0] or found[:, 2].max() >= size[1]):
            reason = f"expected segments inside {size[1]}×{size[0]} (width×height), got some outside"
            raise BadFile(path, f"{image} {category}: {reason}")
    if not categories:
        return
    together = np.concatenate(list(segments.values()))
    owners = np.repeat(np.arange(len(categories)), [len(found) for found in segments.values()])
    order = np.lexsort((together[:, 1], together[:, 0]))
    together, owners = together[order], owners[order]
    over = np.flatnonzero((together[1:, 0] == together[:-1, 0]) & (together[1:, 1] <= together[:-1, 2]))
    if len(over):
        first, second = (categories[owners[place]] for place in (over[0], over[0] + 1))
        row, column, _ = together[over[0] + 1].tolist()
        place = f"row {row}, column {column}"
        raise BadFile(path, f"{image}: expected one category per pixel, found {second} over {first} in {place}")


# JSON, one member at a time -----------------------------------------------------------------------------------------


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields the members of the file's one JSON object; only one of them is in memory as objects at a time."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise BadFile(path, "no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile(path, f"expected JSON as UTF-8 text, found something else ({error})") from None
    reader = _Reader(path, text)
    reader.take("{")
    if reader.peek() == "}":
        reader.take("}")
        reader.end()
        return
    while True:
        name = reader.value()
        if not isinstance(name, str):
            raise BadFile(path, f"expected the name of an image, found {_short(name)}")
        reader.take(":")
        yield name, reader.value()
        if reader.take(",}") == "}":
            reader.end()
            return


class _Reader:
    """A place in a JSON text that moves on."""

    def __init__(self, path: Path, text: str) -> None:
        self._path, self._text, self._place = path, text, 0
        self._decode: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder(object_pairs_hook=_once).raw_decode

    def peek(self) -> str:
        """Returns the next character that is no space, or nothing at the end."""
        match = _SPACE.match(self._text, self._place)
        assert match is not None, "no space at all matches, too"
        self._place = match.end()
        return self._text[self._place : self._place + 1]

    def take(self, expected: str) -> str:
        """Returns the next character, one of those expected, and steps over it."""
        found = self.peek()
        if not found or found not in expected:
            wanted = " or ".join(repr(character) for character in expected)
            what = repr(found) if found else "the end of the file"
            raise BadFile(self._path, f"expected {wanted} at character {self._place}, found {what}; is it cut off?")
        self._place += 1
        return found

    def value(self) -> Any:
        """Returns the next JSON value and steps over it."""
        self.peek()
        try:
            value, self._place = self._decode(self._text, self._place)
        except _Twice as error:
            raise BadFile(self._path, str(error)) from None
        except (ValueError, RecursionError) as error:
            raise BadFile(self._path, f"expected JSON, found something else ({error}); is it cut off?") from None
        return value

    def end(self) -> None:
        """Raises ``BadFile`` unless nothing follows."""
        if self.peek():
            raise BadFile(self._path, f"expected the end of the file at character {self._place}, found more")


class _Twice(ValueError):
    """A name that stands twice in one JSON object."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Twice(f"found {twice!r} twice in one object, expected it once")
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"
