"""The U-Nets of Signate's 22nd place: how many parameters, under which names, from which weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from maskloom.errors import UserError
from maskloom.models.classic import wide_resnet
from maskloom.models.decoders import build_network
from maskloom.models.encoders import IMAGENET_MEAN, IMAGENET_STD, NetworkSettings, encoder_normalisation, multiple_of

RESNETS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}
"""Parameters as torchvision's documentation states them, the classifier among them."""


def settings_of(**values: Any) -> NetworkSettings:
    return NetworkSettings.model_validate({"weights": "none", **values})


def count(num_maps: int, **values: Any) -> int:
    with torch.device("meta"):
        network = build_network(settings_of(**values), num_maps)
    return sum(parameter.numel() for parameter in network.parameters())


def blocks(shapes: list[tuple[int, int, int]], upsampling: str) -> int:
    """Parameters of decoder blocks of (channels, middle, filters), each two layers with bias."""
    side = {"nearest": 3, "deconv": 4}[upsampling]
    return sum(
        9 * channels * middle + middle + side**2 * middle * filters + filters for channels, middle, filters in shapes
    )


def scse(filters: list[int]) -> int:
    """Parameters of scSE: down to half the channels and up again, and to one map, all with bias."""
    return sum(count * (count // 2) * 2 + count // 2 + count + count + 1 for count in filters)


def over_resnet(encoder: str, upsampling: str, maps: int) -> int:
    """The formula of the specification's widths."""
    wide = 1 if encoder in ("resnet18", "resnet34") else 4
    first, second, third, fourth = (wide * filters for filters in (64, 128, 256, 512))
    shapes = [
        (fourth, 512, 256),
        (256 + fourth, 512, 256),
        (256 + third, 512, 256),
        (256 + second, 256, 64),
        (64 + first, 128, 128),
        (128, 128, 32),
    ]
    return RESNETS[encoder] + blocks(shapes, upsampling) + 9 * 32 * 32 + 32 + 32 * maps + maps


@pytest.mark.parametrize("upsampling", ["nearest", "deconv"])
@pytest.mark.parametrize("encoder", RESNETS)
def test_unets_over_resnets_have_the_parameters_of_their_formula(encoder: str, upsampling: str) -> None:
    network = {"architecture": "unet_resnet", "encoder": encoder, "upsampling": upsampling}
    assert count(20, **network) == over_resnet(encoder, upsampling, 20)
    attended = over_resnet(encoder, upsampling, 5) + scse([256, 256, 256, 64, 128, 32])
    assert count(5, **network, attention="scse") == attended


def test_the_formula_gives_the_published_counts() -> None:
    assert over_resnet("resnet34", "nearest", 20) == 35_118_524
    assert over_resnet("resnet50", "deconv", 5) == 60_688_589


def over_wideresnet(upsampling: str, channels: int, maps: int) -> int:
    total, incoming = 9 * channels * 64, 64
    for number, middle, filters in ((3, 128, 128), (3, 256, 256), (6, 512, 512), (3, 512, 1024)):
        for _ in range(number):
            total += 2 * incoming + 9 * incoming * middle + 2 * middle + 9 * middle * filters
            total += incoming * filters if incoming != filters else 0
            incoming = filters
    shapes = [(1024, 256, 256), (1280, 256, 256), (768, 256, 256), (512, 64, 64), (192, 64, 32)]
    return total + blocks(shapes, upsampling) + 9 * 96 * 32 + 32 + 32 * maps + maps


@pytest.mark.parametrize("upsampling", ["nearest", "deconv"])
@pytest.mark.parametrize(("channels", "maps"), [(3, 20), (11, 2)])
def test_unets_over_wideresnet_have_the_parameters_of_their_formula(upsampling: str, channels: int, maps: int) -> None:
    network = {"architecture": "unet_wideresnet38", "upsampling": upsampling, "channels": channels}
    assert count(maps, **network) == over_wideresnet(upsampling, channels, maps)
    attended = over_wideresnet(upsampling, channels, maps) + scse([256, 256, 256, 64, 32])
    assert count(maps, **network, attention="scse") == attended


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow network at the usual width, which weights fit."""
    monkeypatch.setattr(wide_resnet, "STEM", 16)
    monkeypatch.setattr(wide_resnet, "GROUPS", ((3, 16, 16), (3, 16, 16), (6, 16, 16), (3, 16, 32)))
    monkeypatch.setattr(wide_resnet, "WIDTHS", ((16, 16),) * 5)


def test_names_are_those_of_ternausnet_v2(narrow: None) -> None:
    names = list(build_network(settings_of(architecture="unet_wideresnet38"), 2).state_dict())
    assert names[:9] == [
        "conv1.conv1.weight",
        "conv2.block1.bn1.weight",
        "conv2.block1.bn1.bias",
        "conv2.block1.bn1.running_mean",
        "conv2.block1.bn1.running_var",
        "conv2.block1.bn1.num_batches_tracked",
        "conv2.block1.convs.conv1.weight",
        "conv2.block1.convs.bn2.weight",
        "conv2.block1.convs.bn2.bias",
    ]
    assert [name for name in names if "proj_conv" in name] == ["conv5.block1.proj_conv.weight"]  # 16 to 32
    assert [sum(f"conv{group}.block{index}.bn1.weight" in names for index in range(9)) for group in range(2, 6)] == [
        3, 3, 6, 3
    ]  # fmt: skip
    assert [name for name in names if not name.startswith("conv")] == [
        *(
            f"{block}.block.{layer}.conv.{part}"
            for block in ("center", "dec5", "dec4", "dec3", "dec2")
            for layer in (1, 2)
            for part in ("weight", "bias")
        ),
        "dec1.conv.weight", "dec1.conv.bias", "final.weight", "final.bias",
    ]  # fmt: skip


@pytest.mark.parametrize("channels", [3, 1])
def test_a_file_fills_the_groups_under_their_authors_names(narrow: None, tmp_path: Path, channels: int) -> None:
    torch.manual_seed(0)
    network = build_network(settings_of(architecture="unet_wideresnet38"), 1)
    groups = {name: torch.rand(tensor.shape) for name, tensor in network.state_dict().items() if name[:4] == "conv"}
    stored = {  # without the counters, which torch did not have before 0.4.1
        f"module.mod{name.removeprefix('conv')}": tensor
        for name, tensor in groups.items()
        if not name.endswith("num_batches_tracked")
    }
    others = ("mod6.block1.bn1.weight", "mod7.block1.convs.conv3.weight", "bn_out.bias", "classifier.fc.weight")
    path = tmp_path / "wide.safetensors"
    safetensors.torch.save_file({**stored, **{f"module.{name}": torch.zeros(2) for name in others}}, path)
    values = {"architecture": "unet_wideresnet38", "weights": str(path), "channels": channels}
    state = build_network(settings_of(**values), 1).state_dict()
    stem = groups.pop("conv1.conv1.weight")
    expected = stem if channels == 3 else stem.sum(dim=1, keepdim=True)
    assert torch.equal(state["conv1.conv1.weight"], expected)
    for name, tensor in groups.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(state[name], tensor), name


def test_it_is_known_by_its_name(narrow: None) -> None:
    settings = settings_of(architecture="unet_wideresnet38")
    assert settings.encoder == "wideresnet38" and multiple_of(settings) == 32
    assert encoder_normalisation(settings) == (IMAGENET_MEAN, IMAGENET_STD)
    with pytest.raises(UserError, match="multiples of 32 pixels, found 32×48; pad to 32×64"):
        build_network(settings, 1)(torch.zeros(1, 3, 32, 48))
    with pytest.warns(UserWarning, match="'wideresnet38' starts from random weights"):
        build_network(NetworkSettings(architecture="unet_wideresnet38"), 1)
    with pytest.raises(UserError, match="the hub gave no weights for 'wideresnet38'"):
        build_network(settings_of(architecture="unet_wideresnet38", weights="hub"), 1)


def test_a_block_adds_to_what_it_was_given() -> None:
    block = wide_resnet.PreActivationBlock(16, 16, 16).eval()
    nn.init.zeros_(block.convs.conv2.weight)  # type: ignore[union-attr, arg-type]
    maps: Tensor = torch.randn(1, 16, 5, 7)
    before = maps.clone()
    assert torch.equal(block(maps), before) and torch.equal(maps, before)
