"""Pixels that are learnt from one by one: which are drawn of an image, and reading them with what surrounds them.

An image is gone through in squares, so that of a large raster no more is in memory than one of these where it can be
read by window. What is drawn depends on the seed and the record's id alone. Knows nothing about what pixels are for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from maskloom.data.dataset import with_channels
from maskloom.data.input_policy import (
    InputPolicy,
    centre_of,
    content_size,
    cut_image,
    cut_labels,
    resize_labels,
    to_content,
)
from maskloom.data.mask_coding import MaskCoding
from maskloom.data.scene_windows import is_scene, read_window
from maskloom.data.truth import read_sample
from maskloom.records import IGNORE, Record, Size, Task
from maskloom.runtime import generator
from maskloom.windows import Window

SIDE = 512
"""Of the squares, in pixels."""

Reader = Callable[[Window], tuple[np.ndarray, np.ndarray]]
"""Returns the pixels H×W×C and the labels of a window, which may reach beyond the image: mirrored there, and
``IGNORE``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelDrawing:
    """How pixels are drawn, the same for all images of a training."""

    task: Task
    coding: MaskCoding
    policy: InputPolicy
    channels: int
    """Of the images as stored; grey ones are repeated to three."""
    share: float
    """Of the pixels."""
    reach: int
    """So many pixels around each that is drawn are seen with it."""
    seed: int

    def squares(
        self, record: Record, forbidden: Sequence[Window] | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yields the squares of an image of which something is drawn, with ``reach`` pixels around them.

        Each is (pixels h×w×C as the policy prepares them, bool of the square where a pixel is drawn, and the labels of
        those, uint8 P or maps×P). Pixels whose labels are all ``IGNORE`` are not drawn. With ``forbidden``, in pixels
        of the record's image, none is drawn that sees something of these windows, and the image is read by window.
        Raises ``BadFile`` and ``BadSize``.
        """
        size = content_size(record.size, self.policy)
        read: Reader | None = None
        for top in range(0, size[0], SIDE):
            for left in range(0, size[1], SIDE):
                square = Window(top, left, min(SIDE, size[0] - top), min(SIDE, size[1] - left))
                shape = square.height, square.width
                drawn = generator(self.seed, record.id, top, left).random(shape) < self.share
                for window in forbidden or ():
                    _clear(drawn, square, _grown(window, self.reach))
                if not drawn.any():
                    continue
                read = read or self._reader(record, size, by_window=forbidden is not None)
                pixels, labels = read(_grown(square, self.reach))
                inside = centre_of(Window(0, 0, *pixels.shape[:2]), self.reach).slices
                labels = labels[(..., *inside)]
                drawn &= (labels != IGNORE).reshape(-1, *shape).any(axis=0)
                if drawn.any():
                    yield pixels, drawn, labels[..., drawn]

    def _reader(self, record: Record, size: Size, *, by_window: bool) -> Reader:
        if by_window or is_scene(record, self.policy, self.coding):
            return lambda window: self._window(record, window)
        sample = read_sample(record, self.task, self.coding)
        assert sample.labels is not None, "records that are learnt from have truth"
        image = to_content(
            with_channels(sample.image, self.channels, record.image), self.policy, channels=self.channels
        )
        labels = resize_labels(sample.labels, size)
        return lambda window: (cut_image(image, window), cut_labels(labels, window))

    def _window(self, record: Record, window: Window) -> tuple[np.ndarray, np.ndarray]:
        pixels, labels = read_window(record, window, self.policy, self.task, self.coding)
        image = with_channels(pixels, self.channels, record.image)
        return to_content(image, self.policy, channels=self.channels), labels


def _grown(window: Window, reach: int) -> Window:
    return Window(window.top - reach, window.left - reach, window.height + 2 * reach, window.width + 2 * reach)


def _clear(drawn: np.ndarray, square: Window, area: Window) -> None:
    """Draws nothing of a square that lies in an area."""
    top, left = max(area.top - square.top, 0), max(area.left - square.left, 0)
    bottom, right = area.top + area.height - square.top, area.left + area.width - square.left
    drawn[top : max(bottom, 0), left : max(right, 0)] = False
