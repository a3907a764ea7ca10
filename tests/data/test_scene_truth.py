"""Windows of a scene's truth are cuts of the whole, bit for bit; drawn windows have the stated probabilities."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st

from maskloom.data import scene_truth, window_drawing
from maskloom.data.mask_coding import MaskCoding
from maskloom.data.scene_truth import MaskTruth, PolygonTruth
from maskloom.data.truth import read_truth
from maskloom.data.window_drawing import draw_window
from maskloom.errors import BadFile, UserError
from maskloom.rasters.reading import open_raster
from maskloom.rasters.writing import write_geotiff
from maskloom.records import IGNORE, MaskFile, Record, Shapes, Size, Task
from maskloom.windows import Window

BINARY = Task(kind="binary", classes=("tree",))
MULTICLASS = Task(kind="multiclass", classes=("ground", "tree", "house"))
MULTILABEL = Task(kind="multilabel", classes=("ground", "tree", "house"))

# Quarters of pixels hit centres and corners; numbers beside them are told apart by their last digits only.
QUARTERS = st.integers(-12, 70).map(lambda quarters: quarters / 4)
BESIDE = st.tuples(QUARTERS, st.sampled_from([-math.inf, math.inf])).map(lambda pair: math.nextafter(*pair))
PLACES = st.one_of(QUARTERS, BESIDE, st.floats(-3, 18))
RINGS = st.lists(st.tuples(PLACES, PLACES), min_size=3, max_size=7)


def wkt_of(rings: list[list[tuple[float, float]]], far: int) -> str:
    """The polygon of these rings, so many pixels to the right; crossing itself and holes outside are welcome."""
    texts = [", ".join(f"{x + far!r} {y!r}" for x, y in [*ring, ring[0]]) for ring in rings]
    return "POLYGON (" + ", ".join(f"({text})" for text in texts) + ")"


def whole(shapes: list[tuple[int, str]], size: Size, task: Task) -> np.ndarray:
    """The labels of the whole scene, as for any record."""
    record = Record(id="scene", image=Path("scene.tif"), size=size, truth=Shapes(wkt=tuple(shapes)))
    return read_truth(record, task, MaskCoding())


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.lists(RINGS, min_size=1, max_size=3)), max_size=4),
    st.tuples(st.integers(0, 15), st.integers(0, 15), st.integers(1, 16), st.integers(1, 16)),
    st.sampled_from([0, 1000]),
    st.sampled_from([3, 256]),
)
@example([(1, [[(0.5, 0.5), (8.5, 0.5), (8.5, 8.5), (0.5, 8.5)]])], (0, 0, 16, 16), 0, 256)
@example([(1, [[(8.5, 8.5), (8.5, 0.5), (0.5, 0.5), (0.5, 8.5)], [(2.5, 2.5), (6.5, 2.5), (6.5, 6.5), (2.5, 6.5)]])],
         (0, 0, 16, 16), 0, 256)  # fmt: skip
@example([(1, [[(0.0, 1.5), (9.0, 1.5), (4.0, 1.5)]])], (0, 0, 16, 16), 0, 256)
@example([(1, [[(1.5, 1.5), (6.5, 6.5), (6.5, 1.5), (1.5, 6.5)]])], (0, 0, 16, 16), 1000, 3)
def test_a_window_is_a_cut_of_the_whole(
    drawn: list[tuple[int, list[list[tuple[float, float]]]]], place: tuple[int, int, int, int], far: int, band: int
) -> None:
    size = (16, 17 + far)
    top, left, height, width = place
    window = Window(top, left + far, height, width).clipped(size)
    shapes = [(label, wkt_of(rings, far)) for label, rings in drawn]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scene_truth, "_BAND", band)
        truth = PolygonTruth(size, shapes)
        for task in (MULTICLASS, MULTILABEL):
            expected = whole(shapes, size, task)[(..., *window.slices)]
            assert np.array_equal(truth.labels(window, task), expected)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([16, 256]))
def test_large_polygons_and_long_edges(seed: int, band: int) -> None:
    rng = np.random.default_rng(seed)
    size = (150, 400)
    angles = np.sort(rng.random(60)) * 2 * np.pi
    star = np.stack([200 + 260 * rng.random(60) * np.cos(angles), 75 + 110 * rng.random(60) * np.sin(angles)], axis=1)
    shapes = [(1, shapely.Polygon(star).wkt), (2, shapely.Point(200, 75).buffer(60.3).wkt)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scene_truth, "_BAND", band)
        truth = PolygonTruth(size, shapes)
    expected = whole(shapes, size, MULTICLASS)
    for _ in range(5):
        window = Window(*(int(rng.integers(end)) for end in size), 64, 64).clipped(size)
        assert np.array_equal(truth.labels(window, MULTICLASS), expected[window.slices])


def box(left: int, top: int, right: int, bottom: int) -> str:
    return shapely.box(left, top, right, bottom).wkt


def test_later_classes_cover_earlier_ones_and_maps_overlap() -> None:
    shapes = [(1, box(0, 0, 3, 1)), (2, box(1, 0, 4, 1)), (1, box(2, 0, 3, 1))]
    truth = PolygonTruth((1, 6), shapes)
    assert truth.labels(Window(0, 0, 1, 6), MULTICLASS).tolist() == [[1, 2, 1, 2, 0, 0]]
    assert truth.labels(Window(0, 1, 1, 3), MULTILABEL).tolist() == [[[0, 0, 0]], [[1, 1, 0]], [[1, 1, 1]]]
    assert truth.labels(Window(0, 1, 1, 3), MULTILABEL).dtype == np.uint8


def test_a_scene_without_polygons() -> None:
    flat, outside = "POLYGON ((0 0, 1 0, 2 0, 0 0))", box(90, 90, 99, 99)
    for shapes in ([], [(0, "MULTIPOLYGON EMPTY")], [(1, outside)], [(1, flat)]):
        truth = PolygonTruth((20, 30), shapes)
        assert not truth.labels(Window(3, 4, 5, 6), MULTICLASS).any()
        assert truth.labels(Window(3, 4, 5, 6), MULTILABEL).shape == (3, 5, 6)
        assert truth.classes_present(MULTICLASS) == []


def test_shapely_areas_are_taken_as_they_are() -> None:
    square, other = shapely.box(0, 0, 2, 2), shapely.box(1, 1, 3, 3)
    nested = shapely.GeometryCollection([shapely.MultiPolygon([square, other]), shapely.Polygon()])
    truth = PolygonTruth((4, 4), [(0, nested)])
    assert truth.labels(Window(0, 0, 4, 4), BINARY).sum() == 7


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("POLYGON ((0 0", "expected WKT"),
        ("LINESTRING (0 0, 4 4)", "found a LineString"),
        ("POLYGON ((0 0, NaN 1, 1 1, 0 0))", "finite"),
        (shapely.LineString([(0, 0), (4, 4)]), "polygons, found a LineString"),
        (shapely.GeometryCollection([shapely.box(0, 0, 1, 1), shapely.Point(0, 0)]), "polygons, found a Point"),
        (shapely.Polygon([(0, 0), (math.inf, 1), (1, 1)]), "expected finite"),
        (shapely.box(0, 0, 1e12, 1), "expected polygons in pixels, found coordinates of up to 1e.12"),
    ],
)
def test_what_is_no_area_is_refused(shape: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        PolygonTruth((8, 8), [(0, shape)])
    assert "\n" not in str(caught.value)


def test_wrong_classes_and_windows_are_refused() -> None:
    truth = PolygonTruth((8, 8), [(3, box(0, 0, 2, 2))])
    with pytest.raises(UserError, match="of the 3 classes ground, tree, house, found the class index 3"):
        truth.labels(Window(0, 0, 4, 4), MULTILABEL)
    with pytest.raises(ValueError, match="outside the scene"):
        truth.labels(Window(5, 5, 4, 4), MULTILABEL)


# --- pixels of a class -----------------------------------------------------------------------------------------------


class Scripted(np.random.Generator):
    """A generator whose next integer is given."""

    def __init__(self, number: int) -> None:
        super().__init__(np.random.PCG64(0))
        self.number = number

    def integers(self, high: int) -> int:  # type: ignore[override]
        assert 0 <= self.number < high
        return self.number


def all_pixels(truth: PolygonTruth | MaskTruth, label: int, task: Task) -> list[tuple[int, int]]:
    """The pixels that all numbers lead to, until one is refused as too high."""
    pixels = []
    while True:
        try:
            pixels.append(truth.pixel_of(label, task, Scripted(len(pixels))))
        except AssertionError:
            return sorted(pixels)


@pytest.mark.parametrize("band", [2, 256])
def test_each_pixel_of_each_polygon_is_as_likely(monkeypatch: pytest.MonkeyPatch, band: int) -> None:
    monkeypatch.setattr(scene_truth, "_BAND", band)
    monkeypatch.setattr(scene_truth, "_ENTRIES", 3)
    size = (9, 12)
    shapes = [
        (2, "POLYGON ((-3 -2, 7.3 1.2, 5 14, -3 -2))"),
        (1, "POLYGON ((1 1, 8 1, 8 8, 1 8, 1 1), (3 3, 5 3, 5 5, 3 5, 3 3))"),
        (1, box(6, 6, 30, 9)),
        (1, "POLYGON ((0.1 0.1, 0.2 0.1, 0.2 0.2, 0.1 0.1))"),
        (0, box(50, 50, 60, 60)),
    ]
    truth = PolygonTruth(size, shapes)
    assert truth.classes_present(MULTICLASS) == [1, 2]
    for label in (1, 2):
        expected = Counter[tuple[int, int]]()
        for _, wkt in [shape for shape in shapes if shape[0] == label]:
            rows, columns = np.nonzero(whole([(0, wkt)], size, BINARY))
            expected.update(zip(rows.tolist(), columns.tolist(), strict=True))
        assert all_pixels(truth, label, MULTICLASS) == sorted(expected.elements())


def test_each_pixel_of_a_raster_is_as_likely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene_truth, "_CELL", 4)
    values = np.random.default_rng(0).integers(0, 3, (9, 14)).astype(np.uint8)
    values[:5] = 0
    write_geotiff(tmp_path / "mask.tif", values, None)
    coding = MaskCoding(kind="values", values=((0, 0), (1, 1), (2, IGNORE)))
    with open_raster(tmp_path / "mask.tif") as raster:
        truth = MaskTruth(raster, coding)
        assert truth.classes_present(MULTICLASS) == [0, 1]
        assert truth.counts(MULTICLASS).sum(axis=1).tolist() == [(values == 0).sum(), (values == 1).sum(), 0]
        for label in (0, 1):
            expected = list(zip(*(axis.tolist() for axis in np.nonzero(values == label)), strict=True))
            assert all_pixels(truth, label, MULTICLASS) == expected
        assert all_pixels(truth, 0, BINARY) == list(zip(*(a.tolist() for a in np.nonzero(values == 1)), strict=True))
        again = MaskTruth(raster, coding, counts={BINARY: truth.counts(BINARY)})
        assert again.classes_present(BINARY) == [0]


# --- mask rasters ----------------------------------------------------------------------------------------------------


def cuts(path: Path, coding: MaskCoding, task: Task, size: Size) -> np.ndarray:
    """The labels of four windows, put together; compared with the file as a whole."""
    record = Record(id="scene", image=Path("scene.tif"), size=size, truth=MaskFile(path=path))
    with open_raster(path) as raster:
        truth = MaskTruth(raster, coding)
        parts = [[truth.labels(Window(top, left, 5, 7).clipped(size), task) for left in (0, 7)] for top in (0, 5)]
    found = np.concatenate([np.concatenate(row, axis=-1) for row in parts], axis=-2)
    assert np.array_equal(found, read_truth(record, task, coding))
    return found


def test_windows_of_rasters_are_cuts_of_the_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    values = rng.integers(0, 3, (9, 14))
    path = tmp_path / "mask.tif"
    listed = MaskCoding(kind="values", values=((0, 0), (1, 1), (2, 2)))
    ignoring = MaskCoding(kind="values", values=((0, 0), (1, 1)), ignore=(2,))
    for dtype in ("uint8", "uint16", "float32"):
        write_geotiff(path, values.astype(dtype), None)
        assert np.array_equal(cuts(path, listed, MULTICLASS, (9, 14)), values)
        assert cuts(path, listed, MULTILABEL, (9, 14)).sum() == 9 * 14
        assert (cuts(path, ignoring, MULTILABEL, (9, 14))[:, values == 2] == IGNORE).all()
        assert np.array_equal(cuts(path, MaskCoding(), BINARY, (9, 14)), values > 0)
    colours = np.array([[9, 9, 9], [0, 200, 0], [200, 0, 0]], np.uint8)
    coding = MaskCoding(kind="colours", colours=tuple((tuple(colour), n) for n, colour in enumerate(colours.tolist())))
    write_geotiff(path, np.moveaxis(colours[values], -1, 0), None)
    assert np.array_equal(cuts(path, coding, MULTICLASS, (9, 14)), values)


def test_bands_are_the_maps_of_classes(tmp_path: Path) -> None:
    maps = np.random.default_rng(2).integers(0, 2, (3, 6, 8)).astype(np.uint8) * 255
    write_geotiff(tmp_path / "maps.tif", maps, None)
    with open_raster(tmp_path / "maps.tif") as raster:
        truth = MaskTruth(raster, MaskCoding())
        assert np.array_equal(truth.labels(Window(1, 2, 4, 5), MULTILABEL), maps[:, 1:5, 2:7] // 255)
        assert truth.counts(MULTILABEL)[:, 0].tolist() == (maps == 255).sum(axis=(1, 2)).tolist()
        two = Task(kind="multilabel", classes=("a", "b"))
        with pytest.raises(BadFile, match="expected a band for each of 2 classes, found 3"):
            truth.labels(Window(0, 0, 2, 2), two)


def labels_with_nodata(path: Path, values: list[list[float]], dtype: str, nodata: float, coding: MaskCoding) -> Any:
    write_geotiff(path, np.array(values, dtype), None, nodata=nodata)
    with open_raster(path) as raster:
        return MaskTruth(raster, coding).labels(Window(0, 0, 1, len(values[0])), BINARY).tolist()[0]


def test_what_the_file_declares_invalid_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "mask.tif"
    values = MaskCoding(kind="values", values=((0, 0), (7, 1)))
    assert labels_with_nodata(path, [[0, 7, 255]], "uint8", 255, MaskCoding()) == [0, 1, IGNORE]
    assert labels_with_nodata(path, [[0, 7, 255]], "uint8", 0, MaskCoding()) == [0, 1, 1]
    assert labels_with_nodata(path, [[0, 7, 255]], "uint8", 255, values) == [0, 1, IGNORE]
    assert labels_with_nodata(path, [[0, 7, 0]], "uint8", 0, values) == [0, 1, 0]
    for coding in (values, MaskCoding()):
        assert labels_with_nodata(path, [[0, 7, math.nan]], "float32", math.nan, coding) == [0, 1, IGNORE]
        assert labels_with_nodata(path, [[0, 7, -9999]], "float32", -9999, coding) == [0, 1, IGNORE]
    with pytest.raises(BadFile, match="found fractions"):
        labels_with_nodata(path, [[0, 7, 1.5]], "float32", -1, values)
    with pytest.raises(BadFile, match=r"expected the mask values 0, 7, found 9 in 1 pixels"):
        labels_with_nodata(path, [[0, 7, 9]], "uint8", 255, values)


def test_other_bands_are_refused(tmp_path: Path) -> None:
    write_geotiff(tmp_path / "two.tif", np.zeros((2, 4, 4), np.uint8), None)
    with open_raster(tmp_path / "two.tif") as raster, pytest.raises(BadFile, match="found 2 bands"):
        MaskTruth(raster, MaskCoding()).labels(Window(0, 0, 2, 2), BINARY)


# --- windows ---------------------------------------------------------------------------------------------------------

FORBIDDEN = [Window(-2, -2, 5, 6), Window(4, 7, 3, 3), Window(5, 8, 9, 9), Window(90, 90, 5, 5)]
SCENE, SIDES = (11, 13), (3, 4)


def touches(one: Window, other: Window) -> bool:
    down = one.top < other.top + other.height and other.top < one.top + one.height
    return down and one.left < other.left + other.width and other.left < one.left + one.width


def allowed(forbidden: list[Window]) -> list[Window]:
    positions = [(top, left) for top in range(SCENE[0] - SIDES[0] + 1) for left in range(SCENE[1] - SIDES[1] + 1)]
    windows = [Window(*position, *SIDES) for position in positions]
    return [window for window in windows if not any(touches(window, area) for area in forbidden)]


def assert_fits(found: Counter[Window], expected: dict[Window, float]) -> None:
    """Chi-square, five standard deviations."""
    total = sum(found.values())
    assert set(found) <= set(expected)
    assert sum(expected.values()) == pytest.approx(1)
    score = sum((found[window] - total * part) ** 2 / (total * part) for window, part in expected.items())
    degrees = len(expected) - 1
    assert score <= degrees + 5 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("forbidden", [[], FORBIDDEN, [Window(0, 0, 8, 13), Window(8, 0, 3, 8), Window(8, 12, 1, 1)]])
def test_uniform_windows_lie_anywhere_they_may(forbidden: list[Window]) -> None:
    windows = allowed(forbidden)
    rng = np.random.default_rng(3)
    found = Counter(draw_window(SCENE, SIDES, rng, forbidden=forbidden) for _ in range(40 * len(windows)))
    assert_fits(found, {window: 1 / len(windows) for window in windows})
    areas = [(area.top, area.left, area.top + area.height, area.left + area.width) for area in forbidden]
    bounds = np.array(areas, np.int64).reshape(-1, 4)
    counted = [window_drawing._counted_window(SCENE, SIDES, Scripted(number), bounds) for number in range(len(windows))]
    assert sorted(counted, key=repr) == sorted(windows, key=repr)


@pytest.mark.parametrize("prefer", [0.4, 1.0])
@pytest.mark.parametrize("forbidden", [[], FORBIDDEN])
def test_windows_for_classes_have_the_stated_probabilities(
    monkeypatch: pytest.MonkeyPatch, prefer: float, forbidden: list[Window]
) -> None:
    monkeypatch.setattr(window_drawing, "MAX_DRAWS", 3)
    shapes = [(0, box(0, 0, 3, 3)), (1, box(4, 1, 13, 3)), (2, box(11, 8, 13, 11)), (2, box(2, 9, 4, 11))]
    windows = allowed(forbidden)
    expected = dict.fromkeys(windows, 0.0)
    for label in range(3):
        rows, columns = np.nonzero(whole([(1, wkt) for of, wkt in shapes if of == label], SCENE, MULTICLASS))
        hits = Counter(
            Window(min(max(row - 1, 0), SCENE[0] - 3), min(max(column - 2, 0), SCENE[1] - 4), *SIDES)
            for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        )
        fitting = sum(hits[window] for window in windows)
        found_none = (1 - fitting / len(rows)) ** 3
        for window in windows:
            expected[window] += prefer / 3 * (1 - found_none) * hits[window] / max(fitting, 1)
            expected[window] += prefer / 3 * found_none / len(windows)
    for window in windows:
        expected[window] += (1 - prefer) / len(windows)
    truth = PolygonTruth(SCENE, shapes)
    rng = np.random.default_rng(4)
    found = Counter(
        draw_window(SCENE, SIDES, rng, truth=truth, task=MULTICLASS, prefer_class=prefer, forbidden=forbidden)
        for _ in range(600)
    )
    assert_fits(found, {window: part for window, part in expected.items() if part > 0})


def test_without_any_class_windows_are_uniform() -> None:
    truth = PolygonTruth(SCENE, [])
    rng = np.random.default_rng(5)
    found = {draw_window(SCENE, SIDES, rng, truth=truth, task=BINARY, prefer_class=1.0) for _ in range(1500)}
    assert found == set(allowed([]))


def test_draws_follow_from_the_generator(tmp_path: Path) -> None:
    write_geotiff(tmp_path / "mask.tif", np.eye(11, 13, dtype=np.uint8), None)
    with open_raster(tmp_path / "mask.tif") as raster:
        truth = MaskTruth(raster, MaskCoding())

        def draws() -> list[Window]:
            rng = np.random.default_rng(6)
            return [draw_window(SCENE, SIDES, rng, truth=truth, task=BINARY, prefer_class=0.7) for _ in range(20)]

        assert draws() == draws()


def test_windows_that_find_no_room_say_what_to_do() -> None:
    rng = np.random.default_rng(7)
    with pytest.raises(UserError, match="expected room for windows of 4×3"):
        draw_window(SCENE, SIDES, rng, forbidden=[Window(2, 0, 7, 13)])
    with pytest.raises(UserError, match="that fit into the scene of 13×11"):
        draw_window(SCENE, (12, 4), rng)
    truth = PolygonTruth((5, 5), [])
    for task in (None, BINARY):
        with pytest.raises(ValueError, match="need the task, and truth of"):
            draw_window(SCENE, SIDES, rng, truth=truth, task=task, prefer_class=0.5)
