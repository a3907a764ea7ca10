"""Everything needed to continue a training exactly, in one file; and signals that wait for a consistent moment.

A checkpoint is a safetensors file with the rest as JSON in its header, written atomically between two steps, with
checksums of both. It is not a bundle: a finished training keeps only the header. Knows nothing about data or how a step
is made.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from maskloom.errors import BadFile
from maskloom.files import atomic_path, fingerprint
from maskloom.models.bundle import tensors_checksum
from maskloom.training.mining import HardNegatives
from maskloom.training.optimisers import ON_CPU, is_fused
from maskloom.training.updates import Updater

VERSION = 1
KEY = "maskloom_checkpoint"
CHECKSUM = "checksum"
"""The entry of the header that holds the checksum of the others, among them that of the tensors ("tensors")."""
LOSSES = "mining.losses"


@dataclass(kw_only=True)
class Position:
    """Where a training stands, always between two steps."""

    fingerprint: str
    """Of the job; a checkpoint of another job is not continued."""
    batch_size: int
    """Images per batch, as decided at the start."""
    pieces: int = 1
    """Into how many pieces a batch is cut for memory's sake."""
    epoch: int = 0
    """Counted from 0."""
    step_in_epoch: int = 0
    """Steps of this epoch that are done."""
    step: int = 0
    """Steps done altogether."""
    finished: bool = False
    seconds: float = 0.0
    """Spent in all sessions together."""
    events: list[dict[str, Any]] = field(default_factory=list)
    """The lines of the log so far."""

    @property
    def epochs_done(self) -> list[dict[str, Any]]:
        """The log's lines about finished epochs, oldest first."""
        return [event for event in self.events if event["event"] == "epoch"]

    @property
    def scores(self) -> list[float]:
        """All validation scores, oldest first."""
        return [event["score"] for event in self.epochs_done if event["score"] is not None]


def save_checkpoint(
    path: Path, position: Position, updater: Updater | None, mining: HardNegatives | None = None
) -> None:
    """Writes the checkpoint atomically; without an ``updater`` only where the training stands."""
    header: dict[str, Any] = {"version": VERSION, "position": asdict(position)}
    tensors: dict[str, Tensor] = {}
    if updater is not None:
        header["counters"] = updater.counters()
        header["scaler"] = updater.scaler.state_dict()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(updater, mining).items()}
    header["tensors"] = tensors_checksum(tensors)
    header[CHECKSUM] = fingerprint(header)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={KEY: json.dumps(header, allow_nan=False)})


def _tensors(updater: Updater, mining: HardNegatives | None) -> dict[str, Tensor]:
    """Returns network, average, optimiser and remembered losses by name."""
    tensors = {f"network.{name}": tensor for name, tensor in _state(updater.network).items()}
    if updater.average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in updater.average.network.named_parameters()}
    for name, parameter in updater.network.named_parameters():
        for key, value in updater.optimiser.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimiser.{key}.{name}"] = value
    if mining is not None:
        tensors[LOSSES] = mining.losses
    return tensors


def read_position(path: Path) -> Position | None:
    """Returns where the checkpoint stands, or None where there is none; reads the header only.

    Raises ``BadFile`` when the file is damaged or was written by another version.
    """
    header = _read_header(path)
    return Position(**header["position"]) if header else None


def _read_header(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as stream:
            header: dict[str, Any] = json.loads((stream.metadata() or {})[KEY])
    except (SafetensorError, OSError, ValueError, KeyError, RecursionError) as error:
        raise _damaged(path, error) from error
    if header.get("version") != VERSION:
        found = header.get("version")
        raise BadFile(path, f"expected a checkpoint of version {VERSION}, found {found!r}; delete it to train anew")
    stated = header.pop(CHECKSUM, None)
    # Earlier versions wrote no checksum, neither of the header nor of the tensors.
    if (stated is not None or "tensors" in header) and stated != fingerprint(header):
        raise _damaged(path, ValueError("its checksum differs"))
    return header


def is_sealed_checkpoint(path: Path) -> bool:
    """Returns whether the checkpoint carries checksums, of an earlier version it does not; reads all of it.

    Raises ``BadFile`` where it is not what was written.
    """
    header = _read_header(path)
    try:
        if header is None:
            raise KeyError("there is no such file")
        _read_tensors(path, header)
    except (SafetensorError, OSError, KeyError, RuntimeError) as error:
        raise _damaged(path, error) from error
    return "tensors" in header


def _read_tensors(path: Path, header: dict[str, Any]) -> dict[str, Tensor]:
    """Returns the tensors; raises ``KeyError`` where they are not those that the header was written with."""
    with safe_open(path, framework="pt") as stream:
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a dict)
    if header.get("tensors", tensors_checksum(tensors)) != tensors_checksum(tensors):
        raise KeyError("the checksum of its tensors differs")
    return tensors


def _damaged(path: Path, error: Exception) -> BadFile:
    reason = " ".join(str(error).split())
    return BadFile(path, f"expected a training checkpoint, found something else ({reason}); delete it to train anew")


@torch.no_grad()
def restore(path: Path, updater: Updater, mining: HardNegatives | None = None) -> None:
    """Fills network, average, optimiser, gradient scaler, counters and remembered losses from the checkpoint.

    Raises ``BadFile`` when it does not fit, which a checkpoint of the same job always does.
    """
    header = _read_header(path)
    try:
        if header is None:
            raise KeyError("there is no such file")
        tensors = _read_tensors(path, header)
        _fill(updater.network, tensors, "network.")
        if updater.average is not None:
            _fill(updater.average.network, tensors, "average.", parameters_only=True)
        _fill_optimiser(updater, tensors)
        if mining is not None:
            mining.losses.copy_(tensors[LOSSES])
        if updater.scaler.is_enabled():
            updater.scaler.load_state_dict(header["scaler"])
        updater.set_counters(header["counters"])
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise _damaged(path, error) from error


def _state(network: nn.Module) -> dict[str, Tensor]:
    """Returns the network's tensors, of those with several names only the first (published VGG networks have such)."""
    once = {name for name, _ in network.named_parameters()} | {name for name, _ in network.named_buffers()}
    return {name: tensor for name, tensor in network.state_dict().items() if name in once}


def _fill(network: nn.Module, tensors: dict[str, Tensor], prefix: str, *, parameters_only: bool = False) -> None:
    targets = dict(network.named_parameters()) if parameters_only else _state(network)
    for name, target in targets.items():
        target.copy_(tensors[prefix + name])


def _fill_optimiser(updater: Updater, tensors: dict[str, Tensor]) -> None:
    """Fills the optimiser's state; what has a parameter's shape must also lie in memory as the parameter does.

    (The fused kernels walk through parameter and state in the order of memory.)
    """
    parameters = dict(updater.network.named_parameters())
    for full_name, value in tensors.items():
        kind, _, rest = full_name.partition(".")
        if kind != "optimiser":
            continue
        key, _, name = rest.partition(".")
        parameter = parameters[name]
        if key in ON_CPU:
            kept = value.to(parameter.device if is_fused(updater.optimiser) else "cpu")
        else:
            kept = torch.empty_like(parameter.detach(), dtype=value.dtype).copy_(value)
        updater.optimiser.state[parameter][key] = kept


@contextmanager
def interrupt_waits() -> Iterator[None]:
    """Holds Ctrl-C back until the block is done, so that it never lands in the middle of a change of state.

    Outside the main thread, where Python delivers no signals, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)

    previous = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if received:
        raise KeyboardInterrupt
