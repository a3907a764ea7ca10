"""Who may work in a run's folder, as it is found when this process holds it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from maskloom import fitting
from maskloom.errors import UserError
from maskloom.executors import fence
from maskloom.files import write_json
from maskloom.fitting import Fitting
from maskloom.heartbeat import Beat
from maskloom.integrity import read_sealed, write_sealed
from maskloom.progress import Silent
from maskloom.run_directory import FORMAT, RunDirectory
from maskloom.run_lock import held


class Begun(Exception):
    """Raised where the stages would begin."""


@pytest.fixture(autouse=True)
def no_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(*_: Any) -> None:
        raise Begun

    monkeypatch.setattr(fitting, "run_pipeline", begin)
    monkeypatch.setattr(fitting, "Context", lambda **_: None)
    monkeypatch.setattr(fitting, "hardware", lambda device: {})
    monkeypatch.setattr(fitting, "make_deterministic", lambda: None)


def source(data: Path, *names: str) -> Any:
    stated = {"task": {"kind": "binary"}, "records": [{"id": name} for name in names]}
    return SimpleNamespace(root=data, unlabelled=(), submission="", to_json=lambda: stated)


def fit(run: Path, data: Path, *names: str) -> None:
    """Comes as far as the stages."""

    @contextmanager
    def workers(*_: Any) -> Iterator[Any]:
        yield None

    recipe = SimpleNamespace(model_dump=lambda **_: {"members": []})
    site = SimpleNamespace(device="cpu", workers=workers)
    context: Any = {"recipe": recipe, "source": source(data, *names), "site": site}
    try:
        Fitting(workers=0, devices_per_network=1, progress=Silent(), **context).run(run)
    except Begun:
        write_sealed(RunDirectory(run).source, context["source"].to_json())
        return
    raise AssertionError("no stage was begun")


def after(monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
    """Has somebody act in the folder just before it is held, once."""
    waiting = [act]

    @contextmanager
    def held_late(root: Path) -> Iterator[None]:
        while waiting:
            waiting.pop()()
        with held(root):
            yield

    monkeypatch.setattr(fitting, "held", held_late)


def test_two_that_begin_on_one_new_folder_do_not_undo_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    after(monkeypatch, lambda: fit(run, tmp_path / "cars", "a", "b"))
    with pytest.raises(UserError, match=f"made from the images in {tmp_path / 'cars'}, found other ones in"):
        fit(run, tmp_path / "dogs", "c")
    assert read_sealed(run / "run.json")["data"] == str(tmp_path / "cars")


def test_nor_what_else_came_into_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    after(monkeypatch, lambda: write_json(run / "mine.json", {}))
    with pytest.raises(UserError, match="expected a run folder or an empty one"):
        fit(run, tmp_path / "cars", "a")
    assert [path.name for path in run.iterdir()] == ["mine.json"]


def test_former_workers_are_waited_for_before_anything_tidies_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A heartbeat removes, soon after it begins, what it takes to be gone by the clock on the wall."""
    monkeypatch.setattr(fence, "FENCE_SECONDS", 0.5)
    left = Beat(
        command="fit", host="far", pid=7, process="p", space="", device="cuda", began=1.0, sign=1.0, shard="worker 1"
    )  # fmt: skip
    write_sealed(tmp_path / "run" / "run.json", {"format": FORMAT})
    write_json(tmp_path / "run" / "status" / "far-7.json", asdict(left))
    began = time.monotonic()
    fit(tmp_path / "run", tmp_path / "cars", "a")
    assert 0.5 < time.monotonic() - began < 5
