"""What the tests of several processes share: ranks as forks of the test, and jobs that ranks find by name."""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # which optimisers load at their first use, here once for all ranks
from tiny_job import TASK, bce, tiny_job, tiny_network
from torch import Tensor, nn

from maskloom.errors import UserError
from maskloom.losses.terms import LossSettings, build_loss
from maskloom.records import Record
from maskloom.training.engine import TrainingJob, train
from maskloom.training.team import Team, joined

CPU = torch.device("cpu")
STUCK_SECONDS = 100
"""A rank that takes longer says where each of its threads stands, and fails."""


def in_ranks(folder: Path, work: Callable[[Team], Any], *, size: int = 2) -> list[Any]:
    """Returns what ``work`` returns on each of ``size`` ranks, forks of this process, which spares them the imports.

    A rank that fails returns its traceback as text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    meeting = folder / f"meeting{time.monotonic_ns()}"
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            faulthandler.dump_traceback_later(STUCK_SECONDS, exit=True)
            try:
                told: Any = None
                with joined(rank=rank, size=size, device=CPU, meeting=meeting) as team:
                    told = work(team)
            except BaseException:
                told = told or traceback.format_exc()
            (folder / f"told{rank}").write_bytes(pickle.dumps(told))
            os._exit(0)
        children.append(child)
    codes = [os.waitpid(child, 0)[1] for child in children]
    assert not any(codes), "the ranks wait for each other"
    return [pickle.loads((folder / f"told{rank}").read_bytes()) for rank in range(size)]


def job(
    folder: Path,
    records: list[Record],
    *,
    norm: bool = False,
    dropout: float = 0.0,
    terms: tuple[str, ...] = (),
    network: nn.Module | None = None,
    **changes: Any,
) -> TrainingJob:
    """Returns a tiny job without batch norm, dropout and rounding, but for what is asked for."""
    network = network or tiny_network(with_norm=norm, dropout=dropout)
    if terms:
        settings = LossSettings.model_validate({"terms": [{"kind": kind} for kind in terms]})
        changes["loss"] = build_loss(settings, TASK, image_height=64)
    return tiny_job(folder, records, network=network, **{"precision": "float32", **changes})


def weights_of(trained: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trained.state_dict().items()}


def trained_alone(folder: Path, records: list[Record], **changes: Any) -> dict[str, Tensor]:
    own = job(folder, records, **changes)
    train(own)
    return weights_of(own.segmenter.network)


def trained_in_ranks(folder: Path, records: list[Record], *, size: int = 2, **changes: Any) -> list[dict[str, Tensor]]:
    """Returns the network's tensors on each rank."""

    def work(team: Team) -> dict[str, Tensor]:
        own = job(folder, records, **changes)
        train(own, team=team)
        return weights_of(own.segmenter.network)

    told = in_ranks(folder, work, size=size)
    for each in told:
        assert isinstance(each, dict), each
    return told


class RunsOutOfMemory(nn.Module):
    """Fails on more than ``room`` images, after ``grace`` good calls."""

    def __init__(self, room: int, grace: int = 2) -> None:
        super().__init__()
        self.inner, self.room, self.grace = tiny_network(with_norm=False, dropout=0.0), room, grace

    def forward(self, images: Tensor) -> Tensor:
        self.grace -= 1
        if self.grace < 0 and len(images) > self.room and self.training:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.inner(images)


class WithCoarserMap(nn.Module):
    """Gives a second, coarser map in training, as deep supervision does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_network(with_norm=False, dropout=0.0)
        self.coarse = nn.Conv2d(3, 1, 4, stride=4)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits = self.inner(images)
        return (logits, self.coarse(images)) if self.training else logits


def supervised(logits: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
    return bce(logits[0], labels) + 0.4 * bce(logits[1], labels[:, ::4, ::4])


# What ranks that are processes of their own find by name


def make_job(folder: Path, records: list[Record], changes: dict[str, Any], team: Team) -> TrainingJob:
    return job(folder, records, **changes)


def make_dying_job(folder: Path, records: list[Record], changes: dict[str, Any], team: Team) -> TrainingJob:
    """The second rank kills itself when it has judged a few batches."""
    calls = 0

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if team.rank == 1 and calls == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return bce(logits, labels)

    return job(folder, records, **changes, loss=loss)


def make_refused_job(folder: Path, records: list[Record], changes: dict[str, Any], team: Team) -> TrainingJob:
    if team.rank == 1:
        raise UserError("images/3.png: expected a mask, found none; draw one")
    return job(folder, records, **changes)


def make_slow_job(folder: Path, records: list[Record], changes: dict[str, Any], team: Team) -> TrainingJob:
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        time.sleep(0.02)
        return bce(logits, labels)

    return job(folder, records, **changes, loss=loss)
