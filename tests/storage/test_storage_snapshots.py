"""What a publication holds while the run goes on, in which order it is written and removed, and what that costs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maskloom.files import write_bytes, write_json
from maskloom.integrity import Ledger, read_sealed
from maskloom.run_directory import RunDirectory
from maskloom.storage.mirror import Mirror
from maskloom.storage.places import working_run
from maskloom.storage.publishing import Publisher, publish
from maskloom.storage.remote import Found, Store, store_at
from maskloom.storage.remote_lock import LOCK_NAME
from runs_at_urls import CHECKPOINT, MAP, begun, elsewhere, finish, in_memory, listed, predict_out_of_fold, recorded

pytest.importorskip("fsspec")

FOLD = "members/net/fold0"
BEST = f"{FOLD}/best.safetensors"


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with in_memory(tmp_path, monkeypatch) as place:
        yield place


def meanwhile(monkeypatch: pytest.MonkeyPatch, number: int, after: str, act: Callable[[], object]) -> None:
    """Has something done in the middle of a scan of the mirror, the ``number``-th from now, in which names ascend."""
    files, scans = Mirror.files, [0]

    def scanned(self: Mirror) -> Iterator[tuple[str, os.stat_result]]:
        scans[0] += 1
        is_acting, done = scans[0] == number, ""
        while left := sorted(name for name, _ in files(self) if name > done):
            if is_acting and left[0] > after:
                act()
                is_acting, done = False, after
                continue
            done = left[0]
            yield done, (self.root / done).stat()

    monkeypatch.setattr(Mirror, "files", scanned)


@pytest.mark.parametrize("scan", [1, 2])
def test_a_checkpoint_is_never_newer_than_the_network_beside_it(
    url: str, monkeypatch: pytest.MonkeyPatch, scan: int
) -> None:
    def end_epoch(number: int) -> None:
        write_bytes(root / BEST, b"epoch %d" % number)
        write_bytes(root / FOLD / CHECKPOINT, b"epoch %d" % number)

    with working_run(url) as root:
        begun(root)
        end_epoch(4)
        publish(root)
        write_bytes(root / FOLD / CHECKPOINT, b"epoch 5")  # which was no better
        with monkeypatch.context() as patch:
            meanwhile(patch, scan, BEST, lambda: end_epoch(6))
            publish(root)
        best, checkpoint = (store_at(url).read_all(name) for name in (BEST, f"{FOLD}/{CHECKPOINT}"))
        assert best == (b"epoch 6" if checkpoint == b"epoch 6" else b"epoch 4")


@pytest.mark.parametrize("scan", [1, 2])
def test_a_marker_that_is_written_meanwhile_waits_for_its_files(
    url: str, monkeypatch: pytest.MonkeyPatch, scan: int
) -> None:
    with working_run(url) as root:
        run = begun(root)
        write_json(root / "z.json", {})
        publish(root)

        def end_stage() -> None:
            write_bytes(root / MAP, b"map")
            ledger = run.ledger("oof/net")
            ledger.seal([root / MAP])
            ledger.write()
            write_json(run.marker("oof/net"), {"files": [MAP], "fingerprint": "mark"})

        with monkeypatch.context() as patch:
            meanwhile(patch, scan, "oof~", end_stage)
            publish(root)
        there = listed(url)
        assert MAP in there or "stages/oof/net.json" not in there


class Killed(BaseException):
    pass


def killed_after(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Lets so many objects be written or removed, and no more."""
    left = [number]

    def counted(method: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return method(*arguments)

        return call

    for name in ("upload", "remove"):
        monkeypatch.setattr(Store, name, counted(getattr(Store, name)))


@pytest.mark.parametrize("number", range(9))
def test_wherever_a_publication_ends_no_attempt_is_taken_for_another(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Maps of an attempt from other beginnings must not count as those of the present one, on an empty machine."""

    def attempt(run: RunDirectory, mark: str, name: str) -> None:
        run.begin("oof/net", run.oof("net"), mark)
        write_bytes(run.oof_map("net", name), mark.encode())
        run.ledger("oof/net").add(run.oof_map("net", name))

    monkeypatch.setattr(Publisher, "finish_within", lambda self, seconds: True)  # as of a process that is gone
    with pytest.raises(Killed), working_run(url) as root:
        run = begun(root)
        attempt(run, "one", "a")
        publish(root)
        attempt(run, "two", "b")
        with monkeypatch.context() as patch:
            killed_after(patch, number)
            publish(root)
            raise Killed  # after all of it
    store_at(url).remove([LOCK_NAME])
    with elsewhere(tmp_path, monkeypatch), working_run(url) as theirs:
        run = RunDirectory(theirs)
        run.begin("oof/net", run.oof("net"), "two")
        for name in run.ledger("oof/net").names():
            assert not (theirs / name).exists() or run.checked(theirs / name).read_bytes() == b"two"


def test_a_checkpoint_that_is_gone_goes_before_files_of_the_next_training(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with working_run(url) as root:
        begun(root)
        write_bytes(root / BEST, b"epoch 7")
        write_bytes(root / FOLD / CHECKPOINT, b"epoch 7")
        publish(root)
        (root / FOLD / CHECKPOINT).unlink()
        write_bytes(root / BEST, b"epoch 1")
        with recorded(monkeypatch) as done:
            publish(root)
    assert done == [f"-{FOLD}/{CHECKPOINT}", BEST]


def test_files_go_after_the_checkpoint_that_needs_them_no_more(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with working_run(url) as root:
        begun(root)
        write_bytes(root / FOLD / "epochs" / "3.safetensors", b"epoch 3")
        write_bytes(root / FOLD / CHECKPOINT, b"epoch 4")
        publish(root)
        write_bytes(root / FOLD / CHECKPOINT, b"epoch 5")
        (root / FOLD / "epochs" / "3.safetensors").unlink()
        with recorded(monkeypatch) as done:
            publish(root)
    assert done == [f"{FOLD}/{CHECKPOINT}", f"-{FOLD}/epochs/3.safetensors"]


def test_what_comes_and_goes_during_a_scan_ends_nothing(url: str) -> None:
    with working_run(url) as root:
        for folder in ("a", "b", "c"):
            write_bytes(root / folder / "x", b"x")
        scan = Mirror.of(url, "run").files()
        first, _ = next(scan)
        for folder in ("a", "b", "c"):
            shutil.rmtree(root / folder)
        assert {name for name, _ in scan} <= {"a/x", "b/x", "c/x"} - {first}


def test_a_file_that_a_scan_missed_is_not_removed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems may leave a name out of a listing while it is renamed over."""
    with working_run(url) as root:
        write_bytes(begun(root).root / MAP, b"map")
        publish(root)
        files = Mirror.files
        with monkeypatch.context() as patch:
            patch.setattr(Mirror, "files", lambda self: (each for each in files(self) if each[0] != MAP))
            publish(root)
            assert MAP in listed(url)


# What it costs -------------------------------------------------------------------------------------------------------


def test_a_small_publication_lists_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with working_run(url) as root:
        predict_out_of_fold(begun(root))
        with monkeypatch.context() as patch:

            def refuse(self: Store, prefix: str = "") -> dict[str, Found]:
                raise AssertionError("listed")

            patch.setattr(Store, "listing", refuse)
            write_json(root / "status" / "one.json", {})
            publish(root)
        with recorded(monkeypatch) as done:
            publish(root)
        assert done == [] and "status/one.json" in listed(url)


def test_many_objects_are_looked_up_by_a_listing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_at(url)
    asked: list[str] = []
    names = [f"{number}.map" for number in range(30)]
    for name in names:
        store.write(name, name.encode())
    stat, listing = Store.stat, Store.listing

    def asked_for(self: Store, name: str = "") -> Found | None:
        asked.append(name)
        return stat(self, name)

    def listed_all(self: Store, prefix: str = "") -> dict[str, Found]:
        asked.append("")
        return listing(self, prefix)

    monkeypatch.setattr(Store, "stat", asked_for)
    monkeypatch.setattr(Store, "listing", listed_all)
    few = store.look_up(names[:3], of=30)
    assert sorted(asked) == sorted(names[:3]) and {name: few[name].size for name in few} == dict.fromkeys(few, 5)
    asked.clear()
    many = store.look_up(names, of=30)
    assert asked == [""] and all(many[name] == few[name] for name in few)
    assert store.look_up(["none"], of=30) == {}


def test_what_is_published_is_what_the_ledger_says(url: str) -> None:
    with working_run(url) as root:
        finish(begun(root), "oof/net", **{f"oof/net/maps/{number}.map": b"%d" % number for number in range(40)})
        ledger = Ledger(root, root / "stages/oof/net.sums")
        assert read_sealed(root / "stages/oof/net.json")["files"] == sorted(ledger.names())
        assert set(ledger.names()) < listed(url)
