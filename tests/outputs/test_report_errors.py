"""The part of the report that takes errors apart: tables, calibration, attributes, pictures, findings."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from report_inputs import CLASSES, EVIL, Page, report_input

from maskloom.metrics import Confusion
from maskloom.outputs.report import report_page
from maskloom.outputs.report_errors import (
    MAX_LABELS,
    by_attribute,
    calibration,
    confusion,
    largest_confusions,
    mean_ious,
    worst_of_classes,
)
from maskloom.outputs.report_input import ClassExample, ReportInput
from maskloom.outputs.report_pictures import class_panels
from maskloom.outputs.report_words import findings
from maskloom.records import IGNORE, TaskKind

PIXELS = [[900, 90, 10], [0, 600, 400], [3, 0, 297]]


def curve(name: str) -> dict[str, Any]:
    empty = {"pixels": 0, "probability": None, "share": None}
    full = {"pixels": 300, "probability": 0.95, "share": 0.7}
    return {"name": name, "error": 0.25, "probability": 0.95, "share": 0.7, "bins": [empty] * 14 + [full]}


def part(values: list[str], score: float, low: float | None, high: float = 0.0) -> dict[str, Any]:
    gain = None if low is None else {"mean": (low + high) / 2, "low": low, "high": high, "confidence": 0.99}
    beyond = low is not None and (low > 0 or high < 0)
    return {"values": values, "images": 7, "groups": 3, "score": score, "difference": gain, "beyond_noise": beyond}


def errors(kind: TaskKind, names: tuple[str, ...], word: str = "rain") -> dict[str, Any]:
    one = {"labels": list(names), "pixels": PIXELS}
    each = [{"labels": [f"not {name}", name], "pixels": [[90, 10], [5, 95]]} for name in names]
    tables = [
        {"names": ["weather"], "parts": [part([word], 0.7, -0.2, -0.1), part(["sun"], 0.8, 0.1, 0.2)]},
        {"names": ["city"], "parts": [part([""], 0.8, None), part(["Basel"], 0.8, None)]},
        {
            "names": ["weather", "city"],
            "parts": [part([word, "Basel"], 0.7, -0.1, 0.1), part(["sun", "Basel"], 0.8, 0.1, 0.2)],
        },
    ]
    return {
        "confusion": [one] if kind == "multiclass" else each,
        "calibration": {
            "num_bins": 15,
            "curves": [*([curve("chosen class")] if kind == "multiclass" else []), *map(curve, names)],
        },
        "mean_iou": {"absent_left_out": 0.7, "absent_counted": 0.6},
        "attributes": {
            "tables": tables, "left_out": {"id": "99 values"}, "num_compared": 4, "min_groups": 10, "confidence": 0.95,
        },
    }  # fmt: skip


def with_errors(kind: TaskKind, names: tuple[str, ...] | None = None, word: str = "rain") -> ReportInput:
    page = report_input(kind, names)
    names = tuple(page.classes)
    truth = np.zeros((20, 30), np.uint8)
    truth[:9], truth[9] = 1, IGNORE
    prediction = (truth == 0).astype(np.uint8)
    examples = [
        ClassExample(
            name=name, id=f"{word}-{name}", score=0.5, wrong=12, fold=1,
            panels=class_panels(page.examples[0].image, truth, prediction, (0, 120, 200)),
        )
        for name in names
    ]  # fmt: skip
    return replace(
        page, errors=errors(kind, names, word), class_examples=[] if kind == "binary" else examples, look_alikes=[]
    )


SECTIONS = ["What is taken for what", "By attribute", "Calibration", "Worst images of each class"]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_section_is_there_and_the_page_stands_alone(kind: TaskKind) -> None:
    text = report_page(with_errors(kind))
    page = Page(text)
    wanted = SECTIONS[:3] if kind == "binary" else SECTIONS
    assert [title for title in page.headings if title in SECTIONS] == wanted
    assert re.findall(r"https?:", text.replace('xmlns="http://www.w3.org/2000/svg"', "")) == []
    assert page.tags.count("img") == 2 * 4 + 4 * len(with_errors(kind).class_examples)
    assert "script" not in page.tags and "Guo et al." in text


def test_runs_that_did_not_look_have_no_such_section() -> None:
    assert not set(SECTIONS) & set(Page(report_page(report_input("multiclass"))).headings)


@pytest.mark.parametrize("kind", CLASSES)
def test_hostile_names_are_text(kind: TaskKind) -> None:
    names = tuple(f"{EVIL}{index}" for index in range(len(CLASSES[kind])))
    page = with_errors(kind, names, EVIL)
    assert page.errors is not None
    tables = [
        {**table, "names": [EVIL + name for name in table["names"]]} for table in page.errors["attributes"]["tables"]
    ]
    attributes = {**page.errors["attributes"], "tables": tables, "left_out": {EVIL: EVIL}}
    text = report_page(replace(page, errors={**page.errors, "attributes": attributes}))
    assert "script" not in Page(text).tags and "<script" not in text
    assert not re.search(r'(title|alt)="[^"]*<', text)


def shown(section: Any) -> str:
    return "".join(map(str, section.parts))


def test_the_table_of_confusions_shows_shares_and_counts() -> None:
    text = shown(confusion(with_errors("multiclass")))
    assert 'title="road taken for tree: 400 pixels, 40.00%">40<' in text
    assert 'class="hit" style="--s:0.90" title="background taken for background: 900 pixels, 90.00%">90<' in text
    assert 'title="background taken for tree: 10 pixels, 1.00%">1<' in text
    assert 'title="tree taken for road: 0 pixels, 0.00%"><' in text  # nothing: empty and without colour
    assert 'title="297 of 707 pixels given to tree belong there">42<' in text
    assert largest_confusions(Confusion(pixels=np.array(PIXELS))) == [
        (1, 2, pytest.approx(0.4)), (0, 1, pytest.approx(0.09)), (0, 2, pytest.approx(0.01)),
        (2, 0, pytest.approx(0.01)),
    ]  # fmt: skip


def test_a_class_that_no_truth_holds_has_no_row() -> None:
    page = with_errors("multiclass")
    assert page.errors is not None
    gone = {"labels": list(page.classes), "pixels": [[9, 0, 1], [0, 0, 0], [0, 2, 8]]}
    page = replace(page, errors={**page.errors, "confusion": [gone]})
    text = shown(confusion(page))
    assert text.count("<tr>") == 2 + 2 + 2 + 1  # head and foot, rows; the list's lines and its head
    assert "nan" not in text
    assert mean_ious(page).endswith(
        "0.7000 over the classes that occur in the truth, 0.6000 with those that do not (road), which count 1 where "
        "they are never predicted and 0 where they are."
    )
    assert "every class occurs" in mean_ious(with_errors("multiclass"))
    assert mean_ious(with_errors("binary")) == "" == mean_ious(report_input("multiclass"))


def test_many_classes_share_the_last_row() -> None:
    names = tuple(f"c{index}" for index in range(MAX_LABELS + 20))
    page = with_errors("multiclass", names)
    assert page.errors is not None
    pixels = np.ones((len(names), len(names)), np.int64)
    pixels[5] += 10
    page = replace(page, errors={**page.errors, "confusion": [{"labels": list(names), "pixels": pixels.tolist()}]})
    text = shown(confusion(page))
    head = text.split("</thead>")[0]
    assert head.count("<span>") == MAX_LABELS and "21 others" in head and ">c5<" in head and ">c31<" not in head
    assert f"21 others taken for 21 others: {21 * 21:,} pixels" in text
    assert len(report_page(page)) < 3_000_000


def test_found_and_right_of_maps() -> None:
    text = shown(confusion(with_errors("multilabel")))
    assert 'title="95 of 100 of its pixels are found">95.00%' in text
    assert 'title="95 of 105 of the pixels said to be of it are">90.48%' in text


def test_calibration_names_its_formula_and_shows_only_bins_with_pixels() -> None:
    text = shown(calibration(with_errors("multiclass")))
    assert "ECE = Σ" in text and "calibration error 0.2500" in text and "0.933 to 1.000" in text
    assert "0.000 to 0.067" not in text and "−0.250" in text
    page = with_errors("binary")
    assert page.errors is not None
    nothing = {**curve("car"), "error": None, "probability": None, "share": None, "bins": curve("car")["bins"][:14]}
    empty = replace(page, errors={**page.errors, "calibration": {"num_bins": 15, "curves": [nothing]}})
    assert not calibration(empty).parts and "Calibration" not in Page(report_page(empty)).headings


def test_attributes_are_marked_only_beyond_noise() -> None:
    text = shown(by_attribute(with_errors("binary")))
    assert 'class="part lower">0.7000 ▼' in text and 'class="part higher">0.8000 ▲' in text
    assert "city: 2 values, none judged" in text and "(not stated)" in text
    assert 'class="part" title="7 images of 3 groups; 0 against the others' in text  # no mark within noise
    assert "id (99 values)" in text and "4 comparisons could be made" in text
    page = with_errors("binary")
    assert page.errors is not None
    none: dict[str, Any] = {**page.errors["attributes"], "tables": [], "left_out": {}}
    assert not by_attribute(replace(page, errors={**page.errors, "attributes": none})).parts


def test_findings_name_what_stands_out() -> None:
    found = {finding.title: finding.text for finding in findings(with_errors("multiclass"))}
    assert found["road taken for tree"] == "So are 40% of its pixels."
    assert found["1 attribute value below the others"] == "Beyond noise: weather rain −0.15000."
    assert found["Probabilities are too sure"].startswith("Their mean is 0.950")


def test_pictures_of_classes_share_what_they_may_weigh() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 900, 3), dtype=np.uint8)
    truth = (noise[:, :, 0] > 128).astype(np.uint8)
    panels = class_panels(noise, truth, 1 - truth, (0, 120, 200))
    assert [name for name, _ in panels] == ["image", "truth", "prediction", "errors"]
    assert all(picture.shape == (200, 300, 3) for _, picture in panels)
    page = with_errors("multiclass")
    examples = [replace(page.class_examples[0], panels=panels)] * 20
    text = shown(worst_of_classes(replace(page, class_examples=examples)))
    assert text.count("<img") == 80 and len(text) < 80 * 12_000
