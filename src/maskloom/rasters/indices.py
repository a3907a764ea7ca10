"""Spectral indices by name, the bands of common sensors by name, and what is decided by an index's value.

An index is an expression over named bands. Bands are named by their colour: coastal, blue, green, yellow, red,
red_edge, nir, nir2, swir1 … swir8, pan. Formulas with constants that are no mere factors (EVI, SAVI, REI) mean
reflectance, 0…1; plain ratios take any scale. Knows nothing about files, and nothing about how thresholds are found.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field, field_validator, model_validator

from maskloom.config import Config
from maskloom.errors import UserError, closest
from maskloom.rasters.expressions import Expression, is_band_name

Direction = Literal["above", "below"]

BAND_SETS: dict[str, tuple[str, ...]] = {
    "rgb": ("red", "green", "blue"),
    "worldview3_m": ("coastal", "blue", "green", "yellow", "red", "red_edge", "nir", "nir2"),
    "worldview3_swir": tuple(f"swir{number}" for number in range(1, 9)),
    "dstl": (
        "red", "green", "blue",
        "m_coastal", "m_blue", "m_green", "m_yellow", "m_red", "red_edge", "nir", "nir2",
        "pan",
    ),
}  # fmt: skip
"""The bands of an image in the order of its channels.

"worldview3_m" and "worldview3_swir": WorldView-3's eight multispectral and eight short-wave infrared bands, in the
order of their wavelengths. "dstl": the RGB, M and P files of the Dstl contest on one grid; ``red``, ``green`` and
``blue`` are those of the RGB file, as the published indices take them.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpectralIndex:
    """One index: its formula, and what it is with its source in a line."""

    name: str
    expression: Expression
    about: str


def _table(*rows: tuple[str, str, str]) -> dict[str, SpectralIndex]:
    return {name: SpectralIndex(name=name, expression=Expression(text), about=about) for name, text, about in rows}


INDICES: dict[str, SpectralIndex] = _table(
    (
        "ndvi",
        "(nir - red) / (nir + red)",
        "normalized difference vegetation index (Rouse et al. 1974); WorldView-3's bands 7 and 5",
    ),
    (
        "ndvi2",
        "(nir2 - red) / (nir2 + red)",
        "the same with the second near infrared, WorldView-3's bands 8 and 5 (WV-VI, Wolf 2012)",
    ),
    (
        "evi",
        "2.5 * (nir - red) / (nir + 6 * red - 7.5 * blue + 1)",
        "enhanced vegetation index, reflectance (Huete et al. 2002)",
    ),
    (
        "savi",
        "1.5 * (nir - red) / (nir + red + 0.5)",
        "soil-adjusted vegetation index with L = 0.5, reflectance (Huete 1988)",
    ),
    ("ndwi", "(green - nir) / (green + nir)", "normalized difference water index (McFeeters 1996)"),
    (
        "ccci",
        "(nir - red_edge) / (nir + red_edge) / ((nir - red) / (nir + red))",
        "canopy chlorophyll content index as the ratio NDRE / NDVI (after Barnes et al. 2000)",
    ),
    ("rei", "(nir2 - blue) / (nir2 + blue * nir2)", "road extraction index, reflectance (Shahi et al. 2015)"),
    (
        "dstl_evi",
        "(nir2 - red) / (nir2 + 6 * red - 7.5 * blue + 1)",
        "EVI as Dstl's 3rd place has it: nir2, without the factor 2.5; values divided by 2047",
    ),
    ("dstl_ndwi", "(green - nir2) / (green + nir2)", "NDWI as Dstl's 3rd place has it: nir2"),
    ("dstl_savi", "(nir2 - red) / (nir2 + red)", "SAVI as Dstl's 3rd place has it: nir2 and L = 0"),
    (
        "dstl_ccci",
        "(nir2 - red_edge) / (nir2 + red_edge) * (nir2 - red) / (nir2 + red)",
        "CCCI as Dstl's 3rd place has it: nir2, and the product NDRE · NDVI",
    ),
    (
        "dstl_rei",
        "nir2 - blue / nir2 + blue * nir2",
        "REI as Dstl's 3rd place has it: without the brackets; values of the M file divided by 2047",
    ),
)
"""Every named index; those of the contest's code, which differ from the definitions, begin with dstl_."""


def index(text: str, bands: Collection[str] | None = None) -> Expression:
    """Returns the expression of a named index, or the one that the text itself is.

    A band of ``bands`` goes before an index of that name. With ``bands``, raises ``UserError`` where the expression
    uses others; and always where the text is neither a name nor an expression.
    """
    text = text.strip()
    if text in INDICES and not (bands and text in bands):
        expression = INDICES[text].expression
        missing = [name for name in expression.names if bands is not None and name not in bands]
        if bands is not None and missing:
            raise UserError(f"index {text}: expected a band {missing[0]!r}, found {', '.join(bands)}; name the bands")
        return expression
    if bands is not None and is_band_name(text) and text not in bands:
        raise UserError(f"expected an index, a band or an expression, found {text!r:.60}; {closest(text, _all(bands))}")
    expression = Expression(text)
    if bands is not None:
        expression.check_names(bands)
    return expression


def _all(bands: Iterable[str]) -> set[str]:
    return {*INDICES, *bands}


def band_names(bands: str | Sequence[str]) -> tuple[str, ...]:
    """Returns the bands of a set in ``BAND_SETS``, or those that are listed, in the order of the channels.

    Raises ``UserError`` for an unknown set, a name that no expression can use, and one that comes twice.
    """
    if isinstance(bands, str):
        if bands not in BAND_SETS:
            raise UserError(f"bands: unknown set {bands!r:.60}; {closest(bands, BAND_SETS)}; or list the bands")
        return BAND_SETS[bands]
    names = tuple(bands)
    for name in names:
        if not is_band_name(name):
            raise UserError(f"bands: expected names of letters, digits and _ that are no functions, found {name!r:.60}")
        if names.count(name) > 1:
            raise UserError(f"bands: expected names that differ from each other, found {name!r:.60} twice")
    return names


def index_values(
    pixels: np.ndarray, bands: Sequence[str], expressions: Sequence[Expression], *, scale: float = 1.0
) -> list[np.ndarray]:
    """Returns one float32 array H×W per expression, as they are: infinities and NaN included.

    ``pixels`` is H×W×C of the named bands in this order, as stored; ``scale`` is the stored value that counts as 1,
    by whose reciprocal values are multiplied, as segmenters do. Raises ``UserError`` where the bands are not as many,
    or an expression uses others.
    """
    if pixels.shape[-1] != len(bands):
        raise UserError(
            f"expected the {len(bands)} bands {', '.join(bands)}, found {pixels.shape[-1]}; name each band of the image"
        )
    used = {name for expression in expressions for name in expression.names}
    with np.errstate(all="ignore"):
        values = {
            name: pixels[..., channel].astype(np.float32) * np.float32(1 / scale)
            for channel, name in enumerate(bands)
            if name in used
        }
    return [expression.evaluate(values) for expression in expressions]


def _readable(text: str) -> str:
    index(text)
    return text


IndexText = Annotated[str, AfterValidator(_readable)]
"""In settings: the name of an index, or an expression over bands."""


class IndexRule(Config):
    """What belongs to a class: where an index is at least, or at most, a threshold."""

    expression: IndexText
    """The name of an index, or an expression over bands."""
    threshold: float = Field(default=0.0, ge=-1e38, le=1e38)
    """Where the class begins or ends; a member searches for its own."""
    direction: Direction = "above"
    """"above": value ≥ threshold; "below": value ≤ threshold. Both are compared as float32."""

    def holds(self, values: np.ndarray) -> np.ndarray:
        """Returns where the index's values (float32, any shape) belong to the class: bool, False if not finite."""
        threshold = np.float32(self.threshold)
        with np.errstate(invalid="ignore"):
            decided = values >= threshold if self.direction == "above" else values <= threshold
        within: np.ndarray = np.isfinite(values) & decided
        return within


class IndexSettings(Config):
    """A network of indices: the input's bands, and a rule per map."""

    bands: tuple[str, ...] = Field(min_length=1)
    """The input's channels in their order: their names, or the name of a set of bands."""
    rules: tuple[IndexRule | None, ...] = Field(min_length=1)
    """One per map, in the order of the classes; None for a class that no index knows, which is then found nowhere."""
    steepness: float = Field(default=20.0, gt=0, le=1e6)
    """Logits per unit of the index: 20 takes a probability from 0.27 to 0.73 within 0.1."""

    @field_validator("bands", mode="before")
    @classmethod
    def _set_of_bands(cls, value: Any) -> Any:
        is_list = isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
        return band_names(value) if is_list or isinstance(value, str) else value

    @model_validator(mode="after")
    def _bands_are_there(self) -> IndexSettings:
        for rule in self.rules:
            if rule is not None:
                index(rule.expression, self.bands)
        return self
