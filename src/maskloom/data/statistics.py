"""A survey of the data: every labelled image and mask is read once, and what is worth knowing about each is kept.

Runs in threads; memory holds a few decoded images and one small row of facts per record. Problems are collected, not
raised. Knows nothing about duplicates and folds; they read the survey.
"""

from __future__ import annotations

import base64
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskloom.data.fingerprints import THUMBNAIL_SIDE, pixel_digest, thumbnail
from maskloom.data.sources.base import DataSource
from maskloom.data.truth import read_sample
from maskloom.data.truth_places import check_place
from maskloom.errors import BadFile, UserError
from maskloom.records import IGNORE, MaskFile, Record, Size, Task


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class RecordFacts:
    """What was seen in one record.

    ``mean`` and ``std`` are per channel on the stored scale. ``class_pixels`` counts the pixels of each class of the
    task (binary: the foreground); ``ignored`` those that count nowhere; ``valid`` all others (of one map).
    ``class_pixels`` is empty for a record without truth. ``thumbnail`` is uint8 32×32.
    """

    id: str
    group: str
    size: Size
    dtype: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_pixels: tuple[int, ...]
    ignored: int
    valid: int
    digest: str
    thumbnail: np.ndarray

    @property
    def num_channels(self) -> int:
        """The number of the image's channels."""
        return len(self.mean)

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        values = {name: getattr(self, name) for name in self.__slots__}
        lists = {name: list(values[name]) for name in ("size", "mean", "std", "class_pixels")}
        return values | lists | {"thumbnail": base64.b64encode(self.thumbnail.tobytes()).decode()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RecordFacts:
        """Returns the facts that ``to_json`` described."""
        pixels = np.frombuffer(base64.b64decode(values["thumbnail"]), np.uint8)
        tuples = {name: tuple(values[name]) for name in ("size", "mean", "std", "class_pixels")}
        return cls(**{**values, **tuples, "thumbnail": pixels.reshape(THUMBNAIL_SIDE, THUMBNAIL_SIDE)})


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Survey:
    """What reading every labelled record found.

    ``records`` are the readable ones in the order of the data; ``bad`` pairs the others' ids with what is wrong.
    ``root`` is the data folder, from which stored paths are counted.
    """

    task: Task
    records: tuple[RecordFacts, ...]
    bad: tuple[tuple[str, BadFile], ...] = ()
    root: Path = Path()

    @property
    def problems(self) -> tuple[BadFile, ...]:
        """What is wrong with the records that could not be read."""
        return tuple(problem for _, problem in self.bad)

    @property
    def bad_ids(self) -> frozenset[str]:
        """The ids of the records that could not be read."""
        return frozenset(record_id for record_id, _ in self.bad)

    @property
    def dtype(self) -> str:
        """The images' number type: the widest of uint8, uint16 and float32 that occurs."""
        found = {facts.dtype for facts in self.records}
        return next((name for name in ("float32", "uint16") if name in found), "uint8")

    @property
    def num_channels(self) -> int:
        """The largest number of channels of an image (0 when nothing could be read)."""
        return max((facts.num_channels for facts in self.records), default=0)

    @property
    def channel_mean(self) -> tuple[float, ...]:
        """Mean per channel over all pixels of the images with the largest number of channels, as stored."""
        weights, means, _ = self._moments()
        return tuple(float(value) for value in weights @ means) if len(weights) else ()

    @property
    def channel_std(self) -> tuple[float, ...]:
        """Standard deviation per channel over all those pixels, as stored."""
        weights, means, deviations = self._moments()
        if not len(weights):
            return ()
        variance = weights @ (deviations**2 + (means - weights @ means) ** 2)
        return tuple(float(value) for value in np.sqrt(variance))

    def _moments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        chosen = [facts for facts in self.records if facts.num_channels == self.num_channels]
        pixels = np.array([facts.size[0] * facts.size[1] for facts in chosen], np.float64)
        weights = pixels / pixels.sum() if len(pixels) else pixels
        return weights, np.array([facts.mean for facts in chosen]), np.array([facts.std for facts in chosen])

    @property
    def class_pixels(self) -> tuple[int, ...]:
        """Pixels per class, summed over the records."""
        counted = [facts.class_pixels for facts in self.records if facts.class_pixels]
        return tuple(int(value) for value in np.sum(counted, axis=0)) if counted else (0,) * self.task.num_maps

    @property
    def valid_pixels(self) -> int:
        """Pixels of all masks that are not ignored."""
        return sum(facts.valid for facts in self.records if facts.class_pixels)

    @property
    def sizes(self) -> Counter[Size]:
        """How many images have each (height, width)."""
        return Counter(facts.size for facts in self.records)

    def areas(self) -> dict[str, float]:
        """Returns the foreground pixels of each record with truth: of the class, or of all but the first class."""
        start = 1 if self.task.kind == "multiclass" else 0
        return {facts.id: float(sum(facts.class_pixels[start:])) for facts in self.records if facts.class_pixels}

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values; paths below the data folder are relative to it."""
        return {
            "task": {"kind": self.task.kind, "classes": list(self.task.classes)},
            "records": [facts.to_json() for facts in self.records],
            "bad": [
                {"id": record_id, "path": _below(problem.path, self.root), "reason": problem.reason}
                for record_id, problem in self.bad
            ],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any], root: Path = Path()) -> Survey:
        """Returns the survey that ``to_json`` described; paths lie below ``root``.

        Raises ``UserError`` when the values are not such a description.
        """
        try:
            return cls(
                task=Task(kind=values["task"]["kind"], classes=tuple(values["task"]["classes"])),
                records=tuple(RecordFacts.from_json(facts) for facts in values["records"]),
                bad=tuple((row["id"], BadFile(root / row["path"], row["reason"])) for row in values["bad"]),
                root=root,
            )
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"expected a stored survey of the data, found something else ({reason})") from None


def survey(
    source: DataSource,
    *,
    workers: int = 4,
    on_progress: Callable[[int, int], object] | None = None,
    unlabelled: bool = False,
) -> Survey:
    """Returns what reading every labelled record found (``unlabelled``: the images without truth as well).

    ``on_progress`` is called with (done, total) in the caller's thread. Files that cannot be used are collected in
    the survey's ``bad``; anything else that goes wrong is raised.
    """
    records = source.records + (source.unlabelled if unlabelled else ())
    results: list[RecordFacts | BadFile | None] = [None] * len(records)
    for done, (index, result) in enumerate(_in_threads(source, records, max(workers, 1)), start=1):
        results[index] = result
        if on_progress is not None:
            on_progress(done, len(records))
    pairs = list(zip(records, results, strict=True))
    return Survey(
        task=source.task,
        records=tuple(result for _, result in pairs if isinstance(result, RecordFacts)),
        bad=tuple((record.id, result) for record, result in pairs if isinstance(result, BadFile)),
        root=source.root,
    )


def _in_threads(
    source: DataSource, records: Sequence[Record], workers: int
) -> Iterator[tuple[int, RecordFacts | BadFile]]:
    """Yields (index, result) as they are ready; only a few records are ever under way."""
    stop = threading.Event()

    def look(record: Record) -> RecordFacts | BadFile:
        if stop.is_set():
            raise RuntimeError("stopped")  # nobody reads it: the caller has left with the first error
        try:
            return examine(record, source)
        except UserError as error:
            return as_bad_file(record, error)

    with ThreadPoolExecutor(workers) as pool:
        pending: dict[Future[RecordFacts | BadFile], int] = {}
        waiting = iter(enumerate(records))
        try:
            while True:
                while len(pending) < 2 * workers and (item := next(waiting, None)) is not None:
                    pending[pool.submit(look, item[1])] = item[0]
                if not pending:
                    return
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    yield pending.pop(future), future.result()
        finally:
            stop.set()


def as_bad_file(record: Record, error: UserError) -> BadFile:
    """Returns the error as one that names a file: the mask where image and mask disagree, else the image."""
    if isinstance(error, BadFile):
        return error
    path = record.truth.path if isinstance(record.truth, MaskFile) else record.image
    return BadFile(path, str(error))


def examine(record: Record, source: DataSource) -> RecordFacts:
    """Returns the facts of one record; raises ``UserError`` when its image or truth cannot be used."""
    sample = read_sample(record, source.task, source.coding)
    check_place(record)
    mean, std = channel_statistics(sample.image)
    class_pixels, ignored, valid = ((), 0, 0) if sample.labels is None else count_pixels(sample.labels, source.task)
    return RecordFacts(
        id=record.id,
        group=record.group,
        size=record.size,
        dtype=str(sample.image.dtype),
        mean=mean,
        std=std,
        class_pixels=class_pixels,
        ignored=ignored,
        valid=valid,
        digest=pixel_digest(sample.image),
        thumbnail=thumbnail(sample.image),
    )


def channel_statistics(image: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of each channel of an H×W×C image, computed in float64."""
    import cv2

    means: list[float] = []
    deviations: list[float] = []
    for start in range(0, image.shape[2], 4):  # OpenCV takes up to four channels at once
        mean, std = cv2.meanStdDev(np.ascontiguousarray(image[:, :, start : start + 4]))
        means += mean.ravel().tolist()
        deviations += std.ravel().tolist()
    return tuple(means), tuple(deviations)


def count_pixels(labels: np.ndarray, task: Task) -> tuple[tuple[int, ...], int, int]:
    """Returns (pixels per class, ignored pixels, valid pixels) of uint8 labels H×W, or C×H×W for multilabel."""
    if task.kind == "multilabel":
        ignored = int((labels == IGNORE).any(axis=0).sum())
        return tuple(int((part == 1).sum()) for part in labels), ignored, labels[0].size - ignored
    counts = np.bincount(labels.ravel(), minlength=256)
    ignored = int(counts[IGNORE])
    chosen = counts[1:2] if task.kind == "binary" else counts[: task.num_maps]
    return tuple(int(count) for count in chosen), ignored, labels.size - ignored


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path.absolute())
