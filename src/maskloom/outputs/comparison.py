"""Scores of one mask set against another, independent of any run: folders, tables, COCO files, polygons.

Every image is read once; what is kept of it is how often each pair of stored values occurs, so that what the values
mean (foreground, labels, instance ids) can be decided when all have been seen. Outlines are read after that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from maskloom.boundary_score import Tolerance
from maskloom.encodings.rle import Base, Order
from maskloom.errors import UserError, some_of
from maskloom.metrics import Counts, dice, iou, per_class, score_records
from maskloom.outputs.boundary_comparison import BoundaryScores, compare_boundaries
from maskloom.outputs.convert_target import on_this_machine
from maskloom.outputs.mask_sets import (
    FolderMasks,
    MaskSet,
    TableMasks,
    check_areas,
    check_drawable,
    open_mask_set,
)
from maskloom.outputs.polygon_sets import PolygonMasks
from maskloom.records import Size
from maskloom.runtime import num_cores

_NUM_NAMED = 5
_LARGEST_VALUE = 0xFFFF  # a set with a value above holds colours, 0xRRGGBB
_MANY_VALUES = 64  # more different values than this are instance ids where the other side knows only foreground


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageScore:
    """One image: mean Dice and IoU over the classes, and the share of counted pixels that agree."""

    name: str
    dice: float
    iou: float
    accuracy: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What two mask sets have in common.

    ``dice`` is the mean over images and classes, ``iou`` the mean over the classes in the truth of the IoU of summed
    counts (mIoU), as in ``metrics``; binary sets have one class, the foreground. ``accuracy`` is the share of
    counted pixels that agree, over all images. A class that no truth holds has the IoU NaN (null in JSON). ``notes``
    says how values were read.
    """

    kind: Literal["binary", "multiclass"]
    classes: tuple[str, ...]
    dice: float
    iou: float
    accuracy: float
    class_dice: tuple[float, ...]
    class_iou: tuple[float, ...]
    images: tuple[ImageScore, ...]
    missing_predictions: tuple[str, ...]
    missing_truths: tuple[str, ...]
    notes: tuple[str, ...]
    boundary: BoundaryScores | None = None
    """Of outlines, where asked for."""

    def to_json(self) -> dict[str, Any]:
        """Returns plain lists, numbers and texts; the scores per class as ``{name: {"dice": …, "iou": …}}``.

        ``boundary`` is there where it was asked for.
        """
        values = asdict(self)
        del values["boundary"]
        if self.boundary is not None:
            values["boundary"] = self.boundary.to_json(self.classes)
        scores = zip(values.pop("class_dice"), values.pop("class_iou"), strict=True)
        per_name = {
            name: {"dice": first, "iou": None if math.isnan(second) else second}
            for name, (first, second) in zip(self.classes, scores, strict=True)
        }
        lists = {name: list(value) for name, value in values.items() if isinstance(value, tuple)}
        return {**values, **lists, "num_images": len(self.images), "per_class": per_name}

    def table(self) -> str:
        """Returns the scores as lines for a terminal: the means, then each class, then what has to be said."""
        rows = [("mean", self.dice, self.iou), *zip(self.classes, self.class_dice, self.class_iou, strict=True)]
        width = max(len(name) for name, _, _ in rows)
        lines = [f"{len(self.images)} images, {self.kind}, pixel accuracy {self.accuracy:.4f}"]
        lines += [f"{'':<{width}}    Dice     IoU"]
        lines += [f"{name:<{width}}  {first:.4f}  " + _figure(second) for name, first, second in rows]
        if self.boundary is not None:
            column = ["Boundary", *(f"  {_figure(each)}" for each in (self.boundary.score, *self.boundary.mean))]
            lines[1:] = [f"{line}  {text}" for line, text in zip(lines[1:], column, strict=True)]
            lines.append(self.boundary.line())
        missing = (("prediction", self.missing_predictions), ("truth", self.missing_truths))
        lines += [f"left out, without {what}: {some_of(names)}" for what, names in missing if names]
        return "\n".join([*lines, *self.notes])


def compare(
    truth: Path,
    prediction: Path,
    *,
    ignore: int | None = None,
    classes: Sequence[str] | None = None,
    skip_missing: bool = False,
    size: Size | None = None,
    order: Order = "row",
    base: Base = 1,
    foreground: bool = False,
    boundary: Tolerance | None = None,
) -> Comparison:
    """Returns the scores of ``prediction`` against ``truth``: folders, CSV of run lengths or WKT, COCO, vector files.

    Masks are matched by name (stem, without ``_mask``). Binary with ``foreground`` (every value above 0 is the one
    class, as instance ids want it) or when each side has at most one value beside 0, else the values are labels.
    Pixels where the truth is ``ignore`` count nowhere. ``classes`` names the labels 0…n-1. A table's sizes come from
    the other side, or from ``size`` (height, width) when both are tables; ``order`` and ``base`` say how tables count
    pixels. ``boundary`` asks for the scores of outlines that lie so near each other; all images are read again for
    these. Raises ``UserError`` for names on one side only, unless ``skip_missing``, and for photos in place of masks.
    """
    if foreground and classes:
        raise UserError("expected either foreground or the names of classes, found both; leave one of them out")
    truth, prediction = on_this_machine(truth), on_this_machine(prediction)
    folders = [FolderMasks.open(path) if path.is_dir() else None for path in (truth, prediction)]
    sides = (
        folders[0] or open_mask_set(truth, order=order, base=base, images=folders[1]),
        folders[1] or open_mask_set(prediction, order=order, base=base, images=folders[0]),
    )
    true_set, predicted_set = sides if foreground else _numbered(*sides, classes)
    names, missing_predictions, missing_truths = _matched(true_set, predicted_set, skip_missing)
    read = partial(_read_both, true_set, predicted_set, default=size, foreground=foreground)
    with ThreadPoolExecutor(num_cores()) as pool:
        pairs = list(pool.map(lambda name: _count_pairs(*read(name), ignore=ignore), names))
    kind, values, notes = ("binary", [], []) if foreground else _meaning(pairs, ignore, classes)
    if kind == "multiclass":
        _check_colours(true_set, predicted_set, pairs)
        _check_named(names, pairs, values, classes)
    counts = [_counts(each, values) for each in pairs]
    agreements = [_agreement(each, kind) for each in pairs]
    return Comparison(
        kind=kind,
        classes=_class_names(kind, values, classes, (true_set, predicted_set)),
        dice=score_records(counts, "dice"),
        iou=score_records(counts, "iou"),
        accuracy=_share(np.sum(agreements, axis=0)),
        class_dice=tuple(per_class(counts, "dice").tolist()),
        class_iou=tuple(per_class(counts, "iou").tolist()),
        images=tuple(map(_image_score, names, counts, agreements)),
        missing_predictions=tuple(missing_predictions),
        missing_truths=tuple(missing_truths),
        notes=tuple(notes),
        boundary=None
        if boundary is None
        else compare_boundaries(names, read, values, ignore=ignore, tolerance=boundary),
    )


def _figure(score: float) -> str:
    return "     –" if math.isnan(score) else f"{score:.4f}"


def _numbered(truth: MaskSet, prediction: MaskSet, classes: Sequence[str] | None) -> tuple[MaskSet, MaskSet]:
    """Returns both sides with one label value per class name where a table or vector file names its classes."""
    sides: list[MaskSet] = [truth, prediction]
    for index, side in enumerate(sides):
        if not isinstance(side, TableMasks | PolygonMasks) or not side.has_names:
            continue
        other = sides[1 - index]
        if classes:
            known: Mapping[str, int] = {name: value for value, name in enumerate(classes)}
        elif isinstance(other, FolderMasks):
            raise UserError(
                f"{side.origin}: classes are named ({', '.join(list(side.labels_of)[:_NUM_NAMED])}), "
                f"{other.origin} has values; state the class names in the order of their labels"
            )
        elif isinstance(other, TableMasks | PolygonMasks):
            both = sorted(set(side.labels_of) | set(other.labels_of))
            known = {name: value for value, name in enumerate(both, start=1)}
        else:
            known = other.labels_of
        sides[index] = side.numbered(known)
    return sides[0], sides[1]


def _matched(truth: MaskSet, prediction: MaskSet, skip: bool) -> tuple[list[str], list[str], list[str]]:
    """Returns the names on both sides, only in the truth, and only in the prediction."""
    true_names, predicted_names = set(truth.names), set(prediction.names)
    both = sorted(true_names & predicted_names)
    only_true, only_predicted = sorted(true_names - predicted_names), sorted(predicted_names - true_names)
    if not both:
        raise UserError(
            f"no mask of {prediction.origin} ({some_of(only_predicted)}) is called like one of {truth.origin} "
            f"({some_of(only_true)}); names are compared without suffix and '_mask'"
        )
    if (only_true or only_predicted) and not skip:
        parts = [f"{len(only_true)} without prediction: {some_of(only_true)}"] * bool(only_true)
        parts += [f"{len(only_predicted)} without truth: {some_of(only_predicted)}"] * bool(only_predicted)
        raise UserError(
            f"expected the same names on both sides, found {'; '.join(parts)}; add them, or skip the missing"
        )
    return both, only_true, only_predicted


@dataclass(frozen=True, slots=True)
class _Pairs:
    """How many pixels have which stored value in the truth and in the prediction; three arrays of one length."""

    truth: np.ndarray
    prediction: np.ndarray
    pixels: np.ndarray


def _read_both(
    truth: MaskSet, prediction: MaskSet, name: str, *, default: Size | None, foreground: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the stored values of both sides, H×W, truth first; a photo is refused, unless read as ``foreground``."""
    size = truth.size(name) or prediction.size(name) or default
    if size is None:
        raise UserError(
            "two sides of tables or polygons do not tell the images' sizes: state the size (--size HEIGHTxWIDTH), or "
            "give one side as files or COCO"
        )
    measured = isinstance(truth, FolderMasks) or isinstance(prediction, FolderMasks)
    check_drawable(f"{truth.origin}: {name}", size, is_measured=measured)
    true_values, predicted = truth.values(name, size), prediction.values(name, size)
    if true_values.shape != predicted.shape:
        expected, found = (f"{width}×{height}" for height, width in (true_values.shape, predicted.shape))
        raise UserError(f"{name}: the prediction is {found} (width×height), expected the truth's {expected}")
    for side, stored in ((truth, true_values), (prediction, predicted)):
        if isinstance(side, FolderMasks) and not foreground:
            check_areas(stored, side.files[name])
    return true_values, predicted


def _count_pairs(truth: np.ndarray, prediction: np.ndarray, *, ignore: int | None) -> _Pairs:
    pairs = _contingency(truth, prediction)
    counted = np.ones(len(pairs.pixels), bool) if ignore is None else pairs.truth != ignore
    return _Pairs(pairs.truth[counted], pairs.prediction[counted], pairs.pixels[counted])


def _contingency(truth: np.ndarray, prediction: np.ndarray) -> _Pairs:
    base = int(prediction.max()) + 1
    if min(truth.min(), prediction.min()) >= 0 and (int(truth.max()) + 1) * base <= 2**22:
        joint = truth.astype(np.int32) * np.int32(base) + prediction
        table = np.bincount(joint.ravel())
        found = np.flatnonzero(table)
        return _Pairs(found // base, found % base, table[found])
    joint = np.stack([truth.ravel(), prediction.ravel()]).astype(np.int64)
    found, pixels = np.unique(joint[0] << 32 | joint[1] & 0xFFFFFFFF, return_counts=True)
    return _Pairs(found >> 32, (found << 32) >> 32, pixels)


def _meaning(
    pairs: Sequence[_Pairs], ignore: int | None, classes: Sequence[str] | None
) -> tuple[Literal["binary", "multiclass"], list[int], list[str]]:
    """Returns the kind, the label values that are classes (multiclass), and what is to be said about it."""
    true_values = _distinct(each.truth for each in pairs)
    predicted = _distinct(each.prediction for each in pairs)
    few, many = sorted((true_values - {0}, predicted - {0}), key=len)
    are_labels = classes is not None and 1 < len(classes) > max(true_values | predicted, default=0)
    if len(many) <= 1 and not are_labels:
        return "binary", [], []
    if len(few) == 1 and (not few <= many or len(many) > _MANY_VALUES):
        note = (
            f"one side has {len(many)} values, the other only foreground: every value above 0 was taken as foreground"
        )
        return "binary", [], [note]
    values = sorted(true_values | predicted)
    notes = []
    if ignore is None and 255 in true_values:
        notes.append("the value 255 of the truth was scored as a class; state it as the ignore value if it is none")
    return "multiclass", values, notes


def _distinct(arrays: Iterable[np.ndarray]) -> set[int]:
    return {int(value) for array in arrays for value in np.unique(array)}


def _check_colours(truth: MaskSet, prediction: MaskSet, pairs: Sequence[_Pairs]) -> None:
    in_truth = max(_distinct(each.truth for each in pairs), default=0) > _LARGEST_VALUE
    in_prediction = max(_distinct(each.prediction for each in pairs), default=0) > _LARGEST_VALUE
    if in_truth != in_prediction:
        colours, values = (truth, prediction) if in_truth else (prediction, truth)
        raise UserError(f"{colours.origin} holds colours, {values.origin} values; export both in the same coding")


def _check_named(
    names: Sequence[str], pairs: Sequence[_Pairs], values: Sequence[int], classes: Sequence[str] | None
) -> None:
    """Raises ``UserError`` for a label beyond the classes that were named."""
    beyond = [value for value in values if classes and value >= len(classes)]
    if not beyond:
        return
    name = next(
        name for name, each in zip(names, pairs, strict=True) if beyond[0] in each.truth or beyond[0] in each.prediction
    )
    raise UserError(
        f"{name}: expected labels of 0 to {len(classes or ()) - 1}, as many as classes are named, found {beyond[0]}; "
        "name its class, or state it as the value to ignore"
    )


def _counts(pairs: _Pairs, values: Sequence[int]) -> Counts:
    """Returns the counts per class: of the values given, or of the foreground alone when there are none."""
    if values:
        true_is = [pairs.truth == value for value in values]
        predicted_is = [pairs.prediction == value for value in values]
    else:
        true_is, predicted_is = [pairs.truth > 0], [pairs.prediction > 0]
    classes = list(zip(true_is, predicted_is, strict=True))
    return Counts(
        tp=np.array([pairs.pixels[t & p].sum() for t, p in classes], np.int64),
        fp=np.array([pairs.pixels[~t & p].sum() for t, p in classes], np.int64),
        fn=np.array([pairs.pixels[t & ~p].sum() for t, p in classes], np.int64),
    )


def _agreement(pairs: _Pairs, kind: str) -> tuple[int, int]:
    """Returns the pixels that agree and the pixels that count."""
    truth, prediction = (pairs.truth > 0, pairs.prediction > 0) if kind == "binary" else (pairs.truth, pairs.prediction)
    return int(pairs.pixels[truth == prediction].sum()), int(pairs.pixels.sum())


def _share(agreement: Sequence[int] | np.ndarray) -> float:
    return float(agreement[0] / agreement[1]) if agreement[1] else 1.0


def _image_score(name: str, counts: Counts, agreement: tuple[int, int]) -> ImageScore:
    return ImageScore(
        name=name,
        dice=float(dice(counts).mean()),
        iou=float(iou(counts).mean()),
        accuracy=_share(agreement),
    )


def _class_names(
    kind: str, values: Sequence[int], classes: Sequence[str] | None, sides: Sequence[MaskSet]
) -> tuple[str, ...]:
    if kind == "binary":
        return ("foreground",)
    known = {value: name for side in sides for name, value in side.labels_of.items() if name}
    if classes:
        known = dict(enumerate(classes))
    colours = max(values) > _LARGEST_VALUE
    return tuple(known.get(value) or (f"#{value:06x}" if colours else str(value)) for value in values)
