"""The page of a run's status: whole, without scripts, and text stays text whatever it is."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from maskloom.heartbeat import Beat
from maskloom.outputs.status_page import REFRESH_SECONDS, status_page, write_status_page
from maskloom.outputs.status_rows import RunStatus, StageStatus, Worker, headline, prediction_rows, remarks, stage_rows

NOON = 1_800_000_000.0
EVIL = "<b>\"'&</b><script>alert(1)</script><img src=x onerror=alert(1)>"
TAGS = {
    "html", "head", "meta", "link", "title", "style", "body", "header", "h1", "p", "main", "section", "h2", "dl", "div",
    "dd", "dt", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "span", "i", "small", "nav", "a",
}  # fmt: skip
ATTRIBUTES = {"lang", "charset", "http-equiv", "content", "name", "rel", "href", "id", "class", "style"}


class Page(HTMLParser):
    """Collects what a browser would take for tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str | None]] = set()
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= set(attrs)
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if "style" not in self.open else ""


def beat(**changes: object) -> Beat:
    said = Beat(
        command="fit", host="far", pid=7, process="p", space="", device="cuda", began=NOON - 900, sign=NOON,
        stage="train/unet/fold0", stage_began=NOON - 600, done=25, total=100, unit="steps", detail="epoch 1/4",
        rate=0.5, seconds_left=150.0, moved=NOON,
    )  # fmt: skip
    return replace(said, **changes)  # type: ignore[arg-type]


def run(**changes: object) -> RunStatus:
    worker = Worker(beat=beat(), state="working")
    stages = (
        StageStatus(name="survey", state="finished", seconds=75.0),
        StageStatus(name="train/unet/fold0", state="running", left=150.0, ends=NOON + 150, workers=(worker,)),
        StageStatus(name="train/unet/fold1", state="waiting", left=750.0, ends=NOON + 900),
        StageStatus(name="report", state="waiting"),
    )
    found = RunStatus(
        name="mine", at=NOON, state="running", stages=stages, workers=(worker,), left=900.0, unknown=("report",)
    )
    return replace(found, **changes)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def test_the_page_says_what_is_known() -> None:
    text = status_page(run())
    page = Page(text)
    assert page.tags <= TAGS and {name for name, _ in page.attributes} <= ATTRIBUTES
    assert ("http-equiv", "refresh") in page.attributes and ("content", str(REFRESH_SECONDS)) in page.attributes
    assert not re.search(r'(src|href)="(?!data:|#)', text) and "url(" not in text
    for expected in (
        "Status of mine", "as of 2027-01-15 08:00:00 UTC+0000", "1 of 4", "took 75 s", "far, cuda, process 7", "07:50",
        "25 of 100 steps (25 %)", "2.0 s each", "08:02", "08:15 (about 12 min)", "epoch 1/4",
        "Running: 1 of 4 stages finished, not expected to end before 08:15 (in 15 min).",
        "Not in the expected end, as nothing tells how long they take: report.",
    ):  # fmt: skip
        assert expected in page.text, expected
    assert ("style", "width: 25.0%") in page.attributes


def test_a_finished_run_is_read_only_once() -> None:
    stages = (StageStatus(name="survey", state="finished", seconds=75.0),)
    found = run(state="finished", stages=stages, workers=(), finished=NOON - 86400, left=None, unknown=())
    page = Page(status_page(found))
    assert ("http-equiv", "refresh") not in page.attributes
    assert "Finished at 2027-01-14 08:00; its stages took 75 s together." in page.text
    predicting = Worker(beat=beat(command="predict", target="out", stage="predict", unit="blocks"), state="working")
    page = Page(status_page(replace(found, workers=(predicting,))))
    assert ("http-equiv", "refresh") in page.attributes
    assert "predict to out" in page.text and "25 of 100 blocks (25 %)" in page.text


def test_whatever_stands_in_the_files_is_text() -> None:
    """Ids, names, hosts, paths, errors and problems that would be tags, attributes or scripts."""
    said = beat(
        command=EVIL, target=EVIL, host=EVIL, device=EVIL, stage=EVIL, shard=EVIL, unit=EVIL, detail=EVIL, error=EVIL
    )
    workers = tuple(
        Worker(beat=replace(said, command=command), state=state)  # type: ignore[arg-type]
        for command in ("fit", "predict", EVIL)
        for state in ("working", "stopped", "failed", "gone")
    )
    stages = (
        StageStatus(name=EVIL, state="running", workers=workers),
        StageStatus(name=EVIL, state="stopped", workers=workers),
        StageStatus(name=EVIL, state="waiting", left=1.0),
        StageStatus(name=EVIL, state="finished", seconds=1.0, is_earlier=True),
    )
    for state in ("running", "stopped", "finished"):
        found = run(name=EVIL, state=state, stages=stages, workers=workers, unknown=(EVIL,) * 9, problems=(EVIL,))
        page = Page(status_page(found))
        assert page.tags <= TAGS and {name for name, _ in page.attributes} <= ATTRIBUTES
        assert all(EVIL not in (value or "") and "alert" not in (value or "") for _, value in page.attributes)
        assert page.text.count(EVIL) > 40
        assert f"Status of {EVIL}" in page.text


def test_what_cannot_be_written_in_a_page_is_replaced(tmp_path: Path) -> None:
    """A file may hold text that is no text: half a surrogate pair, control characters, no end."""
    odd = "\ud800\x00\x1b[31m\u202e" + "x" * 100_000
    write_status_page(tmp_path / "status.html", run(problems=(odd,), name=odd))
    text = (tmp_path / "status.html").read_text(encoding="utf-8")
    assert "\ufffd\ufffd\ufffd[31m\ufffdxxx" in text and "\x1b" not in text
    assert len(text) < 50_000


def test_terminal_and_page_say_the_same() -> None:
    found = run()
    page = Page(status_page(found)).text
    for row in [*stage_rows(found), *prediction_rows(found)]:
        assert all(cell in page for cell in row.cells)
    assert headline(found)[1:] in page
    assert all(remark in page for remark in remarks(found))


def test_times_that_have_passed() -> None:
    found = run(at=NOON + 3600)
    cells = stage_rows(found)[1]
    assert cells.cells[-1] == "any moment"
    assert cells.detail == "epoch 1/4 · no step for 60 min · no sign of life for 60 min"
