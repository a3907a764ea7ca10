"""Random changes of a batch, made on its device: one resampling per image, one pass of colour.

What happens to a sample is drawn beforehand as a few numbers (``draw``) from an explicit generator; ``apply`` carries
the draws out. Flips and transposes alone move pixels exactly; everything else geometric is one matrix. Knows nothing
of files, windows or networks; CLAHE, which looks at neighbourhoods, is drawn here and done before the batch is made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from maskloom.config import Config
from maskloom.data.colour import FULL_SCALE, grey_where, mean_luma, shift_hsv, tone
from maskloom.records import IGNORE, Size


class AugmentSettings(Config):
    """What may happen to a training sample; every probability is per sample, every range symmetric and uniform.

    The default changes nothing. A transpose needs square inputs; together with both flips it gives the 8-fold
    symmetry. Hue, saturation, chroma and grey act on three channels and leave images of other counts as they are.
    Colour never touches guides, the channels that follow the image's own.
    """

    horizontal_flip: float = Field(default=0.0, ge=0, le=1)
    """Probability of mirroring left and right."""
    vertical_flip: float = Field(default=0.0, ge=0, le=1)
    """Probability of mirroring top and bottom."""
    transpose: float = Field(default=0.0, ge=0, le=1)
    """Probability of exchanging rows and columns; square inputs only."""

    geometric: float = Field(default=0.5, ge=0, le=1)
    """Probability of ``shift``, ``scale`` and ``rotate``, together; what enters from outside is mirrored content."""
    shift: float = Field(default=0.0, ge=0, le=0.5)
    """At most so far on either axis, as a fraction of its side."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Smallest and largest magnification; above 1 objects grow."""
    rotate: float = Field(default=0.0, ge=0, le=180)
    """At most so many degrees either way."""

    colour: float = Field(default=0.5, ge=0, le=1)
    """Probability of ``hue``, ``saturation`` and ``value``, together."""
    hue: float = Field(default=0.0, ge=0, le=90)
    """At most so much is added, in OpenCV's 8-bit units (180 are the whole circle, so one unit is 2 degrees)."""
    saturation: float = Field(default=0.0, ge=0, le=255)
    """At most so much is added to the HSV saturation, in 8-bit units (255 is full); grey pixels stay grey."""
    value: float = Field(default=0.0, ge=0, le=255)
    """At most so much is added to the HSV value, in 8-bit units (255 is full); other than three channels: to each."""
    object_grey: float = Field(default=0.0, ge=0, le=1)
    """Probability of replacing the colours by luma inside the mask alone: every pixel of a class, or of a label
    other than 0 in a multiclass task. The last change of colour, so that the object is grey whatever came before."""
    one_of_colour: bool = False
    """With probability ``colour``, either hue, saturation and value shift or the object turns grey, equally likely;
    ``object_grey`` then has no probability of its own."""

    tone: float = Field(default=0.5, ge=0, le=1)
    """Probability of ``brightness``, of ``contrast`` and of ``chroma``, each on its own."""
    brightness: float = Field(default=0.0, ge=0, lt=1)
    """All channels are multiplied by 1 ± at most this."""
    contrast: float = Field(default=0.0, ge=0, lt=1)
    """Distances from the image's mean luma are multiplied by 1 ± at most this."""
    chroma: float = Field(default=0.0, ge=0, le=1)
    """Distances from each pixel's luma are multiplied by 1 ± at most this."""
    grey: float = Field(default=0.0, ge=0, le=1)
    """Probability of replacing the colours by luma."""
    clahe: float = Field(default=0.0, ge=0, le=1)
    """Probability of contrast-limited adaptive histogram equalisation (clip 2, 8×8 tiles, on luma); 8 or 16 bits."""

    @model_validator(mode="after")
    def _scales_are_ordered(self) -> AugmentSettings:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be (smallest, largest) above 0, found {self.scale}")
        return self

    @model_validator(mode="after")
    def _one_probability(self) -> AugmentSettings:
        if self.one_of_colour and self.object_grey > 0:
            raise ValueError(
                f"one_of_colour draws the grey object with probability colour, found object_grey {self.object_grey}; "
                "set object_grey=0, or one_of_colour=false"
            )
        return self

    @property
    def warps(self) -> bool:
        """Whether shift, scale or rotation can happen."""
        return self.geometric > 0 and (self.shift > 0 or self.rotate > 0 or self.scale != (1.0, 1.0))

    @property
    def shifts_colours(self) -> bool:
        """Whether hue, saturation or value can change."""
        return self.colour > 0 and max(self.hue, self.saturation, self.value) > 0

    @property
    def greys_objects(self) -> bool:
        """Whether the object alone can turn grey."""
        return self.object_grey > 0 or (self.one_of_colour and self.colour > 0)

    @property
    def tones(self) -> bool:
        """Whether brightness, contrast, chroma or grey can change."""
        return self.grey > 0 or (self.tone > 0 and max(self.brightness, self.contrast, self.chroma) > 0)

    @property
    def is_identity(self) -> bool:
        """Whether nothing can happen at all."""
        moves = max(self.horizontal_flip, self.vertical_flip, self.transpose, self.clahe) > 0 or self.warps
        return not (moves or self.shifts_colours or self.tones or self.greys_objects)


_CARVANA_2 = AugmentSettings(
    horizontal_flip=0.5,
    shift=0.0625,
    scale=(0.91, 1.21),
    rotate=7,
    brightness=0.5,
    contrast=0.5,
    chroma=0.3,
    grey=0.25,
)

PRESETS: dict[str, AugmentSettings] = {
    "none": AugmentSettings(),
    "mirror": AugmentSettings(horizontal_flip=0.5),
    "flips": AugmentSettings(horizontal_flip=0.5, vertical_flip=0.5),
    "symmetry": AugmentSettings(horizontal_flip=0.5, vertical_flip=0.5, transpose=0.5),
    "light": AugmentSettings(
        horizontal_flip=0.5, shift=0.0625, scale=(0.9, 1.1), rotate=5, brightness=0.15, contrast=0.15, chroma=0.2
    ),
    "symmetry_light": AugmentSettings(
        horizontal_flip=0.5,
        vertical_flip=0.5,
        transpose=0.5,
        shift=0.0625,
        scale=(0.8, 1.25),
        rotate=10,
        brightness=0.15,
        contrast=0.15,
        chroma=0.2,
    ),
    "strong": AugmentSettings(
        horizontal_flip=0.5,
        geometric=0.8,
        shift=0.1,
        scale=(0.7, 1.4),
        rotate=15,
        hue=10,
        saturation=25,
        value=25,
        brightness=0.3,
        contrast=0.3,
        chroma=0.3,
        grey=0.1,
    ),
    # Carvana, 1st place: augmentations "0", "1", "2" of the U-Net members, that of the LinkNet members (whose
    # probability of colour is the trainer's default), and that of TernausNet.
    "carvana_0": AugmentSettings(horizontal_flip=0.5, geometric=0.75, shift=0.0625, scale=(0.91, 1.21), rotate=5),
    "carvana_1": _CARVANA_2.model_copy(update={"rotate": 10.0}),
    "carvana_2": _CARVANA_2,
    "carvana_linknet": AugmentSettings(
        horizontal_flip=0.5,
        geometric=0.75,
        shift=0.0625,
        scale=(0.9, 1.1),
        rotate=5,
        hue=10,
        saturation=25,
        value=25,
        brightness=0.1,
    ),
    "carvana_ternaus": AugmentSettings(horizontal_flip=0.5, hue=50, saturation=5, value=15, one_of_colour=True),
    # Carvana, 3rd place: everything else overfitted. 4th place: the zoom of its released generator; a shift of 0.1 on
    # the scale 0…255, also there, is left out, being below what 8 bits hold. The 6th to 15th publish none.
    "carvana_3rd": AugmentSettings(horizontal_flip=0.5),
    "carvana_4th": AugmentSettings(horizontal_flip=0.5, geometric=1.0, scale=(0.95, 1.05)),
}
"""Settings by name. "light" suits photos that have an up and a down, "symmetry…" images seen from above."""


@dataclass(frozen=True, slots=True)
class Draw:
    """What happens to one sample."""

    matrix: np.ndarray
    """float32 3×3, from output to input (x, y, 1) in pixels; the origin is the centre of the image, y points down."""
    colour: np.ndarray
    """float32 (hue, saturation, value, brightness, contrast, chroma): three summands in 8-bit units, three factors."""
    clahe: bool = False
    object_grey: bool = False
    """Whether the mask's area turns grey."""


@dataclass(frozen=True, slots=True)
class DrawBatch:
    """The draws of a batch, on the CPU: a few numbers that decide what is launched."""

    matrices: Tensor
    """float32 N×3×3, as ``Draw.matrix``."""
    colours: Tensor
    """float32 N×6, as ``Draw.colour``."""
    object_greys: Tensor
    """bool N, as ``Draw.object_grey``."""
    channels: int | None = None
    """The first so many channels are the images', what follows are guides; None: all are the images'."""

    def __len__(self) -> int:
        return len(self.matrices)


def draw(settings: AugmentSettings, rng: np.random.Generator, size: Size) -> Draw:
    """Returns what happens to a sample whose content is ``size`` (height, width) large.

    Takes the same count of random numbers whatever the settings, so changing one of them leaves the others' draws.
    """
    chance = rng.random(10)
    across = rng.uniform(-1, 1, 10)
    later = rng.random(2)  # numbers are only ever added at the end, so that a seed keeps its draws
    matrix = _flips(chance[0] < settings.horizontal_flip, chance[1] < settings.vertical_flip)
    if chance[2] < settings.transpose:
        matrix = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]]) @ matrix
    if settings.warps and chance[3] < settings.geometric:
        matrix = matrix @ _warp(settings, across[:4], size)
    colour = np.array([0.0, 0, 0, 1, 1, 1])
    recolours, object_grey = chance[4] < settings.colour, later[0] < settings.object_grey
    if settings.one_of_colour:
        object_grey = recolours and later[1] < 0.5
        recolours = recolours and not object_grey
    if settings.shifts_colours and recolours:
        colour[:3] = across[4:7] * (settings.hue, settings.saturation, settings.value)
    limits = np.array([settings.brightness, settings.contrast, settings.chroma])
    colour[3:] += np.where(chance[5:8] < settings.tone, across[7:10] * limits, 0.0)
    if chance[8] < settings.grey:
        colour[5] = 0.0
    return Draw(
        matrix.astype(np.float32),
        colour.astype(np.float32),
        clahe=bool(chance[9] < settings.clahe),
        object_grey=bool(object_grey),
    )


def _flips(horizontal: bool, vertical: bool) -> np.ndarray:
    return np.diag([-1.0 if horizontal else 1.0, -1.0 if vertical else 1.0, 1.0])


def _warp(settings: AugmentSettings, across: np.ndarray, size: Size) -> np.ndarray:
    """Returns the inverse of: magnify and rotate about the centre, then shift."""
    low, high = settings.scale
    magnification = low + (high - low) * (across[0] + 1) / 2
    angle = math.radians(settings.rotate * across[1])
    cosine, sine = math.cos(angle) / magnification, math.sin(angle) / magnification
    away = np.array([[1, 0, -settings.shift * across[2] * size[1]], [0, 1, -settings.shift * across[3] * size[0]]])
    back = np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]])
    return np.asarray(back @ np.vstack([away, [0, 0, 1]]))


def stack(draws: Sequence[Draw], *, channels: int | None = None) -> DrawBatch:
    """Returns the draws of a batch's samples as tensors; ``channels`` as in ``DrawBatch``."""
    return DrawBatch(
        torch.from_numpy(np.stack([one.matrix for one in draws])),
        torch.from_numpy(np.stack([one.colour for one in draws])),
        torch.tensor([one.object_grey for one in draws]),
        channels,
    )


def apply(images: Tensor, labels: Tensor, draws: DrawBatch) -> tuple[Tensor, Tensor]:
    """Returns changed images (float32 N×C×H×W, same range of values) and labels (uint8), on their device.

    ``images``: uint8, uint16 or float32; floats count as 0…1 where colours are shifted. ``labels``: uint8 N×H×W or
    N×C×H×W. Images are resampled bilinearly, labels by nearest pixel centre, both mirrored about the outer edges.
    Guides (``DrawBatch.channels``) move like the image and keep their values. A sample's result does not depend on
    the others in its batch; the arguments are never modified.
    """
    values = images.to(torch.float32)
    planes = labels if labels.ndim == 4 else labels.unsqueeze(1)
    moved, moved_planes = _move(values, planes, draws.matrices)
    recolours = (draws.colours != draws.colours.new_tensor([0, 0, 0, 1, 1, 1])).any()
    if recolours or draws.object_greys.any():
        moved = moved.clone() if moved is images else moved
        own = moved[:, : draws.channels]
        if recolours:
            _recolour(own, values[:, : draws.channels], draws.colours, images.dtype)
        _grey_objects(own, moved_planes, draws.object_greys)
    return moved, moved_planes if labels.ndim == 4 else moved_planes.squeeze(1)


def _move(images: Tensor, planes: Tensor, matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Returns images and label planes moved: exactly where a matrix only flips or transposes, else resampled."""
    groups: dict[tuple[int, ...] | None, list[int]] = {}
    for number, matrix in enumerate(matrices.tolist()):
        groups.setdefault(_as_symmetry(matrix), []).append(number)
    if list(groups) == [(1, 0, 0, 1)]:
        return images, planes
    moved, moved_planes = torch.empty_like(images), torch.empty_like(planes)
    for symmetry, members in groups.items():
        index = torch.tensor(members, device=images.device)
        some, some_planes = images[index], planes[index]
        if symmetry is None:
            grid = _grid(matrices[members], (images.shape[2], images.shape[3])).to(images.device)
            moved[index] = _resample(some, grid, "bilinear")
            moved_planes[index] = _resample(some_planes.float(), grid, "nearest").to(torch.uint8)
        else:
            moved[index], moved_planes[index] = _turn(some, symmetry), _turn(some_planes, symmetry)
    return moved, moved_planes


def _as_symmetry(matrix: list[list[float]]) -> tuple[int, ...] | None:
    """Returns (a, b, c, d) of x_in = a·x + b·y, y_in = c·x + d·y where these are flips and transposes, else None."""
    (a, b, dx), (c, d, dy), _ = matrix
    is_exact = dx == dy == 0 and {abs(a), abs(b)} == {abs(c), abs(d)} == {0.0, 1.0} and abs(a) == abs(d)
    return (int(a), int(b), int(c), int(d)) if is_exact else None


def _turn(arrays: Tensor, symmetry: tuple[int, ...]) -> Tensor:
    """Returns N×C×H×W arrays flipped and transposed without resampling."""
    a, b, c, d = symmetry
    if a == 0:
        if arrays.shape[2] != arrays.shape[3]:
            raise ValueError(f"only square images can be transposed, got {tuple(arrays.shape[2:])}")
        # The transposed image has x_in = y_out: its axes carry the signs of b (its rows) and c (its columns).
        arrays, flip_columns, flip_rows = arrays.transpose(2, 3), c < 0, b < 0
    else:
        flip_columns, flip_rows = a < 0, d < 0
    axes = [axis for axis, flip in ((2, flip_rows), (3, flip_columns)) if flip]
    return arrays.flip(axes) if axes else arrays


def _grid(matrices: Tensor, size: Size) -> Tensor:
    """Returns the N×H×W×2 sampling grid of ``grid_sample(align_corners=False)``: x and y, -1…1 over the outer edges.

    Written out in products of single numbers: a batched matrix product may round differently with the batch's size.
    """
    height, width = size
    entries = matrices[:, :2].double()
    entries = entries * torch.tensor([2 / width, 2 / height], dtype=torch.float64).view(1, 2, 1)
    a, b, offset = entries.float().unbind(dim=2)  # each N×2: for x and for y
    x = torch.arange(width, dtype=torch.float32) - (width - 1) / 2
    y = torch.arange(height, dtype=torch.float32) - (height - 1) / 2
    along_rows = a[:, None, :] * x[None, :, None] + offset[:, None, :]
    along_columns = b[:, None, :] * y[None, :, None]
    return along_rows[:, None] + along_columns[:, :, None]


def _resample(arrays: Tensor, grid: Tensor, mode: str) -> Tensor:
    return functional.grid_sample(arrays, grid, mode=mode, padding_mode="reflection", align_corners=False)


def _recolour(images: Tensor, before: Tensor, colours: Tensor, stored: torch.dtype) -> None:
    """Changes float32 ``images`` in place; ``before`` holds the same images unmoved, whose means are exact."""
    full = FULL_SCALE[stored]
    toned = (colours[:, 3:] != 1).any(dim=1)
    if toned.any():
        index = toned.nonzero().squeeze(1).to(images.device)
        factors = colours[toned, 3:].to(images.device)
        images[index] = tone(images[index], mean_luma(before[index]), factors, full)
    shifted = (colours[:, :3] != 0).any(dim=1)
    if shifted.any():
        index = shifted.nonzero().squeeze(1).to(images.device)
        images[index] = shift_hsv(images[index], colours[shifted, :3].to(images.device), full)


def _grey_objects(images: Tensor, planes: Tensor, chosen: Tensor) -> None:
    """Turns the objects of the chosen float32 ``images`` grey, in place; ``planes`` are their labels N×C×H×W."""
    if chosen.any():
        index = chosen.nonzero().squeeze(1).to(images.device)
        some = planes[index]
        images[index] = grey_where(images[index], ((some != 0) & (some != IGNORE)).any(dim=1, keepdim=True))
