"""Blocks of scenes: every pixel in one, folds by place, room around validation, and tables that users hand back."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from maskloom.data.spatial_folds import (
    BlockRow,
    Scene,
    SpatialFoldSettings,
    SpatialFoldTable,
    check_scenes,
    make_spatial_folds,
)
from maskloom.data.window_drawing import draw_window
from maskloom.errors import UserError
from maskloom.rasters.georeference import Georeference
from maskloom.windows import Window

UTM = "EPSG:32633"


def placed(scene_id: str, size: tuple[int, int], left: float = 500_000.0, top: float = 100_000.0) -> Scene:
    """A scene of half a metre per pixel whose first corner lies at (left, top)."""
    return Scene(scene_id, size, Georeference(UTM, (0.5, 0.0, left, 0.0, -0.5, top)))


def folds(scenes: list[Scene], **choice: object) -> SpatialFoldTable:
    return make_spatial_folds(scenes, SpatialFoldSettings.model_validate(choice))


def fold_map(table: SpatialFoldTable, scene: Scene) -> np.ndarray:
    """The fold of every pixel; fails where one lies in no block or in two."""
    found = np.full(scene.size, -9)
    for row in table.rows:
        if row.scene == scene.id:
            assert (found[row.window.slices] == -9).all()
            found[row.window.slices] = row.fold
    assert (found != -9).all()
    return found


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=2),
    side=st.floats(5.0, 40.0),
    unit=st.sampled_from(["pixels", "crs"]),
    balance=st.sampled_from(["none", "valid"]),
    seed=st.integers(0, 3),
)
def test_every_pixel_lies_in_exactly_one_block(
    sizes: list[tuple[int, int]], side: float, unit: str, balance: str, seed: int
) -> None:
    scenes = [placed(f"s{number}", size, 500_000.0 + 31 * number) for number, size in enumerate(sizes)]
    choice = SpatialFoldSettings.model_validate(
        {"count": 2, "side": side, "unit": unit, "balance": balance, "seed": seed}
    )

    def areas(scene: str, window: Window) -> list[float]:
        return [window.height * window.width]

    try:
        table = make_spatial_folds(scenes, choice, areas=areas)
    except UserError as error:
        assert "expected blocks for 2 folds" in str(error)
        return
    for scene in scenes:
        fold_map(table, scene)
    check_scenes(table, scenes, Path("x.csv"))
    assert table == make_spatial_folds(scenes, choice, areas=areas)


def test_blocks_of_pixels_and_their_rest() -> None:
    def windows(length: int) -> list[tuple[int, int]]:
        table = folds([Scene("a", (32, length))], count=2, side=8)
        return [(row.window.left, row.window.width) for row in table.rows if row.window.top == 0]

    assert windows(32) == [(0, 8), (8, 8), (16, 8), (24, 8)]
    assert windows(35) == [(0, 8), (8, 8), (16, 8), (24, 11)]  # less than half a side joins the block before
    assert windows(36) == [(0, 8), (8, 8), (16, 8), (24, 8), (32, 4)]


def test_cropping_a_scene_moves_no_pixel_to_another_fold() -> None:
    whole = placed("whole", (300, 400))
    crop = placed("crop", (120, 150), 500_000.0 + 0.5 * 133, 100_000.0 - 0.5 * 71)
    alone = folds([whole], side=20, unit="crs", count=4)
    both = folds([crop, whole], side=20, unit="crs", count=4)
    expected = fold_map(alone, whole)
    assert np.array_equal(fold_map(both, whole), expected)
    assert np.array_equal(fold_map(both, crop), expected[71 : 71 + 120, 133 : 133 + 150])
    assert np.array_equal(fold_map(folds([crop], side=20, unit="crs", count=4), crop), fold_map(both, crop))


def test_the_order_of_scenes_and_further_scenes_change_nothing() -> None:
    one, two = Scene("one", (200, 200)), Scene("two", (200, 200))
    both = folds([one, two], side=32)
    assert set(both.rows) == set(folds([two, one], side=32).rows)
    assert both.rows[:36] == folds([one], side=32).rows
    assert [row.fold for row in both.rows[:36]] != [row.fold for row in both.rows[36:]]


def test_folds_follow_from_the_seed() -> None:
    scene = Scene("a", (256, 256))
    tables = {folds([scene], side=32, seed=seed) for seed in range(4)}
    assert len(tables) == 4
    first = [row.fold for row in folds([scene], side=64, count=3).rows]
    assert first == [2, 1, 2, 0, 1, 0, 0, 1, 2, 2, 2, 2, 1, 1, 0, 0]
    shares = Counter(row.fold for seed in range(40) for row in folds([scene], side=32, seed=seed).rows)
    assert all(abs(shares[fold] / (40 * 64) - 0.2) < 0.03 for fold in range(5))


def test_valid_area_is_balanced() -> None:
    scene = Scene("a", (640, 640))
    valid = {window.window: 0.0 for window in folds([scene], side=64).rows}
    for number, window in enumerate(valid):
        valid[window] = float(max(0, number - 30) ** 2)
    choice = SpatialFoldSettings(side=64, balance="valid")
    table = make_spatial_folds([scene], choice, areas=lambda _, window: [valid[window]])
    held = Counter[int]()
    for row in table.rows:
        held[row.fold] += int(valid[row.window])
    assert max(held.values()) - min(held[fold] for fold in range(5)) <= max(valid.values())
    assert max(held.values()) < 1.02 * sum(valid.values()) / 5


def test_rare_classes_are_balanced_too() -> None:
    scene = Scene("a", (640, 640))
    rng = np.random.default_rng(0)
    windows = [row.window for row in folds([scene], side=64).rows]
    areas = {window: [float(rng.integers(2000, 4096)), 0.0, 0.0] for window in windows}
    for place in rng.permutation(100)[:10]:
        areas[windows[place]][1] = 50.0
    for place in rng.permutation(100)[:5]:
        areas[windows[place]][2] = 7.0
    choice = SpatialFoldSettings(side=64, balance="classes", count=5)
    table = make_spatial_folds([scene], choice, areas=lambda _, window: areas[window])
    held = np.zeros((5, 3))
    for row in table.rows:
        held[row.fold] += areas[row.window]
    assert held[:, 2].tolist() == [7.0] * 5
    assert held[:, 1].tolist() == [100.0] * 5
    assert held[:, 0].max() < 1.1 * held[:, 0].mean()


def test_cells_of_the_ground_are_balanced_as_one() -> None:
    whole, twin = placed("whole", (80, 80)), placed("twin", (80, 80))
    choice = SpatialFoldSettings(side=10, unit="crs", balance="valid", count=3)
    table = make_spatial_folds([whole, twin], choice, areas=lambda scene, window: [window.top + window.left])
    assert np.array_equal(fold_map(table, whole), fold_map(table, twin))


def gap(one: Window, other: Window) -> int:
    """The pixels between two windows, in rows or columns, whichever are more; negative where they overlap."""
    rows = max(one.top, other.top) - min(one.top + one.height, other.top + other.height)
    columns = max(one.left, other.left) - min(one.left + one.width, other.left + other.width)
    return max(rows, columns)


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(st.integers(30, 120), st.integers(30, 120)),
    side=st.integers(15, 50),
    window=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    buffer=st.integers(0, 12),
    seed=st.integers(0, 9),
)
def test_no_training_window_comes_near_a_validation_block(
    size: tuple[int, int], side: int, window: tuple[int, int], buffer: int, seed: int
) -> None:
    scene = Scene("a", size)
    try:
        table = folds([scene], side=side, count=3, seed=seed, buffer=buffer)
    except UserError:
        assume(False)
    rng = np.random.default_rng(seed)
    for fold in range(3):
        validated = table.validation("a", fold)
        forbidden = table.forbidden("a", fold)
        for _ in range(10):
            try:
                chosen = draw_window(size, window, rng, forbidden=forbidden)
            except UserError as error:
                assert "found none" in str(error)
                break
            assert chosen.clipped(size) == chosen
            assert all(gap(chosen, block) >= buffer for block in validated)


def test_forbidden_areas_are_grown_blocks() -> None:
    table = SpatialFoldTable((BlockRow("a", Window(0, 0, 10, 10), 0, 3), BlockRow("a", Window(0, 10, 10, 30), 1)))
    assert table.forbidden("a", 0) == [Window(-3, -3, 16, 16)]
    assert table.forbidden("a", 1) == [Window(0, 10, 10, 30)]


def test_blocks_of_neighbours_count_where_scenes_adjoin() -> None:
    """The second scene begins where the first ends, 40 pixels to the right, and is twice as coarse."""
    first = placed("first", (20, 40))
    second = Scene("second", (10, 20), Georeference(UTM, (1.0, 0.0, 500_020.0, 0.0, -1.0, 100_000.0)))

    def table(buffer: int) -> SpatialFoldTable:
        return SpatialFoldTable(
            (
                BlockRow("first", Window(0, 0, 20, 40), 0, buffer),
                BlockRow("second", Window(0, 0, 10, 5), 1, buffer),
                BlockRow("second", Window(0, 5, 10, 15), 0, buffer),
            )
        )

    scenes = [first, second]
    assert table(0).forbidden("first", 1, scenes=scenes) == []
    assert table(4).forbidden("first", 1, scenes=scenes) == [Window(-4, 36, 28, 18)]
    assert table(4).forbidden("first", 1) == []
    assert table(3).forbidden("second", 0, scenes=scenes) == [Window(-3, 2, 16, 21), Window(-3, -23, 16, 26)]
    elsewhere = Scene("second", (10, 20), Georeference("EPSG:32634", (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)))
    with pytest.raises(UserError, match="expected one CRS"):
        table(4).forbidden("first", 1, scenes=[first, elsewhere])
    assert table(4).forbidden("first", 1, scenes=[first, Scene("second", (10, 20))]) == []


def test_the_table_survives_the_trip_through_a_file(tmp_path: Path) -> None:
    scenes = [Scene('odd, "name"', (90, 130)), Scene("ünï/b", (64, 64))]
    table = folds(scenes, side=16, buffer=7)
    path = tmp_path / "blocks.csv"
    table.to_csv(path)
    assert SpatialFoldTable.from_csv(path) == table
    assert path.read_text(encoding="utf-8").startswith("scene,top,left,height,width,fold,buffer\n")
    check_scenes(table, scenes, path)
    path.write_text("\ufefffold;scene;top;left;height;width\n0;a;0;0;8;8\n-1;a;0;8;8;8\n", encoding="utf-8")
    edited = SpatialFoldTable.from_csv(path)
    assert edited.rows == (BlockRow("a", Window(0, 0, 8, 8), 0), BlockRow("a", Window(0, 8, 8, 8), -1))
    assert edited.validation("a", 0) == [Window(0, 0, 8, 8)]
    check_scenes(edited, [Scene("a", (8, 16))], path)


HEADER = "scene,top,left,height,width,fold\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a CSV file with columns scene, top, left, height, width, fold, found none"),
        ("scene,fold\na,0\n", "found scene, fold"),
        (HEADER + "a,0,0,8,8,0\na,0,8,8,8,2\n", "without gaps"),
        (HEADER + "a,0,0,8,8,0\na,0,8,8,8,0\n", "nothing to train on"),
        (HEADER + "a,0,0,8,8,0\na,0,7,8,9,1\n", "scene 'a' overlaps another block"),
        (HEADER + "a,0,0,8,8,zero\n", "line 2: expected a scene"),
        (HEADER + "a,0,0,0,8,0\n", "line 2: expected a scene"),
        (HEADER + "a,0,0\n", "line 2: expected a scene"),
        (HEADER[:-1] + ",buffer\na,0,0,8,8,0,-1\n", "line 2: expected a scene.*buffer"),
        (HEADER + "a,0,0,8,8,0\na,0,8,8,7,1\n", r"cover scene 'a' of 16×8, found 120 of 128 pixels"),
        (HEADER + "a,0,0,8,8,0\na,0,8,8,9,1\n", "expected blocks inside scene 'a' of 16×8"),
        (HEADER + "a,0,0,8,16,0\naa,0,8,8,7,1\n", "scene 'aa' is not in the data; did you mean 'a'"),
    ],
)
def test_broken_tables_are_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        check_scenes(SpatialFoldTable.from_csv(path), [Scene("a", (8, 16))], path)
    assert "mine.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such table of blocks"):
        SpatialFoldTable.from_csv(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("scene", "choice", "message"),
    [
        (Scene("a", (64, 64)), {"unit": "crs", "side": 8}, "scene 'a': expected a CRS, found none"),
        (
            Scene("a", (64, 64), Georeference(UTM, (0.4, 0.3, 0.0, 0.3, -0.4, 0.0))),
            {"unit": "crs", "side": 8},
            "found them turned",
        ),
        (Scene("a", (64, 64), Georeference("EPSG:4326", (0.5, 0.0, 0.0, 0.0, -0.5, 0.0))), {"unit": "crs"}, "CRS of"),
        (Scene("a", (64, 64)), {"side": 64}, "found none for fold"),
        (Scene("a", (400, 400)), {"side": 1}, "expected at most 100,000 blocks, found 160,000"),
    ],
)
def test_impossible_divisions_say_what_to_do(scene: Scene, choice: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        folds([placed("first", (10, 10)), scene], **choice)
    assert "\n" not in str(caught.value)


def test_wrong_calls() -> None:
    table = folds([Scene("scene", (64, 64))], side=8)
    with pytest.raises(UserError, match="did you mean 'scene'"):
        table.validation("scen", 0)
    with pytest.raises(ValueError, match="fold must lie in 0…4"):
        table.validation("scene", 5)
    with pytest.raises(ValueError, match="needs their areas"):
        folds([Scene("scene", (64, 64))], side=8, balance="valid")
