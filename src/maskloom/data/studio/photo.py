"""One photo with its exact mask: object, reflection, shadow and backdrop put together and taken by a camera sensor."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from maskloom.data.studio.backdrop import empty_studio, shadow, tick_marks
from maskloom.data.studio.geometry import Array, rotation
from maskloom.data.studio.render import Layer, draw_layer
from maskloom.data.studio.shapes import StudioObject
from maskloom.errors import UserError
from maskloom.records import Size
from maskloom.runtime import generator

LARGEST: Size = (1280, 1918)
SMALLEST = 32


def check_size(size: Size) -> None:
    """Raises ``UserError`` for a size (height, width) that the studio cannot take."""
    height, width = size
    if not (SMALLEST <= height <= LARGEST[0] and SMALLEST <= width <= LARGEST[1]):
        raise UserError(
            f"studio size {height}×{width}: expected {SMALLEST} to {LARGEST[0]} rows and {SMALLEST} to {LARGEST[1]} "
            f"columns; choose a size within"
        )


def render(
    model: StudioObject, view: int, size: Size = LARGEST, *, views: int = 16, seed: int = 0
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Returns the photo H×W×3 (uint8, RGB) and mask H×W of view ``view`` of 1…``views``, in the studio ``seed``.

    The mask holds the pixels that the object covers by half or more, before the lens blurs them; glass belongs to the
    object, the gaps between a chair's bars do not.

    Raises:
        UserError: the view or the size is out of range.
    """
    check_size(size)
    if not 1 <= view <= views:
        raise UserError(f"studio view {view}: expected a view from 1 to {views}; choose one of them")
    own = generator(seed, "studio mood", model.id)
    depth, gleam, softness = own.uniform(0.45, 0.85), own.uniform(0.12, 0.42), own.uniform(0.5, 0.95)
    exposure = own.uniform(0.9, 1.12)
    angle = model.turn + 2 * np.pi * (view - 1) / views
    turn = rotation(2, angle)
    light = (
        empty_studio(seed, size)
        * (shadow(model.parts, turn, size, depth=depth, softness=softness) * tick_marks(angle, size))[..., None]
    )
    _add_reflection(light, draw_layer(model.parts, turn, (size[0] // 2, size[1] // 2), mirrored=True), gleam)
    mask = np.zeros(size, bool)
    layer = draw_layer(model.parts, turn, size)
    if layer is not None:
        height, width = layer.coverage.shape
        part = (slice(layer.top, layer.top + height), slice(layer.left, layer.left + width))
        light[part] *= (1 - layer.hidden)[..., None]
        light[part] += layer.colour
        mask[part] = layer.coverage >= 0.5
    return develop(light * np.float32(exposure), generator(seed, model.id, view)), mask


def _add_reflection(light: Array, layer: Layer | None, strength: float) -> None:
    """Adds what the floor mirrors, drawn at half the size and blurred."""
    if layer is None:
        return
    height, width = layer.hidden.shape
    blur = max(light.shape[0] / 480, 0.6)
    both = cv2.GaussianBlur(np.dstack([layer.colour, layer.hidden]), (0, 0), blur)
    top, left = 2 * layer.top, 2 * layer.left
    both = cv2.resize(both, (2 * width, 2 * height), interpolation=cv2.INTER_LINEAR)
    part = light[top : top + 2 * height, left : left + 2 * width]
    both = both[: part.shape[0], : part.shape[1]] * np.float32(strength)
    part *= 1 - both[..., 3:]
    part += both[..., :3]


def develop(light: Array, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Returns the photo that a camera makes of linear light: lens blur, vignette, sensor noise, tone curve."""
    height, width = light.shape[:2]
    blurred = cv2.GaussianBlur(light, (0, 0), 0.45 + 0.35 * width / LARGEST[1])
    y, x = np.linspace(-1, 1, height, dtype=np.float32)[:, None], np.linspace(-1, 1, width, dtype=np.float32)
    blurred = blurred * (1 - np.float32(0.16) * (0.45 * y * y + 0.55 * x * x))[..., None]
    grain = rng.standard_normal((height, width), dtype=np.float32)
    coarse = rng.standard_normal(((height + 1) // 2, (width + 1) // 2, 3), dtype=np.float32)
    noise = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR) * np.float32(0.7) + grain[..., None]
    # in the square-root domain shot noise is the same everywhere, and dark pixels get the read noise on top
    tone = cv2.sqrt(np.maximum(blurred / (1 + np.float32(0.16) * blurred) * np.float32(1.16), 0))
    tone = tone * (np.float32(0.72) + tone * (np.float32(0.84) - np.float32(0.56) * tone)) + noise * np.float32(0.008)
    return np.asarray(np.clip(tone * 255 + np.float32(0.5), 0, 255), np.uint8)
