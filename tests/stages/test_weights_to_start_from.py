"""Weights that cannot be had, and random ones that would stay, are told before anything is trained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import maskloom
from cars import described
from maskloom.api import plan
from maskloom.config import parse
from maskloom.data.folds import FoldRow, FoldTable
from maskloom.errors import UserError
from maskloom.files import write_text
from maskloom.models import decoders, torchvision_guard
from maskloom.models.decoders import ask_hub
from maskloom.models.encoders import NetworkSettings
from maskloom.progress import Silent
from maskloom.recipe import Recipe
from maskloom.run_directory import RunDirectory
from maskloom.stages import first_weights
from maskloom.stages.context import Context
from maskloom.stages.first_weights import check_first_weights
from maskloom.stages.fold_tables import FoldTables
from small import OWN_NETWORK

TABLES = FoldTables(FoldTable((FoldRow("a", "a", 0), FoldRow("b", "b", 1))), {})


def surroundings(root: Path, *members: dict[str, Any], scale: str = "full") -> Context:
    parts = {
        "network": {}, "input": {"mode": "full"}, "loss": {"terms": [{"kind": "bce"}]}, "training": {"epochs": 2},
    }  # fmt: skip
    stated = [{"name": f"m{number}", **parts, **member} for number, member in enumerate(members)]
    recipe = parse(Recipe, {"name": "r", "metric": "dice", "scale": scale, "members": stated})
    return Context(
        run=RunDirectory(root), recipe=recipe, source=described(2), device=torch.device("cpu"), progress=Silent(),
        workers=0,
    )  # fmt: skip


def frozen(prefix: str) -> dict[str, Any]:
    return {"optimiser": {"frozen": [prefix]}}


def unreachable(*_: Any, **__: Any) -> None:
    raise OSError("no route\nto the hub")


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be downloaded."""
    torchvision_guard.ensure()
    import segmentation_models_pytorch.encoders as own
    import timm.models._builder as builder

    monkeypatch.setattr(own, "hf_hub_download", unreachable)
    monkeypatch.setattr(builder, "load_state_dict_from_hf", unreachable)
    monkeypatch.setattr(builder, "load_state_dict_from_url", unreachable)


@pytest.mark.parametrize(
    ("network", "prefix"),
    [
        ({"architecture": "unet"}, "encoder.model.blocks.0."),
        ({"architecture": "unet_vgg_4th"}, "encoder.0."),
        ({"architecture": "linknet_deconv"}, "firstconv."),
        ({"architecture": "linknet_deconv"}, "encoder"),
        ({"architecture": "unet_resnet", "encoder": "resnet18"}, "resnet."),
    ],
)
def test_random_weights_are_not_kept(tmp_path: Path, network: dict[str, Any], prefix: str) -> None:
    policy = {"input": {"mode": "full", "multiple": 64}}
    member = {"network": network, **policy, **frozen(prefix)}
    context = surroundings(tmp_path, {}, member)
    at = re.escape("--set members.1.network.weights=hub, or let everything learn (--set members.1.optimiser.frozen=[])")
    with pytest.raises(UserError, match=rf"members\.1\.optimiser\.frozen: .*found none for .*state a file or {at}"):
        check_first_weights(context, TABLES, {"m0": "none", "m1": "none"})
    check_first_weights(context, TABLES, {"m0": "none", "m1": "checksum of a file"})
    check_first_weights(surroundings(tmp_path, {}, member, scale="smoke"), TABLES, {"m0": "none", "m1": "none"})
    trained = surroundings(tmp_path, {"network": network, **policy}, {**member, "start": "m0"})
    check_first_weights(trained, TABLES, {"m0": "none", "m1": "none"})


def test_random_weights_of_other_parts_may_stay(tmp_path: Path) -> None:
    check_first_weights(surroundings(tmp_path, frozen("segmentation_head.")), TABLES, {"m0": "none"})
    whole = {"network": {"architecture": "unet_plain"}, **frozen("down.0.")}
    check_first_weights(surroundings(tmp_path, whole), TABLES, {"m0": "none"})


def test_phases_may_freeze_too(tmp_path: Path) -> None:
    phases = [{"epochs": 1}, {"epochs": 1, "optimiser": {"frozen": ["encoder."]}}]
    context = surroundings(tmp_path, {"training": {"epochs": 2, "phases": phases}})
    with pytest.raises(UserError, match=r"^members\.0\.training\.phases\.1\.optimiser\.frozen: "):
        check_first_weights(context, TABLES, {"m0": "none"})


def test_the_hub_is_asked_once_for_each_network_that_is_still_to_be_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(first_weights, "ask_hub", lambda network: asked.append(network.encoder))
    encoders = ("resnet18", "resnet34", "resnet18", "resnet50")
    context = surroundings(tmp_path, *({"network": {"encoder": encoder}} for encoder in encoders))
    marks = {"m0": "hub", "m1": "hub", "m2": "hub", "m3": "checksum of a file"}
    check_first_weights(context, TABLES, marks)
    assert asked == ["resnet18", "resnet34"]
    asked.clear()
    for fold in range(2):
        bundle = context.run.bundle("m1", fold, "last")
        write_text(bundle, "trained")
        context.run.finish(f"train/m1/fold{fold}", "mark", [bundle], 1.0)
    check_first_weights(context, TABLES, marks)
    assert asked == ["resnet18"]


@pytest.mark.parametrize(
    "network",
    [
        {"encoder": "resnet18"},
        {"encoder": "tf_efficientnet_lite0"},
        {"encoder": "mit_b0", "architecture": "segformer"},  # which cannot be built without memory
        {"architecture": "linknet_deconv"},
        {"architecture": "unet_resnet50_4th"},
    ],
)
@pytest.mark.usefixtures("no_hub")
def test_a_hub_that_cannot_be_reached_is_told_with_the_setting(tmp_path: Path, network: dict[str, Any]) -> None:
    context = surroundings(tmp_path, {"network": {"weights": "none"}}, {"network": {**network, "weights": "hub"}})
    with pytest.raises(UserError, match=r"^members\.1\.network\.weights: the hub gave no .*route to the hub") as caught:
        check_first_weights(context, TABLES, {"m0": "none", "m1": "hub"})
    assert "state a downloaded file, weights=none" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_hub")
def test_nothing_is_trained_before_the_hub_was_asked(studio: Path, tmp_path: Path) -> None:
    """The second member is asked for although the first one has days of training before it."""
    recipe, _ = plan("default", studio, settings=OWN_NETWORK, device="cpu")
    first = recipe.members[0]
    network = first.network.model_copy(update={"encoder": "resnet18", "weights": "hub"})
    second = first.model_copy(update={"name": "second", "network": network})
    complete = recipe.model_copy(update={"members": (first, second)})
    with pytest.raises(UserError, match=r"^members\.1\.network\.weights: the hub gave no weights for 'resnet18'"):
        maskloom.fit(complete, studio, run=tmp_path / "run", device="cpu", workers=0)
    assert not (tmp_path / "run" / "stages" / "train").exists()


def test_what_the_hub_gives_is_compared_without_building_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision_guard.ensure()
    import timm
    import timm.models._builder as builder

    state = dict(timm.create_model("resnet18", pretrained=False).state_dict())
    monkeypatch.setattr(builder, "load_state_dict_from_hf", lambda *_, **__: dict(state))
    built: list[torch.device] = []
    build = decoders.build_network

    def noted(settings: NetworkSettings, num_maps: int) -> Any:
        network = build(settings, num_maps)
        built.append(next(network.parameters()).device)
        return network

    monkeypatch.setattr(decoders, "build_network", noted)
    before = torch.random.get_rng_state()
    settings = NetworkSettings(architecture="linknet_deconv", encoder="resnet18", weights="hub", channels=5)
    ask_hub(settings)
    assert [device.type for device in built] == ["meta"]
    assert torch.equal(torch.random.get_rng_state(), before)
    del state["layer1.0.conv1.weight"]
    with pytest.raises(UserError, match=r"the hub gave no weights for 'resnet18' \(.*layer1\.0\.conv1\.weight"):
        ask_hub(settings)
