"""The networks whose checkpoints were published, by name, and how each was fed; and their tensors as segmenters.

A checkpoint is loaded strictly: every tensor is there under its published name with its published shape. Only the
counters of batch normalisation, which torch did not have before 0.4.1, may be missing. Knows nothing about files:
``foreign`` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maskloom.data.input_policy import InputPolicy
from maskloom.errors import UserError, closest
from maskloom.models.decoders import build_network
from maskloom.models.encoders import IMAGENET_MEAN, IMAGENET_STD, NetworkSettings
from maskloom.models.segmenter import Normalisation, Segmenter
from maskloom.records import Task

CAR = Task(kind="binary", classes=("car",))
OBJECT = Task(kind="binary", classes=("object",))

STREET_CLASSES = (
    "car", "pedestrian", "lane", "bus", "truck", "svehicle", "motorbike", "bicycle", "signal", "signs", "sky",
    "building", "natural", "wall", "ground", "sidewalk", "roadshoulder", "obstacle", "others", "own",
)  # fmt: skip
"""All categories of Signate's AI Edge contest, in the order of the published labels."""

SCORED_CLASSES = ("background", "car", "pedestrian", "lane", "signal")
"""The categories that the contest scores, after everything else."""

IMAGENET = Normalisation(mean=IMAGENET_MEAN, std=IMAGENET_STD)
UNIT = Normalisation(mean=(0.0,) * 3, std=(1.0,) * 3)
"""Pixels on the scale 0…1 and nothing else."""
UNIT_BGR = Normalisation(mean=(0.0,) * 3, std=(1.0,) * 3, channel_order="bgr")
"""The same for networks that were trained on images as OpenCV reads them."""

NAMED_AT_MOST = 20
"""A message names so many tensors of each kind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedNetwork:
    """A network with published weights, and what its authors fed it with."""

    settings: NetworkSettings
    normalisation: Normalisation
    policy: InputPolicy
    task: Task


def _network(
    settings: dict[str, str], normalisation: Normalisation, policy: InputPolicy, task: Task = CAR
) -> PublishedNetwork:
    return PublishedNetwork(
        settings=NetworkSettings.model_validate({**settings, "weights": "none"}),
        normalisation=normalisation,
        policy=policy,
        task=task,
    )


PUBLISHED: dict[str, PublishedNetwork] = {
    "asanakoy-unet-scratch": _network(
        {"architecture": "unet_scratch"}, UNIT, InputPolicy(mode="resize", size=(1024, 1024), multiple=64)
    ),
    "asanakoy-unet-vgg11v1": _network(
        {"architecture": "unet_vgg11"}, IMAGENET, InputPolicy(mode="resize", size=(1024, 1024))
    ),
    "ternaus-unet11": _network({"architecture": "ternausnet", "encoder": "vgg11"}, IMAGENET, InputPolicy()),
    "albu-linknet34": _network({"architecture": "linknet_deconv", "encoder": "resnet34"}, UNIT_BGR, InputPolicy()),
    "signate-unet-resnet34": _network(
        {"architecture": "unet_resnet", "encoder": "resnet34"},
        IMAGENET,
        InputPolicy(multiple=64),
        Task(kind="multiclass", classes=STREET_CLASSES),
    ),
    "signate-unet-resnet50-deconv": _network(
        {"architecture": "unet_resnet", "encoder": "resnet50", "upsampling": "deconv"},
        IMAGENET,
        InputPolicy(multiple=64),
        Task(kind="multiclass", classes=SCORED_CLASSES),
    ),
    "lyakaap-dilated-unet": _network({"architecture": "unet_dilated"}, UNIT_BGR, InputPolicy(multiple=8)),
    "ternausnet-unet16": _network({"architecture": "ternausnet", "encoder": "vgg16"}, IMAGENET, InputPolicy(), OBJECT),
}
"""The published networks. 1918×1280 photos are padded to 1920×1280 and 1936×1216 ones to 1984×1216, mirrored on both
sides; the two networks of 1024×1024 see photos resized without regard to their shape, as published."""


def load_published(name: str, tensors: Mapping[str, Tensor]) -> Segmenter:
    """Returns the published network of that name with these tensors, on the CPU, in evaluation mode.

    Its ``network`` gives logits. ``tensors`` go by their published names, in any floating type. Raises ``UserError``
    for an unknown name (with the closest one) and for tensors that are missing, unknown, of another shape or not
    finite, by name; it says which published network they fit where they fit another.
    """
    if name not in PUBLISHED:
        raise UserError(f"expected the name of a published network, found {name!r}; {closest(name, PUBLISHED)}")
    published = PUBLISHED[name]
    problems = _problems(expected_shapes(name), tensors)
    if problems:
        fitting = [other for other in PUBLISHED if other != name and not _problems(expected_shapes(other), tensors)]
        hint = f"they fit {' and '.join(fitting)}: use that name" if fitting else "they fit no published network"
        raise UserError(f"the tensors do not fit {name}: {'; '.join(problems)}; {hint}")
    network = _empty_network(published)
    _check_values(network, tensors)
    counters = {key: torch.zeros(()) for key in network.state_dict() if key not in tensors}
    network.to_empty(device="cpu").load_state_dict({**tensors, **counters})
    return Segmenter(
        network=network.eval(),
        normalisation=published.normalisation,
        policy=published.policy,
        task=published.task,
        network_settings=published.settings,
    )


def expected_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor in the published state dict of that network, by name and in its order."""
    return {key: tuple(tensor.shape) for key, tensor in _empty_network(PUBLISHED[name]).state_dict().items()}


def _empty_network(published: PublishedNetwork) -> nn.Module:
    """Returns the network without memory for its tensors, all of which a state dict holds."""
    with torch.device("meta"):
        return build_network(published.settings, published.task.num_maps)


def _problems(expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]) -> list[str]:
    """Returns what does not fit, one phrase per kind."""
    missing = [key for key in expected if key not in tensors and not key.endswith("num_batches_tracked")]
    unknown = [key for key in tensors if key not in expected]
    wrong = [
        f"{key} of {_shape(tensors[key].shape)} instead of {_shape(shape)}"
        for key, shape in expected.items()
        if key in tensors and tuple(tensors[key].shape) != shape
    ]
    kinds = {"missing": missing, "unknown": unknown, "of another shape": wrong}
    return [f"{len(found)} {kind}: {_listed(found)}" for kind, found in kinds.items() if found]


def _check_values(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raises ``UserError`` for weights that are not finite, and for one tensor given with two values.

    VGG's convolutions have two names each (see ``classic.vgg``).
    """
    seen: dict[int, str] = {}
    for key, place in network.state_dict(keep_vars=True).items():
        if key not in tensors:
            continue
        if not bool(torch.isfinite(tensors[key].float()).all()):
            raise UserError(f"{key} holds NaN or infinite weights; expected finite ones, take another file")
        first = seen.setdefault(id(place), key)
        if not torch.equal(tensors[first], tensors[key]):
            raise UserError(f"{first} and {key} are one tensor in this network; expected equal values, found different")


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a number"


def _listed(names: list[str]) -> str:
    more = len(names) - NAMED_AT_MOST
    return ", ".join(names[:NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
