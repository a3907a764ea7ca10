"""An index classifier as a network: each map is a spectral index of the input, measured from a threshold.

So it joins bundles, test-time views, tiles and ensembles like any other network. It has no weights to train: thresholds
are found by a search over the training images (see ``training.index_search``) and kept as buffers. Every pixel is
decided by itself, so sides, tiles and batches make no difference. Knows nothing about files and truth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from maskloom.errors import UserError
from maskloom.rasters.indices import IndexRule, IndexSettings, index

LIMIT = 30.0
"""Logits lie between -30 and 30, whose probabilities are 0 and 1 in float32; where a value is not finite it is -30."""

_SIGNS = {"above": 1.0, "below": -1.0}


class IndexNetwork(nn.Module):
    """Logits steepness · (value - threshold) · sign per map, clamped to ±``LIMIT``.

    The state dict holds ``thresholds`` and ``signs``, float32, one entry per map; a sign is 1 where the class lies
    above the threshold, -1 where it lies below, and 0 for a class that is found nowhere.
    """

    thresholds: Tensor
    signs: Tensor

    def __init__(self, settings: IndexSettings, num_maps: int) -> None:
        """Raises ``UserError`` unless the settings have a rule (or None) for each map."""
        super().__init__()
        if len(settings.rules) != num_maps:
            raise UserError(
                f"network.index.rules: expected {num_maps}, one per class (null for a class without an index), found "
                f"{len(settings.rules)}"
            )
        self.bands, self.steepness = settings.bands, settings.steepness
        texts = [rule.expression if rule else None for rule in settings.rules]
        self.texts = tuple(texts)
        self._expressions = {text: index(text, settings.bands) for text in texts if text is not None}
        self.register_buffer("thresholds", torch.zeros(num_maps))
        self.register_buffer("signs", torch.zeros(num_maps))
        self.set_rules(settings.rules)

    @torch.no_grad()
    def set_rules(self, rules: Sequence[IndexRule | None]) -> None:
        """Takes the thresholds and directions of rules over the same expressions, for instance those of a search.

        None, in place of any rule, switches a map off. Raises ``ValueError`` for rules over other expressions.
        """
        texts = [rule.expression if rule else text for rule, text in zip(rules, self.texts, strict=True)]
        if tuple(texts) != self.texts:
            raise ValueError(f"expected rules over {self.texts}, got {tuple(texts)}; build another network")
        for map_index, rule in enumerate(rules):
            self.thresholds[map_index] = rule.threshold if rule else 0.0
            self.signs[map_index] = _SIGNS[rule.direction] if rule else 0.0

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits N×maps×H×W float32 of images N×C×H×W, whose channels are the bands in their order.

        Raises ``UserError`` when the channels are not as many as the bands.
        """
        if images.shape[1] != len(self.bands):
            raise UserError(
                f"expected {len(self.bands)} channels ({', '.join(self.bands)}), found {images.shape[1]}; name each "
                "band of the images in network.index.bands"
            )
        bands = dict(zip(self.bands, images.float().unbind(1), strict=True))
        values = {text: expression.evaluate(bands) for text, expression in self._expressions.items()}
        nowhere = torch.full_like(images[:, 0], -LIMIT, dtype=torch.float32)
        maps = [
            nowhere if text is None else self._logits(values[text], map_index)
            for map_index, text in enumerate(self.texts)
        ]
        return torch.stack(maps, dim=1)

    def _logits(self, values: Tensor, map_index: int) -> Tensor:
        threshold, sign = self.thresholds[map_index], self.signs[map_index]
        logits = ((values - threshold) * (sign * self.steepness)).clamp(-LIMIT, LIMIT)
        return torch.where(torch.isfinite(values) & (sign != 0), logits, -LIMIT)
