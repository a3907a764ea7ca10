"""Several processes that train one network together: what they tell each other, by torch.distributed.

Every process ("rank") makes the same calls in the same order. Small numbers go through the CPU (gloo), tensors of the
device through NCCL where there is CUDA. Whether a rank still lives is watched from outside (``supervisor``). Knows
nothing about networks, losses and how a step is made.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from maskloom.data.loader import Part
from maskloom.errors import UserError

PATIENCE = timedelta(minutes=30)
"""A rank that waited so long for another one gives up."""
BUCKET = 2**23
"""Numbers that are added up over the ranks in one go."""


class Lost(RuntimeError):
    """Another rank does not answer any more."""


@dataclass(frozen=True, kw_only=True)
class Team:
    """This process's place among those that train one network."""

    rank: int
    """From 0; rank 0 writes the files."""
    size: int
    """At least 2."""
    device: torch.device
    """This rank's own."""
    tensors: dist.ProcessGroup
    """Through which tensors of the device go."""
    words: dist.ProcessGroup
    """Through which numbers and texts of the CPU go."""

    @property
    def leads(self) -> bool:
        """Whether this rank writes the files and speaks for all."""
        return self.rank == 0

    @property
    def part(self) -> Part:
        """This rank's part of every batch, and of whatever else is divided."""
        return Part(self.rank, self.size)

    def highest(self, values: Sequence[int]) -> list[int]:
        """Returns the highest of all ranks' values, place by place; each rank gives as many, none below 0."""
        told = torch.tensor(values, dtype=torch.int64)
        with _losses_told():
            dist.all_reduce(told, dist.ReduceOp.MAX, group=self.words)
        return [int(value) for value in told.tolist()]

    def wait(self) -> None:
        """Returns once all ranks are here."""
        self.highest([0])

    def of_leader(self, value: Any) -> Any:
        """Returns the value that rank 0 has; anything that JSON holds."""
        return self._told(value if self.leads else None)[0]

    def merged(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the entries of all ranks together, rank by rank; no two may have the same key.

        Values are what JSON holds.
        """
        return {key: value for each in self._told(dict(own)) for key, value in each.items()}

    def _told(self, own: Any) -> list[Any]:
        """Returns every rank's value, as JSON: nothing that comes from a socket is unpickled."""
        text = json.dumps(own).encode()
        (longest,) = self.highest([len(text)])
        filled = torch.frombuffer(bytearray(text.ljust(longest)), dtype=torch.uint8)
        told = torch.empty((self.size, longest), dtype=torch.uint8)
        with _losses_told():
            dist.all_gather_single(told.view(-1), filled, group=self.words)
        return [json.loads(bytes(row.numpy())) for row in told]

    def tensor_of_leader(self, tensor: Tensor) -> Tensor:
        """Returns the tensor of the device that rank 0 has, in the place of this rank's own of the same shape."""
        with _losses_told():
            dist.broadcast(tensor, src=0, group=self.tensors)
        return tensor

    def gathered(self, tensor: Tensor, into: Tensor) -> Tensor:
        """Returns ``into`` (ranks × the tensor's shape) filled with the ranks' tensors of one shape.

        Takes no memory, so that no rank runs out of it while others wait; the tensor lies in memory as its shape says.
        """
        assert tensor.is_contiguous() and into.is_contiguous(), "made so where memory may run out"
        with _losses_told():
            dist.all_gather_single(into.flatten(0, 1), tensor, group=self.tensors)
        return into

    def sum_(self, tensor: Tensor) -> Tensor:
        """Returns the tensor after adding all ranks' to it in place."""
        with _losses_told():
            dist.all_reduce(tensor, group=self.tensors)
        return tensor

    @torch.no_grad()
    def add_up(self, tensors: Sequence[Tensor], room: Tensor) -> None:
        """Gives each tensor, in place, the sum of all ranks' own; takes no memory but the ``room`` of ``room_for``."""
        for bucket in _buckets(tensors):
            count, size = sum(tensor.numel() for tensor in bucket), bucket[0].element_size()
            flat = room[: count * size].view(bucket[0].dtype)
            parts = torch.split(flat, [tensor.numel() for tensor in bucket])
            shaped = [part.view(tensor.shape) for part, tensor in zip(parts, bucket, strict=True)]
            torch._foreach_copy_(shaped, bucket)
            self.sum_(flat)
            torch._foreach_copy_(bucket, shaped)


def room_for(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Returns the bytes that ``Team.add_up`` takes for these tensors, or for some of them."""
    largest = max((tensor.nbytes for tensor in tensors), default=0)
    most = max((BUCKET * tensor.element_size() for tensor in tensors), default=0)
    total = sum(tensor.nbytes for tensor in tensors)
    return torch.empty(max(largest, min(most, total)), dtype=torch.uint8, device=device)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yields the tensors in order, those of one type together up to ``BUCKET`` numbers."""
    bucket: list[Tensor] = []
    numbers = 0
    for tensor in tensors:
        if bucket and (tensor.dtype != bucket[0].dtype or numbers + tensor.numel() > BUCKET):
            yield bucket
            bucket, numbers = [], 0
        bucket.append(tensor)
        numbers += tensor.numel()
    if bucket:
        yield bucket


@contextmanager
def _losses_told() -> Iterator[None]:
    """Turns what torch says of a connection that broke, or of a wait that was too long, into ``Lost``."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (dist.DistError, RuntimeError) as error:
        raise Lost(" ".join(str(error).split())) from error


@contextmanager
def joined(*, rank: int, size: int, device: torch.device, meeting: Path) -> Iterator[Team]:
    """Yields this rank's place among ``size`` ones, which all name the same ``meeting``, a file that is not there yet.

    Raises ``Lost`` when the others do not come, and ``UserError`` where this torch cannot join GPUs.
    """
    if device.type == "cuda" and not dist.is_nccl_available():
        raise UserError(
            f"{device}: expected a torch with NCCL to train one network on several GPUs, found one without; use one "
            "GPU per network"
        )
    if sys.platform == "linux":  # all on this machine, whatever its name resolves to and the environment says
        os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    with _losses_told():
        store = dist.FileStore(str(meeting), size)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)
        words = dist.group.WORLD
        assert words is not None
        tensors = words
        if device.type == "cuda":
            torch.cuda.set_device(device)
            tensors = dist.new_group(backend="nccl", timeout=PATIENCE)
    yield Team(rank=rank, size=size, device=device, tensors=tensors, words=words)
    dist.destroy_process_group()  # not after an error: it might wait for those that are gone
