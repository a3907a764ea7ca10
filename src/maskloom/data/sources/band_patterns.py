"""Which files make one image, by their names: patterns with a place for the image's id, and what fits them.

Knows nothing about what is in files, nor whether they are there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import field_validator, model_validator

from maskloom.config import Config

RASTER_SUFFIXES = (".tif", ".tiff")
"""Of files that are stacked, in lower case."""

PLACE = "<id>"
"""In a pattern, the place of an image's id."""
_PARTS = re.compile(r"<id>|[*?]")


class BandPattern(Config):
    """One of the files that every image is made of: a path, or a path and how its pixels are resampled."""

    file: str
    """Its path below the folder of images, with `<id>` in the place of the image's id; `*` is any part of a name."""
    resampling: Literal["nearest", "bicubic"] = "bicubic"
    """How it is brought to the grid of the first file."""

    @model_validator(mode="before")
    @classmethod
    def _alone(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str) else value

    @field_validator("file")
    @classmethod
    def _below_the_folder(cls, value: str) -> str:
        path = PurePosixPath(value)
        if PLACE not in value:
            raise ValueError("expected <id> in the place of the image's id, as in <id>/B02.tif or <id>_B02.tif")
        if path.is_absolute() or ".." in path.parts or "\\" in value:
            raise ValueError("expected a path below the folder of images, with / between folders")
        if path.suffix.lower() not in RASTER_SUFFIXES:
            raise ValueError("expected TIFF files (.tif, .tiff); convert others (gdal_translate in.jp2 out.tif)")
        return path.as_posix()

    def id_of(self, name: str) -> str | None:
        """Returns the id of the image that a file of this name (with / between folders) belongs to, None if to none."""
        match = _expression(self.file).fullmatch(name)
        return None if match is None else match["id"]

    def name_for(self, image: str) -> str:
        """Returns the name of the file of the image with this id, open where the pattern is."""
        return self.file.replace(PLACE, image)

    @property
    def num_letters(self) -> int:
        """How many letters of a name the pattern states."""
        return len(_PARTS.sub("", self.file))


@lru_cache(maxsize=256)
def _expression(pattern: str) -> re.Pattern[str]:
    found, last = "", 0
    for part in _PARTS.finditer(pattern):
        found += re.escape(pattern[last : part.start()])
        if part[0] == PLACE:
            found += "(?P=id)" if "(?P<id>" in found else "(?P<id>.+)"
        else:
            found += "[^/]*" if part[0] == "*" else "[^/]"
        last = part.end()
    return re.compile(found + re.escape(pattern[last:]))


def different(patterns: list[BandPattern]) -> list[BandPattern]:
    """Returns the patterns; raises ``ValueError`` where a file is named twice."""
    names = [pattern.file for pattern in patterns]
    if again := next((name for name in names if names.count(name) > 1), ""):
        raise ValueError(f"expected every file once, found {again} again")
    return patterns


def by_image(
    names: Iterable[str], patterns: Sequence[BandPattern]
) -> tuple[dict[str, tuple[list[str], ...]], list[str]]:
    """Returns the names that fit each of the patterns by the image's id, sorted, and the names that fit none.

    A name that fits several belongs to the one that states most of its letters: beside ``<id>_B05.tif``, the pattern
    ``<id>.tif`` makes no image of ``north_B05.tif``.
    """
    ordered = sorted(range(len(patterns)), key=lambda number: -patterns[number].num_letters)
    found: dict[str, tuple[list[str], ...]] = {}
    others: list[str] = []
    for name in names:
        for number in ordered:
            image = patterns[number].id_of(name)
            if image is not None:
                found.setdefault(image, tuple([] for _ in patterns))[number].append(name)
                break
        else:
            others.append(name)
    return dict(sorted(found.items())), others
