"""COCO annotation files (``images``, ``annotations``, ``categories``) with polygons or run lengths, to a source.

One file, or one per split (``…train….json``, ``…val….json``). Instances of a category are united; crowd regions are
part of their category. An image without annotations is background. Paints nothing itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from maskloom.data.sources.base import DataSettings, DataSource, finish, measure
from maskloom.data.sources.classes import PIECES, classes_of_pieces, notes_on_unused_yaml
from maskloom.data.sources.folder import SPLITS
from maskloom.data.sources.table import resolve
from maskloom.errors import BadFile, UserError, closest
from maskloom.files import read_json
from maskloom.records import BadSize, CocoSegments, Record, Size, check_id
from maskloom.runtime import json_budget
from maskloom.storage.ranges import open_part

_SNIFFED = 65536  # bytes of a JSON file looked at to recognise it: whole files reach hundreds of megabytes
_KEYS = (b'"images"', b'"annotations"', b'"categories"')
_NO_ATTRIBUTES = frozenset(
    {"id", "file_name", "height", "width", "license", "coco_url", "flickr_url", "date_captured", "url"}
)


@dataclass(frozen=True, slots=True)
class _Image:
    """One image entry: its record id, file, claimed size, segments by category id, and other plain fields."""

    id: str
    path: Path
    claimed: Size | None
    segments: tuple[tuple[int, Any], ...]
    attributes: Mapping[str, str]
    split: str
    labelled: bool


def recognise(path: Path) -> bool:
    """Returns whether the path is a COCO file or a folder that has one (also below ``annotations/``)."""
    return bool(_files(path))


def open_coco(path: Path, settings: DataSettings) -> DataSource:
    """Returns the source of a COCO file, or of the files of one folder.

    Raises ``UserError`` for content that is not COCO, for boxes without masks, unknown categories or images, unsafe
    or double ids, and (without ``skip_bad``) missing or damaged images and images of another size than stated.
    """
    files = _chosen(path)
    root = path if path.is_dir() else path.parent
    contents = [(file, _load(file)) for file in files]
    names = _category_names(contents, settings)
    images = [
        image
        for file, content in contents
        for image in _images(file, content, _bases(root, file, settings), names, several=len(files) > 1)
    ]
    records, problems = _records(images)
    labelled = [record for record in records if record.truth is not None]
    unlabelled = tuple(record for record in records if record.truth is None)
    task, with_task, note = classes_of_pieces(labelled, list(names.values()), settings)
    notes = [note, *notes_on_unused_yaml(root)]
    if unlabelled:
        notes.append(
            f"{len(unlabelled)} images have no annotations in their file: they are predicted, not learned from"
        )
    empty = sum(1 for image in images if image.labelled and not image.segments)
    if empty:
        notes.append(f"{empty} images have no annotation: they count as background")
    if {record.split for record in with_task} == {"train", "val"}:
        notes.append("the files of train and val are one fixed fold")
    else:
        with_task = tuple(replace(record, split="") for record in with_task)
    source = DataSource(
        layout="coco",
        root=root,
        task=task,
        coding=PIECES,
        records=with_task,
        unlabelled=unlabelled,
        notes=tuple(notes),
        problems=tuple(problems),
    )
    return finish(source, settings)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if _looks_like_coco(path) else []
    found: list[Path] = []
    for folder in (path, path / "annotations"):
        if folder.is_dir():
            found += [file for file in sorted(folder.iterdir()) if file.suffix == ".json" and _looks_like_coco(file)]
    return found


def _looks_like_coco(path: Path) -> bool:
    """Returns whether the start of a file names COCO's keys (all of them where it is read whole)."""
    if path.suffix.lower() != ".json":
        return False
    try:
        with open_part(path) as stream:
            start = stream.read(_SNIFFED)
    except OSError:
        return False
    whole = len(start) < _SNIFFED
    found = sum(key in start for key in _KEYS)
    return start.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{") and found >= (2 if whole else 1)


def _chosen(path: Path) -> list[Path]:
    """Returns the one file, or those of the splits."""
    if path.is_file():
        return [path]
    files = _files(path)
    splits = [_split(file) for file in files]
    if len(files) == 1 or (files and "" not in splits and len(set(splits)) == len(splits)):
        return files
    if not files:
        raise UserError(f"{path}: expected a COCO file (.json with images, annotations, categories), found none")
    names = ", ".join(file.name for file in files[:6])
    raise UserError(f"{path}: expected one COCO file, or one each for train and val, found {names}; give one path")


def _split(file: Path) -> str:
    words = "".join(char if char.isalpha() else " " for char in file.stem.lower()).split()
    return next((SPLITS[word] for word in words if word in SPLITS), "")


def _load(path: Path) -> dict[str, Any]:
    content = read_json(path, max_bytes=json_budget())
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise UserError(f"{path}: expected COCO JSON with a list 'images', found none; give a COCO annotation file")
    for key in ("annotations", "categories"):
        if not isinstance(content.get(key, []), list):
            raise UserError(f"{path}: expected a list under {key!r}, found {type(content[key]).__name__}")
    return content


def _category_names(contents: Sequence[tuple[Path, dict[str, Any]]], settings: DataSettings) -> dict[int, str]:
    """Returns category ids to names in the order of the ids, or of the stated classes."""
    found: dict[int, str] = {}
    for path, content in contents:
        for category in content.get("categories", []):
            number, name = (
                _number(path, category, "id", "a category"),
                str(_field(path, category, "name", "a category")),
            )
            if found.setdefault(number, name) != name:
                raise UserError(f"{path}: category {number} is {found[number]!r} and {name!r}; give each one name")
    if not found:
        raise UserError(f"{contents[0][0]}: expected categories, found none")
    if len({isinstance(number, str) for number in found}) > 1:
        raise UserError(f"{contents[0][0]}: expected category ids that are all numbers or all texts, found both")
    names = dict(sorted(found.items()))
    if len(set(names.values())) < len(names):
        raise UserError(f"{contents[0][0]}: expected a name of its own for every category, found doubles")
    if settings.classes is None:
        return names
    for name in settings.classes:
        if name not in names.values():
            raise UserError(f"classes: {name!r} is not a category, {closest(name, names.values())}")
    numbers = {name: number for number, name in names.items()}
    return {numbers[name]: name for name in settings.classes}


def _field(path: Path, entry: Any, name: str, what: str) -> Any:
    if not isinstance(entry, dict) or name not in entry:
        raise UserError(f"{path}: expected {name!r} in {what}, found {json.dumps(entry)[:80]}")
    return entry[name]


def _number(path: Path, entry: Any, name: str, what: str) -> Any:
    """Returns an id; raises ``UserError`` unless it is a number or a text."""
    found = _field(path, entry, name, what)
    if not isinstance(found, int | float | str):
        raise UserError(f"{path}: expected a number or a text as {name!r} of {what}, found {json.dumps(found)[:80]}")
    return found


def _bases(root: Path, file: Path, settings: DataSettings) -> list[Path]:
    """Returns where image files are looked for, in order."""
    if settings.images:
        return [root / settings.images]
    split = _split(file)
    inner = [root / "images" / split, root / split, root / f"{split}2017"] if split else []
    return [file.parent, root, root / "images", *inner, file.parent.parent / "images"]


def _images(
    file: Path, content: dict[str, Any], bases: Sequence[Path], names: dict[int, str], *, several: bool
) -> list[_Image]:
    """Returns the images of one file with their segments; ids get the split in front where there are several files."""
    index = {number: place for place, number in enumerate(names)}
    known = {_number(file, category, "id", "a category") for category in content.get("categories", [])}
    entries = {_number(file, entry, "id", "an image"): entry for entry in content["images"]}
    if len(entries) < len(content["images"]):
        raise UserError(f"{file}: expected every image id once, found {len(content['images']) - len(entries)} again")
    segments: dict[Any, list[tuple[int, Any]]] = {number: [] for number in entries}
    for annotation in content.get("annotations", []):
        number, category = (_number(file, annotation, name, "an annotation") for name in ("image_id", "category_id"))
        if number not in segments:
            raise UserError(f"{file}: expected image ids that are listed, found {number!r:.80} in an annotation")
        if category not in known:
            raise UserError(f"{file}: expected category ids that are listed, found {category!r} in an annotation")
        if category in index:
            segments[number].append((index[category], _segment(file, annotation)))
    split = _split(file) if several else ""
    return [
        _Image(
            id=_record_id(file, entry, split),
            path=resolve(str(entry["file_name"]), bases),
            claimed=(entry["height"], entry["width"]) if "height" in entry and "width" in entry else None,
            segments=tuple(segments[number]),
            attributes=_attributes(entry),
            split=split,
            labelled="annotations" in content and split != "test",
        )
        for number, entry in entries.items()
    ]


def _record_id(file: Path, entry: dict[str, Any], split: str) -> str:
    name = str(_field(file, entry, "file_name", "an image"))
    try:
        check_id(name)
    except UserError as error:
        raise UserError(f"{file}: file_name: {error}") from None
    stem = Path(name).with_suffix("").as_posix()
    return f"{split}/{stem}" if split and not stem.startswith(f"{split}/") else stem


def _attributes(entry: dict[str, Any]) -> dict[str, str]:
    return {
        name: str(value)
        for name, value in entry.items()
        if name not in _NO_ATTRIBUTES and isinstance(value, str | int | float)
    }


def _segment(file: Path, annotation: dict[str, Any]) -> Any:
    """Returns the polygons or run lengths of an annotation; raises ``UserError`` for anything else."""
    segment = annotation.get("segmentation")
    if _is_runs(segment) or (isinstance(segment, list) and segment and all(isinstance(part, list) for part in segment)):
        return segment
    what = "only a box" if not segment and "bbox" in annotation else f"{json.dumps(segment)[:60]}"
    raise UserError(
        f"{file}: expected polygons or run lengths under 'segmentation', found {what} in annotation "
        f"{annotation.get('id')}; export the data with masks"
    )


def _is_runs(segment: Any) -> bool:
    if not isinstance(segment, dict) or "counts" not in segment:
        return False
    size = segment.get("size")
    return isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) for side in size)


def _records(images: Sequence[_Image]) -> tuple[list[Record], list[UserError]]:
    records: list[Record] = []
    problems: list[UserError] = []
    for image, size in zip(images, measure([image.path for image in images]), strict=True):
        if isinstance(size, BadFile):
            problems.append(size)
        elif image.claimed is not None and image.claimed != size:
            problems.append(_other_size(image, size, image.claimed))
        elif (runs := _runs_size(image)) is not None and runs != size:
            problems.append(BadSize(image.id, size, runs))
        else:
            records.append(
                Record(
                    id=image.id,
                    image=image.path,
                    size=size,
                    truth=CocoSegments(segments=image.segments) if image.labelled else None,
                    split=image.split if image.split != "test" else "",
                    attributes=image.attributes,
                )
            )
    return records, problems


def _runs_size(image: _Image) -> Size | None:
    """Returns the first size that the image's run lengths state and that is not the image's own."""
    sizes = [tuple(segment["size"]) for _, segment in image.segments if isinstance(segment, dict)]
    return next((size for size in sizes if size != image.claimed), sizes[0] if sizes else None)


def _other_size(image: _Image, size: Size, claimed: Size) -> BadFile:
    stated, found = f"{claimed[1]}×{claimed[0]}", f"{size[1]}×{size[0]}"
    return BadFile(
        image.path,
        f"the COCO file says {stated} (width×height), the image is {found}; its masks belong to another version of it",
    )
