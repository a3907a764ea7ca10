"""The published fold schemes on cars as many as were published."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from cars import described
from maskloom.contests.carvana import folds
from maskloom.data.folds import FoldSettings, FoldTable, check_leaks, make_folds

CARS = described(318)
SCHEMES = {
    name: value for name, value in vars(folds).items() if isinstance(value, FoldSettings) and value.kind == "kfold"
}


def areas() -> dict[str, float]:
    """Returns mask areas of which view 05 tells nothing about a car's total."""
    rng = np.random.default_rng(0)
    return {record.id: float(rng.normal(300_000, 60_000)) for record in CARS.records}


def dealt(settings: FoldSettings) -> FoldTable:
    return make_folds(CARS.records, settings, areas=areas())


@pytest.mark.parametrize("name", SCHEMES)
def test_cars_stay_whole_and_folds_are_of_equal_size(name: str) -> None:
    table = dealt(SCHEMES[name])
    check_leaks(table, CARS.records)
    sizes = Counter(row.fold for row in table.rows)
    assert sorted(sizes) == list(range(SCHEMES[name].count))
    assert max(sizes.values()) - min(sizes.values()) <= 16  # one car


def test_schemes_differ() -> None:
    tables = {name: dealt(settings).fold_of() for name, settings in SCHEMES.items()}
    assert len(tables) == 6
    for first, second in combinations(tables, 2):
        assert tables[first] != tables[second], f"{first} and {second} are one deal"


def test_what_is_held_out_is_the_first_fold() -> None:
    """The network that is scored on these cars is shown boxes by a network that never saw them either."""
    assert dealt(folds.HELD_OUT).split(0)[1] == dealt(folds.AREA_5).split(0)[1]
    assert dealt(folds.HELD_OUT).num_folds == 1


def test_area_of_view_05_decides_alone() -> None:
    table, area = dealt(folds.VIEW_AREA_5).fold_of(), areas()
    ordered = sorted((record.group for record in CARS.records[::16]), key=lambda car: area[f"{car}_05"])
    assert [table[f"{car}_01"] for car in ordered] == [rank % 5 for rank in range(318)]
