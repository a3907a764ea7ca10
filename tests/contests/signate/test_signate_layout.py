"""The contest's layout as published, tables that merge or drop categories, and everything that can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from streets import SIZE, coloured, fill, striped, write_photo, write_png

from maskloom.contests.signate import open_signate, recognise
from maskloom.contests.signate.class_table import (
    ALL,
    BACKGROUND,
    ClassTable,
    read_annotation,
    read_class_table,
)
from maskloom.contests.signate.colours import CATEGORIES, COLOURS, SCORED
from maskloom.contests.signate.layout import is_test
from maskloom.data.folds import FoldSettings, make_folds
from maskloom.data.palettes import palette
from maskloom.data.sources.base import DataSettings, DataSource
from maskloom.data.truth import read_truth
from maskloom.errors import BadFile, UserError
from maskloom.models.published import SCORED_CLASSES, STREET_CLASSES
from maskloom.records import IGNORE, BadSize

FIRST = "train_0000"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fill(tmp_path)


def opened(path: Path, **settings: object) -> DataSource:
    return open_signate(path, DataSettings.model_validate(settings))


def table(folder: Path, text: str) -> Path:
    path = folder / "class_table.yaml"
    path.write_text(text)
    return path


def test_the_whole_layout(folder: Path) -> None:
    assert recognise(folder)
    source = opened(folder)
    assert source.layout == source.submission == "signate" and not source.problems
    assert source.task.kind == "multiclass" and source.task.classes == CATEGORIES == STREET_CLASSES
    assert [record.id for record in source.records] == [f"train_{number:04d}" for number in range(4)]
    assert [dict(record.attributes) for record in source.records] == [
        {"route": route, "timeofday": time} for time in ("day", "night") for route in ("A", "B")
    ]
    first = source.records[0]
    assert first.size == SIZE and first.group == first.id
    assert np.array_equal(read_truth(first, source.task, source.coding), striped())
    assert [record.id for record in source.unlabelled] == ["test_000", "test_001"]
    assert all(is_test(record) for record in source.unlabelled) and not is_test(first)
    assert any("2 photos of seg_test_images/ are to be predicted" in note for note in source.notes)
    assert DataSource.from_json(source.to_json(), folder) == source


def test_the_colours_are_the_published_ones() -> None:
    assert len(CATEGORIES) == len(set(COLOURS.values())) == 20
    assert [COLOURS[name] for name in SCORED] == [(0, 0, 255), (255, 0, 0), (69, 47, 142), (255, 255, 0)]
    assert COLOURS["svehicle"] == (255, 121, 166) and COLOURS["roadshoulder"] == (215, 0, 255)
    assert CATEGORIES[-1] == "own" and COLOURS["own"] == (86, 62, 67)


def test_folds_are_stratified_by_route_and_time_of_day(tmp_path: Path) -> None:
    """Of each of the four combinations every fold gets its share, one photo more or less."""
    source = opened(fill(tmp_path, count=30, tests=0))
    settings = FoldSettings(count=7, stratify="attributes", attributes=("route", "timeofday"), seed=42)
    folds = make_folds(source.records, settings).fold_of()
    for route in "AB":
        for time in ("day", "night"):
            counts = [
                sum(
                    folds[record.id] == fold and record.attributes == {"route": route, "timeofday": time}
                    for record in source.records
                )
                for fold in range(7)
            ]
            assert max(counts) - min(counts) <= 1 and sum(counts) >= 7


def test_a_few_classes_before_a_background(folder: Path) -> None:
    source = opened(folder, classes=["car", "pedestrian", "lane", "signal"])
    assert source.task.classes == SCORED_CLASSES
    labels = read_truth(source.records[0], source.task, source.coding)
    expected = np.zeros(SIZE, np.uint8)
    for label, name in enumerate(SCORED, start=1):
        expected[striped() == CATEGORIES.index(name)] = label
    assert np.array_equal(labels, expected)
    with pytest.raises(UserError, match=r"data\.classes: no class is called 'cars'; did you mean 'car'"):
        opened(folder, classes=["cars"])
    with pytest.raises(UserError, match="become two classes or more, found 'background' alone"):
        opened(folder, classes=[])


def test_a_table_merges_and_drops(folder: Path) -> None:
    table(folder, "bus: vehicle\ntruck: vehicle\ncar: vehicle\nown:\nothers: ignore\n")
    source = opened(folder)
    assert source.task.classes[:2] == ("vehicle", "pedestrian") and len(source.task.classes) == 16
    assert any("18 of 20 categories are learnt as 16 classes; pixels of others, own" in note for note in source.notes)
    labels = read_truth(source.records[0], source.task, source.coding)
    for category, label in (("car", 0), ("bus", 0), ("truck", 0), ("lane", 2), ("own", IGNORE), ("others", IGNORE)):
        assert set(labels[striped() == CATEGORIES.index(category)].tolist()) == {label}
    kept = opened(folder, classes=["vehicle", "lane"])
    assert kept.task.classes == (BACKGROUND, "vehicle", "lane")
    labels = read_truth(kept.records[0], kept.task, kept.coding)
    assert set(labels[striped() == CATEGORIES.index("own")].tolist()) == {IGNORE}
    assert palette(kept.task, kept.coding) == ((0, 0, 0), (0, 0, 255), (69, 47, 142))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\n".join(f"{name}:" for name in CATEGORIES), "two classes or more, found none: every category is left out"),
        ("\n".join(f"{name}: road" for name in CATEGORIES), "two classes or more, found 'road' alone"),
        ("buss: vehicle", "unknown category 'buss'; did you mean 'bus'"),
        ("bus: 3", "bus: expected the name of a class, or nothing to leave it out, found 3"),
        ("bus: ' '", "bus: expected the name of a class"),
        ("[bus, truck]", "expected a mapping of category to class"),
        ("", "expected a mapping of category to class"),
        ("bus: [", "expected YAML"),
    ],
)
def test_tables_that_mean_nothing(folder: Path, text: str, reason: str) -> None:
    path = table(folder, text)
    with pytest.raises(UserError, match=reason) as caught:
        opened(folder)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match=reason):
        read_class_table(path)


def test_a_background_of_ones_own_comes_first() -> None:
    merged = ClassTable({name: BACKGROUND for name in CATEGORIES if name not in SCORED})
    assert merged.classes == (BACKGROUND, *SCORED) and ALL.classes == CATEGORIES
    assert ALL.keeping(SCORED) == merged


def test_a_colour_that_no_class_has_is_named_with_its_place(folder: Path) -> None:
    colours = coloured(striped())
    colours[5, 30] = colours[6, 1] = (1, 2, 3)
    colours[23, 0] = 9
    path = folder / "seg_train_annotations" / f"{FIRST}.png"
    write_png(path, colours)
    source = opened(folder)
    with pytest.raises(BadFile, match=r"found \(1, 2, 3\) in 2 pixels, \(9, 9, 9\) in 1 pixels"):
        read_truth(source.records[0], source.task, source.coding)
    with pytest.raises(BadFile, match=r"train_0000\.png: .*\(the first is \(1, 2, 3\) in row 5, column 30\)"):
        read_annotation(path, source.coding)
    other = folder / "seg_train_annotations" / "train_0001.png"
    assert np.array_equal(read_annotation(other, source.coding), striped(1))


def test_missing_attributes_are_unknown_and_said(folder: Path) -> None:
    annotations = folder / "seg_train_annotations"
    (annotations / "train_0001.json").unlink()
    (annotations / "train_0002.json").write_text(json.dumps({"attributes": {"route": 7, "weather": "rain"}}))
    (annotations / "train_0003.json").write_text(json.dumps({"frame": 1}))
    source = opened(folder)
    assert [dict(record.attributes) for record in source.records[1:]] == [
        {"route": "unknown", "timeofday": "unknown"},
        {"route": "7", "timeofday": "unknown", "weather": "rain"},
        {"route": "unknown", "timeofday": "unknown"},
    ]
    assert "2 photos have no attribute route, which is taken as 'unknown': train_0001, train_0003" in source.notes
    assert any(note.startswith("3 photos have no attribute timeofday") for note in source.notes)


def replaced(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (replaced(f"seg_train_images/{FIRST}.jpg", b"text"), r"train_0000\.jpg: expected an image"),
        (replaced(f"seg_train_annotations/{FIRST}.png", b"text"), r"train_0000\.png: expected an image"),
        (replaced(f"seg_train_annotations/{FIRST}.json", b"{"), r'train_0000\.json: expected JSON with "attributes"'),
    ],
)
def test_damaged_files_can_be_left_out(folder: Path, spoil: Callable[[Path], object], reason: str) -> None:
    spoil(folder)
    with pytest.raises(BadFile, match=reason):
        opened(folder)
    source = opened(folder, skip_bad=True)
    assert [record.id for record in source.records] == ["train_0001", "train_0002", "train_0003"]
    assert len(source.problems) == 1 and len(source.unlabelled) == 2


def test_a_truth_of_another_size_is_refused(folder: Path) -> None:
    write_png(folder / "seg_train_annotations" / f"{FIRST}.png", coloured(striped()[:, :-1]))
    with pytest.raises(BadSize, match="train_0000: the mask is 31×24"):
        opened(folder)
    assert len(opened(folder, skip_bad=True).records) == 3


def test_strangers_are_named_and_can_be_left_out(folder: Path) -> None:
    write_png(folder / "seg_train_annotations" / "train_0099.png", coloured(striped()))
    with pytest.raises(BadFile, match=r"train_0099\.png: an annotation without a photo in seg_train_images/"):
        opened(folder)
    assert len(opened(folder, skip_bad=True).records) == 4
    write_png(folder / "seg_train_annotations" / "train_0000.bmp", coloured(striped()))
    write_png(folder / "seg_train_images" / "train_0001.png", coloured(striped()))
    reasons = [str(problem) for problem in opened(folder, skip_bad=True).problems]
    assert any(f"a second annotation for one photo (beside {FIRST}.bmp)" in reason for reason in reasons)
    assert any("train_0001.png: a second photo of that name" in reason for reason in reasons)


def test_photos_without_annotation_are_predicted(folder: Path) -> None:
    (folder / "seg_train_annotations" / f"{FIRST}.png").unlink()
    source = opened(folder)
    assert [record.id for record in source.unlabelled] == [FIRST, "test_000", "test_001"]
    assert [is_test(record) for record in source.unlabelled] == [False, True, True]
    assert any("1 photos of seg_train_images/ have no annotation" in note for note in source.notes)


def test_folders_that_are_not_there(tmp_path: Path) -> None:
    assert not recognise(tmp_path) and not recognise(tmp_path / "none")
    with pytest.raises(UserError, match="seg_train_images: no such folder"):
        opened(tmp_path)
    write_photo(tmp_path / "seg_train_images" / "a.jpg")
    with pytest.raises(UserError, match="seg_train_annotations: no such folder"):
        opened(tmp_path)
    (tmp_path / "seg_train_annotations").mkdir()
    with pytest.raises(UserError, match="expected annotations named like the photos"):
        opened(tmp_path)
    write_png(tmp_path / "seg_train_annotations" / "a.png", coloured(striped()))
    source = opened(tmp_path)
    assert not source.unlabelled and any("no photo in seg_test_images/" in note for note in source.notes)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"task": "binary"}, "Signate is a multiclass task"),
        ({"images": "photos"}, r"leave data\.images out"),
        ({"masks": "masks"}, r"leave data\.masks out"),
        ({"ignore": [0]}, "annotations hold colours, not values"),
    ],
)
def test_settings_that_do_not_fit(folder: Path, settings: dict[str, object], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        opened(folder, **settings)
