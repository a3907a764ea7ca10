"""How an image becomes the network's input: whole, resized, in windows or parts, and how results find the way back.

One policy belongs to a network for life: what it saw in training it sees in prediction. Works on H×W×C arrays of any
stored dtype and on label arrays; knows nothing of tensors, normalisation, augmentation or networks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from pydantic import Field, model_validator

from maskloom.config import Config
from maskloom.data.band_math import BandSettings, check_indices, with_indices
from maskloom.data.clahe import clahe
from maskloom.errors import UserError
from maskloom.records import IGNORE, Size
from maskloom.windows import Padding, Window, padding_to, round_up, tile_grid

_BORDERS = {"reflect": cv2.BORDER_REFLECT_101, "edge": cv2.BORDER_REPLICATE}

Side = Annotated[int, Field(le=32_768)]
"""Pixels of what a network may be asked to see at once, or parts of an image."""


class InputPolicy(Config):
    """How images are brought to the network."""

    mode: Literal["full", "resize", "window", "parts"] = "full"
    """"full": the whole image, padded; "resize": the whole image resized to ``size``, then padded; "window": windows
    of ``size`` in training, overlapping tiles of ``size`` in prediction; "parts": the image cut into ``parts``, one
    of them in training, all in prediction."""
    size: tuple[Side, Side] | None = None
    """(height, width) in pixels of the resized image or of the window; None for "full" and "parts"."""
    parts: tuple[Side, Side] | None = None
    """(rows, columns) of equal parts, for instance [1, 2] for left and right halves; None for the other modes."""
    multiple: int = Field(default=32, ge=1, le=4096)
    """Both sides of what the network sees are multiples of this."""
    padding: Literal["reflect", "edge"] = "reflect"
    """How padding is filled: mirrored about the outermost pixel centres (reflect-101), or the outermost pixel."""
    padding_at: Literal["both", "end"] = "both"
    """Where padding lies: on both sides, the image in the middle, or at the bottom and right alone; a margin is on
    every side all the same."""
    margin: int = Field(default=0, ge=0, le=4096)
    """So many pixels on every side of a window are surroundings only ("window"): they count in no loss, and of each
    tile only what lies inside them is kept. Images are padded by as much on every side, so that their border pixels
    are learnt and predicted like all others; 16 of windows of 112 are published (Dstl, 3rd place)."""
    bands: BandSettings | None = None
    """What the image's channels are: they are brought to 0…1, and spectral indices follow as further channels; None:
    channels as stored."""
    clahe: bool = False
    """Equalise the histogram of luma (CLAHE, clip 2, 8×8 tiles) in training and in prediction: of the image as
    stored, before it is resized and padded; 8- and 16-bit images only."""
    overlap: float = Field(default=0.25, ge=0, lt=1)
    """What neighbouring tiles or parts have in common, as a fraction of their side, or of what the margin leaves of it;
    "parts" and windows with a margin have nothing in common unless it is stated. Where they overlap, predictions are
    blended."""
    prefer_class: float = Field(default=0.0, ge=0, le=1)
    """Probability that a training window is centred on a random pixel of a random class present in the image (the
    foreground of a binary task)."""
    prefer_mask_mean: tuple[float, float] | None = None
    """Draw training windows until the mean of their mask (0…255: 255 times the share of the foreground) lies between
    these two, or one outside is kept (``keep_background``); [3, 252] is published (Carvana, 1st place)."""
    keep_background: float = Field(default=0.7, ge=0, le=1)
    """Probability, at every draw, of keeping a window that ``prefer_mask_mean`` does not prefer."""
    scale: float = Field(default=1.0, gt=0, le=16)
    """Factor by which images are resized first ("full", "window" and "parts")."""

    def whole(self) -> InputPolicy | None:
        """Returns the policy of windows as that of the whole image, which is padded to what the network takes.

        None where there is none: the mode is another one, or windows have a margin.
        """
        if self.mode != "window" or self.margin:
            return None
        return self.model_copy(update={"mode": "full", "size": None, "prefer_class": 0.0, "prefer_mask_mean": None})

    def asked_about(self, size: Size, whole_pixels: int | None) -> InputPolicy:
        """Returns the policy by which networks are asked about an image or raster of ``size`` (height, width).

        It is that of the whole image where it has at most ``whole_pixels`` pixels (None: never) and there is one.
        """
        if whole_pixels is None or size[0] * size[1] > whole_pixels:
            return self
        return self.whole() or self

    @model_validator(mode="before")
    @classmethod
    def _parts_stand_apart(cls, values: Any) -> Any:
        if isinstance(values, dict) and (values.get("mode") == "parts" or values.get("margin")):
            return {"overlap": 0.0, **values}
        return values

    @model_validator(mode="after")
    def _size_fits_the_mode(self) -> InputPolicy:
        takes_size = self.mode in ("resize", "window")
        if not takes_size and self.size is not None:
            raise ValueError(f"mode {self.mode} takes no size, found {self.size}; remove it or choose resize or window")
        if takes_size and self.size is None:
            raise ValueError(f"mode {self.mode} needs a size of (height, width)")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size must be at least 1×1, found {self.size}")
        if self.mode == "window" and self.size is not None and self.size != round_up(self.size, self.multiple):
            nearest = round_up(self.size, self.multiple)
            raise ValueError(f"a window's sides must be multiples of {self.multiple}, found {self.size}; use {nearest}")
        if self.mode == "resize" and self.scale != 1.0:
            raise ValueError(f"mode resize takes no scale, found {self.scale}; state the size alone")
        return self

    @model_validator(mode="after")
    def _parts_fit_the_mode(self) -> InputPolicy:
        if self.mode != "parts" and self.parts is not None:
            raise ValueError(f"mode {self.mode} takes no parts, found {self.parts}; remove them or choose parts")
        if self.mode == "parts" and (self.parts is None or min(self.parts) < 1 or self.parts == (1, 1)):
            raise ValueError(f"mode parts needs parts of (rows, columns), two or more, found {self.parts}")
        return self

    @model_validator(mode="after")
    def _margin_leaves_something(self) -> InputPolicy:
        if self.margin == 0:
            return self
        if self.mode != "window" or self.size is None:
            raise ValueError(
                f"mode {self.mode} has no windows to take a margin from, found margin {self.margin}; "
                "set it to 0 or choose window"
            )
        if 2 * self.margin >= min(self.size):
            raise ValueError(
                f"a margin of {self.margin} leaves nothing of windows of {self.size}; "
                f"take at most {(min(self.size) - 1) // 2}, or larger windows"
            )
        return self

    @model_validator(mode="after")
    def _indices_are_known(self) -> InputPolicy:
        if self.bands is not None:
            try:
                check_indices(self.bands)
            except UserError as error:
                raise ValueError(str(error)) from None
        return self

    @model_validator(mode="after")
    def _preferences_agree(self) -> InputPolicy:
        if self.prefer_mask_mean is None:
            return self
        low, high = self.prefer_mask_mean
        if self.mode != "window":
            raise ValueError(f"prefer_mask_mean chooses windows, mode {self.mode} has none; remove it")
        if not 0 <= low < high <= 255:
            raise ValueError(f"prefer_mask_mean must be (low, high) within 0…255, found {self.prefer_mask_mean}")
        if self.prefer_class > 0:
            raise ValueError("prefer_class and prefer_mask_mean both choose windows; state one of them")
        return self


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an image lies in the prepared array; all sizes are (height, width) in pixels.

    To undo it, cut ``padding.interior(placement.padded)`` out and resize that from ``content`` to ``original``. What
    the network sees of the array: all of it, windows of it, or ``part_windows``.
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

    The content lies as ``policy_padding`` says in the smallest size that the policy allows: multiples of
    ``policy.multiple`` for whole images and for each of equal parts, otherwise at least one window, with the policy's
    margin on every side of the content.
    """
    content = content_size(size, policy)
    if policy.mode == "window" and policy.size is not None:
        margins = 2 * policy.margin
        target = max(content[0] + margins, policy.size[0]), max(content[1] + margins, policy.size[1])
    elif policy.parts is not None:
        rows, columns = (count * policy.multiple for count in policy.parts)
        target = round_up(content, rows)[0], round_up(content, columns)[1]
    else:
        target = round_up(content, policy.multiple)
    return Placement(size, content, policy_padding(content, target, policy))


def policy_padding(content: Size, target: Size, policy: InputPolicy) -> Padding:
    """Returns the padding of ``content`` to ``target`` (both height, width) where the policy has it.

    On both sides the odd pixel goes to bottom and right. At the end, top and left get the policy's margin at most.
    """
    centred = padding_to(content, target)
    if policy.padding_at == "both":
        return centred
    top, left = min(centred.top, policy.margin), min(centred.left, policy.margin)
    return Padding(top, centred.top + centred.bottom - top, left, centred.left + centred.right - left)


def content_size(size: Size, policy: InputPolicy) -> Size:
    """Returns (height, width) of an image of ``size`` after the policy's resizing, before any padding."""
    if policy.mode == "resize" and policy.size is not None:
        return policy.size
    if policy.scale == 1.0:
        return size
    return max(round(size[0] * policy.scale), 1), max(round(size[1] * policy.scale), 1)


def shrunk(policy: InputPolicy, scale: float) -> InputPolicy:
    """Returns the policy of whole resized images with both sides multiplied by ``scale``; itself for 1.

    Raises ``UserError`` for other modes: what a window or part shows would no longer have the size it has in
    prediction.
    """
    if scale == 1:
        return policy
    if policy.mode != "resize" or policy.size is None:
        raise UserError(
            f"training.progressive: expected whole resized images (input.mode=resize), found mode {policy.mode}; "
            "set it to 0"
        )
    height, width = policy.size
    return policy.model_copy(update={"size": (max(round(height * scale), 1), max(round(width * scale), 1))})


def tile_windows(size: Size, policy: InputPolicy, *, overlap: float | None = None) -> list[Window]:
    """Returns the tiles, row by row, that cover an image of ``size`` (as stored), as windows of its prepared array.

    All are exactly ``policy.size`` large. What the margin leaves of them (see ``centre_of``) is spread evenly over the
    array but for its outermost ``policy.margin`` pixels, with at least ``overlap`` of its shorter side in common (None:
    as the policy says). Only for mode "window".
    """
    if policy.mode != "window" or policy.size is None:
        raise ValueError(f"an image is only cut into tiles by mode window, got mode {policy.mode}")
    margins = 2 * policy.margin
    (height, width), padded = policy.size, place(size, policy).padded
    centre = height - margins, width - margins
    share = policy.overlap if overlap is None else overlap
    centres = tile_grid((padded[0] - margins, padded[1] - margins), centre, int(share * min(centre)))
    # A tile begins as far before its centre as the array before all centres.
    return [Window(each.top, each.left, height, width) for each in centres]


def centre_of(window: Window, margin: int) -> Window:
    """Returns what a margin of so many pixels on every side leaves of a window."""
    return Window(window.top + margin, window.left + margin, window.height - 2 * margin, window.width - 2 * margin)


def part_windows(size: Size, policy: InputPolicy) -> list[Window]:
    """Returns the parts of an image of ``size`` (as stored), row by row, as windows of its prepared array.

    All are of one size, a multiple of ``policy.multiple``. Without overlap they cover the array exactly once; with
    overlap they are larger and spread evenly (where the multiple leaves no room to differ, fewer come out). Only for
    mode "parts".
    """
    if policy.parts is None:
        raise ValueError(f"an image is only cut into parts by mode parts, got mode {policy.mode}")
    (height, tops), (width, lefts) = (
        _spread(length, count, policy) for length, count in zip(place(size, policy).padded, policy.parts, strict=True)
    )
    return [Window(top, left, height, width) for top in tops for left in lefts]


def _spread(length: int, count: int, policy: InputPolicy) -> tuple[int, list[int]]:
    """Returns the side of ``count`` parts along an axis of the prepared array, and where they start."""
    least = math.ceil(length / (count - (count - 1) * policy.overlap))
    side = round_up((least, least), policy.multiple)[0]
    starts = [round(number * (length - side) / max(count - 1, 1)) for number in range(count)]
    return side, sorted(set(starts))


def prepare_image(
    image: np.ndarray, policy: InputPolicy, *, channels: int | None = None
) -> tuple[np.ndarray, Placement]:
    """Returns the equalised, resized and padded image (H×W×C, same dtype) and its placement.

    The first ``channels`` are the image's (all when None); guides follow, which are resized and padded along. For
    "window" the result is at least one window large; the caller cuts windows or tiles of ``policy.size`` out of it,
    for "parts" those of ``part_windows``. Never modifies ``image``; may return it as it is where nothing is to be
    done. Raises ``UnfitImage`` for floats under ``policy.clahe``.
    """
    height, width = image.shape[:2]
    placement = place((height, width), policy)
    return pad_image(to_content(image, policy, channels=channels), placement.padding, policy), placement


def to_content(image: np.ndarray, policy: InputPolicy, *, channels: int | None = None) -> np.ndarray:
    """Returns the image H×W×C as ``prepare_image`` does, before its padding."""
    if policy.clahe:
        image = clahe(image, channels=channels)
    if policy.bands is not None:
        image = with_indices(image, policy.bands, channels=channels)
    return resize_image(image, content_size((image.shape[0], image.shape[1]), policy))


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


def cut_image(image: np.ndarray, window: Window, *, padding: Literal["reflect", "edge"] = "reflect") -> np.ndarray:
    """Returns the window of an H×W×C image, which may reach beyond the border, where it is filled as by ``pad_image``.

    A window inside is no copy.
    """
    size = (image.shape[0], image.shape[1])
    if _lies_inside(window, size):
        return image[window.slices]
    places = _mirrored if padding == "reflect" else _nearest
    rows, columns = places(window.top, window.height, size[0]), places(window.left, window.width, size[1])
    return np.asarray(image[np.ix_(rows, columns)])


def cut_labels(labels: np.ndarray, window: Window) -> np.ndarray:
    """Returns the window of labels (H×W or C×H×W); what lies beyond the border is ``IGNORE``.

    A window inside is no copy.
    """
    height, width = labels.shape[-2:]
    if _lies_inside(window, (height, width)):
        return labels[(..., *window.slices)]
    cut = np.full((*labels.shape[:-2], window.height, window.width), IGNORE, labels.dtype)
    top, left = max(window.top, 0), max(window.left, 0)
    bottom, right = min(window.top + window.height, height), min(window.left + window.width, width)
    if top < bottom and left < right:
        inside = slice(top - window.top, bottom - window.top), slice(left - window.left, right - window.left)
        cut[(..., *inside)] = labels[..., top:bottom, left:right]
    return cut


def _lies_inside(window: Window, size: Size) -> bool:
    ends = window.top + window.height, window.left + window.width
    return min(window.top, window.left) >= 0 and ends[0] <= size[0] and ends[1] <= size[1]


def _mirrored(start: int, count: int, length: int) -> np.ndarray:
    """Returns the indices in [0, length) of ``count`` pixels from ``start`` on, mirrored about the outer centres."""
    period = max(2 * (length - 1), 1)
    places = np.arange(start, start + count) % period
    return np.asarray(np.minimum(places, period - places) if length > 1 else np.zeros(count, np.int64))


def _nearest(start: int, count: int, length: int) -> np.ndarray:
    """Returns the indices in [0, length) nearest to ``count`` pixels from ``start`` on."""
    return np.asarray(np.clip(np.arange(start, start + count), 0, length - 1))
