"""Rows that come in any order: all there in the stated one, or nothing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from maskloom.errors import UserError
from maskloom.outputs import ordered
from maskloom.outputs.ordered import ordered_table

KEYS = [(name, number) for name in "abc" for number in range(4)]


def write(path: Path, arrival: list[tuple[str, int]], keys: list[tuple[str, int]] | None = KEYS) -> str:
    with ordered_table(
        path,
        ("name", "number", "text"),
        keys,
        cells=lambda key, text: (key[0], key[1] + 1, text),
        named=lambda key: f"{key[0]} {key[1] + 1}",
    ) as table:
        for key in arrival:
            table.put(key, f"{key[0]}, {key[1]}")
    return path.read_text()


def expected(keys: list[tuple[str, int]]) -> str:
    return "name,number,text\n" + "".join(f'{name},{number + 1},"{name}, {number}"\n' for name, number in keys)


@pytest.mark.parametrize("in_memory", [10**6, 10])
def test_rows_stand_in_the_order_of_the_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: int) -> None:
    monkeypatch.setattr(ordered, "_IN_MEMORY", in_memory)
    for seed in range(5):
        arrival = random.Random(seed).sample(KEYS, len(KEYS))
        assert write(tmp_path / "t.csv", arrival) == expected(KEYS)
        assert write(tmp_path / "t.csv", arrival, keys=None) == expected(arrival)
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_nothing_is_left_of_a_table_that_is_not_whole(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"t\.csv: no rows for a 2, a 3, a 4, b 1, b 2 and 6 more"):
        write(tmp_path / "t.csv", KEYS[:1])
    with pytest.raises(UserError, match="two rows"):
        write(tmp_path / "t.csv", [KEYS[0], KEYS[0]])
    with pytest.raises(UserError, match="not among the 12"):
        write(tmp_path / "t.csv", [("z", 0)])
    with pytest.raises(UserError, match="twice"):
        write(tmp_path / "t.csv", [], keys=[KEYS[0], KEYS[0]])
    with pytest.raises(TypeError):  # the block's own error, though rows are missing too
        write(tmp_path / "t.csv", [KEYS[0], None])  # type: ignore[list-item]
    assert list(tmp_path.iterdir()) == []
