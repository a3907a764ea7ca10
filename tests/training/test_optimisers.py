from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from maskloom.config import parse
from maskloom.errors import UserError
from maskloom.training.optimisers import (
    MovingAverage,
    OptimiserSettings,
    build_optimiser,
    copy_buffers,
    is_fused,
    parameter_groups,
    set_learning_rates,
)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(images))


def test_biases_and_norms_are_not_decayed_and_the_encoder_is_slower() -> None:
    network = Network()
    settings = OptimiserSettings(lr=1.0, weight_decay=0.5, encoder_lr_factor=0.1)
    found = {
        id(parameter): (group["base_lr"], group["weight_decay"])
        for group in parameter_groups(settings, network)
        for parameter in group["params"]
    }
    expected = {
        "encoder.0.weight": (0.1, 0.5),
        "encoder.1.weight": (0.1, 0.0),
        "encoder.1.bias": (0.1, 0.0),
        "head.weight": (1.0, 0.5),
        "head.bias": (1.0, 0.0),
    }
    assert {name: found[id(parameter)] for name, parameter in network.named_parameters()} == expected
    everything = parameter_groups(settings.model_copy(update={"decay_norm_and_bias": True}), network)
    assert {group["weight_decay"] for group in everything} == {0.5}


def test_learning_rates_follow_each_groups_base() -> None:
    optimiser = build_optimiser(OptimiserSettings(lr=2.0, encoder_lr_factor=0.5), Network())
    set_learning_rates(optimiser, 0.1)
    assert sorted({group["lr"] for group in optimiser.param_groups}) == pytest.approx([0.1, 0.2])


def steps_of(optimiser: torch.optim.Optimizer, network: nn.Module) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    for _ in range(4):
        optimiser.zero_grad()
        images = torch.randn(2, 3, 8, 8, generator=generator).contiguous(memory_format=torch.channels_last)
        network(images).square().mean().backward()
        optimiser.step()
    return [parameter.detach().clone() for parameter in network.parameters()]


@pytest.mark.parametrize(
    ("values", "reference"),
    [
        ({"kind": "adamw"}, lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, foreach=False)),
        ({"kind": "adam"}, lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, foreach=False)),
        (
            {"kind": "sgd", "nesterov": True},
            lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1, nesterov=True, foreach=False),
        ),
        (
            {"kind": "rmsprop", "smoothing": 0.99},
            lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, weight_decay=0.1, foreach=False),
        ),
        ({"kind": "nadam"}, lambda p: torch.optim.NAdam(p, lr=0.01, weight_decay=0.1, foreach=False)),
    ],
)
def test_every_kind_moves_weights_as_torchs_plain_form_also_in_channels_last(
    values: dict[str, Any], reference: Any
) -> None:
    torch.manual_seed(0)
    network, plain = Network(), Network()
    plain.load_state_dict(network.state_dict())
    network.to(memory_format=torch.channels_last)
    settings = parse(OptimiserSettings, {**values, "lr": 0.01, "weight_decay": 0.1, "decay_norm_and_bias": True})
    optimiser = build_optimiser(settings, network)
    assert is_fused(optimiser) == (settings.kind not in ("rmsprop", "nadam"))
    found = steps_of(optimiser, network)
    expected = steps_of(reference(plain.parameters()), plain)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_first_step_of_nadam_by_hand() -> None:
    """Dozat (2016), with mu_t = beta1 · (1 - 0.5 · 0.96^(0.004 t)); after one step exp_avg = (1 - beta1) · gradient."""
    network = nn.Linear(1, 1, bias=False)
    before = network.weight.item()
    optimiser = build_optimiser(OptimiserSettings(kind="nadam", lr=0.1, weight_decay=0.0), network)
    set_learning_rates(optimiser, 1.0)
    network.weight.grad = torch.full((1, 1), 3.0)
    optimiser.step()
    first, second = (0.9 * (1 - 0.5 * 0.96 ** (0.004 * step)) for step in (1, 2))
    gradient_part = (1 - first) * 3.0 / (1 - first)
    momentum_part = second * 0.1 * 3.0 / (1 - first * second)
    assert network.weight.item() == pytest.approx(before - 0.1 * (gradient_part + momentum_part) / 3.0)


def test_the_encoder_is_known_by_the_names_it_is_given() -> None:
    settings = OptimiserSettings(lr=1.0, encoder_lr_factor=0.1)
    groups = parameter_groups(settings, Network(), encoder=("head.weight", "head.b"))
    assert {group["base_lr"]: len(group["params"]) for group in groups if group["base_lr"] == 0.1} == {0.1: 1}
    assert sum(len(group["params"]) for group in groups if group["base_lr"] == 0.1) == 2


def test_an_encoder_that_is_not_there_cannot_be_slower() -> None:
    settings = OptimiserSettings(encoder_lr_factor=0.1)
    with pytest.raises(UserError, match="encoder_lr_factor: expected a network with an encoder"):
        parameter_groups(settings, Network(), encoder=())
    assert parameter_groups(OptimiserSettings(), Network(), encoder=())


def test_parameters_that_do_not_learn_are_in_no_group() -> None:
    network = Network()
    network.encoder.requires_grad_(False)
    groups = parameter_groups(OptimiserSettings(encoder_lr_factor=0.1), network)
    found = [parameter for group in groups for parameter in group["params"]]
    assert {id(parameter) for parameter in found} == {id(network.head.weight), id(network.head.bias)}


def test_a_skipped_first_step_leaves_sgd_sound() -> None:
    network = nn.Linear(2, 1, bias=False)
    before = network.weight.detach().clone()
    optimiser = build_optimiser(OptimiserSettings(kind="sgd", lr=1.0, weight_decay=0.0), network)
    set_learning_rates(optimiser, 1.0)
    network.weight.grad = torch.full((1, 2), torch.nan)
    optimiser.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
    optimiser.step()
    assert torch.equal(network.weight, before)
    network.weight.grad = torch.full((1, 2), 2.0)
    optimiser.found_inf = torch.tensor(0.0)  # type: ignore[attr-defined]
    optimiser.step()
    assert torch.equal(network.weight, before - 2.0)


def test_moving_average_by_hand() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 0.0)
    average = MovingAverage(network, decay=0.2)
    expected = 0.0
    for number in range(1, 5):
        nn.init.constant_(network.weight, float(number))
        average.update(network, number)
        decay = min(0.2, (1 + number) / (10 + number))  # 2/11, then 0.2
        expected = decay * expected + (1 - decay) * number
        assert average.network.weight.item() == pytest.approx(expected)
    assert not average.network.training


def test_moving_average_copies_buffers() -> None:
    network = nn.BatchNorm2d(3)
    average = MovingAverage(network, decay=0.9)
    network(torch.randn(4, 3, 2, 2) + 5)
    refreshed = average.refreshed(network)
    assert torch.equal(refreshed.running_mean, network.running_mean)
    assert refreshed.num_batches_tracked == 1


def test_buffers_of_several_types_are_copied() -> None:
    source = [torch.arange(3.0), torch.tensor(4), torch.ones(2)]
    target = [torch.zeros_like(buffer) for buffer in source]
    copy_buffers(source, target)
    assert all(torch.equal(one, other) for one, other in zip(source, target, strict=True))


def test_nesterov_needs_sgd() -> None:
    with pytest.raises(UserError, match="nesterov needs kind: sgd"):
        parse(OptimiserSettings, {"kind": "adam", "nesterov": True})
