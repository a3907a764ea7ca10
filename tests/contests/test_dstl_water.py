"""Both published water methods on index values whose water is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from maskloom.contests.dstl.water import (
    CCCI,
    M_SIZE,
    RGB_SIZE,
    SEARCH,
    CcciRules,
    SearchRules,
    Water,
    area_factor,
    ccci_water,
    index_map,
    search,
    searched_water,
    unknown_threshold,
)  # fmt: skip
from maskloom.errors import UserError
from maskloom.records import IGNORE


def areas(polygons: list[object]) -> list[float]:
    return sorted(polygon.area for polygon in polygons)  # type: ignore[attr-defined]


def test_the_published_numbers() -> None:
    assert (CCCI.index, CCCI.above) == ("dstl_ccci", 0.11)
    assert (CCCI.fast_pixels, CCCI.fast_min_area) == (500_000, 10_000)
    assert (CCCI.slow_pixels, CCCI.slow_min_area) == (680_000, 1_000)
    assert CCCI.slow_areas == ((0, 90_000), (270_000, 300_000))
    thresholds = SEARCH.thresholds()
    assert len(thresholds) == 401 and (thresholds[0], thresholds[140], thresholds[-1]) == (-2, -0.6, 2)
    assert (SEARCH.fast_pixels, SEARCH.slow_pixels, SEARCH.slow_buffer) == (7_000, 10, 3)


def test_numbers_of_pixels_follow_the_image_but_not_within_the_published_sizes() -> None:
    assert area_factor((3349, 3396), RGB_SIZE) == area_factor(M_SIZE, M_SIZE) == 1
    assert area_factor((335, 340), RGB_SIZE) == pytest.approx(0.01)


@pytest.mark.parametrize("name", ["dstl_ccci", "ndvi", "ndvi2", "dstl_rei"])
def test_indices_are_those_of_the_rasters(name: str) -> None:
    bands = {"red": 100, "red_edge": 60, "nir": 30, "nir2": 20, "blue": 90}
    arrays = {band: np.full((2, 3), value, np.float32) for band, value in bands.items()}
    by_hand = {
        "dstl_ccci": (20 - 60) / (20 + 60) * (20 - 100) / (20 + 100),
        "ndvi": (30 - 100) / (30 + 100),
        "ndvi2": (20 - 100) / (20 + 100),
        "dstl_rei": 20 - 90 / 20 + 90 * 20,
    }
    assert index_map(name, arrays) == pytest.approx(np.full((2, 3), by_hand[name]))


# A fixed line

RULES = CcciRules(
    fast_pixels=500, fast_min_area=100, slow_pixels=700, slow_min_area=10, slow_areas=((0, 90), (200, 300)),
    reference=(50, 50),
)  # fmt: skip


def lakes(*sides: tuple[int, int]) -> np.ndarray:
    """Returns index values 50×50: boxes of water below each other."""
    values = np.zeros((50, 50), np.float32)
    top = 0
    for height, width in sides:
        values[top : top + height, 3 : 3 + width] = 0.2
        top += height + 1
    return values


def test_little_water_is_slow_in_pieces_of_the_right_size() -> None:
    water = ccci_water(lakes((3, 3), (2, 5), (8, 10), (9, 10), (10, 11), (10, 20)), rules=RULES)
    # 9 is below the least area, 90 no longer below 90, 110 between the two spans; 200 is not above 200.
    assert areas(water.slow) == [10, 80] and not water.fast


def test_the_second_span_of_slow_areas() -> None:
    assert areas(ccci_water(lakes((10, 21)), rules=RULES).slow) == [210]


def test_much_water_is_fast_and_between_both_limits_it_is_both() -> None:
    water = ccci_water(lakes((15, 40), (5, 30), (4, 20)), rules=RULES)  # 600 + 150 + 80 = 830
    assert areas(water.fast) == [150, 600] and not water.slow
    water = ccci_water(lakes((11, 40), (2, 40), (5, 30)), rules=RULES)  # 440 + 80 + 150 = 670
    assert areas(water.fast) == [150, 440] and areas(water.slow) == [80]


def test_numbers_scale_with_the_image_unless_told_not_to() -> None:
    values = lakes((15, 40), (5, 30), (4, 20)).repeat(2, axis=0).repeat(2, axis=1)
    assert areas(ccci_water(values, rules=RULES).fast) == [600, 2400]
    assert areas(ccci_water(values, rules=RULES, scaled=False).fast) == [320, 600, 2400]


def test_no_water_and_undefined_values() -> None:
    values = np.full((50, 50), np.nan, np.float32)
    assert ccci_water(values, rules=RULES) == Water() == ccci_water(np.full((50, 50), 0.11, np.float32), rules=RULES)


# A threshold per scene


def scene(low: float = -0.5, high: float = 0.5) -> tuple[Mapping[str, np.ndarray], np.ndarray]:
    """Returns values of which ndvi2 alone parts water (``low``) from land (``high``), and the truth."""
    rng = np.random.default_rng(1)
    truth = np.zeros((30, 40), np.uint8)
    truth[5:15, 8:30] = 1
    values = {name: rng.normal(0, 1, truth.shape).astype(np.float32) for name in SEARCH.indices}
    values["ndvi2"] = np.where(truth == 1, low, high).astype(np.float32)
    return values, truth


def test_the_best_index_and_a_threshold_in_the_middle_are_found() -> None:
    found = search([scene()])
    assert found is not None and (found.index, found.jaccard) == ("ndvi2", 1.0)
    assert found.below == pytest.approx(0, abs=0.011)


def test_the_jaccard_index_of_every_threshold_is_the_plain_one() -> None:
    rng = np.random.default_rng(2)
    truth = rng.random((20, 20)) < 0.3
    values = (rng.normal(0, 0.5, truth.shape) - truth).astype(np.float32)
    rules = SearchRules(indices=("ndvi",))
    found = search([({"ndvi": values}, truth)], rules=rules)
    scores = [
        (truth & (values.astype(np.float64) < below)).sum() / (truth | (values.astype(np.float64) < below)).sum()
        for below in rules.thresholds()
    ]
    assert found is not None and found.jaccard == pytest.approx(max(scores))
    assert scores[int(np.abs(rules.thresholds() - found.below).argmin())] == max(scores)


def test_images_of_a_scene_count_together_and_ignored_pixels_not_at_all() -> None:
    values, truth = scene()
    hidden = truth.copy()
    hidden[:, 20:] = IGNORE
    spoilt = dict(values) | {"ndvi2": np.where(hidden == IGNORE, -3, values["ndvi2"]).astype(np.float32)}
    found = search([(values, truth == 1), (spoilt, hidden)])
    assert found is not None and (found.index, found.jaccard) == ("ndvi2", 1.0)


def test_a_scene_without_water_has_no_threshold_and_missing_indices_are_named() -> None:
    values, truth = scene()
    assert search([(values, np.zeros_like(truth))]) is None
    with pytest.raises(UserError, match="index dstl_rei, found ndvi"):
        search([({"ndvi": values["ndvi"], "ndvi2": values["ndvi2"]}, truth)])


def test_nan_is_never_water() -> None:
    values, truth = scene()
    values = dict(values) | {"ndvi2": np.where(truth == 1, np.nan, values["ndvi2"]).astype(np.float32)}
    found = search([(values, truth)], rules=replace(SEARCH, indices=("ndvi2",)))
    assert found is not None and found.jaccard < 0.5
    assert not searched_water(values["ndvi2"], -0.6).slow


@pytest.mark.parametrize(("lowest", "below"), [(-1.71, -1.7), (-1.7, -0.6), (-0.2, -0.6)])
def test_unknown_scenes_go_by_the_lowest_value_of_their_mosaic(lowest: float, below: float) -> None:
    mosaic = [np.zeros((4, 4)), np.array([[lowest, np.nan]])]
    found = unknown_threshold(iter(mosaic))
    assert (found.index, found.below) == ("dstl_rei", below)


def test_pieces_are_told_apart_by_size() -> None:
    rules = SearchRules(fast_pixels=100, slow_pixels=10, slow_buffer=3, reference=(50, 50))
    values = -lakes((3, 3), (2, 5), (10, 10), (10, 11))  # 9, 10, 100 and 110 pixels
    water = searched_water(values, -0.1, rules=rules)
    assert areas(water.fast) == [110]
    # Grown by 3 the two slow pieces, 1 apart, run into one; nothing reaches outside the image.
    (slow,) = water.slow
    assert slow.bounds == pytest.approx((0, 1, 16, 20)) and slow.is_valid and slow.area > (5 + 6) * 8
    assert len(searched_water(values, -0.1, rules=replace(rules, slow_buffer=0)).slow) == 2
    assert searched_water(values, -0.3, rules=rules) == Water()


def test_pieces_and_buffers_scale_with_the_image() -> None:
    rules = SearchRules(fast_pixels=100, slow_pixels=10, slow_buffer=1, reference=(25, 25))
    values = -lakes((6, 6), (18, 22))  # a quarter: 9 and 99 pixels of the reference
    (slow,) = searched_water(values, -0.1, rules=rules).slow
    assert slow.bounds == pytest.approx((1, 5, 27, 27))
    assert len(searched_water(values, -0.1, rules=rules, scaled=False).fast) == 1
