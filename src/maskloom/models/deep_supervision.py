"""Deep supervision: while it is trained, a network also gives the task's logits from coarser stages of its decoder.

Each stage gets a 1×1 convolution of its own; the network keeps its names, to which those of these heads are added, and
in evaluation mode it computes what it would without them. The loss adds, for every coarser map, a factor (0.4 unless
stated, which PSPNet, https://arxiv.org/abs/1612.01105, gives its one auxiliary loss) times its own value there, on
labels brought to that size from the nearest pixel. After Lee et al., https://arxiv.org/abs/1409.5185.
Knows nothing about which networks have which stages, and nothing about losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

NAME = "deep_supervision"
"""The heads' place in the network, with which the names of their parameters begin."""


class DeepSupervision(nn.Module):
    """The heads, and the maps that wait for them during one forward pass."""

    def __init__(self, channels: Sequence[int], num_maps: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Conv2d(count, num_maps, 1) for count in channels)
        self._waiting: list[Tensor] = []

    def keep(self, stage: nn.Module, inputs: tuple[Any, ...], maps: Tensor) -> None:
        """Remembers what a stage gave; stages come coarsest first."""
        if self.training:
            self._waiting.append(maps)

    def finish(self, network: nn.Module, inputs: tuple[Any, ...], logits: Tensor | None) -> tuple[Tensor, ...] | None:
        """Returns the logits and the heads' in training mode, and None, which leaves them alone, in evaluation.

        Is called after a failed pass as well, without logits, so that no maps are held when memory ran out.
        """
        waiting, self._waiting = self._waiting, []
        if logits is None or not self.training:
            return None
        finest_first = zip(self.heads, reversed(waiting), strict=True)
        return logits, *(head(maps) for head, maps in finest_first)


def supervise(network: nn.Module, stages: Mapping[str, int], num_maps: int) -> None:
    """Adds heads of ``num_maps`` maps to the stages, named finest first with the channels that each gives.

    From then on the network returns (logits, those of the finest stage, of the next …) in training mode.
    """
    supervision = DeepSupervision(list(stages.values()), num_maps)
    network.add_module(NAME, supervision)
    for name in stages:
        network.get_submodule(name).register_forward_hook(supervision.keep)
    network.register_forward_hook(supervision.finish, always_call=True)
