"""Children that weigh otherwise in each class: a tree is, class by class, the tree of that class's weights."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import Constant
from torch import Tensor
from torch.nn import functional

from maskloom.config import parse
from maskloom.data.input_policy import InputPolicy
from maskloom.errors import UserError
from maskloom.inference.merging import (
    Merge,
    check_class_weights,
    evaluate,
    merge_stored,
    predicted_classes,
    pruned,
    standard_tree,
)
from maskloom.inference.predictor import InferenceSettings, Predictor
from maskloom.models.encoders import NetworkSettings
from maskloom.models.segmenter import Normalisation, Segmenter
from maskloom.records import Task

TASK = Task(kind="multilabel", classes=("crops", "trees", "water"))
KINDS = ("mean", "logit_mean", "geometric", "vote", "mode")


def at(*values: float) -> Tensor:
    """A map of one pixel, one value per class."""
    return torch.tensor(values)[:, None, None]


MAPS = {"a": at(0.2, 0.4, 0.6), "b": at(0.8, 0.9, 0.1), "c": at(0.5, 0.3, 0.7)}


def merged(tree: Merge, maps: dict[str, Tensor] = MAPS) -> list[float]:
    result, _ = evaluate(tree, maps.__getitem__, exclusive=False)
    return [float(value) for value in result.flatten()]


def test_each_class_has_its_own_mean() -> None:
    tree = Merge(children=("a", "b"), weights=((1, 0, 3), (0, 2, 1)))
    assert merged(tree) == pytest.approx([0.2, 0.9, (3 * 0.6 + 0.1) / 4])


weights_of_three = st.lists(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=3, max_size=3), min_size=3, max_size=3
)


@given(weights_of_three, st.sampled_from(KINDS), st.booleans())
def test_a_class_is_the_tree_of_its_own_weights(weights: list[list[float]], kind: str, nested: bool) -> None:
    if not np.any(weights):
        return
    children: list[Any] = ["a", {"kind": "geometric", "children": ["a", "b"]} if nested else "b", "c"]
    node = {"kind": kind, "children": children}
    found = merged(Merge.model_validate(node | {"weights": weights}))
    for number, column in enumerate(zip(*weights, strict=True)):
        alone = merged(Merge.model_validate(node | {"weights": column}))[number] if any(column) else 0.0
        assert found[number] == pytest.approx(alone, abs=1e-6)


def test_one_number_for_all_classes_computes_what_it_did() -> None:
    """To the last bit: the sum of shares times maps, in the order of the children."""
    generator = torch.Generator().manual_seed(0)
    maps = {name: torch.rand(3, 8, 9, generator=generator) for name in "abc"}
    result, _ = evaluate(Merge(children=("a", "b", "c"), weights=(1, 2, 4)), maps.__getitem__, exclusive=False)
    expected = (maps["a"] * (1 / 7)).add_(maps["b"], alpha=2 / 7).add_(maps["c"], alpha=4 / 7)
    assert torch.equal(result, expected)
    assert [share for share, _ in Merge(children=("a", "b"), weights=(1, 3)).shares()] == [0.25, 0.75]


def test_weights_count_among_those_that_predict_a_class() -> None:
    leaves = {name: [name] for name in "abc"}
    maps = MAPS | {"a": at(0.2, 0, 0), "b": at(0.8, 0.9, 0)}
    tree = standard_tree(leaves, ((3, 7, 0), (1, 1, 0), (0, 1, 2)), {"a": (0,), "b": (0, 1)})
    assert merged(tree, maps) == pytest.approx([(3 * 0.2 + 0.8) / 4, (0.9 + 0.3) / 2, 0.7])
    assert predicted_classes(tree) == {0, 1, 2}
    nobody = standard_tree(leaves, ((1, 1, 1), (1, 0, 0), (1, 1, 0)), {"a": (0,), "b": (0, 1)})
    assert predicted_classes(nobody) == {0, 1} and merged(nobody, maps)[2] == 0


def test_a_child_without_weight_in_any_class_is_not_asked_for() -> None:
    tapped = Merge(children=("c",), name="shown")
    tree = Merge(children=("a", "b", tapped), weights=((1, 0, 1), (0, 0, 0), (0, 0, 0)))
    assert tree.leaves() == ["a", "c"]
    known = {name: MAPS[name] for name in "ac"}
    result, taps = evaluate(tree, known.__getitem__, exclusive=False)
    assert result.flatten().tolist() == pytest.approx([0.2, 0, 0.6]), "also where one child alone has weights"
    assert torch.equal(taps["shown"], MAPS["c"])
    assert known["a"] is MAPS["a"] and MAPS["a"].flatten().tolist() == pytest.approx([0.2, 0.4, 0.6])


def test_means_are_brought_back_once_per_space() -> None:
    generator = torch.Generator().manual_seed(3)
    sizes = {"a": (4, 5), "b": (4, 5), "c": (12, 10)}
    maps = {name: torch.rand(3, *size, generator=generator) for name, size in sizes.items()}
    restored: list[object] = []

    def restore(space: object, values: Tensor) -> Tensor:
        restored.append(space)
        return functional.interpolate(values[None], (12, 10), mode="bilinear", align_corners=False)[0]

    tree = Merge(children=("a", "b", "c"), weights=((1, 0, 2), (1, 3, 0), (0, 1, 1)))
    fast, _ = evaluate(
        tree, maps.__getitem__, exclusive=False, restore=restore,
        space_of=lambda name: sizes[name] if name != "c" else None,
    )  # fmt: skip
    assert restored == [(4, 5)]
    full = {name: restore(None, values) if name != "c" else values for name, values in maps.items()}
    slow, _ = evaluate(tree, full.__getitem__, exclusive=False)
    assert torch.allclose(fast, slow, atol=1e-6)


def test_pruned_keeps_the_proportions_of_every_class() -> None:
    tree = standard_tree({"x": ["x/0", "x/1"], "y": ["y/0", "y/1"]}, ((1, 0, 1), (3, 1, 0)))
    only = pruned(tree, lambda leaf: leaf.endswith("/1"))
    assert only.leaves() == ["x/1", "y/1"] and only.weights == tree.weights
    flat = Merge(children=("x/0", "x/1", "y/0"), weights=((1, 0, 1), (1, 0, 0), (0, 1, 1)))
    kept = pruned(flat, lambda leaf: leaf != "x/1")
    assert merged(kept, {"x/0": MAPS["a"], "y/0": MAPS["b"]}) == pytest.approx([0.2, 0.9, 0.35])
    with pytest.raises(UserError, match="found none"):
        pruned(flat, lambda leaf: leaf != "y/0")  # nothing is left of the second class


def test_trees_travel_as_json_and_old_ones_stay_as_they_were() -> None:
    tree = standard_tree({"x": ["x/0"], "y": ["y/0"]}, ((1, 0.25, 0), (0, 0.75, 1)), {"y": (1, 2)})
    stored = json.loads(json.dumps(tree.model_dump(mode="json")))
    assert stored["weights"] == [[1, 0.25, 0], [0, 0.75, 1]]
    assert Merge.model_validate(stored) == tree and hash(Merge.model_validate(stored)) == hash(tree)
    old = {"kind": "mean", "weights": [1.0, 2.0], "children": ["a", "b"], "classes": None, "name": None}
    assert Merge.model_validate(old).model_dump(mode="json") == old


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ([[1, 2], 1], "one number for every child, or a list of as many numbers as there are classes"),
        ([[1, 2], [1]], "one number for every child, or a list of as many numbers as there are classes"),
        ([[], []], "one number for every child, or a list of as many numbers as there are classes"),
        ([[1, -1], [1, 1]], "at least 0 and not all 0"),
        ([[0, 0], [0, 0]], "at least 0 and not all 0"),
        ([[1, 1]], "expected 2 weights, one per child, found 1"),
    ],
)
def test_mistakes_are_one_line(weights: list[Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        parse(Merge, {"children": ["a", "b"], "weights": weights})
    assert "\n" not in str(caught.value)


def test_trees_must_fit_the_task() -> None:
    inner = Merge(children=("a", "b"), weights=((1, 0, 1), (0, 1, 1)))
    check_class_weights(Merge(children=(inner, "c"), weights=(1, 2)), TASK)
    with pytest.raises(
        UserError, match=r"expected weights of 3 classes, found a list of 2; state one number per class"
    ):
        check_class_weights(Merge(children=(Merge(children=("a",), weights=((1, 1),)), "c")), TASK)
    for kind in ("binary", "multiclass"):
        task = Task(kind=kind, classes=TASK.classes[: 1 if kind == "binary" else 3])
        with pytest.raises(UserError, match=f"expect a multilabel task, .*found a {kind} one; state one number"):
            check_class_weights(Merge(children=(inner, "c")), task)


def network(logits: list[float], classes: tuple[str, ...], size: tuple[int, int] | None) -> Segmenter:
    mode: dict[str, Any] = {"mode": "full"} if size is None else {"mode": "resize", "size": size}
    return Segmenter(
        network=Constant(*logits),
        normalisation=Normalisation(mean=(0.0,) * 3, std=(1.0,) * 3),
        policy=InputPolicy(multiple=8, **mode),
        task=Task(kind="multilabel", classes=classes),
        network_settings=NetworkSettings(),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_one_pass_equals_the_merging_of_stored_maps(kind: str) -> None:
    networks = {
        "a/fold0": network([-1.0, 0.5, 2.0], TASK.classes, None),
        "a/fold1": network([1.0, -0.5, 1.5], TASK.classes, None),
        "b/fold0": network([2.0, 0.7, -3.0], TASK.classes, (16, 16)),
        "c/fold0": network([-0.8], ("water",), None),
    }
    leaves = {"a": ["a/fold0", "a/fold1"], "b": ["b/fold0"], "c": ["c/fold0"]}
    tree = standard_tree(leaves, ((1, 0.25, 0.2), (0, 0.75, 0.3), (0, 0, 0.5)), {"c": (2,)})
    tree = Merge.model_validate(tree.model_dump() | {"kind": kind})
    settings = InferenceSettings(views="flip", precision="float32")
    image = np.zeros((9, 13, 3), np.uint8)
    device = torch.device("cpu")
    found = Predictor(tree, networks, settings, device, task=TASK)(image)["result"]
    alone = {
        name: Predictor(Merge(children=(name,)), {name: one}, settings, device, task=TASK)(image)["result"]
        for name, one in networks.items()
    }
    stored = merge_stored(tree, alone.__getitem__, exclusive=False)["result"]
    assert np.abs(stored.astype(int) - found).max() <= 1
    if kind == "mean":
        assert np.abs(found[0].astype(int) - (alone["a/fold0"][0].astype(float) + alone["a/fold1"][0]) / 2).max() <= 1


def test_the_one_pass_refuses_a_tree_of_other_classes() -> None:
    networks = {"a/fold0": network([0.0, 0.0, 0.0], TASK.classes, None)}
    with pytest.raises(UserError, match="expected weights of 3 classes, found a list of 1"):
        Predictor(
            Merge(children=("a/fold0",), weights=((1,),)), networks, InferenceSettings(), torch.device("cpu"), task=TASK
        )
