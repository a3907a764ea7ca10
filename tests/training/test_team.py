"""What ranks tell each other and how: nothing that can be executed, on the loopback, after memory was taken."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from team_jobs import in_ranks, job, trained_alone, weights_of
from test_data_parallel import assert_alike, assert_equal
from tiny_job import bce, tiny_network
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from maskloom.records import Record
from maskloom.training.engine import train
from maskloom.training.team import Team, room_for

# Memory


class RunsOutOnce(TorchFunctionMode):
    """Memory runs out at the first call of a function of torch's of which ``is_it`` says so, by its arguments."""

    def __init__(self, function: Any, is_it: Callable[[Any, Any], bool]) -> None:
        super().__init__()
        self._function, self._is_it, self.has_run_out = function, is_it, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is self._function and not self.has_run_out and self._is_it(args, kwargs or {}):
            self.has_run_out = True
            raise torch.OutOfMemoryError("CUDA out of memory")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("function", "is_it"),
    [
        # The logits of two maps, made fit to be sent.
        (torch.Tensor.contiguous, lambda args, _: args[0].ndim == 4 and args[0].shape[1] == 2),
        # The room in which gradients are added up.
        (torch.empty, lambda args, options: isinstance(args[0], int) and options.get("dtype") is torch.uint8),
    ],
    ids=["logits", "room"],
)
def test_memory_runs_out_before_others_wait(
    tmp_path: Path, records: list[Record], function: Any, is_it: Callable[[Any, Any], bool]
) -> None:
    """All that a rank makes of its own is made before the others wait for it; then all make the step again."""

    def of_two_maps(logits: Tensor, labels: Tensor) -> Tensor:
        return bce(logits[:, :1], labels) + bce(logits[:, 1:], labels)

    def network() -> nn.Module:
        inner = tiny_network(with_norm=False, dropout=0.0)
        assert isinstance(inner, nn.Sequential)
        return nn.Sequential(*inner[:-1], nn.Conv2d(4, 2, 1))

    settings: dict[str, Any] = {"batch_size": 4, "accumulation": 1, "epochs": 1, "loss": of_two_maps}

    def work(team: Team) -> tuple[bool, dict[str, Tensor]]:
        short = RunsOutOnce(function, is_it if team.rank == 1 else lambda *_: False)
        own = job(tmp_path / "ranks", records, network=network(), **settings)
        with short:
            train(own, team=team)
        return short.has_run_out, weights_of(own.segmenter.network)

    told = in_ranks(tmp_path / "ranks", work)
    assert [each[0] for each in told] == [False, True], told
    assert_equal(told[0][1], told[1][1])
    assert (tmp_path / "ranks" / "log.jsonl").read_text().count("out_of_memory") == 1
    assert_alike(told[0][1], trained_alone(tmp_path / "alone", records, network=network(), **settings))


def test_memory_for_gradients_of_others_runs_out_before_they_wait(tmp_path: Path, records: list[Record]) -> None:
    """Of a rank that has no image of its own; batches of one image cannot be cut, which all say."""

    def work(team: Team) -> None:
        # Optimisers state more when they make something like a parameter.
        short = RunsOutOnce(torch.zeros_like, lambda args, options: isinstance(args[0], nn.Parameter) and not options)
        own = job(tmp_path / "ranks", records, batch_size=1, accumulation=1)
        with short:
            train(own, team=team)

    told = in_ranks(tmp_path / "ranks", work)
    assert all("does not hold one training image" in str(each).splitlines()[-1] for each in told), told


# What ranks tell each other


def test_what_ranks_tell_is_read_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through sockets that any user of the host may reach, so that nothing of it may be executed."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("it is unpickled")

    for name in ("all_gather_object", "broadcast_object_list", "gather_object", "scatter_object_list"):
        monkeypatch.setattr(torch.distributed, name, refuse)

    def work(team: Team) -> Any:
        own = {f"record \u00fc {team.rank}": {"tp": [team.rank, 2**60]}, "x" * 50 * team.rank: None}
        scores = [team.of_leader(score + team.rank) for score in (0.1 + 0.2, float("nan"))]
        return scores, list(team.merged(own).items()), team.merged({})

    told = in_ranks(tmp_path, work, size=3)
    for scores, merged, nothing in told:
        assert scores[0] == 0.1 + 0.2 and scores[1] != scores[1]
        assert merged == [
            ("record \u00fc 0", {"tp": [0, 2**60]}), ("", None),
            ("record \u00fc 1", {"tp": [1, 2**60]}), ("x" * 50, None),
            ("record \u00fc 2", {"tp": [2, 2**60]}), ("x" * 100, None),
        ]  # fmt: skip
        assert nothing == {}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the interface has another name")
def test_ranks_meet_on_the_loopback_whatever_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    for name in names:
        monkeypatch.setenv(name, "no-such-interface")

    def work(team: Team) -> Any:
        return team.highest([team.rank]), [os.environ[name] for name in names]

    assert in_ranks(tmp_path, work) == [([1], ["lo", "lo"])] * 2


@pytest.mark.parametrize("bucket", [7, 1000])
def test_sums_in_a_room_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket: int) -> None:
    """Whatever the type, the order in memory and the number at once."""
    monkeypatch.setattr("maskloom.training.team.BUCKET", bucket)

    def of(rank: int) -> list[Tensor]:
        shapes = [(3,), (2, 3, 4, 5), (), (2, 2), (9,)]
        tensors = [torch.arange(float(np.prod(shape))).reshape(shape) * (rank + 1) for shape in shapes]
        tensors[1] = tensors[1].contiguous(memory_format=torch.channels_last)
        return [*tensors, torch.tensor([rank, 5]), torch.full((3,), float(rank), dtype=torch.float64)]

    def work(team: Team) -> Any:
        tensors = of(team.rank)
        team.add_up(tensors, room_for(tensors, team.device))
        team.add_up(tensors[3:5], room_for(tensors, team.device))
        return tensors

    expected = [first + second for first, second in zip(of(0), of(1), strict=True)]
    expected[3:5] = [2 * each for each in expected[3:5]]
    for told in in_ranks(tmp_path, work):
        assert all(torch.equal(each, other) for each, other in zip(told, expected, strict=True))
