"""Files of different resolution on one grid: a window is a cut of the whole, and what must come out by hand."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rasterio.enums import Resampling

from maskloom.errors import BadFile, UserError
from maskloom.rasters import resampling, stack
from maskloom.rasters.georeference import Georeference, Transform
from maskloom.rasters.reading import Raster
from maskloom.rasters.resampling import Sampling, composed, inverse, shifted
from maskloom.rasters.stack import open_stack
from maskloom.rasters.writing import write_geotiff
from maskloom.records import BandFile, Size
from maskloom.windows import Window

IDENTITY: Transform = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
UTM = "EPSG:32633"


def place(left: float, top: float, pixel: float, crs: str | None = UTM) -> Georeference:
    return Georeference(crs, (pixel, 0.0, left, 0.0, -pixel, top))


def write(
    path: Path, pixels: np.ndarray, georeference: Georeference | None = None, *, nodata: float | None = None
) -> Path:
    values = np.moveaxis(pixels, -1, 0) if pixels.ndim == 3 else pixels
    write_geotiff(path, np.ascontiguousarray(values), georeference, nodata=nodata, overviews=False)
    return path


def read(image: Path, *bands: BandFile, **more: Any) -> tuple[np.ndarray, np.ndarray]:
    with open_stack(image, bands, **more) as opened:
        return opened.read(Window(0, 0, *opened.size))


def random(size: Size, count: int, dtype: str = "uint16", seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((*size, count)) * 200).astype(dtype)


def inner_windows(size: Size) -> st.SearchStrategy[Window]:
    def starts_and_lengths(length: int) -> st.SearchStrategy[tuple[int, int]]:
        return st.integers(0, length - 1).flatmap(
            lambda start: st.tuples(st.just(start), st.integers(1, length - start))
        )

    return st.tuples(starts_and_lengths(size[0]), starts_and_lengths(size[1])).map(
        lambda found: Window(found[0][0], found[1][0], found[0][1], found[1][1])
    )


SIDES = st.tuples(st.integers(1, 30), st.integers(1, 30))
SHIFTS = st.tuples(st.floats(-6, 6), st.floats(-6, 6)).map(lambda xy: shifted(*xy))
TURNS = st.tuples(*[st.floats(-0.1, 0.1)] * 4, st.floats(-3, 3), st.floats(-3, 3)).map(
    lambda t: (1 + t[0], t[1], t[4], t[2], 1 + t[3], t[5])
)


@given(st.data())
@settings(max_examples=25)
def test_a_window_is_a_cut_of_the_whole(data: st.DataObject) -> None:
    """Bit for bit, over sizes, ratios, types, motions and what is invalid."""
    size, other = data.draw(SIDES), data.draw(SIDES)
    dtype = data.draw(st.sampled_from(["uint8", "uint16", "float32"]))
    method = data.draw(st.sampled_from(["nearest", "bicubic"]))
    moved = data.draw(SHIFTS | TURNS | st.just(IDENTITY))
    pixels = random(other, 2, dtype)
    with tempfile.TemporaryDirectory() as name:
        image = write(Path(name) / "a.tif", random(size, 1, dtype))
        file = write(Path(name) / "b.tif", pixels, nodata=float(pixels[-1, -1, 0]))
        with open_stack(image, [BandFile(path=file, resampling=method, moved=moved)], reflected=7) as opened:
            whole, is_whole = opened.read(Window(0, 0, *size))
            for _ in range(3):
                window = data.draw(inner_windows(size))
                part, is_part = opened.read(window)
                assert part.tobytes() == whole[window.slices].tobytes()
                assert np.array_equal(is_part, is_whole[window.slices])
    assert whole.dtype == np.dtype(dtype) and not whole[~is_whole][:, 1:].any()


@given(SIDES, SIDES, st.sampled_from(["nearest", "bicubic", "area"]), SHIFTS | TURNS, st.integers(0, 2**31), st.data())
@settings(max_examples=60)
@example((5, 1), (4, 7), "bicubic", (1.0, 0.1, 0.0, 0.1, 1.0, 0.0), 0, None)
def test_a_sampled_window_is_a_cut_of_the_whole(
    size: Size, source: Size, method: Any, moved: Transform, seed: int, data: Any
) -> None:
    scaled = (source[1] / size[1], 0.0, 0.0, 0.0, source[0] / size[0], 0.0)
    sampling = Sampling(source, composed(moved, scaled), method, 3.0)
    rng = np.random.default_rng(seed)
    pixels, is_valid = rng.normal(size=(*source, 2)).astype(np.float32), rng.random(source) > 0.02
    pixels[~is_valid] = 0

    def sampled(window: Window) -> tuple[np.ndarray, np.ndarray]:
        part = sampling.part(window)
        if part is None:
            return np.zeros((window.height, window.width, 2), np.float32), np.zeros((window.height, window.width), bool)
        return sampling.sample(pixels[part.slices], is_valid[part.slices], part, window)

    window = Window(size[0] // 2, 0, 1, size[1]) if data is None else data.draw(inner_windows(size))
    (whole, is_whole), (cut, is_cut) = sampled(Window(0, 0, *size)), sampled(window)
    assert cut.tobytes() == whole[window.slices].tobytes()
    assert np.array_equal(is_cut, is_whole[window.slices])


@pytest.mark.parametrize("moved", [IDENTITY, (1.01, 0.02, 0.3, -0.01, 0.98, 0.7)])
def test_a_stack_read_in_strips_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: Transform) -> None:
    image = write(tmp_path / "a.tif", random((30, 40), 1))
    bands = [BandFile(path=write(tmp_path / "b.tif", random((9, 90), 3)), resampling="bicubic", moved=moved)]
    whole, is_whole = read(image, *bands)
    monkeypatch.setattr(resampling, "_STRIP_VALUES", 300)
    monkeypatch.setattr(stack, "_PART_VALUES", 1000)
    strips, is_strips = read(image, *bands)
    assert strips.tobytes() == whole.tobytes() and np.array_equal(is_strips, is_whole)


def test_only_the_part_that_a_window_needs_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = write(tmp_path / "a.tif", random((400, 400), 1))
    file = write(tmp_path / "b.tif", random((100, 100), 1))
    asked: list[tuple[str, Window]] = []
    unspied = Raster.read

    def spied(self: Raster, window: Window) -> tuple[np.ndarray, np.ndarray]:
        asked.append((self.path.name, window))
        return unspied(self, window)

    monkeypatch.setattr(Raster, "read", spied)
    with open_stack(image, [BandFile(path=file, moved=shifted(3, 0))]) as opened:
        assert not asked
        opened.read(Window(40, 80, 8, 8))
    # Rows 40-48 are rows 10-12 of the file, and columns 80-88 its columns 23-25; bicubic reaches two pixels farther.
    assert asked == [("a.tif", Window(40, 80, 8, 8)), ("b.tif", Window(8, 21, 6, 6))]


def test_the_image_alone_is_itself(tmp_path: Path) -> None:
    pixels = random((20, 30), 3)
    image = write(tmp_path / "a.tif", pixels, place(0, 0, 1), nodata=7)
    with open_stack(image) as opened:
        assert (opened.path, opened.size, opened.count, opened.dtype) == (image, (20, 30), 3, np.dtype(np.uint16))
        assert (opened.nodata, opened.georeference) == (7, place(0, 0, 1))
        found, _ = opened.read(Window(3, 4, 10, 20))
        with pytest.raises(ValueError, match="outside"):
            opened.read(Window(15, 0, 10, 10))
    assert np.array_equal(found, pixels[3:13, 4:24])


@pytest.mark.parametrize("ratio", [(1, 1), (4, 4), (3, 5)])
def test_nearest_at_a_whole_ratio_repeats_pixels(tmp_path: Path, ratio: tuple[int, int]) -> None:
    pixels = random((7, 9), 2)
    image = write(tmp_path / "a.tif", random((7 * ratio[0], 9 * ratio[1]), 1))
    file = write(tmp_path / "b.tif", pixels)
    found, is_valid = read(image, BandFile(path=file, resampling="nearest"))
    assert np.array_equal(found[..., 1:], pixels.repeat(ratio[0], axis=0).repeat(ratio[1], axis=1))
    assert is_valid.all()


@pytest.mark.parametrize("moved", [IDENTITY, shifted(0.3, -0.7), (0.99, 0.05, 1.0, -0.03, 1.02, 0.5)])
def test_bicubic_keeps_a_ramp(tmp_path: Path, moved: Transform) -> None:
    """The value at a source pixel's centre is 3·x + 5·y, so a grid pixel far from the edge says where it was taken."""
    y, x = np.mgrid[:24, :28] + 0.5
    image = write(tmp_path / "a.tif", np.zeros((96, 112), np.float32))
    file = write(tmp_path / "b.tif", (3 * x + 5 * y).astype(np.float32))
    found, _ = read(image, BandFile(path=file, resampling="bicubic", moved=moved))
    grid_y, grid_x = (np.mgrid[:96, :112] + 0.5) / 4
    a, b, c, d, e, f = moved
    expected = 3 * (a * grid_x + b * grid_y + c) + 5 * (d * grid_x + e * grid_y + f)
    inner = slice(16, -16), slice(16, -16)
    assert np.abs(found[..., 1] - expected)[inner].max() < 1e-3


@pytest.mark.parametrize("size", [(96, 112), (61, 83), (40, 41)])
def test_bicubic_is_that_of_gdal(tmp_path: Path, size: Size) -> None:
    file = write(tmp_path / "b.tif", random((24, 28), 2, "float32"))
    image = write(tmp_path / "a.tif", np.zeros(size, np.float32))
    found, _ = read(image, BandFile(path=file, resampling="bicubic"))
    with rasterio.open(file) as dataset:
        expected = np.moveaxis(dataset.read(out_shape=(2, *size), resampling=Resampling.cubic), 0, -1)
    inner = slice(12, -12), slice(12, -12)  # GDAL leaves out what lies beyond the edge, we reflect
    assert np.abs(found[..., 1:] - expected)[inner].max() < 1e-2


@pytest.mark.parametrize("ratio", [2, 3, 5])
def test_a_finer_file_is_averaged(tmp_path: Path, ratio: int) -> None:
    pixels = random((6 * ratio, 8 * ratio), 2, "float32")
    image = write(tmp_path / "a.tif", random((6, 8), 1, "float32"))
    file = write(tmp_path / "b.tif", pixels)
    found, _ = read(image, BandFile(path=file, resampling="bicubic"))
    assert np.allclose(found[..., 1:], pixels.reshape(6, ratio, 8, ratio, 2).mean(axis=(1, 3)), atol=1e-4)
    nearest, _ = read(image, BandFile(path=file, resampling="nearest"))
    assert np.array_equal(nearest[..., 1:], pixels[ratio // 2 :: ratio, ratio // 2 :: ratio])


def test_pixels_cut_by_the_edge_of_an_average_count_in_part(tmp_path: Path) -> None:
    image = write(tmp_path / "a.tif", np.zeros((1, 2), np.float32))
    file = write(tmp_path / "b.tif", np.array([[1, 2, 4, 8, 16]], np.float32))
    found, _ = read(image, BandFile(path=file, resampling="bicubic"))
    assert found[0, :, 1].tolist() == pytest.approx([(1 + 2 + 0.5 * 4) / 2.5, (0.5 * 4 + 8 + 16) / 2.5])


def test_integers_are_rounded_and_clipped(tmp_path: Path) -> None:
    """Halfway between pixels the weights are -1, 9, 9, -1 of 16: an edge overshoots by a 16th of its height."""
    row = np.array([[0, 0, 0, 0, 250, 250, 250, 250], [250, 250, 250, 0, 0, 0, 251, 251]], np.uint8)
    image = write(tmp_path / "a.tif", np.zeros((2, 8), np.uint8))
    file = write(tmp_path / "b.tif", row)
    found, _ = read(image, BandFile(path=file, resampling="bicubic", moved=shifted(0.5, 0)))
    assert found.dtype == np.uint8
    # 265.6 is clipped, -15.6 too; 0.5·250 = 125; (9·251 - 251)/16 = 125.5 is rounded to the even number.
    assert found[0, :, 1].tolist() == [0, 0, 0, 125, 255, 250, 250, 250]
    assert found[1, :, 1].tolist() == [250, 255, 125, 0, 0, 126, 255, 251]


@pytest.mark.parametrize("kind", ["nodata", "mask", "nan", "infinite", "nodata in one band"])
def test_what_an_invalid_pixel_touches_is_invalid(tmp_path: Path, kind: str) -> None:
    pixels = random((9, 10), 2, "float32") + 1
    pixels[4, 4] = {"nodata": -9999, "mask": 5, "nan": np.nan, "infinite": np.inf, "nodata in one band": 3}[kind]
    if kind == "nodata in one band":
        pixels[4, 4, 1] = -9999
    image = write(tmp_path / "a.tif", random((9, 10), 1, "float32"))
    file = write(tmp_path / "b.tif", pixels, nodata=-9999 if "nodata" in kind else None)
    if kind == "mask":
        with rasterio.open(file, "r+") as dataset:
            dataset.write_mask(~((np.arange(90) == 44).reshape(9, 10)))
    for moved, rows, columns in (
        (IDENTITY, slice(4, 5), slice(4, 5)),
        (shifted(0.5, 0), slice(4, 5), slice(2, 6)),
        (shifted(0, 0.25), slice(2, 6), slice(4, 5)),
        (shifted(-0.5, 0.5), slice(2, 6), slice(3, 7)),
    ):
        found, is_valid = read(image, BandFile(path=file, resampling="bicubic", moved=moved))
        expected = np.ones((9, 10), bool)
        expected[rows, columns] = False
        assert np.array_equal(is_valid, expected)
        assert np.isfinite(found).all() and (found[~expected][:, 1:] == 0).all()
        assert np.abs(found[expected]).max() < 300


def test_invalid_pixels_of_the_image_are_zero(tmp_path: Path) -> None:
    pixels = random((4, 5), 1, "float32") + 1
    pixels[1, 2], pixels[3, 0] = np.nan, 77
    found, is_valid = read(write(tmp_path / "a.tif", pixels, nodata=77))
    assert np.argwhere(~is_valid).tolist() == [[1, 2], [3, 0]]
    assert (found[~is_valid] == 0).all() and np.array_equal(found[is_valid], pixels[is_valid])


def test_a_nearest_pixel_touches_only_itself(tmp_path: Path) -> None:
    pixels = random((3, 3), 1) + 1
    pixels[1, 1] = 0
    image = write(tmp_path / "a.tif", random((6, 6), 1))
    file = write(tmp_path / "b.tif", pixels, nodata=0)
    _, is_valid = read(image, BandFile(path=file, resampling="nearest"))
    assert np.array_equal(~is_valid, np.pad(np.ones((2, 2), bool), 2))


def test_files_lie_where_their_georeference_says(tmp_path: Path) -> None:
    """The image spans 1000-1008 east and 2000-1994 north at 1 m; the file starts 2 m west of it, 2 m south, at 2 m."""
    pixels = np.arange(1, 13, dtype=np.uint8).reshape(3, 4)
    image = write(tmp_path / "a.tif", np.zeros((6, 8), np.uint8), place(1000, 2000, 1))
    file = write(tmp_path / "b.tif", pixels, place(998, 1998, 2))
    found, is_valid = read(image, BandFile(path=file, resampling="nearest"), reflected=0)
    assert found[..., 1].tolist() == [[0] * 8] * 2 + [
        [row[1], row[1], row[2], row[2], row[3], row[3], 0, 0] for row in pixels[:2].tolist() for _ in range(2)
    ]
    assert np.array_equal(is_valid, found[..., 1] > 0)


def test_georeferences_at_large_coordinates_leave_no_noise(tmp_path: Path) -> None:
    """A pixel of 0.31 m has no exact number; the file of four times its size still falls on whole pixels."""
    pixels = random((40, 50), 1, "uint8")
    image = write(tmp_path / "a.tif", np.zeros((160, 200), np.uint8), place(512_345.67, 6_789_012.34, 0.31))
    shifted_file = write(tmp_path / "b.tif", pixels, place(512_345.67 - 8 * 0.31, 6_789_012.34 + 4 * 0.31, 1.24))
    found, is_valid = read(image, BandFile(path=shifted_file, resampling="nearest"), reflected=0)
    expected = pixels[1:, 2:, 0].repeat(4, axis=0).repeat(4, axis=1)
    assert np.array_equal(found[:156, :192, 1], expected)
    assert np.array_equal(is_valid, np.pad(np.ones((156, 192), bool), ((0, 4), (0, 8))))


def test_a_rim_is_reflected_and_no_more(tmp_path: Path) -> None:
    pixels = np.arange(1, 9, dtype=np.uint8)[None].repeat(8, axis=0)
    image = write(tmp_path / "a.tif", np.zeros((8, 8), np.uint8))
    band = BandFile(path=write(tmp_path / "b.tif", pixels), resampling="nearest", moved=shifted(3, 0))
    found, is_valid = read(image, band)
    assert found[0, :, 1].tolist() == [4, 5, 6, 7, 8, 8, 7, 0] and is_valid[0].tolist() == [True] * 7 + [False]
    assert read(image, band, reflected=3)[0][0, :, 1].tolist() == [4, 5, 6, 7, 8, 8, 7, 6]
    assert read(image, band, reflected=0)[0][0, :, 1].tolist() == [4, 5, 6, 7, 8, 0, 0, 0]


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        (["uint8", "uint8"], "uint8"),
        (["uint16", "uint16", "uint16"], "uint16"),
        (["uint8", "uint16"], "float32"),
        (["int16", "int16"], "float32"),
        (["float64"], "float32"),
    ],
)
def test_one_type_for_all_bands(tmp_path: Path, types: Sequence[str], expected: str) -> None:
    stored = [random((5, 6), number + 1, dtype, seed=number) for number, dtype in enumerate(types)]
    files = [write(tmp_path / f"{number}.tif", pixels) for number, pixels in enumerate(stored)]
    found, _ = read(files[0], *[BandFile(path=file, resampling="nearest") for file in files[1:]])
    assert found.dtype == np.dtype(expected)
    assert np.array_equal(found, np.concatenate([pixels.astype(expected) for pixels in stored], axis=2))


def test_files_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    pixels = random((6, 8), 1)
    image = write(tmp_path / "image.tif", pixels, place(1000, 2000, 1))
    plain = write(tmp_path / "plain.tif", pixels)
    other_crs = write(tmp_path / "other.tif", pixels, place(1000, 2000, 1, "EPSG:32634"))
    without_crs = write(tmp_path / "none.tif", pixels, place(1000, 2000, 1, None))
    turned = write(tmp_path / "turned.tif", pixels, Georeference(UTM, (1.0, 0.1, 1000.0, 0.1, -1.0, 2000.0)))
    elsewhere = write(tmp_path / "elsewhere.tif", pixels, place(5000, 2000, 1))
    cases: list[tuple[Path, Path, Sequence[str]]] = [
        (image, other_crs, ("other.tif", "image.tif", "EPSG:32633", "EPSG:32634", "gdalwarp")),
        (image, without_crs, ("none.tif", "image.tif", "EPSG:32633", "found none")),
        (image, plain, ("plain.tif", "image.tif", "gdal_edit.py")),
        (plain, image, ("plain.tif", "image.tif", "gdal_edit.py")),
        (image, turned, ("turned.tif", "image.tif", "parallel")),
        (image, elsewhere, ("elsewhere.tif", "image.tif", "no ground")),
        (image, tmp_path / "absent.tif", ("absent.tif", "no such file")),
        (tmp_path / "absent.tif", image, ("absent.tif", "no such file")),
    ]
    for first, second, words in cases:
        with pytest.raises(BadFile) as caught, open_stack(first, [BandFile(path=second)]):
            pass
        assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_files_turned_alike_are_parallel(tmp_path: Path) -> None:
    pixels = random((6, 8), 1)
    image = write(tmp_path / "a.tif", pixels, Georeference(UTM, (0.8, 0.6, 1000.0, 0.6, -0.8, 2000.0)))
    file = write(tmp_path / "b.tif", pixels, Georeference(UTM, (0.8, 0.6, 1000.8, 0.6, -0.8, 2000.6)))
    found, _ = read(image, BandFile(path=file, resampling="nearest"))
    assert np.array_equal(found[:, 1:, 1], pixels[:, :-1, 0])


@pytest.mark.parametrize("moved", [(0.0, 0.0, 1.0, 0.0, 1.0, 0.0), (1.0, 0.0, np.nan, 0.0, 1.0, 0.0)])
def test_a_motion_must_be_undone(tmp_path: Path, moved: Transform) -> None:
    image = write(tmp_path / "a.tif", random((6, 8), 1))
    band = BandFile(path=image, moved=moved)
    with pytest.raises(UserError, match=r"a\.tif: .*can be undone"), open_stack(image, [band]):
        pass


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    image = write(tmp_path / "a.tif", random((6, 8), 1).astype(np.complex64))
    with pytest.raises(BadFile, match="real numbers"), open_stack(image):
        pass


def test_a_truncated_file_is_one_line(tmp_path: Path) -> None:
    image = write(tmp_path / "a.tif", random((60, 60), 1))
    file = write(tmp_path / "b.tif", np.random.default_rng(0).integers(0, 2**16, (600, 600, 3), np.uint16))
    whole = file.read_bytes()
    for length in (100, len(whole) // 2, len(whole) - 1000):
        file.write_bytes(whole[:length])
        with pytest.raises(BadFile, match=r"b\.tif") as caught:
            read(image, BandFile(path=file))
        assert "\n" not in str(caught.value)


def test_transforms_are_joined_and_undone() -> None:
    one, other = (2.0, 0.5, 3.0, -1.0, 4.0, 5.0), (0.5, 0.1, -7.0, 0.2, 3.0, 1.0)
    assert composed(one, inverse(one)) == pytest.approx(IDENTITY)
    # other takes (1, 2) to (-6.3, 7.2), and one takes that to (-6, 40.1).
    a, b, c, d, e, f = composed(one, other)
    assert (a + 2 * b + c, d + 2 * e + f) == pytest.approx((-6.0, 40.1))
