"""How an image becomes the network's input: whole, resized, or in windows, and how results find the way back.

One policy belongs to a network for life: what it saw in training it sees in prediction. Works on H×W×C arrays of any
stored dtype and on label arrays; knows nothing of tensors, normalisation, augmentation or networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from pydantic import Field, model_validator

from maskloom.config import Config
from maskloom.records import IGNORE, Size
from maskloom.windows import Padding, padding_to, round_up

_BORDERS = {"reflect": cv2.BORDER_REFLECT_101, "edge": cv2.BORDER_REPLICATE}


class InputPolicy(Config):
    """How images are brought to the network."""

    mode: Literal["full", "resize", "window"] = "full"
    """"full": the whole image, padded; "resize": the whole image resized to ``size``, then padded; "window": windows
    of ``size`` in training, overlapping tiles of ``size`` in prediction."""
    size: tuple[int, int] | None = None
    """(height, width) in pixels of the resized image or of the window; None for "full"."""
    multiple: int = Field(default=32, ge=1)
    """Both sides of what the network sees are multiples of this."""
    padding: Literal["reflect", "edge"] = "reflect"
    """How padding is filled: mirrored about the outermost pixel centres (reflect-101), or the outermost pixel."""
    overlap: float = Field(default=0.25, ge=0, lt=1)
    """Overlap of neighbouring tiles in prediction, as a fraction of the tile's side."""
    prefer_class: float = Field(default=0.0, ge=0, le=1)
    """Probability that a training window is centred on a random pixel of a random class present in the image (the
    foreground of a binary task)."""
    scale: float = Field(default=1.0, gt=0, le=16)
    """Factor by which images are resized first ("full" and "window")."""

    @model_validator(mode="after")
    def _size_fits_the_mode(self) -> InputPolicy:
        if self.mode == "full" and self.size is not None:
            raise ValueError(f"mode full takes no size, found {self.size}; remove it or choose resize or window")
        if self.mode != "full" and self.size is None:
            raise ValueError(f"mode {self.mode} needs a size of (height, width)")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size must be at least 1×1, found {self.size}")
        if self.mode == "window" and self.size is not None and self.size != round_up(self.size, self.multiple):
            nearest = round_up(self.size, self.multiple)
            raise ValueError(f"a window's sides must be multiples of {self.multiple}, found {self.size}; use {nearest}")
        if self.mode == "resize" and self.scale != 1.0:
            raise ValueError(f"mode resize takes no scale, found {self.scale}; state the size alone")
        return self


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an image lies in the network's input; all sizes are (height, width) in pixels.

    To undo it, cut ``padding.interior(placement.padded)`` out and resize that from ``content`` to ``original``.
    """

    original: Size
    """Of the image as stored."""
    content: Size
    """Of the image after resizing, before padding."""
    padding: Padding
    """What was added around the content."""

    @property
    def padded(self) -> Size:
        """The size of the prepared array: what the network sees, or what windows are cut from."""
        height, width = self.content
        return height + self.padding.top + self.padding.bottom, width + self.padding.left + self.padding.right

    @property
    def resized(self) -> bool:
        """Whether content and original differ in size."""
        return self.content != self.original


def place(size: Size, policy: InputPolicy) -> Placement:
    """Returns where an image of ``size`` lies in the network's input.

    The content is centred (the odd pixel goes to bottom and right) in the smallest size that the policy allows:
    multiples of ``policy.multiple`` for whole images, at least one window otherwise.
    """
    content = content_size(size, policy)
    if policy.mode == "window" and policy.size is not None:
        target = max(content[0], policy.size[0]), max(content[1], policy.size[1])
    else:
        target = round_up(content, policy.multiple)
    return Placement(size, content, padding_to(content, target))


def content_size(size: Size, policy: InputPolicy) -> Size:
    """Returns (height, width) of an image of ``size`` after the policy's resizing, before any padding."""
    if policy.mode == "resize" and policy.size is not None:
        return policy.size
    if policy.scale == 1.0:
        return size
    return max(round(size[0] * policy.scale), 1), max(round(size[1] * policy.scale), 1)


def prepare_image(image: np.ndarray, policy: InputPolicy) -> tuple[np.ndarray, Placement]:
    """Returns the resized and padded image (H×W×C, same dtype) and its placement.

    For "window" the result is at least one window large; the caller cuts windows or tiles of ``policy.size`` out of it.
    Never modifies ``image``; may return it as it is where nothing is to be done.
    """
    height, width = image.shape[:2]
    placement = place((height, width), policy)
    return pad_image(resize_image(image, placement.content), placement.padding, policy), placement


def resize_image(image: np.ndarray, size: Size) -> np.ndarray:
    """Returns the H×W×C image at ``size``: by area where no axis grows, else bilinear (pixel centres kept)."""
    height, width = image.shape[:2]
    if (height, width) == size:
        return image
    if image.shape[2] > 4:  # OpenCV's limit for areas
        return np.concatenate([resize_image(image[..., i : i + 4], size) for i in range(0, image.shape[2], 4)], axis=2)
    shrinks = size[0] <= height and size[1] <= width
    resized = cv2.resize(
        np.ascontiguousarray(image), (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    return np.asarray(resized).reshape(*size, image.shape[2])  # OpenCV drops a single channel


def resize_labels(labels: np.ndarray, size: Size) -> np.ndarray:
    """Returns uint8 labels (H×W or C×H×W) at ``size`` by nearest pixel centre."""
    if labels.shape[-2:] == size:
        return labels
    if labels.ndim == 3:
        return np.stack([resize_labels(plane, size) for plane in labels])
    return np.asarray(cv2.resize(labels, (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT))


def pad_image(image: np.ndarray, padding: Padding, policy: InputPolicy) -> np.ndarray:
    """Returns the H×W×C image with its padding filled as the policy says."""
    if not padding.any:
        return image
    border = _BORDERS[policy.padding]
    padded = cv2.copyMakeBorder(image, padding.top, padding.bottom, padding.left, padding.right, border)
    return np.asarray(padded).reshape(*padded.shape[:2], image.shape[2])


def pad_labels(labels: np.ndarray, padding: Padding) -> np.ndarray:
    """Returns labels (H×W or C×H×W) padded with ``IGNORE``, so that padding counts in no loss."""
    if not padding.any:
        return labels
    sides = [(0, 0)] * (labels.ndim - 2) + [(padding.top, padding.bottom), (padding.left, padding.right)]
    return np.pad(labels, sides, constant_values=IGNORE)
