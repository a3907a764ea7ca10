"""Two commands on one machine: who reads leaves alone what another writes, and works on with what it listed."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from maskloom.files import write_bytes
from maskloom.run_directory import RunDirectory
from maskloom.storage.mirror import Mirror
from maskloom.storage.placeholders import at_hand, is_placeholder
from maskloom.storage.places import local_data, readable_run, working_run
from maskloom.storage.ranges import open_part
from maskloom.storage.remote import Changed, Found, Store, store_at
from runs_at_urls import MAP, begun, elsewhere, in_memory, listed, predict_out_of_fold, train

pytest.importorskip("fsspec")


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with in_memory(tmp_path, monkeypatch) as place:
        yield place


def test_who_reads_undoes_nothing_of_who_begins_to_work(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with elsewhere(tmp_path, monkeypatch), working_run(url) as root:
        train(begun(root))
    has_listed, go_on, has_written = threading.Event(), threading.Event(), threading.Event()
    listing, waits = Store.listing, [True]

    def listed_slowly(self: Store, prefix: str = "") -> dict[str, Found]:
        found = listing(self, prefix)
        if waits.pop() if waits else False:  # the reader's, which is the first
            has_listed.set()
            go_on.wait(10)
        return found

    monkeypatch.setattr(Store, "listing", listed_slowly)
    seen: list[object] = []

    def work() -> None:
        with working_run(url) as root:
            predict_out_of_fold(RunDirectory(root))
            has_written.set()
            reader.join(10)
            seen.append((root / MAP).read_bytes())

    reader = threading.Thread(target=lambda: readable_run(url))
    reader.start()
    assert has_listed.wait(10)
    worker = threading.Thread(target=work)
    worker.start()
    has_written.wait(0.3)  # it must not have: the reader is looking through the mirror
    go_on.set()
    reader.join(10)
    worker.join(10)
    assert seen == [b"map"] and {MAP, "stages/oof/net.json"} <= listed(url)


def test_what_is_written_while_it_is_fetched_stays(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with elsewhere(tmp_path, monkeypatch), working_run(url) as root:
        predict_out_of_fold(begun(root))
    root = readable_run(url)
    download = Store.download

    def late(self: Store, name: str, target: Path, found: Found) -> None:
        download(self, name, target, found)
        write_bytes(root / MAP, b"made anew by another process")

    monkeypatch.setattr(Store, "download", late)
    with pytest.raises(Changed):
        at_hand(root / MAP)
    assert (root / MAP).read_bytes() == b"made anew by another process"


def put(url: str, **files: bytes) -> None:
    for name, content in files.items():
        store_at(url).write(name, content)


def other_command(url: str) -> None:
    """Lists the data in another process of this machine."""
    process = multiprocessing.get_context("fork").Process(target=local_data, args=(url,))
    process.start()
    process.join(30)
    assert process.exitcode == 0


def test_what_another_command_lists_is_not_taken_for_what_this_one_listed(url: str) -> None:
    put(url, **{f"{name}.png": name.encode() * 10 for name in "abcd"})
    root = local_data(url)
    assert at_hand(root / "b.png").read_bytes() == b"b" * 10
    put(url, **{"a.png": b"A" * 10, "b.png": b"B" * 10, "e.png": b"e" * 10})
    store_at(url).remove(["c.png"])
    other_command(url)
    assert is_placeholder(root / "b.png")
    for name in "abc":
        with pytest.raises(Changed, match=rf"{name}\.png: changed or removed"):
            at_hand(root / f"{name}.png")
    with pytest.raises(Changed), open_part(root / "a.png") as stream:
        stream.read(1)
    assert at_hand(root / "d.png").read_bytes() == b"d" * 10  # of the same object still
    local_data(url)
    assert at_hand(root / "b.png").read_bytes() == b"B" * 10 and at_hand(root / "e.png").read_bytes() == b"e" * 10


def test_a_worker_works_with_what_its_parent_listed(url: str) -> None:
    put(url, **{"a.png": b"a" * 10})
    root = local_data(url)
    put(url, **{"a.png": b"A" * 10})
    other_command(url)
    outcome = multiprocessing.get_context("fork").SimpleQueue()

    def read() -> None:
        try:
            outcome.put(at_hand(root / "a.png").read_bytes())
        except Changed as problem:
            outcome.put(problem)  # it goes through a queue, as those of loader workers do

    process = multiprocessing.get_context("fork").Process(target=read)
    process.start()
    problem = outcome.get()
    process.join(30)
    assert isinstance(problem, Changed)
    assert str(problem) == str(Changed(f"{url}/a.png"))


def test_files_of_runs_follow_what_is_known_now(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with elsewhere(tmp_path, monkeypatch), working_run(url) as root:
        predict_out_of_fold(begun(root))
    root = readable_run(url)
    assert at_hand(root / MAP).read_bytes() == b"map"
    with elsewhere(tmp_path, monkeypatch), working_run(url) as theirs:
        predict_out_of_fold(RunDirectory(theirs), b"another map")
    assert readable_run(url) == root
    assert at_hand(root / MAP).read_bytes() == b"another map" and Mirror.at(root).kind == "run"
