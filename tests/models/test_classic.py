"""The published networks as members of the family: settings, width, sides, auxiliary maps, bundles, folding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from maskloom.config import override, parse
from maskloom.data.input_policy import InputPolicy
from maskloom.errors import UserError
from maskloom.inference.fusing import fuse
from maskloom.models.bundle import load_bundle, save_bundle
from maskloom.models.classic.layers import ConvRelu, check_sides, he_normal
from maskloom.models.classic.table import CLASSIC
from maskloom.models.classic.traits import CLASSIC_TRAITS
from maskloom.models.decoders import ARCHITECTURES, build_network
from maskloom.models.encoders import (
    Architecture,
    NetworkSettings,
    encoder_normalisation,
    encoder_prefixes,
    multiple_of,
)
from maskloom.models.segmenter import Normalisation, Segmenter, build_segmenter
from maskloom.records import Task

CAR = Task(kind="binary", classes=("car",))
WIDTH = 0.0625

VARIANTS: list[dict[str, Any]] = [
    {"architecture": "unet_scratch"},
    {"architecture": "unet_vgg11"},
    {"architecture": "ternausnet"},
    {"architecture": "ternausnet", "encoder": "vgg16"},
    {"architecture": "linknet_deconv", "encoder": "resnet18"},
    {"architecture": "unet_dilated"},
    {"architecture": "unet_dilated", "bottleneck": "parallel"},
    {"architecture": "unet_resnet", "encoder": "resnet18"},
    {"architecture": "unet_resnet", "encoder": "resnet50", "upsampling": "deconv"},
    {"architecture": "unet_elu"},
    {"architecture": "unet_wideresnet38"},
    {"architecture": "unet_wideresnet38", "upsampling": "deconv"},
    {"architecture": "unet_resnet", "encoder": "resnet18", "attention": "scse"},
]


def named(variant: dict[str, Any]) -> str:
    return "-".join(variant.values())


def narrow(variant: dict[str, Any], **others: Any) -> NetworkSettings:
    return NetworkSettings.model_validate({**variant, "weights": "none", "width": WIDTH, **others})


def segmenter(settings: NetworkSettings, task: Task = CAR) -> Segmenter:
    torch.manual_seed(0)
    return build_segmenter(
        settings,
        task=task,
        policy=InputPolicy(multiple=64),
        normalisation=Normalisation(mean=(0.5,) * settings.channels, std=(0.25,) * settings.channels),
    )


@pytest.mark.parametrize("variant", VARIANTS, ids=named)
def test_narrow_networks_learn_at_the_size_of_their_input(variant: dict[str, Any]) -> None:
    torch.manual_seed(0)
    settings = narrow(variant, channels=5, auxiliary_maps=1)
    network = build_network(settings, 2)
    side = multiple_of(settings)
    logits = network(torch.randn(2, 5, max(side, 64), 2 * side))
    assert logits.shape == (2, 3, max(side, 64), 2 * side)
    assert float(logits.detach().abs().max()) < 50, "the first logits are no surprise to any loss"
    logits.square().mean().backward()
    idle = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert idle == ({"resnet.fc.weight", "resnet.fc.bias"} if settings.architecture == "unet_resnet" else set())
    stem = next(network.parameters())
    assert stem.shape[1] == 5 and stem.grad is not None and stem.grad.isfinite().all() and stem.grad.any()


@pytest.mark.parametrize("architecture", sorted({variant["architecture"] for variant in VARIANTS}))
def test_width_multiplies_every_layers_filters(architecture: Architecture) -> None:
    with torch.device("meta"):
        whole = build_network(NetworkSettings(architecture=architecture, weights="none"), 1).state_dict()
        half = build_network(NetworkSettings(architecture=architecture, weights="none", width=0.5), 1).state_dict()
    assert whole.keys() == half.keys()
    for name, tensor in whole.items():
        if tensor.ndim < 2 or name.endswith("fc.weight"):
            continue
        kept = {1, 3}  # what belongs to the image or the task is not scaled
        expected = [size if size in kept else size // 2 for size in tensor.shape[:2]]
        assert list(half[name].shape[:2]) == expected, name


def test_no_layer_becomes_too_narrow() -> None:
    tiny = NetworkSettings(architecture="unet_dilated", width=0.001)
    assert [tiny.scaled(filters) for filters in (2, 4, 352)] == [2, 4, 4]
    assert NetworkSettings(width=0.125).scaled(44) == 6


@pytest.mark.parametrize("variant", VARIANTS, ids=named)
def test_sides_that_do_not_divide_are_refused_in_one_line(variant: dict[str, Any]) -> None:
    settings = narrow(variant)
    with torch.device("meta"):
        network = build_network(settings, 1)
        multiple = multiple_of(settings)
        with pytest.raises(UserError, match=rf"multiples of {multiple} pixels, found .*; pad to ") as caught:
            network(torch.zeros(1, 3, multiple, multiple + 4))
    assert "\n" not in str(caught.value)


def test_the_message_says_what_to_pad_to() -> None:
    check_sides(torch.zeros(1, 1, 64, 128), 64)
    with pytest.raises(UserError, match="multiples of 64 pixels, found 65×128; pad to 128×128"):
        check_sides(torch.zeros(1, 1, 65, 128), 64)


def test_a_policy_whose_sides_do_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"input\.multiple: expected a multiple of 64 for unet_scratch, found 32"):
        build_segmenter(
            narrow({"architecture": "unet_scratch"}),
            task=CAR,
            policy=InputPolicy(multiple=32),
            normalisation=Normalisation(mean=(0.5,) * 3, std=(0.5,) * 3),
        )


@pytest.mark.parametrize("architecture", ["unet_dilated", "unet"])
def test_auxiliary_maps_are_seen_by_training_alone(architecture: Architecture) -> None:
    encoder = {} if architecture == "unet_dilated" else {"encoder": "resnet18"}
    whole = segmenter(narrow({"architecture": architecture, **encoder}, auxiliary_maps=2))
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert whole.train().logits(images).shape[1] == 3
        found = whole.eval().logits(images)
        assert found.shape[1] == 1
        assert torch.equal(found, whole.network(whole.normalise(images))[:, :1])


@pytest.mark.parametrize("variant", VARIANTS, ids=named)
def test_bundles_hold_the_same_network(tmp_path: Path, variant: dict[str, Any]) -> None:
    original = segmenter(narrow(variant, auxiliary_maps=1)).eval()
    save_bundle(tmp_path / "b.safetensors", original)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    loaded = load_bundle(tmp_path / "b.safetensors")
    assert torch.equal(torch.rand(1), expected), "loading draws no random numbers"
    assert loaded.network_settings == original.network_settings
    shared = {name for name, _ in original.network.named_parameters()}
    assert {name for name, _ in loaded.network.named_parameters()} == shared
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(loaded.logits(images), original.logits(images))


@pytest.mark.parametrize(
    ("variant", "folded"),
    [
        (VARIANTS[0], 2 * 6 + 2 + 3 * 6),
        (VARIANTS[1], 0),
        (VARIANTS[4], 1 + 16 + 3 + 2 * 4),  # stem, blocks, shortcuts, and of each decoder block all but the transposed
        (VARIANTS[7], 1 + 16 + 3),
        (VARIANTS[10], 3 + 3 + 6 + 3),  # of each block the one between its two convolutions
    ],
    ids=lambda value: named(value) if isinstance(value, dict) else str(value),
)
def test_batch_normalisation_folds_for_inference(variant: dict[str, Any], folded: int) -> None:
    network = segmenter(narrow(variant)).network
    fused = fuse(network, 3, side=64)
    assert fused.num_pairs == folded
    assert fused.reason == ""  # unet_vgg11 has no batch normalisation


def test_a_published_network_brings_its_encoder() -> None:
    assert NetworkSettings(architecture="ternausnet").encoder == "vgg11"
    assert NetworkSettings(architecture="unet_scratch").encoder == "none"
    assert NetworkSettings().encoder == "tf_efficientnet_lite0"
    changed = override(NetworkSettings(), ["architecture=linknet_deconv", "encoder=resnet18"])
    assert (changed.architecture, changed.encoder) == ("linknet_deconv", "resnet18")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architecture": "ternausnet", "encoder": "resnet34"}, "expected vgg11 or vgg16 for ternausnet"),
        ({"architecture": "unet_scratch", "encoder": "resnet34"}, "expected none for unet_scratch"),
        ({"architecture": "unet_scratch", "weights": "hub"}, "unet_scratch has no encoder to fill"),
        ({"architecture": "unet_vgg11", "attention": "scse"}, "attention: unet_vgg11 has no such option"),
        ({"architecture": "unet_vgg11", "decoder_channels": [3]}, "decoder_channels: unet_vgg11 has no such option"),
        ({"upsampling": "deconv"}, "upsampling: unet has no such option; leave it out, or use unet_resnet"),
        ({"architecture": "ternausnet", "bottleneck": "cascade"}, "leave it out, or use unet_dilated"),
        ({"architecture": "unet_elu", "deep_supervision": True}, "deep_supervision: unet_elu has no such option"),
        ({"architecture": "fpn", "batch_norm": "fixed"}, "batch_norm"),
        ({"architecture": ["unet"]}, "architecture"),
        ({"width": 0}, "width"),
    ],
)
def test_settings_that_make_no_network_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(NetworkSettings, values)


def test_every_architecture_can_be_built_one_way() -> None:
    known = set(NetworkSettings.model_fields["architecture"].annotation.__args__)  # type: ignore[union-attr]
    assert set(CLASSIC) == set(CLASSIC_TRAITS) == known - set(ARCHITECTURES)
    assert set(ARCHITECTURES) <= known


@pytest.mark.parametrize("architecture", sorted({variant["architecture"] for variant in VARIANTS}))
def test_encoder_prefixes_name_the_encoders_parameters(architecture: Architecture) -> None:
    settings = NetworkSettings(architecture=architecture, weights="none")
    with torch.device("meta"):
        names = [name for name, _ in build_network(settings, 1).named_parameters()]
    inside = [name for name in names if name.startswith(encoder_prefixes(settings) or "no parameter")]
    counts = {"unet_vgg11": 16, "ternausnet": 16, "linknet_deconv": 108, "unet_resnet": 110}
    counts["unet_wideresnet38"] = 1 + 15 * 6 + 4
    assert len(inside) == counts.get(architecture, 0)
    assert names[: len(inside)] == inside
    assert encoder_prefixes(NetworkSettings()) == ("encoder.",)


def test_some_published_networks_take_pixels_as_they_are() -> None:
    assert encoder_normalisation(NetworkSettings(architecture="unet_scratch", channels=5)) == ((0.0,) * 5, (1.0,) * 5)
    assert encoder_normalisation(NetworkSettings(architecture="linknet_deconv")) == ((0.0,) * 3, (1.0,) * 3)
    mean, std = encoder_normalisation(NetworkSettings(architecture="ternausnet"))
    assert mean == (0.485, 0.456, 0.406) and std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("layer", [ConvRelu(64, 512), torch.nn.ConvTranspose2d(64, 512, 4, stride=2, padding=1)])
def test_first_weights_keep_the_signals_variance(layer: torch.nn.Module) -> None:
    torch.manual_seed(0)
    he_normal(layer)
    with torch.no_grad():
        squares = layer(torch.randn(2, 64, 20, 20).relu())[..., 4:-4, 4:-4].relu().square()
    assert float(squares.mean()) == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("architecture", ["unet", "fpn", "pspnet", "deeplabv3plus", "upernet", "segformer"])
def test_width_multiplies_the_decoder_over_any_encoder(architecture: Architecture) -> None:
    def numbers(width: float, **others: Any) -> tuple[int, int]:
        values = {"architecture": architecture, "encoder": "resnet18", "weights": "none", "width": width, **others}
        with torch.device("meta"):
            network: Any = build_network(NetworkSettings.model_validate(values), 1)
        encoder = sum(parameter.numel() for parameter in network.encoder.parameters())
        return encoder, sum(parameter.numel() for parameter in network.parameters()) - encoder

    whole, narrow_one = numbers(1.0), numbers(0.125)
    assert whole[0] == narrow_one[0] and narrow_one[1] < whole[1]
    stated = [128, 64, 32, 16, 8] if architecture == "unet" else [64]
    usual = [256, 128, 64, 32, 16] if architecture == "unet" else [128]
    assert numbers(0.5, decoder_channels=usual) == numbers(1.0, decoder_channels=stated)


def test_a_decoder_that_cannot_be_narrowed_says_so() -> None:
    with pytest.raises(UserError, match=r"network\.width: the linknet decoder has no such option"):
        build_network(NetworkSettings(architecture="linknet", encoder="resnet18", weights="none", width=0.5), 1)
    narrowed = NetworkSettings(encoder="resnet18", weights="none", width=0.125, attention="scse")
    assert build_network(narrowed, 1).state_dict()["segmentation_head.0.weight"].shape[1] == 16
