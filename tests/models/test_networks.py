"""Every decoder over a few encoders: one tester, many short cases; and what the settings refuse."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from maskloom.config import parse
from maskloom.errors import UserError
from maskloom.models.decoders import ARCHITECTURES, build_network
from maskloom.models.encoders import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Architecture,
    NetworkSettings,
    encoder_normalisation,
    resolve,
)

LITE, RESNET, CONVNEXT = "tf_efficientnet_lite0", "resnet18", "convnext_atto"

PAIRS = [
    *((architecture, encoder, 3) for architecture in ARCHITECTURES for encoder in (LITE, RESNET)),
    *(("unet", encoder, channels) for encoder in (LITE, RESNET) for channels in (1, 8, 20)),
    ("fpn", LITE, 20),
    ("segformer", "mit_b0", 8),
    ("upernet", CONVNEXT, 1),
]


@pytest.mark.parametrize(("architecture", "encoder", "channels"), PAIRS)
def test_networks_learn_at_the_size_of_their_input(architecture: Architecture, encoder: str, channels: int) -> None:
    torch.manual_seed(0)
    settings = NetworkSettings(architecture=architecture, encoder=encoder, weights="none", channels=channels)
    network = build_network(settings, 3)
    logits = network(torch.randn(2, channels, 64, 96))
    assert logits.shape == (2, 3, 64, 96) and logits.dtype == torch.float32
    logits.square().mean().backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
    stem = next(network.parameters())
    assert stem.shape[1] == channels and stem.grad is not None and stem.grad.any()


def test_one_seed_gives_one_network() -> None:
    def state(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return build_network(NetworkSettings(encoder=RESNET, weights="none"), 1).state_dict()

    first, second, other = state(0), state(0), state(1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["encoder.conv1.weight"], other["encoder.conv1.weight"])


def test_decoder_options_reach_the_decoder() -> None:
    narrow = NetworkSettings(
        encoder=RESNET, weights="none", decoder_channels=(64, 32, 32, 16, 16), attention="scse", dropout=None
    )
    state = build_network(narrow, 1).state_dict()
    assert state["segmentation_head.0.weight"].shape == (1, 16, 3, 3)
    assert any("attention" in name and "cSE" in name for name in state)
    fpn = build_network(
        NetworkSettings(architecture="fpn", encoder=RESNET, weights="none", decoder_channels=(32,), dropout=0.5), 1
    )
    assert fpn.segmentation_head[0].in_channels == 32
    assert fpn.decoder.dropout.p == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "tf_efficientnet_lite00"}, "did you mean 'tf_efficientnet_lite0'"),
        ({"encoder": "../../etc/passwd"}, "expected an encoder of timm"),
        ({"architecture": "linknet", "encoder": "mit_b0"}, "cannot be built"),
        ({"architecture": "linknet", "dropout": 0.1}, "no such option; leave it out, or use fpn or pspnet"),
        ({"architecture": "fpn", "attention": "scse"}, "no such option; leave it out, or use unet or unetplusplus"),
        (
            {"architecture": "pspnet", "deep_supervision": True},
            "no such option; leave it out, or use unet or unetplusplus or linknet or fpn or upernet",
        ),
        ({"encoder": "wideresnet38"}, "cannot be built over the encoder"),
        ({"attention": "scse", "decoder_channels": [64, 32, 32, 16, 8]}, "at least 16 channels"),
        ({"decoder_channels": [64]}, "expected 5 number"),
        ({"architecture": "upernet", "decoder_channels": [0]}, "from 1 to 4096"),
    ],
)
def test_settings_that_make_no_network_are_refused_in_one_line(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_network(parse(NetworkSettings, {"encoder": RESNET, "weights": "none", **settings}), 1)
    assert "\n" not in str(caught.value)


def test_names_are_found_in_both_libraries() -> None:
    assert resolve("resnet34") == "resnet34"
    assert resolve(LITE) == resolve(f"tu-{LITE}") == f"tu-{LITE}"
    assert resolve("resnet18.a1_in1k") == "tu-resnet18.a1_in1k"


def test_normalisation_is_what_the_weights_expect() -> None:
    assert encoder_normalisation(NetworkSettings(encoder=LITE)) == ((0.5,) * 3, (0.5,) * 3)
    assert encoder_normalisation(NetworkSettings(encoder="resnet34")) == (IMAGENET_MEAN, IMAGENET_STD)
    mean, std = encoder_normalisation(NetworkSettings(encoder="resnet34", channels=1))
    assert mean == pytest.approx((sum(IMAGENET_MEAN) / 3,)) and std == pytest.approx((sum(IMAGENET_STD) / 3,))
    assert encoder_normalisation(NetworkSettings(encoder="resnet34", channels=4))[0] == (*IMAGENET_MEAN, 0.485)


def test_settings_are_read_without_torch() -> None:
    code = (
        "import sys; import maskloom.models.encoders, maskloom.models.decoders, maskloom.losses.terms; "
        "sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
