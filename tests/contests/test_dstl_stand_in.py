"""The stand-in of the Dstl data: its layout, its truth, its shifts, and that its bands mean something."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest

from maskloom.contests.dstl import open_dstl, recognise
from maskloom.contests.dstl.reflectance import MATERIALS, raw_values
from maskloom.contests.dstl.stand_in import fourier_shifted, main, write_stand_in
from maskloom.contests.dstl.town import SIDE, draw_town
from maskloom.contests.dstl.truth import CLASSES
from maskloom.contests.dstl.water import CCCI, SEARCH, index_map, search
from maskloom.data.image_io import read_image
from maskloom.data.sources.base import DataSettings, DataSource
from maskloom.data.truth import read_truth
from maskloom.errors import UserError
from maskloom.files import read_json

WATER = (6, 7)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dstl") / "data"
    write_stand_in(folder, images=3, test_images=1, scale=0.1, seed=5, swir=True)
    return folder


@pytest.fixture(scope="module")
def source(stand_in: Path) -> DataSource:
    return open_dstl(stand_in, DataSettings())


def test_the_layout_is_the_published_one(stand_in: Path, source: DataSource) -> None:
    assert recognise(stand_in)
    assert [record.id for record in source.records] == ["6010_0_0", "6010_1_3"]
    assert [record.id for record in source.unlabelled] == ["6020_2_1"] and not source.problems
    first = source.records[0]
    shapes = [read_image(path).shape for path in (first.image, *(band.path for band in first.bands))]
    assert shapes == [(335, 340, 3), (84, 85, 8), (335, 340, 1)]
    swir = read_image(stand_in / "sixteen_band" / "6010_0_0_A.tif")
    assert swir.shape == (13, 14, 8) and swir.dtype == np.uint16 and swir.max() > 2047
    pixels = read_image(first.image)
    assert pixels.dtype == np.uint16 and pixels.min() >= 1 and 300 < pixels.max() <= 2047
    with (stand_in / "sample_submission.csv").open() as stream:
        assert sum(1 for _ in csv.reader(stream)) == 11
    with (stand_in / "grid_sizes.csv").open() as stream:
        assert next(csv.reader(stream)) == ["", "Xmax", "Ymin"]
    solution = (stand_in / "solution_wkt.csv").read_text().splitlines()
    assert {row[0] for row in csv.reader(solution)} == {"ImageId", "6020_2_1"}


def test_shifts_are_listed_and_of_parts_of_pixels(stand_in: Path) -> None:
    shifts = read_json(stand_in / "shifts.json")
    assert list(shifts) == ["6010_0_0", "6010_1_3", "6020_2_1"]
    for files in shifts.values():
        assert set(files) == {"A", "M"}
        assert all(0 < abs(files["M"][axis]) <= 2.5 for axis in "xy")
    assert len({shift["M"]["x"] for shift in shifts.values()}) == 3


@pytest.mark.parametrize(("x", "y"), [(1.0, 0.0), (0.0, -2.0), (3.0, 5.0)])
def test_a_shift_by_whole_pixels_is_exact(x: float, y: float) -> None:
    """What lay at (u, v) lies at (u + x, v + y)."""
    band = np.random.default_rng(0).random((21, 30)).astype(np.float32)
    moved = fourier_shifted(band, (x, y))
    inner = moved[5:-5, 5:-5]
    assert np.allclose(inner, np.roll(band, (int(y), int(x)), axis=(0, 1))[5:-5, 5:-5], atol=1e-5)


def test_a_shift_by_parts_of_pixels_moves_a_wave_by_its_phase() -> None:
    rows, columns = np.mgrid[:64, :80]
    wave = (np.cos(np.pi * (columns + 0.5) * 8 / 80) * np.cos(np.pi * (rows + 0.5) * 6 / 64)).astype(np.float32)
    x, y = 0.37, -0.81
    expected = np.cos(np.pi * (columns + 0.5 - x) * 8 / 80) * np.cos(np.pi * (rows + 0.5 - y) * 6 / 64)
    assert np.allclose(fourier_shifted(wave, (x, y)), expected, atol=1e-4)


def test_the_shift_of_m_is_the_true_one(stand_in: Path, source: DataSource) -> None:
    """Moved back, M's green correlates with RGB's better than as it lies, and better than moved the other way."""
    import cv2

    record = source.records[0]
    shift = read_json(stand_in / "shifts.json")[record.id]["M"]
    green = read_image(record.bands[0].path)[:, :, 2].astype(np.float32)
    small = cv2.resize(read_image(record.image)[:, :, 1].astype(np.float32), green.shape[::-1], interpolation=3)

    def correlation(x: float, y: float) -> float:
        return float(np.corrcoef(fourier_shifted(green, (x, y))[4:-4, 4:-4].ravel(), small[4:-4, 4:-4].ravel())[0, 1])

    right = correlation(-shift["x"], -shift["y"])
    assert right > 0.9
    for x, y in (
        (0.0, 0.0),
        (shift["x"], shift["y"]),
        (0.5 - shift["x"], -shift["y"]),
        (-shift["x"], 0.5 - shift["y"]),
    ):
        assert correlation(x, y) < right


def inside_water(source: DataSource) -> np.ndarray:
    """Returns where the first image has its river, without the banks: bool, on the grid of RGB."""
    import cv2

    river = read_truth(source.records[0], source.task, source.coding)[6]
    return cv2.erode(river, np.ones((7, 7), np.uint8)) == 1


def test_bands_have_noise_of_their_own(source: DataSource) -> None:
    pixels = read_image(source.records[0].image).astype(np.float64)
    rough = (pixels[:, 1:-1] - (pixels[:, :-2] + pixels[:, 2:]) / 2)[inside_water(source)[:, 1:-1]]
    assert (rough.std(axis=0) > 3).all()
    assert np.corrcoef(rough.T)[0, 1] < 0.8


def test_indices_mean_something(stand_in: Path, source: DataSource) -> None:
    """Inside a river the contest's CCCI is above its line, on land hardly anywhere; crops have a high NDVI."""
    record = source.records[0]
    shift = read_json(stand_in / "shifts.json")[record.id]["M"]
    m = np.moveaxis(read_image(record.bands[0].path), -1, 0).astype(np.float32)
    m = np.stack([fourier_shifted(band, (-shift["x"], -shift["y"])) for band in m])
    picked = [np.minimum(np.arange(size) * 4 + 2, record.size[axis] - 1) for axis, size in enumerate(m.shape[1:])]
    rows, columns = np.ix_(*picked)
    red = read_image(record.image)[rows, columns, 0]
    bands = {"red": red, "red_edge": m[5], "nir": m[6], "nir2": m[7], "blue": m[1]}
    truth = read_truth(record, source.task, source.coding)[:, rows, columns]
    ccci, ndvi = index_map("dstl_ccci", bands), index_map("ndvi", bands)
    is_river, is_water = inside_water(source)[rows, columns], truth[list(WATER)].any(axis=0)
    assert np.mean(ccci[is_river] > CCCI.above) > 0.8
    assert np.mean(ccci[~is_water] > CCCI.above) < 0.1
    assert np.median(ndvi[truth[5] == 1]) > 0.5 > 0 > np.median(ndvi[is_river])
    values = {name: index_map(name, {band: found / 2047 for band, found in bands.items()}) for name in SEARCH.indices}
    found = search([(values, is_water)])
    assert found is not None and found.jaccard > 0.6


def test_reflectances_by_the_published_lines() -> None:
    """Without noise: all water above the line, all else below, and REI below -1.7 for water alone (11-bit values)."""
    values = raw_values()
    names = ("red", "green", "blue", "", "m_blue", "", "", "m_red", "red_edge", "nir", "nir2")
    bands = {name: values[:, column] for column, name in enumerate(names) if name}
    is_water = np.array(["water" in name for name in MATERIALS])
    assert np.array_equal(index_map("dstl_ccci", bands) > CCCI.above, is_water)
    scaled = {"nir2": bands["nir2"] / 2047, "blue": bands["m_blue"] / 2047}
    assert np.array_equal(index_map("dstl_rei", scaled) < -1.7, is_water)
    assert values[:, :12].max() < 2047 and values.max() < 16383


def test_towns_are_valid_and_inside() -> None:
    import shapely

    with_river = draw_town(np.random.default_rng(0))
    assert all(with_river[label] for label in range(len(CLASSES)))
    for label, polygons in with_river.items():
        whole = shapely.multipolygons(polygons)
        assert whole.is_valid, CLASSES[label]
        left, top, right, bottom = whole.bounds
        assert min(left, top) >= 0 and max(right, bottom) <= SIDE
    dry = draw_town(np.random.default_rng(0), river=False, ponds=0)
    assert not dry[6] and not dry[7] and dry[0]


def test_the_same_seed_gives_the_same_files_and_a_finished_folder_is_left_alone(tmp_path: Path) -> None:
    for name in ("one", "other"):
        write_stand_in(tmp_path / name, images=1, scale=0.02, seed=3)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 9
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes(), file
    heard: list[int] = []
    write_stand_in(tmp_path / "one", images=1, scale=0.02, seed=3, on_image=lambda done, _: heard.append(done))
    assert not heard
    with pytest.raises(UserError, match="found something else"):
        write_stand_in(tmp_path / "one", images=1, scale=0.02, seed=4)


def test_given_polygons_are_rendered_and_kept(tmp_path: Path, stand_in: Path) -> None:
    given, out = tmp_path / "given", tmp_path / "out"
    given.mkdir()
    (given / "train_wkt_v4.csv.gz").write_bytes(gzip.compress((stand_in / "train_wkt_v4.csv").read_bytes()))
    (given / "grid_sizes.csv").write_bytes((stand_in / "grid_sizes.csv").read_bytes())
    main(["--polygons", str(given), "--out", str(out), "--images", "2", "--scale", "0.02"])
    assert (out / "train_wkt_v4.csv").read_text() == (stand_in / "train_wkt_v4.csv").read_text()
    again = open_dstl(out, DataSettings())
    assert [record.id for record in again.records] == ["6010_0_0", "6010_1_3"]
    assert again.records[0].size == (67, 68)
    with pytest.raises(UserError, match="polygons of 3 images, found 2"):
        write_stand_in(tmp_path / "more", polygons=given, images=3, scale=0.02)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"images": 0}, "at least 1 image"),
        ({"images": 2, "test_images": 2}, "fewer for testing"),
        ({"scale": 0.001}, "a scale of 0.01 to 2"),
        ({"polygons": Path("nowhere")}, "expected train_wkt_v4.csv or"),
    ],
)
def test_settings_that_cannot_be_met(tmp_path: Path, settings: dict[str, object], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        write_stand_in(tmp_path / "out", **settings)  # type: ignore[arg-type]


def test_the_door_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--out", str(tmp_path / "out"), "--scale", "9"])
    assert caught.value.code == 2 and "a scale of" in capsys.readouterr().err
