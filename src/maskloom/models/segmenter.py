"""A network together with what it needs to be used: normalisation, input policy, task.

Takes images as they are stored (uint8, uint16, float32) and gives logits; knows nothing about files, tiles and
views. The caller chooses precision (autocast), gradients and mode.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from maskloom.config import Config
from maskloom.data.input_policy import InputPolicy
from maskloom.errors import UserError
from maskloom.models.batch_norm import keep_frozen
from maskloom.models.encoders import NetworkSettings, multiple_of
from maskloom.records import Task


class Normalisation(Config):
    """How stored values become the network's input: (value / scale - mean) / std, per channel."""

    mean: tuple[float, ...] = Field(min_length=1)
    """Per channel, on the scale 0…1 (after division by ``scale``)."""
    std: tuple[float, ...] = Field(min_length=1)
    """Per channel, on the same scale; above 0."""
    dtype: Literal["uint8", "uint16", "float32"] = "uint8"
    """How the training images were stored; a network takes no others, since their values mean something else."""
    scale: float = Field(default=255.0, gt=0)
    """The stored value that counts as 1: 255 for uint8, 65535 for uint16, 1 for float images."""
    channel_order: Literal["rgb", "bgr"] = "rgb"
    """"bgr": the network sees the first three channels in reverse, as one that was trained on images read by OpenCV;
    ``mean`` and ``std`` are in the order as stored all the same."""

    @classmethod
    def as_stored(cls, channels: int, dtype: str) -> Normalisation:
        """Returns the one that changes no value of images of a dtype that networks take."""
        return cls.model_validate({"mean": (0.0,) * channels, "std": (1.0,) * channels, "scale": 1, "dtype": dtype})

    @model_validator(mode="after")
    def _check(self) -> Normalisation:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} channels and std {len(self.std)}; expected as many")
        if min(self.std) <= 0:
            raise ValueError(f"std must be above 0, found {min(self.std)}")
        if self.channel_order == "bgr" and len(self.mean) < 3:
            raise ValueError(f"channel_order bgr needs at least 3 channels, found {len(self.mean)}")
        return self


@dataclass(kw_only=True)
class Segmenter:
    """One trained (or fresh) network and how to feed it."""

    network: nn.Module
    """Maps normalised N×C×H×W float32 to logits N×maps×H×W; with deep supervision, in training, to several."""
    normalisation: Normalisation
    policy: InputPolicy
    task: Task
    network_settings: NetworkSettings
    channels_last: bool = False
    """Whether the network's weights, and so its inputs, lie in channels-last order."""
    _constants: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def logits(self, images: Tensor) -> Tensor | Any:  # Any: of several tensors only training knows
        """Returns logits N×maps×H×W float32 for images N×C×H×W of stored values (uint8, uint16 or float).

        In training mode the task's maps are followed by the network's auxiliary ones, and a network with deep
        supervision gives a tuple: those logits, then the task's maps as each coarser stage sees them, finest first, at
        the stage's own size (see ``deep_supervision``). The network runs under the caller's autocast and gradient mode.
        H and W are multiples of ``multiple_of(network_settings)``.
        Raises ``UserError`` when the images have another number of channels than the network.
        """
        outputs = self.network(self.normalise(images))
        if isinstance(outputs, tuple):
            logits, *coarser = outputs
            return self._fitted(logits, images), *(each.float() for each in coarser)
        return self._fitted(outputs, images)

    def _fitted(self, logits: Tensor, images: Tensor) -> Tensor:
        """Returns logits float32 of the images' size, without auxiliary maps in evaluation mode."""
        if self.network_settings.auxiliary_maps and not self.network.training:
            logits = logits[:, : self.task.num_maps]
        if logits.shape[-2:] != images.shape[-2:]:  # a decoder that stops at a coarser stride
            logits = functional.interpolate(logits.float(), images.shape[-2:], mode="bilinear", align_corners=False)
        return logits.float()

    def normalise(self, images: Tensor) -> Tensor:
        """Returns the network's input, float32 N×C×H×W, in the network's memory order."""
        channels = len(self.normalisation.mean)
        if images.ndim != 4 or images.shape[1] != channels:
            raise UserError(
                f"expected images of {channels} channel(s) as the network was built for, found "
                f"{images.shape[1] if images.ndim == 4 else tuple(images.shape)}; convert the images or train on such"
            )
        factor, offset = self._on(images.device)
        layout = torch.channels_last if self.channels_last else torch.preserve_format
        values = images.to(dtype=torch.float32, memory_format=layout)
        values = torch.addcmul(offset, values, factor)
        if self.normalisation.channel_order == "rgb":
            return values
        return torch.cat([values[:, :3].flip(1), values[:, 3:]], dim=1).to(memory_format=layout)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Returns the factor and offset of the normalisation, each 1×C×1×1; kept per device, a copy would wait."""
        if device not in self._constants:
            mean = torch.tensor(self.normalisation.mean, dtype=torch.float64)
            std = torch.tensor(self.normalisation.std, dtype=torch.float64)
            values = (1 / (std * self.normalisation.scale), -mean / std)
            factor, offset = (value.to(torch.float32).reshape(1, -1, 1, 1).to(device) for value in values)
            self._constants[device] = (factor, offset)
        return self._constants[device]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Returns probabilities float32 of the logits' shape: softmax over maps for multiclass, else sigmoid."""
        values = logits.float()
        return values.softmax(dim=1) if self.task.kind == "multiclass" else values.sigmoid()

    def to(self, device: torch.device | str, *, channels_last: bool | None = None) -> Segmenter:
        """Returns this segmenter after moving its network; ``channels_last`` also sets the order of its weights."""
        self.network.to(device)
        if channels_last is not None:
            layout = torch.channels_last if channels_last else torch.contiguous_format
            self.network.to(memory_format=layout)  # type: ignore[call-overload]
            self.channels_last = channels_last
        return self

    def with_network(self, network: nn.Module) -> Segmenter:
        """Returns a segmenter of the same settings around another network (averaged weights, a compiled one)."""
        return replace(self, network=network)

    def eval(self) -> Segmenter:
        """Returns this segmenter with its network in evaluation mode."""
        self.network.eval()
        return self

    def train(self) -> Segmenter:
        """Returns this segmenter with its network in training mode; frozen batch normalisations stay as they are."""
        self.network.train()
        keep_frozen(self.network)
        return self


def build_segmenter(
    settings: NetworkSettings, *, task: Task, policy: InputPolicy, normalisation: Normalisation
) -> Segmenter:
    """Returns a fresh segmenter in training mode on the CPU; its random weights follow torch's global seed.

    A network that starts from a bundle keeps the bundle's order of channels, which its weights know. Raises
    ``UserError`` when normalisation and network differ in channels, when the policy gives sides that the network cannot
    take, and whatever ``build_network`` raises.
    """
    from maskloom.models.decoders import build_network

    if len(normalisation.mean) != settings.channels:
        raise UserError(
            f"network.channels: expected {len(normalisation.mean)} as the normalisation has, found {settings.channels}"
        )
    multiple = multiple_of(settings)
    if policy.multiple % multiple:
        raise UserError(
            f"input.multiple: expected a multiple of {multiple} for {settings.architecture}, found {policy.multiple}"
        )
    if settings.bundle is not None:
        from maskloom.models.bundle import read_normalisation

        order = read_normalisation(settings.bundle).channel_order
        normalisation = normalisation.model_copy(update={"channel_order": order})
    network = build_network(settings, task.num_maps)
    return Segmenter(network=network, normalisation=normalisation, policy=policy, task=task, network_settings=settings)
