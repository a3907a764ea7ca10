"""The images of a folder by their files: one file each, or several of different resolution that are one stack.

Files are found by name, and opened for their headers. Knows nothing about truth, nor about registration.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from maskloom.data.sources.band_patterns import BandPattern, by_image
from maskloom.errors import BadFile, UserError, some_of
from maskloom.rasters.stack import open_stack
from maskloom.records import BandFile, Record, Size

_THREADS = 8


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """What one image is read from: its file, which gives the grid, further ones, and what is wrong with them."""

    id: str
    image: Path
    bands: tuple[BandFile, ...] = ()
    problem: BadFile | None = None


def images_among(
    files: Sequence[Path], folder: Path, patterns: Sequence[BandPattern] | None, notes: list[str]
) -> list[ImageFiles]:
    """Returns the images that files below a folder are, sorted by id: one each, or those that the patterns name.

    The first pattern names the file whose grid an image has. Files that fit no pattern are passed over, which is noted;
    an image without one of its files, or with two for a place, carries that as its problem. Raises ``UserError`` where
    no file fits.
    """
    names = [file.relative_to(folder) for file in files]
    if patterns is None:
        return [ImageFiles(name.with_suffix("").as_posix(), file) for name, file in zip(names, files, strict=True)]
    images, others = by_image([name.as_posix() for name in names], patterns)
    if not images:
        wanted = some_of([pattern.file for pattern in patterns], 3)
        found = some_of(others, 3) if others else "none"
        raise UserError(
            f"{folder}: expected files named as data.bands says ({wanted}), found {found}; correct data.bands, whose "
            "paths begin in this folder"
        )
    if others:
        notes.append(
            f"{len(others)} images are no files that data.bands names and were passed over: {some_of(others, 3)}"
        )
    return [_image(folder, name, found, patterns) for name, found in images.items()]


def _image(folder: Path, name: str, found: Sequence[Sequence[str]], patterns: Sequence[BandPattern]) -> ImageFiles:
    paths = [
        folder / (names[0] if names else pattern.name_for(name)) for names, pattern in zip(found, patterns, strict=True)
    ]
    problem: BadFile | None = None
    for path, names in zip(paths, found, strict=True):
        if problem is None and not names:
            problem = BadFile(path, f"no such file, but image {name!r} needs it (data.bands); restore it")
        elif problem is None and len(names) > 1:
            problem = BadFile(
                folder / names[1], f"a second file for one place of image {name!r} (beside {names[0]}); keep one of "
                "them, or state more of the name in data.bands",
            )  # fmt: skip
    pairs = zip(paths[1:], patterns[1:], strict=True)
    bands = tuple(BandFile(path=path, resampling=pattern.resampling) for path, pattern in pairs)
    return ImageFiles(name, paths[0], bands, problem)


def checked_stacks(images: Sequence[ImageFiles], notes: list[str]) -> list[ImageFiles]:
    """Returns the images in their order, with what is wrong with the files of some; the bands are noted.

    That is what ``open_stack`` refuses: a file that is damaged, that covers nothing of its image's ground, has another
    CRS or, of several, says alone where it lies or does not; and another number of bands than most images have there.
    Images that carry a problem are left as they are.
    """
    sound = [image for image in images if image.problem is None]
    with ThreadPoolExecutor(_THREADS) as pool:
        counts = dict(zip([image.id for image in sound], pool.map(_band_counts, sound), strict=True))
    usual = Counter(count for count in counts.values() if not isinstance(count, BadFile)).most_common(1)
    if not usual:
        return [_judged(image, counts.get(image.id), (), image) for image in images]
    (expected, _), *_ = usual
    model = next(image for image in sound if counts[image.id] == expected)
    if len(expected) > 1:
        each = " + ".join(map(str, expected))
        notes.append(
            f"every image is a stack of {len(expected)} files with {sum(expected)} bands ({each}), on the grid of the "
            f"first ({model.image.name})"
        )
    return [_judged(image, counts.get(image.id), expected, model) for image in images]


def _band_counts(image: ImageFiles) -> tuple[int, ...] | BadFile:
    try:
        with open_stack(image.image, image.bands) as stack:
            return tuple(layer.raster.count for layer in stack.layers)
    except BadFile as problem:
        return problem
    except UserError as problem:
        return BadFile(image.image, str(problem))


def _judged(
    image: ImageFiles, found: tuple[int, ...] | BadFile | None, expected: tuple[int, ...], model: ImageFiles
) -> ImageFiles:
    """Returns the image with its problem: what opening it found, or bands that are not those of the ``model``."""
    if found is None:
        return image
    if isinstance(found, BadFile):
        return replace(image, problem=found)
    if len(found) != len(expected):
        others = f"{len(expected)} files for image {image.id!r}, as {model.id!r} has"
        problem = BadFile(image.image, f"expected {others}, found {len(found)}; all images have the same bands")
        return replace(image, problem=problem)
    for file, other, count, usual in zip(_files(image), _files(model), found, expected, strict=True):
        if count != usual:
            problem = BadFile(
                file,
                f"expected {usual} band(s) for image {image.id!r}, as {other} has for {model.id!r}, found {count}; "
                "all images have the same bands",
            )
            return replace(image, problem=problem)
    return image


def _files(image: ImageFiles) -> list[Path]:
    return [image.image, *(band.path for band in image.bands)]


def record_of(image: ImageFiles, size: Size | BadFile) -> Record:
    """Returns the record of an image, without truth, whose sub-folder is its attribute ``folder``.

    Raises ``BadFile`` for what is wrong with its files, its size, or an id that cannot name a file.
    """
    for problem in (image.problem, size):
        if isinstance(problem, BadFile):
            raise problem
    assert not isinstance(size, BadFile)
    parent = PurePosixPath(image.id).parent.as_posix()
    attributes = {} if parent == "." else {"folder": parent}
    try:
        return Record(id=image.id, image=image.image, size=size, attributes=attributes, bands=image.bands)
    except UserError as unsafe:
        raise BadFile(image.image, str(unsafe)) from None
