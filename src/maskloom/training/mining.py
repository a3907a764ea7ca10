"""Hard negative mining: which batches each update of an epoch learns from, when the hardest one is taken once more.

Carvana, 1st place (the LinkNet members): within each 10 steps the batch with the highest loss is trained on again.
The choices made here: the extra update is a step like any other (it is counted, has its own place in the schedule and
its own dropout); windows of updates begin anew with each epoch, what is left over at its end is not repeated, and an
epoch of fewer steps is one window; with accumulation, all batches of the step are repeated.

Batches follow from their number alone, so only losses are remembered, on the device; it is waited for once a window.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class HardNegatives:
    """The order of an epoch's updates, and the losses of the window of updates under way."""

    def __init__(self, num_groups: int, *, every: int | None, device: torch.device) -> None:
        """``num_groups``: different groups of batches in an epoch; ``every``: length of a window, None: no mining."""
        self._num_groups = num_groups
        self._window = min(every, num_groups) if every else 0
        self.losses = torch.full((self._window,), -math.inf, device=device)
        """float32, by place in the window; what was not finite counts as the lowest."""

    @property
    def num_updates(self) -> int:
        """Updates of an epoch: one for each group of batches, one for each whole window."""
        return self._num_groups + (self._num_groups // self._window if self._window else 0)

    def is_repeat(self, update: int) -> bool:
        """Returns whether update number ``update`` of the epoch (from 0) repeats the hardest group."""
        return self._window > 0 and update % (self._window + 1) == self._window

    def num_before(self, update: int) -> int:
        """Returns how many different groups came before update number ``update``."""
        return update - update // (self._window + 1) if self._window else update

    def remember(self, update: int, loss: Tensor) -> None:
        """Keeps the loss (a detached scalar on the device) of an update that is no repeat; does not wait."""
        if self._window and not self.is_repeat(update):
            self.losses[update % (self._window + 1)] = torch.where(torch.isfinite(loss), loss, -math.inf)

    def hardest(self, update: int) -> int:
        """Returns the number of the group with the highest loss of the window that ``update`` (a repeat) ends.

        Of equal losses the first; waits for the device.
        """
        return self.num_before(update) - self._window + int(self.losses.argmax())
