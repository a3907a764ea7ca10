"""The plan of the default recipe: what it decides from the data, and that it is always the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from maskloom.config import override
from maskloom.data.augment import PRESETS
from maskloom.data.sources.base import DataSettings, DataSource
from maskloom.data.sources.folder import open_folder
from maskloom.errors import UserError
from maskloom.models.decoders import build_network
from maskloom.models.encoders import NetworkSettings
from maskloom.recipes import planning
from maskloom.recipes.default import BUDGETS, default
from maskloom.recipes.planning import EARLY_STAGES, input_policy, released
from maskloom.training.freezing import freeze, learnable_names


def folder(path: Path, sizes: list[tuple[int, int]], *, channels: int = 3, splits: bool = False) -> Path:
    generator = np.random.default_rng(0)
    for number, size in enumerate(sizes):
        below = ("val" if number % 2 else "train") if splits else ""
        for kind, pixels in (
            ("images", generator.integers(0, 255, (*size, channels), np.uint8).squeeze()),
            ("masks", np.eye(*size, dtype=np.uint8) * 255),
        ):
            (path / kind / below).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path / kind / below / f"{number}.png"), pixels)
    return path


def test_one_shape_is_trained_whole_many_shapes_in_windows(tmp_path: Path) -> None:
    same = open_folder(folder(tmp_path / "same", [(40, 60)] * 4), DataSettings())
    assert default(same, device="cpu").members[0].input.model_dump()["mode"] == "resize"
    many = open_folder(folder(tmp_path / "many", [(40, 60), (60, 40), (50, 50), (70, 50)]), DataSettings())
    recipe = default(many, device="cpu")
    assert recipe.members[0].input.mode == "window" and recipe.inference.views == "flips"


@pytest.mark.parametrize("device", BUDGETS)
def test_large_images_are_shrunk_to_the_budget_with_their_shape(device: str) -> None:
    policy = input_policy([(1280, 1918)] * 3, BUDGETS[device])
    assert policy.size is not None
    height, width = policy.size
    assert height * width <= BUDGETS[device].whole.most_pixels * 1.01
    assert height / width == pytest.approx(1280 / 1918, rel=0.01)


def test_given_folders_are_one_fold(tmp_path: Path) -> None:
    source = open_folder(folder(tmp_path, [(40, 60)] * 4, splits=True), DataSettings())
    recipe = default(source, device="cpu")
    assert recipe.members[0].training.images_per_epoch >= 2
    assert recipe.folds.kind == "auto"


def test_grey_images_feed_three_channels_and_one_group_is_refused(tmp_path: Path) -> None:
    grey = open_folder(folder(tmp_path / "grey", [(40, 60)] * 3, channels=1), DataSettings())
    assert default(grey, device="cpu").members[0].network.channels == 3
    one = open_folder(folder(tmp_path / "one", [(40, 60)]), DataSettings())
    with pytest.raises(UserError, match="at least 2 groups"):
        default(one, device="cpu")


def test_smoke_keeps_what_the_recipe_is(tmp_path: Path) -> None:
    source = open_folder(folder(tmp_path, [(40, 60)] * 4), DataSettings())
    full, smoke = default(source, device="cpu"), default(source, device="cpu", scale="smoke")
    for name in ("loss", "optimiser", "schedule", "augment", "network"):
        assert getattr(full.members[0], name) == getattr(smoke.members[0], name)
    assert full.inference == smoke.inference and full.ensemble == smoke.ensemble


def cars(path: Path) -> DataSource:
    """48 cars × 16 views of 512×512."""
    source = open_folder(folder(path, [(40, 60)] * 4), DataSettings())
    record = source.records[0]
    views = [(car, view) for car in range(48) for view in range(16)]
    return replace(
        source,
        records=tuple(replace(record, id=f"{car}_{view}", group=str(car), size=(512, 512)) for car, view in views),
    )


@pytest.mark.parametrize(
    ("precision", "epochs", "images", "progressive"), [("float32", 7, 228, 0.57), ("bf16", 7, 236, 0.0)]
)
def test_training_stays_within_the_budget_of_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, epochs: int, images: int, progressive: float
) -> None:
    monkeypatch.setattr(planning, "fast_precision", lambda device: precision)
    member = default(cars(tmp_path), device="cpu").members[0]
    training = member.training
    assert (training.epochs, training.images_per_epoch, training.progressive) == (epochs, images, progressive)
    small = round(progressive * epochs)
    validated = [epoch for epoch in range(1, epochs + 1) if epoch >= training.validate_from * epochs]
    assert validated == list(range(small + 1 if small else 1, epochs + 1))
    seen = (small / 4 + epochs - small) * images * 512**2 * 3
    budget = BUDGETS[planning.kind_of("cpu")].whole
    assert 0.9 * budget.total_pixels < seen <= 1.01 * budget.total_pixels
    assert member.network.decoder_channels == budget.decoder


def test_few_passes_on_a_slow_cpu_mirror_only_and_learn_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "fast_precision", lambda device: "float32")
    hurried = default(cars(tmp_path / "many"), device="cpu").members[0]
    assert (hurried.augment, hurried.optimiser.lr, hurried.schedule.peak) == (PRESETS["mirror"], 2e-3, 0.15)
    few = open_folder(folder(tmp_path / "few", [(40, 60)] * 4), DataSettings())
    patient = default(few, device="cpu").members[0]
    assert (patient.augment, patient.optimiser.lr, patient.schedule.peak) == (PRESETS["light"], 1e-3, 0.3)


@pytest.mark.parametrize(("channels", "installed", "freezes"), [(3, True, True), (4, True, False), (3, False, False)])
def test_a_slow_cpu_trains_no_early_stages_where_they_were_trained_on_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int, installed: bool, freezes: bool
) -> None:
    monkeypatch.setattr(planning, "fast_precision", lambda device: "float32")
    monkeypatch.setattr(planning, "num_channels", lambda source: channels)
    monkeypatch.setattr(planning, "installed_file", lambda name: Path("weights.pth") if installed else None)
    member = default(cars(tmp_path), device="cpu").members[0]
    assert bool(member.optimiser.frozen) == freezes


@pytest.mark.parametrize(
    ("changes", "freezes"),
    [({"lr": 0.5}, True), ({"encoder": "resnet18"}, False), ({"weights": "none"}, False), ({"channels": 4}, False)],
)
def test_another_network_than_the_planned_one_learns_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], freezes: bool
) -> None:
    monkeypatch.setattr(planning, "fast_precision", lambda device: "float32")
    planned = default(cars(tmp_path), device="cpu")
    assert planned.members[0].optimiser.frozen == EARLY_STAGES
    part = "optimiser" if "lr" in changes else "network"
    asked = override(planned, [f"members.0.{part}.{name}={value}" for name, value in changes.items()])
    assert released(planned, asked).members[0].optimiser.frozen == (EARLY_STAGES if freezes else ())


def test_the_frozen_stages_are_the_networks_own() -> None:
    network = build_network(NetworkSettings(architecture="unet", encoder=BUDGETS["cpu"].encoder, weights="none"), 1)
    freeze(network, EARLY_STAGES, learnable=learnable_names(network))
    learning = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert not any(name.startswith(("encoder.model.conv_stem", "encoder.model.blocks.2.")) for name in learning)
    assert any(name.startswith("encoder.model.blocks.3.") for name in learning)


def test_however_much_data_there_is_training_costs_the_same(tmp_path: Path) -> None:
    source = cars(tmp_path)
    tenfold = [replace(record, id=f"{part}_{record.id}") for part in range(10) for record in source.records]
    one, ten = (
        default(data, device="cpu").members[0].training for data in (source, replace(source, records=tuple(tenfold)))
    )
    assert ten.epochs * (ten.images_per_epoch or 0) <= 1.01 * one.epochs * (one.images_per_epoch or 0)
