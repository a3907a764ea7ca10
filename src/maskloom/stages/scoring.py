"""What the scoring stages share: reading images with the right channels, deciding at one half, a member's classes.

A part of a scene is read with so much around it that its border does not show, and predicted as a scene's blocks are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from maskloom.data.dataset import with_channels
from maskloom.data.input_policy import InputPolicy
from maskloom.data.record_images import read_pixels, read_record_image
from maskloom.data.scene_parts import ScenePart
from maskloom.ensembling.thresholds import HALF, decide
from maskloom.inference.blocks import BlockPixels, block_grid, predict_block, read_block
from maskloom.records import Record, Size, Task
from maskloom.windows import Window

Seen = tuple[np.ndarray, dict[str, np.ndarray]] | BlockPixels
"""What is predicted from: an image H×W×C with the maps given with it, or what was read for a part of a scene."""


def image_reader(channels: int, *, takes_grey: bool = True) -> Callable[[Record], np.ndarray]:
    """Returns a function from record to image H×W×``channels``, which refuses grey unless it ``takes_grey``."""

    def read(record: Record) -> np.ndarray:
        return with_channels(read_record_image(record), channels, record.image, takes_grey=takes_grey)

    return read


def reader_with_maps(
    channels: int, maps: Callable[[Record], dict[str, np.ndarray]], *, takes_grey: bool = True
) -> Callable[[Record], tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Returns a function from record to its image H×W×``channels`` and to the maps that are given with it."""
    image = image_reader(channels, takes_grey=takes_grey)
    return lambda record: (image(record), maps(record))


def reader_of_parts(
    channels: int,
    policy: InputPolicy,
    maps: Callable[[Record], dict[str, np.ndarray]],
    *,
    overlap: float | None = None,
    whole_pixels: int | None = None,
) -> Callable[[Record], Seen]:
    """Returns a function from record to what is predicted from, by networks of that policy.

    ``overlap`` of tiles is a fraction of their side; None: as the policy says. They are asked at once about scenes of
    at most ``whole_pixels`` pixels.
    """
    whole = reader_with_maps(channels, maps)

    def read(record: Record) -> Seen:
        if not isinstance(record, ScenePart):
            return whole(record)
        size, networks = record.scene.size, [(policy, None)]
        grid = block_grid(size, networks, channels=channels, overlap=overlap, whole_pixels=whole_pixels)
        # Parts lie on no grid of tiles: all that is read around one is predicted.
        found = read_block(_SceneFiles(record.scene), replace(grid, stride=None), record.window)
        if found.pixels is None:
            return found
        return replace(found, pixels=with_channels(found.pixels, channels, record.image))

    return read


def answer(
    predictor: Callable[..., dict[str, np.ndarray]], task: Task, names: tuple[str, ...]
) -> Callable[[Seen], dict[str, np.ndarray]]:
    """Returns the function that gives 8-bit maps C×H×W by name of what was read; a part without valid pixels is 0."""

    def predict(seen: Seen) -> dict[str, np.ndarray]:
        if not isinstance(seen, BlockPixels):
            return predictor(*seen)
        maps = predict_block(predictor, seen)
        if maps is not None:
            return maps
        return {name: np.zeros((task.num_maps, *seen.is_valid.shape), np.uint8) for name in names}

    return predict


@dataclass(frozen=True, slots=True)
class _SceneFiles:
    """The files of a record, to be read by window; opened for each window."""

    record: Record

    @property
    def size(self) -> Size:
        """Height and width."""
        return self.record.size

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Returns a window's pixels H×W×C as stored and where they are valid, H×W."""
        return read_pixels(self.record, window)


def decided(values: np.ndarray, task: Task) -> np.ndarray:
    """Returns labels from 8-bit maps C×H×W at one half (binary, multilabel) or by the largest (multiclass)."""
    return decide(values, [HALF] * task.num_maps, task)


def of_classes(labels: np.ndarray, part: Task, whole: Task) -> np.ndarray:
    """Returns the labels C×H×W of a task's part; all where the part is the whole."""
    return labels if part == whole else labels[[whole.classes.index(name) for name in part.classes]]
