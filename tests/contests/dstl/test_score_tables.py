"""Tables scored from files: areas by hand, what is missing, and the door."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskloom.contests.dstl.score_tables import main, score_tables
from maskloom.errors import BadFile, UserError

HEAD = "ImageId,ClassType,MultipolygonWKT"


def box(left: float, right: float) -> str:
    """Returns the WKT of a rectangle of height 1."""
    return f'"MULTIPOLYGON ((({left} 0, {right} 0, {right} 1, {left} 1, {left} 0)))"'


def table(path: Path, *rows: str) -> Path:
    path.write_text("\n".join([HEAD, *rows]) + "\n", encoding="utf-8")
    return path


def test_areas_by_hand(tmp_path: Path) -> None:
    truth = table(
        tmp_path / "truth.csv", f"a,1,{box(0, 4)}", f"b,1,{box(0, 2)}", f"b,5,{box(0, 1)}", f"c,5,{box(0, 1)}"
    )
    found = table(
        tmp_path / "found.csv", f"b,1,{box(1, 2)}", f"a,1,{box(0, 2)}", "b,5,MULTIPOLYGON EMPTY", f"z,1,{box(0, 9)}"
    )
    scored = score_tables(truth, found)
    assert scored.score.jaccard == pytest.approx({"buildings": 3 / 6, "trees": 0.0})
    assert scored.score.mean == pytest.approx(0.25)
    assert (scored.num_images, scored.missing, scored.extra) == (3, ("c",), ("z",))
    assert len(scored.score.absent) == 8


def test_a_table_against_itself_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = table(tmp_path / "truth.csv", f"a,1,{box(0, 4)}", f"a,6,{box(2, 3)}")
    main([str(truth), str(truth)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["score: 1.000000 over 1 images", "  buildings: 1.000000", "  crops: 1.000000"]


def test_other_tables_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = table(tmp_path / "truth.csv", f"a,1,{box(0, 4)}")
    with pytest.raises(UserError, match=r"other\.csv: expected images of truth\.csv, found none in common \(a and z\)"):
        score_tables(truth, table(tmp_path / "other.csv", f"z,1,{box(0, 4)}"))
    with pytest.raises(BadFile, match="columns"):
        (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
        score_tables(truth, tmp_path / "bad.csv")
    with pytest.raises(SystemExit) as left:
        main([str(truth), str(tmp_path / "none.csv")])
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
