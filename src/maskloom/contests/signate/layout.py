"""Signate's AI Edge contest on disk: photos, colour annotations and their attributes become records.

Source: signate.jp/competitions/143: ``seg_train_images/<id>.jpg``, ``seg_train_annotations/<id>.png`` (a colour per
category) and ``<id>.json`` (``attributes`` with ``route`` and ``timeofday``), ``seg_test_images/<id>.jpg``. Knows
nothing about which category is learnt as what; ``class_table`` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maskloom.contests.signate.class_table import ALL, FILE, ClassTable, read_class_table
from maskloom.contests.signate.colours import CATEGORIES
from maskloom.data.sources.base import DataSettings, DataSource, finish, measure
from maskloom.data.sources.classes import describe, notes_on_unused_yaml
from maskloom.data.sources.folder import image_files
from maskloom.errors import BadFile, UserError, some_of
from maskloom.files import read_json
from maskloom.records import BadSize, MaskFile, Record

PHOTOS = "seg_train_images"
ANNOTATIONS = "seg_train_annotations"
TEST = "seg_test_images"

ATTRIBUTES = ("route", "timeofday")
"""What the contest says of every training photo; folds are stratified by both."""
MAX_ANNOTATION = 2**24
"""The longest file of attributes of a photo, in bytes."""
UNKNOWN = "unknown"
"""The value of an attribute that a photo has not."""


@dataclass(slots=True)
class _Found:
    """What is said about the folder: problems with files, and photos without one of the attributes."""

    problems: list[UserError] = field(default_factory=list)
    lacking: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in ATTRIBUTES})


def recognise(path: Path) -> bool:
    """Returns whether the folder has the contest's photos and annotations."""
    return path.is_dir() and (path / PHOTOS).is_dir() and (path / ANNOTATIONS).is_dir()


def open_signate(path: Path, settings: DataSettings) -> DataSource:
    """Returns the source of a Signate folder: a class per category, the attributes of each photo, every photo a group.

    A ``class_table.yaml`` in the folder merges categories or leaves them out; ``settings.classes`` names the classes to
    keep, all others then become a background in front of them. Photos without annotation and those of
    ``seg_test_images/`` are unlabelled. An attribute that a photo has not is "unknown", which is noted. Raises
    ``UserError`` when folders are missing, for a table that leaves fewer than two classes, or (without ``skip_bad``)
    when files are damaged or a photo and its annotation differ in size.
    """
    _check_settings(path, settings)
    table = _table(path, settings)
    task = table.task()
    left_out = [category for category, name in table.class_of.items() if name is None]
    notes = [f"Signate layout: {describe(task)}; every photo is a group; attributes {' and '.join(ATTRIBUTES)}"]
    if table != ALL:
        notes.append(
            f"{len(CATEGORIES) - len(left_out)} of {len(CATEGORIES)} categories are learnt as {len(task.classes)} "
            "classes" + (f"; pixels of {', '.join(left_out)} count nowhere" if left_out else "")
        )
    notes += notes_on_unused_yaml(path)
    found = _Found()
    labelled, without = _training(path, found)
    test = _measured(list(image_files(path / TEST)), found) if (path / TEST).is_dir() else []
    if not labelled and not found.problems:
        raise UserError(f"{path}: expected annotations named like the photos of {PHOTOS}/, found none that matches")
    notes += [_lacking(name, ids) for name, ids in found.lacking.items() if ids]
    if without:
        notes.append(f"{len(without)} photos of {PHOTOS}/ have no annotation: they are predicted, not learned from")
    notes.append(f"{len(test)} photos of {TEST}/ are to be predicted" if test else f"there is no photo in {TEST}/")
    source = DataSource(
        layout="signate",
        root=path,
        task=task,
        coding=table.coding(),
        records=tuple(labelled),
        unlabelled=(*without, *test),
        notes=tuple(notes),
        problems=tuple(found.problems),
        submission="signate",
    )
    return finish(source, settings)


def is_test(record: Record) -> bool:
    """Returns whether the record is one of the photos that a submission is about."""
    return record.image.parent.name == TEST


def _check_settings(path: Path, settings: DataSettings) -> None:
    if settings.task not in (None, "multiclass"):
        raise UserError(f"{path}: Signate is a multiclass task, the settings state {settings.task}; leave task out")
    for name, stated in (("images", settings.images), ("masks", settings.masks)):
        if stated is not None:
            raise UserError(
                f"{path}: expected {PHOTOS}/ and {ANNOTATIONS}/, found data.{name} {stated!r}; leave data.{name} out"
            )
    if settings.ignore:
        raise UserError(
            f"data.ignore={settings.ignore}: annotations hold colours, not values; leave categories out in {FILE}"
        )
    for folder in (PHOTOS, ANNOTATIONS):
        if not (path / folder).is_dir():
            raise UserError(f"{path / folder}: no such folder; give the contest's folder")


def _table(path: Path, settings: DataSettings) -> ClassTable:
    table = read_class_table(path / FILE) if (path / FILE).is_file() else ALL
    if settings.classes is None:
        return table
    try:
        return table.keeping(settings.classes)
    except UserError as error:
        raise UserError(f"data.classes: {error}") from None


def _training(path: Path, found: _Found) -> tuple[list[Record], list[Record]]:
    """Returns the records of training photos with annotation and those without, all of sound files."""
    annotations = _annotations(path / ANNOTATIONS, found)
    files = list(image_files(path / PHOTOS))
    known = {file.stem for file in files}
    photos: dict[str, Record] = {}
    for record in _measured(files, found):
        if record.id in photos:
            found.problems.append(BadFile(record.image, "a second photo of that name; rename one of them"))
        photos.setdefault(record.id, record)
    for name, file in annotations.items():
        if name not in known:
            found.problems.append(
                BadFile(file, f"an annotation without a photo in {PHOTOS}/; add the photo or remove the annotation")
            )
    paired = [(photos[name], annotations[name]) for name in photos if name in annotations]
    sizes = measure([file for _, file in paired])
    labelled = []
    for (record, file), size in zip(paired, sizes, strict=True):
        if isinstance(size, BadFile):
            found.problems.append(size)
        elif size != record.size:
            found.problems.append(BadSize(record.id, record.size, size))
        else:
            labelled += _with_truth(record, file, found)
    return labelled, [record for name, record in photos.items() if name not in annotations]


def _annotations(folder: Path, found: _Found) -> dict[str, Path]:
    """Returns the annotations by the name of their photo; of two for one photo the second is a problem."""
    files: dict[str, Path] = {}
    for file in image_files(folder):
        if file.stem in files:
            reason = f"a second annotation for one photo (beside {files[file.stem].name}); keep one of them"
            found.problems.append(BadFile(file, reason))
        else:
            files[file.stem] = file
    return files


def _measured(files: Sequence[Path], found: _Found) -> list[Record]:
    """Returns a record for each photo whose header tells a size."""
    records = []
    for file, size in zip(files, measure(files), strict=True):
        if isinstance(size, BadFile):
            found.problems.append(size)
            continue
        try:
            records.append(Record(id=file.stem, image=file, size=size))
        except UserError as unsafe:
            found.problems.append(BadFile(file, str(unsafe)))
    return records


def _with_truth(record: Record, annotation: Path, found: _Found) -> list[Record]:
    """Returns the record with truth and attributes, in a list of its own; [] where its attributes are damaged."""
    file = annotation.with_suffix(".json")
    try:
        attributes = _attributes(file) if file.is_file() else {}
    except BadFile as problem:
        found.problems.append(problem)
        return []
    for name in ATTRIBUTES:
        if name not in attributes:
            found.lacking[name].append(record.id)
    complete = {**dict.fromkeys(ATTRIBUTES, UNKNOWN), **attributes}
    return [
        Record(
            id=record.id,
            image=record.image,
            size=record.size,
            truth=MaskFile(path=annotation),
            attributes=complete,
        )
    ]


def _attributes(file: Path) -> Mapping[str, str]:
    """Returns the attributes that a file states as texts or whole numbers; raises ``BadFile`` unless it is JSON."""
    try:
        content: Any = read_json(file, max_bytes=MAX_ANNOTATION)
    except UserError:
        raise BadFile(file, 'expected JSON with "attributes", found something else; restore or remove it') from None
    stated = content.get("attributes") if isinstance(content, dict) else None
    if not isinstance(stated, dict):
        return {}
    return {name: str(value) for name, value in stated.items() if isinstance(value, str | int) and str(value).strip()}


def _lacking(name: str, ids: Sequence[str]) -> str:
    return f"{len(ids)} photos have no attribute {name}, which is taken as {UNKNOWN!r}: {some_of(ids, 3)}"
