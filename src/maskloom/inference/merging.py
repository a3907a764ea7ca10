"""The ensemble as a tree: leaves are single networks ("member/fold"), nodes merge probabilities, names are taps.

One evaluator serves the one pass over many networks and the merging of stored maps. It walks the tree in a fixed
order and keeps one sum per open node, never all leaves. Arithmetic means are linear, and so is bringing a map back
to the image's size; a mean therefore stays a sum per *space* (where the leaves' maps lie) until something that is
not linear, a tap or the result needs it at the image's size. A network may predict only some of the classes, and
children may weigh otherwise in each class: a class is merged over those that predict it. Knows nothing about images
and networks.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from maskloom.config import Config
from maskloom.errors import UserError
from maskloom.inference.shares import Weight, is_used, numbers, shares_of, some_lost
from maskloom.records import Task

MergeKind = Literal["mean", "logit_mean", "geometric", "vote", "mode"]

RESULT = "result"
"""The name under which the whole tree's map is returned beside the taps."""
FLOAT_EPSILON = 1e-7
"""Float probabilities are held this far from 0 (and 1) before a logarithm is taken."""
STORED_EPSILON = 1 / 1020
"""The same for 8-bit maps: a quarter of a step, the middle of what a stored 0 stands for."""


class Merge(Config):
    """One node of the tree."""

    kind: MergeKind = "mean"
    """"mean": of probabilities; "logit_mean": of logits (for exclusive classes: of log-probabilities, then softmax);
    "geometric": weighted geometric mean, not normalised over classes; "vote": the share of children that decide for
    the class, at one half or by the largest; "mode": 1 for the class with most votes, the mean deciding ties."""
    weights: tuple[float | tuple[float, ...], ...] | None = None
    """One per child, at least 0, of any sum above 0; equal when None. In a multilabel task a child's may be a list of
    one number per class, in their order, then every child's; a class for which all children state 0 is 0."""
    children: tuple[Merge | str, ...] = Field(min_length=1)
    """Nodes, or names of networks ("member/fold0"); in a recipe a member's name stands for the mean of its folds."""
    classes: tuple[int, ...] | None = None
    """The classes, by number, that the networks below predict, in a multilabel task (their maps are 0 elsewhere);
    None: what the nodes below say, all where there are none. A class is merged over the children that predict it."""
    name: str | None = None
    """Makes the node a tap: its own map is returned under this name beside the result."""

    @field_validator("name")
    @classmethod
    def _name_is_free(cls, value: str | None) -> str | None:
        if value in (RESULT, "plain", ""):
            raise ValueError(f"a tap cannot be named {value!r}; choose another name")
        return value

    @model_validator(mode="after")
    def _weights_fit(self) -> Merge:
        if self.weights is None:
            return self
        if len(self.weights) != len(self.children):
            raise ValueError(f"expected {len(self.children)} weights, one per child, found {len(self.weights)}")
        if (
            len({len(weight) if isinstance(weight, tuple) else None for weight in self.weights}) > 1
            or () in self.weights
        ):
            raise ValueError(
                "expected one number for every child, or a list of as many numbers as there are classes for every "
                f"child, found {list(self.weights)}"
            )
        if min(map(min, map(numbers, self.weights))) < 0 or not any(map(is_used, self.weights)):
            raise ValueError(f"weights must be at least 0 and not all 0, found {list(self.weights)}")
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> Merge:
        names = tap_names(self)
        if len(set(names)) != len(names):
            raise ValueError(f"names of taps must differ from each other, found {names}")
        return self

    def shares(self) -> Iterator[tuple[Weight, Merge | str]]:
        """Yields (share, child), a share per class where weights are; shares of a class add up to 1, or to 0 where all
        its weights are 0. Children of share 0 (in every class) are left out unless they hold a tap."""
        for share, child in zip(shares_of(_weights(self)), self.children, strict=True):
            if is_used(share) or (isinstance(child, Merge) and tap_names(child)):
                yield share, child

    def leaves(self) -> list[str]:
        """Returns the leaves that an evaluation asks for, in that order; one that occurs twice is listed twice."""
        return [leaf for _, child in self.shares() for leaf in ([child] if isinstance(child, str) else child.leaves())]


def _weights(node: Merge) -> tuple[Weight, ...]:
    return node.weights or (1.0,) * len(node.children)


def predicted_classes(node: Merge | str) -> frozenset[int] | None:
    """Returns the classes that something below a node predicts and has a weight for; None: all."""
    if isinstance(node, str):
        return None
    if node.classes is not None:
        return frozenset(node.classes)
    below = [_weighted_classes(share, predicted_classes(child)) for share, child in node.shares() if is_used(share)]
    known = [classes for classes in below if classes is not None]
    return frozenset[int]().union(*known) if len(known) == len(below) else None


def _weighted_classes(share: Weight, predicted: frozenset[int] | None) -> frozenset[int] | None:
    """Returns those of a child's predicted classes in which its share is not 0; None: all."""
    if not isinstance(share, tuple) or (predicted is None and all(share)):
        return predicted
    weighted = frozenset(number for number, part in enumerate(share) if part > 0)
    return weighted if predicted is None else weighted & predicted


def tap_names(node: Merge) -> list[str]:
    """Returns the names of all taps, children before their parents."""
    below = [name for child in node.children if isinstance(child, Merge) for name in tap_names(child)]
    return below + ([node.name] if node.name else [])


def standard_tree(
    members: Mapping[str, Sequence[str]],
    weights: Sequence[Weight] | None = None,
    classes: Mapping[str, tuple[int, ...]] | None = None,
) -> Merge:
    """Returns the mean over each member's folds, then over members: ``members`` maps a name to its leaves.

    ``weights`` are one per member, all numbers, or all a number per class; ``classes`` are those of the members that
    predict only some.
    """
    classes = classes or {}
    children = tuple(Merge(children=tuple(folds), classes=classes.get(name)) for name, folds in members.items())
    return Merge(children=children, weights=None if weights is None else tuple(weights))


def pruned(node: Merge, keep: Callable[[str], bool]) -> Merge:
    """Returns the tree with only the leaves that ``keep`` accepts, the remaining weights in the same proportion.

    For out-of-fold maps: the tree of the networks that never saw a record. A node vanishes with the last child that
    has a weight, or one for some class. Raises ``UserError`` when a tap or everything would vanish.
    """
    kept = _pruned(node, keep)
    if kept is None or tap_names(kept) != tap_names(node):
        lost = set(tap_names(node)) - set(tap_names(kept) if kept else ())
        raise UserError(
            f"the ensemble tree: expected at least one network below {sorted(lost) or 'its root'} for every fold, "
            "found none; let every node hold all folds of its members"
        )
    return kept


def _pruned(node: Merge, keep: Callable[[str], bool]) -> Merge | None:
    pairs: list[tuple[Weight, Merge | str]] = []
    for weight, child in zip(_weights(node), node.children, strict=True):
        below = (child if keep(child) else None) if isinstance(child, str) else _pruned(child, keep)
        if below is not None:
            pairs.append((weight, below))
    if some_lost(_weights(node), [weight for weight, _ in pairs]):
        return None
    values = {"weights": tuple(weight for weight, _ in pairs) if node.weights else None}
    return node.model_copy(update=values | {"children": tuple(child for _, child in pairs)})


def check_class_weights(node: Merge, task: Task) -> None:
    """Raises ``UserError`` unless weights per class in the tree are as many as the classes of a multilabel task."""
    for weight in node.weights or ():
        if not isinstance(weight, tuple):
            continue
        if task.kind != "multilabel":
            raise UserError(
                "the ensemble tree: weights per class expect a multilabel task, whose maps are merged class by class, "
                f"found a {task.kind} one; state one number per child"
            )
        if len(weight) != task.num_maps:
            raise UserError(
                f"the ensemble tree: expected weights of {task.num_maps} classes, found a list of {len(weight)}; "
                "state one number per class, or one per child"
            )
    for child in node.children:
        if isinstance(child, Merge):
            check_class_weights(child, task)


Spread = dict[Hashable, Tensor]
"""A map as a sum of parts, one per space; the map is the sum of the parts after each is restored."""


def evaluate(
    node: Merge,
    leaf: Callable[[str], Tensor],
    *,
    exclusive: bool,
    epsilon: float = FLOAT_EPSILON,
    space_of: Callable[[str], Hashable] = lambda leaf: None,
    restore: Callable[[Hashable, Tensor], Tensor] = lambda space, values: values,
    remember: Callable[[Merge, Callable[[], Spread]], Spread] = lambda node, value: value(),
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the tree's map and the taps' by name, float32 …×C×H×W in [0, 1].

    ``leaf`` gives one network's probabilities float32 …×C×h×w, which are not changed; ``exclusive`` says that classes
    exclude each other (multiclass). ``space_of`` names the space of a leaf's map and ``restore`` brings a map of that
    space to the image's size; ``restore`` must be linear. ``remember`` gives a node's value, from ``value()`` or from
    an earlier time that it was asked for; remembered values are not changed. A class that nothing below
    a node predicts is 0 there.
    """
    evaluation = _Evaluation(leaf, exclusive, epsilon, space_of, restore, remember)
    value = evaluation.value(node)
    return evaluation.restored(value), evaluation.taps


class _Evaluation:
    def __init__(
        self,
        leaf: Callable[[str], Tensor],
        exclusive: bool,
        epsilon: float,
        space_of: Callable[[str], Hashable],
        restore: Callable[[Hashable, Tensor], Tensor],
        remember: Callable[[Merge, Callable[[], Spread]], Spread],
    ) -> None:
        self.taps: dict[str, Tensor] = {}
        self._leaf, self._space_of, self._restore, self._remember = leaf, space_of, restore, remember
        self._exclusive, self._epsilon = exclusive, epsilon

    def value(self, node: Merge | str) -> Spread:
        """Returns the map of a node or leaf, and keeps it where the node is a tap."""
        if isinstance(node, str):
            return {self._space_of(node): self._leaf(node)}
        value = self._remember(node, lambda: self._mean(node) if node.kind == "mean" else {None: self._merged(node)})
        if node.name is None:
            return value
        self.taps[node.name] = self.restored(value)
        return {None: self.taps[node.name]}

    def restored(self, value: Spread) -> Tensor:
        """Returns the sum of a map's parts, each brought to the image's size."""
        parts = [values if space is None else self._restore(space, values) for space, values in value.items()]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(dim=0)

    def _mean(self, node: Merge) -> Spread:
        total: Spread = {}
        shares = list(node.shares())
        is_alone = sum(is_used(share) for share, _ in shares) == 1
        for share, child in shares:
            for space, part in self.value(child).items():
                if not is_used(share):  # only there for its tap
                    continue
                factor = _factor(share, child, node, part)
                if space in total:
                    _add(total[space], part, factor)
                elif is_alone and isinstance(factor, float):  # it is 1
                    total[space] = part
                else:
                    total[space] = part * factor  # a sum of its own: others may hold the part
        return total

    def _merged(self, node: Merge) -> Tensor:
        code = _code(node.kind, self._exclusive, self._epsilon)
        total: Tensor | None = None
        for share, child in node.shares():
            value = self.value(child)
            if not is_used(share):  # only there for its tap
                continue
            encoded = code.encode(self.restored(value))
            factor = _factor(share, child, node, encoded)
            total = encoded.mul_(factor) if total is None else _add(total, encoded, factor)
        assert total is not None, "shares add up to 1"
        merged, classes = code.decode(total), predicted_classes(node)
        return merged if classes is None else merged * _marked(classes, merged)


def _factor(share: Weight, child: Merge | str, node: Merge, like: Tensor) -> float | Tensor:
    """Returns what a child's map is multiplied with: its share, per class among the children that predict it."""
    children = [(share, predicted_classes(child)) for share, child in node.shares() if is_used(share)]
    own = predicted_classes(child)
    if not isinstance(share, tuple) and all(classes == own for _, classes in children):
        return share

    def parts(share: Weight, classes: frozenset[int] | None) -> Tensor:
        return like.new_tensor(numbers(share))[:, None, None] * _marked(classes, like)

    total = torch.stack([parts(*each) for each in children]).sum(dim=0)
    return parts(share, own) / total.clamp(min=torch.finfo(total.dtype).tiny)


def _marked(classes: frozenset[int] | None, like: Tensor) -> Tensor:
    """Returns C×1×1 of 1 for these classes and 0 for the others, as many as the map …×C×H×W has."""
    marks = like.new_zeros(like.shape[-3]) if classes is not None else like.new_ones(like.shape[-3])
    if classes is not None:
        marks[sorted(classes)] = 1
    return marks[:, None, None]


def _add(total: Tensor, part: Tensor, factor: float | Tensor) -> Tensor:
    """Adds ``factor · part`` in place."""
    return total.addcmul_(part, factor) if isinstance(factor, Tensor) else total.add_(part, alpha=factor)


@dataclass(frozen=True, slots=True)
class _Code:
    """A merge as a weighted mean of encoded maps: ``decode(Σ share · encode(map))``."""

    encode: Callable[[Tensor], Tensor]
    """Gives a new tensor."""
    decode: Callable[[Tensor], Tensor]
    """May change the sum that it is given."""


def _code(kind: MergeKind, exclusive: bool, epsilon: float) -> _Code:
    def log(values: Tensor) -> Tensor:
        return values.clamp(min=epsilon).log_()

    def choice(values: Tensor) -> Tensor:
        return _largest(values) if exclusive else (values >= 0.5).to(values.dtype)

    def choice_and_value(values: Tensor) -> Tensor:
        return torch.stack((choice(values), values))

    def mode(sums: Tensor) -> Tensor:
        votes, mean = sums
        if exclusive:
            leading = votes >= votes.amax(dim=-3, keepdim=True) - 1e-5
            return _largest(mean.masked_fill(~leading, -1))
        tied = (votes - 0.5).abs() < 1e-5
        return torch.where(tied, mean >= 0.5, votes > 0.5).to(mean.dtype)

    if kind == "logit_mean" and exclusive:
        return _Code(log, lambda total: total.softmax(dim=-3))
    if kind == "logit_mean":
        return _Code(lambda values: values.logit(eps=epsilon), Tensor.sigmoid_)
    if kind == "geometric":
        return _Code(log, Tensor.exp_)
    if kind == "vote":
        return _Code(choice, lambda total: total.clamp_(max=1))
    return _Code(choice_and_value, mode)


def _largest(values: Tensor) -> Tensor:
    """Returns 1 at the largest class of each pixel (the first of equal ones), 0 elsewhere; same dtype and shape."""
    return torch.zeros_like(values).scatter_(-3, values.argmax(dim=-3, keepdim=True), 1)


def to_stored(probabilities: Tensor) -> Tensor:
    """Returns probabilities in [0, 1] as they are stored: uint8, round(255·p); computed where they are."""
    return probabilities.mul(255).round_().clamp_(0, 255).to(torch.uint8)


def merge_stored(node: Merge, stored: Callable[[str], np.ndarray], *, exclusive: bool) -> dict[str, np.ndarray]:
    """Returns the tree's map under "result" and the taps by name, uint8 C×H×W, from stored maps uint8 C×H×W.

    ``stored`` is asked for each leaf's map; sums are float32, rounding happens once, at the end.
    """

    def leaf(name: str) -> Tensor:
        return torch.from_numpy(stored(name).astype(np.float32)).div_(255)

    with torch.inference_mode():
        result, taps = evaluate(node, leaf, exclusive=exclusive, epsilon=STORED_EPSILON)
        return store({RESULT: result, **taps})


def store(maps: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Returns maps as they are stored, in memory of their own; one that has several names is converted once."""
    converted: dict[int, np.ndarray] = {}
    for values in maps.values():
        if id(values) not in converted:
            converted[id(values)] = to_stored(values).cpu().numpy()
    return {name: converted[id(values)] for name, values in maps.items()}
