"""How a record's further band files are brought onto its image: what is asked for, and the asking.

Knows nothing about where results are kept.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from maskloom.config import Config
from maskloom.errors import UserError
from maskloom.rasters.registration import Motion, Registration, register_files
from maskloom.records import Record


class BandPair(Config):
    """Two bands that look alike, by which a further file is brought onto the image."""

    file: int = Field(ge=0)
    """Which of the record's further files, counted from 0."""
    image_band: int = Field(ge=0)
    """The band of the record's image, counted from 0."""
    band: int = Field(ge=0)
    """The band of that file, counted from 0."""


class RegistrationSettings(Config):
    """How further band files are registered on their image, by ECC (Evangelidis & Psarakis 2008)."""

    pairs: tuple[BandPair, ...] = Field(min_length=1)
    """Files without a pair stay as they lie."""
    motion: Motion = "translation"
    """A shift, or an affine map."""
    minimum_correlation: float = Field(default=0.3, ge=-1, le=1)
    """What is found with less is not believed."""
    maximum_shift: float = Field(default=16.0, gt=0)
    """Nor is what moves a corner by more pixels of the coarser file."""
    failed: Literal["stop", "leave"] = "stop"
    """What becomes of a file that cannot be registered: the run stops, or the file stays as it lies, which is said."""


def registered(record: Record, settings: RegistrationSettings) -> tuple[dict[int, Registration], list[str]]:
    """Returns what was found for a record's files by their number, and what could not be, in words.

    Raises ``UserError`` for what could not be where the settings say so, and for a file that is not there.
    """
    found: dict[int, Registration] = {}
    problems: list[str] = []
    for pair in settings.pairs:
        if pair.file >= len(record.bands):
            raise UserError(
                f"registration.pairs: expected a further file of 0 to {len(record.bands) - 1} for {record.id}, found "
                f"{pair.file}; name one that is there"
            )
        try:
            found[pair.file] = register_files(
                record.image,
                record.bands[pair.file].path,
                image_band=pair.image_band,
                band=pair.band,
                motion=settings.motion,
                minimum_correlation=settings.minimum_correlation,
                maximum_shift=settings.maximum_shift,
            )
        except UserError as error:
            if settings.failed == "stop":
                raise UserError(f"{error}; or leave such files as they lie: --set registration.failed=leave") from None
            problems.append(str(error))
    return found, problems
