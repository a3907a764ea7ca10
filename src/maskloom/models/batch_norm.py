"""Batch normalisation as a setting of any network: trained, frozen, or left out.

Goes by the layers that a network has; knows nothing about encoders, decoders and how they are trained.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from maskloom.errors import UserError
from maskloom.models.encoders import BatchNorm

_FROZEN = "is_frozen_by_setting"
"""The attribute that marks a frozen layer; it goes along when a network is copied."""


def set_batch_norm(network: nn.Module, kind: BatchNorm) -> None:
    """Gives every batch normalisation in the network what the setting says; "trained" leaves them as they are.

    "frozen": the layer normalises by its present statistics, in training too, and neither they nor its factor and
    offset change any more; names stay. "identity": the layer passes maps on unchanged and has no tensors; dropping
    out and activating that timm puts inside the layer stay. Layers of other kinds (group or layer normalisation) are
    left alone. Raises ``UserError`` when the network has no batch normalisation to change.
    """
    if kind == "trained":
        return
    norms = [
        (name, module)
        for name, module in network.named_modules(remove_duplicate=False)
        if isinstance(module, _BatchNorm)
    ]
    if not norms:
        raise UserError(
            f"network.batch_norm: expected a network with batch normalisation for {kind!r}, found none in this one; "
            "leave it at trained"
        )
    if kind == "identity":
        _work_on_copies(network)
    for name, norm in norms:
        if kind == "identity":
            network.set_submodule(name, _rest(norm))
        else:
            norm.requires_grad_(False)
            setattr(norm, _FROZEN, True)
    keep_frozen(network)


def keep_frozen(network: nn.Module) -> None:
    """Puts the layers that ``set_batch_norm`` froze into evaluation mode; ``train()`` takes them out of it."""
    for module in network.modules():
        if getattr(module, _FROZEN, False):
            module.eval()


def _rest(norm: nn.Module) -> nn.Module:
    """Returns what a layer does besides normalising."""
    children = list(norm.children())
    return nn.Sequential(*children) if children else nn.Identity()


def _work_on_copies(network: nn.Module) -> None:
    """Lets no activation write into what it is given, which without the normalisation may be someone else's maps."""
    for module in network.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
