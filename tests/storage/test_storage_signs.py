"""One machine at a time: signs of life during long work, copies of a mirror, and how a command ends."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from maskloom.errors import UserError
from maskloom.files import write_bytes
from maskloom.run_directory import RunDirectory
from maskloom.run_lock import Holder
from maskloom.storage import publishing, remote, remote_lock
from maskloom.storage.mirror import Mirror
from maskloom.storage.places import working_run
from maskloom.storage.remote import Store, store_at
from maskloom.storage.remote_lock import LOCK_NAME, RemoteLock, TakenOver
from runs_at_urls import BUNDLE, MAP, begun, finish, in_memory, listed, predict_out_of_fold, train

pytest.importorskip("fsspec")


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with in_memory(tmp_path, monkeypatch) as place:
        yield place


@pytest.mark.parametrize("content", [b"", b"[" + b" " * 10**7, b"{}"])
def test_a_lock_object_that_nobody_wrote_is_no_more_than_that(
    url: str, tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a long one its first bytes are read."""
    store, lengths = store_at(url), list[int]()
    store.write(LOCK_NAME, content)
    read = Store.read_all

    def noted(self: Store, name: str, **options: int) -> bytes | None:
        found = read(self, name, **options)
        lengths.append(len(found or b""))
        return found

    monkeypatch.setattr(Store, "read_all", noted)
    (tmp_path / "mirror").mkdir()
    with pytest.raises(UserError, match="another process works there"):
        RemoteLock(store, tmp_path / "mirror").take()
    assert lengths and max(lengths) <= 2**16


def slow(monkeypatch: pytest.MonkeyPatch, method: str, name: str, seconds: float) -> threading.Event:
    """Makes a store's method take its time over an object ("": over all); returns what is set when it is called."""
    done, is_called = getattr(Store, method), threading.Event()

    def slowly(self: Store, *arguments: object) -> object:
        if not name or name in arguments:
            is_called.set()
            time.sleep(seconds)
        return done(self, *arguments)

    monkeypatch.setattr(Store, method, slowly)
    return is_called


def tried(url: str, folder: Path, after: threading.Event, seconds: float) -> tuple[threading.Thread, list[object]]:
    """Begins a thread in which another machine tries to take the lock, some time after an event."""
    found: list[object] = []

    def take() -> None:
        after.wait(10)
        time.sleep(seconds)
        try:
            folder.mkdir(exist_ok=True)
            found.append(RemoteLock(store_at(url), folder).take())
        except UserError as problem:
            found.append(str(problem))

    thread = threading.Thread(target=take)
    thread.start()
    return thread, found


def frequent_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes signs frequent and short-lived; their notes do not wait for the disk, which may take a second."""
    monkeypatch.setattr(remote_lock, "SIGN_SECONDS", 0.05)
    monkeypatch.setattr(remote_lock, "GONE_SECONDS", 1.0)
    monkeypatch.setattr(remote_lock, "write_json", lambda path, value: path.write_text(json.dumps(value)))


# Signs ---------------------------------------------------------------------------------------------------------------


def test_signs_are_given_while_much_is_published(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frequent_signs(monkeypatch)
    monkeypatch.setattr(publishing, "PUBLISH_SECONDS", 0.1)
    with working_run(url) as root:
        run = begun(root)
        is_begun = slow(monkeypatch, "upload", BUNDLE, 2.0)
        thread, found = tried(url, tmp_path / "other", is_begun, 1.6)
        train(run)
        thread.join()
    assert len(found) == 1 and "works there since" in str(found[0])
    assert BUNDLE in listed(url) and LOCK_NAME not in listed(url)


def test_signs_are_given_while_a_run_is_fetched(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "members/net/fold0/checkpoint.safetensors"
    with working_run(url) as root:
        write_bytes(begun(root).root / name, b"epoch 3")
    shutil.rmtree(Mirror.of(url, "run").folder)
    frequent_signs(monkeypatch)
    thread, found = tried(url, tmp_path / "other", slow(monkeypatch, "download", name, 2.0), 1.6)
    with working_run(url):
        thread.join()
    assert len(found) == 1 and "works there since" in str(found[0])


def test_who_lost_the_lock_while_publishing_stops_there(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_lock, "SIGN_SECONDS", 0.05)
    monkeypatch.setattr(remote_lock, "GONE_SECONDS", -1.0)
    with pytest.raises(TakenOver), working_run(url) as root:
        run = begun(root)
        is_begun = slow(monkeypatch, "upload", "", 0.1)
        thread, found = tried(url, tmp_path / "other", is_begun, 0.1)
        finish(run, "oof/net", **{f"oof/net/maps/{number}.map": b"map" for number in range(80)})
    thread.join()
    assert found == [False]
    there = listed(url)
    assert "stages/oof/net.json" not in there and len(there) < 80


def test_before_it_vouches_for_files_it_looks_whether_it_still_may(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = Store.upload

    def taken_meanwhile(self: Store, file: Path, name: str) -> None:
        upload(self, file, name)
        if name == MAP:
            monkeypatch.setattr(remote_lock, "GONE_SECONDS", -1.0)
            RemoteLock(store_at(url), tmp_path / "other").take()

    with pytest.raises(TakenOver), working_run(url) as root:
        run = begun(root)
        monkeypatch.setattr(Store, "upload", taken_meanwhile)
        predict_out_of_fold(run)
    assert MAP in listed(url) and not {"stages/oof/net.sums", "stages/oof/net.json"} & listed(url)


def test_nothing_of_asking_stays(url: str, tmp_path: Path) -> None:
    with working_run(url) as root:
        begun(root)
        with pytest.raises(UserError, match="works there since"):
            RemoteLock(store_at(url), tmp_path / "other").take()
    assert listed(url) == {"run.json"}


# Copies --------------------------------------------------------------------------------------------------------------


def moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this another machine."""
    present = Holder.present()
    monkeypatch.setattr(
        Holder, "present", classmethod(lambda cls: Holder(pid=1, host="copy", since=present.since, command=""))
    )


def test_a_copied_cache_is_another_machine(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Mirror.of(url, "run").folder
    lock = RemoteLock(store_at(url), folder)
    assert lock.take() is False
    shutil.copytree(folder, tmp_path / "copy")
    moved(monkeypatch)
    copy = RemoteLock(store_at(url), tmp_path / "copy")
    with pytest.raises(UserError, match="works there since"):
        copy.take()
    lock.check()
    monkeypatch.setattr(remote_lock, "GONE_SECONDS", -1.0)
    copy.take()
    copy.check()
    with pytest.raises(TakenOver):
        lock.check()


def test_an_old_copy_is_not_ahead_of_the_url(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = Mirror.of(url, "run")
    with working_run(url) as root:
        train(begun(root))
        shutil.copytree(tmp_path / "cache", tmp_path / "copy")  # a snapshot of the machine while it works
        predict_out_of_fold(RunDirectory(root))
    lock = RemoteLock(store_at(url), mirror.folder)
    lock.take()
    shutil.copy(mirror.folder / "signs.json", tmp_path / "copy" / mirror.folder.name)
    store_at(url).write(LOCK_NAME, lock._next_claim())  # it gave further signs, and was killed
    assert lock.was_last()
    monkeypatch.setattr(remote_lock, "GONE_SECONDS", -1.0)
    monkeypatch.setenv("MASKLOOM_CACHE", str(tmp_path / "copy"))
    moved(monkeypatch)
    before = listed(url) - {LOCK_NAME}
    with working_run(url) as theirs:
        assert theirs != root and (theirs / MAP).exists()
    assert listed(url) == before


def test_a_sign_that_is_just_being_written_is_read_again(url: str, tmp_path: Path) -> None:
    """As where a store writes files in place: half of one is nobody's, and would end the run."""
    store, slept = store_at(url), []
    lock = RemoteLock(store, tmp_path, sleep=lambda seconds: slept.append(store.write(LOCK_NAME, whole)))
    lock.take()
    whole = lock._next_claim()
    for half in (b"", whole[:40]):
        store.write(LOCK_NAME, half)
        lock.check()
    assert len(slept) == 2
    lock.release()
    assert LOCK_NAME not in listed(url)


# The end -------------------------------------------------------------------------------------------------------------


def test_after_a_signal_publishing_has_an_end(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "LAST_SECONDS", 0.3)
    with monkeypatch.context() as patch:
        with pytest.raises(KeyboardInterrupt), working_run(url) as root:
            begun(root)
            write_bytes(root / MAP, b"half")
            slow(patch, "upload", "", 1.5)
            began = time.monotonic()
            raise KeyboardInterrupt
        assert time.monotonic() - began < 1.3
        assert LOCK_NAME in listed(url)  # which says that more is to come from this machine
        for thread in threading.enumerate():
            if thread.name == "publish last":
                thread.join()
    assert LOCK_NAME in listed(url)
    with working_run(url):
        assert (root / MAP).read_bytes() == b"half"
    assert MAP in listed(url) and LOCK_NAME not in listed(url)


def test_an_error_has_all_the_time(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "LAST_SECONDS", 0.05)
    with pytest.raises(RuntimeError), working_run(url) as root:
        begun(root)
        write_bytes(root / MAP, b"half")
        slow(monkeypatch, "upload", "", 0.3)
        raise RuntimeError
    assert MAP in listed(url) and LOCK_NAME not in listed(url)


def test_a_pause_ends_when_less_is_waited() -> None:
    store = Store("memory://nothing", wait=60.0)
    store._answered = True

    def ask() -> None:
        raise ConnectionError("gone")

    def hurry() -> None:
        time.sleep(0.3)
        store.wait = 0.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "_FIRST_PAUSE", 30.0)
        threading.Thread(target=hurry).start()
        began = time.monotonic()
        with pytest.raises(UserError, match="expected the store to answer"):
            store._call("read", "x", ask)
        assert time.monotonic() - began < 5


def test_a_start_that_failed_leaves_it_told_who_is_ahead(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with working_run(url) as root:
        train(begun(root))
    lock = RemoteLock(store_at(url), Mirror.of(url, "run").folder)
    lock.take()  # it holds the lock, and is gone
    write_bytes(root / MAP, b"not yet published")
    with monkeypatch.context() as patch:

        def fail(self: Store, prefix: str = "") -> None:
            raise UserError("no answer")

        patch.setattr(Store, "listing", fail)
        with pytest.raises(UserError, match="no answer"), working_run(url):
            pass
    store_at(url).write("members/net/fold0/log.jsonl", b"{}\n")  # a publication was cut off here
    with working_run(url):
        assert (root / MAP).read_bytes() == b"not yet published"


def test_signs_that_could_not_be_given_are_no_others(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the store is away signs fail; when the process is killed then, its last one must still be known."""
    monkeypatch.setattr(remote_lock, "SIGN_SECONDS", 0.01)
    lock = RemoteLock(store_at(url), Mirror.of(url, "run").folder)
    lock.take()
    with monkeypatch.context() as patch:
        failed = threading.Semaphore(0)

        def fail(self: Store, name: str, **_: int) -> None:
            failed.release()
            raise UserError("no answer")

        patch.setattr(Store, "read_all", fail)
        lock.keep()
        for _ in range(3):
            assert failed.acquire(timeout=10)
        lock.leave()
        lock._thread.join()
    assert RemoteLock(store_at(url), Mirror.of(url, "run").folder).was_last()


def test_what_a_killed_publication_held_is_given_up(url: str) -> None:
    folder = Mirror.of(url, "run").folder
    left = folder / "publish-12345678"
    left.mkdir()
    (left / "0").write_bytes(b"x")
    with working_run(url) as root:
        begun(root)
    assert not left.exists()
