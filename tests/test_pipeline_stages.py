"""One stage after the other, without any network: what is skipped, what is named as damaged, what is made anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from maskloom import pipeline
from maskloom.errors import UserError
from maskloom.executors.tasks import Here, InProcess
from maskloom.files import checksum, read_json, write_json, write_text
from maskloom.integrity import Damaged, write_sealed
from maskloom.models.encoders import NetworkSettings
from maskloom.run_directory import RunDirectory
from maskloom.stages import data as data_stages
from maskloom.stages.stage import run_stage
from test_integrity import flip


class Heard:
    """Remembers stages as a terminal shows them, and notes."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []

    def stage(self, name: str, *, cached: bool) -> None:
        self.stages.append(f"{'=' if cached else '>'} {name}")

    def advance(self, done: int, total: int, detail: str = "", *, seconds_left: float | None = None) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)

    def all(self) -> tuple[list[str], list[str]]:
        """Returns what was heard since the last call."""
        found, self.stages, self.notes = (self.stages, self.notes), [], []
        return found


class Steps:
    """Two stages, the second of which reads what the first wrote, a file per record that is kept where it is sound."""

    def __init__(self, root: Path, content: Callable[[str], str] = lambda name: f"map of {name}") -> None:
        self.run, self.heard, self.content = RunDirectory(root), Heard(), content
        self.context: Any = SimpleNamespace(run=self.run, progress=self.heard, executor=InProcess())

    def maps(self, mark: str) -> list[Path]:
        self.run.begin("oof/a", self.run.oof("a"), mark)
        ledger, files = self.run.ledger("oof/a"), [self.run.oof_map("a", name) for name in "xyz"]
        for path in files:
            if not ledger.is_sound(path):
                self.heard.note(f"made {path.stem}")
                write_text(path, self.content(path.stem))
                ledger.add(path)
        return files

    def sums(self) -> list[Path]:
        paths = [self.run.checked(self.run.oof_map("a", name)) for name in "xyz"]
        write_text(self.run.ensemble, "".join(path.read_text() for path in paths))
        return [self.run.ensemble]

    def both(self, mark: str = "1") -> None:
        first = run_stage(self.context, "oof/a", mark, lambda: self.maps(mark))
        run_stage(self.context, "ensemble", first, self.sums)

    def fit(self, monkeypatch: pytest.MonkeyPatch, mark: str = "1") -> tuple[list[str], list[str]]:
        """Runs both as ``run_pipeline`` does; returns stages and notes."""
        monkeypatch.setattr(data_stages, "summary", lambda _: "data")
        monkeypatch.setattr(pipeline, "_run_stages", lambda *_: self.both(mark))
        self.context.source = None
        pipeline.run_pipeline(self.context, None)
        stages, notes = self.heard.all()
        return stages, notes[1:]


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Steps:
    found = Steps(tmp_path / "run")
    made = ["made x", "made y", "made z"]
    assert found.fit(monkeypatch) == (["> oof/a", "> ensemble"], made)
    assert found.fit(monkeypatch) == (["= oof/a", "= ensemble"], [])
    return found


def test_a_changed_mark_repeats_what_follows(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    assert steps.fit(monkeypatch, "2") == (["> oof/a", "> ensemble"], ["made x", "made y", "made z"])


def test_what_a_lost_worker_left_half_written_goes(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    half = steps.run.oof_map("a", "x").with_name(".partial-1.map")

    def content(name: str) -> str:
        half.parent.mkdir(exist_ok=True)
        half.write_text("half")  # of a worker that is killed, while others go on
        return f"map of {name}"

    steps.content, steps.context.executor = content, SimpleNamespace(is_parallel=True)
    assert steps.fit(monkeypatch, "2")[1] == ["made x", "made y", "made z"] and not half.exists()


def test_a_damaged_file_is_named_and_made_anew_and_nothing_else(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    path = steps.run.oof_map("a", "y")
    whole = path.read_bytes()
    flip(path)
    assert steps.fit(monkeypatch) == (
        ["> oof/a", "= ensemble"],
        ["damaged, and made anew: oof/a/maps/y.map", "made y"],
    )
    assert path.read_bytes() == whole
    assert steps.fit(monkeypatch)[0] == ["= oof/a", "= ensemble"]


def test_damage_that_only_reading_shows_is_made_anew_all_of_it(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "yz":
        flip(steps.run.oof_map("a", name), quietly=True)
    assert steps.fit(monkeypatch) == (["= oof/a", "= ensemble"], []), "nothing reads them"
    whole = steps.run.ensemble.read_text()
    steps.run.ensemble.unlink()
    stages, notes = steps.fit(monkeypatch)
    assert stages == ["= oof/a", "> ensemble", "> oof/a", "> ensemble"]
    named = [f"damaged, and made anew: oof/a/maps/{name}.map" for name in "yz"]
    assert notes == [*named, "made y", "made z"]
    assert steps.run.ensemble.read_text() == whole


def test_other_bytes_repeat_what_follows(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a network is trained again on a GPU."""
    flip(steps.run.oof_map("a", "y"))
    steps.content = lambda name: f"another map of {name}"
    assert steps.fit(monkeypatch)[0] == ["> oof/a", "> ensemble"]
    assert "another map of y" in steps.run.ensemble.read_text()
    assert steps.fit(monkeypatch)[0] == ["= oof/a", "= ensemble"]


def test_damaged_markers_and_ledgers_are_named_and_cost_nothing(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(steps.run.sums("oof/a"))
    named = "damaged, and made anew: stages/oof/a."
    assert steps.fit(monkeypatch) == (["= oof/a", "= ensemble"], [named + "sums"])
    flip(steps.run.marker("oof/a"))
    assert steps.fit(monkeypatch) == (["> oof/a", "= ensemble"], [named + "json"])
    assert steps.fit(monkeypatch) == (["= oof/a", "= ensemble"], [])


def test_what_is_damaged_again_ends_the_run(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    steps.run.ensemble.unlink()
    path = steps.run.oof_map("a", "y")

    def fails() -> list[Path]:
        raise Damaged(path, "is damaged")

    steps.sums = fails  # type: ignore[method-assign]
    with pytest.raises(Damaged, match=r"y\.map: is damaged"):
        steps.fit(monkeypatch)
    assert steps.heard.notes.count("damaged, and made anew: oof/a/maps/y.map") == 1


def test_a_killed_attempt_keeps_what_is_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(tmp_path / "run")

    def killed(name: str) -> str:
        if name == "z":
            raise KeyboardInterrupt
        return f"map of {name}"

    steps.content = killed
    with pytest.raises(KeyboardInterrupt):
        steps.fit(monkeypatch)
    steps.heard.all()
    flip(steps.run.oof_map("a", "x"))
    steps.content = lambda name: f"map of {name}"
    assert steps.fit(monkeypatch) == (
        ["> oof/a", "> ensemble"],
        ["damaged, and made anew: oof/a/maps/x.map", "made x", "made z"],
    )


def test_a_run_of_an_earlier_version_is_taken_as_it_is(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    for stage, mark in (("oof/a", "1"), ("ensemble", "1")):
        marker = read_json(steps.run.marker(stage))
        write_json(
            steps.run.marker(stage), {key: marker[key] for key in ("files", "seconds", "stage")} | {"fingerprint": mark}
        )
        steps.run.sums(stage).unlink()
    flip(steps.run.oof_map("a", "y"))
    assert steps.fit(monkeypatch) == (["= oof/a", "= ensemble"], [])


def test_files_of_the_run_as_a_whole_are_named(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    run = steps.run
    write_sealed(run.source, {"records": []})
    write_text(run.recipe, "name: a\n")
    run.decide("1")
    assert steps.fit(monkeypatch)[1] == []
    flip(run.source, quietly=True)
    assert steps.fit(monkeypatch)[1] == ["damaged, and made anew: data/source.json"] and not run.source.exists()
    flip(run.recipe, quietly=True)  # perhaps the user did it: it stays until all is checked
    assert steps.fit(monkeypatch)[1] == ["not the recipe that the run was decided with: recipe.yaml"]
    assert run.recipe.is_file() and not run.decided.exists()


def test_a_training_checks_its_first_weights_where_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"of this node")
    member = SimpleNamespace(network=NetworkSettings(weights=str(weights)))
    context: Any = SimpleNamespace(
        recipe=SimpleNamespace(member=lambda name: member), device=torch.device("cpu"), devices_per_network=1
    )
    context.at = lambda here: context
    trained: list[int] = []
    monkeypatch.setattr(pipeline, "train_fold", lambda *arguments, **_: trained.append(arguments[2]))
    pipeline._train_fold(Here(), context, "m", 3, "mark", checksum(weights))
    assert trained == [3]
    with pytest.raises(UserError, match="expected the first weights that were found at the start"):
        pipeline._train_fold(Here(), context, "m", 3, "mark", "of the driver")
    assert trained == [3]
