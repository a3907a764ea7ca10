"""One process at a time in a folder: a lock of the kernel's, and who holds it.

The lock is on the file ``.lock``, which is there while somebody works and says who. It goes with its process, however
that ends; what it says is then of no account. Knows nothing about runs.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from threading import Lock

from maskloom.errors import UserError
from maskloom.files import FULL_DISK

LOCK = ".lock"
"""The name of the file."""

_TRIES = 10
_PAUSE_SECONDS = 0.02
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

_ours: dict[Path, Holder] = {}
"""What this process holds: the kernel gives a process its own lock twice, and takes it back at the first close."""
_guard = Lock()


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """Who works in a folder."""

    pid: int
    host: str
    since: str
    """Date and time, ISO 8601, to the second."""
    command: str

    @classmethod
    def present(cls) -> Holder:
        """Returns this process, from now on."""
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        return cls(pid=os.getpid(), host=socket.gethostname(), since=since, command=shlex.join(sys.argv))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since} ({self.command})"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds the folder, which is made if need be, for this process.

    Raises ``UserError``, naming who holds it, when somebody else does, and when the folder cannot be written.
    """
    key = folder.resolve()
    with _guard:
        if key in _ours:
            raise _taken(folder, _ours[key])
        stream = _locked(folder)
        _ours[key] = Holder.present()
    try:
        _write(stream, folder, _ours[key])
        yield
    finally:
        with _guard:
            (folder / LOCK).unlink(missing_ok=True)
            os.close(stream)
            del _ours[key]


def holder(folder: Path) -> Holder | None:
    """Returns who works in the folder at this moment, None where nobody does; changes nothing."""
    with _guard:
        if folder.resolve() in _ours:
            return _ours[folder.resolve()]
        try:
            stream = os.open(folder / LOCK, os.O_RDWR)
        except OSError:  # there is none, or it is somebody's whom we may not ask
            return None
        try:
            return None if _take(stream) else _stated(folder)
        except OSError:  # no locks here
            return None
        finally:
            os.close(stream)


def _locked(folder: Path) -> int:
    """Returns the open lock file, locked."""
    for _ in range(_TRIES):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stream = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise _unusable(folder, error) from error
        try:
            is_ours = _take(stream) and _is_there(stream, folder)
        except OSError as error:
            os.close(stream)
            if error.errno not in _NO_LOCKS:
                raise
            raise UserError(
                f"{folder}: expected a file system with locks, which keep a second process out, found one without "
                f"({error.strerror}); mount it with locks, or choose a folder on another disk"
            ) from error
        if is_ours:
            return stream
        os.close(stream)
        time.sleep(_PAUSE_SECONDS)  # perhaps its holder ends just now, or somebody only asked
    raise _taken(folder, _stated(folder))


def _is_there(stream: int, folder: Path) -> bool:
    """Returns whether the open file is still the folder's lock file; its holder takes it away at the end."""
    try:
        return os.path.samestat(os.fstat(stream), (folder / LOCK).stat())
    except FileNotFoundError:
        return False


def _take(stream: int) -> bool:
    """Returns whether the lock is this process's now."""
    try:
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # which of them is the system's choice
        return False
    return True


def _write(stream: int, folder: Path, present: Holder) -> None:
    try:
        os.ftruncate(stream, 0)
        os.pwrite(stream, json.dumps(asdict(present)).encode(), 0)
    except OSError as error:
        raise _unusable(folder, error) from error


def _stated(folder: Path) -> Holder | None:
    """Returns who the lock file says holds it; None where it says nothing that can be read."""
    for _ in range(_TRIES):  # a holder writes its name just after it has taken the lock
        try:
            return Holder(**json.loads((folder / LOCK).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            time.sleep(_PAUSE_SECONDS)
    return None


def _taken(folder: Path, by: Holder | None) -> UserError:
    if by is None:
        return UserError(f"{folder}: another process works in it; wait for it or stop it")
    is_here = by.host == socket.gethostname()
    stop = f"stop it (kill {by.pid})" if is_here else f"stop it on {by.host}"
    return UserError(f"{folder}: {by} works in it; wait until it ends, or {stop} and start again")


def _unusable(folder: Path, error: OSError) -> UserError:
    if error.errno in FULL_DISK:
        return UserError(f"{folder}: the disk is full; free some space and start the same command again, it continues")
    return UserError(f"{folder}: cannot be written ({error.strerror}); choose another folder or mend its permissions")
