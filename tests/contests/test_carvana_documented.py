"""The page on the published systems: every remark at its end belongs to a line of its tables, and each is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "carvana-systems.md"


@pytest.fixture
def parts() -> tuple[str, str]:
    """The tables, and the numbered remarks."""
    if not PAGE.is_file():
        pytest.skip("the documentation is no part of the installed package")
    tables, _, remarks = PAGE.read_text(encoding="utf-8").partition("## What differs")
    return tables, remarks


def rows(tables: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")] for line in tables.splitlines() if line.startswith("|")]


def test_remarks_and_rows_belong_together(parts: tuple[str, str]) -> None:
    tables, remarks = parts
    stated = [int(number) for number in re.findall(r"^(\d+)\. ", remarks, re.MULTILINE)]
    verdicts = [cell for row in rows(tables) for cell in row if re.fullmatch(r"(yes|differs|no)( \([\d, ]+\))?", cell)]
    referred = {int(number) for verdict in verdicts for number in re.findall(r"\d+", verdict)}
    assert stated == list(range(1, len(stated) + 1)) and referred == set(stated)
    assert all("(" in verdict for verdict in verdicts if not verdict.startswith("yes"))


@pytest.mark.parametrize(("place", "remark"), [("7th", "11, 12"), ("10th", "12"), ("11th", "12"), ("15th", "12")])
def test_places_of_which_only_ideas_are_published_say_so(parts: tuple[str, str], place: str, remark: str) -> None:
    (row,) = [row for row in rows(parts[0]) if row[1].startswith(f"{place}, ")]
    assert row[3] == f"differs ({remark})"
