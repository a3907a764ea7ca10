"""Mask sets as others hand them over: a folder of mask files, a table of run lengths, a COCO JSON, polygons.

A set gives one array of stored values H×W per name. Names are what is left of a file name or id without folder of the
set, image suffix and a trailing ``_mask``. Knows nothing about scores or runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from maskloom.data.image_io import IMAGE_SUFFIXES, image_size, read_mask_values
from maskloom.encodings.polygons import rasterize_coco
from maskloom.encodings.rle import Base, Order, coco_runs, fill_runs
from maskloom.encodings.table_files import open_table
from maskloom.encodings.vector_files import VECTOR_SUFFIXES, is_wkt_table
from maskloom.errors import BadFile, UserError
from maskloom.files import read_json
from maskloom.outputs.tables import SubmissionFormat, SubmissionRow, read_submission
from maskloom.rasters.georeference import Georeference, read_georeference
from maskloom.records import Size
from maskloom.runtime import free_memory, json_budget

if TYPE_CHECKING:
    from maskloom.encodings.grid_coordinates import Grid

NAME_COLUMNS = ("img", "id", "image", "name", "imageid", "image_id", "filename", "file_name")
MASK_COLUMNS = ("rle_mask", "rle", "mask", "runs", "encodedpixels", "encoded_pixels", "segmentation")
CLASS_COLUMNS = ("class", "class_name", "classid", "class_id", "label", "category")
MAX_DRAWN = 1_000_000_000
"""The budget for a mask of a stated size that polygons or run lengths are drawn into: 31,600×31,600 pixels."""
_DRAWN_BYTES = 8  # per pixel, while a mask is drawn: of its class, of all, their labels
_FEW_VALUES = 32  # so many different values may lie anyhow
_LOOKED_AT = 64  # rows and columns in which values are counted first


class MaskSet(Protocol):
    """Masks by name."""

    @property
    def origin(self) -> Path:
        """Where the set lies, for messages."""

    @property
    def labels_of(self) -> Mapping[str, int]:
        """The value of each class that the set itself names; empty where it names none."""

    @property
    def names(self) -> Iterable[str]:
        """The names, each once."""

    def size(self, name: str) -> Size | None:
        """Returns (height, width), or None where the set does not know it."""

    def values(self, name: str, size: Size) -> np.ndarray:
        """Returns the stored values, integers H×W; a colour is the number 0xRRGGBB."""

    def layers(self, name: str, size: Size) -> dict[int, np.ndarray]:
        """Returns a bool mask H×W per value that occurs, 0 left out; masks of pieces may overlap."""


@lru_cache(maxsize=16)  # rows of one image follow each other; a path takes 10 µs
def plain_name(name: str) -> str:
    """Returns a file name or id without image suffix and without a trailing ``_mask``; sub-folders stay."""
    path = PurePosixPath(name)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        path = path.with_suffix("")
    return str(path).removesuffix("_mask")


def open_mask_set(
    path: Path,
    *,
    order: Order = "row",
    base: Base = 1,
    classes: Sequence[str] | None = None,
    images: FolderMasks | None = None,
    grids: Mapping[str, Grid] | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> MaskSet:
    """Returns the set at ``path``: a folder, a table, a COCO ``.json``, or a vector file; raises ``UserError``.

    ``order`` and ``base`` say how a table of run lengths counts pixels. A folder in which every image has a file for
    each of ``classes``, or that states its classes, holds layers. ``images`` are those that polygons in the units of a
    CRS are placed on, ``grids`` those of polygons in the coordinates of the Dstl contest.
    """
    from maskloom.outputs.layer_sets import LayerMasks, stated_labels  # which builds on this module, too
    from maskloom.outputs.polygon_sets import PolygonMasks  # which builds on this module

    if path.is_dir():
        labels = stated_labels(path, classes)
        return FolderMasks.open(path) if labels is None else LayerMasks.open(path, labels)
    if not path.exists():
        raise UserError(f"{path}: no such folder or file of masks")
    if path.suffix.lower() == ".json":
        return CocoMasks.open(path)
    is_table = path.name.lower().endswith((".csv", ".csv.gz"))
    if path.suffix.lower() in VECTOR_SUFFIXES or (is_table and is_wkt_table(path)):
        return PolygonMasks.open(path, images=images, grids=grids, note=note)
    if is_table:
        return TableMasks.open(path, order=order, base=base)
    raise UserError(
        f"{path}: expected a folder of masks, a .csv or .csv.gz of run lengths or WKT, a COCO .json, or a vector file "
        f"({', '.join(VECTOR_SUFFIXES)})"
    )


def by_name(items: Iterable[tuple[str, Any]], origin: Path) -> dict[str, Any]:
    """Returns the items by name; raises ``UserError`` for a name that comes twice."""
    found: dict[str, Any] = {}
    for name, item in items:
        if name in found:
            raise UserError(f"{origin}: two masks are called {name!r} (suffix and '_mask' aside); leave one out")
        found[name] = item
    return found


@dataclass(frozen=True, slots=True)
class FolderMasks:
    """Mask files of a folder and its sub-folders; hidden files are left out."""

    origin: Path
    files: Mapping[str, Path]
    labels_of: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> FolderMasks:
        """Returns the mask files below ``folder``; raises ``UserError`` when there are none."""
        relative = sorted(
            path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES
        )
        visible = [path for path in relative if not any(part.startswith(".") for part in path.parts)]
        if not visible:
            raise UserError(f"{folder}: expected mask files ({' '.join(IMAGE_SUFFIXES)}), found none")
        return cls(folder, by_name(((plain_name(path.as_posix()), folder / path) for path in visible), folder))

    @property
    def names(self) -> Iterable[str]:
        """The names, each once."""
        return self.files.keys()

    def size(self, name: str) -> Size:
        """Returns (height, width) from the file's header."""
        return image_size(self.files[name])

    def values(self, name: str, size: Size) -> np.ndarray:
        """Returns the stored values, integers H×W; a colour is the number 0xRRGGBB."""
        stored = read_mask_values(self.files[name])
        if stored.ndim == 2:
            return stored
        red, green, blue = (stored[:, :, channel].astype(np.int32) for channel in range(3))
        return red << 16 | green << 8 | blue

    def layers(self, name: str, size: Size) -> dict[int, np.ndarray]:
        """Returns a bool mask H×W per value that occurs, 0 left out."""
        stored = self.values(name, size)
        return {int(value): stored == value for value in np.unique(stored) if value}

    def georeference(self, name: str) -> Georeference | None:
        """Returns where the file's pixels lie on the ground, or None where it does not say."""
        return read_georeference(self.files[name])


@dataclass(frozen=True, slots=True)
class TableMasks:
    """Run lengths of a table; sizes are not known here. Several rows of one name are classes, or pieces of one."""

    origin: Path
    form: SubmissionFormat
    rows: Mapping[str, Sequence[SubmissionRow]]
    labels_of: Mapping[str, int]

    @classmethod
    def open(cls, path: Path, *, order: Order, base: Base) -> TableMasks:
        """Returns the table's rows; its columns are recognised by their names."""
        form = recognise_format(path, order=order, base=base)
        rows: dict[str, list[SubmissionRow]] = {}
        for row in read_submission(path, form):
            rows.setdefault(plain_name(row.name), []).append(row)
        if not rows:
            raise BadFile(path, "expected rows of run lengths, found only a header")
        classes = sorted({row.class_name for parts in rows.values() for row in parts})
        return cls(path, form, rows, class_values(classes))

    def numbered(self, values: Mapping[str, int]) -> TableMasks:
        """Returns the table with these label values for its classes; raises ``UserError`` for a class without one."""
        check_classes(self.origin, self.labels_of, values)
        return replace(self, labels_of=values)

    @property
    def has_names(self) -> bool:
        """Whether classes are names whose label values the table alone does not tell."""
        return are_names(self.labels_of)

    @property
    def names(self) -> Iterable[str]:
        """The names, each once."""
        return self.rows.keys()

    def size(self, name: str) -> Size | None:
        """Returns None: run lengths do not tell."""
        return None

    def values(self, name: str, size: Size) -> np.ndarray:
        """Returns the label values, H×W."""
        return painted(self._pieces(name, size), size, f"{self.origin}: {name}")

    def layers(self, name: str, size: Size) -> dict[int, np.ndarray]:
        """Returns the bool mask H×W of each label value; they may overlap."""
        return _united(self._pieces(name, size))

    def _pieces(self, name: str, size: Size) -> Iterator[tuple[int, np.ndarray]]:
        for row in self.rows[name]:
            try:
                mask = self.form.decode(row.runs, size)
            except UserError as error:
                raise BadFile(self.origin, f"row {row.name!r}: {error}") from None
            yield self.labels_of[row.class_name], mask


def recognise_format(path: Path, *, order: Order = "row", base: Base = 1) -> SubmissionFormat:
    """Returns the format of a table of exactly a name, a mask and possibly a class column, told by their headings."""
    with open_table(path) as rows:
        header = next(rows, [])
    roles = {"name": NAME_COLUMNS, "mask": MASK_COLUMNS, "class": CLASS_COLUMNS}
    found = {role: [column for column in header if column.lower() in known] for role, known in roles.items()}
    columns = found["name"][:1] + found["class"][:1] + found["mask"][:1]
    if not found["name"] or not found["mask"] or columns != header:
        raise BadFile(
            path, f"expected columns such as img,rle_mask or img,class,rle_mask, found {','.join(header)[:200]}"
        )
    return SubmissionFormat(columns=tuple(columns), order=order, base=base)


def class_values(classes: Sequence[str]) -> dict[str, int]:
    """Returns a label value per class: 1 for a single one, the number for numbers, else 1, 2, … in their order."""
    if len(classes) > 1 and all(name.isdecimal() for name in classes):
        return {name: int(name) for name in classes}
    return {name: index for index, name in enumerate(classes, start=1)}


def are_names(labels_of: Mapping[str, int]) -> bool:
    """Whether several classes are names, which alone do not tell their label values."""
    return len(labels_of) > 1 and not all(name.isdecimal() for name in labels_of)


def check_classes(origin: Path, classes: Iterable[str], known: Iterable[str]) -> None:
    """Raises ``UserError`` for a class of the set at ``origin`` that is not among the known ones."""
    names = list(known)
    unknown = sorted(set(classes) - set(names))
    if unknown:
        raise UserError(f"{origin}: class {unknown[0]!r} is not among {', '.join(names)}")


@dataclass(frozen=True, slots=True)
class CocoMasks:
    """Segmentations of a COCO file, or of a bare list of COCO results (named by their image ids)."""

    origin: Path
    images: Mapping[str, tuple[Any, Size]]
    annotations: Mapping[Any, Sequence[Mapping[str, Any]]]
    labels_of: Mapping[str, int]

    @classmethod
    def open(cls, path: Path) -> CocoMasks:
        """Returns the images and their annotations; raises ``BadFile`` when the file is not COCO."""
        content = read_json(path, max_bytes=json_budget())
        try:
            if isinstance(content, list):
                content = _from_results(content)
            images = [
                (plain_name(each["file_name"]), (_key(each["id"]), _coco_size(each))) for each in content["images"]
            ]
            annotations: dict[Any, list[Mapping[str, Any]]] = {}
            for each in content["annotations"]:
                int(each["category_id"]), each["segmentation"]
                annotations.setdefault(each["image_id"], []).append(each)
            labels = {str(each["name"]): int(each["id"]) for each in content.get("categories", [])}
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise BadFile(path, f"expected COCO images, annotations and categories, found {error!r}") from None
        return cls(path, by_name(images, path), annotations, labels)

    @property
    def names(self) -> Iterable[str]:
        """The names, each once."""
        return self.images.keys()

    def size(self, name: str) -> Size | None:
        """Returns (height, width) as stated."""
        return self.images[name][1]

    def values(self, name: str, size: Size) -> np.ndarray:
        """Returns the category ids, H×W, 0 where nothing is annotated."""
        return painted(self.layers(name, size).items(), self.images[name][1], f"{self.origin}: {name}")

    def layers(self, name: str, size: Size) -> dict[int, np.ndarray]:
        """Returns the bool mask H×W of each category id; they may overlap."""
        identity, size = self.images[name]
        check_drawable(f"{self.origin}: {name}", size)
        segments: dict[int, list[Any]] = {}
        for each in self.annotations.get(identity, ()):
            segments.setdefault(int(each["category_id"]), []).append(each["segmentation"])
        try:
            return {category: _coco_mask(parts, size) for category, parts in segments.items()}
        except (UserError, TypeError) as error:
            raise BadFile(self.origin, f"image {name!r}: {error}") from None


def _coco_mask(segments: Sequence[Any], size: Size) -> np.ndarray:
    """Returns the union of COCO segmentations, H×W; run lengths are united as runs, without drawing each."""
    starts, ends, polygons = [], [], []
    for segment in segments:
        if isinstance(segment, dict):
            *runs, found = coco_runs(segment)
            if found != size:
                raise UserError(f"the image is {size}, a segmentation {found} (height, width)")
            starts.append(runs[0])
            ends.append(runs[1])
        else:
            polygons += segment
    mask = rasterize_coco(polygons, size)
    return mask | fill_runs(*_merged(starts, ends), size, order="column") if starts else mask


def _merged(starts: Sequence[np.ndarray], ends: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the starts and ends of the union of runs: sorted and apart."""
    begin = np.concatenate(starts)
    order = np.argsort(begin, kind="stable")
    begin, end = begin[order], np.maximum.accumulate(np.concatenate(ends)[order])
    is_first = np.append(True, begin[1:] > end[:-1])[: len(begin)]
    return begin[is_first], end[np.append(is_first[1:], True)[: len(end)]]


def _key(identity: Any) -> Any:
    """Returns the id of an image; raises ``TypeError`` for one that no annotation could name, such as a list."""
    hash(identity)
    return identity


def _coco_size(image: Mapping[str, Any]) -> Size:
    size = (int(image["height"]), int(image["width"]))
    if min(size) < 1 or size[0] * size[1] >= 2**32:
        raise ValueError(f"size {size}")
    return size


def _from_results(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    sizes = {each["image_id"]: each["segmentation"]["size"] for each in results}
    images = [{"id": key, "file_name": str(key), "height": h, "width": w} for key, (h, w) in sizes.items()]
    return {"images": images, "annotations": results}


def check_drawable(name: str, size: Size, *, is_measured: bool = False) -> None:
    """Raises ``UserError`` for a mask H×W of more pixels than may be drawn: ``MAX_DRAWN`` of a stated size.

    A size that is ``is_measured``, of an image that is here, may be any for which there is memory.
    """
    pixels = size[0] * size[1]
    if pixels <= MAX_DRAWN:
        return
    if not is_measured:
        budget = f"the budget of {MAX_DRAWN:,} for drawing a whole one; see that its size is right"
    else:
        free = free_memory()
        if pixels * _DRAWN_BYTES <= free:
            return
        budget = f"the {free // _DRAWN_BYTES:,} for which there is memory now ({_DRAWN_BYTES} bytes each); free some"
    raise UserError(
        f"{name}: a mask of {size[1]}×{size[0]} (width×height) = {pixels:,} pixels is over {budget}, or cut it into "
        "tiles"
    )


def _united(pieces: Iterable[tuple[int, np.ndarray]]) -> dict[int, np.ndarray]:
    layers: dict[int, np.ndarray] = {}
    for value, mask in pieces:
        layers[value] = layers[value] | mask if value in layers else mask
    return layers


def check_areas(stored: np.ndarray, origin: Path) -> None:
    """Raises ``UserError`` for stored values H×W that make no areas, as those of a photo; ``origin`` is their file.

    A mask has few values, or most neighbours on the right, or below, are of one value; instance ids are, however many.
    The most frequent value, in front of which objects lie, counts for no neighbour: thin objects have no others, and
    single pixels none at all.
    """
    steps = [max(side // _LOOKED_AT, 1) for side in stored.shape]
    values, counts = np.unique(stored[:: steps[0], :: steps[1]], return_counts=True)
    if len(values) <= _FEW_VALUES:
        return
    ground = values[counts.argmax()]
    for first, second in ((stored[:, :-1], stored[:, 1:]), (stored[:-1], stored[1:])):
        both = (first != ground) & (second != ground)
        if 2 * np.count_nonzero(both & (first == second)) >= np.count_nonzero(both):
            return
    what = "colours" if stored.max() > 0xFFFF else "values"
    raise UserError(
        f"{origin}: expected a mask, which has an area of one value for each class or object; found "
        f"{len(np.unique(stored)):,} different {what} side by side, as in a photo; give the masks, or state that every "
        "value above 0 is one class (--foreground)"
    )


def painted(layers: Iterable[tuple[int, np.ndarray]], size: Size, origin: str, *, blank: int = 0) -> np.ndarray:
    """Returns one label map, int32 H×W, of masks that must not overlap unless they are of one value.

    ``blank`` is left where none of them is. Raises ``UserError``, beginning with ``origin``, for an overlap.
    """
    labels = np.full(size, blank, np.int32)
    taken = np.zeros(size, bool)
    for value, mask in layers:
        if np.any(taken & mask & (labels != value)):
            raise UserError(
                f"{origin}: masks of different classes overlap; write them as <id>/<class>.png (convert: --to layers) "
                "and use those"
            )
        labels[mask] = value
        taken |= mask
    return labels
