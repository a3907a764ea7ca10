"""Which classes a source has: stated beside the data, stated in settings, or guessed; shared by all layouts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from maskloom.data.guessed_classes import Guess, infer_coding
from maskloom.data.mask_coding import MaskCoding
from maskloom.data.scene_truth import PolygonTruth
from maskloom.data.sources.base import DataSettings, relabel
from maskloom.data.stated_classes import find_classes_yaml, read_classes_yaml, stated_coding
from maskloom.data.truth import pieces
from maskloom.errors import UserError
from maskloom.records import CocoSegments, Record, RunLengths, Shapes, Task, TaskKind
from maskloom.windows import Window

BACKGROUND = "background"

_SAMPLE = 64  # records painted to see whether classes overlap
_OVERLAP = 0.01  # share of painted pixels; outlines of neighbours touch in a few
_STRIP_ROWS = 512  # rows of a scene that are painted at a time


def classes_of_masks(root: Path, masks: Sequence[Path], settings: DataSettings) -> Guess:
    """Returns task, coding and the note on them for mask files: from settings, else ``classes.yaml``, else guessed."""
    stated = find_classes_yaml(root)
    if stated is not None:
        return _from_yaml(stated, settings)
    guess = infer_coding(masks, task=settings.task, ignore=settings.ignore or ())
    names = settings.classes
    if names is None:
        return guess
    if len(names) == len(guess.task.classes):
        return replace(guess, task=relabel(guess.task, names))
    if len(names) == 1 and settings.task is None:
        return replace(infer_coding(masks, task="binary", ignore=settings.ignore or ()), task=_binary(names[0]))
    task, coding = stated_coding(names, ignore=settings.ignore or (), task=settings.task)
    return Guess(task=task, coding=coding, note=f"classes as stated, by position: {describe(task)}")


def _binary(name: str) -> Task:
    return Task(kind="binary", classes=(name,))


def _from_yaml(path: Path, settings: DataSettings) -> Guess:
    task, coding = read_classes_yaml(path)
    if settings.task is not None and settings.task != task.kind:
        raise UserError(f"{path}: this is a {task.kind} task, the settings state {settings.task}; change one of them")
    task = relabel(task, settings.classes)
    if settings.ignore and coding.kind == "colours":
        raise UserError(f"data.ignore={settings.ignore}: {path} states colours; state ignore: [r, g, b] there instead")
    if settings.ignore is not None:
        coding = replace(
            coding,
            values=tuple(pair for pair in coding.values if pair[0] not in settings.ignore),
            ignore=tuple(settings.ignore),
        )
    return Guess(task=task, coding=coding, note=f"{path.name}: {describe(task)}")


def describe(task: Task) -> str:
    """Returns the task in a few words."""
    names = ", ".join(task.classes[:12]) + (", …" if len(task.classes) > 12 else "")
    return f"{task.kind} with {len(task.classes)} class{'es' * (len(task.classes) > 1)} ({names})"


def notes_on_unused_yaml(root: Path) -> list[str]:
    """Returns what has to be said about a ``classes.yaml`` beside truth that it cannot describe; [] for none."""
    stated = find_classes_yaml(root)
    if stated is None:
        return []
    return [f"{stated.name} is not used: the classes come with the truth; name them with --set data.classes=…"]


def classes_of_pieces(
    records: Sequence[Record], names: Sequence[str], settings: DataSettings
) -> tuple[Task, tuple[Record, ...], str]:
    """Returns task, records and note for truth in pieces (run lengths, shapes, segments) of named classes.

    One name is binary. More are multiclass, with a background class added in front, unless pieces of different
    classes overlap: then multilabel. A stated task is kept to. Raises ``UserError`` for stated ignore values, which
    pieces do not have.
    """
    if settings.ignore:
        raise UserError(f"data.ignore={settings.ignore}: expected mask files, whose values it names; leave it out")
    kind = settings.task or _guess_kind(records, names)
    reason = "as stated" if settings.task else "guessed from the number of classes and their overlap"
    if kind == "binary":
        if len(names) > 1:
            raise UserError(f"a binary task has one foreground class, the data name {len(names)}: {', '.join(names)}")
        task = _binary(names[0])
    elif kind == "multilabel":
        task = Task(kind=kind, classes=tuple(names))
    else:
        if BACKGROUND in names:
            raise UserError(f"expected names of objects, found a class {BACKGROUND!r}, which is what nothing covers")
        task = Task(kind=kind, classes=(BACKGROUND, *names))
        records = [_shifted(record) for record in records]
    return task, tuple(records), f"{describe(task)}, {reason}; state it with --set data.task=… if this is wrong"


def _guess_kind(records: Sequence[Record], names: Sequence[str]) -> TaskKind:
    if len(names) == 1:
        return "binary"
    several = [record for record in records if len(_labels(record)) > 1]
    painted = shared = 0
    for record in several[:: max(1, len(several) // _SAMPLE)][:_SAMPLE]:
        try:
            for covers in _covers(record, names):
                counts = np.count_nonzero(covers, axis=0)
                painted, shared = painted + int((counts > 0).sum()), shared + int((counts > 1).sum())
        except UserError:
            continue  # reading the record will report it
    return "multilabel" if shared > _OVERLAP * painted else "multiclass"


def _covers(record: Record, names: Sequence[str]) -> Iterator[np.ndarray]:
    """Yields where each class lies, C×h×W, in strips from top to bottom where polygons cover a scene of any size."""
    if isinstance(record.truth, Shapes):
        whole, (height, width) = Task(kind="multilabel", classes=tuple(names)), record.size
        truth = PolygonTruth(record.size, record.truth.wkt)
        for top, bottom in pairwise([*range(0, height, _STRIP_ROWS), height]):
            yield truth.labels(Window(top, 0, bottom - top, width), whole)
        return
    covers = np.zeros((len(names), *record.size), np.uint8)
    for label, mask in pieces(record, record.size):
        covers[label][mask] = 1
    yield covers


def _labels(record: Record) -> set[int]:
    truth = record.truth
    if isinstance(truth, RunLengths):
        return {label for label, _ in truth.runs}
    if isinstance(truth, Shapes):
        return {label for label, _ in truth.wkt}
    return {label for label, _ in truth.segments} if isinstance(truth, CocoSegments) else set()


def _shifted(record: Record) -> Record:
    """Returns the record with 0 left free for the background."""
    truth = record.truth
    if isinstance(truth, RunLengths):
        return replace(record, truth=replace(truth, runs=tuple((label + 1, text) for label, text in truth.runs)))
    if isinstance(truth, Shapes):
        return replace(record, truth=replace(truth, wkt=tuple((label + 1, text) for label, text in truth.wkt)))
    if isinstance(truth, CocoSegments):
        segments = tuple((label + 1, segment) for label, segment in truth.segments)
        return replace(record, truth=replace(truth, segments=segments))
    return record


PIECES = MaskCoding(kind="foreground")
"""The coding of sources without mask files."""
