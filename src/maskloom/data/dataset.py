"""Records to samples as the network sees them: read, resized or cut to a window, with the draw of its augmentation.

What a sample is depends on nothing but the dataset and its key: (seed, epoch, record, draw) decide all randomness.
Maps from elsewhere can come along as further channels (guides) or say where to look (regions); where they come from
is the caller's matter. Knows nothing of batches and processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from maskloom.data.augment import AugmentSettings, Draw, draw
from maskloom.data.clahe import clahe
from maskloom.data.input_policy import (
    InputPolicy,
    Placement,
    centre_of,
    content_size,
    cut_image,
    cut_labels,
    pad_labels,
    part_windows,
    place,
    resize_labels,
    to_content,
)
from maskloom.data.mask_coding import MaskCoding
from maskloom.data.scene_windows import drawn_window, is_scene, read_window
from maskloom.data.truth import read_sample
from maskloom.errors import BadFile, UnfitImage, UserError
from maskloom.records import IGNORE, Record, Size, Task
from maskloom.runtime import generator
from maskloom.windows import Padding, Window

MAX_DRAWS = 50
"""So many windows are drawn at most in search of a preferred one (Carvana, 1st place); then the last one is taken."""
NO_PADDING = Padding(0, 0, 0, 0)


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
    """H×W×C as stored: uint8, uint16 or float32; guides are its last channels."""
    channels: int
    """Of the image itself, without guides."""
    labels: np.ndarray
    """uint8 H×W (binary, multiclass) or C×H×W (multilabel)."""
    draw: Draw | None
    """What happens to it on the device; None where the settings change nothing."""


@dataclass(frozen=True, kw_only=True)
class SegmentationDataset:
    """The training samples of one network; ``dataset[key]`` reads, resizes and cuts one.

    Where loader processes are not forked, ``guides`` and ``regions`` must be picklable.
    """

    records: Sequence[Record]
    task: Task
    coding: MaskCoding
    policy: InputPolicy
    augment: AugmentSettings
    seed: int
    part: Task | None = None
    """The classes of a multilabel task that are learnt; None: all."""
    channels: int = 3
    """Of the images, without guides; grey images are repeated to three."""
    guides: Callable[[Record], np.ndarray] | None = None
    """Returns a record's guides, uint8 H×W×K at the image's size: appended to the image's channels in its own range,
    moved like the image, left alone by colour and CLAHE."""
    regions: Callable[[Record], Sequence[Window]] | None = None
    """Returns windows in pixels of a record's image: each sample is cut from one of them, drawn at random, which the
    policy then treats as if it were the image. Beyond the border, images are mirrored and labels ``IGNORE``; where
    there is no window, the whole image is the region."""
    forbidden: Mapping[str, Sequence[Window]] | None = None
    """By id, areas in pixels of a record's image that no window may touch; where this is given, windows of all records
    are read by themselves."""

    def __post_init__(self) -> None:
        if self.forbidden is not None and (self.guides is not None or self.regions is not None):
            raise ValueError("forbidden areas are for windows that are read by themselves, without guides and regions")
        if not self.records:
            raise UserError("expected at least one image with a mask to learn from, found none")
        for record in self.records:
            if record.truth is None:
                raise UserError(f"{record.image}: expected a mask to learn from, found none; leave the image out")
            if self.augment.transpose > 0 and self.regions is None:
                self._check_square(record, record.size)

    def _check_square(self, record: Record, size: Size) -> None:
        """Raises ``UserError`` unless an image (or region) of ``size`` gives the network square inputs."""
        height, width = place(size, self.policy).padded
        if self.policy.mode == "window" and self.policy.size:
            height, width = self.policy.size
        elif self.policy.mode == "parts":
            part = part_windows(size, self.policy)[0]
            height, width = part.height, part.width
        if height != width:
            raise UserError(
                f"{record.image}: augment.transpose expects square inputs, found {width}×{height} (width×height); "
                "set augment.transpose=0, or choose square windows or a square size"
            )

    def __len__(self) -> int:
        return len(self.records)

    def content_of(self, key: Key) -> Size:
        """Returns (height, width) of the sample of that key, as ``dataset[key]`` has it, without reading it."""
        policy = self.policy
        if policy.mode in ("window", "resize") and policy.size is not None:
            return policy.size
        record = self.records[key.record]
        size = record.size
        if self.regions is not None:
            region = self._region(record, key)
            size = region.height, region.width
        if policy.mode == "parts":
            part = part_windows(size, policy)[0]
            return part.height, part.width
        return content_size(size, policy)

    def __getitem__(self, key: Key) -> Item:
        """Returns the sample of that key; raises ``BadFile`` or ``BadSize``."""
        record = self.records[key.record]
        try:
            return self._item(record, key)
        except UnfitImage as error:
            raise BadFile(record.image, str(error)) from None

    def _item(self, record: Record, key: Key) -> Item:
        if self._reads_windows(record):
            image, labels = self._scene_window(record, key)
        else:
            image, labels = self._of_whole(record, key)
        channels = self.channels + (len(self.policy.bands.indices) if self.policy.bands else 0)
        drawn = None
        if not self.augment.is_identity:
            drawn = draw(self.augment, self._generator("augment", record, key), (image.shape[0], image.shape[1]))
            image = clahe(image, channels=channels) if drawn.clahe else image
            _check_floats(image[..., :channels], drawn, record.image)
        return Item(id=record.id, path=record.image, image=image, channels=channels, labels=labels, draw=drawn)

    def _reads_windows(self, record: Record) -> bool:
        if self.forbidden is not None:
            return True
        return self.guides is None and self.regions is None and is_scene(record, self.policy, self.coding)

    def _of_whole(self, record: Record, key: Key) -> tuple[np.ndarray, np.ndarray]:
        """Returns what is drawn of an image that is read whole: itself at its content's size, or a window or part."""
        image, labels = self._read(record, key)
        size = (image.shape[0], image.shape[1])
        image = to_content(image, self.policy, channels=self.channels)
        labels = resize_labels(labels, (image.shape[0], image.shape[1]))
        if self.policy.mode in ("window", "parts"):
            image, labels = self._cut(image, labels, size, self._generator("window", record, key))
        return image, labels

    def _scene_window(self, record: Record, key: Key) -> tuple[np.ndarray, np.ndarray]:
        """Returns a window of a scene, of which nothing else is read."""
        window = drawn_window(
            record,
            self.policy,
            self.task,
            self._generator("window", record, key),
            coding=self.coding,
            part=self.part,
            forbidden=() if self.forbidden is None else self.forbidden.get(record.id, ()),
        )
        image, labels = read_window(record, window, self.policy, self.task, self.coding)
        image = to_content(with_channels(image, self.channels, record.image), self.policy, channels=self.channels)
        margin = self.policy.margin
        kept = cut_labels(labels, centre_of(Window(0, 0, window.height, window.width), margin))
        return image, self._of_part(pad_labels(kept, Padding(margin, margin, margin, margin)))

    def _of_part(self, labels: np.ndarray) -> np.ndarray:
        """Returns the labels of the classes that are learnt."""
        if self.part is None or self.part == self.task:
            return labels
        return labels[[self.task.classes.index(name) for name in self.part.classes]]

    def _generator(self, purpose: str, record: Record, key: Key) -> np.random.Generator:
        return generator(self.seed, purpose, key.epoch, record.id, key.draw)

    def _read(self, record: Record, key: Key) -> tuple[np.ndarray, np.ndarray]:
        """Returns image and labels as stored, with guides beside the image, cut to a region where there are some."""
        sample = read_sample(record, self.task, self.coding)
        if sample.labels is None:
            raise BadFile(record.image, "expected a mask to learn from, found none")
        image = with_channels(sample.image, self.channels, record.image)
        labels = self._of_part(sample.labels)
        if self.guides is not None:
            image = with_guides(image, self.guides(record))
        if self.regions is not None:
            region = self._region(record, key)
            image, labels = cut_image(image, region), cut_labels(labels, region)
        return image, labels

    def _region(self, record: Record, key: Key) -> Window:
        assert self.regions is not None
        windows = self.regions(record) or [Window(0, 0, *record.size)]
        window = windows[int(self._generator("region", record, key).integers(len(windows)))]
        if self.augment.transpose > 0:
            self._check_square(record, (window.height, window.width))
        return window

    def _cut(
        self, image: np.ndarray, labels: np.ndarray, size: Size, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns a random window or part of image and labels at their content's size; ``size`` is that before.

        What the policy pads, and its margin, are ``IGNORE`` in the labels. Both are padded only where they are cut.
        """
        placement, margin = place(size, self.policy), self.policy.margin
        if self.policy.mode == "parts":
            parts = part_windows(size, self.policy)
            window = parts[int(rng.integers(len(parts)))]
        else:
            window = self._draw_window(labels, placement, rng)
        window = without(placement.padding, window)
        labels = pad_labels(cut_labels(labels, centre_of(window, margin)), Padding(margin, margin, margin, margin))
        return cut_image(image, window, padding=self.policy.padding), labels

    def _draw_window(self, labels: np.ndarray, placement: Placement, rng: np.random.Generator) -> Window:
        """Returns a window of the padded image; ``labels`` are those before padding."""
        window, padding = self.policy.size, placement.padding
        assert window is not None  # the policy sees to that
        if self.policy.prefer_mask_mean is not None:
            return preferred_window(
                labels,
                window,
                rng,
                means=self.policy.prefer_mask_mean,
                keep=self.policy.keep_background,
                padding=padding,
                margin=self.policy.margin,
            )
        prefers = rng.random() < self.policy.prefer_class
        pixel = class_pixel(labels, self.task, rng) if prefers else None
        centre = None if pixel is None else (pixel[0] + padding.top, pixel[1] + padding.left)
        return choose_window(placement.padded, window, rng, centre=centre)


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


def with_channels(image: np.ndarray, channels: int, path: Path, *, takes_grey: bool = True) -> np.ndarray:
    """Returns the H×W×C image with ``channels`` channels: grey is repeated to three, other differences are refused.

    Unless it ``takes_grey``, that is refused, too.
    """
    if image.shape[2] == channels:
        return image
    if image.shape[2] == 1 and channels == 3 and takes_grey:
        return np.repeat(image, 3, axis=2)
    raise BadFile(
        path,
        f"expected an image of {channels} channel(s) as the network takes, found {image.shape[2]}; "
        f"convert the image, or learn with --set 'members.*.network.channels={image.shape[2]}' if all are like this",
    )


def with_guides(image: np.ndarray, guides: np.ndarray) -> np.ndarray:
    """Returns the H×W×C image with uint8 guides H×W×K as further channels, in the image's own type and range.

    uint8 as they are, uint16 times 257, float32 divided by 255. Raises ``ValueError`` for guides of another type or
    size.
    """
    if guides.dtype != np.uint8 or guides.ndim != 3 or guides.shape[:2] != image.shape[:2]:
        expected = f"{image.shape[0]}×{image.shape[1]}×K"
        raise ValueError(f"expected guides as uint8 {expected} like the image, got {guides.dtype} {guides.shape}")
    if image.dtype == np.uint16:
        guides = guides.astype(np.uint16) * np.uint16(257)
    elif image.dtype == np.float32:
        guides = guides.astype(np.float32) / np.float32(255)
    return np.concatenate([image, guides], axis=2)


def choose_window(
    size: Size, window: Size, rng: np.random.Generator, *, centre: tuple[int, int] | None = None
) -> Window:
    """Returns a window inside an image of ``size``: anywhere, or as near to ``centre`` (row, column) as it fits."""
    top, left = (int(rng.integers(length - part + 1)) for length, part in zip(size, window, strict=True))
    if centre is not None:
        top = min(max(centre[0] - window[0] // 2, 0), size[0] - window[0])
        left = min(max(centre[1] - window[1] // 2, 0), size[1] - window[1])
    return Window(top, left, *window)


def preferred_window(
    labels: np.ndarray,
    window: Size,
    rng: np.random.Generator,
    *,
    means: tuple[float, float],
    keep: float,
    padding: Padding = NO_PADDING,
    margin: int = 0,
) -> Window:
    """Returns a random window whose ``mask_mean`` lies between the two ``means``, or one of the others that was kept.

    Windows are drawn anywhere in the labels with their ``padding``, in whose pixels the result is, and judged by what
    their ``margin`` leaves of them; one outside the range is kept with probability ``keep`` at every draw, and the
    last of ``MAX_DRAWS`` whatever it holds. Source: Carvana, 1st place (trainer of the linknet members, which keeps
    pure foreground like pure background).
    """
    height, width = labels.shape[-2:]
    size = height + padding.top + padding.bottom, width + padding.left + padding.right
    for _ in range(MAX_DRAWS):
        chosen = choose_window(size, window, rng)
        seen = cut_labels(labels, centre_of(without(padding, chosen), margin))
        if means[0] < mask_mean(seen) < means[1] or rng.random() < keep:
            break
    return chosen


def without(padding: Padding, window: Window) -> Window:
    """Returns a window of a padded image in the pixels of the image before its padding."""
    return Window(window.top - padding.top, window.left - padding.left, window.height, window.width)


def mask_mean(labels: np.ndarray) -> float:
    """Returns the mean of a mask, 0…255: 255 times the foreground's share of the pixels that are not ``IGNORE``.

    Foreground is every label but 0, in a multilabel task (C×H×W) what any map marks. 0 where all is ignored.
    """
    ignored, background = labels == IGNORE, labels == 0
    if labels.ndim == 3:
        foreground = ~(ignored | background).all(axis=0)
        ignored = ignored.all(axis=0)
        num_foreground = np.count_nonzero(foreground)
    else:
        num_foreground = labels.size - np.count_nonzero(background) - np.count_nonzero(ignored)
    counted = ignored.size - np.count_nonzero(ignored)
    return 255 * int(num_foreground) / int(counted) if counted else 0.0


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
