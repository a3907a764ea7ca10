"""A segmenter in one file, for inference: safetensors, with everything else as JSON in its header.

Nothing in the file is executed, and what its header claims is checked against the file before anything is built. It
carries a checksum of settings and weights, so that damage is found wherever the file was copied to.
A bundle is not a checkpoint: it holds no optimiser. Loading needs neither pretrained weights nor a network connection.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from maskloom.config import parse
from maskloom.data.input_policy import InputPolicy
from maskloom.errors import BadFile, UserError
from maskloom.files import write_bytes
from maskloom.models.decoders import build_network
from maskloom.models.encoders import NetworkSettings
from maskloom.models.segmenter import Normalisation, Segmenter
from maskloom.records import Task

VERSION = 1
KEY = "maskloom"
"""The one entry of the header's metadata; with a second one the order of entries, and so the bytes, would vary."""

CHECKSUM = "crc32"
"""The entry of the settings that holds the checksum of the others and of all tensors; earlier versions wrote none."""

MAX_HEADER_BYTES = 16 * 2**20

Claims = dict[str, tuple[str, list[int]]]
"""What a header says of each tensor: its type as safetensors writes it, and its shape."""

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"} | {
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"
}  # fmt: skip


def save_bundle(path: Path, segmenter: Segmenter, extra: dict[str, Any] | None = None) -> None:
    """Writes the segmenter atomically; equal segmenters give equal bytes, wherever their weights lay.

    ``extra`` is any JSON the writer wants to find again (see ``read_extra``).
    Raises ``UserError`` when a weight is NaN or infinite, since no one could load the file.
    """
    tensors = {
        name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in segmenter.network.state_dict().items()
    }
    bad = _first_not_finite(tensors)
    if bad:
        raise UserError(
            f"{path}: {bad!r} holds NaN or infinite weights, the training diverged; lower the learning rate"
        )
    config = {
        "version": VERSION,
        "task": {"kind": segmenter.task.kind, "classes": list(segmenter.task.classes)},
        "network": segmenter.network_settings.model_dump(mode="json"),
        "normalisation": segmenter.normalisation.model_dump(mode="json"),
        "policy": segmenter.policy.model_dump(mode="json"),
        "extra": extra or {},
    }
    text = _text(config | {CHECKSUM: tensors_checksum(tensors, zlib.crc32(_text(config).encode()))})
    write_bytes(path, safetensors.torch.save(tensors, metadata={KEY: text}))


def _text(config: dict[str, Any]) -> str:
    return json.dumps(config, sort_keys=True, allow_nan=False, ensure_ascii=False)


def tensors_checksum(tensors: Mapping[str, Tensor], start: int = 0) -> int:
    """Returns the CRC-32 of the bytes of contiguous tensors on the CPU, by name; it goes on from ``start``."""
    found = start
    for name in sorted(tensors):
        found = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, zlib.crc32(name.encode(), found))
    return found


def load_bundle(path: Path | str) -> Segmenter:
    """Returns the segmenter, on the CPU, in evaluation mode; its ``network`` is the ``torch.nn.Module``.

    Leaves torch's random state as it was. Raises ``BadFile`` for anything that is not a whole bundle with finite
    weights: a pickle, another safetensors file, a cut file, a header that claims what the file does not hold.
    """
    path = Path(path)
    config, claims = _read_header(path)
    settings = _parse_part(path, config, "network", NetworkSettings)
    normalisation = _parse_part(path, config, "normalisation", Normalisation)
    policy = _parse_part(path, config, "policy", InputPolicy)
    task = _parse_task(path, config.get("task"))
    if len(normalisation.mean) != settings.channels:
        raise BadFile(
            path, f"the normalisation has {len(normalisation.mean)} channels, the network {settings.channels}"
        )
    plain = settings.model_copy(update={"weights": "none", "bundle": None})
    network = _build(path, plain, task.num_maps, claims)
    _fill(path, network, _read_tensors(path, config))
    return Segmenter(
        network=network.eval(), normalisation=normalisation, policy=policy, task=task, network_settings=settings
    )


class Bundles(Mapping[str, Segmenter]):
    """Bundles by name, each read when it is asked for and not kept: whoever asks decides how many are in memory."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = dict(paths)

    def __getitem__(self, name: str) -> Segmenter:
        return load_bundle(self._paths[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def read_extra(path: Path | str) -> dict[str, Any]:
    """Returns what ``save_bundle`` was given as ``extra``; reads the header only. Raises ``BadFile``."""
    extra = _read_header(Path(path))[0].get("extra")
    return extra if isinstance(extra, dict) else {}


def read_normalisation(path: Path | str) -> Normalisation:
    """Returns how the bundle's network is fed; reads the header only. Raises ``BadFile``."""
    path = Path(path)
    normalisation: Normalisation = _parse_part(path, _read_header(path)[0], "normalisation", Normalisation)
    return normalisation


def is_sealed_bundle(path: Path) -> bool:
    """Returns whether the bundle carries a checksum, which one of an earlier version does not; reads all of it.

    Raises ``BadFile`` where it is not what was written.
    """
    config, _ = _read_header(path)
    _read_tensors(path, config)
    return CHECKSUM in config


def start_from_bundle(network: nn.Module, path: Path, settings: NetworkSettings, num_maps: int) -> None:
    """Fills a fresh network of these settings with the bundle's weights, all of them.

    Raises ``BadFile`` (a ``UserError``) when the bundle holds another network or another number of maps, and whatever
    ``load_bundle`` raises for a file that is no bundle.
    """
    config, claims = _read_header(path)
    theirs = _parse_part(path, config, "network", NetworkSettings)
    task = _parse_task(path, config.get("task"))
    found = f"{theirs.architecture} over {theirs.encoder}"
    if (theirs.architecture, theirs.encoder) != (settings.architecture, settings.encoder):
        raise BadFile(
            path,
            f"its network is {found}, expected {settings.architecture} over {settings.encoder}; "
            "build that network, or start from another bundle",
        )
    if (task.num_maps, theirs.auxiliary_maps) != (num_maps, settings.auxiliary_maps):
        raise BadFile(
            path,
            f"its head gives {_maps(task.num_maps, theirs.auxiliary_maps)} ({', '.join(task.classes)}), expected "
            f"{_maps(num_maps, settings.auxiliary_maps)}; start from a bundle with as many",
        )
    _check_claims(path, network, claims)
    _fill(path, network, _read_tensors(path, config))


def _fill(path: Path, network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Loads tensors into the network that they fit; raises ``BadFile`` where it refuses their values."""
    try:
        network.load_state_dict(tensors)
    except UserError as error:
        raise BadFile(path, f"its weights: {error}") from None


def _maps(num_maps: int, auxiliary: int) -> str:
    return f"{num_maps} map(s)" + (f" and {auxiliary} auxiliary" if auxiliary else "")


def _read_header(path: Path) -> tuple[dict[str, Any], Claims]:
    """Returns our settings and what the header says of each tensor, after checking that it is such a file."""
    try:
        with path.open("rb") as stream:
            start = stream.read(8)
            size = path.stat().st_size
            _check_start(path, start, size)
            header = stream.read(struct.unpack("<Q", start)[0])
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise BadFile(path, f"cannot be read ({error.strerror}); give the path of a .safetensors bundle") from error
    try:
        entries = json.loads(header)
        config = json.loads(entries.pop("__metadata__")[KEY])
        claims = {name: (str(entry["dtype"]), list(entry["shape"])) for name, entry in entries.items()}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise BadFile(
            path,
            "expected a maskloom bundle, found a safetensors file without maskloom's settings; "
            "use it as the encoder's weights, or bundle it first",
        ) from None
    if not isinstance(config, dict) or config.get("version") != VERSION:
        found = config.get("version") if isinstance(config, dict) else config
        raise BadFile(path, f"expected a bundle of version {VERSION}, found {found!r}; use the maskloom that wrote it")
    return config, claims


def _check_start(path: Path, start: bytes, size: int) -> None:
    """Raises ``BadFile`` unless the first bytes can begin a safetensors file of this size."""
    wrong = "expected a maskloom bundle (safetensors), found "
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise BadFile(path, wrong + "a pickle, which could run any program; it is not opened, use the bundle instead")
    if start[:2] == b"PK":
        raise BadFile(path, wrong + "a zip archive (a torch checkpoint?); it is not opened, use the bundle instead")
    if len(start) < 8:
        raise BadFile(path, wrong + f"a file of {size} bytes; copy it again")
    claimed = struct.unpack("<Q", start)[0]
    if claimed > MAX_HEADER_BYTES or claimed < 2:
        raise BadFile(path, wrong + "another kind of file, or a damaged one (its first bytes are no header length)")
    if claimed + 8 > size:
        raise BadFile(path, f"cut off: expected a header of {claimed} bytes, found {size - 8}; copy the file again")


def _parse_part(path: Path, config: dict[str, Any], name: str, kind: type[Any]) -> Any:
    try:
        return parse(kind, config.get(name), origin=name)
    except UserError as error:
        raise BadFile(path, f"settings in the bundle: {error}") from error


def _parse_task(path: Path, values: Any) -> Task:
    try:
        kind, classes = values["kind"], tuple(values["classes"])
        if kind not in ("binary", "multiclass", "multilabel") or not all(isinstance(name, str) for name in classes):
            raise UserError(f"expected a task with class names, found {values!r}")
        return Task(kind=kind, classes=classes)
    except (UserError, KeyError, TypeError) as error:
        raise BadFile(path, f"settings in the bundle: task: {error}") from error


def _read_tensors(path: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the file's tensors; the library checks that their claims cover the file exactly.

    Raises ``BadFile`` where they, or the settings that were read, are not those of which the checksum was written.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as stream:
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise BadFile(
            path, f"damaged or cut off ({' '.join(str(error).split())[:200]}); copy the file again"
        ) from error
    bad = _first_not_finite(tensors)
    if bad:
        raise BadFile(path, f"{bad!r} holds NaN or infinite weights; expected finite ones, train it again")
    others = {name: value for name, value in config.items() if name != CHECKSUM}
    try:
        found = tensors_checksum(tensors, zlib.crc32(_text(others).encode()))
    except (ValueError, RecursionError):  # NaN or halves of characters, which were never written
        found = None
    if CHECKSUM in config and config[CHECKSUM] != found:
        raise BadFile(path, "damaged (its checksum differs); copy the file again, or train it again")
    return tensors


def _build(path: Path, settings: NetworkSettings, num_maps: int, claims: Claims) -> nn.Module:
    """Returns the network of these settings, with any weights, after checking that the file's would fill it.

    The check is made on a network without memory where its encoder allows that, so that a small file that names a
    giant network costs nothing.
    """
    try:
        with torch.device("meta"):
            network = build_network(settings, num_maps)
        _check_claims(path, network, claims)
        if is_filled_by_its_state(network):  # drawing first weights takes seconds for large networks
            return network.to_empty(device="cpu")
    except BadFile:
        raise
    except UserError:  # some encoders compute with their own values while they are built
        pass
    with torch.random.fork_rng(devices=[]):
        try:
            network = build_network(settings, num_maps)
        except UserError as error:
            raise BadFile(path, f"its network cannot be built: {error}") from error
    _check_claims(path, network, claims)
    return network


class _Held(pickle.Pickler):
    """Walks through all that an object holds, whoever's its classes are, and writes nothing that is kept."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO())
        self.tensors: list[Tensor] = []

    def persistent_id(self, value: object) -> str | None:
        """Notes a tensor and does not look into it; a device that was remembered would be the wrong one."""
        if isinstance(value, torch.device):
            raise pickle.PicklingError("a device")
        if isinstance(value, Tensor):
            self.tensors.append(value)
        return "tensor" if isinstance(value, Tensor) else None


def is_filled_by_its_state(network: nn.Module) -> bool:
    """Returns whether all tensors that the network holds, in whatever attribute, are those of its state dict.

    One that two layers share does not count: they would each be given their own.
    """
    held = _Held()
    try:
        held.dump(network)
    except Exception:  # one that cannot be walked through is not trusted
        return False
    own = [
        id(tensor)
        for module in network.modules()
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
    ]
    state = {id(tensor) for tensor in network.state_dict(keep_vars=True).values()}
    return len(own) == len(set(own)) and {id(tensor) for tensor in held.tensors} == state


def _check_claims(path: Path, network: nn.Module, claims: Claims) -> None:
    """Raises ``BadFile`` unless names, shapes and types agree exactly with the network's."""
    expected = {name: (_DTYPES.get(value.dtype, ""), list(value.shape)) for name, value in network.state_dict().items()}
    differing = sorted(expected.keys() ^ claims.keys())
    if differing:
        name = differing[0]
        found = "is missing" if name in expected else "is unknown to the network"
        raise BadFile(path, f"its weights do not fit its settings: {name!r} {found} ({len(differing)} such names)")
    for name, claim in claims.items():
        if claim != expected[name]:
            (dtype, shape), (found_dtype, found_shape) = expected[name], claim
            raise BadFile(
                path,
                f"its weights do not fit its settings: expected {name!r} as {dtype} {shape}, "
                f"found {found_dtype} {found_shape}",
            )


def _first_not_finite(tensors: dict[str, Tensor]) -> str | None:
    """Returns the name of the first tensor with a NaN or an infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return name
    return None
