"""Parameters that do not learn for a while: chosen by how their names begin, with the batch norms they belong to.

Frozen parameters get no gradient, no weight decay and no part in the gradient's norm: they keep their bytes. A batch
norm whose parameters are all frozen also keeps its statistics and normalises by them, in training as in prediction.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from maskloom.errors import UserError, closest
from maskloom.models.batch_norm import keep_frozen


def learnable_names(network: nn.Module) -> frozenset[str]:
    """Returns the names of the parameters that the network itself lets learn."""
    return frozenset(name for name, parameter in network.named_parameters() if parameter.requires_grad)


def freeze(network: nn.Module, frozen: Sequence[str], *, learnable: Collection[str]) -> None:
    """Lets exactly those ``learnable`` parameters learn whose names begin with none of the ``frozen`` prefixes.

    Raises ``UserError`` for a prefix that no parameter's name begins with, and when nothing is left to learn.
    """
    parameters = dict(network.named_parameters())
    for prefix in frozen:
        if not any(name.startswith(prefix) for name in parameters):
            known = {f"{name.split('.')[0]}." if "." in name else name for name in parameters}
            raise UserError(
                f"optimiser.frozen: expected how names of the network's parameters begin, found {prefix!r}; "
                f"{closest(prefix, known)}"
            )
    learning = {name for name in learnable if not name.startswith(tuple(frozen))}
    if not learning:
        raise UserError(
            f"optimiser.frozen: expected some parameters left to learn, found that {', '.join(map(repr, frozen))} "
            "freezes them all; freeze less"
        )
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in learning)
        if name not in learning:
            parameter.grad = None


def train_mode(network: nn.Module, frozen: Sequence[str]) -> None:
    """Puts the network into training mode, but batch norms whose parameters are all frozen into evaluation mode.

    A batch norm without parameters goes by the names that they would have. Those that the network's own setting
    froze (``network.batch_norm``) stay in evaluation mode whatever their names.
    """
    network.train()
    keep_frozen(network)
    for module in _frozen_norms(network, tuple(frozen)):
        module.eval()


def _frozen_norms(network: nn.Module, frozen: tuple[str, ...]) -> Iterable[nn.Module]:
    for name, module in network.named_modules():
        own = f"{name}.".removeprefix(".")
        if isinstance(module, _BatchNorm) and all(f"{own}{key}".startswith(frozen) for key in ("weight", "bias")):
            yield module
