"""Where runs stand: made up of markers and signs of processes with known answers, and one that is under way."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

import maskloom
from cars import described
from maskloom.api import builders, status
from maskloom.errors import UserError
from maskloom.heartbeat import GONE_SECONDS, Beat, Heartbeat, process_mark
from maskloom.outputs.status_rows import RunStatus, StageStatus, footnote, headline, remarks, stage_rows
from maskloom.progress import Silent
from maskloom.run_directory import RunDirectory
from maskloom.run_lock import held
from maskloom.run_status import planned_stages, read_status
from small import SMALL

NOON = 1_800_000_000.0
STAGES = [
    "survey", "folds", "train/unet/fold0", "train/unet/fold1", "train/unet/fold2", "oof/unet", "ensemble", "report",
]  # fmt: skip


class Made:
    """A run folder with what a status is read from."""

    def __init__(self, folder: Path) -> None:
        self.run = RunDirectory(folder)
        folder.mkdir()
        (folder / "run.json").write_text('{"format": 1}')

    def finish(self, stage: str, seconds: float, files: Sequence[str] = ()) -> None:
        path = self.run.marker(stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        marker = {"stage": stage, "fingerprint": "x", "files": list(files), "seconds": seconds}
        path.write_text(json.dumps(marker))

    def log(self, stage: str, seconds: float) -> None:
        folder = self.run.root / "members" / stage.removeprefix("train/")
        folder.mkdir(parents=True)
        lines = [{"event": "start"}, {"event": "epoch", "epoch": 1, "seconds": seconds}]
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def say(self, stage: str = "", **changes: Any) -> Beat:
        """Leaves what a living process of another host said at noon."""
        said = {
            "command": "fit", "host": "far", "pid": 7, "process": "p", "space": "", "device": "cuda",
            "began": NOON - 900, "sign": NOON, "moved": NOON, "stage": stage, "stage_began": NOON - 600,
            "stages": tuple(STAGES),
        }  # fmt: skip
        beat = Beat(**said | changes)
        folder = self.run.root / "status"
        folder.mkdir(exist_ok=True)
        (folder / f"{beat.host}-{beat.pid}.json").write_text(json.dumps(asdict(beat)))
        return beat

    def plan(self, **changes: Any) -> None:
        """Writes recipe and source of the stages above."""
        recipe = {"members": [{"name": "unet"}], "folds": {"kind": "auto"}, "delivery": {"submission": True}}
        (self.run.root / "recipe.yaml").write_text(json.dumps(recipe | changes))
        self.run.source.parent.mkdir(exist_ok=True)
        self.run.source.write_text('{"unlabelled": [], "submission": ""}')
        self.run.folds.write_text("id,group,fold\na,a,0\nb,b,1\nc,c,2\nd,d,-1\n")

    def read(self, now: float = NOON) -> RunStatus:
        return read_status(self.run, now=now)

    def states(self, now: float = NOON) -> dict[str, str]:
        return {stage.name: stage.state for stage in self.read(now).stages}


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "run")


def lefts(found: RunStatus) -> dict[str, float]:
    return {stage.name: stage.left for stage in found.stages if stage.left is not None}


# Which stages there will be ------------------------------------------------------------------------------------------


@dataclass
class Names(Silent):
    """Keeps the stages in their order."""

    names: list[str]

    def stage(self, name: str, *, cached: bool) -> None:
        self.names.append(name)


def test_stages_of_a_system_in_the_order_of_the_pipeline() -> None:
    recipe = {
        "registration": {"kind": "x"},
        "alignment": {"maximum_shift": 4},
        "folds": {"kind": "kfold", "count": 2},
        "members": [
            {"name": "a"},
            {"name": "b", "folds": {"kind": "table", "table": "t.csv"}},
            {"name": "c", "folds": {"kind": "holdout", "count": 4}},
        ],
        "outside": [{"name": "theirs"}],
        "pseudo": [{"members": ["c", "b"]}],
        "postprocess": {"steps": ["hull"]},
        "delivery": {"submission": True},
    }
    assert planned_stages(recipe, unlabelled=True, submission=True) == [
        "register", "survey", "align", "folds", "folds/b", "folds/c", "oof/theirs", "train/a/fold0", "train/a/fold1",
        "oof/a", "pseudo/0", "train/b/fold*", "oof/b", "train/c/fold0", "oof/c", "ensemble", "postprocess", "predict",
        "submit", "report",
    ]  # fmt: skip
    assert planned_stages(recipe, unlabelled=False, submission=True)[-2:] == ["postprocess", "report"]
    assert "submit" not in planned_stages(recipe, unlabelled=True, submission=False)


@pytest.mark.parametrize("name", sorted(name for name in builders() if name.startswith(("default", "modern", "carv"))))
def test_every_recipe_has_stages(name: str) -> None:
    source = described(12)
    recipe = builders()[name](source, device="cpu", scale="smoke")
    values = recipe.model_dump(mode="json")
    stages = planned_stages(values, unlabelled=bool(source.unlabelled), submission=bool(source.submission))
    assert len(set(stages)) == len(stages)
    assert sum(stage.startswith("train/") for stage in stages) >= len(recipe.members)
    assert [stage for stage in stages if stage.startswith("oof/")] == [
        *(f"oof/{outside.name}" for outside in recipe.outside), *(f"oof/{member.name}" for member in recipe.members),
    ]  # fmt: skip
    assert ("postprocess" in stages) == bool(recipe.postprocess.steps)
    assert sum(stage.startswith("pseudo/") for stage in stages) == len(recipe.pseudo)


# What is expected ----------------------------------------------------------------------------------------------------


def test_folds_tell_of_folds(made: Made) -> None:
    """Folds 0 and 1 took 1000 and 1200 s: fold 2 is expected to take 1100."""
    for stage, seconds in (("survey", 5.0), ("folds", 1.0), ("train/unet/fold0", 1000.0), ("train/unet/fold1", 1200.0)):
        made.finish(stage, seconds)
    made.say("oof/unet", done=10, total=40, unit="images", rate=0.5, seconds_left=60.0)
    made.finish("train/unet/fold2", 3.0)
    assert lefts(made.read()) == {"oof/unet": 60}
    made.run.marker("train/unet/fold2").unlink()
    made.say("train/unet/fold2")
    found = made.read()
    assert lefts(found) == {"train/unet/fold2": 1100 - 600}  # it has been at it for ten minutes and said nothing yet
    assert (found.left, found.unknown) == (500, ("oof/unet", "ensemble", "report"))
    assert [stage.ends for stage in found.stages if stage.state != "finished"] == [NOON + 500, None, None, None]


def test_a_running_fold_tells_of_those_that_wait(made: Made) -> None:
    """After 600 s, with 400 left: fold 0 takes 1000 s, and so do folds 1 and 2, one after the other."""
    made.finish("survey", 5.0)
    made.finish("folds", 5.0)
    made.say("train/unet/fold0", done=60, total=100, unit="steps", seconds_left=400.0)
    found = made.read()
    assert lefts(found) == {"train/unet/fold0": 400, "train/unet/fold1": 1000, "train/unet/fold2": 1000}
    assert found.left == 2400
    assert [stage.ends for stage in found.stages[2:6]] == [NOON + 400, NOON + 1400, NOON + 2400, None]
    assert made.read(NOON + 100).left == 2300


def test_a_continued_fold_is_counted_whole(made: Made) -> None:
    """Found at step 50 of 100; the other half takes 600 + 400 s."""
    made.say("train/unet/fold0", done=80, first=50, total=100, unit="steps", seconds_left=400.0)
    assert lefts(made.read())["train/unet/fold1"] == 2000


def test_a_finished_fold_counts_with_all_its_sessions(made: Made) -> None:
    """The marker knows the last session only, the log all: pretraining and training."""
    made.finish("train/unet/fold0", 10.0)
    made.log("train/unet/fold0", 300.0)
    made.log("train/unet/fold0/pretraining", 200.0)
    made.say("train/unet/fold1", seconds_left=None)
    assert lefts(made.read())["train/unet/fold2"] == 500


def test_two_processes_share_what_waits(made: Made) -> None:
    made.say("train/unet/fold0", done=60, total=100, seconds_left=400.0)
    made.say("train/unet/fold1", pid=8, done=40, total=100, seconds_left=900.0, stage_began=NOON - 600)
    found = made.read()
    assert lefts(found)["train/unet/fold2"] == (1000 + 1500) / 2
    assert found.left == 900 + 1250 / 2
    assert all(stage.ends is None for stage in found.stages)
    rows = {row.cells[0]: row for row in stage_rows(found)}
    assert rows["train/unet/fold1"].cells[2:] == (
        "far, cuda, process 8", rows["train/unet/fold0"].cells[3], "40 of 100  (40 %)", "",
        rows["train/unet/fold1"].cells[6],
    )  # fmt: skip


def test_who_only_hands_out_takes_no_part_of_what_waits(made: Made) -> None:
    """With ``--on``: a driver, which says the same stage as its two workers."""
    stages = (*STAGES[:4], "train/unet/fold2", "train/unet/fold3", *STAGES[5:])
    made.say("train/unet/fold0", done=60, total=100, seconds_left=400.0, stages=stages)
    for number in range(2):
        made.say(
            f"train/unet/fold{number}", pid=8 + number, shard=f"worker {number + 1} of 2", stages=(), done=60,
            total=100, seconds_left=400.0,
        )  # fmt: skip
    found = made.read()
    assert lefts(found)["train/unet/fold2"] == 1000
    assert found.left == 400 + 2 * 1000 / 2


def test_nothing_is_expected_where_nothing_tells(made: Made) -> None:
    made.say("survey")
    found = made.read()
    assert (found.left, len(found.unknown)) == (None, len(STAGES))
    assert headline(found) == "running: 0 of 8 stages finished, nothing tells yet when the rest ends"


# What is finished ----------------------------------------------------------------------------------------------------


def test_a_run_of_markers_only(made: Made) -> None:
    """As earlier versions left it: no process says anything."""
    made.plan()
    assert made.states() == {
        "survey": "waiting", "folds": "waiting", "train/unet/fold*": "waiting", "oof/unet": "waiting",
        "ensemble": "waiting", "report": "waiting",
    }  # fmt: skip
    assert footnote(made.read()) == ""
    for stage in STAGES[:-1]:
        made.finish(stage, 60.0)
    found = made.read()
    assert [stage.name for stage in found.stages] == STAGES
    assert footnote(found).startswith("As of the last fit: ")
    assert (found.state, found.stages[-1].state, found.finished) == ("stopped", "waiting", None)
    made.finish("report", 6.0)
    made.run.decided.parent.mkdir()
    made.run.decided.write_text("{}")
    found = made.read()
    assert (found.state, found.left, found.finished) == ("finished", None, made.run.marker("report").stat().st_mtime)
    assert "its stages took 7 min together" in headline(found)


def test_decisions_that_are_gone_mean_unfinished(made: Made) -> None:
    made.plan()
    for stage in STAGES:
        made.finish(stage, 1.0)
    assert made.read().state == "stopped"


def test_a_lost_file_is_named(made: Made) -> None:
    made.plan()
    made.finish("survey", 0.0, ["data/gone.json"])
    found = made.read()
    assert found.stages[0].state == "waiting"
    assert found.problems == ("stage survey: data/gone.json is gone; fit does the stage again",)
    (made.run.root / "data" / "gone.json").write_text("")
    assert made.states()["survey"] == "finished"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"seconds": "x", "files": []}', '{"seconds": 1, "files": [1]}'])
def test_a_spoilt_marker_is_named(content: str, made: Made) -> None:
    made.plan()
    made.finish("survey", 1.0)
    made.run.marker("survey").write_text(content)
    found = made.read()
    assert found.stages[0].state == "waiting"
    assert found.problems[0].startswith("stage survey: its marker cannot be read")


@pytest.mark.parametrize("content", ["[", "[]", "members: 5", "members: [{}]", "members: [{name: a}]"])
def test_a_spoilt_recipe_leaves_what_is_finished(content: str, made: Made) -> None:
    made.plan()
    made.finish("survey", 1.0)
    made.run.recipe.write_text(content)
    found = made.read()
    assert [(stage.name, stage.state) for stage in found.stages] == [("survey", "finished")]
    assert (found.state, len(found.problems)) == ("stopped", 2)


def test_the_report_is_always_written_again(made: Made) -> None:
    """A later start finds the markers of an earlier one: it keeps them, but for the report."""
    for stage in STAGES:
        made.finish(stage, 10.0)
    made.say("folds", cached=True)
    found = made.read()
    assert [stage.state for stage in found.stages] == ["finished"] * 7 + ["waiting"]
    assert [stage.is_earlier for stage in found.stages] == [False] * 2 + [True] * 5 + [False]
    assert [row.cells[1] for row in stage_rows(found)][1:3] == ["finished", "finished before"]
    assert remarks(found)[-1].startswith("Stages that were finished before are done again if")
    assert found.state == "running"


def test_a_stage_that_was_found_finished_is_not_running(made: Made) -> None:
    made.say("survey", cached=True)
    assert made.states()["survey"] == "waiting"  # its marker is not here: a race that the next look settles


# Who is gone ---------------------------------------------------------------------------------------------------------


def test_a_process_that_is_gone_is_named(made: Made) -> None:
    made.finish("survey", 1.0)
    made.say("train/unet/fold0", done=60, total=100, seconds_left=400.0)
    later = NOON + GONE_SECONDS + 1
    found = made.read(later)
    assert (found.state, found.stages[2].state) == ("stopped", "stopped")
    assert lefts(found) == {"train/unet/fold0": 400, "train/unet/fold1": 1000, "train/unet/fold2": 1000}
    (remark,) = remarks(found)
    assert remark.startswith("fit (process 7 on far) is gone without ending: last seen in train/unet/fold0 at ")
    assert headline(found) == (
        "not finished, and no process is known to work on it: 1 of 8 stages finished; at least 40 min to go; start the "
        "same fit again"
    )
    row = stage_rows(found)[2]
    assert (row.cells[1], row.cells[5:], row.share) == ("gone", ("", ""), 0.6)


def test_a_failure_is_told_until_the_run_goes_on(made: Made) -> None:
    made.say("survey", ended="failed", error="data: expected a mask, found none")
    (remark,) = remarks(made.read())
    assert remark.startswith("fit (process 7 on far) failed in survey at ")
    assert remark.endswith(": data: expected a mask, found none")
    made.say("survey", ended="stopped")
    assert made.read().state == "stopped" and "was stopped in survey" in remarks(made.read())[0]


def test_a_process_that_holds_the_run_and_says_nothing_is_told(made: Made) -> None:
    """As one that has only begun, or cannot write."""
    made.plan()
    with held(made.run.root):
        found = made.read()
    assert found.state == "running"
    (problem,) = found.problems
    assert f"process {os.getpid()} on " in problem and problem.endswith("works on it, and has not said where it is")
    assert made.read().state == "stopped"


def test_a_process_that_stands_still_is_told(made: Made) -> None:
    me = {"host": platform.node(), "space": str(Path("/proc/self/ns/pid").readlink())}
    made.say("oof/unet", done=1, total=9, pid=os.getpid(), process=process_mark(os.getpid()), **me)
    row = next(row for row in stage_rows(made.read(NOON + 600)) if row.state == "running")
    assert row.detail == "no step for 10 min · no sign of life for 10 min"


def test_predictions_stand_beside_the_stages(made: Made) -> None:
    for stage in STAGES:
        made.finish(stage, 1.0)
    made.plan()
    made.run.decided.parent.mkdir()
    made.run.decided.write_text("{}")
    made.say("predict", command="predict", target="out", stages=(), done=5, total=50, unit="blocks", seconds_left=90.0)
    found = made.read()
    assert (found.state, len(found.workers), found.left) == ("finished", 1, None)
    assert all(stage.state == "finished" for stage in found.stages)


# Many stages, odd names ----------------------------------------------------------------------------------------------


def test_many_stages_share_rows(made: Made) -> None:
    names = [f"train/m{member}/fold{fold}" for member in range(10) for fold in range(5)]
    for name in names[:20]:
        made.finish(name, 60.0)
    made.say(names[20], stages=tuple(names))
    rows = stage_rows(made.read(), most=40)
    assert [row.cells[:2] for row in rows] == [
        ("train/m0/fold0 … train/m3/fold4 (20)", "finished"),
        ("train/m4/fold0", "running"),
        ("train/m4/fold1 … train/m9/fold4 (29)", "waiting"),
    ]
    assert rows[0].cells[4] == "took 20 min"
    assert len(stage_rows(made.read())) == 50


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "a\0b", "x" * 5000, "train/", "", "train/a/b/c", "*"])
def test_names_lead_nowhere(name: str, made: Made) -> None:
    (made.run.root.parent / "outside.json").write_text('{"seconds": 1, "files": []}')
    made.say(name, stages=(name, "fold*", "train/fold*"))
    assert made.states().get(name) in ("running", "waiting")
    assert stage_rows(made.read())


def test_a_name_with_a_line_end_stays_in_its_line() -> None:
    found = RunStatus(
        name="a\x1b[31m\nb", at=NOON, state="stopped", stages=(StageStatus(name="a\u202e\nb", state="waiting"),)
    )
    assert stage_rows(found)[0].cells[0] == "a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}b"


def test_json_says_all(made: Made) -> None:
    made.say("train/unet/fold0", done=60, total=100, seconds_left=400.0)
    values = json.loads(json.dumps(made.read().to_json(), allow_nan=False))
    assert values["stages"][2]["workers"][0]["beat"]["done"] == 60
    assert values["summary"].startswith("running: 0 of 8 stages finished, not expected to end before ")


# A run under way -----------------------------------------------------------------------------------------------------


@dataclass
class Looking(Names):
    """Looks at the run from within its work, when a stage says how far it is."""

    run: Path
    page: Path
    seen: dict[str, RunStatus]

    def advance(self, done: int, total: int, detail: str = "", *, seconds_left: float | None = None) -> None:
        name = self.names[-1]
        if name not in ("train/unet/fold0", "oof/unet") or name in self.seen:
            return
        for _ in range(500):
            found = status(self.run, page=self.page)
            if any(stage.name == name and stage.state == "running" for stage in found.stages):
                self.seen[name] = found
                shutil.copy(self.page, self.page.with_name(f"{name.partition('/')[0]}.html"))
                return
            time.sleep(0.02)


@pytest.fixture(scope="module")
def looked(studio: Path, tmp_path_factory: pytest.TempPathFactory) -> Looking:
    folder = tmp_path_factory.mktemp("looked")
    looking = Looking(names=[], run=folder / "run", page=folder / "status.html", seen={})
    settings = [*SMALL, "folds.count=2"]
    maskloom.fit("default", studio, run=looking.run, settings=settings, device="cpu", workers=0, progress=looking)
    return looking


def test_a_run_under_way_says_where_it_is(looked: Looking) -> None:
    training, predicting = looked.seen["train/unet/fold0"], looked.seen["oof/unet"]
    assert (training.state, predicting.state) == ("running", "running")
    assert [stage.state for stage in training.stages[:4]] == ["finished", "finished", "running", "waiting"]
    (worker,) = training.stages[2].workers
    assert (worker.state, worker.beat.device, worker.beat.pid) == ("working", "cpu", os.getpid())
    states = {stage.name: stage.state for stage in predicting.stages}
    assert (states["train/unet/fold1"], states["oof/unet"], states["report"]) == ("finished", "running", "waiting")
    for name in ("train", "oof"):
        page = looked.page.with_name(f"{name}.html").read_text(encoding="utf-8")
        assert 'http-equiv="refresh"' in page and ">running<" in page


def test_the_plan_is_what_was_run(looked: Looking) -> None:
    """Announced before, and afterwards derived from recipe and folds: both are what the pipeline did."""
    assert [stage.name for stage in looked.seen["oof/unet"].stages] == looked.names
    assert [stage.name for stage in status(looked.run).stages] == looked.names


def test_a_finished_run_says_so_and_holds_no_trace(looked: Looking) -> None:
    found = status(looked.run, page=looked.page)
    assert (found.state, found.problems, found.workers) == ("finished", (), ())
    assert found.finished == pytest.approx(time.time(), abs=3600)
    assert not (looked.run / "status").exists()
    assert 'http-equiv="refresh"' not in looked.page.read_text(encoding="utf-8")


def test_an_interrupted_run_says_where_it_was_stopped(studio: Path, tmp_path: Path, looked: Looking) -> None:
    class Stopping(Names):
        def advance(self, done: int, total: int, detail: str = "", *, seconds_left: float | None = None) -> None:
            if self.names[-1] == "oof/unet":
                time.sleep(0.5)  # longer than work that leaves no trace
                raise KeyboardInterrupt

    run = Path(shutil.copytree(looked.run, tmp_path / "run"))
    for stage in ("oof/unet", "ensemble", "report"):
        RunDirectory(run).marker(stage).unlink()
    for counts in (run / "oof" / "unet" / "counts").iterdir():
        counts.unlink()
    settings = [*SMALL, "folds.count=2"]
    with pytest.raises(KeyboardInterrupt):
        maskloom.fit(
            "default", studio, run=run, settings=settings, device="cpu", workers=0, progress=Stopping(names=[])
        )
    found = status(run)
    assert (found.state, [worker.state for worker in found.workers]) == ("stopped", ["stopped"])
    assert {stage.name: stage.state for stage in found.stages}["oof/unet"] == "stopped"
    assert "was stopped in oof/unet" in remarks(found)[0]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a run folder"):
        status(tmp_path)


def test_a_prediction_is_shown_while_it_lasts(made: Made) -> None:
    with Heartbeat(made.run.root, command="predict", target="masks", device="cpu") as beating:
        beating.stage("predict", cached=False)
        beating._write()
        (worker,) = read_status(made.run).workers
        assert (worker.state, worker.beat.target) == ("working", "masks")
    assert read_status(made.run).workers == ()
