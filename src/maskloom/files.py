"""Files that are whole or absent: atomic writes, checksums, fingerprints.

An artefact is written under a temporary name in its own folder, flushed to the disk and renamed, so a crash or a
full disk leaves either the old file or the new one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from maskloom.errors import UserError
from maskloom.storage.placeholders import at_hand

TEMPORARY_PREFIX = ".partial-"
OWNER = ".maskloom.json"
"""The file that says in a folder of masks which run or conversion filled it."""
MAX_JSON_BYTES = 2**29
"""The longest JSON that is read unless asked otherwise; its values take six times as much memory, at most thirty."""
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
"""What the operating system says when there is no more room."""
_LITTLE_ROOM = 2**20  # bytes; a disk with fewer of them is as good as full

_LEAST_READ = 2**16  # bytes that are asked for, whatever the length is said to be


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; on success it is flushed and renamed, on any error it is removed.

    Raises ``UserError``, which names ``path``, when the disk is full or the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = new_temporary(path)
    except OSError as error:
        raise _write_error(path, error) from error
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except Exception as error:
        explained = _write_error(path, error, temporary)
        if explained is error:
            raise
        raise explained from error
    finally:
        with suppress(OSError):  # where nothing can be written any more, what was to be said says so
            temporary.unlink(missing_ok=True)


def new_temporary(path: Path) -> Path:
    """Returns a new empty file beside ``path``, of which nobody else knows.

    Its permissions are what the umask, or the folder, leaves of those for all: files of ``tempfile`` are the user's
    alone, and to ask for the umask is to change it for all threads.
    """
    while True:
        temporary = path.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex[:8]}{path.suffix}"
        with suppress(FileExistsError):
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            return temporary


def _write_error(path: Path, error: Exception, temporary: Path | None = None) -> Exception:
    """Returns what to raise for an error of writing: it names ``path``, never the temporary name.

    Compiled libraries tell a full disk, and the file that they could not write, in words only.
    """
    if getattr(error, "errno", None) in FULL_DISK or f"os error {errno.ENOSPC}" in str(error):
        return _full_disk(path)
    if isinstance(error, OSError) and error.errno is not None:
        written = {"None", *map(str, (temporary, path, path.parent))}
        if temporary is not None and str(error.filename) not in written:
            return error  # of what was read meanwhile
        reason = error.strerror
    elif temporary is not None and temporary.name in str(error):
        reason = " ".join(str(error).split()).replace(str(temporary), str(path)).replace(temporary.name, path.name)
    else:
        return error
    return UserError(f"{path}: cannot be written ({reason}); choose another folder or mend its permissions")


def _full_disk(path: Path) -> UserError:
    return UserError(f"{path}: the disk is full; free some space and start the same command again, it continues")


def write_refusal(path: Path, reason: str, *, num_bytes: int = 0) -> UserError:
    """Returns what to raise where a library could not write ``path`` and does not tell whether for lack of room.

    ``num_bytes`` are how many it needed, besides what is still there of what it wrote.
    """
    try:
        is_full = shutil.disk_usage(path.parent).free < max(num_bytes, _LITTLE_ROOM)
    except OSError:
        is_full = False
    if is_full:
        return _full_disk(path)
    return UserError(f"{path}: {reason}; is the disk full? then free some space, else choose another folder")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes ``content`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Writes UTF-8 text atomically."""
    write_bytes(path, content.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as indented JSON with sorted keys, atomically; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Returns the parsed file; raises ``UserError`` when it is missing, longer than ``max_bytes`` or not JSON."""
    try:
        with at_hand(path).open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            content = stream.read(min(max(size, _LEAST_READ), max_bytes) + 1)  # all of this is allocated at once
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    if len(content) > max_bytes:
        raise UserError(
            f"{path}: expected JSON of at most {max_bytes:,} bytes, since its values take many times as much memory, "
            "found more; cut it into several files, or free some memory"
        )
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # also of text that is none, of huge numbers and of deep nesting
        raise UserError(f"{path}: expected JSON, found something else ({error}); restore the file") from error


def checksum(path: Path) -> str:
    """Returns the SHA-256 of the file's content in hexadecimal, read in pieces."""
    with at_hand(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint(*parts: Any) -> str:
    """Returns a short stable hash of JSON-serialisable parts; equal parts give equal fingerprints on every machine."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def remove_partial(folder: Path) -> None:
    """Removes temporary files that a killed process left below ``folder``."""
    for leftover in folder.rglob(TEMPORARY_PREFIX + "*"):
        leftover.unlink(missing_ok=True)
