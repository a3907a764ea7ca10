"""Sets that grow together, for merging what must not be torn apart. Knows nothing about what its items are."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class UnionFind(Generic[Item]):
    """Disjoint sets; each item begins alone."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._parents = {item: item for item in items}

    def find(self, item: Item) -> Item:
        """Returns the representative of the item's set."""
        root = item
        while self._parents[root] != root:
            root = self._parents[root]
        while self._parents[item] != root:
            self._parents[item], item = root, self._parents[item]
        return root

    def join(self, first: Item, second: Item) -> bool:
        """Unites two sets; returns False when they were one already."""
        a, b = self.find(first), self.find(second)
        self._parents[b] = a
        return a != b
