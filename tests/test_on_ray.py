"""``--on ray``: the same bytes as in one process, on a cluster of this host alone; only where Ray is installed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import executor_tasks
import maskloom
from executor_tasks import call
from maskloom.errors import UserError
from maskloom.executors.sites import Work, open_site
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
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
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
        dying = executor.submit(call(executor, executor_tasks.die_once, tmp_path / "mark"))
        assert executor.collect(dying) == "done" and dying.attempts == 2
        assert any("was lost" in note for note in heard.notes)
        begun, saved = tmp_path / "begun", tmp_path / "saved"
        executor.submit(call(executor, executor_tasks.wait, begun, saved))
        while not begun.is_file():
            pass
        executor.drop()
        assert saved.is_file()
        os.kill(int(begun.read_text()), signal.SIGKILL)  # while it waits
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
