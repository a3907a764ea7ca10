from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from maskloom.config import parse, to_yaml
from maskloom.errors import UserError
from maskloom.inference.merging import Merge, evaluate, merge_stored, pruned, standard_tree, tap_names

PROBABILITIES = {"a": 0.2, "b": 0.9, "c": 0.6}


def at_one_pixel(node: Merge, values: dict[str, float] | None = None) -> float:
    known = values or PROBABILITIES
    result, _ = evaluate(node, lambda name: torch.full((1, 1, 1), known[name]), exclusive=False)
    return float(result)


def logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


@pytest.mark.parametrize(
    ("kind", "weights", "expected"),
    [
        ("mean", None, (0.2 + 0.9 + 0.6) / 3),
        ("mean", (1, 2, 1), (0.2 + 1.8 + 0.6) / 4),
        ("logit_mean", None, 1 / (1 + np.exp(-(logit(0.2) + logit(0.9) + logit(0.6)) / 3))),
        ("geometric", None, (0.2 * 0.9 * 0.6) ** (1 / 3)),
        ("geometric", (0, 1, 3), (0.9 * 0.6**3) ** 0.25),
        ("vote", None, 2 / 3),
        ("vote", (2, 1, 1), 0.5),
        ("mode", None, 1.0),
        ("mode", (3, 1, 1), 0.0),
        ("mode", (2, 1, 1), 0.0),  # a tie; the mean is 0.475
        ("mode", (1, 0, 1), 0.0),  # a tie; the mean is 0.4
        ("mode", (1, 1, 0), 1.0),  # a tie; the mean is 0.55
    ],
)
def test_kinds_by_hand(kind: str, weights: tuple[float, ...] | None, expected: float) -> None:
    node = Merge.model_validate({"kind": kind, "weights": weights, "children": ["a", "b", "c"]})
    assert at_one_pixel(node) == pytest.approx(expected, abs=1e-6)


def exclusive_result(kind: str, *leaves: list[float]) -> list[float]:
    known = {str(index): torch.tensor(leaf)[:, None, None] for index, leaf in enumerate(leaves)}
    node = Merge.model_validate({"kind": kind, "children": list(known)})
    result, _ = evaluate(node, known.__getitem__, exclusive=True)
    return [float(value) for value in result.flatten()]


def test_exclusive_classes_by_hand() -> None:
    first, second = [0.5, 0.3, 0.2], [0.1, 0.6, 0.3]
    product = np.sqrt(np.multiply(first, second))
    assert exclusive_result("logit_mean", first, second) == pytest.approx(product / product.sum(), abs=1e-6)
    assert exclusive_result("geometric", first, second) == pytest.approx(product, abs=1e-6)
    assert exclusive_result("vote", first, second) == [0.5, 0.5, 0]
    assert exclusive_result("mode", first, second) == [0, 1, 0]  # a tie; the means are 0.3 and 0.45
    assert exclusive_result("mode", first, first, second) == [1, 0, 0]


def test_certain_members_do_not_give_nan() -> None:
    for kind in ("logit_mean", "geometric"):
        node = Merge.model_validate({"kind": kind, "children": ["no", "yes"]})
        assert 0 <= at_one_pixel(node, {"no": 0.0, "yes": 1.0}) <= 0.5 + 1e-3


def test_nested_trees_and_taps() -> None:
    inner = Merge(kind="geometric", children=("b", "c"), name="pair")
    tree = Merge(children=("a", inner), weights=(1, 3))
    result, taps = evaluate(tree, lambda name: torch.full((1, 2, 2), PROBABILITIES[name]), exclusive=False)
    pair = (0.9 * 0.6) ** 0.5
    assert taps.keys() == {"pair"}
    assert torch.allclose(taps["pair"], torch.tensor(pair))
    assert torch.allclose(result, torch.tensor((0.2 + 3 * pair) / 4))


def test_leaves_are_not_changed_and_may_come_twice() -> None:
    known = {name: torch.full((1, 2, 2), value) for name, value in PROBABILITIES.items()}
    tree = Merge(children=(Merge(children=("a",), name="alone"), Merge(children=("a", "b")), "a"))
    assert tree.leaves() == ["a", "a", "b", "a"]
    result, taps = evaluate(tree, known.__getitem__, exclusive=False)
    assert torch.allclose(result, torch.tensor((0.2 + 0.55 + 0.2) / 3))
    assert all(torch.all(known[name] == torch.tensor(value)) for name, value in PROBABILITIES.items())
    assert torch.equal(taps["alone"], known["a"])


def test_a_child_of_weight_zero_is_not_asked_for_unless_it_is_a_tap() -> None:
    tree = Merge(children=("a", Merge(children=("b",), name="shown"), Merge(children=("c",))), weights=(1, 0, 0))
    assert tree.leaves() == ["a", "b"]
    result, taps = evaluate(tree, lambda name: torch.full((1, 1, 1), PROBABILITIES[name]), exclusive=False)
    assert float(result) == pytest.approx(0.2) and float(taps["shown"]) == pytest.approx(0.9)


class Spaces:
    """Leaves on grids of two sizes, brought to 12×10 by bilinear interpolation; counts how often."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        sizes = {"a": (4, 5), "b": (4, 5), "c": (6, 5), "d": (12, 10), "e": (4, 5)}
        self.maps = {name: torch.rand(2, *size, generator=generator) for name, size in sizes.items()}
        self.num_restored = 0

    def space_of(self, name: str) -> tuple[int, ...] | None:
        size = tuple(self.maps[name].shape[-2:])
        return None if size == (12, 10) else size

    def restore(self, space: object, values: Tensor) -> Tensor:
        self.num_restored += 1
        return functional.interpolate(values[None], (12, 10), mode="bilinear", align_corners=False)[0]

    def fast(self, tree: Merge) -> tuple[Tensor, dict[str, Tensor]]:
        return evaluate(tree, self.maps.__getitem__, exclusive=False, space_of=self.space_of, restore=self.restore)

    def slow(self, tree: Merge) -> tuple[Tensor, dict[str, Tensor]]:
        full = {n: v if self.space_of(n) is None else self.restore(None, v) for n, v in self.maps.items()}
        return evaluate(tree, full.__getitem__, exclusive=False)


def test_means_are_brought_back_once_per_space() -> None:
    spaces = Spaces()
    tree = Merge(children=(Merge(children=("a", "b")), Merge(children=("c", "e")), "d"), weights=(2, 1, 1))
    fast, _ = spaces.fast(tree)
    assert spaces.num_restored == 2
    assert torch.allclose(fast, spaces.slow(tree)[0], atol=1e-6)


@pytest.mark.parametrize("kind", ["logit_mean", "geometric", "vote", "mode"])
def test_nonlinear_nodes_see_maps_at_the_image_size(kind: str) -> None:
    spaces = Spaces()
    means = Merge(children=("a", "b", "c"), name="tap")
    tree = Merge(children=(Merge.model_validate({"kind": kind, "children": [means, "d", "c"]}), "e"))
    fast, fast_taps = spaces.fast(tree)
    assert spaces.num_restored == 4  # two spaces below the tap, c again, and e
    slow, slow_taps = spaces.slow(tree)
    assert torch.allclose(fast_taps["tap"], slow_taps["tap"], atol=1e-6)
    assert torch.allclose(fast, slow, atol=1e-5)


@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=6), st.sampled_from(["mean", "logit_mean", "geometric"])
)
def test_merging_lies_between_the_smallest_and_the_largest(values: list[float], kind: str) -> None:
    known = {str(index): value for index, value in enumerate(values)}
    merged = at_one_pixel(Merge.model_validate({"kind": kind, "children": list(known)}), known)
    assert min(values) - 1e-5 <= merged <= max(values) + 1e-5


def test_stored_maps_share_the_evaluator() -> None:
    rng = np.random.default_rng(0)
    maps = {name: rng.integers(0, 256, (2, 5, 4), dtype=np.uint8) for name in "abc"}
    tree = Merge(children=("a", Merge(children=("b", "c"), name="rest")), weights=(1, 2))
    stored = merge_stored(tree, maps.__getitem__, exclusive=False)
    rest = (maps["b"].astype(float) + maps["c"]) / 2
    assert np.abs(stored["rest"] - rest).max() <= 0.5
    assert np.abs(stored["result"] - (maps["a"] + 2 * rest) / 3).max() <= 0.5 + 1e-4
    same = merge_stored(Merge(children=("a", "a", "a")), maps.__getitem__, exclusive=False)
    assert np.array_equal(same["result"], maps["a"])


def test_pruned_keeps_the_proportions() -> None:
    tree = standard_tree({"x": ["x/0", "x/1"], "y": ["y/0", "y/1"]}, weights=[1, 3])
    only = pruned(tree, lambda leaf: leaf.endswith("/1"))
    assert only.leaves() == ["x/1", "y/1"]
    assert at_one_pixel(only, {"x/1": 1.0, "y/1": 0.0}) == pytest.approx(0.25)
    assert pruned(tree, lambda leaf: leaf == "y/0").leaves() == ["y/0"]
    with pytest.raises(UserError, match="found none"):
        pruned(tree, lambda leaf: False)
    tapped = Merge(children=(Merge(children=("x/0",), name="tap"), "y/1"))
    with pytest.raises(UserError, match="tap"):
        pruned(tapped, lambda leaf: leaf == "y/1")


def test_settings_round_trip_and_mistakes() -> None:
    tree = Merge(children=("a", Merge(kind="vote", children=("b", "c"), name="n")), weights=(1, 2))
    assert Merge.model_validate(tree.model_dump(mode="json")) == tree
    assert "children" in to_yaml(tree) and tap_names(tree) == ["n"]
    for wrong in (
        {"children": []},
        {"children": ["a"], "weights": [1, 2]},
        {"children": ["a"], "weights": [-1]},
        {"children": ["a"], "weights": [0]},
        {"children": ["a"], "name": "result"},
        {"children": [{"children": ["a"], "name": "n"}], "name": "n"},
        {"children": ["a"], "kind": "median"},
    ):
        with pytest.raises(UserError):
            parse(Merge, wrong)


def test_a_remembered_node_is_made_once_and_not_changed() -> None:
    """Also where a share of practically 1 comes before others: what is remembered must not become the sum."""
    leaves = {"a": torch.full((1, 2, 2), 0.2), "b": torch.full((1, 2, 2), 0.6), "c": torch.full((1, 2, 2), 0.9)}
    shared = Merge(children=("a", "b"))
    top = Merge(children=(Merge(children=(shared, "c"), weights=(1, 1e-20)), Merge(children=(shared,), kind="vote")))
    made: list[Merge] = []
    memory: dict[Merge, Any] = {}

    def remember(node: Merge, value: Callable[[], Any]) -> Any:
        if node not in memory:
            made.append(node)
            memory[node] = value()
        return memory[node]

    found, _ = evaluate(top, leaves.__getitem__, exclusive=False, remember=remember)
    plain, _ = evaluate(top, leaves.__getitem__, exclusive=False)
    assert torch.equal(found, plain) and torch.allclose(found, torch.tensor((0.4 + 0.0) / 2))
    assert made.count(shared) == 1 and torch.allclose(memory[shared][None], torch.tensor(0.4))
