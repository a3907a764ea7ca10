"""Images of several files each, named by patterns: on one grid, with polygons or masks, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from shapely import box

from maskloom.data.record_images import read_record_image
from maskloom.data.sources.base import DataSettings, DataSource
from maskloom.data.sources.folder import recognise as is_folder
from maskloom.data.sources.polygons import open_polygons
from maskloom.data.sources.polygons import recognise as has_polygons
from maskloom.data.sources.raster_folder import open_stacks
from maskloom.data.truth import read_sample, read_truth
from maskloom.encodings.vector_files import Feature
from maskloom.errors import BadFile, UserError
from maskloom.outputs.vectors import write_features
from maskloom.rasters.georeference import Georeference, to_crs
from maskloom.rasters.writing import write_geotiff
from maskloom.records import IGNORE, BandFile
from maskloom.registry import open_source

SIZE = (12, 16)
"""At 10 m; half of it at 20 m."""
NORTH = Georeference("EPSG:32633", (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0))
SOUTH = Georeference("EPSG:32633", (10.0, 0.0, 500_000.0, 0.0, -10.0, 4_900_000.0))
PLACES = {"north": NORTH, "south": SOUTH}
BANDS: list[object] = ["<id>/B02.tif", "<id>/B03.tif", {"file": "<id>/B11.tif", "resampling": "nearest"}]


def coarser(place: Georeference, factor: float = 2.0) -> Georeference:
    a, _, c, _, e, f = place.transform
    return Georeference(place.crs, (factor * a, 0.0, c, 0.0, factor * e, f))


def values(seed: int, size: tuple[int, int] = SIZE, count: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 10_000, (count, *size)).astype(np.uint16)


def write(path: Path, pixels: np.ndarray, place: Georeference | None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_geotiff(path, pixels, place)
    return path


def scenes(root: Path, places: Mapping[str, Georeference | None] = PLACES) -> Path:
    """Two bands at 10 m and one at 20 m of every scene, in a folder each, with a picture that is no band."""
    for number, (name, place) in enumerate(places.items()):
        half = (SIZE[0] // 2, SIZE[1] // 2)
        write(root / name / "B02.tif", values(number), place)
        write(root / name / "B03.tif", values(number + 10), place)
        write(root / name / "B11.tif", values(number + 20, half), None if place is None else coarser(place))
        write(root / name / "TCI.tif", values(number, count=3).astype(np.uint8), place)
    return root


def stacked(number: int) -> np.ndarray:
    """What the scene of that number holds on the grid at 10 m, H×W×3."""
    half = values(number + 20, (SIZE[0] // 2, SIZE[1] // 2))[0]
    return np.stack([values(number)[0], values(number + 10)[0], half.repeat(2, 0).repeat(2, 1)], axis=2)


def fields(path: Path) -> Path:
    """A field in the upper left of each scene, in pixels 2…7 across and 1…5 down at 10 m."""
    shapes = [Feature(to_crs([box(2, 1, 7, 5)], place)[0], "", "") for place in PLACES.values()]
    write_features(path, shapes, crs="EPSG:32633")
    return path


def mask(left: int = 2, top: int = 1, right: int = 7, bottom: int = 5) -> np.ndarray:
    labels = np.zeros(SIZE, np.uint8)
    labels[top:bottom, left:right] = 1
    return labels


def settings(**stated: object) -> DataSettings:
    return DataSettings.model_validate({"bands": BANDS} | stated)


def problem_of(path: Path, **stated: object) -> str:
    with pytest.raises(UserError) as caught:
        open_source(path, settings(**stated))
    return str(caught.value)


# What is there


def test_bands_of_two_resolutions_with_polygons(tmp_path: Path) -> None:
    fields(scenes(tmp_path) / "fields.geojson")
    assert has_polygons(tmp_path, settings())
    source = open_polygons(tmp_path, settings())
    assert [record.id for record in source.records] == ["north", "south"]
    for number, record in enumerate(source.records):
        assert (record.image.name, record.size) == ("B02.tif", SIZE)
        assert [(band.path.name, band.resampling) for band in record.bands] == [
            ("B03.tif", "bicubic"), ("B11.tif", "nearest"),
        ]  # fmt: skip
        image = read_record_image(record)
        assert image.dtype == np.uint16 and np.array_equal(image, stacked(number))
        assert np.array_equal(read_truth(record, source.task, source.coding), mask())
    assert any("a stack of 3 files with 3 bands (1 + 1 + 1), on the grid of the first" in note for note in source.notes)
    assert any(
        "2 images are no files that data.bands names and were passed over: north/TCI.tif" in note
        for note in source.notes
    )
    assert DataSource.from_json(source.to_json(), tmp_path) == source


def test_the_first_file_gives_the_grid(tmp_path: Path) -> None:
    fields(scenes(tmp_path) / "fields.geojson")
    source = open_polygons(tmp_path, settings(bands=["<id>/B11.tif", "<id>/B02.tif"]))
    record = source.records[0]
    assert record.size == (6, 8)
    image = read_record_image(record)
    assert np.array_equal(image[..., 0], values(20, (6, 8))[0])
    # Pixel centres of the field at 20 m: 1…3.5 across and 0.5…2.5 down.
    expected = np.zeros((6, 8), np.uint8)
    expected[1:2, 1:3] = 1
    found = read_truth(record, source.task, source.coding)
    assert found[1, 1:3].all() and found.sum() in (2, 4, 6) and not found[4:].any() and not found[:, 4:].any()


@pytest.mark.parametrize("images", ["images", ""])
def test_masks_in_a_folder_of_their_own(tmp_path: Path, images: str) -> None:
    scenes(tmp_path / images)
    for name, place in PLACES.items():
        write(tmp_path / "masks" / f"{name}_mask.tif", mask(), place)
    assert is_folder(tmp_path, settings())
    source = open_source(tmp_path, settings())
    assert source.layout == "folder" and [record.id for record in source.records] == ["north", "south"]
    for number, record in enumerate(source.records):
        sample = read_sample(record, source.task, source.coding)
        assert np.array_equal(sample.image, stacked(number)) and np.array_equal(sample.labels, mask())


def test_masks_beside_the_bands(tmp_path: Path) -> None:
    scenes(tmp_path)
    write(tmp_path / "north" / "mask.tif", mask(), NORTH)
    write(tmp_path / "run" / "north" / "mask.tif", mask(), NORTH)
    (tmp_path / "run" / "run.json").touch()  # what a run leaves is no data
    source = open_source(tmp_path, settings(masks="<id>/mask.tif"))
    assert source.layout == "folder" and [record.id for record in source.records] == ["north"]
    assert [record.id for record in source.unlabelled] == ["south"] and len(source.unlabelled[0].bands) == 2
    assert np.array_equal(read_sample(source.records[0], source.task, source.coding).labels, mask())
    assert DataSource.from_json(source.to_json(), tmp_path) == source


def test_files_side_by_side_and_sub_folders(tmp_path: Path) -> None:
    for number, (name, place) in enumerate(PLACES.items()):
        write(tmp_path / "images" / "may" / f"{name}.tif", values(number, count=3), place)
        write(tmp_path / "images" / "may" / f"{name}_B05.tif", values(number, (6, 8)), coarser(place))
        write(tmp_path / "masks" / "may" / f"{name}.tif", mask(), place)
    source = open_source(tmp_path, settings(bands=["<id>.tif", "<id>_B05.tif"], group="folder"))
    assert [(record.id, record.group) for record in source.records] == [("may/north", "may"), ("may/south", "may")]
    assert read_record_image(source.records[0]).shape == (*SIZE, 4)


def test_masks_are_no_images_of_a_pattern_that_fits_them(tmp_path: Path) -> None:
    for name, place in PLACES.items():
        write(tmp_path / f"{name}.tif", values(1, count=3), place)
        write(tmp_path / "masks" / f"{name}.tif", mask(), place)
    source = open_source(tmp_path, settings(bands=["<id>.tif"]))
    assert [record.id for record in source.records] == ["north", "south"] and not source.unlabelled


def test_training_and_validation_folders(tmp_path: Path) -> None:
    for split, name in (("train", "north"), ("val", "south")):
        scenes(tmp_path / split / "images", {name: PLACES[name]})
        write(tmp_path / split / "masks" / f"{name}.tif", mask(), PLACES[name])
    source = open_source(tmp_path, settings())
    assert [(record.id, record.split) for record in source.records] == [("train/north", "train"), ("val/south", "val")]
    assert all(len(record.bands) == 2 for record in source.records)


def test_one_file_each_is_named_too(tmp_path: Path) -> None:
    fields(scenes(tmp_path) / "fields.geojson")
    source = open_polygons(tmp_path, settings(bands=["<id>/TCI.tif"]))
    assert [(record.id, record.bands) for record in source.records] == [("north", ()), ("south", ())]


def test_files_that_say_nothing_of_where_they_lie_cover_the_same_ground(tmp_path: Path) -> None:
    scenes(tmp_path / "images", dict.fromkeys(PLACES))
    for name in PLACES:
        write(tmp_path / "masks" / f"{name}.tif", mask(), None)
    source = open_source(tmp_path, settings())
    assert np.array_equal(read_record_image(source.records[1]), stacked(1))


def test_ground_that_one_file_does_not_cover_counts_nowhere(tmp_path: Path) -> None:
    scenes(tmp_path)
    east = Georeference(NORTH.crs, (20.0, 0.0, 500_080.0, 0.0, -20.0, 5_000_000.0))
    write(tmp_path / "north" / "B11.tif", values(20, (6, 8)), east)
    fields(tmp_path / "fields.geojson")
    source = open_polygons(tmp_path, settings())
    found = read_truth(source.records[0], source.task, source.coding)
    expected = mask()
    expected[:, :4] = IGNORE  # 80 m, less the two pixels of 20 m that are mirrored at the file's edge
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("beside", [False, True])
def test_masks_of_a_folder_like_that_of_training_are_no_scenes(tmp_path: Path, beside: bool) -> None:
    scenes(tmp_path)
    for name, place in PLACES.items():
        write(tmp_path / (f"{name}/mask.tif" if beside else f"masks/{name}/B02.tif"), mask(), place)
    source = open_stacks(tmp_path, settings(masks="<id>/mask.tif" if beside else None))
    assert [record.id for record in source.unlabelled] == ["north", "south"]


def test_new_scenes_are_stacked_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for images in ("", "images"):
        root = tmp_path / f"new{images}"
        scenes(root / images)
        source = open_stacks(root, settings())
        assert (source.layout, source.records, len(source.unlabelled)) == ("stacks", (), 2)
        assert np.array_equal(read_record_image(source.unlabelled[1]), stacked(1))
    (tmp_path / "new" / "north" / "B03.tif").unlink()
    with pytest.raises(BadFile, match=r"north/B03\.tif: no such file, but image 'north' needs it"):
        open_stacks(tmp_path / "new", settings())
    monkeypatch.setattr("maskloom.data.image_io.MAX_PIXELS", 10)  # of images that are decoded whole; these are not
    left = open_stacks(tmp_path / "new", settings(skip_bad=True))
    assert [record.id for record in left.unlabelled] == ["south"] and len(left.problems) == 1
    with pytest.raises(UserError, match=r"expected files named as data\.bands says"):
        open_stacks(tmp_path / "new" / "south", settings())


# What is refused


def test_a_missing_band_is_named_with_its_image(tmp_path: Path) -> None:
    fields(scenes(tmp_path) / "fields.geojson")
    (tmp_path / "south" / "B11.tif").unlink()
    found = problem_of(tmp_path)
    assert found == f"{tmp_path}/south/B11.tif: no such file, but image 'south' needs it (data.bands); restore it"
    source = open_source(tmp_path, settings(skip_bad=True))
    assert [record.id for record in source.records] == ["north"] and not source.unlabelled
    assert [str(problem) for problem in source.problems][:1] == [found]
    (tmp_path / "north" / "B02.tif").unlink()  # the one that gives the grid
    assert f"{tmp_path}/north/B02.tif: no such file, but image 'north' needs it" in problem_of(tmp_path)


def test_a_missing_band_leaves_its_mask_no_problem_of_its_own(tmp_path: Path) -> None:
    scenes(tmp_path / "images")
    for name, place in PLACES.items():
        write(tmp_path / "masks" / f"{name}.tif", mask(), place)
    (tmp_path / "images" / "south" / "B11.tif").unlink()
    assert problem_of(tmp_path).endswith(
        "south/B11.tif: no such file, but image 'south' needs it (data.bands); restore it"
    )
    source = open_source(tmp_path, settings(skip_bad=True))
    assert [record.id for record in source.records] == ["north"] and len(source.problems) == 1


def test_two_files_for_one_place(tmp_path: Path) -> None:
    fields(scenes(tmp_path) / "fields.geojson")
    write(tmp_path / "north" / "B1x.tif", values(3), NORTH)
    found = problem_of(tmp_path, bands=["<id>/B02.tif", "<id>/B1*.tif"])
    assert found.startswith(f"{tmp_path}/north/B1x.tif: a second file for one place of image 'north'")


def test_another_number_of_bands(tmp_path: Path) -> None:
    fields(scenes(tmp_path, PLACES | {"west": NORTH}) / "fields.geojson")
    write(tmp_path / "south" / "B03.tif", values(3, count=2), SOUTH)
    assert problem_of(tmp_path) == (
        f"{tmp_path}/south/B03.tif: expected 1 band(s) for image 'south', as {tmp_path}/north/B03.tif has for 'north', "
        "found 2; all images have the same bands"
    )
    assert len(open_source(tmp_path, settings(skip_bad=True)).records) == 2


@pytest.mark.parametrize("all_of_them", [True, False])
def test_a_grid_without_a_crs_under_polygons(tmp_path: Path, all_of_them: bool) -> None:
    fields(scenes(tmp_path, PLACES | ({"north": None} if all_of_them else {})) / "fields.geojson")
    write(tmp_path / "north" / "B02.tif", values(0), None)
    assert problem_of(tmp_path).startswith(
        f"{tmp_path}/north/B02.tif: expected a raster with a CRS as the grid of image 'north', found none; give it"
    )


def test_a_file_of_other_ground_or_of_another_crs(tmp_path: Path) -> None:
    fields(scenes(tmp_path) / "fields.geojson")
    write(tmp_path / "north" / "B11.tif", values(20, (6, 8)), coarser(SOUTH))
    found = problem_of(tmp_path)
    assert found.startswith(f"{tmp_path}/north/B11.tif: covers no ground of {tmp_path}/north/B02.tif")
    write(tmp_path / "north" / "B11.tif", values(20, (6, 8)), Georeference("EPSG:32632", coarser(NORTH).transform))
    assert "expected the CRS of" in problem_of(tmp_path) and "found EPSG:32632" in problem_of(tmp_path)
    write(tmp_path / "north" / "B11.tif", values(20, (6, 8)), None)
    assert f"{tmp_path}/north/B11.tif: says nothing of where it lies" in problem_of(tmp_path)


def test_a_file_that_is_cut_off_or_none(tmp_path: Path) -> None:
    fields(scenes(tmp_path) / "fields.geojson")
    whole = (tmp_path / "north" / "B11.tif").read_bytes()
    (tmp_path / "north" / "B11.tif").write_bytes(whole[:60])
    assert problem_of(tmp_path).startswith(f"{tmp_path}/north/B11.tif: expected a whole TIFF raster")


def test_patterns_that_fit_nothing_and_layouts_that_need_none(tmp_path: Path) -> None:
    fields(scenes(tmp_path) / "fields.geojson")
    assert problem_of(tmp_path, bands=["<id>_B02.tif"]).startswith(
        f"{tmp_path}: expected files named as data.bands says (<id>_B02.tif), found north/B02.tif, north/B03.tif"
    )
    table = tmp_path / "t" / "images.csv"
    table.parent.mkdir()
    table.write_text('id,image,wkt\na,../south/TCI.tif,"POLYGON ((0 0, 3 0, 3 3, 0 0))"\n')
    found = problem_of(table)
    assert "data.bands: expected a folder of rasters with masks or polygons, found the layout table" in found


def test_a_mask_of_another_grid(tmp_path: Path) -> None:
    scenes(tmp_path)
    for name, place in PLACES.items():
        write(tmp_path / name / "mask.tif", mask()[::2, ::2], coarser(place))
    found = problem_of(tmp_path, masks="<id>/mask.tif")
    assert "north: the mask is 8×6 (width×height), expected the image's 16×12" in found
    source = open_source(tmp_path, settings(masks="<id>/mask.tif", bands=["<id>/B11.tif", "<id>/B02.tif"]))
    assert [record.size for record in source.records] == [(6, 8), (6, 8)]
    assert source.records[0].bands == (BandFile(path=tmp_path / "north" / "B02.tif"),)
