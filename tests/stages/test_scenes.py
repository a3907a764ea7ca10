"""Scenes through a run: what is in the files, and that interruptions, order and company change none of their bytes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from tiny_scenes import BINARY, LAYERS, PLACE, SIDE, THREE, Known, blobs, write_run, write_scene

from maskloom.encodings.outlines import outlines
from maskloom.encodings.polygons import rasterize_wkt
from maskloom.encodings.vector_files import read_features
from maskloom.errors import BadFile, UserError
from maskloom.files import read_json, write_json
from maskloom.inference import blocks as blocks_room
from maskloom.inference.predictor import InferenceSettings
from maskloom.progress import Silent
from maskloom.rasters.georeference import Georeference, to_pixels
from maskloom.rasters.writing import write_geotiff
from maskloom.records import BandFile, Task
from maskloom.stages import scenes as stage
from maskloom.stages.claims import Claims
from maskloom.stages.images import Prediction
from maskloom.stages.scene_files import uncertainty_of

NUM_BLOCKS = 12  # of a scene of 150×210, of which one holds no data at all
NUM_FILLED = 11


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_room, "SIDES", (SIDE,))
    monkeypatch.setattr(stage, "PAUSE_SECONDS", 0.01)


class Heard(Silent):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[tuple[int, int]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def advance(self, done: int, total: int, detail: str = "", *, seconds_left: float | None = None) -> None:
        self.steps.append((done, total))


def predicted(
    tmp_path: Path, known: Known, *, to: str = "geotiff", out: str = "out", progress: Any = None, **options: Any
) -> Prediction:
    opened: Any = known
    return stage.predict_scenes(
        write_run(tmp_path / "run", **options.pop("recipe", {})), options.pop("scenes", tmp_path / "scenes"),
        out=tmp_path / out, to=to, opened=lambda: opened, progress=progress or Silent(), **options,
    )  # fmt: skip


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read()


def digests(folder: Path) -> dict[str, str]:
    """Returns the checksum of every file that is meant for the user."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if ".partial" in path.name or path.suffix == ".map"]


# What is written -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_whole", [False, True])
def test_what_is_read_around_blocks_is_what_networks_need(tmp_path: Path, is_whole: bool) -> None:
    """Those that see no tiles are given all of a scene as small as this one."""
    size = write_scene(tmp_path / "scenes/a.tif").shape[1:]
    known = Known()
    known.recipe.inference = InferenceSettings(whole_pixels=size[0] * size[1] - (not is_whole))
    predicted(tmp_path, known)
    assert known.rasters == {size} and (known.shown == {size}) == is_whole


def test_labels_probabilities_and_uncertainty(tmp_path: Path) -> None:
    pixels = write_scene(tmp_path / "scenes/a.tif")
    heard = Heard()
    done = predicted(tmp_path, Known(), probabilities=True, uncertainty=True, progress=heard)
    assert done == Prediction(out=tmp_path / "out", num_written=1)
    is_valid = (pixels != 0).any(axis=0)
    expected = np.where(is_valid, pixels[0] >= 128, 255)
    assert np.array_equal(read(tmp_path / "out/a.tif")[0], expected)
    assert np.array_equal(read(tmp_path / "out/a.probabilities.tif")[0], pixels[0])
    sure = np.abs(2.0 * pixels[0] - 255)
    assert np.array_equal(read(tmp_path / "out/a.uncertainty.tif")[0], np.where(is_valid, 255 - sure, 0))
    for name in ("a.tif", "a.probabilities.tif", "a.uncertainty.tif"):
        with rasterio.open(tmp_path / "out" / name) as written, rasterio.open(tmp_path / "scenes/a.tif") as scene:
            assert (written.crs, written.transform, written.shape) == (scene.crs, scene.transform, scene.shape)
            assert written.dtypes == ("uint8",) and written.nodata == (255 if name == "a.tif" else None)
    assert heard.steps[-1] == (NUM_BLOCKS, NUM_BLOCKS)
    assert leftovers(tmp_path / "out") == [] and not (tmp_path / "out/.blocks").exists()


@pytest.mark.parametrize("task", [THREE, LAYERS])
def test_several_classes(tmp_path: Path, task: Task) -> None:
    pixels = write_scene(tmp_path / "scenes/sub/a.tif", nodata=None)
    predicted(tmp_path, Known(task), probabilities=True, uncertainty=True)
    labels = read(tmp_path / "out/sub/a.tif")
    maps = pixels[: task.num_maps].astype(int)
    if task.kind == "multilabel":
        assert np.array_equal(labels, maps >= 128)
        expected = 255 - abs(2 * maps - 255)
    else:
        assert np.array_equal(labels[0], maps.argmax(axis=0))
        ordered = np.sort(maps, axis=0)
        expected = 255 - (ordered[-1:] - ordered[-2:-1])
    assert np.array_equal(read(tmp_path / "out/sub/a.probabilities.tif"), maps)
    assert np.array_equal(read(tmp_path / "out/sub/a.uncertainty.tif"), expected)


def test_uncertainty_by_hand() -> None:
    one = np.array([[[0, 64, 127, 128, 255]]], np.uint8)
    assert uncertainty_of(one, BINARY).tolist() == [[[0, 128, 254, 254, 0]]]
    three = np.array([[[255, 100]], [[0, 100]], [[0, 55]]], np.uint8)
    assert uncertainty_of(three, THREE).tolist() == [[[0, 255]]]


def test_blocks_without_data_are_not_predicted(tmp_path: Path) -> None:
    pixels = blobs((256, 256), 0)
    pixels[:, 10:] = 0
    write_scene(tmp_path / "scenes/a.tif", pixels=pixels)
    known = Known()
    predicted(tmp_path, known)
    assert known.num_asked == np.count_nonzero([pixels[0, :64, at : at + 64].any() for at in range(0, 256, 64)])
    assert (read(tmp_path / "out/a.tif")[0, 10:] == 255).all()


@pytest.mark.parametrize("suffix", ["geojson", "gpkg", "fgb"])
def test_polygons_lie_on_the_ground(tmp_path: Path, suffix: str) -> None:
    masks = {
        name: write_scene(tmp_path / f"scenes/{name}.tif", seed=seed)[0] >= 128 for seed, name in enumerate(("a", "b"))
    }
    write_scene(tmp_path / "scenes/dark.tif", pixels=np.full((3, 70, 70), 9, np.uint8))
    predicted(tmp_path, Known(), to=suffix, probabilities=True)
    crs, features = read_features(tmp_path / f"out/predictions.{suffix}")
    assert crs == "EPSG:32633"
    for name, mask in masks.items():
        mine = [feature for feature in features if feature.image == name]
        assert {feature.class_name for feature in mine} == {"bright"}
        parts = shapely.get_parts([feature.geometry for feature in mine]).tolist()
        found = to_pixels(parts, PLACE)
        assert shapely.normalize(shapely.multipolygons(found)).equals(shapely.multipolygons(outlines(mask)))
        assert len(found) == len(outlines(mask)) and any(len(polygon.interiors) for polygon in found)
    (nothing,) = (feature for feature in features if feature.image == "dark")
    assert nothing.geometry.is_empty
    assert sorted(digests(tmp_path / "out")) == [
        "a.probabilities.tif", "b.probabilities.tif", "dark.probabilities.tif", f"predictions.{suffix}",
    ]  # fmt: skip


def test_classes_of_polygons(tmp_path: Path) -> None:
    pixels = write_scene(tmp_path / "scenes/a.tif", place=None)
    heard = Heard()
    predicted(tmp_path, Known(THREE), to="geojson", progress=heard)
    assert len(heard.notes) == 1 and "in pixels" in heard.notes[0]
    crs, features = read_features(tmp_path / "out/predictions.geojson")
    assert crs is None and {feature.class_name for feature in features} == {"red", "green"}
    labels = np.where((pixels != 0).any(axis=0), pixels.argmax(axis=0), 255)
    for number, name in ((1, "red"), (2, "green")):
        area = sum(feature.geometry.area for feature in features if feature.class_name == name)
        assert area == np.count_nonzero(labels == number)


def test_polygons_are_cleaned(tmp_path: Path) -> None:
    mask = write_scene(tmp_path / "scenes/a.tif", place=None)[0] >= 128
    predicted(tmp_path, Known(), to="geojson", min_area=200.0, simplify=3.0)
    _, features = read_features(tmp_path / "out/predictions.geojson")
    assert 0 < len(features) <= sum(polygon.area >= 200 for polygon in outlines(mask))
    assert all(feature.geometry.is_valid for feature in features)


def test_tables_of_wkt(tmp_path: Path) -> None:
    mask = write_scene(tmp_path / "scenes/a.tif")[0] >= 128
    write_scene(tmp_path / "scenes/dark.tif", pixels=np.full((3, 70, 70), 9, np.uint8))
    predicted(tmp_path, Known(), to="wkt")
    crs, rows = read_features(tmp_path / "out/predictions.csv.gz")
    assert crs is None and [(row.image, row.class_name) for row in rows] == [("a", "bright"), ("dark", "bright")]
    assert np.array_equal(rasterize_wkt(rows[0].geometry.wkt, mask.shape), mask) and rows[1].geometry.is_empty
    (tmp_path / "grid.csv").write_text("ImageId,Xmax,Ymin\na,0.009,-0.009\ndark,0.009,-0.009\n")
    predicted(tmp_path, Known(), to="wkt", out="in_grid", grid=tmp_path / "grid.csv")
    _, scaled = read_features(tmp_path / "in_grid/predictions.csv.gz")
    right = np.flatnonzero(mask.any(axis=0)).max() + 1
    assert scaled[0].geometry.bounds[2] == pytest.approx(right * 0.009 / (210 * 210 / 211))
    (tmp_path / "grid.csv").write_text("ImageId,Xmax,Ymin\na,0.009,-0.009\n")
    with pytest.raises(BadFile, match=r"grid\.csv: has no row for scene 'dark'"):
        predicted(tmp_path, Known(), to="wkt", out="again", grid=tmp_path / "grid.csv")


def test_further_files_of_a_scene(tmp_path: Path) -> None:
    pixels = blobs((150, 210), 0)
    folder = tmp_path / "scenes"
    folder.mkdir()
    write_geotiff(folder / "a.tif", pixels[0], PLACE)
    write_geotiff(folder / "a_more.tif", pixels[1:], PLACE)
    further = {"a": (BandFile(path=folder / "a_more.tif", resampling="nearest"),)}
    done = predicted(tmp_path, Known(LAYERS), bands=further)
    assert done.num_written == 1 and np.array_equal(read(tmp_path / "out/a.tif"), pixels[:2] >= 128)
    with pytest.raises(UserError, match="did you mean 'a'"):
        predicted(tmp_path, Known(LAYERS), bands={"aa": further["a"]}, out="other")


# Interrupted, shuffled, shared ---------------------------------------------------------------------------------------


def stop_after(number: int) -> Callable[[int], None]:
    def on_block(count: int) -> None:
        if count == number:
            raise KeyboardInterrupt

    return on_block


@pytest.mark.parametrize("to", ["geotiff", "geojson", "wkt"])
def test_interruptions_and_order_change_nothing(tmp_path: Path, to: str) -> None:
    for seed, name in enumerate(("a", "b")):
        write_scene(tmp_path / f"scenes/{name}.tif", seed=seed)
    whole = Known()
    predicted(tmp_path, whole, to=to, uncertainty=True)
    counts = []
    for shuffle, number in ((None, 5), (1, 3), (2, 0)):
        stopped = Known(on_block=stop_after(number))
        with pytest.raises(KeyboardInterrupt):
            predicted(tmp_path, stopped, to=to, uncertainty=True, out="again", shuffle=shuffle)
        counts.append(stopped.num_asked)
    last = Known()
    predicted(tmp_path, last, to=to, uncertainty=True, out="again", shuffle=3)
    assert digests(tmp_path / "again") == digests(tmp_path / "out")
    assert counts == [5, 3, 0] and last.num_asked < whole.num_asked
    assert leftovers(tmp_path / "again") == []


def test_a_kill_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scene(tmp_path / "scenes/a.tif")
    predicted(tmp_path, Known())
    with monkeypatch.context() as killed:
        killed.setattr(stage.SceneWriter, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            predicted(tmp_path, Known(), out="again")
    (tmp_path / "again/.partial-x.tif").write_text("what a killed process leaves")
    known = Known()
    predicted(tmp_path, known, out="again")
    assert known.num_asked == 0
    assert digests(tmp_path / "again") == digests(tmp_path / "out") and leftovers(tmp_path / "again") == []


def test_a_damaged_block_is_named_and_predicted_again(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes/a.tif")
    predicted(tmp_path, Known())
    with pytest.raises(KeyboardInterrupt):
        predicted(tmp_path, Known(on_block=stop_after(7)), out="again")
    block = max((tmp_path / "again").rglob("*.map"), key=lambda path: path.stat().st_size)
    content = bytearray(block.read_bytes())
    content[len(content) // 2] ^= 16
    block.write_bytes(content)
    known, heard = Known(), Heard()
    predicted(tmp_path, known, out="again", progress=heard)
    assert 1 < known.num_asked < NUM_FILLED
    assert [note for note in heard.notes if str(block) in note] == [f"damaged, and predicted again: {block}"]
    assert digests(tmp_path / "again") == digests(tmp_path / "out") and leftovers(tmp_path / "again") == []


def test_what_is_finished_is_not_done_again(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes/a.tif")
    write_scene(tmp_path / "scenes/b.tif", seed=1)
    predicted(tmp_path, Known())
    again = Known()
    assert predicted(tmp_path, again).num_written == 2 and again.num_asked == 0
    (tmp_path / "out/a.tif").unlink()
    write_scene(tmp_path / "scenes/b.tif", seed=2)
    predicted(tmp_path, again)
    assert again.num_asked == 2 * NUM_FILLED
    write_scene(tmp_path / "scenes/b.tif", seed=2)
    labels = read(tmp_path / "out/b.tif")[0]
    assert np.array_equal(labels == 1, blobs((150, 210), 2)[0] >= 128)
    more = Known()
    predicted(tmp_path, more, uncertainty=True)  # other files are asked for
    assert more.num_asked == 2 * NUM_FILLED and (tmp_path / "out/a.uncertainty.tif").is_file()


@pytest.mark.parametrize(
    "marker",
    [b"{}", b"[]", b"{", b'{"left_out": 3}', b'{"left_out": {"a": 3}, "files": {}}', b"\xff\xff", b"", b"flipped"],
)
def test_a_damaged_marker_has_the_scene_predicted_again(tmp_path: Path, marker: bytes) -> None:
    write_scene(tmp_path / "scenes/a.tif")
    predicted(tmp_path, Known())
    before = digests(tmp_path / "out")
    (path,) = (tmp_path / "out/.scenes").glob("*.json")
    written = path.read_bytes()
    # One bit of what no stamp tells: without a checksum, the scene would be left out.
    flipped = written.replace(b'"left_out": {}', b'"left_out": {"a": {"path": "a.tif", "reason": "damaged"}}')
    path.write_bytes(flipped if marker == b"flipped" else marker)
    known = Known()
    assert predicted(tmp_path, known).num_written == 1 and known.num_asked == NUM_FILLED
    assert digests(tmp_path / "out") == before and path.stat().st_size == len(written)
    assert predicted(tmp_path, known).num_written == 1 and known.num_asked == NUM_FILLED, "it is whole again"


def test_a_marker_of_an_earlier_version_counts(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes/a.tif")
    predicted(tmp_path, Known())
    (path,) = (tmp_path / "out/.scenes").glob("*.json")
    write_json(path, {key: value for key, value in read_json(path).items() if key != "checksum"})
    known = Known()
    assert predicted(tmp_path, known).num_written == 1 and known.num_asked == 0


def test_options_that_return_are_done_again(tmp_path: Path) -> None:
    """All of them write the same file: what the first wrote is no longer there."""
    write_scene(tmp_path / "scenes/a.tif")
    texts = []
    for buffer in (1.0, 2.0, 1.0):
        predicted(tmp_path, Known(), to="geojson", buffer=buffer)
        texts.append((tmp_path / "out/predictions.geojson").read_text())
    assert texts[0] == texts[2] != texts[1]


def test_lengths_of_the_recipe_are_not_taken_for_other_units(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes/a.tif")
    predicted(tmp_path, Known(), to="geojson", units="crs", buffer=1.0)
    recipe = {"delivery": {"polygons": {"min_area": 25, "units": "crs"}}}
    (tmp_path / "run").rename(tmp_path / "first")
    with pytest.raises(UserError, match="the recipe states min_area in crs"):
        predicted(tmp_path, Known(), to="geojson", units="pixels", recipe=recipe)


def test_processes_share_the_work(tmp_path: Path) -> None:
    """One is killed in the middle; the other two go on at once and each does a part."""
    for seed, name in enumerate(("a", "b")):
        write_scene(tmp_path / f"scenes/{name}.tif", seed=seed)
    predicted(tmp_path, Known(), probabilities=True)
    program = [sys.executable, str(Path(__file__).with_name("tiny_scenes.py"))]
    places = [str(tmp_path / name) for name in ("run", "scenes", "shared")]
    processes = [
        subprocess.Popen([*program, *places, kill_after], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for kill_after in ("4", "-1", "-1")
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    told = [process.communicate("go\n", timeout=60)[0] for process in processes[:1]]
    assert told == [""] and processes[0].returncode == -9
    for process in processes[1:]:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    counts = [int(process.communicate(timeout=60)[0]) for process in processes[1:]]
    assert digests(tmp_path / "shared") == digests(tmp_path / "out")
    assert min(counts) > 0 and sum(counts) <= 2 * NUM_FILLED
    assert leftovers(tmp_path / "shared") == []


def test_claims_of_a_process_are_its_own(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from maskloom.stages.claims import Claims\n"
        "with Claims(Path(sys.argv[1])) as claims:\n    print(claims.take(3), claims.take(4))\n"
    )

    def elsewhere() -> str:
        command = [sys.executable, "-c", code, str(tmp_path / "x.claims")]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    with Claims(tmp_path / "x.claims") as claims:
        assert claims.take(3) and claims.take(3)
        assert elsewhere() == "False True"
        claims.give_back(3)
        assert elsewhere() == "True True"


# What users get wrong ------------------------------------------------------------------------------------------------


def fails(tmp_path: Path, words: str, **options: Any) -> None:
    """Checks that a prediction ends in one line with these words, before networks are loaded."""
    loaded: list[int] = []
    known: Any = Known()

    def opened() -> Any:
        loaded.append(1)
        return known

    with pytest.raises(UserError, match=words) as caught:
        stage.predict_scenes(
            write_run(tmp_path / "run"), options.pop("scenes", tmp_path / "scenes"), out=tmp_path / "out",
            opened=opened, progress=Silent(), **({"to": "geotiff"} | options),
        )  # fmt: skip
    assert "\n" not in str(caught.value) and not loaded


def test_options_that_do_not_fit(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes/a.tif")
    fails(tmp_path, "did you mean 'geotiff'", to="geotif")
    fails(tmp_path, "shape polygons", simplify=1.0)
    fails(tmp_path, "shape polygons", buffer=-1.0)
    fails(tmp_path, "min_area: .*greater than or equal to 0, found -1.0", to="wkt", min_area=-1.0)
    fails(tmp_path, "units: .*'pixels' or 'crs'", to="geojson", units="metres")
    fails(tmp_path, "a table of WKT is in pixels", to="wkt", min_hole=2.0, units="crs")
    write_scene(tmp_path / "unplaced/a.tif", place=None)
    unplaced = {"scenes": tmp_path / "unplaced", "to": "fgb"}
    fails(tmp_path, "units=crs: expected scenes with a CRS", buffer=1.0, units="crs", **unplaced)
    fails(tmp_path, "for --to wkt", grid=tmp_path / "grid.csv")
    fails(tmp_path, "no such path", scenes=tmp_path / "nowhere")
    (tmp_path / "photo.png").write_text("")
    fails(tmp_path, "expected TIFF rasters", scenes=tmp_path / "photo.png")
    write_scene(tmp_path / "out/b.tif")
    fails(tmp_path, "the scenes' own folder", scenes=tmp_path / "out")


def test_scenes_of_two_crs_share_no_file(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes/a.tif")
    write_scene(tmp_path / "scenes/b.tif", place=Georeference("EPSG:32634", PLACE.transform))
    fails(tmp_path, r"EPSG:32633 \(a\) and EPSG:32634 \(b\)", to="geojson")
    predicted(tmp_path, Known())
    write_scene(tmp_path / "scenes/b.tif", place=None)
    fails(tmp_path, r"EPSG:32633 \(a\) and none \(b\)", to="gpkg")


def test_scenes_that_would_write_one_file(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes/a.tif")
    write_scene(tmp_path / "scenes/a.uncertainty.tif")
    fails(tmp_path, "two scenes would write this file", uncertainty=True)
    (tmp_path / "scenes/a.uncertainty.tif").rename(tmp_path / "scenes/a.tiff")
    fails(tmp_path, "same output name")


@pytest.mark.parametrize("to", ["geotiff", "geojson"])
def test_a_damaged_scene_can_be_left_out(tmp_path: Path, to: str) -> None:
    write_scene(tmp_path / "scenes/a.tif")
    write_scene(tmp_path / "scenes/b.tif", pixels=np.random.default_rng(0).integers(1, 255, (3, 200, 200), np.uint8))
    whole = (tmp_path / "scenes/b.tif").read_bytes()
    (tmp_path / "scenes/b.tif").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "scenes/c.tif").write_text("no raster")
    fails(tmp_path, r"c\.tif", to=to)
    done = predicted(tmp_path, Known(), to=to, skip_bad=True)
    assert done.num_written == 1 and sorted(problem.path.name for problem in done.bad) == ["b.tif", "c.tif"]
    again = Known()
    assert predicted(tmp_path, again, to=to, skip_bad=True).num_written == 1
    if to == "geojson":
        assert again.num_asked == 0
        assert {feature.image for feature in read_features(tmp_path / "out/predictions.geojson")[1]} == {"a"}
    (tmp_path / "scenes/c.tif").unlink()
    with pytest.raises(BadFile, match=r"b\.tif: the raster is cut off or damaged"):
        predicted(tmp_path, Known(), to=to)


def test_scenes_of_other_channels(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes/a.tif", pixels=np.ones((5, 70, 70), np.uint8))
    fails(tmp_path, r"a\.tif: expected 3 band\(s\) for scene .a. as the networks take, found 5; give all its files")


def test_post_processing_is_left_out_aloud(tmp_path: Path) -> None:
    pixels = write_scene(tmp_path / "scenes/a.tif")
    known, heard = Known(), Heard()
    known.recipe.postprocess.steps = ("something",)
    known.ensemble.thresholds = [200]
    known.labels = None
    predicted(tmp_path, known, progress=heard)
    assert len(heard.notes) == 1 and "thresholds alone" in heard.notes[0]
    assert np.array_equal(read(tmp_path / "out/a.tif")[0] == 1, pixels[0] >= 200)


def test_a_folder_of_other_predictions_is_refused(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes/a.tif")
    predicted(tmp_path, Known())
    fails(tmp_path, "another run or format", to="geojson")
    write_scene(tmp_path / "scenes/deeper/b.tif")
    predicted(tmp_path, Known(), out="scenes/predictions")
    assert sorted(digests(tmp_path / "scenes/predictions")) == ["a.tif", "deeper/b.tif"]
    heard = Heard()
    predicted(tmp_path, Known(), out="scenes/predictions", progress=heard)
    assert sorted(digests(tmp_path / "scenes/predictions")) == ["a.tif", "deeper/b.tif"]
    assert any("passed over" in note for note in heard.notes)
