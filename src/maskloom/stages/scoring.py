"""What the scoring stages share: reading images with the right channels, deciding at one half, a member's classes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from maskloom.data.dataset import with_channels
from maskloom.data.record_images import read_record_image
from maskloom.ensembling.thresholds import HALF, decide
from maskloom.records import Record, Task


def image_reader(channels: int) -> Callable[[Record], np.ndarray]:
    """Returns a function from record to image H×W×``channels``."""

    def read(record: Record) -> np.ndarray:
        return with_channels(read_record_image(record), channels, record.image)

    return read


def reader_with_maps(
    channels: int, maps: Callable[[Record], dict[str, np.ndarray]]
) -> Callable[[Record], tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Returns a function from record to its image H×W×``channels`` and to the maps that are given with it."""
    image = image_reader(channels)
    return lambda record: (image(record), maps(record))


def decided(values: np.ndarray, task: Task) -> np.ndarray:
    """Returns labels from 8-bit maps C×H×W at one half (binary, multilabel) or by the largest (multiclass)."""
    return decide(values, [HALF] * task.num_maps, task)


def of_classes(labels: np.ndarray, part: Task, whole: Task) -> np.ndarray:
    """Returns the labels C×H×W of a task's part; all where the part is the whole."""
    return labels if part == whole else labels[[whole.classes.index(name) for name in part.classes]]
