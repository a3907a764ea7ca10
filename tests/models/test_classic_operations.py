"""What the published networks compute, against the same formulas written once more from their published description.

The references use only tensors by their published names and elementary steps: up-sampling as a matrix of weights,
transposed convolution as an ordinary one over an image with zeros in between, pooling as a maximum or mean of views.
Everything runs in float64 on narrow networks with random weights, biases and statistics.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from maskloom.models.decoders import build_network
from maskloom.models.encoders import NetworkSettings

Weights = dict[str, Tensor]


def conv(maps: Tensor, weights: Weights, name: str, *, padding: int, stride: int = 1, dilation: int = 1) -> Tensor:
    weight, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
    return functional.conv2d(maps, weight, bias, stride=stride, padding=padding, dilation=dilation)


def norm(maps: Tensor, weights: Weights, name: str) -> Tensor:
    mean, variance, factor, offset = (
        weights[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (maps - mean) / (variance + 1e-5).sqrt() * factor + offset


def transposed(maps: Tensor, weights: Weights, name: str, *, padding: int, output_padding: int = 0) -> Tensor:
    """Stride 2: zeros between the pixels, then a convolution with the kernel turned by 180°."""
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    count, channels, height, width = maps.shape
    spread = maps.new_zeros(count, channels, 2 * height - 1, 2 * width - 1)
    spread[..., ::2, ::2] = maps
    before = weight.shape[-1] - 1 - padding
    after = before + output_padding
    spread = functional.pad(spread, (before, after, before, after))
    return functional.conv2d(spread, weight.flip(2, 3).transpose(0, 1), bias)


def views_2x2(maps: Tensor) -> Tensor:
    return torch.stack([maps[..., row::2, column::2] for row in (0, 1) for column in (0, 1)])


def max_pool(maps: Tensor) -> Tensor:
    return views_2x2(maps).amax(dim=0)


def mean_pool(maps: Tensor) -> Tensor:
    return views_2x2(maps).mean(dim=0)


def doubling_matrix(size: int, *, corners: bool) -> Tensor:
    """2·size × size: linear interpolation at positions that keep the corners, or at pixel centres inside the border."""
    steps = torch.arange(2 * size, dtype=torch.float64)
    positions = steps * (size - 1) / (2 * size - 1) if corners else ((steps + 0.5) / 2 - 0.5).clamp(0, size - 1)
    return (1 - (positions[:, None] - torch.arange(size)).abs()).clamp(min=0)


def bilinear(maps: Tensor, *, corners: bool) -> Tensor:
    rows = doubling_matrix(maps.shape[-2], corners=corners)
    columns = doubling_matrix(maps.shape[-1], corners=corners)
    return torch.einsum("ih,nchw,jw->ncij", rows, maps, columns)


def scratch(images: Tensor, w: Weights) -> Tensor:
    def layers(maps: Tensor, name: str, count: int) -> Tensor:
        for index in range(count):
            maps = norm(conv(maps, w, f"{name}.convs.{index}.0", padding=1), w, f"{name}.convs.{index}.1").relu()
        return maps

    skips, maps = [], images
    for depth in range(1, 7):
        skips.append(layers(maps, f"down{depth}.conv", 2))
        maps = max_pool(skips[-1])
    maps = layers(maps, "center", 2)
    for depth in range(6, 0, -1):
        both = torch.cat([skips[depth - 1], bilinear(maps, corners=True)], dim=1)
        maps = layers(both, f"up{depth}.conv", 3)
    return conv(maps, w, "final", padding=0)


def vgg11(images: Tensor, w: Weights) -> list[Tensor]:
    def step(maps: Tensor, name: str) -> Tensor:
        return conv(maps, w, name, padding=1).relu()

    first = step(images, "conv1")
    second = step(max_pool(first), "conv2")
    third = step(step(max_pool(second), "conv3s"), "conv3")
    fourth = step(step(max_pool(third), "conv4s"), "conv4")
    return [first, second, third, fourth, step(step(max_pool(fourth), "conv5s"), "conv5")]


def decoder_first(
    skips: list[Tensor],
    block: Callable[[Tensor, str], Tensor],
    last: Callable[[Tensor], Tensor],
    *,
    pooled: bool = True,
) -> Tensor:
    maps = block(max_pool(skips[-1]) if pooled else skips[-1], "center")
    for number, skip in zip((5, 4, 3, 2), reversed(skips), strict=False):
        maps = block(torch.cat([maps, skip], dim=1), f"dec{number}")
    return last(maps)


def over_vgg11(first: str, last: str) -> Callable[[Tensor, Weights], Tensor]:
    """``first`` and ``last`` name the convolution of a block and of dec1, which the two networks name differently."""

    def network(images: Tensor, w: Weights) -> Tensor:
        skips = vgg11(images, w)

        def block(maps: Tensor, name: str) -> Tensor:
            maps = conv(maps, w, f"{name}.block.0.{first}", padding=1).relu()
            return transposed(maps, w, f"{name}.block.1", padding=1, output_padding=1).relu()

        def end(maps: Tensor) -> Tensor:
            maps = conv(torch.cat([maps, skips[0]], dim=1), w, f"dec1.{last}", padding=1).relu()
            return conv(maps, w, "final", padding=0)

        return decoder_first(skips, block, end)

    return network


def over_vgg16(images: Tensor, w: Weights) -> Tensor:
    skips: list[Tensor] = []
    for stage, count in enumerate((2, 2, 3, 3, 3), start=1):
        maps = max_pool(skips[-1]) if skips else images
        for index in range(count):
            maps = conv(maps, w, f"conv{stage}.{2 * index}", padding=1).relu()
        skips.append(maps)

    def block(maps: Tensor, name: str) -> Tensor:
        maps = conv(bilinear(maps, corners=False), w, f"{name}.block.1.conv", padding=1).relu()
        return conv(maps, w, f"{name}.block.2.conv", padding=1).relu()

    def end(maps: Tensor) -> Tensor:
        maps = conv(torch.cat([maps, skips[0]], dim=1), w, "dec1.conv", padding=1).relu()
        return conv(maps, w, "final", padding=0)

    return decoder_first(skips, block, end)


def residual(images: Tensor, w: Weights, stem: tuple[str, str], stages: tuple[str, ...]) -> list[Tensor]:
    """The maps of ResNet's four stages; a block with a third convolution is a bottleneck with the stride in its second.

    The 3×3 maximum pooling never sees its padding, since ReLU's results are at least 0.
    """
    maps = norm(conv(images, w, stem[0], padding=3, stride=2), w, stem[1]).relu()
    framed = functional.pad(maps, (1, 1, 1, 1))
    height, width = maps.shape[-2:]
    maps = torch.stack(
        [framed[..., row : row + height : 2, column : column + width : 2] for row in range(3) for column in range(3)]
    ).amax(dim=0)
    skips = []
    for number, stage in enumerate(stages):
        index = 0
        while f"{stage}.{index}.conv1.weight" in w:
            name, stride = f"{stage}.{index}", 2 if number and not index else 1
            kept = maps
            if f"{name}.downsample.0.weight" in w:
                shortened = conv(maps, w, f"{name}.downsample.0", padding=0, stride=stride)
                kept = norm(shortened, w, f"{name}.downsample.1")
            if f"{name}.conv3.weight" in w:
                maps = norm(conv(maps, w, f"{name}.conv1", padding=0), w, f"{name}.bn1").relu()
                maps = norm(conv(maps, w, f"{name}.conv2", padding=1, stride=stride), w, f"{name}.bn2").relu()
                maps = norm(conv(maps, w, f"{name}.conv3", padding=0), w, f"{name}.bn3")
            else:
                maps = norm(conv(maps, w, f"{name}.conv1", padding=1, stride=stride), w, f"{name}.bn1").relu()
                maps = norm(conv(maps, w, f"{name}.conv2", padding=1), w, f"{name}.bn2")
            maps = (maps + kept).relu()
            index += 1
        skips.append(maps)
    return skips


def linknet(images: Tensor, w: Weights) -> Tensor:
    first, second, third, fourth = residual(
        images, w, ("firstconv", "firstbn"), ("encoder1", "encoder2", "encoder3", "encoder4")
    )

    def block(maps: Tensor, name: str) -> Tensor:
        maps = norm(conv(maps, w, f"{name}.conv1", padding=0), w, f"{name}.norm1").relu()
        maps = transposed(maps, w, f"{name}.deconv2", padding=1, output_padding=1)
        maps = norm(maps, w, f"{name}.norm2").relu()
        return norm(conv(maps, w, f"{name}.conv3", padding=0), w, f"{name}.norm3").relu()

    maps = block(fourth, "decoder4") + third
    maps = block(maps, "decoder3") + second
    maps = block(maps, "decoder2") + first
    maps = transposed(block(maps, "decoder1"), w, "finaldeconv1", padding=0).relu()
    return conv(conv(maps, w, "finalconv2", padding=0).relu(), w, "finalconv3", padding=1)


def scse(maps: Tensor, w: Weights, name: str) -> Tensor:
    """Where the network has it: maps times a gate per channel, and times one per pixel, summed."""
    if f"{name}.sSE.weight" not in w:
        return maps
    squeezed = maps.sum(dim=(2, 3)) / (maps.shape[2] * maps.shape[3])
    hidden = (squeezed @ w[f"{name}.cSE.0.weight"].T + w[f"{name}.cSE.0.bias"]).relu()
    channels = hidden @ w[f"{name}.cSE.2.weight"].T + w[f"{name}.cSE.2.bias"]
    pixels = (maps * w[f"{name}.sSE.weight"]).sum(dim=1, keepdim=True) + w[f"{name}.sSE.bias"]
    return maps / (1 + (-channels[:, :, None, None]).exp()) + maps / (1 + (-pixels).exp())


def over_resnet(*, deconv: bool) -> Callable[[Tensor, Weights], Tensor]:
    def network(images: Tensor, w: Weights) -> Tensor:
        stages = ("resnet.layer1", "resnet.layer2", "resnet.layer3", "resnet.layer4")
        skips = residual(images, w, ("resnet.conv1", "resnet.bn1"), stages)

        def block(maps: Tensor, name: str) -> Tensor:
            if deconv:
                maps = conv(maps, w, f"{name}.block.0.conv", padding=1).relu()
                return scse(transposed(maps, w, f"{name}.block.1", padding=1).relu(), w, f"{name}.block.3")
            maps = maps.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            maps = conv(maps, w, f"{name}.block.0.conv", padding=1).relu()
            return scse(conv(maps, w, f"{name}.block.1.conv", padding=1).relu(), w, f"{name}.block.2")

        def end(maps: Tensor) -> Tensor:
            maps = conv(block(maps, "dec1"), w, "dec0.conv", padding=1).relu()
            return conv(maps, w, "final", padding=0)

        return decoder_first(skips, block, end)

    return network


def leaky(maps: Tensor) -> Tensor:
    return torch.where(maps > 0, maps, 0.01 * maps)


def over_wideresnet(*, deconv: bool) -> Callable[[Tensor, Weights], Tensor]:
    def network(images: Tensor, w: Weights) -> Tensor:
        def group(maps: Tensor, name: str) -> Tensor:
            index = 1
            while f"{name}.block{index}.bn1.weight" in w:
                part = f"{name}.block{index}"
                active, kept = leaky(norm(maps, w, f"{part}.bn1")), maps
                if f"{part}.proj_conv.weight" in w:
                    kept = conv(active, w, f"{part}.proj_conv", padding=0)
                inner = norm(conv(active, w, f"{part}.convs.conv1", padding=1), w, f"{part}.convs.bn2")
                maps = kept + conv(leaky(inner), w, f"{part}.convs.conv2", padding=1)
                index += 1
            return maps

        skips = [conv(images, w, "conv1.conv1", padding=1)]
        for number in range(2, 6):
            skips.append(group(max_pool(skips[-1]), f"conv{number}"))

        def block(maps: Tensor, name: str) -> Tensor:
            if deconv:
                maps = conv(maps, w, f"{name}.block.0.conv", padding=1).relu()
                maps = transposed(maps, w, f"{name}.block.1", padding=1).relu()
            else:
                maps = maps.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
                maps = conv(maps, w, f"{name}.block.1.conv", padding=1).relu()
                maps = conv(maps, w, f"{name}.block.2.conv", padding=1).relu()
            return scse(maps, w, f"{name}.block.3")

        def end(maps: Tensor) -> Tensor:
            maps = conv(torch.cat([maps, skips[0]], dim=1), w, "dec1.conv", padding=1).relu()
            return conv(maps, w, "final", padding=0)

        return decoder_first(skips, block, end)

    return network


def dilated(*, parallel: bool) -> Callable[[Tensor, Weights], Tensor]:
    def network(images: Tensor, w: Weights) -> Tensor:
        def double(maps: Tensor, name: str) -> Tensor:
            maps = conv(maps, w, f"{name}.block.0.conv", padding=1).relu()
            return conv(maps, w, f"{name}.block.1.conv", padding=1).relu()

        skips, maps = [], images
        for depth in range(3):
            skips.append(double(maps, f"down_path.{depth}"))
            maps = mean_pool(skips[-1])
        pooled, total = maps, torch.zeros(())
        for index in range(6):
            rate = 2**index
            source = pooled if parallel else maps
            maps = conv(source, w, f"bottleneck_path.{index}.conv", padding=rate, dilation=rate).relu()
            total = total + maps
        maps = total
        for index in range(3):
            doubled = transposed(maps, w, f"up_path.{index}.up", padding=1)
            maps = double(torch.cat([doubled, skips[2 - index]], dim=1), f"up_path.{index}.conv_block")
        return conv(maps, w, "last", padding=0)

    return network


CASES: dict[str, tuple[dict[str, str], Callable[[Tensor, Weights], Tensor]]] = {
    "unet_scratch": ({"architecture": "unet_scratch"}, scratch),
    "unet_vgg11": ({"architecture": "unet_vgg11"}, over_vgg11("block.0", "block.0")),
    "ternausnet vgg11": ({"architecture": "ternausnet"}, over_vgg11("conv", "conv")),
    "ternausnet vgg16": ({"architecture": "ternausnet", "encoder": "vgg16"}, over_vgg16),
    "linknet_deconv": ({"architecture": "linknet_deconv"}, linknet),
    "linknet_deconv resnet18": ({"architecture": "linknet_deconv", "encoder": "resnet18"}, linknet),
    "unet_resnet nearest": ({"architecture": "unet_resnet"}, over_resnet(deconv=False)),
    "unet_resnet deconv": (
        {"architecture": "unet_resnet", "encoder": "resnet50", "upsampling": "deconv"},
        over_resnet(deconv=True),
    ),
    "unet_resnet 18 deconv": (
        {"architecture": "unet_resnet", "encoder": "resnet18", "upsampling": "deconv"},
        over_resnet(deconv=True),
    ),
    "unet_resnet 101": ({"architecture": "unet_resnet", "encoder": "resnet101"}, over_resnet(deconv=False)),
    "unet_resnet 152": ({"architecture": "unet_resnet", "encoder": "resnet152"}, over_resnet(deconv=False)),
    "unet_resnet scse": ({"architecture": "unet_resnet", "attention": "scse"}, over_resnet(deconv=False)),
    "unet_resnet deconv scse": (
        {"architecture": "unet_resnet", "upsampling": "deconv", "attention": "scse"},
        over_resnet(deconv=True),
    ),
    "unet_wideresnet38 nearest": ({"architecture": "unet_wideresnet38"}, over_wideresnet(deconv=False)),
    "unet_wideresnet38 deconv": (
        {"architecture": "unet_wideresnet38", "upsampling": "deconv"},
        over_wideresnet(deconv=True),
    ),
    "unet_wideresnet38 scse": (
        {"architecture": "unet_wideresnet38", "attention": "scse"},
        over_wideresnet(deconv=False),
    ),
    "unet_dilated cascade": ({"architecture": "unet_dilated"}, dilated(parallel=False)),
    "unet_dilated parallel": ({"architecture": "unet_dilated", "bottleneck": "parallel"}, dilated(parallel=True)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_network_computes_its_published_description(name: str) -> None:
    options, reference = CASES[name]
    torch.manual_seed(3)
    settings = NetworkSettings.model_validate({**options, "weights": "none", "width": 0.0625})
    network = build_network(settings, 2).double().eval()
    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point() and (tensor.ndim == 1 or not tensor.any()):  # biases, factors, means, gates
                tensor.add_(torch.randn_like(tensor), alpha=0.1)
        images = torch.randn(2, 3, 64, 128, dtype=torch.float64)
        found = network(images)
        expected = reference(images, network.state_dict())
    assert found.shape == (2, 2, 64, 128)
    assert float(expected.std()) > 1e-6 * float(expected.abs().mean())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
