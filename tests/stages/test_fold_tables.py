"""Members with folds of their own: who never saw which record."""

from __future__ import annotations

import pytest

from maskloom.data.folds import FoldRow, FoldTable
from maskloom.inference.merging import Merge, pruned
from maskloom.stages.fold_tables import FoldTables, leaf_parts


def table(**folds: int) -> FoldTable:
    return FoldTable(tuple(FoldRow(name, name, fold) for name, fold in folds.items()))


@pytest.fixture
def tables() -> FoldTables:
    return FoldTables(table(p=0, q=1, r=-1, s=1), {"b": table(p=2, q=0, r=1, s=-1)})


def test_each_record_is_left_to_the_networks_that_never_saw_it(tables: FoldTables) -> None:
    tree = tables.expanded(Merge(children=("a", "b", "outside")), ["a", "b"])
    assert tree.leaves() == ["a/fold0", "a/fold1", "b/fold0", "b/fold1", "b/fold2", "outside"]
    assert pruned(tree, tables.honest("p")).leaves() == ["a/fold0", "b/fold2", "outside"]
    assert pruned(tree, tables.honest("q")).leaves() == ["a/fold1", "b/fold0", "outside"]


def test_only_what_every_member_validates_is_scored(tables: FoldTables) -> None:
    assert tables.validated(["a"]) == {"p": 0, "q": 1, "s": 1}
    assert tables.validated(["a", "b"]) == {"p": 0, "q": 1}
    assert tables.validated(["outside"]) == {"p": 0, "q": 1, "s": 1}


def test_leaves_are_taken_apart() -> None:
    assert leaf_parts("unet/fold11") == ("unet", 11)
    assert leaf_parts("outside") == ("outside", None)
