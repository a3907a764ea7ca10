"""The search against trying every threshold on every pixel; searches of parts add up to the search of the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.config import parse
from maskloom.errors import UserError
from maskloom.models.index_network import IndexNetwork
from maskloom.rasters.indices import IndexRule, IndexSettings, index, index_values
from maskloom.records import IGNORE, Task
from maskloom.training.index_search import (
    DIRECTIONS,
    THRESHOLDS,
    FoundRule,
    IndexSearch,
    SceneRules,
    SceneSearch,
    UnknownScene,
    lowest_value,
)

WATER = Task(kind="binary", classes=("water",))
LAYERS = Task(kind="multilabel", classes=("water", "crops"))
THREE = Task(kind="multiclass", classes=("a", "b", "c"))
BANDS = ("a", "b")
PUBLISHED = UnknownScene(expression="dstl_rei", limit=-1.7, threshold_if_lower=-1.7, threshold_if_not=-0.6)
INDICES = ("(a - b) / (a + b)", "b - a", "a / 50")


def data(task: Task, seed: int, size: tuple[int, int] = (6, 9)) -> tuple[np.ndarray, np.ndarray]:
    """Few different values, so that many lie on a threshold, some beyond all, and some are no numbers."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, rng.integers(2, 12), (*size, 2)).astype(np.uint16)
    shape = (task.num_maps, *size) if task.kind == "multilabel" else size
    labels = rng.integers(0, task.num_maps if task.kind == "multiclass" else 2, shape).astype(np.uint8)
    labels[rng.random(shape) < 0.2] = IGNORE
    return pixels, labels


def searched(task: Task, *images: tuple[np.ndarray, np.ndarray]) -> IndexSearch:
    search = IndexSearch(task, INDICES, BANDS)
    for pixels, labels in images:
        search.add(pixels, labels)
    return search


def brute_force(task: Task, values: np.ndarray, labels: np.ndarray, number: int, rule: IndexRule) -> float:
    layer = labels[number] if task.kind == "multilabel" else labels
    truth, valid = layer == (number if task.kind == "multiclass" else 1), layer != IGNORE
    found = rule.holds(values)
    union = int(((truth | found) & valid).sum())
    return int((truth & found & valid).sum()) / union if union else 0.0


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([WATER, LAYERS, THREE]), st.integers(0, 400))
def test_scores_equal_counting_pixels(seed: int, task: Task, number: int) -> None:
    pixels, labels = data(task, seed)
    values = index_values(pixels, BANDS, [index(text) for text in INDICES])
    scores = searched(task, (pixels, labels)).jaccard()
    assert scores.shape == (task.num_maps, 3, 2, 401)
    for class_number in range(task.num_maps):
        for place, text in enumerate(INDICES):
            for side, direction in enumerate(DIRECTIONS):
                rule = IndexRule(expression=text, threshold=THRESHOLDS[number], direction=direction)
                expected = brute_force(task, values[place], labels, class_number, rule)
                assert scores[class_number, place, side, number] == expected


@pytest.mark.parametrize("seed", range(3))
def test_the_best_is_the_best_of_all(seed: int) -> None:
    pixels, labels = data(WATER, seed)
    (found,) = searched(WATER, (pixels, labels)).best()
    values = dict(zip(INDICES, index_values(pixels, BANDS, [index(text) for text in INDICES]), strict=True))
    everything = [
        brute_force(WATER, values[text], labels, 0, IndexRule(expression="a", threshold=threshold, direction=direction))
        for text in INDICES
        for direction in DIRECTIONS
        for threshold in THRESHOLDS
    ]
    assert found is not None and found.jaccard == max(everything)
    assert brute_force(WATER, values[found.rule.expression], labels, 0, found.rule) == found.jaccard


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([WATER, LAYERS, THREE]), st.integers(1, 5))
def test_parts_add_up_to_the_whole(seed: int, task: Task, cut: int) -> None:
    one, other = data(task, seed), data(task, seed + 1)
    whole = searched(task, one, other)
    rows = [
        (pixels[part], labels[..., part, :]) for pixels, labels in (one, other) for part in (np.s_[:cut], np.s_[cut:])
    ]
    windows = searched(task, *rows)
    sums = searched(task, one) + searched(task, other)
    assert np.array_equal(whole.counts, sums.counts) and np.array_equal(whole.counts, windows.counts)
    assert whole.best() == sums.best() == windows.best()
    valid = sum(int((labels != IGNORE).sum()) for _, labels in (one, other))
    each = valid if task.kind == "multilabel" else valid * task.num_maps
    assert whole.counts.sum() == each * len(INDICES), "every valid pixel counts once per class and index"


def found_by(values: list[float], labels: list[int]) -> FoundRule | None:
    search = IndexSearch(WATER, ["x"], ["x"])
    search.add(np.float32(values)[None, :, None], np.uint8(labels)[None])
    return search.best()[0]


def rule(threshold: float, direction: str = "above") -> IndexRule:
    return parse(IndexRule, {"expression": "x", "threshold": threshold, "direction": direction})


def test_ties_go_to_the_middle_of_the_longest_run() -> None:
    # Perfect from 0.11 to 0.40 above; as many as 30, so of 0.25 and 0.26 the one nearer to 0.
    assert found_by([0.1, 0.4], [0, 1]) == FoundRule(rule(0.25), 1.0)
    assert found_by([0.1, 0.4], [1, 0]) == FoundRule(rule(0.24, "below"), 1.0)  # 0.10 … 0.39
    assert found_by([-0.4, -0.1], [0, 1]) == FoundRule(rule(-0.24), 1.0)  # -0.39 … -0.10
    # Everything is the class: each direction has a run to the end, the longer one wins.
    assert found_by([1.0, 1.0], [1, 1]) == FoundRule(rule(-0.5), 1.0)  # -2 … 1 above
    assert found_by([-1.0, -1.0], [1, 1]) == FoundRule(rule(0.5, "below"), 1.0)
    assert found_by([0.0, 0.0], [1, 1]) == FoundRule(rule(-1.0), 1.0)  # as long and as near: above


def test_equal_to_a_threshold_is_on_both_sides() -> None:
    for value in (-2.0, -0.6, 0.0, 0.29, 2.0):
        search = IndexSearch(WATER, ["x"], ["x"])
        search.add(np.float32([[[value]]]), np.uint8([[1]]))
        above, below = search.jaccard()[0, 0]
        place = THRESHOLDS.index(value)
        assert above.tolist() == [1.0] * (place + 1) + [0.0] * (400 - place)
        assert below.tolist() == [0.0] * place + [1.0] * (401 - place)


def test_ends_are_open_and_what_is_no_number_is_never_found() -> None:
    search = IndexSearch(WATER, ["x"], ["x"])
    search.add(np.float32([[[-1e30], [1e30], [np.nan], [np.inf], [-np.inf]]]), np.uint8([[1] * 5]))
    above, below = search.jaccard()[0, 0]
    assert above.tolist() == below.tolist() == [0.2] * 401
    assert found_by([np.nan, np.inf, 0.5], [1, 1, 0]) is None
    assert found_by([0.5, 0.7], [0, IGNORE]) is None
    assert IndexSearch(WATER, ["x"], ["x"]).best() == (None,)


def test_the_index_that_separates_is_chosen() -> None:
    pixels, labels = data(WATER, 3, (30, 30))
    labels = (pixels[..., 1].astype(int) - pixels[..., 0] > 0).astype(np.uint8)
    (found,) = searched(WATER, (pixels, labels)).best()
    assert found is not None and found.jaccard == 1 and found.rule.expression in INDICES[:2]


def test_what_is_found_is_what_the_network_does() -> None:
    pixels, labels = data(WATER, 5, (20, 20))
    search = IndexSearch(WATER, INDICES, BANDS, scale=7)
    search.add(pixels, labels)
    (found,) = search.best()
    assert found is not None
    images = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None] * (1 / 7)
    logits = IndexNetwork(IndexSettings(bands=BANDS, rules=(found.rule,)), 1)(images)
    predicted = logits[0, 0].numpy() >= 0
    valid = labels != IGNORE
    union = ((labels == 1) | predicted) & valid
    assert ((labels == 1) & predicted & valid).sum() / union.sum() == found.jaccard


def test_scenes_have_thresholds_of_their_own() -> None:
    def new() -> IndexSearch:
        return IndexSearch(WATER, ["x"], ["x"])

    one, other = SceneSearch(new), SceneSearch(new)
    one.add("6010", np.float32([[[0.1], [0.4]]]), np.uint8([[0, 1]]))
    one.add("6020", np.float32([[[0.1], [0.4]]]), np.uint8([[0, 0]]))
    other.add("6010", np.float32([[[0.2], [0.3]]]), np.uint8([[0, 1]]))
    other.add("6030", np.float32([[[-1.0], [1.0]]]), np.uint8([[1, 0]]))
    both = one + other
    assert both.best()["6010"] == (FoundRule(rule(0.25), 1.0),)  # 0.21 … 0.30
    assert one.best()["6010"] == (FoundRule(rule(0.25), 1.0),) and other.scenes["6010"].counts.sum() == 2
    (rules,) = both.rules({0: PUBLISHED})
    assert rules.scenes["6020"] is None
    asked: list[str] = []

    def lowest(text: str) -> float:
        asked.append(text)
        return -1.75

    assert rules.of("6030", lowest) == both.best()["6030"][0].rule  # type: ignore[union-attr]
    assert rules.of("6020", lowest) is None and not asked
    assert rules.of("9999", lowest) == IndexRule(expression="dstl_rei", threshold=-1.7, direction="below")
    assert asked == ["dstl_rei"]
    assert both.rules()[0].of("9999", lowest) is None
    assert parse(SceneRules, rules.model_dump(mode="json")) == rules
    (whole,) = both.whole().best()
    assert whole is not None and both.whole().counts.sum() == 8


def test_unknown_scenes_by_their_lowest_value() -> None:
    assert [PUBLISHED.rule(lowest).threshold for lowest in (-1.71, -1.7, 0.0, np.inf)] == [
        -1.7, -0.6, -0.6, -0.6,
    ]  # fmt: skip
    windows = [np.uint16([[[1, 1], [0, 0]]]), np.uint16([[[3, 1]]])]
    assert lowest_value("(a - b) / (a + b)", BANDS, iter(windows)) == 0
    assert lowest_value("b / 4 - a / 2", BANDS, windows, scale=2) == -0.625
    assert lowest_value("a", BANDS, []) == np.inf


def test_wrong_input_is_refused() -> None:
    search = searched(LAYERS)
    pixels, labels = data(LAYERS, 0)
    with pytest.raises(ValueError, match="expected uint8 labels of 2 layer"):
        search.add(pixels, labels[:1])
    with pytest.raises(ValueError, match="expected uint8 labels"):
        search.add(pixels, labels.astype(np.int64))
    with pytest.raises(UserError, match="expected the 2 bands a, b, found 3"):
        search.add(np.zeros((6, 9, 3), np.uint8), labels)
    with pytest.raises(ValueError, match="cannot add"):
        search + searched(WATER)
    with pytest.raises(ValueError, match="at least one index"):
        IndexSearch(WATER, [], BANDS)
    with pytest.raises(UserError, match="did you mean 'ndvi'"):
        IndexSearch(WATER, ["ndvii"], ["nir", "red"])
