"""The U-Nets of Carvana's 4th place: published widths, exact sizes, what learns and what never does."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskloom.errors import UserError
from maskloom.models import pretrained
from maskloom.models.classic.features import feature_maps
from maskloom.models.classic.fourth import DecoderStage, EncoderUnet, Head, PlainUnet
from maskloom.models.classic.fourth_vgg import FrozenStage, UpStage, VggUnet7, frozen_stage
from maskloom.models.classic.table import CLASSIC
from maskloom.models.decoders import build_network
from maskloom.models.encoders import Architecture, NetworkSettings, multiple_of

OVER_ENCODERS: tuple[Architecture, ...] = ("unet_resnet50_4th", "unet_inception_resnet_4th", "unet_mobilenet_4th")
ALL: tuple[Architecture, ...] = ("unet_plain", "unet_vgg_4th", *OVER_ENCODERS)

WIDTHS = {
    "unet_resnet50_4th": [256, 256, 192, 192, 128, 128, 64, 64, 32, 32],
    "unet_inception_resnet_4th": [256, 256, 256, 256, 128, 128, 64, 64, 48, 32],
    "unet_mobilenet_4th": [256, 256, 256, 256, 192, 128, 96, 64, 48, 32],
}
"""Filters of the decoders' convolutions as the team's program has them."""

SKIPS = {
    "unet_resnet50_4th": [2048, 1024, 512, 256, 64, 3 + 64],
    "unet_inception_resnet_4th": [1536, 1088, 320, 192, 64, 3],
    "unet_mobilenet_4th": [1024, 512, 256, 128, 64, 3],
}
"""Maps of the encoders, coarsest first, and at last those at full size: the image, and VGG16's first stage."""

ENCODER_PARAMETERS = {
    "unet_resnet50_4th": 23_508_032,
    "unet_inception_resnet_4th": 54_306_464,
    "unet_mobilenet_4th": 3_206_976,
}
"""The encoders' trainable parameters without their classifiers, as Keras and timm count them."""

VGG16_FIRST_STAGE = 9 * 3 * 64 + 64 + 9 * 64 * 64 + 64


def settings_of(architecture: Architecture, **values: Any) -> NetworkSettings:
    return NetworkSettings.model_validate({"architecture": architecture, "weights": "none", **values})


def built(architecture: Architecture, num_maps: int = 1, **values: Any) -> Any:
    torch.manual_seed(0)
    return build_network(settings_of(architecture, **values), num_maps)


@cache
def over_encoder(architecture: Architecture, channels: int) -> Any:
    """Returns one network for several tests, since it takes a second to draw so many weights."""
    return built(architecture, 2, channels=channels, width=0.125, auxiliary_maps=1)


@cache
def without_memory(architecture: Architecture, num_maps: int = 1, **values: Any) -> Any:
    with torch.device("meta"):
        return CLASSIC[architecture](settings_of(architecture, **values), num_maps)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def conv_norm(channels: int, filters: int) -> int:
    """Returns the parameters of a 3×3 convolution with bias and of its batch normalisation."""
    return 9 * channels * filters + filters + 2 * filters


def plain_unet_parameters(channels: int, f: list[int], maps: int) -> int:
    """Returns the parameters of the plain U-Net of these four numbers of filters."""
    down = [(channels, f[0]), (f[0], f[0]), (f[0], f[1]), (f[1], f[1]), (f[1], f[2]), (f[2], f[2])]
    bottom = [(f[2], f[3]), (f[3], f[3]), (f[3], f[3])]
    up = [(f[3] + f[2], f[2]), (f[2], f[2]), (f[2] + f[1], f[1]), (f[1], f[1]), (f[1] + f[0], f[0]), (f[0], f[0])]
    return sum(conv_norm(*pair) for pair in (*down, *bottom, *up)) + f[0] * maps + maps


@torch.no_grad()
def copies(convolution: nn.Conv2d, source: int, target: int = 0) -> None:
    """Lets the convolution copy one map to one map, and make all others 0."""
    convolution.weight.zero_()
    convolution.weight[target, source, *(side // 2 for side in convolution.kernel_size)] = 1.0
    if convolution.bias is not None:
        convolution.bias.zero_()


@pytest.mark.parametrize(("channels", "maps"), [(3, 1), (1, 2), (13, 1)])
def test_the_plain_unet_has_the_parameters_of_its_formula(channels: int, maps: int) -> None:
    plain = without_memory("unet_plain", maps, channels=channels)
    assert count(plain) == plain_unet_parameters(channels, [32, 64, 128, 256], maps)
    narrow = without_memory("unet_plain", maps, channels=channels, width=0.25)
    assert count(narrow) == plain_unet_parameters(channels, [8, 16, 32, 64], maps)


@pytest.mark.parametrize("architecture", OVER_ENCODERS)
def test_decoders_have_the_published_widths(architecture: Architecture) -> None:
    network = without_memory(architecture)
    convolutions = [layer for layer in network.decoder.modules() if isinstance(layer, nn.Conv2d)]
    widths = WIDTHS[architecture]
    assert [layer.out_channels for layer in convolutions] == widths
    coarse = [SKIPS[architecture][0], *widths[1::2]]
    incoming = [first + skip for first, skip in zip(coarse, SKIPS[architecture][1:], strict=False)]
    assert [layer.in_channels for layer in convolutions] == [
        channels for pair in zip(incoming, widths[::2], strict=True) for channels in pair
    ]
    decoder = sum(conv_norm(layer.in_channels, layer.out_channels) for layer in convolutions)
    frozen = VGG16_FIRST_STAGE if architecture == "unet_resnet50_4th" else 0
    assert count(network) == ENCODER_PARAMETERS[architecture] + decoder + frozen + 32 + 1


def test_the_unet_of_seven_stages_has_the_parameters_of_its_formula() -> None:
    network = without_memory("unet_vgg_4th", 2)
    vgg = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256)]
    lower = [(256, 384), (384, 384), (384, 512), *[(512, 512)] * 5]
    up = [(512, 384), (384, 256), (256, 192), (192, 128), (128, 64), (64, 32)]
    joined = [(384 + 512, 384), (256 + 512, 256), (192 + 384, 192), (128 + 256, 128), (64 + 128, 64), (32 + 64, 32)]
    expected = sum(9 * channels * filters + filters for channels, filters in (*vgg, *lower, *up, *joined))
    assert count(network) == expected + 2 * 32 + 2
    assert count(network.encoder) == 1_735_488  # VGG16's first three stages, as torchvision has them
    names = [name for name, _ in network.encoder.named_parameters() if name.endswith("weight")]
    assert names == [f"{number}.weight" for number in (0, 2, 5, 7, 10, 12, 14)]


@pytest.mark.parametrize("architecture", ALL)
def test_width_shrinks_what_is_not_pretrained(architecture: Architecture) -> None:
    whole, narrow = without_memory(architecture), without_memory(architecture, width=0.125)
    assert count(narrow) - ENCODER_PARAMETERS.get(architecture, 0) < 0.2 * (
        count(whole) - ENCODER_PARAMETERS.get(architecture, 0)
    )
    if architecture in OVER_ENCODERS:
        assert count(narrow.encoder) == count(whole.encoder) == ENCODER_PARAMETERS[architecture]


@pytest.mark.parametrize(
    ("architecture", "channels", "sizes"),
    [
        ("unet_plain", 1, [(64, 96), (32, 64)]),
        ("unet_plain", 13, [(32, 32)]),
        ("unet_vgg_4th", 3, [(64, 128), (32, 32), (96, 160)]),
        ("unet_vgg_4th", 1, [(32, 64)]),
        ("unet_resnet50_4th", 4, [(64, 96)]),
        ("unet_inception_resnet_4th", 3, [(32, 64)]),
        ("unet_mobilenet_4th", 8, [(96, 32), (64, 64)]),
    ],
)
def test_everything_learns_at_the_size_of_the_input(
    architecture: Architecture, channels: int, sizes: list[tuple[int, int]]
) -> None:
    network = over_encoder(architecture, channels).train()
    for height, width in sizes:
        logits = network(torch.randn(2, channels, height, width))
        assert logits.shape == (2, 3, height, width) and logits.dtype == torch.float32
    logits.square().mean().backward()
    for name, parameter in network.named_parameters():
        if name.startswith("vgg."):
            assert parameter.grad is None and not parameter.requires_grad
        else:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    stem = next(network.parameters())
    assert stem.shape[1] == channels and stem.grad.any()


@pytest.mark.parametrize("architecture", ["unet_plain", "unet_vgg_4th"])
def test_other_sides_are_refused(architecture: Architecture) -> None:
    multiple = multiple_of(settings_of(architecture))
    with pytest.raises(UserError, match=f"multiples of {multiple} pixels, found 64×66"):
        built(architecture, width=0.125)(torch.zeros(1, 3, 64, 66))


def test_the_plain_unet_joins_its_own_maps_before_the_skip() -> None:
    network = built("unet_plain", width=0.125).eval()
    assert isinstance(network, PlainUnet)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.zeros_(layer.weight)
    first, second = (network.down[0][index] for index in (0, 3))
    copies(first, source=1, target=0)
    copies(second, source=0, target=2)
    coarse, filters = (network.up[index].convolutions[3].out_channels for index in (-2, -1))
    copies(network.up[-1].convolutions[0], source=coarse + 2, target=1)
    copies(network.up[-1].convolutions[3], source=1, target=filters - 1)
    copies(network.head[1], source=filters - 1)
    images = torch.rand(1, 3, 32, 64)
    # four normalisations with a mean of 0, a variance of 1 and ε = 1e-3
    torch.testing.assert_close(network(images), images[:, 1:2] / 1.001**2)


def test_a_decoder_stage_repeats_pixels_and_joins_its_own_maps_first() -> None:
    stage = DecoderStage(2 + 1 + 3, (4, 5)).eval()
    coarse, finer = torch.rand(2, 2, 3, 4), [torch.rand(2, 1, 6, 8), torch.rand(2, 3, 6, 8)]
    doubled = coarse.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    for source, expected in ((1, doubled[:, 1]), (2, finer[0][:, 0]), (5, finer[1][:, 2])):
        copies(stage.convolutions[0], source=source, target=3)
        copies(stage.convolutions[3], source=3, target=4)
        maps = stage(coarse, finer)
        torch.testing.assert_close(maps[:, 4], expected / 1.001)
        assert not maps[:, :4].any()


def test_a_transposed_convolution_lies_as_in_tensorflow() -> None:
    stage = UpStage(1, 1, 1)
    copies(stage.convolution.conv, source=0)
    coarse = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    with torch.no_grad():
        stage.up.weight.zero_()
        stage.up.bias.zero_()
        stage.up.weight[0, 0, 0, 0] = 1.0
        stage.up.weight[0, 0, 2, 2] = 10.0
    # what the padding "same" keeps: pixel (2i + a, 2j + b) takes weight (a, b) of unit (i, j), from the top left corner
    expected = torch.tensor([[1.0, 0, 2, 0], [0, 0, 0, 0], [3, 0, 4 + 10, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(stage(coarse, torch.zeros(1, 1, 4, 4)), expected[None, None])
    torch.testing.assert_close(stage(coarse, torch.zeros(1, 1, 3, 4)), expected[None, None, :3])


@pytest.mark.parametrize(
    ("architecture", "published"),
    [
        ("unet_plain", 0.2),
        ("unet_vgg_4th", 0.0),
        ("unet_resnet50_4th", 0.2),
        ("unet_inception_resnet_4th", 0.4),
        ("unet_mobilenet_4th", 0.2),
    ],
)
def test_dropout_is_the_published_one_unless_another_is_stated(architecture: Architecture, published: float) -> None:
    def probabilities(**values: Any) -> list[float]:
        network = without_memory(architecture, **values)
        return [layer.p for layer in network.modules() if isinstance(layer, nn.Dropout2d)]

    assert probabilities() == [published]
    if architecture != "unet_inception_resnet_4th":  # built as the others over encoders, and slowly
        assert probabilities(dropout=0.3) == [0.3]


def test_the_head_drops_whole_maps_while_training_only() -> None:
    torch.manual_seed(0)
    head = Head(8, 1, 0.5)
    nn.init.ones_(head[1].weight)
    nn.init.zeros_(head[1].bias)
    maps = torch.ones(16, 8, 3, 5)
    logits = head(maps)
    kept = logits[:, 0, 0, 0] / 2  # a map that stays counts 1 / (1 - 0.5)
    assert torch.equal(logits, kept.mul(2).reshape(16, 1, 1, 1).expand(16, 1, 3, 5))
    assert torch.equal(kept, kept.round()) and 0 <= kept.min() < kept.max() <= 8
    assert torch.equal(head.eval()(maps), torch.full((16, 1, 3, 5), 8.0))


@pytest.mark.parametrize("architecture", ["unet_plain", "unet_vgg_4th"])
def test_chance_is_for_training_only(architecture: Architecture) -> None:
    network = built(architecture, width=0.25, dropout=0.5)
    images = torch.randn(2, 3, 32, 32)
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


def test_the_first_stage_of_vgg_never_moves() -> None:
    network = over_encoder("unet_resnet50_4th", 4)
    assert isinstance(network, EncoderUnet) and network.vgg is not None
    before = {name: tensor.clone() for name, tensor in network.vgg.state_dict().items()}
    network.train()
    assert network.training and not any(module.training for module in network.vgg.modules())
    network.requires_grad_(True)  # even then: no gradient goes through it
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-3, weight_decay=0.1)
    images = torch.randn(1, 4, 64, 64)
    network(images).square().mean().backward()
    optimiser.step()
    network.requires_grad_(True).vgg.requires_grad_(False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.vgg.state_dict().items())
    with torch.no_grad():  # it counts nevertheless; in training mode, since no average of the norms has settled
        network.head[0].eval()
        seen = network(images)
        assert torch.equal(network(images), seen)
        network.vgg[0].weight.neg_()
        assert not torch.equal(network(images), seen)


def test_the_frozen_stage_is_two_convolutions_with_relu() -> None:
    stage = FrozenStage(3)
    images = torch.randn(2, 3, 5, 7)
    first, second = stage[0], stage[2]
    expected = nn.functional.conv2d(images, first.weight, first.bias, padding=1).relu()
    expected = nn.functional.conv2d(expected, second.weight, second.bias, padding=1).relu()
    found = stage(images)
    assert torch.equal(found, expected) and found.shape == (2, 64, 5, 7) and not found.requires_grad
    assert list(stage.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_a_frozen_stage_without_its_weights_is_said_aloud() -> None:
    frozen_stage(settings_of("unet_resnet50_4th"))
    for weights in ("auto", "resnet50.safetensors"):
        with pytest.warns(UserWarning, match="the frozen VGG16 stage, its filters stay random"):
            frozen_stage(settings_of("unet_resnet50_4th", weights=weights))


def test_the_hub_fills_the_frozen_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    import segmentation_models_pytorch.encoders as own

    asked: list[tuple[Any, ...]] = []

    def encoder(name: str, *, in_channels: int, depth: int, weights: None) -> nn.Module:
        assert name == "vgg16" and weights is None
        whole = nn.Module()
        whole.features = nn.Sequential(*FrozenStage(in_channels), nn.MaxPool2d(2), nn.Conv2d(64, 128, 3))
        return whole

    def load(whole: nn.Module, name: str, source: pretrained.Source, channels: int) -> None:
        asked.append((name, source.kind, channels))
        for number, parameter in enumerate(whole.parameters()):
            nn.init.constant_(parameter, float(number))

    monkeypatch.setattr(own, "get_encoder", encoder)
    monkeypatch.setattr(pretrained, "load", load)
    stage = frozen_stage(settings_of("unet_resnet50_4th", weights="hub", channels=4))
    assert asked == [("vgg16", "hub", 4)]
    assert [float(tensor.max()) for tensor in stage.state_dict().values()] == [0.0, 1.0, 2.0, 3.0]
    assert not any(parameter.requires_grad for parameter in stage.parameters())


def test_inception_sees_what_it_would_see_with_padding_in_every_layer() -> None:
    """Away from the border, timm's unpadded layers over a continued image give what padded ones give over the image."""
    from segmentation_models_pytorch.encoders import get_encoder

    torch.manual_seed(0)
    unpadded = over_encoder("unet_inception_resnet_4th", 3).encoder.eval()
    with torch.device("meta"):
        padded = get_encoder("inceptionresnetv2", weights=None).eval()
    state = {name.removeprefix("model."): tensor for name, tensor in unpadded.state_dict().items()}
    nn.Module.load_state_dict(padded, state, assign=True)
    images = torch.randn(1, 3, 224, 224)

    def interior(maps: Tensor, stride: int) -> Tensor:
        margin = {2: 3, 4: 3, 8: 6, 16: 6, 32: 3}[stride]
        return maps[..., margin:-margin, margin:-margin]

    with torch.no_grad():
        found, expected = feature_maps(unpadded, images, unpadded=True), padded(images)[1:]
    for stride, ours, theirs in zip((2, 4, 8, 16, 32), found, expected, strict=True):
        assert ours.shape == theirs.shape == (1, ours.shape[1], 224 // stride, 224 // stride)
        inside, outside = interior(ours, stride), interior(theirs, stride)
        assert inside.numel() > 0
        torch.testing.assert_close(inside, outside, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_builders_are_those_of_the_table() -> None:
    assert isinstance(built("unet_vgg_4th", width=0.125), VggUnet7)
    assert isinstance(without_memory("unet_mobilenet_4th"), EncoderUnet)
