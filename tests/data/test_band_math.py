"""Bands on the scale 0…1 and their indices, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from maskloom.config import parse
from maskloom.data.band_math import INDEX_LIMIT, BandSettings, with_indices
from maskloom.data.input_policy import InputPolicy, prepare_image
from maskloom.errors import UnfitImage, UserError

SETTINGS = BandSettings(
    names=("red", "nir"), full_scale=1000, indices=("ndvi", "nir / red", "(red - red) / (nir - nir)")
)


def test_bands_indices_and_guides_by_hand() -> None:
    image = np.array([[[200, 600, 65535], [0, 2000, 0]]], np.uint16)
    found = with_indices(image, SETTINGS, channels=2)
    assert found.dtype == np.float32 and found.shape == (1, 2, 6)
    assert found[0, 0].tolist() == pytest.approx([0.2, 0.6, 0.5, 3.0, 0.0, 1.0])
    assert found[0, 1].tolist() == pytest.approx([0.0, 1.0, 1.0, INDEX_LIMIT, 0.0, 0.0])  # nir / red has no bound


def test_preparing_an_image_adds_them() -> None:
    policy = InputPolicy(mode="full", multiple=8, bands=SETTINGS)
    prepared, _ = prepare_image(np.full((5, 6, 2), 500, np.uint16), policy)
    assert prepared.shape == (8, 8, 5) and set(prepared[..., 1].ravel().tolist()) == {0.5}


def test_another_number_of_bands_is_told() -> None:
    with pytest.raises(UnfitImage, match=r"expected 2 bands \(red, nir\), found 3"):
        with_indices(np.zeros((2, 2, 3), np.uint16), SETTINGS)


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        ({"names": "worldview", "full_scale": 1}, "unknown set 'worldview'"),
        ({"names": ["red"], "full_scale": 1, "indices": ["ndvi"]}, "index ndvi: expected a band 'nir'"),
        ({"names": ["red"], "full_scale": 0}, "greater than 0"),
    ],
)
def test_bad_settings_say_why(bands: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(InputPolicy, {"mode": "full", "bands": bands})
