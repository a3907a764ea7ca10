"""The Carvana Image Masking Challenge on disk: photos, masks and tables become records.

Source: kaggle.com/c/carvana-image-masking-challenge, "Data": ``train/``, ``train_hq/``, ``test/``, ``test_hq/`` hold
``<car>_<view>.jpg`` with 16 views of each car, ``train_masks/`` holds ``<car>_<view>_mask.gif`` (palette 0/1),
``train_masks.csv`` the same as run lengths (row-major, one-based), ``metadata.csv`` year, make, model and trim.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from maskloom.contests.carvana.submission import SUBMISSION
from maskloom.data.mask_coding import MaskCoding
from maskloom.data.sources.base import DataSettings, DataSource, finish, measure, relabel
from maskloom.data.sources.classes import notes_on_unused_yaml
from maskloom.data.sources.folder import image_files
from maskloom.encodings.table_files import open_table
from maskloom.errors import BadFile, UserError
from maskloom.records import BadSize, MaskFile, Record, RunLengths, Size, Task, Truth

_NAME = re.compile(r"(?P<car>.+)_(?P<view>[0-9]{2})")
_MASK_ENDING = "_mask"
_CODING = MaskCoding(kind="values", values=((0, 0), (1, 1), (255, 1)))  # 255: published masks saved again as grey
_TABLE_ENDINGS = (".csv", ".csv.gz")


def recognise(path: Path) -> bool:
    """Returns whether the folder has ``train*/`` with Carvana names, and ``train_masks/`` or ``train_masks.csv``."""
    if not path.is_dir() or not ((path / "train_masks").is_dir() or _table(path, "train_masks") is not None):
        return False
    return any(_NAME.fullmatch(file.stem) for folder in _photo_folders(path, "train") for file in _first(folder))


def open_carvana(path: Path, settings: DataSettings) -> DataSource:
    """Returns the source of a Carvana folder: groups are cars, attributes the view and the metadata.

    Training photos come from ``train_hq/`` where there is one, else ``train/`` (test photos likewise); masks from
    ``train_masks/``, for photos without one from ``train_masks.csv``. Raises ``UserError`` when there are no photos,
    no mask matches, or (without ``skip_bad``) files are damaged, misnamed or of different sizes.
    """
    if settings.task not in (None, "binary"):
        raise UserError(f"{path}: Carvana is a binary task, the settings state {settings.task}; leave task out")
    notes = ["Carvana layout: binary with the class car; groups are cars, the view is an attribute"]
    notes += notes_on_unused_yaml(path)
    train = _chosen_folder(path, "train", settings.images, notes)
    if train is None:
        raise UserError(f"{path}: expected photos in train/ or train_hq/, found neither; give the contest's folder")
    truths, problems = _truths(path, settings, notes)
    metadata = _metadata(path)
    records, more = _records(train, truths, metadata)
    labelled = tuple(record for record in records if record.truth is not None)
    without = tuple(record for record in records if record.truth is None)
    if not labelled and not more:
        raise UserError(f"{path}: expected masks <car>_<view>_mask.gif for {train.name}/, found none that matches")
    if without:
        notes.append(f"{len(without)} photos of {train.name}/ have no mask: they are predicted, not learned from")
    known = {record.id for record in records} | {file.stem for file in image_files(train)}
    problems += more + [
        BadFile(truth.path, f"a mask without a photo in {train.name}/; add the photo or remove the mask")
        for name, truth in truths.items()
        if name not in known and isinstance(truth, MaskFile)
    ]
    test, test_problems = _test_records(path, metadata, notes)
    source = DataSource(
        layout="carvana",
        root=path,
        task=relabel(Task(kind="binary", classes=("car",)), settings.classes),
        coding=replace(_CODING, ignore=tuple(settings.ignore or ())),
        records=labelled,
        unlabelled=(*without, *test),
        notes=tuple(notes),
        problems=tuple(problems + test_problems),
        sample_submission=_table(path, "sample_submission"),
        submission="carvana",
    )
    return finish(source, settings)


def _first(folder: Path) -> Iterator[Path]:
    """Yields at most one image of the folder."""
    file = next(image_files(folder), None)
    if file is not None:
        yield file


def _photo_folders(path: Path, kind: str) -> list[Path]:
    """Returns ``<kind>*/`` without the masks, full-quality photos first."""
    folders = [
        folder
        for folder in sorted(path.iterdir())
        if folder.is_dir() and folder.name.startswith(kind) and not folder.name.endswith("_masks")
    ]
    return sorted(folders, key=lambda folder: (folder.name != f"{kind}_hq", folder.name))


def _chosen_folder(path: Path, kind: str, stated: str | None, notes: list[str]) -> Path | None:
    if stated is not None:
        folder = path / stated
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; leave data.images out or name one of the photos' folders")
        return folder
    folders = _photo_folders(path, kind)
    if len(folders) > 1:
        others = ", ".join(f"{folder.name}/" for folder in folders[1:])
        notes.append(f"photos are taken from {folders[0].name}/, {others} is not used")
    return folders[0] if folders else None


def _table(path: Path, name: str) -> Path | None:
    return next((path / (name + ending) for ending in _TABLE_ENDINGS if (path / (name + ending)).is_file()), None)


def _rows(table: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yields the rows of a contest table; raises ``BadFile`` when it is damaged, lacks a column, or a row is cut."""
    with open_table(table) as rows:
        header = next(rows, [])
        missing = [column for column in columns if column not in header]
        if missing:
            found = ", ".join(header) or "an empty file"
            raise BadFile(table, f"expected the columns {', '.join(columns)}, found {found}; restore the file")
        for number, row in enumerate(rows, start=2):
            if len(row) < len(header) and row:
                raise BadFile(table, f"expected {len(header)} columns in row {number}, found {len(row)}; mend the row")
            if row:  # a blank line holds nothing
                yield dict(zip(header, row, strict=False))


def _metadata(path: Path) -> dict[str, dict[str, str]]:
    """Returns the attributes of each car, {} without ``metadata.csv``."""
    table = _table(path, "metadata")
    if table is None:
        return {}
    return {
        row["id"]: {name: value for name, value in row.items() if name != "id" and value}
        for row in _rows(table, ("id",))
    }


def _truths(path: Path, settings: DataSettings, notes: list[str]) -> tuple[dict[str, Truth], list[UserError]]:
    """Returns truth by photo name without suffix, and masks that are one too many."""
    truths: dict[str, Truth] = {}
    problems: list[UserError] = []
    folder = path / (settings.masks or "train_masks")
    if settings.masks and not folder.is_dir():
        raise UserError(f"{folder}: no such folder; leave data.masks out or name the folder of the masks")
    for file in image_files(folder) if folder.is_dir() else ():
        name = file.stem.removesuffix(_MASK_ENDING)
        if name in truths:
            problems.append(BadFile(file, "a second mask for one photo; keep one of them"))
        else:
            truths[name] = MaskFile(path=file)
    table = _table(path, "train_masks")
    if table is not None:
        num_files, seen = len(truths), set[str]()
        for row in _rows(table, SUBMISSION.columns):
            name, runs = Path(row["img"]).stem, ((0, row["rle_mask"]),)
            if name in seen:
                raise BadFile(table, f"expected each photo once, found {name!r} again; remove one of its rows")
            seen.add(name)
            truths.setdefault(name, RunLengths(runs=runs, order="row", base=1))
        if num_files < len(truths):
            notes.append(f"{len(truths) - num_files} masks are taken from {table.name}")
    return truths, problems


def _records(
    folder: Path, truths: dict[str, Truth], metadata: dict[str, dict[str, str]]
) -> tuple[list[Record], list[UserError]]:
    """Returns the photos' records with sizes from headers, and what is wrong with files or pairs."""
    files = list(image_files(folder))
    masks = [truth.path for file in files if isinstance(truth := truths.get(file.stem), MaskFile)]
    mask_sizes = dict(zip(masks, measure(masks), strict=True))
    records: list[Record] = []
    problems: list[UserError] = []
    for file, size in zip(files, measure(files), strict=True):
        truth = truths.get(file.stem)
        mask_size = mask_sizes.get(truth.path) if isinstance(truth, MaskFile) else None
        match = _NAME.fullmatch(file.stem)
        if isinstance(size, BadFile):
            problems.append(size)
        elif isinstance(mask_size, BadFile):
            problems.append(mask_size)
        elif match is None:
            problems.append(BadFile(file, "expected the name <car>_<two digits of the view>; rename or remove it"))
        elif mask_size is not None and mask_size != size:
            problems.append(BadSize(file.stem, size, mask_size))
        else:
            records.append(_record(file, size, truth, match, metadata))
    return records, problems


def _record(
    file: Path, size: Size, truth: Truth | None, match: re.Match[str], metadata: dict[str, dict[str, str]]
) -> Record:
    car = match["car"]
    attributes = {"view": match["view"], **metadata.get(car, {})}
    return Record(id=file.stem, image=file, size=size, truth=truth, group=car, attributes=attributes)


def _test_records(
    path: Path, metadata: dict[str, dict[str, str]], notes: list[str]
) -> tuple[list[Record], list[UserError]]:
    folder = _chosen_folder(path, "test", None, notes)
    if folder is None:
        return [], []
    records, problems = _records(folder, {}, metadata)
    notes.append(f"{len(records)} photos of {folder.name}/ are to be predicted")
    return records, problems
