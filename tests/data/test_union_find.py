from __future__ import annotations

from maskloom.data.union_find import UnionFind


def test_sets_grow_together() -> None:
    sets = UnionFind("abcde")
    assert sets.join("a", "b")
    assert sets.join("c", "d")
    assert sets.join("b", "c")
    assert not sets.join("a", "d")
    assert len({sets.find(item) for item in "abcd"}) == 1
    assert sets.find("e") == "e"
