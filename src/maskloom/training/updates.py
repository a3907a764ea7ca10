"""One update of the weights: unscale, clip, skip what is not finite, step, average.

Works without waiting for the device: whether a loss is finite is decided there, and looked at only now and then.
Knows nothing about where gradients come from.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from maskloom.training.optimisers import MovingAverage, copy_buffers, is_fused, parameters_of, set_learning_rates

MAX_STREAK = 5
"""A training whose last so many steps all gave a loss that is not finite is given up."""

MIN_SCALE = 2.0**-16
"""A training whose gradient scaler has fallen below this is given up. It begins at 2**16; gradients that are still
infinite 32 halvings later do not fit into 16 bits at all, and below it small ones vanish."""

CHECK_EVERY = {"cpu": 1, "cuda": 16}
"""Steps between two looks at the counters; each look waits for the device."""


class Updater:
    """Applies gradients to a network, and keeps count of losses.

    The rule for a loss (or, without a gradient scaler, a gradient) that is NaN or infinite: the step is skipped, which
    leaves weights and optimiser as they were, and at the next look at the counters the batch-norm statistics are set
    back to those of the last look that found all well. ``MAX_STREAK`` skipped steps in a row end the training.
    With a gradient scaler, gradients that are not finite at a finite loss are an overflow: that step is skipped and
    counted, too, the scaler tries half its scale, and the training ends where that falls below ``MIN_SCALE``.
    """

    def __init__(
        self,
        network: nn.Module,
        optimiser: torch.optim.Optimizer,
        *,
        average: MovingAverage | None,
        scaler: GradScaler,
        clip_norm: float | None,
        device: torch.device,
    ) -> None:
        self.network = network
        self.optimiser = optimiser
        self.average = average
        self.scaler = scaler
        self.clip_norm = clip_norm
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        """Sum of the epoch's finite losses."""
        self.num_finite = torch.zeros((), dtype=torch.int64, device=device)
        self.num_skipped = torch.zeros((), dtype=torch.int64, device=device)
        self.num_overflows = torch.zeros((), dtype=torch.int64, device=device)
        """Those of the skipped steps whose loss was finite, and whose gradients did not fit into 16 bits."""
        self.streak = torch.zeros((), dtype=torch.int64, device=device)
        """Steps in a row that were skipped for their loss, up to now."""
        self._bad_at_check = 0
        self._check_every = CHECK_EVERY[device.type]
        self._fused = is_fused(optimiser)
        self._sound_buffers = [buffer.detach().clone() for buffer in network.buffers()]

    def renew(self, optimiser: torch.optim.Optimizer) -> None:
        """Goes on with another optimiser; average and counters stay."""
        self.optimiser = optimiser
        self._fused = is_fused(optimiser)

    def apply(self, loss: Tensor, *, learning_rate_factor: float, number: int) -> None:
        """Moves the weights by the gradients that lie in the network; ``number`` counts updates from 1.

        ``loss`` is the step's loss, a detached scalar on the device.
        """
        set_learning_rates(self.optimiser, learning_rate_factor)
        self.scaler.unscale_(self.optimiser)
        norm = self._clip()
        finite = torch.isfinite(loss)
        overflow = torch.zeros_like(finite)
        if self.scaler.is_enabled():  # skips by itself, and only because of gradients; a NaN loss has NaN gradients
            overflow = finite & ~torch.isfinite(norm)
            self.scaler.step(self.optimiser)
            self.scaler.update()
        else:
            finite &= torch.isfinite(norm)
            if self._fused:
                self.optimiser.found_inf = (~finite).float()  # type: ignore[attr-defined]
                self.optimiser.step()
            elif finite:
                self.optimiser.step()
        if self.average is not None:
            self.average.update(self.network, number)
        self._count(loss, finite, overflow)

    def _clip(self) -> Tensor:
        """Returns the norm of all gradients, which are then scaled down to at most ``clip_norm``."""
        parameters = parameters_of(self.optimiser)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.clip_norm, norm)
        return norm

    def _count(self, loss: Tensor, finite: Tensor, overflow: Tensor) -> None:
        self.loss_sum += torch.where(finite, loss, 0).double()
        self.num_finite += finite
        self.num_skipped += ~finite | overflow
        self.num_overflows += overflow
        self.streak = torch.where(finite, 0, self.streak + 1)

    def is_due(self, steps: int) -> bool:
        """Returns whether the counters should be looked at after so many steps."""
        return steps % self._check_every == 0

    def check(self) -> int:
        """Returns how many steps in a row had a bad loss, after mending or remembering the batch-norm statistics."""
        bad, streak = torch.stack((self.num_skipped - self.num_overflows, self.streak)).tolist()
        if bad > self._bad_at_check:
            self.restore_buffers()
        else:
            copy_buffers(self.network.buffers(), self._sound_buffers)
        self._bad_at_check = bad
        return int(streak)

    def is_scale_lost(self) -> bool:
        """Returns whether gradients overflow however small the gradient scaler makes them; waits for the device."""
        return self.scaler.is_enabled() and self.scaler.get_scale() < MIN_SCALE

    def restore_buffers(self) -> None:
        """Sets the batch-norm statistics back to those of the last look that found all well."""
        copy_buffers(self._sound_buffers, self.network.buffers())

    def mean_loss(self) -> float | None:
        """Returns the mean of the epoch's finite losses so far, or None without one; waits for the device."""
        total, count = float(self.loss_sum), int(self.num_finite)
        return total / count if count else None

    def begin_epoch(self) -> None:
        """Sets the epoch's sums to zero."""
        for total in (self.loss_sum, self.num_finite, self.num_skipped, self.num_overflows):
            total.zero_()
        self._bad_at_check = 0

    def counters(self) -> dict[str, float | int]:
        """Returns the counters as plain numbers, exact; see ``set_counters``."""
        return {
            "loss_sum": float(self.loss_sum),
            "num_finite": int(self.num_finite),
            "num_skipped": int(self.num_skipped),
            "num_overflows": int(self.num_overflows),
            "streak": int(self.streak),
        }

    def set_counters(self, values: dict[str, float | int]) -> None:
        """Continues from what ``counters`` returned, with the network's present buffers as the sound ones."""
        self.loss_sum.fill_(values["loss_sum"])
        self.num_finite.fill_(values["num_finite"])
        self.num_skipped.fill_(values["num_skipped"])
        self.streak = torch.full_like(self.streak, int(values["streak"]))
        self.num_overflows.fill_(values.get("num_overflows", 0))  # earlier versions did not count them
        self._bad_at_check = int(self.num_skipped - self.num_overflows)
        copy_buffers(self.network.buffers(), self._sound_buffers)
