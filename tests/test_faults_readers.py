"""Inputs that once ended in a traceback, in a crash or in more memory than there is: each is now one line."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from maskloom import config
from maskloom.api import convert, score
from maskloom.config import MAX_YAML_BYTES, load_yaml, override
from maskloom.data.sources.base import DataSettings
from maskloom.encodings.polygons import polygons_of
from maskloom.errors import UserError

# YAML ----------------------------------------------------------------------------------------------------------------

LETTERS = "abcdefghij"
BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 10)}]\n" for before, name in pairwise(LETTERS)
)
"""Ten lines that stand for 10¹⁰ words."""
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{','.join(['*' + before] * 10)}]}}\n" for before, name in pairwise(LETTERS[:7])
)
"""Seven lines that merge 10⁶ mappings into one, of a single value."""
NO_YAML = {
    "no timestamp": "x: !!timestamp no",
    "a month that is none": "x: 2001-99-99",
    "no number": "x: !!int abc",
    "a mapping of nothing": "<<: 3",
    "nested too deep": "x: " + "[" * 500,
    "a list in itself": "x: &a [*a]",
    "aliases of aliases": BOMB,
    "merges of merges": MERGES,
    "too many digits": "x: " + "9" * 6000,
    "too many digits to the base of 16": "x: 0x" + "f" * 6000,
    "a number to the base of 60": "x: !!int 1:30",
    "a fraction to the base of 60": "x: !!float 1:30.5",
    "a class": "x: !!python/object/apply:os.system [id]",
}


@pytest.mark.parametrize("text", NO_YAML.values(), ids=NO_YAML.keys())
def test_yaml_that_its_parser_chokes_on_is_refused_in_a_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="expected YAML, found something else") as refused:
        load_yaml(path)
    assert len(str(refused.value)) < 700 + len(str(path)) and "\n" not in str(refused.value)


@pytest.mark.parametrize("text", NO_YAML.values(), ids=NO_YAML.keys())
def test_a_setting_that_the_parser_chokes_on_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="the value is not YAML"):
        override(DataSettings(), [f"group={text.partition(': ')[2] if text.startswith('x') else text}"])


def test_a_file_of_settings_has_a_budget(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("#" * (MAX_YAML_BYTES + 1))
    with pytest.raises(UserError, match="at most 1 MiB"):
        load_yaml(path)
    for setting in ("group=" + "#" * (MAX_YAML_BYTES + 1), "group=" + "{a: " * 500, "x" * 5000):
        with pytest.raises(UserError, match=r"the value is not YAML|expected key=value") as refused:
            override(DataSettings(), [setting])
        assert len(str(refused.value)) < 200


def test_a_file_of_too_many_values_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "MAX_YAML_VALUES", 100)
    path = tmp_path / "recipe.yaml"
    path.write_text("x: [" + "1," * 97 + "]")
    assert load_yaml(path) == {"x": [1] * 97}
    path.write_text("x: [" + "1," * 98 + "]")
    with pytest.raises(UserError, match="more than 100 values, those behind an alias counted each time"):
        load_yaml(path)
    path.write_text("x: &a {y: *a}")
    with pytest.raises(UserError, match="holds itself"):
        load_yaml(path)


def test_digits_to_the_base_of_60_are_text(tmp_path: Path) -> None:
    """As numbers, a file of them would take hours."""
    path = tmp_path / "recipe.yaml"
    path.write_text("x: 1" + ":1" * 20_000 + "\ny: 1:30\nz: 1:30.5\nw: 0x1F\nv: -1_000\nu: 1.5e+3\n")
    assert load_yaml(path) == {"x": "1" + ":1" * 20_000, "y": "1:30", "z": "1:30.5", "w": 31, "v": -1000, "u": 1500.0}


def test_aliases_as_people_use_them_are_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("a: &a {lr: 1}\nb: *a\nc: {<<: *a, x: [*a, *a]}\nd: &d {e: 1}\n")
    assert load_yaml(path) == {"a": {"lr": 1}, "b": {"lr": 1}, "c": {"lr": 1, "x": [{"lr": 1}] * 2}, "d": {"e": 1}}


# Masks ---------------------------------------------------------------------------------------------------------------


def coco(path: Path, **image: Any) -> Path:
    entry = {"id": 1, "file_name": "a.png", "height": 4, "width": 6} | image
    annotation = {"image_id": 1, "category_id": 1, "segmentation": [[0, 0, 3, 0, 3, 3]]}
    content = {"images": [entry], "annotations": [annotation], "categories": [{"id": 1, "name": "car"}]}
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("identity", [[1], {"a": 1}, [[]]])
def test_an_image_id_that_is_no_id_is_refused(identity: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected COCO images"):
        convert(coco(tmp_path / "coco.json", id=identity), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["masks", "table.csv", "other.json"])
def test_a_size_that_no_memory_holds_is_refused_before_anything_is_drawn(out: str, tmp_path: Path) -> None:
    path = coco(tmp_path / "coco.json", height=60_000, width=60_000)
    with pytest.raises(UserError, match=r"3,600,000,000 pixels is over the budget of 1,000,000,000"):
        convert(path, tmp_path / out)
    assert not list(tmp_path.rglob("*.png")) and not (tmp_path / "table.csv").exists()


def test_a_stated_size_has_the_same_budget(tmp_path: Path) -> None:
    runs, shapes = tmp_path / "runs.csv", tmp_path / "shapes.csv"
    runs.write_text("img,rle_mask\na.png,3 2\n")
    shapes.write_text('id,class,wkt\na,car,"POLYGON ((0 0, 4 0, 4 4, 0 0))"\n')
    for path in (runs, shapes):
        with pytest.raises(UserError, match="over the budget"):
            convert(path, tmp_path / "out", size=(100_000, 100_000))
        with pytest.raises(UserError, match="over the budget"):
            score(path, path, size=(100_000, 100_000))


# Geometry ------------------------------------------------------------------------------------------------------------

NESTS = """
from maskloom.encodings.polygons import polygons_of
from maskloom.errors import UserError
for shape in ("POLYGON ((0 0, 4 0, 4 4, 0 0))", "POLYGON EMPTY"):
    for name in ("GEOMETRYCOLLECTION", "GeometryCollection Z "):
        try:
            polygons_of(f"{name}(" * 200_000 + shape + ")" * 200_000)
        except UserError as error:
            print(str(error).partition(" nested")[0])
"""


def test_collections_in_collections_do_not_end_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", NESTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.returncode
    assert done.stdout.splitlines() == ["expected WKT polygons, found collections"] * 4


def test_many_collections_beside_each_other_are_read() -> None:
    one = "GEOMETRYCOLLECTION (POLYGON ((0 0, 4 0, 4 4, 0 0)))"
    assert len(polygons_of(f"GEOMETRYCOLLECTION ({', '.join([one] * 200)})")) == 200
    nested = "GEOMETRYCOLLECTION (" * 20 + one + ")" * 20
    assert len(polygons_of(nested)) == 1
