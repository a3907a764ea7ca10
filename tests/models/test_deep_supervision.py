"""Logits from coarser stages: which sizes, which maps, and that nothing else changes."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from maskloom.data.input_policy import InputPolicy
from maskloom.models.bundle import load_bundle, save_bundle
from maskloom.models.decoders import build_network
from maskloom.models.encoders import NetworkSettings
from maskloom.models.segmenter import Normalisation, Segmenter, build_segmenter
from maskloom.records import Task
from maskloom.training.freezing import train_mode

SMALL = "mobilenetv3_small_050"

NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, int, int], str]] = {
    "unet": ({"architecture": "unet", "encoder": SMALL}, (2, 4, 8), "decoder.blocks.3"),
    "unet without 1/2": ({"architecture": "unet", "encoder": "convnext_atto"}, (2, 4, 8), "decoder.blocks.3"),
    "unet scse": ({"architecture": "unet", "encoder": SMALL, "attention": "scse"}, (2, 4, 8), "decoder.blocks.3"),
    "unetplusplus": ({"architecture": "unetplusplus", "encoder": SMALL}, (2, 4, 8), "decoder.blocks.x_0_3"),
    "linknet": ({"architecture": "linknet", "encoder": SMALL}, (2, 4, 8), "decoder.blocks.3"),
    "fpn": ({"architecture": "fpn", "encoder": SMALL, "width": 0.25}, (4, 8, 16), "decoder.p2"),
    "upernet": ({"architecture": "upernet", "encoder": SMALL, "width": 0.25}, (4, 8, 16), "decoder.fpn_conv_blocks.2"),
    "resnet": ({"architecture": "unet_resnet", "encoder": "resnet18", "width": 0.25}, (2, 4, 8), "dec2"),
    "resnet deconv scse": (
        {
            "architecture": "unet_resnet",
            "encoder": "resnet50",
            "width": 0.25,
            "upsampling": "deconv",
            "attention": "scse",
        },
        (2, 4, 8),
        "dec2",
    ),
    "wide": ({"architecture": "unet_wideresnet38", "width": 0.25}, (2, 4, 8), "dec3"),
}
"""Settings, by how much the coarser maps are smaller, and the name of the finest stage."""


def built(name: str, **others: Any) -> Any:
    torch.manual_seed(0)
    settings = {**NETWORKS[name][0], "weights": "none", "deep_supervision": True, **others}
    return build_network(NetworkSettings.model_validate(settings), 2)


def images() -> Tensor:
    return torch.randn(2, 3, 64, 128, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NETWORKS)
def test_training_sees_coarser_maps_too(name: str) -> None:
    network = built(name, auxiliary_maps=1)
    outputs = network(images())
    assert isinstance(outputs, tuple)
    assert [tuple(each.shape[2:]) for each in outputs[1:]] == [(64 // by, 128 // by) for by in NETWORKS[name][1]]
    assert outputs[0].shape == (2, 3, 64, 128), "the auxiliary map is among them"
    assert {each.shape[:2] for each in outputs[1:]} == {(2, 2)}
    sum(each.square().mean() for each in outputs[1:]).backward()
    heads = network.deep_supervision.heads
    assert all(head.weight.grad.any() and head.bias.grad.any() for head in heads)
    stem = next(network.parameters())
    assert stem.grad is not None and stem.grad.any()


@pytest.mark.parametrize("name", NETWORKS)
def test_prediction_is_what_it_would_be_without(name: str) -> None:
    deep, plain = built(name), built(name, deep_supervision=False)
    heads = [f"deep_supervision.heads.{index}.{part}" for index in range(3) for part in ("weight", "bias")]
    assert list(deep.state_dict()) == [*plain.state_dict(), *heads]
    with torch.no_grad():
        found = deep.eval()(images())
        assert isinstance(found, Tensor) and torch.equal(found, plain.eval()(images()))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_head_is_a_convolution_of_its_stages_maps(name: str) -> None:
    network, seen = built(name), []
    network.get_submodule(NETWORKS[name][2]).register_forward_hook(lambda *call: seen.append(call[-1]))
    with torch.no_grad():
        outputs = network(images())
    head = network.deep_supervision.heads[0]
    torch.testing.assert_close(outputs[1], functional.conv2d(seen[0], head.weight, head.bias))


def test_a_copy_has_heads_of_its_own() -> None:
    network = built("resnet")
    copied = deepcopy(network)
    for head in copied.deep_supervision.heads:
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    with torch.no_grad():
        assert not any(each.any() for each in copied(images())[1:])
        assert all(each.any() for each in network(images())[1:])
        assert isinstance(copied.eval()(images()), Tensor) and isinstance(network(images()), tuple)


def test_nothing_is_held_after_a_pass_whether_it_ends_well_or_not() -> None:
    network = built("unet")
    network(images())
    assert network.deep_supervision._waiting == []

    def fail(*_: Any) -> None:
        raise MemoryError("out of memory")

    handle = network.segmentation_head.register_forward_hook(fail)
    with pytest.raises(MemoryError):
        network(images())
    assert network.deep_supervision._waiting == []
    handle.remove()
    assert len(network(images())) == 4


def test_frozen_normalisation_and_frozen_parts_change_nothing_about_it() -> None:
    network = built("resnet", batch_norm="frozen")
    train_mode(network, ("resnet.",))
    assert len(network(images())) == 4


def segmenter(name: str, **others: Any) -> Segmenter:
    torch.manual_seed(0)
    settings = {**NETWORKS[name][0], "weights": "none", "deep_supervision": True, **others}
    return build_segmenter(
        NetworkSettings.model_validate(settings),
        task=Task(kind="multiclass", classes=("sky", "car")),
        policy=InputPolicy(multiple=64),
        normalisation=Normalisation(mean=(0.5,) * 3, std=(0.25,) * 3),
    )


@pytest.mark.parametrize("name", ["fpn", "resnet"])
def test_a_segmenter_gives_a_tuple_in_training_and_logits_otherwise(name: str) -> None:
    whole = segmenter(name, auxiliary_maps=1)
    stored = torch.randint(0, 256, (2, 3, 64, 128), dtype=torch.uint8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = whole.train().logits(stored)
    assert isinstance(outputs, tuple) and {each.dtype for each in outputs} == {torch.float32}
    sizes = [(2, 2, 64 // by, 128 // by) for by in NETWORKS[name][1]]
    assert [tuple(each.shape) for each in outputs] == [(2, 3, 64, 128), *sizes]
    with torch.no_grad():
        assert whole.eval().logits(stored).shape == (2, 2, 64, 128)


@pytest.mark.parametrize("name", ["unet", "resnet deconv scse", "wide"])
def test_bundles_hold_the_heads(tmp_path: Path, name: str) -> None:
    original = segmenter(name)
    save_bundle(tmp_path / "b.safetensors", original)
    loaded = load_bundle(tmp_path / "b.safetensors")
    assert loaded.network_settings == original.network_settings
    stored = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(loaded.logits(stored), original.eval().logits(stored))
        found, expected = loaded.train().logits(stored), original.train().logits(stored)
    assert len(found) == 4 and all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
