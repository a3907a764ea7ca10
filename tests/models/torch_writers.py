"""Writes torch's files piece by piece, as old versions did and as no version would: honest, odd and hostile ones."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
SYSTEM = {"protocol_version": VERSION, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


@dataclass(eq=False)
class Outside:
    """What the pickle mentions by this persistent id."""

    identity: Any


@dataclass(eq=False)
class Call:
    """An object that the pickle tells to be made by calling ``function`` with ``args``, then to be given ``state``."""

    function: Any
    args: Any = ()
    state: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return (self.function, self.args) if self.state is None else (self.function, self.args, self.state)


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.identity if isinstance(obj, Outside) else None


def dumps(value: Any, protocol: int = 2) -> bytes:
    stream = io.BytesIO()
    _Pickler(stream, protocol).dump(value)
    return stream.getvalue()


def stored(key: Any = "0", numel: Any = 6, kind: Any = torch.FloatStorage, *view: Any) -> Outside:
    """A storage as streams and zips mention it; streams add a view or None."""
    return Outside(("storage", kind, key, "cpu", numel, *view))


def tensor(storage: Any, offset: Any = 0, size: Any = (2, 3), stride: Any = (3, 1)) -> Call:
    return Call(torch._utils._rebuild_tensor, (storage, offset, size, stride))


def write_stream(path: Path, value: Any, storages: dict[str, np.ndarray[Any, Any]], *, protocol: int = 2) -> Path:
    """Torch 0.2 to 1.5; ``value`` may be a finished pickle."""
    content = value if isinstance(value, bytes) else dumps(value, protocol)
    head = b"".join(dumps(part, protocol) for part in (MAGIC, VERSION, SYSTEM))
    tail = b"".join(struct.pack("<q", array.size) + array.tobytes() for array in storages.values())
    path.write_bytes(head + content + dumps([*storages], protocol) + tail)
    return path


def write_zip(path: Path, value: Any, storages: dict[str, np.ndarray[Any, Any]], **members: bytes) -> Path:
    """Torch 1.6 and later, with further members by name."""
    content = value if isinstance(value, bytes) else dumps(value)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
        for name, added in members.items():
            archive.writestr(f"archive/{name}", added)
    return path


def write_tar(path: Path, tensors: dict[str, np.ndarray[Any, Any]], value: Any) -> Path:
    """Torch 0.1: float32 tensors mentioned as ``Outside("0")``, ``Outside("1")`` … in the order of ``tensors``."""
    storages, described = dumps(len(tensors)), dumps(len(tensors))
    for number, array in enumerate(tensors.values()):
        storages += dumps((100 + number, "cpu", torch.FloatStorage)) + struct.pack("<q", array.size)
        storages += array.tobytes(order="A")
        strides = [stride // 4 for stride in array.strides]
        described += dumps((number, 100 + number, torch.FloatTensor)) + struct.pack("<ii", array.ndim, 0)
        described += struct.pack(f"<{2 * array.ndim + 1}q", *array.shape, *strides, 0)
    parts = {
        "sys_info": dumps(SYSTEM), "storages": storages + dumps([]), "tensors": described, "pickle": dumps(value),
    }  # fmt: skip
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as archive:
        for name, content in parts.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(content), 0.5  # a fraction, for which tar adds a header of its own
            archive.addfile(entry, io.BytesIO(content))
    return path
