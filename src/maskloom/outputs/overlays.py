"""Pictures of masks for pages: classes laid over an image, errors in colours that everybody can tell apart.

All pictures are uint8 H×W×3, already small enough for a page, with colours that keep their distance under every kind
of colour blindness (Okabe and Ito, "Color universal design", 2008; Tol, "Colour schemes", 2021). Knows nothing about
pages and files.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

from maskloom.records import IGNORE, TaskKind

MAX_SIDE = 480
"""Pixels of a picture's longer side on a page."""

Colour = tuple[int, int, int]
"""Red, green, blue, 0…255."""

MISSED: Colour = (86, 180, 233)
"""False negatives: sky blue."""
EXTRA: Colour = (230, 97, 0)
"""False positives: vermilion."""
WRONG: Colour = (230, 97, 0)
"""Pixels given to another class."""
BOTH: Colour = (204, 121, 167)
"""Multilabel pixels with one class missed and another too many: reddish purple."""
UNSURE: Colour = (204, 121, 167)
"""Pixels that a pseudo-label leaves out: reddish purple too, in pictures that show no errors."""
UNJUDGED: Colour = (128, 128, 128)
"""Pixels whose truth is not known."""
BACKGROUND: Colour = (60, 60, 66)

_PALETTE: tuple[Colour, ...] = (
    (0, 158, 115), (0, 114, 178), (230, 159, 0), (170, 68, 153), (240, 228, 66), (136, 34, 85), (136, 204, 238),
    (17, 119, 51), (204, 102, 119), (51, 34, 136), (187, 187, 187), (153, 153, 51), (221, 204, 119), (153, 119, 85),
)  # fmt: skip
"""Without the colours of errors."""
_GROUND = (24.0, 140.0)
"""Brightness of the darkest and brightest parts of an image beneath errors, which keep their colours to themselves."""
_TINT = 0.55
"""How opaque class colours lie over the image."""
_EMPHASIS = 3.0
"""A picture's pixel is fully coloured when a third of what it covers is wrong, so thin errors stay visible."""


def class_colours(classes: Sequence[str], kind: TaskKind) -> list[Colour]:
    """Returns one colour per class: dark grey for a multiclass background, a fixed palette, then evenly spread hues."""
    colours: list[Colour] = []
    taken = 0
    for index, name in enumerate(classes):
        if kind == "multiclass" and index == 0 and name.strip().lower() in {"background", "bg", "void", "other"}:
            colours.append(BACKGROUND)
            continue
        if taken < len(_PALETTE):
            colours.append(_PALETTE[taken])
        else:
            red, green, blue = colorsys.hsv_to_rgb(taken * 0.618034 % 1, 0.55 + 0.1 * (taken % 4), 0.9)
            colours.append((round(red * 255), round(green * 255), round(blue * 255)))
        taken += 1
    return colours


def displayed(image: np.ndarray) -> np.ndarray:
    """Returns an image H×W×C (uint8, uint16 or float32) as uint8 H×W×3 to look at.

    One channel becomes grey, of more than three the first three are shown; values other than uint8 are stretched
    from their 1st to their 99th percentile.
    """
    channels = image if image.ndim == 3 else image[:, :, None]
    channels = channels[:, :, :3] if channels.shape[2] >= 3 else np.repeat(channels[:, :, :1], 3, axis=2)
    if channels.dtype == np.uint8:
        return np.ascontiguousarray(channels)
    low, high = np.percentile(channels, [1, 99]).tolist()
    stretched = (channels.astype(np.float32) - low) * (255 / max(high - low, 1e-6))
    pixels: np.ndarray = np.clip(np.rint(stretched), 0, 255).astype(np.uint8)
    return pixels


def shrunk(pixels: np.ndarray, *, max_side: int = MAX_SIDE) -> np.ndarray:
    """Returns the picture with its longer side at most ``max_side``, averaged; smaller ones stay as they are."""
    factor = max_side / max(pixels.shape[:2])
    if factor >= 1:
        return pixels
    height, width = (max(round(side * factor), 1) for side in pixels.shape[:2])
    small: np.ndarray = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return small


def mask_overlay(
    image: np.ndarray, labels: np.ndarray, colours: Sequence[Colour], kind: TaskKind, *, max_side: int = MAX_SIDE
) -> np.ndarray:
    """Returns the image with each class's colour laid over it; ignored pixels are hatched grey.

    ``labels`` is uint8 H×W (binary, multiclass) or C×H×W (multilabel; where classes overlap, colours mix).
    """
    picture = shrunk(displayed(image), max_side=max_side).astype(np.float32)
    return _finished(_hatched(_tinted(picture, labels, colours, kind), labels))


def pseudo_overlay(
    image: np.ndarray, labels: np.ndarray, colours: Sequence[Colour], kind: TaskKind, *, max_side: int = MAX_SIDE
) -> np.ndarray:
    """Returns the image with each class's colour laid over it and ``UNSURE`` where a pixel or class is ``IGNORE``.

    Unsure pixels lie in thin bands along boundaries; they are shown wider than they are, so that they can be seen.
    """
    picture = shrunk(displayed(image), max_side=max_side).astype(np.float32)
    ignored = (labels == IGNORE) if labels.ndim == 2 else (labels == IGNORE).any(axis=0)
    opacity = np.minimum(_share(ignored, picture.shape[:2]) * _EMPHASIS, 1)[..., None]
    tinted = _tinted(picture, labels, colours, kind)
    return _finished(tinted * (1 - opacity) + np.asarray(UNSURE, np.float32) * opacity)


def _tinted(picture: np.ndarray, labels: np.ndarray, colours: Sequence[Colour], kind: TaskKind) -> np.ndarray:
    grey = _grey(picture)
    painted, covered = np.zeros_like(picture), np.zeros(picture.shape[:2], np.float32)
    for index, colour in enumerate(colours):
        share = _share(_is_class(labels, index, kind), picture.shape[:2])
        painted += share[..., None] * np.asarray(colour, np.float32)
        covered += share
    tint = painted / np.maximum(covered, 1e-6)[..., None]
    opacity = (_TINT * np.minimum(covered, 1))[..., None]
    # Colours lie over a grey picture where there are many of them, over the photo itself where there is one.
    ground = picture if kind == "binary" else 0.5 * picture + 0.5 * grey
    tinted: np.ndarray = ground * (1 - opacity) + tint * opacity
    return tinted


def error_overlay(
    image: np.ndarray, prediction: np.ndarray, truth: np.ndarray, kind: TaskKind, *, max_side: int = MAX_SIDE
) -> np.ndarray:
    """Returns the image in dim grey, its contrast stretched, with its wrong pixels in colour.

    Binary and multilabel: ``MISSED`` where a class is in the truth alone, ``EXTRA`` where it is in the prediction
    alone, ``BOTH`` where a pixel is wrong in both ways. Multiclass: ``WRONG``. Pixels whose truth is ``IGNORE``
    are never wrong. Shrunk pictures show errors wider than they are, so that thin ones can be seen.
    """
    picture = _dimmed(shrunk(displayed(image), max_side=max_side).astype(np.float32))
    for mask, colour in _errors(prediction, truth, kind):
        opacity = np.minimum(_share(mask, picture.shape[:2]) * _EMPHASIS, 1)[..., None]
        picture = picture * (1 - opacity) + np.asarray(colour, np.float32) * opacity
    return _finished(_hatched(picture, truth))


def _errors(prediction: np.ndarray, truth: np.ndarray, kind: TaskKind) -> list[tuple[np.ndarray, Colour]]:
    """Returns bool masks H×W with their colours; later ones lie on top."""
    known = truth != IGNORE
    if kind == "multiclass":
        return [(known & (prediction != truth), WRONG)]
    missed, extra = (known & (truth == 1) & (prediction != 1)), (known & (truth == 0) & (prediction == 1))
    if kind == "binary":
        return [(missed, MISSED), (extra, EXTRA)]
    missed, extra = missed.any(axis=0), extra.any(axis=0)
    return [(missed, MISSED), (extra, EXTRA), (missed & extra, BOTH)]


def wrong_pixels(prediction: np.ndarray, truth: np.ndarray, kind: TaskKind) -> np.ndarray:
    """Returns where the prediction is wrong in any way: bool H×W."""
    wrong: np.ndarray = np.any([mask for mask, _ in _errors(prediction, truth, kind)], axis=0)
    return wrong


def densest_window(wrong: np.ndarray, *, fraction: float = 0.25, min_side: int = 96) -> tuple[slice, slice] | None:
    """Returns rows and columns of the part of the image that holds the most wrong pixels.

    ``fraction`` is the part's share of either side. None when nothing is wrong, or when the image is so small that
    the part would be nearly all of it.
    """
    height, width = (min(max(round(side * fraction), min_side), side) for side in wrong.shape)
    if not wrong.any() or height * width > 0.4 * wrong.size:
        return None
    sums = cv2.integral(wrong.astype(np.uint8))
    inside = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    row, column = np.unravel_index(int(inside.argmax()), inside.shape)
    return slice(int(row), int(row) + height), slice(int(column), int(column) + width)


def to_jpeg(pixels: np.ndarray, *, max_bytes: int = 40_000) -> bytes:
    """Returns the picture uint8 H×W×3 as a JPEG of at most ``max_bytes``, or of the lowest quality tried."""
    content = b""
    for quality in (84, 70, 55, 40):
        done, buffer = cv2.imencode(
            ".jpg", np.ascontiguousarray(pixels[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality]
        )
        if not done:
            raise ValueError(f"cannot encode a picture of shape {pixels.shape} as JPEG")
        content = buffer.tobytes()
        if len(content) <= max_bytes:
            break
    return content


def _is_class(labels: np.ndarray, index: int, kind: TaskKind) -> np.ndarray:
    if kind == "multilabel":
        found: np.ndarray = labels[index] == 1
    else:
        found = labels == (1 if kind == "binary" else index)
    return found


def _share(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns how much of each pixel of a picture of that size the mask covers: float32 H×W, 0…1."""
    values = mask.astype(np.float32)
    if mask.shape == size:
        return values
    share: np.ndarray = cv2.resize(values, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    return share


def _hatched(picture: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the picture with diagonal grey lines where labels are ``IGNORE``."""
    ignored = (labels == IGNORE) if labels.ndim == 2 else (labels == IGNORE).any(axis=0)
    if not ignored.any():
        return picture
    rows, columns = np.indices(picture.shape[:2])
    lines = ((rows + columns) % 8 < 3) & (_share(ignored, picture.shape[:2]) > 0.5)
    return np.where(lines[..., None], np.asarray(UNJUDGED, np.float32), picture)


def _dimmed(picture: np.ndarray) -> np.ndarray:
    """Returns the picture in grey, its 2nd to 98th percentile moved to the range of ``_GROUND``."""
    grey = _grey(picture)
    low, high = np.percentile(grey, [2, 98]).tolist()
    share = np.clip((grey - low) / max(high - low, 64.0), 0, 1)
    dimmed: np.ndarray = _GROUND[0] + share * (_GROUND[1] - _GROUND[0])
    return dimmed


def _grey(picture: np.ndarray) -> np.ndarray:
    grey: np.ndarray = np.repeat(picture.mean(axis=2, keepdims=True), 3, axis=2)
    return grey


def _finished(picture: np.ndarray) -> np.ndarray:
    pixels: np.ndarray = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    return pixels
