"""Where members' maps send a network: boxes by hand, windows along an outline by their definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.config import parse
from maskloom.errors import UserError
from maskloom.inference.guidance import GuidanceSettings, RegionSettings, guides_of, regions_of
from maskloom.windows import Window


def box(**settings: object) -> RegionSettings:
    small = {"of": "coarse", "minimum_area": 1, "margin": 0, "round_to": 1, "scale_pixels": False}
    return RegionSettings.model_validate(small | settings)


def contour(**settings: object) -> RegionSettings:
    small = {"of": "coarse", "kind": "contour", "minimum_area": 1, "margin": 2, "window": 12, "context": 2}
    return RegionSettings.model_validate(small | {"scale_pixels": False} | settings)


def rectangle(size: tuple[int, int], window: Window, value: int = 255) -> np.ndarray:
    values = np.zeros(size, np.uint8)
    values[window.slices] = value
    return values


# --- the box


def test_published_box_of_a_known_rectangle() -> None:
    """4th place: 64 px on each side, rounded up to multiples of 64; the odd rows are shared out."""
    found = regions_of(rectangle((1280, 1918), Window(300, 500, 400, 700)), RegionSettings(of="coarse"))
    # 300-64 … 700+64: 528 rows → 576, 24 more on each side; 500-64 … 1200+64: 828 columns → 832, 2 more on each side
    assert found == [Window(212, 434, 576, 832)]


def test_box_is_clipped_then_moved_inside() -> None:
    found = regions_of(rectangle((1280, 1918), Window(0, 1500, 400, 418)), RegionSettings(of="coarse"))
    # rows 0 … 464 → 512, from the border; columns 1436 … 1918: 482 → 512, to the border
    assert found == [Window(0, 1406, 512, 512)]


def test_box_larger_than_the_image_reaches_beyond_it_on_both_sides() -> None:
    found = regions_of(np.full((1280, 1918), 255, np.uint8), RegionSettings(of="coarse"))
    assert found == [Window(0, -1, 1280, 1920)]


def test_seventh_places_box_is_padded_by_150() -> None:
    settings = RegionSettings(of="coarse", margin=150, round_to=1)
    found = regions_of(rectangle((1280, 1918), Window(300, 500, 400, 700)), settings)
    assert found == [Window(150, 350, 700, 1000)]


def test_pixel_constants_follow_the_images_height() -> None:
    values = rectangle((640, 960), Window(150, 250, 200, 350))
    settings = RegionSettings(of="coarse", margin=150, round_to=1)
    assert regions_of(values, settings) == [Window(75, 175, 350, 500)]
    fixed = settings.model_copy(update={"scale_pixels": False})
    assert regions_of(values, fixed) == [Window(0, 100, 500, 650)]
    # 50,000 pixels at 1280 rows are 12,500 at 640
    assert not regions_of(rectangle((640, 960), Window(0, 0, 100, 124)), settings)
    assert regions_of(rectangle((640, 960), Window(0, 0, 100, 125)), settings)


def test_only_the_largest_component_counts() -> None:
    values = rectangle((40, 40), Window(2, 3, 5, 6))
    values |= rectangle((40, 40), Window(20, 20, 6, 6))
    assert regions_of(values, box()) == [Window(20, 20, 6, 6)]
    assert regions_of(values, box(minimum_area=36)) == [Window(20, 20, 6, 6)]
    assert regions_of(values, box(minimum_area=37)) == []
    assert regions_of(np.zeros((40, 40), np.uint8), box()) == []


def test_the_object_lies_above_the_threshold() -> None:
    assert regions_of(np.full((4, 4), 100, np.uint8), box()) == []
    assert regions_of(np.full((4, 4), 101, np.uint8), box()) == [Window(0, 0, 4, 4)]
    assert regions_of(np.full((4, 4), 1, np.uint8), box(threshold=0)) == [Window(0, 0, 4, 4)]


def test_any_class_counts_as_object() -> None:
    values = np.stack([rectangle((20, 20), Window(2, 2, 4, 4)), rectangle((20, 20), Window(4, 4, 4, 5))])
    assert regions_of(values, box()) == [Window(2, 2, 6, 7)]


def test_other_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a map uint8"):
        regions_of(np.zeros((4, 4), np.float32), box())


# --- windows along the outline


def band(mask: np.ndarray, margin: int) -> np.ndarray:
    """Where the square of ``margin`` pixels to each side holds both object and background."""
    object_near, background_near = np.zeros_like(mask), np.zeros_like(mask)
    for row, column in np.argwhere(mask):
        object_near[max(row - margin, 0) : row + margin + 1, max(column - margin, 0) : column + margin + 1] = True
    for row, column in np.argwhere(~mask):
        background_near[max(row - margin, 0) : row + margin + 1, max(column - margin, 0) : column + margin + 1] = True
    return object_near & background_near


def inside(start: int, side: int, context: int, length: int) -> np.ndarray:
    """Which places along an axis lie ``context`` inside a window, or between that and the image's border."""
    places = np.arange(length)
    low = places >= (start if start <= 0 else start + context)
    high = places < (start + side if start + side >= length else start + side - context)
    return low & high


def interiors(windows: list[Window], context: int, size: tuple[int, int]) -> np.ndarray:
    found = np.zeros(size, bool)
    for window in windows:
        rows = inside(window.top, window.height, context, size[0])
        found |= rows[:, None] & inside(window.left, window.width, context, size[1])
    return found


@given(
    height=st.integers(6, 30),
    width=st.integers(6, 30),
    margin=st.integers(1, 3),
    context=st.integers(0, 3),
    inner=st.integers(1, 9),
    seed=st.integers(0, 10**6),
)
def test_windows_cover_the_band(height: int, width: int, margin: int, context: int, inner: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), bool)
    for _ in range(int(rng.integers(1, 4))):
        top, left = int(rng.integers(height)), int(rng.integers(width))
        mask[top : top + int(rng.integers(1, 20)), left : left + int(rng.integers(1, 20))] = True
    side = inner + 2 * context
    settings = contour(margin=margin, context=context, window=side)
    windows = regions_of(mask.astype(np.uint8) * 200, settings)
    wanted = band(mask, margin)
    assert not (wanted & ~interiors(windows, context, (height, width))).any()
    assert bool(windows) == bool(wanted.any()) and len(windows) <= wanted.sum()
    assert all((window.height, window.width) == (side, side) for window in windows)
    for window in windows:
        for start, length in ((window.top, height), (window.left, width)):
            assert 0 <= start <= length - side if side <= length else start <= 0 and start + side >= length
    assert windows == regions_of(mask.astype(np.uint8) * 200, settings)


def test_few_windows_along_a_large_outline() -> None:
    """A rectangle's outline of 2·(400+700) px; an interior of 192 px takes at most 384 px of it, at a corner."""
    values = rectangle((1280, 1918), Window(300, 500, 400, 700))
    windows = regions_of(values, RegionSettings(of="coarse", kind="contour", margin=32))
    assert 2200 / 384 <= len(windows) <= 2200 / 192
    assert all((window.height, window.width) == (256, 256) for window in windows)


def test_windows_go_along_every_large_component_and_no_small_one() -> None:
    values = rectangle((60, 60), Window(5, 5, 8, 8)) | rectangle((60, 60), Window(40, 40, 8, 8))
    values |= rectangle((60, 60), Window(50, 5, 3, 3))
    windows = regions_of(values, contour(minimum_area=10))
    covered = interiors(windows, 2, (60, 60))
    assert covered[5, 5] and covered[47, 47] and not covered[51, 6]
    assert regions_of(values, contour(minimum_area=65)) == []


def test_no_outline_no_windows() -> None:
    assert regions_of(np.full((30, 30), 255, np.uint8), contour()) == []


def test_scaled_windows_keep_an_interior() -> None:
    settings = RegionSettings(of="coarse", kind="contour", window=9, context=4)
    for height in (3, 40, 300, 1280, 2000):
        scaled = settings.scaled(height)
        assert scaled.window > 2 * scaled.context and scaled.minimum_area >= 1


# --- settings and channels


def test_members_needed_are_named_once() -> None:
    settings = GuidanceSettings(maps=("a", "b"), region=RegionSettings(of="a"))
    assert settings.needed == ("a", "b")
    assert GuidanceSettings(region=RegionSettings(of="c")).needed == ("c",)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "expected maps, a region, or both"),
        ({"maps": ["a", "a"]}, "expected every member once"),
        ({"region": {"of": "a", "kind": "contour", "window": 64}}, "window must exceed twice the context"),
        ({"region": {"of": "a", "kind": "circle"}}, "kind"),
        ({"region": {"off": "a"}}, "did you mean 'of'"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(GuidanceSettings, values)


def test_maps_become_channels_in_order() -> None:
    maps = [np.full((2, 3, 4), 1, np.uint8), np.full((1, 3, 4), 5, np.uint8)]
    maps[0][1] = 2
    guides = guides_of(maps)
    assert guides.shape == (3, 4, 3) and guides[0, 0].tolist() == [1, 2, 5]
