from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from maskloom.data.folds import FoldRow, FoldSettings, FoldTable, check_leaks, make_folds, merged_bins
from maskloom.errors import UserError
from maskloom.records import Record


def record(record_id: str, group: str = "", split: str = "", **attributes: str) -> Record:
    return Record(
        id=record_id, image=Path(f"{record_id}.png"), size=(4, 4), group=group, split=split, attributes=attributes
    )


def cars(count: int, views: int = 2) -> list[Record]:
    return [record(f"car{c:02d}_{v}", f"car{c:02d}", view=str(v)) for c in range(count) for v in range(views)]


def test_area_dealt_is_round_robin_over_sorted_areas() -> None:
    records = cars(7, views=1)
    areas = {each.id: area for each, area in zip(records, [50.0, 10, 40, 20, 70, 30, 60], strict=True)}
    table = make_folds(records, FoldSettings(count=3, stratify="area_dealt"), areas=areas)
    # Sorted areas 10 20 30 40 50 60 70 are dealt 0 1 2 0 1 2 0.
    assert [row.fold for row in table.rows] == [1, 0, 0, 1, 0, 2, 2]


def test_area_is_summed_over_the_group_or_taken_from_one_view() -> None:
    records = cars(2)
    areas = {"car00_0": 1.0, "car00_1": 100.0, "car01_0": 2.0, "car01_1": 3.0}
    summed = make_folds(records, FoldSettings(count=2, stratify="area_dealt"), areas=areas)
    one_view = FoldSettings(count=2, stratify="area_dealt", area_of={"view": "0"})
    assert summed.fold_of() == {"car00_0": 1, "car00_1": 1, "car01_0": 0, "car01_1": 0}
    assert make_folds(records, one_view, areas=areas).fold_of()["car00_0"] == 0


def test_area_of_unknown_view_is_refused() -> None:
    choice = FoldSettings(count=2, stratify="area_dealt", area_of={"view": "9"})
    with pytest.raises(UserError, match=r"no record of group .* has view=9; its records have view=0, view=1"):
        make_folds(cars(2), choice, areas={})


def test_merged_bins_hold_enough_and_follow_the_order() -> None:
    areas = np.random.default_rng(0).normal(size=100) ** 3
    strata = np.array(merged_bins(areas.tolist(), 7))
    assert min(Counter(strata.tolist()).values()) >= 7
    assert (np.diff(strata[np.argsort(areas)]) >= 0).all()
    assert set(strata) == set(range(strata.max() + 1))


def test_merged_bins_known_answer() -> None:
    # 35 bins over 0…35: one value in each of the first four bins, two in the last; at least two per stratum.
    assert merged_bins([0.5, 1.5, 2.5, 3.5, 0.0, 35.0, 34.9], 2) == [0, 1, 1, 2, 0, 2, 2]
    assert merged_bins([3.0, 3.0, 3.0], 2) == [0, 0, 0]


def published_cars(count: int) -> tuple[list[Record], dict[str, float], np.ndarray]:
    """Returns the records of cars with views 01…16, the mask areas by id, and the same areas as cars × views."""
    views = [f"{number:02d}" for number in range(1, 17)]
    records = [record(f"c{car:03d}_{view}", f"c{car:03d}", view=view) for car in range(count) for view in views]
    areas = np.random.default_rng(2).normal(300_000, 60_000, (count, 1)) + np.random.default_rng(3).normal(
        0, 30_000, (count, 16)
    )
    return records, {each.id: area for each, area in zip(records, areas.ravel().tolist(), strict=True)}, areas


@pytest.mark.parametrize(("area_of", "columns"), [({}, slice(None)), ({"view": "05"}, slice(4, 5))])
def test_the_published_deals_by_area(area_of: dict[str, str], columns: slice) -> None:
    """Carvana, 1st place, linknet: cars sorted by mask area, all views or view 05, fold = rank modulo 5."""
    records, areas, table = published_cars(53)
    choice = FoldSettings(count=5, stratify="area_dealt", area_of=area_of)
    folds = make_folds(records, choice, areas=areas)
    ranks = np.argsort(np.argsort(table[:, columns].sum(axis=1)))
    assert [row.fold for row in folds.rows] == (ranks % 5).repeat(16).tolist()


def test_the_published_bins_of_area() -> None:
    """Carvana, 1st place, vgg11v1: 35 bins of the cars' summed areas, merged until each holds 7 cars, spread over 7."""
    records, areas, table = published_cars(318)
    folds = make_folds(records, FoldSettings(count=7, stratify="area_bins", seed=1993), areas=areas).fold_of()
    totals = table.sum(axis=1)
    heights, edges = np.histogram(totals, bins=35)
    ends, held = [], 0
    for height, end in zip(heights, edges[1:], strict=True):
        held += int(height)
        if held >= 7:
            ends.append(end)
            held = 0
    strata = np.digitize(totals, ends[:-1])
    assert min(Counter(strata.tolist()).values()) >= 7
    for stratum in range(len(ends)):
        dealt = Counter(folds[f"c{car:03d}_01"] for car in np.flatnonzero(strata == stratum))
        assert max(dealt.values()) - min(dealt[fold] for fold in range(7)) <= 1


def test_the_published_random_folds() -> None:
    """Carvana, 1st place, scratch: cars shuffled by seed 1993, 7 folds, whole cars."""
    records, _, _ = published_cars(318)
    choice = FoldSettings(count=7, seed=1993)
    table = make_folds(records, choice)
    check_leaks(table, records)
    assert sorted(Counter(row.fold for row in table.rows).values()) == [45 * 16] * 4 + [46 * 16] * 3
    first = [row.fold for row in table.rows[::16]][:14]
    assert table == make_folds(records, choice) and first != [number % 7 for number in range(14)]


def test_holdout_is_the_first_of_as_many_folds() -> None:
    records, areas, _ = published_cars(12)
    folds = FoldSettings(count=4, stratify="area_dealt", seed=3)
    held_out = make_folds(records, folds.model_copy(update={"kind": "holdout"}), areas=areas)
    assert held_out.num_folds == 1
    assert held_out.split(0) == make_folds(records, folds, areas=areas).split(0)
    assert {row.fold for row in held_out.rows} == {0, -1}


def test_attributes_are_spread_over_folds() -> None:
    records = [record(f"{route}{time}{n}", route=route, time=time) for route in "ab" for time in "dn" for n in range(6)]
    table = make_folds(records, FoldSettings(count=3, stratify="attributes", attributes=("route", "time")))
    fold_of = table.fold_of()
    assert Counter((each.id[:2], fold_of[each.id]) for each in records) == Counter(
        {(combination, fold): 2 for combination in ("ad", "an", "bd", "bn") for fold in range(3)}
    )


def test_copies_that_leave_one_group_are_told_and_no_fewer_folds_are_advised() -> None:
    records = cars(2)
    copies = [[each.id for each in records]]
    with pytest.raises(
        UserError, match=rf"found 1 \({len(records) - 1} of {len(records)} images are exact copies"
    ) as caught:
        make_folds(records, FoldSettings(count=2), exact=copies)
    assert "add images" in str(caught.value) and "folds.count" not in str(caught.value)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (FoldSettings(count=2, stratify="attributes"), "expected names in folds.attributes"),
        (FoldSettings(count=2, stratify="attributes", attributes=("veiw",)), "did you mean 'view'"),
        (FoldSettings(count=5), "expected at least 5 groups for 5 folds, found 3; use --set folds.count=3"),
        (FoldSettings(kind="given"), "expected images in both a train and a val folder"),
        (FoldSettings(kind="table"), "expected a file in folds.table"),
    ],
)
def test_impossible_settings_say_what_to_do(choice: FoldSettings, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_folds(cars(3), choice)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"kind": "kfold", "table": "mine.csv"}, "expected kind auto or table beside a file, found kfold"),
        ({"table": "mine.csv", "merge_near_duplicates": True}, "these folds are not dealt by group"),
        ({"kind": "given", "merge_near_duplicates": True}, "these folds are not dealt by group"),
    ],
)
def test_no_setting_is_ignored(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FoldSettings.model_validate(choice)


@settings(max_examples=40, deadline=None)
@given(
    groups=st.lists(st.integers(0, 8), min_size=1, max_size=40),
    count=st.integers(2, 4),
    stratify=st.sampled_from(["none", "area_dealt", "area_bins"]),
    seed=st.integers(0, 3),
)
def test_every_record_has_one_fold_and_groups_stay_whole(
    groups: list[int], count: int, stratify: str, seed: int
) -> None:
    records = [record(f"r{index}", f"g{group}") for index, group in enumerate(groups)]
    choice = FoldSettings.model_validate({"count": count, "stratify": stratify, "seed": seed})
    areas = {each.id: float(index % 5) for index, each in enumerate(records)}
    if len(set(groups)) < count:
        with pytest.raises(UserError):
            make_folds(records, choice, areas=areas)
        return
    table = make_folds(records, choice, areas=areas)
    check_leaks(table, records)
    assert table == make_folds(records, choice, areas=areas)
    validated = [record_id for fold in range(table.num_folds) for record_id in table.split(fold)[1]]
    assert sorted(validated) == sorted(each.id for each in records)
    sizes = Counter({each.group: row.fold for each, row in zip(records, table.rows, strict=True)}.values())
    assert max(sizes.values()) - min(sizes.values()) <= 1


def test_seed_changes_the_folds() -> None:
    records = cars(12)
    tables = {make_folds(records, FoldSettings(count=3, seed=seed)) for seed in range(4)}
    assert len(tables) == 4


def test_exact_copies_are_dealt_together_and_near_ones_on_request() -> None:
    records = cars(8)
    chain = [("car00_0", "car01_1"), ("car01_0", "car02_0")]
    for seed in range(3):
        exact = make_folds(records, FoldSettings(count=2, seed=seed), exact=[("car06_0", "car07_1")]).fold_of()
        assert exact["car06_0"] == exact["car07_1"]
        merged = FoldSettings(count=2, seed=seed, merge_near_duplicates=True)
        fold_of = make_folds(records, merged, near=chain).fold_of()
        assert fold_of["car00_0"] == fold_of["car01_0"] == fold_of["car02_1"]
    plain = [make_folds(records, FoldSettings(count=2, seed=seed), near=chain).fold_of() for seed in range(6)]
    assert any(fold_of["car00_0"] != fold_of["car02_0"] for fold_of in plain)


def test_given_folders_are_one_fixed_fold() -> None:
    records = [record("a", split="train"), record("b", split="val"), record("c", split="train")]
    for kind in ("auto", "given"):
        table = make_folds(records, FoldSettings.model_validate({"kind": kind}))
        assert table.num_folds == 1
        assert table.split(0) == (["a", "c"], ["b"])


def test_given_folders_are_not_merged_by_likeness_in_silence() -> None:
    records = [record("a", split="train"), record("b", split="val"), record("c", split="train")]
    near = [("a", "b")]
    with pytest.raises(UserError, match=r"found the data's own train and val folders.*add --set folds\.kind=kfold"):
        make_folds(records, FoldSettings(merge_near_duplicates=True), near=near)
    dealt = FoldSettings(kind="kfold", count=2, merge_near_duplicates=True)
    fold_of = make_folds(records, dealt, near=near).fold_of()
    assert fold_of["a"] == fold_of["b"] != fold_of["c"]


def test_table_survives_the_trip_through_a_file(tmp_path: Path) -> None:
    records = [record("odd, name", 'g "1"'), record("ünï/b", "g2"), record("c", "g2")]
    table = make_folds(records, FoldSettings(count=2))
    table.to_csv(tmp_path / "folds.csv")
    assert FoldTable.from_csv(tmp_path / "folds.csv") == table
    assert (tmp_path / "folds.csv").read_text(encoding="utf-8").startswith("id,group,fold\n")
    handed_back = FoldSettings(kind="table", table=tmp_path / "folds.csv")
    assert make_folds(records, handed_back) == table
    assert make_folds(records[::-1], handed_back).rows == table.rows[::-1]


def test_table_of_a_spreadsheet_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "folds.csv"
    path.write_text("\ufeffid;fold\na;0\nb;1\nc;-1\n", encoding="utf-8")
    assert FoldTable.from_csv(path).split(1) == (["a", "c"], ["b"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,fold\ncar00_0,0\ncar00_1,0\ncar01_0,1\ncar01_x,1\n", r"id 'car01_x' is not in the data; did you mean"),
        ("id,fold\ncar00_0,0\ncar00_1,0\ncar01_0,1\n", r"expected a line for every record, found none for 'car01_1'"),
        ("id,fold\ncar00_0,0\ncar00_1,0\ncar01_0,2\ncar01_1,2\n", r"without gaps"),
        ("id,fold\ncar00_0,0\ncar00_0,1\n", r"each id once"),
        ("id,fold\ncar00_0,zero\n", r"line 2: expected an id and a fold"),
        ("id,fold\ncar00_0,-2\n", r"line 2: expected an id and a fold"),
        ("id,fold\ncar00_0,0\ncar00_1,0\n", r"nothing to train on"),
        ("name,fold\nx,0\n", r"columns id, group, fold, found name, fold"),
        ('id,fold\ncar00_0,0\n"car00_1,0\ncar01_0,1\n', r"expected a fold table, found something else after line"),
        ("", r"found none"),
    ],
)
def test_broken_tables_are_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        make_folds(cars(2), FoldSettings(kind="table", table=path))
    assert "mine.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such fold table"):
        FoldTable.from_csv(tmp_path / "none.csv")


def test_leaks_are_errors() -> None:
    records = [record("a", "g"), record("b", "g"), record("c"), record("d")]
    table = FoldTable(
        tuple(FoldRow(each.id, each.group, fold) for each, fold in zip(records, [0, 0, 1, 1], strict=True))
    )
    check_leaks(table, records, exact=[("c", "d")])
    with pytest.raises(UserError, match=r"the image of 'a' lies on both sides .*occurs more than once"):
        check_leaks(table, records, exact=[("a", "c")])
    torn = FoldTable((FoldRow("a", "a", 0), FoldRow("b", "b", -1), FoldRow("c", "c", 1), FoldRow("d", "d", 1)))
    with pytest.raises(UserError, match=r"group 'g' lies on both sides of a split \('b' in fold -1, 'a' in fold 0\)"):
        check_leaks(torn, records)
    stated = FoldTable((FoldRow("c", "same", 0), FoldRow("d", "same", 1)))
    with pytest.raises(UserError, match="group 'same'"):
        check_leaks(stated, records)
