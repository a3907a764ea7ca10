from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from maskloom.training.optimisers import MovingAverage, OptimiserSettings, build_optimiser
from maskloom.training.updates import Updater

CPU = torch.device("cpu")


def updater_for(
    network: nn.Module, *, kind: str = "sgd", clip_norm: float | None = None, fp16: bool = False
) -> Updater:
    settings = OptimiserSettings.model_validate({"kind": kind, "lr": 1.0, "weight_decay": 0.0, "momentum": 0.0})
    return Updater(
        network,
        build_optimiser(settings, network),
        average=MovingAverage(network, 0.5),
        scaler=GradScaler("cpu", enabled=fp16),
        clip_norm=clip_norm,
        device=CPU,
    )


def give_gradient(network: nn.Module, value: list[float]) -> None:
    (parameter,) = network.parameters()
    parameter.grad = torch.tensor([value])


def test_gradients_are_clipped_to_the_norm() -> None:
    network = nn.Linear(2, 1, bias=False)
    before = network.weight.detach().clone()
    give_gradient(network, [3.0, 4.0])
    updater_for(network, clip_norm=1.0).apply(torch.tensor(0.5), learning_rate_factor=0.1, number=1)
    torch.testing.assert_close(before - network.weight, torch.tensor([[0.06, 0.08]]))


def test_small_gradients_stay_as_they_are() -> None:
    network = nn.Linear(2, 1, bias=False)
    before = network.weight.detach().clone()
    give_gradient(network, [0.3, 0.4])
    updater_for(network, clip_norm=1.0).apply(torch.tensor(0.5), learning_rate_factor=1.0, number=1)
    torch.testing.assert_close(before - network.weight, torch.tensor([[0.3, 0.4]]))


@pytest.mark.parametrize("kind", ["sgd", "adamw", "rmsprop"])
@pytest.mark.parametrize(("loss", "gradient"), [(torch.nan, 1.0), (1.0, torch.nan), (torch.inf, torch.inf)])
def test_a_step_that_is_not_finite_changes_nothing(kind: str, loss: float, gradient: float) -> None:
    network = nn.Linear(2, 1, bias=False)
    updater = updater_for(network, kind=kind, clip_norm=1.0)
    before = network.weight.detach().clone()
    give_gradient(network, [gradient, 1.0])
    updater.apply(torch.tensor(loss), learning_rate_factor=1.0, number=1)
    assert torch.equal(network.weight, before)
    assert (updater.check(), int(updater.num_skipped), updater.mean_loss()) == (1, 1, None)
    give_gradient(network, [1.0, 1.0])
    updater.apply(torch.tensor(0.25), learning_rate_factor=1.0, number=2)
    assert not torch.equal(network.weight, before)
    assert torch.isfinite(network.weight).all()
    assert (updater.check(), int(updater.num_skipped), updater.mean_loss()) == (0, 1, 0.25)


def test_batch_norm_is_set_back_after_a_skipped_step() -> None:
    network = nn.BatchNorm2d(1)
    updater = updater_for(network)
    network(torch.ones(2, 1, 2, 2))
    updater.check()
    sound = network.running_mean.clone()
    network(torch.full((2, 1, 2, 2), torch.nan)).sum().backward()
    updater.apply(torch.tensor(torch.nan), learning_rate_factor=1.0, number=1)
    assert network.running_mean.isnan().all()
    assert updater.check() == 1
    assert torch.equal(network.running_mean, sound)


def test_scaled_gradients_are_unscaled_and_overflows_lower_the_scale() -> None:
    network = nn.Linear(2, 1, bias=False)
    before = network.weight.detach().clone()
    updater = updater_for(network, fp16=True)
    loss = network(torch.tensor([[1.0, 2.0]])).sum()
    updater.scaler.scale(loss).backward()
    updater.apply(loss.detach(), learning_rate_factor=1.0, number=1)
    torch.testing.assert_close(before - network.weight, torch.tensor([[1.0, 2.0]]))
    scale, moved = updater.scaler.get_scale(), network.weight.detach().clone()
    give_gradient(network, [torch.inf, 1.0])
    updater.apply(torch.tensor(1.0), learning_rate_factor=1.0, number=2)
    assert torch.equal(network.weight, moved)
    assert updater.scaler.get_scale() == scale / 2
    assert updater.check() == 0 and not updater.is_scale_lost()  # the scaler's business, the loss was finite
    assert (int(updater.num_skipped), int(updater.num_overflows)) == (1, 1)


def test_an_overflow_leaves_batch_norm_alone() -> None:
    network = nn.BatchNorm2d(1)
    updater = updater_for(network, fp16=True)
    output = network(torch.ones(2, 1, 2, 2)).sum()
    updater.scaler.scale(output * torch.inf).backward()
    seen = network.running_mean.clone()
    updater.apply(output.detach(), learning_rate_factor=1.0, number=1)
    assert updater.check() == 0 and int(updater.num_skipped) == 1
    assert torch.equal(network.running_mean, seen) and seen.item() != 0


def test_a_scale_below_the_floor_is_lost() -> None:
    network = nn.Linear(2, 1, bias=False)
    before = network.weight.detach().clone()
    updater = updater_for(network, fp16=True)
    for number in range(1, 34):
        assert not updater.is_scale_lost()
        updater.scaler.scale(torch.tensor(1.0))
        give_gradient(network, [torch.inf, 1.0])
        updater.apply(torch.tensor(1.0), learning_rate_factor=1.0, number=number)
    assert updater.is_scale_lost() and updater.scaler.get_scale() == 2.0**-17
    assert torch.equal(network.weight, before) and int(updater.num_skipped) == 33
    assert not updater_for(network).is_scale_lost(), "there is none"


def test_counters_survive_as_plain_numbers() -> None:
    network = nn.Linear(2, 1, bias=False)
    updater, other = updater_for(network), updater_for(network)
    for loss in (0.1, 0.2, torch.nan, torch.nan):
        give_gradient(network, [0.0, 0.0])
        updater.apply(torch.tensor(loss), learning_rate_factor=1.0, number=1)
    other.set_counters(updater.counters())
    assert other.counters() == updater.counters()
    assert other.counters()["streak"] == 2
    assert other.mean_loss() == updater.mean_loss() == pytest.approx(0.15)
    updater.begin_epoch()
    assert updater.counters() == {"loss_sum": 0.0, "num_finite": 0, "num_skipped": 0, "num_overflows": 0, "streak": 2}
    other.set_counters({"loss_sum": 1.0, "num_finite": 1, "num_skipped": 2, "streak": 0})  # of an earlier version
    assert other.counters()["num_overflows"] == 0
