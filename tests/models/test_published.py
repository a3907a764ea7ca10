"""The published checkpoints: names, shapes and counts; and what becomes of tensors that fit, and of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskloom.data.input_policy import place
from maskloom.errors import UserError
from maskloom.models.bundle import load_bundle, save_bundle
from maskloom.models.decoders import build_network
from maskloom.models.encoders import NetworkSettings, multiple_of
from maskloom.models.published import PUBLISHED, PublishedNetwork, expected_shapes, load_published
from maskloom.models.segmenter import Normalisation

LISTED: dict[str, Any] = json.loads(Path(__file__).with_name("published_state_dicts.json").read_text(encoding="utf-8"))
"""Names and shapes of the published state dicts, and their numbers of parameters."""

SMALL = "lyakaap-dilated-unet"
"""The one with the fewest weights."""


def meta_network(name: str) -> nn.Module:
    with torch.device("meta"):
        return build_network(PUBLISHED[name].settings, PUBLISHED[name].task.num_maps)


def drawn(name: str) -> dict[str, Tensor]:
    """Returns a random checkpoint; VGG's convolutions have equal values under both names."""
    torch.manual_seed(0)
    tensors: dict[str, Tensor] = {}
    places: dict[int, Tensor] = {}
    for key, tensor in meta_network(name).state_dict(keep_vars=True).items():
        if key.endswith("num_batches_tracked"):
            tensors[key] = torch.tensor(7)
        else:
            tensors[key] = places.setdefault(id(tensor), torch.rand(tensor.shape) * 0.1)
    return tensors


def test_every_listed_network_is_there_and_no_other() -> None:
    assert set(PUBLISHED) == set(LISTED)


@pytest.mark.parametrize("name", LISTED)
def test_names_shapes_and_counts_are_the_published_ones(name: str) -> None:
    network = meta_network(name)
    found = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    assert list(found.items()) == list(LISTED[name]["state_dict"].items())
    assert sum(parameter.numel() for parameter in network.parameters()) == LISTED[name]["parameters"]


@pytest.mark.parametrize("name", LISTED)
def test_each_is_fed_as_its_weights_allow(name: str) -> None:
    published = PUBLISHED[name]
    assert published.settings.weights == "none"
    assert published.settings.channels == len(published.normalisation.mean) == 3
    assert published.policy.multiple % multiple_of(published.settings) == 0
    street = name.startswith("signate")
    placement = place((1216, 1936) if street else (1280, 1918), published.policy)
    expected = (1216, 1984) if street else (1024, 1024) if published.policy.mode == "resize" else (1280, 1920)
    assert placement.padded == expected
    head = list(LISTED[name]["state_dict"].values())[-1]
    assert head == [published.task.num_maps]
    assert published.task.kind == ("multiclass" if street else "binary")


def test_a_checkpoint_becomes_a_segmenter_and_a_bundle(tmp_path: Path) -> None:
    tensors = {key: tensor.half() for key, tensor in drawn(SMALL).items()}
    segmenter = load_published(SMALL, tensors)
    state = segmenter.network.state_dict()
    assert not segmenter.network.training
    assert all(torch.equal(state[key], tensors[key].float()) for key in state)
    save_bundle(tmp_path / "b.safetensors", segmenter)
    loaded = load_bundle(tmp_path / "b.safetensors")
    images = torch.randint(0, 256, (1, 3, 8, 16), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(loaded.logits(images), segmenter.logits(images))
        bgr = images.flip(1).float() / 255  # as OpenCV gave them to the published network
        torch.testing.assert_close(segmenter.logits(images), segmenter.network(bgr))
    assert loaded.normalisation == segmenter.normalisation and loaded.task == segmenter.task


def test_loading_draws_no_random_numbers() -> None:
    tensors = drawn(SMALL)
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    load_published(SMALL, tensors)
    assert torch.equal(torch.rand(2), expected)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> str:
    """A published network of 1/16 the width under a name of its own: names as published, loading in no time."""
    settings = NetworkSettings(architecture="linknet_deconv", weights="none", width=0.0625)
    whole = PUBLISHED["albu-linknet34"]
    small = PublishedNetwork(settings=settings, normalisation=whole.normalisation, policy=whole.policy, task=whole.task)
    monkeypatch.setitem(PUBLISHED, "narrow", small)
    return "narrow"


def test_counters_that_old_checkpoints_lack_start_at_zero(narrow: str) -> None:
    tensors = drawn(narrow)
    old = {key: tensor for key, tensor in tensors.items() if not key.endswith("num_batches_tracked")}
    assert len(old) < len(tensors)
    state = load_published(narrow, old).network.state_dict()
    assert int(state["firstbn.num_batches_tracked"]) == 0
    assert int(load_published(narrow, tensors).network.state_dict()["firstbn.num_batches_tracked"]) == 7


def test_both_names_of_a_convolution_are_one_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = NetworkSettings(architecture="ternausnet", weights="none", width=0.0625)
    whole = PUBLISHED["ternaus-unet11"]
    small = PublishedNetwork(settings=settings, normalisation=whole.normalisation, policy=whole.policy, task=whole.task)
    monkeypatch.setitem(PUBLISHED, "narrow", small)
    tensors = drawn("narrow")
    network = load_published("narrow", tensors).network
    assert network.get_parameter("conv1.weight") is network.get_parameter("encoder.0.weight")
    tensors["conv1.weight"] = tensors["conv1.weight"] + 1
    with pytest.raises(UserError, match=r"encoder\.0\.weight and conv1\.weight are one tensor .* found different"):
        load_published("narrow", tensors)


def test_an_unknown_name_gets_the_closest_one() -> None:
    with pytest.raises(UserError, match="did you mean 'ternaus-unet11'"):
        load_published("ternaus-unet-11", {})


def test_tensors_of_another_network_say_whose_they_are() -> None:
    tensors = {key: torch.empty(shape, device="meta") for key, shape in expected_shapes("ternausnet-unet16").items()}
    with pytest.raises(UserError) as caught:
        load_published("ternaus-unet11", tensors)
    message = str(caught.value)
    assert "they fit ternausnet-unet16: use that name" in message and "\n" not in message
    assert "50 missing: encoder.3.weight" in message and "70 unknown: encoder.2.weight" in message


def missing(tensors: dict[str, Tensor]) -> None:
    del tensors["last.bias"]


def unknown(tensors: dict[str, Tensor]) -> None:
    tensors.update({f"extra{number}": torch.zeros(1) for number in range(22)})


def reshaped(tensors: dict[str, Tensor]) -> None:
    tensors["last.weight"] = torch.zeros(5, 44, 1, 1)


def broken(tensors: dict[str, Tensor]) -> None:
    tensors["last.bias"] = torch.tensor([float("nan")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (missing, r"do not fit lyakaap-dilated-unet: 1 missing: last\.bias; they fit no published network"),
        (unknown, r"22 unknown: extra0, extra1, .*, extra19 and 2 more"),
        (reshaped, r"1 of another shape: last\.weight of 5×44×1×1 instead of 1×44×1×1"),
        (broken, r"last\.bias holds NaN or infinite weights"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change: Any, message: str) -> None:
    tensors = {key: torch.zeros(()).expand(shape) for key, shape in expected_shapes(SMALL).items()}
    change(tensors)
    with pytest.raises(UserError, match=message) as caught:
        load_published(SMALL, tensors)
    assert "\n" not in str(caught.value)


def test_the_order_of_channels_is_part_of_the_normalisation() -> None:
    with pytest.raises(ValueError, match="at least 3 channels"):
        Normalisation(mean=(0.5,), std=(0.5,), channel_order="bgr")
