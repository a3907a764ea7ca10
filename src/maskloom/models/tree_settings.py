"""What boosted trees on pixels see and how they are grown: settings, and how far around a pixel they look.

Plain data, since recipes are read with it. Knows nothing about LightGBM, tensors and files.
"""

from __future__ import annotations

from pydantic import Field, field_validator

from maskloom.config import Config
from maskloom.data.input_policy import InputPolicy

LARGEST_SIGMA = 64.0
"""Such a Gaussian reaches 256 pixels, which is read around the blocks of rasters."""
SMALLEST_SIGMA = 0.3
"""Below it a Gaussian of so few pixels is the band itself."""


class TreeSettings(Config):
    """Boosted trees that decide each pixel by the bands as they are and smoothed by Gaussians."""

    sigmas: tuple[float, ...] = Field(default=(0.0, 1.0, 2.0, 4.0), min_length=1, max_length=16)
    """Of the Gaussians in pixels, 0.3 to 64; 0 is the band as it is. A Gaussian reaches 4 times as far."""
    deviations: tuple[float, ...] = Field(default=(), max_length=16)
    """Of further Gaussians, below which the standard deviation of every band is looked at, too: texture."""
    contrasts: tuple[float, ...] = Field(default=(), max_length=4)
    """Of further, wide Gaussians, which make surroundings: of every band, as it is and smoothed, trees also look at how
    many standard deviations of its surroundings it lies above their mean. Haze, season and gain change that little."""
    num_trees: int = Field(default=200, ge=1, le=5000)
    """Of each class."""
    learning_rate: float = Field(default=0.05, gt=0, le=1)
    """What each tree adds of what it has found."""
    num_leaves: int = Field(default=15, ge=2, le=256)
    """Of each tree, at most."""
    min_samples_leaf: int = Field(default=50, ge=1, le=1_000_000)
    """Sampled pixels in each leaf, at least."""
    l2: float = Field(default=1.0, ge=0, le=1e6)
    """Holds the values of leaves near 0: it is added to the sum of the second derivatives that divides them."""
    values_per_tree: float = Field(default=1.0, gt=0, le=1)
    """Of what is looked at, drawn anew for every tree, which may ask for no other: trees then err in different ways."""
    pixels_per_tree: float = Field(default=1.0, gt=0, le=1)
    """Of the sampled pixels, drawn anew for every tree, which learns from no other (stochastic gradient boosting:
    Friedman, 2002)."""
    share: float = Field(default=1 / 8, gt=0, le=1)
    """Of the pixels of every image, drawn at random, which are learnt from: neighbours say much the same."""
    max_pixels: int = Field(default=1_000_000, ge=1000, le=100_000_000)
    """So many pixels are learnt from at most, of all images together and on average over draws: of many or large images
    a smaller share is drawn. Each takes some 10 bytes per channel and Gaussian while trees are grown."""

    @field_validator("deviations", "contrasts")
    @classmethod
    def _nothing_varies_in_a_pixel(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if 0 in value:
            raise ValueError("expected Gaussians of 0.3 to 64 pixels, found 0, below which nothing varies")
        return value

    @field_validator("sigmas", "deviations", "contrasts")
    @classmethod
    def _sigmas_are_gaussians(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        for sigma in value:
            if sigma != 0 and not SMALLEST_SIGMA <= sigma <= LARGEST_SIGMA:
                raise ValueError(f"expected 0, or {SMALLEST_SIGMA:g} to {LARGEST_SIGMA:g} pixels, found {sigma:g}")
        if len(set(value)) < len(value):
            raise ValueError(f"expected Gaussians that differ from each other, found {value}")
        return value

    @property
    def reach(self) -> int:
        """How many pixels around a pixel say what it is."""
        return max(map(radius, (*self.sigmas, *self.deviations, *self.contrasts)))

    @property
    def num_planes(self) -> int:
        """How many values of every band trees look at."""
        return len(self.sigmas) * (1 + len(self.contrasts)) + len(self.deviations)

    def input_problem(self, policy: InputPolicy) -> str:
        """Returns why pixels that are prepared so would not be seen with all of their surroundings; "" where they are.

        Borders of images are mirrored by the network itself, those of tiles must lie beyond its reach.
        """
        if policy.multiple != 1:
            return f"input.multiple: trees take sides of any length, found {policy.multiple}; state 1"
        if policy.mode == "parts":
            return "input.mode: trees take whole images or windows with a margin, found parts; state full or window"
        if policy.mode != "window":
            return ""
        if policy.margin < self.reach:
            return (
                f"input.margin: expected at least {self.reach} pixels, so far does the widest Gaussian reach, found "
                f"{policy.margin}; state {self.reach} (a window's overlap does not help: it is blended)"
            )
        if policy.padding != "reflect":
            return f"input.padding: trees see images mirrored at their borders, found {policy.padding}; state reflect"
        return ""


def radius(sigma: float) -> int:
    """Returns how many pixels to each side a Gaussian reaches: OpenCV's width of a kernel for float images, halved."""
    return round(8 * sigma + 1) // 2
