"""A folder with ``images/`` and ``masks/`` of equal names, to a source.

The two may lie at the top, with the same sub-folders below each, or in ``train/``, ``val/`` and ``test/``. A mask's
name may end in a usual suffix such as ``_mask``. Where it is stated of which files an image is a stack, masks are named
like images, or lie beside those files. Knows nothing about what masks mean.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from maskloom.config import parse
from maskloom.data.image_io import IMAGE_SUFFIXES
from maskloom.data.sources.band_patterns import PLACE, BandPattern, by_image
from maskloom.data.sources.base import DataSettings, DataSource, finish, measure
from maskloom.data.sources.classes import classes_of_masks
from maskloom.data.sources.stacks import ImageFiles, checked_stacks, images_among, record_of
from maskloom.errors import BadFile, UserError
from maskloom.files import OWNER
from maskloom.records import BadSize, MaskFile, Record, Size

IMAGE_FOLDERS = ("images", "image", "imgs", "img")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations")
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}

_MASK_ENDINGS = ("mask", "masks", "seg", "segmentation", "label", "labels", "labelids", "gt", "matte")
_IMAGE_ENDINGS = ("image", "img", "sat", "rgb")


@dataclass(frozen=True, slots=True)
class _Found:
    """An image or a mask: its id, the key by which masks are matched, and its files."""

    id: str
    key: str
    files: ImageFiles

    @property
    def path(self) -> Path:
        """Its file, or the first of them."""
        return self.files.image


def recognise(path: Path, settings: DataSettings) -> bool:
    """Returns whether the path is a folder with images and masks by the usual names or the stated ones."""
    return path.is_dir() and bool(_pairs(path, settings))


def open_folder(path: Path, settings: DataSettings) -> DataSource:
    """Returns the source of a folder of images and masks.

    Raises ``UserError`` when the folders are missing, no mask matches an image, ids are used twice, or (without
    ``skip_bad``) a file is damaged or missing, a mask has no image, or a mask differs in size from its image.
    """
    pairs = _pairs(path, settings)
    if not pairs:
        wanted = f"{settings.images or 'images'}/" + f" and {settings.masks or 'masks'}/" * (not _are_beside(settings))
        raise UserError(f"{path}: expected the folders {wanted}, found {_listing(path)}; name them with data.images=…")
    notes: list[str] = []
    if _are_beside(settings):
        images, masks = _beside(pairs[0][1], settings, notes)
    else:
        images, masks = _collect(pairs, settings.bands, notes)
    if settings.bands is not None:
        stacks = checked_stacks([image.files for image in images], notes)
        images = [replace(image, files=files) for image, files in zip(images, stacks, strict=True)]
    matched, problems = _match(images, masks)
    if not matched:
        raise UserError(_no_match(path, pairs, images, masks))
    records, more = _measured(images, matched)
    problems += more
    labelled, unlabelled = _split(records, notes)
    left = [record.truth.path for record in labelled if isinstance(record.truth, MaskFile)]
    if not left:
        left = [mask.path for mask in matched.values()]
    guess = classes_of_masks(path, left, settings)
    source = DataSource(
        layout="folder",
        root=path,
        task=guess.task,
        coding=guess.coding,
        records=tuple(labelled),
        unlabelled=tuple(unlabelled),
        notes=(guess.note, *notes),
        problems=tuple(problems),
    )
    return finish(source, settings)


def _pairs(path: Path, settings: DataSettings) -> list[tuple[str, Path, Path | None]]:
    """Returns (prefix of ids, images, masks) of the top or, failing that, of the split folders; [] when no masks.

    Where masks lie beside the files of images, both are one folder: that of images, or the whole.
    """
    if _are_beside(settings):
        both = _first_folder(path, (settings.images,) if settings.images else IMAGE_FOLDERS)
        both = path if both is None and path.is_dir() and not settings.images else both
        return [] if both is None else [("", both, both)]
    top = _pair(path, settings)
    if top is not None and top[1] is not None:
        return [("", *top)]
    found = [
        (f"{folder.name}/", *pair)
        for folder in sorted(path.iterdir() if path.is_dir() else ())
        if folder.is_dir() and folder.name.lower() in SPLITS and (pair := _pair(folder, settings)) is not None
    ]
    return found if any(masks is not None for _, _, masks in found) else []


def _pair(folder: Path, settings: DataSettings) -> tuple[Path, Path | None] | None:
    images = _first_folder(folder, (settings.images,) if settings.images else IMAGE_FOLDERS)
    masks = _first_folder(folder, (settings.masks,) if settings.masks else MASK_FOLDERS)
    if masks is not None and masks.name == "annotations" and next(image_files(masks), None) is None:
        masks = None  # that is where COCO keeps its JSON
    if images is None and masks is not None and settings.bands is not None and not settings.images:
        images = folder  # a folder for each image, beside that of masks
    return None if images is None else (images, masks)


def _first_folder(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _listing(path: Path) -> str:
    if not path.is_dir():
        return "no such folder" if not path.exists() else "a file"
    names = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "") if names else "an empty folder"


def image_files(folder: Path) -> Iterator[Path]:
    """Yields the image files below a folder in order of name; hidden files and folders are passed over."""
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from image_files(folder / entry.name)
        elif entry.name.lower().endswith(IMAGE_SUFFIXES):
            yield folder / entry.name


def is_output(file: Path, base: Path) -> bool:
    """Returns whether a file below ``base`` lies in a folder of predictions, or in that of a run."""
    between = [folder for folder in file.parents if folder != base and folder.is_relative_to(base)]
    return any((folder / name).is_file() for folder in between for name in (OWNER, "run.json"))


def _collect(
    pairs: list[tuple[str, Path, Path | None]], bands: Sequence[BandPattern] | None, notes: list[str]
) -> tuple[list[_Found], list[_Found]]:
    images: list[_Found] = []
    masks: list[_Found] = []
    for prefix, image_folder, mask_folder in pairs:
        for folder, found, endings in ((image_folder, images, _IMAGE_ENDINGS), (mask_folder, masks, _MASK_ENDINGS)):
            if folder is None:
                continue
            files = list(image_files(folder))
            if mask_folder is not None and folder in mask_folder.parents:
                files = [file for file in files if mask_folder not in file.parents and not is_output(file, folder)]
            for each in images_among(files, folder, bands if found is images else None, notes):
                name = prefix + each.id
                found.append(_Found(name, _key(name, endings), replace(each, id=name)))
            others = sum(1 for file in folder.rglob("*") if _is_other(file, folder))
            if others:
                notes.append(
                    f"{prefix}{folder.name}/: {others} files that are no images by their suffix were passed over"
                )
    return images, masks


def _is_other(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and file.suffix.lower() not in IMAGE_SUFFIXES and file.is_file()


def _key(name: str, endings: Sequence[str]) -> str:
    """Returns the name without a usual ending (``_mask``) or an inner image suffix (``photo.jpg`` of photo.jpg.png)."""
    for suffix in IMAGE_SUFFIXES:
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
    for ending in endings:
        for separator in "_-.":
            if name.lower().endswith(separator + ending):
                return name[: -len(ending) - 1]
    return name


def _are_beside(settings: DataSettings) -> bool:
    """Whether masks are named like one of the files that images are stacks of."""
    return settings.bands is not None and settings.masks is not None and PLACE in settings.masks


def _beside(folder: Path, settings: DataSettings, notes: list[str]) -> tuple[list[_Found], list[_Found]]:
    """Returns images and masks that lie in one folder, told apart by name."""
    assert settings.bands is not None and settings.masks is not None
    mask = parse(BandPattern, settings.masks, origin="data.masks")
    found_files = [file for file in image_files(folder) if not is_output(file, folder)]
    files = {file.relative_to(folder).as_posix(): file for file in found_files}
    found, _ = by_image(files, [*settings.bands, mask])
    masks = {name: image for image, names in found.items() for name in names[-1]}
    images = images_among([file for name, file in files.items() if name not in masks], folder, settings.bands, notes)
    return (
        [_Found(image.id, image.id, image) for image in images],
        [_Found(image, image, ImageFiles(image, files[name])) for name, image in masks.items()],
    )


def _match(images: list[_Found], masks: list[_Found]) -> tuple[dict[str, _Found], list[UserError]]:
    """Returns masks by image id, and the masks that no image or more than one mask has.

    An exact name goes first, then names without their endings.
    """
    ids = {image.id: image.id for image in images}
    keys: dict[str, str] = {}
    for image in images:
        keys.setdefault(image.key, image.id)
    matched: dict[str, _Found] = {}
    problems: list[UserError] = []
    for mask in sorted(masks, key=lambda each: each.id not in ids):
        image_id = ids.get(mask.id) or ids.get(mask.key) or keys.get(mask.key)
        if image_id is None:
            problems.append(BadFile(mask.path, "a mask without an image of its name; add the image or remove the mask"))
        elif image_id in matched:
            other = matched[image_id].path.name
            problems.append(BadFile(mask.path, f"a second mask for one image (beside {other}); keep one of them"))
        else:
            matched[image_id] = mask
    return matched, problems


def _no_match(path: Path, pairs: list[tuple[str, Path, Path | None]], images: list[_Found], masks: list[_Found]) -> str:
    _, image_folder, mask_folder = next(pair for pair in pairs if pair[2] is not None)
    if not images or not masks:
        empty = image_folder if not images else mask_folder
        return f"{empty}: expected image files ({', '.join(IMAGE_SUFFIXES)}), found none; nothing can be learned"
    return (
        f"{path}: expected masks named like the images, found no match among {len(images)} images (such as "
        f"{images[0].path.name}) and {len(masks)} masks (such as {masks[0].path.name}); rename the masks"
    )


def _measured(images: list[_Found], masks: dict[str, _Found]) -> tuple[list[Record], list[UserError]]:
    """Returns records with sizes from headers, and what is wrong with files or pairs."""
    sizes = measure([image.path for image in images])
    paired = [(image.id, masks[image.id].path) for image in images if image.id in masks]
    mask_sizes = dict(zip([name for name, _ in paired], measure([path for _, path in paired]), strict=True))
    records: list[Record] = []
    problems: list[UserError] = []
    for image, size in zip(images, sizes, strict=True):
        try:
            record = record_of(image.files, size)
            if image.id in masks:
                record = _with_mask(record, masks[image.id].path, mask_sizes[image.id])
        except (BadFile, BadSize) as problem:
            problems.append(problem)
        else:
            records.append(record)
    return records, problems


def _with_mask(record: Record, mask: Path, size: Size | BadFile) -> Record:
    """Returns the record with its truth; raises ``BadFile`` or ``BadSize`` for a mask that is none for it."""
    if isinstance(size, BadFile):
        raise size
    if size != record.size:
        raise BadSize(record.id, record.size, size)
    return replace(record, truth=MaskFile(path=mask))


def split_of(record_id: str) -> str:
    """Returns "train", "val" or "test" when the first folder of an id says so, else ""."""
    first, slash, _ = record_id.partition("/")
    return SPLITS.get(first.lower(), "") if slash else ""


def _split(records: list[Record], notes: list[str]) -> tuple[list[Record], list[Record]]:
    """Returns records with truth (with their split, where folders state it) and records without."""
    splits = {record.id: split_of(record.id) for record in records}
    with_truth = [record for record in records if record.truth is not None]
    unlabelled = [record for record in records if record.truth is None]
    labelled = [record for record in with_truth if splits[record.id] != "test"]
    held_out = [replace(record, truth=None) for record in with_truth if splits[record.id] == "test"]
    if held_out:
        notes.append(f"{len(held_out)} images of the test folder are kept out of training and validation")
    if unlabelled:
        notes.append(f"{len(unlabelled)} images have no mask: they are predicted, not learned from")
    counts = {name: sum(splits[record.id] == name for record in labelled) for name in ("train", "val")}
    if all(counts.values()) and sum(counts.values()) == len(labelled):
        labelled = [replace(record, split=splits[record.id]) for record in labelled]
        notes.append(f"the folders train ({counts['train']}) and val ({counts['val']}) are one fixed fold")
    return labelled, unlabelled + held_out
