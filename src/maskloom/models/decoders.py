"""The published decoders over any encoder, through segmentation-models-pytorch, as plain modules.

A network maps N×C×H×W float32 (normalised; H and W multiples of ``MULTIPLE``) to N×maps×H×W logits. Knows nothing
about normalisation, tasks or files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maskloom.errors import UserError
from maskloom.models.encoders import MULTIPLE, Architecture, NetworkSettings, resolve

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ARCHITECTURES", "MULTIPLE", "Decoder", "build_network"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoder:
    """What segmentation-models-pytorch calls our options; "" where this decoder has no such option."""

    channels: str = ""
    num_channels: int = 1
    attention: str = ""
    dropout: str = ""


ARCHITECTURES: dict[Architecture, Decoder] = {
    "unet": Decoder(channels="decoder_channels", num_channels=5, attention="decoder_attention_type"),
    "linknet": Decoder(),
    "fpn": Decoder(channels="decoder_segmentation_channels", dropout="decoder_dropout"),
    "pspnet": Decoder(channels="psp_out_channels", dropout="psp_dropout"),
    "deeplabv3plus": Decoder(channels="decoder_channels", dropout="decoder_aspp_dropout"),
    "upernet": Decoder(channels="decoder_channels"),
    "segformer": Decoder(channels="decoder_segmentation_channels"),
}


SCSE_REDUCTION = 16
"""scSE squeezes channels by this factor, and to nothing below it."""


def build_network(settings: NetworkSettings, num_maps: int) -> nn.Module:
    """Returns the network in training mode on the CPU; its random part follows torch's global seed.

    Raises ``UserError`` for an unknown encoder, an option this decoder does not have, a pair of encoder and decoder
    that do not fit, and weights that cannot be had; warns when "auto" found no weights.
    """
    from maskloom.models import pretrained, torchvision_guard

    torchvision_guard.ensure()
    import segmentation_models_pytorch as smp

    if num_maps < 1:
        raise ValueError(f"a network gives at least one map, got {num_maps}")
    options = _decoder_options(settings)
    name = resolve(settings.encoder)
    source = pretrained.choose(settings)
    try:
        network: Any = smp.create_model(
            settings.architecture, name, None, in_channels=settings.channels, classes=num_maps, **options
        )
    except Exception as error:  # what a pair that does not fit raises depends on the encoder
        raise UserError(
            f"network: the decoder {settings.architecture!r} cannot be built over the encoder {settings.encoder!r} "
            f"({' '.join(str(error).split())[:200]}); choose another encoder or architecture"
        ) from error
    pretrained.load(network.encoder, name, source, settings.channels)
    return network  # type: ignore[no-any-return]


def _decoder_options(settings: NetworkSettings) -> dict[str, Any]:
    """Returns the keywords of segmentation-models-pytorch for the options that were given."""
    decoder = ARCHITECTURES[settings.architecture]
    given = {
        "decoder_channels": (settings.decoder_channels, decoder.channels),
        "attention": (settings.attention, decoder.attention),
        "dropout": (settings.dropout, decoder.dropout),
    }
    options: dict[str, Any] = {}
    for option, (value, keyword) in given.items():
        if value is None:
            continue
        if not keyword:
            raise UserError(
                f"network.{option}: the {settings.architecture} decoder has no such option; leave it out, or use "
                + " or ".join(_having(option))
            )
        options[keyword] = value
    if settings.decoder_channels is not None:
        widths = settings.decoder_channels
        if len(widths) != decoder.num_channels or not all(1 <= width <= 4096 for width in widths):
            raise UserError(
                f"network.decoder_channels: expected {decoder.num_channels} number(s) from 1 to 4096 for the "
                f"{settings.architecture} decoder, found {list(widths)}"
            )
        if settings.attention and min(widths) < SCSE_REDUCTION:
            raise UserError(
                f"network.decoder_channels: scse attention needs at least {SCSE_REDUCTION} channels everywhere, "
                f"found {list(widths)}"
            )
        options[decoder.channels] = widths if decoder.num_channels > 1 else widths[0]
    return options


def _having(option: str) -> list[str]:
    field = {"decoder_channels": "channels"}.get(option, option)
    return [name for name, decoder in ARCHITECTURES.items() if getattr(decoder, field)]
