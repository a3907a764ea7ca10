from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from maskloom.data.studio import KINDS, contact_sheet, draw_object, render, write_studio
from maskloom.data.studio.backdrop import empty_studio
from maskloom.data.studio.geometry import Material, Part, box, revolve, rotation, rounded_box, tube
from maskloom.data.studio.render import Camera, draw_layer
from maskloom.encodings.rle import decode_runs
from maskloom.errors import UserError
from maskloom.files import checksum

SIZE = (64, 96)
PLAIN = Material((0.5, 0.5, 0.5))


def volume(part: Part) -> float:
    """By the divergence theorem: positive only when the faces look outward."""
    a, b, c = (part.vertices[part.faces[:, corner]].astype(np.float64) for corner in range(3))
    return float(np.sum(a * np.cross(b, c)) / 6)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (box((1.0, 2.0, 3.0), PLAIN), 6.0),
        (revolve([(0, 0), (1, 0), (1, 2), (0, 2)], PLAIN, sides=256), 2 * np.pi),
        (tube([(0, 0, 0), (0, 0, 1), (0, 0, 2)], 0.5, PLAIN, sides=256), np.pi / 2),
        (rounded_box((2.0, 2.0, 2.0), PLAIN, sharpness=2, steps=64), 4 / 3 * np.pi),
        (box((1.0, 1.0, 1.0), PLAIN).scaled(2.0).turned(0, 0.7).moved(3, 4, 5), 8.0),
    ],
)
def test_primitives_enclose_their_volume_and_look_outward(part: Part, expected: float) -> None:
    assert volume(part) == pytest.approx(expected, rel=5e-3)


def test_paint_sees_a_moved_part_in_its_own_axes() -> None:
    seen: list[np.ndarray] = []
    part = box((1.0, 2.0, 3.0), PLAIN, lambda surface: seen.append(surface.position.copy()))
    draw_layer([part.scaled(0.5).turned(2, 1.0).moved(0.7, -0.4, 1.0)], rotation(2, 0.9), (96, 144))
    half = np.array([0.5, 1.0, 1.5])[:, None]
    outside = np.max(np.abs(seen[0]) / half, axis=0)  # 1 on the box; a pixel on an edge may see beyond it
    assert np.percentile(outside, [2, 95]) == pytest.approx([1, 1], abs=0.02)


@pytest.mark.parametrize("size", [(100, 150), (640, 960)])
def test_coverage_of_a_box_is_the_area_of_its_outline(size: tuple[int, int]) -> None:
    part = box((1.6, 1.2, 1.4), PLAIN).moved(0, 0, 0.7)
    layer = draw_layer([part], rotation(2, 0.5), size)
    assert layer is not None
    pixels, _ = Camera.before(size).project(part.vertices @ rotation(2, 0.5).T)
    area = cv2.contourArea(cv2.convexHull(pixels))
    edge = cv2.arcLength(cv2.convexHull(pixels), True)
    assert layer.coverage.sum() == pytest.approx(area, abs=0.2 * edge)  # a fraction of a pixel along the edge
    assert (layer.coverage >= 0.5).sum() == pytest.approx(area, abs=0.25 * edge)


def test_the_nearer_part_hides_the_farther() -> None:
    red, blue = Material((1.0, 0, 0), gloss=0), Material((0, 0, 1.0), gloss=0)
    near, far = box((0.5, 0.5, 0.5), red).moved(0, -1, 1), box((2.0, 0.5, 2.0), blue).moved(0, 1, 1)
    for parts in ([near, far], [far, near]):
        layer = draw_layer(parts, rotation(2, 0), (96, 144))
        assert layer is not None
        (x, y), _ = (value[0] for value in Camera.before((96, 144)).project(np.array([[0, -1, 1]], np.float32)))
        pixel = layer.colour[int(y) - layer.top, int(x) - layer.left]
        assert pixel[0] > 3 * pixel[2]


def test_a_glass_pane_covers_but_lets_the_backdrop_through() -> None:
    glass = Material((0, 0, 0), reflect=0.0, gloss=0.0, transmit=0.75)
    layer = draw_layer([box((2.0, 0.1, 2.0), glass).moved(0, 0, 1)], rotation(2, 0), (96, 144))
    assert layer is not None
    middle = layer.coverage.shape[0] // 2, layer.coverage.shape[1] // 2
    assert layer.coverage[middle] == 1
    assert layer.hidden[middle] == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("index", range(len(KINDS)))
def test_every_kind_stands_wholly_in_the_picture_from_all_sides(index: int) -> None:
    model = draw_object(5, index)
    assert model.kind == KINDS[index]
    for view in (1, 4, 9):
        image, mask = render(model, view, SIZE, seed=5)
        assert (image.shape, image.dtype) == ((*SIZE, 3), np.uint8)
        assert (mask.shape, mask.dtype) == (SIZE, np.bool_)
        assert 0.01 < mask.mean() < 0.6
        assert not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def test_turning_once_around_gives_the_same_object() -> None:
    model = draw_object(1, 0)
    first, last = (render(model, view, SIZE, views=16, seed=1)[1] for view in (1, 16))
    assert (first != last).any()
    assert np.array_equal(render(model, 1, SIZE, views=8, seed=1)[1], first)
    assert np.array_equal(render(model, 2, SIZE, views=8, seed=1)[1], render(model, 3, SIZE, views=16, seed=1)[1])


def test_the_photo_differs_from_the_empty_studio_where_the_mask_is() -> None:
    model = draw_object(2, 3)
    image, mask = render(model, 1, SIZE, seed=2)
    other, _ = render(draw_object(2, 5), 1, SIZE, seed=2)
    away = ~cv2.dilate(mask.astype(np.uint8), np.ones((21, 21))).astype(bool)
    away[SIZE[0] // 3 :] = False  # the wall, where neither shadow nor reflection falls
    difference = np.abs(image.astype(int) - other).mean(axis=2)
    assert difference[mask].mean() > 3 * difference[away].mean()
    assert not empty_studio(2, SIZE).flags.writeable


def test_antennas_are_one_to_three_pixels_wide_at_full_size() -> None:
    rod = tube([(0, 0, 1), (0, 0, 1.5)], [0.0062, 0.0026], PLAIN, sides=6)
    layer = draw_layer([rod], rotation(2, 0), (1280, 1918))
    assert layer is not None
    widths = layer.coverage[4:-4].sum(axis=1)
    assert 1.0 < widths.min() <= widths.max() < 5.0
    assert np.all((layer.coverage >= 0.5)[6:-6].sum(axis=1) >= 1)  # unbroken


def test_studio_has_the_carvana_layout(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    write_studio(tmp_path, objects=2, views=3, size=SIZE, seed=3, test_objects=1, on_photo=lambda *at: heard.append(at))
    assert heard == [(done, 9) for done in range(1, 10)]
    train, test = (sorted(path.name for path in (tmp_path / part).iterdir()) for part in ("train", "test"))
    models = [draw_object(3, index) for index in range(3)]
    assert train == sorted(f"{model.id}_{view:02d}.jpg" for model in models[:2] for view in (1, 2, 3))
    assert test == [f"{models[2].id}_{view:02d}.jpg" for view in (1, 2, 3)]
    with (tmp_path / "train_masks.csv").open() as stream:
        runs = {row["img"]: row["rle_mask"] for row in csv.DictReader(stream)}
    assert sorted(runs) == train
    for model in models[:2]:
        for view in (1, 2, 3):
            name = f"{model.id}_{view:02d}"
            with Image.open(tmp_path / "train_masks" / f"{name}_mask.gif") as stored:
                assert stored.mode == "P"
                values = np.array(stored)
            image, mask = render(model, view, SIZE, views=3, seed=3)
            assert set(np.unique(values)) == {0, 1}
            assert np.array_equal(values == 1, mask)
            assert np.array_equal(decode_runs(runs[f"{name}.jpg"], SIZE, order="row", base=1), mask)
            photo = np.array(Image.open(tmp_path / "train" / f"{name}.jpg"))
            assert np.abs(photo.astype(int) - image).mean() < 4
    with (tmp_path / "metadata.csv").open() as stream:
        about = list(csv.DictReader(stream))
    assert list(about[0]) == ["id", "year", "make", "model", "trim1", "trim2"]
    assert {row["id"]: row["make"] for row in about} == {model.id: model.kind for model in models}
    wanted = "img,rle_mask\n" + "".join(f"{name},1 1\n" for name in test)
    assert (tmp_path / "sample_submission.csv").read_text() == wanted


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, workers in zip(folders, (1, 3), strict=True):
        write_studio(folder, objects=2, views=2, size=(48, 64), seed=9, test_objects=1, workers=workers)
    found = [{str(path.relative_to(folder)): checksum(path) for path in folder.rglob("*.*")} for folder in folders]
    assert found[0] == found[1]
    assert len(found[0]) == 6 + 4 + 3 + 1


def test_a_complete_folder_is_left_alone_and_a_foreign_one_refused(tmp_path: Path) -> None:
    write_studio(tmp_path, objects=1, views=1, size=(48, 64))
    photo = next((tmp_path / "train").iterdir())
    written = photo.stat().st_mtime_ns
    write_studio(tmp_path, objects=1, views=1, size=(48, 64))
    assert photo.stat().st_mtime_ns == written
    assert not (tmp_path / "test").exists()
    with pytest.raises(UserError, match="empty folder"):
        write_studio(tmp_path, objects=1, views=1, size=(48, 64), seed=1)
    assert next((tmp_path / "train").iterdir()) == photo


def test_an_interrupted_folder_is_completed(tmp_path: Path) -> None:
    write_studio(tmp_path, objects=1, views=2, size=(48, 64))
    before = {path: checksum(path) for path in tmp_path.rglob("*.*")}
    (tmp_path / ".studio.json").unlink()
    next((tmp_path / "train_masks").iterdir()).unlink()
    write_studio(tmp_path, objects=1, views=2, size=(48, 64))
    assert {path: checksum(path) for path in tmp_path.rglob("*.*")} == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (2000, 3000)}, "studio size 2000×3000"),
        ({"size": (8, 8)}, "studio size 8×8"),
        ({"objects": 0}, "at least 1 object"),
        ({"views": 0}, "1 to 99 views"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_studio(tmp_path, **settings)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_unknown_kinds_and_views_are_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'teapot'"):
        draw_object(0, 0, "teapots")
    with pytest.raises(UserError, match="view from 1 to 16"):
        render(draw_object(0, 0), 17, SIZE)


def test_contact_sheet_shows_photos_above_masks(tmp_path: Path) -> None:
    contact_sheet(tmp_path / "sheet.jpg", pictures=[(2, 1), (4, 1), (5, 1)], columns=2)
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.size == (800, 4 * 267)
