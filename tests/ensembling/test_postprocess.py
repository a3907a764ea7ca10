"""Steps on drawn objects at the published scale and at others, and a search that knows gain from noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import pytest

from maskloom.config import parse
from maskloom.ensembling.bootstrap import Tally
from maskloom.ensembling.postprocess import (
    MERGED,
    HolesStep,
    HullStep,
    Plan,
    Postprocessor,
    PostprocessSettings,
    Step,
    check_steps,
    count_plans,
    search,
    single_class_steps,
    step_text,
    with_fitted_thresholds,
)
from maskloom.errors import UserError
from maskloom.inference.merging import RESULT
from maskloom.metrics import from_labels
from maskloom.records import Task

CAR = Task(kind="binary", classes=("car",))
LAYERS = Task(kind="multilabel", classes=("road", "tree"))
SCENE = Task(kind="multiclass", classes=("ground", "house", "water"))


def settings(*steps: dict[str, Any], **more: Any) -> PostprocessSettings:
    return parse(PostprocessSettings, {"steps": list(steps), **more})


def plan(task: Task, *steps: dict[str, Any]) -> Plan:
    return tuple(single_class_steps(settings(*steps), task))


def scene(scale: float = 1) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns labels and maps of a photo of 1280×1918 (or a share of it): a car with everything that can go wrong.

    A doubtful roof with a dent, a window, an antenna, a speck close by and a shadow far away.
    """
    height, width = round(1280 * scale), round(1918 * scale)

    def box(values: np.ndarray, top: int, bottom: int, left: int, right: int, value: int) -> None:
        values[round(top * scale) : round(bottom * scale), round(left * scale) : round(right * scale)] = value

    values = np.zeros((height, width), np.uint8)
    box(values, 620, 1000, 300, 1600, 240)
    box(values, 400, 620, 600, 1300, 100)
    box(values, 400, 560, 900, 1000, 20)
    box(values, 700, 800, 700, 900, 10)
    box(values, 540, 620, 1400, 1408, 240)
    box(values, 1020, 1040, 800, 820, 240)
    box(values, 1150, 1210, 1000, 1400, 240)
    labels = (values >= 128).astype(np.uint8)
    return labels, {MERGED: values[None]}


# --- steps -----------------------------------------------------------------------------------------------------------


def test_the_merged_map_has_the_name_that_the_predictor_gives_it() -> None:
    assert MERGED == RESULT


@pytest.mark.parametrize("scale", [1, 0.5, 0.25])
def test_each_step_mends_what_it_is_for_at_every_scale(scale: float) -> None:
    labels, maps = scene(scale)

    def difference(kind: str, **more: Any) -> set[str]:
        """Returns which parts of the scene a step adds or takes away, each looked at in its middle."""
        after = Postprocessor(plan(CAR, {"kind": kind, **more}), CAR)(labels, maps)
        parts = {
            "roof": (450, 700), "dent": (450, 950), "window": (750, 800), "antenna": (570, 1404),
            "speck": (1030, 810), "shadow": (1180, 1200), "body": (900, 1000), "ground": (1270, 10),
        }  # fmt: skip
        places = {name: (round(row * scale), round(column * scale)) for name, (row, column) in parts.items()}
        return {name for name, place in places.items() if after[place] != labels[place]}

    assert difference("hull") == {"roof", "dent"}
    assert difference("holes") == {"window"}
    assert difference("holes", maximum_area=19_900) == set()
    assert difference("small") == {"speck"}
    assert difference("far") == {"shadow"}
    assert difference("thin") == {"antenna"}
    assert difference("threshold", value=0.35) == {"roof"}
    assert difference("far", distance=150, scale_pixels=False) == ({"shadow"} if scale == 1 else set())


def test_constants_that_are_not_scaled_do_less_in_small_images() -> None:
    labels, maps = scene(0.25)
    plain = Postprocessor(plan(CAR, {"kind": "hull", "scale_pixels": False}), CAR)(labels, maps)
    assert np.array_equal(plain, labels)  # 175×55 pixels of roof are fewer than 40,000


def test_the_published_hull_follows_the_published_calls() -> None:
    """The text of the 1st place in OpenCV's words, at full size."""
    labels, maps = scene()
    values = maps[MERGED][0]

    def largest(region: np.ndarray) -> np.ndarray:
        return max(cv2.findContours(region, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0], key=cv2.contourArea)

    unreliable = ((values > 30) & (values < 210)).astype(np.uint8) * 255
    unreliable = cv2.erode(unreliable, (55, 55), iterations=10)  # type: ignore[call-overload]
    top = largest(unreliable[:640])
    assert cv2.contourArea(top) > 40_000
    x, y, width, height = cv2.boundingRect(top)
    hull = np.zeros_like(values)
    cv2.drawContours(hull, [cv2.convexHull(largest((values > 55).astype(np.uint8)))], -1, 1, -1)
    expected = labels.copy()
    rows, columns = slice(y - 50, y + height + 50), slice(x - 50, x + width + 50)
    expected[rows, columns] = hull[rows, columns]
    assert np.array_equal(Postprocessor(plan(CAR, {"kind": "hull"}), CAR)(labels, maps), expected)
    assert not np.array_equal(expected, labels)


def test_a_hull_can_be_that_of_one_member() -> None:
    labels, maps = scene(0.25)
    nothing = {MERGED: maps[MERGED] * 0, "linknet": maps[MERGED]}
    of_member = Postprocessor(plan(CAR, {"kind": "hull", "map": "linknet"}), CAR)(labels, nothing)
    assert np.array_equal(of_member, Postprocessor(plan(CAR, {"kind": "hull"}), CAR)(labels, maps))
    assert np.array_equal(Postprocessor(plan(CAR, {"kind": "hull"}), CAR)(labels, nothing), labels)


def test_steps_are_taken_in_their_order_and_leave_the_labels_alone() -> None:
    labels, maps = scene(0.25)
    before = labels.copy()
    both = Postprocessor(plan(CAR, {"kind": "threshold", "value": 0.05}, {"kind": "holes"}), CAR)(labels, maps)
    assert both.dtype == np.uint8 and set(np.unique(both)) == {0, 1}
    assert both[112, 237] == 1 and both[187, 200] == 1  # the dent by its value, the window as a hole
    assert np.array_equal(labels, before)
    assert Postprocessor((), CAR)(labels, maps) is labels


def test_exclusive_classes_get_what_others_lose() -> None:
    labels = np.zeros((8, 8), np.uint8)
    labels[1:7, :6] = 1
    labels[3:5, 3:5] = 2  # a pond within the house
    labels[0, 7] = 1  # a speck of house
    values = np.zeros((3, 8, 8), np.uint8)
    values[0], values[2, 0, 7] = 1, 9
    maps = {MERGED: values}
    filled = Postprocessor(plan(SCENE, {"kind": "holes", "classes": ["house"]}), SCENE)(labels, maps)
    assert (filled[1:7, :6] == 1).all() and filled[0, 7] == 1
    small = {"kind": "small", "minimum_area": 2, "scale_pixels": False}
    cleared = Postprocessor(plan(SCENE, {**small, "classes": ["house"]}), SCENE)
    assert cleared(labels, maps)[0, 7] == 2  # the next largest value there
    values[2, 0, 7] = 0
    values[1, 0, 7] = 200
    assert cleared(labels, maps)[0, 7] == 0  # its own value does not count
    assert Postprocessor(plan(SCENE, small), SCENE)(labels, maps)[0, 7] == 0


def test_layers_do_not_touch_each_other() -> None:
    labels = np.zeros((2, 8, 8), np.uint8)
    labels[0, 1:7, 1:7] = labels[1, 2:6, 2:6] = 1
    labels[:, 3, 3] = 0
    maps = {MERGED: labels * 255}
    both = Postprocessor(plan(LAYERS, {"kind": "holes"}), LAYERS)(labels, maps)
    assert both.sum() == 36 + 16
    one = Postprocessor(plan(LAYERS, {"kind": "holes", "classes": ["tree"]}), LAYERS)(labels, maps)
    assert np.array_equal(one[0], labels[0]) and np.array_equal(one[1], both[1])


# --- settings --------------------------------------------------------------------------------------------------------


def test_candidates_are_one_per_class() -> None:
    steps = ({"kind": "holes"}, {"kind": "small", "classes": ["water", "house"]})
    assert [step_text(step) for step in plan(SCENE, *steps)] == [
        "fill holes (house)", "fill holes (water)", "remove small pieces (water)", "remove small pieces (house)",
    ]  # fmt: skip
    assert [step.classes for step in plan(LAYERS, {"kind": "hull"})] == [("road",), ("tree",)]


def test_fitted_thresholds_are_stated_exactly() -> None:
    for value in range(256):
        (step,) = with_fitted_thresholds(plan(CAR, {"kind": "threshold"}), [value], CAR)
        labels = Postprocessor((step,), CAR)(
            np.zeros((1, 256), np.uint8), {MERGED: np.arange(256, dtype=np.uint8)[None, None]}
        )
        assert labels.sum() == 256 - value
    assert step_text(plan(CAR, {"kind": "threshold"})[0]) == "threshold (car)"


def test_impossible_steps_are_refused() -> None:
    with pytest.raises(UserError, match="state it before"):
        settings({"kind": "holes"}, {"kind": "threshold"})
    with pytest.raises(UserError, match="unknown key"):
        settings({"kind": "holes", "maximum": 3})
    with pytest.raises(UserError, match="element"):
        settings({"kind": "hull", "element": [0, 1]})
    with pytest.raises(UserError, match=r"steps\.0: expected no threshold"):
        check_steps(settings({"kind": "threshold"}), SCENE, [])
    with pytest.raises(UserError, match=r"steps\.1\.classes.*did you mean 'water'"):
        check_steps(settings({"kind": "holes"}, {"kind": "small", "classes": ["watr"]}), SCENE, [])
    with pytest.raises(UserError, match=r"map: expected 'result' or a tap.*did you mean 'linknet'"):
        check_steps(settings({"kind": "hull", "map": "linket"}), CAR, ["linknet"])
    check_steps(settings({"kind": "hull", "map": "linknet"}), CAR, ["linknet"])


# --- counting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [CAR, LAYERS, SCENE], ids=lambda task: task.kind)
def test_plans_are_counted_as_their_labels_would_be(task: Task) -> None:
    rng = np.random.default_rng(0)
    layered = task.kind == "multilabel"
    shape = (2, 12, 12) if layered else (12, 12)
    labels, truth = (rng.integers(0, 3 if task is SCENE else 2, shape).astype(np.uint8) for _ in range(2))
    truth[..., 0, :3] = 255
    maps = {MERGED: rng.integers(0, 256, (task.num_maps, 12, 12), dtype=np.uint8)}
    steps = plan(task, {"kind": "holes"}, {"kind": "small", "minimum_area": 4, "scale_pixels": False})
    plans = [(), steps[:1], steps[1:2], steps]
    found = count_plans(plans, labels, maps, truth, task)
    assert found.shape == (4, 3, task.num_maps)
    for counted, each in zip(found, plans, strict=True):
        expected = from_labels(Postprocessor(each, task)(labels, maps), truth, task)
        assert np.array_equal(counted, [expected.tp, expected.fp, expected.fn])
    assert not np.array_equal(found[0], found[3])


# --- the search ------------------------------------------------------------------------------------------------------

HELPS, HARMS, NOTHING, CHANCE = (
    {"kind": "holes"}, {"kind": "small"}, {"kind": "far"}, {"kind": "thin"},
)  # fmt: skip
EFFECTS: dict[str, Callable[[np.random.Generator], int]] = {
    "holes": lambda rng: int(rng.integers(5, 15)),
    "small": lambda rng: -int(rng.integers(5, 15)),
    "far": lambda rng: 0,
    "thin": lambda rng: int(rng.integers(-30, 34)),
}


def made_up(groups: Sequence[str]) -> Callable[[Sequence[Plan]], list[Tally]]:
    """Returns tallies of records in which each step mends (or spoils) so many of 1000 pixels, beside the others."""
    rng = np.random.default_rng(5)
    effects = {kind: np.array([effect(rng) for _ in groups]) for kind, effect in EFFECTS.items()}

    def tallies(plans: Sequence[Plan]) -> list[Tally]:
        found = []
        for each in plans:
            hits = 900 + sum(effects[step.kind] for step in each) + np.zeros(len(groups), np.int64)
            found.append(np.stack([hits, 1000 - hits, 1000 - hits], axis=1)[:, :, None])
        return found

    return tallies


def searched(*steps: dict[str, Any], groups: int = 30, **more: Any) -> tuple[list[str], list[str]]:
    names = [str(index // 2) for index in range(2 * groups)]
    wanted = settings(*steps, **more)
    found = search(single_class_steps(wanted, CAR), made_up(names), names, "dice", wanted)
    return [step.kind for step in found.plan], [trial.why for trial in found.trials]


def test_a_step_that_helps_is_switched_on_and_no_other() -> None:
    chosen, why = searched(HARMS, NOTHING, CHANCE, HELPS)
    assert chosen == ["holes"]
    assert why == [
        "left off: it does harm",
        "left off: it changes no score",
        "left off: within noise",
        "switched on: it helps beyond noise",
    ]


def test_what_chance_makes_of_one_step_is_noise_in_most_cases() -> None:
    """A step of no effect on average, in forty made-up runs."""
    rng = np.random.default_rng(0)
    names = [str(index) for index in range(40)]
    wanted = settings(CHANCE)
    switched_on = 0
    for _ in range(40):
        effect = rng.normal(0, 20, 40).round().astype(np.int64)

        def tallies(plans: Sequence[Plan], effect: np.ndarray = effect) -> list[Tally]:
            hits = [900 + effect * len(each) for each in plans]
            return [np.stack([hit, 1000 - hit, 1000 - hit], axis=1)[:, :, None] for hit in hits]

        switched_on += bool(search(single_class_steps(wanted, CAR), tallies, names, "dice", wanted).plan)
    assert switched_on <= 4  # 2.5 % are expected


def test_a_gain_in_one_group_alone_is_noise() -> None:
    names = [str(index) for index in range(30)]

    def van(plans: Sequence[Plan]) -> list[Tally]:
        hits = [900 + 90 * len(each) * (np.arange(30) == 7) for each in plans]
        return [np.stack([hit, 1000 - hit, 1000 - hit], axis=1)[:, :, None] for hit in hits]

    wanted = settings(HELPS)
    found = search(single_class_steps(wanted, CAR), van, names, "iou", wanted)
    assert found.plan == () and found.trials[0].why == "left off: within noise"
    assert found.trials[0].gain is not None and found.trials[0].gain.probability > 0.5


def test_the_best_of_two_is_taken_first_and_the_other_only_on_top() -> None:
    """Two kinds that mend the same pixels: the second adds nothing to the first."""
    names = [str(index) for index in range(12)]

    def tallies(plans: Sequence[Plan]) -> list[Tally]:
        mended = [max([0] + [{"holes": 20, "small": 30}[step.kind] for step in each]) for each in plans]
        return [np.full((12, 3, 1), 100) + np.array([[[gain], [-gain], [-gain]]]) for gain in mended]

    wanted = settings(HELPS, {"kind": "small"})
    found = search(single_class_steps(wanted, CAR), tallies, names, "dice", wanted)
    assert [step.kind for step in found.plan] == ["small"]
    assert [trial.why for trial in found.trials] == [
        "left off: it changes no score", "switched on: it helps beyond noise",
    ]  # fmt: skip
    assert found.trials[0].gain is not None and found.trials[0].gain.confidence == pytest.approx(0.975)


def test_published_steps_can_be_always_on() -> None:
    chosen, why = searched(HARMS, HELPS, choose="always")
    assert chosen == ["small", "holes"] and why == ["always on"] * 2
    assert searched(HARMS, HELPS, choose="always", groups=2)[0] == ["small", "holes"]


def test_few_groups_cannot_tell() -> None:
    chosen, why = searched(HELPS, groups=5)
    assert chosen == [] and "5 group(s) cannot tell" in why[0]
    assert searched(HELPS, groups=6)[0] == ["holes"]


def test_no_candidates_are_no_steps() -> None:
    found = search([], lambda plans: [], ["a"] * 9, "dice", settings())
    assert found.plan == found.trials == ()


def test_steps_survive_being_stored() -> None:
    steps: list[Step] = [HullStep(map="linknet", classes=("car",)), HolesStep(classes=("car",))]
    again = parse(PostprocessSettings, {"steps": [step.model_dump(mode="json") for step in steps]})
    assert list(again.steps) == steps
