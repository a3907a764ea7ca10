"""The files of ``torch.save``, old and new, as places: what their pickle says, and where in the file numbers lie.

- zip (torch 1.6 and later): ``NAME/data.pkl`` and a member ``NAME/data/KEY`` per storage;
- stream (torch 0.2 to 1.5, or ``_use_new_zipfile_serialization=False``): magic number, version, system, the object,
  the storages' keys, then the storages, all one behind the other;
- tar (torch 0.1): members ``storages``, ``tensors`` and ``pickle``.

Nothing is extracted or decompressed, and every place is checked against the size of the file before it is named.
Knows nothing about state dicts and modules.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BufferedReader, BytesIO
from typing import Any

import torch

from maskloom.models.archives import Member, tar_members, zip_members
from maskloom.models.inert_pickle import MAX_BYTES, Name, PickleReader, Record, Refused

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001

_DTYPES = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128, "Untyped": torch.uint8,
}  # fmt: skip
"""Element type of each ``torch.…Storage``, the devices' own among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """A run of numbers in the file."""

    dtype: torch.dtype
    numel: int
    start: int
    """First byte in the file."""
    checksum: int | None = None
    """CRC-32 of the bytes, where the format has one."""

    @property
    def num_bytes(self) -> int:
        """Returns the length in bytes."""
        return self.numel * self.dtype.itemsize

    def read(self, stream: BufferedReader) -> torch.Tensor:
        """Returns the numbers, one-dimensional; raises ``Refused`` when the file has changed or is damaged."""
        content = bytearray(self.num_bytes)
        stream.seek(self.start)
        if stream.readinto(content) != self.num_bytes:
            raise Refused("cut off while its tensors were read")
        if self.checksum is not None and zlib.crc32(content) != self.checksum:
            raise Refused("damaged: a tensor's checksum does not agree")
        return torch.frombuffer(content, dtype=self.dtype) if content else torch.empty(0, dtype=self.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A tensor as a file describes it: numbers of one storage (or of a part of it), counted in elements."""

    key: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchFile:
    """What a file says and where its numbers lie."""

    root: Any
    """The saved object, inert (see ``inert_pickle``)."""
    storages: Mapping[str, Storage]
    """By key; views into another storage have keys of their own."""
    tensors: Mapping[str, View] = field(default_factory=dict)
    """Tensors that the pickle mentions by a persistent id alone, as torch 0.1 wrote them."""


def read_zip(stream: BufferedReader, size: int) -> TorchFile:
    """Returns what a zip of ``torch.save`` says; raises ``Refused`` for any other zip."""
    members = zip_members(stream, size)
    root_names = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(root_names) != 1:
        raise Refused("a zip archive that torch.save did not write (it has no data.pkl of its own)")
    folder = root_names[0].removesuffix("data.pkl")
    order = members.get(f"{folder}byteorder")
    if order is not None and _small_member(stream, order) != b"little":
        raise Refused("numbers in big-endian order")
    reader = PickleReader(BytesIO(_small_member(stream, members[root_names[0]])))
    root = reader.load()
    storages = {}
    for key, (dtype, numel) in _claimed_storages(reader.persistent).items():
        member = members.get(f"{folder}data/{key}")
        if member is None or member.size != numel * dtype.itemsize:
            found = "none" if member is None else f"{member.size}"
            raise Refused(f"damaged: expected {numel * dtype.itemsize} bytes for storage {key[:40]!r}, found {found}")
        storages[key] = Storage(dtype=dtype, numel=numel, start=member.start, checksum=member.checksum)
    if sum(storage.num_bytes for storage in storages.values()) > size:
        raise Refused("members of the zip lie over one another")
    return TorchFile(root=root, storages=storages | _views(reader.persistent, storages))


def read_stream(stream: BufferedReader, size: int) -> TorchFile:
    """Returns what a file of pickles and storages one behind the other says; raises ``Refused`` for any other."""
    stream.seek(0)
    reader = PickleReader(stream)
    if (magic := reader.load()) != _MAGIC or type(magic) is not int:
        raise Refused("a pickle that torch.save did not write")
    if (version := reader.load()) != _VERSION or type(version) is not int:
        raise Refused(f"a torch file of another version than {_VERSION}")
    _check_byte_order(reader.load())
    root = reader.load()
    claimed = _claimed_storages(reader.persistent)
    keys = reader.load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len({*keys}) != len(keys):
        raise Refused("damaged: its list of storages is none")
    if {*keys} != claimed.keys():
        raise Refused("damaged: its list of storages is not the one that its tensors name")
    storages = {key: _counted_storage(stream, size, *claimed[key]) for key in keys}
    return TorchFile(root=root, storages=storages | _views(reader.persistent, storages))


def read_tar(stream: BufferedReader, size: int) -> TorchFile:
    """Returns what a tar of torch 0.1 says; raises ``Refused`` for any other tar."""
    members = tar_members(stream, size)
    missing = {"storages", "tensors", "pickle", "sys_info"} - members.keys()
    if missing:
        raise Refused("a tar archive that torch.save did not write; take the checkpoint out of it")
    reader = PickleReader(stream)

    def load_at(name: str) -> Any:
        stream.seek(members[name].start)
        return reader.load()

    def unpack(layout: str) -> tuple[Any, ...]:
        content = stream.read(struct.calcsize(layout))
        if len(content) != struct.calcsize(layout):
            raise Refused("cut off within its tensors")
        return struct.unpack(layout, content)

    _check_byte_order(load_at("sys_info"))
    storages: dict[str, Storage] = {}
    for _ in range(_count(load_at("storages"))):
        key, _, kind = _parts(reader.load(), 3)
        storages[key_text(key)] = _counted_storage(stream, size, _dtype(kind), None)
    for view in _items(reader.load()):
        key, root_key, offset, numel = _parts(view, 4)
        storages[key_text(key)] = _part(storages, key_text(root_key), offset, numel)
    tensors = {}
    for _ in range(_count(load_at("tensors"))):
        key, storage_key, _ = _parts(reader.load(), 3)
        dimensions = unpack("<ii")[0]  # counted in 4 bytes, and 4 bytes of nothing
        if not 0 <= dimensions <= 64:
            raise Refused(f"damaged: a tensor of {dimensions} dimensions")
        sizes, strides = unpack(f"<{dimensions}q"), unpack(f"<{dimensions}q")
        tensors[key_text(key)] = View(key=key_text(storage_key), offset=unpack("<q")[0], size=sizes, stride=strides)
    return TorchFile(root=load_at("pickle"), storages=storages, tensors=tensors)


def _small_member(stream: BufferedReader, member: Member) -> bytes:
    if member.size > MAX_BYTES:
        raise Refused(f"a pickle of more than {MAX_BYTES // 2**20} MiB")
    stream.seek(member.start)
    content = stream.read(member.size)
    if zlib.crc32(content) != member.checksum:
        raise Refused("damaged: a checksum does not agree")
    return content


def _check_byte_order(system: Any) -> None:
    if not isinstance(system, Record) or system.entries.get("little_endian") is not True:
        raise Refused("numbers in big-endian order, or of a system unknown")


def _claimed_storages(persistent: list[Any]) -> dict[str, tuple[torch.dtype, int]]:
    """Returns type and number of elements of every storage that the pickle mentions, by key."""
    claimed: dict[str, tuple[torch.dtype, int]] = {}
    for identity in persistent:
        if isinstance(identity, tuple) and len(identity) == 4 and identity[0] == "module":
            continue  # a class and its source text
        if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
            raise Refused("a pickle with a persistent id that no torch writes")
        claim = (_dtype(identity[1]), _count(identity[4]))
        if claimed.setdefault(key_text(identity[2]), claim) != claim:
            raise Refused("a storage that is claimed to be of two kinds")
    return claimed


def _views(persistent: list[Any], storages: Mapping[str, Storage]) -> dict[str, Storage]:
    """Returns the parts of storages that old files name as storages of their own."""
    views = {}
    for identity in persistent:
        if identity[0] == "storage" and len(identity) == 6 and identity[5] is not None:
            key, offset, numel = _parts(identity[5], 3)
            views[key_text(key)] = _part(storages, key_text(identity[2]), offset, numel)
    return views


def storage_key(identity: tuple[Any, ...]) -> str:
    """Returns the key in ``TorchFile.storages`` of what a pickle mentions by a persistent id of several parts."""
    if len(identity) not in (5, 6) or identity[0] != "storage":
        raise Refused("damaged: a tensor without a storage")
    return key_text(identity[2] if len(identity) == 5 or identity[5] is None else _parts(identity[5], 3)[0])


def _part(storages: Mapping[str, Storage], root_key: str, offset: Any, numel: Any) -> Storage:
    root = storages.get(root_key)
    if root is None or _count(offset) + _count(numel) > root.numel:
        raise Refused("damaged: a part of a storage lies outside it")
    return Storage(dtype=root.dtype, numel=numel, start=root.start + offset * root.dtype.itemsize)


def _counted_storage(stream: BufferedReader, size: int, dtype: torch.dtype, numel: int | None) -> Storage:
    """Returns the storage whose count and numbers begin here, and leaves the stream behind it."""
    content = stream.read(8)
    if len(content) != 8:
        raise Refused("cut off before the end of its tensors")
    found = struct.unpack("<q", content)[0]
    if found < 0 or numel not in (None, found):
        raise Refused(f"damaged: expected a storage of {numel} elements, found one of {found}")
    storage = Storage(dtype=dtype, numel=found, start=stream.tell())
    if storage.start + storage.num_bytes > size:
        raise Refused(f"cut off: expected {storage.num_bytes} bytes of a storage, found {size - storage.start}")
    stream.seek(storage.num_bytes, 1)
    return storage


def _dtype(kind: Any) -> torch.dtype:
    path = kind.path if isinstance(kind, Name) else ""
    dtype = _DTYPES.get(path.rpartition(".")[2].removesuffix("Storage"))
    if dtype is None or not path.startswith("torch.") or not path.endswith("Storage"):
        raise Refused(f"a storage of the unknown kind {path[:80]!r}")
    return dtype


def key_text(value: Any) -> str:
    """Returns the key of a storage or tensor as text, since some writers kept it as a number."""
    if type(value) is int and abs(value) < 2**64:
        return str(value)
    if type(value) is not str or len(value) > 100:
        raise Refused("damaged: a storage or tensor without a key")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**48:
        raise Refused("damaged: a count that is none")
    return value


def _items(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise Refused("damaged: expected a list in its pickle")
    return value


def _parts(value: Any, number: int) -> Sequence[Any]:
    if not isinstance(value, (tuple, list)) or len(value) != number:
        raise Refused(f"damaged: expected {number} values together in its pickle")
    return value
