"""What is known of each published network without building it: its encoders, its input, its own options.

Plain data, without torch and without the settings, which are checked against it.
"""

from __future__ import annotations

from dataclasses import dataclass

NO_ENCODER = "none"
"""The name of the encoder of networks that have no exchangeable one."""

OWN_ENCODERS = ("wideresnet38",)
"""Encoders of published networks that neither timm nor segmentation-models-pytorch has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Traits:
    """One published network."""

    encoders: tuple[str, ...] = (NO_ENCODER,)
    """Names of the encoders it is built over; the first is taken when none is stated."""
    multiple: int = 32
    """Sides of its input are multiples of this many pixels."""
    encoder_prefixes: tuple[str, ...] = ()
    """How the names of its pretrained encoder's parameters begin."""
    renamed: tuple[tuple[str, str], ...] = ()
    """How a name in torchvision's and timm's weight files begins, and how the same tensor's name begins in the
    network; () for a network whose ``encoder`` is built by segmentation-models-pytorch and filled as such."""
    unused: tuple[str, ...] = ()
    """How names in weight files begin whose tensors the network leaves out, beside those of the classifier."""
    imagenet_input: bool = True
    """Whether its input is normalised by ImageNet's mean and standard deviation; otherwise it is published with
    pixels that are only scaled to 0…1."""
    options: tuple[str, ...] = ()
    """Which of the settings in ``OPTIONS`` it knows."""


DECODER_OPTIONS = ("dropout", "attention", "decoder_channels", "deep_supervision")
"""Settings that some decoders over any encoder know; each is checked where it is built."""

OPTIONS = ("upsampling", "bottleneck", *DECODER_OPTIONS)
"""Settings that only some networks know."""

RESNETS = ("resnet34", "resnet18", "resnet50", "resnet101", "resnet152")
_LINKNET_ENCODER = {"conv1.": "firstconv.", "bn1.": "firstbn."} | {f"layer{k}.": f"encoder{k}." for k in range(1, 5)}
_VGG_ENCODER = (("features.", "encoder."),)
_WIDE_ENCODER = {f"mod{k}.": f"conv{k}." for k in range(1, 6)}
"""How the authors of in-place activated normalisation, who trained it, name its groups."""

CLASSIC_TRAITS: dict[str, Traits] = {
    "unet_scratch": Traits(multiple=64, imagenet_input=False),
    "unet_vgg11": Traits(encoders=("vgg11",), encoder_prefixes=("encoder.",), renamed=_VGG_ENCODER),
    "ternausnet": Traits(encoders=("vgg11", "vgg16"), encoder_prefixes=("encoder.",), renamed=_VGG_ENCODER),
    "linknet_deconv": Traits(
        encoders=("resnet34", "resnet18"),
        encoder_prefixes=tuple(_LINKNET_ENCODER.values()),
        renamed=tuple(_LINKNET_ENCODER.items()),
        imagenet_input=False,
    ),
    "unet_dilated": Traits(multiple=8, imagenet_input=False, options=("bottleneck",)),
    "unet_resnet": Traits(
        encoders=RESNETS,
        multiple=64,
        encoder_prefixes=("resnet.",),
        renamed=(("", "resnet."),),
        options=("upsampling", "attention", "deep_supervision"),
    ),
    "unet_plain": Traits(imagenet_input=False, options=("dropout",)),
    "unet_resnet50_4th": Traits(encoders=("resnet50",), encoder_prefixes=("encoder.",), options=("dropout",)),
    "unet_vgg_4th": Traits(
        encoders=("vgg16",),
        encoder_prefixes=("encoder.",),
        renamed=_VGG_ENCODER,
        unused=tuple(f"features.{layer}." for layer in (17, 19, 21, 24, 26, 28)),
        options=("dropout",),
    ),
    "unet_inception_resnet_4th": Traits(
        encoders=("inception_resnet_v2",), encoder_prefixes=("encoder.",), options=("dropout",)
    ),
    "unet_mobilenet_4th": Traits(encoders=("mobilenetv1_100",), encoder_prefixes=("encoder.",), options=("dropout",)),
    "incnet": Traits(encoders=("inception_v3",), encoder_prefixes=("encoder.",)),
    "dinknet": Traits(encoders=("densenet121", "densenet169"), encoder_prefixes=("encoder.",)),
    "unet_elu": Traits(multiple=16, imagenet_input=False),
    "unet_wideresnet38": Traits(
        encoders=OWN_ENCODERS,
        encoder_prefixes=tuple(_WIDE_ENCODER.values()),
        renamed=tuple(_WIDE_ENCODER.items()),
        unused=("mod6.", "mod7.", "bn_out."),
        options=("upsampling", "attention", "deep_supervision"),
    ),
    "index": Traits(multiple=1, imagenet_input=False),
    "trees": Traits(multiple=1, imagenet_input=False),
}
