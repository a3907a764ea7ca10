"""A run's mirror to its URL, as the run grows: at the end of every stage, and now and then in between.

Objects that vouch for others are written after them, and removed before them: files, then checkpoints, then ledgers,
then what says of which attempt they are, then the markers of finished stages, then what says that the run is decided.
Whoever reads the URL at any moment, or after this process was killed at any moment, finds no marker whose files are not
there. Knows nothing about what stages do; of a run it knows what the names of its files say.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from maskloom.errors import UserError
from maskloom.integrity import read_sealed
from maskloom.storage.mirror import Known, Mirror
from maskloom.storage.placeholders import stands_in
from maskloom.storage.remote import LARGE, THREADS
from maskloom.storage.remote_lock import LOCK_NAME, RemoteLock, TakenOver
from maskloom.termination import kept, seconds_left

PUBLISH_SECONDS = 60.0
"""Between the ends of stages a run is published so often: a machine that is lost loses no more."""
LAST_WAIT_SECONDS = 5.0
"""For so long an unreachable store is waited for where the work ends by an error or a signal."""
LAST_SECONDS = 20.0
"""After a signal so much time is left for publishing; what is not done by then stays in the mirror."""
KEPT_SECONDS = 10.0
"""So much of the time after SIGTERM is kept for it, whatever the work takes to save its state."""

_FILE, _CHECKPOINT, _LEDGER, _ATTEMPT, _MARKER, _DECIDED = range(6)
_HELD = "publish-"

logger = logging.getLogger("maskloom.storage")


def rank(name: str) -> int:
    """Returns the place of a run's file in the order of publication: higher ones vouch for lower ones."""
    if name == "ensemble/decided.json":
        return _DECIDED
    if name.startswith("stages/"):
        return _MARKER if name.endswith(".json") else _LEDGER
    if name.endswith("/attempt.json"):  # the ledger and the files are of this attempt
        return _ATTEMPT
    return _CHECKPOINT if name.endswith("/checkpoint.safetensors") else _FILE


def is_published(name: str) -> bool:
    """Returns whether an object at a run's URL is one of its files, and no lock."""
    return not name.startswith(LOCK_NAME)


def finished_files(root: Path, names: Iterable[str]) -> set[str]:
    """Returns the files of finished stages, as those of their markers say that are among the names of a run's files."""
    found: set[str] = set()
    for name in names:
        if rank(name) == _MARKER:
            with suppress(UserError, OSError, KeyError, TypeError):
                found |= set(map(str, read_sealed(root / name)["files"]))
    return found


def never_removed(root: Path, names: Iterable[str]) -> set[str]:
    """Returns the files that no command removes: where they are gone from a mirror, the mirror lost them.

    A stage that is done again removes its marker before its files.
    """
    return {"run.json"} | finished_files(root, names)


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """A file as it was at one moment: ``file`` holds it, whatever becomes of the one in the run."""

    file: Path
    size: int
    mtime_ns: int


class Publisher:
    """Publishes one mirror, whose lock this process holds."""

    def __init__(self, mirror: Mirror, lock: RemoteLock) -> None:
        self._mirror, self._lock = mirror, lock
        self._busy = threading.Lock()
        self._is_ending, self._is_left = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._keep_on, name="publish", daemon=True)
        self.pid = os.getpid()

    def start(self) -> None:
        """Publishes now and then, in a thread of its own."""
        self._thread.start()

    def publish(self) -> None:
        """Makes the URL hold what the mirror holds.

        Raises ``TakenOver`` where somebody else works there by now, ``UserError`` where the store stays away.
        """
        with self._busy, self._held() as (snapshots, gone):
            self._publish(snapshots, gone)

    def finish(self) -> None:
        """Publishes what is left and gives the lock back; raises as ``publish`` does.

        The lock stays where not all was published: it then says whose mirror is ahead of the URL.
        """
        self._is_ending.set()
        self._thread.join()
        self.publish()
        with suppress(UserError, OSError):
            self._lock.release()

    def finish_within(self, seconds: float | None) -> bool:
        """Does what ``finish`` does, as far as that goes in so many seconds and without an error.

        Returns whether it came to an end.
        """

        def finish() -> None:
            with suppress(UserError, OSError):
                self.finish()

        thread = threading.Thread(target=finish, name="publish last", daemon=True)
        thread.start()
        thread.join(seconds)
        return not thread.is_alive()

    def leave(self) -> None:
        """Ends what is still going on, after the object that is being written."""
        self._is_ending.set()
        self._is_left.set()
        self._lock.leave()

    # What is published, and in which order

    def _publish(self, snapshots: Mapping[str, _Snapshot], gone: Collection[str]) -> None:
        store, known = self._mirror.store, dict(self._mirror.known())
        self._check()
        vouching = {name for name in gone if rank(name) > _FILE}
        vouching |= {name for name in snapshots if rank(name) >= _ATTEMPT and name in known}
        for _, names in _by_rank(vouching, reverse=True):
            store.remove(names)
        for place, names in _by_rank(snapshots):
            if place > _FILE:
                self._check()
            self._upload({name: snapshots[name] for name in names})
        left = [name for name in gone if name not in vouching]
        if left:
            self._check()
            store.remove(left)
        self._go_on()
        if snapshots or gone:
            found = store.look_up(list(snapshots), of=len(known))
            for name in gone:
                known.pop(name, None)
            for name, snapshot in snapshots.items():
                if name in found:
                    known[name] = Known(snapshot.size, found[name].tag, snapshot.mtime_ns)
            self._mirror.remember(known)

    def _check(self) -> None:
        """Raises unless the lock is held; asked before all that vouches for others is written, and all removals."""
        self._go_on()
        self._lock.check()

    def _go_on(self) -> None:
        """Raises where it is known that this process is to publish nothing more; asked before every object."""
        if self._lock.lost is not None:
            raise self._lock.lost
        if self._is_left.is_set():
            raise UserError(f"{self._mirror.url}: there was no time to publish all; start the same command again")

    def _upload(self, snapshots: Mapping[str, _Snapshot]) -> None:
        """Writes objects, small ones several at a time."""

        def upload(name: str) -> None:
            self._go_on()
            self._mirror.store.upload(snapshots[name].file, name)

        small = [name for name, snapshot in snapshots.items() if snapshot.size <= LARGE]
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(upload, small))
        for name in sorted(snapshots.keys() - set(small)):
            upload(name)

    # What is to be published

    @contextmanager
    def _held(self) -> Iterator[tuple[dict[str, _Snapshot], list[str]]]:
        """Yields what changed since it was last published, all held as it is now, and the names of what is gone.

        What vouches for others is looked at and held first: files may be newer than their ledger or checkpoint says, as
        after a process was killed, never older.
        """
        mirror, known, numbers = self._mirror, self._mirror.known(), count()
        folder = mirror.folder / f"{_HELD}{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        held: dict[str, _Snapshot] = {}

        def hold(name: str, facts: os.stat_result) -> None:
            if not stands_in(facts) and not (name in known and known[name].is_in(facts)):
                with suppress(FileNotFoundError):  # removed meanwhile
                    held[name] = _hold(mirror.root / name, folder / str(next(numbers)), name)

        try:
            for _, names in _by_rank((name for name, _ in mirror.files() if rank(name) > _FILE), reverse=True):
                for name in names:
                    with suppress(FileNotFoundError):
                        hold(name, (mirror.root / name).stat())
            there: set[str] = set()
            for name, facts in mirror.files():
                there.add(name)
                if rank(name) == _FILE:
                    hold(name, facts)
            gone = [name for name in known if name not in there and not (mirror.root / name).exists()]
            if gone:
                kept = never_removed(mirror.root, there)
                gone = [name for name in gone if name not in kept]
            yield {name: snapshot for name, snapshot in held.items() if name in there}, gone
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _keep_on(self) -> None:
        while not self._is_ending.wait(PUBLISH_SECONDS):
            try:
                self.publish()
            except TakenOver:
                return
            except (UserError, OSError):
                continue  # the next end of a stage says it, if it lasts until then


def _by_rank(names: Iterable[str], *, reverse: bool = False) -> list[tuple[int, list[str]]]:
    """Returns the names in groups of one rank, lower ranks first."""
    groups: dict[int, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(rank(name), []).append(name)
    return sorted(groups.items(), reverse=reverse)


def _hold(file: Path, target: Path, name: str) -> _Snapshot:
    """Returns a file as it is now: linked where files are replaced as a whole, copied where they grow."""
    if name.endswith((".sums", ".jsonl", ".csv")):
        facts = file.stat()
        shutil.copyfile(file, target)
        return _Snapshot(target, target.stat().st_size, facts.st_mtime_ns)
    try:
        os.link(file, target)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links
        shutil.copyfile(file, target)
        os.utime(target, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    facts = target.stat()
    return _Snapshot(target, facts.st_size, facts.st_mtime_ns)


_publishers: dict[Path, Publisher] = {}
"""Of the runs that this process works on, by the folders of their mirrors."""


def publish(root: Path) -> None:
    """Publishes the run in a folder where this process works on it for a URL; for any other folder does nothing."""
    publisher = _publishers.get(root)
    if publisher is not None and publisher.pid == os.getpid():
        publisher.publish()


@contextmanager
def publishing(mirror: Mirror, lock: RemoteLock) -> Iterator[None]:
    """Publishes the mirror while the block runs, and at its end, whatever that is; then gives the lock back."""
    for left in mirror.folder.glob(f"{_HELD}*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    publisher, wait = Publisher(mirror, lock), mirror.store.wait
    _publishers[mirror.root] = publisher
    publisher.start()
    try:
        with kept(KEPT_SECONDS):
            yield
        publisher.finish()
    except BaseException as problem:
        mirror.store.wait = min(wait, LAST_WAIT_SECONDS)  # and so it stays for what could not be ended
        if publisher.finish_within(None if isinstance(problem, Exception) else seconds_left(LAST_SECONDS)):
            mirror.store.wait = wait
        else:
            logger.warning("%s: no time to publish all; the same command goes on with it on this machine", mirror.url)
        raise
    finally:
        publisher.leave()
        del _publishers[mirror.root]
