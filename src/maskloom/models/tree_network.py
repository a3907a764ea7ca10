"""Boosted trees on pixels as a network: their logits from the bands, as they are and smoothed, in plain torch.

So they join folds, bundles, tiles and ensembles like any other network. Trees are tensors of the state dict, all of one
shape, and are checked whenever they are loaded: nothing that a file holds is executed, hangs or reads beyond a tensor.
Borders of the input are mirrored about the outermost pixel centres, as ``cv2.GaussianBlur`` does. A tile's borders are
no image's: what lies nearer to them than ``TreeSettings.reach`` is not what the whole image gives, so the input policy
of trees has a margin of that width. Knows nothing about files, truth and how trees are grown.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from maskloom.errors import UserError
from maskloom.models.index_network import LIMIT
from maskloom.models.smoothing import features, mirrored
from maskloom.models.tree_settings import TreeSettings

LARGEST_VALUE = 1e30
"""Of a leaf: sums of any number of trees then stay finite."""
VALUES = 2**22
"""So many smoothed values (of whole rows, at least of twice the reach) are there at a time, so that memory does not
follow the image's height, nor time the reach of what is smoothed again at the seams."""
STEPS = {"cpu": 2**17, "cuda": 2**23}
"""So many pairs of a pixel and a tree go down the trees at a time: what stays in a CPU's cache, and fills a GPU."""
TREES_AT_ONCE = 16


class TreeNetwork(nn.Module):
    """Logits per map: the sum of the leaves that a pixel falls into, one of each tree, clamped to ±30.

    The state dict holds, of num_maps · num_trees trees (those of the first map first) with up to num_leaves - 1 nodes:
    ``features`` int32 trees×nodes, which plane a node looks at (all bands per Gaussian); ``thresholds`` float32
    trees×nodes; ``branches`` int32 trees×nodes×2, where values up to the threshold go, and those above it: a later node
    of the tree, or -1 - number of a leaf; ``values`` float32 trees×leaves. A tree begins at its node 0. Pixels that are
    not finite count as 0 before anything is smoothed.
    """

    features: Tensor
    thresholds: Tensor
    branches: Tensor
    values: Tensor

    def __init__(self, settings: TreeSettings, channels: int, num_maps: int) -> None:
        """A fresh network finds every class nowhere (its logits are -30)."""
        super().__init__()
        self.settings, self.channels, self.num_maps = settings, channels, num_maps
        trees, nodes = num_maps * settings.num_trees, settings.num_leaves - 1
        self.register_buffer("features", torch.zeros(trees, nodes, dtype=torch.int32))
        self.register_buffer("thresholds", torch.zeros(trees, nodes))
        self.register_buffer("branches", torch.full((trees, nodes, 2), -1, dtype=torch.int32))
        self.register_buffer("values", torch.zeros(trees, settings.num_leaves))
        self.values[:: settings.num_trees] = -LIMIT
        self._depths = [1] * trees

    def _load_from_state_dict(self, *arguments: Any) -> None:
        """Fills the tensors; raises ``UserError`` for what is no tree."""
        super()._load_from_state_dict(*arguments)
        self._check()
        self._depths = self._found_depths()

    def _check(self) -> None:
        trees, nodes = self.features.shape
        num_features = self.channels * self.settings.num_planes
        own = torch.arange(nodes, dtype=torch.int32, device=self.branches.device).reshape(1, nodes, 1)
        is_leaf = self.branches < 0
        for name, wrong in (
            ("features", (self.features < 0) | (self.features >= num_features)),
            ("branches", ~is_leaf & ((self.branches <= own) | (self.branches >= nodes))),
            ("branches", is_leaf & (self.branches < -self.settings.num_leaves)),
            ("thresholds", ~self.thresholds.isfinite()),
            ("values", ~(self.values.abs() <= LARGEST_VALUE)),
        ):
            if bool(wrong.any()):
                tree = int(wrong.reshape(trees, -1).any(dim=1).nonzero()[0])
                raise UserError(
                    f"expected trees whose nodes lead to later ones or to their leaves by one of {num_features} "
                    f"features, found {name!r} of tree {tree} that do not; train it again"
                )

    def _found_depths(self) -> list[int]:
        """Returns, per tree, how many nodes lie on the longest way to a leaf."""
        children = self.branches.to("cpu", torch.int64)
        trees, nodes, _ = children.shape
        longest = torch.zeros(trees, nodes + 1, dtype=torch.int64)  # the last for leaves
        for node in reversed(range(nodes)):
            later = torch.where(children[:, node] < 0, nodes, children[:, node])
            longest[:, node] = 1 + longest.gather(1, later).amax(dim=1)
        found: list[int] = longest[:, 0].tolist()
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits N×maps×H×W float32 of images N×C×H×W of any size.

        Raises ``UserError`` for another number of channels.
        """
        num_images, channels, height, width = images.shape
        if channels != self.channels:
            raise UserError(f"expected {self.channels} channels, which the trees know, found {channels}; train on such")
        pixels = images.to(torch.float32, memory_format=torch.contiguous_format)
        pixels = pixels.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        logits = pixels.new_empty(num_images, self.num_maps, height, width)
        tables = self._tables()
        rows = max(VALUES // (width * channels * self.settings.num_planes), 2 * self.settings.reach, 1)
        for number in range(num_images):
            for top in range(0, height, rows):
                bottom = min(top + rows, height)
                seen = self.features_of(pixels[number : number + 1], top, bottom)[0].flatten(1)
                logits[number, :, top:bottom] = self._scores(seen, tables).reshape(-1, bottom - top, width)
        return logits

    def features_of(self, images: Tensor, top: int, bottom: int) -> Tensor:
        """Returns what trees look at in the rows from ``top`` to ``bottom``: float32 N×(planes · C)×rows×W.

        ``images`` are float32 N×C×H×W, finite.
        """
        height, width, reach, device = *images.shape[-2:], self.settings.reach, images.device
        strip = images.index_select(2, mirrored(top - reach, bottom + reach, height, device))
        return features(strip.index_select(3, mirrored(-reach, width + reach, width, device)), self.settings)

    def _tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns features, thresholds and children with leaves as further nodes, which lead to themselves."""
        trees, nodes = self.features.shape
        leaves = torch.arange(nodes, nodes + self.settings.num_leaves, device=self.features.device)
        children = self.branches.to(torch.int64)
        inner = torch.where(children < 0, nodes - 1 - children, children)
        outer = leaves[None, :, None].expand(trees, -1, 2)
        unused = (0, self.settings.num_leaves)
        return (
            nn.functional.pad(self.features.to(torch.int64), unused),
            nn.functional.pad(self.thresholds, unused),
            torch.cat([inner, outer], dim=1).flatten(1),
        )

    def _scores(self, seen: Tensor, tables: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Returns logits maps×P of pixels whose features are float32 F×P."""
        num_trees, nodes = self.settings.num_trees, self.features.shape[1]
        total = seen.new_zeros(self.num_maps, seen.shape[1])
        at_once = max(STEPS.get(seen.device.type, STEPS["cpu"]) // TREES_AT_ONCE, 1)
        for start in range(0, seen.shape[1], at_once):
            chunk = seen[:, start : start + at_once].contiguous()
            for number in range(self.num_maps):
                end = (number + 1) * num_trees
                for first in range(number * num_trees, end, TREES_AT_ONCE):
                    some = slice(first, min(first + TREES_AT_ONCE, end))
                    leaves = _fallen(chunk, *(table[some] for table in tables), depth=max(self._depths[some])) - nodes
                    total[number, start : start + at_once] += self.values[some].gather(1, leaves).sum(dim=0)
        return total.clamp_(-LIMIT, LIMIT)


def _fallen(seen: Tensor, features: Tensor, thresholds: Tensor, children: Tensor, *, depth: int) -> Tensor:
    """Returns the node int64 trees×P where each of P pixels is after ``depth`` steps down each tree."""
    node = torch.zeros(len(features), seen.shape[1], dtype=torch.int64, device=seen.device)
    for _ in range(depth):
        goes_right = seen.gather(0, features.gather(1, node)) > thresholds.gather(1, node)
        node = children.gather(1, node.mul_(2).add_(goes_right))
    return node
