"""The stand-in of the street scenes: its layout, all 20 categories, attributes, and scenes that look like streets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maskloom.contests.signate import open_signate, recognise
from maskloom.contests.signate.class_table import ALL, read_annotation
from maskloom.contests.signate.colours import CATEGORIES
from maskloom.contests.signate.stand_in import TEST_ANNOTATIONS, main, write_stand_in
from maskloom.contests.signate.street import ROUTES, TIMES, draw_street
from maskloom.data.image_io import read_image
from maskloom.data.sources.base import DataSettings
from maskloom.data.truth import read_truth
from maskloom.errors import UserError

SIZE = (152, 242)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signate") / "data"
    write_stand_in(folder, images=5, test_images=2, size=SIZE, seed=3)
    return folder


def test_the_layout_is_the_published_one(stand_in: Path) -> None:
    assert recognise(stand_in)
    source = open_signate(stand_in, DataSettings())
    assert [record.id for record in source.records] == [f"train_{number:04d}" for number in range(5)]
    assert [record.image.name for record in source.unlabelled] == ["test_000.jpg", "test_001.jpg"]
    assert not source.problems and not any("attribute " in note for note in source.notes)
    for record in source.records:
        assert record.attributes["route"] in ROUTES and record.attributes["timeofday"] in TIMES
        assert read_image(record.image).shape == (*SIZE, 3)
        assert read_truth(record, source.task, source.coding).shape == SIZE


def test_all_20_categories_are_there(stand_in: Path) -> None:
    for path in ("seg_train_annotations/train_0000.png", f"{TEST_ANNOTATIONS}/test_000.png"):
        labels = read_annotation(stand_in / path, ALL.coding())
        assert np.bincount(labels.ravel(), minlength=20).min() >= 4


def label(name: str) -> int:
    return CATEGORIES.index(name)


def test_a_scene_looks_like_a_street() -> None:
    """The sky above, the bonnet below, the lanes between; what is alike in category is alike in colour."""
    for seed in range(4):
        scene = draw_street(np.random.default_rng(seed), SIZE)
        assert scene.photo.dtype == scene.labels.dtype == np.uint8 and scene.photo.shape == (*SIZE, 3)
        rows = np.indices(SIZE)[0]
        mean_row = {name: rows[scene.labels == label(name)].mean() for name in ("sky", "lane", "own")}
        assert mean_row["sky"] < SIZE[0] / 2 < mean_row["lane"] < mean_row["own"]
        assert (scene.labels[-1] == label("own")).mean() > 0.9
        assert np.mean(scene.labels == label("lane")) > 0.05
        far, near = (np.mean(scene.labels[part] == label("lane")) for part in (slice(66, 86), slice(110, 130)))
        assert far < near
        sky, own = (scene.photo[scene.labels == label(name)].mean(axis=0) for name in ("sky", "own"))
        assert (sky - own).min() > 60


def test_light_follows_the_time_of_day() -> None:
    means = [draw_street(np.random.default_rng(0), SIZE, time=time).photo.mean() for time in TIMES]
    assert means[0] > means[1] > means[2] > 5


def test_routes_differ_in_what_stands_beside_them() -> None:
    shares = {}
    for route in ROUTES:
        scenes = [draw_street(np.random.default_rng(seed), (96, 152), route=route).labels for seed in range(4)]
        shares[route] = np.bincount(np.stack(scenes).ravel(), minlength=20)
    city, suburb, highway = (shares[route] for route in ROUTES)
    building, wall, pedestrian = label("building"), label("wall"), label("pedestrian")
    assert city[building] > suburb[building] > highway[building] and highway[wall] > city[wall]
    assert highway[pedestrian] == 0 < city[pedestrian]


def test_the_same_seed_gives_the_same_files_and_a_finished_folder_is_left_alone(tmp_path: Path) -> None:
    for name in ("one", "other"):
        write_stand_in(tmp_path / name, images=2, test_images=1, size=(96, 152), seed=1)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 2 * 3 + 2 + 1
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes(), file
    heard: list[int] = []
    write_stand_in(
        tmp_path / "one", images=2, test_images=1, size=(96, 152), seed=1, on_image=lambda done, _: heard.append(done)
    )
    assert not heard
    with pytest.raises(UserError, match="found something else"):
        write_stand_in(tmp_path / "one", images=2, test_images=1, size=(96, 152), seed=2)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"images": 0}, "at least 1 photo"),
        ({"test_images": -1}, "0 to test"),
        ({"size": (95, 200)}, r"a size from 152×96 to 1936×1216 \(width×height\), found 200×95"),
        ({"size": (1216, 1937)}, "found 1937×1216"),
    ],
)
def test_settings_that_cannot_be_met(tmp_path: Path, settings: dict[str, object], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        write_stand_in(tmp_path / "out", **settings)  # type: ignore[arg-type]


def test_the_door(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--out", str(tmp_path / "out"), "--images", "1", "--test-images", "0", "--size", "160x100"])
    assert read_image(tmp_path / "out" / "seg_train_images" / "train_0000.jpg").shape == (100, 160, 3)
    assert "1 of 1 photos" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["--out", str(tmp_path / "other"), "--size", "small"])
    assert caught.value.code == 2 and "--size: expected WIDTHxHEIGHT" in capsys.readouterr().err
