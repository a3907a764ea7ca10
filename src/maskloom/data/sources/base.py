"""What every source hands on: records with truth, records without, the task, how masks are coded, every guess made.

Knows nothing about folders, tables or COCO; it holds what they share: sizes by header, groups, limits, duplicate
ids, and what happens to bad files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from maskloom.config import Config
from maskloom.data.image_io import MAX_PIXELS, image_size
from maskloom.data.mask_coding import MaskCoding
from maskloom.data.sources.band_patterns import BandPattern, different
from maskloom.errors import BadFile, UserError, closest, some_of
from maskloom.records import BandFile, CocoSegments, MaskFile, Record, RunLengths, Shapes, Size, Task, TaskKind, Truth

Layout = Literal["auto", "folder", "table", "coco", "polygons", "carvana", "dstl", "signate"]

STACKED_LAYOUTS = ("folder", "polygons")
"""Layouts whose images are found by the names of their files, which may be those of several files each."""

_BATCH = 256  # files per thread task: a header takes about 20 µs, as long as handing over one task
_THREADS = 8

MaskValue = Annotated[int, Field(ge=0, le=65535)]
"""What a pixel of a mask may hold."""


class DataSettings(Config):
    """How a data folder is to be read; everything is inferred unless stated."""

    layout: Layout = "auto"
    """What kind of data it is; "auto" recognises it."""
    images: str | None = None
    """Name of the folder of images, relative to the data."""
    masks: str | None = None
    """Name of the folder of masks, or of the file of polygons, relative to the data. Where `bands` are stated, also a
    TIFF beside them, such as `<id>/mask.tif`."""
    bands: Annotated[list[BandPattern], Field(min_length=1), AfterValidator(different)] | None = None
    """The TIFF files that every image is a stack of, such as `[<id>/B02.tif, <id>/B11.tif]`. The first gives the grid
    and the first bands."""
    classes: list[str] | None = None
    """Class names: of the labels in order, or of the one foreground class."""
    task: TaskKind | None = None
    """binary, multiclass or multilabel."""
    ignore: list[MaskValue] | None = None
    """Stored mask values that count nowhere, 0…65535."""
    column: str | None = None
    """The attribute of polygons that holds their class; "" for none, where all are of one class."""
    group: str | None = None
    """What must stay together in folds: an attribute's name, or a regular expression with one group on the id."""
    skip_bad: bool = False
    """Leave records with damaged files out, and list them, instead of stopping."""
    rle_order: Literal["row", "column"] | None = None
    """How a table's run lengths count pixels."""
    rle_base: Literal[0, 1] | None = None
    """The number of the first pixel in a table's run lengths."""
    limit: int | None = None
    """Use only the first so many groups (for a quick trial)."""


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """Opened data: ``records`` have truth, ``unlabelled`` have none; nothing but headers and tables was read.

    ``notes`` says every guess in words; ``problems`` lists what was left out with ``skip_bad`` (else the first one
    was raised). ``submission`` names the contest whose submission format applies, or is "".
    """

    layout: str
    root: Path
    task: Task
    coding: MaskCoding
    records: tuple[Record, ...]
    unlabelled: tuple[Record, ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[UserError, ...] = ()
    sample_submission: Path | None = None
    submission: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values; paths below ``root`` are relative, others absolute."""
        sample = self.sample_submission
        return {
            "layout": self.layout,
            "task": {"kind": self.task.kind, "classes": list(self.task.classes)},
            "coding": self.coding.to_json(),
            "records": [_record_to_json(record, self.root) for record in self.records],
            "unlabelled": [_record_to_json(record, self.root) for record in self.unlabelled],
            "notes": list(self.notes),
            "problems": [_problem_to_json(problem, self.root) for problem in self.problems],
            "sample_submission": None if sample is None else _relative(sample, self.root),
            "submission": self.submission,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any], root: Path) -> DataSource:
        """Returns the source that ``to_json`` described, with its data now below ``root``.

        Raises ``UserError`` when the values are not such a description.
        """
        try:
            sample = values["sample_submission"]
            return cls(
                layout=values["layout"],
                root=root,
                task=Task(kind=values["task"]["kind"], classes=tuple(values["task"]["classes"])),
                coding=MaskCoding.from_json(values["coding"]),
                records=tuple(_record_from_json(record, root) for record in values["records"]),
                unlabelled=tuple(_record_from_json(record, root) for record in values["unlabelled"]),
                notes=tuple(values["notes"]),
                problems=tuple(_problem_from_json(problem, root) for problem in values["problems"]),
                sample_submission=None if sample is None else root / sample,
                submission=values["submission"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"expected the description of a data source, found something else ({reason})") from None


def finish(source: DataSource, settings: DataSettings) -> DataSource:
    """Returns the source with groups and limit applied, after the checks that every layout shares.

    Raises ``UserError`` for duplicate ids, for problems unless ``skip_bad``, when no record with truth is left, and for
    files of bands that the layout does not ask for.
    """
    if settings.bands is not None and source.layout not in STACKED_LAYOUTS:
        raise UserError(
            f"{source.root}: data.bands: expected a folder of rasters with masks or polygons, found the layout "
            f"{source.layout}, which says itself what its images are made of; leave data.bands out"
        )
    if source.problems and not settings.skip_bad:
        raise first_problem(source.problems)
    check_unique(source.records, source.root)
    check_unique(source.unlabelled, source.root)
    records, unlabelled = source.records, source.unlabelled
    if settings.group is not None:
        known = frozenset(name for record in records for name in record.attributes)
        records = grouped(records, settings.group, known)
        unlabelled = grouped(unlabelled, settings.group, known, strict=False)
    if settings.limit is not None:
        records, unlabelled = first_groups(records, settings.limit), first_groups(unlabelled, settings.limit)
    if not records:
        left_out = (
            f" ({len(source.problems)} were left out, the first: {source.problems[0]})" if source.problems else ""
        )
        raise UserError(f"{source.root}: expected images with masks, found none that can be used{left_out}")
    return replace(source, records=records, unlabelled=unlabelled)


def first_problem(problems: Sequence[UserError]) -> UserError:
    """Returns the first problem as one line that also says how many more there are and how to go on without them."""
    if len(problems) == 1:
        return problems[0]
    first, *others = problems
    names = some_of((problem.path.name for problem in others if isinstance(problem, BadFile)), 3)
    named = f"{names}; " if names else ""
    more = f"; and {len(others)} more files with problems ({named}--skip-bad leaves them out and lists them)"
    if isinstance(first, BadFile):
        return BadFile(first.path, first.reason + more)
    return UserError(str(first) + more)


def check_unique(records: Iterable[Record], root: Path) -> None:
    """Raises ``UserError`` when two records share an id."""
    counts = Counter(record.id for record in records)
    double = [record_id for record_id, count in counts.items() if count > 1]
    if double:
        names = ", ".join(repr(name) for name in double[:3]) + (", …" if len(double) > 3 else "")
        raise UserError(f"{root}: expected each id once, found {len(double)} used twice or more ({names}); rename them")


def grouped(
    records: tuple[Record, ...], group: str, known: Collection[str] = (), *, strict: bool = True
) -> tuple[Record, ...]:
    """Returns the records with their group taken from an attribute, or from a regular expression on the id.

    ``known`` names the attributes. Raises ``UserError`` when ``group`` is neither, or (``strict``) when a record has
    no value or an id does not match.
    """
    if group in known:
        missing = [record.id for record in records if not record.attributes.get(group)]
        if missing and strict:
            raise UserError(f"group {group!r}: expected a value for every record, found none for {missing[0]!r}")
        return tuple(replace(record, group=record.attributes.get(group) or record.id) for record in records)
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise UserError(f"group {group!r}: expected an attribute or a regular expression ({error})") from None
    if pattern.groups != 1:
        hint = f"; {closest(group, known)}" if known else ""
        raise UserError(f"group {group!r}: expected an attribute, or a regular expression with one (group){hint}")
    return tuple(replace(record, group=_matched(pattern, record, strict=strict)) for record in records)


def _matched(pattern: re.Pattern[str], record: Record, *, strict: bool) -> str:
    match = pattern.search(record.id)
    if match is not None and match.group(1):
        return match.group(1)
    if not strict:
        return record.id
    raise UserError(f"group {pattern.pattern!r}: expected a match in every id, found none in {record.id!r}")


def first_groups(records: tuple[Record, ...], limit: int) -> tuple[Record, ...]:
    """Returns the records of the first ``limit`` groups, in order; raises ``UserError`` for a limit below 1."""
    if limit < 1:
        raise UserError(f"limit: expected at least 1 group, found {limit}")
    chosen = set(list(dict.fromkeys(record.group for record in records))[:limit])
    return tuple(record for record in records if record.group in chosen)


def measure(paths: Sequence[Path]) -> list[Size | BadFile]:
    """Returns, in order, the size of each image by its header, or what is wrong with the file; runs in threads.

    A size over the budget for decoding whole images is wrong, too: it is said now rather than hours later.
    """
    batches = [paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH)]
    if len(batches) <= 1:
        return [size for batch in batches for size in _measure_batch(batch)]
    with ThreadPoolExecutor(_THREADS) as pool:
        return [size for sizes in pool.map(_measure_batch, batches) for size in sizes]


def _measure_batch(paths: Sequence[Path]) -> list[Size | BadFile]:
    return [size_or_problem(path) for path in paths]


def size_or_problem(path: Path) -> Size | BadFile:
    """Returns the size of one image by its header, or what is wrong with the file."""
    try:
        return image_size(path, max_pixels=MAX_PIXELS)
    except BadFile as problem:
        return problem


def relabel(task: Task, classes: Sequence[str] | None) -> Task:
    """Returns the task with stated class names; raises ``UserError`` when their number differs."""
    if classes is None:
        return task
    if len(classes) != len(task.classes):
        raise UserError(
            f"classes: expected {len(task.classes)} names for this {task.kind} data, found {len(classes)} "
            f"({', '.join(classes)})"
        )
    return Task(kind=task.kind, classes=tuple(classes))


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path.absolute())


def _record_to_json(record: Record, root: Path) -> dict[str, Any]:
    values: dict[str, Any] = {"id": record.id, "image": _relative(record.image, root), "size": list(record.size)}
    if record.truth is not None:
        values["truth"] = _truth_to_json(record.truth, root)
    if record.group != record.id:
        values["group"] = record.group
    if record.split:
        values["split"] = record.split
    if record.attributes:
        values["attributes"] = dict(record.attributes)
    if record.bands:
        values["bands"] = [_band_to_json(band, root) for band in record.bands]
    return values


def _record_from_json(values: dict[str, Any], root: Path) -> Record:
    truth = values.get("truth")
    return Record(
        id=values["id"],
        image=root / values["image"],
        size=(int(values["size"][0]), int(values["size"][1])),
        truth=None if truth is None else _truth_from_json(truth, root),
        group=values.get("group", ""),
        split=values.get("split", ""),
        attributes=values.get("attributes", {}),
        bands=tuple(_band_from_json(band, root) for band in values.get("bands", ())),
    )


def _band_to_json(band: BandFile, root: Path) -> dict[str, Any]:
    return {"path": _relative(band.path, root), "resampling": band.resampling, "moved": list(band.moved)}


def _band_from_json(values: dict[str, Any], root: Path) -> BandFile:
    a, b, c, d, e, f = map(float, values["moved"])
    return BandFile(path=root / values["path"], resampling=values["resampling"], moved=(a, b, c, d, e, f))


def _truth_to_json(truth: Truth, root: Path) -> dict[str, Any]:
    if isinstance(truth, MaskFile):
        return {"mask": _relative(truth.path, root)}
    if isinstance(truth, RunLengths):
        return {"runs": [list(run) for run in truth.runs], "order": truth.order, "base": truth.base}
    if isinstance(truth, Shapes):
        return {"wkt": [list(shape) for shape in truth.wkt]}
    return {"segments": [list(segment) for segment in truth.segments]}


_TRUTHS: dict[str, Callable[[dict[str, Any], Path], Truth]] = {
    "mask": lambda values, root: MaskFile(path=root / values["mask"]),
    "runs": lambda values, root: RunLengths(
        runs=tuple((int(label), text) for label, text in values["runs"]), order=values["order"], base=values["base"]
    ),
    "wkt": lambda values, root: Shapes(wkt=tuple((int(label), text) for label, text in values["wkt"])),
    "segments": lambda values, root: CocoSegments(
        segments=tuple((int(label), segment) for label, segment in values["segments"])
    ),
}


def _truth_from_json(values: dict[str, Any], root: Path) -> Truth:
    return next(build for name, build in _TRUTHS.items() if name in values)(values, root)


def _problem_to_json(problem: UserError, root: Path) -> dict[str, str]:
    if isinstance(problem, BadFile):
        return {"path": _relative(problem.path, root), "reason": problem.reason}
    return {"message": str(problem)}


def _problem_from_json(values: dict[str, str], root: Path) -> UserError:
    if "path" in values:
        return BadFile(root / values["path"], values["reason"])
    return UserError(values["message"])
