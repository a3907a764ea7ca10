"""A folder of this machine that stands for one at a URL: every object has a file there, fetched when it is read.

A mirror lies in ``mirrored`` below a folder of the cache; beside it lie what it mirrors (``mirror.json``) and what is
known of the objects (``known.json``). A fetched file is kept until the object changes or, if it is a picture, the cache
is over its budget: what was not used for longest is then given up. Knows nothing about what files hold.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Literal

from maskloom.errors import UserError
from maskloom.files import atomic_path, read_json, write_text
from maskloom.integrity import read_sealed, write_sealed
from maskloom.storage.placeholders import MIRRORED, STATE, forget_roots, place, stands_in
from maskloom.storage.remote import THREADS, Changed, Found, Store, is_left_alone, store_at
from maskloom.storage.urls import cache_folder, check_name, mirror_folder

BUDGET_VARIABLE = "MASKLOOM_CACHE_SIZE"
"""The environment variable with the bytes that fetched data may take, such as 200G."""
BUDGET = 50 * 2**30
"""What holds unless it is set: 50 GiB, or half of the room there is, whichever is less."""
PICTURES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")
"""How the names of files end that are fetched when they are read, and may be given up afterwards."""
RECENT_SECONDS = 300.0
"""What was used since is kept whatever the budget: somebody may be about to read it."""
Kind = Literal["data", "run"]

_KNOWN = "known.json"
_ALONE = "alone.lock"
_FORMAT = 1
_TOUCH_SECONDS = 60.0  # a use is noted no more often than that
_SHARE = 20  # the cache is looked through after a 20th of its budget was fetched
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

logger = logging.getLogger("maskloom.storage")


@dataclass(frozen=True, slots=True)
class Known:
    """What was known of an object when the mirror last agreed with it, and the time of change its file got."""

    size: int
    tag: str
    mtime_ns: int

    def is_of(self, other: Found | Known | None) -> bool:
        """Returns whether what a store lists, or another process knows, is still this object."""
        return other is not None and (self.size, self.tag) == (other.size, other.tag)

    def is_in(self, there: os.stat_result) -> bool:
        """Returns whether a file of the mirror is what it was then, by its size and time of change."""
        return (self.size, self.mtime_ns) == (there.st_size, there.st_mtime_ns)


class Mirror:
    """The mirror of one URL. Threads and processes may fetch at once; who refreshes it must be ``alone``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / MIRRORED
        try:
            state = read_sealed(folder / STATE)
            self.url, self.kind = str(state["url"]), state["kind"]
        except (UserError, KeyError) as error:
            raise _damaged(folder, STATE) from error
        self._locks = [Lock() for _ in range(64)]
        self._unlooked = 0

    @classmethod
    def of(cls, url: str, kind: Kind, part: str = "") -> Mirror:
        """Returns the mirror of a URL, made empty where there is none yet.

        ``part`` names the one file for which it is; what else lies at the URL has no place in it.
        """
        folder = mirror_folder(f"{url}/{part}" if kind == "data" else f"{url}#run")
        if not (folder / STATE).is_file():
            (folder / MIRRORED).mkdir(parents=True, exist_ok=True)
            write_sealed(folder / STATE, {"format": _FORMAT, "url": url, "kind": kind})
            forget_roots()
        return cls.at(folder / MIRRORED)

    @classmethod
    def at(cls, root: Path) -> Mirror:
        """Returns this process's mirror whose files lie in ``root``."""
        key = (os.getpid(), root)
        if key not in _mirrors:
            _mirrors[key] = cls(root.parent)
        return _mirrors[key]

    @property
    def store(self) -> Store:
        """The objects."""
        return store_at(self.url)

    # What is known

    def known(self) -> dict[str, Known]:
        """Returns what is known of the objects, by name; read again where another process has written it."""
        stamp = self._stamp()
        if stamp is None:
            return {}
        if self.root not in _read or _read[self.root][0] != stamp:
            try:
                values = read_json(self.folder / _KNOWN)
                known = {
                    name: Known(int(size), str(tag), int(mtime_ns)) for name, (size, tag, mtime_ns) in values.items()
                }
            except (UserError, AttributeError, TypeError, ValueError) as error:
                raise _damaged(self.folder, _KNOWN) from error
            _read[self.root] = stamp, known
        return _read[self.root][1]

    def listed(self) -> dict[str, Known]:
        """Returns what this process works with: what it listed itself, or found to be known when it first asked.

        Of data another process may list another state meanwhile; of a run what is known now counts.
        """
        known = self.known()
        return known if self.kind == "run" else _listed.setdefault(self.root, known)

    def remember(self, known: Mapping[str, Known]) -> None:
        """Replaces what is known of the objects."""
        values = {name: (facts.size, facts.tag, facts.mtime_ns) for name, facts in known.items()}
        write_text(self.folder / _KNOWN, json.dumps(values))  # without indents, which take twenty times as long
        stamp = self._stamp()
        if stamp is not None:
            _read[self.root] = stamp, dict(known)

    def _stamp(self) -> tuple[int, int] | None:
        """Returns what tells one writing of ``known.json`` from another; None where there is none."""
        try:
            facts = (self.folder / _KNOWN).stat()
        except FileNotFoundError:
            return None
        return facts.st_ino, facts.st_mtime_ns  # a file that is written anew is another one

    # Agreeing with the store

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps others of this machine from refreshing the mirror while the block runs; waits until it can."""
        stream = os.open(self.folder / _ALONE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.warning("%s: another command looks through it just now; waiting for that", self.url)
                fcntl.flock(stream, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in _NO_LOCKS:  # where there are none, runs are refused before
                    raise
            yield
        finally:
            os.close(stream)

    def refresh(self, found: Mapping[str, Found], times: Mapping[str, int] | None = None) -> None:
        """Makes the mirror agree with what a store lists: changed objects get placeholders, others' files go.

        So do files that are no longer what was fetched. ``times`` are the times of change that files get, where those
        are not the objects'. A fetched file of an object that did not change stays.
        """
        known, times = self.known(), times or {}
        local = dict(self.files())
        now: dict[str, Known] = {}
        for name, facts in found.items():
            before, there, path = known.get(name), local.pop(name, None), self.root / name
            if before is not None and there is not None and before.is_of(facts) and before.is_in(there):
                mtime_ns = times.get(name, there.st_mtime_ns)
                if there.st_mtime_ns != mtime_ns:
                    os.utime(path, ns=(there.st_atime_ns, mtime_ns))
                    mtime_ns = path.stat().st_mtime_ns
            else:
                self._make_room(name)
                mtime_ns = place(path, facts.size, times.get(name, facts.modified_ns))
            now[name] = Known(facts.size, facts.tag, mtime_ns)
        for name in local:
            (self.root / name).unlink(missing_ok=True)
        if now != known:
            self.remember(now)
        _listed[self.root] = now

    def _make_room(self, name: str) -> None:
        """Removes what stands where a file or one of its folders is to be."""
        path = self.root / name
        if path.is_dir():
            for folder, _, files in os.walk(path, topdown=False):
                for file in files:
                    Path(folder, file).unlink()
                Path(folder).rmdir()
        for above in path.parents:
            if above == self.root:
                break
            if above.is_file():
                above.unlink()

    def files(self) -> Iterator[tuple[str, os.stat_result]]:
        """Yields the names of the mirror's files, placeholders among them, and their facts; no temporary ones.

        What comes and goes meanwhile may be among them or not.
        """
        waiting = [("", self.root)]
        while waiting:
            prefix, folder = waiting.pop()
            with suppress(FileNotFoundError), os.scandir(folder) as entries:  # a folder may be removed meanwhile
                for entry in entries:
                    if is_left_alone(entry.name):
                        continue
                    with suppress(FileNotFoundError):  # and so may a file
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append((f"{prefix}{entry.name}/", Path(entry.path)))
                        elif entry.is_file(follow_symlinks=False):
                            yield prefix + entry.name, entry.stat(follow_symlinks=False)

    # Fetching

    def fetch(self, path: Path) -> None:
        """Fetches the content of a file whose placeholder is there; of any other file only notes that it is used.

        Raises ``Changed`` where the object is no longer the one that was listed, also by another process since.
        """
        with self._locks[hash(path) % len(self._locks)]:
            listed, known = self.listed(), self.known()
            name = path.relative_to(self.root).as_posix()
            if listed is not known and name in listed and not listed[name].is_of(known.get(name)):
                raise Changed(self.store.place(name))
            try:
                facts = path.stat()
            except OSError:
                return
            if not stands_in(facts):
                self._touch(path, facts)
                return
            now = known.get(check_name(self.url, name))
            if now is None or now.size != facts.st_size:
                raise Changed(self.store.place(name))
            with atomic_path(path) as temporary:
                self.store.download(name, temporary, Found(now.size, now.tag, now.mtime_ns))
                os.utime(temporary, ns=(time.time_ns(), facts.st_mtime_ns))
                if not _is_still(path, facts):  # what was written there meanwhile is not undone
                    raise Changed(self.store.place(name))
        self._unlooked += facts.st_size
        if self.kind == "data" and self._unlooked > budget() // _SHARE:
            self._unlooked = 0
            keep_within_budget()

    def fetch_all(self, names: Iterable[str]) -> None:
        """Fetches several files at a time."""
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda name: self.fetch(self.root / name), names))

    def _touch(self, path: Path, facts: os.stat_result) -> None:
        now = time.time_ns()
        if self.kind == "data" and stat.S_ISREG(facts.st_mode) and abs(now - facts.st_atime_ns) > _TOUCH_SECONDS * 1e9:
            with suppress(OSError):
                os.utime(path, ns=(now, facts.st_mtime_ns))


_mirrors: dict[tuple[int, Path], Mirror] = {}
_read: dict[Path, tuple[tuple[int, int], dict[str, Known]]] = {}
"""What was known when a mirror's file was last read, and of which writing that was. Forked processes begin with it."""
_listed: dict[Path, dict[str, Known]] = {}
"""What this process, or the one it was forked from, works with of each mirror of data."""


def _is_still(path: Path, facts: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), facts)
    except OSError:
        return False


def _damaged(folder: Path, name: str) -> UserError:
    return UserError(
        f"{folder / name}: expected what is known of a URL whose files are kept here, found a damaged file; "
        f"move {folder} away, and what is at the URL is fetched anew"
    )


def budget(fetched: int = 0) -> int:
    """Returns the bytes that fetched data may take in the cache, as the environment says.

    Where it does not, they depend on the disk; ``fetched`` are those that it holds already.
    """
    text = os.environ.get(BUDGET_VARIABLE, "")
    if not text:
        there = next(folder for folder in (cache_folder(), *cache_folder().parents) if folder.is_dir())
        return min(BUDGET, (shutil.disk_usage(there).free + fetched) // 2)
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise UserError(f"{BUDGET_VARIABLE}={text}: expected bytes, such as 200G, for the data that is kept locally")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def keep_within_budget() -> int:
    """Returns the bytes of fetched data in the cache, after those not used for longest were given up for the budget.

    Only pictures are: whoever reads them asks for them, while tables and settings may be read unasked. Runs are not
    touched, nor files used in the last ``RECENT_SECONDS``: what is in use may go beyond the budget.
    """
    pictures: list[tuple[float, int, Path, int]] = []
    total = 0
    for state in cache_folder().glob(f"*/{STATE}"):
        with suppress(UserError, OSError, KeyError):
            mirror = Mirror.at(state.parent / MIRRORED)
            if mirror.kind == "data":
                for name, facts in mirror.files():
                    if not stands_in(facts) and facts.st_size:
                        total += facts.st_size
                        if name.lower().endswith(PICTURES):
                            pictures.append((facts.st_atime, facts.st_size, mirror.root / name, facts.st_mtime_ns))
    most, now = budget(total), time.time()
    # A use that is still to come was before the clock was set back: whoever uses it again, says so.
    pictures = [(each[0] if each[0] <= now + _TOUCH_SECONDS else 0.0, *each[1:]) for each in pictures]
    for used, size, path, mtime_ns in sorted(pictures) if total > most else ():
        if total <= most * 0.9 or used > now - RECENT_SECONDS:
            break
        place(path, size, mtime_ns)
        total -= size
    return total
