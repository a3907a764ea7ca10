"""A stand-in of the Dstl data in the published layout and at the published sizes, rendered from polygons.

Polygons are those of a Dstl folder or of drawn towns. RGB and P lie on one grid; M, at a quarter of the resolution, is
moved against it by a known part of pixels, by Fourier resampling. Every band has noise, gain and blur of its own, the
ground texture and light in common. Tables are as published. Knows nothing about how anything of it is read.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from maskloom.contests.dstl.reflectance import (
    A_LIMIT,
    BACKGROUND,
    M_LIMIT,
    MATERIALS,
    material_of,
    raw_values,
)  # fmt: skip
from maskloom.contests.dstl.town import SIDE, draw_town
from maskloom.contests.dstl.truth import CLASSES, TableRow, label_of, parsed, read_rows
from maskloom.encodings.grid_coordinates import Grid, read_grids, to_pixels
from maskloom.encodings.table_files import text_writer
from maskloom.encodings.vector_files import DSTL_COLUMNS
from maskloom.errors import UserError
from maskloom.files import atomic_path, checksum, fingerprint, read_json, write_json
from maskloom.records import Size

if TYPE_CHECKING:
    from shapely import Polygon

MARKER = ".stand_in.json"
"""Says which settings the files of a folder came from; written last."""
VERSION = 1
"""Goes up whenever the same settings give other pictures."""
WIDTH = 3400
"""Pixels of an RGB image at scale 1; its height follows the grid."""
GRID = Grid(0.009188, -0.00904)
"""The extent of drawn towns."""
SMALLEST = 0.01
"""The smallest scale: 34 pixels of RGB, 8 of M."""

_ORDER = (5, 3, 2, 7, 6, 1, 0, 4, 8, 9)  # labels from the ground up: what is painted later covers
_COARSE = {"M": 4, "A": 25}  # RGB pixels per pixel
_LARGEST_SHIFT = 2.5  # pixels of M; at most a thirtieth of the image
_NOISE = {"RGB": 4.0, "M": 4.0, "P": 4.0, "A": 40.0}
_BLUR = {"RGB": (0.5, 0.9), "M": (1.6, 2.4), "P": (0.4, 0.7), "A": (9.0, 13.0)}
"""Least and most standard deviation in RGB pixels; blur is the sensor's, so it is the same at every scale."""
_FILES = {"RGB": slice(0, 3), "M": slice(3, 11), "P": slice(11, 12), "A": slice(12, 20)}  # columns of raw_values
_PLACES = {
    "RGB": "three_band/{}.tif",
    "M": "sixteen_band/{}_M.tif",
    "P": "sixteen_band/{}_P.tif",
    "A": "sixteen_band/{}_A.tif",
}

Shift = tuple[float, float]
"""(x, y) in pixels of the file: what should lie at (u, v) lies at (u + x, v + y), as in ``BandFile.moved``."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One image to be rendered: its id, extent, and the rows of its polygons in grid coordinates."""

    id: str
    grid: Grid
    rows: tuple[TableRow, ...]


def write_stand_in(
    folder: Path,
    *,
    polygons: Path | None = None,
    images: int = 4,
    test_images: int = 0,
    scale: float = 1.0,
    seed: int = 0,
    swir: bool = False,
    on_image: Callable[[int, int], None] | None = None,
) -> None:
    """Returns nothing; ``folder`` then holds ``images`` images in the published layout, the last of them for testing.

    ``polygons`` is a folder with ``train_wkt_v4.csv`` and ``grid_sizes.csv`` (plain or .gz), of which the images with
    the most classes are rendered; without it towns are drawn. At ``scale`` 1 RGB is about 3350×3400. Written are
    ``three_band/<id>.tif``, ``sixteen_band/<id>_M.tif`` and ``_P.tif`` (with ``swir`` also ``_A.tif``),
    ``train_wkt_v4.csv`` of the images that are not for testing, ``grid_sizes.csv``, ``sample_submission.csv`` of the
    test images (without any, of all), ``solution_wkt.csv`` of those, and ``shifts.json``: by image and file (M, A) the
    true shift {"x", "y"} in its pixels, as ``Shift`` says. The same settings give the same files; a folder that is
    complete is left alone. ``on_image`` hears (done, of) after each image. Raises ``UserError`` for settings that
    cannot be met, and for a folder that holds something else.
    """
    _check(images, test_images, scale)
    table = None if polygons is None else _table(polygons, "train_wkt_v4")
    settings = {
        "images": images, "test_images": test_images, "scale": scale, "seed": seed, "swir": swir,
        "polygons": None if table is None else checksum(table), "version": VERSION,
    }  # fmt: skip
    settings["fingerprint"] = fingerprint(settings)
    if _is_complete(folder, settings):
        return
    drawn = _drawn(images, seed) if polygons is None or table is None else _given(polygons, table, images)
    shifts: dict[str, dict[str, dict[str, float]]] = {}
    for index, scene in enumerate(drawn):
        shifts[scene.id] = _write_image(folder, scene, scale, np.random.default_rng([seed, index]), swir=swir)
        if on_image:
            on_image(index + 1, images)
    _write_tables(folder, drawn[: images - test_images], drawn[images - test_images :])
    write_json(folder / "shifts.json", shifts)
    write_json(folder / MARKER, settings)


def _check(images: int, test_images: int, scale: float) -> None:
    if images < 1 or not 0 <= test_images < images:
        raise UserError(f"expected at least 1 image and fewer for testing, found {images} and {test_images}")
    if not SMALLEST <= scale <= 2:
        raise UserError(f"expected a scale of {SMALLEST} to 2, found {scale}")


def _table(folder: Path, name: str) -> Path:
    for ending in (".csv", ".csv.gz"):
        if (folder / (name + ending)).is_file():
            return folder / (name + ending)
    raise UserError(f"{folder}: expected {name}.csv or {name}.csv.gz, found neither; give a Dstl folder")


def _is_complete(folder: Path, settings: Mapping[str, object]) -> bool:
    """Returns whether the folder holds just this; raises ``UserError`` when it holds something else."""
    marker = folder / MARKER
    if marker.is_file() and read_json(marker) == settings:
        return True
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: expected an empty folder or this very stand-in, found something else; give another")
    return False


# What is to be seen -------------------------------------------------------------------------------------------------


def _given(folder: Path, table: Path, images: int) -> list[Scene]:
    """Returns the images of a Dstl table that show the most classes, in the order of the table."""
    grids = read_grids(_table(folder, "grid_sizes"))
    rows: dict[str, list[TableRow]] = {}
    for row in read_rows(table):
        rows.setdefault(row.image, []).append(row)
    if len(rows) < images:
        raise UserError(f"{table}: expected polygons of {images} images, found {len(rows)}; ask for fewer")
    fullest = sorted(rows, key=lambda image: sum("EMPTY" in row.wkt[-10:] for row in rows[image]) - len(rows[image]))
    chosen = [image for image in rows if image in set(fullest[:images])]
    without = [image for image in chosen if image not in grids]
    if without:
        raise UserError(f"{folder}: image {without[0]!r} has polygons but no row in grid_sizes.csv; add its row")
    return [Scene(image, grids[image], tuple(rows[image])) for image in chosen]


def _drawn(images: int, seed: int) -> list[Scene]:
    """Returns towns, two per scene of the contest; every second one has a river, two of three have ponds."""
    import shapely

    factors = np.array([GRID.x_max, GRID.y_min]) / SIDE
    scenes = []
    for index in range(images):
        town = draw_town(np.random.default_rng([seed, index, 1]), river=index % 2 == 0, ponds=4 * (index % 3 != 1))
        name = f"{6010 + 10 * (index // 2)}_{index % 5}_{3 * index % 5}"
        rows = []
        for label in range(len(CLASSES)):
            whole = shapely.multipolygons(town[label]) if town[label] else shapely.MultiPolygon()
            placed = shapely.transform(whole, lambda xy: xy * factors)
            text = shapely.to_wkt(placed, rounding_precision=10)
            rows.append(TableRow(10 * index + label + 2, name, str(label + 1), text))
        scenes.append(Scene(name, GRID, tuple(rows)))
    return scenes


def _polygons(scene: Scene, size: Size) -> dict[int, list[Polygon]]:
    found: dict[int, list[Polygon]] = {}
    for row in scene.rows:
        place = Path(f"the polygons of {scene.id}")
        placed = [to_pixels(polygon, size, scene.grid) for polygon in parsed(place, row)]
        found.setdefault(label_of(place, row), []).extend(placed)
    return found


# Rendering ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Ground:
    """What all bands see: the object of each pixel H×W (its row in ``values``), objects × 20 raw values, and a factor
    H×W for texture and light."""

    objects: np.ndarray
    values: np.ndarray
    factor: np.ndarray


def _write_image(
    folder: Path, scene: Scene, scale: float, rng: np.random.Generator, *, swir: bool
) -> dict[str, dict[str, float]]:
    """Writes the files of one image; returns their true shifts."""
    width = round(WIDTH * scale)
    size = (round(width * scene.grid.y_min / -scene.grid.x_max), width)
    ground = _ground(_polygons(scene, size), size, rng)
    shifts: dict[str, dict[str, float]] = {}
    for file, columns in _FILES.items():
        if file == "A" and not swir:
            continue
        ratio = _COARSE.get(file, 1)
        small = (max(1, round(size[0] / ratio)), max(1, round(size[1] / ratio)))
        shift = (0.0, 0.0)
        if file in _COARSE:
            largest = min(_LARGEST_SHIFT, min(small) / 30)
            shift = (float(rng.uniform(-largest, largest)), float(rng.uniform(-largest, largest)))
            shifts[file] = {"x": shift[0], "y": shift[1]}
        limit = A_LIMIT if file == "A" else M_LIMIT
        bands = [
            _stored(_seen(ground, column, small, _BLUR[file], shift, rng), _NOISE[file], limit, rng)
            for column in range(columns.start, columns.stop)
        ]
        _write_tiff(folder / _PLACES[file].format(scene.id), np.stack(bands))
    return shifts


def _ground(polygons: Mapping[int, Sequence[Polygon]], size: Size, rng: np.random.Generator) -> _Ground:
    from rasterio.features import rasterize

    names = list(MATERIALS)
    painted = [(polygon, label) for label in _ORDER for polygon in polygons.get(label, ())]
    # Rows 0 and 1 are the two backgrounds, parted by a smooth line.
    objects = (_smooth(rng, size, 120) > 0).astype(np.int32)
    if painted:
        shapes = ((polygon, number) for number, (polygon, _) in enumerate(painted, start=len(BACKGROUND)))
        rasterize(shapes, out=objects)
    materials = [names.index(name) for name in BACKGROUND] + [material_of(label) for _, label in painted]
    between, texture = (
        np.array([getattr(material, name) for material in MATERIALS.values()], np.float32)[materials]
        for name in ("between", "texture")
    )
    brightness = np.exp(between * rng.standard_normal(len(materials), dtype=np.float32))
    hue = 1 + 0.03 * rng.standard_normal((len(materials), raw_values().shape[1]), dtype=np.float32)
    values = raw_values()[materials] * np.minimum(brightness, 2.0)[:, None] * hue
    rough = 0.6 * (_smooth(rng, size, 1.2) + _smooth(rng, size, 5) + _smooth(rng, size, 20))
    light = np.exp(0.06 * _smooth(rng, size, 300))
    return _Ground(objects, values, np.clip(1 + texture[objects] * rough, 0.2, 2.5) * light)


def _smooth(rng: np.random.Generator, size: Size, metres: float) -> np.ndarray:
    """Returns smooth noise of about unit variance, its bumps as many metres wide; float32 H×W of ``SIDE`` metres."""
    import cv2

    cells = max(4, round(SIDE / metres))
    coarse = rng.standard_normal((min(cells, size[0]), min(cells, size[1])), dtype=np.float32)
    return np.asarray(cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC))


def _seen(
    ground: _Ground,
    column: int,
    size: Size,
    blur: tuple[float, float],
    shift: Shift,
    rng: np.random.Generator,
) -> np.ndarray:
    """Returns one band without noise, float32, on the grid of its file: blurred, averaged, moved, amplified."""
    import cv2

    band = ground.values[:, column][ground.objects] * ground.factor
    band = cv2.GaussianBlur(band, (0, 0), float(rng.uniform(*blur)), borderType=cv2.BORDER_REFLECT)
    if size != ground.objects.shape:
        band = cv2.resize(band, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    if shift != (0.0, 0.0):
        band = fourier_shifted(band, shift)
    return np.asarray(band) * np.float32(rng.normal(1, 0.03))


def fourier_shifted(band: np.ndarray, shift: Shift) -> np.ndarray:
    """Returns the band H×W, float32, with its content moved by (x, y) pixels; beyond its edges it is mirrored.

    What lay at (u, v) lies at (u + x, v + y). A mirrored image goes on without a break when it is repeated, as the
    Fourier transform takes it to be.
    """
    height, width = band.shape
    mirrored = np.pad(band.astype(np.float32), ((0, height), (0, width)), mode="symmetric")
    down, across = np.fft.fftfreq(2 * height)[:, None], np.fft.rfftfreq(2 * width)
    turned = np.exp(-2j * np.pi * (across * shift[0] + down * shift[1])).astype(np.complex64)
    moved: np.ndarray = np.fft.irfft2(np.fft.rfft2(mirrored) * turned, s=mirrored.shape)
    return moved[:height, :width].astype(np.float32, copy=False)


def _stored(band: np.ndarray, noise: float, limit: int, rng: np.random.Generator) -> np.ndarray:
    noisy = band + noise * rng.standard_normal(band.shape, dtype=np.float32)
    stored: np.ndarray = np.clip(np.rint(noisy), 1, limit).astype(np.uint16)
    return stored


# Writing ------------------------------------------------------------------------------------------------------------


def _write_tiff(path: Path, bands: np.ndarray) -> None:
    """Writes bands C×H×W as a plain TIFF, one band after the other and uncompressed, as the contest's are."""
    import tifffile

    with atomic_path(path) as temporary:
        if len(bands) == 1:
            tifffile.imwrite(temporary, bands[0], photometric="minisblack", metadata=None)
        else:
            tifffile.imwrite(temporary, bands, photometric="minisblack", planarconfig="separate", metadata=None)


def _write_tables(folder: Path, train: Sequence[Scene], test: Sequence[Scene]) -> None:
    wanted = test or train
    _write_rows(folder / "train_wkt_v4.csv", [row for scene in train for row in scene.rows])
    _write_rows(folder / "solution_wkt.csv", [row for scene in wanted for row in scene.rows])
    with text_writer(folder / "sample_submission.csv") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(DSTL_COLUMNS)
        for scene in wanted:
            rows.writerows((scene.id, label + 1, "MULTIPOLYGON EMPTY") for label in range(len(CLASSES)))
    with text_writer(folder / "grid_sizes.csv") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(("", "Xmax", "Ymin"))
        rows.writerows((scene.id, scene.grid.x_max, scene.grid.y_min) for scene in (*train, *test))


def _write_rows(path: Path, scene_rows: Sequence[TableRow]) -> None:
    with text_writer(path) as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(DSTL_COLUMNS)
        rows.writerows((row.image, row.class_type, row.wkt) for row in scene_rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The door: ``python -m maskloom.contests.dstl.stand_in --polygons DIR --out DIR --images N --scale S``."""
    parser = argparse.ArgumentParser(description="Renders a stand-in of the Dstl data in the published layout.")
    parser.add_argument("--out", type=Path, required=True, help="folder to fill; new or empty")
    parser.add_argument("--polygons", type=Path, help="folder with train_wkt_v4.csv and grid_sizes.csv; else towns")
    parser.add_argument("--images", type=int, default=4, help="how many images")
    parser.add_argument("--test-images", type=int, default=0, help="how many of them get no polygons")
    parser.add_argument("--scale", type=float, default=1.0, help="1 is about 3350×3400 pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--swir", action="store_true", help="write the SWIR bands, too")
    given = parser.parse_args(arguments)
    try:
        write_stand_in(
            given.out, polygons=given.polygons, images=given.images, test_images=given.test_images, scale=given.scale,
            seed=given.seed, swir=given.swir, on_image=lambda done, total: print(f"{done} of {total} images"),
        )  # fmt: skip
    except UserError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
