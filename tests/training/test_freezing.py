from __future__ import annotations

import pytest
import torch
from torch import nn

from maskloom.errors import UserError
from maskloom.models.batch_norm import set_batch_norm
from maskloom.training.freezing import freeze, learnable_names, train_mode


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False))
        self.decoder = nn.Sequential(nn.Conv2d(8, 2, 1), nn.BatchNorm2d(2), nn.Dropout(0.5))
        self.fixed = nn.Linear(2, 2).requires_grad_(False)


def learning(network: nn.Module) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def test_only_the_names_with_the_prefix_are_frozen_and_can_learn_again() -> None:
    network = Network()
    learnable = learnable_names(network)
    assert "fixed.weight" not in learnable
    network.encoder[0].weight.grad = torch.ones(8, 3, 3, 3)
    freeze(network, ("encoder.",), learnable=learnable)
    assert learning(network) == {"decoder.0.weight", "decoder.0.bias", "decoder.1.weight", "decoder.1.bias"}
    assert network.encoder[0].weight.grad is None
    freeze(network, ("decoder.1", "encoder.0.bias"), learnable=learnable)
    assert learning(network) == {
        "encoder.0.weight", "encoder.1.weight", "encoder.1.bias", "decoder.0.weight", "decoder.0.bias"
    }  # fmt: skip
    freeze(network, (), learnable=learnable)
    assert learning(network) == set(learnable)


def test_batch_norms_keep_their_statistics_where_all_their_parameters_are_frozen() -> None:
    network = Network()
    train_mode(network, ("encoder.", "decoder.1.weight"))
    assert not network.encoder[1].training and not network.encoder[2].training
    assert network.decoder[1].training  # its bias learns
    assert network.encoder[0].training and network.decoder[2].training
    train_mode(network, ())
    assert all(module.training for module in network.modules())


def test_a_batch_norm_that_is_the_whole_network_has_names_too() -> None:
    network = nn.BatchNorm2d(2)
    train_mode(network, ("weight", "bias"))
    assert not network.training
    train_mode(network, ("weight",))
    assert network.training


@pytest.mark.parametrize(
    ("frozen", "said"),
    [
        (("encoders.",), r"frozen: expected how names .* found 'encoders\.'; did you mean 'encoder\.'\?"),
        (("encoder.", "decoder."), "'encoder.', 'decoder.' freezes them all"),
        (("",), "'' freezes them all"),
    ],
)
def test_prefixes_that_make_no_sense_are_refused(frozen: tuple[str, ...], said: str) -> None:
    network = Network()
    with pytest.raises(UserError, match=said):
        freeze(network, frozen, learnable=learnable_names(network))


def test_batch_norms_that_the_networks_setting_froze_stay_so() -> None:
    network = Network()
    set_batch_norm(network, "frozen")
    learnable = learnable_names(network)
    assert learnable == {"encoder.0.weight", "encoder.0.bias", "decoder.0.weight", "decoder.0.bias"}
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    train_mode(network, ("decoder.",))
    assert network.decoder[2].training
    network.decoder(network.encoder(torch.randn(4, 3, 8, 8)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    freeze(network, ("decoder.",), learnable=learnable)
    freeze(network, (), learnable=learnable)
    assert learning(network) == set(learnable), "what the setting froze is not let loose by a later phase"
