"""Where a published network's first weights come from: files in torchvision's and timm's names, the hub, a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from maskloom.data.input_policy import InputPolicy
from maskloom.errors import BadFile, UserError
from maskloom.models import torchvision_guard
from maskloom.models.bundle import load_bundle, save_bundle
from maskloom.models.classic.resnet import ResNet
from maskloom.models.classic.vgg import vgg_features
from maskloom.models.decoders import build_network
from maskloom.models.encoders import NetworkSettings
from maskloom.models.pretrained import Source, adapt_stem, load_classic
from maskloom.models.segmenter import Normalisation, Segmenter, build_segmenter
from maskloom.records import Task

CAR = Task(kind="binary", classes=("car",))
TWO = Task(kind="multiclass", classes=("sky", "car"))

RENAMED = {
    ("ternausnet", "vgg16"): {"features.28.bias": ("encoder.28.bias", "conv5.4.bias")},
    ("unet_vgg_4th", "vgg16"): {"features.14.bias": ("encoder.14.bias",)},
    ("linknet_deconv", "resnet18"): {
        "bn1.running_mean": ("firstbn.running_mean",),
        "layer3.1.conv2.weight": ("encoder3.1.conv2.weight",),
    },
    ("unet_resnet", "resnet18"): {"layer4.0.downsample.0.weight": ("resnet.layer4.0.downsample.0.weight",)},
}
"""Some names in a weights file, and under which names the same tensors are to be found."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights files of each encoder as torchvision names them, the classifier among them."""
    paths = {}
    for encoder in ("vgg16", "resnet18"):
        torch.manual_seed(4)
        settings = NetworkSettings.model_validate(
            {"architecture": "unet_resnet" if encoder == "resnet18" else "ternausnet", "encoder": encoder}
        )
        if encoder == "resnet18":
            state = ResNet(settings).state_dict()
        else:
            state = {f"features.{name}": tensor for name, tensor in vgg_features(settings)[0].state_dict().items()}
            state |= {"classifier.0.weight": torch.zeros(2, 2), "classifier.6.bias": torch.zeros(1000)}
        paths[encoder] = tmp_path_factory.mktemp("weights") / f"{encoder}.safetensors"
        safetensors.torch.save_file(state, paths[encoder])
    return paths


@pytest.mark.parametrize(("architecture", "encoder"), RENAMED)
def test_a_file_fills_the_encoder_under_its_names(files: dict[str, Path], architecture: str, encoder: str) -> None:
    stored = safetensors.torch.load_file(files[encoder])
    network = network_of(architecture=architecture, encoder=encoder, weights=str(files[encoder]))
    state = network.state_dict()
    for theirs, ours in RENAMED[architecture, encoder].items():
        assert all(torch.equal(state[name], stored[theirs]) for name in ours)
    stem = next(iter(state.values()))
    assert torch.equal(stem, next(tensor for name, tensor in stored.items() if tensor.shape == stem.shape))


@pytest.mark.parametrize("name", ["vgg11", "vgg16", "resnet18", "resnet50"])
def test_names_and_shapes_are_those_of_torchvision_and_timm(name: str) -> None:
    torchvision_guard.ensure()
    import timm

    settings = NetworkSettings.model_validate(
        {"architecture": "unet_resnet" if name.startswith("resnet") else "ternausnet", "encoder": name}
    )
    with torch.device("meta"):
        theirs = timm.create_model(name, pretrained=False).state_dict()
        if name.startswith("resnet"):
            ours = ResNet(settings).state_dict()
        else:
            features = vgg_features(settings)[0].state_dict()
            ours = {f"features.{key}": tensor for key, tensor in features.items()}
            theirs = {key: tensor for key, tensor in theirs.items() if key.startswith("features.")}
    assert {key: tensor.shape for key, tensor in ours.items()} == {key: t.shape for key, t in theirs.items()}


@pytest.mark.parametrize("channels", [1, 3, 6, 9])
def test_equal_channels_give_the_response_the_stem_was_trained_on(channels: int) -> None:
    torch.manual_seed(0)
    trained, plane = torch.randn(4, 3, 3, 3), torch.randn(1, 1, 8, 8)
    expected = nn.functional.conv2d(plane.expand(1, 3, 8, 8), trained)
    found = nn.functional.conv2d(plane.expand(1, channels, 8, 8), adapt_stem(trained, channels))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_stem_of_more_channels_repeats_the_three(files: dict[str, Path]) -> None:
    network = network_of(architecture="linknet_deconv", encoder="resnet18", weights=str(files["resnet18"]), channels=5)
    stem = network.state_dict()["firstconv.weight"]
    stored = safetensors.torch.load_file(files["resnet18"])["conv1.weight"]
    torch.testing.assert_close(stem, stored[:, [0, 1, 2, 0, 1]] * 3 / 5)


def test_the_hub_is_asked_for_the_weights_that_were_published(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    torchvision_guard.ensure()
    import timm

    asked = []

    def create(name: str, pretrained: bool) -> Any:
        asked.append((name, pretrained))
        network = ResNet(NetworkSettings(architecture="linknet_deconv", encoder="resnet18"))
        network.load_state_dict(safetensors.torch.load_file(files["resnet18"]))
        return network

    monkeypatch.setattr(timm, "create_model", create)
    state = network_of(architecture="linknet_deconv", encoder="resnet18", weights="hub").state_dict()
    assert asked == [("resnet18.tv_in1k", True)]
    assert torch.equal(state["firstconv.weight"], safetensors.torch.load_file(files["resnet18"])["conv1.weight"])


def test_a_hub_that_cannot_be_reached_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision_guard.ensure()
    import timm

    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("no route\nto the hub")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(UserError, match=r"the hub gave no weights for 'vgg16' \(no route to the hub\)"):
        network_of(architecture="unet_vgg_4th", weights="hub")


def test_auto_says_aloud_that_it_found_none() -> None:
    with pytest.warns(UserWarning, match="'resnet18' starts from random weights") as caught:
        network_of(architecture="linknet_deconv", encoder="resnet18", width=0.125, weights="auto")
    assert len(caught) == 1
    network_of(architecture="unet_scratch", width=0.125, weights="auto")  # has no encoder to warn of


def test_files_that_do_not_fit_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    settings = NetworkSettings(architecture="linknet_deconv", encoder="resnet18", weights="none")
    network = build_network(settings, 1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    stored = safetensors.torch.load_file(files["resnet18"])
    path = tmp_path / "w.safetensors"
    for changed, message in (
        ({key: tensor for key, tensor in stored.items() if key != "layer1.0.bn1.bias"}, "lacks 'layer1.0.bn1.bias'"),
        ({**stored, "layer5.bias": torch.zeros(1)}, "holds the unknown 'layer5.bias'"),
        ({**stored, "bn1.bias": torch.zeros(7)}, r"expected 'bn1.bias' of shape \[64\], found \[7\]"),
    ):
        safetensors.torch.save_file(changed, path)
        with pytest.raises(BadFile, match=message):
            load_classic(network, settings, Source(kind="file", path=path))
    assert same(network.state_dict(), before)


def test_pretrained_weights_need_the_whole_width(files: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"network\.width: expected 1 with pretrained weights, found 0\.1"):
        network_of(architecture="ternausnet", encoder="vgg16", weights=str(files["vgg16"]), width=0.1)


def network_of(**values: Any) -> nn.Module:
    return build_network(NetworkSettings.model_validate(values), 1)


NARROW = {"architecture": "unet_dilated", "weights": "none", "width": 0.1}


def segmenter(values: dict[str, Any], task: Task = CAR, order: str = "rgb") -> Segmenter:
    torch.manual_seed(1)
    return build_segmenter(
        NetworkSettings.model_validate(values),
        task=task,
        policy=InputPolicy(multiple=32),
        normalisation=Normalisation.model_validate({"mean": (0.5,) * 3, "std": (0.2,) * 3, "channel_order": order}),
    )


@pytest.mark.parametrize(
    "values", [NARROW, {"architecture": "fpn", "encoder": "mobilenetv3_small_050", "weights": "none", "width": 0.25}]
)
def test_a_network_starts_from_a_bundle(tmp_path: Path, values: dict[str, Any]) -> None:
    path = tmp_path / "first.safetensors"
    first = segmenter(values)
    save_bundle(path, first)
    torch.manual_seed(2)
    second = build_network(NetworkSettings.model_validate({**values, "weights": "auto", "bundle": str(path)}), 1)
    assert same(second.state_dict(), first.network.state_dict())
    assert second.training and all(parameter.requires_grad for parameter in second.parameters())


def test_a_bundle_of_a_continued_network_needs_the_first_one_no_more(tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    save_bundle(first, segmenter(NARROW))
    save_bundle(second, segmenter({**NARROW, "bundle": str(first)}))
    first.unlink()
    assert load_bundle(second).network_settings.bundle == str(first)


def test_a_continued_network_keeps_its_order_of_channels(tmp_path: Path) -> None:
    path = tmp_path / "bgr.safetensors"
    save_bundle(path, segmenter(NARROW, order="bgr"))
    continued = segmenter({**NARROW, "bundle": str(path)})
    assert continued.normalisation.channel_order == "bgr"
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    expected = (images.flip(1).float() / 255 - 0.5) / 0.2
    torch.testing.assert_close(continued.normalise(images), expected)
    moved = continued.to("cpu", channels_last=True).normalise(images)
    assert moved.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(moved, expected)


@pytest.mark.parametrize(
    ("values", "task", "message"),
    [
        (NARROW, TWO, r"its head gives 1 map\(s\) \(car\), expected 2 map\(s\)"),
        ({**NARROW, "auxiliary_maps": 1}, CAR, r"expected 1 map\(s\) and 1 auxiliary"),
        (
            {**NARROW, "architecture": "unet_scratch"},
            CAR,
            "its network is unet_dilated over none, expected unet_scratch",
        ),
        ({**NARROW, "width": 0.2}, CAR, r"expected 'bottleneck_path\.0\.conv\.bias' as F32 \[70\], found F32 \[35\]"),
        ({**NARROW, "channels": 4}, CAR, r"expected 'down_path\.0\.block\.0\.conv\.weight' as F32 \[4, 4, 3, 3\]"),
    ],
)
def test_a_bundle_of_another_network_is_refused(
    tmp_path: Path, values: dict[str, Any], task: Task, message: str
) -> None:
    path = tmp_path / "other.safetensors"
    save_bundle(path, segmenter(NARROW))
    with pytest.raises(UserError, match=message) as caught:
        build_network(NetworkSettings.model_validate({**values, "bundle": str(path)}), task.num_maps)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_bundle_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="cannot be read"):
        build_network(NetworkSettings.model_validate({**NARROW, "bundle": str(tmp_path / "gone")}), 1)
    (tmp_path / "text").write_text("no bundle at all")
    with pytest.raises(BadFile, match="expected a maskloom bundle"):
        build_network(NetworkSettings.model_validate({**NARROW, "bundle": str(tmp_path / "text")}), 1)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
