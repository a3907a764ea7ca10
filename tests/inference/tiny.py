"""Networks whose answer is known, wrapped as segmenters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maskloom.data.input_policy import InputPolicy
from maskloom.models.encoders import NetworkSettings
from maskloom.models.segmenter import Normalisation, Segmenter
from maskloom.records import Task

BINARY = Task(kind="binary", classes=("thing",))
THREE = Task(kind="multiclass", classes=("a", "b", "c"))
LAYERS = Task(kind="multilabel", classes=("a", "b"))


class Constant(nn.Module):
    """Gives the same logits everywhere."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images: Tensor) -> Tensor:
        count, _, height, width = images.shape
        return self.logits[None, :, None, None].expand(count, -1, height, width)


def pointwise(num_maps: int = 1, *, seed: int = 0, channels: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Conv2d(channels, num_maps, 1)


def neighbourhood(num_maps: int = 1, *, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, num_maps, 3, padding=1))


def segmenter(
    network: nn.Module, task: Task = BINARY, *, channels: int = 3, dtype: str = "uint8", **policy: object
) -> Segmenter:
    settings = {"multiple": 8, **policy}
    return Segmenter(
        network=network,
        normalisation=Normalisation.model_validate(
            {"mean": (0.4,) * channels, "std": (0.3,) * channels, "dtype": dtype}
        ),
        policy=InputPolicy.model_validate(settings),
        task=task,
        network_settings=NetworkSettings(),
    )


class Channel(nn.Module):
    """Gives back some channels of the stored image as probabilities: those of a segmenter with ``segmenter``'s mean."""

    def __init__(self, *channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, images: Tensor) -> Tensor:
        return (images[:, self.channels] * 0.3 + 0.4).clamp(1e-6, 1 - 1e-6).logit()
