"""Several processes that train one network together: what they tell each other, by torch.distributed.

Every process ("rank") makes the same calls in the same order. Small numbers go through the CPU (gloo), tensors of the
device through NCCL where there is CUDA. Whether a rank still lives is watched from outside (``supervisor``). Knows
nothing about networks, losses and how a step is made.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from maskloom.data.loader import Part
from maskloom.errors import UserError

PATIENCE = timedelta(minutes=30)
"""A rank that waited so long for another one gives up."""
BUCKET = 2**23
"""Numbers that are added up over the ranks in one go."""

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


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
    """Through which numbers and objects of the CPU go."""

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
        """Returns the value that rank 0 has; anything that can be pickled."""
        told = [value]
        with _losses_told():
            dist.broadcast_object_list(told, src=0, group=self.words)
        return told[0]

    def merged(self, own: Mapping[_Key, _Value]) -> dict[_Key, _Value]:
        """Returns the entries of all ranks together, rank by rank; no two may have the same key."""
        told: list[Mapping[_Key, _Value]] = [{} for _ in range(self.size)]
        with _losses_told():
            dist.all_gather_object(told, dict(own), group=self.words)
        return {key: value for each in told for key, value in each.items()}

    def tensor_of_leader(self, tensor: Tensor) -> Tensor:
        """Returns the tensor of the device that rank 0 has, in the place of this rank's own of the same shape."""
        with _losses_told():
            dist.broadcast(tensor, src=0, group=self.tensors)
        return tensor

    def gathered(self, tensor: Tensor, into: Tensor) -> Tensor:
        """Returns ``into`` (ranks × the tensor's shape) filled with the ranks' tensors of one shape."""
        with _losses_told():
            dist.all_gather_single(into.flatten(0, 1), tensor.contiguous(), group=self.tensors)
        return into

    def sum_(self, tensor: Tensor) -> Tensor:
        """Returns the tensor after adding all ranks' to it in place."""
        with _losses_told():
            dist.all_reduce(tensor, group=self.tensors)
        return tensor

    @torch.no_grad()
    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Gives each tensor, in place, the sum of all ranks' own; few go together, so that little memory is taken."""
        for bucket in _buckets(tensors):
            flat = self.sum_(torch.cat([tensor.reshape(-1) for tensor in bucket]))
            parts = torch.split(flat, [tensor.numel() for tensor in bucket])
            torch._foreach_copy_(list(bucket), [part.view(t.shape) for part, t in zip(parts, bucket, strict=True)])


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
    if sys.platform == "linux":  # all on this machine, whatever its name resolves to
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
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
