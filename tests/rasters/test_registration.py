"""Shifts and affine maps that were put in are found again, through noise, gain and blur; and what must be refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskloom.errors import BadFile, UserError
from maskloom.rasters.georeference import Georeference, Transform
from maskloom.rasters.registration import Registration, register, register_files
from maskloom.rasters.stack import open_stack
from maskloom.rasters.writing import write_geotiff
from maskloom.records import BandFile, Size
from maskloom.windows import Window

MARGIN = 32
"""What is cut off on every side after a shift that goes around the edges."""


def frequencies(size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    return np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1])[None, :]


def ground(size: Size, seed: int) -> np.ndarray:
    """Something like a scene, with ``MARGIN`` on every side: power falls with frequency; mean 0, deviation 1."""
    full = (size[0] + 2 * MARGIN, size[1] + 2 * MARGIN)
    y, x = frequencies(full)
    spectrum = np.fft.fft2(np.random.default_rng(seed).normal(size=full)) / np.maximum(np.hypot(y, x), 0.01) ** 1.5
    values = np.fft.ifft2(spectrum).real
    return (values - values.mean()) / values.std()


def shifted_ground(scene: np.ndarray, x: float, y: float, blur: float = 0.0) -> np.ndarray:
    """The scene with its content moved by (x, y), smoothed by a Gaussian, both exactly by Fourier transform."""
    fy, fx = frequencies(scene.shape)
    spectrum = np.fft.fft2(scene) * np.exp(-2j * np.pi * (fx * x + fy * y))
    return np.fft.ifft2(spectrum * np.exp(-2 * (np.pi * blur) ** 2 * (fx**2 + fy**2))).real


def cut(scene: np.ndarray) -> np.ndarray:
    return scene[MARGIN:-MARGIN, MARGIN:-MARGIN]


def sensed(values: np.ndarray, seed: int, *, gain: float, offset: float, noise: float) -> np.ndarray:
    """Eleven bits of a sensor with noise of its own, in units of the scene's deviation."""
    noisy = values + noise * np.random.default_rng(seed).normal(size=values.shape)
    return np.clip(np.rint(gain * noisy + offset), 0, 2047).astype(np.uint16)


def pair(size: Size, x: float, y: float, *, noise: float = 0.0, blur: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    scene = ground(size, 1)
    return (
        sensed(cut(scene), 2, gain=150, offset=700, noise=noise),
        sensed(cut(shifted_ground(scene, x, y, blur)), 3, gain=60, offset=1100, noise=noise),
    )


def error_of(found: Transform, x: float, y: float) -> float:
    assert (found[0], found[1], found[3], found[4]) == (1.0, 0.0, 0.0, 1.0)
    return float(np.hypot(found[2] - x, found[5] - y))


@pytest.mark.parametrize(("x", "y"), [(0.3, -0.6), (-1.5, 2.25), (5.7, 3.4), (-9.2, -7.9), (0.0, 0.0)])
@pytest.mark.parametrize(("noise", "blur", "bound"), [(0.0, 0.0, 0.05), (0.2, 1.0, 0.1), (0.7, 1.0, 0.3)])
def test_a_shift_is_found(x: float, y: float, noise: float, blur: float, bound: float) -> None:
    """Noise of 0.7 deviations of a scene that has little detail leaves so small a band no better than that."""
    found = register(*pair((136, 134), x, y, noise=noise, blur=blur))
    assert error_of(found.moved, x, y) < bound and found.correlation > 0.6


def test_a_shift_of_a_large_band_is_found() -> None:
    found = register(*pair((851, 837), 2.37, -1.84, noise=0.7, blur=1.0))
    assert error_of(found.moved, 2.37, -1.84) < 0.05


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64"])
def test_equal_images_lie_on_each_other(dtype: str) -> None:
    image = (cut(ground((60, 80), 1)) * 20 + 100).astype(dtype)
    found = register(image, image)
    assert error_of(found.moved, 0, 0) < 1e-3 and found.correlation == pytest.approx(1, abs=1e-4)


def waves(seed: int = 0) -> Any:
    """A function of (x, y) that can be evaluated anywhere."""
    rng = np.random.default_rng(seed)
    fx, fy, phases = rng.uniform(-0.12, 0.12, 60), rng.uniform(-0.12, 0.12, 60), rng.uniform(0, 2 * np.pi, 60)
    return lambda x, y: np.cos(2 * np.pi * (fx * x[..., None] + fy * y[..., None]) + phases).sum(axis=-1)


def test_an_affine_map_is_found_on_request() -> None:
    a, b, c, d, e, f = moved = (1.01, -0.012, 2.4, 0.015, 0.992, -1.7)
    rng, scene = np.random.default_rng(4), waves()
    y, x = np.mgrid[:150, :140] + 0.5
    u, v = x - c, y - f
    determinant = a * e - b * d
    fixed = scene(x, y) + rng.normal(size=x.shape)
    moving = (
        scene((e * u - b * v) / determinant, (a * v - d * u) / determinant) * 0.3 + 4 + 0.3 * rng.normal(size=x.shape)
    )
    found = register(fixed, moving, motion="affine")
    assert found.motion == "affine" and found.correlation > 0.9
    for corner_x, corner_y in ((0, 0), (140, 0), (0, 150), (140, 150)):
        off = np.array(found.moved) - np.array(moved)
        at = (off[0] * corner_x + off[1] * corner_y + off[2], off[3] * corner_x + off[4] * corner_y + off[5])
        assert np.hypot(*at) < 0.1


def test_unknown_pixels_count_in_neither_image() -> None:
    """A collar of each, a hole with a value that would rule everything, and scattered NaN."""
    fixed, moving = (image.astype(np.float32) for image in pair((136, 134), 3.3, -2.6, noise=0.2))
    fixed[:30], fixed[60:80, 50:90] = np.nan, np.inf
    moving[:, 100:] = 60_000
    moving[np.random.default_rng(0).random(moving.shape) < 0.005] = np.nan
    is_valid = np.ones(moving.shape, bool)
    is_valid[:, 100:] = False
    before = fixed.copy(), moving.copy()
    found = register(fixed, moving, moving_valid=is_valid)
    assert error_of(found.moved, 3.3, -2.6) < 0.1
    assert np.array_equal(fixed, before[0], equal_nan=True) and np.array_equal(moving, before[1], equal_nan=True)


def unlike() -> tuple[np.ndarray, np.ndarray]:
    return cut(ground((100, 120), 1)), cut(ground((100, 120), 9))


@pytest.mark.parametrize(
    ("images", "options", "words"),
    [
        (unlike(), {}, "correlation"),
        ((unlike()[0], -unlike()[0]), {}, "correlation"),
        (pair((100, 120), 1, 1, noise=0.5), {"minimum_correlation": 0.99}, "at least 0.99, found less"),
        (pair((100, 120), 6.5, 0), {"maximum_shift": 3}, "found|at most 3 pixels"),
        (pair((100, 120), 1.5, 0), {"maximum_shift": 1}, "at most 1 pixels, found more.* 1.5. pixels"),
        (pair((100, 120), 6.5, 0), {"iterations": 1, "maximum_shift": 3}, "after 1 iterations"),
        ((unlike()[0], np.full((100, 120), 7, np.uint8)), {}, "the moving one constant"),
        ((np.full((100, 120), 0.1), unlike()[0]), {}, "the fixed one constant"),
        ((np.full((100, 120), np.nan), unlike()[0]), {}, "0.0% of the fixed"),
        ((np.eye(15), np.eye(15)), {}, "at least 16×16 pixels"),
    ],
)
def test_what_cannot_be_trusted_is_refused(
    images: tuple[np.ndarray, np.ndarray], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        register(*images, **options)
    assert "\n" not in str(caught.value) and "leave the file unregistered" in str(caught.value)


def test_images_of_different_size_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="one size"):
        register(np.zeros((20, 30)), np.zeros((20, 31)))


def test_images_that_share_no_known_pixels_are_refused() -> None:
    image = cut(ground((60, 60), 1))
    columns = np.tile(np.arange(60), (60, 1))
    with pytest.raises(UserError, match="both images know"):
        register(image, image, fixed_valid=columns < 20, moving_valid=columns >= 40)


def test_a_registration_is_stored_and_read_back() -> None:
    found = Registration((1.0, 0.0, 1 / 3, 0.0, 1.0, -2 / 7), 0.87654321, "translation")
    assert Registration.from_json(json.loads(json.dumps(found.to_json()))) == found
    for broken in ({}, {**found.to_json(), "moved": [1, 2]}, {**found.to_json(), "motion": "rigid"}, {"moved": "abc"}):
        with pytest.raises(UserError, match="expected"):
            Registration.from_json(broken)
    with pytest.raises(UserError, match="finite"):
        Registration.from_json({**found.to_json(), "correlation": float("nan")})


def reduced(values: np.ndarray, factor: int) -> np.ndarray:
    height, width = values.shape
    averaged: np.ndarray = values.reshape(height // factor, factor, width // factor, factor).mean(axis=(1, 3))
    return averaged


def write(path: Path, values: np.ndarray, georeference: Georeference | None = None) -> Path:
    write_geotiff(path, values, georeference, overviews=False)
    return path


def best_shift(one: np.ndarray, other: np.ndarray) -> tuple[int, int]:
    """The whole shift (x, y) of ``other`` at which it correlates best with ``one``."""
    inner = slice(8, -8), slice(8, -8)
    shifts = [(x, y) for y in range(-6, 7) for x in range(-6, 7)]

    def fit(shift: tuple[int, int]) -> float:
        back = np.roll(other, (-shift[1], -shift[0]), axis=(0, 1))
        return float(np.corrcoef(one[inner].ravel(), back[inner].ravel())[0, 1])

    return max(shifts, key=fit)


@pytest.mark.parametrize("is_georeferenced", [False, True])
def test_a_registered_file_lies_on_the_image(tmp_path: Path, is_georeferenced: bool) -> None:
    """A band of a quarter of the resolution lies (1.3, -0.8) of its pixels off; read by what is found it fits."""
    scene = ground((240, 280), 5)
    place, coarse_place = (
        (Georeference("EPSG:32633", (0.5, 0, 4e5, 0, -0.5, 5e6)), Georeference("EPSG:32633", (2, 0, 4e5, 0, -2, 5e6)))
        if is_georeferenced
        else (None, None)
    )
    green = sensed(cut(scene), 6, gain=150, offset=700, noise=0.2)
    image = write(tmp_path / "rgb.tif", np.stack([green[::-1], green, green[:, ::-1]]), place)
    off = reduced(cut(shifted_ground(scene, 4 * 1.3, 4 * -0.8)), 4)
    file = write(tmp_path / "m.tif", sensed(off, 7, gain=90, offset=900, noise=0.1), coarse_place)
    found = register_files(image, file, image_band=1, band=0)
    assert error_of(found.moved, 1.3, -0.8) < 0.05 and found.correlation > 0.9

    def stacked(moved: Transform) -> np.ndarray:
        with open_stack(image, [BandFile(path=file, moved=moved)], reflected=4) as opened:
            pixels, is_valid = opened.read(Window(0, 0, *opened.size))
        assert is_valid.all()
        return pixels[:, :, 3].astype(np.float64)

    assert best_shift(green.astype(np.float64), stacked((1, 0, 0, 0, 1, 0))) == (5, -3)
    assert best_shift(green.astype(np.float64), stacked(found.moved)) == (0, 0)
    # What remains, by registering again what was read.
    assert error_of(register(green, stacked(found.moved)).moved, 0, 0) < 0.2


def test_a_file_finer_than_the_image_is_moved_in_its_own_pixels(tmp_path: Path) -> None:
    scene = ground((400, 440), 5)
    image = write(tmp_path / "m.tif", sensed(reduced(cut(scene), 4), 7, gain=90, offset=900, noise=0.1))
    fine = sensed(cut(shifted_ground(scene, 5.2, -3.2)), 6, gain=150, offset=700, noise=0.2)
    found = register_files(image, write(tmp_path / "p.tif", fine), image_band=0, band=0)
    assert error_of(found.moved, 5.2, -3.2) < 0.2
    affine = register_files(image, tmp_path / "p.tif", image_band=0, band=0, motion="affine")
    assert np.allclose(affine.moved, (1, 0, 5.2, 0, 1, -3.2), atol=0.3)
    with open_stack(image, [BandFile(path=tmp_path / "p.tif", moved=found.moved)], reflected=8) as opened:
        pixels, _ = opened.read(Window(0, 0, *opened.size))
    assert error_of(register(pixels[:, :, 0], pixels[:, :, 1]).moved, 0, 0) < 0.05


def test_the_middle_stands_for_a_large_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskloom.rasters.registration.LARGEST", 64)
    scene = ground((200, 160), 8)
    image = write(tmp_path / "a.tif", sensed(cut(scene), 6, gain=150, offset=700, noise=0.1))
    file = write(tmp_path / "b.tif", sensed(cut(shifted_ground(scene, 2.5, 1.5)), 7, gain=90, offset=900, noise=0.1))
    assert error_of(register_files(image, file, image_band=0, band=0).moved, 2.5, 1.5) < 0.1
    affine = register_files(image, file, image_band=0, band=0, motion="affine").moved
    assert np.hypot(affine[0] * 80 + affine[1] * 100 + affine[2] - 82.5, 0) < 0.15


def test_refusals_name_both_files(tmp_path: Path) -> None:
    one, other = unlike()
    image, file = write(tmp_path / "a.tif", one.astype(np.float32)), write(tmp_path / "b.tif", other.astype(np.float32))
    with pytest.raises(UserError) as caught:
        register_files(image, file, image_band=0, band=0)
    assert all(word in str(caught.value) for word in ("a.tif", "b.tif", "bands 0 and 0", "correlation"))
    assert "\n" not in str(caught.value)
    with pytest.raises(BadFile, match=r"b\.tif: expected a band of 0 to 0.*band 3"):
        register_files(image, file, image_band=0, band=3)
    with pytest.raises(BadFile, match="no such file"):
        register_files(image, tmp_path / "absent.tif", image_band=0, band=0)
