from __future__ import annotations

import pytest

from maskloom.ensembling.crossfit import crossfit, deal_parts


def test_each_part_meets_what_was_fitted_on_the_others() -> None:
    found = crossfit([1, 2, 3, 4], [1, 0, 1, 2], fit=sum, apply=lambda total, inside: (total, inside))
    assert found == {0: (8, [2]), 1: (6, [1, 3]), 2: (6, [4])}
    assert list(found) == [0, 1, 2]


@pytest.mark.parametrize(("items", "parts"), [([1, 2], [0, 0]), ([1, 2], [0]), ([], [])])
def test_one_part_is_refused(items: list[int], parts: list[int]) -> None:
    with pytest.raises(ValueError, match="at least 2 parts"):
        crossfit(items, parts, fit=sum, apply=lambda total, inside: total)


def test_parts_are_folds_or_whole_groups() -> None:
    groups = [f"g{index // 3}" for index in range(21)]
    assert deal_parts(["a", "a"], [0, 1], seed=0) == [0, 1]
    dealt = deal_parts(groups, [0] * 21, seed=0)
    assert set(dealt) == {0, 1, 2, 3, 4}
    assert all(len({part for part, group in zip(dealt, groups, strict=True) if group == name}) == 1 for name in groups)
    assert dealt == deal_parts(groups, [0] * 21, seed=0)
    assert len(set(deal_parts(["a"] * 4, [0] * 4, seed=0))) == 4
