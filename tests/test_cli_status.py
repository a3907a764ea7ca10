"""``maskloom status``: what is printed and written, and what happens to folders that are no run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from maskloom import api, console, termination
from maskloom.heartbeat import Heartbeat
from maskloom.outputs.status_rows import RunStatus
from test_cli import run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run that has done nothing yet; its name is no tag."""
    path = tmp_path / "<b>\"'&[bold]"
    path.mkdir()
    (path / "run.json").write_text('{"format": 1}')
    return path


def test_a_run_is_shown_in_lines(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Heartbeat(folder, command="fit", device="cpu", stages=["survey", "report"]) as beating:
        beating.stage("survey", cached=False)
        beating.advance(1, 4, "[red]detail[/red]")
        beating._write()
        assert run("status", folder, "--html", folder / "status.html", monkeypatch=monkeypatch) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    lines = shown.out.splitlines()
    assert lines[0].startswith("<b>\"'&[bold], ")
    assert lines[1] == "running: 0 of 2 stages finished, nothing tells yet when the rest ends"
    assert lines[4].startswith("survey") and "1 of 4 images (25 %)" in lines[4] and f"process {os.getpid()}" in lines[4]
    assert lines[5].split() == ["report", "waiting"]
    assert lines[6].strip() == "survey: [red]detail[/red]"
    page = (folder / "status.html").read_text(encoding="utf-8")
    assert "Status of &lt;b&gt;&#34;&#39;&amp;[bold]" in page and "<b>" not in page


def test_it_is_said_that_finished_stages_are_as_of_the_last_fit(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether the data have changed since, which only ``fit`` finds out, is not claimed."""
    page = tmp_path / "status.html"
    assert run("status", finished_run, "--html", page, monkeypatch=monkeypatch) == 0
    *_, last_stage, said = capsys.readouterr().out.splitlines()
    assert last_stage.startswith("report") and said.startswith("As of the last fit: the data are not looked at here")
    assert "As of the last fit: " in page.read_text(encoding="utf-8")


def test_json_is_one_object(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("status", folder, "--json", monkeypatch=monkeypatch) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["state"], values["stages"]) == ("stopped", [])


@pytest.mark.parametrize("content", [None, "{}", "[]", '{"format": 99}', "nothing"])
def test_what_is_no_run_is_one_line(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    assert run("status", tmp_path, monkeypatch=monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and str(tmp_path) in line


def test_watching_ends_with_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One look each time; where it is no terminal, not too many lines."""
    found = api.status(folder)
    waiting = [replace(found, state=state) for state in ("stopped", "running", "finished")]
    slept: list[float] = []
    monkeypatch.setattr(console.time, "sleep", slept.append)
    console.show_status(lambda: waiting.pop(0), watch=True)
    assert waiting == [] and len(slept) == 2 and min(slept) >= console.LOG_SECONDS
    shown = capsys.readouterr().out
    assert [shown.count(text) for text in (" UTC", "not finished", "running", "finished; its")] == [3, 1, 1, 1]


def test_watching_ends_with_ctrl_c(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(console.time, "sleep", interrupted)
    assert run("status", folder, "--watch", monkeypatch=monkeypatch) == 0


def test_watching_ends_with_sigterm_and_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def terminated(_: float) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it goes on")

    monkeypatch.setattr(console.time, "sleep", terminated)
    assert run("status", folder, "--watch", monkeypatch=monkeypatch) == termination.TERMINATED


def test_a_look_loads_no_network_library(folder: Path) -> None:
    code = (
        "import sys; from maskloom import api, console; found = api.status(sys.argv[1]); "
        "console.show_status(lambda: found); "
        "print(sorted({'torch', 'timm', 'cv2', 'pandas', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_status_is_typed(folder: Path) -> None:
    assert isinstance(api.status(folder), RunStatus)
