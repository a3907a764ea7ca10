"""Folds: groups dealt into K parts, so that every record is validated once by a model that never saw its group.

All methods put the groups into an order and deal them round-robin; they differ in the order. The result is a table
that a user can edit and hand back. Knows nothing about images: areas and duplicates are given.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from maskloom.data.fold_rows import ALWAYS_TRAINING as ALWAYS_TRAINING
from maskloom.data.fold_rows import columns_of, read_rows
from maskloom.data.spatial_folds import MAX_FOLDS, SpatialFoldSettings
from maskloom.data.union_find import UnionFind
from maskloom.errors import UserError, closest
from maskloom.files import write_text
from maskloom.records import Record
from maskloom.runtime import generator

NUM_BINS = 35
"""Bins of the histogram of areas, as published (Carvana, 1st place)."""


class FoldSettings(SpatialFoldSettings):
    """How records are divided; ``side``, ``unit``, ``balance`` and ``buffer`` are of blocks alone."""

    kind: Literal["auto", "kfold", "holdout", "given", "table", "blocks"] = "auto"
    """"kfold": ``count`` folds, each of which validates one network; "holdout": the first of these alone, everything
    else always trains, so that there is one network; "given": the train and val folders the data came with, as one
    fixed fold; "table": a file, also one of blocks; "blocks": scenes are divided into squares, whose place decides,
    so that a few large rasters, or one, can be learnt from and scored; "auto": given folders where there are any, else
    "kfold"."""
    count: int = Field(default=5, ge=2, le=MAX_FOLDS)
    """The number of folds (kfold, blocks); its inverse is the part that is kept out (holdout)."""
    stratify: Literal["none", "area_dealt", "area_bins", "attributes"] = "none"
    """What is to be alike in all folds. "area_dealt": groups sorted by their mask area and dealt round-robin;
    "area_bins": dealt within each bin of a histogram of areas, bins merged until each holds a group for every fold;
    "attributes": dealt within each combination of ``attributes``."""
    attributes: tuple[str, ...] = ()
    """Names of the attributes to stratify by, for instance ["route", "timeofday"]."""
    area_of: dict[str, str] = Field(default_factory=dict)
    """Take the area of only those records that have these attributes, for instance {"view": "05"}; all when empty."""
    seed: int = Field(default=0, ge=0)
    """Of the shuffling before dealing, or of the hashes of blocks; the same seed gives the same folds everywhere."""
    table: Path | None = None
    """A CSV file as written by an earlier run: columns id and fold, or of blocks scene, top, left, height, width, fold
    and (if any) buffer."""
    merge_near_duplicates: bool = False
    """Keep groups that hold near-duplicates of each other in one fold, where folds are dealt."""

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> FoldSettings:
        if self.table is not None and self.kind not in ("auto", "table", "blocks"):
            raise ValueError(f"table: expected kind auto or table beside a file, found {self.kind}; state kind=table")
        if self.merge_near_duplicates and (self.table is not None or self.kind in ("given", "table", "blocks")):
            raise ValueError("merge_near_duplicates: these folds are not dealt by group; leave it out")
        return self


@dataclass(frozen=True, slots=True)
class FoldRow:
    """One line of the table; ``fold`` is 0…K-1, or -1 for always training."""

    id: str
    group: str
    fold: int


@dataclass(frozen=True, slots=True)
class FoldTable:
    """Which fold validates each record."""

    rows: tuple[FoldRow, ...]

    def __post_init__(self) -> None:
        used = {row.fold for row in self.rows} - {ALWAYS_TRAINING}
        if not used or used != set(range(max(used) + 1)):
            raise UserError(f"folds: expected the numbers 0, 1, 2 … without gaps (or -1), found {sorted(used)}")
        double = [row_id for row_id, times in Counter(row.id for row in self.rows).items() if times > 1]
        if double:
            raise UserError(f"folds: expected each id once, found {double[0]!r} twice; remove one of its lines")
        if len(used) == 1 and len(self.rows) == sum(row.fold == 0 for row in self.rows):
            raise UserError("folds: everything lies in fold 0, which leaves nothing to train on; use two or more folds")

    @property
    def num_folds(self) -> int:
        """The number of folds."""
        return max(row.fold for row in self.rows) + 1

    def split(self, fold: int) -> tuple[list[str], list[str]]:
        """Returns (training ids, validation ids) of one fold, in the table's order."""
        if not 0 <= fold < self.num_folds:
            raise ValueError(f"fold must lie in 0…{self.num_folds - 1}, got {fold}")
        training = [row.id for row in self.rows if row.fold != fold]
        return training, [row.id for row in self.rows if row.fold == fold]

    def fold_of(self) -> dict[str, int]:
        """Returns the fold of each id."""
        return {row.id: row.fold for row in self.rows}

    def to_csv(self, path: Path) -> None:
        """Writes the table (columns id, group, fold), atomically."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("id", "group", "fold"))
        writer.writerows((row.id, row.group, row.fold) for row in self.rows)
        write_text(path, stream.getvalue())

    @classmethod
    def from_csv(cls, path: Path) -> FoldTable:
        """Returns the table of a file; the column ``group`` may be missing. Raises ``UserError``."""
        rows = read_rows(path, "fold table", ("id", "group", "fold"), optional=("group",))
        try:
            return cls(tuple(_parse_row(row, line) for line, row in rows))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def _parse_row(row: Mapping[str, str], line: int) -> FoldRow:
    record_id, fold = row["id"], row["fold"].strip()
    try:
        number = int(fold)
    except ValueError:
        number = -2
    if not record_id or number < ALWAYS_TRAINING:
        raise UserError(f"line {line}: expected an id and a fold of 0, 1, 2 … or -1, found {record_id!r} and {fold!r}")
    return FoldRow(record_id, row.get("group") or record_id, number)


def is_of_blocks(path: Path) -> bool:
    """Returns whether a file is a table of blocks, by the names of its columns."""
    return "scene" in columns_of(path)


def make_folds(
    records: Sequence[Record],
    settings: FoldSettings,
    *,
    areas: Mapping[str, float] | None = None,
    exact: Iterable[Sequence[str]] = (),
    near: Iterable[tuple[str, str]] = (),
) -> FoldTable:
    """Returns the fold table of the records, in their order.

    ``areas`` (mask pixels by id) are needed to stratify by area. Groups that share an image of ``exact`` (sets of
    ids with equal pixels) are always dealt together, those of ``near`` (pairs of ids) where the settings say so.
    Given folders and tables are taken as they are, see ``check_leaks``. Raises ``UserError``.
    """
    if settings.kind == "blocks":
        raise ValueError("blocks are dealt by make_spatial_folds")
    if settings.kind == "table" or (settings.kind == "auto" and settings.table is not None):
        return _from_table(records, settings)
    has_given = any(record.split == "val" for record in records)
    if settings.kind == "given" or (settings.kind == "auto" and has_given):
        if settings.merge_near_duplicates:
            raise UserError(
                "folds.merge_near_duplicates: expected folds that are dealt by group, found the data's own train and "
                "val folders, which are taken as they are; leave it out, or add --set folds.kind=kfold"
            )
        return _given(records)
    exact = list(exact)
    links = [(members[0], other) for members in exact for other in members[1:]]
    links += near if settings.merge_near_duplicates else []
    units = _units(records, links)
    if len(units) < settings.count:
        num_copies = sum(len(members) - 1 for members in exact)
        copies = f" ({num_copies} of {len(records)} images are exact copies of others)" if num_copies else ""
        fewer = f"use --set folds.count={len(units)}" if len(units) > 1 else "add images"
        raise UserError(
            f"folds: expected at least {settings.count} groups for {settings.count} folds, found {len(units)}{copies}; "
            f"{fewer}, or state how ids form groups with --set data.group=REGEX"
        )
    fold_of = {
        record.id: position % settings.count
        for position, unit in enumerate(_order(units, settings, areas))
        for record in unit
    }
    if settings.kind == "holdout":
        fold_of = {record_id: 0 if fold == 0 else ALWAYS_TRAINING for record_id, fold in fold_of.items()}
    return FoldTable(tuple(FoldRow(record.id, record.group, fold_of[record.id]) for record in records))


Unit = list[Record]
"""What is dealt as one: the records of a group, or of several merged groups."""


def _units(records: Sequence[Record], links: Iterable[tuple[str, str]]) -> list[Unit]:
    """Returns the records by group, groups with a link between them merged, in the order of their first record."""
    group_of = {record.id: record.group for record in records}
    sets = UnionFind(group_of.values())
    for first, second in links:
        if first in group_of and second in group_of:
            sets.join(group_of[first], group_of[second])
    units: dict[str, Unit] = {}
    for record in records:
        units.setdefault(sets.find(record.group), []).append(record)
    return list(units.values())


def _order(units: list[Unit], settings: FoldSettings, areas: Mapping[str, float] | None) -> list[Unit]:
    """Returns the units in the order in which they are dealt; what is not stratified is shuffled."""
    shuffled = [units[index] for index in generator(settings.seed, "folds").permutation(len(units))]
    if settings.stratify == "none":
        return shuffled
    if settings.stratify == "attributes":
        strata = [_combination(unit, settings.attributes) for unit in shuffled]
        names = sorted(set(strata))
        return _by_stratum(shuffled, [names.index(stratum) for stratum in strata])
    totals = [_area(unit, settings.area_of, areas) for unit in shuffled]
    if settings.stratify == "area_dealt":
        return [shuffled[index] for index in np.argsort(totals, kind="stable")]
    return _by_stratum(shuffled, merged_bins(totals, settings.count))


def _by_stratum(units: list[Unit], strata: Sequence[int]) -> list[Unit]:
    """Returns the units sorted by stratum; dealt on through the strata, each fold gets its share of every stratum."""
    return [units[index] for index in np.argsort(strata, kind="stable")]


def merged_bins(areas: Sequence[float], min_members: int, *, num_bins: int = NUM_BINS) -> list[int]:
    """Returns the stratum of each area: bins of a histogram, merged from the left until each holds ``min_members``.

    What is left over at the right end joins the last stratum. Source: Carvana, 1st place (folds of vgg11v1).
    """
    values = np.asarray(areas, np.float64)
    edges = np.histogram_bin_edges(values, bins=num_bins)
    bins = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    stratum_of_bin = np.zeros(num_bins, np.int64)
    stratum, held = 0, 0
    for index, count in enumerate(counts):
        stratum_of_bin[index] = stratum
        held += int(count)
        if held >= min_members:
            stratum, held = stratum + 1, 0
    if held < min_members and stratum > 0:  # what is left over (or empty) joins the stratum before it
        stratum_of_bin[stratum_of_bin == stratum] = stratum - 1
    return [int(stratum_of_bin[index]) for index in bins]


def _area(unit: Unit, area_of: Mapping[str, str], areas: Mapping[str, float] | None) -> float:
    if areas is None:
        raise ValueError("stratifying by area needs the areas of the records")
    chosen = [record for record in unit if area_of.items() <= record.attributes.items()]
    if not chosen:
        known = {f"{name}={value}" for record in unit for name, value in record.attributes.items()}
        wanted = ", ".join(f"{name}={value}" for name, value in area_of.items())
        hint = f"its records have {', '.join(sorted(known)[:6])}" if known else "its records have no attributes"
        raise UserError(f"folds.area_of: no record of group {unit[0].group!r} has {wanted}; {hint}")
    return sum(areas.get(record.id, 0.0) for record in chosen)


def _combination(unit: Unit, attributes: Sequence[str]) -> tuple[str, ...]:
    """Returns the most frequent combination of attribute values in a unit (of equally frequent ones, the first)."""
    if not attributes:
        raise UserError("folds.stratify=attributes: expected names in folds.attributes, found none; add some")
    for record in unit:
        for name in attributes:
            if name not in record.attributes:
                hint = closest(name, record.attributes) if record.attributes else "the data has no attributes"
                raise UserError(f"folds.attributes: record {record.id!r} has no attribute {name!r}; {hint}")
    found = Counter(tuple(record.attributes[name] for name in attributes) for record in unit)
    return min(found, key=lambda values: (-found[values], values))


def _given(records: Sequence[Record]) -> FoldTable:
    """Returns the table in which the data's own validation images are fold 0 and all others always train."""
    validation = sum(record.split == "val" for record in records)
    if not 0 < validation < len(records):
        raise UserError(
            f"folds.kind=given: expected images in both a train and a val folder, found {validation} of "
            f"{len(records)} in val; use --set folds.kind=kfold"
        )
    return FoldTable(
        tuple(FoldRow(record.id, record.group, 0 if record.split == "val" else ALWAYS_TRAINING) for record in records)
    )


def _from_table(records: Sequence[Record], settings: FoldSettings) -> FoldTable:
    if settings.table is None:
        raise UserError("folds.kind=table: expected a file in folds.table, found none; name one, or use kind=kfold")
    table = FoldTable.from_csv(settings.table)
    check_ids(table, records, settings.table)
    rows = {row.id: row for row in table.rows}
    return FoldTable(tuple(rows[record.id] for record in records))


def check_ids(table: FoldTable, records: Iterable[Record], path: Path) -> None:
    """Raises ``UserError`` naming the table's file unless it has a line for every record and for nothing else."""
    listed = [row.id for row in table.rows]
    wanted = [record.id for record in records]
    known, present = set(wanted), set(listed)
    unknown = [row_id for row_id in listed if row_id not in known]
    if unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise UserError(f"{path}: id {unknown[0]!r}{more} is not in the data; {_near(unknown[0], known)}")
    missing = [record_id for record_id in wanted if record_id not in present]
    if missing:
        raise UserError(
            f"{path}: expected a line for every record, found none for {missing[0]!r}"
            f"{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}; add them (fold -1: always training)"
        )


def _near(name: str, known: Iterable[str]) -> str:
    hint = closest(name, known)
    return hint if hint.startswith("did you mean") else "remove the line, or give the data the table was made for"


def check_leaks(table: FoldTable, records: Iterable[Record], exact: Iterable[Sequence[str]] = ()) -> None:
    """Raises ``UserError`` when one group, or one of the ``exact`` sets of equal images, lies in several folds.

    A group is what the data says (``records``) and also what the table's own column says. Records of fold -1 train
    every model, so they count as the other side of every fold.
    """
    fold_of = table.fold_of()
    members: dict[str, list[str]] = {}
    for row in table.rows:
        members.setdefault(f"group {row.group!r}", []).append(row.id)
    for record in records:
        members.setdefault(f"group {record.group!r}", []).append(record.id)
    for name, ids in members.items():
        _check_together(name, ids, fold_of, "put all its records into one fold")
    for copies in exact:
        remedy = "it occurs more than once: put its copies into one fold, or remove them"
        _check_together(f"the image of {copies[0]!r}", copies, fold_of, remedy)


def _check_together(name: str, ids: Sequence[str], fold_of: Mapping[str, int], remedy: str) -> None:
    present = [record_id for record_id in ids if record_id in fold_of]
    folds = sorted({fold_of[record_id] for record_id in present})
    if len(folds) > 1:
        first = next(record_id for record_id in present if fold_of[record_id] == folds[0])
        other = next(record_id for record_id in present if fold_of[record_id] == folds[1])
        raise UserError(
            f"{name} lies on both sides of a split ({first!r} in fold {folds[0]}, {other!r} in fold {folds[1]}); "
            f"{remedy}"
        )
