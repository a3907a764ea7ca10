from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from maskloom.data.image_io import write_png
from maskloom.data.mask_coding import MaskCoding
from maskloom.data.sources.base import DataSource
from maskloom.data.statistics import RecordFacts, survey
from maskloom.outputs.findings import class_frequencies, find, inspection_table, kinds_note, oddity, sizes_text
from maskloom.outputs.inspection import write_inspection
from maskloom.records import MaskFile, Record, Task, TaskKind

TASK = Task(kind="multiclass", classes=("background", "<b>cell</b>"))


@pytest.fixture
def source(tmp_path: Path) -> DataSource:
    """Six textures: 1 is a copy of 0, 3 a brighter one of 2, the mask of 4 is empty, the image of 5 is damaged."""
    rng = np.random.default_rng(0)
    data = tmp_path / "data"
    data.mkdir()
    coding = MaskCoding(kind="values", values=((0, 0), (1, 1)))
    images = [cv2.resize(rng.integers(0, 256, (16, 16, 3)).astype(np.uint8), (60, 40)) for _ in range(9)]
    images[1] = images[0]
    images[3] = (images[2] * 0.9 + 10).astype(np.uint8)
    records = []
    for index, image in enumerate(images):
        mask = np.zeros((40, 60), np.uint8)
        mask[10:20, 10:30] = index != 4
        write_png(data / f"{index}.png", image)
        write_png(data / f"{index}_mask.png", mask)
        records.append(
            Record(
                id=f"id{index}",
                image=data / f"{index}.png",
                size=(40, 60),
                truth=MaskFile(path=data / f"{index}_mask.png"),
                attributes={"time": "day" if index % 2 else "night"},
            )
        )
    (data / "5.png").write_bytes((data / "5.png").read_bytes()[:200])
    return DataSource(
        layout="folder", root=data, task=TASK, coding=coding, records=tuple(records), notes=("a guess & more",)
    )


def test_page_and_table_tell_what_was_planted(source: DataSource, tmp_path: Path) -> None:
    found = survey(source, workers=2)
    seen = write_inspection(tmp_path / "page.html", source, found)
    assert seen.exact == (("id0", "id1"),)
    assert [(pair.first, pair.second) for pair in seen.near] == [("id2", "id3")]
    assert seen.suspicious == (("id4", "every pixel is background"),)
    assert [problem.path.name for problem in seen.problems] == ["5.png"]  # type: ignore[attr-defined]
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    for expected in ("id0 = id1", "id4: every pixel is background", "5.png", "a guess &amp; more", "night (5)"):
        assert expected in text
    assert "folds.merge_near_duplicates=true" in text and "with --set folds.kind=kfold" in text
    assert "<b>cell" not in text
    assert text.count("<img") == 8 + 1 + 1 + 2  # examples, suspicious, exact, near
    table = inspection_table(source, found, seen)
    assert "9 with masks, 0 without" in table
    assert "1 set of equal images" in table
    assert "1 pair across groups" in table
    assert "1 every pixel is background" in table
    assert "problem: " in table and "note: a guess & more" in table
    assert table.splitlines()[-1].startswith("1 damaged or mismatched file: mend or remove them")
    assert "\x1b" not in table


def test_images_without_masks_are_looked_at_where_the_survey_did(source: DataSource, tmp_path: Path) -> None:
    plain = [replace(record, truth=None) for record in source.records]
    apart = replace(source, records=source.records[:1] + source.records[2:3], unlabelled=(plain[1], plain[3], plain[5]))
    found = survey(apart, workers=1, unlabelled=True)
    seen = write_inspection(tmp_path / "page.html", apart, found)
    assert (seen.num_exact_across, seen.num_near_across) == (1, 1)
    assert [problem.path.name for problem in seen.problems] == ["5.png"]  # type: ignore[attr-defined]
    table = inspection_table(apart, found, seen)
    assert "1 pair across groups, 1 of them of images with and without a mask" in table
    assert "in 2 of 2 images" in table
    assert "1 set with and without a mask" in (tmp_path / "page.html").read_text("utf-8")


def test_clean_data_says_so(source: DataSource, tmp_path: Path) -> None:
    clean = replace(source, records=(source.records[0], *source.records[6:]))
    write_inspection(tmp_path / "page.html", clean, survey(clean))
    assert "No damaged file, no suspicious mask, no duplicate was found." in (tmp_path / "page.html").read_text("utf-8")


def test_images_of_another_kind_than_most_are_told(tmp_path: Path) -> None:
    colour = np.zeros((8, 8, 3), np.uint8)
    truth, records = tmp_path / "mask.png", []
    write_png(truth, np.eye(8, dtype=np.uint8))
    for name, image in {"a": colour, "b": colour[..., :1], "c": colour, "d": colour.astype(np.uint16)}.items():
        write_png(tmp_path / f"{name}.png", image)
        records.append(Record(id=name, image=tmp_path / f"{name}.png", size=(8, 8), truth=MaskFile(path=truth)))
    task = Task(kind="binary", classes=("cell",))
    mixed = DataSource(layout="folder", root=tmp_path, task=task, coding=MaskCoding(), records=tuple(records))
    found = survey(mixed)
    seen = write_inspection(tmp_path / "page.html", mixed, found)
    told = "1 of 4 images have another number of channels or another depth than most (d)"
    assert told in inspection_table(mixed, found, seen) and told in (tmp_path / "page.html").read_text("utf-8")
    assert kinds_note(replace(found, records=found.records[:3])) == ""


def test_nothing_readable_still_gives_a_page(source: DataSource, tmp_path: Path) -> None:
    broken = replace(source, records=(source.records[5],))
    found = survey(broken)
    seen = write_inspection(tmp_path / "page.html", broken, found)
    assert "1 file" in inspection_table(broken, found, seen)


def test_class_frequencies(source: DataSource) -> None:
    frequencies = class_frequencies(survey(source))
    assert [each.pixels for each in frequencies] == [8 * 2400 - 7 * 200, 7 * 200]
    assert [each.images for each in frequencies] == [8, 7]
    assert sum(each.share for each in frequencies) == pytest.approx(1)


@pytest.mark.parametrize(
    ("kind", "pixels", "valid", "text"),
    [
        ("binary", (0,), 100, "empty: no pixel is marked"),
        ("binary", (100,), 100, "full: every pixel is marked"),
        ("binary", (9995,), 10_000, "nearly full: 99.95% of the pixels are a"),
        ("binary", (50,), 100, ""),
        ("binary", (0,), 0, "every pixel is ignored"),
        ("multiclass", (0, 100), 100, "every pixel is b"),
        ("multiclass", (50, 50), 100, ""),
        ("multilabel", (0, 0), 100, "empty: no pixel is marked"),
        ("multilabel", (), 0, ""),
    ],
)
def test_oddity(kind: TaskKind, pixels: tuple[int, ...], valid: int, text: str) -> None:
    facts = RecordFacts(
        id="x", group="x", size=(1, 1), dtype="uint8", mean=(0.0,), std=(0.0,), class_pixels=pixels, ignored=0,
        valid=valid, digest="", thumbnail=np.zeros((32, 32), np.uint8),
    )  # fmt: skip
    assert oddity(facts, kind, ("a", "b")) == text


def test_finding_nothing(source: DataSource) -> None:
    clean = replace(source, records=source.records[6:])
    seen = find(clean, survey(clean))
    assert (seen.exact, seen.near, seen.suspicious, seen.problems) == ((), (), (), ())


def test_sizes_text() -> None:
    from collections import Counter

    assert sizes_text(Counter({(10, 20): 3})) == "20×10"
    assert sizes_text(Counter({(10, 20): 3, (5, 5): 1})) == "2 sizes, 5×5 to 20×10"
    assert sizes_text(Counter()) == "none"
