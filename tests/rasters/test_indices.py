"""Named indices against their formulas written out, settings against what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from maskloom.config import parse
from maskloom.errors import UserError
from maskloom.rasters.expressions import Expression
from maskloom.rasters.indices import (
    BAND_SETS,
    INDICES,
    IndexRule,
    IndexSettings,
    band_names,
    index,
    index_values,
)

BLUE, GREEN, RED, EDGE, NIR, NIR2 = 0.05, 0.1, 0.08, 0.2, 0.4, 0.5
VALUES = {"blue": BLUE, "green": GREEN, "red": RED, "red_edge": EDGE, "nir": NIR, "nir2": NIR2}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ndvi", 0.32 / 0.48),
        ("ndvi2", 0.42 / 0.58),
        ("evi", 2.5 * 0.32 / (0.4 + 0.48 - 0.375 + 1)),
        ("savi", 1.5 * 0.32 / 0.98),
        ("ndwi", -0.3 / 0.5),
        ("ccci", (0.2 / 0.6) / (0.32 / 0.48)),
        ("rei", 0.45 / (0.5 + 0.025)),
        ("dstl_evi", 0.42 / (0.5 + 0.48 - 0.375 + 1)),
        ("dstl_ndwi", -0.4 / 0.6),
        ("dstl_savi", 0.42 / 0.58),
        ("dstl_ccci", (0.3 / 0.7) * (0.42 / 0.58)),
        ("dstl_rei", 0.5 - 0.1 + 0.025),
    ],
)
def test_formulas_by_hand(name: str, expected: float) -> None:
    found = index(name).evaluate({band: np.float32([value]) for band, value in VALUES.items()})
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_every_index_is_documented_and_fits_a_sensor() -> None:
    assert len(INDICES) == 12
    for name, entry in INDICES.items():
        assert entry.name == name and len(entry.about) > 20
        assert set(entry.expression.names) <= set(BAND_SETS["dstl"])
        assert set(entry.expression.names) <= set(BAND_SETS["worldview3_m"])
    assert [len(bands) for bands in BAND_SETS.values()] == [3, 8, 8, 12]
    assert all(len(set(bands)) == len(bands) for bands in BAND_SETS.values())
    assert BAND_SETS["worldview3_swir"][::7] == ("swir1", "swir8")


def test_a_name_or_an_expression() -> None:
    assert index(" ndvi ") is INDICES["ndvi"].expression
    assert index("ndvi", BAND_SETS["worldview3_m"]).names == ("nir", "red")
    assert index("nir - red") == Expression("nir - red")
    assert index("ndvi", ("ndvi", "red")) == Expression("ndvi"), "a band of that name goes first"
    assert index("swir2", BAND_SETS["worldview3_swir"]).names == ("swir2",)


@pytest.mark.parametrize(
    ("text", "bands", "message"),
    [
        ("ndvii", ("nir", "red"), r"expected an index, a band or an expression, found 'ndvii'; did you mean 'ndvi'\?"),
        ("rei", BAND_SETS["rgb"], "index rei: expected a band 'nir2', found red, green, blue"),
        ("red - gren", BAND_SETS["rgb"], r"character 7: unknown band 'gren'; did you mean 'green'\?"),
        ("red -", None, "found the end"),
    ],
)
def test_what_is_no_index_of_these_bands(text: str, bands: tuple[str, ...] | None, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        index(text, bands)
    assert "\n" not in str(caught.value)


def test_bands_by_set_or_list() -> None:
    assert band_names("rgb") == ("red", "green", "blue")
    assert band_names(["x", "swir_1"]) == ("x", "swir_1")
    for bands, message in [
        ("worldview3", r"unknown set 'worldview3'; did you mean 'worldview3_m'\?"),
        (["a", "b c"], "found 'b c'"),
        (["max"], "found 'max'"),
        (["a", "a"], "found 'a' twice"),
    ]:
        with pytest.raises(UserError, match=message):
            band_names(bands)


def test_indices_of_an_image() -> None:
    image = np.array([[[3, 1], [0, 0]], [[1, 3], [7, 0]]], np.uint16)
    both = [index("(a - b) / (a + b)"), index("a")]
    values, first = index_values(image, ["a", "b"], both, scale=2)
    np.testing.assert_array_equal(values, np.float32([[0.5, np.nan], [-0.5, 1]]))
    assert first.tolist() == [[1.5, 0], [0.5, 3.5]]
    with pytest.raises(UserError, match="expected the 3 bands a, b, c, found 2"):
        index_values(image, ["a", "b", "c"], both)


def test_a_rule_holds_on_its_side_of_the_threshold() -> None:
    values = np.float32([-1, 0.1, 0.2, np.nan, np.inf, -np.inf])
    above = IndexRule(expression="ndvi", threshold=0.1)
    below = IndexRule(expression="ndvi", threshold=0.1, direction="below")
    assert above.holds(values).tolist() == [False, True, True, False, False, False]
    assert below.holds(values).tolist() == [True, True, False, False, False, False]


def test_settings_go_to_json_and_back() -> None:
    settings = parse(
        IndexSettings,
        {"bands": "worldview3_m", "rules": [None, {"expression": "rei", "threshold": -1.7, "direction": "below"}]},
    )
    assert settings.bands == BAND_SETS["worldview3_m"] and settings.rules[0] is None
    assert parse(IndexSettings, settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bands": "rgbb", "rules": [None]}, r"unknown set 'rgbb'; did you mean 'rgb'\?"),
        ({"bands": ["red", "red"], "rules": [None]}, "found 'red' twice"),
        ({"bands": 3, "rules": [None]}, "bands: "),
        ({"bands": [], "rules": [None]}, "bands: "),
        ({"bands": "rgb", "rules": []}, "rules: "),
        ({"bands": "rgb", "rules": [{"expression": "ndvi"}]}, "index ndvi: expected a band 'nir'"),
        ({"bands": "rgb", "rules": [{"expression": "red.green"}]}, r"U\+002E"),
        ({"bands": "rgb", "rules": [{"expression": "red", "threshold": float("nan")}]}, "threshold"),
        ({"bands": "rgb", "rules": [{"expression": "red", "threshold": 1e39}]}, "threshold"),
        ({"bands": "rgb", "rules": [{"expression": "red", "direction": "left"}]}, "direction"),
        ({"bands": "rgb", "rules": [None], "steepness": 0}, "steepness"),
        ({"bands": "rgb", "rules": [None], "stepness": 1}, "did you mean 'steepness'"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse(IndexSettings, values)
    assert "\n" not in str(caught.value)
