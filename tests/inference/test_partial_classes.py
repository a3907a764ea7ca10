"""Networks that predict some classes of a multilabel task: every class is merged over those that predict it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import Constant
from torch import Tensor

from maskloom.data.input_policy import InputPolicy
from maskloom.errors import UserError
from maskloom.inference.merging import Merge, evaluate, merge_stored, predicted_classes, standard_tree
from maskloom.inference.predictor import InferenceSettings, Predictor
from maskloom.models.encoders import NetworkSettings
from maskloom.models.segmenter import Normalisation, Segmenter
from maskloom.records import Task

WHOLE = Task(kind="multilabel", classes=("roof", "road", "tree"))


def at(*values: float) -> Tensor:
    """A map of one pixel, one value per class."""
    return torch.tensor(values)[:, None, None]


def merged(tree: Merge, maps: dict[str, Tensor]) -> list[float]:
    result, _ = evaluate(tree, maps.__getitem__, exclusive=False)
    return [round(float(value), 6) for value in result.flatten()]


MAPS = {"a/fold0": at(0.2, 0.0, 0.0), "b/fold0": at(0.6, 0.4, 0.0), "c/fold0": at(0.0, 0.8, 0.0)}
CLASSES = {"a": (0,), "b": (0, 1), "c": (1,)}
LEAVES = {"a": ["a/fold0"], "b": ["b/fold0"], "c": ["c/fold0"]}


def test_each_class_is_the_mean_of_those_that_predict_it() -> None:
    tree = standard_tree(LEAVES, classes=CLASSES)
    assert merged(tree, MAPS) == pytest.approx([0.4, 0.6, 0.0])
    assert predicted_classes(tree) == {0, 1}


def test_weights_count_among_those_that_predict_a_class() -> None:
    tree = standard_tree(LEAVES, weights=(3, 1, 1), classes=CLASSES)
    assert merged(tree, MAPS) == pytest.approx([0.3, 0.6, 0.0])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("geometric", [(0.2 * 0.6) ** 0.5, (0.4 * 0.8) ** 0.5, 0.0]),
        ("vote", [0.5, 0.5, 0.0]),
        ("mode", [0.0, 1.0, 0.0]),  # both tied: the means are 0.4 and 0.6
    ],
)
def test_other_kinds_by_hand(kind: str, expected: list[float]) -> None:
    children = [{"children": LEAVES[name], "classes": CLASSES[name]} for name in LEAVES]
    tree = Merge.model_validate({"kind": kind, "children": children})
    assert merged(tree, MAPS) == pytest.approx(expected, abs=1e-5)


def test_one_member_of_all_classes_fills_what_the_others_leave() -> None:
    maps = MAPS | {"d/fold0": at(0.5, 0.5, 0.9)}
    tree = standard_tree(LEAVES | {"d": ["d/fold0"]}, classes=CLASSES)
    assert predicted_classes(tree) is None
    assert merged(tree, maps) == pytest.approx([(0.2 + 0.6 + 0.5) / 3, (0.4 + 0.8 + 0.5) / 3, 0.9])


@given(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3), st.lists(st.floats(0.1, 5), min_size=2, max_size=2))
def test_members_of_all_classes_merge_as_if_classes_were_not_stated(values: list[float], weights: list[float]) -> None:
    maps = {"a/fold0": at(*values), "b/fold0": at(*values[::-1])}
    leaves = {"a": ["a/fold0"], "b": ["b/fold0"]}
    everything = {"a": (0, 1, 2), "b": (0, 1, 2)}
    assert merged(standard_tree(leaves, weights, classes=everything), maps) == merged(
        standard_tree(leaves, weights), maps
    )


def network(logits: list[float], classes: tuple[str, ...]) -> Segmenter:
    return Segmenter(
        network=Constant(*logits),
        normalisation=Normalisation(mean=(0.0,) * 3, std=(1.0,) * 3),
        policy=InputPolicy(mode="full", multiple=8),
        task=Task(kind="multilabel", classes=classes),
        network_settings=NetworkSettings(),
    )


def test_one_pass_puts_each_map_in_its_place_and_equals_stored_maps() -> None:
    networks = {"a/fold0": network([-1.0], ("tree",)), "b/fold0": network([2.0, 0.5], ("roof", "tree"))}
    leaves = {name[0]: [name] for name in networks}
    tree = standard_tree(leaves, classes={"a": (2,), "b": (0, 2)})
    settings = InferenceSettings(views="flip", precision="float32")
    image = np.zeros((9, 13, 3), np.uint8)
    found = Predictor(tree, networks, settings, torch.device("cpu"), task=WHOLE)(image)["result"]
    roof, tree_mean = 1 / (1 + np.exp(-2.0)), (1 / (1 + np.exp(1.0)) + 1 / (1 + np.exp(-0.5))) / 2
    assert found.shape == (3, 9, 13)
    assert [set(layer.flatten().tolist()) for layer in found] == [{round(255 * roof)}, {0}, {round(255 * tree_mean)}]

    alone = {
        name: Predictor(Merge(children=(name,)), {name: one}, settings, torch.device("cpu"), task=WHOLE)(image)
        for name, one in networks.items()
    }
    stored = merge_stored(tree, lambda name: alone[name]["result"], exclusive=False)["result"]
    assert np.abs(stored.astype(int) - found).max() <= 1


def test_a_network_of_other_classes_is_refused() -> None:
    segmenters = {"a/fold0": network([0.0], ("water",))}
    with pytest.raises(UserError, match=r"a/fold0: expected a network for .*roof.*found one for .*water"):
        Predictor(Merge(children=("a/fold0",)), segmenters, InferenceSettings(), torch.device("cpu"), task=WHOLE)
