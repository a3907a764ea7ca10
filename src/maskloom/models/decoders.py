"""Every network by its settings: the usual decoders over any encoder, and the published networks as they are.

A network maps N×C×H×W float32 (normalised; H and W multiples of ``multiple_of(settings)``) to logits of N×maps×H×W:
the task's maps, then the auxiliary ones. The decoders come from segmentation-models-pytorch, as plain modules; the
published networks from ``classic``. Knows nothing about normalisation, tasks or files.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskloom.errors import UserError
from maskloom.models.classic.table import CLASSIC
from maskloom.models.classic.traits import NO_ENCODER
from maskloom.models.encoders import MULTIPLE, Architecture, NetworkSettings, resolve

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ARCHITECTURES", "MULTIPLE", "Decoder", "ask_hub", "build_network"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoder:
    """What segmentation-models-pytorch calls our options; "" where this decoder has no such option."""

    channels: str = ""
    widths: tuple[int, ...] = ()
    """The decoder's usual widths."""
    divisor: int = 1
    """Divides every width."""
    attention: str = ""
    dropout: str = ""
    stages: tuple[str, ...] = ()
    """Parts of the decoder that deep supervision looks at, finest first; () where none gives maps of its own size."""
    last: str = ""
    """Where in such a part the convolution stands that says how many maps the part gives."""


ARCHITECTURES: dict[Architecture, Decoder] = {
    "unet": Decoder(
        channels="decoder_channels",
        widths=(256, 128, 64, 32, 16),
        attention="decoder_attention_type",
        stages=("blocks.3", "blocks.2", "blocks.1"),
        last="conv2.0",
    ),
    "unetplusplus": Decoder(
        channels="decoder_channels",
        widths=(256, 128, 64, 32, 16),
        attention="decoder_attention_type",
        stages=("blocks.x_0_3", "blocks.x_0_2", "blocks.x_0_1"),
        last="conv2.0",
    ),
    "linknet": Decoder(stages=("blocks.3", "blocks.2", "blocks.1"), last="block.2.0"),
    "fpn": Decoder(
        channels="decoder_segmentation_channels",
        widths=(128,),
        divisor=32,
        dropout="decoder_dropout",
        stages=("p2", "p3", "p4"),
        last="skip_conv",
    ),
    "pspnet": Decoder(channels="psp_out_channels", widths=(512,), dropout="psp_dropout"),
    "deeplabv3plus": Decoder(channels="decoder_channels", widths=(256,), dropout="decoder_aspp_dropout"),
    "upernet": Decoder(
        channels="decoder_channels",
        widths=(256,),
        stages=("fpn_conv_blocks.2", "fpn_conv_blocks.1", "fpn_conv_blocks.0"),
        last="0",
    ),
    "segformer": Decoder(channels="decoder_segmentation_channels", widths=(256,)),
    "manet": Decoder(channels="decoder_channels", widths=(256, 128, 64, 32, 16)),
    "deeplabv3": Decoder(channels="decoder_channels", widths=(256,), dropout="decoder_aspp_dropout"),
}
"""The decoders that go with any encoder; ``CLASSIC`` has the others.

Of those of segmentation-models-pytorch PAN is left out, which needs images of 128 pixels and more, and DPT, which goes
with few encoders.

U-Net++ is supervised along its outermost nodes, each of another size; its authors supervise the nodes of the finest
size, each of another depth."""


SCSE_REDUCTION = 16
"""scSE squeezes channels by this factor, and to nothing below it."""


def build_network(settings: NetworkSettings, num_maps: int) -> nn.Module:
    """Returns the network in training mode on the CPU; its random part follows torch's global seed.

    It gives ``num_maps`` maps and then ``settings.auxiliary_maps`` more. Raises ``UserError`` for an unknown encoder,
    an option this network does not have, a pair of encoder and decoder that do not fit, and weights that cannot be had
    or do not fit; warns when "auto" found no weights.
    """
    if num_maps < 1:
        raise ValueError(f"a network gives at least one map, got {num_maps}")
    if settings.bundle is None:
        return _build(settings, num_maps)
    from maskloom.models.bundle import start_from_bundle

    network = _build(settings.model_copy(update={"weights": "none"}), num_maps)
    start_from_bundle(network, Path(settings.bundle), settings, num_maps)
    return network


def ask_hub(settings: NetworkSettings) -> None:
    """Sees that the hub gives the weights of a network whose ``weights`` are "hub"; they then lie in the hub's cache.

    The network that they are compared with, by names and shapes, has no memory where its encoder allows that. Raises
    ``UserError`` when they cannot be had or do not fit.
    """
    import torch

    plain = settings.model_copy(update={"channels": 3})  # as the weights are; each network adapts them to its images
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter")
                build_network(plain, 1)
        except UserError as error:
            if isinstance(error.__cause__, OSError):  # no file, or no connection
                raise
            build_network(plain, 1)  # some encoders compute with their own values while they are built


def _build(settings: NetworkSettings, num_maps: int) -> nn.Module:
    """Returns the network with its encoder's weights, its batch normalisations as set, and its heads."""
    from maskloom.models.batch_norm import set_batch_norm
    from maskloom.models.deep_supervision import supervise

    network = _with_weights(settings, num_maps + settings.auxiliary_maps)
    set_batch_norm(network, settings.batch_norm)
    if settings.deep_supervision:
        supervise(network, _stages(network, settings), num_maps)
    return network


def _with_weights(settings: NetworkSettings, num_maps: int) -> nn.Module:
    """Returns the network with its encoder's weights."""
    from maskloom.models import pretrained, torchvision_guard

    torchvision_guard.ensure()
    source = pretrained.Source(kind="none") if settings.encoder == NO_ENCODER else pretrained.choose(settings)
    if settings.traits is None:
        network = _over_any_encoder(settings, num_maps)
        pretrained.load(network.encoder, resolve(settings.encoder), source, settings.channels)
        return network  # type: ignore[no-any-return]
    classic = CLASSIC[settings.architecture](settings, num_maps)
    pretrained.load_classic(classic, settings, source)
    return classic


def _stages(network: Any, settings: NetworkSettings) -> dict[str, int]:
    """Returns the names of the stages that deep supervision looks at, finest first, and the maps that each gives."""
    if settings.traits is not None:
        return dict(network.supervised)
    decoder = ARCHITECTURES[settings.architecture]
    names = [f"decoder.{stage}" for stage in decoder.stages]
    return {name: network.get_submodule(f"{name}.{decoder.last}").out_channels for name in names}


def _over_any_encoder(settings: NetworkSettings, num_maps: int) -> Any:
    import segmentation_models_pytorch as smp

    options = _decoder_options(settings)
    try:
        return smp.create_model(
            settings.architecture,
            resolve(settings.encoder),
            None,
            in_channels=settings.channels,
            classes=num_maps,
            **options,
        )
    except UserError:
        raise
    except Exception as error:  # what a pair that does not fit raises depends on the encoder
        raise UserError(
            f"network: the decoder {settings.architecture!r} cannot be built over the encoder {settings.encoder!r} "
            f"({' '.join(str(error).split())[:200]}); choose another encoder or architecture"
        ) from error


def _decoder_options(settings: NetworkSettings) -> dict[str, Any]:
    """Returns the keywords of segmentation-models-pytorch for the options that were given."""
    decoder = ARCHITECTURES[settings.architecture]
    given = {
        "decoder_channels": (settings.decoder_channels, decoder.channels),
        "width": (None if settings.width == 1 else settings.width, decoder.channels),
        "attention": (settings.attention, decoder.attention),
        "dropout": (settings.dropout, decoder.dropout),
        "deep_supervision": (settings.deep_supervision or None, decoder.stages),
    }
    for option, (value, keyword) in given.items():
        if value is not None and not keyword:
            raise UserError(
                f"network.{option}: the {settings.architecture} decoder has no such option; leave it out, or use "
                + " or ".join(_having("decoder_channels" if option == "width" else option))
            )
    options: dict[str, Any] = {}
    if settings.attention is not None:
        options[decoder.attention] = settings.attention
    if settings.dropout is not None:
        options[decoder.dropout] = settings.dropout
    if settings.decoder_channels is not None or settings.width != 1:
        widths = _widths(settings, decoder)
        options[decoder.channels] = widths if len(widths) > 1 else widths[0]
    return options


def _widths(settings: NetworkSettings, decoder: Decoder) -> tuple[int, ...]:
    """Returns the decoder's widths, stated or usual, times ``settings.width`` as far as its layers allow."""
    widths = settings.decoder_channels if settings.decoder_channels is not None else decoder.widths
    if len(widths) != len(decoder.widths) or not all(1 <= width <= 4096 for width in widths):
        raise UserError(
            f"network.decoder_channels: expected {len(decoder.widths)} number(s) from 1 to 4096 for the "
            f"{settings.architecture} decoder, found {list(widths)}"
        )
    if settings.attention and min(widths) < SCSE_REDUCTION:
        raise UserError(
            f"network.decoder_channels: scse attention needs at least {SCSE_REDUCTION} channels everywhere, "
            f"found {list(widths)}"
        )
    if settings.width == 1:
        return widths
    least = SCSE_REDUCTION if settings.attention else decoder.divisor
    return tuple(max(round(settings.scaled(width) / decoder.divisor) * decoder.divisor, least) for width in widths)


def _having(option: str) -> list[str]:
    field = {"decoder_channels": "channels", "deep_supervision": "stages"}.get(option, option)
    return [name for name, decoder in ARCHITECTURES.items() if getattr(decoder, field)]
