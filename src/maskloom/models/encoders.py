"""What a network is built from, by name, and how its encoder sees pixels: settings, names, normalisation.

An encoder is named as timm names it ("tf_efficientnet_lite0", "convnext_tiny.fb_in22k"), or as
segmentation-models-pytorch does where it has its own ("resnet34", "mit_b0"), which comes first. Knows nothing about
weight files (``pretrained``) and nothing about decoders' insides. Imports neither torch nor timm until asked, since
recipes are read with these settings.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

from pydantic import Field, model_validator

from maskloom.config import Config
from maskloom.errors import UserError, closest
from maskloom.models.classic.traits import CLASSIC_TRAITS, DECODER_OPTIONS, NO_ENCODER, OPTIONS, OWN_ENCODERS, Traits
from maskloom.models.tree_settings import TreeSettings
from maskloom.rasters.indices import IndexSettings

Architecture = Literal[
    "unet", "unetplusplus", "linknet", "fpn", "pspnet", "deeplabv3plus", "upernet", "segformer",
    "manet", "deeplabv3",
    "unet_scratch", "unet_vgg11", "ternausnet", "linknet_deconv", "unet_dilated", "unet_resnet",
    "unet_plain", "unet_resnet50_4th", "unet_vgg_4th", "unet_inception_resnet_4th", "unet_mobilenet_4th",
    "incnet", "dinknet", "unet_elu", "unet_wideresnet38", "index", "trees",
]  # fmt: skip
"""First the decoders that go with any encoder; the others are published networks as they are (``classic``)."""

BatchNorm = Literal["trained", "frozen", "identity"]

MULTIPLE = 32
"""Sides of the input are multiples of this many pixels, for the decoders that go with any encoder."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

TIMM_PREFIX = "tu-"
"""How segmentation-models-pytorch marks an encoder that timm builds."""

FEWEST_FILTERS = 4
"""No layer becomes narrower than this, however small ``width`` is."""


class NetworkSettings(Config):
    """One network: decoder, encoder, where the encoder's weights come from, and the input's channels."""

    architecture: Architecture = "unet"
    """The decoder (U-Net, U-Net++, LinkNet, FPN, PSPNet, DeepLabV3 and V3+, UPerNet, SegFormer's, MA-Net), or a
    published network as a whole: "unet_scratch" (depth 6, without an encoder), "unet_vgg11", "ternausnet" (over vgg11
    or vgg16), "linknet_deconv" (over resnet34 or resnet18), "unet_dilated", "unet_resnet", and others, all in the table
    below."""
    encoder: str = Field(default="tf_efficientnet_lite0", min_length=1, max_length=200)
    """Name in timm or segmentation-models-pytorch. A published network has its own, which is taken when none is
    stated; "none" for those that are of one piece."""
    weights: str = "auto"
    """"auto" (installed package, else none and said aloud), "none", "installed", "hub", or the path of a file."""
    bundle: str | None = None
    """Path of a bundle whose weights the whole network starts from, instead of the encoder's ``weights``; it must hold
    the same network with the same number of maps."""
    channels: int = Field(default=3, ge=1, le=1024)
    """Channels of the input image."""
    width: float = Field(default=1.0, gt=0, le=4)
    """Multiplies the filters of the decoder, and in published networks over VGG and ResNet (or of one piece) those of
    every layer, which then fits no pretrained weights unless it is 1."""
    auxiliary_maps: int = Field(default=0, ge=0, le=64)
    """Further output maps after the task's own, which only training looks at (a signed distance, for instance)."""
    decoder_channels: tuple[int, ...] | None = None
    """Width of the decoder: five numbers, deepest first, for the U-Nets, one for the others; None for the usual."""
    attention: Literal["scse"] | None = None
    """Attention in the decoders of "unet", "unetplusplus", "unet_resnet" and "unet_wideresnet38" (scSE,
    https://arxiv.org/abs/1803.02579)."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout before the last layer, where the decoder has one (FPN, PSPNet, DeepLabV3+); None for the usual."""
    upsampling: Literal["nearest", "deconv"] | None = None
    """How "unet_resnet" and "unet_wideresnet38" double sides: the nearest pixel before two convolutions (the usual), or
    a transposed convolution 4×4 after one."""
    bottleneck: Literal["cascade", "parallel"] | None = None
    """How the six dilated convolutions of "unet_dilated" stand: each after the last (the usual), or side by side."""
    batch_norm: BatchNorm = "trained"
    """What the network's batch normalisations do: "trained" they follow the batches, "frozen" they keep the statistics,
    factors and offsets they start with (in a part that starts from random weights that is no normalisation at all),
    and as "identity" they are left out, with their tensors, after pretrained weights were loaded."""
    deep_supervision: bool = False
    """Whether the decoder also gives logits from three coarser stages while it is trained: at 1/2, 1/4 and 1/8 of the
    sides for "unet", "unetplusplus", "linknet", "unet_resnet" and "unet_wideresnet38", at 1/4, 1/8 and 1/16 for "fpn"
    and "upernet". ``loss.deep_supervision`` (0.4) is the loss's factor on each of them."""
    index: IndexSettings | None = None
    """The rules of "index", a classifier by spectral indices: nothing is trained, thresholds are searched for."""
    trees: TreeSettings | None = None
    """What "trees", boosted trees on pixels, see and how they are grown; nothing stated: the usual ones. They need
    `pip install maskloom[trees]` to be trained, and nothing to predict."""

    @model_validator(mode="before")
    @classmethod
    def _usual_trees(cls, values: Any) -> Any:
        is_bare = isinstance(values, dict) and values.get("architecture") == "trees" and values.get("trees") is None
        return {**values, "trees": {}} if is_bare else values

    @model_validator(mode="before")
    @classmethod
    def _own_encoder(cls, values: Any) -> Any:
        """A published network brings its encoder along."""
        if not isinstance(values, dict) or "encoder" in values:
            return values
        architecture = values.get("architecture")
        traits = CLASSIC_TRAITS.get(architecture) if isinstance(architecture, str) else None
        return values if traits is None else {**values, "encoder": traits.encoders[0]}

    @model_validator(mode="after")
    def _options_fit(self) -> NetworkSettings:
        traits = CLASSIC_TRAITS.get(self.architecture)
        if traits is not None and self.encoder not in traits.encoders:
            raise ValueError(
                f"encoder: expected {' or '.join(traits.encoders)} for {self.architecture}, found {self.encoder!r}"
            )
        if self.encoder == NO_ENCODER and self.weights not in ("auto", "none"):
            raise ValueError(f"weights: {self.architecture} has no encoder to fill, found {self.weights!r}; use none")
        known = DECODER_OPTIONS if traits is None else traits.options
        for option in OPTIONS:
            value = getattr(self, option)
            if value is not None and value is not False and option not in known:
                having = [name for name, other in CLASSIC_TRAITS.items() if option in other.options]
                raise ValueError(
                    f"{option}: {self.architecture} has no such option; leave it out"
                    + (f", or use {' or '.join(having)}" if having else "")
                )
        return self

    @model_validator(mode="after")
    def _index_has_rules(self) -> NetworkSettings:
        if (self.architecture == "index") != (self.index is not None):
            raise ValueError("index: expected rules for the architecture index, and for no other")
        if self.index is not None and (self.channels != len(self.index.bands) or self.auxiliary_maps):
            raise ValueError(
                f"channels: expected {len(self.index.bands)}, one per band of index.bands, found {self.channels}"
            )
        return self

    @model_validator(mode="after")
    def _trees_stand_alone(self) -> NetworkSettings:
        if self.trees is None:
            return self
        if self.architecture != "trees":
            raise ValueError(f"trees: expected settings for the architecture trees alone, found {self.architecture}")
        if self.bundle is not None or self.auxiliary_maps:
            name = "auxiliary_maps" if self.bundle is None else "bundle"
            raise ValueError(f"{name}: trees are grown from nothing and for the task alone; leave it out")
        return self

    @property
    def minimises_loss(self) -> bool:
        """Whether it learns by a loss in epochs; rules of indices are searched for, and trees are grown."""
        return self.index is None and self.trees is None

    @property
    def traits(self) -> Traits | None:
        """What is known of this network when it is a published one, else None."""
        return CLASSIC_TRAITS.get(self.architecture)

    def scaled(self, filters: int) -> int:
        """Returns so many filters times ``width``, at least ``FEWEST_FILTERS``."""
        return max(round(filters * self.width), min(filters, FEWEST_FILTERS))


def multiple_of(settings: NetworkSettings) -> int:
    """Returns how many pixels divide both sides of this network's input."""
    return settings.traits.multiple if settings.traits else MULTIPLE


def encoder_prefixes(settings: NetworkSettings) -> tuple[str, ...]:
    """Returns how the names of the encoder's parameters begin; () for a network of one piece."""
    return settings.traits.encoder_prefixes if settings.traits else ("encoder.",)


@cache
def encoder_names() -> tuple[frozenset[str], frozenset[str]]:
    """Returns the names that segmentation-models-pytorch and timm know, in this order."""
    from maskloom.models import torchvision_guard

    torchvision_guard.ensure()
    import timm
    from segmentation_models_pytorch.encoders import get_encoder_names

    # "timm-…" are deprecated aliases of timm's own names.
    own = frozenset(name for name in get_encoder_names() if not name.startswith("timm-"))
    return own, frozenset(timm.list_models()) | frozenset(timm.list_pretrained())


def resolve(encoder: str) -> str:
    """Returns the name under which segmentation-models-pytorch builds this encoder: its own, or timm's with "tu-".

    "none", the encoder of networks of one piece, and the encoders that only a published network has stay as they are.
    Raises ``UserError`` with the closest name for one that neither knows.
    """
    if encoder == NO_ENCODER or encoder in OWN_ENCODERS:
        return encoder
    own, timm_names = encoder_names()
    if encoder in own:
        return encoder
    name = encoder.removeprefix(TIMM_PREFIX)
    if name in timm_names:
        return TIMM_PREFIX + name
    near = closest(encoder, own | timm_names)
    hint = near if near.startswith("did you mean") else "see timm.list_models() for the names"
    raise UserError(
        f"network.encoder: expected an encoder of timm or segmentation-models-pytorch, found {encoder!r}; {hint}"
    )


def encoder_normalisation(settings: NetworkSettings) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation per input channel that the encoder's weights expect, on the scale 0…1.

    Those of ImageNet where the encoder states none, and 0 and 1 for published networks that take pixels as they are.
    One channel takes the average of the three; more than three repeat them in turn, as the stem's weights do (see
    ``pretrained``).
    """
    if settings.traits and not settings.traits.imagenet_input:
        return (0.0,) * settings.channels, (1.0,) * settings.channels
    name = resolve(settings.encoder)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    if name.startswith(TIMM_PREFIX):
        import timm

        stated = timm.get_pretrained_cfg(name.removeprefix(TIMM_PREFIX))
        if stated is not None and len(stated.mean) == len(stated.std) == 3:
            mean, std = tuple(stated.mean), tuple(stated.std)
    return _for_channels(mean, settings.channels), _for_channels(std, settings.channels)


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(values[index % len(values)] for index in range(channels))
