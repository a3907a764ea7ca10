"""The contest's score against values worked out by hand, and against an implementation of its words alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streets import Rows, coloured, rows_by_pixel, score_by_pixels, write_png

from maskloom.contests.signate.class_table import ALL, ClassTable
from maskloom.contests.signate.colours import CATEGORIES, SCORED
from maskloom.contests.signate.scoring import (
    image_score,
    iou_of_labels,
    iou_of_segments,
    main,
    score,
    score_files,
    score_of_counts,
)
from maskloom.contests.signate.submission import label_segments
from maskloom.errors import BadFile, UserError
from maskloom.metrics import from_labels
from maskloom.records import IGNORE, BadSize

CAR, PEDESTRIAN, LANE, SIGNAL = (CATEGORIES.index(name) for name in SCORED)
SKY = CATEGORIES.index("sky")

BY_HAND: dict[str, tuple[Rows, Rows, float | None]] = {
    # 4 and 4 pixels, 2 in common: 2/6. All of the lane: 1.
    "overlap": (
        {"car": {"3": [[0, 3]]}, "lane": {"7": [[0, 9]], "8": [[2, 4]]}},
        {"car": {"3": [[2, 5]]}, "lane": {"7": [[0, 9]], "8": [[2, 4]]}},
        (1 / 3 + 1) / 2,
    ),
    # The same columns of another row have nothing in common.
    "another row": ({"car": {"3": [[0, 3]]}}, {"car": {"4": [[0, 3]]}}, 0.0),
    # Both ends belong to a segment: one pixel of three.
    "both ends": ({"signal": {"0": [[5, 7]]}}, {"signal": {"0": [[7, 7]]}}, 1 / 3),
    # Two segments against one that spans them and the gap: 4 of 6.
    "gap": ({"lane": {"1": [[0, 1], [4, 5]]}}, {"lane": {"1": [[0, 5]]}}, 4 / 6),
    # A category of the truth that is not predicted is worth 0.
    "not predicted": ({"car": {"0": [[0, 0]]}, "pedestrian": {"0": [[9, 9]]}}, {"car": {"0": [[0, 0]]}}, 1 / 2),
    # One that is predicted where the truth has none changes nothing.
    "absent in the truth": ({"car": {"0": [[0, 0]]}}, {"car": {"0": [[0, 0]]}, "signal": {"5": [[0, 99]]}}, 1.0),
    # An empty truth has no mean, whatever is predicted.
    "empty truth": ({}, {"car": {"0": [[0, 3]]}}, None),
    "both empty": ({}, {}, None),
    "nothing predicted": ({"car": {"0": [[0, 3]]}, "lane": {"2": [[0, 3]]}}, {}, 0.0),
}
"""Truth, prediction and what the image is worth."""
MEAN = ((1 / 3 + 1) / 2 + 0 + 1 / 3 + 4 / 6 + 1 / 2 + 1 + 0) / 7


def written(path: Path, images: dict[str, Rows]) -> Path:
    path.write_text(json.dumps(images))
    return path


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    truth = written(tmp_path / "truth.json", {f"{name}.jpg": true for name, (true, _, _) in BY_HAND.items()})
    return truth, written(tmp_path / "found.json", {f"{name}.jpg": found for name, (_, found, _) in BY_HAND.items()})


def test_every_rule_by_hand(sides: tuple[Path, Path]) -> None:
    found = score_files(*sides)
    expected = {f"{name}.jpg": worth for name, (_, _, worth) in BY_HAND.items() if worth is not None}
    assert found.images == pytest.approx(expected, abs=1e-12)
    assert found.mean == pytest.approx(MEAN, abs=1e-12)
    assert found.empty == ("empty truth.jpg", "both empty.jpg") and not found.missing and not found.extra
    assert list(found.categories) == ["car", "pedestrian", "lane", "signal"]
    assert found.categories["lane"] == pytest.approx((1 + 4 / 6 + 0) / 3)


def test_the_other_implementation_agrees_by_hand() -> None:
    truth = {name: true for name, (true, _, _) in BY_HAND.items()}
    predicted = {name: found for name, (_, found, _) in BY_HAND.items()}
    assert score_by_pixels(truth, predicted) == pytest.approx(MEAN, abs=1e-12)


def test_a_missing_image_is_worth_0_and_one_too_many_changes_nothing(tmp_path: Path) -> None:
    truth = written(tmp_path / "truth.json", {"a.jpg": {"car": {"0": [[0, 1]]}}, "b.jpg": {"car": {"0": [[0, 1]]}}})
    predicted = written(tmp_path / "p.json", {"a.jpg": {"car": {"0": [[0, 1]]}}, "z.jpg": {"car": {"0": [[0, 1]]}}})
    found = score_files(truth, predicted)
    assert found.mean == 0.5 and found.missing == ("b.jpg",) and found.extra == ("z.jpg",)


def scored_rows(labels: np.ndarray) -> Rows:
    return {category: rows for category, rows in rows_by_pixel(labels, CATEGORIES).items() if category in SCORED}


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_labels_segments_and_sets_of_pixels_agree(seed: int) -> None:
    """Random images, some of whose categories are absent on either side or on both, an empty truth among them."""
    rng = np.random.default_rng(seed)
    truth: dict[str, Rows] = {}
    predicted: dict[str, Rows] = {}
    by_labels, by_segments = {}, {}
    for image in range(4):
        present = rng.permutation(len(CATEGORIES))[: rng.integers(1, 8)] if image else np.array([SKY])
        pair = [rng.choice(present, (7, 11)).astype(np.uint8) for _ in range(2)]
        true, found = (np.maximum.accumulate(labels, axis=1) if rng.random() < 0.5 else labels for labels in pair)
        name = f"{image}.jpg"
        truth[name], predicted[name] = scored_rows(true), scored_rows(found)
        by_labels[name] = iou_of_labels(true, found, CATEGORIES)
        by_segments[name] = iou_of_segments(label_segments(true, CATEGORIES), label_segments(found, CATEGORIES))
        assert by_segments[name] == pytest.approx(by_labels[name], abs=1e-12)
    if not any(by_labels.values()):
        with pytest.raises(UserError, match="nothing to score"):
            score(by_labels.items())
        return
    assert score(by_labels.items()).mean == pytest.approx(score_by_pixels(truth, predicted), abs=1e-9)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_counts_give_the_score_of_the_masks(seed: int) -> None:
    """What a run stores of its out-of-fold masks is enough; some pixels are ignored, some images hold no category."""
    rng = np.random.default_rng(seed)
    counts, by_labels = {}, {}
    for image in range(3):
        present = rng.permutation(len(CATEGORIES))[: rng.integers(1, 8)] if image else np.array([SKY])
        true, found = (rng.choice(present, (7, 11)).astype(np.uint8) for _ in range(2))
        true[rng.random((7, 11)) < 0.1] = IGNORE
        counts[f"{image}"] = from_labels(found, true, ALL.task())
        by_labels[f"{image}"] = iou_of_labels(true, found, CATEGORIES)
    scored = score_of_counts(counts, ALL.task(), ALL.coding())
    if not any(by_labels.values()):
        assert scored is None
        return
    expected = score(by_labels.items())
    assert scored is not None and scored.score == pytest.approx(expected.mean, abs=1e-12)
    assert scored.classes == pytest.approx(expected.categories, abs=1e-12) and not scored.lacking
    assert not scored.ignored
    assert scored.num_images == len(expected.images)


def test_counts_of_merged_classes_score_what_is_left() -> None:
    table = ClassTable({"pedestrian": "person", "others": "person", "signal": None})
    task = table.task()
    true = np.array([[task.classes.index(name) for name in ("car", "car", "lane", "person")]], np.uint8)
    found = np.array([[task.classes.index(name) for name in ("car", "lane", "lane", "person")]], np.uint8)
    scored = score_of_counts({"a": from_labels(found, true, task)}, task, table.coding())
    assert scored is not None and scored.lacking == ["pedestrian", "signal"] and scored.ignored == ("signal",)
    assert scored.classes == {"car": 0.5, "lane": 0.5} and scored.score == 0.5
    assert scored.to_json()["lacking"] == ["pedestrian", "signal"] and scored.to_json()["ignored"] == ["signal"]


def test_a_class_that_only_bears_a_categorys_name_is_not_scored() -> None:
    """Buses are learnt as cars: what the masks say of cars alone is not known. Names decide nothing."""
    table = ClassTable({"bus": "car", "lane": "signal", "signal": "lane", "pedestrian": "person"})
    task, coding = table.task(), table.coding()
    label_of = {name: task.classes.index(name) for name in task.classes}
    true = np.array([[label_of[name] for name in ("car", "lane", "lane", "person")]], np.uint8)
    found = np.array([[label_of[name] for name in ("car", "lane", "sky", "person")]], np.uint8)
    scored = score_of_counts({"a": from_labels(found, true, task)}, task, coding)
    assert scored is not None and scored.lacking == ["car"]
    assert scored.classes == {"pedestrian": 1.0, "signal": 0.5}  # the class "lane" has the colour of signals


def test_perfection_is_1_and_inversion_0() -> None:
    places = np.array([CAR, PEDESTRIAN, LANE, SIGNAL], np.uint8)
    drawn = np.random.default_rng(0).integers(0, 4, (9, 13))
    right, wrong = places[drawn], places[(drawn + 1) % 4]
    assert iou_of_labels(right, right, CATEGORIES) == dict.fromkeys(SCORED, 1.0)
    assert iou_of_labels(right, wrong, CATEGORIES) == dict.fromkeys(SCORED, 0.0)


def test_ignored_pixels_count_nowhere() -> None:
    truth = np.array([[CAR, CAR, IGNORE, SKY]], np.uint8)
    assert iou_of_labels(truth, np.array([[CAR, SKY, CAR, CAR]], np.uint8), CATEGORIES) == {"car": pytest.approx(1 / 3)}
    assert iou_of_labels(np.full((2, 2), IGNORE, np.uint8), np.zeros((2, 2), np.uint8), CATEGORIES) == {}


def test_other_categories_can_be_scored() -> None:
    truth = np.array([[SKY, SKY, CAR]], np.uint8)
    assert iou_of_labels(truth, np.array([[SKY, CAR, CAR]], np.uint8), CATEGORIES, categories=("sky",)) == {"sky": 0.5}
    assert image_score({"sky": 0.5, "car": 1.0}) == 0.75 and image_score({}) is None
    assert list(score([("a", {"zebra": 0.5, "lane": 1.0})]).categories) == ["lane", "zebra"]


def test_folders_of_colours_are_scored_like_submissions(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    truth, predicted = tmp_path / "truth", tmp_path / "predicted"
    images: dict[str, Rows] = {}
    for number in range(3):
        true, found = rng.integers(0, 6, (2, 8, 10)).astype(np.uint8)
        write_png(truth / f"test_{number:03d}.png", coloured(true))
        colours = coloured(found)
        colours[0] = 0  # where a prediction has no category
        write_png(predicted / f"test_{number:03d}.png", colours)
        found[0] = len(CATEGORIES)
        rows = rows_by_pixel(found, CATEGORIES)
        images[f"test_{number:03d}.jpg"] = {name: rows[name] for name in SCORED if name in rows}
    by_folders = score_files(truth, predicted)
    by_file = score_files(truth, written(tmp_path / "p.json", images))
    assert by_folders == by_file and 0 < by_file.mean < 1
    write_png(predicted / "test_001.png", coloured(np.zeros((8, 9), np.uint8)))
    with pytest.raises(BadSize, match=r"test_001\.jpg: the mask is 9×8"):
        score_files(truth, predicted)


def folder_of(path: Path, labels: np.ndarray, name: str = "test_000") -> Path:
    write_png(path / f"{name}.png", coloured(labels))
    return path


def test_segments_outside_of_the_others_size_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "folder", np.zeros((4, 4), np.uint8))
    rows = written(tmp_path / "rows.json", {"test_000.jpg": {"car": {"0": [[0, 1]], "100": [[0, 1]]}}})
    for truth, predicted in ((folder, rows), (rows, folder)):
        with pytest.raises(BadFile, match=r"rows\.json: test_000\.jpg car: expected segments inside 4×4"):
            score_files(truth, predicted)


def test_two_categories_in_one_pixel_are_refused(tmp_path: Path) -> None:
    truth = written(tmp_path / "truth.json", {"a.jpg": {"car": {"2": [[0, 9]]}}})
    twice = written(tmp_path / "twice.json", {"a.jpg": {"lane": {"2": [[4, 5]]}, "car": {"2": [[0, 1], [3, 4]]}}})
    for sides in ((truth, twice), (twice, truth)):
        with pytest.raises(BadFile, match=r"twice\.json: a\.jpg: .* found lane over car in row 2, column 4"):
            score_files(*sides)


@pytest.mark.parametrize("suffix", [".jpeg", ".JPG", ".png"])
def test_a_folder_is_of_the_photos_of_its_names(tmp_path: Path, suffix: str) -> None:
    folder = folder_of(tmp_path / "folder", np.zeros((1, 4), np.uint8))
    rows = written(tmp_path / "rows.json", {f"test_000{suffix}": {"car": {"0": [[0, 1]]}}})
    for sides in ((folder, rows), (rows, folder)):
        assert score_files(*sides).images == {f"test_000{suffix}": 0.5}
    both = written(tmp_path / "both.json", {"test_000.jpg": {}, "test_000.JPG": {}})
    with pytest.raises(BadFile, match=r"differ before the suffix, found test_000\.jpg and test_000\.JPG"):
        score_files(folder, both)


def test_a_strange_colour_in_the_truth_is_named_with_its_place(tmp_path: Path) -> None:
    colours = coloured(np.zeros((6, 7), np.uint8))
    colours[4, 2] = (1, 2, 3)
    colours[5, 0] = 0
    write_png(tmp_path / "truth" / "test_000.png", colours)
    with pytest.raises(BadFile, match=r"the first is \(1, 2, 3\) in row 4, column 2"):
        score_files(tmp_path / "truth", tmp_path / "truth")


def test_what_cannot_be_scored(tmp_path: Path, sides: tuple[Path, Path]) -> None:
    other = written(tmp_path / "other.json", {"photo.jpg": {"car": {"0": [[0, 1]]}}})
    with pytest.raises(UserError, match=r"expected images of truth\.json, such as absent in the truth\.jpg, found"):
        score_files(sides[0], other)
    empty = written(tmp_path / "empty.json", {"a.jpg": {}})
    with pytest.raises(UserError, match="found none in 1 images"):
        score_files(empty, empty)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"expected colour annotations <id>\.png, found none"):
        score_files(sides[0], tmp_path / "folder")
    with pytest.raises(UserError, match=r"the truth's size 3×2 \(width×height\), found 2×3"):
        iou_of_labels(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), CATEGORIES)
    with pytest.raises(UserError, match="no class is called 'lanes'; did you mean 'lane'"):
        iou_of_labels(np.zeros((2, 3), np.uint8), np.zeros((2, 3), np.uint8), CATEGORIES, categories=("lanes",))


def test_the_door(sides: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(sides[0]), str(sides[1])])
    printed = capsys.readouterr().out
    assert f"score: {MEAN:.6f} over 7 images" in printed and "empty: 2 images" in printed
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / "nothing.json"), str(sides[1])])
    assert caught.value.code == 2 and "no such file" in capsys.readouterr().err
