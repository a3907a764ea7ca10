"""Checkpoints that want to run commands, fill the memory or never end: nothing is run, and one line says why not."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch_writers import (
    MAGIC,
    SYSTEM,
    VERSION,
    Call,
    Outside,
    dumps,
    stored,
    tensor,
    write_stream,
    write_tar,
    write_zip,
)

from maskloom.errors import BadFile
from maskloom.models import foreign, inert_pickle
from maskloom.models.foreign import WRAPPERS, read_foreign

SIX = np.arange(6, dtype=np.float32)
GOOD = {"a": tensor(stored())}


def reason(path: Path) -> str:
    """Returns the one line of refusal; fails when the file is accepted, or refused slowly or by way of much memory."""
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(BadFile) as caught:
            read_foreign(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700 + len(str(path))
    assert peak < 16 * 2**20 + 8 * path.stat().st_size, f"{peak / 2**20:.0f} MiB"
    assert time.process_time() - began < 20
    return str(caught.value)


def text(value: bytes) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value


def call(module: bytes, name: bytes, argument: bytes) -> bytes:
    """The instructions that call a function of one text."""
    return b"c" + module + b"\n" + name + b"\n" + text(argument) + b"\x85R"


def programs(marker: Path) -> dict[str, bytes]:
    """Pickles that would make the marker if anything in them were done."""
    touch = f"touch '{marker}'".encode()
    make = f"open({str(marker)!r}, 'w').close()".encode()
    path = b"cpathlib\nPath\n" + text(str(marker).encode()) + b"\x85R"
    return {
        "os.system": call(b"os", b"system", touch),
        "posix.system": call(b"posix", b"system", touch),
        "subprocess": call(b"subprocess", b"getoutput", touch),
        "eval": call(b"builtins", b"eval", make),
        "exec of Python 2": call(b"__builtin__", b"exec", make),
        "open": b"cbuiltins\nopen\n" + text(str(marker).encode()) + text(b"w") + b"\x86R",
        "nested attribute": b"\x80\x04" + text(b"os") + text(b"system.__call__") + b"\x93" + text(touch) + b"\x85R",
        "nested in a builtin": b"\x80\x04" + text(b"builtins") + text(b"eval.real") + b"\x93" + text(make) + b"\x85R",
        "old instance": b"(" + text(touch) + b"ios\nsystem\n",
        "old object": b"(cos\nsystem\n" + text(touch) + b"o",
        "new object": b"cos\nsystem\n" + text(touch) + b"\x85\x81",
        "keywords": b"\x80\x04cos\nsystem\n" + text(touch) + b"\x85}\x92",
        "text protocol": b"cos\nsystem\n(S" + repr(touch.decode()).encode() + b"\ntR",
        "unlisted": b"\x80\x04cpathlib\nPath.touch\n" + path + b"\x85R",
        "getattr": b"cbuiltins\ngetattr\n" + path + text(b"touch") + b"\x86R)R",
        "functools": b"\x80\x04cfunctools\npartial\ncpathlib\nPath.mkdir\n\x85R" + path + b"\x85R",
        "extension": b"\x82\x01",
    }  # fmt: skip


NAMES = [*programs(Path("marker"))]


@pytest.mark.parametrize("name", NAMES)
def test_no_command_is_run(tmp_path: Path, name: str) -> None:
    """In every pickle of a file, as the weights, beside them, and within a module's state."""
    marker = tmp_path / "marker"
    program = programs(marker)[name]
    magic, version, system = dumps(MAGIC), dumps(VERSION), dumps(SYSTEM)
    good = dumps({"a": tensor(stored("0", 6, torch.FloatStorage, None))})
    keys, numbers = dumps(["0"]), (6).to_bytes(8, "little") + SIX.tobytes()
    alone = program + b"."
    module = b"\x80\x02ctorch.nn\nModule\n)\x81}X\x08\x00\x00\x00_modules" + program + b"sb."
    streams = [
        [alone],
        [magic, alone],
        [magic, version, alone],
        [magic, version, system, alone],
        [magic, version, system, good, alone, numbers],
        [magic, version, system, b"}" + text(b"state_dict") + program + b"s.", dumps([])],
        [magic, version, system, module, dumps([])],
        [magic, version, system, good[:-1] + b"0" + alone, keys, numbers],
    ]
    path = tmp_path / "net.pth"
    for parts in streams:
        path.write_bytes(b"".join(parts))
        reason(path)
    for value in (alone, module):
        reason(write_zip(path, value, {"0": SIX}))
    reason(write_tar(path, {"a": SIX}, Call(Path, (str(marker),))))
    assert not marker.exists()


def test_programs_are_named(tmp_path: Path) -> None:
    program = programs(tmp_path / "marker")["os.system"] + b"."
    line = reason(write_zip(tmp_path / "net.pth", program, {}))
    assert "asks to run 'os.system' (nothing of it was run); do not trust this file" in line


def test_what_the_same_file_does_elsewhere(tmp_path: Path) -> None:
    """The programs of these tests are real ones: pickle runs them."""
    marker = tmp_path / "marker"
    for name in ("os.system", "eval", "unlisted", "getattr", "functools", "old instance"):
        pickle.loads(programs(marker)[name] + b".")
        assert marker.exists()
        marker.rmdir() if marker.is_dir() else marker.unlink()


def test_unknown_calls_beside_the_weights_are_inert(tmp_path: Path) -> None:
    """Histories and options are often objects of classes that exist on one machine only."""
    marker = tmp_path / "marker"
    value = {"state_dict": GOOD, "args": Call(Path.touch, (Call(Path, (str(marker),)),))}
    assert read_foreign(write_zip(tmp_path / "net.pth", value, {"0": SIX})).keys() == {"a"}
    assert not marker.exists()


HUGE = (2**60).to_bytes(8, "little")
CLAIMS: dict[str, bytes] = {
    "text": b"\x8d" + HUGE,
    "text beyond the largest": b"\x8d" + b"\xff" * 8,
    "bytes": b"\x8e" + HUGE,
    "byte array": b"\x96" + HUGE,
    "short text": b"X\xff\xff\xff\xff",
    "number": b"\x8b\xff\xff\xff\x7f",
    "frame": b"\x95" + HUGE + b"(" * 100,
    "memo": b"Nr\xff\xff\xff\xff" * 20 + b".",
    "textual memo": b"Np99999999999999999999\n.",
    "digits": b"I" + b"9" * 10_000 + b"\n.",
    "long line": b"V" + b"a" * (2 * 2**20) + b"\n.",
    "no line end": b"c" + b"a" * 1000,
    "class name": b"c" + b"a" * 1000 + b"\nb\n.",
    "marks": b"(" * 10_000,
    "takes from nothing": b"0" * 10,
    "takes below a mark": b"N(\x85.",
    "recalls what was not said": b"h\x05.",
    "calls a number": b"K\x01)R.",
    "calls with a list": b"cbuiltins\nset\n]R.",
    "state of a number": b"K\x01}b.",
    "items of a list": b"]K\x01K\x02s.",
    "odd items": b"}(K\x01u.",
    "appends to a number": b"K\x01K\x02a.",
    "class without a name": b"K\x01K\x02\x93.",
    "buffers": b"\x97.",
}


@pytest.mark.parametrize("name", CLAIMS)
@pytest.mark.parametrize("kind", ["zip", "stream"])
def test_claims_beyond_the_file_are_refused(tmp_path: Path, kind: str, name: str) -> None:
    writer = {"zip": write_zip, "stream": write_stream}[kind]
    line = reason(writer(tmp_path / "net.pth", b"\x80\x04" + CLAIMS[name], {}))
    assert "pickle" in line or "memo" in name


DEEP = 20_000
NESTS: dict[str, bytes] = {
    "tuples": b")" + b"\x85" * DEEP + b".",
    "lists": b"]" * DEEP + b"a" * (DEEP - 1) + b".",
    "dictionaries": (b"}" + text(b"model")) * (DEEP // 2) + b"}" + b"s" * (DEEP // 2) + b".",
    "calls": b"ctorch.nn\nModule\n)" + b"R)" * (DEEP // 2) + b"R.",
    "states": b"}" * (DEEP // 2) + b"b" * (DEEP // 2 - 1) + b".",
    "list in itself": b"]q\x00h\x00a.",
    "dictionary in itself": b"}q\x00" + b"".join(text(key.encode()) + b"h\x00s" for key in WRAPPERS) + b".",
}  # fmt: skip


@pytest.mark.parametrize("name", NESTS)
def test_deep_and_endless_structures_are_refused(tmp_path: Path, name: str) -> None:
    path = write_stream(tmp_path / "net.pth", b"\x80\x02" + NESTS[name], {})
    with pytest.raises(BadFile, match="expected a module, or named tensors"):
        read_foreign(path)


def test_budgets_hold_for_all_pickles_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inert_pickle, "MAX_OPERATIONS", 1000)
    assert "more than 1,000 instructions" in reason(write_stream(tmp_path / "net.pth", b"N0" * 499 + b"N.", {}))
    monkeypatch.setattr(inert_pickle, "MAX_BYTES", 2**20)
    assert "more than 1 MiB" in reason(write_zip(tmp_path / "net.pth", b"V" + b"a" * 2**20 + b"\n.", {}))
    assert "more than 1 MiB" in reason(write_stream(tmp_path / "net.pth", text(bytes(2**20)) + b".", {}))


def module(children: bytes, *, parameters: bytes = b"}") -> bytes:
    """A module whose children and parameters are the dictionaries that these instructions leave."""
    parts = text(b"_parameters") + parameters + text(b"_buffers") + b"}" + text(b"_modules") + children
    return b"ctorch.nn\nModule\n)\x81}(" + parts + b"ub"


def test_modules_in_themselves_are_refused(tmp_path: Path) -> None:
    inner = b"ctorch.nn\nModule\n)\x81q\x00}(" + text(b"_parameters") + b"}" + text(b"_buffers") + b"}"
    inner += text(b"_modules") + b"}" + text(b"a") + b"h\x00sub."
    assert "in themselves" in reason(write_stream(tmp_path / "net.pth", b"\x80\x02" + inner, {}))


def test_modules_that_double_at_every_level_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 to the 40th names, were they all given."""
    value = module(b"}") + b"q\x00"
    for _ in range(40):
        value = value + b"0" + module(b"}" + text(b"a") + b"h\x00s" + text(b"b") + b"h\x00s") + b"q\x00"
    monkeypatch.setattr(foreign, "MAX_NAMES", 10_000)
    assert "tensors and modules" in reason(write_stream(tmp_path / "net.pth", b"\x80\x02" + value + b".", {}))


def test_dictionaries_that_are_copied_again_and_again_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inert_pickle, "MAX_OPERATIONS", 50_000)
    pairs = b"](" + (text(b"a") + b"N\x86") * 1000 + b"eq\x00"
    value = pairs + b"ccollections\nOrderedDict\nq\x01" + b"0h\x01h\x00\x85R" * 1000 + b"."
    assert "instructions" in reason(write_stream(tmp_path / "net.pth", b"\x80\x02" + value, {}))


VIEWS: dict[str, Any] = {
    "too long": tensor(stored(), 0, (7,), (1,)),
    "offset": tensor(stored(), 5, (2,), (1,)),
    "negative offset": tensor(stored(), -1, (2,), (1,)),
    "stride": tensor(stored(), 0, (2, 3), (4, 1)),
    "negative stride": tensor(stored(), 5, (6,), (-1,)),
    "expanded": tensor(stored(), 0, (2**40,), (0,)),
    "expanded a little": tensor(stored(), 0, (7,), (0,)),
    "product beyond 64 bits": tensor(stored(), 0, (2**33, 2**33), (0, 0)),
    "beyond 64 bits": tensor(stored(), 0, (2**70,), (0,)),
    "empty and huge": tensor(stored(), 0, (0, 2**31, 2**31), (0, 0, 0)),
    "sizes and strides": tensor(stored(), 0, (2, 3), (1,)),
    "dimensions": tensor(stored(), 0, (1,) * 65, (1,) * 65),
    "number for a size": tensor(stored(), 0, 6, 1),
    "text for a size": tensor(stored(), 0, ("6",), (1,)),
    "true for a size": tensor(stored(), 0, (True,), (1,)),
    "fraction for an offset": tensor(stored(), 0.0, (6,), (1,)),
    "list for a size": tensor(stored(), 0, [6], [1]),
    "no storage": tensor(None),
    "tensor for a storage": tensor(tensor(stored())),
    "class for a storage": tensor(Outside(("module", torch.nn.ReLU, "file.py", "source"))),
}


@pytest.mark.parametrize("name", VIEWS)
def test_tensors_outside_their_storage_are_refused(tmp_path: Path, name: str) -> None:
    line = reason(write_zip(tmp_path / "net.pth", {"a": VIEWS[name]}, {"0": SIX}))
    assert "damaged: 'a'" in line or "a tensor without" in line


STORAGES: dict[str, Outside] = {
    "number": Outside(3),
    "none": Outside(None),
    "text": Outside("0"),
    "short": Outside(("storage", torch.FloatStorage, "0")),
    "long": Outside(("storage", torch.FloatStorage, "0", "cpu", 6, None, None)),
    "other word": Outside(("file", torch.FloatStorage, "0", "cpu", 6)),
    "list": Outside(["storage", torch.FloatStorage, "0", "cpu", 6]),
    "nested": Outside((("storage",), torch.FloatStorage, "0", "cpu", 6)),
    "kind as text": stored("0", 6, "FloatStorage"),
    "other kind": stored("0", 6, nn.Conv2d),
    "no such key": stored("1", 6),
    "path for a key": stored("../../../../etc/passwd", 6),
    "long key": stored("0" * 1000, 6),
    "list for a key": stored(["0"], 6),
    "large number for a key": stored(10**5000, 6),
    "other count": stored("0", 7),
    "huge count": stored("0", 2**60),
    "count beyond 64 bits": stored("0", 2**80),
    "negative count": stored("0", -6),
    "text for a count": stored("0", "6"),
    "true for a count": stored("0", True),
    "other width": stored("0", 6, torch.DoubleStorage),
    "view outside": stored("0", 6, torch.FloatStorage, ("v", 3, 4)),
    "view of nothing": stored("0", 6, torch.FloatStorage, ("v", 3)),
    "view before": stored("0", 6, torch.FloatStorage, ("v", -1, 4)),
}


@pytest.mark.parametrize("name", STORAGES)
@pytest.mark.parametrize("kind", ["zip", "stream"])
def test_odd_persistent_ids_are_refused(tmp_path: Path, kind: str, name: str) -> None:
    writer = {"zip": write_zip, "stream": write_stream}[kind]
    reason(writer(tmp_path / "net.pth", {"a": tensor(STORAGES[name], 0, (1,), (1,))}, {"0": SIX}))


def test_a_persistent_id_that_holds_itself_is_refused(tmp_path: Path) -> None:
    reason(write_zip(tmp_path / "net.pth", b"\x80\x02]q\x00h\x00aQ.", {"0": SIX}))


def test_a_storage_of_two_kinds_is_refused(tmp_path: Path) -> None:
    value = {"a": tensor(stored()), "b": tensor(stored("0", 6, torch.IntStorage))}
    assert "two kinds" in reason(write_zip(tmp_path / "net.pth", value, {"0": SIX}))


def test_many_names_for_the_same_numbers_are_refused(tmp_path: Path) -> None:
    numbers = np.zeros(10_000, np.float32)
    shared = tensor(stored("0", 10_000), 0, (10_000,), (1,))
    value = {str(name): shared for name in range(2000)}
    assert "16 times the file" in reason(write_zip(tmp_path / "net.pth", value, {"0": numbers}))


@pytest.mark.parametrize("change", ["none", "more", "other", "twice", "numbers"])
def test_lists_of_storages_that_disagree_are_refused(tmp_path: Path, change: str) -> None:
    keys: Any = {"none": [], "more": ["0", "1"], "other": ["1"], "twice": ["0", "0"], "numbers": [0]}[change]
    parts = (MAGIC, VERSION, SYSTEM, {"a": tensor(stored("0", 6, torch.FloatStorage, None))}, keys)
    path = tmp_path / "net.pth"
    path.write_bytes(b"".join(map(dumps, parts)) + ((6).to_bytes(8, "little") + SIX.tobytes()) * 2)
    assert "list of storages" in reason(path)


def test_a_stream_whose_count_lies_is_refused(tmp_path: Path) -> None:
    path = write_stream(tmp_path / "net.pth", {"a": tensor(stored("0", 6, torch.FloatStorage, None))}, {"0": SIX})
    whole = path.read_bytes()
    for count in (7, 0, -1, 2**62):
        path.write_bytes(whole[:-32] + count.to_bytes(8, "little", signed=True) + whole[-24:])
        assert "expected a storage of 6 elements" in reason(path)
    path = write_stream(
        path, {"a": tensor(stored("0", 2**40, torch.FloatStorage, None), 0, (2**40,), (1,))}, {"0": SIX}
    )
    path.write_bytes(path.read_bytes()[:-32] + (2**40).to_bytes(8, "little") + SIX.tobytes())
    assert "cut off: expected 4398046511104 bytes" in reason(path)


def rewritten(path: Path, change: Callable[[zipfile.ZipFile], None], **options: Any) -> Path:
    write_zip(path, GOOD, {"0": SIX})
    with zipfile.ZipFile(path, "a", **options) as archive:
        change(archive)
    return path


def test_zips_with_path_tricks_touch_nothing(tmp_path: Path) -> None:
    def add(archive: zipfile.ZipFile) -> None:
        for name in ("../outside", "/tmp/absolute", "archive/../../outside", "archive/data/../../../outside"):
            archive.writestr(name, b"x")

    folder = tmp_path / "inner"
    folder.mkdir()
    assert read_foreign(rewritten(folder / "net.pth", add)).keys() == {"a"}
    assert [*tmp_path.rglob("*")] == [folder, folder / "net.pth"]


def test_zips_of_two_minds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    with pytest.warns(UserWarning, match="Duplicate name"):
        rewritten(path, lambda archive: archive.writestr("archive/data/0", SIX.tobytes()))
    assert "two members of one name" in reason(path)
    rewritten(path, lambda archive: archive.writestr("other/data.pkl", dumps(GOOD)))
    assert "torch.save did not write" in reason(path)


def test_compressed_zips_are_refused(tmp_path: Path) -> None:
    """A gigabyte of zeros fits into a megabyte so."""
    path = rewritten(tmp_path / "net.pth", lambda archive: archive.writestr("archive/data/1", bytes(10**7), 8))
    assert "compressed member" in reason(path)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (16, 0, "checksum"),  # of the member
        (20, 10**6, "compressed member"),  # size in the file
        (24, 10**6, "compressed member"),  # size after it
        (42, 10**6, "damaged"),  # place of the member
        (42, 7, "not where it should be"),
        (10, 8, "compressed member"),  # way of packing
        (8, 1, "compressed member"),  # encrypted
    ],
)
def test_zips_whose_directory_lies_are_refused(tmp_path: Path, position: int, value: int, message: str) -> None:
    path = write_zip(tmp_path / "net.pth", GOOD, {"0": SIX})
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\1\2")
    assert b"data/0" in content[entry:]
    size = 2 if position in (8, 10) else 4
    content[entry + position : entry + position + size] = value.to_bytes(size, "little")
    path.write_bytes(content)
    assert message in reason(path)


def test_zips_whose_sizes_agree_with_each_other_only_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "net.pth", {"a": tensor(stored("0", 2**28), 0, (2**28,), (1,))}, {"0": SIX})
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\1\2")
    content[entry + 20 : entry + 28] = (2**30).to_bytes(4, "little") * 2
    path.write_bytes(content)
    assert "reaches beyond the file" in reason(path)


def test_zips_with_members_over_one_another_are_refused(tmp_path: Path) -> None:
    """Twenty members that all say they are the same megabyte."""
    path, numbers = tmp_path / "net.pth", np.zeros(2**18, np.float32)
    value = {str(key): tensor(stored(str(key), 2**18), 0, (1,), (1,)) for key in range(20)}
    write_zip(path, value, {"0": numbers} | {str(key): SIX[:0] for key in range(1, 20)})
    content = bytearray(path.read_bytes())
    entries = [found.start() for found in re.finditer(rb"PK\x01\x02", content)]
    first = content[entries[1] + 16 : entries[1] + 28], content[entries[1] + 42 : entries[1] + 46]
    for entry in entries[2:]:
        content[entry + 16 : entry + 28], content[entry + 42 : entry + 46] = first
    path.write_bytes(content)
    assert "over one another" in reason(path)


def test_zips_with_a_giant_directory_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "net.pth", GOOD, {"0": SIX})
    with path.open("ab") as stream:
        stream.write(bytes(5 * 2**20) + b"PK\5\6" + bytes(8) + (5 * 2**20).to_bytes(4, "little") + bytes(6))
    assert "directory has more than 4 MiB" in reason(path)


@pytest.mark.parametrize("change", ["dimensions", "size", "count", "view", "octal"])
def test_tars_that_lie_are_refused(tmp_path: Path, change: str) -> None:
    path = write_tar(tmp_path / "net.pth", {"a": SIX}, {"a": Outside("0")})
    content = path.read_bytes()
    at = content.index(b"tensors" + bytes(93)) + 124
    old, new = {
        "dimensions": (b"\x01\x00\x00\x00\x00\x00\x00\x00\x06", b"\xff\xff\xff\x7f\x00\x00\x00\x00\x06"),
        "size": (b"\x01\x00\x00\x00\x00\x00\x00\x00\x06", b"\x01\x00\x00\x00\x00\x00\x00\x00\xff"),
        "count": ((6).to_bytes(8, "little") + SIX.tobytes(), HUGE + SIX.tobytes()),
        "view": (b"\x80\x02]q\x00.", b"\x80\x02]K\x01a."),
        "octal": (content[at : at + 11], b"z" * 11),  # the size of a member
    }[change]
    assert old in content
    path.write_bytes(content.replace(old, new))
    reason(path)


PIECES = [bytes([code]) for code in b"(012QRRRbb)]}}ltdts\x81\x85\x86\x87\x88Nuaeo\x90\x91"]
PIECES += [b"K\x01", b"h\x00", b"q\x00", text(b"model"), text(b"_modules"), text(b"_parameters"), text(b"_buffers")]
PIECES += [b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor\n", b"ccollections\nOrderedDict\n"]


@given(st.lists(st.sampled_from(PIECES), max_size=60))
def test_any_program_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]) -> None:
    path = tmp_path_factory.getbasetemp() / "program.pth"
    with pytest.raises(BadFile):
        read_foreign(write_stream(path, b"\x80\x02" + b"".join(parts) + b".", {}))


def hungry(folder: Path) -> Iterator[Path]:
    """Files that would need more memory than the machine has."""
    for name, claim in CLAIMS.items():
        yield write_stream(folder / f"{name}.pth", b"\x80\x04" + claim, {})
    for name, view in VIEWS.items():
        yield write_zip(folder / f"view {name}.pth", {"a": view}, {"0": SIX})
    yield write_stream(folder / "nest.pth", b"\x80\x02" + NESTS["tuples"], {})
    yield write_zip(folder / "sparse.pth", {"a": tensor(stored("0", 2**40), 0, (2**40,), (1,))}, {"0": SIX})


def test_memory_stays_bounded(tmp_path: Path) -> None:
    """All of them in a process that may take 512 MiB more than it has when it begins."""
    paths = [str(path) for path in hungry(tmp_path)]
    program = (
        "import resource, sys; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
        "from maskloom.models.foreign import read_foreign; from maskloom.errors import BadFile\n"
        "held = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (held + 512 * 2**20,) * 2)\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n        read_foreign(Path(path))\n        print('accepted', path)\n"
        "    except BadFile:\n        print('refused')\n"
    )
    result = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, text=True, check=False)
    assert result.stdout.split() == ["refused"] * len(paths), result.stderr[-2000:]
