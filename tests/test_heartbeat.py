"""What processes say of themselves: by clocks moved by hand, and by processes that are killed."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom import heartbeat
from maskloom.errors import UserError
from maskloom.heartbeat import GONE_SECONDS, Beat, Heartbeat, process_mark, read_beats, state_of

NOON = 1_800_000_000.0


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.passed = 0.0

    def now(self) -> float:
        return NOON + self.passed

    def ticks(self) -> float:
        return 50.0 + self.passed


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make(run: Path, clock: Clock, **options: object) -> Heartbeat:
    options = {"command": "fit", "device": "cpu"} | options
    return Heartbeat(run, clock=clock.now, ticks=clock.ticks, **options)  # type: ignore[arg-type]


def here(**changes: object) -> Beat:
    """Returns what this process would say."""
    with Heartbeat(Path("nowhere"), command="fit", device="cpu") as beating:
        said = beating.beat()
    return replace(said, **changes)  # type: ignore[arg-type]


# What is said --------------------------------------------------------------------------------------------------------


def test_rate_and_expected_end(tmp_path: Path, clock: Clock) -> None:
    """20 images in 10 s leave 40 s for the other 80."""
    beating = make(tmp_path, clock, stages=["survey", "oof/unet"])
    assert (beating.beat().stage, beating.beat().total) == ("", 0)
    beating.stage("oof/unet", cached=False)
    clock.passed = 5
    beating.advance(0, 100, "fold 0")
    clock.passed = 15
    beating.advance(20, 100, "fold 1")
    clock.passed = 18
    said = beating.beat()
    assert (said.stage, said.stage_began, said.began) == ("oof/unet", NOON, NOON)
    assert (said.done, said.total, said.unit, said.detail, said.first) == (20, 100, "images", "fold 1", 0)
    assert (said.rate, said.seconds_left, said.moved, said.sign) == (2, 40, NOON + 15, NOON + 18)
    assert said.stage_ends(NOON + 40) == NOON + 55
    assert said.stages == ("survey", "oof/unet")


def test_a_stated_end_is_taken(tmp_path: Path, clock: Clock) -> None:
    beating = make(tmp_path, clock)
    beating.stage("train/unet/fold0", cached=False)
    beating.advance(400, 1000, "epoch 5/10 · loss 0.1", seconds_left=90.0)
    said = beating.beat()
    assert (said.seconds_left, said.first, said.unit, said.rate) == (90, 400, "steps", None)
    beating.stage("oof/unet", cached=True)
    said = beating.beat()
    assert (said.cached, said.total, said.seconds_left, said.stage_ends(NOON)) == (True, 0, None, None)


def test_a_second_lesson_counts_from_its_own_start(tmp_path: Path, clock: Clock) -> None:
    beating = make(tmp_path, clock)
    beating.stage("train/unet/fold0", cached=False)
    beating.advance(7, 10)
    beating.advance(2, 50)
    assert beating.beat().first == 2


@pytest.mark.parametrize(
    ("stage", "detail", "unit"),
    [
        ("predict", "", "blocks"),
        ("register", "", "images"),
        ("folds", "", "parts"),
        ("train/index/fold0", "", "images"),
    ],
)
def test_units(stage: str, detail: str, unit: str, tmp_path: Path, clock: Clock) -> None:
    beating = make(tmp_path, clock, unit="blocks")
    beating.stage(stage, cached=False)
    beating.advance(1, 2, detail)
    assert beating.beat().unit == unit


def test_what_is_said_can_be_read_again(tmp_path: Path, clock: Clock) -> None:
    beating = make(tmp_path, clock, target="out <b>\"'&", stages=["a", "b"], shard="1–64")
    beating.stage("predict", cached=False)
    beating.advance(1, 3, "line\nbreak")
    beating._write()
    assert read_beats(tmp_path) == ([beating.beat()], [])


# The file ------------------------------------------------------------------------------------------------------------


def wait_for(path: Path) -> None:
    for _ in range(1000):
        if path.is_file():
            return
        time.sleep(0.01)
    pytest.fail(f"{path} was not written")


def test_the_file_is_there_during_the_work_and_gone_after_it(tmp_path: Path) -> None:
    with Heartbeat(tmp_path, command="fit", device="cpu") as beating:
        wait_for(beating._path)
        ((said,), problems) = read_beats(tmp_path)
        assert (said.pid, said.host, problems) == (os.getpid(), platform.node(), [])
        assert state_of(said, time.time()) == "working"
    assert list(tmp_path.iterdir()) == []
    assert "heartbeat" not in [thread.name for thread in threading.enumerate()]


def test_short_work_leaves_nothing_however_it_ends(tmp_path: Path) -> None:
    with Heartbeat(tmp_path, command="predict", device="cpu"):
        pass
    with pytest.raises(UserError), Heartbeat(tmp_path, command="predict", device="cpu"):
        raise UserError("no such path")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "state", "text"),
    [
        (UserError("data: expected\na mask"), "failed", "data: expected a mask"),
        (RuntimeError("broken"), "failed", "RuntimeError: broken"),
        (KeyboardInterrupt(), "stopped", ""),
        (SystemExit(143), "stopped", ""),
    ],
)
def test_an_end_before_the_end_is_told(error: BaseException, state: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(type(error)), Heartbeat(tmp_path, command="fit", device="cpu") as beating:
        wait_for(beating._path)
        raise error
    ((said,), _) = read_beats(tmp_path)
    assert (state_of(said, time.time()), said.error) == (state, text)


def test_a_folder_that_cannot_be_written_disturbs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "FIRST_SECONDS", 0.01)
    (tmp_path / "status").write_text("a file where the folder should be")
    with Heartbeat(tmp_path, command="fit", device="cpu") as beating:
        time.sleep(0.1)
        beating.stage("survey", cached=False)
    assert (tmp_path / "status").is_file()


def test_new_work_takes_the_place_of_what_it_repeats(tmp_path: Path) -> None:
    """The same command as one that is gone or failed; others, and those at work, stay."""
    folder = tmp_path / "status"
    folder.mkdir()

    def leave(name: str, said: Beat) -> None:
        (folder / f"{name}.json").write_text(json.dumps(asdict(said)))

    leave("failed", here(ended="failed"))
    leave("killed", here(process="of another time"))
    leave("working", here())
    leave("elsewhere", here(command="predict", target="out", ended="failed"))
    (folder / "spoilt.json").write_text("{")
    with Heartbeat(tmp_path, command="fit", device="cpu") as beating:
        wait_for(beating._path)
    assert sorted(path.stem for path in folder.iterdir()) == ["elsewhere", "working"]


def test_few_traces_of_other_work_stay(tmp_path: Path) -> None:
    (tmp_path / "status").mkdir()
    for number in range(heartbeat.KEPT + 5):
        path = tmp_path / "status" / f"{number}.json"
        path.write_text(json.dumps(asdict(here(command="predict", target=str(number), ended="failed"))))
        os.utime(path, (number, number))
    with Heartbeat(tmp_path, command="fit", device="cpu"):
        pass
    kept = sorted(int(path.stem) for path in (tmp_path / "status").iterdir())
    assert kept == list(range(5, heartbeat.KEPT + 5))


def test_listening_costs_little(tmp_path: Path) -> None:
    """Well below what the shortest step takes; the bound is wide, for machines that are busy."""
    with Heartbeat(tmp_path, command="fit", device="cpu") as beating:
        beating.stage("predict", cached=False)
        began = time.process_time()
        for step in range(2000):
            beating.advance(step, 2000, "detail")
        spent = time.process_time() - began
    assert spent / 2000 < 0.001


# Who is gone ---------------------------------------------------------------------------------------------------------

PROGRAM = """
import sys, time
from pathlib import Path
from maskloom.heartbeat import Heartbeat
with Heartbeat(Path(sys.argv[1]), command="fit", device="cpu") as beating:
    beating.stage("train/unet/fold0", cached=False)
    time.sleep(60)
"""


def test_a_killed_process_is_gone_at_once(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)])
    try:
        wait_for(tmp_path / "status" / f"{platform.node()}-{child.pid}.json")
        ((said,), _) = read_beats(tmp_path)
        assert state_of(said, time.time()) == "working"
        assert said.process == process_mark(child.pid)
    finally:
        child.kill()
    for _ in range(500):  # it is not waited for: a dead process that keeps its number is gone, too
        if process_mark(child.pid) is None:
            break
        time.sleep(0.01)
    assert state_of(said, time.time()) == "gone"
    child.wait()
    assert state_of(said, time.time()) == "gone"
    assert said.stage == "train/unet/fold0"


def test_a_number_given_to_another_process_is_not_the_same(tmp_path: Path) -> None:
    said = here()
    assert state_of(said, said.sign + 1e6) == "working"  # on this host the process is looked for, not the clock
    assert state_of(replace(said, process="of another time"), said.sign) == "gone"
    assert state_of(replace(said, pid=2**40), said.sign) == "gone"
    assert state_of(replace(said, pid=0), said.sign) == "gone"


@pytest.mark.parametrize("changes", [{"host": "other"}, {"space": "pid:[1]"}])
def test_elsewhere_the_last_sign_decides(changes: dict[str, str]) -> None:
    said = here(**changes)
    assert state_of(said, said.sign + GONE_SECONDS) == "working"
    assert state_of(said, said.sign - 3600) == "working"  # a clock that is set back
    assert state_of(said, said.sign + GONE_SECONDS + 1) == "gone"
    assert state_of(replace(said, ended="stopped"), said.sign) == "stopped"


# Files of any kind ---------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(values=st.dictionaries(st.sampled_from(sorted(asdict(here()))), JSON) | JSON, whole=st.booleans())
def test_only_signs_of_processes_are_taken(values: object, whole: bool) -> None:
    if whole and isinstance(values, dict):
        values = json.loads(json.dumps(asdict(here()))) | values
    try:
        said = Beat.from_json(values)
    except ValueError:
        return
    assert Beat.from_json(json.loads(json.dumps(asdict(said)))) == said
    assert state_of(said, 0) in ("working", "gone", "stopped", "failed")


@pytest.mark.parametrize("content", ["{", "[]", "null", '{"pid": 1}', "[" * 100_000, '{"pid": 1e999}', "\xff"])
def test_a_spoilt_file_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "status").mkdir()
    (tmp_path / "status" / "host-1.json").write_bytes(content.encode("latin-1"))
    beats, (problem,) = read_beats(tmp_path)
    assert beats == [] and problem.startswith("host-1.json: no sign of a process")
