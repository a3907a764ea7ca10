"""Files of a mirror that are named but not yet there: how they are told apart, and fetched when they are to be read.

A placeholder has the length and the time of change of the object it stands for and no permission to be read, so that
listing a mirror and asking for its files' facts costs nothing, and reading one unasked fails. ``at_hand`` is asked by
whoever reads files that may be of a mirror; for all others it costs a look at the path. Knows nothing about stores.
"""

from __future__ import annotations

import os
import stat
import uuid
from functools import lru_cache
from pathlib import Path

from maskloom.errors import UserError
from maskloom.storage.urls import CACHE_VARIABLE

MIRRORED = "mirrored"
"""The name of the folder of a mirror's files."""
STATE = "mirror.json"
"""The file beside it that says what it mirrors."""

_READABLE = 0o444


def at_hand(path: Path) -> Path:
    """Returns the path of a file that is about to be read, once its content is there: a placeholder is fetched.

    Raises ``UserError`` where the store does not give it. A path of no mirror, or of no file, is returned as it is.
    """
    root = mirror_root(path)
    if root is not None:
        from maskloom.storage.mirror import Mirror

        Mirror.at(root).fetch(path)
    return path


def is_placeholder(path: Path) -> bool:
    """Returns whether a path is one of a mirror, and its content is not there."""
    if mirror_root(path) is None:
        return False
    try:
        return stands_in(path.stat())
    except OSError:
        return False


def mirror_root(path: Path) -> Path | None:
    """Returns the folder of the mirror's files that a path lies in; None for a path of no mirror."""
    head, found, _ = f"{path}/".rpartition(f"/{MIRRORED}/")
    return _checked_root(head) if found else None


@lru_cache(maxsize=256)
def _root(head: str) -> Path | None:
    folder = Path(head)
    return folder / MIRRORED if (folder / STATE).is_file() else None


def _checked_root(head: str) -> Path | None:
    while head:
        root = _root(head)
        if root is not None:
            return root
        head, found, _ = head.rpartition(f"/{MIRRORED}/")  # a folder of that name inside a mirror
        if not found:
            break
    return None


def forget_roots() -> None:
    """Looks anew at what is a mirror; asked after one was made."""
    _root.cache_clear()


def stands_in(facts: os.stat_result) -> bool:
    """Returns whether the facts are those of a placeholder."""
    return stat.S_ISREG(facts.st_mode) and not facts.st_mode & _READABLE and facts.st_size > 0


def place(path: Path, size: int, mtime_ns: int) -> int:
    """Makes a placeholder, in the place of whatever file is there; an empty file is made as it is.

    Returns the time of change that it got, which on some file systems is a rounded one. Raises ``UserError`` where
    permissions are not kept: nothing would tell placeholders from files whose bytes are zeros.
    """
    from maskloom.files import TEMPORARY_PREFIX  # here, as that module asks this one

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o200 if size else 0o644)
    try:
        try:
            os.ftruncate(handle, size)
            os.utime(handle, ns=(mtime_ns, mtime_ns))
        finally:
            os.close(handle)
        facts = temporary.stat()
        if size and not stands_in(facts):
            raise UserError(
                f"{path.parent}: expected a file system that keeps permissions, found one that does not (a file that "
                f"nobody may read has mode {stat.S_IMODE(facts.st_mode):o}); choose a folder on another disk with "
                f"{CACHE_VARIABLE}"
            )
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return facts.st_mtime_ns


def changed_ns(path: Path) -> int:
    """Returns when a file last changed in any way, ns since 1970: its times of change of content and of status.

    Of a mirror's file it is the object's: fetching it and giving it up are no changes.
    """
    facts = path.stat()
    return facts.st_mtime_ns if mirror_root(path) is not None else max(facts.st_mtime_ns, facts.st_ctime_ns)
