"""Parts of a file of a mirror, read from its object without fetching the whole: a window of a raster, a header.

Knows nothing about what files hold.
"""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

from maskloom.errors import UserError
from maskloom.storage.mirror import Mirror
from maskloom.storage.placeholders import at_hand, is_placeholder, mirror_root
from maskloom.storage.remote import Changed

BLOCK = 2**16
"""Bytes that are read at least, and where blocks begin."""
SMALL = 4 * 2**20
"""Files up to so many bytes are fetched as a whole rather than read in parts."""
KEPT_BLOCKS = 256
"""Blocks that a process keeps of all files: 16 MiB."""

_blocks: OrderedDict[tuple[str, str, int], bytes] = OrderedDict()
_num_read: dict[Path, int] = {}
_guard = Lock()
os.register_at_fork(after_in_child=lambda: _forget())


def open_part(path: Path) -> BinaryIO:
    """Returns a file opened for reading of which little will be read: of a placeholder, only that is asked for."""
    return io.BufferedReader(RangedFile(Parts(path)), BLOCK) if is_placeholder(path) else at_hand(path).open("rb")


def is_worth_fetching(path: Path) -> bool:
    """Returns whether a placeholder's file is better fetched as a whole: it is small, or half was read in parts."""
    size = path.stat().st_size
    return size <= SMALL or 2 * _num_read.get(path, 0) >= size


class Parts:
    """A file of a mirror whose object is read in blocks; those read last are kept."""

    def __init__(self, path: Path) -> None:
        root = mirror_root(path)
        assert root is not None
        mirror, self._path, self._name = Mirror.at(root), path, path.relative_to(root).as_posix()
        known = mirror.listed().get(self._name)
        if known is None:
            raise Changed(mirror.store.place(self._name))
        self._store, self._tag, self.size = mirror.store, known.tag, known.size
        self.num_read = 0
        """Bytes asked of the store."""
        self.problem: BaseException | None = None
        """Why it could not be read, for libraries that say so in other words, or go on without."""
        self._is_checked = False

    def read(self, start: int, end: int) -> bytes:
        """Returns the bytes [start, end), inside the file; of what is not kept, neighbouring blocks in one request."""
        try:
            return self._read(start, end)
        except UserError as problem:
            self.problem = problem
            raise

    def _read(self, start: int, end: int) -> bytes:
        self._check()
        numbers = range(start // BLOCK, (end - 1) // BLOCK + 1)
        with _guard:
            found = {number: _blocks[key] for number in numbers if (key := self._key(number)) in _blocks}
        lacking = [number for number in numbers if number not in found]
        while lacking:
            together = sum(number == lacking[0] + at for at, number in enumerate(lacking))
            first = lacking[0] * BLOCK
            data = self._store.read(self._name, first, min(first + together * BLOCK, self.size))
            self.num_read += len(data)
            _num_read[self._path] = _num_read.get(self._path, 0) + len(data)
            for at in range(together):
                found[lacking[at]] = data[at * BLOCK : (at + 1) * BLOCK]
            lacking = lacking[together:]
        with _guard:
            for number in numbers:
                _blocks[self._key(number)] = found[number]
                _blocks.move_to_end(self._key(number))
            while len(_blocks) > KEPT_BLOCKS:
                _blocks.popitem(last=False)
        joined = b"".join(found[number] for number in numbers)
        return joined[start - numbers[0] * BLOCK : end - numbers[0] * BLOCK]

    def _key(self, number: int) -> tuple[str, str, int]:
        return self._store.place(self._name), self._tag, number

    def _check(self) -> None:
        """Raises ``Changed`` unless the object is the one that was listed; asked once, before the first byte."""
        if not self._is_checked:
            now = self._store.stat(self._name)
            if now is None or (now.size, now.tag) != (self.size, self._tag):
                raise Changed(self._store.place(self._name))
            self._is_checked = True


class RangedFile(io.RawIOBase):
    """Parts as a stream. ``silent``: it ends where it cannot be read, for libraries that no exception may cross."""

    def __init__(self, parts: Parts, *, silent: bool = False) -> None:
        self._parts, self._is_silent, self._at = parts, silent, 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Returns where it is."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Goes to a place, and returns it."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._parts.size}[whence]
        self._at = max(start + offset, 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer as far as the file goes, and returns by how many bytes."""
        start, end = self._at, min(self._at + len(buffer), self._parts.size)
        if end <= start:
            return 0
        try:
            data = self._parts.read(start, end)
        except BaseException as problem:  # in a library that no exception may cross an interrupt would be lost, too
            if not self._is_silent:
                raise
            self._parts.problem = problem
            return 0
        buffer[: len(data)] = data
        self._at = end
        return len(data)


def _forget() -> None:
    """Gives a process that was forked a lock and blocks of its own."""
    global _guard
    _guard = Lock()
    _blocks.clear()
