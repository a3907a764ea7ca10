"""The 1st place's recipe against the published numbers."""

from __future__ import annotations

import pytest

from cars import described
from maskloom.contests.carvana.first import carvana_1st
from maskloom.data.augment import PRESETS
from maskloom.data.folds import FoldSettings
from maskloom.data.input_policy import place
from maskloom.ensembling.postprocess import HullStep
from maskloom.inference.merging import Merge
from maskloom.members import MemberSettings
from maskloom.models.published import PUBLISHED
from maskloom.training.phases import EpochPlan, plan_epochs
from maskloom.training.schedules import learning_rate_factor

RECIPE = carvana_1st(described(318), device="cuda")
LINKNETS = ("fma", "fma_44", "fma_88", "f04a_44", "f04a_clahe", "f04a_clahe_rmsprop")


def folds_of(member: MemberSettings) -> FoldSettings:
    return member.folds or RECIPE.folds


def plans(member: MemberSettings) -> tuple[EpochPlan, ...]:
    return plan_epochs(
        member.training.phases,
        epochs=member.training.epochs,
        optimiser=member.optimiser,
        schedule=member.schedule,
        augment=member.augment,
    )


def rates(member: MemberSettings) -> list[float]:
    """Returns the learning rate of every epoch, of ten steps each."""
    found = []
    for epoch, plan in enumerate(plans(member)):
        step, steps = 10 * (epoch - plan.span.start), 10 * len(plan.span)
        factors = {learning_rate_factor(plan.schedule, step + i, steps, steps_per_epoch=10) for i in range(10)}
        (factor,) = factors
        found.append(plan.optimiser.lr * factor)
    return found


def test_49_networks_in_four_members_of_equal_weight() -> None:
    counts = {member.name: folds_of(member).count for member in RECIPE.members}
    assert counts == {"scratch": 7, "vgg11v1": 7, "ternaus": 5} | {f"linknet_{name}": 5 for name in LINKNETS}
    assert sum(counts.values()) == 49
    tree = RECIPE.ensemble.tree
    assert tree is not None and tree.kind == "mean" and tree.weights is None
    linknet = Merge(name="linknet", children=tuple(f"linknet_{name}" for name in LINKNETS))
    assert tree.children == ("scratch", "vgg11v1", linknet, "ternaus")
    assert sorted(tree.leaves()) == sorted(counts)


def test_folds() -> None:
    assert folds_of(RECIPE.member("scratch")) == FoldSettings(kind="kfold", count=7, seed=1993)
    vgg = folds_of(RECIPE.member("vgg11v1"))
    assert (vgg.count, vgg.stratify) == (7, "area_bins")
    for name in LINKNETS:
        folds = folds_of(RECIPE.member(f"linknet_{name}"))
        assert (folds.count, folds.stratify) == (5, "area_dealt")
        assert folds.area_of == ({} if name.startswith("fma") else {"view": "05"})


@pytest.mark.parametrize(
    ("member", "published"),
    [
        ("scratch", "asanakoy-unet-scratch"),
        ("vgg11v1", "asanakoy-unet-vgg11v1"),
        ("linknet_fma", "albu-linknet34"),
        ("ternaus", "ternaus-unet11"),
    ],
)
def test_networks_and_inputs_are_those_of_the_published_weights(member: str, published: str) -> None:
    found, expected = RECIPE.member(member), PUBLISHED[published]
    assert found.network.model_copy(update={"weights": "none"}) == expected.settings
    assert found.network.weights == ("none" if member == "scratch" else "hub"), "ImageNet's, as published"
    assert found.input == expected.policy


def test_all_but_scratch_are_pretrained() -> None:
    stated = {member.name: member.network.weights for member in RECIPE.members}
    assert stated.pop("scratch") == "none" and set(stated.values()) == {"hub"}


def test_photos_of_1918_columns_get_one_more_on_each_side() -> None:
    placement = place((1280, 1918), RECIPE.member("ternaus").input)
    assert placement.padded == (1280, 1920)
    assert (placement.padding.left, placement.padding.right) == (1, 1)
    assert RECIPE.member("ternaus").input.padding == "reflect"


def test_scratch() -> None:
    member = RECIPE.member("scratch")
    assert [round(rate, 10) for rate in rates(member)] == [5e-3] * 100 + [2.5e-3] * 100 + [1.25e-3] * 50
    optimiser = member.optimiser
    assert (optimiser.kind, optimiser.momentum, optimiser.weight_decay) == ("sgd", 0.9, 5e-4)
    assert optimiser.decay_norm_and_bias and not optimiser.nesterov
    assert (member.training.batch_size, member.training.accumulation) == (1, 4)
    assert member.augment == PRESETS["carvana_2"]
    assert [term.kind for term in member.loss.terms] == ["boundary_bce", "boundary_dice"]


def test_vgg11v1() -> None:
    member = RECIPE.member("vgg11v1")
    assert rates(member) == pytest.approx(([1e-4] * 10 + [1e-5] * 5 + [1e-6] * 5) * 3)
    augments = [plan.augment for plan in plans(member)]
    assert augments == [PRESETS["carvana_1"]] * 15 + [PRESETS["carvana_0"]] * 45
    assert (member.optimiser.kind, member.optimiser.weight_decay) == ("adam", 0)
    assert [plan.is_fresh for plan in plans(member)] == [True] + [False] * 59
    assert member.loss == RECIPE.member("scratch").loss


@pytest.mark.parametrize("name", LINKNETS)
def test_linknet(name: str) -> None:
    member = RECIPE.member(f"linknet_{name}")
    cycle = [1e-4, 1e-4, 1e-5, 1e-5, 1e-6]
    assert rates(member) == pytest.approx([1e-4] * 12 + [1e-5] * 11 + (cycle * 4)[:17])
    kinds = [plan.optimiser.kind for plan in plans(member)]
    assert kinds == ["rmsprop" if name.endswith("rmsprop") else "adam"] * 23 + ["adam"] * 17
    assert [epoch for epoch, plan in enumerate(plans(member)) if plan.is_fresh] == [0, 23]
    training = member.training
    assert (training.epochs, training.batch_size, training.hard_negative_every, training.clip_norm) == (40, 4, 10, 1.0)
    assert member.input.clahe == ("clahe" in name)
    assert (member.views, member.view_merge) == ("flip", "logit_mean")
    assert [(term.kind, term.weight, term.log) for term in member.loss.terms] == [("bce", 1, False), ("dice", 1, False)]
    assert member.augment == PRESETS["carvana_linknet"]


def test_ternaus() -> None:
    member = RECIPE.member("ternaus")
    assert rates(member) == pytest.approx([1e-4 * 0.5 ** (epoch % 5 // 2) for epoch in range(52)])
    assert all(plan.is_fresh and plan.optimiser.kind == "adam" for plan in plans(member))
    assert member.training.batch_size == 4
    bce, dice = member.loss.terms
    assert (bce.kind, dice.kind, dice.log, dice.smooth, dice.per_image) == ("bce", "dice", True, 1e-15, None)
    assert member.augment == PRESETS["carvana_ternaus"]


def test_only_the_linknets_see_flips() -> None:
    assert RECIPE.inference.views == "none"
    assert {member.name for member in RECIPE.members if member.views} == {f"linknet_{name}" for name in LINKNETS}


def test_threshold_and_hull() -> None:
    assert RECIPE.ensemble.thresholds == 0.5 and round(255 * 0.5) == 128
    (step,) = RECIPE.postprocess.steps
    assert isinstance(step, HullStep) and step.map == "linknet"
    assert (step.low, step.high, step.above, step.minimum_area, step.margin) == (30, 210, 55, 40_000, 50)
    assert (step.element, step.iterations, step.top) == ((2, 1), 10, 0.5)
    assert RECIPE.postprocess.choose == "always"


def test_a_round_of_pseudo_labels_stays_within_its_folds() -> None:
    (round_,) = RECIPE.pseudo
    pupils, teachers = ([RECIPE.member(name) for name in names] for names in (round_.members, round_.teachers or ()))
    assert {folds_of(pupil).model_dump_json() for pupil in pupils} == {
        folds_of(teacher).model_dump_json() for teacher in teachers
    }
    assert round_.outnumber > 1  # more pseudo-labels than labels
