"""A folder at a URL, by fsspec: listing, reading, writing and removing, each of which waits out a lost connection.

Nothing is renamed. Of S3 and its like an object appears whole, when all of it has been handed over; where fsspec writes
files in place (sftp, smb), half of one may be seen. Credentials and the store's address come from the environment.
Knows nothing about mirrors, runs or what objects hold.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from maskloom.errors import UserError
from maskloom.files import TEMPORARY_PREFIX
from maskloom.run_lock import LOCK
from maskloom.storage.faults import explained, is_passing, reason
from maskloom.storage.urls import check_name, endpoint, store_name

WAIT_VARIABLE = "MASKLOOM_STORAGE_WAIT"
"""The environment variable with the seconds for which a lost connection is waited out."""
WAIT_SECONDS = 600.0
"""What holds unless it is set."""
FIRST_WAIT_SECONDS = 15.0
"""The same before the store has answered once: most likely its address is wrong."""
THREADS = 8
"""Objects that are read or written at a time."""
LARGE = 32 * 2**20
"""Bytes above which an object is read, or written, in parts."""

_PART = 16 * 2**20
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 15.0
_LOOK_SECONDS = 0.5  # a pause ends so soon after the waiting was made shorter
_LISTED = 1000  # objects that one answer to a listing holds

logger = logging.getLogger("maskloom.storage")
T = TypeVar("T")


def is_left_alone(part: str) -> bool:
    """Returns whether a file or folder of that name is a lock or half written: at a URL it is nobody's to read."""
    return part == LOCK or part.startswith(TEMPORARY_PREFIX)


@dataclass(frozen=True, slots=True)
class Found:
    """What a store says of an object: bytes, what changes with its content (an ETag, say), and when it was written."""

    size: int
    tag: str
    modified_ns: int


class Changed(UserError):
    """An object is no longer what it was when it was listed."""

    def __init__(self, place: str) -> None:
        super().__init__(f"{place}: changed or removed while it was read; start the same command again, it continues")
        self.place = place

    def __reduce__(self) -> tuple[type[Changed], tuple[str]]:
        # As for ``BadFile``: loader workers send their errors through a queue.
        return (Changed, (self.place,))


class Store:
    """The objects below a URL. Threads may share it, processes may not: see ``store_at``."""

    def __init__(self, url: str, *, wait: float | None = None) -> None:
        self.url = url
        self.wait = _stated_wait() if wait is None else wait
        self._answered = False
        self._fs, self._base = _filesystem(url)

    # Reading

    def listing(self, prefix: str = "") -> dict[str, Found]:
        """Returns what lies below the URL, by names relative to it; empty where there is nothing.

        ``prefix`` is what names begin with. Raises ``UserError`` for names that lead out of the folder, or cannot be
        files beside each other. Empty objects whose names end in "/", by which some tools draw folders, are passed
        over, and so are locks and half-written files, which were copied there with a folder.
        """
        found: dict[str, Found] = {}
        for path, facts in self._listed(prefix).items():
            name = self._name(path)
            if name is None or facts.get("type") == "directory" or (name.endswith("/") and not facts.get("size")):
                continue
            if name.startswith(prefix) and not any(map(is_left_alone, name.split("/"))):
                found[check_name(self.url, name)] = _found(facts)
        for name in found:
            above = name
            while "/" in above:
                above = above.rpartition("/")[0]
                if above in found:
                    raise UserError(
                        f"{self.url}: expected {above!r:.200} to be a file or a folder, found both; rename one"
                    )
        return found

    def _listed(self, prefix: str) -> dict[str, dict[str, Any]]:
        """Returns fsspec's facts by full names; of a store that can, only those that begin with the prefix."""

        def ask() -> Any:
            self._fs.invalidate_cache()
            if prefix and "s3" in _protocols(self._fs):
                return self._fs.find(f"{self._base}/", prefix=prefix, detail=True, withdirs=False)
            return self._fs.find(self._base, detail=True, withdirs=False)

        try:
            found: dict[str, dict[str, Any]] = self._call("list", "", ask)
        except FileNotFoundError:
            raise UserError(f"{self.url}: expected a bucket or folder, found none; check the name") from None
        return found

    def _name(self, path: str) -> str | None:
        """Returns the name below the URL of a path that was listed; None for the URL itself."""
        if path.strip("/") == self._base.strip("/"):
            return None
        head = f"{self._base.rstrip('/')}/"
        if not path.startswith(head):
            head = head.lstrip("/")
        return path[len(head) :] if path.startswith(head) else path

    def stat(self, name: str = "") -> Found | None:
        """Returns what is known about one object ("": the URL itself); None where there is none of that name."""

        def ask() -> Any:
            self._fs.invalidate_cache()
            return self._fs.info(self._path(name))

        try:
            facts = self._call("look up", name, ask)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return None if facts.get("type") == "directory" else _found(facts)

    def look_up(self, names: Collection[str], *, of: int) -> dict[str, Found]:
        """Returns what is known about those of these objects that are there, of about ``of`` below the URL.

        Few are asked for one by one; of many, a listing of all takes less time.
        """
        if len(names) > THREADS * (1 + of // _LISTED):
            return self.listing()
        with ThreadPoolExecutor(THREADS) as pool:
            answers = dict(zip(names, pool.map(self.stat, names), strict=True))
        return {name: found for name, found in answers.items() if found is not None}

    def read(self, name: str, start: int, end: int) -> bytes:
        """Returns the bytes [start, end) of an object; raises ``Changed`` where it is gone or shorter."""
        if end <= start:
            return b""
        try:
            data: bytes = self._call("read", name, lambda: self._fs.cat_file(self._path(name), start=start, end=end))
        except FileNotFoundError:
            raise Changed(self.place(name)) from None
        except OSError as error:
            if error.errno != errno.EINVAL:  # a range beyond the end
                raise
            raise Changed(self.place(name)) from None
        if len(data) != end - start:
            raise Changed(self.place(name))
        return data

    def read_all(self, name: str, *, max_bytes: int = LARGE) -> bytes | None:
        """Returns a small object as it is now, of a longer one its first bytes; None where there is none."""
        try:
            content: bytes = self._call(
                "read", name, lambda: self._fs.cat_file(self._path(name), start=0, end=max_bytes)
            )
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.EINVAL:  # an empty object has no range
                raise
            return b""
        return content

    def download(self, name: str, target: Path, found: Found) -> None:
        """Writes an object's content to a local file; raises ``Changed`` where it is not the one that was listed."""
        import hashlib

        digest = hashlib.md5(usedforsecurity=False)
        with target.open("wb") as stream:
            for start in range(0, found.size, _PART):
                part = self.read(name, start, min(start + _PART, found.size))
                digest.update(part)
                stream.write(part)
        if found.tag.strip('"') == digest.hexdigest():  # of most objects the ETag is their MD5
            return
        now = self.stat(name)
        if now is None or (now.size, now.tag) != (found.size, found.tag):
            raise Changed(self.place(name))

    # Writing

    def write(self, name: str, content: bytes) -> None:
        """Writes an object in one go, in the place of one of that name."""
        self._put("write", name, lambda: self._fs.pipe_file(self._path(name), content))

    def _put(self, what: str, name: str, ask: Callable[[], object]) -> None:
        """Writes; raises ``UserError`` where there is nothing to write into."""
        try:
            self._call(what, name, ask)
        except FileNotFoundError:
            raise UserError(
                f"{self.url}: expected a bucket or folder to write to, found none; make it, or check the name"
            ) from None

    def create(self, name: str, content: bytes) -> bool:
        """Writes an object unless there is one of that name; returns whether it did, as far as it knows.

        Whose it is tells its content: an answer that was lost makes the second try find the first one's object, and of
        a store without conditional writes two that ask at once may both be told that they wrote it.
        """
        try:
            self._put("create", name, lambda: self._fs.pipe_file(self._path(name), content, mode="create"))
        except FileExistsError:
            return False
        except (OSError, NotImplementedError, TypeError) as error:
            if self.stat(name) is not None:
                return False
            if isinstance(error, OSError) and error.errno not in (errno.ENOSYS, errno.EINVAL):
                raise
            self.write(name, content)
        return True

    def upload(self, file: Path, name: str) -> None:
        """Writes a local file as an object, in parts where it is large; see the module on when it appears."""
        if file.stat().st_size <= LARGE:
            self.write(name, file.read_bytes())
        else:
            self._put("write", name, lambda: self._fs.put_file(str(file), self._path(name)))

    def remove(self, names: Iterable[str]) -> None:
        """Removes objects; those that are not there count as removed."""

        def one(name: str) -> None:
            try:
                self._call("remove", name, lambda: self._fs.rm_file(self._path(name)))
            except FileNotFoundError:
                return

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(one, names))

    def place(self, name: str) -> str:
        """Returns the URL of an object, for messages."""
        return f"{self.url}/{name}" if name else self.url

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}" if name else self._base

    # Faults

    def _call(self, what: str, name: str, ask: Callable[[], T]) -> T:
        """Returns what the store answers; while it does not, asks again, up to ``wait`` seconds.

        Raises ``UserError`` for credentials and addresses that are wrong and when the waiting is over; what is about
        the object itself is left to the caller.
        """
        began, pause, tries = time.monotonic(), _FIRST_PAUSE, 0
        while True:
            tries += 1
            try:
                answer = ask()
            except Exception as error:
                if not is_passing(error):
                    told = explained(self.place(name), what, error)
                    if told is error:
                        raise
                    raise told from error
                spent = time.monotonic() - began
                if spent >= self._limit():
                    raise self._lost(what, name, tries, spent, error) from error
                if tries == 1:
                    logger.warning(
                        "%s: no answer (%s); waiting for it, %.0f s at most",
                        self.place(name),
                        reason(error),
                        self._limit(),
                    )
                self._rest(began, pause * random.uniform(0.8, 1.2))
                pause = min(pause * 2, _LONGEST_PAUSE)
            else:
                if tries > 1:
                    logger.warning("%s: it answers again, after %.0f s", self.url, time.monotonic() - began)
                self._answered = True
                return answer

    def _limit(self) -> float:
        return self.wait if self._answered else min(self.wait, FIRST_WAIT_SECONDS)

    def _rest(self, began: float, seconds: float) -> None:
        """Pauses, until the waiting is over at most: ``wait`` may be made shorter meanwhile."""
        until = time.monotonic() + seconds
        while (left := min(until, began + self._limit()) - time.monotonic()) > 0:
            time.sleep(min(left, _LOOK_SECONDS))

    def _lost(self, what: str, name: str, tries: int, spent: float, error: Exception) -> UserError:
        known = "" if self._answered else "; check the address of the store (AWS_ENDPOINT_URL) and the network"
        return UserError(
            f"{self.place(name)}: expected the store to answer, found no answer to {what} it, asked {tries} times in "
            f"{spent:.0f} s ({reason(error)}){known}; start the same command again once it answers, it continues "
            f"where it was ({WAIT_VARIABLE} sets how long is waited, in seconds)"
        )


_stores: dict[tuple[int, str, str], Store] = {}


def store_at(url: str) -> Store:
    """Returns this process's store of a URL: connections do not survive a fork."""
    key = (os.getpid(), url, store_name())
    if key not in _stores:
        _stores[key] = Store(url)
    return _stores[key]


def _filesystem(url: str) -> tuple[Any, str]:
    """Returns fsspec's file system of a URL, and what the URL is called in it."""
    scheme = url.partition("://")[0]
    try:
        import fsspec  # type: ignore[import-untyped]

        options: dict[str, Any] = {}
        if scheme in ("s3", "s3a"):
            if endpoint():
                options["endpoint_url"] = endpoint()
            options["config_kwargs"] = {
                "connect_timeout": 10,
                "read_timeout": 60,
                "max_pool_connections": 4 * THREADS,
                "retries": {"max_attempts": 1},
            }
        fs, base = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True, **options)
    except ImportError as error:
        package = "maskloom[s3]" if scheme in ("s3", "s3a") or error.name == "fsspec" else "what the message names"
        command = f"pip install '{package}'" if package.startswith("maskloom") else f"install {package}"
        raise UserError(f"{url}: reading it takes more than is installed ({error}); {command}") from None
    except ValueError as error:
        raise UserError(f"{url}: expected a URL that fsspec reads, such as s3://bucket/folder ({error})") from None
    except TypeError:
        fs, base = fsspec.core.url_to_fs(url)
    return fs, str(base)


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _stated_wait() -> float:
    text = os.environ.get(WAIT_VARIABLE, "")
    try:
        seconds = float(text) if text else WAIT_SECONDS
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e7:
        raise UserError(f"{WAIT_VARIABLE}={text}: expected seconds, 0 or more, for which a lost store is waited for")
    return seconds


def _found(facts: dict[str, Any]) -> Found:
    """Returns what fsspec says of an object, under the names that file systems give it."""
    written = facts.get("LastModified") or facts.get("mtime") or facts.get("created") or 0
    if isinstance(written, str):
        written = datetime.fromisoformat(written)
    if isinstance(written, datetime):
        aware = written if written.tzinfo else written.replace(tzinfo=UTC)
        written = aware.timestamp()
    modified = round(float(written) * 1e9)
    size = int(facts.get("size") or 0)
    tag = next((str(facts[key]) for key in ("ETag", "etag", "md5Hash", "md5") if facts.get(key)), f"{size}-{modified}")
    return Found(size, tag.strip('"'), modified)
