"""A table (CSV or Parquet) of images with mask paths, run lengths or WKT, to a source.

Columns: ``image``, ``id`` (else the image's name without suffix), one of ``mask``, ``rle``, ``wkt``; ``class``,
``group``, ``split``, ``rle_order``, ``rle_base`` and further files (``band_columns``) where wanted; all others are
attributes. Rows with one id are pieces of one record. How run lengths count is never assumed: it is stated, or only one
reading is valid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from maskloom.data.image_io import IMAGE_SUFFIXES
from maskloom.data.sources.band_columns import band_columns, is_band_column
from maskloom.data.sources.base import DataSettings, DataSource, finish, measure
from maskloom.data.sources.classes import PIECES, classes_of_masks, classes_of_pieces, notes_on_unused_yaml
from maskloom.data.sources.folder import SPLITS
from maskloom.data.sources.stacks import ImageFiles, checked_stacks
from maskloom.data.sources.table_rows import Row, column_names, read_rows
from maskloom.encodings import rle
from maskloom.errors import BadFile, UserError, closest
from maskloom.records import BadSize, BandFile, MaskFile, Record, RunLengths, Shapes, Size, Truth, check_id

TRUTH_COLUMNS = ("mask", "rle", "wkt")
_ALIASES = {
    **dict.fromkeys(("image", "img", "image_path", "file", "filename", "file_name"), "image"),
    **dict.fromkeys(("id", "image_id", "imageid"), "id"),
    **dict.fromkeys(("mask", "mask_path"), "mask"),
    **dict.fromkeys(("rle", "rle_mask", "encodedpixels", "encoded_pixels"), "rle"),
    **dict.fromkeys(("wkt", "multipolygonwkt", "polygonwkt"), "wkt"),
    **dict.fromkeys(("class", "class_name", "classname"), "class"),
}
_SPECIAL = frozenset({*_ALIASES.values(), "group", "split", "rle_order", "rle_base"})

Placed = tuple[Size, tuple[tuple[int, str], ...]]
"""An image's size and its (class index, text) pieces."""


@dataclass(slots=True)
class _Entry:
    """All rows of one id."""

    id: str
    image: Path
    first: Row
    bands: tuple[BandFile, ...] = ()
    pieces: list[tuple[str, str]] = field(default_factory=list)
    """(class name, text) in the table's order; empty texts left out."""


def recognise(path: Path) -> bool:
    """Returns whether the path is such a table, or a folder that has one."""
    return bool(_tables(path))


def open_table(path: Path, settings: DataSettings) -> DataSource:
    """Returns the source of a table, or of the one table in a folder.

    Raises ``UserError`` for missing or doubtful columns, unsafe or contradictory ids, run lengths with more than one
    valid reading, and (without ``skip_bad``) damaged or missing files.
    """
    table = _one_table(path)
    rows = read_rows(table, partial(_checked_names, table))
    kind = _truth_column(table, rows)
    entries = _entries(table, rows, kind, settings)
    notes: list[str] = []
    labelled, problems = _sized(entries, notes)
    if kind == "mask":
        source = _with_masks(path, table, labelled, problems, settings)
    else:
        source = _with_pieces(path, table, labelled, problems, kind, rows, settings)
    return replace(source, notes=(*source.notes, *notes))


def _tables(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if _is_table(path) else []
    if not path.is_dir():
        return []
    return [file for file in sorted(path.iterdir()) if _is_table(file) and _fits(column_names(file))]


def _is_table(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith((".csv", ".csv.gz", ".parquet"))


def _one_table(path: Path) -> Path:
    tables = _tables(path)
    if len(tables) == 1:
        return tables[0]
    if not tables:
        raise UserError(f"{path}: expected a table (.csv, .csv.gz, .parquet) with the columns id and image, found none")
    names = ", ".join(table.name for table in tables)
    raise UserError(f"{path}: expected one table of images, found {len(tables)} ({names}); give the path of one")


def _fits(columns: Iterable[str]) -> bool:
    known = {_ALIASES.get(name.strip().lower()) for name in columns}
    return "image" in known and bool(known & set(TRUTH_COLUMNS))


def _checked_names(table: Path, found: Sequence[str]) -> list[str]:
    names = [_canonical(column) or f"column {place}" for place, column in enumerate(found, 1)]
    double = {name for name, count in Counter(names).items() if count > 1}
    if double:
        raise UserError(f"{table}: expected one column each, found more than one for {', '.join(sorted(double))}")
    if "image" not in names:
        raise UserError(f"{table}: expected a column 'image', found {', '.join(names)}; {closest('image', names)}")
    return names


def _canonical(column: str) -> str:
    name = column.strip()
    return _ALIASES.get(name.lower(), name.lower() if name.lower() in _SPECIAL else name)


def _is_special(column: str) -> bool:
    return column in _SPECIAL or is_band_column(column)


def _truth_column(table: Path, rows: Sequence[Row]) -> str:
    if not rows:
        raise UserError(f"{table}: expected a row for each image, found none")
    found = [name for name in TRUTH_COLUMNS if name in rows[0]]
    if len(found) == 1:
        return found[0]
    what = " and ".join(found) or f"only {', '.join(rows[0])}"
    raise UserError(f"{table}: expected one of the columns mask, rle, wkt, found {what}")


def _entries(table: Path, rows: Sequence[Row], kind: str, settings: DataSettings) -> list[_Entry]:
    """Returns one entry per id; raises ``UserError`` for ids that are unsafe, missing or used for different things."""
    bases = [table.parent / settings.images] if settings.images else [table.parent, table.parent / "images"]
    further = band_columns(table, list(rows[0]))
    entries: dict[str, _Entry] = {}
    resolved: dict[str, Path] = {}
    for row in rows:
        name = row["image"]
        if not name:
            raise UserError(f"{table}: expected an image in every row, found none for id {row.get('id', '')!r}")
        if name not in resolved:
            resolved[name] = resolve(name, bases)
        record_id = row["id"] if row.get("id") else _without_suffix(name)
        entry = entries.get(record_id)
        if entry is None:
            entry = entries[record_id] = _Entry(record_id, resolved[name], row)
            try:
                check_id(record_id)
                entry.bands = further.files(list(row.values()), lambda band: resolve(band, bases))
            except UserError as error:
                raise UserError(f"{table}: {error}") from None
        else:
            _check_same(table, entry, row, kind)
        piece = (row.get("class", ""), row[kind])
        if piece[1]:
            if piece in entry.pieces:
                raise _double(table, record_id, f"the same {kind} twice")
            entry.pieces.append(piece)
    return list(entries.values())


def resolve(name: str, bases: Sequence[Path]) -> Path:
    """Returns the first existing ``base / name``, else the one below the first base."""
    return next((base / name for base in bases if (base / name).is_file()), bases[0] / name)


def _without_suffix(name: str) -> str:
    path = Path(name)
    return path.with_suffix("").as_posix() if path.suffix.lower() in IMAGE_SUFFIXES else path.as_posix()


def _check_same(table: Path, entry: _Entry, row: Row, kind: str) -> None:
    """Raises ``UserError`` unless a further row of an id can be a piece of the same record."""
    if kind == "mask":
        raise _double(table, entry.id, "a mask file is the whole truth of an image")
    for name in ("image", "group", "split", *filter(is_band_column, row)):
        if row.get(name) != entry.first.get(name):
            raise _double(table, entry.id, f"{name} {entry.first.get(name)!r} and {row.get(name)!r}")


def _double(table: Path, record_id: str, reason: str) -> UserError:
    return UserError(f"{table}: expected id {record_id!r} once, found it again ({reason}); rename or remove a row")


def _sized(entries: list[_Entry], notes: list[str]) -> tuple[list[tuple[_Entry, Size]], list[UserError]]:
    """Returns the entries whose files are sound, with the size of the image, and what is wrong with the others."""
    images = [ImageFiles(entry.id, entry.image, entry.bands) for entry in entries]
    if any(image.bands for image in images):
        images = checked_stacks(images, notes)
    sizes = measure([entry.image for entry in entries])
    sizes = [image.problem or size for image, size in zip(images, sizes, strict=True)]
    good = [(entry, size) for entry, size in zip(entries, sizes, strict=True) if not isinstance(size, BadFile)]
    return good, [size for size in sizes if isinstance(size, BadFile)]


def _record(entry: _Entry, size: Size, truth: Truth | None) -> Record:
    split = entry.first.get("split", "").strip().lower()
    if split and split not in SPLITS:
        raise UserError(f"id {entry.id!r}: split: expected train, val or test, found {split!r}")
    known = SPLITS.get(split, "")
    return Record(
        id=entry.id,
        image=entry.image,
        size=size,
        truth=None if known == "test" else truth,
        group=entry.first.get("group", ""),
        split="" if known == "test" else known,
        attributes={name: value for name, value in entry.first.items() if not _is_special(name)},
        bands=entry.bands,
    )


def _with_masks(
    path: Path, table: Path, labelled: list[tuple[_Entry, Size]], problems: list[UserError], settings: DataSettings
) -> DataSource:
    bases = [table.parent / settings.masks] if settings.masks else [table.parent, table.parent / "masks"]
    records: list[Record] = []
    masks = [resolve(entry.pieces[0][1], bases) if entry.pieces else None for entry, _ in labelled]
    sizes = iter(measure([mask for mask in masks if mask is not None]))
    for (entry, size), mask in zip(labelled, masks, strict=True):
        if mask is None:
            records.append(_record(entry, size, None))
            continue
        mask_size = next(sizes)
        if isinstance(mask_size, BadFile):
            problems.append(mask_size)
        elif mask_size != size:
            problems.append(BadSize(entry.id, size, mask_size))
        else:
            records.append(_record(entry, size, MaskFile(path=mask)))
    files = [record.truth.path for record in records if isinstance(record.truth, MaskFile)]
    if not files:
        raise problems[0] if problems else UserError(f"{table}: expected masks, found the column 'mask' empty")
    guess = classes_of_masks(table.parent, files, settings)
    source = _source(path, records, problems, [guess.note])
    return finish(DataSource(layout="table", task=guess.task, coding=guess.coding, **source), settings)


def _source(path: Path, records: Sequence[Record], problems: list[UserError], notes: list[str]) -> dict[str, Any]:
    """Returns the fields of a source that both kinds of truth share."""
    labelled = tuple(record for record in records if record.truth is not None)
    unlabelled = tuple(record for record in records if record.truth is None)
    if unlabelled:
        notes = [*notes, f"{len(unlabelled)} images have no truth: they are predicted, not learned from"]
    if {record.split for record in labelled} != {"train", "val"}:
        if any(record.split for record in labelled):
            notes = [*notes, "the column split is not used: it does not put every record into train or val"]
        labelled = tuple(_without_split(record) for record in labelled)
    root = path if path.is_dir() else path.parent
    return {
        "root": root,
        "records": labelled,
        "unlabelled": unlabelled,
        "problems": tuple(problems),
        "notes": tuple(notes),
    }


def _without_split(record: Record) -> Record:
    return replace(record, split="") if record.split else record


def _with_pieces(
    path: Path,
    table: Path,
    labelled: list[tuple[_Entry, Size]],
    problems: list[UserError],
    kind: str,
    rows: Sequence[Row],
    settings: DataSettings,
) -> DataSource:
    names = _class_names(table, [entry for entry, _ in labelled], settings)
    index = {name: place for place, name in enumerate(names)}
    placed = [
        (entry, size, tuple((index.get(name, 0), text) for name, text in entry.pieces)) for entry, size in labelled
    ]
    notes = notes_on_unused_yaml(table.parent)
    if kind == "wkt":
        records = [_record(entry, size, Shapes(wkt=pieces)) for entry, size, pieces in placed]
    else:
        good, more = _readable(placed)
        problems = [*problems, *more]
        reading, note = _reading(table, [(size, pieces) for _, size, pieces in good], rows, settings)
        notes.append(note)
        records = [
            _record(entry, size, RunLengths(runs=pieces, order=reading.order, base=reading.base))
            for entry, size, pieces in good
        ]
    task, records_with_task, note = classes_of_pieces(records, names, settings)
    source = _source(path, records_with_task, problems, [note, *notes])
    return finish(DataSource(layout="table", task=task, coding=PIECES, **source), settings)


def _class_names(table: Path, entries: Sequence[_Entry], settings: DataSettings) -> list[str]:
    found = sorted({name for entry in entries for name, _ in entry.pieces if name})
    unnamed = any(not name for entry in entries for name, _ in entry.pieces)
    if found and unnamed:
        raise UserError(f"{table}: expected a class in every row with truth, found rows without one")
    if settings.classes is None:
        return found or ["foreground"]
    if not found:
        if len(settings.classes) != 1:
            raise UserError(f"classes: expected one name, for the table has no classes, found {len(settings.classes)}")
        return settings.classes
    for name in found:
        if name not in settings.classes:
            raise UserError(
                f"{table}: class {name!r} is not among the stated classes; {closest(name, settings.classes)}"
            )
    return settings.classes


def _readable(
    placed: list[tuple[_Entry, Size, tuple[tuple[int, str], ...]]],
) -> tuple[list[tuple[_Entry, Size, tuple[tuple[int, str], ...]]], list[UserError]]:
    """Returns the entries whose run lengths some reading accepts, and what is wrong with the others."""
    good, problems = [], []
    for entry, size, pieces in placed:
        try:
            readings = rle.possible_readings((text, size) for _, text in pieces)
            if not readings:
                raise UserError("it starts at 0 and ends one past the last pixel, so neither base 0 nor base 1 fits")
        except UserError as error:
            problems.append(BadFile(entry.image, f"the run lengths of record {entry.id!r} cannot be read: {error}"))
        else:
            good.append((entry, size, pieces))
    return good, list(problems)


def _reading(table: Path, placed: list[Placed], rows: Sequence[Row], settings: DataSettings) -> tuple[rle.Reading, str]:
    """Returns how the run lengths count, and the note on it; raises ``UserError`` when that is not certain."""
    order = _stated(table, rows, "rle_order", settings.rle_order, {"row": "row", "column": "column"})
    base = _stated(table, rows, "rle_base", settings.rle_base, {"0": 0, "1": 1})
    orders: tuple[Literal["row", "column"], ...] = ("row", "column") if order is None else (order,)
    bases: tuple[Literal[0, 1], ...] = (0, 1) if base is None else (base,)
    texts = [(text, size) for size, pieces in placed for _, text in pieces]
    readings = rle.possible_readings(texts, orders=orders, bases=bases)
    if len(readings) == 1:
        how = "stated" if order is not None and base is not None else "recognised, no other reading is valid"
        return readings[0], f"run lengths count {readings[0]}, {how}"
    if not readings:
        stated = " and ".join(str(value) for value in (order, base) if value is not None)
        reason = f"as stated ({stated})" if stated else "in any one way"
        raise UserError(f"{table}: expected run lengths that can all be read {reason}, found a contradiction")
    raise UserError(
        f"{table}: the run lengths can be read {' or '.join(map(str, readings))}; add the columns rle_order and "
        "rle_base, or state them: --set data.rle_order=column --set data.rle_base=1"
    )


def _stated(table: Path, rows: Sequence[Row], column: str, setting: Any, allowed: dict[str, Any]) -> Any:
    """Returns what the table's column or the settings state, None for neither."""
    found = {row[column].strip().lower() for row in rows if row.get(column, "").strip()}
    if len(found) > 1 or not found <= set(allowed):
        raise UserError(
            f"{table}: {column}: expected {' or '.join(allowed)} throughout, found {', '.join(sorted(found))}"
        )
    value = allowed[found.pop()] if found else None
    if None not in (value, setting) and value != setting:
        raise UserError(f"{table}: {column}: the table states {value}, the settings {setting}; change one of them")
    return setting if value is None else value
