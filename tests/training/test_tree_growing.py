"""Trees that LightGBM grows are the same in torch, with any number of threads; classes without pixels are nowhere."""

from __future__ import annotations

import sys
from typing import Any

import lightgbm
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskloom.errors import UserError
from maskloom.models.segmenter import Segmenter
from maskloom.models.tree_network import TreeNetwork
from maskloom.models.tree_settings import TreeSettings
from maskloom.records import IGNORE, Task
from maskloom.training import tree_growing
from maskloom.training.tree_growing import grow, rounded_down

SETTINGS = TreeSettings(sigmas=(0,), num_trees=12, num_leaves=9, min_samples_leaf=20)
BINARY = Task(kind="binary", classes=("a",))
KINDS = [
    BINARY,
    Task(kind="multilabel", classes=("a", "b", "c")),
    Task(kind="multiclass", classes=("a", "b", "c", "d")),
]


def silent(done: int, total: int) -> None:
    pass


def pixels(task: Task, count: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """Samples of five features, of which three tell the classes; values come more than once."""
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(count, 5)).round(2).astype(np.float32)
    scores = np.stack([samples[:, 0] * samples[:, 1], samples[:, 2], -samples[:, 2], samples[:, 1]])
    scores = scores + rng.normal(scale=0.3, size=scores.shape)
    if task.kind == "multiclass":
        return samples, scores.argmax(axis=0).astype(np.uint8)
    labels = (scores[: task.num_maps] > 0.3).astype(np.uint8)
    return samples, labels if task.kind == "multilabel" else labels[0]


def predicted(samples: np.ndarray, state: dict[str, torch.Tensor], task: Task) -> np.ndarray:
    network = TreeNetwork(SETTINGS, samples.shape[1], task.num_maps)
    network.load_state_dict(state)
    logits = network(torch.from_numpy(samples).T[None, :, None])
    probabilities = Segmenter.probabilities(_OfTask(task), logits)  # type: ignore[arg-type]
    found: np.ndarray = probabilities[0, :, 0].numpy()
    return found


class _OfTask:
    def __init__(self, task: Task) -> None:
        self.task = task


@pytest.mark.parametrize("task", KINDS, ids=lambda task: task.kind)
def test_probabilities_are_those_of_lightgbm(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    boosters: list[Any] = []
    fresh = tree_growing._fresh
    monkeypatch.setattr(tree_growing, "_fresh", lambda *given: boosters.append(fresh(*given)) or boosters[-1])
    samples, labels = pixels(task)
    told: list[tuple[int, int]] = []
    state = grow(samples, labels, task, SETTINGS, seed=1, on_progress=lambda *done: told.append(done))
    found = predicted(samples, state, task)
    expected = np.stack([booster.predict(samples) for booster in boosters])
    np.testing.assert_allclose(found, expected[0].T if task.kind == "multiclass" else expected, atol=1e-5)
    assert found.std(axis=1).min() > 0.05
    total = SETTINGS.num_trees * len(boosters)
    assert told[-1] == (total, total) and sorted(told) == told and len(set(told)) == total + 1


def test_neither_threads_nor_a_second_time_change_a_bit() -> None:
    samples, labels = pixels(BINARY, 30_000)
    first, *others = (
        grow(samples, labels, BINARY, SETTINGS, seed=1, on_progress=silent, threads=threads) for threads in (1, 2, 3, 1)
    )
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


def test_each_tree_sees_what_was_drawn_for_it() -> None:
    samples, labels = pixels(BINARY)
    few = SETTINGS.model_copy(update={"values_per_tree": 0.2})
    state = grow(samples, labels, BINARY, few, seed=1, on_progress=silent)
    asked = [set(nodes[: int(used)].tolist()) for nodes, used in zip(state["features"], _used(state), strict=True)]
    assert all(len(each) == 1 for each in asked) and set.union(*asked) >= {0, 1, 2}, "one of five values, each its own"
    half = SETTINGS.model_copy(update={"pixels_per_tree": 0.5})
    whole, drawn, again, other = (
        grow(samples, labels, BINARY, each, seed=seed, on_progress=silent)["thresholds"]
        for each, seed in ((SETTINGS, 1), (half, 1), (half, 1), (half, 2))
    )
    assert torch.equal(drawn, again) and not torch.equal(drawn, other) and not torch.equal(drawn, whole)


def _used(state: dict[str, torch.Tensor]) -> torch.Tensor:
    """How many nodes of each tree are asked: the first of them, the others lead to leaf 0 alone."""
    return (state["branches"] != -1).any(dim=2).sum(dim=1)


def test_a_class_that_is_not_there_is_found_nowhere() -> None:
    task = KINDS[1]
    samples, labels = pixels(task)
    labels[1] = 0
    labels[2] = IGNORE
    found = predicted(samples, grow(samples, labels, task, SETTINGS, seed=0, on_progress=silent), task)
    assert found[1:].max() < 1e-12 and found[0].max() > 0.5
    samples, labels = pixels(KINDS[2])
    labels[labels == 3] = 1
    found = predicted(samples, grow(samples, labels, KINDS[2], SETTINGS, seed=0, on_progress=silent), KINDS[2])
    assert found[3].max() < 1e-10 and found[:3].max(axis=1).min() > 0.5


def test_a_class_that_is_everywhere_is_found_everywhere() -> None:
    samples, _ = pixels(BINARY, 500)
    state = grow(samples, np.ones(500, np.uint8), BINARY, SETTINGS, seed=0, on_progress=silent)
    assert predicted(samples, state, BINARY).min() > 1 - 1e-6


def test_ignored_pixels_teach_nothing() -> None:
    samples, labels = pixels(BINARY)
    some = grow(samples[:2000], labels[:2000], BINARY, SETTINGS, seed=0, on_progress=silent)
    hidden = labels.copy()
    hidden[2000:] = IGNORE
    same = grow(samples, hidden, BINARY, SETTINGS, seed=0, on_progress=silent)
    all_of_them = grow(samples, labels, BINARY, SETTINGS, seed=0, on_progress=silent)
    assert torch.equal(some["values"], same["values"]) and not torch.equal(some["values"], all_of_them["values"])
    with pytest.raises(UserError, match=r"expected labelled pixels to learn from, drew none"):
        grow(samples, np.full(3000, IGNORE, np.uint8), BINARY, SETTINGS, seed=0, on_progress=silent)


def test_an_interrupt_ends_it_after_the_tree() -> None:
    samples, labels = pixels(BINARY)
    calls = []

    def interrupt(done: int, total: int) -> None:
        calls.append(done)
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grow(samples, labels, BINARY, SETTINGS, seed=0, on_progress=interrupt)
    assert calls == [0, 1, 2, 3]


def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(UserError, match=r"expected LightGBM, .* install it: pip install maskloom\[trees\]$"):
        grow(*pixels(BINARY), BINARY, SETTINGS, seed=0, on_progress=silent)


@given(st.floats(-3e38, 1e300), st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_float32_thresholds_decide_as_the_true_ones(threshold: float, value: float) -> None:
    assert (np.float32(value) <= rounded_down(threshold)) == (value <= threshold)


@pytest.mark.parametrize("threshold", [0.1, -0.1, 1e-50, -1e-50, 1e300, 16383.0, 1 + 1e-9])
def test_a_threshold_is_rounded_down(threshold: float) -> None:
    found = rounded_down(threshold)
    assert float(found) <= threshold and (
        found == np.finfo(np.float32).max or float(np.nextafter(found, np.float32(np.inf))) > threshold
    )


def test_the_library_is_the_one_that_is_stated() -> None:
    assert tree_growing.library() is lightgbm
