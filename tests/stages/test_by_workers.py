"""Images, tables and scenes predicted by workers: what the process that hands them out claims, believes and tells."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_images import Bright, photo, rows
from tiny_scenes import SIDE, Known, write_run, write_scene

from maskloom.data.mask_coding import MaskCoding
from maskloom.errors import UserError
from maskloom.executors import sites
from maskloom.executors.tasks import Call, Executor, Here, InProcess, Ticket
from maskloom.files import write_json
from maskloom.inference import blocks as blocks_room
from maskloom.integrity import Damaged, Ledger, Seal, write_sealed
from maskloom.progress import Silent
from maskloom.records import Record
from maskloom.run_directory import RunDirectory
from maskloom.runs import Run
from maskloom.stages import by_workers, image_files, images, scene_blocks, scenes, shared_rows
from maskloom.stages import rows as rows_stage
from maskloom.stages.image_versions import Written
from maskloom.stages.images import Prediction, predict_images

NUM_FILLED = 11  # of the blocks of a scene of 150×210, but for those without data


class Two(InProcess):
    """Says that it has two workers; computes a task when it is collected, and loses none."""

    is_parallel, num_workers = True, 2

    def __init__(self, on_drop: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.submitted: list[Call] = []
        self._on_drop = on_drop

    def submit(self, task: Call, **more: Any) -> Ticket:
        self.submitted.append(task)
        return super().submit(task, **more)

    def drop(self) -> None:
        self._on_drop()


class Heard(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[tuple[int, int]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def advance(self, done: int, total: int, detail: str = "", *, seconds_left: float | None = None) -> None:
        self.steps.append((done, total))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_workers, "SEEN_SECONDS", 0.1)
    monkeypatch.setattr(by_workers, "_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(blocks_room, "SIDES", (SIDE,))
    for stage in (scenes, shared_rows):
        monkeypatch.setattr(stage, "PAUSE_SECONDS", 0.01)


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Bright:
    """What workers find in the run."""
    bright = Bright()
    monkeypatch.setattr(images, "open_for_prediction", lambda run, device: bright)
    return bright


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(6):
        photo(tmp_path / "photos" / f"{number}.png", 40 * number)
    return tmp_path / "photos"


def predicted(
    tmp_path: Path, to: str, executor: Executor, *, out: str = "out", skip_bad: bool = False, progress: Any = None
) -> Prediction:
    run = RunDirectory(tmp_path / "run")
    if not run.decided.is_file():
        write_json(run.decided, {"fingerprint": "decided"})
        coding = MaskCoding(kind="colours", colours=(((0, 0, 255), 0), ((255, 0, 0), 1)))
        task = {"kind": Bright.task.kind, "classes": list(Bright.task.classes)}
        write_sealed(run.source, {"task": task, "coding": coding.to_json()})
    decisions: Any = Bright()
    done = predict_images(
        run, tmp_path / "photos", out=tmp_path / out, to=to, opened=lambda: decisions, skip_bad=skip_bad,
        progress=progress or Silent(), workers=lambda: nullcontext(executor),
    )  # fmt: skip
    assert not executor.is_parallel or decisions.asked == 0, "workers are to be asked"
    return done


def masks(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*")}


# A file per image ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["png", "colours", "prob", "rle", "coco"])
def test_workers_leave_what_one_process_leaves(tmp_path: Path, photos: Path, network: Bright, to: str) -> None:
    predicted(tmp_path, to, InProcess(), out="alone")
    heard = Heard()
    assert predicted(tmp_path, to, Two(), progress=heard).num_written == 6 == network.asked
    assert masks(tmp_path / "out") == masks(tmp_path / "alone") != {}
    assert heard.steps[-1] == (6, 6) and heard.notes == []
    assert predicted(tmp_path, to, Two()).num_written == 6 == network.asked, "all was there"


def test_only_the_process_that_hands_out_looks_for_what_is_written(
    tmp_path: Path, photos: Path, network: Bright, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Path] = []

    class Spied(Written):
        def __init__(self, path: Path, files_of: Any) -> None:
            looked.append(path)
            super().__init__(path, files_of)

    monkeypatch.setattr(image_files, "Written", Spied)
    executor = Two()
    predicted(tmp_path, "png", executor)
    assert len(executor.submitted) == 6 and looked == [tmp_path / "out" / ".images" / "written.txt"]
    assert [path.name for path in (tmp_path / "out" / ".images").iterdir()] == ["written.txt"]


def test_of_a_killed_process_only_what_was_not_told_is_done_again(
    tmp_path: Path, photos: Path, network: Bright
) -> None:
    class Killed(Two):
        def collect(self, ticket: Ticket, **more: Any) -> Any:
            if network.asked == 4:
                raise KeyboardInterrupt
            return super().collect(ticket, **more)

    with pytest.raises(KeyboardInterrupt):
        predicted(tmp_path, "png", Killed())
    predicted(tmp_path, "png", Two())
    assert network.asked == 6


@pytest.mark.parametrize("to", ["png", "rle"])
def test_what_a_lost_worker_left_half_written_goes(tmp_path: Path, photos: Path, network: Bright, to: str) -> None:
    half = tmp_path / "out" / ".partial-1.png"

    class Losing(Two):
        def collect(self, ticket: Ticket, **more: Any) -> Any:
            half.write_bytes(b"half")  # of a worker that is killed; another one does its task again
            return super().collect(ticket, **more)

    assert predicted(tmp_path, to, Losing()).num_written == 6 and not half.exists()


def test_masks_that_are_written_elsewhere_are_told(
    tmp_path: Path, photos: Path, network: Bright, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node whose folder of that name is another one."""
    real = image_files._maps_of_shard

    def elsewhere(here: Here, asked: image_files.Asked, records: list[Record]) -> None:
        real(here, asked, records)
        for record in records:
            (tmp_path / "out" / f"{record.id}.png").unlink()

    monkeypatch.setattr(image_files, "_maps_of_shard", elsewhere)
    with pytest.raises(UserError, match=r"0\.png: expected to see what a worker has written.*\(nor 5 others\)") as told:
        predicted(tmp_path, "png", Two())
    assert "\n" not in str(told.value)


def test_rows_that_are_written_elsewhere_are_told(
    tmp_path: Path, photos: Path, network: Bright, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "_rows_of_chunk", lambda here, asked, chunk, folder: [folder / "000000.csv"])
    with pytest.raises(UserError, match=r"000000\.csv: expected to see what a worker has written"):
        predicted(tmp_path, "rle", Two())


def test_files_that_come_late_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_workers, "SEEN_SECONDS", 30.0)
    late = tmp_path / "folder" / "late.png"

    def write() -> None:
        time.sleep(0.1)
        photo(late, 0)

    thread = threading.Thread(target=write)
    thread.start()
    by_workers.expect_seen([late])
    assert late.is_file()
    thread.join()
    by_workers.expect_seen([tmp_path / "nowhere" / "x"], unless=lambda: True)


def test_workers_tell_of_damaged_photos_and_their_former_masks_go(
    tmp_path: Path, photos: Path, network: Bright
) -> None:
    predicted(tmp_path, "png", Two())
    whole = (photos / "3.png").read_bytes()
    (photos / "3.png").write_bytes(whole[:-20])
    heard = Heard()
    done = predicted(tmp_path, "png", Two(), skip_bad=True, progress=heard)
    assert done.num_written == 5 and [problem.path.name for problem in done.bad] == ["3.png"]
    assert sorted(masks(tmp_path / "out")) == ["0.png", "1.png", "2.png", "4.png", "5.png"]
    assert len([note for note in heard.notes if note.startswith("left out: ")]) == 1


# Runs that are fitted anew meanwhile ---------------------------------------------------------------------------------


class Refitted(Two):
    """Finds, after the first task, that `fit` has decided anew, or is at it (None)."""

    def __init__(self, run: RunDirectory, decision: str | None) -> None:
        super().__init__()
        self._run, self._decision = run, decision

    def collect(self, ticket: Ticket, **more: Any) -> Any:
        found = super().collect(ticket, **more)
        if self._decision is None:
            self._run.decided.unlink(missing_ok=True)
        else:
            write_json(self._run.decided, {"fingerprint": self._decision})
        return found


@pytest.mark.parametrize("decision", ["another", None])
@pytest.mark.parametrize("to", ["png", "rle"])
def test_a_worker_that_opens_the_run_late_does_not_mix_decisions(
    tmp_path: Path, photos: Path, network: Bright, monkeypatch: pytest.MonkeyPatch, to: str, decision: str | None
) -> None:
    monkeypatch.setattr(rows_stage, "CHUNK", 1)
    with pytest.raises(UserError, match=r"run: expected the run as it was .* into a new folder"):
        predicted(tmp_path, to, Refitted(RunDirectory(tmp_path / "run"), decision))
    assert network.asked == 1


def test_nor_does_one_that_predicts_blocks(tmp_path: Path, known: Known) -> None:
    write_two(tmp_path / "scenes")
    with pytest.raises(UserError, match="`fit` has changed it meanwhile"):
        scenes_predicted(tmp_path, Refitted(RunDirectory(tmp_path / "run"), "another"))
    assert list(tmp_path.rglob("*.map")) and known.num_asked < NUM_FILLED


def test_networks_that_are_replaced_while_they_are_loaded_are_told_so(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replaced(run: RunDirectory, device: str | None) -> Any:
        run.decided.unlink()
        raise Damaged("best.safetensors", "is gone")

    monkeypatch.setattr(images, "open_for_prediction", replaced)
    with pytest.raises(UserError, match="`fit` has changed it meanwhile"):
        predicted(tmp_path, "png", Two())


@pytest.mark.parametrize("to", ["png", "geotiff"])
def test_nor_does_one_process_whose_run_changes_before_it_is_opened(tmp_path: Path, photos: Path, to: str) -> None:
    run = write_run(tmp_path / "run")
    write_scene(tmp_path / "scenes/a.tif")

    def opened() -> Any:
        write_json(run.decided, {"fingerprint": "another"})
        return Bright()

    with pytest.raises(UserError, match="`fit` has changed it meanwhile"):
        if to == "png":
            predict_images(run, photos, out=tmp_path / "out", to=to, opened=opened, skip_bad=False, progress=Silent())
        else:
            scenes.predict_scenes(
                run, tmp_path / "scenes", out=tmp_path / "out", to=to, opened=opened, progress=Silent()
            )
    assert masks(tmp_path / "out") == {}


def test_an_opened_run_that_is_fitted_anew_is_opened_again(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, loaded = write_run(tmp_path / "run"), []

    def load(run: RunDirectory, device: str | None) -> Any:
        loaded.append(run.decision())
        bright: Any = Bright()
        bright.decision = run.decision()
        return bright

    monkeypatch.setattr(images, "open_for_prediction", load)
    run = Run(folder=folder, device="cpu")
    for decision, out in (("known", "a"), ("known", "b"), ("another", "c")):
        write_json(folder.decided, {"fingerprint": decision})
        run.predict(photos, out=tmp_path / out)
    assert loaded == ["known", "another"]


# When workers are begun ----------------------------------------------------------------------------------------------


def nobody() -> AbstractContextManager[Executor]:
    raise AssertionError("workers were begun")


def test_workers_are_not_begun_for_a_mistaken_path(tmp_path: Path) -> None:
    run, known = write_run(tmp_path / "run"), lambda: pytest.fail("the run was opened")
    common: Any = {"out": tmp_path / "out", "opened": known, "progress": Silent(), "workers": nobody}
    with pytest.raises(UserError, match="found no such path"):
        predict_images(run, tmp_path / "nowhere", to="png", skip_bad=False, **common)
    with pytest.raises(UserError, match="found no such path"):
        scenes.predict_scenes(run, tmp_path / "nowhere", to="geotiff", **common)


def test_workers_are_not_begun_for_scenes_that_are_finished(tmp_path: Path) -> None:
    write_scene(tmp_path / "scenes/a.tif")
    known: Any = Known()
    common: Any = {"out": tmp_path / "out", "to": "geotiff", "opened": lambda: known, "progress": Silent()}
    run = write_run(tmp_path / "run")
    scenes.predict_scenes(run, tmp_path / "scenes", **common)
    assert scenes.predict_scenes(run, tmp_path / "scenes", **common, workers=nobody).num_written == 1


@pytest.mark.parametrize("to", ["png", "geotiff"])
def test_workers_are_given_whole_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str) -> None:
    """Theirs may be another working folder; what they write is looked at before the work."""
    given: list[Any] = []

    @contextmanager
    def site(*_: Any, **__: Any) -> Iterator[Any]:
        yield SimpleNamespace(device=SimpleNamespace(type="cpu"), workers=lambda work, listener: given.append(work))

    def predict(run: RunDirectory, places: Path, *, out: Path, workers: Callable[[], Any], **_: Any) -> Any:
        workers()
        given.extend([run.root, places, out])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sites, "open_site", site)
    monkeypatch.setattr(images, "predict_images", predict)
    monkeypatch.setattr(scenes, "predict_scenes", predict)
    Run(folder=RunDirectory(Path("run"))).predict("photos", out="out", to=to, on="local")
    work, *paths = given
    assert paths == [tmp_path / name for name in ("run", "photos", "out")]
    assert (work.run, work.sees, work.writes) == (tmp_path / "run", (tmp_path / "photos",), (tmp_path / "out",))


# A table of all images -----------------------------------------------------------------------------------------------


def claimed_elsewhere(path: Path, *numbers: int) -> list[bool]:
    """Returns whether another process could claim each of these."""
    code = (
        "import sys; from pathlib import Path; from maskloom.stages.claims import Claims\n"
        "with Claims(Path(sys.argv[1])) as claims: print(*[claims.take(int(number)) for number in sys.argv[2:]])"
    )
    command = [sys.executable, "-c", code, str(path), *map(str, numbers)]
    words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return [word == "True" for word in words]


def test_chunks_that_no_worker_is_near_are_left_for_others(
    tmp_path: Path, photos: Path, network: Bright, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_stage, "CHUNK", 1)
    free: list[list[bool]] = []

    class Watched(Two):
        def collect(self, ticket: Ticket, **more: Any) -> Any:
            if not free:
                (claims,) = (path for path in tmp_path.rglob("*.claims") if path.name != "processes.claims")
                free.append(claimed_elsewhere(claims, 1, 4, 5, 6))
            return super().collect(ticket, **more)

    predicted(tmp_path, "rle", Watched())
    assert free == [[False, False, True, True]], "two per worker are claimed"
    assert sorted(rows(tmp_path / "out")) == list("012345") and network.asked == 6


def test_what_fails_keeps_its_claims_until_workers_have_stopped(tmp_path: Path, photos: Path, network: Bright) -> None:
    free: list[bool] = []

    def on_drop() -> None:
        (claims,) = (path for path in tmp_path.rglob("*.claims") if path.name != "processes.claims")
        free.extend(claimed_elsewhere(claims, 1))

    (photos / "3.png").write_bytes((photos / "3.png").read_bytes()[:-20])
    with pytest.raises(UserError, match=r"3\.png"):
        predicted(tmp_path, "rle", Two(on_drop))
    assert free == [False]


# Scenes --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Known:
    """What workers find in the run."""
    found = Known()
    monkeypatch.setattr(images, "open_for_prediction", lambda run, device: found)
    return found


def scenes_predicted(tmp_path: Path, executor: Executor, *, out: str = "out", **options: Any) -> Prediction:
    decisions: Any = Known()
    done = scenes.predict_scenes(
        write_run(tmp_path / "run"), tmp_path / "scenes", out=tmp_path / out, to="geotiff", opened=lambda: decisions,
        progress=options.pop("progress", Silent()), workers=lambda: nullcontext(executor), **options,
    )  # fmt: skip
    assert not executor.is_parallel or decisions.num_asked == 0, "workers are to be asked"
    return done


def write_two(folder: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        write_scene(folder / f"{name}.tif", seed=seed)


def test_workers_leave_the_scenes_that_one_process_leaves(tmp_path: Path, known: Known) -> None:
    write_two(tmp_path / "scenes")
    scenes_predicted(tmp_path, InProcess(), out="alone")
    heard = Heard()
    assert scenes_predicted(tmp_path, Two(), progress=heard).num_written == 2
    assert masks(tmp_path / "out") == masks(tmp_path / "alone") and known.num_asked == 2 * NUM_FILLED
    assert heard.steps[-1] == (24, 24) and not (tmp_path / "out/.blocks").exists()


def test_a_scene_that_another_process_has_finished_is_not_predicted_again(tmp_path: Path, known: Known) -> None:
    write_two(tmp_path / "scenes")
    scenes_predicted(tmp_path, InProcess(), out="out")
    shutil.copytree(tmp_path / "out", tmp_path / "finished")
    for path in (tmp_path / "out").rglob("*"):
        if path.suffix == ".tif" or path.parent.name == ".scenes":
            path.unlink()

    class Other(Two):
        """While the first scene is predicted, another process finishes the second."""

        def collect(self, ticket: Ticket, **more: Any) -> Any:
            if known.num_asked == 1:
                for path in (tmp_path / "finished/b.tif", *(tmp_path / "finished/.scenes").glob("*.json")):
                    if path.suffix == ".tif" or "b.tif" in path.read_text():
                        shutil.copy2(path, tmp_path / "out" / path.relative_to(tmp_path / "finished"))
            return super().collect(ticket, **more)

    assert scenes_predicted(tmp_path, Other()).num_written == 2
    assert known.num_asked == NUM_FILLED, "the first one"
    assert masks(tmp_path / "out") == masks(tmp_path / "finished")
    assert not (tmp_path / "out/.blocks").exists()


def test_blocks_of_a_scene_that_another_process_finishes_do_not_stay(tmp_path: Path, known: Known) -> None:
    """It was finished, and its blocks removed, while this process's workers still stored some of them."""
    write_scene(tmp_path / "scenes/a.tif")
    scenes_predicted(tmp_path, InProcess(), out="out")
    shutil.copytree(tmp_path / "out", tmp_path / "finished")
    shutil.rmtree(tmp_path / "out/.scenes")

    class Other(Two):
        def collect(self, ticket: Ticket, **more: Any) -> Any:
            found = super().collect(ticket, **more)
            if known.num_asked == NUM_FILLED:
                for path in (tmp_path / "finished/.scenes").glob("*.json"):
                    shutil.copy2(path, tmp_path / "out/.scenes")
                shutil.copy2(tmp_path / "finished/a.tif", tmp_path / "out")
            return found

    scenes_predicted(tmp_path, Other())
    assert not (tmp_path / "out/.blocks").exists() and masks(tmp_path / "out") == masks(tmp_path / "finished")


def test_blocks_that_are_stored_elsewhere_are_told(
    tmp_path: Path, known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be handed out again and again."""
    write_scene(tmp_path / "scenes/a.tif")
    executor = Two()
    monkeypatch.setattr(scene_blocks, "_predict_shard", lambda here, work, scene, numbers: None)
    with pytest.raises(UserError, match=r"000000\.map: expected to see what a worker has written.*all nodes share"):
        scenes_predicted(tmp_path, executor)
    assert len(executor.submitted) == 12


def test_a_damaged_block_is_predicted_again_by_a_worker(tmp_path: Path, known: Known) -> None:
    write_scene(tmp_path / "scenes/a.tif")
    scenes_predicted(tmp_path, InProcess(), out="alone")

    class Spoiling(Two):
        is_spoilt = False

        def collect(self, ticket: Ticket, **more: Any) -> Any:
            super().collect(ticket, **more)
            if known.num_asked == NUM_FILLED and not self.is_spoilt:
                self.is_spoilt = True
                block = max(tmp_path.rglob("*.map"), key=lambda path: path.stat().st_size)
                block.write_bytes(block.read_bytes()[:-5])

    heard = Heard()
    scenes_predicted(tmp_path, Spoiling(), progress=heard)
    assert len([note for note in heard.notes if note.startswith("damaged, and predicted again: ")]) == 1
    assert known.num_asked == NUM_FILLED + 1 and masks(tmp_path / "out") == masks(tmp_path / "alone")


def test_blocks_stay_claimed_until_workers_have_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scene(tmp_path / "scenes/a.tif")
    free: list[bool] = []

    def on_drop() -> None:
        (claims,) = tmp_path.rglob("*.claims")
        free.extend(claimed_elsewhere(claims, 1, 12))

    def stop(count: int) -> None:
        if count == 3:
            raise KeyboardInterrupt

    found = Known(on_block=stop)
    monkeypatch.setattr(images, "open_for_prediction", lambda run, device: found)
    with pytest.raises(KeyboardInterrupt):
        scenes_predicted(tmp_path, Two(on_drop))
    assert free == [False, False]


def test_a_damaged_scene_leaves_none_of_its_former_files(tmp_path: Path, known: Known) -> None:
    write_two(tmp_path / "scenes")
    scenes_predicted(tmp_path, Two(), probabilities=True)
    whole = (tmp_path / "scenes/b.tif").read_bytes()
    (tmp_path / "scenes/b.tif").write_bytes(whole[: len(whole) // 2])
    done = scenes_predicted(tmp_path, Two(), probabilities=True, skip_bad=True)
    assert done.num_written == 1 and [Path(problem.path).name for problem in done.bad] == ["b.tif"]
    assert sorted(masks(tmp_path / "out")) == ["a.probabilities.tif", "a.tif"]


# Ledgers -------------------------------------------------------------------------------------------------------------


def test_a_seal_of_another_process_is_taken_without_reading_the_file(tmp_path: Path) -> None:
    (tmp_path / "map").write_bytes(b"values")
    seal = Seal.of(tmp_path / "map")
    (tmp_path / "map").unlink()
    ledger = Ledger(tmp_path, tmp_path / "sums")
    ledger.add(tmp_path / "map", seal)
    assert Ledger(tmp_path, tmp_path / "sums")[tmp_path / "map"] == seal and not ledger.is_sound(tmp_path / "map")
