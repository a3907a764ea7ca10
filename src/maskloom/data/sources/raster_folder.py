"""A folder of TIFF rasters: which files are its rasters, and new ones that are stacked as training stacked its own.

Knows nothing about truth.
"""

from __future__ import annotations

from pathlib import Path

from maskloom.config import parse
from maskloom.data.image_io import image_size
from maskloom.data.sources.band_patterns import PLACE, RASTER_SUFFIXES, BandPattern, by_image
from maskloom.data.sources.base import DataSettings, DataSource, first_problem
from maskloom.data.sources.classes import PIECES
from maskloom.data.sources.folder import IMAGE_FOLDERS, MASK_FOLDERS, image_files, is_output
from maskloom.data.sources.stacks import checked_stacks, images_among, record_of
from maskloom.errors import BadFile, UserError
from maskloom.records import Record, Task


def raster_files(path: Path, settings: DataSettings) -> tuple[list[Path], Path, int]:
    """Returns the TIFFs, the folder that their ids are counted from, and how many other images lie beside them.

    They lie below ``images/`` if there is such a folder (or the stated one), else below the folder itself; folders of
    predictions and of runs are passed over.
    """
    folders = (settings.images,) if settings.images else IMAGE_FOLDERS
    base = next((path / name for name in folders if (path / name).is_dir()), path)
    is_there = not settings.images or base != path
    files = [file for file in image_files(base) if not is_output(file, base)] if is_there else []
    rasters = [file for file in files if file.suffix.lower() in RASTER_SUFFIXES]
    return rasters, base, len(files) - len(rasters)


def open_stacks(path: Path, settings: DataSettings) -> DataSource:
    """Returns a source of images without truth: the stacks that ``settings.bands`` names in a folder.

    The task means nothing. Raises ``UserError`` where no file is named so, and (without ``skip_bad``) for a file that
    is missing, damaged or of other ground.
    """
    files, base, _ = raster_files(path, settings)
    files = _without_masks(files, base, settings)
    notes: list[str] = []
    images = checked_stacks(images_among(files, base, settings.bands, notes), notes)
    records: list[Record] = []
    problems: list[UserError] = []
    for image in images:
        try:  # of any size: they are read by window
            records.append(record_of(image, image_size(image.image) if image.problem is None else image.problem))
        except BadFile as problem:
            problems.append(problem)
    if problems and not settings.skip_bad:
        raise first_problem(problems)
    return DataSource(
        layout="stacks",
        root=path,
        task=Task(kind="binary", classes=("foreground",)),
        coding=PIECES,
        records=(),
        unlabelled=tuple(records),
        notes=tuple(notes),
        problems=tuple(problems),
    )


def _without_masks(files: list[Path], base: Path, settings: DataSettings) -> list[Path]:
    """Returns the files but those that are masks, by the stated pattern or by their folder."""
    if settings.bands is not None and settings.masks is not None and PLACE in settings.masks:
        mask = parse(BandPattern, settings.masks, origin="data.masks")
        named = {file.relative_to(base).as_posix(): file for file in files}
        found, _ = by_image(named, [*settings.bands, mask])
        masks = {name for fitting in found.values() for name in fitting[-1]}
        return [file for name, file in named.items() if name not in masks]
    folders = {base / name for name in ((settings.masks,) if settings.masks else MASK_FOLDERS)}
    return [file for file in files if folders.isdisjoint(file.parents)]
