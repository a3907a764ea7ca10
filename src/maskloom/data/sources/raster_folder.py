"""A folder of TIFF rasters: which files are its rasters, and new ones that are stacked as training stacked its own.

Knows nothing about truth.
"""

from __future__ import annotations

from pathlib import Path

from maskloom.data.sources.band_patterns import RASTER_SUFFIXES
from maskloom.data.sources.base import DataSettings, DataSource, first_problem, measure
from maskloom.data.sources.classes import PIECES
from maskloom.data.sources.folder import IMAGE_FOLDERS, image_files, is_output
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
    notes: list[str] = []
    images = checked_stacks(images_among(files, base, settings.bands, notes), notes)
    records: list[Record] = []
    problems: list[UserError] = []
    for image, size in zip(images, measure([image.image for image in images]), strict=True):
        try:
            records.append(record_of(image, size))
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
