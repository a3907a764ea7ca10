"""What the evaluation of an ensemble needs, and how often, so that nothing is made twice or held too long.

Networks need prepared images; guided ones also need members' maps, which need other networks. The same value may be
needed by several: it is made at the first need and let go at the last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from maskloom.data.input_policy import InputPolicy
from maskloom.errors import UserError, closest
from maskloom.inference.guidance import GuidanceSettings, RegionSettings
from maskloom.inference.merging import Merge, tap_names
from maskloom.models.segmenter import Segmenter

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Leaf:
    """The probabilities of one network."""

    name: str


@dataclass(frozen=True, slots=True)
class MemberMap:
    """The map of a member, as stored."""

    name: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """The image as networks of one policy see it: with members' maps beside it, and cut to a region."""

    policy: InputPolicy
    maps: tuple[str, ...]
    region: RegionSettings | None


Need = Merge | Leaf | MemberMap | Prepared


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """A tree, its networks, what guides each, and the trees that make members' maps."""

    tree: Merge
    segmenters: Mapping[str, Segmenter]
    """By leaf."""
    guidance: Mapping[str, GuidanceSettings]
    """By leaf; the others see the image alone."""
    members: Mapping[str, Merge]
    """How the map of each member is made, over leaves."""

    def prepared(self, name: str) -> Prepared:
        """Returns what a network is given."""
        how_windows_are_drawn = ("prefer_class", "prefer_mask_mean", "keep_background")
        defaults = {field: InputPolicy.model_fields[field].default for field in how_windows_are_drawn}
        policy = self.segmenters[name].policy.model_copy(update=defaults)
        guidance = self.guidance.get(name)
        return Prepared(policy, *((guidance.maps, guidance.region) if guidance else ((), None)))

    def networks(self) -> list[str]:
        """Returns the leaves of all networks that the tree can need, in the order of their first need.

        Raises ``UserError`` for unknown networks and for members that need each other's maps in a circle. A name
        without "/" is a member's, whose map may be given with an image.
        """
        return [need.name for need in self._uses(None) if isinstance(need, Leaf)]

    def uses(self, given: Collection[str]) -> Counter[Hashable]:
        """Returns how often each value is needed when the maps of these members are given.

        Nodes that hold a tap count not at all: their taps come with each evaluation. Raises ``UserError`` for a member
        whose map is neither given nor made by networks.
        """
        return self._uses(given)

    def _uses(self, given: Collection[str] | None) -> Counter[Hashable]:
        uses: Counter[Hashable] = Counter()
        path: list[Need] = []

        def visit(need: Need) -> None:
            if need in path:
                names = [step.name for step in path[path.index(need) :] if isinstance(step, MemberMap)]
                raise UserError(
                    "guidance: expected members that do not wait for each other's maps, found a circle: "
                    + " needs ".join([*names, names[0]])
                )
            if not (isinstance(need, Merge) and tap_names(need)):
                uses[need] += 1
                if uses[need] > 1:
                    return
            path.append(need)
            for below in self._below(need, given):
                visit(below)
            path.pop()

        visit(self.tree)
        return uses

    def _below(self, need: Need, given: Collection[str] | None) -> Iterator[Need]:
        """Yields what making a value asks for, each as often as it is asked for."""
        if isinstance(need, Merge):
            for _, child in need.shares():
                yield child if isinstance(child, Merge) else self._leaf(child)
        elif isinstance(need, Leaf):
            prepared = self.prepared(need.name)
            yield prepared
            if prepared.region is not None:
                yield MemberMap(prepared.region.of)
        elif isinstance(need, Prepared):
            yield from (MemberMap(name) for name in need.maps)
            if need.region is not None:
                yield MemberMap(need.region.of)
        elif given is None or need.name not in given:
            if need.name in self.members:
                yield self.members[need.name]
            elif given is not None:
                known = {*self.segmenters, *self.members, *given}
                raise UserError(
                    f"{need.name}: expected its map to be given, or networks that make it, found neither; "
                    f"{closest(need.name, known)}"
                )

    def _leaf(self, name: str) -> Need:
        if name in self.segmenters:
            return Leaf(name)
        if "/" in name:
            raise UserError(f"the ensemble tree: unknown network {name!r}; {closest(name, self.segmenters)}")
        return MemberMap(name)


class Kept:
    """Values that are needed several times: made at the first need, let go at the last."""

    def __init__(self, uses: Counter[Hashable]) -> None:
        self._left = uses.copy()
        self._values: dict[Hashable, Any] = {}

    def get(self, need: Hashable, make: Callable[[], Value]) -> Value:
        """Returns the value; one whose uses were not counted is made every time."""
        self._left[need] -= 1
        if need in self._values:
            value: Value = self._values[need] if self._left[need] > 0 else self._values.pop(need)
            return value
        value = make()
        if self._left[need] > 0:
            self._values[need] = value
        return value
