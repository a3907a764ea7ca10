"""What the values of a mask set mean: class names by label, stated or found; and the set read by them.

Label values are kept as they are stored, so that labels written and read again are the same numbers. Knows nothing
about what the masks are written as.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.data.guessed_classes import infer_coding
from maskloom.data.mask_coding import MaskCoding, apply_known
from maskloom.data.mask_files import read_stored
from maskloom.encodings.outlines import outlines
from maskloom.errors import UserError
from maskloom.outputs.mask_sets import CocoMasks, FolderMasks, MaskSet, check_classes
from maskloom.outputs.polygon_sets import PolygonMasks
from maskloom.records import IGNORE, Size, Task

if TYPE_CHECKING:
    from shapely import Polygon

BACKGROUND = "background"
FOREGROUND = "foreground"

_BLACK = "#000000"
_GUESS_ENDS = "; state it in classes.yaml"  # which other commands read


@dataclass(frozen=True, slots=True)
class Legend:
    """Class names by label value. What is called background is no class; a binary set has one."""

    names: Mapping[int, str]
    is_binary: bool

    @property
    def blank(self) -> int:
        """The value of a pixel of no class: 0, or ``IGNORE`` where 0 is a class."""
        return IGNORE if 0 in self.names else 0

    def task(self) -> Task:
        """Returns the task whose COCO categories have the label values as ids, where a task can have them."""
        if self.is_binary:
            return Task(kind="binary", classes=tuple(self.names.values()))
        if max(self.names) >= IGNORE:
            return Task(kind="multilabel", classes=tuple(self.names.values()))
        names = (self.names.get(value, str(value)) for value in range(1, max(self.names) + 1))
        return Task(kind="multiclass", classes=(self.names.get(0, BACKGROUND), *names))


@dataclass(frozen=True, slots=True)
class ClassMasks:
    """A mask set by its legend: ``coding`` says what the values of files mean, ``labels`` what those of others do."""

    masks: MaskSet
    legend: Legend
    coding: MaskCoding | None
    labels: Mapping[int, int]

    def layers(self, name: str, size: Size) -> dict[int, np.ndarray]:
        """Returns the bool mask H×W of each label that occurs, ``IGNORE`` among them; they may overlap."""
        if self.coding is not None and isinstance(self.masks, FolderMasks):
            path = self.masks.files[name]
            labels = apply_known(self.coding, *read_stored(path), path)
            known = {*self.legend.names, IGNORE}
            return {int(value): labels == value for value in np.unique(labels) if int(value) in known}
        layers: dict[int, np.ndarray] = {}
        for value, mask in self.masks.layers(name, size).items():
            label = self.labels[value]
            if label in self.legend.names:
                layers[label] = layers[label] | mask if label in layers else mask
        return layers

    def polygons(self, name: str, size: Size | None) -> dict[int, list[Polygon]]:
        """Returns the polygons in pixels of each class that occurs; only polygons in pixels need no ``size``."""
        if not isinstance(self.masks, PolygonMasks):
            assert size is not None
            layers = self.layers(name, size)
            return {label: outlines(mask) for label, mask in layers.items() if label in self.legend.names}
        found: dict[int, list[Polygon]] = {}
        for value, polygons in self.masks.polygons(name, size).items():
            if self.labels[value] in self.legend.names:
                found.setdefault(self.labels[value], []).extend(polygons)
        return found


def with_legend(
    masks: MaskSet, *, classes: Sequence[str] | None = None, foreground: bool = False, ignore: int | None = None
) -> tuple[ClassMasks, str]:
    """Returns the set with its legend, and a note on what was guessed ("" for nothing).

    ``classes`` names the labels 0, 1, … (one name: the foreground); ``foreground`` takes every value above 0 as the one
    class; ``ignore`` is a stored value that is no class. Without them, the values of files are looked at, and the
    classes of tables, COCO and polygons are numbered as ``outputs.mask_sets`` numbers them.
    """
    if classes is not None and (len(set(classes)) != len(classes) or not all(classes) or len(classes) > IGNORE):
        raise UserError(f"--classes: expected up to {IGNORE} different names a,b,c, found {','.join(classes)!r:.80}")
    if foreground and classes and len(classes) > 1:
        raise UserError("expected either the foreground or the names of several classes, found both; leave one out")
    if isinstance(masks, FolderMasks):
        return _of_files(masks, classes, foreground, ignore)
    if ignore is not None:
        raise UserError(f"{masks.origin}: --ignore names a value of mask files, found none here; leave it out")
    return ClassMasks(masks, *_of_names(_labels_of(masks), masks, classes, foreground)), ""


def _labels_of(masks: MaskSet) -> dict[str, int]:
    """Returns the value of each class; a COCO category that the file does not name is called by its id."""
    labels = dict(masks.labels_of)
    if isinstance(masks, CocoMasks):
        ids = {int(each["category_id"]) for parts in masks.annotations.values() for each in parts}
        labels |= {str(value): value for value in sorted(ids - set(labels.values()))}
    if "" in labels and len(labels) > 1:
        raise UserError(f"{masks.origin}: some masks have a class ({max(labels)}), others have none; name one for each")
    return labels


def _of_files(
    masks: FolderMasks, classes: Sequence[str] | None, foreground: bool, ignore: int | None
) -> tuple[ClassMasks, str]:
    files = list(masks.files.values())
    ignored = () if ignore is None else (ignore,)
    if foreground:
        coding = MaskCoding(kind="foreground", ignore=ignored)
        return ClassMasks(masks, _binary(classes), coding, {}), ""
    one_class = classes is not None and len(classes) == 1
    guess = infer_coding(files, task="binary" if one_class else None, ignore=ignored)
    note = guess.note.partition(_GUESS_ENDS)[0] + "; --classes or --foreground state it"
    if guess.task.kind == "binary" and (classes is None or len(classes) <= 2):
        return ClassMasks(masks, _binary(classes), guess.coding, {}), note
    if guess.coding.kind == "colours":
        names = tuple(classes or guess.task.classes)
        if len(names) != len(guess.task.classes):
            raise UserError(
                f"{masks.origin}: expected {len(guess.task.classes)} names, one per colour, found {len(names)}"
            )
        return ClassMasks(masks, _several(dict(enumerate(names))), guess.coding, {}), note
    if classes is not None:
        void = (IGNORE,) if ignore is None else ignored
        coding = MaskCoding(kind="values", values=tuple((value, value) for value in range(len(classes))), ignore=void)
        return ClassMasks(masks, _several(dict(enumerate(classes))), coding, {}), ""
    stored = [value for value, _ in guess.coding.values]
    coding = MaskCoding(kind="values", values=tuple((value, value) for value in stored), ignore=guess.coding.ignore)
    return ClassMasks(masks, _several({value: str(value) for value in stored if value}), coding, {}), note


def _of_names(
    labels_of: Mapping[str, int], masks: MaskSet, classes: Sequence[str] | None, foreground: bool
) -> tuple[Legend, None, dict[int, int]]:
    """Returns the legend, no coding, and the label of each value of a set that names its classes."""
    if foreground or (len(labels_of) <= 1 and (classes is None or len(classes) <= 2)):
        own = [name for name in labels_of if name and len(labels_of) == 1]
        return _binary(own if classes is None else classes), None, dict.fromkeys(labels_of.values(), 1)
    if classes is None:
        return _several({value: name for name, value in labels_of.items()}), None, {v: v for v in labels_of.values()}
    check_classes(masks.origin, labels_of, classes)
    places = {name: place for place, name in enumerate(classes)}
    return _several(dict(enumerate(classes))), None, {value: places[name] for name, value in labels_of.items()}


def _binary(classes: Sequence[str] | None) -> Legend:
    return Legend({1: classes[-1] if classes else FOREGROUND}, is_binary=True)


def _several(names: Mapping[int, str]) -> Legend:
    found = {value: name for value, name in sorted(names.items()) if value or name.lower() not in (BACKGROUND, _BLACK)}
    return Legend(found, is_binary=False)
