"""The builders of the published networks, by architecture.

A builder takes the settings and the number of maps of the head (the task's and the auxiliary ones together) and
returns the network in training mode with random weights; ``decoders.build_network`` loads the encoder's. The networks'
modules are imported when one is built, so that this table costs no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from maskloom.models.encoders import NetworkSettings

    Builder = Callable[[NetworkSettings, int], nn.Module]


def _unet_scratch(settings: NetworkSettings, num_maps: int) -> nn.Module:
    from maskloom.models.classic.scratch import ScratchUnet

    return ScratchUnet(settings, num_maps)


def _unet_vgg11(settings: NetworkSettings, num_maps: int) -> nn.Module:
    from maskloom.models.classic.vgg import UNET_VGG11, VggUnet

    return VggUnet(settings, num_maps, UNET_VGG11)


def _ternausnet(settings: NetworkSettings, num_maps: int) -> nn.Module:
    from maskloom.models.classic.vgg import TERNAUSNET_11, TERNAUSNET_16, VggUnet

    return VggUnet(settings, num_maps, TERNAUSNET_11 if settings.encoder == "vgg11" else TERNAUSNET_16)


def _linknet_deconv(settings: NetworkSettings, num_maps: int) -> nn.Module:
    from maskloom.models.classic.linknet import LinkNet

    return LinkNet(settings, num_maps)


def _unet_dilated(settings: NetworkSettings, num_maps: int) -> nn.Module:
    from maskloom.models.classic.dilated import DilatedUnet

    return DilatedUnet(settings, num_maps)


def _unet_resnet(settings: NetworkSettings, num_maps: int) -> nn.Module:
    from maskloom.models.classic.unet_resnet import ResNetUnet

    return ResNetUnet(settings, num_maps)


def _unet_plain(settings: NetworkSettings, num_maps: int) -> nn.Module:
    from maskloom.models.classic.fourth import PlainUnet

    return PlainUnet(settings, num_maps)


def _unet_over_encoder(settings: NetworkSettings, num_maps: int) -> nn.Module:
    from maskloom.models.classic.fourth import EncoderUnet

    return EncoderUnet(settings, num_maps)


def _unet_of_seven_stages(settings: NetworkSettings, num_maps: int) -> nn.Module:
    from maskloom.models.classic.fourth_vgg import VggUnet7

    return VggUnet7(settings, num_maps)


def _linknet_over_encoder(settings: NetworkSettings, num_maps: int) -> nn.Module:
    from maskloom.models.classic.sixth import EncoderLinkNet

    return EncoderLinkNet(settings, num_maps)


def _unet_elu(settings: NetworkSettings, num_maps: int) -> nn.Module:
    from maskloom.models.classic.dstl import EluUnet

    return EluUnet(settings, num_maps)


def _unet_wide_resnet(settings: NetworkSettings, num_maps: int) -> nn.Module:
    from maskloom.models.classic.wide_resnet import WideResNetUnet

    return WideResNetUnet(settings, num_maps)


def _index(settings: NetworkSettings, num_maps: int) -> nn.Module:
    from maskloom.models.index_network import IndexNetwork

    assert settings.index is not None, "the settings see to that"
    return IndexNetwork(settings.index, num_maps)


def _trees(settings: NetworkSettings, num_maps: int) -> nn.Module:
    from maskloom.models.tree_network import TreeNetwork

    assert settings.trees is not None, "the settings see to that"
    return TreeNetwork(settings.trees, settings.channels, num_maps)


CLASSIC: dict[str, Builder] = {
    "unet_scratch": _unet_scratch,
    "unet_vgg11": _unet_vgg11,
    "ternausnet": _ternausnet,
    "linknet_deconv": _linknet_deconv,
    "unet_dilated": _unet_dilated,
    "unet_resnet": _unet_resnet,
    "unet_plain": _unet_plain,
    "unet_resnet50_4th": _unet_over_encoder,
    "unet_vgg_4th": _unet_of_seven_stages,
    "unet_inception_resnet_4th": _unet_over_encoder,
    "unet_mobilenet_4th": _unet_over_encoder,
    "incnet": _linknet_over_encoder,
    "dinknet": _linknet_over_encoder,
    "unet_elu": _unet_elu,
    "unet_wideresnet38": _unet_wide_resnet,
    "index": _index,
    "trees": _trees,
}
