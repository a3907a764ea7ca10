"""The door ``maskloom import-weights``: a checkpoint becomes a bundle of the same function, a bad one a line."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import maskloom
from maskloom.api import import_weights
from maskloom.cli import main
from maskloom.models.bundle import read_extra
from maskloom.models.decoders import build_network
from maskloom.models.published import PUBLISHED

SMALLEST = "lyakaap-dilated-unet"

Import = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Import:
    """Runs the command; returns the exit code, what it printed, and its errors."""

    def run(file: Path, name: str = SMALLEST, out: Path | None = None) -> tuple[int, str, str]:
        arguments = ["import-weights", file, "--as", name, "--out", out or tmp_path / "out.safetensors"]
        monkeypatch.setattr("sys.argv", ["maskloom", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return code, printed.out, printed.err

    return run


def published(name: str) -> nn.Module:
    torch.manual_seed(1)
    settings = PUBLISHED[name].settings
    network = build_network(settings, PUBLISHED[name].task.num_maps).eval()
    for buffer_name, buffer in network.named_buffers():
        if buffer_name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return network


@pytest.fixture(scope="module")
def smallest() -> nn.Module:
    return published(SMALLEST)


@pytest.fixture(scope="module")
def checkpoint(smallest: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "net.pth"
    torch.save(smallest.state_dict(), path)
    return path


def whole_module(network: nn.Module, path: Path) -> None:
    """A module in the stream format whose classes are of a package that is not there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch looks for the sources of classes
        torch.save(nn.DataParallel(network), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert b"maskloom.models." in content
    path.write_bytes(content.replace(b"maskloom.models.", b"vanished.models."))


WRITERS: dict[str, Callable[[nn.Module, Path], Any]] = {
    "zip": lambda net, path: torch.save(net.state_dict(), path),
    "stream": lambda net, path: torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False),
    "nested": lambda net, path: torch.save({"epoch": 3, "model": nn.DataParallel(net).state_dict()}, path),
    "module": whole_module,
    "safetensors": lambda net, path: safetensors.torch.save_file(
        {name: value.clone() for name, value in net.state_dict().items()}, path
    ),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_the_bundle_computes_the_same_logits(tmp_path: Path, call: Import, smallest: nn.Module, writer: str) -> None:
    WRITERS[writer](smallest, tmp_path / "net.pth")
    code, out, errors = call(tmp_path / "net.pth")
    assert (code, out.strip(), errors) == (0, str(tmp_path / "out.safetensors"), "")
    segmenter = maskloom.load_bundle(tmp_path / "out.safetensors")
    images = torch.rand(1, 3, 32, 48)
    with torch.inference_mode():
        torch.testing.assert_close(segmenter.network(images), smallest(images), rtol=1e-4, atol=1e-6)
    assert (segmenter.task, segmenter.policy) == (PUBLISHED[SMALLEST].task, PUBLISHED[SMALLEST].policy)


def test_an_import_says_what_it_was_and_can_be_repeated(tmp_path: Path, checkpoint: Path) -> None:
    out = tmp_path / "folder" / "out.safetensors"
    assert import_weights(checkpoint, name=SMALLEST, out=out) == out
    content = out.read_bytes()
    assert read_extra(out)["imported"]["name"] == SMALLEST
    import_weights(checkpoint, name=SMALLEST, out=out)
    assert out.read_bytes() == content and [*out.parent.iterdir()] == [out]


def refused(result: tuple[int, str, str], *parts: str) -> None:
    code, out, errors = result
    assert code == 2 and out == "" and len(errors.splitlines()) == 1
    for part in parts:
        assert part in errors


def test_unknown_names_are_answered_with_the_closest_and_all(call: Import, checkpoint: Path) -> None:
    refused(call(checkpoint, "lyakap-dilated-unet"), f"did you mean {SMALLEST!r}?", *PUBLISHED)
    refused(call(checkpoint, "zebra"), *PUBLISHED)


def test_checkpoints_of_another_network_are_refused(tmp_path: Path, call: Import, checkpoint: Path) -> None:
    refused(call(checkpoint, "albu-linknet34"), str(checkpoint), "missing", "firstconv.weight", SMALLEST)
    assert not (tmp_path / "out.safetensors").exists()


def changed(smallest: nn.Module, path: Path, **tensors: torch.Tensor | None) -> Path:
    state = {**smallest.state_dict(), **tensors}
    torch.save({name: value for name, value in state.items() if value is not None}, path)
    return path


def test_every_kind_of_misfit_is_named(tmp_path: Path, call: Import, smallest: nn.Module) -> None:
    first, second, third = [*smallest.state_dict()][:3]
    shape = smallest.state_dict()[second].shape
    tensors = {first: None, second: torch.zeros(*shape, 2), "zebra.weight": torch.zeros(1)}
    refused(call(changed(smallest, tmp_path / "net.pth", **tensors)), first, second, "zebra.weight")
    bad = smallest.state_dict()[third].clone()
    bad.view(-1)[0] = torch.nan
    refused(call(changed(smallest, tmp_path / "net.pth", **{third: bad})), third, "NaN")
    assert not (tmp_path / "out.safetensors").exists()


def test_what_import_did_not_write_is_not_overwritten(tmp_path: Path, call: Import, checkpoint: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    refused(call(checkpoint, out=tmp_path / "notes.txt"), "choose another name")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    content = checkpoint.read_bytes()
    refused(call(checkpoint, out=checkpoint), "choose another name")
    assert checkpoint.read_bytes() == content
    refused(call(checkpoint, out=tmp_path), "choose another name")


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("place", ["alone", "pickle", "beside", "as a weight", "stream"])
def test_hostile_files_run_nothing(tmp_path: Path, call: Import, smallest: nn.Module, place: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "net.pth"
    hostile = Hostile(marker)
    state = smallest.state_dict() if place == "beside" else {}
    value = {
        "alone": hostile,
        "beside": {"state_dict": state, "extra": hostile},
        "as a weight": {"out.weight": hostile},
        "stream": {"state_dict": hostile},
    }.get(place)
    if place == "pickle":
        path.write_bytes(pickle.dumps(hostile))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=place != "stream")
    refused(call(path), str(path), "nothing of it was run", "do not trust this file")
    assert not marker.exists() and not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04cut", b"\x80\x02cut"])
def test_other_files_are_refused(tmp_path: Path, call: Import, content: bytes) -> None:
    (tmp_path / "net.pth").write_bytes(content)
    refused(call(tmp_path / "net.pth"), "net.pth")
    refused(call(tmp_path / "absent.pth"), "no such file")
