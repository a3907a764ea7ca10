"""Weights from files made on the spot, and from the installed package where there is one."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from maskloom.errors import BadFile, UserError
from maskloom.models import pretrained, torchvision_guard
from maskloom.models.decoders import build_network
from maskloom.models.encoders import NetworkSettings

LITE, RESNET = "tf_efficientnet_lite0", "resnet18"


def timm_classifier(name: str) -> torch.nn.Module:
    torchvision_guard.ensure()
    import timm

    torch.manual_seed(7)
    model: torch.nn.Module = timm.create_model(name, pretrained=False)
    return model


def encoder_of(path: Path | str, encoder: str, channels: int = 3, architecture: str = "unet") -> Any:
    settings = NetworkSettings.model_validate(
        {"architecture": architecture, "encoder": encoder, "weights": str(path), "channels": channels}
    )
    return build_network(settings, 1).encoder


def old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns timm's state of lite0 under the names of the older port, written down from its published file."""
    top = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    later = {
        "conv_pw": "_expand_conv",
        "bn1": "_bn0",
        "conv_dw": "_depthwise_conv",
        "bn2": "_bn1",
        "conv_pwl": "_project_conv",
        "bn3": "_bn2",
    }
    starts = [0, 1, 3, 5, 8, 11, 15]  # lite0 has 1, 2, 2, 3, 3, 4, 1 blocks
    renamed = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"blocks\.(\d)\.(\d)\.(\w+)\.(\w+)", name)
        if match:
            stage, block, layer, kind = int(match[1]), int(match[2]), match[3], match[4]
            table = first if stage == 0 else later
            renamed[f"_blocks.{starts[stage] + block}.{table[layer]}.{kind}"] = tensor
        else:
            layer, kind = name.split(".")
            renamed[f"{top[layer]}.{kind}"] = tensor
    return renamed


def expected_stem(weight: Tensor, channels: int) -> Tensor:
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    return torch.stack([weight[:, index % 3] for index in range(channels)], dim=1) * 3 / channels


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_timm_file_fills_the_encoder(tmp_path: Path, suffix: str) -> None:
    state = timm_classifier(LITE).state_dict()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    else:
        safetensors.torch.save_file(state, path)
    filled = encoder_of(path, LITE).state_dict()
    assert all(torch.equal(tensor, state[name.removeprefix("model.")]) for name, tensor in filled.items())


def test_the_names_of_the_older_port_are_understood(tmp_path: Path) -> None:
    state = timm_classifier(LITE).state_dict()
    path = tmp_path / "old.pth"
    torch.save(old_names(state), path)
    filled = encoder_of(path, LITE).state_dict()
    assert all(torch.equal(tensor, state[name.removeprefix("model.")]) for name, tensor in filled.items())


@pytest.mark.parametrize("encoder", [LITE, RESNET])
@pytest.mark.parametrize("channels", [1, 2, 8])
def test_the_stem_is_adapted_by_the_stated_rule(tmp_path: Path, encoder: str, channels: int) -> None:
    state = timm_classifier(encoder).state_dict()
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(state, path)
    stem = next(tensor for tensor in encoder_of(path, encoder, channels).state_dict().values())
    first = state["conv_stem.weight" if encoder == LITE else "conv1.weight"]
    torch.testing.assert_close(stem, expected_stem(first, channels))


def test_equal_channels_give_the_response_the_stem_was_trained_on() -> None:
    first, plane = torch.randn(4, 3, 3, 3), torch.randn(1, 1, 8, 8)
    trained = torch.nn.functional.conv2d(plane.expand(1, 3, 8, 8), first)
    for channels in (1, 3, 6, 9):
        adapted = torch.nn.functional.conv2d(plane.expand(1, channels, 8, 8), expected_stem(first, channels))
        torch.testing.assert_close(adapted, trained, atol=1e-4, rtol=1e-4)


def test_a_trained_network_gives_its_encoder_to_another_decoder(tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = build_network(NetworkSettings(encoder=RESNET, weights="none"), 1)
    path = tmp_path / "network.safetensors"
    safetensors.torch.save_file(network.state_dict(), path)
    filled = encoder_of(path, RESNET, architecture="pspnet").state_dict()
    expected = network.encoder.state_dict()
    assert filled and all(torch.equal(tensor, expected[name]) for name, tensor in filled.items())


def test_random_numbers_after_loading_do_not_depend_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(timm_classifier(LITE).state_dict(), path)
    drawn = []
    for weights in (str(path), "none"):
        torch.manual_seed(0)
        build_network(NetworkSettings(encoder=LITE, weights=weights), 1)
        drawn.append(torch.rand(4))
    assert torch.equal(*drawn)


class Hostile:
    """Unpickled, it would make a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    target, path = tmp_path / "made-by-a-pickle", tmp_path / "weights.pth"
    for save in (lambda value: path.write_bytes(pickle.dumps(value)), lambda value: torch.save(value, path)):
        save({"weight": Hostile(target)})
        with pytest.raises(BadFile, match=r"weights\.pth: cannot be imported: .* asks to run '\w+\.mkdir'") as caught:
            encoder_of(path, RESNET)
        assert "\n" not in str(caught.value)
        assert not target.exists()


def test_old_files_and_whole_modules_are_read_too(tmp_path: Path) -> None:
    classifier = timm_classifier(LITE)
    state = classifier.state_dict()
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "model": classifier}, tmp_path / "module.pth")
    for name in ("old.pth", "module.pth"):
        weights = pretrained.read_state(tmp_path / name)
        assert weights.keys() == state.keys()
        assert all(torch.equal(weights[key], tensor) for key, tensor in state.items())


def broken(kind: str, path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in timm_classifier(RESNET).state_dict().items()}
    if kind == "missing":
        del state["layer1.0.conv1.weight"]
    elif kind == "unknown":
        state["layer9.weight"] = torch.zeros(1)
    elif kind == "shape":
        state["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    elif kind == "nan":
        state["bn1.weight"][0] = float("nan")
    if kind == "list":
        torch.save([torch.zeros(1)], path)
    elif kind == "numbers":
        torch.save({"epoch": 3}, path)
    else:
        torch.save(state, path)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "lacks 'layer1.0.conv1.weight'"),
        ("unknown", "holds the unknown 'layer9.weight'"),
        ("shape", r"expected 'conv1.weight' of shape \[64, 3, 7, 7\], found \[64, 3, 3, 3\]"),
        ("nan", "'bn1.weight' holds NaN"),
        ("list", "or named tensors alone or below one of .*; found a list"),
        ("numbers", "found a dictionary with the keys 'epoch'"),
        ("cut", "cannot be imported"),
    ],
)
@pytest.mark.parametrize("encoder", [RESNET, f"tu-{RESNET}"])
def test_files_that_do_not_fit_are_refused_in_one_line(tmp_path: Path, encoder: str, kind: str, message: str) -> None:
    path = tmp_path / "weights.pth"
    broken(kind, path)
    with pytest.raises(BadFile, match=message) as caught:
        encoder_of(path, encoder)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(UserError, match=r"network.weights: expected auto, none, installed, hub or the path"):
        encoder_of("no/such/file.pth", RESNET)


def test_auto_says_aloud_that_it_found_none() -> None:
    with pytest.warns(UserWarning, match="'resnet18' starts from random weights") as caught:
        build_network(NetworkSettings(encoder=RESNET), 1)
    assert len(caught) == 1
    with pytest.raises(UserError, match="no installed package holds weights of 'resnet18'"):
        build_network(NetworkSettings(encoder=RESNET, weights="installed"), 1)


@pytest.mark.parametrize("encoder", [LITE, RESNET])
def test_a_hub_that_cannot_be_reached_is_said_in_one_line(encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision_guard.ensure()
    import segmentation_models_pytorch.encoders as own
    import timm.models._builder as builder

    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("no route\nto the hub")

    monkeypatch.setattr(own, "hf_hub_download", unreachable)
    monkeypatch.setattr(builder, "load_state_dict_from_hf", unreachable)
    monkeypatch.setattr(builder, "load_state_dict_from_url", unreachable)
    with pytest.raises(UserError, match=r"the hub gave no weights for '\w+' \(no route to the hub\)") as caught:
        encoder_of("hub", encoder)
    assert "\n" not in str(caught.value)


def test_weights_of_the_hub_fill_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    state = timm_classifier(LITE).state_dict()
    import timm.models._builder as builder

    monkeypatch.setattr(builder, "load_state_dict_from_hf", lambda *_, **__: dict(state))
    monkeypatch.setattr(builder, "load_state_dict_from_url", lambda *_, **__: dict(state))
    stem = encoder_of("hub", LITE, channels=8).model.conv_stem.weight
    torch.testing.assert_close(stem.detach(), expected_stem(state["conv_stem.weight"], 8))


@pytest.mark.parametrize("encoder", sorted(pretrained.INSTALLABLE))
def test_the_installed_package_fits_strictly(encoder: str) -> None:
    path = pretrained.installed_file(encoder)
    if path is None:
        pytest.skip(f"the package {pretrained.INSTALLABLE[encoder]} is not installed")
    weights = pretrained.read_state(path)
    model = timm_classifier(encoder)
    model.load_state_dict(pretrained.rename_lite(weights, model.state_dict()))
    filled = build_network(NetworkSettings(encoder=encoder, weights="installed"), 1).encoder.state_dict()
    assert all(torch.equal(tensor, model.state_dict()[name.removeprefix("model.")]) for name, tensor in filled.items())
