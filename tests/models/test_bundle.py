"""A bundle gives back the same logits, bit for bit, and refuses in one line whatever is not a bundle."""

from __future__ import annotations

import functools
import json
import pickle
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from maskloom.data.input_policy import InputPolicy
from maskloom.errors import BadFile, UserError
from maskloom.models.bundle import is_filled_by_its_state, is_sealed_bundle, load_bundle, read_extra, save_bundle
from maskloom.models.decoders import build_network
from maskloom.models.encoders import NetworkSettings
from maskloom.models.segmenter import Normalisation, Segmenter, build_segmenter
from maskloom.records import Task

THREE = Task(kind="multiclass", classes=("Himmel", "Straße", "車"))


def small(encoder: str = "mobilenetv3_small_050", channels: int = 3) -> Segmenter:
    torch.manual_seed(0)
    settings = NetworkSettings(architecture="linknet", encoder=encoder, weights="none", channels=channels)
    fresh = build_segmenter(
        settings,
        task=THREE,
        policy=InputPolicy(mode="window", size=(64, 96), overlap=0.5),
        normalisation=Normalisation(mean=(0.4,) * channels, std=(0.2,) * channels, scale=65535.0),
    )
    fresh.logits(torch.randint(0, 60000, (2, channels, 64, 64)).to(torch.uint16))  # moves the batch statistics
    return fresh


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "last.safetensors"
    save_bundle(path, small(), {"member": "unet", "fold": 2})
    return path


@pytest.mark.parametrize(("encoder", "channels"), [("mobilenetv3_small_050", 8), ("mit_b0", 3)])
def test_the_same_logits_bit_for_bit(tmp_path: Path, encoder: str, channels: int) -> None:
    original = small("resnet18" if encoder == "mit_b0" else encoder, channels)
    if encoder == "mit_b0":  # cannot be built without memory, and does not fit LinkNet
        settings = NetworkSettings(architecture="segformer", encoder=encoder, weights="none")
        original = build_segmenter(
            settings, task=THREE, policy=InputPolicy(), normalisation=Normalisation(mean=(0.5,) * 3, std=(0.5,) * 3)
        )
    save_bundle(tmp_path / "a.safetensors", original)
    images = torch.randint(0, 256, (2, channels, 64, 32), dtype=torch.uint8)
    loaded = load_bundle(tmp_path / "a.safetensors")
    assert not loaded.network.training
    with torch.inference_mode():
        assert torch.equal(loaded.logits(images), original.eval().logits(images))
    for name in ("normalisation", "policy", "task", "network_settings"):
        assert getattr(loaded, name) == getattr(original, name)


@pytest.mark.parametrize("encoder", ["mobilenetv3_small_050", "resnet18", "mobilenet_v2"])
def test_a_network_that_its_weights_fill_is_built_once(
    tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, built = small(encoder), []

    def build(settings: NetworkSettings, num_maps: int) -> torch.nn.Module:
        built.append(torch.empty(0).device.type)
        return build_network(settings, num_maps)

    monkeypatch.setattr("maskloom.models.bundle.build_network", build)
    save_bundle(tmp_path / "a.safetensors", original)
    loaded = load_bundle(tmp_path / "a.safetensors")
    assert built == ["meta"], "drawing first weights takes longer than all the rest"
    assert all(torch.equal(loaded.network.state_dict()[name], value) for name, value in state_of(original).items())
    assert {name: p.requires_grad for name, p in loaded.network.named_parameters()} == {
        name: p.requires_grad for name, p in original.network.named_parameters()
    }


def state_of(segmenter: Segmenter) -> dict[str, torch.Tensor]:
    return segmenter.network.state_dict()


class Holding(torch.nn.Module):
    """A layer beside whose weight lies what a test puts there."""

    def __init__(self, **held: Any) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        for name, value in held.items():
            setattr(self, name, value)


def with_a_table() -> torch.nn.Module:
    network = torch.nn.Linear(2, 2)
    network.register_buffer("table", torch.arange(3), persistent=False)
    return network


def with_a_shared_weight() -> torch.nn.Module:
    network = Holding(other=torch.nn.Linear(2, 2))
    network.other.weight = network.layer.weight
    return network


def with_a_shared_layer() -> torch.nn.Module:
    network = Holding()
    network.again = network.layer
    return network


@pytest.mark.parametrize(
    ("make", "is_filled"),
    [
        (Holding, True),
        (lambda: Holding(sizes=(3, [4], {"a": torch.float32}), act=torch.nn.functional.relu), True),
        (with_a_shared_layer, True),
        (with_a_shared_weight, False),
        (with_a_table, False),
        (lambda: Holding(grid=torch.ones(2)), False),
        (lambda: Holding(tables=[{"deep": (torch.ones(2),)}]), False),
        (lambda: Holding(half=functools.partial(torch.mul, torch.ones(2))), False),
        (lambda: Holding(act=lambda x: x * 2), False),
        (lambda: Holding(device=torch.device("meta")), False),
    ],
)
def test_a_network_is_filled_by_its_state_if_it_holds_no_other_tensors(
    make: Callable[[], torch.nn.Module], is_filled: bool
) -> None:
    assert is_filled_by_its_state(make()) is is_filled


def test_equal_segmenters_give_equal_bytes(tmp_path: Path, written: Path) -> None:
    again = small().to("cpu", channels_last=True)
    save_bundle(tmp_path / "again.safetensors", again, {"fold": 2, "member": "unet"})
    assert (tmp_path / "again.safetensors").read_bytes() == written.read_bytes()


def test_what_the_writer_added_is_found_again(written: Path) -> None:
    assert read_extra(written) == {"member": "unet", "fold": 2}


def test_loading_leaves_the_random_state_alone(written: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_bundle(written)
    assert torch.equal(torch.rand(3), expected)


def test_loading_needs_neither_weights_nor_a_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = small()
    for weights in ("hub", "installed", "/gone/weights.pth"):
        trained.network_settings = trained.network_settings.model_copy(update={"weights": weights})
        save_bundle(tmp_path / "b.safetensors", trained)

        def refuse(*_: Any, **__: Any) -> None:
            raise AssertionError("a connection was tried")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        assert load_bundle(tmp_path / "b.safetensors").network_settings.weights == weights


def test_a_diverged_network_is_not_written(tmp_path: Path) -> None:
    diverged = small()
    next(diverged.network.parameters()).data[0] = float("inf")
    with pytest.raises(UserError, match="the training diverged"):
        save_bundle(tmp_path / "c.safetensors", diverged)
    assert not list(tmp_path.iterdir())


def changed(path: Path, written: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Writes the bundle anew with another configuration or other tensors."""
    with safetensors.safe_open(written, framework="pt") as stream:
        config = json.loads(stream.metadata()["maskloom"])
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    change(config, tensors)
    path.write_bytes(safetensors.torch.save(tensors, metadata={"maskloom": json.dumps(config)}))


def first_weight(tensors: dict[str, Any]) -> str:
    return next(name for name in sorted(tensors) if name.endswith("weight"))


CHANGES: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], Any], str]] = {
    "version": (lambda config, _: config.update(version=2), "expected a bundle of version 1, found 2"),
    "list": (lambda config, _: config.update(network=[1]), "settings in the bundle: network"),
    "unknown key": (lambda config, _: config["policy"].update(sise=3), "did you mean 'size'"),
    "no task": (lambda config, _: config.pop("task"), "settings in the bundle: task"),
    "bad task": (lambda config, _: config["task"].update(kind="magic"), "expected a task with class names"),
    "bad encoder": (lambda config, _: config["network"].update(encoder="os.system"), "its network cannot be built"),
    "giant": (lambda config, _: config["network"].update(encoder="convnext_xxlarge"), "do not fit its settings"),
    "channels": (lambda config, _: config["network"].update(channels=4), "the normalisation has 3 channels"),
    "wide": (lambda config, _: config["network"].update(channels=10**9), "settings in the bundle: network"),
    "negative std": (lambda config, _: config["normalisation"].update(std=[-1, 1, 1]), "std must be above 0"),
    "classes": (lambda config, _: config["task"].update(classes=["a", "b"]), "do not fit its settings"),
    "missing": (lambda _, tensors: tensors.pop(first_weight(tensors)), "is missing"),
    "unknown": (lambda _, tensors: tensors.update(extra=torch.zeros(2)), "'extra' is unknown to the network"),
    "shape": (lambda _, tensors: tensors.update({first_weight(tensors): torch.zeros(2, 2)}), r"found F32 \[2, 2\]"),
    "dtype": (lambda _, tensors: tensors.update({first_weight(tensors): tensors[first_weight(tensors)].half()}), "F16"),
    "nan": (lambda _, tensors: tensors[first_weight(tensors)].view(-1)[:1].fill_(float("nan")), "holds NaN"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_bundles_that_do_not_hold_together_are_refused(tmp_path: Path, written: Path, name: str) -> None:
    change, message = CHANGES[name]
    path = tmp_path / "changed.safetensors"
    changed(path, written, change)
    refused(path, message)


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.target,)


def test_pickles_are_refused_unopened(tmp_path: Path) -> None:
    target, path = tmp_path / "made-by-a-pickle", tmp_path / "model.safetensors"
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps({"a": Hostile(target)}, protocol=protocol))
        refused(path, "found a pickle")
    path.write_bytes(pickle.dumps({"a": Hostile(target)}, protocol=0))
    refused(path, "another kind of file")
    torch.save({"a": Hostile(target)}, path)
    refused(path, "found a zip archive")
    assert not target.exists()


def header(claimed: int, text: bytes = b"", rest: bytes = b"") -> bytes:
    return struct.pack("<Q", claimed) + text + rest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a file of 0 bytes"),
        (b"\x10\x00", "a file of 2 bytes"),
        (header(10 * 2**30, b"{}"), "another kind of file"),
        (header(2**63, b"{}"), "another kind of file"),
        (header(5000, b"{}"), "cut off: expected a header of 5000 bytes"),
        (header(2, b"{}"), "without maskloom's settings"),
        (header(2, b"[]"), "without maskloom's settings"),
        (header(4, b"null"), "without maskloom's settings"),
        (header(6, b"\xff\xfe\x00\x01{}"), "without maskloom's settings"),
        (header(100_000, b"[" * 100_000), "without maskloom's settings"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "another kind of file"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    refused(path, message)


def test_foreign_safetensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path, metadata={"format": "pt"})
    refused(path, "without maskloom's settings")


@pytest.mark.parametrize("part", [0.999, 0.5, 0.01])
def test_cut_bundles_are_refused(tmp_path: Path, written: Path, part: float) -> None:
    content = written.read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(content[: int(len(content) * part)])
    refused(path, "cut off")


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_flipped_bit_of_a_weight_is_found(tmp_path: Path, written: Path, part: float) -> None:
    content = bytearray(written.read_bytes())
    content[int(part * len(content))] ^= 1
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadFile, match="damaged"):
        load_bundle(path)


def test_other_settings_than_were_written_are_found(tmp_path: Path, written: Path) -> None:
    path = tmp_path / "changed.safetensors"
    changed(path, written, lambda config, tensors: config["normalisation"].update(scale=254))
    with pytest.raises(BadFile, match="its checksum differs"):
        load_bundle(path)


def test_a_bundle_of_an_earlier_version_has_no_checksum(tmp_path: Path, written: Path) -> None:
    path = tmp_path / "earlier.safetensors"
    changed(path, written, lambda config, tensors: config.pop("crc32"))
    assert load_bundle(path).task == load_bundle(written).task
    assert is_sealed_bundle(written) and not is_sealed_bundle(path)


def test_tensors_that_claim_more_than_the_file_are_refused(tmp_path: Path, written: Path) -> None:
    content = written.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    entries = json.loads(content[8 : 8 + length])
    name = max((name for name in entries if name != "__metadata__"), key=lambda name: entries[name]["data_offsets"][1])
    entries[name]["data_offsets"][1] += 10 * 2**30
    text = json.dumps(entries).encode()
    path = tmp_path / "claims.safetensors"
    path.write_bytes(header(len(text), text, content[8 + length :]))
    refused(path, "damaged or cut off")


def test_no_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none.safetensors", "cannot be read")
    refused(tmp_path, "cannot be read")


def refused(path: Path, message: str) -> None:
    with pytest.raises(BadFile, match=message) as caught:
        load_bundle(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
