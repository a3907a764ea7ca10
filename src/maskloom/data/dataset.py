"""Records to samples as the network sees them: read, resized or cut to a window, with the draw of its augmentation.

What a sample is depends on nothing but the dataset and its key: (seed, epoch, record, draw) decide all randomness.
Knows nothing of batches and processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from maskloom.data.augment import AugmentSettings, Draw, clahe, draw
from maskloom.data.input_policy import (
    InputPolicy,
    content_size,
    pad_image,
    pad_labels,
    place,
    resize_image,
    resize_labels,
)
from maskloom.data.mask_coding import MaskCoding
from maskloom.data.truth import read_sample
from maskloom.errors import BadFile, UserError
from maskloom.records import IGNORE, Record, Size, Task
from maskloom.runtime import generator
from maskloom.windows import Window


class Key(NamedTuple):
    """Names one draw of one record in one epoch."""

    epoch: int
    record: int
    """Its position in the dataset."""
    draw: int
    """0 for the first time that the record comes in the epoch, 1 for the second …"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One training sample: a window, or the whole image after resizing and before padding."""

    id: str
    path: Path
    """Of the image, for messages."""
    image: np.ndarray
    """H×W×C as stored: uint8, uint16 or float32."""
    labels: np.ndarray
    """uint8 H×W (binary, multiclass) or C×H×W (multilabel)."""
    draw: Draw | None
    """What happens to it on the device; None where the settings change nothing."""


@dataclass(frozen=True, kw_only=True)
class SegmentationDataset:
    """The training samples of one network; ``dataset[key]`` reads, resizes and cuts one."""

    records: Sequence[Record]
    task: Task
    coding: MaskCoding
    policy: InputPolicy
    augment: AugmentSettings
    seed: int
    channels: int = 3
    """Of the network's input; grey images are repeated to three."""

    def __post_init__(self) -> None:
        if not self.records:
            raise UserError("expected at least one image with a mask to learn from, found none")
        for record in self.records:
            if record.truth is None:
                raise UserError(f"{record.image}: expected a mask to learn from, found none; leave the image out")
        if self.augment.transpose > 0:
            self._check_squares()

    def _check_squares(self) -> None:
        for record in self.records:
            placement = place(record.size, self.policy)
            height, width = self.policy.size if self.policy.mode == "window" and self.policy.size else placement.padded
            if height != width:
                raise UserError(
                    f"{record.image}: augment.transpose expects square inputs, found {width}×{height} (width×height); "
                    "set augment.transpose=0, or choose square windows or a square size"
                )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: Key) -> Item:
        """Returns the sample of that key; raises ``BadFile`` or ``BadSize``."""
        record = self.records[key.record]
        sample = read_sample(record, self.task, self.coding)
        if sample.labels is None:
            raise BadFile(record.image, "expected a mask to learn from, found none")
        image = with_channels(sample.image, self.channels, record.image)
        size = content_size(record.size, self.policy)
        image, labels = resize_image(image, size), resize_labels(sample.labels, size)
        if self.policy.mode == "window":
            image, labels = self._cut(image, labels, self._generator("window", record, key))
        drawn = None
        if not self.augment.is_identity:
            drawn = draw(self.augment, self._generator("augment", record, key), (image.shape[0], image.shape[1]))
            image = clahe(image) if drawn.clahe else image
            _check_floats(image, drawn, record.image)
        return Item(id=record.id, path=record.image, image=image, labels=labels, draw=drawn)

    def _generator(self, purpose: str, record: Record, key: Key) -> np.random.Generator:
        return generator(self.seed, purpose, key.epoch, record.id, key.draw)

    def _cut(self, image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Returns a random window of image and labels; an image smaller than that is padded, its labels by IGNORE."""
        assert self.policy.size is not None  # the policy sees to that
        padding = place(labels.shape[-2:], self.policy.model_copy(update={"scale": 1.0})).padding
        image, labels = pad_image(image, padding, self.policy), pad_labels(labels, padding)
        prefers = rng.random() < self.policy.prefer_class
        centre = class_pixel(labels, self.task, rng) if prefers else None
        rows, columns = choose_window(labels.shape[-2:], self.policy.size, rng, centre=centre).slices
        return image[rows, columns], labels[..., rows, columns]


def _check_floats(image: np.ndarray, drawn: Draw, path: Path) -> None:
    if image.dtype != np.float32 or not drawn.colour[:3].any():
        return
    low, high = float(image.min()), float(image.max())
    if low < 0 or high > 1:
        raise BadFile(
            path,
            f"augment.hue, saturation and value expect float images in 0…1, found {low:g}…{high:g}; "
            "set augment.colour=0, or scale the images",
        )


def with_channels(image: np.ndarray, channels: int, path: Path) -> np.ndarray:
    """Returns the H×W×C image with ``channels`` channels: grey is repeated to three, other differences are refused."""
    if image.shape[2] == channels:
        return image
    if image.shape[2] == 1 and channels == 3:
        return np.repeat(image, 3, axis=2)
    raise BadFile(
        path,
        f"expected an image of {channels} channel(s) as the network takes, found {image.shape[2]}; "
        f"convert the image, or set network.channels={image.shape[2]} if all images are like this",
    )


def choose_window(
    size: Size, window: Size, rng: np.random.Generator, *, centre: tuple[int, int] | None = None
) -> Window:
    """Returns a window inside an image of ``size``: anywhere, or as near to ``centre`` (row, column) as it fits."""
    top, left = (int(rng.integers(length - part + 1)) for length, part in zip(size, window, strict=True))
    if centre is not None:
        top = min(max(centre[0] - window[0] // 2, 0), size[0] - window[0])
        left = min(max(centre[1] - window[1] // 2, 0), size[1] - window[1])
    return Window(top, left, *window)


def class_pixel(labels: np.ndarray, task: Task, rng: np.random.Generator) -> tuple[int, int] | None:
    """Returns (row, column) of a random pixel of a random class present; None where there is none.

    Binary: of the foreground. Multiclass: every label present is as likely. Multilabel: every map with a 1 is.
    """
    if task.kind == "multilabel":
        planes = [plane == 1 for plane in labels if (plane == 1).any()]
    else:
        found = np.flatnonzero(cv2.calcHist([np.ascontiguousarray(labels)], [0], None, [256], [0, 256])).tolist()
        present = [value for value in found if value != IGNORE and (task.kind == "multiclass" or value == 1)]
        planes = [labels == present[int(rng.integers(len(present)))]] if present else []
    if not planes:
        return None
    plane = planes[int(rng.integers(len(planes)))]
    ends = np.cumsum(np.count_nonzero(plane, axis=1))
    number = int(rng.integers(ends[-1]))
    row = int(np.searchsorted(ends, number, side="right"))
    before = int(ends[row - 1]) if row else 0
    return row, int(np.flatnonzero(plane[row])[number - before])
