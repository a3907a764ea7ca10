from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from maskloom.errors import BadFile
from maskloom.training.checkpoint import Position, interrupt_waits, read_position, restore, save_checkpoint
from maskloom.training.mining import HardNegatives
from maskloom.training.optimisers import MovingAverage, OptimiserSettings, build_optimiser
from maskloom.training.updates import Updater


def updater_for(kind: str, *, seed: int, channels_last: bool) -> Updater:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
    if channels_last:
        network.to(memory_format=torch.channels_last)
    settings = OptimiserSettings.model_validate({"kind": kind, "lr": 0.01})
    return Updater(
        network,
        build_optimiser(settings, network),
        average=MovingAverage(network, 0.9),
        scaler=GradScaler("cpu", enabled=False),
        clip_norm=None,
        device=torch.device("cpu"),
    )


def step(updater: Updater, number: int) -> None:
    torch.manual_seed(number)
    updater.optimiser.zero_grad()
    images = torch.randn(2, 3, 6, 6).contiguous(memory_format=torch.channels_last)
    loss = updater.network(images).exp().mean()
    loss.backward()
    updater.apply(loss.detach(), learning_rate_factor=1.0, number=number)
    updater.check()


@pytest.mark.parametrize("kind", ["adamw", "adam", "nadam", "sgd", "rmsprop"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_restored_training_goes_on_exactly(tmp_path: Path, kind: str, channels_last: bool) -> None:
    path = tmp_path / "checkpoint.safetensors"
    first = updater_for(kind, seed=1, channels_last=channels_last)
    step(first, 1)
    step(first, 2)
    position = Position(fingerprint="a", batch_size=4, step=2, events=[{"event": "epoch", "score": 0.1}])
    save_checkpoint(path, position, first)
    second = updater_for(kind, seed=2, channels_last=channels_last)
    restore(path, second)
    assert read_position(path) == position
    assert second.counters() == first.counters()
    for number in (3, 4):
        step(first, number)
        step(second, number)
    for one, other in ((first.network, second.network), (first.average, second.average)):
        modules = [getattr(module, "network", module) for module in (one, other)]
        states: list[dict[str, Any]] = [module.state_dict() for module in modules]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_layer_of_two_names_is_kept_once(tmp_path: Path) -> None:
    """As VGG's convolutions in the published networks, which safetensors would refuse to write twice."""
    path = tmp_path / "checkpoint.safetensors"
    updaters = [updater_for("adam", seed=seed, channels_last=False) for seed in (1, 2)]
    for each in updaters:
        each.network.add_module("again", nn.Sequential(each.network[0]))
    save_checkpoint(path, Position(fingerprint="a", batch_size=4), updaters[0])
    restore(path, updaters[1])
    states = [each.network.state_dict() for each in updaters]
    assert "again.0.weight" in states[0] and all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_remembered_losses_come_back_whatever_they_are(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    updater, cpu = updater_for("sgd", seed=1, channels_last=False), torch.device("cpu")
    mining, other = (HardNegatives(5, every=3, device=cpu) for _ in range(2))
    mining.remember(0, torch.tensor(0.1))
    mining.remember(1, torch.tensor(torch.nan))
    save_checkpoint(path, Position(fingerprint="a", batch_size=4), updater, mining)
    restore(path, updater, other)
    assert other.losses.tolist() == [torch.tensor(0.1).item(), -torch.inf, -torch.inf]
    with pytest.raises(BadFile, match="delete it to train anew"):
        restore(path, updater, HardNegatives(5, every=2, device=cpu))


def test_no_file_is_no_position(tmp_path: Path) -> None:
    assert read_position(tmp_path / "checkpoint.safetensors") is None


@pytest.mark.parametrize("content", [b"", b"\x80\x05.", b"\x02\x00\x00\x00\x00\x00\x00\x00{}", b"\xff" * 64])
def test_anything_else_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadFile, match="delete it to train anew"):
        read_position(path)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, Position(fingerprint="a", batch_size=4), None)
    with pytest.raises(BadFile, match="delete it to train anew"):
        restore(path, updater_for("sgd", seed=1, channels_last=False))


def test_an_interrupt_waits_for_the_end_of_the_block() -> None:
    before = signal.getsignal(signal.SIGINT)  # ignored where the tests run in the background of a shell
    reached = False
    with pytest.raises(KeyboardInterrupt), interrupt_waits():
        os.kill(os.getpid(), signal.SIGINT)
        reached = True
    assert reached
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_are_left_alone() -> None:
    done = []

    def work() -> None:
        with interrupt_waits():
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1]
