"""Which network never saw which record, where members may have folds of their own.

Every "member/fold" network validates the records of its fold in its member's table; maps of members from outside are
taken as they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from maskloom.data.folds import ALWAYS_TRAINING, FoldTable
from maskloom.inference.merging import Merge
from maskloom.recipe import Recipe
from maskloom.run_directory import RunDirectory


def leaf_name(member: str, fold: int) -> str:
    """Returns the name of one trained network in an ensemble tree."""
    return f"{member}/fold{fold}"


def leaf_parts(leaf: str) -> tuple[str, int | None]:
    """Returns (member, fold) of a leaf; the fold of a member from outside is None."""
    member, _, fold = leaf.partition("/fold")
    return member, int(fold) if fold else None


@dataclass(frozen=True)
class FoldTables:
    """The fold tables of a run: the recipe's, and those that members have for themselves."""

    shared: FoldTable
    own: Mapping[str, FoldTable]

    @classmethod
    def read(cls, run: RunDirectory, recipe: Recipe) -> FoldTables:
        """Returns the tables once the ``folds`` stage is finished."""
        own = {
            member.name: FoldTable.from_csv(run.member_folds(member.name))
            for member in recipe.members
            if member.folds is not None
        }
        return cls(FoldTable.from_csv(run.folds), own)

    def of(self, member: str) -> FoldTable:
        """Returns the table that a member's networks were trained by."""
        return self.own.get(member, self.shared)

    def leaves(self, member: str) -> tuple[str, ...]:
        """Returns the networks of a member, one per fold."""
        return tuple(leaf_name(member, fold) for fold in range(self.of(member).num_folds))

    def validated(self, members: Iterable[str]) -> dict[str, int]:
        """Returns the shared fold of every record that each of these members validates once."""
        fold_of = self._fold_of
        tables = [self._own_fold_of[name] for name in members if name in self._own_fold_of]
        return {
            record_id: fold
            for record_id, fold in fold_of.items()
            if fold != ALWAYS_TRAINING and all(table[record_id] != ALWAYS_TRAINING for table in tables)
        }

    def fold(self, member: str, record_id: str) -> int:
        """Returns the fold of a member that validates the record, -1 where none does."""
        return self._own_fold_of.get(member, self._fold_of)[record_id]

    def honest(self, record_id: str) -> Callable[[str], bool]:
        """Returns the function that accepts the leaves which never saw the record's group."""

        def keep(leaf: str) -> bool:
            member, fold = leaf_parts(leaf)
            return fold is None or fold == self.fold(member, record_id)

        return keep

    def expanded(
        self, tree: Merge, members: Iterable[str], classes: Mapping[str, tuple[int, ...]] | None = None
    ) -> Merge:
        """Returns the tree with every leaf that is a trained member's name replaced by the mean of its folds.

        ``classes`` are those of the members that predict only some; the nodes above their networks say so.
        """
        names, some = set(members), classes or {}

        def replaced(child: Merge | str) -> Merge | str:
            if isinstance(child, Merge):
                return child.model_copy(update={"children": tuple(replaced(below) for below in child.children)})
            own = some.get(leaf_parts(child)[0])
            if child in names:
                return Merge(children=self.leaves(child), classes=own)
            return child if own is None else Merge(children=(child,), classes=own)

        expanded = replaced(tree)
        assert isinstance(expanded, Merge)  # as the tree is
        return expanded

    @cached_property
    def _fold_of(self) -> dict[str, int]:
        return self.shared.fold_of()

    @cached_property
    def _own_fold_of(self) -> dict[str, dict[str, int]]:
        return {name: table.fold_of() for name, table in self.own.items()}
