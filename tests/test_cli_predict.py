"""The door ``maskloom predict``: what users get wrong is one line and exit code 2; damaged images can be left out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from maskloom.cli import main
from maskloom.rasters.georeference import Georeference
from maskloom.rasters.reading import open_raster
from maskloom.rasters.writing import write_geotiff
from maskloom.windows import Window

Predict = Callable[..., tuple[int, str, str]]
PLACE = Georeference("EPSG:32633", (2.0, 0.0, 500_000.0, 0.0, -2.0, 100_000.0))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of one colour photo and one grey photo."""
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0)
    cv2.imwrite(str(folder / "colour.png"), noise.integers(0, 255, (40, 56, 3), np.uint8))
    cv2.imwrite(str(folder / "grey.png"), noise.integers(0, 255, (40, 56), np.uint8))
    return folder


@pytest.fixture
def predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Predict:
    """Runs the command; returns the exit code, what it printed, and its last line of errors."""

    def call(run: Path, images: Path, *options: str, to: str = "png") -> tuple[int, str, str]:
        out = tmp_path / "out"
        arguments = ["predict", run, images, "--out", out, "--to", to, "--device", "cpu", *options]
        monkeypatch.setattr("sys.argv", ["maskloom", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return code, printed.out, (printed.err.splitlines() or [""])[-1]

    return call


def four_channels(photos: Path) -> None:
    tifffile.imwrite(photos / "four.tif", np.zeros((40, 56, 4), np.uint8), photometric="minisblack")


def text_named_png(photos: Path) -> None:
    (photos / "damaged.png").write_text("not a picture")


def cut_off(photos: Path) -> None:
    whole = (photos / "colour.png").read_bytes()
    (photos / "damaged.png").write_bytes(whole[: len(whole) // 2])


def test_what_is_not_there_is_told(predict: Predict, finished_run: Path, photos: Path, tmp_path: Path) -> None:
    half, empty = tmp_path / "half", tmp_path / "empty"
    shutil.copytree(finished_run, half, ignore=shutil.ignore_patterns("ensemble"))
    empty.mkdir()
    cases = [
        (photos, photos, "found no run.json"),
        (half, photos, "without an ensemble"),
        (finished_run, empty, "found none"),
        (finished_run, tmp_path / "nowhere", "found no such path"),
    ]
    for run, images, named in cases:
        code, _, line = predict(run, images)
        assert code == 2 and line.startswith("error: ") and named in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["png", "rle"])
@pytest.mark.parametrize("spoil", [text_named_png, cut_off, four_channels])
def test_a_bad_image_stops_or_is_left_out(
    predict: Predict, finished_run: Path, photos: Path, spoil: Callable[[Path], None], to: str
) -> None:
    spoil(photos)
    code, _, line = predict(finished_run, photos, to=to)
    assert code == 2 and line.startswith("error: ") and ("damaged.png" in line or "four.tif" in line)
    for _ in range(2):  # started again, the counts are the same
        code, printed, line = predict(finished_run, photos, "--skip-bad", to=to)
        assert code == 0, line
        assert printed.startswith("2 predictions in ") and printed.endswith(", 1 left out\n")


def test_nothing_but_bad_images(predict: Predict, finished_run: Path, photos: Path, tmp_path: Path) -> None:
    for path in photos.iterdir():
        path.write_text("not a picture")
    for to in ("png", "rle", "coco"):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        code, printed, _ = predict(finished_run, photos, "--skip-bad", to=to)
        assert code == 0 and printed.startswith("0 predictions") and "2 left out" in printed


def test_rasters_become_rasters_and_polygons_on_the_ground(
    predict: Predict, finished_run: Path, tmp_path: Path
) -> None:
    """The same masks as those of images, where the file says that its pixels lie."""
    pixels = np.random.default_rng(1).integers(0, 255, (3, 96, 128), np.uint8)
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    write_geotiff(scenes / "a.tif", pixels, PLACE)
    out = tmp_path / "out"

    code, printed, _ = predict(finished_run, scenes, "--probabilities", "--uncertainty", to="geotiff")
    assert code == 0 and "1 predictions" in printed
    with open_raster(out / "a.tif") as raster:
        assert raster.georeference == PLACE
        mask = raster.read(Window(0, 0, 96, 128))[0][..., 0]
    assert set(np.unique(mask).tolist()) <= {0, 1, 255}
    assert len(list(out.rglob("*.tif"))) == 3
    shutil.rmtree(out)

    code, _, _ = predict(finished_run, scenes, to="png")
    assert code == 0
    assert np.array_equal(cv2.imread(str(out / "a.png"), cv2.IMREAD_UNCHANGED) > 0, mask == mask.max())
    shutil.rmtree(out)

    code, _, _ = predict(finished_run, scenes, to="geojson")
    assert code == 0 and "EPSG::32633" in (out / "predictions.geojson").read_text()
    shutil.rmtree(out)

    options = ("--min-area", "1", "--min-hole", "4", "--buffer", "0.5", "--simplify", "0.5", "--units", "crs")
    code, _, _ = predict(finished_run, scenes, *options, to="geojson")
    assert code == 0 and (out / "predictions.geojson").is_file()


@pytest.mark.parametrize("to", ["png", "rle", "geotiff"])
def test_images_of_another_kind_are_told_before_any_is_predicted(
    predict: Predict, finished_run: Path, tmp_path: Path, to: str
) -> None:
    scenes, out = tmp_path / "scenes", tmp_path / "out"
    scenes.mkdir()
    pixels = np.random.default_rng(1).integers(0, 255, (4, 48, 64), np.uint8)
    write_geotiff(scenes / "a.tif", pixels[:3], PLACE)
    write_geotiff(scenes / "b.tif", pixels[:3].astype(np.uint16), PLACE)
    write_geotiff(scenes / "c.tif", pixels[:3].astype(np.float32), PLACE)
    write_geotiff(scenes / "d.tif", pixels, PLACE)
    code, _, line = predict(finished_run, scenes, to=to)
    assert code == 2 and not out.exists()
    assert "b.tif: expected uint8 values as the networks were trained on, found uint16; convert the image" in line
    assert "and 2 more files with problems (c.tif, d.tif; --skip-bad leaves" in line
    code, printed, _ = predict(finished_run, scenes, "--skip-bad", to=to)
    assert code == 0 and printed.startswith("1 predictions in ") and printed.endswith(", 3 left out\n")


def test_what_belongs_to_rasters_is_refused_for_images(predict: Predict, finished_run: Path, photos: Path) -> None:
    code, _, error = predict(finished_run, photos, "--simplify", "1", to="png")
    assert code == 2 and "min_hole, buffer, units are for geotiff, geojson, gpkg, fgb, wkt" in error


def write_bands(folder: Path) -> np.ndarray:
    """A scene of three files of one band each, in ``folder/deeper``; returns its pixels 3×H×W."""
    pixels = np.random.default_rng(1).integers(0, 255, (3, 96, 128), np.uint8)
    (folder / "deeper").mkdir(parents=True)
    for name, band in zip("rgb", pixels, strict=True):
        write_geotiff(folder / "deeper" / f"{name}.tif", band[None], PLACE)
    return pixels


def test_scenes_of_several_files_are_named_by_a_table(predict: Predict, finished_run: Path, tmp_path: Path) -> None:
    """The same bytes as of one file with all bands."""
    scenes, out = tmp_path / "scenes", tmp_path / "out"
    pixels = write_bands(scenes)
    table = scenes / "scenes.csv"
    table.write_text("id,image,band,band_2\nsite/one,deeper/r.tif,deeper/g.tif,deeper/b.tif\n")
    code, printed, _ = predict(finished_run, table, "--probabilities", to="geotiff")
    assert code == 0 and printed.startswith("1 predictions")
    found = {path.name: path.read_bytes() for path in (out / "site").glob("*.tif")}
    shutil.rmtree(out)
    write_geotiff(tmp_path / "whole/one.tif", pixels, PLACE)
    assert predict(finished_run, tmp_path / "whole", "--probabilities", to="geotiff")[0] == 0
    assert found == {path.name: path.read_bytes() for path in out.glob("*.tif")} and len(found) == 2


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ("id,image,band\na,deeper/r.tif,deeper/g.tif\n", "expected 3 band(s) for scene 'a' as the networks take"),
        ("id,image,band,band_2\na,deeper/r.tif,deeper/g.tif,gone.tif\n", "gone.tif: no such file, but scene 'a'"),
        ("id,image\n../../a,deeper/r.tif\n", "row 2: id '../../a' cannot name an output file"),
        ("id,image\n/tmp/a,deeper/r.tif\n", "row 2: id '/tmp/a' cannot name an output file"),
        ("name,file\na,deeper/r.tif\n", "with the columns id, image, band, band_2 …"),
    ],
)
def test_mistakes_in_a_table_of_scenes(
    predict: Predict, finished_run: Path, tmp_path: Path, rows: str, named: str
) -> None:
    write_bands(tmp_path / "scenes")
    table = tmp_path / "scenes" / "scenes.csv"
    table.write_text(rows)
    code, _, line = predict(finished_run, table, to="geojson")
    assert code == 2 and line.startswith("error: ") and named in line
    assert not (tmp_path / "out").exists()
