"""Weights that other programs saved, as named tensors: safetensors, and whatever ``torch.save`` ever wrote.

Nothing in a file is executed: a pickle is read as data (``inert_pickle``), the numbers are read from the places it
names (``torch_files``), and here names are given to them as ``state_dict`` would. What a file may claim is bounded by
its own size. Knows nothing about networks.
"""

from __future__ import annotations

import math
import warnings
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from maskloom.errors import BadFile
from maskloom.models.inert_pickle import DICT, ORDERED_DICT, PERSISTENT, Name, Record, Refused
from maskloom.models.torch_files import Storage, TorchFile, View, key_text, read_stream, read_tar, read_zip, storage_key

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
"""Keys below which training programs keep the weights, in the order in which they are tried."""

MAX_NAMES = 100_000
"""Tensors, modules, and the empty places for either."""
MAX_NAME = 500
"""Characters in a tensor's name."""
MAX_DEPTH = 64
"""How deep modules may lie in one another."""
MAX_WRAPPERS = 4
"""How deep the weights may lie below keys of ``WRAPPERS``."""
MAX_DIMENSIONS = 64
MAX_GROWTH = 16
"""Bytes of tensors per byte of file: half precision doubles, and old networks name one tensor several times."""

_PARTS = ("_parameters", "_buffers", "_modules")
"""The attributes by which a module is known, in the order in which ``state_dict`` lists what they hold."""
_KEPT = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_REBUILT = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_WRAPPED = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_OF_TYPE = "torch._tensor._rebuild_from_type_v2"
_VARIABLES = ("torch.nn.parameter.Parameter", "torch.autograd.variable.Variable")


def read_foreign(path: Path) -> dict[str, Tensor]:
    """Returns a checkpoint's tensors by name, on the CPU: floats as float32, integers and booleans as they are.

    Reads safetensors and the zip, stream and tar files of ``torch.save``; state dicts, alone or below a key of
    ``WRAPPERS`` (the first in that order that holds weights; a warning says so when another may hold some too), and
    whole modules, whose classes need not exist. The prefix ``module.`` is taken off where every name bears it.

    Raises ``BadFile`` for everything else, for damaged and hostile files, and for NaN or infinite weights.
    """
    if not path.is_file():
        raise BadFile(path, "cannot be read (no such file); give the path of a checkpoint")
    try:
        with path.open("rb") as stream:
            tensors = _read(path, stream, path.stat().st_size)
        while tensors and all(name.startswith("module.") for name in tensors):  # DataParallel
            tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
        if not tensors:
            raise Refused("expected named tensors, found none; take another file")
        for name, tensor in tensors.items():
            if not name.isprintable() or len(name) > MAX_NAME:
                raise Refused(f"found a tensor with the name {name[:80]!r}; take another file")
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise Refused(f"{name!r} holds NaN or infinite weights; expected finite ones, take another checkpoint")
    except Refused as error:
        remedy = "" if ";" in str(error) else "; copy the file again, or save the network's state_dict with torch.save"
        raise BadFile(path, f"cannot be imported: {error}{remedy}") from None
    except PermissionError as error:
        raise BadFile(path, f"cannot be read ({error.strerror}); mend its permissions") from error
    return tensors


def _read(path: Path, stream: BufferedReader, size: int) -> dict[str, Tensor]:
    start = stream.read(512)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8:
        return _read_safetensors(path)
    if start[:2] == b"PK":
        found = read_zip(stream, size)
    elif start[257:262] == b"ustar":
        found = read_tar(stream, size)
    elif start[:1] in (b"\x80", b"L"):  # how a pickle of the magic number begins, in any protocol
        found = read_stream(stream, size)
    else:
        raise Refused("expected safetensors or a file of torch.save, found something else; take another file")
    namer = _Namer(found)
    views = namer.state(found.root, MAX_WRAPPERS)
    if views is None:
        raise Refused(
            f"expected a module, or named tensors alone or below one of {', '.join(WRAPPERS)}; "
            f"found {_describe(found.root)}; save the network's state_dict"
        )
    for chosen, passed_over in namer.choices:
        warnings.warn(f"{path}: took the weights below {chosen!r}, not those below {passed_over!r}", stacklevel=3)
    return _materialise(stream, size, found, views)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as stream:
            return {name: _converted(name, stream.get_tensor(name)) for name in stream.keys()}  # noqa: SIM118
    except Refused:
        raise
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise Refused(f"damaged or cut off ({' '.join(str(error).split())[:200]}); copy the file again") from None


class _Namer:
    """Finds the tensors in what a file says, and their names as ``state_dict`` gives them."""

    def __init__(self, found: TorchFile) -> None:
        self._found = found
        self._names_left = MAX_NAMES
        self._barren: set[int] = set()
        self.choices: list[tuple[str, str]] = []
        """Keys taken, each with one passed over that may hold weights too."""

    def state(self, value: Any, wrappers_left: int) -> dict[str, View] | None:
        """Returns the tensors of a module or state dict, or of what wraps one, by name; None where there are none."""
        if not isinstance(value, Record) or id(value) in self._barren or self._tensor(value) is not None:
            return None
        self._barren.add(id(value))  # unless something is found now; dictionaries may hold themselves
        if _attributes(value) is not None:
            views: dict[str, View] = {}
            self._module(value, "", MAX_DEPTH, views)
            return views or None
        inner = [key for key in WRAPPERS if self._holds_more(value.entries.get(key))]
        for key in inner if wrappers_left else ():
            if (below := self.state(value.entries[key], wrappers_left - 1)) is not None:
                self.choices += [(key, other) for other in inner[inner.index(key) + 1 :]]
                return below
        return self._plain(value)

    def _holds_more(self, value: Any) -> bool:
        return isinstance(value, Record) and bool(value.entries or _attributes(value)) and self._tensor(value) is None

    def _plain(self, record: Record) -> dict[str, View] | None:
        self._count(len(record.entries))
        views = {name: self._tensor(value) for name, value in record.entries.items()}
        if not any(views.values()):
            return None
        state: dict[str, View] = {}
        for name, view in views.items():
            self._put(state, name, view, record.entries[name])
        return state

    def _module(self, module: Record, prefix: str, depth_left: int, views: dict[str, View]) -> None:
        """Adds the tensors of a module and of those in it; buffers that are not to be saved are left out."""
        attributes = _attributes(module)
        if attributes is None or depth_left == 0:
            what = "modules that lie too deep, or in themselves" if attributes else f"{_describe(module)} as a module"
            raise Refused(f"found {what} below {prefix[:200]!r}; save the network's state_dict")
        if len(prefix) > MAX_NAME:
            raise Refused(f"a module's name of more than {MAX_NAME} characters")
        parameters, buffers, children = (attributes[part].entries for part in _PARTS)
        passing = attributes.get("_non_persistent_buffers_set")
        passing = passing.args[0] if isinstance(passing, Record) and passing.args else passing
        passing = passing if isinstance(passing, list) else []
        self._count(1 + len(parameters) + len(buffers) + len(children) + len(passing))
        skipped = {name for name in passing if isinstance(name, str)}
        for name, value in (*parameters.items(), *buffers.items()):
            if value is not None and name not in skipped:
                self._put(views, prefix + name, self._tensor(value), value)
        for name, child in children.items():
            if child is not None:
                self._module(child, f"{prefix}{name}.", depth_left - 1, views)

    def _put(self, views: dict[str, View], name: str, view: View | None, value: Any) -> None:
        if view is None:
            raise Refused(
                f"expected tensors only, found {name[:80]!r}, {_describe(value)}; save the network's state_dict"
            )
        views[name] = view

    def _count(self, number: int) -> None:
        self._names_left -= number
        if self._names_left < 0:
            raise Refused(f"more than {MAX_NAMES:,} tensors and modules")

    def _tensor(self, value: Any) -> View | None:
        """Returns the tensor that a record describes, in the ways that torch has written them; None for others."""
        for _ in range(MAX_WRAPPERS):
            if not isinstance(value, Record):
                return None
            args, state = value.args, value.state
            if value.kind in _WRAPPED and args:
                value = args[0]
            elif value.kind in _VARIABLES:  # torch 0.1 kept the tensor in the state
                held = state if isinstance(state, tuple) and len(state) == 5 else args
                value = held[0] if held else None
            elif value.kind == _OF_TYPE and len(args) == 4 and isinstance(args[0], Name) and isinstance(args[2], tuple):
                value = Record(args[0].path, args[2])
            elif value.kind in _REBUILT and len(args) >= 4:
                return _view(*args[:4], bits=args[6:7])
            elif value.kind.startswith("torch.") and value.kind.endswith("Tensor") and isinstance(state, tuple):
                return _view(*state) if len(state) == 4 else None
            elif value.kind == PERSISTENT and not isinstance(value.args[0], tuple):
                return self._found.tensors.get(key_text(value.args[0]))
            else:
                return None
        return None


def _attributes(value: Any) -> dict[str, Any] | None:
    """Returns the attributes of what was a ``torch.nn.Module``, whatever its class; None for anything else."""
    state = value.state if isinstance(value, Record) else None
    if isinstance(state, tuple) and state:  # with slots
        state = state[0]
    if not isinstance(state, Record):
        return None
    return state.entries if all(isinstance(state.entries.get(part), Record) for part in _PARTS) else None


def _view(storage: Any, offset: Any, size: Any, stride: Any, *, bits: tuple[Any, ...] = ()) -> View:
    """Returns a tensor's description once its parts are of their kinds; their values are checked against storages."""
    size, stride = (
        part.args[0] if isinstance(part, Record) and part.kind == "torch.Size" and part.args else part
        for part in (size, stride)
    )
    identity = storage.args[0] if isinstance(storage, Record) and storage.kind == PERSISTENT else None
    if not isinstance(identity, tuple) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise Refused("damaged: a tensor without storage, size or stride")
    if any(isinstance(bit, Record) and bit.entries for bit in bits):
        raise Refused("a tensor that is to be conjugated or negated when read; save it computed")
    return View(key=storage_key(identity), offset=offset, size=size, stride=stride)


def _materialise(stream: BufferedReader, size: int, found: TorchFile, views: dict[str, View]) -> dict[str, Tensor]:
    """Returns the tensors in the order of their names; each storage is read once, and none that no name needs."""
    storages: dict[str, Storage] = {}
    names: dict[str, list[str]] = {}
    num_bytes = 0
    for name, view in views.items():
        storage = found.storages.get(view.key)
        if storage is None:
            raise Refused(f"damaged: {name!r} has no storage")
        num_bytes += _num_elements(name, view, storage) * max(storage.dtype.itemsize, 4)
        storages[view.key] = storage
        names.setdefault(view.key, []).append(name)
    if max(num_bytes, sum(storage.num_bytes for storage in storages.values())) > MAX_GROWTH * size:
        raise Refused(f"tensors of more than {MAX_GROWTH} times the file")
    tensors: dict[str, Tensor] = {}
    for key, sharing in names.items():
        numbers = storages[key].read(stream)
        for name in sharing:
            view = views[name]
            empty = 0 in view.size
            part = numbers.new_empty(view.size) if empty else numbers.as_strided(view.size, view.stride, view.offset)
            tensors[name] = _converted(name, part)
    return {name: tensors[name] for name in views}


def _num_elements(name: str, view: View, storage: Storage) -> int:
    """Returns how many numbers a tensor has; raises ``Refused`` unless they lie in its storage."""
    if len(view.size) != len(view.stride) or len(view.size) > MAX_DIMENSIONS:
        raise Refused(f"damaged: {name!r} has {len(view.size)} sizes and {len(view.stride)} strides")
    if not all(type(count) is int and 0 <= count < 2**48 for count in (*view.size, *view.stride, view.offset)):
        raise Refused(f"damaged: {name!r} has a size, stride or offset that is none")
    if 0 in view.size:
        if math.prod(max(count, 1) for count in view.size) > 2**31:
            raise Refused(f"damaged: {name!r} has impossible sizes")
        return 0
    last = view.offset + sum((count - 1) * step for count, step in zip(view.size, view.stride, strict=True))
    if last >= storage.numel or (number := math.prod(view.size)) > storage.numel:
        raise Refused(f"damaged: {name!r} reaches beyond its storage of {storage.numel} elements")
    return number


def _converted(name: str, tensor: Tensor) -> Tensor:
    """Returns a copy of its own, contiguous, in the type that networks have."""
    if tensor.dtype not in (*_FLOATS, *_KEPT):
        raise Refused(f"{name!r} is of the type {tensor.dtype}, which no network here has")
    dtype = torch.float32 if tensor.dtype in _FLOATS else tensor.dtype
    return tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)


def _describe(value: Any) -> str:
    if isinstance(value, Record) and value.kind in (DICT, ORDERED_DICT):
        keys = ", ".join(repr(key[:40]) for key in list(value.entries)[:5])
        return f"a dictionary with the keys {keys}" if keys else "a dictionary without named entries"
    if isinstance(value, Record):
        return f"what {value.kind[:80]!r} would make"
    return f"the name {value.path[:80]!r}" if isinstance(value, Name) else f"a {type(value).__name__}"
