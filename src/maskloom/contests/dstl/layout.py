"""The Dstl Satellite Imagery Feature Detection challenge on disk: rasters, polygons and grids become records.

Source: kaggle.com/c/dstl-satellite-imagery-feature-detection, "Data": ``three_band/<id>.tif`` (RGB),
``sixteen_band/<id>_M.tif`` (8 bands at a quarter of the resolution), ``_P.tif`` (panchromatic) and ``_A.tif`` (8 SWIR
bands), ids ``<scene>_<row>_<column>`` in mosaics of 5×5; ``train_wkt_v4.csv``, ``grid_sizes.csv``,
``sample_submission.csv``. Knows nothing about how polygons are written; ``truth`` does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from maskloom.contests.dstl.submission import read_sample
from maskloom.contests.dstl.truth import CLASSES, TableRow, label_of, pixel_truth, read_rows
from maskloom.data.mask_coding import MaskCoding
from maskloom.data.sources.base import DataSettings, DataSource, finish, measure, relabel
from maskloom.data.sources.classes import notes_on_unused_yaml
from maskloom.encodings.grid_coordinates import Grid, read_grids
from maskloom.errors import BadFile, UserError, some_of
from maskloom.records import BandFile, Record, Shapes, Size, Task

RGB_FOLDER = "three_band"
BAND_FOLDER = "sixteen_band"

Way = Literal["rgb", "swir"]

_ID = re.compile(r"(?P<scene>[0-9]+)_(?P<row>[0-9]+)_(?P<column>[0-9]+)")
_TABLE_ENDINGS = (".csv", ".csv.gz")
_WORDS = {"rgb": "RGB, with the bands of M and P on its grid", "swir": "the SWIR bands alone (A)"}
_PARTS: Mapping[Way, tuple[tuple[str, str], ...]] = {
    "rgb": ((RGB_FOLDER, ".tif"), (BAND_FOLDER, "_M.tif"), (BAND_FOLDER, "_P.tif")),
    "swir": ((BAND_FOLDER, "_A.tif"),),
}
"""Folder and ending of the files of one image; the first gives the grid."""


@dataclass(slots=True)
class _Problems:
    """What is wrong, in the order found, and the images that it concerns: those are left out."""

    found: list[UserError] = field(default_factory=list)
    images: set[str] = field(default_factory=set)

    def add(self, image: str, problem: BadFile) -> None:
        """Takes the first problem of an image; further ones of the same image say little more."""
        if image not in self.images:
            self.found.append(problem)
        self.images.add(image)


@dataclass(slots=True)
class _Mended:
    """Images and classes whose polygons were changed, to be noted."""

    clipped: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)


def recognise(path: Path) -> bool:
    """Returns whether the folder has the polygons, the grid sizes, and rasters with Dstl names."""
    if not path.is_dir() or table_of(path, "train_wkt_v4") is None or table_of(path, "grid_sizes") is None:
        return False
    return any(_ID.fullmatch(image) for way in _PARTS for image in _images(path, way))


def open_dstl(path: Path, settings: DataSettings) -> DataSource:
    """Returns the source of a Dstl folder: ten classes that may overlap, groups are scenes.

    Where there is ``three_band/`` an image is its RGB file, with M and P as further bands; else its SWIR file (A).
    ``settings.images`` names one of the two folders to decide it. Polygons are in pixels of that image. Images without
    polygons are unlabelled. Raises ``UserError`` when there are no images or tables, or (without ``skip_bad``) when
    files or grids are missing, damaged or misnamed, or polygons cannot be read.
    """
    _check_settings(path, settings)
    way = _way(path, settings.images)
    notes = [f"Dstl layout: {_WORDS[way]}; {len(CLASSES)} classes that may overlap; groups are scenes"]
    notes += notes_on_unused_yaml(path)
    table, grid_table = _needed(path, "train_wkt_v4"), _needed(path, "grid_sizes")
    problems = _Problems()
    rows = _rows_by_image(table, problems)
    images = _images(path, way)
    images += sorted(rows.keys() - set(images) - problems.images)
    records = _records(path, way, images, problems, read_grids(grid_table), grid_table)
    unlabelled = tuple(record for record, _ in records if record.id not in rows)
    labelled = _with_truth(table, records, rows, problems, notes)
    if unlabelled:
        notes.append(f"{len(unlabelled)} images have no polygons: they are predicted, not learned from")
    sample = table_of(path, "sample_submission")
    if sample is not None:
        notes += _notes_on_sample(sample, labelled, unlabelled)
    source = DataSource(
        layout="dstl",
        root=path,
        task=relabel(Task(kind="multilabel", classes=CLASSES), settings.classes),
        coding=MaskCoding(),
        records=labelled,
        unlabelled=unlabelled,
        notes=tuple(notes),
        problems=tuple(problems.found),
        sample_submission=sample,
        submission="dstl",
    )
    return finish(source, settings)


def table_of(path: Path, name: str) -> Path | None:
    """Returns the contest's table of that name, plain or gzip, or None where there is none."""
    return next((path / (name + ending) for ending in _TABLE_ENDINGS if (path / (name + ending)).is_file()), None)


def _check_settings(path: Path, settings: DataSettings) -> None:
    if settings.task not in (None, "multilabel"):
        raise UserError(f"{path}: Dstl is a multilabel task, the settings state {settings.task}; leave task out")
    if settings.masks is not None:
        raise UserError(
            f"{path}: the truth of Dstl is train_wkt_v4.csv, found data.masks {settings.masks!r}; leave data.masks out"
        )


def _needed(path: Path, name: str) -> Path:
    table = table_of(path, name)
    if table is None:
        raise UserError(f"{path}: expected {name}.csv or {name}.csv.gz, found neither; give the contest's folder")
    return table


def _way(path: Path, stated: str | None) -> Way:
    if stated is None:
        return "rgb" if (path / RGB_FOLDER).is_dir() else "swir"
    folder = stated.rstrip("/")
    if folder not in (RGB_FOLDER, BAND_FOLDER):
        raise UserError(f"{path}: expected data.images to be {RGB_FOLDER} or {BAND_FOLDER}, found {stated!r}")
    if not (path / folder).is_dir():
        raise UserError(f"{path / folder}: no such folder; leave data.images out")
    return "rgb" if folder == RGB_FOLDER else "swir"


def _images(path: Path, way: Way) -> list[str]:
    """Returns the ids, sorted, of every image of which at least one file is there."""
    found = {
        file.name.removesuffix(ending)
        for folder, ending in _PARTS[way]
        if (path / folder).is_dir()
        for file in (path / folder).glob(f"*{ending}")
    }
    return sorted(found)


def _rows_by_image(table: Path, problems: _Problems) -> dict[str, list[TableRow]]:
    """Returns the rows of each image as text: they are parsed once its size is known."""
    rows: dict[str, list[TableRow]] = {}
    for row in read_rows(table):
        rows.setdefault(row.image, []).append(row)
        try:
            label_of(table, row)
        except BadFile as problem:
            problems.add(row.image, problem)
        if _ID.fullmatch(row.image) is None:
            problems.add(row.image, BadFile(table, f"{row.place}: expected <scene>_<row>_<column>; mend the id"))
    return rows


def _records(
    path: Path, way: Way, images: Sequence[str], problems: _Problems, grids: Mapping[str, Grid], grid_table: Path
) -> list[tuple[Record, Grid]]:
    """Returns the records of sound images, without truth, and their grids."""
    parts = {image: [path / folder / (image + ending) for folder, ending in _PARTS[way]] for image in images}
    present = [file for files in parts.values() for file in files if file.is_file()]
    sizes = dict(zip(present, measure(present), strict=True))
    records: list[tuple[Record, Grid]] = []
    for image, files in sorted(parts.items()):
        match = _ID.fullmatch(image)
        for file in files:
            size = sizes.get(file)
            if match is None:
                problems.add(image, BadFile(file, "expected a name <scene>_<row>_<column>; rename or remove the file"))
            elif size is None:
                problems.add(image, BadFile(file, f"no such file, but image {image!r} needs it; restore it"))
            elif isinstance(size, BadFile):
                problems.add(image, size)
        if image not in grids:
            problems.add(image, BadFile(grid_table, f"expected a row for image {image!r}, found none; add its grid"))
        own = sizes.get(files[0])
        if image in problems.images or match is None or own is None or isinstance(own, BadFile):
            continue
        records.append((_record(image, match, files, own), grids[image]))
    return records


def _record(image: str, match: re.Match[str], files: Sequence[Path], size: Size) -> Record:
    return Record(
        id=image,
        image=files[0],
        size=size,
        group=match["scene"],
        attributes={"row": match["row"], "column": match["column"]},
        bands=tuple(BandFile(path=file, resampling="bicubic") for file in files[1:]),
    )


def _with_truth(
    table: Path,
    records: Sequence[tuple[Record, Grid]],
    rows: Mapping[str, Sequence[TableRow]],
    problems: _Problems,
    notes: list[str],
) -> tuple[Record, ...]:
    """Returns the records that have polygons, with them."""
    mended = _Mended()
    labelled: list[Record] = []
    for record, grid in records:
        if record.id not in rows:
            continue
        try:
            labelled.append(replace(record, truth=_shapes(table, record, rows[record.id], grid, mended)))
        except BadFile as problem:
            problems.add(record.id, problem)
    if mended.clipped:
        notes.append(f"polygons that reach outside their image are cut off at its border: {some_of(mended.clipped, 3)}")
    if mended.repaired:
        notes.append(f"areas that cross or touch themselves are repaired: {some_of(mended.repaired, 3)}")
    return tuple(labelled)


def _shapes(table: Path, record: Record, rows: Sequence[TableRow], grid: Grid, mended: _Mended) -> Shapes:
    truth = pixel_truth(table, rows, record.size, grid)
    mended.clipped += [f"{record.id} {CLASSES[label]}" for label in truth.clipped]
    mended.repaired += [f"{record.id} {CLASSES[label]}" for label in truth.repaired]
    return truth.shapes


def _notes_on_sample(sample: Path, labelled: Sequence[Record], unlabelled: Sequence[Record]) -> list[str]:
    wanted = {image for image, _ in read_sample(sample)}
    learned = {record.id for record in labelled}
    missing = wanted - learned - {record.id for record in unlabelled}
    notes = []
    if missing:
        notes.append(
            f"{sample.name} names images that are not here, a submission needs them: {some_of(sorted(missing), 3)}"
        )
    if wanted & learned:
        notes.append(f"{sample.name} names images that have polygons: {some_of(sorted(wanted & learned), 3)}")
    return notes
