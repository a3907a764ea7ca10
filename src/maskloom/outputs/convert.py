"""Masks from one kind of file to another, one image at a time.

Reading is ``outputs.mask_sets``, meaning ``outputs.legends``, writing ``outputs.mask_writers``. Polygons stay polygons
on their way to polygons, and pixels pixels; the way between them is exact unless simplification is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from maskloom.data.image_io import IMAGE_SUFFIXES
from maskloom.encodings.grid_coordinates import Grid, read_grids
from maskloom.encodings.outlines import cleaned
from maskloom.encodings.rle import Base, Order
from maskloom.encodings.table_files import open_table
from maskloom.encodings.vector_files import DSTL_COLUMNS, VECTOR_SUFFIXES, WKT_COLUMNS, WKT_FIELDS, read_features
from maskloom.errors import BadFile, UserError
from maskloom.outputs.convert_target import (
    FOLDERS,
    TABLES,
    VECTORS,
    check_target,
    kind_of,
    mark_target,
    on_this_machine,
)
from maskloom.outputs.layer_sets import LayerMasks
from maskloom.outputs.legends import ClassMasks, Legend, with_legend
from maskloom.outputs.mask_sets import (
    CocoMasks,
    FolderMasks,
    MaskSet,
    check_areas,
    check_drawable,
    open_mask_set,
    plain_name,
    recognise_format,
)
from maskloom.outputs.mask_writers import (
    ImageMasks,
    common_crs,
    write_coco,
    write_geotiffs,
    write_layers,
    write_pngs,
    write_run_lengths,
    write_vectors,
    write_wkt,
)
from maskloom.outputs.polygon_sets import PolygonMasks, drawn
from maskloom.outputs.tables import SubmissionFormat, check_against_sample, read_submission
from maskloom.outputs.vectors import write_features
from maskloom.progress import Progress
from maskloom.records import BadSize, Size, check_id

if TYPE_CHECKING:
    from shapely import Polygon

_LOOKED_AT = 8  # files, before any is written


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertOptions:
    """How masks are read and written; see ``maskloom.api.convert``. Lengths and areas are in pixels."""

    like: Path | None = None
    to: str | None = None
    classes: tuple[str, ...] | None = None
    foreground: bool = False
    ignore: int | None = None
    simplify: float = 0.0
    min_area: float = 0.0
    order: Order = "row"
    base: Base = 1
    size: Size | None = None
    grid: Path | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.simplify < np.inf or not 0 <= self.min_area < np.inf:
            raise UserError(f"expected simplify and min_area of at least 0, found {self.simplify} and {self.min_area}")
        if self.size is not None and min(self.size) < 1:
            raise UserError(f"expected a size of at least 1 pixel each, found {self.size[0]}x{self.size[1]}")

    @property
    def cleans(self) -> bool:
        """Whether outlines are changed."""
        return bool(self.simplify or self.min_area)


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was written: where, as which of ``KINDS``, and of how many images."""

    out: Path
    kind: str
    num_images: int


def convert_masks(source: Path, out: Path, options: ConvertOptions, progress: Progress) -> Conversion:
    """Returns what was written; see ``maskloom.api.convert``."""
    source, out = on_this_machine(source), on_this_machine(out)
    like, grid = (None if path is None else on_this_machine(path) for path in (options.like, options.grid))
    options = replace(options, like=like, grid=grid)
    kind = kind_of(out, options.to)
    check_target(out, kind, filter(None, (source, options.like, options.grid)))
    progress.stage("convert", cached=False)
    if _is_copy(source, kind, options):
        return _copy_features(source, out, kind, progress)
    sample, images = _open_like(options.like)
    grids = None if options.grid is None else read_grids(options.grid)
    masks = _open_source(source, kind, options, images, grids, progress)
    classified, note = with_legend(masks, classes=options.classes, foreground=options.foreground, ignore=options.ignore)
    has_labels = kind in ("png", "geotiff") and not classified.legend.is_binary and not options.cleans
    for text in (note, "" if has_labels else _on_ignored(classified), _on_images(masks, images)):
        if text:
            progress.note(text)
    table = _table(kind, options, sample, classified.legend, source) if kind in TABLES else None
    found = [
        _image(classified, name, listed_as, images, options, kind)
        for name, listed_as in _listed(masks, images, sample, table)
    ]
    _check_known(found, kind, classified, images)
    try:
        _write(found, out, kind, classified.legend, source, table, grids, progress)
    except MemoryError:
        raise UserError(f"{out}: masks so large take more memory than there is; cut the images into tiles") from None
    if isinstance(masks, PolygonMasks) and (num_clipped := sum(masks.num_clipped.values())):
        progress.note(f"{num_clipped} polygons reach outside their image and were cut off at its border")
    return Conversion(out, kind, len(found))


def _on_ignored(classified: ClassMasks) -> str:
    ignored = classified.coding is not None and classified.coding.ignore
    return "pixels of ignored values become background, since nothing else can stand for them here" if ignored else ""


def _on_images(masks: MaskSet, images: FolderMasks | None) -> str:
    without = set() if images is None else set(images.names) - set(masks.names)
    if images is None or not without or len(images.files) == 1:
        return ""
    return f"{len(without)} of the {len(images.files)} images in {images.origin} have no masks and are left out"


def _check_known(found: Sequence[ImageMasks], kind: str, classified: ClassMasks, images: FolderMasks | None) -> None:
    """Raises ``UserError`` before anything is written for a name, size or georeference that writing would miss.

    Likewise for masks that are too large to be drawn.
    """
    masks = classified.masks
    for image in found:
        check_id(image.name)
        if isinstance(masks, PolygonMasks):
            masks.check_placed(image.name, image.size)
        if kind not in (*VECTORS, "wkt") or not isinstance(masks, PolygonMasks):
            is_measured = (
                isinstance(masks, FolderMasks | LayerMasks) or _image_like(image.name, classified, images) is not None
            )
            is_stated = isinstance(masks, CocoMasks)  # by the set itself, whatever else agrees
            check_drawable(
                f"{masks.origin}: {image.name}", image.known_size(), is_measured=is_measured and not is_stated
            )
        if kind == "geotiff":
            image.known_georeference()


# Features as they are -----------------------------------------------------------------------------------------------


def _is_copy(source: Path, kind: str, options: ConvertOptions) -> bool:
    """Whether features go from one vector file to another, and no option asks for pixels in between.

    Raises ``UserError`` for options of run lengths between vector files.
    """
    if kind not in VECTORS or source.suffix.lower() not in VECTOR_SUFFIXES:
        return False
    if (options.order, options.base) != ("row", 1):
        raise UserError(f"--order and --base are of run lengths, found polygons in {source} and {kind}; leave them out")
    stated = (options.like, options.classes, options.ignore, options.size, options.grid)
    return all(option is None for option in stated) and not options.foreground and not options.cleans


def _copy_features(source: Path, out: Path, kind: str, progress: Progress) -> Conversion:
    crs, features = read_features(source, note=progress.note)
    write_features(out, features, crs=crs)
    return Conversion(out, kind, len({feature.image for feature in features}))


# What is there ------------------------------------------------------------------------------------------------------


def _open_like(like: Path | None) -> tuple[Path | None, FolderMasks | None]:
    """Returns the sample table, or the images that names, sizes and georeferences are taken from."""
    if like is None:
        return None, None
    if like.is_dir():
        return None, FolderMasks.open(like)
    if not like.exists():
        raise UserError(f"{like}: expected images, a folder of images or a sample table for --like, found no such path")
    if like.name.lower().endswith((".csv", ".csv.gz")):
        return like, None
    if like.suffix.lower() in IMAGE_SUFFIXES:
        return None, FolderMasks(like.parent, {plain_name(like.name): like})
    raise UserError(f"{like}: expected an image, a folder of images, or a sample table (.csv, .csv.gz) for --like")


def _open_source(
    source: Path,
    kind: str,
    options: ConvertOptions,
    images: FolderMasks | None,
    grids: Mapping[str, Grid] | None,
    progress: Progress,
) -> MaskSet:
    is_table = source.name.lower().endswith((".csv", ".csv.gz"))
    masks = open_mask_set(
        source, order=options.order, base=options.base, classes=options.classes, images=images,
        grids=grids if is_table else None, note=progress.note,
    )  # fmt: skip
    if isinstance(masks, FolderMasks) and not options.foreground:
        _check_some(masks)
    are_polygons = isinstance(masks, PolygonMasks)
    if grids is not None and kind != "wkt" and not (are_polygons and is_table):
        raise UserError("--grid gives the coordinates of polygons in a table of WKT; leave it out, or add --to wkt")
    if isinstance(masks, PolygonMasks) and masks.crs is not None and images is None:
        raise UserError(
            f"{source}: the polygons lie in {masks.crs:.40}, and pixels need a CRS and transform to be placed on the "
            "ground; give the georeferenced images with --like"
        )
    return masks


def _check_some(masks: FolderMasks) -> None:
    """Raises ``UserError`` where one of a few files, spread over all, is a photo; damage is told when all are read."""
    names = list(masks.names)
    for name in names[:: -(-len(names) // _LOOKED_AT)]:
        with suppress(BadFile):
            check_areas(masks.values(name, masks.size(name)), masks.files[name])


@dataclass(frozen=True, slots=True)
class _Table:
    """The columns and classes of a table to be written, and how its sample calls the images."""

    form: SubmissionFormat
    classes: tuple[str, ...]
    sample: Path | None
    names: Mapping[str, str]


def _table(kind: str, options: ConvertOptions, sample: Path | None, legend: Legend, source: Path) -> _Table:
    form = _form(kind, options, sample, legend)
    classes = tuple(legend.names.values()) if form.has_classes else ("",)
    if not form.has_classes and not legend.is_binary:
        raise UserError(f"{sample}: has no column for classes, found {len(classes)} in {source}; use --foreground")
    if sample is None:
        return _Table(form, classes, None, {})
    rows = [(row.name, row.class_name) for row in read_submission(sample, form)]
    if form.has_classes:
        stated = tuple(dict.fromkeys(class_name for _, class_name in rows))
        unknown = [name for name in classes if name not in stated]
        if unknown:
            raise UserError(
                f"{sample}: class {unknown[0]!r} of {source} is not among {', '.join(stated)}; with --classes name the "
                "labels 0, 1, … as the sample does"
            )
        classes = stated
    return _Table(form, classes, sample, {plain_name(name): name for name, _ in rows})


def _form(kind: str, options: ConvertOptions, sample: Path | None, legend: Legend) -> SubmissionFormat:
    """Returns the columns: a sample's, else our own."""
    if kind == "rle":
        if sample is not None:
            return recognise_format(sample, order=options.order, base=options.base)
        columns: tuple[str, ...] = ("id", "rle") if legend.is_binary else ("id", "class", "rle")
        return SubmissionFormat(columns=columns, order=options.order, base=options.base)
    if sample is None:
        return SubmissionFormat(columns=WKT_COLUMNS if options.grid is None else DSTL_COLUMNS)
    with open_table(sample) as rows:
        header = tuple(next(rows, ()))
    if len(header) != 3 or header[-1].lower() not in WKT_FIELDS:
        raise BadFile(sample, f"expected columns such as {','.join(DSTL_COLUMNS)}, found {','.join(header)[:200]}")
    return SubmissionFormat(columns=header)


def _listed(
    masks: MaskSet, images: FolderMasks | None, sample: Path | None, table: _Table | None
) -> list[tuple[str, str]]:
    """Returns each image's name and how a table or COCO file calls it, in the order in which they are written."""
    names = list(masks.names)
    if sample is not None:
        if table is None:
            raise UserError(f"{sample}: a sample gives the order of a table's rows; state images with --like instead")
        check_against_sample([table.names.get(name, name) for name in names], sample, table.form)
        return list(table.names.items())
    if images is not None and table is None:
        files = {name: path.relative_to(images.origin).as_posix() for name, path in images.files.items()}
        return [(name, files.get(name, name)) for name in names]
    return [(name, name) for name in names]


def _image(
    classified: ClassMasks, name: str, listed_as: str, images: FolderMasks | None, options: ConvertOptions, kind: str
) -> ImageMasks:
    like = _image_like(name, classified, images)
    known = (classified.masks.size(name), images.size(like) if images and like else None, options.size)
    sizes = [each for each in known if each is not None]
    size = sizes[0] if sizes else None
    for other in sizes[1:]:
        if other != size:
            raise BadSize(name, other, sizes[0])
    georeference = None
    if kind in VECTORS or kind == "geotiff":
        own = classified.masks.georeference(name) if isinstance(classified.masks, FolderMasks) else None
        georeference = (images.georeference(like) if images and like else None) or own

    def polygons() -> dict[int, list[Polygon]]:
        found = classified.polygons(name, size)
        if not options.cleans:
            return found
        return {
            label: cleaned(each, simplify=options.simplify, min_area=options.min_area) for label, each in found.items()
        }

    def masks() -> dict[int, np.ndarray]:
        assert size is not None
        if not options.cleans:
            return classified.layers(name, size)
        return {label: drawn(each, size) for label, each in polygons().items()}

    return ImageMasks(name, listed_as, size, georeference, masks, polygons)


def _image_like(name: str, classified: ClassMasks, images: FolderMasks | None) -> str | None:
    """Returns the name of the image that a mask is of; a single image is that of a single mask, however called."""
    if images is None:
        return None
    if name in images.files:
        return name
    single = len(images.files) == 1 == len(list(classified.masks.names))
    return next(iter(images.files)) if single and not isinstance(classified.masks, PolygonMasks) else None


# The loop -----------------------------------------------------------------------------------------------------------


def _write(
    images: Sequence[ImageMasks],
    out: Path,
    kind: str,
    legend: Legend,
    source: Path,
    table: _Table | None,
    grids: Mapping[str, Grid] | None,
    progress: Progress,
) -> None:
    going = _reported(images, progress)
    if kind in FOLDERS:
        write = {"png": write_pngs, "layers": write_layers, "geotiff": write_geotiffs}[kind]
        mark_target(out, source, kind, legend.names if kind == "layers" else None)
        write(out, going, legend)
    elif table is not None and kind == "rle":
        write_run_lengths(out, going, legend, table.form, table.classes)
    elif table is not None:
        write_wkt(out, going, legend, columns=table.form.columns, classes=table.classes, grids=grids)
    elif kind == "coco":
        write_coco(out, going, legend)
    else:
        crs = common_crs(images)
        if crs is None:
            progress.note("no CRS is known: polygons are written in pixels, x to the right and y down")
        write_vectors(out, going, legend, crs=crs)


def _reported(images: Sequence[ImageMasks], progress: Progress) -> Iterator[ImageMasks]:
    for done, image in enumerate(images, start=1):
        yield image
        progress.advance(done, len(images), image.name)
