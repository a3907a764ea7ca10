"""Each form of ``classes.yaml``, and each mistake in one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maskloom.data.mask_coding import NO_CLASS, MaskCoding, apply
from maskloom.data.stated_classes import find_classes_yaml, read_classes_yaml
from maskloom.errors import UserError
from maskloom.records import IGNORE, Task


def read(folder: Path, text: str) -> tuple[Task, MaskCoding]:
    (folder / "classes.yaml").write_text(text, encoding="utf-8")
    return read_classes_yaml(folder / "classes.yaml")


def test_names_by_position_with_an_ignored_value(tmp_path: Path) -> None:
    task, coding = read(tmp_path, "classes: [sky, road, car]\nignore: 11\n")
    assert task == Task(kind="multiclass", classes=("sky", "road", "car"))
    assert coding == MaskCoding(kind="values", values=((0, 0), (1, 1), (2, 2)), ignore=(11,))


@pytest.mark.parametrize(
    "text",
    [
        "classes: {sky: 3, road: 10, car: 7}",
        "classes: {3: sky, 10: road, 7: car}",
        "classes: [{name: sky, value: 3}, {name: road, value: 10}, {name: car, value: 7}]",
    ],
)
def test_values(tmp_path: Path, text: str) -> None:
    task, coding = read(tmp_path, text + "\nignore: [0, 255]\n")
    assert task.classes == ("sky", "road", "car")
    assert coding.values == ((3, 0), (10, 1), (7, 2)) and coding.ignore == (0, 255)


@pytest.mark.parametrize("ignore", ["[0, 0, 0]", "[[0, 0, 0]]"])
def test_colours(tmp_path: Path, ignore: str) -> None:
    task, coding = read(tmp_path, f"classes: {{a: [1, 2, 3], b: [4, 5, 6], c: [7, 8, 9]}}\nignore: {ignore}\n")
    assert task.kind == "multiclass" and coding.kind == "colours"
    assert coding.colours == (((1, 2, 3), 0), ((4, 5, 6), 1), ((7, 8, 9), 2)) and coding.ignore_colours == ((0, 0, 0),)


@pytest.mark.parametrize(
    "text",
    [
        "{road: [[1, 2, 3], [4, 5, 6]], car: [7, 8, 9]}",
        "[{name: road, colours: [[1, 2, 3], [4, 5, 6]]}, {name: car, color: [7, 8, 9]}]",
        "[{name: road, colour: [1, 2, 3]}, {name: car, colour: [7, 8, 9]}, {name: road, colour: [4, 5, 6]}]",
    ],
)
def test_several_colours_are_one_class(tmp_path: Path, text: str) -> None:
    task, coding = read(tmp_path, f"classes: {text}\nignore: [[0, 0, 0], [9, 9, 9]]\n")
    assert task == Task(kind="multiclass", classes=("road", "car"))
    assert coding.colours == (((1, 2, 3), 0), ((4, 5, 6), 0), ((7, 8, 9), 1))
    assert coding.ignore_colours == ((0, 0, 0), (9, 9, 9))
    stored = np.array([[[1, 2, 3], [4, 5, 6], [7, 8, 9], [9, 9, 9]]], np.uint8)
    assert apply(coding, stored, tmp_path / "a.png").tolist() == [[0, 0, 1, IGNORE]]


@pytest.mark.parametrize(
    "text",
    [
        "{3: road, 5: car, 4: road}",
        "[{name: road, values: [3, 4]}, {name: car, value: 5}]",
        "[{name: road, value: 3}, {name: car, value: 5}, {name: road, value: 4}]",
    ],
)
def test_several_values_are_one_class(tmp_path: Path, text: str) -> None:
    task, coding = read(tmp_path, f"classes: {text}\nignore: 0\n")
    assert task.classes == ("road", "car") and coding.values == ((3, 0), (4, 0), (5, 1)) and coding.ignore == (0,)
    assert apply(coding, np.array([[3, 4, 5, 0]]), tmp_path / "a.png").tolist() == [[0, 0, 1, IGNORE]]


@pytest.mark.parametrize(
    ("text", "coding"),
    [
        (
            "classes: {cell: [[9, 9, 0], [0, 9, 9]]}",
            MaskCoding(kind="colours", colours=(((0, 0, 0), 0), ((9, 9, 0), 1), ((0, 9, 9), 1))),
        ),
        (
            "classes: [{name: background, values: [0, 7]}, {name: cell, values: [1, 2]}]",
            MaskCoding(kind="values", values=((0, 0), (7, 0), (1, 1), (2, 1))),
        ),
    ],
)
def test_several_values_of_a_binary_task(tmp_path: Path, text: str, coding: MaskCoding) -> None:
    assert read(tmp_path, text) == (Task(kind="binary", classes=("cell",)), coding)


@pytest.mark.parametrize(
    ("text", "coding"),
    [
        ("classes: [car]", MaskCoding(kind="foreground")),
        ("classes: {car: 255}", MaskCoding(kind="values", values=((0, 0), (255, 1)))),
        ("classes: {car: [9, 9, 0]}", MaskCoding(kind="colours", colours=(((0, 0, 0), 0), ((9, 9, 0), 1)))),
        ("classes: [background, car]", MaskCoding(kind="values", values=((0, 0), (1, 1)))),
        ("classes: {road: 5, car: 6}\ntask: binary", MaskCoding(kind="values", values=((5, 0), (6, 1)))),
    ],
)
def test_binary(tmp_path: Path, text: str, coding: MaskCoding) -> None:
    assert read(tmp_path, text) == (Task(kind="binary", classes=("car",)), coding)


def test_two_names_without_a_background_are_two_classes(tmp_path: Path) -> None:
    assert read(tmp_path, "classes: [road, car]")[0] == Task(kind="multiclass", classes=("road", "car"))


def test_multilabel_has_no_class_at_zero(tmp_path: Path) -> None:
    task, coding = read(tmp_path, "classes: {a: 1, b: 2}\ntask: multilabel")
    assert task == Task(kind="multilabel", classes=("a", "b"))
    assert coding.values == ((0, NO_CLASS), (1, 0), (2, 1))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("klasses: [a]", "expected a mapping with the key 'classes'"),
        ("- a\n- b", r"expected a mapping .* found a list without it; write for instance classes: \[a, b\]$"),
        ("{a: 3, b: 7}", r"found a mapping without it; write for instance classes: \{a: 3, b: 7\}$"),
        ("- {name: a, value: 4}", r"write for instance classes: \[\{name: a, value: 4\}\]$"),
        ("- [1, 2]", r"found a list without it; write for instance classes: \{background: 0, car: 255\}$"),
        ("", "found nothing; write for instance classes: "),
        ("car", "found a text without it; write for instance classes: "),
        ("classes: {0: [1, 2]}", r"expected a name, found \[1, 2\]"),
        ("classes: [a]\nignor: 1", "unknown key 'ignor', did you mean 'ignore'"),
        ("classes: [a]\ntask: multi", "task: expected one of"),
        ("classes: []", "expected a list of names"),
        ("classes: {a: 1, b: 1, c: 2}", "found 1 twice"),
        ("classes: [a, b, c]\nignore: 2", "found 2 twice"),
        ("classes: {a: 0}", "found 0 twice"),
        ("classes: [a, a, b]", "must differ"),
        ("classes: {a: 1, b: [1, 2, 3]}", "found both"),
        ("classes: {a: [1, 2], b: 3}", r"found \[1, 2\]; several values of a class are written in a list of"),
        ("classes: {a: [1, 2, 3], b: 4}", "found both; several values of a class are written in a list of"),
        ("classes: {a: [[1, 2, 3], [1, 2, 3]], b: [0, 0, 0]}", r"found \(1, 2, 3\) twice"),
        ("classes: {a: [[1, 2, 3], [4, 5]], b: [0, 0, 0]}", r"found \[4, 5\]"),
        ("classes: [{name: a, values: 1}]", "expected a list as values of 'a', found 1"),
        ("classes: [{name: a, values: []}]", r"expected a list as values of 'a', found \[\]"),
        ("classes: [{name: a, value: 1, values: [2]}]", "expected a value or a colour for 'a', found 2"),
        ("classes: {a: 1.5, b: 2}", "found 1.5"),
        ("classes: {a: [1, 2, 300], b: [0, 0, 0]}", "found \\[1, 2, 300\\]"),
        ("classes: [a, true]", "expected a name, found True"),
        ("classes: [{name: a, valu: 1}]", "did you mean 'value'"),
        ("classes: [{name: a}]", "expected a value or a colour for 'a'"),
        ("classes: [a, b, c]\nignore: [1, 2, 3]\ntask: binary", "one foreground class"),
        ("classes: [a, b, c]\nignore: [[1, 2, 3]]", "ignore: expected values"),
        ("classes: [a", "expected YAML"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        read(tmp_path, text)
    assert "classes.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_the_page_on_streets_lists_all_colours_of_camvid(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "street-scenes.md"
    text = page.read_text(encoding="utf-8").partition("```yaml\n")[2].partition("```")[0]
    task, coding = read(tmp_path, text)
    assert len(task.classes) == 11 and len(coding.colours) == 31 and coding.ignore_colours == ((0, 0, 0),)


def test_find(tmp_path: Path) -> None:
    assert find_classes_yaml(tmp_path) is None
    (tmp_path / "classes.yml").touch()
    assert find_classes_yaml(tmp_path) == tmp_path / "classes.yml"
