"""What is stated and would do nothing is refused in one line; what recipes bring along, and what runs wrote, is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from test_smoke import SYSTEMS, built

from maskloom.config import load_yaml, override, parse, to_yaml
from maskloom.errors import UserError
from maskloom.recipe import Recipe
from maskloom.recipes.idle import idle_settings, refuse_idle
from maskloom.training.schedules import OPTIONS, ScheduleSettings, learning_rate_factor

UNET: dict[str, Any] = {"name": "unet", "network": {}, "input": {"mode": "full"}, "loss": {}, "training": {}}
WINDOWS = {"mode": "window", "size": [64, 64]}
TREES: dict[str, Any] = {
    "name": "trees",
    "network": {"architecture": "trees"},
    "input": {"mode": "full", "multiple": 1},
}


def recipe(*members: dict[str, Any], **others: Any) -> Recipe:
    return parse(Recipe, {"name": "r", "metric": "iou", "members": members or (UNET,), **others})


@pytest.mark.parametrize("name", ["default", *SYSTEMS])
def test_no_recipe_of_the_package_states_what_does_nothing(name: str) -> None:
    assert idle_settings(built(name, "full")) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"input": {"mode": "full", "prefer_class": 0.5}}, r"input\.prefer_class: it chooses windows, mode full"),
        ({"input": {"mode": "resize", "size": [64, 64], "overlap": 0.5}}, r"input\.overlap: for windows and parts"),
        ({"input": WINDOWS | {"keep_background": 0.5}}, r"input\.keep_background: for windows that .*mask_mean"),
        ({"schedule": {"num_cycles": 3}}, r"schedule\.num_cycles: for schedules of kind snapshots, this .* one_cycle"),
        ({"schedule": {"monitor": "loss"}}, r"schedule\.monitor: for schedules of kind plateau, .* found loss; leave"),
        (
            {"training": {"phases": [{"epochs": 2, "schedule": {"kind": "constant", "peak": 0.5}}]}},
            r"members\.0\.training\.phases\.0\.schedule\.peak: for schedules of kind one_cycle",
        ),
        ({"loss": {"deep_supervision": 0.7}}, r"loss\.deep_supervision: for networks .*network\.deep_supervision=true"),
        ({"training": {"early_stopping_delta": 0.1}}, r"early_stopping_delta: for early stopping"),
    ],
)
def test_what_does_nothing_is_refused(changes: dict[str, Any], reason: str) -> None:
    refuse_idle(recipe(), None)
    with pytest.raises(UserError, match=reason) as caught:
        refuse_idle(recipe(UNET | changes), None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"input": WINDOWS | {"prefer_class": 0.5, "overlap": 0.5}},
        {"input": {"mode": "parts", "parts": [1, 2], "overlap": 0.5}},
        {"input": {"mode": "full", "overlap": 0.25, "prefer_class": 0}},  # the defaults
        {"schedule": {"kind": "plateau", "monitor": "loss"}},
        {"network": {"deep_supervision": True}, "loss": {"deep_supervision": 0.7}},
    ],
)
def test_what_does_something_passes(changes: dict[str, Any]) -> None:
    assert idle_settings(recipe(UNET | changes)) == []


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"augment": "light"}, r"augment\.\w+: trees are grown without it"),
        ({"training": {"early_stopping": 3}}, r"training\.early_stopping: trees are grown without it, found 3; leave"),
        ({"loss": {"terms": [{"kind": "dice"}]}}, r"loss\.terms: trees"),
        ({"optimiser": {"lr": 0.1}}, r"optimiser\.lr: trees"),
        ({"input": {**WINDOWS, "multiple": 1, "margin": 16, "prefer_class": 0.5}}, r"input\.prefer_class: trees"),
    ],
)
def test_trees_take_no_settings_of_trainings(changes: dict[str, Any], path: str) -> None:
    refuse_idle(recipe(TREES), None)
    with pytest.raises(UserError, match=path):
        refuse_idle(recipe(TREES | changes), None)


def test_overlap_and_offsets_are_for_windows() -> None:
    for settings in ({"overlap": 0.5}, {"crop_offsets": 5}):
        (name,) = settings
        with pytest.raises(UserError, match=rf"inference\.{name}: for members of windows"):
            refuse_idle(recipe(inference=settings), None)
        refuse_idle(recipe(UNET, UNET | {"name": "second", "input": WINDOWS}, inference=settings), None)


@pytest.mark.parametrize(
    "idle",
    [
        {"input": {"mode": "full"}},
        {"input": WINDOWS | {"margin": 8}},
        {"input": WINDOWS, "guidance": {"region": {"of": "unet"}}},
    ],
)
def test_images_are_whole_for_networks_that_would_see_tiles(idle: dict[str, Any]) -> None:
    second = UNET | {"name": "second"} | idle
    with pytest.raises(UserError, match=r"inference\.whole_pixels: for members of windows without margin"):
        refuse_idle(recipe(UNET, second, inference={"whole_pixels": 1000}), None)
    third = UNET | {"name": "third", "input": WINDOWS}
    refuse_idle(recipe(UNET, second, third, inference={"whole_pixels": 1000}), None)


def test_what_was_there_before_passes() -> None:
    before = recipe(UNET | {"input": WINDOWS | {"prefer_class": 0.5}})
    refuse_idle(override(before, ["members.0.input.mode=full", "members.0.input.size=null"]), before)
    with pytest.raises(UserError, match=r"found 0\.7"):
        refuse_idle(override(before, ["members.0.input={mode: full, prefer_class: 0.7}"]), before)


def test_what_is_stated_of_every_member_must_do_something_for_one() -> None:
    before, every = recipe(UNET, TREES), "members.*.training.epochs=3"
    refuse_idle(override(before, [every]), before, [every])
    for text in ("members.1.training.epochs=3", "members.*.schedule.num_cycles=3"):
        with pytest.raises(UserError, match=r"members\.1\."):
            refuse_idle(override(before, [text]), before, [text])


def test_what_a_run_wrote_passes(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe(UNET | {"input": {"mode": "full", "prefer_class": 0.5}})))
    refuse_idle(parse(Recipe, load_yaml(tmp_path / "recipe.yaml")), None)


OTHERS: dict[str, Any] = {
    "warmup": 0.3, "peak": 0.7, "start": 0.5, "end": 0.5, "milestones": (0.2,), "gamma": 0.5, "monitor": "loss",
    "patience": 1, "min_delta": 0.5, "relative_delta": True, "cooldown": 2, "minimum": 0.05, "cycle": ((1, 0.5),),
    "every": 2, "base": 0.5, "half_cycle": 1.0, "mode": "triangular2", "num_cycles": 2,
}  # fmt: skip
SCORES, LOSSES = [0.4, 0.5, 0.53, *[0.3] * 7], [1 - 0.09 * number for number in range(10)]
BESIDE: dict[str, dict[str, Any]] = {
    "plateau": {"min_delta": 0.05, "gamma": 0.01, "patience": 2},
    "triangular": {"mode": "exp_range"},
    "decay": {"every": 3},
}
"""What makes the other options of a kind show."""


def factors(**settings: Any) -> list[float]:
    return [
        learning_rate_factor(
            parse(ScheduleSettings, settings), step, 40, steps_per_epoch=4, scores=SCORES[: step // 4],
            losses=LOSSES[: step // 4],
        )
        for step in range(40)
    ]  # fmt: skip


@pytest.mark.parametrize("kind", get_args(ScheduleSettings.model_fields["kind"].annotation))
def test_schedules_look_at_what_the_table_says(kind: str) -> None:
    assert set(OTHERS) == set(ScheduleSettings.model_fields) - {"kind"}
    beside = {"kind": kind, **BESIDE.get(kind, {})}
    looked_at = set()
    for name, value in OTHERS.items():
        try:
            if factors(**beside | {name: value}) != factors(**beside):
                looked_at.add(name)
        except UserError:
            assert name == "warmup", "which some kinds refuse themselves"
    assert looked_at == set(OPTIONS[kind])
