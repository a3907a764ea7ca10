"""Which network never saw which record, where members may have folds of their own.

Every "member/fold" network validates the records of its fold in its member's table; maps of members from outside are
taken as they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from maskloom.data.folds import ALWAYS_TRAINING, FoldRow, FoldTable, is_of_blocks
from maskloom.data.scene_parts import part_id
from maskloom.data.spatial_folds import SpatialFoldTable
from maskloom.inference.merging import Merge
from maskloom.recipe import Recipe
from maskloom.run_directory import RunDirectory


def leaf_name(member: str, fold: int, snapshot: int | None = None) -> str:
    """Returns the name of one trained network in an ensemble tree; snapshots of a fold are counted from 1."""
    return f"{member}/fold{fold}" + ("" if snapshot is None else f"/{snapshot}")


def leaf_parts(leaf: str) -> tuple[str, int | None]:
    """Returns (member, fold) of a leaf; the fold of a member from outside is None."""
    member, _, fold = leaf.partition("/fold")
    return member, int(fold.partition("/")[0]) if fold else None


def kept_bundle(leaf: str, keep: str) -> str:
    """Returns which bundle of its fold a network is, for ``RunDirectory.bundle``, where its member keeps ``keep``."""
    _, _, fold = leaf.partition("/fold")
    _, _, snapshot = fold.partition("/")
    return f"snapshots/{snapshot}" if snapshot else keep


@dataclass(frozen=True)
class FoldTables:
    """The fold tables of a run: the recipe's, and those that members have for themselves."""

    shared: FoldTable
    """Of records, or of the parts that scenes are divided into."""
    own: Mapping[str, FoldTable]
    blocks: SpatialFoldTable | None = None
    """Where these parts lie; None where folds are of whole records."""
    snapshots: Mapping[str, int] = field(default_factory=dict)
    """Of the members whose snapshots predict, how many a fold has."""

    @classmethod
    def read(cls, run: RunDirectory, recipe: Recipe) -> FoldTables:
        """Returns the tables once the ``folds`` stage is finished; raises ``Damaged`` where they changed since."""
        snapshots = {member.name: member.num_snapshots for member in recipe.members if member.keep == "snapshots"}
        if is_of_blocks(run.checked(run.folds)):
            blocks = SpatialFoldTable.from_csv(run.folds)
            return cls(_of_parts(blocks), {}, blocks, snapshots)
        own = {
            member.name: FoldTable.from_csv(run.checked(run.member_folds(member.name)))
            for member in recipe.members
            if member.folds is not None
        }
        return cls(FoldTable.from_csv(run.folds), own, snapshots=snapshots)

    def of(self, member: str) -> FoldTable:
        """Returns the table that a member's networks were trained by."""
        return self.own.get(member, self.shared)

    def leaves(self, member: str) -> tuple[str, ...]:
        """Returns the networks of a member, one per fold or, where its snapshots predict, all of each fold."""
        return tuple(leaf for fold in range(self.of(member).num_folds) for leaf in self.leaves_of_fold(member, fold))

    def leaves_of_fold(self, member: str, fold: int) -> tuple[str, ...]:
        """Returns the networks of one fold of a member."""
        if member not in self.snapshots:
            return (leaf_name(member, fold),)
        return tuple(leaf_name(member, fold, number) for number in range(1, self.snapshots[member] + 1))

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
            name, fold = leaf_parts(child)
            own = some.get(name)
            if child in names:
                return Merge(children=self.leaves(child), classes=own)
            if fold is not None and name in self.snapshots and child == leaf_name(name, fold):
                return Merge(children=self.leaves_of_fold(name, fold), classes=own)
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


def _of_parts(table: SpatialFoldTable) -> FoldTable:
    """Returns the table of the parts of scenes, by their ids; the group of each is its scene."""
    return FoldTable(tuple(FoldRow(part_id(row.scene, row.window), row.scene, row.fold) for row in table.rows))
