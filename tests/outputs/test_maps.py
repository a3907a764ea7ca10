"""PNG files of masks and probabilities: values, names, and no way out of the folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maskloom.data.image_io import read_mask_values
from maskloom.errors import UserError
from maskloom.outputs.maps import class_paths, mask_paths, probability_paths, write_mask, write_probabilities
from maskloom.records import ClassMap, ProbabilityMap, Task

BINARY = Task(kind="binary", classes=("car",))
MULTICLASS = Task(kind="multiclass", classes=("sky", "road", "car"))
MULTILABEL = Task(kind="multilabel", classes=("house", "tree/bush"))
LABELS = np.array([[0, 1, 0], [1, 1, 0]], np.uint8)


def test_binary_mask(tmp_path: Path) -> None:
    (path,) = write_mask(tmp_path, ClassMap(id="day/one.b", labels=LABELS), BINARY)
    assert [path] == mask_paths(tmp_path, "day/one.b", BINARY) == [tmp_path / "day" / "one.b.png"]
    assert np.array_equal(read_mask_values(path), LABELS * 255)


def test_multiclass_mask(tmp_path: Path) -> None:
    (path,) = write_mask(tmp_path, ClassMap(id="a", labels=LABELS * 2), MULTICLASS)
    assert np.array_equal(read_mask_values(path), LABELS * 2)


def test_multilabel_masks(tmp_path: Path) -> None:
    paths = write_mask(tmp_path, ClassMap(id="a", labels=np.stack([LABELS, 1 - LABELS])), MULTILABEL)
    assert paths == [tmp_path / "a" / "house.png", tmp_path / "a" / "tree_bush.png"]
    assert np.array_equal(read_mask_values(paths[1]), (1 - LABELS) * 255)


def test_probabilities(tmp_path: Path) -> None:
    values = np.arange(18, dtype=np.uint8).reshape(3, 2, 3)
    (path,) = write_probabilities(tmp_path, ProbabilityMap(id="p", values=values[:1]), BINARY)
    assert np.array_equal(read_mask_values(path), values[0])
    paths = write_probabilities(tmp_path, ProbabilityMap(id="q", values=values), MULTICLASS)
    assert paths == probability_paths(tmp_path, "q", MULTICLASS)
    assert [path.name for path in paths] == ["sky.png", "road.png", "car.png"]
    assert all(np.array_equal(read_mask_values(path), layer) for path, layer in zip(paths, values, strict=True))


@pytest.mark.parametrize("name", ["../a", "/a", "a/../../b", "a\\b", ""])
def test_ids_cannot_lead_outside(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot name an output file"):
        write_mask(tmp_path / "out", ClassMap(id=name, labels=LABELS), BINARY)
    assert list(tmp_path.iterdir()) == []


def test_class_names_become_safe_and_stay_different() -> None:
    names = [path.name for path in class_paths(Path("out"), "a", ["..", "a/b", "a:b", "Car", "car", "x"])]
    assert names == ["_.png", "a_b-1.png", "a_b-2.png", "Car-3.png", "car-4.png", "x.png"]


def test_arrays_that_do_not_fit_the_task(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        write_mask(tmp_path, ClassMap(id="a", labels=LABELS), MULTILABEL)
    with pytest.raises(ValueError, match="expected 3 maps"):
        write_probabilities(tmp_path, ProbabilityMap(id="a", values=LABELS[None]), MULTICLASS)
