"""The other Carvana recipes against the published numbers, and what all of them have in common."""

from __future__ import annotations

import pytest

from cars import described
from maskloom.api import builders, recipes
from maskloom.data.augment import PRESETS
from maskloom.ensembling.postprocess import check_steps
from maskloom.errors import UserError
from maskloom.inference.guidance import RegionSettings
from maskloom.inference.merging import tap_names
from maskloom.losses.terms import build_loss
from maskloom.recipe import Recipe
from maskloom.stages.pseudo_views import teachers_of
from maskloom.stages.train import weights_mark

SYSTEMS = tuple(f"carvana_{place}" for place in ("1st", "3rd", "4th", "6th", "7th", "10th", "11th", "15th"))
CARS = described(318)


def recipe(name: str) -> Recipe:
    return builders()[name](CARS, device="cpu")


def region(name: str, member: str) -> RegionSettings:
    guidance = recipe(name).member(member).guidance
    assert guidance is not None and guidance.region is not None
    return guidance.region


# All


def test_every_system_is_listed_with_a_line() -> None:
    lines = recipes()
    assert set(SYSTEMS) <= set(lines)
    for name in SYSTEMS:
        assert lines[name].startswith(f"Carvana, {name.removeprefix('carvana_')} place: ")


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_is_published_depends_on_no_device(name: str) -> None:
    assert recipe(name) == builders()[name](CARS, device="cuda")
    assert recipe(name).name == name


@pytest.mark.parametrize("name", SYSTEMS)
def test_losses_taps_and_teachers_are_there(name: str) -> None:
    complete = recipe(name)
    for member in complete.members:
        build_loss(member.loss, CARS.task)
    tree = complete.ensemble.tree
    check_steps(complete.postprocess, CARS.task, tap_names(tree) if tree else [])
    for number in range(len(complete.pseudo)):
        assert teachers_of(complete, number)
    assert complete.ensemble.thresholds == 0.5


@pytest.mark.parametrize(("name", "cars"), [(name, {"1st": 7, "3rd": 6}.get(name[8:], 5)) for name in SYSTEMS])
def test_fewer_cars_than_folds_are_one_clear_error(name: str, cars: int) -> None:
    assert builders()[name](described(cars), device="cpu").name == name
    with pytest.raises(UserError, match=rf"at least {cars} cars .* of {name}, found {cars - 1}; add .* default"):
        builders()[name](described(cars - 1), device="cpu")


@pytest.mark.parametrize("name", SYSTEMS)
def test_other_tasks_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"expected a binary task for {name}.*found multiclass"):
        builders()[name](described(8, kind="multiclass"), device="cpu")


@pytest.mark.parametrize("name", ["carvana_1st", "carvana_3rd", "carvana_4th"])
def test_without_unlabelled_photos_there_are_no_pseudo_labels(name: str) -> None:
    without = builders()[name](described(8, test_cars=0), device="cpu")
    assert without.pseudo == () and recipe(name).pseudo
    assert without.members == recipe(name).members


@pytest.mark.parametrize("name", SYSTEMS)
def test_no_encoder_keeps_random_weights(name: str) -> None:
    complete = recipe(name)
    assert complete.scale == "full"
    for member in complete.members:
        if any(prefix.startswith("encoder.") for prefix in member.optimiser.frozen):
            assert weights_mark(member.network) != "none"


# 3rd


def test_3rd_place() -> None:
    complete = recipe("carvana_3rd")
    counts = {member.name: (member.folds or complete.folds).count for member in complete.members if member.in_ensemble}
    assert counts == {"dilated_1536": 5, "dilated_1920": 6}
    assert complete.ensemble.tree is None and complete.ensemble.weights == "rank"
    for member in complete.members:
        assert (member.network.architecture, member.network.bottleneck) == ("unet_dilated", "cascade")
        assert member.input.size == ((1024, 1536) if "1536" in member.name else None)
        assert (member.optimiser.kind, member.optimiser.lr) == ("rmsprop", 1e-4)
        schedule, training = member.schedule, member.training
        assert (schedule.kind, schedule.gamma, schedule.patience) == ("plateau", 0.2, 5)
        assert (training.early_stopping, training.early_stopping_delta) == (10, 1e-4)
        assert member.augment == PRESETS["carvana_3rd"]
        assert member.augment.model_dump(exclude_defaults=True) == {"horizontal_flip": 0.5}
    kinds = {term.kind: term for member in complete.members for term in member.loss.terms}
    assert set(kinds) == {"bce", "boundary_bce", "dice"}
    assert kinds["boundary_bce"].weighting == "hill" and kinds["boundary_bce"].window is None  # 50 as published


# 4th


def test_4th_place_networks_and_training() -> None:
    complete = recipe("carvana_4th")
    assert (complete.folds.count, complete.folds.stratify, complete.folds.area_of) == (5, "area_dealt", {})
    assert {member.network.encoder for member in complete.members} == {
        "none", "resnet50", "vgg16", "inception_resnet_v2", "mobilenetv1_100",
    }  # fmt: skip
    for member in complete.members:
        assert member.network.weights == ("none" if member.network.encoder == "none" else "hub"), "pretrained"
        training = member.training
        assert (training.epochs, training.batch_size, training.early_stopping) == (30, 1, 45)
        assert training.keep_epochs and member.keep == "best"
        assert member.optimiser.kind == "adam" and 1e-5 <= member.optimiser.lr <= 1e-3
        assert member.input.size in (None, (1024, 1024))
    assert any(member.optimiser.frozen for member in complete.members)
    assert any(member.schedule.kind == "triangular" for member in complete.members)
    assert {member.views for member in complete.members} == {None, "flip"} and complete.inference.views == "none"


def test_4th_place_losses() -> None:
    found = {
        frozenset((term.kind, term.weight, term.mixture) for term in member.loss.terms)
        for member in recipe("carvana_4th").members
    }
    alone = [frozenset({(kind, 1.0, "soft")}) for kind in ("bce", "dice", "online_bootstrapping")]
    borders = [frozenset({(kind, 0.05, "soft"), ("dice", 0.95, "soft")}) for kind in ("border_bce", "border_dice")]
    mixed = [
        frozenset({(kind, 0.2, mixture), ("dice", 0.8, "soft")})
        for kind, mixture in (("bce", "soft"), ("bootstrapped_bce", "soft"), ("bootstrapped_bce", "hard"))
    ]
    assert found == {*alone, *borders, *mixed}
    online = next(
        term
        for member in recipe("carvana_4th").members
        for term in member.loss.terms
        if term.kind == "online_bootstrapping"
    )
    assert (online.hardest, online.threshold) == (32_768, 0.3)


def test_4th_place_boxes_second_layer_and_holes() -> None:
    complete = recipe("carvana_4th")
    box = region("carvana_4th", "boxed")
    assert (box.kind, box.minimum_area, box.margin, box.round_to) == ("box", 50_000, 64, 64)
    assert round(255 * box.threshold) == 100
    second = complete.member("second")
    assert second.network.architecture == "unet_plain"
    assert second.guidance is not None and len(second.guidance.maps) == 2  # one map per network, not ten
    assert [step.kind for step in complete.postprocess.steps] == ["holes", "far"]


def test_4th_place_is_pretrained_on_the_whole_test_set() -> None:
    (round_,) = recipe("carvana_4th").pseudo
    assert round_.train == "pretrain_then_refine" and round_.members == ("refined",)
    assert round_.teachers == ("vgg", "mobilenet", "resnet")
    assert round_.limit(100_064, 318 * 16 * 4 // 5) == 100_064
    assert round_.minimum_confidence == 0


# 6th


def test_6th_place() -> None:
    complete = recipe("carvana_6th")
    networks = {member.name: member.network for member in complete.members}
    assert {name: (network.architecture, network.encoder) for name, network in networks.items()} == {
        "linknet18": ("linknet_deconv", "resnet18"),
        "linknet34": ("linknet_deconv", "resnet34"),
        "incnet": ("incnet", "inception_v3"),
        "dinknet": ("dinknet", "densenet121"),
        "pspnet18": ("pspnet", "resnet18"),
        "pspnet34": ("pspnet", "resnet34"),
        "unet_vgg11": ("unet_vgg11", "vgg11"),
        "unet_resnet34": ("unet_resnet", "resnet34"),
    }
    assert complete.folds.count == 5 and complete.ensemble.weights == "equal"


# 7th, 10th, 11th, 15th


def test_7th_place() -> None:
    complete = recipe("carvana_7th")
    box = region("carvana_7th", "car")
    assert (box.of, box.kind, box.margin, box.round_to) == ("box", "box", 150, 1)
    car = complete.member("car")
    assert (car.input.mode, car.input.size, car.input.scale) == ("window", (512, 512), 1.0)
    assert car.network.encoder.startswith("resnet")
    assert complete.ensemble_names == ["car"] and complete.inference.views == "flip"
    assert car.folds is not None and car.folds.kind == "holdout"  # one network
    assert complete.member("box").folds is None  # boxes of all photos, each by a network that never saw the car


def test_10th_place() -> None:
    complete = recipe("carvana_10th")
    assert {member.name: member.loss.target for member in complete.members} == {
        "background": "background",
        "unet": "foreground",
        "halves": "foreground",
    }
    assert complete.member("halves").input.parts == (1, 2)
    assert [step.kind for step in complete.postprocess.steps] == ["thin"]


@pytest.mark.parametrize(
    ("name", "coarse", "fine", "scale"), [("11th", "outline", "edge", 0.25), ("15th", "coarse", "patches", 1.0)]
)
def test_coarse_to_fine(name: str, coarse: str, fine: str, scale: float) -> None:
    complete = recipe(f"carvana_{name}")
    looked_at = region(f"carvana_{name}", fine)
    assert (looked_at.of, looked_at.kind) == (coarse, "contour")
    assert complete.member(coarse).input.scale == scale and complete.member(fine).input.scale == 1.0
    assert complete.ensemble_names == [fine]
