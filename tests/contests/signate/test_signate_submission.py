"""The submission: segments of masks, a file in the order of the photos, and a reader that takes nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streets import rows_by_pixel

from maskloom.contests.signate.colours import CATEGORIES, SCORED
from maskloom.contests.signate.submission import (
    Segments,
    SignateWriter,
    label_segments,
    mask_segments,
    read_submission,
    segments_mask,
    validate,
)
from maskloom.errors import BadFile, UserError
from maskloom.records import IGNORE

IMAGES = ("test_002.jpg", "test_000.jpg", "test_001.jpg")


def segments(*rows: tuple[int, int, int]) -> Segments:
    return np.array(rows, np.int64).reshape(-1, 3)


def plain(content: dict[str, Segments]) -> dict[str, list[list[int]]]:
    return {category: found.tolist() for category, found in content.items()}


def written(path: Path, text: Any) -> Path:
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    return path


def test_segments_of_a_known_mask() -> None:
    mask = np.array([[1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0]], bool)
    assert mask_segments(mask).tolist() == [[0, 0, 1], [0, 3, 3], [2, 0, 3], [3, 1, 1]]
    assert mask_segments(np.zeros((2, 3), bool)).shape == (0, 3)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9))
def test_masks_come_back(seed: int, height: int, width: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    assert np.array_equal(segments_mask(mask_segments(mask), (height, width)), mask)


def test_segments_that_touch_or_stand_apart_are_drawn() -> None:
    drawn = segments_mask(segments((1, 0, 1), (1, 2, 4)), (3, 6))
    assert drawn[1].tolist() == [True] * 5 + [False] and drawn.sum() == 5
    for outside in ((3, 0, 0), (0, 0, 6), (-1, 0, 0)):
        with pytest.raises(ValueError, match="inside 6×3"):
            segments_mask(segments(outside), (3, 6))


def test_labels_give_the_categories_that_occur() -> None:
    labels = np.array([[0, 0, 10], [2, IGNORE, 8]], np.uint8)
    found = label_segments(labels, CATEGORIES)
    assert plain(found) == {"car": [[0, 0, 1]], "lane": [[1, 0, 0]], "signal": [[1, 2, 2]]}
    assert plain(label_segments(labels, ("background", "lane", "car"))) == {"car": [[1, 0, 0]]}


@given(st.integers(0, 2**32 - 1))
def test_labels_give_what_a_loop_over_pixels_gives(seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 5, (6, 9)).astype(np.uint8)
    expected = rows_by_pixel(labels, CATEGORIES[:4])
    found = label_segments(labels, CATEGORIES, CATEGORIES[:4])
    assert found.keys() == expected.keys()
    for category, rows in expected.items():
        flat = [[int(row), *segment] for row, row_segments in rows.items() for segment in row_segments]
        assert found[category].tolist() == flat


def test_the_file_is_what_is_published(tmp_path: Path) -> None:
    path = tmp_path / "submission.json"
    with SignateWriter(path, IMAGES) as writer:
        writer.write("test_001.jpg", {})
        writer.write("test_000.jpg", {"lane": segments((3, 0, 4)), "car": segments((0, 1, 1), (0, 5, 9), (12, 0, 0))})
        writer.write("test_002.jpg", {"signal": segments(), "pedestrian": segments((7, 7, 7))})
    assert json.loads(path.read_text()) == {
        "test_002.jpg": {"pedestrian": {"7": [[7, 7]]}},
        "test_000.jpg": {"car": {"0": [[1, 1], [5, 9]], "12": [[0, 0]]}, "lane": {"3": [[0, 4]]}},
        "test_001.jpg": {},
    }
    assert list(json.loads(path.read_text())) == list(IMAGES)
    assert [name for name, _ in read_submission(path)] == list(IMAGES)
    assert plain(dict(read_submission(path))["test_000.jpg"]) == {
        "car": [[0, 1, 1], [0, 5, 9], [12, 0, 0]],
        "lane": [[3, 0, 4]],
    }
    validate(path, dict.fromkeys(IMAGES, (13, 10)))


def test_nothing_is_left_of_a_file_that_is_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "submission.json"
    missing = r"expected 3 images, found none for test_000\.jpg, test_001\.jpg"
    with pytest.raises(UserError, match=missing), SignateWriter(path, IMAGES) as writer:
        writer.write("test_002.jpg", {})
    with pytest.raises(RuntimeError, match="stopped"), SignateWriter(path, IMAGES) as writer:
        writer.write("test_000.jpg", {})
        raise RuntimeError("stopped")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="not among the 3 expected"), SignateWriter(path, IMAGES) as writer:
        writer.write("photo.jpg", {})
    with pytest.raises(ValueError, match="categories of the contest"), SignateWriter(path, IMAGES) as writer:
        writer.write("test_000.jpg", {"cars": segments((0, 0, 0))})
    assert not list(tmp_path.iterdir())


def test_an_empty_submission(tmp_path: Path) -> None:
    with SignateWriter(tmp_path / "s.json", ()):
        pass
    assert list(read_submission(tmp_path / "s.json")) == []
    assert list(read_submission(written(tmp_path / "other.json", " { } \n"))) == []


def test_rows_and_segments_may_stand_in_any_order_and_be_empty(tmp_path: Path) -> None:
    content = {"a.jpg": {"car": {"9": [[3, 4], [0, 1]], "0": [[2, 2]], "5": []}, "sky": {}}}
    (one,) = read_submission(written(tmp_path / "s.json", "\ufeff" + json.dumps(content, indent=1)))
    assert one[0] == "a.jpg" and plain(one[1]) == {"car": [[0, 2, 2], [9, 0, 1], [9, 3, 4]]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "expected '{' at character 0, found the end of the file"),
        ("[]", "expected '{' at character 0, found '\\['"),
        ('{"a.jpg": {}', "expected ',' or '}' at character 12, found the end"),
        ('{"a.jpg" {}}', "expected ':' at character 9"),
        ('{"a.jpg": {"car": {"0": [[0, 1', "expected JSON, found something else .*cut off"),
        ('{"a.jpg": {}} {', "expected the end of the file at character 14"),
        ('{"a.jpg": {},}', "expected JSON"),
        ("{1: {}}", "expected the name of an image, found 1"),
        ('{"a.jpg": {}, "a.jpg": {}}', "found the image 'a.jpg' twice"),
        ('{"a.jpg": {"car": {}, "car": {}}}', "found 'car' twice in one object"),
        ('{"a.jpg": {"car": {"1": [], "1": []}}}', "found '1' twice in one object"),
        ({"a.jpg": []}, r"a\.jpg: expected segments by category, found \[\]"),
        ({"a.jpg": {"cars": {}}}, r"a\.jpg: unknown category 'cars'; did you mean 'car'"),
        ({"a.jpg": {"car": []}}, r"a\.jpg car: expected lists of segments by row"),
        ({"a.jpg": {"car": {"first": []}}}, "expected the number of a row, found 'first'"),
        ({"a.jpg": {"car": {"01": []}}}, "expected the number of a row, found '01'"),
        ({"a.jpg": {"car": {"-1": []}}}, "expected the number of a row"),
        ({"a.jpg": {"car": {"1" * 5000: []}}}, "expected the number of a row"),
        ({"a.jpg": {"car": {"1": {}}}}, "row 1: expected a list of segments"),
        ({"a.jpg": {"car": {"1": [[1, 2, 3]]}}}, r"row 1: expected segments \[first, last\] of integers, found \[1, 2"),
        ({"a.jpg": {"car": {"1": [[1, 2.0]]}}}, "of integers"),
        ({"a.jpg": {"car": {"1": [[True, 2]]}}}, "of integers"),
        ({"a.jpg": {"car": {"1": [5]}}}, "of integers, found 5"),
        ({"a.jpg": {"car": {"1": [[3, 2]]}}}, r"row 1: expected segments \[first, last\] from 0 on, found \[3, 2\]"),
        ({"a.jpg": {"car": {"1": [[-1, 2]]}}}, "from 0 on"),
        ({"a.jpg": {"car": {"1": [[0, 10**30]]}}}, "from 0 on"),
        ({"a.jpg": {"car": {"1": [[4, 6], [0, 4]]}}}, r"row 1: expected segments that do not overlap, found \[0, 4\]"),
    ],
)  # fmt: skip
def test_what_is_no_submission_is_named_in_one_line(tmp_path: Path, content: Any, reason: str) -> None:
    path = written(tmp_path / "s.json", content)
    with pytest.raises(BadFile, match=reason) as caught:
        list(read_submission(path))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="no such file"):
        list(read_submission(tmp_path / "none.json"))
    (tmp_path / "s.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadFile, match="UTF-8 text"):
        list(read_submission(tmp_path / "s.json"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"a.jpg": {}}, r"expected 2 images, found none for b\.jpg"),
        ({"b.jpg": {}, "a.jpg": {}}, r"expected 'a\.jpg' as image 1, found 'b\.jpg'"),
        ({"a.jpg": {}, "c.jpg": {}}, r"found the image 'c\.jpg', which is none of the 2"),
        ({"a.jpg": {"sky": {"0": [[0, 0]]}}, "b.jpg": {}}, r"a\.jpg: expected the categories car, .*, found 'sky'"),
        ({"a.jpg": {"car": {"0": [[0, 6]]}}, "b.jpg": {}}, r"a\.jpg car: expected segments inside 6×4"),
        ({"a.jpg": {"car": {"4": [[0, 0]]}}, "b.jpg": {}}, r"inside 6×4"),
        ({"a.jpg": {"car": {"3": [[0, 4]]}, "lane": {"3": [[3, 5]]}}, "b.jpg": {}}, "lane over car in row 3, col"),
    ],
)  # fmt: skip
def test_a_submission_about_other_photos_is_refused(tmp_path: Path, content: Any, reason: str) -> None:
    path = written(tmp_path / "s.json", content)
    with pytest.raises(BadFile, match=reason):
        validate(path, {"a.jpg": (4, 6), "b.jpg": (4, 6)})


def test_scored_categories_are_the_published_ones() -> None:
    assert SCORED == ("car", "pedestrian", "lane", "signal")
