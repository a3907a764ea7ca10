"""Batch normalisation of a rank's part of a batch: by the statistics of the whole batch, or without leaving a trace.

Works on any device and with any network that normalises through torch's ``batch_norm``, whose layers stay as they are:
the call is taken over while a network runs. (torch's own ``SyncBatchNorm`` replaces layers, and needs CUDA.) Knows
nothing about how a batch is divided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from maskloom.training.team import Team


class SharedNorm(TorchFunctionMode):
    """While it is entered, training's batch normalisation takes other statistics than those of its input.

    With a ``team`` those of all ranks' inputs together, of which those of a rank that does not ``count`` are no part;
    every rank must then run the network, forward and backward. Without one those of the input, as always; but where
    that does not ``count``, running statistics stay as they are.
    """

    def __init__(self, team: Team | None, *, counts: bool) -> None:
        super().__init__()
        self._team = team
        self._counts = counts

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Returns what ``func`` does, but for ``batch_norm``."""
        if func is not functional.batch_norm:
            return func(*args, **(kwargs or {}))
        return self._batch_norm(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        normalised: Tensor
        if not training:
            normalised = functional.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
            return normalised
        if self._team is None:
            means, variances = (None, None) if not self._counts else (running_mean, running_var)
            # torch's own check of the number of values is passed by, since a stand-in may have one.
            normalised = torch.batch_norm(
                input, weight, bias, means, variances, True, momentum, eps, torch.backends.cudnn.enabled
            )
            return normalised
        normalised, mean, variance, count = _OverRanks.apply(  # type: ignore[no-untyped-call]
            input, weight, bias, eps, self._team, self._counts
        )
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                unbiased = variance * (count / (count - 1))
                running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        return normalised


class _OverRanks(torch.autograd.Function):
    """Batch normalisation by the mean and variance over all ranks' values of a channel.

    The gradients of weight and bias are those of this rank's values alone, as those of all other parameters are.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, team: Team, counts: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the values normalised, and mean, variance (biased) and number of what they were normalised by."""
        channels = values.shape[1]
        wide = torch.promote_types(values.dtype, torch.float32)
        axes = [0, *range(2, values.ndim)]
        own_variance, own_mean = torch.var_mean(values.to(wide), axes, correction=0)
        number = values.numel() // channels if counts else 0
        own = torch.cat([own_mean, own_variance, own_mean.new_full((1,), number)])
        told = team.gathered(own[None], own.new_empty(team.size, 1, len(own)))[:, 0]
        means, variances, numbers = told[:, :channels], told[:, channels:-1], told[:, -1:]
        count = numbers.sum()
        if number < 2 and int(count) < 2:  # only then the device is waited for
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {values.shape}")
        mean = (means * numbers).sum(0) / count
        variance = ((variances + (means - mean).square()) * numbers).sum(0) / count
        scale = torch.rsqrt(variance + eps)
        factor = scale if weight is None else scale * weight
        shift = -mean * factor if bias is None else bias - mean * factor
        shape = [1, channels] + [1] * (values.ndim - 2)
        normalised = torch.addcmul(shift.view(shape), values.to(wide), factor.view(shape)).to(values.dtype)
        ctx.save_for_backward(values, weight, mean, scale, count)
        ctx.team, ctx.counts, ctx.axes, ctx.shape = team, counts, axes, shape
        ctx.mark_non_differentiable(mean, variance, count)
        return normalised, mean, variance, count

    @staticmethod
    def backward(
        ctx: Any, gradient: Tensor, *_: Any
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        """Returns the gradients of values, weight and bias."""
        values, weight, mean, scale, count = ctx.saved_tensors
        wide, shape = mean.dtype, ctx.shape
        gradient = gradient.to(wide)
        standard = (values.to(wide) - mean.view(shape)) * scale.view(shape)
        of_bias = gradient.sum(ctx.axes)
        of_weight = (gradient * standard).sum(ctx.axes)
        sums = ctx.team.sum_(torch.stack([of_bias, of_weight])) / count
        factor = scale if weight is None else scale * weight
        if ctx.counts:
            gradient = gradient - sums[0].view(shape) - standard * sums[1].view(shape)
        of_values = (gradient * factor.view(shape)).to(values.dtype)
        has_weight, has_bias = ctx.needs_input_grad[1:3]
        return of_values, of_weight if has_weight else None, of_bias if has_bias else None, None, None, None


def running_statistics(network: nn.Module) -> list[Tensor]:
    """Returns the running means and variances that training moves, as they lie in the network."""
    moved = [
        module
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.training and module.track_running_stats
    ]
    kept = [tensor for module in moved for tensor in (module.running_mean, module.running_var)]
    return [tensor for tensor in kept if tensor is not None]
