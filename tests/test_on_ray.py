"""``--on ray``: the same bytes as in one process, on a cluster of this host alone; only where Ray is installed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import executor_tasks
import maskloom
from executor_tasks import call, eventually
from maskloom.errors import UserError
from maskloom.executors.sites import Work, open_site
from maskloom.heartbeat import process_mark
from maskloom.progress import Silent
from small import SMALL
from test_on_local import computed, outcomes, photos, written

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own

__all__ = ["photos"]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A cluster of two workers, which find the modules of the tests."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), before]))
    options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}
    ray.init(address="local", num_cpus=2, **options)  # whatever this host belongs to
    yield
    ray.shutdown()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_has_the_same_bytes(studio: Path, finished_run: Path, tmp_path: Path, processes: int) -> None:
    run = tmp_path / "run"
    maskloom.fit(
        "default", studio, run=run, settings=SMALL, device="cpu", workers=0, on="ray", processes=processes
    )  # fmt: skip
    assert computed(run) == computed(finished_run) and outcomes(run) == outcomes(finished_run)


@pytest.mark.parametrize("to", ["png", "rle", "geotiff"])
def test_predictions_have_the_same_bytes(finished_run: Path, photos: Path, tmp_path: Path, to: str) -> None:
    import numpy as np

    from maskloom.rasters.writing import write_geotiff

    images = photos
    if to == "geotiff":
        images = tmp_path / "scenes"
        write_geotiff(images / "a.tif", np.random.default_rng(1).integers(0, 255, (3, 700, 600), np.uint8), None)
    run = maskloom.open_run(finished_run, device="cpu")
    run.predict(images, out=tmp_path / "alone", to=to)
    run.predict(images, out=tmp_path / "shared", to=to, on="ray", processes=2)
    assert written(tmp_path / "alone") == written(tmp_path / "shared") != {}


class Heard(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_tasks_on_actors(tmp_path: Path) -> None:
    """Errors, what is told, a killed actor, and one that is stopped."""
    heard, told = Heard(), []
    work = Work(run=tmp_path, command="fit")
    with open_site("ray", device="cpu", processes=1) as site, site.workers(work, heard) as executor:
        spoken: Any = executor.submit(call(executor, executor_tasks.speak), on_told=told.append)
        assert executor.collect(spoken) == "said" and told == [0, 1, 2]
        with pytest.raises(UserError, match=r"^photo.png: is cut off$"):
            executor.collect(executor.submit(call(executor, executor_tasks.fail, "user")))
        # Its node says that it has ended, so that even a training is begun again at once.
        dying = replace(call(executor, executor_tasks.die_once, tmp_path / "mark"), is_exclusive=True)
        ticket = executor.submit(dying)
        assert executor.collect(ticket) == "done" and ticket.attempts == 2
        (note,) = (note for note in heard.notes if "was lost" in note)
        assert "(ActorDiedError: " in note and note.endswith("it is done again")
        unheard = executor.submit(call(executor, executor_tasks.take, executor_tasks.Bound()))
        with pytest.raises(ray.exceptions.RaySystemError, match="it belongs to process"):
            executor.collect(unheard)
        assert unheard.attempts == 1
        begun, saved = tmp_path / "begun", tmp_path / "saved"
        executor.submit(call(executor, executor_tasks.wait, begun, saved))
        while not begun.is_file():
            pass
        executor.drop()
        assert saved.is_file()
        os.kill(int(begun.read_text()), signal.SIGKILL)  # while it waits
        assert executor.collect(executor.submit(call(executor, executor_tasks.add, 1, shared=1)))[0] == 2


def test_an_actor_that_was_killed_here_is_not_taken_to_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray calls it dead before its node has said so."""
    from maskloom.executors import pool

    monkeypatch.setattr(pool, "STOP_SECONDS", 0.5)
    monkeypatch.setattr(pool, "FENCE_SECONDS", 2.0)
    heard, work = Heard(), Work(run=tmp_path, command="fit")
    with open_site("ray", device="cpu", processes=1) as site, site.workers(work, heard) as executor:
        begun = tmp_path / "begun"
        executor.submit(replace(call(executor, executor_tasks.hang, begun), is_exclusive=True))
        assert eventually(begun.exists, 300)  # the actor has to be started
        executor.drop()
        began = time.monotonic()
        executor.collect(executor.submit(replace(call(executor, executor_tasks.speak), is_exclusive=True)))
        assert time.monotonic() - began > 1.9
    assert any(note.endswith("it is not begun again within 2 s") for note in heard.notes)


def test_workers_without_room_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from maskloom.executors import actors, nodes

    monkeypatch.setattr(actors, "ROOM_SECONDS", 0.5)
    monkeypatch.setattr(nodes, "HEAD_SECONDS", 0.2)

    class Other:
        def ready(self) -> bool:
            return True

    other = ray.remote(Other).options(num_cpus=2).remote()
    assert ray.get(other.ready.remote())
    heard = Heard()
    work = Work(run=tmp_path, command="predict", writes=(tmp_path / "out",))
    with open_site("ray", device="cpu", processes=1) as site, site.workers(work, heard) as executor:
        ticket = executor.submit(call(executor, executor_tasks.speak))
        ends = time.monotonic() + 60
        while not any("1 of 1 worker(s) have not started" in note for note in heard.notes):
            executor._give_all_on()
            assert time.monotonic() < ends
            time.sleep(0.05)
        assert any("each asks for" in note and "`ray status`" in note for note in heard.notes)
        ray.kill(other)
        assert executor.collect(ticket) == "said"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("is_alone", [False, True])
def test_a_node_that_is_gone_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_alone: bool) -> None:
    """Ray calls a node alive for some time after it was killed."""
    from maskloom.executors import cluster, nodes

    gone = nodes.Node(id="a" * 56, name="gone", cpus=1, gpus=0)
    monkeypatch.setattr(cluster, "alive_nodes", lambda: [gone] if is_alone else [gone, *nodes.alive_nodes()])
    work = Work(run=tmp_path, command="fit")
    with open_site("ray", device="cpu", processes=1) as site:
        if is_alone:
            with pytest.raises(UserError, match=r"^node gone: is gone \("), site.workers(work, Heard()):
                pass
            return
        with site.workers(work, Heard()) as executor:
            assert executor.collect(executor.submit(call(executor, executor_tasks.add, 1, shared=1)))[0] == 2


def test_a_folder_that_nodes_do_not_see_is_told(tmp_path: Path) -> None:
    work = Work(run=tmp_path, command="fit", sees=(tmp_path / "nowhere",))
    with (
        open_site("ray", device="cpu") as site,
        pytest.raises(UserError, match=r"node .*: expected to see .*nowhere, found no such path"),
        site.workers(work, Silent()),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_workers_end_without_the_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would end them through its head, and leaves them where they are as long as it waits for that to come back."""
    from maskloom.executors import actors

    work = Work(run=tmp_path, command="fit")
    with open_site("ray", device="cpu", processes=2) as site, site.workers(work, Heard()) as executor:
        begun = tmp_path / "begun"
        executor.submit(call(executor, executor_tasks.hang, begun))
        _, idle = executor.collect(executor.submit(call(executor, executor_tasks.add, 1, shared=1)))
        assert eventually(begun.exists, 300)
        busy = int(begun.read_text())
        monkeypatch.setattr(actors.ray, "kill", lambda handle: None)
        monkeypatch.setattr(site.head, "answers", lambda: False)
    assert eventually(lambda: process_mark(idle) is process_mark(busy) is None, 20)


def test_a_lost_head_is_a_line(tmp_path: Path) -> None:
    from maskloom.executors.actors import Actors, ClientError
    from maskloom.executors.bench import Opening
    from maskloom.executors.nodes import Head

    for error in (ConnectionError("refused"), ray.exceptions.RpcError("unavailable"), ClientError()):
        site: Any = SimpleNamespace(head=Head("192.0.2.1:1"))
        crew = Actors(site, Opening(run=tmp_path, command="fit"), Any)
        with pytest.raises(UserError, match=r"the head of the cluster at 192\.0\.2\.1:1 does not"), crew._losses_told():
            raise error
        assert site.head.is_lost


def test_a_head_that_is_lost_while_nodes_are_asked_is_no_node_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from maskloom.executors import actors
    from maskloom.executors.bench import Opening
    from maskloom.executors.nodes import Head, Node

    def lost(*_: Any, **__: Any) -> None:
        raise ray.exceptions.RpcError("unavailable")

    site: Any = SimpleNamespace(head=Head("192.0.2.1:1"))
    look: Any = SimpleNamespace(missing=lambda *_: None)
    crew = actors.Actors(site, Opening(run=tmp_path, command="fit"), look)
    monkeypatch.setattr(crew, "_ask", lambda node: node)
    monkeypatch.setattr(actors.ray, "get", lost)
    with pytest.raises(UserError, match=r"the head of the cluster at 192\.0\.2\.1:1 does not"):
        crew.begin([Node(id="a" * 56, name="there", cpus=1, gpus=0)])
