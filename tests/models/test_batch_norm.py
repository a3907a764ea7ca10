"""Batch normalisation as a setting: frozen keeps what it has, the identity is normalising by nothing."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from maskloom.data.input_policy import InputPolicy
from maskloom.errors import UserError
from maskloom.models.batch_norm import keep_frozen, set_batch_norm
from maskloom.models.bundle import load_bundle, save_bundle
from maskloom.models.classic.resnet import ResNet
from maskloom.models.decoders import build_network
from maskloom.models.encoders import NetworkSettings
from maskloom.models.segmenter import Normalisation, Segmenter, build_segmenter
from maskloom.records import Task
from maskloom.training.freezing import train_mode

NETWORKS: dict[str, dict[str, Any]] = {
    "timm": {"architecture": "unet", "encoder": "tf_efficientnet_lite0", "width": 0.25},  # activates inside
    "smp": {"architecture": "linknet", "encoder": "resnet18"},
    "resnet": {"architecture": "unet_resnet", "encoder": "resnet18", "width": 0.25},
    "wide": {"architecture": "unet_wideresnet38", "width": 0.25},  # activates before, in place
    "dense": {"architecture": "dinknet", "encoder": "densenet121", "width": 0.25},  # in place, on maps kept for later
}


def built(name: str, batch_norm: str = "trained", **others: Any) -> nn.Module:
    torch.manual_seed(0)
    settings = {**NETWORKS[name], "weights": "none", "batch_norm": batch_norm, **others}
    return build_network(NetworkSettings.model_validate(settings), 2)


def norms(network: nn.Module) -> list[Any]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


def drawn_statistics(network: nn.Module) -> None:
    """Gives the normalisations something to normalise by."""
    with torch.no_grad():
        for norm in norms(network):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.1)


def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_identity_is_normalising_by_nothing(name: str) -> None:
    neutral, identity = built(name).double().eval(), built(name, "identity").double().eval()
    for norm in norms(neutral):  # as they begin: mean 0, variance 1, factor 1, offset 0
        norm.eps = 0.0
    own = {f"{path}." for path, module in neutral.named_modules() if isinstance(module, _BatchNorm)}
    rest = [key for key in neutral.state_dict() if not key.startswith(tuple(own))]
    assert own and not norms(identity) and list(identity.state_dict()) == rest
    with torch.no_grad():
        expected = neutral(images().double())
        found = identity(images().double())
    assert expected.isfinite().all() and expected.std() > 0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["timm", "wide", "dense"])
def test_without_normalisation_everything_still_learns(name: str) -> None:
    network = built(name, "identity")
    network(images()).square().mean().sqrt().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_frozen_layers_keep_all_they_have(name: str) -> None:
    network = built(name, "frozen")
    assert list(network.state_dict()) == list(built(name).state_dict())
    drawn_statistics(network)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    train_mode(network, ())
    logits = network(images())
    logits.square().mean().backward()
    for norm in norms(network):
        assert not norm.training and not norm.weight.requires_grad and norm.weight.grad is None
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    others = [key for key, parameter in network.named_parameters() if parameter.requires_grad]
    assert len(others) + 2 * len(norms(network)) == len(list(network.parameters()))
    assert all(network.get_parameter(key).grad is not None for key in others if ".fc." not in key)
    with torch.no_grad():
        assert torch.equal(network.eval()(images()), logits.detach())


def test_it_stays_frozen_in_copies_and_in_training_mode() -> None:
    copied = deepcopy(built("resnet", "frozen"))
    copied.train()
    assert all(norm.training for norm in norms(copied))
    keep_frozen(copied)
    assert copied.training and not any(norm.training for norm in norms(copied))
    trained = built("resnet").train()
    keep_frozen(trained)
    assert all(norm.training for norm in norms(trained))


def segmenter(batch_norm: str) -> Segmenter:
    torch.manual_seed(0)
    return build_segmenter(
        NetworkSettings.model_validate({**NETWORKS["resnet"], "weights": "none", "batch_norm": batch_norm}),
        task=Task(kind="multiclass", classes=("sky", "car")),
        policy=InputPolicy(multiple=64),
        normalisation=Normalisation(mean=(0.5,) * 3, std=(0.25,) * 3),
    )


@pytest.mark.parametrize("batch_norm", ["frozen", "identity"])
def test_bundles_hold_the_setting(tmp_path: Path, batch_norm: str) -> None:
    original = segmenter(batch_norm)
    drawn_statistics(original.network)
    save_bundle(tmp_path / "b.safetensors", original)
    loaded = load_bundle(tmp_path / "b.safetensors")
    assert loaded.network_settings == original.network_settings
    stored = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = original.eval().logits(stored)
        assert torch.equal(loaded.logits(stored), expected)
        assert torch.equal(loaded.train().logits(stored), expected), "nothing depends on the batch"
    assert loaded.network.training and not any(norm.training for norm in norms(loaded.network))


def test_weights_are_loaded_before_normalisation_is_left_out(tmp_path: Path) -> None:
    torch.manual_seed(4)
    stored = ResNet(NetworkSettings(architecture="unet_resnet", encoder="resnet18")).state_dict()
    safetensors.torch.save_file(stored, tmp_path / "r.safetensors")
    settings = {"architecture": "unet_resnet", "encoder": "resnet18", "weights": str(tmp_path / "r.safetensors")}
    state = build_network(NetworkSettings.model_validate({**settings, "batch_norm": "identity"}), 1).state_dict()
    assert torch.equal(state["resnet.layer4.1.conv2.weight"], stored["layer4.1.conv2.weight"])
    assert "resnet.layer4.1.bn2.weight" not in state


@pytest.mark.parametrize("batch_norm", ["frozen", "identity"])
def test_a_network_without_batch_normalisation_is_refused(batch_norm: str) -> None:
    values = {"architecture": "ternausnet", "weights": "none", "width": 0.0625, "batch_norm": batch_norm}
    with pytest.raises(UserError, match=r"network\.batch_norm: .* found none .*; leave it at trained") as caught:
        build_network(NetworkSettings.model_validate(values), 1)
    assert "\n" not in str(caught.value)
    set_batch_norm(nn.Conv2d(1, 1, 1), "trained")
