"""The score of Signate's AI Edge contest: per image the mean IoU of the categories in its truth, then over images.

The rules in full. Of an image, those of the scored categories count that its truth holds, be it in one pixel; each is
worth the IoU of its pixels, and the image their mean. A category of the truth that is not predicted is worth 0; one
that is predicted where the truth has none of it changes nothing. An image of which nothing is predicted is worth 0,
like one that is missing altogether. An image whose truth holds no scored category has no mean: it counts nowhere, and
is told. The score is the mean over all images that count. Pixels of label images that are ``IGNORE`` in the truth count
nowhere. Source: github.com/EvgenyKashin/signate_segmentation; there an image of empty truth divides by zero. Knows
nothing about networks.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from maskloom.contests.signate.class_table import ALL, BLACK, category_labels, read_annotation
from maskloom.contests.signate.colours import CATEGORIES, SCORED
from maskloom.contests.signate.submission import ImageSegments, Segments, check_pixels, label_segments, read_submission
from maskloom.data.mask_coding import MaskCoding
from maskloom.errors import BadFile, UserError, closest
from maskloom.metrics import Counts, of_pixels
from maskloom.records import IGNORE, BadSize, Size, Task
from maskloom.stages.contest_score import ContestScore

CONTEST = "SIGNATE AI Edge"
RULE = "the mean IoU of the scored categories that an image's truth holds, then the mean over the images that hold one"
SUFFIX = ".jpg"
"""What the names of the contest's photos end with; where a submission says otherwise, it is right."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SignateScore:
    """What a comparison came to."""

    mean: float
    """The contest's score, 0…1: the mean over ``images``."""
    images: Mapping[str, float]
    """By image, of those that count."""
    categories: Mapping[str, float]
    """By category that occurs: its mean IoU over the images whose truth holds it."""
    empty: tuple[str, ...] = ()
    """Images whose truth holds no scored category: they count nowhere."""
    missing: tuple[str, ...] = ()
    """Images of the truth without a prediction; those that are not ``empty`` are worth 0."""
    extra: tuple[str, ...] = ()
    """Predicted images that the truth does not know: they count nowhere."""


def iou_of_labels(
    truth: np.ndarray, predicted: np.ndarray, classes: Sequence[str], *, categories: Sequence[str] = SCORED
) -> dict[str, float]:
    """Returns the IoU of each category that the truth holds; both are labels H×W, places in ``classes``.

    Pixels whose truth is ``IGNORE`` count nowhere. Raises ``UserError`` for labels of another size, and for a category
    that is no class.
    """
    if truth.ndim != 2 or truth.shape != predicted.shape:
        raise UserError(
            f"expected a prediction of the truth's size {_size(truth)} (width×height), found {_size(predicted)}"
        )
    counted = truth != IGNORE
    found: dict[str, float] = {}
    for category in categories:
        if category not in classes:
            raise UserError(f"no class is called {category!r}; {closest(category, classes)}")
        is_true = truth == classes.index(category)
        num_true = int(np.count_nonzero(is_true))
        if num_true:
            is_found = (predicted == classes.index(category)) & counted
            both = int(np.count_nonzero(is_true & is_found))
            found[category] = both / (num_true + int(np.count_nonzero(is_found)) - both)
    return found


def iou_of_segments(
    truth: ImageSegments, predicted: ImageSegments, *, categories: Sequence[str] = SCORED
) -> dict[str, float]:
    """Returns the IoU of each category that the truth holds, from segments, without drawing them.

    >>> iou_of_segments({"car": np.array([[0, 0, 3]])}, {"car": np.array([[0, 2, 5]])})
    {'car': 0.3333333333333333}
    """
    return {
        category: _iou(truth[category], predicted.get(category, np.zeros((0, 3), np.int64)))
        for category in categories
        if category in truth and len(truth[category])
    }


def _iou(truth: Segments, predicted: Segments) -> float:
    """Returns the IoU of two sorted sets of segments, of which the first is not empty."""
    if not len(predicted):
        return 0.0
    width = int(max(truth[:, 2].max(), predicted[:, 2].max())) + 1
    (starts, ends), (others, other_ends) = _spans(truth, width), _spans(predicted, width)
    lengths = other_ends - others
    before = np.concatenate([[0], np.cumsum(lengths)])

    def covered(places: np.ndarray) -> np.ndarray:
        """Returns how many predicted pixels lie before each place."""
        last = np.searchsorted(others, places, side="right") - 1
        part = np.minimum(places - others[last], lengths[last])
        return np.where(last < 0, 0, before[last] + part)

    both = int((covered(ends) - covered(starts)).sum())
    return both / (int((ends - starts).sum()) + int(lengths.sum()) - both)


def _spans(segments: Segments, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first pixel of each segment and that after its last, counted along rows of so many pixels."""
    first = segments[:, 0] * width
    return first + segments[:, 1], first + segments[:, 2] + 1


def image_score(iou: Mapping[str, float]) -> float | None:
    """Returns the mean over the categories that an image's truth holds; None where it holds none."""
    return float(np.mean(list(iou.values()))) if iou else None


def score(
    images: Iterable[tuple[str, Mapping[str, float]]], *, missing: Sequence[str] = (), extra: Sequence[str] = ()
) -> SignateScore:
    """Returns the contest's score of images, each with the IoU of the categories that its truth holds.

    Raises ``UserError`` when the truth of no image holds a category: there is no mean then.
    """
    values: dict[str, float] = {}
    by_category: dict[str, list[float]] = {}
    empty = []
    for name, iou in images:
        value = image_score(iou)
        if value is None:
            empty.append(name)
            continue
        values[name] = value
        for category, one in iou.items():
            by_category.setdefault(category, []).append(one)
    if not values:
        raise UserError(f"expected a truth with scored categories, found none in {len(empty)} images; nothing to score")
    order = sorted(by_category, key=lambda name: CATEGORIES.index(name) if name in CATEGORIES else len(CATEGORIES))
    return SignateScore(
        mean=float(np.mean(list(values.values()))),
        images=values,
        categories={category: float(np.mean(by_category[category])) for category in order},
        empty=tuple(empty),
        missing=tuple(missing),
        extra=tuple(extra),
    )


def score_of_counts(
    counts: Mapping[str, Counts], task: Task, coding: MaskCoding, *, categories: Sequence[str] = SCORED
) -> ContestScore | None:
    """Returns the contest's score of a run's masks, from the counts of every image by its id.

    A category that no class of the data holds alone, because a table merged it or leaves it out, counts nowhere; None
    where no image's truth holds one that is scored. Counts are of pixels whose truth is known: what is predicted in
    those of categories that the table leaves out is not in them, though the contest counts it, and these are named.
    """
    labels = category_labels(task, coding)
    known = [category for category in categories if category in labels.alone]

    def of_image(image: Counts) -> dict[str, float]:
        scores = of_pixels(image, "iou")
        found = {category: float(scores[labels.alone[category]]) for category in known}
        return {category: value for category, value in found.items() if not math.isnan(value)}

    images = [(name, of_image(image)) for name, image in counts.items()]
    if not any(iou for _, iou in images):
        return None
    found = score(images)
    return ContestScore(
        contest=CONTEST,
        rule=RULE,
        score=found.mean,
        num_images=len(found.images),
        classes=found.categories,
        lacking=[category for category in categories if category not in known],
        ignored=labels.ignored,
    )


def score_files(truth: Path, predicted: Path, *, categories: Sequence[str] = SCORED) -> SignateScore:
    """Returns the score of a prediction; both are a submission, or a folder of colour annotations ``<id>.png``.

    A prediction may be black where it has no category. An annotation is of the photo of its name, whatever suffix the
    other side's submission gives it. Raises ``UserError`` for damaged files, for two categories in one pixel, for
    another size than the truth's, for segments outside of a size that the other side tells, and when no name occurs on
    both sides.
    """
    is_by_stem = truth.is_dir() or predicted.is_dir()
    predictions = _by_key(predicted, _images(predicted, categories, may_be_black=True), is_by_stem=is_by_stem)
    truths = _by_key(truth, _images(truth, categories), is_by_stem=is_by_stem)
    values: list[tuple[str, Mapping[str, float]]] = []
    missing = []
    for key, image in truths.items():
        other = predictions.get(key)
        name = other.name if other is not None and image.size is not None else image.name
        if other is None:
            missing.append(name)
        else:
            _check_sizes(truth, image, predicted, other)
        found = other.segments if other is not None else {}
        values.append((name, iou_of_segments(image.segments, found, categories=categories)))
    if truths and predictions and not truths.keys() & predictions.keys():
        raise UserError(
            f"{predicted}: expected images of {truth.name}, such as {min(image.name for image in truths.values())}, "
            f"found others, such as {min(image.name for image in predictions.values())}"
        )
    extra = sorted(image.name for key, image in predictions.items() if key not in truths)
    return score(values, missing=missing, extra=extra)


@dataclass(frozen=True, slots=True)
class _Image:
    """What one side says of an image; a submission tells no size."""

    name: str
    segments: ImageSegments
    size: Size | None


def _by_key(path: Path, images: Iterable[_Image], *, is_by_stem: bool) -> dict[str, _Image]:
    """Returns the images by name, without its suffix where one side has none of its own."""
    found: dict[str, _Image] = {}
    for image in images:
        key = PurePosixPath(image.name).stem if is_by_stem else image.name
        if key in found:
            raise BadFile(
                path, f"expected names that differ before the suffix, found {found[key].name} and {image.name}"
            )
        found[key] = image
    return found


def _check_sizes(truth: Path, image: _Image, predicted: Path, other: _Image) -> None:
    """Raises ``UserError`` unless both sides may be of one size, as far as they tell it."""
    if image.size and other.size and image.size != other.size:
        raise BadSize(image.name, image.size, other.size)
    if image.size and not other.size:
        check_pixels(predicted, other.name, other.segments, image.size)
    if other.size and not image.size:
        check_pixels(truth, image.name, image.segments, other.size)


def _images(path: Path, categories: Sequence[str], *, may_be_black: bool = False) -> Iterator[_Image]:
    """Yields the images of a submission or a folder in their order."""
    if not path.is_dir():
        for name, segments in read_submission(path):
            check_pixels(path, name, segments)
            yield _Image(name, segments, None)
        return
    files = sorted(path.glob("*.png"))
    if not files:
        raise UserError(f"{path}: expected colour annotations <id>.png, found none; give their folder or a submission")
    coding = replace(ALL.coding(), ignore_colours=(BLACK,) if may_be_black else ())
    for file in files:
        labels = read_annotation(file, coding)
        size = (labels.shape[0], labels.shape[1])
        yield _Image(file.stem + SUFFIX, label_segments(labels, ALL.classes, categories), size)


def _size(labels: np.ndarray) -> str:
    return "×".join(map(str, reversed(labels.shape)))


def main(arguments: Sequence[str] | None = None) -> None:
    """The door: ``python -m maskloom.contests.signate.scoring TRUTH PREDICTION``."""
    parser = argparse.ArgumentParser(description="Scores a prediction as Signate's AI Edge contest does.")
    parser.add_argument("truth", type=Path, help="a submission (JSON) or a folder of colour annotations")
    parser.add_argument("prediction", type=Path, help="the same of the prediction")
    given = parser.parse_args(arguments)
    try:
        found = score_files(given.truth, given.prediction)
    except UserError as error:
        parser.exit(2, f"{error}\n")
    print(f"score: {found.mean:.6f} over {len(found.images)} images")
    for category, value in found.categories.items():
        print(f"  {category}: {value:.6f}")
    for kind in ("empty", "missing", "extra"):
        names = getattr(found, kind)
        if names:
            print(f"{kind}: {len(names)} images ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})")


if __name__ == "__main__":
    main()
