"""Stages on blocks of scenes: what trains never touches what validates, and each block is predicted by its fold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskloom.config import parse
from maskloom.data.dataset import Key
from maskloom.data.mask_coding import MaskCoding
from maskloom.data.scene_parts import ScenePart, parts_among, scenes_of
from maskloom.data.sources.base import DataSource
from maskloom.data.spatial_folds import SpatialFoldTable
from maskloom.data.truth import read_truth
from maskloom.encodings.probability_maps import read_map
from maskloom.errors import UserError
from maskloom.executors.tasks import Here
from maskloom.files import read_json
from maskloom.inference.blocks import BlockPixels
from maskloom.inference.merging import RESULT
from maskloom.progress import Silent
from maskloom.rasters.georeference import Georeference
from maskloom.rasters.reading import open_raster
from maskloom.rasters.writing import write_geotiff
from maskloom.recipe import Recipe
from maskloom.records import IGNORE, MaskFile, Record, Shapes, Size, Task
from maskloom.run_directory import RunDirectory
from maskloom.stages import oof
from maskloom.stages.block_folds import training_ground, with_parts
from maskloom.stages.context import Context
from maskloom.stages.data import check_folds, survey_data, without_bad_records, write_folds
from maskloom.stages.ensemble import fit_ensemble, load_ensemble
from maskloom.stages.oof import predict_out_of_fold
from maskloom.stages.scoring import answer, reader_of_parts
from maskloom.stages.train import train_fold, training_samples
from maskloom.windows import Window

BINARY = Task(kind="binary", classes=("field",))
SIZE = (96, 128)
PLACE = Georeference("EPSG:32633", (0.5, 0.0, 500_000.0, 0.0, -0.5, 100_000.0))
FOLDS = {"kind": "blocks", "side": 32, "count": 2, "seed": 1}


class Notes(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def recipe(folds: Mapping[str, Any] = FOLDS, **more: Any) -> Recipe:
    member = {
        "name": "net",
        "network": {"architecture": "unet_elu", "weights": "none", "width": 0.125},
        "input": {"mode": "window", "size": [32, 32], "prefer_class": 0.5},
        "loss": {"terms": [{"kind": "bce"}]},
        "training": {"epochs": 1, "images_per_epoch": 4, "batch_size": 2},
        **more.pop("member", {}),
    }
    inference = {"views": "none", "precision": "float32"}
    values = {"name": "r", "metric": "dice", "folds": dict(folds), "members": [member], "inference": inference}
    return parse(Recipe, values | more)


def write_scene(folder: Path, name: str = "town", *, place: Georeference | None = PLACE, seed: int = 0) -> Record:
    """A scene whose upper left corner is nodata, with a bright field as object."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(40, 90, (3, *SIZE)).astype(np.uint8)
    labels = np.zeros(SIZE, np.uint8)
    labels[20:70, 30:100] = 1
    pixels[:, labels == 1] += 100
    pixels[:, :10, :12] = 0
    write_geotiff(folder / f"{name}.tif", pixels, place, nodata=0)
    write_geotiff(folder / f"{name}_mask.tif", labels, place)
    truth = MaskFile(path=folder / f"{name}_mask.tif")
    return Record(id=name, image=folder / f"{name}.tif", size=SIZE, truth=truth)


def surroundings(folder: Path, complete: Recipe, records: list[Record] | None = None) -> Context:
    """A run whose data is surveyed and divided, with its fold table."""
    records = records or [write_scene(folder / "data")]
    source = DataSource(layout="folder", root=folder / "data", task=BINARY, coding=MaskCoding(), records=tuple(records))
    context = Context(
        run=RunDirectory(folder / "run"), recipe=complete, source=source, device=torch.device("cpu"),
        progress=Notes(), workers=0,
    )  # fmt: skip
    survey_data(context)
    context = without_bad_records(context)
    write_folds(context, complete.folds, context.run.folds)
    return context


@pytest.fixture
def run(tmp_path: Path) -> Context:
    return surroundings(tmp_path, recipe())


# --- dividing --------------------------------------------------------------------------------------------------------


def test_the_blocks_are_the_records(run: Context) -> None:
    parts = parts_among(run.source.records)
    assert len(parts) == len(run.source.records) == 12 and len({part.id for part in parts}) == 12
    tables = run.fold_tables()
    assert tables.blocks is not None and {row.id for row in tables.shared.rows} == {part.id for part in parts}
    assert {part.group for part in parts} == {"town"}
    scene = parts[0].scene
    whole = read_truth(scene, BINARY, run.source.coding)
    for part in parts:
        labels = read_truth(part, BINARY, run.source.coding)
        expected = whole[part.window.slices].copy()
        if part.window == Window(0, 0, 32, 32):
            expected[:10, :12] = IGNORE
        assert np.array_equal(labels, expected)


def test_an_edited_table_is_handed_back(tmp_path: Path, run: Context) -> None:
    table = SpatialFoldTable.from_csv(run.run.folds)
    rows = [replace(row, fold=number % 3, buffer=5) for number, row in enumerate(table.rows)]
    rows[:2] = [replace(rows[0], window=Window(0, 0, 32, 64), fold=-1, buffer=0)]
    mine = SpatialFoldTable(tuple(rows))
    mine.to_csv(tmp_path / "mine.csv")
    handed_back = recipe({"kind": "table", "table": str(tmp_path / "mine.csv"), "buffer": 3})
    again = surroundings(tmp_path / "again", handed_back, [write_scene(tmp_path / "data")])
    found = SpatialFoldTable.from_csv(again.run.folds)
    assert [row.buffer for row in found.rows] == [3] + [5] * 10
    assert [replace(row, buffer=0) for row in found.rows] == [replace(row, buffer=0) for row in mine.rows]
    tables = again.fold_tables()
    assert tables.of("net").num_folds == 3 and "town/r0c0" not in tables.validated(["net"])
    assert len(again.source.records) == 11


def test_a_table_of_other_blocks_is_refused(tmp_path: Path, run: Context) -> None:
    table = SpatialFoldTable.from_csv(run.run.folds)
    other = replace(table.rows[0], window=Window(0, 0, 16, 32))
    SpatialFoldTable((other, *table.rows[1:])).to_csv(run.run.folds)
    with pytest.raises(UserError, match=r"expected the 12 blocks .*--set folds.kind=table"):
        check_folds(run, run.run.folds)
    stated = recipe({"kind": "table", "table": str(run.run.folds)})
    with pytest.raises(UserError, match=r"expected blocks that cover scene 'town'"):
        surroundings(tmp_path / "again", stated, [write_scene(tmp_path / "data")])


def test_balanced_blocks(tmp_path: Path) -> None:
    for balance in ("valid", "classes"):
        context = surroundings(tmp_path / balance, recipe(FOLDS | {"balance": balance, "side": 16}))
        held = [0, 0]
        for row in SpatialFoldTable.from_csv(context.run.folds).rows:
            labels = np.zeros(SIZE)
            labels[20:70, 30:100] = 1
            valid = np.ones(SIZE)
            valid[:10, :12] = 0
            held[row.fold] += (labels if balance == "classes" else valid)[row.window.slices].sum()
        assert abs(held[0] - held[1]) <= 16 * 16


def test_copies_are_refused(tmp_path: Path) -> None:
    records = [write_scene(tmp_path / "data", name, place=None) for name in ("one", "two")]
    with pytest.raises(UserError, match="the image of 'one' occurs more than once"):
        surroundings(tmp_path, recipe(), records)


def test_polygons_are_truth_too(tmp_path: Path) -> None:
    record = write_scene(tmp_path / "data")
    square = "POLYGON ((40 30, 90 30, 90 60, 40 60, 40 30))"
    context = surroundings(tmp_path, recipe(), [replace(record, truth=Shapes(wkt=((0, square),)))])
    total = sum(int((read_truth(part, BINARY, MaskCoding()) == 1).sum()) for part in context.source.records)
    assert total == 50 * 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"member": {"input": {"mode": "resize", "size": [32, 32]}}}, r"members\.0\.input.*found mode resize"),
        ({"member": {"input": {"mode": "window", "size": [32, 32], "clahe": True}}}, r"members\.0\.input.*equalised"),
        ({"member": {"folds": {"count": 3}}}, r"members\.0\.folds: folds of blocks are those of all members"),
        ({"outside": [{"name": "theirs", "folder": "maps"}]}, "outside: .*found theirs"),
        ({"pseudo": [{"members": ["net"], "minimum_confidence": 0.5}]}, "pseudo: folds of blocks expect no pseudo"),
    ],
)
def test_what_does_not_go_with_blocks_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        recipe(**change)
    assert "\n" not in str(caught.value)


def test_a_table_of_blocks_is_as_strict(tmp_path: Path, run: Context) -> None:
    stated = {"kind": "table", "table": str(run.run.folds)}
    whole = recipe(stated, member={"input": {"mode": "resize", "size": [32, 32]}})
    with pytest.raises(UserError, match=r"members\.0\.input.*found mode resize"):
        surroundings(tmp_path / "again", whole, [write_scene(tmp_path / "data")])
    own = {"folds": FOLDS}
    with pytest.raises(UserError, match="blocks are for all members"):
        recipe({"kind": "kfold"}, member=own)


def test_scenes_that_cannot_be_read_by_window_are_named(tmp_path: Path) -> None:
    from maskloom.data.image_io import write_png

    record = write_scene(tmp_path / "data")
    write_png(tmp_path / "data" / "mask.png", np.zeros(SIZE, np.uint8))
    picture = replace(record, truth=MaskFile(path=tmp_path / "data" / "mask.png"))
    with pytest.raises(UserError, match=r"folds of blocks: .*mask\.png: expected a plain TIFF"):
        surroundings(tmp_path, recipe(), [picture])


def test_the_parts_of_a_finished_run(run: Context) -> None:
    """As the report finds them: from the stored source, whose records are scenes, and the run's table."""
    parts = run.source.records
    scenes = replace(run.source, records=(scenes_of(parts)[0],))
    assert with_parts(scenes, run.fold_tables().blocks, run.run).records == parts
    assert with_parts(scenes, None, run.run) is scenes


# --- training --------------------------------------------------------------------------------------------------------


def mark(scene: Record, windows: list[Window]) -> None:
    """Writes a scene again whose pixels are 9 but for those of some windows, which are 255."""
    pixels = np.full((3, *scene.size), 9, np.uint8)
    for window in windows:
        pixels[(slice(None), *window.slices)] = 255
    write_geotiff(scene.image, pixels, PLACE)


@pytest.mark.parametrize("margin", [0, 4])
@pytest.mark.parametrize("prefer_class", [0.0, 0.5])
def test_training_sees_nothing_of_its_validation_blocks(tmp_path: Path, margin: int, prefer_class: float) -> None:
    window = {"mode": "window", "size": [32, 32], "margin": margin, "prefer_class": prefer_class}
    context = surroundings(tmp_path, recipe(FOLDS | {"side": 48, "buffer": 3}, member={"input": window}))
    table = context.fold_tables().blocks
    assert table is not None
    (member,) = context.recipe.members
    for fold in range(2):
        (scene,), forbidden = training_ground(context, table, fold, member.input)
        assert len(forbidden["town"]) == len(table.validation("town", fold)) > 0
        mark(scene, [area.clipped(SIZE) for area in forbidden["town"]])
        samples = training_samples(context, member, [scene], 3, forbidden=forbidden)
        seen = [samples[Key(0, 0, draw)].image for draw in range(30)]
        assert {int(image.max()) for image in seen} == {9}


def test_scenes_without_room_are_left_out_aloud(tmp_path: Path, run: Context) -> None:
    records = [write_scene(tmp_path / "two", name, place=None, seed=seed) for seed, name in enumerate(("one", "two"))]
    context = surroundings(tmp_path / "two", recipe(FOLDS | {"side": 128, "balance": "valid"}), records)
    table = context.fold_tables().blocks
    assert table is not None and len(table.rows) == 2
    (member,) = context.recipe.members
    (left,), _ = training_ground(context, table, 0, member.input)
    assert table.validation(left.id, 0) == [] and isinstance(context.progress, Notes)
    assert "1 scene(s) without room for a training window" in context.progress.said[-1]

    buffered = SpatialFoldTable(
        tuple(replace(row, buffer=200) for row in SpatialFoldTable.from_csv(run.run.folds).rows)
    )
    with pytest.raises(UserError, match="expected room for windows of"):
        training_ground(run, buffered, 0, member.input)


# --- prediction ------------------------------------------------------------------------------------------------------


def test_a_part_is_predicted_as_its_scene_is(run: Context) -> None:
    """A pointwise network gives what it gives of the whole; invalid pixels are 0."""

    def red(image: np.ndarray, *, raster: Size, **_: Any) -> dict[str, np.ndarray]:
        assert min(image.shape[:2]) >= 32 and raster == SIZE
        return {RESULT: np.ascontiguousarray(image[None, :, :, 0])}

    (member,) = run.recipe.members
    read = reader_of_parts(3, member.input, lambda record: {})
    predict = answer(red, BINARY, (RESULT,))
    part = run.source.records[0]
    assert isinstance(part, ScenePart)
    with open_raster(part.image) as raster:
        whole, _ = raster.read(Window(0, 0, *SIZE))
    for record in parts_among(run.source.records):
        assert np.array_equal(predict(read(record))[RESULT][0], whole[..., 0][record.window.slices])
    dark = replace(part, window=Window(0, 0, 5, 5), size=(5, 5))
    assert not predict(read(dark))[RESULT].any() and predict(read(dark))[RESULT].shape == (1, 5, 5)


def test_parts_of_a_scene_that_is_asked_whole_are_read_so(run: Context) -> None:
    """Networks that see no tiles are given what is around a part; here that is all of the scene."""
    (member,) = run.recipe.members
    num_pixels = SIZE[0] * SIZE[1]
    for most, is_all in ((num_pixels - 1, False), (num_pixels, True)):
        found = reader_of_parts(3, member.input, lambda record: {}, whole_pixels=most)(run.source.records[0])
        assert isinstance(found, BlockPixels) and (found.seen == Window(0, 0, *SIZE)) == is_all


def test_out_of_fold_maps_scores_and_thresholds_of_blocks(run: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block is predicted once, by its own fold; the scene's map is put together; scores are over blocks."""
    (member,) = run.recipe.members
    asked: list[tuple[int, str]] = []
    predict = oof._predict_shard

    def spy(here: Here, shared: Context, name: str, fold: int, places: Sequence[int]) -> None:
        asked.extend((fold, shared.source.records[place].id) for place in places)
        predict(here, shared, name, fold, places)

    monkeypatch.setattr(oof, "_predict_shard", spy)
    for fold in range(2):
        best, last, log = train_fold(run, member, fold, fingerprint="x")
        assert best.is_file() and last.is_file() and log.is_file()
    with monkeypatch.context() as watched:
        read: list[Path] = []
        check = RunDirectory.check

        def counted(directory: RunDirectory, paths: Iterable[Path]) -> None:
            paths = list(paths)
            read.extend(path for path in paths if path.suffix == ".png")
            check(directory, paths)

        watched.setattr(RunDirectory, "check", counted)
        files = predict_out_of_fold(run, member, fingerprint="x")
    assert len(read) == len(set(read)) == 12, "labels are checked once"
    table = run.fold_tables()
    assert sorted(asked) == sorted((row.fold, row.id) for row in table.shared.rows)
    assert all(file.is_file() for file in files)

    with open_raster(run.run.oof("net") / "scenes" / "town.tif") as raster:
        assert raster.georeference == PLACE
        whole, _ = raster.read(Window(0, 0, *SIZE))
    for part in parts_among(run.source.records):
        stored = read_map(run.run.oof_map("net", part.id))
        assert np.array_equal(whole[..., 0][part.window.slices], stored[0])
    assert not whole[:10, :12].any(), "nodata"

    fit_ensemble(run)
    scores = load_ensemble(run.run).scores
    assert len(scores["oof"]["folds"]) == 2
    stored_counts = read_json(run.run.oof("net") / "scores.json")
    assert set(stored_counts) == {row.id for row in table.shared.rows}
    lines = (run.run.ensemble.with_name("images.csv")).read_text().splitlines()
    assert len(lines) == 13 and any(line.startswith("town/r32c64,") for line in lines)
