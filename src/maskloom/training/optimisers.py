"""Optimisers and the moving average of weights: what moves a network's parameters, and how fast each of them.

Knows nothing about losses, data or how the learning rate changes over time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from maskloom.config import Config
from maskloom.errors import UserError

ON_CPU = ("step", "mu_product")
"""Single numbers of an optimiser's state per parameter, which torch keeps on the CPU unless the optimiser is fused."""


class OptimiserSettings(Config):
    """Which optimiser, and the learning rate that the schedule multiplies."""

    kind: Literal["adamw", "adam", "nadam", "sgd", "rmsprop"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    """The highest learning rate; the schedule's factor lies in [0, 1]."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """Decoupled for adamw, added to the gradient for the others."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of sgd and rmsprop; the first beta of adam, adamw and nadam."""
    nesterov: bool = False
    """Nesterov's momentum (sgd only)."""
    smoothing: float = Field(default=0.999, gt=0, lt=1)
    """How slowly squared gradients are forgotten: the second beta of adam, adamw and nadam, alpha of
    rmsprop."""
    epsilon: float = Field(default=1e-8, gt=0)
    encoder_lr_factor: float = Field(default=1.0, gt=0)
    """Multiplies the learning rate of the encoder; below 1 where pretrained weights should move slowly."""
    decay_norm_and_bias: bool = False
    """Whether weight decay also acts on biases and normalisation layers (all parameters with one axis)."""
    frozen: tuple[str, ...] = ()
    """How the names of parameters begin that do not learn, such as "encoder."; a batch norm whose parameters are all
    frozen keeps its statistics too."""

    @model_validator(mode="after")
    def _nesterov_belongs_to_sgd(self) -> OptimiserSettings:
        if self.nesterov and (self.kind != "sgd" or self.momentum == 0):
            raise ValueError("nesterov needs kind: sgd with a momentum above 0")
        return self


def parameter_groups(
    settings: OptimiserSettings, network: nn.Module, *, encoder: Sequence[str] = ("encoder.",)
) -> list[dict[str, Any]]:
    """Returns up to four groups (encoder or not, decayed or not) with ``params``, ``base_lr`` and ``weight_decay``.

    ``encoder`` are the beginnings of the names of the encoder's parameters. Raises ``UserError`` when the encoder is to
    learn at a rate of its own and there is none.
    """
    prefixes = tuple(encoder)
    if settings.encoder_lr_factor != 1 and not any(name.startswith(prefixes) for name, _ in network.named_parameters()):
        raise UserError(
            f"optimiser.encoder_lr_factor: expected a network with an encoder, found one of one piece and the factor "
            f"{settings.encoder_lr_factor:g}; set it to 1"
        )
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            decayed = settings.decay_norm_and_bias or parameter.ndim > 1
            groups.setdefault((name.startswith(prefixes), decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "base_lr": settings.lr * (settings.encoder_lr_factor if in_encoder else 1.0),
            "weight_decay": settings.weight_decay if decayed else 0.0,
        }
        for (in_encoder, decayed), parameters in groups.items()
    ]


def build_optimiser(
    settings: OptimiserSettings, network: nn.Module, *, encoder: Sequence[str] = ("encoder.",)
) -> torch.optim.Optimizer:
    """Returns the optimiser over the network's trainable parameters, which must lie on their device already.

    adamw, adam and sgd run fused (one kernel per device, and able to skip a step by themselves); nadam (Dozat,
    "Incorporating Nesterov Momentum into Adam", 2016) and rmsprop have no fused form and run over lists of tensors on
    CUDA. ``encoder`` and what is raised: see ``parameter_groups``.
    """
    groups = parameter_groups(settings, network, encoder=encoder)
    lr, betas = settings.lr, (settings.momentum, settings.smoothing)
    match settings.kind:
        case "adamw":
            return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=settings.epsilon, fused=True)
        case "adam":
            return torch.optim.Adam(groups, lr=lr, betas=betas, eps=settings.epsilon, fused=True)
        case "nadam":
            return torch.optim.NAdam(groups, lr=lr, betas=betas, eps=settings.epsilon)
        case "sgd":
            sgd = torch.optim.SGD(groups, lr=lr, momentum=settings.momentum, nesterov=settings.nesterov, fused=True)
            _begin_momentum_at_zero(sgd)
            return sgd
        case "rmsprop":
            return torch.optim.RMSprop(
                groups, lr=lr, alpha=settings.smoothing, momentum=settings.momentum, eps=settings.epsilon
            )


def _begin_momentum_at_zero(sgd: torch.optim.SGD) -> None:
    """Makes the momentum buffers now: torch leaves them unset when the fused kernel skips the very first step."""
    for group in sgd.param_groups:
        if group["momentum"] > 0:
            for parameter in group["params"]:
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter.detach())


def is_fused(optimiser: torch.optim.Optimizer) -> bool:
    """Returns whether the optimiser's kernel skips a step by itself when told by ``found_inf``."""
    return bool(optimiser.defaults.get("fused"))


def set_learning_rates(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Sets each group's learning rate to its own base times ``factor``."""
    for group in optimiser.param_groups:
        group["lr"] = group["base_lr"] * factor


def parameters_of(optimiser: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Returns all parameters that the optimiser moves."""
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


class MovingAverage:
    """An exponential moving average of a network's parameters, with warm-up.

    After update number n (from 1) the average is ``d·average + (1-d)·parameters`` with
    d = min(decay, (1+n)/(10+n)), as in TensorFlow's ExponentialMovingAverage. Buffers (batch-norm statistics) are not
    averaged but copied when the average is looked at, see ``refreshed``.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._parameters: list[torch.Tensor] = list(self.network.parameters())

    @torch.no_grad()
    def update(self, network: nn.Module, number: int) -> None:
        """Moves the average towards ``network``; ``number`` counts updates from 1."""
        decay = min(self.decay, (1 + number) / (10 + number))
        current: list[torch.Tensor] = list(network.parameters())
        torch._foreach_lerp_(self._parameters, current, 1 - decay)

    @torch.no_grad()
    def refreshed(self, network: nn.Module) -> nn.Module:
        """Returns the averaged network (in eval mode) with the current buffers of ``network``."""
        copy_buffers(network.buffers(), self.network.buffers())
        return self.network


@torch.no_grad()
def copy_buffers(source: Iterable[torch.Tensor], target: Iterable[torch.Tensor]) -> None:
    """Copies buffers in place, those of one dtype in one go."""
    by_dtype: dict[torch.dtype, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    for from_buffer, to_buffer in zip(source, target, strict=True):
        froms, tos = by_dtype.setdefault(from_buffer.dtype, ([], []))
        froms.append(from_buffer)
        tos.append(to_buffer)
    for froms, tos in by_dtype.values():
        torch._foreach_copy_(tos, froms)
