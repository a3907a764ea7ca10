"""Scores by attribute: hand-made counts, the definition in plain loops, what noise may mark and what it may not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from maskloom.ensembling.attribute_scores import MAX_PAIRS, MIN_GROUPS, AttributeScores, attribute_scores
from maskloom.metrics import Counts, Metric, score_records


def counted(tp: int, wrong: int, num_classes: int = 1) -> Counts:
    return Counts(
        tp=np.full(num_classes, tp), fp=np.zeros(num_classes, np.int64), fn=np.full(num_classes, wrong, np.int64)
    )


def scored(attributes: list[dict[str, str]], **options: Any) -> AttributeScores:
    counts = [counted(90, 10)] * len(attributes)
    groups = [str(index) for index in range(len(attributes))]
    return attribute_scores(counts, attributes, groups, "dice", **{"draws": 200} | options)


def drives(lower: int, *, groups: int = 24, seed: int = 0) -> tuple[list[Counts], list[dict[str, str]], list[str]]:
    """Two images of each group, by day and by night; groups differ, and so many pixels fewer are right at night."""
    rng = np.random.default_rng(seed)
    counts, attributes, names = [], [], []
    for group in range(groups):
        hard = int(rng.integers(0, 100))
        for time in ("day", "night"):
            wrong = hard + int(rng.integers(0, 10)) + (lower if time == "night" else 0)
            counts.append(counted(1000 - wrong, wrong, 2))
            attributes.append({"time": time, "route": "ab"[group % 2]})
            names.append(f"g{group}")
    return counts, attributes, names


@pytest.mark.parametrize("metric", ["dice", "iou"])
def test_parts_are_scored_alone_and_against_the_rest(metric: Metric) -> None:
    counts, attributes, groups = drives(0)
    found = attribute_scores(counts, attributes, groups, metric, draws=300)
    assert [table.names for table in found.tables] == [("time",), ("route",), ("time", "route")]
    for table in found.tables:
        assert sum(part.num_images for part in table.parts) == len(counts)
        for part in table.parts:
            wanted = dict(zip(table.names, part.values, strict=True))
            inside = [wanted.items() <= each.items() for each in attributes]
            own = [each for each, is_in in zip(counts, inside, strict=True) if is_in]
            rest = [each for each, is_in in zip(counts, inside, strict=True) if not is_in]
            assert part.score == pytest.approx(score_records(own, metric))
            assert part.difference is not None
            expected = score_records(own, metric) - score_records(rest, metric)
            assert part.difference.mean == pytest.approx(expected)
            assert part.difference.low <= expected <= part.difference.high
    assert found.num_compared == 8
    day = found.tables[0].parts[0]
    assert (day.values, day.num_images, day.num_groups) == (("day",), 24, 24)
    assert day.difference is not None and day.difference.confidence == pytest.approx(1 - 0.05 / 8)


@pytest.mark.parametrize("metric", ["dice", "iou"])
def test_only_differences_beyond_noise_are_marked(metric: Metric) -> None:
    """Groups differ by up to 100 pixels; 30 more at night are beyond noise, as each group has both, 1 is not."""
    marks = {}
    for lower in (1, 30):
        found = attribute_scores(*drives(lower), metric, draws=2000)
        marks[lower] = {part.values: part.beyond_noise for part in found.tables[0].parts}
        assert not any(part.beyond_noise for part in found.tables[1].parts)
    assert marks == {1: {("day",): False, ("night",): False}, 30: {("day",): True, ("night",): True}}


def test_few_groups_are_never_marked() -> None:
    counts = [counted(1000, 0)] * 40 + [counted(500, 500)] * 40
    attributes = [{"a": "x"}] * 40 + [{"a": "y"}] * 40
    few = [f"g{index % (MIN_GROUPS - 1)}" for index in range(80)]
    found = attribute_scores(counts, attributes, few, "dice", draws=200)
    assert [part.difference for part in found.tables[0].parts] == [None, None] and found.num_compared == 0
    enough = [f"g{index % MIN_GROUPS}" for index in range(80)]
    found = attribute_scores(counts, attributes, enough, "dice", draws=200)
    assert [part.beyond_noise for part in found.tables[0].parts] == [True, True]


def test_the_same_seed_gives_the_same_intervals() -> None:
    runs = [attribute_scores(*drives(3), "iou", draws=200, seed=seed) for seed in (1, 1, 2)]
    assert runs[0].to_json() == runs[1].to_json() != runs[2].to_json()


def test_a_class_that_one_side_lacks_is_left_out_of_the_difference() -> None:
    both = Counts(tp=np.array([90, 50]), fp=np.array([0, 0]), fn=np.array([10, 50]))
    one = Counts(tp=np.array([90, 0]), fp=np.array([0, 7]), fn=np.array([10, 0]))
    counts = [both] * MIN_GROUPS + [one] * MIN_GROUPS
    attributes = [{"a": "x"}] * MIN_GROUPS + [{"a": "y"}] * MIN_GROUPS
    groups = [str(index) for index in range(2 * MIN_GROUPS)]
    for part in attribute_scores(counts, attributes, groups, "iou", draws=100).tables[0].parts:
        assert part.difference is not None and part.difference.mean == 0 and not part.beyond_noise
        assert part.score == pytest.approx(0.7 if part.values == ("x",) else 0.9)


def test_attributes_that_divide_nothing_or_too_much_have_no_table() -> None:
    attributes = [
        {"same": "1", "own": str(index), "half": str(index % 2), "other": "ab"[index % 2], "third": str(index % 3)}
        for index in range(30)
    ]
    found = scored(attributes)
    assert [table.names for table in found.tables] == [("half",), ("third",), ("half", "third")]
    assert found.left_out == {
        "same": "all images have the same value", "own": "30 values, more than 24",
        "other": "divides the images as half does",
    }  # fmt: skip


def test_an_attribute_that_follows_from_another_is_not_paired_with_it() -> None:
    found = scored([{"city": "ABCD"[index % 4], "country": "xy"[index % 2]} for index in range(40)])
    assert [table.names for table in found.tables] == [("city",), ("country",)]


def test_images_without_an_attribute_are_a_part_of_their_own() -> None:
    found = scored([{"a": "x"}, {"a": "y"}, {}, {"a": "x"}])
    assert [(part.values, part.num_images) for part in found.tables[0].parts] == [(("",), 1), (("x",), 2), (("y",), 1)]


def test_no_more_than_so_many_pairs() -> None:
    rng = np.random.default_rng(0)
    attributes = [{name: str(rng.integers(0, 2 + place)) for place, name in enumerate("abcde")} for _ in range(60)]
    pairs = [table.names for table in scored(attributes).tables if len(table.names) == 2]
    assert len(pairs) == MAX_PAIRS and ("a", "b") in pairs and ("d", "e") not in pairs


def test_nothing_to_say_without_attributes() -> None:
    assert scored([{}, {}]).to_json()["tables"] == []
    assert scored([]).num_compared == 0
    with pytest.raises(ValueError, match="as many counts as attributes"):
        attribute_scores([], [{}], [], "dice")
