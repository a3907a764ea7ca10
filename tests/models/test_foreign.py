"""Checkpoints of every kind become the tensors that ``state_dict`` had given; damaged ones are refused in one line."""

from __future__ import annotations

import importlib
import pickle
import struct
import sys
import types
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch_writers import Call, Outside, dumps, stored, tensor, write_stream, write_tar, write_zip

from maskloom.errors import BadFile
from maskloom.models.foreign import MAX_GROWTH, read_foreign

SIX = np.arange(6, dtype=np.float32)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.ConvTranspose2d(4, 2, 2, bias=False), nn.ReLU())
    )


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def refused(path: Path, message: str) -> None:
    with pytest.raises(BadFile, match=message) as caught:
        read_foreign(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700 + len(str(path))


WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "zip": torch.save,
    "stream": lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
    "stream, protocol 4": lambda value, path: torch.save(
        value, path, _use_new_zipfile_serialization=False, pickle_protocol=4
    ),
    "zip, protocol 5": lambda value, path: torch.save(value, path, pickle_protocol=5),
}
CONTENTS: dict[str, Callable[[nn.Module], Any]] = {
    "state dict": lambda net: net.state_dict(),
    "plain dictionary": lambda net: dict(net.state_dict()),
    "parameters": lambda net: OrderedDict(net.state_dict(keep_vars=True)),
    "parallel": lambda net: nn.DataParallel(net).state_dict(),
    "twice parallel": lambda net: nn.DataParallel(nn.DataParallel(net)).state_dict(),
    "module": lambda net: net,
    "parallel module": nn.DataParallel,
    "checkpoint": lambda net: {
        "epoch": 3,
        "best": torch.tensor(0.25),
        "optimizer": {
            "state": {0: {"step": 3, "exp_avg": torch.ones(2)}},
            "param_groups": [{"lr": 0.1, "params": [0]}],
        },
        "state_dict": nn.DataParallel(net).state_dict(),
    },
    "model": lambda net: {"model": net.state_dict(), "step": 7},
    "module below model": lambda net: {"model": net, "args": types.SimpleNamespace(lr=0.1)},
    "wrapped twice": lambda net: {"net": {"model_state_dict": net.state_dict()}},
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("content", CONTENTS)
def test_the_tensors_are_those_of_the_state_dict(tmp_path: Path, writer: str, content: str) -> None:
    net = network()
    WRITERS[writer](CONTENTS[content](net), tmp_path / "net.pth")
    assert_equal(read_foreign(tmp_path / "net.pth"), net.state_dict())


def test_safetensors(tmp_path: Path) -> None:
    state = nn.DataParallel(network()).state_dict()
    safetensors.torch.save_file(state, tmp_path / "net.safetensors")
    found = read_foreign(tmp_path / "net.safetensors")
    assert_equal(dict(sorted(found.items())), dict(sorted(network().state_dict().items())))


@pytest.mark.parametrize("writer", [*WRITERS, "safetensors"])
def test_floats_become_float32_and_counters_stay(tmp_path: Path, writer: str) -> None:
    values = [0.5, -2.0, 3.0]  # exact in every type
    state = {str(dtype): torch.tensor(values, dtype=dtype) for dtype in (torch.half, torch.bfloat16, torch.double)}
    state |= {"count": torch.tensor(7), "mask": torch.tensor([True, False]), "bytes": torch.tensor([0, 255]).byte()}
    WRITERS.get(writer, safetensors.torch.save_file)(state, tmp_path / "net")
    found = read_foreign(tmp_path / "net")
    for name in ("torch.float16", "torch.bfloat16", "torch.float64"):
        assert found[name].dtype == torch.float32 and found[name].tolist() == values
    for name in ("count", "mask", "bytes"):
        assert_equal({name: found[name]}, {name: state[name]})


@pytest.mark.parametrize("writer", ["zip", "stream"])
def test_tensors_that_share_numbers_are_read_alike_and_apart(tmp_path: Path, writer: str) -> None:
    numbers = torch.arange(24.0).reshape(4, 6)
    state = {
        "whole": numbers,
        "turned": numbers.T,
        "part": numbers[1:3, ::2],
        "one": numbers[2, 5],
        "empty": numbers[:0],
    }
    WRITERS[writer](state, tmp_path / "net")
    found = read_foreign(tmp_path / "net")
    assert_equal(found, state)
    assert all(value.is_contiguous() for value in found.values())
    found["whole"].zero_()
    assert found["one"] == 17.0


def test_buffers_that_are_not_saved_are_left_out(tmp_path: Path) -> None:
    net = network()
    net.register_buffer("grid", torch.ones(3), persistent=False)
    net.register_buffer("scale", torch.ones(2))
    net.register_parameter("absent", None)
    torch.save(net, tmp_path / "net.pth")
    assert_equal(read_foreign(tmp_path / "net.pth"), net.state_dict())


@pytest.mark.parametrize("writer", ["zip", "stream"])
def test_modules_of_classes_that_do_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str) -> None:
    folder = tmp_path / "their"
    folder.mkdir()
    (folder / "their_unet.py").write_text(
        "from torch import nn\n\n\nclass UNet(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.first = nn.Conv2d(3, 2, 3)\n        self.again = self.first\n        self.sizes = {(2, 3)}\n\n"
        "    def __setstate__(self, state):\n        raise AssertionError('was run')\n"
    )
    monkeypatch.syspath_prepend(folder)
    net = importlib.import_module("their_unet").UNet()
    WRITERS[writer](nn.DataParallel(net), tmp_path / "net.pth")
    monkeypatch.undo()
    del sys.modules["their_unet"]
    assert "their_unet" not in sys.modules
    found = read_foreign(tmp_path / "net.pth")
    assert_equal(found, net.state_dict())
    assert list(found) == ["first.weight", "first.bias", "again.weight", "again.bias"]


class OldPickler(pickle.Pickler):
    """Writes parameters and tensors as torch 0.2 and 0.3 did."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, nn.Parameter):
            return nn.Parameter, (value.data,), (True, False, OrderedDict())
        if isinstance(value, Tensor):
            args = (value._typed_storage(), value.storage_offset(), tuple(value.shape), value.stride())
            return torch._utils._rebuild_tensor, args
        return NotImplemented


def test_modules_as_torch_0_3_wrote_them(tmp_path: Path) -> None:
    net = network()
    old = types.ModuleType("old_pickle")
    old.__dict__.update(Pickler=OldPickler, dump=pickle.dump)
    torch.save(net, tmp_path / "net.pth", pickle_module=old, _use_new_zipfile_serialization=False)
    assert b"_rebuild_tensor_v2" not in (tmp_path / "net.pth").read_bytes()
    assert_equal(read_foreign(tmp_path / "net.pth"), net.state_dict())


def test_variables_as_torch_0_1_wrote_them(tmp_path: Path) -> None:
    data = tensor(stored("0", 6, torch.FloatStorage, None))
    kept = {"old": Call(nn.Parameter, (), (data, None, OrderedDict(), True, False)),
            "set": Call(torch.FloatTensor, (), (stored("0", 6, torch.FloatStorage, None), 2, (2,), (3,)))}  # fmt: skip
    found = read_foreign(write_stream(tmp_path / "net.pth", kept, {"0": SIX}))
    assert_equal(found, {"old": torch.arange(6.0).reshape(2, 3), "set": torch.tensor([2.0, 5.0])})


def test_views_of_storages(tmp_path: Path) -> None:
    value = {"a": tensor(stored("r", 6, torch.FloatStorage, ("v", 2, 4)), 1, (3,), (1,)),
             "b": tensor(stored("r", 6, torch.FloatStorage, None), 0, (2,), (5,))}  # fmt: skip
    found = read_foreign(write_stream(tmp_path / "net.pth", value, {"r": SIX}))
    assert_equal(found, {"a": torch.tensor([3.0, 4.0, 5.0]), "b": torch.tensor([0.0, 5.0])})


def test_dictionaries_as_python_2_wrote_them(tmp_path: Path) -> None:
    """Byte strings for names, and an ordered dictionary that is called with a list of its pairs."""
    pairs = dumps([["conv.weight", tensor(stored("0", 6, torch.FloatStorage, None))]])
    pairs = pairs.replace(b"X\x0b\x00\x00\x00conv.weight", b"U\x0bconv.weight")
    assert b"U\x0bconv" in pairs
    value = b"\x80\x02ccollections\nOrderedDict\n" + pairs[2:-1] + b"\x85R."
    found = read_foreign(write_stream(tmp_path / "net.pth", value, {"0": SIX}))
    assert_equal(found, {"conv.weight": torch.arange(6.0).reshape(2, 3)})


def test_tar_files_of_torch_0_1(tmp_path: Path) -> None:
    arrays = {"first.weight": SIX.reshape(2, 3), "turned": SIX.reshape(2, 3).T, "one": SIX[:1].reshape(())}
    value = OrderedDict((name, Outside(str(number))) for number, name in enumerate(arrays))
    path = write_tar(tmp_path / "net.pth.tar", arrays, value)
    expected = torch.load(path, weights_only=False)
    assert_equal(read_foreign(path), expected)
    assert_equal(expected, {name: torch.from_numpy(array) for name, array in arrays.items()})


def test_the_order_of_wrappers_decides_and_is_told(tmp_path: Path) -> None:
    torch.save({"weights": {"a": torch.ones(1)}, "model": {"a": torch.zeros(1)}, "net": {}}, tmp_path / "net.pth")
    with pytest.warns(UserWarning, match="took the weights below 'model', not those below 'weights'"):
        found = read_foreign(tmp_path / "net.pth")
    assert_equal(found, {"a": torch.zeros(1)})


def test_only_what_is_named_is_read(tmp_path: Path) -> None:
    """An optimiser's numbers may be NaN: no one asked for them."""
    state = {"weight": torch.ones(2)}
    torch.save({"state_dict": state, "optimizer": {"state": {0: torch.full((3,), torch.nan)}}}, tmp_path / "net.pth")
    assert_equal(read_foreign(tmp_path / "net.pth"), state)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("writer", ["zip", "stream"])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, writer: str, value: float) -> None:
    state = network().state_dict() | {"0.bias": torch.tensor([0.0, value])}
    WRITERS[writer](state, tmp_path / "net.pth")
    refused(tmp_path / "net.pth", r"'0\.bias' holds NaN or infinite")


def test_weights_beyond_float32_are_refused_by_name(tmp_path: Path) -> None:
    torch.save({"large": torch.tensor([1e300], dtype=torch.float64)}, tmp_path / "net.pth")
    refused(tmp_path / "net.pth", "'large' holds NaN or infinite")


NOT_WEIGHTS: dict[str, tuple[Any, str]] = {
    "number": (3, "found a int"),
    "one tensor": (torch.ones(2), "expected a module, or named tensors"),
    "list": ([torch.ones(2)], "found a list"),
    "empty": ({}, "a dictionary without named entries"),
    "numbered": ({0: torch.ones(2)}, "a dictionary without named entries"),
    "parts": ({"generator": {"a": torch.ones(2)}}, "a dictionary with the keys 'generator'"),
    "mixed": ({"a": torch.ones(2), "epoch": 3}, "expected tensors only, found 'epoch', a int"),
    "sparse": ({"a": torch.ones(2).to_sparse()}, "found a dictionary with the keys 'a'"),
    "complex": ({"a": torch.ones(2, dtype=torch.complex64)}, "'a' is of the type torch.complex64"),
    "a class": (nn.Conv2d, "the name 'torch.nn.modules.conv.Conv2d'"),
    "no tensors": (nn.ReLU(), "what 'torch.nn.modules.activation.ReLU' would make"),
    "line breaks": ({"a\nb\x1b[2J": 3}, r"the keys 'a\\nb\\x1b\[2J'"),
    "odd name": ({"a\n": torch.ones(1)}, r"a tensor with the name 'a\\n'"),
    "long name": ({"a" * 501: torch.ones(1)}, "a tensor with the name 'aaa"),
    "negated": ({"a": torch._neg_view(torch.ones(2))}, "conjugated or negated"),
}


@pytest.mark.parametrize("name", NOT_WEIGHTS)
def test_what_holds_no_named_tensors_is_refused(tmp_path: Path, name: str) -> None:
    value, message = NOT_WEIGHTS[name]
    torch.save(value, tmp_path / "net.pth")
    refused(tmp_path / "net.pth", message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found something else"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "found something else"),
        (pickle.dumps({"a": 1}), "a pickle that torch.save did not write"),
        (pickle.dumps(True), "a pickle that torch.save did not write"),
        (dumps(0x1950A86A20F9469CFC6C) + dumps(1002), "a torch file of another version"),
        (struct.pack("<Q", 2) + b"{}", "expected named tensors, found none"),
        (
            struct.pack("<Q", 60) + b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
            "damaged or cut off",
        ),
        (b"PK\3\4" + bytes(100), "a zip archive that is damaged"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "other.pth").write_bytes(content)
    refused(tmp_path / "other.pth", message)


def test_paths_that_hold_no_file_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "absent.pth", "no such file")
    refused(tmp_path, "no such file")


def big_endian(path: Path, kind: str) -> Path:
    if kind == "zip":
        return write_zip(path, {"a": tensor(stored())}, {"0": SIX}, byteorder=b"big")
    write_stream(path, {"a": tensor(stored("0", 6, torch.FloatStorage, None))}, {"0": SIX})
    path.write_bytes(path.read_bytes().replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"))
    return path


@pytest.mark.parametrize("kind", ["zip", "stream"])
def test_other_byte_orders_are_refused(tmp_path: Path, kind: str) -> None:
    refused(big_endian(tmp_path / "net.pth", kind), "big-endian")


def test_torchscript_and_other_zips_are_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Conv2d(1, 1, 1)), tmp_path / "program.pt")
    refused(tmp_path / "program.pt", "TorchScript")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(tmp_path / "other.zip", "torch.save did not write")


SMALL_FILES: dict[str, Callable[[Path], Path]] = {
    "zip": lambda path: write_zip(path, {"a": tensor(stored())}, {"0": SIX}),
    "stream": lambda path: write_stream(path, {"a": tensor(stored("0", 6, torch.FloatStorage, None))}, {"0": SIX}),
    "tar": lambda path: write_tar(path, {"a": SIX}, {"a": Outside("0")}),
    "safetensors": lambda path: (safetensors.torch.save_file({"a": torch.arange(6.0)}, path), path)[1],
}


@pytest.mark.parametrize("kind", SMALL_FILES)
def test_files_cut_anywhere_are_refused(tmp_path: Path, kind: str) -> None:
    path = SMALL_FILES[kind](tmp_path / "whole")
    assert list(read_foreign(path)) == ["a"]
    content = path.read_bytes()
    content = content.rstrip(b"\0") if kind == "tar" else content  # a tar ends with blocks of nothing
    cut = tmp_path / "cut"
    for length in range(0, len(content), 3 if len(content) < 1000 else 31):
        cut.write_bytes(content[:length])
        with pytest.raises(BadFile):
            read_foreign(cut)


@pytest.mark.parametrize("kind", SMALL_FILES)
def test_files_with_wrong_bytes_are_read_or_refused(tmp_path: Path, kind: str) -> None:
    content = SMALL_FILES[kind](tmp_path / "whole").read_bytes()
    content = content[:3000]
    random = np.random.default_rng(0)
    path = tmp_path / "changed"
    for _ in range(200):
        changed = bytearray(content)
        for position in random.integers(0, len(content), random.integers(1, 4)):
            changed[position] = random.choice([0, 1, 127, 128, 255, *b"().RbQq", random.integers(256)])
        path.write_bytes(changed)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = read_foreign(path)
        except BadFile as error:
            assert "\n" not in str(error)
        else:
            assert all(isinstance(value, Tensor) and value.numel() <= 6 * MAX_GROWTH for value in found.values())


def test_a_reader_of_pieces_equals_torch(tmp_path: Path) -> None:
    """What the writers of these tests write is what torch reads (its zips also state a version)."""
    value, expected = {"a": tensor(stored())}, torch.arange(6.0).reshape(2, 3)
    assert torch.equal(torch.load(write_zip(tmp_path / "zip", value, {"0": SIX}, version=b"3"))["a"], expected)
    assert torch.equal(torch.load(SMALL_FILES["stream"](tmp_path / "stream"))["a"], expected)
