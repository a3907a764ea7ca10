"""What all layouts share: groups, limits, problems, and the description that moves with the data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from maskloom.config import parse
from maskloom.data.image_io import write_png
from maskloom.data.mask_coding import MaskCoding
from maskloom.data.sources.base import DataSettings, DataSource, finish, first_problem, grouped, measure
from maskloom.errors import BadFile, UserError
from maskloom.records import CocoSegments, MaskFile, Record, RunLengths, Shapes, Task, Truth

ROOT = Path("/data/set")


def record(record_id: str, truth: Truth | None = None, **fields: object) -> Record:
    values: dict[str, object] = {"image": ROOT / f"{record_id}.png", "size": (3, 4), **fields}
    return Record(id=record_id, truth=truth or MaskFile(path=ROOT / "m.png"), **values)


def source(*records: Record, **fields: object) -> DataSource:
    values: dict[str, object] = {"layout": "folder", "root": ROOT, "coding": MaskCoding(), **fields}
    return DataSource(task=Task(kind="binary", classes=("car",)), records=records, **values)


TRUTHS = (
    MaskFile(path=ROOT / "masks" / "a.png"),
    MaskFile(path=Path("/elsewhere/a.png")),
    RunLengths(runs=((0, "1 2"),), order="column", base=1),
    Shapes(wkt=((0, "POLYGON EMPTY"), (1, ""))),
    CocoSegments(segments=((0, [[1.0, 2.0]]), (1, {"size": [1, 2], "counts": "x"}))),
)


def test_json_round_trip_and_a_moved_folder() -> None:
    records = [record(f"r{number}", truth, attributes={"view": "1"}) for number, truth in enumerate(TRUTHS)]
    whole = source(
        *records,
        unlabelled=(replace(record("u"), truth=None, group="g"),),
        notes=("guess",),
        problems=(BadFile(ROOT / "x.png", "bad"), UserError("other")),
        sample_submission=ROOT / "sample.csv",
        submission="carvana",
    )
    values = json.loads(json.dumps(whole.to_json()))
    again = DataSource.from_json(values, ROOT)
    assert replace(again, problems=()) == replace(whole, problems=())
    assert [str(problem) for problem in again.problems] == [str(problem) for problem in whole.problems]
    moved = DataSource.from_json(values, Path("/new"))
    assert moved.records[0].truth == MaskFile(path=Path("/new/masks/a.png"))
    assert moved.records[1].truth == TRUTHS[1] and moved.sample_submission == Path("/new/sample.csv")


@pytest.mark.parametrize("values", [{}, {"layout": 1}, None])
def test_json_of_something_else(values: object) -> None:
    with pytest.raises(UserError, match="expected the description of a data source"):
        DataSource.from_json(values, ROOT)


def test_group_by_attribute_and_by_expression() -> None:
    records = (record("car1_01", attributes={"city": "Rome"}), record("car1_02", attributes={"city": "Ulm"}))
    assert [each.group for each in grouped(records, "city", {"city"})] == ["Rome", "Ulm"]
    assert [each.group for each in grouped(records, r"^(.+)_")] == ["car1", "car1"]


@pytest.mark.parametrize(
    ("group", "reason"),
    [("ciyt", "did you mean 'city'"), ("(", "regular expression"), (r"^x(.)", "expected a match in every id")],
)
def test_group_mistakes(group: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        grouped((record("car1_01", attributes={"city": "Rome"}),), group, {"city"})
    with pytest.raises(UserError, match="expected a value for every record"):
        grouped((record("a", attributes={"city": "Rome"}), record("b", attributes={"city": ""})), "city", {"city"})


def test_limit_counts_groups() -> None:
    records = [record(name, group=name[0]) for name in ("a1", "b1", "a2", "c1")]
    assert [each.id for each in finish(source(*records), DataSettings(limit=2)).records] == ["a1", "b1", "a2"]
    with pytest.raises(UserError, match="at least 1 group"):
        finish(source(*records), DataSettings(limit=0))


@pytest.mark.parametrize("value", [-1, 65_536])
def test_what_no_pixel_can_hold_is_no_value_to_ignore(value: int) -> None:
    with pytest.raises(UserError, match=rf"data: ignore\.1: .*, found {value}"):
        parse(DataSettings, {"ignore": [255, value]}, origin="data")
    assert parse(DataSettings, {"ignore": [0, 65_535]}).ignore == [0, 65_535]


def test_finish_refuses_doubles_problems_and_nothing() -> None:
    with pytest.raises(UserError, match="expected each id once"):
        finish(source(record("a"), record("a")), DataSettings())
    bad = source(record("a"), problems=(BadFile("x.png", "broken"),))
    with pytest.raises(BadFile, match=r"x\.png: broken"):
        finish(bad, DataSettings())
    assert finish(bad, DataSettings(skip_bad=True)).problems
    with pytest.raises(UserError, match=r"found none that can be used \(1 were left out, the first: x\.png: broken\)"):
        finish(replace(bad, records=()), DataSettings(skip_bad=True))


def test_first_problem_counts_the_rest() -> None:
    assert "and 1 more" in str(first_problem([UserError("a"), UserError("b")]))


def test_measure_keeps_the_order_over_batches(tmp_path: Path) -> None:
    for width in (1, 2, 3):
        write_png(tmp_path / f"{width}.png", np.zeros((4, width), np.uint8))
    paths = [tmp_path / f"{1 + number % 4}.png" for number in range(600)]
    found = measure(paths)
    assert found[:3] == [(4, 1), (4, 2), (4, 3)] and isinstance(found[3], BadFile)
    assert all(str(found[number]) == str(found[number % 4]) for number in range(600))
