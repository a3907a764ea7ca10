"""Stored bands as a network is given them: on the scale 0…1, with spectral indices as further channels.

Knows nothing about files and networks.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field, field_validator

from maskloom.config import Config
from maskloom.errors import UnfitImage, UserError
from maskloom.rasters.indices import band_names, index

INDEX_LIMIT = 4.0
"""Indices are held within ±4: ratios whose divisor passes 0 have no bound, and say nothing beyond."""
_GUIDE_SCALE = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}


class BandSettings(Config):
    """What the channels of an image are, and what is computed from them."""

    names: str | tuple[str, ...]
    """The bands in the order of the channels: a set known by name ("worldview3_m", "dstl"), or a list."""
    full_scale: float = Field(gt=0)
    """The stored value that becomes 1; larger ones become 1 too. 2047 for 11 bits, 16383 for 14."""
    indices: tuple[str, ...] = ()
    """Spectral indices that follow as further channels: known ones by name, or expressions over the bands."""

    @field_validator("names")
    @classmethod
    def _names_are_known(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        try:
            band_names(value)
        except UserError as error:
            raise ValueError(str(error)) from None
        return value

    @property
    def bands(self) -> tuple[str, ...]:
        """The names of the channels."""
        return band_names(self.names)


def check_indices(settings: BandSettings) -> None:
    """Raises ``UserError`` for an index that is not known, or takes bands that are not there."""
    for text in settings.indices:
        index(text, settings.bands)


def with_indices(image: np.ndarray, settings: BandSettings, *, channels: int | None = None) -> np.ndarray:
    """Returns float32 H×W×(bands + indices + guides) of an image H×W×(bands + guides) as stored.

    The first ``channels`` are the bands (all when None): divided by ``full_scale`` and held within 0…1. Indices are
    computed from these, and held within ±``INDEX_LIMIT``; where one is not a number it is 0. Guides stay last, on the
    scale 0…1. Raises ``UnfitImage`` for another number of bands than there are names.
    """
    names = settings.bands
    channels = image.shape[2] if channels is None else channels
    if channels != len(names):
        raise UnfitImage(
            f"expected {len(names)} bands ({', '.join(names)}), found {channels}; name those of the images"
        )
    values = np.clip(image[..., :channels].astype(np.float32) / np.float32(settings.full_scale), 0, 1)
    by_name = {name: values[..., number] for number, name in enumerate(names)}
    further = [_held(np.asarray(index(text, names).evaluate(by_name))) for text in settings.indices]
    guides = image[..., channels:].astype(np.float32) / np.float32(_GUIDE_SCALE[image.dtype.name])
    return np.concatenate([values, *(plane[..., None] for plane in further), guides], axis=2)


def _held(values: np.ndarray) -> np.ndarray:
    finite = np.where(np.isnan(values), np.float32(0), values.astype(np.float32))
    held: np.ndarray = np.clip(finite, -INDEX_LIMIT, INDEX_LIMIT)
    return held
