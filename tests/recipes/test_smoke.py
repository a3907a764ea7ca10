"""Smoke scale: every recipe stays the system that it is, and only becomes small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cars import described
from maskloom.api import builders, plan
from maskloom.config import parse
from maskloom.contests.signate.layout import ATTRIBUTES
from maskloom.data.input_policy import InputPolicy
from maskloom.losses.terms import LossSettings
from maskloom.members import MemberSettings
from maskloom.models.encoders import NetworkSettings
from maskloom.recipe import Recipe, Scale, merged
from maskloom.recipes.smoke import PIXELS, smoked, smoked_parts
from maskloom.records import Size, usual_size
from maskloom.training.engine import TrainingSettings
from maskloom.training.phases import plan_epochs
from scenes import described_scenes

SYSTEMS = sorted(name for name in builders() if name != "default")


def built(name: str, scale: Scale) -> Recipe:
    source = described(8)
    if name.startswith("dstl_"):
        source = described_scenes(8, swir=name == "dstl_swir")
    elif name == "signate_22nd":
        photos = described(8, kind="multiclass")
        records = (replace(record, attributes=dict.fromkeys(ATTRIBUTES, "one")) for record in photos.records)
        source = replace(photos, records=tuple(records))
    return builders()[name](source, device="cpu", scale=scale)


def what_it_is(member: MemberSettings) -> dict[str, Any]:
    """Returns everything of a member but numbers of how large and how long."""
    training = member.training
    return {
        "network": member.network.model_dump(
            exclude={"width": True, "weights": True, "bundle": True, "trees": {"num_trees"}}
        ),
        "loss": member.loss,
        "optimiser": member.optimiser,
        "schedule": member.schedule,
        "augment": member.augment,
        "phases": [phase.model_dump(exclude={"epochs"}) for phase in training.phases],
        "training": training.model_dump(
            exclude={"epochs", "phases", "images_per_epoch", "batch_size", "accumulation", "hard_negative_every"}
        ),
        "mines": training.hard_negative_every is not None,
        "accumulates": training.accumulation > 1,
        "input": member.input.model_dump(exclude={"mode", "size", "scale", "margin"}),
        "cuts": member.input.mode in ("window", "parts"),
        "others": member.model_dump(exclude={"network", "loss", "optimiser", "schedule", "augment", "training", "input",
                                             "validation_images"}),
    }  # fmt: skip


@pytest.mark.parametrize("name", SYSTEMS)
def test_architectures_losses_schedules_folds_and_stages_stay(name: str) -> None:
    full, smoke = built(name, "full"), built(name, "smoke")
    assert (full.scale, smoke.scale) == ("full", "smoke")
    assert [what_it_is(member) for member in smoke.members] == [what_it_is(member) for member in full.members]
    for part in ("name", "seed", "metric", "folds", "outside", "inference", "ensemble", "delivery"):
        assert getattr(smoke, part) == getattr(full, part)
    assert smoke.postprocess.model_dump(exclude={"draws"}) == full.postprocess.model_dump(exclude={"draws"})
    kept = {"members", "teachers", "train", "rank_by", "band", "outnumber"}
    assert [each.model_dump(include=kept) for each in smoke.pseudo] == [
        each.model_dump(include=kept) for each in full.pseudo
    ]


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_schedule_and_optimiser_still_has_its_turn(name: str) -> None:
    """Each plan of an epoch at full scale (optimiser, schedule, augmentation) is some epoch's at smoke scale."""

    def plans(member: MemberSettings) -> set[Any]:
        found = plan_epochs(
            member.training.phases,
            epochs=member.training.epochs,
            optimiser=member.optimiser,
            schedule=member.schedule,
            augment=member.augment,
        )
        return {(each.phase, each.optimiser, each.schedule, each.augment) for each in found}

    for full, smoke in zip(built(name, "full").members, built(name, "smoke").members, strict=True):
        assert plans(smoke) == plans(full)


@pytest.mark.parametrize("name", SYSTEMS)
def test_less_of_all(name: str) -> None:
    for full, smoke in zip(built(name, "full").members, built(name, "smoke").members, strict=True):
        assert smoke.network.width < full.network.width and smoke.network.weights == "none"
        assert smoke.training.epochs <= 3 and smoke.training.images_per_epoch == 8
        assert smoke.validation_images == 2
        if smoke.input.size is not None:
            height, width = smoke.input.size
            assert height * width <= 128 * 128
        else:
            assert smoke.input.scale < 0.1


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("scale", ["full", "smoke"])
def test_a_saved_recipe_is_the_same_recipe(name: str, scale: Scale) -> None:
    recipe = built(name, scale)
    assert parse(Recipe, recipe.model_dump(mode="json")) == recipe


def small(policy: InputPolicy, size: Size, **changes: Any) -> InputPolicy:
    member = MemberSettings(
        name="one",
        network=NetworkSettings(weights="none"),
        input=policy,
        loss=LossSettings(),
        training=TrainingSettings(),
        **changes,
    )
    return smoked(Recipe(name="r", metric="dice", members=(member,)), size).members[0].input


def test_whole_images_become_one_small_size() -> None:
    full = small(InputPolicy(mode="full", clahe=True), (1280, 1918))
    assert (full.mode, full.size, full.clahe) == ("resize", (64, 96), True)  # 1280×1918 shrunk to 64×96: PIXELS
    assert PIXELS == 64 * 96
    assert small(InputPolicy(mode="resize", size=(1024, 1024)), (1280, 1918)).size == (96, 96)  # 78×78, rounded up
    assert small(InputPolicy(mode="full"), (32, 32)).size == (32, 32)  # nothing grows


def test_images_that_are_cut_shrink_by_a_scale() -> None:
    window = small(InputPolicy(mode="window", size=(512, 1024)), (640, 960))
    assert (window.mode, window.size) == ("window", (64, 64))
    assert window.scale == pytest.approx(0.1)  # 640×960 becomes 64×96
    parts = small(InputPolicy(mode="parts", parts=(1, 2), scale=0.5), (640, 960))
    assert (parts.parts, parts.scale) == ((1, 2), pytest.approx(0.05))


def test_epochs_that_differ_stay_apart() -> None:
    first, ternaus = built("carvana_1st", "smoke").members[0], built("carvana_1st", "smoke").member("ternaus")
    assert first.training.epochs == 1
    assert ternaus.training.epochs == 2  # a new optimiser with the second
    assert [phase.epochs for phase in built("carvana_1st", "smoke").member("linknet_fma").training.phases] == [1, 1]
    assert built("carvana_3rd", "smoke").members[0].training.epochs == 2  # a plateau needs a score


def test_a_round_takes_few_labels_however_unsure() -> None:
    (round_,) = built("carvana_4th", "smoke").pseudo
    assert round_.limit(100, 100) == 8
    assert (round_.minimum_confidence, round_.minimum_agreement, round_.ignore_below) == (0, 0, 0)


@pytest.mark.parametrize("name", ["carvana_4th", "dstl_3rd"])
def test_what_a_file_lays_over_a_smoke_recipe_is_shrunk_with_it(name: str) -> None:
    full, smoke = built(name, "full"), built(name, "smoke")
    records = (described_scenes(8) if name == "dstl_3rd" else described(8)).records
    size = usual_size(record.size for record in records)
    stated = full.model_dump(mode="json", include={"members", "pseudo", "postprocess"})
    over = merged(smoke, stated, origin="file")
    assert over.members == full.members and over.pseudo == full.pseudo
    assert smoked_parts(over, stated, size) == smoke
    assert smoked_parts(over, {"members": []}, size).members == smoke.members
    assert smoked_parts(over, {"members": []}, size).pseudo == full.pseudo


def test_what_a_file_does_not_state_stays_as_its_base_shrank_it() -> None:
    smoke = built("carvana_11th", "smoke")
    member = smoke.members[0].model_copy(update={"validation_images": 7})  # as a base with another idea of small
    base = smoke.model_copy(update={"members": (member, *smoke.members[1:])})
    over = merged(base, {"seed": 3, "folds": {"count": 4}, "inference": {"views": "flips"}}, origin="file")
    assert smoked_parts(over, {"seed", "folds", "inference"}, (1280, 1918)) == over


def test_the_members_of_a_file_are_shrunk_with_its_base(studio: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "base: default\nmembers:\n- {name: mine, network: {weights: none}, "
        "input: {mode: resize, size: [512, 512]},"
        " loss: {terms: [{kind: bce}]}, training: {epochs: 30}}\n"
    )
    complete, _ = plan(recipe, studio, settings=["scale=smoke", "members.0.training.batch_size=3"], device="cpu")
    (member,) = complete.members
    assert complete.scale == "smoke" and member.training.batch_size == 3  # what --set states stays
    assert (member.training.epochs, member.training.images_per_epoch, member.validation_images) == (1, 8, 2)
    assert member.input.size is not None and max(member.input.size) <= 96 and member.network.width < 0.1
    whole, _ = plan(recipe, studio, settings=[], device="cpu")
    assert whole.members[0].training.epochs == 30
