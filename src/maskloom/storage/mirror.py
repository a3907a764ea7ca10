"""A folder of this machine that stands for one at a URL: every object has a file there, fetched when it is read.

A mirror lies in ``mirrored`` below a folder of the cache; beside it lie what it mirrors (``mirror.json``) and what is
known of the objects (``known.json``). A fetched file is kept until the object changes or the cache is over its budget:
what was not used for longest is then given up. Knows nothing about what files hold.
"""

from __future__ import annotations

import os
import re
import stat
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Literal

from maskloom.errors import UserError
from maskloom.files import TEMPORARY_PREFIX, atomic_path, read_json, write_json
from maskloom.integrity import read_sealed, write_sealed
from maskloom.run_lock import LOCK
from maskloom.storage.placeholders import MIRRORED, STATE, forget_roots, place, stands_in
from maskloom.storage.remote import THREADS, Changed, Found, Store, store_at
from maskloom.storage.urls import cache_folder, check_name, mirror_folder

BUDGET_VARIABLE = "MASKLOOM_CACHE_SIZE"
"""The environment variable with the bytes that fetched data may take, such as 200G."""
BUDGET = 50 * 2**30
"""What holds unless it is set: 50 GiB."""
RECENT_SECONDS = 300.0
"""What was used since is kept whatever the budget: somebody may be about to read it."""
Kind = Literal["data", "run"]

_KNOWN = "known.json"
_FORMAT = 1
_TOUCH_SECONDS = 60.0  # a use is noted no more often than that
_SHARE = 20  # the cache is looked through after a 20th of its budget was fetched
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True, slots=True)
class Known:
    """What was known of an object when the mirror last agreed with it, and the time of change its file got."""

    size: int
    tag: str
    mtime_ns: int

    def is_of(self, found: Found) -> bool:
        """Returns whether an object is still the one that is known."""
        return (self.size, self.tag) == (found.size, found.tag)


class Mirror:
    """The mirror of one URL. Threads and processes may fetch at once; who refreshes or publishes is alone."""

    def __init__(self, folder: Path) -> None:
        state = read_sealed(folder / STATE)
        self.folder, self.root = folder, folder / MIRRORED
        self.url, self.kind, self.id = str(state["url"]), state["kind"], str(state["id"])
        self._known: dict[str, Known] = {}
        self._stamp = (-1, -1)
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
            state = {"format": _FORMAT, "url": url, "kind": kind, "id": uuid.uuid4().hex}
            write_sealed(folder / STATE, state)
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
        path = self.folder / _KNOWN
        try:
            facts = path.stat()
        except FileNotFoundError:
            return {}
        stamp = (facts.st_ino, facts.st_mtime_ns)  # a file that is written anew is another one
        if stamp != self._stamp:
            self._known = {name: Known(*values) for name, values in read_json(path).items()}
            self._stamp = stamp
        return self._known

    def remember(self, known: Mapping[str, Known]) -> None:
        """Replaces what is known of the objects."""
        write_json(
            self.folder / _KNOWN, {name: [facts.size, facts.tag, facts.mtime_ns] for name, facts in known.items()}
        )

    # Agreeing with the store

    def refresh(self, found: Mapping[str, Found], times: Mapping[str, int] | None = None) -> None:
        """Makes the mirror agree with what a store lists: changed objects get placeholders, others' files go.

        ``times`` are the times of change that files get, where those are not the objects'. A fetched file of an
        object that did not change stays.
        """
        known, times = self.known(), times or {}
        local = dict(self.files())
        now: dict[str, Known] = {}
        for name, facts in found.items():
            before, there = known.get(name), local.pop(name, None)
            same = before is not None and before.is_of(facts) and there is not None
            mtime_ns = times.get(name, before.mtime_ns if before is not None and same else facts.modified_ns)
            now[name] = Known(facts.size, facts.tag, mtime_ns)
            if not same or there is None or there.st_size != facts.size:
                self._make_room(name)
                place(self.root / name, facts.size, mtime_ns)
            elif there.st_mtime_ns != mtime_ns:
                os.utime(self.root / name, ns=(there.st_atime_ns, mtime_ns))
        for name in local:
            (self.root / name).unlink(missing_ok=True)
        if now != known:
            self.remember(now)

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
        """Yields the names of the mirror's files, placeholders among them, and their facts; no temporary ones."""
        waiting = [("", self.root)]
        while waiting:
            prefix, folder = waiting.pop()
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name == LOCK or entry.name.startswith(TEMPORARY_PREFIX):
                        continue
                    try:
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append((f"{prefix}{entry.name}/", Path(entry.path)))
                        elif entry.is_file(follow_symlinks=False):
                            yield prefix + entry.name, entry.stat(follow_symlinks=False)
                    except FileNotFoundError:  # removed meanwhile
                        continue

    # Fetching

    def fetch(self, path: Path) -> None:
        """Fetches the content of a file whose placeholder is there; of any other file only notes that it is used.

        Raises ``Changed`` where the object is no longer the one that was listed.
        """
        with self._locks[hash(path) % len(self._locks)]:
            try:
                facts = path.stat()
            except OSError:
                return
            if not stands_in(facts):
                self._touch(path, facts)
                return
            name = check_name(self.url, path.relative_to(self.root).as_posix())
            known = self.known().get(name)
            if known is None or known.size != facts.st_size:
                raise Changed(self.store.place(name))
            with atomic_path(path) as temporary:
                self.store.download(name, temporary, Found(known.size, known.tag, known.mtime_ns))
                os.utime(temporary, ns=(time.time_ns(), facts.st_mtime_ns))
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
        if self.kind == "data" and stat.S_ISREG(facts.st_mode) and now - facts.st_atime_ns > _TOUCH_SECONDS * 1e9:
            with suppress(OSError):
                os.utime(path, ns=(now, facts.st_mtime_ns))


_mirrors: dict[tuple[int, Path], Mirror] = {}


def budget() -> int:
    """Returns the bytes that fetched data may take in the cache, as the environment says."""
    text = os.environ.get(BUDGET_VARIABLE, "")
    if not text:
        return BUDGET
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise UserError(f"{BUDGET_VARIABLE}={text}: expected bytes, such as 200G, for the data that is kept locally")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def keep_within_budget() -> int:
    """Returns the bytes of fetched data in the cache, after those not used for longest were given up for the budget.

    Runs are not touched, nor files used in the last ``RECENT_SECONDS``: what is in use may go beyond the budget.
    """
    fetched: list[tuple[float, int, Path, int]] = []
    for state in cache_folder().glob(f"*/{STATE}"):
        with suppress(UserError, OSError, KeyError):
            mirror = Mirror.at(state.parent / MIRRORED)
            if mirror.kind == "data":
                for name, facts in mirror.files():
                    if not stands_in(facts) and facts.st_size:
                        fetched.append((facts.st_atime, facts.st_size, mirror.root / name, facts.st_mtime_ns))
    total, most, latest = sum(size for _, size, _, _ in fetched), budget(), time.time() - RECENT_SECONDS
    for used, size, path, mtime_ns in sorted(fetched) if total > most else ():
        if total <= most * 0.9 or used > latest:
            break
        place(path, size, mtime_ns)
        total -= size
    return total
