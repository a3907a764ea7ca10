"""Columns of a table that name the further files of an image: ``band``, ``band_2`` …, each with its ``resampling``.

``resampling_2`` belongs to ``band_2``: "bicubic" (unless stated) or "nearest". Knows nothing about what is in files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from maskloom.errors import BadFile, UserError, closest
from maskloom.records import BandFile

_NUMBERED = re.compile(r"(band|resampling)(?:_([1-9][0-9]{0,3}))?")
_RESAMPLINGS: Mapping[str, Literal["nearest", "bicubic"]] = {"": "bicubic", "bicubic": "bicubic", "nearest": "nearest"}


class BandColumns(NamedTuple):
    """Where these columns stand, counted from 0, by the number of their file, counted from 1."""

    bands: Mapping[int, int]
    resamplings: Mapping[int, int]

    def files(self, cells: Sequence[str], found: Callable[[str], Path]) -> tuple[BandFile, ...]:
        """Returns the further files of a row; ``found`` gives the path that a cell names.

        Raises ``UserError`` for a gap between files and for an unknown resampling.
        """
        names = {number: cells[place].strip() for number, place in sorted(self.bands.items())}
        last = max((number for number, name in names.items() if name), default=0)
        files = []
        for number, name in names.items():
            way = cells[self.resamplings[number]].strip() if number in self.resamplings else ""
            if not name and (number < last or way):
                raise UserError(
                    f"expected a file in the column {column('band', number)!r}, found none but what comes after it; "
                    "files of one scene leave no gap"
                )
            if way.lower() not in _RESAMPLINGS:
                hint = closest(way.lower(), filter(None, _RESAMPLINGS))
                raise UserError(f"{column('resampling', number)}: found {way!r}; {hint}")
            if name:
                files.append(BandFile(path=found(name), resampling=_RESAMPLINGS[way.lower()]))
        return tuple(files)


def is_band_column(name: str) -> bool:
    """Returns whether a column has one of these names, in capitals or not."""
    return _NUMBERED.fullmatch(name.strip().lower()) is not None


def band_columns(table: Path, header: Sequence[str]) -> BandColumns:
    """Returns where these columns stand in a header; raises ``BadFile`` for one that comes twice, and for a gap."""
    found: dict[str, dict[int, int]] = {"band": {}, "resampling": {}}
    for place, name in enumerate(each.strip().lower() for each in header):
        match = _NUMBERED.fullmatch(name)
        if match is not None and found[match[1]].setdefault(int(match[2] or 1), place) != place:
            raise BadFile(table, f"expected each column once, found {name!r} again; remove one of them")
    bands, resamplings = found["band"], found["resampling"]
    if sorted(bands) != list(range(1, len(bands) + 1)):
        missing = next(number for number in range(1, len(bands) + 1) if number not in bands)
        raise BadFile(table, f"expected the column {column('band', missing)!r} before {column('band', max(bands))!r}")
    for number in resamplings:
        if number not in bands:
            raise BadFile(
                table,
                f"expected a column {column('band', number)!r} for {column('resampling', number)!r}, found none; "
                "add or remove one of them",
            )
    return BandColumns(bands, resamplings)


def column(kind: str, number: int) -> str:
    """Returns the name of the column of that kind ("band", "resampling") for a file."""
    return kind if number == 1 else f"{kind}_{number}"
