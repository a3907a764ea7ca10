"""A run's mirror to its URL, as the run grows: at the end of every stage, and now and then in between.

Objects that vouch for others are written after them, and removed before them: files, then checkpoints, then ledgers,
then the markers of finished stages, then what says that the run is decided. Whoever reads the URL at any moment, or
after this process was killed at any moment, finds no marker whose files are not there. Knows nothing about what stages
do; of a run it knows what the names of its files say.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from maskloom.errors import UserError
from maskloom.storage.mirror import Known, Mirror
from maskloom.storage.placeholders import stands_in
from maskloom.storage.remote import LARGE, THREADS
from maskloom.storage.remote_lock import LOCK_NAME, SIGN_SECONDS, RemoteLock, TakenOver

PUBLISH_SECONDS = 60.0
"""Between the ends of stages a run is published so often: a machine that is lost loses no more."""
LAST_WAIT_SECONDS = 5.0
"""For so long an unreachable store is waited for where the work ends by an error or a signal."""

_FILE, _CHECKPOINT, _LEDGER, _MARKER, _DECIDED = range(5)


def rank(name: str) -> int:
    """Returns the place of a run's file in the order of publication: higher ones vouch for lower ones."""
    if name == "ensemble/decided.json":
        return _DECIDED
    if name.startswith("stages/"):
        return _MARKER if name.endswith(".json") else _LEDGER
    return _CHECKPOINT if name.endswith("/checkpoint.safetensors") else _FILE


def is_published(name: str) -> bool:
    """Returns whether an object at a run's URL is one of its files, and no lock."""
    return not name.startswith(LOCK_NAME)


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
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_on, name="publish", daemon=True)
        self._taken: TakenOver | None = None
        self.pid = os.getpid()

    def start(self) -> None:
        """Publishes now and then, and gives signs of life, in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()

    def publish(self) -> None:
        """Makes the URL hold what the mirror holds.

        Raises ``TakenOver`` where somebody else works there by now, ``UserError`` where the store stays away.
        """
        with self._busy:
            if self._taken is not None:
                raise self._taken
            self._lock.check()
            with self._snapshots() as snapshots:
                self._publish(snapshots)

    def _publish(self, snapshots: dict[str, _Snapshot]) -> None:
        store, known = self._mirror.store, dict(self._mirror.known())
        local = {name for name, _ in self._mirror.files()}
        gone = [name for name in known if name not in local]
        changed = sorted(snapshots, key=lambda name: (rank(name), name))
        taken_back = [name for name in (*changed, *gone) if rank(name) >= _MARKER and name in known]
        for place in (_DECIDED, _MARKER):
            store.remove([name for name in taken_back if rank(name) == place])
        small = [name for name in changed if rank(name) == _FILE and snapshots[name].size <= LARGE]
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda name: self._upload(snapshots[name], name), small))
        for name in changed:
            if name not in small:
                self._upload(snapshots[name], name)
        store.remove([name for name in gone if name not in taken_back])
        if not snapshots and not gone:
            return
        found = store.listing()
        for name in gone:
            known.pop(name, None)
        for name, snapshot in snapshots.items():
            if name in found:
                known[name] = Known(snapshot.size, found[name].tag, snapshot.mtime_ns)
        self._mirror.remember(known)

    def _upload(self, snapshot: _Snapshot, name: str) -> None:
        self._mirror.store.upload(snapshot.file, name)

    @contextmanager
    def _snapshots(self) -> Iterator[dict[str, _Snapshot]]:
        """Yields what changed since it was last published, all held as it is now.

        What vouches for others is held first: files may be newer than their ledger or checkpoint says, as after a
        process was killed, never older.
        """
        folder = self._mirror.folder / f"publish-{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        known = self._mirror.known()
        changed = []
        for name, facts in self._mirror.files():
            before = known.get(name)
            is_same = before is not None and (before.size, before.mtime_ns) == (facts.st_size, facts.st_mtime_ns)
            if not is_same and not stands_in(facts):
                changed.append(name)
        changed.sort(key=lambda name: (-rank(name), name))
        held: dict[str, _Snapshot] = {}
        try:
            for number, name in enumerate(changed):
                with suppress(FileNotFoundError):  # removed meanwhile
                    held[name] = _hold(self._mirror.root / name, folder / str(number), name)
            yield held
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _keep_on(self) -> None:
        published = time.monotonic()
        while not self._over.wait(SIGN_SECONDS):
            try:
                self._lock.sign()
                if time.monotonic() - published >= PUBLISH_SECONDS and not self._over.is_set():
                    self.publish()
                    published = time.monotonic()
            except TakenOver as problem:
                self._taken = problem
                return
            except (UserError, OSError):
                continue  # the next end of a stage says it, if it lasts until then


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
    publisher, wait = Publisher(mirror, lock), mirror.store.wait
    _publishers[mirror.root] = publisher
    publisher.start()
    try:
        yield
        publisher.stop()
        publisher.publish()
    except TakenOver:
        raise
    except BaseException:
        mirror.store.wait = min(wait, LAST_WAIT_SECONDS)
        publisher.stop()
        with suppress(UserError, OSError):
            publisher.publish()
        raise
    finally:
        publisher.stop()
        del _publishers[mirror.root]
        with suppress(UserError, OSError):
            lock.release()
        mirror.store.wait = wait
