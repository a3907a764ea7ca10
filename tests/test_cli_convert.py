"""The command ``convert``: every mistake is one line and exit code 2, and nothing is left half-written."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import shapely

from maskloom.cli import main
from maskloom.data.image_io import write_png
from maskloom.outputs.convert_target import check_writable
from maskloom.rasters.georeference import Georeference
from maskloom.rasters.writing import write_geotiff

PLACE = Georeference("EPSG:32633", (2.0, 0.0, 500_000.0, 0.0, -2.0, 100_000.0))
ELSEWHERE = Georeference("EPSG:32634", PLACE.transform)
MASK = np.zeros((12, 16), np.uint8)
MASK[2:9, 3:11] = 255


def run(*arguments: str | Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["maskloom", "convert", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def geojson(path: Path, *shapes: object, crs: str | None = "urn:ogc:def:crs:EPSG::32633", image: str = "a") -> Path:
    features = [
        {"type": "Feature", "properties": {"image": image, "class": "roof"}, "geometry": shape} for shape in shapes
    ]
    member = {} if crs is None else {"crs": {"type": "name", "properties": {"name": crs}}}
    path.write_text(json.dumps({"type": "FeatureCollection", **member, "features": features}))
    return path


def box(*bounds: float) -> object:
    return json.loads(shapely.to_geojson(shapely.box(*bounds)))


def on_the_ground(root: Path) -> list[str | Path]:
    return [geojson(root / "t.geojson", box(500_002, 99_980, 500_010, 99_990)), root / "out"]


def on_the_ground_with_a_size(root: Path) -> list[str | Path]:
    return [*on_the_ground(root), "--size", "12x16"]


def longitudes_on_a_png(root: Path) -> list[str | Path]:
    write_png(root / "images" / "a.png", MASK)
    return [geojson(root / "t.geojson", box(15, 0, 15.1, 0.1), crs=None), root / "out", "--like", root / "images"]


def two_crs(root: Path) -> list[str | Path]:
    write_geotiff(root / "masks" / "a.tif", MASK, PLACE)
    write_geotiff(root / "masks" / "b.tif", MASK, ELSEWHERE)
    return [root / "masks", root / "out.geojson"]


def with_and_without_crs(root: Path) -> list[str | Path]:
    write_geotiff(root / "masks" / "a.tif", MASK, PLACE)
    write_png(root / "masks" / "b.png", MASK)
    return [root / "masks", root / "out.geojson"]


def geotiff_without_crs(root: Path) -> list[str | Path]:
    write_png(root / "masks" / "a.png", MASK)
    return [root / "masks", root / "out", "--to", "geotiff"]


def wkt_table(root: Path, text: str) -> list[str | Path]:
    (root / "t.csv").write_text(f'id,class,wkt\na,roof,"{text}"\n')
    return [root / "t.csv", root / "out", "--size", "12x16"]


def invalid_wkt(root: Path) -> list[str | Path]:
    return wkt_table(root, "POLYGON ((1 1, 4 1")


def wkt_of_lines(root: Path) -> list[str | Path]:
    return wkt_table(root, "LINESTRING (1 1, 4 1)")


def truncated_geotiff(root: Path) -> list[str | Path]:
    path = root / "masks" / "a.tif"
    write_geotiff(path, np.random.default_rng(0).integers(0, 2, (600, 600)).astype(np.uint8), PLACE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return [root / "masks", root / "out.geojson", "--foreground"]


def truncated_geojson(root: Path) -> list[str | Path]:
    path = geojson(root / "t.geojson", box(1, 1, 4, 4))
    path.write_text(path.read_text()[:-20])
    return [path, root / "out", "--size", "12x16"]


def unknown_suffix(root: Path) -> list[str | Path]:
    write_png(root / "masks" / "a.png", MASK)
    return [root / "masks", root / "out.shp"]


def unknown_source(root: Path) -> list[str | Path]:
    (root / "t.txt").write_text("a")
    return [root / "t.txt", root / "out"]


def misspelt_kind(root: Path) -> list[str | Path]:
    write_png(root / "masks" / "a.png", MASK)
    return [root / "masks", root / "out", "--to", "geotif"]


def kind_that_does_not_fit(root: Path) -> list[str | Path]:
    write_png(root / "masks" / "a.png", MASK)
    return [root / "masks", root / "out.json", "--to", "geojson"]


def size_unknown(root: Path) -> list[str | Path]:
    (root / "t.csv").write_text("img,rle_mask\na,3 2\n")
    return [root / "t.csv", root / "out"]


def another_size(root: Path) -> list[str | Path]:
    write_png(root / "masks" / "a.png", MASK)
    write_png(root / "images" / "a.png", MASK.T.copy())
    return [root / "masks", root / "out.csv", "--like", root / "images"]


def escaping_name(root: Path) -> list[str | Path]:
    (root / "t.csv").write_text("img,rle_mask\n../../a,3 2\n")
    return [root / "t.csv", root / "out", "--size", "12x16"]


def folder_of_others(root: Path) -> list[str | Path]:
    write_png(root / "masks" / "a.png", MASK)
    (root / "full").mkdir()
    (root / "full" / "letter.txt").write_text("")
    return [root / "masks", root / "full"]


def file_in_place_of_a_folder(root: Path) -> list[str | Path]:
    write_png(root / "masks" / "a.png", MASK)
    (root / "file").write_text("")
    return [root / "masks", root / "file" / "below" / "out"]


def unknown_class(root: Path) -> list[str | Path]:
    (root / "t.csv").write_text("img,class,rle_mask\na,car,3 2\na,tree,9 2\n")
    return [root / "t.csv", root / "out", "--size", "12x16", "--classes", "background,car,bush"]


def unlisted_value(root: Path) -> list[str | Path]:
    write_png(root / "masks" / "a.png", np.array([[0, 1, 2, 7]], np.uint8))
    return [root / "masks", root / "out.csv", "--classes", "background,car,bush"]


BAD: list[tuple[Callable[[Path], list[str | Path]], tuple[str, ...]]] = [
    (on_the_ground, ("EPSG:32633", "--like")),
    (on_the_ground_with_a_size, ("EPSG:32633", "--like")),
    (longitudes_on_a_png, ("EPSG:4326", "--like")),
    (two_crs, ("EPSG:32633", "EPSG:32634", "(b)")),
    (with_and_without_crs, ("EPSG:32633", "none", "(b)")),
    (geotiff_without_crs, ("a", "--like")),
    (invalid_wkt, ("t.csv", "row 2", "POLYGON")),
    (wkt_of_lines, ("t.csv", "row 2", "LineString")),
    (truncated_geotiff, ("a.tif", "cut off")),
    (truncated_geojson, ("t.geojson", "GeoJSON")),
    (unknown_suffix, ("out.shp", ".geojson")),
    (unknown_source, ("t.txt", "expected a folder")),
    (misspelt_kind, ("did you mean 'geotiff'?",)),
    (kind_that_does_not_fit, ("out.json", "coco")),
    (size_unknown, ("--size HEIGHTxWIDTH", "--like")),
    (another_size, ("16×12", "12×16")),
    (escaping_name, ("../../a",)),
    (folder_of_others, ("found other files",)),
    (file_in_place_of_a_folder, ("out: cannot be written", "file: Not a directory")),
    (unknown_class, ("'tree'", "bush")),
    (unlisted_value, ("7", "a.png")),
]


@pytest.mark.parametrize(("spoil", "named"), BAD, ids=[spoil.__name__ for spoil, _ in BAD])
def test_bad_input_is_one_line(
    spoil: Callable[[Path], list[str | Path]],
    named: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = spoil(tmp_path)
    code = run(*arguments, monkeypatch=monkeypatch)
    errors = capsys.readouterr().err
    assert code == 2, errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert errors.strip().endswith(line) and "Traceback" not in errors
    for text in named:
        assert text in line, line
    left = [path for path in tmp_path.rglob("*") if path.name.startswith(".partial-")]
    assert left == [] and not any(Path(tmp_path / name).exists() for name in ("out", "out.csv", "out.geojson"))


@pytest.mark.parametrize("name", ["out", "out.csv", "deep/below/out.geojson"])
def test_what_cannot_be_written_is_told_before_the_work(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that is read-only, whoever asks; nothing is read by then, and nothing is left when it can be written."""
    write_png(tmp_path / "masks" / "a.png", MASK)

    def refused(*, dir: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    with monkeypatch.context() as read_only:
        read_only.setattr("maskloom.outputs.convert_target.tempfile.TemporaryFile", refused)
        read_only.setattr("maskloom.outputs.convert._open_source", lambda *_: pytest.fail("masks were read"))
        assert run(tmp_path / "masks", tmp_path / name, monkeypatch=monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / name}: cannot be written ({tmp_path}: Permission denied)")
    check_writable(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]


def test_a_polygon_outside_the_image_is_cut_off_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = wkt_table(tmp_path, "MULTIPOLYGON (((10 8, 40 8, 40 30, 10 30, 10 8)))")
    assert run(*arguments, monkeypatch=monkeypatch) == 0
    captured = capsys.readouterr()
    assert "1 polygons reach outside their image" in captured.err
    assert captured.out == f"1 images in {tmp_path / 'out'} (png)\n"


def test_self_touching_and_empty_polygons_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text(
        'id,class,wkt\na,1,"POLYGON ((1 1, 5 5, 5 1, 1 5, 1 1))"\n'
        "a,2,MULTIPOLYGON EMPTY\nb,1,GEOMETRYCOLLECTION EMPTY\n"
    )
    assert run(tmp_path / "t.csv", tmp_path / "out", "--size", "12x16", monkeypatch=monkeypatch) == 0
    captured = capsys.readouterr()
    assert "repaired" in captured.err and "empty" in captured.err
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["a.png", "b.png"]


def test_the_command_is_documented(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help", monkeypatch=monkeypatch) == 0
    assert "--like" in capsys.readouterr().out
